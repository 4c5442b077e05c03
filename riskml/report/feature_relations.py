"""Rank correlation of features with what is forecast.

Ranks ask only whether large goes with large, so that neither a heavy tail nor a unit decides.
Every target is ranked once; the ranks of the rows that a feature has follow from counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import DOWN, UP, AnyArray, Bool1D, Float1D, FloatND, Int1D
from riskml.units import duration_bars

MIN_ROWS = 200
"""Fewer common rows than this give no correlation."""


@dataclass(frozen=True)
class Relation:
    """How a feature goes with one target on the fit part."""

    target: str
    """``variance`` (realised), ``mae_down``, or ``direction``: (up - down) / (up + down) of the
    two excursions. What is known at a bar hardly says the last; the next price does."""
    horizon: str
    correlation: float | None
    """Spearman's rank correlation over all markets; None with fewer than :data:`MIN_ROWS` rows."""
    rows: int
    """Rows of the sample that have both."""


@dataclass(frozen=True)
class Ranked:
    """A sample whose equal values share an id; ids rise with the values."""

    ids: Int1D
    """[n_rows]; -1 = missing."""
    n_ids: int

    @classmethod
    def of(cls, values: AnyArray) -> Ranked:
        """Rank a sample of any shape; NaN and infinity count as missing."""
        flat = np.asarray(values).ravel()
        known = np.isfinite(flat)
        ids = np.full(flat.size, -1, dtype=np.int64)
        distinct, ids[known] = np.unique(flat[known], return_inverse=True)
        return cls(ids, distinct.size)

    def ranks(self, rows: Bool1D) -> Float1D:
        """Ranks from 1 among ``rows`` [n_rows], all of them known; equal values share their mean rank."""
        ids = self.ids[rows]
        counts = np.bincount(ids, minlength=self.n_ids)
        return np.asarray((np.cumsum(counts) - 0.5 * (counts - 1))[ids], dtype=np.float64)


def rank_correlation(one: Ranked, other: Ranked) -> tuple[float | None, int]:
    """Spearman's correlation over the rows that both have, and their number.

    Returns
    -------
    (correlation, n_rows) : None with fewer than :data:`MIN_ROWS` rows, or where one side is constant.
    """
    rows = (one.ids >= 0) & (other.ids >= 0)
    n_rows = int(rows.sum())
    if n_rows < MIN_ROWS:
        return None, n_rows
    first, second = one.ranks(rows), other.ranks(rows)
    first -= first.mean()
    second -= second.mean()
    size = float(np.sqrt(np.dot(first, first) * np.dot(second, second)))
    return (float(np.dot(first, second)) / size if size > 0.0 else None), n_rows


@dataclass(frozen=True)
class Targets:
    """The ranked targets of a sample of rows."""

    names: tuple[tuple[str, str], ...]
    """(target, horizon)."""
    ranked: tuple[Ranked, ...]
    persistence: tuple[float | None, ...]
    """Largest rank correlation of each target with what had been seen of it at the bar: its value one
    horizon before, of any of the horizons."""

    def relations(self, values: AnyArray) -> tuple[Relation, ...]:
        """Correlation of a feature's values on the sample with every target."""
        feature = Ranked.of(values)
        return tuple(
            Relation(target, horizon, *rank_correlation(feature, ranked))
            for (target, horizon), ranked in zip(self.names, self.ranked, strict=True)
        )


def _direction(up: AnyArray, down: AnyArray) -> AnyArray:
    """In [-1, 1], free of how far price went; NaN where it did not move."""
    both = up + down
    return np.divide(up - down, both, out=np.full(both.shape, np.nan), where=both > 0.0)


def rank_targets(
    variance: FloatND, mae: FloatND, rows: Int1D, interval: str, horizons: Sequence[str]
) -> Targets:
    """Rank realised variance, downward excursion and direction of a sample of bars.

    Parameters
    ----------
    variance : [n_bars, n_markets, n_horizons].
    mae : [n_bars, n_markets, n_horizons, 2].
    rows : bars of the sample.
    interval, horizons : as in the dataset.

    Notes
    -----
    A logarithm keeps ranks, so the log of the variance needs no computing.
    """
    names: list[tuple[str, str]] = []
    ranked: list[Ranked] = []
    past: dict[str, list[Ranked]] = {}
    for place, horizon in enumerate(horizons):
        steps = duration_bars(horizon, interval)
        down, up = mae[:, :, place, DOWN], mae[:, :, place, UP]
        for target, values in (
            ("variance", variance[:, :, place]),
            ("mae_down", down),
            ("direction", _direction(up, down)),
        ):
            names.append((target, horizon))
            ranked.append(Ranked.of(values[rows]))
            before = np.full((rows.size, values.shape[1]), np.nan)
            reaches = rows >= steps
            before[reaches] = values[rows[reaches] - steps]
            past.setdefault(target, []).append(Ranked.of(before))
    persistence = []
    for (target, _), now in zip(names, ranked, strict=True):
        reached = [rank_correlation(now, before)[0] for before in past[target]]
        persistence.append(max((abs(value) for value in reached if value is not None), default=None))
    return Targets(tuple(names), tuple(ranked), tuple(persistence))
