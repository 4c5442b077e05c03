"""Pegs, flows and open interest for a backfill: what a live scorer would still hold, read from the lake.

A scorer never forgets the last usable row of a series, however long ago its source fell silent. So beside the
rows of the range and of the history before it, the last usable row of every silent series is read: from the
newest year file that has one, not from the whole past. :mod:`riskml.scoring.conditions` says what is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import AnyArray, Bool1D, TimeUs
from riskml.contracts import contract
from riskml.errors import ContractError
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.scoring.conditions import HISTORY, TAIL, needed_from, usable_rows
from riskml.tables.align import to_columns
from riskml.tables.lake import Lake
from riskml.tables.partitions import LakePartition, check_place, read_partition

CONTEXT_TABLES = tuple(TAIL)
"""Tables that decisions read beside the market graph's inputs."""


def read_context(lake: Lake, first: int, last: int) -> SeriesStore:
    """Rows of :data:`CONTEXT_TABLES` from which every decision in ``[first, last)`` can be made.

    What is decided at a time does not depend on ``first``: an earlier one adds rows that are not read.
    """
    store = SeriesStore()
    for table in CONTEXT_TABLES:
        begin = first - HISTORY - TAIL[table]
        recent = lake.read(table, start=begin, end=last)
        if recent.num_rows:
            store.append(table, to_columns(recent))
        for rows in held_rows(lake, table, begin, first, recent):
            store.append(table, to_columns(rows))
    return store


def held_rows(lake: Lake, table: str, before: int, known_by: int, since: pa.Table) -> Iterator[pa.Table]:
    """Per silent folder of a table, the rows of before ``before`` that are still needed at ``known_by``.

    These are its last usable row that was known by then, the :data:`~riskml.scoring.conditions.TAIL` before
    it, and what became known later. A folder is one peg on one venue, one chain, or one market on one venue.

    Parameters
    ----------
    since : rows of the table from ``before`` on; a folder that has a usable one of them needs no older row.
    """
    older = [part for part in lake.partitions(table) if part.span[0] < before]
    heard = _heard(table, since, before + TAIL[table], known_by, list(older[0].keys)) if older else set()
    older = [part for part in older if tuple(part.keys.values()) not in heard]
    older.sort(key=lambda part: (tuple(part.keys.values()), part.span[0]))
    for _, parts in groupby(older, key=lambda part: tuple(part.keys.values())):
        rows = _last_of_folder(table, list(parts), before, known_by)
        if rows.num_rows:
            yield rows


def _heard(
    table: str, rows: pa.Table, since: int, known_by: int, folders: Sequence[str]
) -> set[tuple[str, ...]]:
    """Folders with a usable row from ``since`` on that was known by ``known_by``."""
    columns = to_columns(rows)
    if not rows.num_rows:
        return set()
    usable = usable_rows(table, columns, rows.num_rows) & (columns["ts"] >= since)
    usable &= np.maximum(columns["ts"], columns["known_at"]) <= known_by
    return set(zip(*(columns[name][usable].tolist() for name in folders), strict=True))


def _last_of_folder(table: str, parts: Sequence[LakePartition], before: int, known_by: int) -> pa.Table:
    """Rows of the newest files of one folder, oldest first, back to where nothing more is needed."""
    kept: list[pa.Table] = []
    needed: int | None = None
    for part in reversed(parts):
        if needed is not None and part.span[1] <= needed:
            break
        rows = _read(part)
        kept.append(rows.filter(pc.less(rows["ts"].cast(pa.int64()), before)))
        columns = _columns(table, pa.concat_tables(kept))
        needed = needed_from(table, columns["ts"], columns["known_at"], columns, known_by)
    rows = pa.concat_tables(kept)
    return rows if needed is None else rows.filter(pc.greater_equal(rows["ts"].cast(pa.int64()), needed))


def last_closes(
    lake: Lake, markets: Sequence[Market], interval: str, before: int
) -> dict[str, tuple[int, float]]:
    """Time and close of each market's last bar that closed before ``before``, by symbol, however old."""
    wanted = {(market.venue, market.symbol) for market in markets}
    parts = [
        part
        for part in lake.partitions("bars")
        if (part.keys["venue"], part.keys["symbol"]) in wanted and part.span[0] < before
    ]
    found: dict[str, tuple[int, float]] = {}
    for part in sorted(parts, key=lambda part: -part.span[0]):
        if part.keys["symbol"] in found:
            continue
        rows = _read(part, ("ts", "known_at", "close", "interval"), interval)
        ts, usable = _in_time(rows, interval)
        usable &= ts < before
        if usable.any():
            row = int(np.flatnonzero(usable)[np.argmax(ts[usable])])
            found[part.keys["symbol"]] = int(ts[row]), float(rows["close"][row].as_py())
    return found


def first_closes(lake: Lake, markets: Sequence[Market], interval: str) -> dict[str, int]:
    """Time of each market's first bar, by symbol: before it nobody can have known the market."""
    wanted = {(market.venue, market.symbol) for market in markets}
    parts = [part for part in lake.partitions("bars") if (part.keys["venue"], part.keys["symbol"]) in wanted]
    found: dict[str, int] = {}
    for part in sorted(parts, key=lambda part: part.span[0]):
        if part.keys["symbol"] not in found:
            ts, usable = _in_time(_read(part, ("ts", "known_at", "interval"), interval), interval)
            if usable.any():
                found[part.keys["symbol"]] = int(ts[usable].min())
    return found


def _in_time(rows: pa.Table, interval: str) -> tuple[TimeUs, Bool1D]:
    """Times of bars, and which count: those known when they closed, as in the look-up of features."""
    ts = rows["ts"].cast(pa.int64()).to_numpy()
    usable = rows["known_at"].cast(pa.int64()).to_numpy() <= ts
    usable &= pc.equal(rows["interval"], interval).to_numpy(zero_copy_only=False)
    return ts, usable


def _read(part: LakePartition, columns: Sequence[str] | None = None, interval: str | None = None) -> pa.Table:
    names = contract(part.table).column_names if columns is None else columns
    rows = read_partition(part, names, interval=None if interval is None else {interval})
    reasons = check_place(part, rows)
    if reasons:
        raise ContractError(
            f"{part.relative}: {'; '.join(reasons)}", table=part.table, fix="write rows with Lake.write"
        )
    return rows


def _columns(table: str, rows: pa.Table) -> dict[str, AnyArray]:
    """Times and numbers of rows; text is not looked at."""
    spec = contract(table)
    names = [
        column.name for column in spec.columns if column.kind != "text" and column.name in rows.column_names
    ]
    return to_columns(rows.select(names))
