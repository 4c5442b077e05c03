"""Which rows belong to which slots: a whole grid of slots per series, or one slot of many series.

A slot is the close of a bar. Two questions are asked of a series:

- *exact*: the row with ``ts`` equal to the slot that was known by then (bars and marks);
- *newest*: the newest row known by then, unless it is older than a limit (everything else).

Over a grid the second answer changes only when a row becomes known or too old, so it is
worked out at those slots and repeated in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from riskml.arrays import Int1D, TimeUs
from riskml.features.rows import Rows, TableRows, lower_bound

_WALK = 32
"""Rows looked at one by one, from the newest back, before a series is indexed."""


@dataclass(frozen=True)
class SlotGrid:
    """Slots in order [n_slots]; arithmetic instead of a search where they are equally spaced."""

    ts: TimeUs

    @cached_property
    def _step(self) -> int:
        """Distance of neighbours; 0 when it is not always the same."""
        step = int(self.ts[1] - self.ts[0])
        return step if bool((np.diff(self.ts) == step).all()) else 0

    def first_from(self, times: TimeUs) -> Int1D:
        """The first slot at or after each time [n], ``n_slots`` when there is none."""
        if not self._step:
            return np.asarray(np.searchsorted(self.ts, times, side="left"))
        slots = np.asarray((times - self.ts[0] + self._step - 1) // self._step)
        return np.asarray(np.clip(slots, 0, len(self.ts)))

    def exact(self, rows: Rows) -> tuple[Int1D | slice, Int1D | slice]:
        """Slots that have a row of their own, and these rows; both may be slices.

        A revision that became known after its own ``ts`` is not used: a bar counts as it stood
        when it closed.
        """
        first, last = np.searchsorted(rows.ts, [self.ts[0], self.ts[-1] + 1])
        ts = rows.ts[first:last]
        slots = self.first_from(ts)
        good = (rows.known_at[first:last] <= ts) & (self.ts[slots] == ts)
        if len(ts) and good.all() and slots[-1] - slots[0] == len(ts) - 1 and (np.diff(slots) == 1).all():
            return slice(int(slots[0]), int(slots[-1]) + 1), slice(int(first), int(last))
        # Of several versions the one known last comes last, and stays when slots are filled in order.
        chosen = np.flatnonzero(good)
        return slots[chosen], chosen + int(first)

    def changes(self, ts: TimeUs, known_at: TimeUs, stale_from: TimeUs) -> Int1D:
        """Slots at which the newest usable row may be another one than before; 0 is always one.

        Parameters
        ----------
        ts, known_at : rows, in any order.
        stale_from : when each row is no longer used.
        """
        marks = np.zeros(len(self.ts) + 1, dtype=np.bool_)
        marks[0] = True
        marks[self.first_from(np.maximum(known_at, ts))] = True
        marks[self.first_from(stale_from)] = True
        return np.flatnonzero(marks[:-1])

    def repeats(self, changes: Int1D) -> Int1D:
        """For how many slots each answer at :meth:`changes` holds."""
        return np.diff(np.append(changes, len(self.ts)))


def exact_places(table: TableRows, series: Int1D, slot: int) -> Int1D:
    """Place of each series' row of this very slot, known by then; -1 without one.

    Parameters
    ----------
    series : numbers of series, any shape; -1 = no series.
    """
    newest = np.where(series >= 0, table.newest(series), -1)
    if not len(table.ts):
        return newest
    found = (newest >= 0) & (table.ts[newest] == slot) & (table.known_at[newest] <= slot)
    later = (newest >= 0) & ~found & (table.ts[newest] >= slot)
    places = np.where(found, newest, -1)
    if later.any():
        places[later] = _last_until(table, series[later], slot)
        places[later] = np.where(table.ts[places[later]] == slot, places[later], -1)
    return places


def newest_places(table: TableRows, series: Int1D, slot: int) -> Int1D:
    """Place of each series' newest row that was known by the slot; -1 without one.

    Parameters
    ----------
    series : numbers of series, any shape; -1 = no series.
    """
    newest = np.where(series >= 0, table.newest(series), -1)
    if not len(table.ts):
        return newest
    unusable = (newest >= 0) & (np.maximum(table.ts[newest], table.known_at[newest]) > slot)
    if unusable.any():
        newest[unusable] = _newest_known(table, series[unusable], slot)
    return newest


def _last_until(table: TableRows, series: Int1D, slot: int) -> Int1D:
    """Place of the last row not behind (slot, slot) in (ts, known_at); -1 without one."""
    begin, query = table.begin[series], np.full(len(series), slot, dtype=np.int64)
    place = lower_bound(table.ts, table.known_at, begin, table.length[series], query, query + 1) - 1
    return np.where(place >= begin, place, -1)


def _newest_known(table: TableRows, series: Int1D, slot: int) -> Int1D:
    places, begin = _last_until(table, series, slot), table.begin[series]
    for _ in range(_WALK):
        # Rows are in order of ts: the first known one on the way back is the newest.
        unknown = (places >= 0) & (table.known_at[places] > slot)
        if not unknown.any():
            return places
        places[unknown] -= 1
        places[places < begin] = -1
    for number in np.flatnonzero(places >= 0).tolist():
        row = table.series(int(series[number])).index.row(slot, slot)
        places[number] = begin[number] + row if row >= 0 else -1
    return places
