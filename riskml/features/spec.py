"""What a feature is: a name, words for people, and the expression that defines it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from riskml.features.inputs import input_spec
from riskml.features.nodes import BAR, LOOKS_BACK, Expr, Input, Lag, Rolling, Season, walk
from riskml.units import DAY, duration_us

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
    missing_note: str = ""
    """What decides that it is missing, beyond what :attr:`nan_rule` reads off the expression."""

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs it reads, derived from the expression."""
        return self.expr.input_names()

    def lookback_bars(self, interval: str) -> int:
        """Rows of input that determine one value exactly, derived from the expression."""
        return self.expr.lookback_bars(interval)

    @cached_property
    def nan_rule(self) -> str:
        """When it is NaN, in words: windows too empty, rows too old, and :attr:`missing_note`."""
        parts = [_window_rule(self.expr), _row_rule(self.expr), self.missing_note]
        return "; ".join(part for part in parts if part) or "never"


def _window_rule(expr: Expr) -> str:
    """How much of each window must be there; windows with the same rule share a clause."""
    windows: dict[str, set[str]] = {}
    for node in walk(expr):
        if isinstance(node, Rolling) and node.statistic != "count":
            windows.setdefault(node.min_window or "half", set()).add(node.window)
        elif isinstance(node, Season):
            windows.setdefault("half", set()).add(f"{node.count * duration_us(node.period) // DAY}d")
    clauses = [
        f"less than {need} of {_join(sorted(spans, key=duration_us))}" for need, spans in windows.items()
    ]
    return " or ".join(clauses)


def _row_rule(expr: Expr) -> str:
    """Which inputs must be there in a row itself, or at a lag, rather than within a window."""
    limits: dict[str, set[str]] = {}
    lags = {node.duration for node in walk(expr) if isinstance(node, Lag) and node.duration != BAR}
    for name in expr.input_names():
        spec = input_spec(name)
        if spec.staleness:
            limits.setdefault(spec.staleness, set()).add(name)
    rows = [name for name in _bare_inputs(expr) if not input_spec(name).staleness]
    parts = [f"no {_join(rows)} in the bar"] if rows else []
    parts += [f"{_join(sorted(names))} older than {limit}" for limit, names in limits.items()]
    if lags:
        parts.append(f"nothing {_join(sorted(lags, key=duration_us))} before")
    return "; ".join(parts)


def _bare_inputs(expr: Expr) -> list[str]:
    """Inputs that the newest row needs, because no window stands between them and the result."""
    found: set[str] = set()
    stack, seen = [expr], set[str]()
    while stack:
        node = stack.pop()
        if node.text in seen or isinstance(node, LOOKS_BACK):
            continue
        seen.add(node.text)
        if isinstance(node, Input):
            found.add(node.name)
        stack.extend(node.children)
    return sorted(found)


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
