"""The rows of a lake in order of time, into a store that holds no more than is needed.

Every file is opened once and every row group read once, however many blocks of bars follow one
another. Rows come file by file and unsorted across files; the store sorts them into series.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import AnyArray, Int1D
from riskml.contracts import contract
from riskml.errors import ContractError
from riskml.features.fine import bar_lengths
from riskml.features.inputs import input_spec, input_tables, reach_us
from riskml.features.series import SeriesStore
from riskml.features.weights import axis_columns
from riskml.markets import Market, symbols
from riskml.tables.lake import Lake
from riskml.tables.partitions import LakePartition, RowGroup, check_place, read_partition, row_groups
from riskml.units import duration_us

WITH_INTERVAL = ("bars", "marks")
"""Tables that hold several bar lengths."""
_NO_VENUES = frozenset({"spot_bar", "venue_median", "fine_sum"})
"""Kinds of input that read the bars of venues other than the market's own."""
_WORD = re.compile(r"[a-z_]+")
_SHORTHAND = {"buy": ("buy_volume", "buy_usd"), "sell": ("sell_volume", "sell_usd")}
"""Words of column expressions that stand for several columns."""
_FUNCTIONS = frozenset({"ln", "min"})
"""Words of column expressions that are no columns."""


@dataclass
class _File:
    """A file of the lake and which of its row groups were read."""

    partition: LakePartition
    columns: tuple[str, ...]
    span: tuple[int, int]
    """First and one-past-last ``ts`` that it may hold, us."""
    groups: list[RowGroup] | None = None
    """Row groups still to read; None before the file was opened."""


@dataclass
class LakeFeed:
    """Fills a store block by block.

    Parameters
    ----------
    lake : contract tables; a missing one leaves its inputs without rows.
    markets : whose rows to read, and of chains and stablecoins those that features know.
    interval : of bars and marks.
    names : inputs to read for.
    """

    lake: Lake
    markets: Sequence[Market]
    interval: str
    names: Sequence[str]
    store: SeriesStore = field(default_factory=SeriesStore)
    off_grid: list[Int1D] = field(default_factory=list)
    """Closes of bars of the markets that are no multiple of the interval, as they were found: no
    slot ever sees them."""

    def __post_init__(self) -> None:
        self._reach = reach_us(self.names, self.interval)
        self._intervals = {table: bar_lengths(self.names, table, self.interval) for table in WITH_INTERVAL}
        self._files: dict[str, list[_File]] = {}
        for table in input_tables(self.names):
            of_table = [name for name in self.names if input_spec(name).table == table]
            columns = needed_columns(table, of_table)
            keep = self._filters(table, of_table)
            partitions = self.lake.partitions(table)
            self.lake.check_symbols(table, symbols(self.markets), partitions)
            self._files[table] = [
                _File(partition, columns, partition.span)
                for partition in partitions
                if all(partition.keys[key] in values for key, values in keep.items() if key in partition.keys)
            ]

    def advance(self, first: int, last: int) -> None:
        """Make the store hold every row that slots in [first, last) can see.

        Calls go forward in time: what no later slot can see is forgotten.
        """
        oldest = first - self._reach
        self.store.prune(oldest)
        for table, files in self._files.items():
            parts = [self._read(file, oldest, last) for file in files]
            found = [part for part in parts if part is not None and part.num_rows]
            if found:
                self.store.append(table, to_columns(pa.concat_tables(found)))
            self._files[table] = [file for file in files if file.groups is None or file.groups]

    def _filters(self, table: str, names: Sequence[str]) -> dict[str, Collection[str]]:
        """Values of partition keys that are of use."""
        kept: dict[str, Collection[str]] = {
            "symbol": {market.symbol for market in self.markets},
            "chain": set(axis_columns("chain")),
            "asset": set(axis_columns("asset")),
        }
        others = any(input_spec(name).kind in _NO_VENUES for name in names)
        if table in WITH_INTERVAL and not others:
            kept["venue"] = {market.venue for market in self.markets}
        return kept

    def _read(self, file: _File, oldest: int, last: int) -> pa.Table | None:
        """Rows of the row groups that begin before ``last`` and were not read yet."""
        start, stop = file.span
        if start >= last:
            return None
        if stop <= oldest:
            file.groups = []
            return None
        interval = self._intervals.get(file.partition.table)
        if file.groups is None:
            file.groups = row_groups(file.partition, interval)
        due = [group for group in file.groups if group.first < last]
        file.groups = [group for group in file.groups if group.first >= last]
        wanted = [group.number for group in due if group.last >= oldest]
        if not wanted:
            return None
        rows = read_partition(file.partition, file.columns, groups=wanted)
        reasons = check_place(file.partition, rows)
        if reasons:
            raise ContractError(
                f"{file.partition.relative}: {'; '.join(reasons)}",
                table=file.partition.table,
                fix="write rows with Lake.write",
            )
        if interval is not None:
            rows = _of_intervals(rows, interval)
        if file.partition.table == "bars":
            self._look_for_strays(file.partition, rows)
        if min(group.first for group in due if group.number in wanted) < oldest:
            rows = rows.filter(pc.greater_equal(rows["ts"].cast(pa.int64()), oldest))
        return rows

    def _look_for_strays(self, partition: LakePartition, rows: pa.Table) -> None:
        if Market(partition.keys["symbol"], partition.keys["venue"]) in self.markets:
            ts = _of_intervals(rows, {self.interval})["ts"].cast(pa.int64()).to_numpy()
            stray = ts[ts % duration_us(self.interval) != 0]
            if len(stray):
                self.off_grid.append(stray)


def needed_columns(table: str, names: Iterable[str]) -> tuple[str, ...]:
    """Columns of a table that inputs read, with all that the contract requires."""
    spec = contract(table)
    words: set[str] = set()
    for name in names:
        for word in _WORD.findall(input_spec(name).column):
            words.update(_SHORTHAND.get(word, (word,)))
    words -= _FUNCTIONS
    if words - set(spec.column_names):  # an expression that cannot be taken apart: everything
        return spec.column_names
    return tuple(column.name for column in spec.columns if column.required or column.name in words)


def to_columns(rows: pa.Table) -> dict[str, AnyArray]:
    """A contract table as numpy columns: times int64 us, numbers float64, text as objects."""
    columns: dict[str, AnyArray] = {}
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        if pa.types.is_timestamp(column.type):
            columns[name] = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        elif pa.types.is_string(column.type):
            columns[name] = _texts(column)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def _texts(column: pa.Array) -> AnyArray:
    """Text as objects, one object per distinct text: a comparison then looks at addresses first."""
    encoded = column.dictionary_encode()
    words = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    codes = encoded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
    texts: AnyArray = words[codes]
    return texts


def _of_intervals(rows: pa.Table, intervals: Collection[str]) -> pa.Table:
    same = pc.is_in(rows["interval"], pa.array(sorted(intervals), pa.string()))
    return rows if pc.all(same).as_py() else rows.filter(same)
