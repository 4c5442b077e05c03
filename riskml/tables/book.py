"""Account history from the lake as the books that the risk engine scores.

A snapshot of the ``accounts`` table is all its rows with one ``ts``; positions,
collateral and orders of the same ``ts`` belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.contracts import contract
from riskml.errors import DataError
from riskml.risk.accounts import AccountBook
from riskml.tables.contracts import as_arrays, empty
from riskml.tables.keys import key_codes, sort_codes
from riskml.tables.lake import Lake, as_lake
from riskml.tables.partitions import LakePartition
from riskml.units import TimeLike, format_us, to_us

_PARTS = ("accounts", "positions", "collateral", "orders")


def read_book(lake: Lake | str | Path, ts: TimeLike) -> AccountBook:
    """The book at a time: the latest account snapshot at or before ``ts``.

    Only rows with ``known_at <= ts`` are used; of several revisions of a row the latest
    known one counts.

    Raises
    ------
    DataError : the lake has no account snapshot at or before ``ts``.
    """
    moment = to_us(ts)
    store = as_lake(lake)
    for partition in reversed(store.partitions("accounts")):
        if partition.span[0] > moment:
            continue
        first, last = partition.span
        rows = store.read("accounts", start=first, end=min(last, moment + 1), known_by=moment)
        if rows.num_rows:
            snapshot = pc.max(rows.column("ts")).cast(pa.int64()).as_py()
            return _book(store, snapshot, moment)
    raise DataError(
        f"there is no account snapshot at or before {format_us(moment)}",
        table="accounts",
        fix="ingest an account history, or ask for a later time",
    )


def read_books(lake: Lake | str | Path, start: TimeLike, end: TimeLike) -> Iterator[tuple[int, AccountBook]]:
    """Every account snapshot with ``start <= ts < end``, oldest first, one day in memory at a time.

    Yields
    ------
    ts : microseconds UTC of the snapshot.
    book : as it was known at that time.
    """
    first, last = to_us(start), to_us(end)
    if first >= last:
        raise DataError(f"the range from {format_us(first)} to {format_us(last)} is empty", table="accounts")
    store = as_lake(lake)
    for partition in store.partitions("accounts"):
        if partition.span[1] > first and partition.span[0] < last:
            yield from _books_of_day(store, partition, first, last)


def _books_of_day(
    lake: Lake, partition: LakePartition, first: int, last: int
) -> Iterator[tuple[int, AccountBook]]:
    begin, stop = max(first, partition.span[0]), min(last, partition.span[1])
    day = {name: lake.read(name, start=begin, end=stop) for name in _PARTS}
    times = {name: rows.column("ts").cast(pa.int64()).to_numpy() for name, rows in day.items()}
    for ts in np.unique(times["accounts"]).tolist():
        rows = {}
        for name, data in day.items():
            begin, stop = np.searchsorted(times[name], [ts, ts + 1])
            rows[name] = _as_known(name, data.slice(begin, stop - begin), ts)
        if rows["accounts"].num_rows:
            yield ts, _from_tables(rows)


def _book(lake: Lake, snapshot: int, known_by: int) -> AccountBook:
    rows = {name: lake.read(name, start=snapshot, end=snapshot + 1) for name in _PARTS}
    return _from_tables({name: _as_known(name, data, known_by) for name, data in rows.items()})


def _as_known(table: str, rows: pa.Table, known_by: int) -> pa.Table:
    """Rows known by a time, the latest revision of each key."""
    if not rows.num_rows:
        return empty(table)
    rows = rows.filter(pc.less_equal(rows.column("known_at").cast(pa.int64()), known_by))
    if rows.num_rows < 2:
        return rows
    spec = contract(table)
    # Rows come sorted by key and known_at, so the last of equal neighbours is the newest.
    _, equal = sort_codes(key_codes(spec, rows, spec.key))
    return rows.filter(pa.array(np.append(~equal, True)))


def _from_tables(rows: dict[str, pa.Table]) -> AccountBook:
    arrays = {name: as_arrays(data) for name, data in rows.items()}
    orders = arrays["orders"] if rows["orders"].num_rows else None
    return AccountBook.from_arrays(
        accounts=arrays["accounts"],
        positions=arrays["positions"],
        collateral=arrays["collateral"],
        orders=orders,
    )
