"""Functions of one row that take numpy several passes, compiled into one.

Equal bit for bit to :mod:`riskml.features.elementwise`, which is what defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numba
import numpy as np

from riskml.arrays import AnyArray, Float2D, Int1D
from riskml.features import elementwise
from riskml.features.nodes import MIN_ACROSS_WEIGHT
from riskml.tables.kernels import is_finite, jit


def _ufunc(signature: str) -> Callable[[Callable[..., float]], Callable[..., AnyArray]]:
    decorate = numba.vectorize([signature], nopython=True, cache=True)

    def build(function: Callable[..., float]) -> Callable[..., AnyArray]:
        # The wrapper that numba puts around a ufunc costs as much as a short call.
        ufunc: Callable[..., AnyArray] = decorate(function).ufunc
        return ufunc

    return build


_UNARY, _BINARY = "float64(float64)", "float64(float64, float64)"


@_ufunc(_BINARY)
def _divide(x: float, y: float) -> float:
    return x / y if y != 0.0 else np.nan


@_ufunc(_UNARY)
def _positive(x: float) -> float:
    return x if x > 0.0 else np.nan


@_ufunc(_BINARY)
def _greater(x: float, y: float) -> float:
    if x - x != 0.0 or y - y != 0.0:
        return np.nan
    return 1.0 if x > y else 0.0


@_ufunc(_BINARY)
def _or_else(x: float, y: float) -> float:
    return x if x - x == 0.0 else y


@_ufunc(_BINARY)
def _where(x: float, y: float) -> float:
    return x if x - x == 0.0 and y - y == 0.0 else np.nan


def _log(x: AnyArray) -> AnyArray:
    # The logarithm itself stays numpy's: another library's may differ in the last bit.
    return np.asarray(np.log(_positive(x)))


def _first_finite(*choices: AnyArray) -> AnyArray:
    return reduce(_or_else, choices)


def _where_finite(x: AnyArray, *others: AnyArray) -> AnyArray:
    return reduce(_where, others, x)


@_ufunc(_UNARY)
def _finite_or_missing(x: float) -> float:
    return x if x - x == 0.0 else np.nan


def _store_finite(value: AnyArray, out: Float2D) -> Float2D:
    # A kernel and no ufunc: numba's ufuncs mistake the strides of a narrow output.
    _store(value if value.ndim == 2 else value.reshape(1, 1), out)
    return out


@jit
def _store(value: Float2D, out: Float2D) -> None:
    tall, wide = value.shape[0] > 1, value.shape[1] > 1
    for t in range(out.shape[0]):
        row = t if tall else 0
        for j in range(out.shape[1]):
            x = value[row, j if wide else 0]
            out[t, j] = x if is_finite(x) else np.nan


@jit
def _reference_mean(values: Float2D, reference: Int1D) -> Float2D:
    out = np.empty((len(values), 1))
    for t in range(len(values)):
        total, count = 0.0, 0
        for j in reference:
            if is_finite(values[t, j]):
                total += values[t, j]
                count += 1
        out[t, 0] = total / count if count > 0 else np.nan
    return out


@jit
def _reference_std(values: Float2D, reference: Int1D) -> Float2D:
    out = _reference_mean(values, reference)
    for t in range(len(values)):
        total, count = 0.0, 0
        for j in reference:
            if is_finite(values[t, j]):
                gap = values[t, j] - out[t, 0]
                total += gap * gap
                count += 1
        out[t, 0] = np.sqrt(total / count) if count >= 2 else np.nan
    return out


@jit
def _across_mean(values: Float2D, weights: Float2D) -> Float2D:
    out = np.empty((len(values), len(weights)))
    for t in range(len(values)):
        for p in range(len(weights)):
            total, weight = 0.0, 0.0
            for j in range(values.shape[1]):
                if is_finite(values[t, j]):
                    total += values[t, j] * weights[p, j]
                    weight += weights[p, j]
            out[t, p] = total / weight if weight >= MIN_ACROSS_WEIGHT else np.nan
    return out


@jit
def _across_max(values: Float2D, weights: Float2D) -> Float2D:
    out = np.full((len(values), len(weights)), np.nan)
    for t in range(len(values)):
        for p in range(len(weights)):
            for j in range(values.shape[1]):
                if weights[p, j] > 0.0 and is_finite(values[t, j]) and not values[t, j] <= out[t, p]:
                    out[t, p] = values[t, j]
    return out


FUNCTIONS: Mapping[str, Callable[..., AnyArray]] = {
    **elementwise.FUNCTIONS,
    "finite_or_missing": _finite_or_missing,
    "store_finite": _store_finite,
    "reference_mean": _reference_mean,
    "reference_std": _reference_std,
    "across_mean": _across_mean,
    "across_max": _across_max,
    "divide": _divide,
    "log": _log,
    "greater": _greater,
    "first_finite": _first_finite,
    "where_finite": _where_finite,
}
"""The functions that take numpy several passes, in one."""
