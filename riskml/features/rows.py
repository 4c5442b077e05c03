"""The rows of one table: every series a stretch of shared arrays, with room to grow behind it.

A history is loaded once and looked up per series; a running scorer appends one row to each of
hundreds of series and asks for the newest of each. Stretches of shared arrays serve both: a
series is a slice, and "the newest row of these series" is one gather.

A series whose room is used up, or that gets a row between others, moves behind the last
stretch; when there is no space left, everything moves into new arrays. Rows that are in place
are never overwritten, so a view that was handed out stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int1D, TimeUs
from riskml.features.asof import AsOfIndex

MIN_ROOM = 16
"""Rows of room that a series gets at least when it moves."""


@dataclass(frozen=True)
class Rows:
    """The rows of one series, sorted by (ts, known_at); revisions are separate rows."""

    ts: TimeUs
    """[n_rows] int64 us."""
    known_at: TimeUs
    """[n_rows] int64 us."""
    given: Mapping[str, Float1D]
    """Value columns that were ever given, each [n_rows]; NaN = not given."""
    column_names: tuple[str, ...]
    """Every value column of the contract."""

    @cached_property
    def index(self) -> AsOfIndex:
        """Prepared for point-in-time look-ups."""
        return AsOfIndex(self.ts, self.known_at)

    @cached_property
    def derived(self) -> dict[str, Float1D]:
        """Room for columns that are computed of others, each [n_rows]; filled by the inputs."""
        return {}

    @property
    def columns(self) -> dict[str, Float1D]:
        """Every value column by name, each [n_rows]."""
        return {name: self.column(name) for name in self.column_names}

    @property
    def values(self) -> Float2D:
        """[n_rows, n_columns], in the order of ``column_names``."""
        return np.stack([self.column(name) for name in self.column_names], axis=1)

    def column(self, name: str) -> Float1D:
        """One value column [n_rows]; KeyError when the contract has none of that name."""
        found = self.given.get(name)
        if found is not None:
            return found
        if name not in self.column_names:
            raise KeyError(name)
        return np.full(len(self.ts), np.nan)

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True)
class Block:
    """Rows that arrive together."""

    series: Int1D
    """Number of the series of each row."""
    ts: TimeUs
    known_at: TimeUs
    columns: dict[str, Float1D]

    def take(self, chosen: AnyArray) -> Block:
        """The chosen rows: their places in order, or a mask."""
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return Block(self.series[chosen], self.ts[chosen], self.known_at[chosen], columns)

    def ordered(self) -> tuple[Block, int]:
        """Sorted by series and times, equal rows left out (the first stays); how many were."""
        if len(self.ts) < 2 or bool(self._rises().all()):
            return self, 0
        block = self.take(np.lexsort((self.known_at, self.ts, self.series)))
        new = np.ones(len(block.ts), dtype=np.bool_)
        new[1:] = block._rises()
        return (block, 0) if new.all() else (block.take(new), int((~new).sum()))

    def same_ts(self) -> Bool1D:
        """Whether the row before is another version of the same series and ``ts`` [n_rows]."""
        same = np.zeros(len(self.ts), dtype=np.bool_)
        same[1:] = (self.series[1:] == self.series[:-1]) & (self.ts[1:] == self.ts[:-1])
        return same

    def _rises(self) -> Bool1D:
        """Whether each row but the first comes after the one before it, by series and times."""
        rises = self.series[1:] > self.series[:-1]
        same = self.series[1:] == self.series[:-1]
        rises |= same & (self.ts[1:] > self.ts[:-1])
        same &= self.ts[1:] == self.ts[:-1]
        return np.asarray(rises | (same & (self.known_at[1:] > self.known_at[:-1])))


class Appended(NamedTuple):
    """What became of appended rows."""

    added: int
    revised: int = 0
    """Added beside a row of the same series and ``ts``."""
    out_of_order: int = 0
    """Added although their series had a newer ``ts``; revisions are not counted here."""
    duplicate: int = 0
    """Left out: the same series, ``ts`` and ``known_at`` was there."""


class TableRows:
    """Series by number, see the module."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        """Value columns of the contract."""
        self.ts: TimeUs = np.empty(0, dtype=np.int64)
        self.known_at: TimeUs = np.empty(0, dtype=np.int64)
        self.columns: dict[str, Float1D] = {}
        """Value columns that were ever given; the others are NaN everywhere."""
        self.begin: Int1D = np.empty(0, dtype=np.int64)
        """Place of each series' first row [n_series]."""
        self.length: Int1D = np.empty(0, dtype=np.int64)
        """Rows of each series [n_series]."""
        self.rises: Bool1D = np.empty(0, dtype=np.bool_)
        """Whether rows became known in the order in which they happened [n_series]."""
        self._room: Int1D = np.empty(0, dtype=np.int64)
        self._end = 0
        self._views: dict[int, Rows] = {}
        self._n_series = 0

    def add_series(self) -> int:
        """Start an empty series; its number."""
        if self._n_series == len(self.begin):
            more = np.zeros(max(MIN_ROOM, self._n_series), dtype=np.int64)
            self.begin, self.length, self._room = (
                np.concatenate([old, more]) for old in (self.begin, self.length, self._room)
            )
            self.rises = np.concatenate([self.rises, more == 0])
        self._n_series += 1
        return self._n_series - 1

    def series(self, number: int) -> Rows:
        """The rows of one series, as views."""
        view = self._views.get(number)
        if view is None:
            begin = int(self.begin[number])
            place = slice(begin, begin + int(self.length[number]))
            given = {name: values[place] for name, values in self.columns.items()}
            view = self._views[number] = Rows(self.ts[place], self.known_at[place], given, self.names)
        return view

    def newest(self, numbers: Int1D) -> Int1D:
        """Place of the newest row of each series; series are non-empty once they exist."""
        return np.asarray(self.begin[numbers] + self.length[numbers] - 1)

    def oldest_ts(self) -> int:
        """``ts`` of the oldest row of all series, us."""
        return int(self.ts[self.begin[: self._n_series]].min())

    def places(self, numbers: Int1D) -> Int1D:
        """Places of all rows of series, one series after the other."""
        return self._copy_places(numbers, 0, self.length[numbers])[0]

    def known_since(self, numbers: Int1D, time_us: int) -> tuple[Int1D, Int1D]:
        """Places of all rows that became known after a time, and more; and how many per series.

        Of a series whose rows became known in order only those are found, at little cost; of
        another one all rows are.
        """
        begin, end = self.begin[numbers], self.begin[numbers] + self.length[numbers]
        tail = 4
        while bool((self.known_at[np.maximum(end - tail, begin)] > time_us)[end - begin > tail].any()):
            tail *= 4
        start = np.maximum(end - tail, begin)
        after = np.full(len(numbers), time_us + 1, dtype=np.int64)
        first = lower_bound(self.known_at, self.ts, start, end - start, after, np.zeros_like(after))
        first = np.where(self.rises[numbers], first, begin)
        count = end - first
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count) + within, count

    def append(self, block: Block) -> Appended:
        """Take rows of any series in any order."""
        block, repeated = block.ordered()
        for name in block.columns.keys() - self.columns.keys():
            self.columns[name] = np.full(len(self.ts), np.nan)
            self._views.clear()
        if self._end == 0:
            self._adopt(block)
            return Appended(len(block.ts), int(block.same_ts().sum()), 0, repeated)
        behind, newer = self._behind(block)
        revised = block.same_ts() | (behind & ~newer)
        if behind.all():
            self._extend(block)
            return Appended(len(block.ts), int(revised.sum()), 0, repeated)
        there, twin = self._find(block)
        new = ~there
        self._insert(block.take(new), behind[new])
        revised = (revised | twin) & new
        out_of_order = new & ~behind & ~revised
        return Appended(
            int(new.sum()), int(revised.sum()), int(out_of_order.sum()), repeated + int(there.sum())
        )

    def prune(self, before_us: int | Int1D) -> None:
        """Drop rows with ``ts < before_us`` but keep each series' newest row.

        Parameters
        ----------
        before_us : one bound, or one per series [n_series] by number.
        """
        n_series = self._n_series
        begin, length = self.begin[:n_series], self.length[:n_series]
        bound = np.broadcast_to(np.asarray(before_us, dtype=np.int64), n_series)
        first = lower_bound(self.ts, self.known_at, begin, length, bound, np.zeros_like(bound))
        dropped = np.minimum(first - begin, np.maximum(length - 1, 0))
        if dropped.any():
            self.begin[:n_series] += dropped
            self.length[:n_series] -= dropped
            self._room[:n_series] -= dropped
            self._views.clear()

    def _adopt(self, block: Block) -> None:
        """The first rows: their arrays become the table's, without any room."""
        self.ts, self.known_at = block.ts, block.known_at
        self.columns = dict(block.columns)
        self._end = len(block.ts)
        first, counts = _stretches(block.series)
        numbers = block.series[first]
        self.begin[numbers], self.length[numbers], self._room[numbers] = first, counts, counts
        self._note_order(block)

    def _note_order(self, block: Block) -> None:
        falls = block.known_at < block.ts  # nothing is known before it happened
        falls[1:] |= (block.known_at[1:] < block.known_at[:-1]) & (block.series[1:] == block.series[:-1])
        self.rises[block.series[falls]] = False

    def _behind(self, block: Block) -> tuple[Bool1D, Bool1D]:
        """Whether each row comes behind the newest of its series, and whether its ``ts`` is newer."""
        empty = self.length[block.series] == 0
        last = np.maximum(self.newest(block.series), 0)
        newer = empty | (block.ts > self.ts[last])
        behind = newer | ((block.ts == self.ts[last]) & (block.known_at > self.known_at[last]))
        return behind, newer

    def _find(self, block: Block) -> tuple[Bool1D, Bool1D]:
        """Whether each row is there already, and whether another version of it is."""
        begin, length = self.begin[block.series], self.length[block.series]
        place = lower_bound(self.ts, self.known_at, begin, length, block.ts, block.known_at)
        inside = place < begin + length
        at = np.where(inside, place, 0)
        there = inside & (self.ts[at] == block.ts) & (self.known_at[at] == block.known_at)
        before = np.maximum(place - 1, 0)
        twin = inside & (self.ts[at] == block.ts)
        twin |= (place > begin) & (self.ts[before] == block.ts)
        return there, twin

    def _extend(self, block: Block) -> None:
        """Rows that all come behind the newest of their series."""
        if not len(block.ts):
            return
        first, counts = _stretches(block.series)
        numbers = block.series[first]
        full = self.length[numbers] + counts > self._room[numbers]
        if full.any():
            self._move(numbers[full], counts[full])
        start = self.begin[numbers] + self.length[numbers]
        last = np.maximum(start - 1, 0)
        self.rises[numbers[(self.length[numbers] > 0) & (self.known_at[last] > block.known_at[first])]] = (
            False
        )
        self._note_order(block)
        place = np.repeat(start - first, counts) + np.arange(len(block.ts))
        self._write(place, block)
        self.length[numbers] += counts
        for number in numbers.tolist():
            self._views.pop(number, None)

    def _insert(self, block: Block, behind: Bool1D) -> None:
        """Rows of which some come between others: their series are merged and start anew."""
        numbers = np.unique(block.series[~behind])
        touched = np.isin(block.series, numbers)
        if not touched.all():
            self._extend(block.take(~touched))
        if not len(numbers):
            return
        mine, length = block.take(touched), self.length[numbers]
        old = self.places(numbers)
        merged = Block(
            np.concatenate([np.repeat(numbers, length), mine.series]),
            np.concatenate([self.ts[old], mine.ts]),
            np.concatenate([self.known_at[old], mine.known_at]),
            {name: np.concatenate([at[old], _given(mine, name)]) for name, at in self.columns.items()},
        )
        # The old rows stay where they are, for those who look at them.
        self.length[numbers] = self._room[numbers] = 0
        self.rises[numbers] = True
        self._extend(merged.ordered()[0])

    def _write(self, place: Int1D, block: Block) -> None:
        self.ts[place], self.known_at[place] = block.ts, block.known_at
        for name, values in self.columns.items():
            values[place] = block.columns.get(name, np.nan)

    def _move(self, numbers: Int1D, extra: Int1D) -> None:
        """Give series room for ``extra`` rows and as many again as they have."""
        room = np.maximum(2 * self.length[numbers] + extra, extra + MIN_ROOM)
        if self._end + int(room.sum()) > len(self.ts):
            n_series = self._n_series
            every = np.minimum(self._room[:n_series], self.length[:n_series] * 3 // 2 + MIN_ROOM)
            every[numbers] = room
            self._rebuild(every)
            return
        source, target = self._copy_places(numbers, self._end, room)
        for values in (self.ts, self.known_at, *self.columns.values()):
            values[target] = values[source]
        self._place(numbers, self._end, room)

    def _rebuild(self, room: Int1D) -> None:
        """New arrays in which every series has the room given, and half as much free behind all."""
        numbers = np.arange(self._n_series)
        source, target = self._copy_places(numbers, 0, room)
        size = int(room.sum()) * 3 // 2
        self.ts, self.known_at = (_moved(old, source, target, size) for old in (self.ts, self.known_at))
        for name, old in self.columns.items():
            self.columns[name] = _moved(old, source, target, size)
        self._end = 0
        self._place(numbers, 0, room)

    def _copy_places(self, numbers: Int1D, start: int, room: Int1D) -> tuple[Int1D, Int1D]:
        """Places of the rows of series now, and when they stand one after the other from ``start``."""
        length = self.length[numbers]
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        begin = start + np.cumsum(room) - room
        return np.repeat(self.begin[numbers], length) + within, np.repeat(begin, length) + within

    def _place(self, numbers: Int1D, start: int, room: Int1D) -> None:
        self.begin[numbers] = start + np.cumsum(room) - room
        self._room[numbers] = room
        self._end = start + int(room.sum())
        for number in numbers.tolist():
            self._views.pop(number, None)


def _stretches(series: Int1D) -> tuple[Int1D, Int1D]:
    """First place and number of rows of each stretch of equal series."""
    first = np.flatnonzero(np.diff(series, prepend=-1))
    return first, np.diff(np.append(first, len(series)))


def lower_bound(
    ts: TimeUs, known_at: TimeUs, begin: Int1D, length: Int1D, query_ts: TimeUs, query_known_at: TimeUs
) -> Int1D:
    """Place of the first row of each stretch that is not before the query (ts, known_at).

    A bisection of all stretches at once; the end of the stretch where every row is before.
    """
    low, high = begin.copy(), begin + length
    while bool((open_ := low < high).any()):
        middle = np.where(open_, (low + high) >> 1, 0)
        before = (ts[middle] < query_ts) | ((ts[middle] == query_ts) & (known_at[middle] < query_known_at))
        low = np.where(open_ & before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low


def _given(block: Block, name: str) -> Float1D:
    found = block.columns.get(name)
    return np.full(len(block.ts), np.nan) if found is None else found


def _moved(old: AnyArray, source: Int1D, target: Int1D, size: int) -> AnyArray:
    new = np.zeros(size, dtype=old.dtype)
    new[target] = old[source]
    return new
