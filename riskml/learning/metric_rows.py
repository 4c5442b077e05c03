"""The shape of a measured number: what every group of measures yields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Int1D
from riskml.learning.protocol import Scored
from riskml.units import DAY

ALL = "all"
BOTH = "both"
SIDES = ("down", "up")


@dataclass(frozen=True)
class MetricRow:
    """One measured number, with the number that it has to beat."""

    metric: str
    model: str
    horizon: str
    market: str
    side: str
    value: float
    baseline: float
    """The same measure of ``baseline_model`` on identical rows; for a ratio 1, for a difference 0."""
    n: int
    low: float = math.nan
    high: float = math.nan
    baseline_model: str = ""
    p_value: float = math.nan
    verdict: str = ""
    """Of a test: ``pass``, ``fail`` or ``no power``."""

    def to_dict(self) -> dict[str, object]:
        """The JSON form; a number that could not be computed is ``None``."""
        return {
            name: (None if isinstance(value, float) and not math.isfinite(value) else value)
            for name, value in vars(self).items()
        }


def first_baseline(preferred: tuple[str, ...], models: Mapping[str, object]) -> str:
    """The first preferred model that there is; empty without one."""
    return next((name for name in preferred if name in models), "")


def days_of(scored: Scored) -> Int1D:
    """Calendar day of every row [n]: the blocks of the bootstrap."""
    return np.asarray(scored.ts // DAY)
