"""Contract rows split into series: the form in which features look things up.

One store serves both worlds. The batch loader appends whole partitions, a running scorer
appends the few rows that arrive; either way the same look-ups give the same values.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from riskml.arrays import AnyArray, Float1D, Float2D, Int1D, TimeUs
from riskml.contracts import TableContract, contract
from riskml.errors import ContractError, DataError, nearest
from riskml.features.asof import AsOfIndex

SERIES_TABLES = (
    "bars",
    "marks",
    "funding",
    "open_interest",
    "depth",
    "liquidations",
    "flows",
    "chains",
    "pegs",
)
"""Tables that are time series; account tables are not."""


class SeriesKey(NamedTuple):
    """Identity of a series: the table and its key columns without the times."""

    table: str
    place: str
    """First key column: venue, or chain for flows and chains."""
    name: str = ""
    """Second key column: symbol or asset."""
    detail: str = ""
    """Remaining key columns joined with ``|``: interval, source, band, account and side."""


@dataclass(frozen=True)
class Rows:
    """The rows of one series, sorted by (ts, known_at); revisions are separate rows."""

    ts: TimeUs
    """[n_rows] int64 us."""
    known_at: TimeUs
    """[n_rows] int64 us."""
    values: Float2D
    """[n_rows, n_columns]; NaN = not given."""
    column_names: tuple[str, ...]

    @cached_property
    def index(self) -> AsOfIndex:
        """Prepared for point-in-time look-ups."""
        return AsOfIndex(self.ts, self.known_at)

    @cached_property
    def columns(self) -> dict[str, Float1D]:
        """The value columns by name, each [n_rows]."""
        return {name: self.values[:, place] for place, name in enumerate(self.column_names)}

    @cached_property
    def derived(self) -> dict[str, Float1D]:
        """Room for columns that are computed of others, each [n_rows]; filled by the inputs."""
        return {}

    def column(self, name: str) -> Float1D:
        """One value column [n_rows]."""
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.ts)


class _Series:
    """One growing series: amortised appends at the end, a merge when rows come out of order."""

    def __init__(self, column_names: tuple[str, ...]) -> None:
        self.column_names = column_names
        self._size = 0
        self._times = np.empty((2, 0), dtype=np.int64)
        self._values = np.empty((0, len(column_names)))
        self._rows: Rows | None = None

    def append(self, ts: TimeUs, known_at: TimeUs, values: Float2D) -> int:
        """Add rows in any order; a row whose (ts, known_at) is there already is left out."""
        if len(ts) > 1:
            order = np.lexsort((known_at, ts))
            ts, known_at, values = ts[order], known_at[order], values[order]
            first = np.ones(len(ts), dtype=np.bool_)
            first[1:] = (ts[1:] != ts[:-1]) | (known_at[1:] != known_at[:-1])
            ts, known_at, values = ts[first], known_at[first], values[first]
        if self._size and self._last() >= (int(ts[0]), int(known_at[0])):
            return self._merge(ts, known_at, values)
        self._grow(len(ts))
        place = slice(self._size, self._size + len(ts))
        self._times[0, place], self._times[1, place] = ts, known_at
        self._values[place] = values
        self._size += len(ts)
        self._rows = None
        return len(ts)

    def rows(self) -> Rows:
        if self._rows is None:
            times, values = self._times[:, : self._size], self._values[: self._size]
            self._rows = Rows(times[0], times[1], values, self.column_names)
        return self._rows

    def prune(self, before_us: int) -> None:
        """Drop rows older than ``before_us`` but keep the newest row."""
        keep_from = int(np.searchsorted(self._times[0, : self._size], before_us, side="left"))
        keep_from = min(keep_from, self._size - 1)
        if keep_from > 0:
            self._replace(self._times[:, keep_from : self._size], self._values[keep_from : self._size])

    def _last(self) -> tuple[int, int]:
        return int(self._times[0, self._size - 1]), int(self._times[1, self._size - 1])

    def _merge(self, ts: TimeUs, known_at: TimeUs, values: Float2D) -> int:
        before = self._size
        times = np.concatenate([self._times[:, : self._size], np.stack([ts, known_at])], axis=1)
        merged = np.concatenate([self._values[: self._size], values])
        # lexsort is stable: of two rows with equal times the older entry comes first and stays.
        order = np.lexsort((times[1], times[0]))
        times, merged = times[:, order], merged[order]
        first = np.ones(times.shape[1], dtype=np.bool_)
        first[1:] = (times[:, 1:] != times[:, :-1]).any(axis=0)
        self._replace(times[:, first], merged[first])
        return self._size - before

    def _replace(self, times: AnyArray, values: Float2D) -> None:
        self._times, self._values = times.copy(), values.copy()
        self._size = len(values)
        self._rows = None

    def _grow(self, extra: int) -> None:
        needed = self._size + extra
        capacity = len(self._values)
        if needed <= capacity:
            return
        # The first load gets exactly its size; later ones double, so live appends are amortised.
        capacity = max(needed, 2 * capacity)
        times = np.empty((2, capacity), dtype=np.int64)
        values = np.empty((capacity, len(self.column_names)))
        times[:, : self._size] = self._times[:, : self._size]
        values[: self._size] = self._values[: self._size]
        self._times, self._values = times, values


class SeriesStore:
    """Every series by :class:`SeriesKey`."""

    def __init__(self) -> None:
        self._series: dict[SeriesKey, _Series] = {}
        self._keys: dict[tuple[str, str | None], list[SeriesKey]] = {}

    def append(self, table: str, rows: Mapping[str, AnyArray]) -> int:
        """Add rows of one table.

        Parameters
        ----------
        table : one of :data:`SERIES_TABLES`.
        rows : column name -> [n_rows]; times int64 us; optional columns may be left out.
            The rows may belong to many series and come in any order.

        Returns
        -------
        How many rows were new; a row whose full key is there already is left out.

        Raises
        ------
        ContractError : not a series table, a missing column, columns of unequal length.
        """
        declared = _series_contract(table)
        n_rows = _check_columns(declared, rows)
        if n_rows == 0:
            return 0
        value_names = _value_names(declared)
        ts = np.asarray(rows["ts"]).astype(np.int64)
        known_at = np.asarray(rows["known_at"]).astype(np.int64)
        values = np.full((n_rows, len(value_names)), np.nan)
        for place, name in enumerate(value_names):
            if name in rows:
                values[:, place] = rows[name]
        added = 0
        for key, chosen in _split(declared, rows, n_rows):
            series = self._series.get(key)
            if series is None:
                series = self._add(key, value_names)
            added += series.append(ts[chosen], known_at[chosen], values[chosen])
        return added

    def get(self, key: SeriesKey) -> Rows | None:
        """The rows of one series, or None when there is no such series."""
        series = self._series.get(key)
        return None if series is None else series.rows()

    def keys(self, table: str, name: str | None = None) -> list[SeriesKey]:
        """The keys of a table, sorted; ``name`` picks one symbol or asset."""
        return list(self._keys.get((table, name), ()))

    def prune(self, before_us: int) -> None:
        """Forget rows with ``ts < before_us``; the newest row of every series stays."""
        for series in self._series.values():
            series.prune(before_us)

    def __len__(self) -> int:
        return len(self._series)

    def _add(self, key: SeriesKey, value_names: tuple[str, ...]) -> _Series:
        series = self._series[key] = _Series(value_names)
        for place in ((key.table, None), (key.table, key.name)):
            insort(self._keys.setdefault(place, []), key)
        return series


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


def _split(
    declared: TableContract, rows: Mapping[str, AnyArray], n_rows: int
) -> Iterator[tuple[SeriesKey, Int1D | slice]]:
    """The rows of each series: a slice when they are all of one, else row numbers in order."""
    columns = [np.asarray(rows[name]) for name in declared.key if name != "ts"]
    changes = np.zeros(n_rows, dtype=np.bool_)
    changes[0] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    run_start = np.flatnonzero(changes)
    if len(run_start) == 1:
        yield _key(declared.name, [column[0] for column in columns]), slice(0, n_rows)
        return
    # Only the first row of each run is looked at in Python; its code then covers the run.
    codes: dict[tuple[object, ...], int] = {}
    run_parts = zip(*(column[run_start].tolist() for column in columns), strict=True)
    run_code = np.fromiter(
        (codes.setdefault(parts, len(codes)) for parts in run_parts),
        np.int64,
        len(run_start),
    )
    code = np.repeat(run_code, np.diff(np.append(run_start, n_rows)))
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code, minlength=len(codes)))
    begin = 0
    for parts, end in zip(codes, ends.tolist(), strict=True):
        yield _key(declared.name, list(parts)), order[begin:end]
        begin = end


def _key(table: str, parts: list[object]) -> SeriesKey:
    texts = [f"{part:g}" if isinstance(part, float) else str(part) for part in parts]
    return SeriesKey(table, texts[0], texts[1] if len(texts) > 1 else "", "|".join(texts[2:]))
