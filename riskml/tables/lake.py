"""The lake: every table as Parquet files, written atomically and checked on every read.

Rows are only ever added. Writing the same rows twice changes no byte; a row whose full
key exists with other values is refused (a revision is a new row with its own
``known_at``). All files of a write are staged beside their targets before the first one
is moved into place, so a failed write leaves the lake as it was.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import Int1D
from riskml.bundle import sha256_file
from riskml.contracts import CONTRACTS, contract
from riskml.errors import ContractError, DataError, Problem, nearest
from riskml.facts import load_facts
from riskml.markets import Market, venue_order
from riskml.tables.contracts import empty, enforce
from riskml.tables.keys import key_codes, sort_codes
from riskml.tables.merging import LISTED, conflict_error, merge
from riskml.tables.partitions import (
    LakePartition,
    check_place,
    damaged,
    list_partitions,
    read_partition,
    split_rows,
    write_file,
)
from riskml.units import TimeLike, format_us, to_us

Window: TypeAlias = tuple[int | None, int | None]
"""Start (inclusive) and end (exclusive) in microseconds; None = open."""


@dataclass(frozen=True)
class WriteResult:
    """What a write did."""

    rows_added: int
    """Rows that the lake did not have."""
    rows_unchanged: int
    """Rows that it had already, with equal values."""
    partitions: int
    """Files written; 0 when nothing was new."""


class Lake:
    """A folder of contract tables.

    Parameters
    ----------
    path : the lake's folder. It is made by the first write; reading a folder that does
        not exist is a :class:`~riskml.errors.DataError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Lake({str(self.path)!r})"

    def write(self, table: str, data: pa.Table) -> WriteResult:
        """Add rows to a table.

        Parameters
        ----------
        table : name of the contract.
        data : rows that follow it (see :func:`riskml.tables.contracts.enforce`).

        Raises
        ------
        ContractError : the rows break the contract. Nothing is written.
        ConflictError : rows have the full key of stored rows and other values. Nothing is
            written; ``rows`` tells all of them, ``problems`` the first 100.
        DataError : the lake's path is a file, or a stored file is damaged.
        """
        self._refuse_file()
        data = enforce(table, data)
        changed: list[tuple[LakePartition, pa.Table]] = []
        problems: list[Problem] = []
        conflicts: list[Int1D] = []
        added = 0
        for partition, rows in split_rows(self.path, table, data):
            merged, found = merge(partition, data.take(rows))
            conflicts.append(rows[found.new])
            problems += found.describe(partition, rows, LISTED - len(problems))
            if merged is not None:
                added += merged[1]
                changed.append((partition, merged[0]))
        if problems:
            raise conflict_error(table, problems, np.sort(np.concatenate(conflicts)))
        _commit(table, changed)
        return WriteResult(added, data.num_rows - added, len(changed))

    def read(
        self,
        table: str,
        *,
        venues: Collection[str] | str | None = None,
        symbols: Collection[str] | str | None = None,
        chains: Collection[str] | str | None = None,
        interval: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        columns: Sequence[str] | None = None,
        known_by: TimeLike | None = None,
    ) -> pa.Table:
        """Read rows, checked against the contract and sorted by the table's key.

        Parameters
        ----------
        table : name of the contract. A table without rows comes back empty.
        venues, symbols, chains, interval : keep these only (default: all). A filter on a
            column that the table does not have is an error.
        start, end : keep ``start <= ts < end``.
        columns : return these only, in this order; the keys are checked all the same.
        known_by : keep rows with ``known_at <= known_by``: what was known then.

        Raises
        ------
        DataError : no lake, an empty range, a symbol that no table of the lake knows, or
            a damaged file (named with its table).
        ContractError : stored rows break the contract.
        """
        spec = contract(table)
        names = list(columns) if columns is not None else list(spec.column_names)
        window = _window(table, start, end)
        wanted = {"venue": venues, "symbol": symbols, "chain": chains, "interval": interval}
        filters = {key: _as_set(value) for key, value in wanted.items() if value is not None}
        for key in filters:
            spec.column(key)
        partitions = self.partitions(table)
        self.check_symbols(table, filters.get("symbol"), partitions)
        needed = [*dict.fromkeys((*names, *filters))]
        chosen = [p for p in partitions if _matches(p, filters, window)]
        parts = [_read_filtered(p, needed, filters, window, known_by) for p in chosen]
        if not parts:
            return empty(table, names)
        data = pa.concat_tables(parts).combine_chunks()
        order, _ = sort_codes(key_codes(spec, data, spec.full_key))
        data = data.select(names)
        return data if order is None else data.take(order)

    def partitions(self, table: str) -> list[LakePartition]:
        """The files of a table, in path order."""
        contract(table)
        self._require_folder()
        return list_partitions(self.path, table)

    def tables(self) -> list[str]:
        """The tables that have at least one file, in contract order."""
        self._require_folder()
        return [name for name in CONTRACTS if list_partitions(self.path, name)]

    def markets(self, interval: str) -> list[Market]:
        """Every symbol with bars at ``interval``, on its reference venue.

        The reference venue is the first one in the order of ``facts/venues.toml`` that
        has such bars; spot venues are none. Leading symbols of ``facts/symbols.toml``
        come first, the rest follows by name.
        """
        by_symbol: dict[str, dict[str, list[LakePartition]]] = {}
        for partition in self.partitions("bars"):
            venues = by_symbol.setdefault(partition.keys["symbol"], {})
            venues.setdefault(partition.keys["venue"], []).append(partition)
        found = []
        for symbol, venues in by_symbol.items():
            for venue in venue_order(venues):
                if any(_has_interval(part, interval) for part in reversed(venues[venue])):
                    found.append(Market(symbol, venue))
                    break
        leading = {name: rank for rank, name in enumerate(load_facts("symbols")["leading"])}
        return sorted(found, key=lambda market: (leading.get(market.symbol, len(leading)), market.symbol))

    def data_hashes(self, tables: Sequence[str]) -> dict[str, str]:
        """sha256 of every file of the given tables, by path relative to the lake."""
        parts = [part for table in tables for part in self.partitions(table)]
        return {part.relative: sha256_file(part.path) for part in parts}

    def _require_folder(self) -> None:
        self._refuse_file()
        if not self.path.is_dir():
            raise DataError(
                f"there is no lake at {self.path}",
                fix="make one with 'riskml ingest', or pass the right --lake",
            )

    def _refuse_file(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file; a lake is a folder", fix="pass another --lake")

    def check_symbols(
        self, table: str, symbols: Collection[str] | None, partitions: Sequence[LakePartition]
    ) -> None:
        """Refuse a symbol that no table of the lake knows; one that another table knows is merely absent.

        Raises
        ------
        DataError : names the nearest symbol.
        """
        if symbols is None or contract(table).partition != "market":
            return
        unknown = set(symbols) - {partition.keys["symbol"] for partition in partitions}
        if not unknown:
            return
        markets = [name for name, spec in CONTRACTS.items() if spec.partition == "market"]
        known = {part.keys["symbol"] for name in markets for part in list_partitions(self.path, name)}
        strangers = sorted(unknown - known)
        if strangers and known:
            raise DataError(
                f"the lake knows no symbol '{strangers[0]}'.{nearest(strangers[0], known)}",
                table=table,
                market=strangers[0],
                fix=f"known symbols: {', '.join(sorted(known))}",
            )


def _window(table: str, start: TimeLike | None, end: TimeLike | None) -> Window:
    first = None if start is None else to_us(start)
    last = None if end is None else to_us(end)
    if first is not None and last is not None and first >= last:
        raise DataError(
            f"the range from {format_us(first)} to {format_us(last)} is empty",
            table=table,
            fix="start is inclusive, end is exclusive and has to be later",
        )
    return first, last


def _as_set(value: Collection[str] | str) -> set[str]:
    return {value} if isinstance(value, str) else set(value)


def _matches(part: LakePartition, filters: dict[str, set[str]], window: Window) -> bool:
    first, last = part.span
    start, end = window
    inside = (start is None or last > start) and (end is None or first < end)
    return inside and all(part.keys[key] in keep for key, keep in filters.items() if key in part.keys)


def _read_filtered(
    partition: LakePartition,
    names: Sequence[str],
    filters: dict[str, set[str]],
    window: Window,
    known_by: TimeLike | None,
) -> pa.Table:
    interval = filters.get("interval")
    data = read_partition(partition, names, interval=interval)
    reasons = check_place(partition, data)
    if reasons:
        raise ContractError(
            f"{partition.relative}: {'; '.join(reasons)}",
            table=partition.table,
            fix="write rows with Lake.write",
        )
    keep: pa.Array | None = None
    for key, values in filters.items():
        if key not in partition.keys:
            keep = _both(keep, pc.is_in(data.column(key), pa.array(sorted(values), pa.string())))
    start, end = window
    first, last = partition.span
    ts, known = data.column("ts").cast(pa.int64()), data.column("known_at").cast(pa.int64())
    if start is not None and start > first:
        keep = _both(keep, pc.greater_equal(ts, start))
    if end is not None and end < last:
        keep = _both(keep, pc.less(ts, end))
    if known_by is not None:
        keep = _both(keep, pc.less_equal(known, to_us(known_by)))
    return data if keep is None else data.filter(keep)


def _both(one: pa.Array | None, other: pa.Array) -> pa.Array:
    return other if one is None else pc.and_(one, other)


def _has_interval(partition: LakePartition, interval: str) -> bool:
    """Whether a file holds bars of an interval, from the row groups' statistics where they tell."""
    try:
        with pq.ParquetFile(partition.path) as file:
            index = file.schema_arrow.get_field_index("interval")
            mixed = False
            for group in range(file.metadata.num_row_groups):
                statistics = file.metadata.row_group(group).column(index).statistics
                if statistics is None or not statistics.has_min_max or statistics.min != statistics.max:
                    mixed = True
                elif statistics.min == interval:
                    return True
            return mixed and interval in pc.unique(file.read(columns=["interval"]).column(0)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(partition, error) from error


def _commit(table: str, changed: Sequence[tuple[LakePartition, pa.Table]]) -> None:
    """Stage every file beside its target, then move all of them into place."""
    staged: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        for partition, data in changed:
            made += _make_folder(partition.path.parent)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=partition.path.parent)
            os.close(handle)
            staged.append((Path(name), partition.path))
            write_file(Path(name), table, data)
            Path(name).chmod(0o644)
        for temporary, target in staged:
            os.replace(temporary, target)
    except BaseException:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents; the ones that did not exist, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
    return missing[::-1]


def as_lake(lake: Lake | str | Path) -> Lake:
    """The lake itself, or the one in a folder."""
    return Lake(lake) if isinstance(lake, str | Path) else lake
