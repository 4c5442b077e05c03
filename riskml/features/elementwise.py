"""What nodes without memory mean: functions of one row, and ways across its columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from riskml.arrays import AnyArray, Float2D, Int1D
from riskml.features.nodes import MIN_ACROSS_WEIGHT


def finite_or_missing(x: AnyArray) -> AnyArray:
    """NaN in place of infinite values."""
    return np.where(np.isfinite(x), x, np.nan)


def store_finite(value: AnyArray, out: Float2D) -> Float2D:
    """Write a node [n_rows, n_markets], [n_rows, 1] or a number to ``out``, NaN where it is infinite."""
    out[...] = np.where(np.isfinite(value), value, np.nan)
    return out


def reference_mean(values: Float2D, reference: Int1D) -> Float2D:
    """Mean of the reference columns that have a value [n_rows, 1]; NaN where none has."""
    _, mean = _mean_over(values[:, reference])
    return mean[:, np.newaxis]


def reference_std(values: Float2D, reference: Int1D) -> Float2D:
    """Standard deviation, divisor n, of the reference columns [n_rows, 1]; NaN with fewer than two."""
    chosen = values[:, reference]
    counts, mean = _mean_over(chosen)
    _, variance = _mean_over(np.square(chosen - mean[:, np.newaxis]))
    return np.where(counts >= 2, np.sqrt(variance), np.nan)[:, np.newaxis]


def reference_leader(values: Float2D, reference: Int1D) -> Float2D:
    """The first reference column [n_rows, 1]; NaN without one."""
    if len(reference) == 0:
        return np.full((len(values), 1), np.nan)
    return np.ascontiguousarray(values[:, reference[:1]])


def across_max(values: Float2D, weights: Float2D) -> Float2D:
    """Largest value over the columns of positive weight.

    Parameters
    ----------
    values : [n_rows, n_columns]; NaN and infinite values are missing.
    weights : [n_profiles, n_columns], >= 0, rows sum to 1.

    Returns
    -------
    [n_rows, n_profiles]; NaN where none of the columns has a value.
    """
    wanted = np.isfinite(values)[:, np.newaxis, :] & (weights > 0.0)
    best = np.where(wanted, values[:, np.newaxis, :], -np.inf).max(axis=2, initial=-np.inf)
    return np.where(np.isfinite(best), best, np.nan)


def across_mean(values: Float2D, weights: Float2D) -> Float2D:
    """Weighted mean over the columns that have a value; shapes as of :func:`across_max`.

    NaN where these carry less than :data:`riskml.features.nodes.MIN_ACROSS_WEIGHT`.
    """
    finite = np.isfinite(values)[:, np.newaxis, :]
    weight = _running_total(np.where(finite, weights, 0.0))
    total = _running_total(np.where(finite, values[:, np.newaxis, :] * weights, 0.0))
    enough = weight >= MIN_ACROSS_WEIGHT
    return np.where(enough, total / np.where(enough, weight, 1.0), np.nan)


def _running_total(terms: AnyArray) -> AnyArray:
    """Sum over the last axis, strictly from left to right: a pairwise sum would depend on its shape."""
    if terms.shape[-1] == 0:
        return np.zeros(terms.shape[:-1])
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


FUNCTIONS: dict[str, Callable[..., AnyArray]] = {
    "finite_or_missing": finite_or_missing,
    "store_finite": store_finite,
    "reference_mean": reference_mean,
    "reference_std": reference_std,
    "reference_leader": reference_leader,
    "across_mean": across_mean,
    "across_max": across_max,
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
"""What nodes without memory compute, by the name of their operation."""
