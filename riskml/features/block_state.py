"""The state of a rolling statistic that is carried from bar to bar in blocks.

A window of ``w`` bars that ends at ``t`` straddles exactly one boundary of blocks of ``w`` bars
(counted in absolute bars since 1970), so it is the suffix of one block joined to the prefix of
the next. Both are built by adding, never by subtracting: no drift after a spike, and a value
depends on its own window only, bit for bit, wherever a chunk of history begins (van Herk 1992
and Gil and Werman 1993 for maxima; Chan, Golub and LeVeque 1979 to join variances).

Carried are the prefix of the current block and one ring of ``w`` rows, which serves twice: up to
the current place it holds the raw values of the current block, beyond it the suffixes of the
previous one. At the end of a block the raw values are turned into suffixes in place.

This is plain numpy, vectorised over columns; :mod:`riskml.tables.compiled` compiles the same
arithmetic and shares these states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from riskml.arrays import AnyArray, Float2D, Int1D
from riskml.errors import DataError
from riskml.features.rolling import Span, Values, Window

Arrays: TypeAlias = Mapping[str, tuple[Any, float]]
"""Name -> dtype and the value that stands for "nothing yet"."""


class BlockState:
    """What all carried states have in common.

    Subclasses name their arrays: ``_RINGS`` [bars, n_columns] and ``_PREFIXES`` [n_columns], each
    with the value that stands for "nothing yet"; the first ring takes the raw values.
    """

    _RINGS: ClassVar[Arrays]
    _PREFIXES: ClassVar[Arrays]

    def __init__(self, window: Window, n_columns: int, phase: int) -> None:
        self.window = window
        self.phase = phase % window.bars
        self.enough = max(window.min_count, 1)
        self._started = False
        for name, (dtype, empty) in self._RINGS.items():
            setattr(self, name, np.full((window.bars, n_columns), empty, dtype=dtype))
        for name, (dtype, empty) in self._PREFIXES.items():
            setattr(self, name, np.full(n_columns, empty, dtype=dtype))

    def place_of(self, bar: int) -> int:
        """Position of a bar within its block."""
        return (bar + self.phase) % self.window.bars

    def push(self, values: Values, span: Span) -> Float2D:
        """See :class:`riskml.features.rolling.RollingState`."""
        self.begin(span.bar)
        out = np.empty(values.raw.shape)
        for first, last, place in self._pieces(span):
            if place == 0:
                self._clear(slice(None))
            elif span.start is not None and first in span.resets:
                self._clear(span.start[first] == span.bar + first)
            out[first:last] = self._piece(values, span, slice(first, last), place)
            if place + last - first == self.window.bars:
                self._close_block()
        return out

    def begin(self, bar: int) -> None:
        """Rows of the first block that lie before the first row were never there."""
        if not self._started:
            first_ring = next(iter(self._RINGS))
            getattr(self, first_ring)[: self.place_of(bar)] = np.nan
            self._started = True

    def widen(self, extra: int, bar: int) -> None:
        """Add columns that have had no value before absolute bar ``bar``, the next one."""
        for number, (name, (dtype, empty)) in enumerate(self._RINGS.items()):
            fresh: AnyArray = np.full((self.window.bars, extra), empty, dtype=dtype)
            if number == 0:
                fresh[: self.place_of(bar)] = np.nan
            setattr(self, name, np.concatenate([getattr(self, name), fresh], axis=1))
        for name, (dtype, empty) in self._PREFIXES.items():
            setattr(self, name, np.concatenate([getattr(self, name), np.full(extra, empty, dtype=dtype)]))

    def adopt(self, arrays: Mapping[str, AnyArray], n_columns: int) -> None:
        """See :class:`riskml.features.rolling.RollingState`."""
        for name in (*self._RINGS, *self._PREFIXES) if arrays else ():
            getattr(self, name)[..., -n_columns:] = arrays[name][..., -n_columns:]

    def arrays(self) -> dict[str, AnyArray]:
        """What is carried from row to row."""
        if not self._started:
            return {}
        return {name: getattr(self, name) for name in (*self._RINGS, *self._PREFIXES)}

    def restore(self, arrays: Mapping[str, AnyArray]) -> None:
        """Put :meth:`arrays` back.

        Raises
        ------
        DataError : an array is missing or of another shape.
        """
        self._started = bool(arrays)
        for name in (*self._RINGS, *self._PREFIXES) if arrays else ():
            mine = getattr(self, name)
            if name not in arrays or arrays[name].shape != mine.shape or arrays[name].dtype != mine.dtype:
                raise DataError(
                    f"a saved '{name}' does not fit a window of {self.window.bars} bars and {mine.shape[-1]} "
                    "columns",
                    fix="restore the state into a stream of the same features and markets",
                )
            setattr(self, name, arrays[name].copy())

    def _clear(self, columns: slice | AnyArray) -> None:
        for name, (_, empty) in self._PREFIXES.items():
            getattr(self, name)[columns] = empty

    def _pieces(self, span: Span) -> Iterator[tuple[int, int, int]]:
        """(first row, last row, place): cut where blocks end and where segments start."""
        cuts = [*span.resets, span.n_rows]
        first = 0
        while first < span.n_rows:
            while cuts[0] <= first:
                cuts.pop(0)
            place = self.place_of(span.bar + first)
            last = min(cuts[0], first + self.window.bars - place)
            yield first, last, place
            first = last

    def _cut(self, span: Span, rows: slice, place: int) -> tuple[Int1D, Int1D, Int1D]:
        """(row, column, place of the oldest) of the windows that their segment cuts.

        The place is that in the previous block, or ``bars`` and beyond when the window lies in
        the current one. Rows are counted from the piece's first.
        """
        none = np.empty(0, dtype=np.int64)
        oldest = span.bars[rows] - self.window.bars + 1
        if span.start is None or (span.latest_start[rows] <= oldest).all():
            return none, none, none
        start = span.start[rows]
        row, column = np.nonzero(start > oldest[:, np.newaxis])
        block_start = span.bar + rows.start - place
        return row, column, start[row, column] - (block_start - self.window.bars)

    def _piece(self, values: Values, span: Span, rows: slice, place: int) -> Float2D:
        """Results for rows of one block in which no segment starts but on the first."""
        raise TypeError(f"{type(self).__name__} does not say how it treats a piece of a block")

    def _close_block(self) -> None:
        """Turn the raw values of the full block into suffixes."""
        raise TypeError(f"{type(self).__name__} does not say how it closes a block")


def accumulate(first: AnyArray, rows: AnyArray, combine: np.ufunc = np.add) -> AnyArray:
    """Running ``combine`` over rows, beginning with ``first``; strictly from the first row on."""
    if len(rows) == 1:
        return np.asarray(combine(first, rows[0]))[np.newaxis]
    return np.asarray(combine.accumulate(np.concatenate([first[np.newaxis], rows]), axis=0)[1:])


def suffixes(rows: AnyArray, combine: np.ufunc = np.add) -> AnyArray:
    return np.asarray(combine.accumulate(rows[::-1], axis=0)[::-1])


def at(ring: AnyArray, place: Int1D, column: Int1D, nothing: float = 0.0) -> AnyArray:
    """Suffixes at places of the previous block; ``nothing`` for windows within the current one."""
    inside = place < len(ring)
    return np.asarray(np.where(inside, ring[np.where(inside, place, 0), column], nothing)).astype(ring.dtype)


def alive_only(count: AnyArray, span: Span, rows: slice) -> AnyArray:
    """No count for rows that belong to no segment."""
    return count if span.alive is None else np.where(span.alive[rows], count, 0)
