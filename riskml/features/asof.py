"""Point-in-time look-up: what was known at a moment, and no later.

``ts`` says when a thing happened, ``known_at`` when a live engine had the row. A query at
``t`` sees the rows with ``known_at <= t`` and takes the one with the latest ``ts``; of
several revisions of that ``ts`` the one that became known last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from riskml.arrays import Float1D, Int1D, TimeUs


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


def _rises(times: TimeUs) -> bool:
    return bool((times[1:] >= times[:-1]).all())


def take(values: Float1D, rows: Int1D) -> Float1D:
    """``values[rows]`` [n] as float64, with NaN where a row is -1."""
    if len(values) == 0:
        return np.full(len(rows), np.nan)
    return np.where(rows < 0, np.nan, values[rows])
