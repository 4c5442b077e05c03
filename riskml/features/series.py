"""Contract rows split into series: the form in which features look things up.

One store serves both worlds. The batch loader appends whole partitions, a running scorer
appends the few rows that arrive; either way the same look-ups give the same values.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from riskml.arrays import AnyArray, Int1D
from riskml.contracts import TableContract, contract
from riskml.errors import ContractError, DataError, nearest
from riskml.features.rows import Appended, Block, Rows, TableRows

__all__ = ["SERIES_TABLES", "Rows", "SeriesKey", "SeriesStore"]

SERIES_TABLES = (
    "bars",
    "marks",
    "funding",
    "open_interest",
    "depth",
    "taker_flow",
    "long_short",
    "liquidations",
    "flows",
    "chains",
    "pegs",
)
"""Tables that are time series; account tables are not."""

_FEW_ROWS = 4096
"""Up to here a look at every row's key in Python is as fast as finding runs of equal keys."""


class SeriesKey(NamedTuple):
    """Identity of a series: the table and its key columns without the times."""

    table: str
    place: str
    """First key column: venue, or chain for flows and chains."""
    name: str = ""
    """Second key column: symbol or asset."""
    detail: str = ""
    """Remaining key columns joined with ``|``: interval, source, band, account and side."""


class SeriesTable:
    """The series of one table by number, for look-ups of many series at once.

    Series are numbered in the order in which they appeared and keep their number.
    """

    def __init__(self, declared: TableContract) -> None:
        self.declared = declared
        self.keys: list[SeriesKey] = []
        """Key of every series, by number."""
        self.numbers: dict[SeriesKey, int] = {}
        self.rows = TableRows(_value_names(declared))
        self._codes: dict[tuple[object, ...], int] = {}
        self._last: tuple[list[AnyArray], Int1D] = [], np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def append(self, rows: Mapping[str, AnyArray], n_rows: int) -> Appended:
        """Take rows of any series in any order; a row that is there already is left out."""
        names = [name for name in self.declared.key if name != "ts"]
        # Only text may be left out of a key.
        key_columns = [np.asarray(rows[name]) if name in rows else np.full(n_rows, "") for name in names]
        series = self._of_feed(key_columns) if n_rows <= _FEW_ROWS else self._of_many(key_columns)
        block = Block(
            series,
            np.asarray(rows["ts"], dtype=np.int64),
            np.asarray(rows["known_at"], dtype=np.int64),
            {name: np.asarray(rows[name], np.float64) for name in self.rows.names if name in rows},
        )
        return self.rows.append(block)

    def _of_feed(self, key_columns: list[AnyArray]) -> Int1D:
        """A feed sends the same keys bar after bar: they are compared before they are looked up."""
        before, series = self._last
        if len(before) != len(key_columns) or not all(map(np.array_equal, before, key_columns)):
            series = self._of_few(key_columns)
            self._last = [column.copy() for column in key_columns], series
        return series

    def _of_few(self, key_columns: list[AnyArray]) -> Int1D:
        parts = zip(*(column.tolist() for column in key_columns), strict=True)
        codes, number = self._codes, self._number
        found = [codes[part] if part in codes else number(part) for part in parts]
        return np.array(found, dtype=np.int64)

    def _of_many(self, key_columns: list[AnyArray]) -> Int1D:
        """Only the first row of each run of equal keys is looked at in Python."""
        n_rows = len(key_columns[0])
        changes = np.zeros(n_rows, dtype=np.bool_)
        changes[0] = True
        for column in key_columns:
            changes[1:] |= column[1:] != column[:-1]
        run_start = np.flatnonzero(changes)
        of_run = self._of_few([column[run_start] for column in key_columns])
        return np.repeat(of_run, np.diff(np.append(run_start, n_rows)))

    def _number(self, parts: tuple[object, ...]) -> int:
        key = _key(self.declared.name, parts)
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = self.rows.add_series()
            self.keys.append(key)
        self._codes[parts] = number
        return number


class SeriesStore:
    """Every series by :class:`SeriesKey`."""

    def __init__(self) -> None:
        self.tables: dict[str, SeriesTable] = {}
        """Tables that have had rows."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """(table, what) -> rows: ``revised`` (another version of a row that was there),
        ``out_of_order`` (earlier than the newest row of its series), ``duplicate`` (left out)."""
        self._keys: dict[tuple[str, str | None], list[SeriesKey]] = {}

    def append(self, table: str, rows: Mapping[str, AnyArray]) -> Appended:
        """Add rows of one table.

        Parameters
        ----------
        table : one of :data:`SERIES_TABLES`.
        rows : column name -> [n_rows]; times int64 us; optional columns may be left out.
            The rows may belong to many series and come in any order. The store may keep the
            arrays: do not write to them afterwards.

        Returns
        -------
        How many rows were added, and how many of them revise others or come out of order; a row
        whose full key is there already is left out.

        Raises
        ------
        ContractError : not a series table, a missing column, columns of unequal length.
        """
        declared = _series_contract(table)
        n_rows = _check_columns(declared, rows)
        if n_rows == 0:
            return Appended(0)
        known = self.tables.get(table)
        if known is None:
            known = self.tables[table] = SeriesTable(declared)
        before = len(known)
        appended = known.append(rows, n_rows)
        for key in known.keys[before:]:
            for place in ((table, None), (table, key.name)):
                insort(self._keys.setdefault(place, []), key)
        for what, amount in appended._asdict().items():
            if amount and what != "added":
                self.counts[table, what] += amount
        return appended

    def get(self, key: SeriesKey) -> Rows | None:
        """The rows of one series, or None when there is no such series."""
        table = self.tables.get(key.table)
        number = None if table is None else table.numbers.get(key)
        return None if table is None or number is None else table.rows.series(number)

    def keys(self, table: str, name: str | None = None) -> list[SeriesKey]:
        """The keys of a table, sorted; ``name`` picks one symbol or asset."""
        return list(self._keys.get((table, name), ()))

    def prune(self, before_us: int, tables: Mapping[str, int | Int1D] | None = None) -> None:
        """Forget rows with ``ts < before_us``; the newest row of every series stays.

        Parameters
        ----------
        tables : other bounds for single tables, name -> us, or us per series [n_series] by number.
        """
        for name, table in self.tables.items():
            table.rows.prune((tables or {}).get(name, before_us))

    def oldest_ts(self) -> int | None:
        """``ts`` of the oldest row of all, us; None when there is none."""
        oldest = [table.rows.oldest_ts() for table in self.tables.values()]
        return min(oldest) if oldest else None

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables.values())


def _series_contract(table: str) -> TableContract:
    declared = contract(table)
    if table not in SERIES_TABLES:
        raise ContractError(
            f"'{table}' is not a time series.{nearest(table, SERIES_TABLES)}",
            table=table,
            fix=f"series are {', '.join(SERIES_TABLES)}",
        )
    return declared


def _value_names(declared: TableContract) -> tuple[str, ...]:
    return tuple(
        column.name
        for column in declared.columns
        if column.kind in ("float", "int") and column.name not in declared.full_key
    )


def _check_columns(declared: TableContract, rows: Mapping[str, AnyArray]) -> int:
    missing = [column.name for column in declared.columns if column.required and column.name not in rows]
    if missing:
        raise ContractError(
            f"column {', '.join(missing)} is missing; found {', '.join(rows)}",
            table=declared.name,
            fix="give every required column of the contract",
        )
    lengths = {name: len(values) for name, values in rows.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns have unequal lengths: {lengths}", table=declared.name)
    return lengths["ts"]


def _key(table: str, parts: tuple[Any, ...]) -> SeriesKey:
    texts = [f"{part:g}" if isinstance(part, float) else str(part or "") for part in parts]
    return SeriesKey(table, texts[0], texts[1] if len(texts) > 1 else "", "|".join(texts[2:]))
