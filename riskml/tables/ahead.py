"""Statistics of the bars ahead and of the bars behind, at one pass for any window.

A window of ``w`` bars straddles exactly one multiple of ``w`` (bars counted since 1970), so it
is a suffix of one block joined to a prefix of the next (van Herk 1992; Gil and Werman 1993).
Nothing is ever subtracted, except whole numbers: a value depends on its own window only, bit for
bit, wherever the rows before it were cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from riskml.arrays import AnyArray, BoolND, Float2D, Int2D

_F = TypeVar("_F", bound=Callable[..., Any])


def _jit(function: _F) -> _F:
    # fastmath stays off: reordering a sum would let the cut of the rows change it.
    compiled: _F = numba.njit(cache=True, nogil=True)(function)
    return compiled


def smallest_ahead(values: Float2D, bars: int) -> Float2D:
    """Smallest value of rows t + 1 .. t + bars [n_bars, n_columns].

    NaN handling: NaN is skipped; NaN where the window leaves the rows or holds no value.
    """
    return _smallest(_plain(values), bars)


def largest_ahead(values: Float2D, bars: int) -> Float2D:
    """Largest value of rows t + 1 .. t + bars, see :func:`smallest_ahead`."""
    return -_smallest(-_plain(values), bars)


def total_ahead(values: Float2D, bars: int, first_bar: int) -> Float2D:
    """Sum of rows t + 1 .. t + bars [n_bars, n_columns].

    Parameters
    ----------
    first_bar : number of the first row's bar since 1970, to which the blocks are aligned.

    NaN handling: NaN is skipped and counts as 0; NaN where the window leaves the rows.
    """
    return _total(_plain(values), bars, first_bar)


def count_ahead(flags: BoolND, bars: int) -> Int2D:
    """How many of rows t + 1 .. t + bars are set [n_bars, n_columns]; -1 where they leave the rows."""
    seen = np.zeros((len(flags) + 1, flags.shape[1]), dtype=np.int64)
    np.cumsum(flags, axis=0, out=seen[1:])
    out = np.full(flags.shape, -1, dtype=np.int64)
    usable = len(flags) - bars
    if usable > 0:
        out[:usable] = seen[1 + bars :] - seen[1 : 1 + usable]
    return out


def behind(ahead: AnyArray, bars: int, missing: float) -> AnyArray:
    """The same windows seen from their end: rows t - bars + 1 .. t, ``missing`` before there are enough.

    The window that ends with row ``bars - 1`` begins with the first row, which lies ahead of none:
    it is missing too.
    """
    out = np.full_like(ahead, missing)
    if len(ahead) > bars:
        out[bars:] = ahead[: len(ahead) - bars]
    return out


def trailing_quantile(values: Float2D, rows: int, enough: int, level: float) -> Float2D:
    """Quantile of rows t - rows + 1 .. t, linear between order statistics [n_rows, n_columns].

    NaN handling: NaN is skipped; NaN where fewer than ``enough`` values remain.
    """
    return _quantile(_plain(values), rows, enough, level)


def _plain(values: Float2D) -> Float2D:
    return np.ascontiguousarray(values, dtype=np.float64)


@_jit
def _smallest(data: Float2D, bars: int) -> Float2D:
    n_rows, n_columns = data.shape
    suffix = np.empty((n_rows + 1, n_columns))
    suffix[n_rows] = np.inf
    for t in range(n_rows - 1, -1, -1):
        fresh = t % bars == bars - 1
        for j in range(n_columns):
            value = data[t, j] if np.isfinite(data[t, j]) else np.inf
            suffix[t, j] = value if fresh else min(value, suffix[t + 1, j])
    prefix = np.full(n_columns, np.inf)
    out = np.full((n_rows, n_columns), np.nan)
    for end in range(n_rows):
        place = end % bars
        oldest = end - bars + 1
        for j in range(n_columns):
            value = data[end, j] if np.isfinite(data[end, j]) else np.inf
            prefix[j] = value if place == 0 else min(value, prefix[j])
            if oldest >= 1:
                best = min(prefix[j], suffix[oldest, j]) if oldest < end - place else prefix[j]
                if best < np.inf:
                    out[oldest - 1, j] = best
    return out


@_jit
def _total(data: Float2D, bars: int, first_bar: int) -> Float2D:
    n_rows, n_columns = data.shape
    suffix = np.zeros((n_rows + 1, n_columns))
    for t in range(n_rows - 1, -1, -1):
        fresh = (first_bar + t) % bars == bars - 1
        for j in range(n_columns):
            value = data[t, j] if np.isfinite(data[t, j]) else 0.0
            suffix[t, j] = value if fresh else value + suffix[t + 1, j]
    prefix = np.zeros(n_columns)
    out = np.full((n_rows, n_columns), np.nan)
    for end in range(n_rows):
        place = (first_bar + end) % bars
        oldest = end - bars + 1
        for j in range(n_columns):
            value = data[end, j] if np.isfinite(data[end, j]) else 0.0
            prefix[j] = value if place == 0 else prefix[j] + value
            if oldest >= 1:
                out[oldest - 1, j] = prefix[j] + (suffix[oldest, j] if oldest < end - place else 0.0)
    return out


@_jit
def _quantile(data: Float2D, rows: int, enough: int, level: float) -> Float2D:
    n_rows, n_columns = data.shape
    out = np.full((n_rows, n_columns), np.nan)
    ordered = np.empty(rows + 1)
    for j in range(n_columns):
        n = 0
        for t in range(n_rows):
            if np.isfinite(data[t, j]):
                place = np.searchsorted(ordered[:n], data[t, j])
                for k in range(n, place, -1):
                    ordered[k] = ordered[k - 1]
                ordered[place] = data[t, j]
                n += 1
            gone = t - rows
            if gone >= 0 and np.isfinite(data[gone, j]):
                for k in range(np.searchsorted(ordered[:n], data[gone, j]), n - 1):
                    ordered[k] = ordered[k + 1]
                n -= 1
            if n >= enough:
                place_of = (n - 1) * level
                below = int(np.floor(place_of))
                above = min(below + 1, n - 1)
                out[t, j] = ordered[below] + (ordered[above] - ordered[below]) * (place_of - below)
    return out
