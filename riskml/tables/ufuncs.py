"""Functions of one row that take numpy several passes, compiled into one.

Equal bit for bit to :mod:`riskml.features.elementwise`, which is what defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numba
import numpy as np

from riskml.arrays import AnyArray
from riskml.features.elementwise import ELEMENTWISE


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


FUNCTIONS: Mapping[str, Callable[..., AnyArray]] = {
    **ELEMENTWISE,
    "divide": _divide,
    "log": _log,
    "greater": _greater,
    "first_finite": _first_finite,
    "where_finite": _where_finite,
}
"""The functions that take numpy several passes, in one."""
