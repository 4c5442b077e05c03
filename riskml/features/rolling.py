"""The definition of every rolling statistic, in plain numpy.

This is what a running scorer computes (one row from its ring buffer) and what the compiled
forms of :mod:`riskml.tables.compiled` are tested against. It favours being obviously right:
every window is laid out in full, masked and reduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from riskml.arrays import BoolND, Float2D, Float3D, Int2D
from riskml.features.expr import MAX_GAP_BARS, Statistic

_BLOCK_VALUES = 1 << 21
"""Window values laid out at once; bounds the memory of long histories (16 MB)."""


@dataclass(frozen=True)
class Window:
    """A rolling statistic in bars: :class:`riskml.features.expr.Rolling` at one interval."""

    statistic: Statistic
    bars: int
    min_count: int
    decay: float = 1.0
    level: float = 0.5


class Ops(Protocol):
    """How rolling statistics are computed."""

    def rolling(
        self, window: Window, values: Float2D, start: Int2D | None, rows: int, first_bar: int
    ) -> Float2D:
        """Reduce the window that ends at each of the last ``rows`` rows.

        Parameters
        ----------
        values : [n_rows, n_columns]; NaN and infinite values are missing.
        start : [n_rows, n_columns] first row of the segment that each row belongs to, as a
            row of ``values``; ``None`` when windows are never cut.
        rows : how many of the last rows to compute.
        first_bar : absolute number of the first row's bar (time / interval); a compiled form
            aligns its blocks to it, so that a value never depends on where a chunk begins.

        Returns
        -------
        [rows, n_columns]; NaN where fewer than ``min_count`` finite values are in the window.
        """
        ...


class NumpyOps:
    """The definition."""

    def rolling(
        self, window: Window, values: Float2D, start: Int2D | None, rows: int, first_bar: int
    ) -> Float2D:
        """See :class:`Ops`."""
        n_rows, n_columns = values.shape
        out = np.empty((rows, n_columns))
        step = max(1, _BLOCK_VALUES // max(1, n_columns * window.bars))
        for begin in range(n_rows - rows, n_rows, step):
            end = min(begin + step, n_rows)
            windows, usable = _lay_out(values, start, begin, end, window.bars)
            counts = usable.sum(axis=-1)
            reduced = _REDUCE[window.statistic](windows, usable, counts, window)
            if window.statistic != "count":
                reduced = np.where(counts >= max(window.min_count, 1), reduced, np.nan)
            out[begin - (n_rows - rows) : end - (n_rows - rows)] = reduced
        return out


def segment_starts(present: BoolND) -> Int2D:
    """First row of each row's segment [n_bars, n_markets], int64.

    A row that closes a run of more than :data:`MAX_GAP_BARS` missing bars ends the segment;
    the next segment starts on the row after it, and a row without a segment gets a start
    beyond itself. Rows before the first count as missing.
    """
    n_bars = len(present)
    ended = ~present
    for shift in range(1, min(MAX_GAP_BARS, n_bars - 1) + 1):
        ended[shift:] &= ~present[:-shift]
    row = np.arange(n_bars, dtype=np.int64)[:, np.newaxis]
    barrier = np.maximum.accumulate(np.where(ended, row, np.int64(-1)), axis=0)
    return np.asarray(barrier + 1, dtype=np.int64)


def _lay_out(values: Float2D, start: Int2D | None, begin: int, end: int, bars: int) -> tuple[Float3D, BoolND]:
    """Windows ending at rows begin..end - 1: values and usable mask, each [n, n_columns, bars]."""
    oldest = begin - bars + 1
    block = values[max(oldest, 0) : end]
    if oldest < 0:
        block = np.concatenate([np.full((-oldest, values.shape[1]), np.nan), block])
    windows = sliding_window_view(block, bars, axis=0)
    usable = np.isfinite(windows)
    if start is not None:
        row = np.arange(begin, end)[:, np.newaxis]
        age = row - start[begin:end] + 1
        if (age < bars).any():
            usable &= np.arange(bars - 1, -1, -1) < age[:, :, np.newaxis]
    return np.where(usable, windows, 0.0), usable


_Reduce = Callable[[Float3D, BoolND, Int2D, Window], Float2D]


def _count(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    return counts.astype(np.float64)


def _sum(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    return np.asarray(windows.sum(axis=-1))


def _mean(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    return np.asarray(windows.sum(axis=-1) / np.maximum(counts, 1))


def _std(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    centre = windows.sum(axis=-1) / np.maximum(counts, 1)
    deviation = np.where(usable, windows - centre[:, :, np.newaxis], 0.0)
    return np.asarray(np.sqrt(np.square(deviation).sum(axis=-1) / np.maximum(counts, 1)))


def _min(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    return np.asarray(np.where(usable, windows, np.inf).min(axis=-1))


def _max(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    return np.asarray(np.where(usable, windows, -np.inf).max(axis=-1))


def _quantile(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    # Missing values sort behind every finite one, so the first `counts` are the sample.
    ordered = np.sort(np.where(usable, windows, np.inf), axis=-1)
    ordered[counts == 0] = np.nan
    last = np.maximum(counts - 1, 0)
    place = last * window.level
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, last)
    low = np.take_along_axis(ordered, below[:, :, np.newaxis], axis=-1)[:, :, 0]
    high = np.take_along_axis(ordered, above[:, :, np.newaxis], axis=-1)[:, :, 0]
    return np.asarray(low + (high - low) * (place - below))


def _ewm_mean(windows: Float3D, usable: BoolND, counts: Int2D, window: Window) -> Float2D:
    weights = window.decay ** np.arange(window.bars - 1, -1, -1, dtype=np.float64)
    weight = np.where(usable, weights, 0.0).sum(axis=-1)
    return np.asarray((windows * weights).sum(axis=-1) / np.where(weight > 0.0, weight, 1.0))


_REDUCE: dict[Statistic, _Reduce] = {
    "count": _count,
    "sum": _sum,
    "mean": _mean,
    "std": _std,
    "min": _min,
    "max": _max,
    "quantile": _quantile,
    "ewm_mean": _ewm_mean,
}
