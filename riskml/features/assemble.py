"""Inputs looked up in a store: one definition for a whole history and for a single live slot.

Whatever its kind, an input is a choice among *candidates*: for each of its columns (a market, a
chain, a stablecoin) the series that may give the value, in order of preference, and a rule that
makes one value of theirs. Only the look-up of the candidates' rows differs between a history
(series by series over all slots) and a slot (all series at once); the rules are shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int2D, TimeUs
from riskml.errors import DataError
from riskml.features.asof import take
from riskml.features.candidates import candidates, padded, source_limit_us
from riskml.features.columns import column_values
from riskml.features.events import EventSource
from riskml.features.fine import FineSource, is_finer
from riskml.features.inputs import EXACT_KINDS, INPUTS, InputKind, InputSpec, input_spec
from riskml.features.rows import Rows, TableRows
from riskml.features.rules import Found, series_values, value_of
from riskml.features.series import SeriesStore
from riskml.features.slots import SlotGrid, exact_places, newest_places
from riskml.markets import Market
from riskml.units import HOUR, duration_us, format_us

_LIKE: dict[InputKind, InputKind] = {"market_age": "market"}
"""Kinds that look at the same rows as another."""


def assemble_inputs(
    store: SeriesStore,
    grid_ts: TimeUs,
    markets: Sequence[Market],
    *,
    interval: str,
    names: Iterable[str] | None = None,
) -> dict[str, Float2D]:
    """Look up inputs for every slot.

    Parameters
    ----------
    store : series of all tables that the inputs need; a missing one gives NaN.
    grid_ts : [n_bars] int64 us, closes of the bars (one for a live slot), rising.
    markets : columns of the market inputs.
    interval : bars and marks of other intervals are not looked at, but for finer bars that an input
        names.
    names : inputs; default all.

    Returns
    -------
    name -> [n_bars, n_columns of the input's axis] float64, C-contiguous; NaN = missing or stale.

    Raises
    ------
    DataError : no slot, or slots that do not rise.
    """
    return InputReader(store, markets, interval=interval, names=names).read(grid_ts)


class InputReader:
    """Looks inputs up again and again; who the candidates are is worked out once.

    Parameters are those of :func:`assemble_inputs`.
    """

    def __init__(
        self,
        store: SeriesStore,
        markets: Sequence[Market],
        *,
        interval: str,
        names: Iterable[str] | None = None,
    ) -> None:
        self._store = store
        self._markets = tuple(markets)
        self._interval = interval
        specs = [input_spec(name) for name in (INPUTS if names is None else names)]
        self._names = tuple(dict.fromkeys(spec.name for spec in specs))
        alike: dict[tuple[str, ...], list[InputSpec]] = {}
        for spec in specs:
            kind = _LIKE.get(spec.kind, spec.kind)
            alike.setdefault((spec.table, kind, spec.staleness, spec.detail), []).append(spec)
        self._alike = list(alike.values())
        self._sources: list[_Source | EventSource | FineSource | _Nothing] = []
        self._series_known: dict[str, int] | None = None

    def read(self, grid_ts: TimeUs) -> dict[str, Float2D]:
        """Inputs at slots, see :func:`assemble_inputs`."""
        slots = np.asarray(grid_ts, dtype=np.int64)
        if len(slots) == 0:
            raise DataError("there is no slot to look up", fix="pass the close of at least one bar")
        falls = np.flatnonzero(np.diff(slots) <= 0)
        if len(falls):
            row = int(falls[0]) + 1
            before, here = (format_us(int(slots[place])) for place in (row - 1, row))
            raise DataError(
                f"slots have to rise; {here} comes after {before}",
                row=row,
                fix="sort the closes, each once",
            )
        self._refresh()
        out: dict[str, Float2D] = {}
        grid = SlotGrid(slots)
        for source in self._sources:
            out |= source.at_slot(int(slots[0])) if len(slots) == 1 else source.over_grid(grid)
        return {name: out[name] for name in self._names}

    def _refresh(self) -> None:
        """Find the candidates again when a table has new series."""
        known = {name: len(table) for name, table in self._store.tables.items()}
        if known == self._series_known:
            return
        self._series_known = known
        self._sources = [_source(self._store, specs, self._markets, self._interval) for specs in self._alike]


@dataclass(frozen=True)
class _Source:
    """Inputs that look at the same rows of the same series."""

    specs: tuple[InputSpec, ...]
    table: TableRows
    series: Int2D
    """[n_candidates, n_columns] numbers of series in the table; -1 = none."""
    labels: Int2D
    """[n_candidates, n_columns] the candidates' assets as numbers; -1 = none."""
    limits_us: Int2D
    """[n_candidates, n_columns] rows of the series older than this are not used, but for exact kinds."""

    @property
    def exact(self) -> bool:
        """Whether only rows of the slot itself count."""
        return self.specs[0].kind in EXACT_KINDS

    def at_slot(self, slot: int) -> dict[str, Float2D]:
        """All columns at one slot, [1, n_columns] per input."""
        if self.exact:
            places = exact_places(self.table, self.series, slot)
        else:
            places = newest_places(self.table, self.series, slot)
            places[self.table.ts[places] < slot - self.limits_us] = -1
        columns = _ColumnsAt(self.table, places)
        found = Found(lambda text: column_values(columns, text), columns.times, self.labels)
        return {spec.name: _finished(spec, value_of(spec, found), slot)[np.newaxis] for spec in self.specs}

    def over_grid(self, grid: SlotGrid) -> dict[str, Float2D]:
        """All slots, column by column, because every series has rows at other times."""
        out = _nothing(self.specs, (len(grid.ts), self.series.shape[1]))
        fill = self._exact_column if self.exact else self._newest_column
        for column in range(self.series.shape[1]):
            chosen = self.series[:, column] >= 0
            series = [self.table.series(number) for number in self.series[chosen, column].tolist()]
            if series:
                fill(series, chosen, grid, column, out)
        return out

    def _exact_column(
        self, series: Sequence[Rows], chosen: Bool1D, grid: SlotGrid, column: int, out: Mapping[str, Float2D]
    ) -> None:
        places = [grid.exact(rows) for rows in series]
        if len(series) == 1:  # the rule of one candidate is the candidate
            slots, rows = places[0]
            for spec in self.specs:
                out[spec.name][slots, column] = series_values(series[0], spec.column)[rows]
            return

        def values(text: str) -> Float2D:
            laid_out = np.full((len(series), len(grid.ts)), np.nan)
            for number, (slots, rows) in enumerate(places):
                laid_out[number, slots] = series_values(series[number], text)[rows]
            return laid_out

        found = Found(values, _no_times, self.labels[chosen, column][:, np.newaxis])
        for spec in self.specs:
            out[spec.name][:, column] = value_of(spec, found)

    def _newest_column(
        self, series: Sequence[Rows], chosen: Bool1D, grid: SlotGrid, column: int, out: Mapping[str, Float2D]
    ) -> None:
        limits = self.limits_us[chosen, column].tolist()
        ts = np.concatenate([rows.ts for rows in series])
        known_at = np.concatenate([rows.known_at for rows in series])
        stale_from = np.concatenate([rows.ts + limit for rows, limit in zip(series, limits, strict=True)]) + 1
        changes = grid.changes(ts, known_at, stale_from)
        repeats = grid.repeats(changes)
        slots = grid.ts[changes]
        places = [rows.index.rows(slots, limit) for rows, limit in zip(series, limits, strict=True)]

        def taken(columns: Iterable[AnyArray]) -> Float2D:
            return np.stack([take(values, rows) for values, rows in zip(columns, places, strict=True)])

        found = Found(
            lambda text: taken(series_values(rows, text) for rows in series),
            lambda: taken(rows.ts for rows in series),
            self.labels[chosen, column][:, np.newaxis],
        )
        for spec in self.specs:
            value = np.repeat(value_of(spec, found), repeats)
            out[spec.name][:, column] = _finished(spec, value, grid.ts)


class _ColumnsAt(Mapping[str, Float2D]):
    """The columns of a table at places [n_candidates, n_columns]; NaN where the place is -1."""

    def __init__(self, table: TableRows, places: Int2D) -> None:
        self._table = table
        self._places = places
        self._missing = places < 0
        self._taken: dict[str, Float2D] = {}

    def __getitem__(self, name: str) -> Float2D:
        taken = self._taken.get(name)
        if taken is None:
            column = self._table.columns.get(name)
            if column is None and name not in self._table.names:
                raise KeyError(name)
            taken = np.full(self._places.shape, np.nan) if column is None else column[self._places]
            taken[self._missing] = np.nan
            self._taken[name] = taken
        return taken

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.names)

    def __len__(self) -> int:
        return len(self._table.names)

    def times(self) -> Float2D:
        """When the rows happened, us."""
        return np.where(self._missing, np.nan, self._table.ts[self._places])


@dataclass(frozen=True)
class _Nothing:
    """Inputs that no series can give."""

    specs: tuple[InputSpec, ...]
    n_columns: int

    def at_slot(self, slot: int) -> dict[str, Float2D]:
        """NaN, [1, n_columns] per input."""
        return _nothing(self.specs, (1, self.n_columns))

    def over_grid(self, grid: SlotGrid) -> dict[str, Float2D]:
        """NaN, [n_slots, n_columns] per input."""
        return _nothing(self.specs, (len(grid.ts), self.n_columns))


def _source(
    store: SeriesStore, specs: Sequence[InputSpec], markets: Sequence[Market], interval: str
) -> _Source | EventSource | FineSource | _Nothing:
    spec = specs[0]
    choices = candidates(store, spec, markets, interval)
    finer = spec.kind != "fine_sum" or is_finer(spec.detail, interval)
    if not any(choices) or not finer:
        return _Nothing(tuple(specs), len(choices))
    table = store.tables[spec.table]
    limit_us = duration_us(spec.staleness) if spec.staleness else 0
    if spec.kind == "event_sum":
        return EventSource.of(specs, table, choices, duration_us(interval), limit_us)
    if spec.kind == "fine_sum":
        series = padded([[table.numbers[key] for key in keys] for keys in choices])
        return FineSource(tuple(specs), table.rows, series, duration_us(interval), duration_us(spec.detail))
    assets = sorted({key.name for keys in choices for key in keys})
    series = padded([[table.numbers[key] for key in keys] for keys in choices])
    labels = padded([[assets.index(key.name) for key in keys] for keys in choices])
    limits = padded([[min(limit_us, source_limit_us(key)) for key in keys] for keys in choices])
    return _Source(tuple(specs), table.rows, series, labels, limits)


def _nothing(specs: Sequence[InputSpec], shape: tuple[int, int]) -> dict[str, Float2D]:
    return {spec.name: np.full(shape, np.nan) for spec in specs}


def _finished(spec: InputSpec, value: Float1D, slots: TimeUs | int) -> Float1D:
    """Ages from times; other values as they are."""
    return (slots - value) / HOUR if spec.kind == "market_age" else value


def _no_times() -> Float2D:
    raise DataError("a row of the slot itself has no age")
