"""Rolling statistics from carried block sums: constant work per bar, whatever the window.

How blocks are cut, and why nothing is ever subtracted, is said in
:mod:`riskml.features.block_state`. This is plain numpy, vectorised over columns, and what a
running scorer uses; :mod:`riskml.tables.compiled` compiles the same arithmetic on the same states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from riskml.arrays import AnyArray, Float1D, Float2D, Int1D, Int2D
from riskml.features.block_state import Arrays, BlockState, accumulate, alive_only, at, suffixes
from riskml.features.elementwise import FUNCTIONS
from riskml.features.rolling import RollingState, Span, Values, Window


class BlockOps:
    """The carried forms in numpy."""

    functions = FUNCTIONS

    def state(self, window: Window, n_columns: int, phase: int = 0) -> RollingState:
        """See :class:`riskml.features.rolling.Ops`."""
        kinds: dict[str, type[BlockState]] = {
            "count": CountState,
            "sum": SumState,
            "mean": SumState,
            "ewm_mean": WeightedState,
            "std": MomentState,
            "min": ExtremeState,
            "max": ExtremeState,
            "quantile": QuantileState,
        }
        return kinds[window.statistic](window, n_columns, phase)


class CountState(BlockState):
    """Number of finite values."""

    _RINGS: ClassVar[Arrays] = {"ring": (np.float64, 0.0)}
    _PREFIXES: ClassVar[Arrays] = {"prefix": (np.float64, 0.0)}
    ring: Float2D
    prefix: Float1D

    def _piece(self, values: Values, span: Span, rows: slice, place: int) -> Float2D:
        finite = values.finite[rows].astype(np.float64)
        prefixes = accumulate(self.prefix, finite)
        result = prefixes.copy()
        joined = min(len(result), self.window.bars - 1 - place)
        result[:joined] += self.ring[place + 1 : place + 1 + joined]
        row, column, oldest = self._cut(span, rows, place)
        if len(row):
            result[row, column] = prefixes[row, column] + at(self.ring, oldest, column)
        self.prefix = prefixes[-1].copy()
        self.ring[place : place + len(result)] = np.where(finite > 0.0, 1.0, np.nan)
        if span.alive is not None:
            result[~span.alive[rows]] = 0.0
        return np.asarray(result)

    def _close_block(self) -> None:
        self.ring[...] = suffixes(np.where(np.isfinite(self.ring), 1.0, 0.0))


class SumState(BlockState):
    """Sum and mean."""

    _RINGS: ClassVar[Arrays] = {"ring": (np.float64, 0.0), "ring_count": (np.int32, 0)}
    _PREFIXES: ClassVar[Arrays] = {"prefix": (np.float64, 0.0), "prefix_count": (np.int64, 0)}
    ring: Float2D
    ring_count: Int2D
    prefix: Float1D
    prefix_count: Int1D

    def _piece(self, values: Values, span: Span, rows: slice, place: int) -> Float2D:
        prefixes = accumulate(self.prefix, values.filled[rows])
        prefix_counts = accumulate(self.prefix_count, values.finite[rows].astype(np.int32))
        total, count = prefixes.copy(), prefix_counts.copy()
        joined = min(len(total), self.window.bars - 1 - place)
        total[:joined] += self.ring[place + 1 : place + 1 + joined]
        count[:joined] += self.ring_count[place + 1 : place + 1 + joined]
        row, column, oldest = self._cut(span, rows, place)
        if len(row):
            total[row, column] = prefixes[row, column] + at(self.ring, oldest, column)
            count[row, column] = prefix_counts[row, column] + at(self.ring_count, oldest, column)
        self.prefix, self.prefix_count = prefixes[-1].copy(), prefix_counts[-1].copy()
        self.ring[place : place + len(total)] = values.raw[rows]
        count = alive_only(count, span, rows)
        if self.window.statistic == "mean":
            total = total / np.maximum(count, 1)
        return np.where(count >= self.enough, total, np.nan)

    def _close_block(self) -> None:
        finite = np.isfinite(self.ring)
        self.ring_count[...] = suffixes(finite.astype(np.int32))
        self.ring[...] = suffixes(np.where(finite, self.ring, 0.0))


class WeightedState(BlockState):
    """Truncated exponentially weighted mean: weights fall backwards from the newest row."""

    _RINGS: ClassVar[Arrays] = {
        "ring": (np.float64, 0.0),
        "ring_weight": (np.float64, 0.0),
        "ring_count": (np.int32, 0),
    }
    _PREFIXES: ClassVar[Arrays] = {
        "prefix": (np.float64, 0.0),
        "prefix_weight": (np.float64, 0.0),
        "prefix_count": (np.int64, 0),
    }
    ring: Float2D
    ring_weight: Float2D
    ring_count: Int2D
    prefix: Float1D
    prefix_weight: Float1D
    prefix_count: Int1D

    def __init__(self, window: Window, n_columns: int, phase: int) -> None:
        super().__init__(window, n_columns, phase)
        self.powers: Float1D = window.decay ** np.arange(window.bars + 1, dtype=np.float64)

    def _piece(self, values: Values, span: Span, rows: slice, place: int) -> Float2D:
        filled, finite = values.filled[rows], values.finite[rows]
        n_rows, decay = len(filled), self.powers[1]
        prefixes, weights = np.empty(filled.shape), np.empty(filled.shape)
        value, weight = self.prefix, self.prefix_weight
        for number in range(n_rows):
            value = np.add(value * decay, filled[number], out=prefixes[number])
            weight = np.add(weight * decay, finite[number], out=weights[number])
        counts = accumulate(self.prefix_count, finite.astype(np.int32))
        joins = self.powers[place + 1 : place + 1 + n_rows, np.newaxis]
        total, mass, count = prefixes.copy(), weights.copy(), counts.copy()
        joined = min(n_rows, self.window.bars - 1 - place)
        behind = slice(place + 1, place + 1 + joined)
        total[:joined] += joins[:joined] * self.ring[behind]
        mass[:joined] += joins[:joined] * self.ring_weight[behind]
        count[:joined] += self.ring_count[behind]
        row, column, oldest = self._cut(span, rows, place)
        if len(row):
            join = joins[row, 0]
            total[row, column] = prefixes[row, column] + join * at(self.ring, oldest, column)
            mass[row, column] = weights[row, column] + join * at(self.ring_weight, oldest, column)
            count[row, column] = counts[row, column] + at(self.ring_count, oldest, column)
        self.prefix, self.prefix_weight = prefixes[-1].copy(), weights[-1].copy()
        self.prefix_count = counts[-1].copy()
        self.ring[place : place + n_rows] = values.raw[rows]
        count = alive_only(count, span, rows)
        return np.where(count >= self.enough, total / np.where(mass > 0.0, mass, 1.0), np.nan)

    def _close_block(self) -> None:
        finite = np.isfinite(self.ring)
        weights = self.powers[self.window.bars - 1 :: -1][: self.window.bars, np.newaxis]
        self.ring_count[...] = suffixes(finite.astype(np.int32))
        self.ring_weight[...] = suffixes(np.where(finite, weights, 0.0))
        self.ring[...] = suffixes(np.where(finite, self.ring, 0.0) * weights)


class MomentState(BlockState):
    """Standard deviation from (count, mean, squared deviations), joined across the boundary."""

    _RINGS: ClassVar[Arrays] = {
        "ring": (np.float64, 0.0),
        "ring_square": (np.float64, 0.0),
        "ring_count": (np.float64, 0.0),
    }
    _PREFIXES: ClassVar[Arrays] = {
        "prefix": (np.float64, 0.0),
        "prefix_square": (np.float64, 0.0),
        "prefix_count": (np.float64, 0.0),
    }
    ring: Float2D
    ring_square: Float2D
    ring_count: Float2D
    prefix: Float1D
    prefix_square: Float1D
    prefix_count: Float1D

    def _piece(self, values: Values, span: Span, rows: slice, place: int) -> Float2D:
        filled, finite = values.filled[rows], values.finite[rows]
        n_rows = len(filled)
        count, centre, square = (np.empty(filled.shape) for _ in range(3))
        for number in range(n_rows):
            self._include(filled[number], finite[number])
            count[number], centre[number] = self.prefix_count, self.prefix
            square[number] = self.prefix_square
        before = np.zeros((3, *filled.shape))
        joined = min(n_rows, self.window.bars - 1 - place)
        behind = slice(place + 1, place + 1 + joined)
        rings = (self.ring_count, self.ring, self.ring_square)
        for number, ring in enumerate(rings):
            before[number, :joined] = ring[behind]
        row, column, oldest = self._cut(span, rows, place)
        if len(row):
            for number, ring in enumerate(rings):
                before[number, row, column] = at(ring, oldest, column)
        self.ring[place : place + n_rows] = values.raw[rows]
        n_before, centre_before, square_before = before
        both = count + n_before
        gap = centre - centre_before
        join = square_before + gap * gap * count * n_before / np.where(both > 0.0, both, 1.0)
        square = np.where(n_before > 0.0, square + join, square)
        both = alive_only(both, span, rows)
        return np.where(both >= self.enough, np.sqrt(square / np.where(both > 0.0, both, 1.0)), np.nan)

    def _include(self, filled: Float1D, finite: AnyArray) -> None:
        """Add one row to the prefix (Welford 1962)."""
        self.prefix_count = self.prefix_count + finite
        step = np.where(finite, filled - self.prefix, 0.0)
        self.prefix = self.prefix + step / np.maximum(self.prefix_count, 1.0)
        self.prefix_square = self.prefix_square + step * (filled - self.prefix)

    def _close_block(self) -> None:
        finite = np.isfinite(self.ring)
        filled, present = np.where(finite, self.ring, 0.0), finite.astype(np.float64)
        step, other, centre, count, square = np.zeros((5, filled.shape[1]))
        # The arithmetic of _include once per row of a long block, so nothing is allocated on the way.
        for place in range(len(filled) - 1, -1, -1):
            count = np.add(count, present[place], out=self.ring_count[place])
            np.multiply(np.subtract(filled[place], centre, out=step), present[place], out=step)
            np.divide(step, np.maximum(count, 1.0, out=other), out=other)
            centre = np.add(centre, other, out=self.ring[place])
            np.multiply(step, np.subtract(filled[place], centre, out=other), out=other)
            square = np.add(square, other, out=self.ring_square[place])


class ExtremeState(BlockState):
    """Maximum; the minimum is the maximum of the negative."""

    _RINGS: ClassVar[Arrays] = {"ring": (np.float64, -np.inf), "ring_count": (np.int32, 0)}
    _PREFIXES: ClassVar[Arrays] = {"prefix": (np.float64, -np.inf), "prefix_count": (np.int64, 0)}
    ring: Float2D
    ring_count: Int2D
    prefix: Float1D
    prefix_count: Int1D

    @property
    def sign(self) -> float:
        """-1 for the minimum."""
        return -1.0 if self.window.statistic == "min" else 1.0

    def _piece(self, values: Values, span: Span, rows: slice, place: int) -> Float2D:
        finite = values.finite[rows]
        prefixes = accumulate(
            self.prefix, np.where(finite, self.sign * values.raw[rows], -np.inf), np.maximum
        )
        counts = accumulate(self.prefix_count, finite.astype(np.int32))
        best, count = prefixes.copy(), counts.copy()
        joined = min(len(best), self.window.bars - 1 - place)
        best[:joined] = np.maximum(best[:joined], self.ring[place + 1 : place + 1 + joined])
        count[:joined] += self.ring_count[place + 1 : place + 1 + joined]
        row, column, oldest = self._cut(span, rows, place)
        if len(row):
            best[row, column] = np.maximum(prefixes[row, column], at(self.ring, oldest, column, -np.inf))
            count[row, column] = counts[row, column] + at(self.ring_count, oldest, column)
        self.prefix, self.prefix_count = prefixes[-1].copy(), counts[-1].copy()
        self.ring[place : place + len(best)] = values.raw[rows]
        count = alive_only(count, span, rows)
        return np.where(count >= self.enough, self.sign * best, np.nan)

    def _close_block(self) -> None:
        finite = np.isfinite(self.ring)
        self.ring_count[...] = suffixes(finite.astype(np.int32))
        self.ring[...] = suffixes(np.where(finite, self.sign * self.ring, -np.inf), np.maximum)


class QuantileState(BlockState):
    """Quantile from a sorted copy of the window, kept by insertion and removal.

    A quantile cannot be joined of two parts, so the ring holds raw values and no suffixes.
    """

    _RINGS: ClassVar[Arrays] = {"ring": (np.float64, np.nan)}
    _PREFIXES: ClassVar[Arrays] = {"prefix_count": (np.int64, 0)}
    ring: Float2D
    prefix_count: Int1D
    """[n_columns] how many finite values the window holds."""

    def __init__(self, window: Window, n_columns: int, phase: int) -> None:
        super().__init__(window, n_columns, phase)
        self.ordered: Float2D = np.full((n_columns, window.bars), np.nan)
        """The finite values of each column's window in order, then whatever."""

    def push(self, values: Values, span: Span) -> Float2D:
        """See :class:`riskml.features.rolling.RollingState`."""
        self.begin(span.bar)
        out = np.full(values.raw.shape, np.nan)
        for row in range(span.n_rows):
            bar = span.bar + row
            place = self.place_of(bar)
            leaving = np.isfinite(self.ring[place])
            if span.start is not None:
                self.prefix_count[span.start[row] == bar] = 0
                leaving &= span.start[row] <= bar - self.window.bars
            entering = values.finite[row]
            for column in np.flatnonzero(leaving | entering).tolist():
                self._exchange(
                    column,
                    float(self.ring[place, column]) if leaving[column] else None,
                    float(values.raw[row, column]) if entering[column] else None,
                )
            self.ring[place] = values.raw[row]
            out[row] = self._read()
            if span.alive is not None:
                out[row, ~span.alive[row]] = np.nan
        return out

    def widen(self, extra: int, bar: int) -> None:
        super().widen(extra, bar)
        fresh = np.full((extra, self.window.bars), np.nan)
        self.ordered = np.concatenate([self.ordered, fresh])

    def adopt(self, arrays: Mapping[str, AnyArray], n_columns: int) -> None:
        super().adopt(arrays, n_columns)
        if arrays:
            self.ordered[-n_columns:] = arrays["ordered"][-n_columns:]

    def arrays(self) -> dict[str, AnyArray]:
        arrays = super().arrays()
        return arrays | {"ordered": self.ordered} if arrays else {}

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        super().restore(arrays)
        if arrays:
            self.ordered = arrays["ordered"].copy()

    def _exchange(self, column: int, leaving: float | None, entering: float | None) -> None:
        n = int(self.prefix_count[column])
        ordered = self.ordered[column]
        if leaving is not None:
            place = int(ordered[:n].searchsorted(leaving))
            ordered[place : n - 1] = ordered[place + 1 : n]
            n -= 1
        if entering is not None:
            place = int(ordered[:n].searchsorted(entering))
            ordered[place + 1 : n + 1] = ordered[place:n]
            ordered[place] = entering
            n += 1
        self.prefix_count[column] = n

    def _read(self) -> Float1D:
        count = self.prefix_count
        last = np.maximum(count - 1, 0)
        place = last * self.window.level
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, last)
        column = np.arange(len(count))
        low, high = self.ordered[column, below], self.ordered[column, above]
        return np.where(count >= self.enough, low + (high - low) * (place - below), np.nan)
