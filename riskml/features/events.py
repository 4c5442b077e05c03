"""Sums of events per bar: what became known within it, of the first venue whose source is alive.

A bar in which nothing happened is a zero only while the venue's source is alive, that is while
one of its rows of the symbol, of whatever side, is no older than the limit; silence of a source is
a missing value. Revisions are not events: of several versions of a row the first one counts, when
it became known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int1D
from riskml.features.asof import AsOfIndex
from riskml.features.columns import column_values
from riskml.features.inputs import InputSpec
from riskml.features.rows import Rows, TableRows
from riskml.features.rules import series_values
from riskml.features.series import SeriesKey, SeriesTable
from riskml.features.slots import SlotGrid, newest_places


@dataclass(frozen=True)
class EventSource:
    """Inputs that sum events over the same series."""

    specs: tuple[InputSpec, ...]
    table: TableRows
    series: Int1D
    """Numbers of the series in their table."""
    column: Int1D
    """Column that each belongs to."""
    venue: Int1D
    """Rank of its venue for that column, 0 = asked first."""
    side: AnyArray
    """Its side, text."""
    n_columns: int
    bar_us: int
    """Events that became known in (slot - bar_us, slot] belong to a slot."""
    limit_us: int
    """A row older than this is not used."""

    @classmethod
    def of(
        cls,
        specs: Sequence[InputSpec],
        table: SeriesTable,
        choices: Sequence[Sequence[SeriesKey]],
        bar_us: int,
        limit_us: int,
    ) -> EventSource:
        """From the candidates of each column."""
        found: list[tuple[int, int, int]] = []
        sides: list[str] = []
        for column, keys in enumerate(choices):
            rank = {place: number for number, place in enumerate(dict.fromkeys(key.place for key in keys))}
            found += [(table.numbers[key], column, rank[key.place]) for key in keys]
            sides += [key.detail.rpartition("|")[2] for key in keys]
        series, columns, venues = np.array(found, dtype=np.int64).reshape(-1, 3).T
        return cls(
            tuple(specs),
            table.rows,
            series,
            columns,
            venues,
            np.array(sides, dtype=np.str_),
            len(choices),
            bar_us,
            limit_us,
        )

    def at_slot(self, slot: int) -> dict[str, Float2D]:
        """All columns at one slot, [1, n_columns] per input."""
        table, since = self.table, slot - self.limit_us
        shape = (int(self.venue.max()) + 1, self.n_columns)
        cell = self.venue * self.n_columns + self.column
        newest = newest_places(table, self.series, slot)
        alive = np.zeros(shape[0] * shape[1], dtype=np.bool_)
        alive[cell[(newest >= 0) & (table.ts[newest] >= since)]] = True
        places, count = table.known_since(self.series, slot - self.bar_us)
        ts, known = table.ts[places], np.maximum(table.known_at[places], table.ts[places])
        now = (known > slot - self.bar_us) & (known <= slot) & (ts >= since)
        begin = np.repeat(table.begin[self.series], count)
        now &= (places == begin) | (table.ts[places - 1] != ts)
        of_row, columns = np.repeat(np.arange(len(self.series)), count)[now], places[now]
        given = {name: values[columns] for name, values in table.columns.items()}
        out: dict[str, Float2D] = {}
        for spec in self.specs:
            mine = self._counts(spec)[of_row]
            sums = _sums(cell[of_row[mine]], column_values(given, spec.column)[mine], alive)
            out[spec.name] = _first_alive(sums.reshape(shape))[np.newaxis]
        return out

    def over_grid(self, grid: SlotGrid) -> dict[str, Float2D]:
        """All slots, column by column."""
        out = {spec.name: np.full((len(grid.ts), self.n_columns), np.nan) for spec in self.specs}
        for column in np.unique(self.column).tolist():
            mine = self.column == column
            by_venue = [
                self._of_venue(np.flatnonzero(mine & (self.venue == venue)), grid)
                for venue in range(int(self.venue[mine].max()) + 1)
            ]
            for spec in self.specs:
                out[spec.name][:, column] = _first_alive([sums[spec.name] for sums in by_venue])
        return out

    def _of_venue(self, chosen: Int1D, grid: SlotGrid) -> Mapping[str, Float1D]:
        """Sums of one venue and column at every slot, per input."""
        series = [self.table.series(number) for number in self.series[chosen].tolist()]
        ts = np.concatenate([rows.ts for rows in series])
        known = np.maximum(np.concatenate([rows.known_at for rows in series]), ts)
        changes = grid.changes(ts, known, ts + self.limit_us + 1)
        is_alive = AsOfIndex(ts, known).rows(grid.ts[changes], self.limit_us) >= 0
        alive = np.repeat(is_alive, grid.repeats(changes))
        first = np.concatenate([np.diff(rows.ts, prepend=-1) != 0 for rows in series])
        slot = grid.first_from(known)
        inside = slot < len(grid.ts)
        close = grid.ts[np.where(inside, slot, 0)]
        now = inside & first & (known > close - self.bar_us) & (ts >= close - self.limit_us)
        lengths = [len(rows) for rows in series]
        out: dict[str, Float1D] = {}
        for spec in self.specs:
            mine = now & np.repeat(self._counts(spec)[chosen], lengths)
            values = _joined(series, spec.column)
            out[spec.name] = _sums(slot[mine], values[mine], alive)
        return out

    def _counts(self, spec: InputSpec) -> Bool1D:
        """Which series an input sums; the others say that the source is alive."""
        return np.asarray((self.side == spec.side) | (spec.side == ""))


def _joined(series: Sequence[Rows], text: str) -> Float1D:
    return np.concatenate([series_values(rows, text) for rows in series])


def _sums(of_row: Int1D, values: Float1D, alive: Bool1D) -> Float1D:
    """Sum per cell; 0 for one that is alive without a row, NaN for rows without any value."""
    n_cells, finite = len(alive), np.isfinite(values)
    # Adds row by row in the order given, which is the same in a history and in a slot.
    total = np.bincount(of_row[finite], weights=values[finite], minlength=n_cells)
    valued = np.bincount(of_row[finite], minlength=n_cells) > 0
    unknown = (np.bincount(of_row, minlength=n_cells) > 0) & ~valued
    return np.where(alive & ~unknown, total, np.nan)


def _first_alive(by_venue: Sequence[Float1D] | Float2D) -> Float1D:
    """The first venue's value, slot by slot or column by column."""
    result = by_venue[0]
    for values in by_venue[1:]:
        result = np.where(np.isfinite(result), result, values)
    return result
