"""Account snapshots in groups: many times in one book, so that a long history costs few passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import AnyArray, TimeUs
from riskml.contracts import contract
from riskml.risk.accounts import AccountBook
from riskml.tables.contracts import as_arrays, empty
from riskml.tables.keys import key_codes, sort_codes
from riskml.tables.lake import Lake
from riskml.units import TimeLike, to_us

GROUP_ROWS = 50_000
"""States that make up a group at most, unless one snapshot alone has more; bounds memory."""
_PARTS = ("accounts", "positions", "collateral")


@dataclass(frozen=True)
class States:
    """Snapshots of one UTC day as one book, in which account a at ts is an account of its own."""

    ts: TimeUs
    """[n_states]."""
    account_id: AnyArray
    """[n_states]."""
    book: AccountBook
    """In the same order; its own account ids carry the time."""


def read_states(lake: Lake, start: TimeLike | None, end: TimeLike | None) -> Iterator[States]:
    """Every account snapshot with ``start <= ts < end``, oldest first, one day in memory at a time.

    As in :func:`riskml.tables.book.read_books`, a row counts if it was known at its own ``ts``, and of
    several revisions the last one known by then.

    Raises
    ------
    DataError : an empty range, or rows that make no sense as a book.
    """
    first = None if start is None else to_us(start)
    last = None if end is None else to_us(end)
    for partition in lake.partitions("accounts"):
        begin = partition.span[0] if first is None else max(first, partition.span[0])
        stop = partition.span[1] if last is None else min(last, partition.span[1])
        if begin >= stop:
            continue
        day = {name: _as_known(name, lake.read(name, start=begin, end=stop)) for name in _PARTS}
        times = {name: _times(rows) for name, rows in day.items()}
        for low, high in _groups(times["accounts"]):
            part = {}
            for name, rows in day.items():
                a, b = np.searchsorted(times[name], [low, high])
                part[name] = rows.slice(a, b - a)
            yield _states(part)


def _groups(ts: TimeUs) -> Iterator[tuple[int, int]]:
    """Half-open ranges of time that hold whole snapshots and about ``GROUP_ROWS`` states."""
    moments, begins = np.unique(ts, return_index=True)
    ends = np.append(begins[1:], len(ts))
    low = 0
    for place in range(len(moments)):
        is_last = place + 1 == len(moments)
        if is_last or ends[place + 1] - begins[low] > GROUP_ROWS:
            yield int(moments[low]), int(moments[place]) + 1
            low = place + 1


def _states(part: dict[str, pa.Table]) -> States:
    accounts = part["accounts"]
    names = as_arrays(accounts.select(["account_id"]))["account_id"]
    arrays = {name: as_arrays(_with_time(rows)) for name, rows in part.items()}
    book = AccountBook.from_arrays(arrays["accounts"], arrays["positions"], arrays["collateral"])
    return States(_times(accounts), names, book)


def _with_time(rows: pa.Table) -> pa.Table:
    """Rows whose account id carries their time, readable in an error."""
    when = rows.column("ts").cast(pa.string())
    place = rows.column_names.index("account_id")
    return rows.set_column(
        place, "account_id", pc.binary_join_element_wise(rows.column("account_id"), when, " at ")
    )


def _as_known(table: str, rows: pa.Table) -> pa.Table:
    """Rows known at their own time, the latest revision of each key."""
    rows = rows.filter(pc.less_equal(rows.column("known_at"), rows.column("ts")))
    if rows.num_rows < 2:
        return rows if rows.num_rows else empty(table)
    spec = contract(table)
    # Rows come sorted by key and known_at, so the last of equal neighbours is the newest.
    _, equal = sort_codes(key_codes(spec, rows, spec.key))
    return rows.filter(pa.array(np.append(~equal, True))).combine_chunks()


def _times(rows: pa.Table) -> TimeUs:
    return np.asarray(rows.column("ts").cast(pa.int64()).to_numpy(), dtype=np.int64)
