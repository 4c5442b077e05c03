"""What a feature is: a name, words for people, and the expression that defines it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from riskml.features.expr import Expr

Family: TypeAlias = Literal["volatility", "funding", "positioning", "cross_chain", "cross_asset", "calendar"]
FAMILIES: tuple[Family, ...] = (
    "volatility",
    "funding",
    "positioning",
    "cross_chain",
    "cross_asset",
    "calendar",
)


@dataclass(frozen=True)
class Feature:
    """A pure function of inputs up to the close of a bar."""

    name: str
    family: Family
    """Families are dropped as a whole in training, so that a dead source degrades gently."""
    unit: str
    formula: str
    """For people; the expression is the definition."""
    source: str
    """Where the idea comes from."""
    expr: Expr

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs it reads, derived from the expression."""
        return self.expr.input_names()

    def lookback_bars(self, interval: str) -> int:
        """Rows of input that determine one value exactly, derived from the expression."""
        return self.expr.lookback_bars(interval)
