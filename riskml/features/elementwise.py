"""What nodes without memory mean: functions of one row, and ways across its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from riskml.arrays import AnyArray, Float2D
from riskml.features.expr import MIN_ACROSS_WEIGHT, AcrossReduction, Reduction


def cross_section(reduction: Reduction, values: Float2D, reference: Sequence[int]) -> Float2D:
    """One value per row [n_rows, 1] of the reference columns; NaN where none has a value."""
    if not reference:
        return np.full((len(values), 1), np.nan)
    if reduction == "leader":
        return np.ascontiguousarray(values[:, reference[0] : reference[0] + 1])
    chosen = values[:, reference]
    counts, centre = _mean_over(chosen)
    if reduction == "mean":
        return centre[:, np.newaxis]
    _, variance = _mean_over(np.square(chosen - centre[:, np.newaxis]))
    return np.where(counts >= 2, np.sqrt(variance), np.nan)[:, np.newaxis]


def across(reduction: AcrossReduction, values: Float2D, weights: Float2D) -> Float2D:
    """Values per chain or stablecoin brought to markets.

    Parameters
    ----------
    values : [n_rows, n_columns]; NaN and infinite values are missing.
    weights : [n_profiles, n_columns], >= 0, rows sum to 1.

    Returns
    -------
    [n_rows, n_profiles]; see :class:`riskml.features.expr.Across` for the rule on missing values.
    """
    finite = np.isfinite(values)[:, np.newaxis, :]
    if reduction == "max":
        wanted = finite & (weights > 0.0)
        best = np.where(wanted, values[:, np.newaxis, :], -np.inf).max(axis=2, initial=-np.inf)
        return np.where(np.isfinite(best), best, np.nan)
    weight = _running_total(np.where(finite, weights, 0.0))
    total = _running_total(np.where(finite, values[:, np.newaxis, :] * weights, 0.0))
    enough = weight >= MIN_ACROSS_WEIGHT
    return np.where(enough, total / np.where(enough, weight, 1.0), np.nan)


def _running_total(terms: AnyArray) -> AnyArray:
    """Sum over the last axis, strictly from left to right: a pairwise sum would depend on its shape."""
    return np.asarray(np.add.accumulate(terms, axis=-1)[..., -1])


def _mean_over(values: Float2D) -> tuple[AnyArray, AnyArray]:
    """Count and mean [n_rows] of the finite values of each row."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=1)
    sums = _running_total(np.where(finite, values, 0.0))
    return counts, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _divide(x: AnyArray, y: AnyArray) -> AnyArray:
    return np.where(y == 0.0, np.nan, np.divide(x, y))


def _log(x: AnyArray) -> AnyArray:
    return np.where(x > 0.0, np.log(x), np.nan)


def _greater(x: AnyArray, y: AnyArray) -> AnyArray:
    known = np.isfinite(x) & np.isfinite(y)
    return np.where(known, (x > y).astype(np.float64), np.nan)


def _first_finite(*choices: AnyArray) -> AnyArray:
    result = choices[0]
    for choice in choices[1:]:
        result = np.where(np.isfinite(result), result, choice)
    return result


def _where_finite(x: AnyArray, *others: AnyArray) -> AnyArray:
    usable = np.isfinite(x)
    for other in others:
        usable = usable & np.isfinite(other)
    return np.where(usable, x, np.nan)


ELEMENTWISE: dict[str, Callable[..., AnyArray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": _divide,
    "negative": np.negative,
    "exp": np.exp,
    "log": _log,
    "sqrt": np.sqrt,
    "absolute": np.absolute,
    "square": np.square,
    "greater": _greater,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "first_finite": _first_finite,
    "where_finite": _where_finite,
}
"""What the operations of :class:`riskml.features.expr.Elementwise` mean."""
