"""Compiled rolling statistics for whole histories.

Held equal to :class:`riskml.features.rolling.NumpyOps` by tests. A window of ``w`` bars that
ends at ``t`` always straddles exactly one multiple of ``w`` (counted in absolute bars since
1970), so it is a suffix of one block joined to a prefix of the next. Both are built by adding,
never by subtracting: one pass over the data for any window, no drift after a spike, and a
value depends on its own window only, bit for bit, wherever a chunk of history begins (van Herk
1992 and Gil and Werman 1993 for maxima; Chan, Golub and LeVeque 1979 to join variances).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from riskml.arrays import Float2D, Int2D
from riskml.features.rolling import Window

_F = TypeVar("_F", bound=Callable[..., Any])


def _jit(function: _F) -> _F:
    # fastmath stays off: reordering sums would break chunk invariance.
    compiled: _F = numba.njit(cache=True, nogil=True)(function)
    return compiled


class CompiledOps:
    """The compiled forms; see :class:`riskml.features.rolling.Ops` for the contract."""

    def rolling(
        self, window: Window, values: Float2D, start: Int2D | None, rows: int, first_bar: int
    ) -> Float2D:
        """Reduce the window that ends at each of the last ``rows`` rows [rows, n_columns]."""
        data = np.ascontiguousarray(values, dtype=np.float64)
        first = np.zeros(data.shape, dtype=np.int64) if start is None else np.ascontiguousarray(start)
        size, enough = window.bars, max(window.min_count, 1)
        if window.statistic == "count":
            full = _count(data, first, size)
        elif window.statistic in ("sum", "mean", "ewm_mean"):
            mode = {"sum": 0, "mean": 1, "ewm_mean": 2}[window.statistic]
            powers = window.decay ** np.arange(size + 1, dtype=np.float64)
            full = _weighted(data, first, size, enough, first_bar, mode, powers)
        elif window.statistic == "std":
            full = _std(data, first, size, enough, first_bar)
        elif window.statistic == "max":
            full = _max(data, first, size, enough, first_bar)
        elif window.statistic == "min":
            full = -_max(-data, first, size, enough, first_bar)
        else:
            full = _quantile(data, first, size, enough, window.level)
        return np.ascontiguousarray(full[len(full) - rows :])


@_jit
def _count(data: Float2D, start: Int2D, size: int) -> Float2D:
    """Finite values in each window; whole numbers, so a running difference is exact."""
    n_rows, n_columns = data.shape
    seen = np.zeros((n_rows + 1, n_columns), dtype=np.int64)
    out = np.empty((n_rows, n_columns))
    for t in range(n_rows):
        for j in range(n_columns):
            seen[t + 1, j] = seen[t, j] + (1 if np.isfinite(data[t, j]) else 0)
            oldest = max(t - size + 1, start[t, j], 0)
            out[t, j] = seen[t + 1, j] - seen[min(oldest, t + 1), j]
    return out


@_jit
def _weighted(
    data: Float2D, start: Int2D, size: int, enough: int, first_bar: int, mode: int, powers: Float2D
) -> Float2D:
    """Sum, mean (powers all 1) or exponentially weighted mean."""
    n_rows, n_columns = data.shape
    counts = _count(data, start, size)
    decay = powers[1]
    suffix_sum = np.zeros((n_rows + 1, n_columns))
    suffix_weight = np.zeros((n_rows + 1, n_columns))
    for t in range(n_rows - 1, -1, -1):
        # Position in the block: weights fall backwards from 1 at the block's last row.
        place = (first_bar + t) % size
        weight = powers[size - 1 - place]
        fresh = place == size - 1
        for j in range(n_columns):
            finite = np.isfinite(data[t, j])
            if not fresh:
                suffix_sum[t, j] = suffix_sum[t + 1, j]
                suffix_weight[t, j] = suffix_weight[t + 1, j]
            if finite:
                suffix_sum[t, j] += data[t, j] * weight
                suffix_weight[t, j] += weight
    prefix_sum = np.zeros(n_columns)
    prefix_weight = np.zeros(n_columns)
    out = np.empty((n_rows, n_columns))
    for t in range(n_rows):
        place = (first_bar + t) % size
        block = t - place
        join = powers[place + 1]
        for j in range(n_columns):
            if place == 0 or start[t, j] >= t:
                prefix_sum[j], prefix_weight[j] = 0.0, 0.0
            usable = np.isfinite(data[t, j]) and start[t, j] <= t
            prefix_sum[j] = prefix_sum[j] * decay + (data[t, j] if usable else 0.0)
            prefix_weight[j] = prefix_weight[j] * decay + (1.0 if usable else 0.0)
            total, weight = prefix_sum[j], prefix_weight[j]
            oldest = max(t - size + 1, start[t, j], 0)
            if oldest < block:
                total += join * suffix_sum[oldest, j]
                weight += join * suffix_weight[oldest, j]
            if counts[t, j] < enough:
                out[t, j] = np.nan
            elif mode == 0:
                out[t, j] = total
            else:
                out[t, j] = total / weight
    return out


@_jit
def _std(data: Float2D, start: Int2D, size: int, enough: int, first_bar: int) -> Float2D:
    """Standard deviation from joined (count, mean, squared deviations) of suffix and prefix."""
    n_rows, n_columns = data.shape
    suffix = np.zeros((n_rows + 1, n_columns, 3))
    for t in range(n_rows - 1, -1, -1):
        fresh = (first_bar + t) % size == size - 1
        for j in range(n_columns):
            if not fresh:
                suffix[t, j, :] = suffix[t + 1, j, :]
            _include(suffix[t, j], data[t, j])
    prefix = np.zeros((n_columns, 3))
    out = np.empty((n_rows, n_columns))
    for t in range(n_rows):
        place = (first_bar + t) % size
        block = t - place
        for j in range(n_columns):
            if place == 0 or start[t, j] >= t:
                prefix[j, :] = 0.0
            if start[t, j] <= t:
                _include(prefix[j], data[t, j])
            n, centre, squares = prefix[j, 0], prefix[j, 1], prefix[j, 2]
            oldest = max(t - size + 1, start[t, j], 0)
            if oldest < block and suffix[oldest, j, 0] > 0.0:
                n_before = suffix[oldest, j, 0]
                gap = centre - suffix[oldest, j, 1]
                squares += suffix[oldest, j, 2] + gap * gap * n * n_before / (n + n_before)
                n += n_before
            out[t, j] = np.sqrt(squares / n) if n >= enough else np.nan
    return out


@_jit
def _include(moments: Float2D, value: float) -> None:
    """Add one finite value to (count, mean, squared deviations) in place (Welford 1962)."""
    if np.isfinite(value):
        moments[0] += 1.0
        step = value - moments[1]
        moments[1] += step / moments[0]
        moments[2] += step * (value - moments[1])


@_jit
def _max(data: Float2D, start: Int2D, size: int, enough: int, first_bar: int) -> Float2D:
    """Largest finite value."""
    n_rows, n_columns = data.shape
    counts = _count(data, start, size)
    suffix = np.empty((n_rows + 1, n_columns))
    suffix[n_rows] = -np.inf
    for t in range(n_rows - 1, -1, -1):
        fresh = (first_bar + t) % size == size - 1
        for j in range(n_columns):
            value = data[t, j] if np.isfinite(data[t, j]) else -np.inf
            suffix[t, j] = value if fresh else max(value, suffix[t + 1, j])
    prefix = np.full(n_columns, -np.inf)
    out = np.empty((n_rows, n_columns))
    for t in range(n_rows):
        place = (first_bar + t) % size
        block = t - place
        for j in range(n_columns):
            value = data[t, j] if np.isfinite(data[t, j]) and start[t, j] <= t else -np.inf
            prefix[j] = value if place == 0 or start[t, j] >= t else max(value, prefix[j])
            oldest = max(t - size + 1, start[t, j], 0)
            best = max(prefix[j], suffix[oldest, j]) if oldest < block else prefix[j]
            out[t, j] = best if counts[t, j] >= enough else np.nan
    return out


@_jit
def _quantile(data: Float2D, start: Int2D, size: int, enough: int, level: float) -> Float2D:
    """Quantile from a sorted copy of the window, kept by insertion and removal."""
    n_rows, n_columns = data.shape
    out = np.empty((n_rows, n_columns))
    ordered = np.empty(size)
    for j in range(n_columns):
        n = 0
        oldest = 0
        for t in range(n_rows):
            wanted = max(t - size + 1, start[t, j], 0)
            if start[t, j] >= t:
                n, oldest = 0, t
            while oldest < min(wanted, t):
                n = _remove(ordered, n, data[oldest, j])
                oldest += 1
            if start[t, j] <= t:
                n = _insert(ordered, n, data[t, j])
            if n >= enough:
                place = (n - 1) * level
                below = int(np.floor(place))
                above = min(below + 1, n - 1)
                out[t, j] = ordered[below] + (ordered[above] - ordered[below]) * (place - below)
            else:
                out[t, j] = np.nan
    return out


@_jit
def _insert(ordered: Float2D, n: int, value: float) -> int:
    if not np.isfinite(value):
        return n
    place = np.searchsorted(ordered[:n], value)
    for k in range(n, place, -1):
        ordered[k] = ordered[k - 1]
    ordered[place] = value
    return n + 1


@_jit
def _remove(ordered: Float2D, n: int, value: float) -> int:
    if not np.isfinite(value):
        return n
    place = np.searchsorted(ordered[:n], value)
    for k in range(place, n - 1):
        ordered[k] = ordered[k + 1]
    return n - 1
