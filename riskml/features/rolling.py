"""Rolling statistics: what they mean, and the shape of anything that computes them.

Every statistic exists in three forms that tests hold equal. :class:`NumpyOps` here is the
definition: it lays every window out in full, masks and reduces it, and favours being obviously
right. :class:`riskml.features.blocks.BlockOps` carries block sums from row to row and is what a
running scorer uses; :class:`riskml.tables.compiled.CompiledOps` is the same arithmetic compiled,
for whole histories. The last two agree bit for bit.

A form is a :class:`RollingState`: rows go in, in order and in any portions, results come out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from riskml.arrays import AnyArray, Bool2D, BoolND, Float2D, Float3D, Int1D, Int2D
from riskml.features.elementwise import FUNCTIONS
from riskml.features.nodes import MAX_GAP_BARS, Statistic

_BLOCK_VALUES = 1 << 21
"""Window values laid out at once; bounds the memory of long histories (16 MB)."""


@dataclass(frozen=True)
class Window:
    """A rolling statistic in bars: :class:`riskml.features.nodes.Rolling` at one interval."""

    statistic: Statistic
    bars: int
    min_count: int
    decay: float = 1.0
    level: float = 0.5


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a stream and the segments that they belong to."""

    bar: int
    """Absolute number of the first row's bar (time / interval)."""
    n_rows: int
    start: Int2D | None = None
    """[n_rows, n_columns] absolute bar at which each row's segment starts, one beyond itself for a
    row without a segment; ``None`` when windows are never cut."""

    @cached_property
    def bars(self) -> Int1D:
        """[n_rows] absolute bar of each row."""
        return np.arange(self.bar, self.bar + self.n_rows, dtype=np.int64)

    @cached_property
    def latest_start(self) -> Int1D:
        """[n_rows] latest start over the columns: where even that is old, no window is cut."""
        if self.start is None or self.start.shape[1] == 0:
            return np.full(self.n_rows, np.iinfo(np.int64).min // 2, dtype=np.int64)
        return np.ascontiguousarray(self.start.max(axis=1))

    @cached_property
    def alive(self) -> Bool2D | None:
        """[n_rows, n_columns] whether the row belongs to a segment."""
        return None if self.start is None else np.asarray(self.start <= self.bars[:, np.newaxis])

    @cached_property
    def resets(self) -> tuple[int, ...]:
        """Rows, counted from the span's first, on which a segment starts in some column."""
        if self.start is None:
            return ()
        return tuple(np.flatnonzero((self.start == self.bars[:, np.newaxis]).any(axis=1)).tolist())


class Values:
    """The rows of a node, with what several windows over it have in common."""

    def __init__(self, raw: Float2D, span: Span) -> None:
        self.raw: Float2D = np.ascontiguousarray(raw, dtype=np.float64)
        """[n_rows, n_columns]; NaN and infinite values are missing."""
        self._alive = span.alive

    @cached_property
    def finite(self) -> Bool2D:
        """Whether there is a value, and the row belongs to a segment."""
        finite = np.isfinite(self.raw)
        return finite if self._alive is None else finite & self._alive

    @cached_property
    def filled(self) -> Float2D:
        """The values with 0 in place of missing ones."""
        return np.where(self.finite, self.raw, 0.0)


class RollingState(Protocol):
    """One statistic over one node's rows: takes rows in order, gives the result of each."""

    def push(self, values: Values, span: Span) -> Float2D:
        """Results [n_rows, n_columns] for the next rows; NaN where fewer than ``min_count``
        finite values are in the window."""
        ...

    def widen(self, extra: int, bar: int) -> None:
        """Add columns that have had no value before absolute bar ``bar``, the next one."""
        ...

    def adopt(self, arrays: Mapping[str, AnyArray], n_columns: int) -> None:
        """Take the last ``n_columns`` columns over from the :meth:`arrays` of a state of the same
        window that stands at the same bar; its other columns may be more or fewer."""
        ...

    def arrays(self) -> dict[str, AnyArray]:
        """What is carried from row to row."""
        ...

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        """Put :meth:`arrays` back."""
        ...


class Ops(Protocol):
    """How nodes are computed."""

    @property
    def functions(self) -> Mapping[str, Callable[..., AnyArray]]:
        """Functions of one row by name, see :data:`riskml.features.elementwise.FUNCTIONS`."""
        ...

    def state(self, window: Window, n_columns: int, phase: int = 0) -> RollingState:
        """A fresh state.

        Parameters
        ----------
        window : what to compute.
        n_columns : width of the node.
        phase : shifts the boundaries of the blocks that results are joined of, so that the
            windows of a catalogue do not all reach a boundary on the same bar.
        """
        ...


def roll(
    ops: Ops, window: Window, values: Float2D, *, start: Int2D | None = None, bar: int = 0, phase: int = 0
) -> Float2D:
    """A statistic over a whole array at once.

    Parameters
    ----------
    ops : which form computes it.
    values : [n_rows, n_columns].
    start : [n_rows, n_columns] absolute bar at which each row's segment starts.
    bar : absolute number of the first row's bar.

    Returns
    -------
    [n_rows, n_columns]; windows are cut at the first row.
    """
    span = Span(bar, len(values), start)
    return ops.state(window, values.shape[1], phase).push(Values(values, span), span)


class Segments:
    """Where each market's segment starts, bar by bar.

    A row that closes a run of more than :data:`MAX_GAP_BARS` missing bars ends the segment; the
    next segment starts on the row after it, and a row without a segment gets a start beyond
    itself. Rows before the first count as missing.
    """

    def __init__(self, n_markets: int) -> None:
        self._recent: Bool2D = np.zeros((MAX_GAP_BARS, n_markets), dtype=np.bool_)
        self._barrier: Int1D | None = None

    def push(self, present: Bool2D, bar: int) -> Int2D:
        """Absolute start bars [n_rows, n_markets] for the next rows, whose first bar is ``bar``."""
        n_rows, n_markets = len(present), present.shape[1]
        if self._barrier is None:
            self._barrier = np.full(n_markets, bar - 1, dtype=np.int64)
        seen = np.concatenate([self._recent, present])
        ended = ~present
        for shift in range(1, MAX_GAP_BARS + 1):
            ended &= ~seen[MAX_GAP_BARS - shift : MAX_GAP_BARS - shift + n_rows]
        bars = np.arange(bar, bar + n_rows, dtype=np.int64)[:, np.newaxis]
        barrier = np.maximum.accumulate(np.where(ended, bars, self._barrier), axis=0)
        self._recent, self._barrier = seen[-MAX_GAP_BARS:].copy(), barrier[-1].copy()
        return np.asarray(barrier + 1, dtype=np.int64)

    def widen(self, extra: int, bar: int) -> None:
        """Add markets that have had no bar before ``bar``."""
        self._recent = np.concatenate([self._recent, np.zeros((MAX_GAP_BARS, extra), dtype=np.bool_)], axis=1)
        if self._barrier is not None:
            self._barrier = np.concatenate([self._barrier, np.full(extra, bar - 1, dtype=np.int64)])

    def adopt(self, arrays: Mapping[str, AnyArray], n_markets: int) -> None:
        """Take the last ``n_markets`` markets over from :meth:`arrays` at the same bar."""
        self._recent[:, -n_markets:] = arrays["recent"][:, -n_markets:]
        if self._barrier is not None:
            self._barrier[-n_markets:] = arrays["barrier"][-n_markets:]

    def arrays(self) -> dict[str, AnyArray]:
        """What is carried from row to row."""
        return {"recent": self._recent} | ({} if self._barrier is None else {"barrier": self._barrier})

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        """Put :meth:`arrays` back."""
        self._recent = arrays["recent"].copy()
        self._barrier = arrays["barrier"].copy() if "barrier" in arrays else None


class NumpyOps:
    """The definition."""

    functions = FUNCTIONS

    def state(self, window: Window, n_columns: int, phase: int = 0) -> RollingState:
        """See :class:`Ops`; there are no blocks, so the phase does not matter."""
        return _LaidOut(window, n_columns)


class _LaidOut:
    """Keeps the rows of one window and reduces each window afresh."""

    def __init__(self, window: Window, n_columns: int) -> None:
        self._window = window
        self._rows: Float2D = np.full((window.bars - 1, n_columns), np.nan)

    def push(self, values: Values, span: Span) -> Float2D:
        window = self._window
        seen = np.concatenate([self._rows, values.raw])
        before = window.bars - 1
        self._rows = seen[len(seen) - before :].copy()
        # Age of the segment at each row: how many of the last rows belong to it.
        age = None if span.start is None else span.bars[:, np.newaxis] - span.start + 1
        out: Float2D = np.empty(values.raw.shape)
        step = max(1, _BLOCK_VALUES // max(1, values.raw.shape[1] * window.bars))
        for begin in range(0, span.n_rows, step):
            end = min(begin + step, span.n_rows)
            block = seen[begin : end + before]
            windows, usable = _lay_out(block, None if age is None else age[begin:end], window.bars)
            counts = usable.sum(axis=-1)
            reduced = _REDUCE[window.statistic](windows, usable, counts, window)
            if window.statistic != "count":
                reduced = np.where(counts >= max(window.min_count, 1), reduced, np.nan)
            out[begin:end] = reduced
        return out

    def widen(self, extra: int, bar: int) -> None:
        fresh = np.full((len(self._rows), extra), np.nan)
        self._rows = np.concatenate([self._rows, fresh], axis=1)

    def adopt(self, arrays: Mapping[str, AnyArray], n_columns: int) -> None:
        self._rows[:, -n_columns:] = arrays["rows"][:, -n_columns:]

    def arrays(self) -> dict[str, AnyArray]:
        return {"rows": self._rows}

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        self._rows = arrays["rows"].copy()


def _lay_out(block: Float2D, age: Int2D | None, bars: int) -> tuple[Float3D, BoolND]:
    """Windows of a block's rows: values and usable mask, each [n, n_columns, bars]."""
    windows = sliding_window_view(block, bars, axis=0)
    usable = np.isfinite(windows)
    if age is not None and (age < bars).any():
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
    centre = _mean(windows, usable, counts, window)
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
