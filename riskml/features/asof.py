"""Point-in-time look-up: what was known at a moment, and no later.

``ts`` says when a thing happened, ``known_at`` when a live engine had the row. A query at
``t`` sees the rows with ``known_at <= t`` and takes the one with the latest ``ts``; of
several revisions of that ``ts`` the one that became known last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from riskml.arrays import Float1D, Float2D, Int1D, TimeUs


@dataclass(frozen=True)
class AsOfIndex:
    """Rows of one series prepared for look-ups.

    ``known_at`` earlier than ``ts`` is read as ``ts``: nothing is known before it happened.
    """

    ts: TimeUs
    """[n_rows]."""
    known_at: TimeUs
    """[n_rows]."""

    @cached_property
    def _order(self) -> tuple[TimeUs, Int1D]:
        """``known_at`` in order, and the row that is the answer once that moment is reached."""
        usable_from = np.maximum(self.known_at, self.ts)
        if _rises(usable_from) and _rises(self.ts):
            return usable_from, np.arange(len(self.ts))
        order = np.lexsort((self.ts, usable_from))
        ts = self.ts[order]
        is_newest = ts >= np.maximum.accumulate(ts)
        place = np.maximum.accumulate(np.where(is_newest, np.arange(len(ts)), 0))
        return usable_from[order], order[place]

    @cached_property
    def _exact(self) -> tuple[TimeUs, Int1D]:
        """Times in order of the rows that were known at their own ``ts``, and those rows."""
        eligible = np.flatnonzero(self.known_at <= self.ts)
        ts = self.ts[eligible]
        if not _rises(ts):
            order = np.lexsort((self.known_at[eligible], ts))
            return ts[order], eligible[order]
        return ts, eligible

    def rows(self, query_ts: TimeUs, staleness_us: int) -> Int1D:
        """The row in force at each query [n], or -1 (nothing known, or too old)."""
        if len(self.ts) == 0:
            return np.full(len(query_ts), -1, dtype=np.int64)
        known_at, answer = self._order
        reached = np.searchsorted(known_at, query_ts, side="right")
        row = answer[np.maximum(reached - 1, 0)]
        usable = (reached > 0) & (query_ts - self.ts[row] <= staleness_us)
        return np.where(usable, row, -1)

    def row(self, query_ts: int, staleness_us: int) -> int:
        """:meth:`rows` for one query, without the cost of arrays."""
        known_at, answer = self._order
        reached = int(known_at.searchsorted(query_ts, side="right"))
        if reached == 0:
            return -1
        row = int(answer[reached - 1])
        return row if query_ts - int(self.ts[row]) <= staleness_us else -1

    def exact_row(self, query_ts: int) -> int:
        """:meth:`exact_rows` for one query, without the cost of arrays."""
        ts, order = self._exact
        reached = int(ts.searchsorted(query_ts, side="right"))
        if reached == 0 or int(ts[reached - 1]) != query_ts:
            return -1
        return int(order[reached - 1])

    def exact_rows(self, query_ts: TimeUs) -> Int1D:
        """The row with ``ts == query`` that was known by then [n], or -1.

        A revision that became known after its own ``ts`` is not used: a bar counts as it
        stood when it closed.
        """
        found = np.full(len(query_ts), -1, dtype=np.int64)
        ts, order = self._exact
        if len(ts) == 0:
            return found
        reached = np.searchsorted(ts, query_ts, side="right")
        row = order[np.maximum(reached - 1, 0)]
        hit = (reached > 0) & (self.ts[row] == query_ts)
        found[hit] = row[hit]
        return found


def _rises(times: TimeUs) -> bool:
    return bool((times[1:] >= times[:-1]).all())


def as_of(
    query_ts: TimeUs, rows_ts: TimeUs, rows_known_at: TimeUs, values: Float2D, staleness_us: int
) -> Float2D:
    """Values in force at each query.

    Parameters
    ----------
    query_ts : [n] int64 us, any order.
    rows_ts, rows_known_at : [n_rows] int64 us, any order.
    values : [n_rows, n_columns].
    staleness_us : a row older than this (query - ts) is not used.

    Returns
    -------
    [n, n_columns]; NaN where nothing is known or the newest row is stale.

    NaN handling: a NaN in the chosen row stays NaN; an older row never stands in for it.
    """
    return take_rows(values, AsOfIndex(rows_ts, rows_known_at).rows(query_ts, staleness_us))


def take_rows(values: Float2D, rows: Int1D) -> Float2D:
    """``values[rows]`` [n, n_columns] with NaN where a row is -1."""
    if len(values) == 0:
        return np.full((len(rows), values.shape[1]), np.nan)
    taken = values[np.maximum(rows, 0)].astype(np.float64)
    taken[rows < 0] = np.nan
    return taken


def take(values: Float1D, rows: Int1D) -> Float1D:
    """``values[rows]`` [n] with NaN where a row is -1."""
    return take_rows(values[:, np.newaxis], rows)[:, 0]
