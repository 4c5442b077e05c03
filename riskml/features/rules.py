"""How one value is made of an input's candidates, slot by slot.

The same functions serve a history, where the last axis is time, and a live slot, where it is
markets. Sums run over the candidates from first to last, so that neither the form nor a series
that has nothing to say changes a bit of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, Bool2D, Float1D, Float2D, Int1D, Int2D
from riskml.features.columns import column_values
from riskml.features.inputs import InputKind, InputSpec
from riskml.features.rows import Rows
from riskml.units import duration_us

_PEG_DEVIATION = "price_usd / redemption_usd - 1"
PEG_COMPANY = "2h"
"""How far prices of a stablecoin may lie apart in time and still be compared."""


@dataclass(frozen=True)
class Found:
    """The rows of the candidates, one per candidate and slot or column."""

    values: Callable[[str], Float2D]
    """Values of a column expression [n_candidates, n]; NaN where a candidate has no row."""
    times: Callable[[], Float2D]
    """When the rows happened [n_candidates, n], us; NaN where a candidate has no row."""
    labels: Int2D
    """What the candidates of a chain have in common, the asset: [n_candidates, n or 1]; -1 = none."""


def series_values(rows: Rows, text: str) -> Float1D:
    """A column expression over the rows of a series [n_rows], kept for the next time."""
    if text not in rows.derived:
        plain = text in rows.column_names
        rows.derived[text] = rows.column(text) if plain else column_values(rows.columns, text)
    return rows.derived[text]


def value_of(spec: InputSpec, found: Found) -> Float1D:
    """The input's value [n]; for ``market_age`` the time of the row, us. NaN = missing."""
    values = found.values(spec.column)
    if spec.kind == "market_age":
        return _first_finite(np.where(np.isfinite(values), found.times(), np.nan))
    if spec.kind == "asset":
        return _nearest_to_zero(values, found.values(_PEG_DEVIATION), found.times())
    if spec.kind == "chain" and spec.combine == "supply":
        return _sum_of_means(values, found.labels)
    rule = _CHAIN_RULES[spec.combine] if spec.kind == "chain" else _RULES[spec.kind]
    return rule(values)


def _first_finite(values: Float2D) -> Float1D:
    result: Float1D = values[0]
    for other in values[1:]:
        missing = ~np.isfinite(result)
        if not missing.any():
            break
        result = np.where(missing, other, result)
    return result


def _median(values: Float2D) -> Float1D:
    """Middle of the finite values; the mean of the two middle ones of an even number."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    ordered = np.sort(np.where(finite, values, np.nan), axis=0)  # NaN comes last
    column = np.arange(values.shape[1])
    last = np.maximum(count - 1, 0)
    middle = 0.5 * (ordered[last // 2, column] + ordered[(last + 1) // 2, column])
    return np.where(count > 0, middle, np.nan)


def _spread(values: Float2D) -> Float1D:
    """Standard deviation over the candidates, divisor n; NaN with fewer than two."""
    total, count = _total(values)
    centre = total / np.maximum(count, 1)
    squares, _ = _total(np.square(values - centre))
    return np.where(count >= 2, np.sqrt(squares / np.maximum(count, 1)), np.nan)


def _sum(values: Float2D) -> Float1D:
    total, count = _total(values)
    return np.where(count > 0, total, np.nan)


def _mean(values: Float2D) -> Float1D:
    total, count = _total(values)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _sum_of_means(values: Float2D, labels: Int2D) -> Float1D:
    """Mean over the candidates of each label, then the sum over labels."""
    means = [_mean(np.where(labels == label, values, np.nan)) for label in np.unique(labels[labels >= 0])]
    return _sum(np.stack(means)) if means else np.full(values.shape[1], np.nan)


def _nearest_to_zero(values: Float2D, distance: Float2D, times: Float2D) -> Float1D:
    """The value of the venue nearest to redemption, the first one of equals, among fresh rows.

    A print on one venue alone is not a depeg, so the nearest counts; but a daily close must not
    stand against the prints of a day on which the peg breaks, so only rows that happened within
    :data:`PEG_COMPANY` of the newest one take part.
    """
    known = np.isfinite(values) & np.isfinite(distance)
    newest = np.where(known, times, -np.inf).max(axis=0)
    away = np.where(known & (times >= newest - duration_us(PEG_COMPANY)), np.abs(distance), np.inf)
    best = away.argmin(axis=0)
    column = np.arange(values.shape[1])
    return np.where(np.isfinite(away[best, column]), values[best, column], np.nan)


def _total(values: Float2D) -> tuple[Float1D, Int1D]:
    """Sum of the finite values and their number, over the candidates."""
    finite: Bool2D = np.isfinite(values)
    # A running sum adds in order. A pairwise one would change its last bits with the number of
    # candidates, and a value would depend on which other series happen to be loaded.
    running: AnyArray = np.cumsum(np.where(finite, values, 0.0), axis=0)
    return running[-1], finite.sum(axis=0)


_RULES: dict[InputKind, Callable[[Float2D], Float1D]] = {
    "bar": _first_finite,
    "spot_bar": _first_finite,
    "market": _first_finite,
    "venue_median": _median,
    "venue_spread": _spread,
}
_CHAIN_RULES: dict[str, Callable[[Float2D], Float1D]] = {"": _sum, "sum": _sum, "mean": _mean}
