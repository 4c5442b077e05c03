"""Sums of events per bar: what became known within it, of the first venue whose source is alive.

A bar in which nothing happened is a zero only while the venue's source is alive, that is while
one of its rows of the symbol is no older than the limit; silence of a source is a missing value.
Revisions are not events: of several versions of a row the first one counts, when it became known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Int1D
from riskml.features.asof import AsOfIndex
from riskml.features.inputs import column_values
from riskml.features.rows import Rows, TableRows
from riskml.features.rules import series_values
from riskml.features.series import SeriesKey, SeriesTable
from riskml.features.slots import SlotGrid, newest_places


@dataclass(frozen=True)
class EventSeries:
    """The series behind an input, column by column and venue by venue."""

    series: Int1D
    """Numbers of the series in their table."""
    column: Int1D
    """Column that each belongs to."""
    venue: Int1D
    """Rank of its venue for that column, 0 = asked first."""
    n_columns: int

    @classmethod
    def of(cls, table: SeriesTable, choices: Sequence[Sequence[SeriesKey]]) -> EventSeries:
        """From the candidates of each column."""
        found: list[tuple[int, int, int]] = []
        for column, keys in enumerate(choices):
            rank = {place: number for number, place in enumerate(dict.fromkeys(key.place for key in keys))}
            found += [(table.numbers[key], column, rank[key.place]) for key in keys]
        series, columns, venues = np.array(found, dtype=np.int64).reshape(-1, 3).T
        return cls(series, columns, venues, len(choices))

    @property
    def n_venues(self) -> int:
        """Most venues that any column has."""
        return int(self.venue.max()) + 1 if len(self.venue) else 0


def sums_at(
    table: TableRows, events: EventSeries, text: str, slot: int, bar_us: int, limit_us: int
) -> Float2D:
    """Events of one slot [1, n_columns].

    Parameters
    ----------
    table : rows of the input's table.
    text : column expression whose values are summed.
    bar_us : events that became known in (slot - bar_us, slot] are summed.
    limit_us : a row older than this is not used.
    """
    shape = (events.n_venues, events.n_columns)
    cell = events.venue * events.n_columns + events.column
    newest = newest_places(table, events.series, slot)
    alive = cell[(newest >= 0) & (table.ts[newest] >= slot - limit_us)]
    places = table.places(events.series)
    ts, known = table.ts[places], np.maximum(table.known_at[places], table.ts[places])
    now = (known > slot - bar_us) & (known <= slot) & (ts >= slot - limit_us)
    begin = np.repeat(table.begin[events.series], table.length[events.series])
    now &= (places == begin) | (table.ts[places - 1] != ts)
    of_row = np.repeat(cell, table.length[events.series])[now]
    values = column_values({name: at[places[now]] for name, at in table.columns.items()}, text)
    sums = _sums(of_row, values, np.bincount(alive, minlength=shape[0] * shape[1]) > 0)
    return _first_alive(sums.reshape(shape))[np.newaxis]


def sums_over(
    table: TableRows,
    events: EventSeries,
    text: str,
    column: int,
    grid: SlotGrid,
    bar_us: int,
    limit_us: int,
) -> Float1D:
    """Events of one column at every slot [n_slots]; parameters as in :func:`sums_at`."""
    mine = events.column == column
    by_venue = []
    for venue in range(int(events.venue[mine].max(initial=-1)) + 1):
        series = [table.series(number) for number in events.series[mine & (events.venue == venue)].tolist()]
        by_venue.append(_of_venue(series, text, grid, bar_us, limit_us))
    return _first_alive(np.stack(by_venue)) if by_venue else np.full(len(grid.ts), np.nan)


def _of_venue(series: Sequence[Rows], text: str, grid: SlotGrid, bar_us: int, limit_us: int) -> Float1D:
    ts = np.concatenate([rows.ts for rows in series])
    known = np.maximum(np.concatenate([rows.known_at for rows in series]), ts)
    first = np.concatenate([np.diff(rows.ts, prepend=-1) != 0 for rows in series])
    values = np.concatenate([series_values(rows, text) for rows in series])
    slot = grid.first_from(known)
    inside = slot < len(grid.ts)
    close = grid.ts[np.where(inside, slot, 0)]
    now = inside & first & (known > close - bar_us) & (ts >= close - limit_us)
    changes = grid.changes(ts, known, limit_us)
    alive = AsOfIndex(ts, known).rows(grid.ts[changes], limit_us) >= 0
    return _sums(slot[now], values[now], np.repeat(alive, grid.repeats(changes)))


def _sums(of_row: Int1D, values: Float1D, alive: Bool1D) -> Float1D:
    """Sum per cell; 0 for one that is alive without a row, NaN for rows without any value."""
    n_cells, finite = len(alive), np.isfinite(values)
    # Adds row by row in the order given, which is the same in a history and in a slot.
    total = np.bincount(of_row[finite], weights=values[finite], minlength=n_cells)
    valued = np.bincount(of_row[finite], minlength=n_cells) > 0
    unknown = (np.bincount(of_row, minlength=n_cells) > 0) & ~valued
    return np.where(alive & ~unknown, total, np.nan)


def _first_alive(by_venue: Float2D) -> Float1D:
    """Per column the first venue that has a value."""
    result = np.full(by_venue.shape[1], np.nan)
    for values in by_venue:
        result = np.where(np.isfinite(result), result, values)
    return result
