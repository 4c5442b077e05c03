"""Sums over the finer bars that make up a bar: what happened within it.

An hour's bar knows its own high and low; the four or twelve bars within it know how the way
between them was gone, and measure the hour's variance several times better. A sum counts only
when every finer bar of its part of the bar is there and was known at the bar's close: a sum of
eleven of twelve would be a smaller variance, not a missing one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from riskml.arrays import AnyArray, Float1D, Float2D, Int1D, Int2D
from riskml.features.columns import column_values
from riskml.features.inputs import InputSpec, input_spec
from riskml.features.rows import Rows, TableRows, lower_bound
from riskml.features.rules import series_values
from riskml.features.slots import SlotGrid
from riskml.units import duration_us

_PRICES = ("open", "high", "low", "close")
"""Columns that the expressions read; the contract requires them."""


def is_finer(fine: str, interval: str) -> bool:
    """Whether several bars of one length make up a bar of the other.

    >>> is_finer("15m", "1h"), is_finer("15m", "15m"), is_finer("15m", "10m")
    (True, False, False)
    """
    fine_us, bar_us = duration_us(fine), duration_us(interval)
    return fine_us < bar_us and bar_us % fine_us == 0


def bar_lengths(names: Iterable[str], table: str, interval: str) -> tuple[str, ...]:
    """Lengths of the bars of a table that inputs read at a bar length: its own, then finer ones.

    >>> bar_lengths(["close", "fine_variance_5m"], "bars", "1h")
    ('1h', '5m')
    """
    specs = [input_spec(name) for name in names]
    fine = {spec.detail for spec in specs if spec.kind == "fine_sum" and spec.table == table}
    return (interval, *sorted(length for length in fine if is_finer(length, interval)))


@dataclass(frozen=True)
class FineSource:
    """Inputs that sum over finer bars of one length."""

    specs: tuple[InputSpec, ...]
    table: TableRows
    series: Int2D
    """[n_candidates, n_columns] numbers of series in the table, best first; -1 = none."""
    bar_us: int
    """Finer bars that close in (slot - bar_us, slot] belong to a slot."""
    fine_us: int
    """Length of the finer bars; divides ``bar_us``."""

    @cached_property
    def n_parts(self) -> int:
        """Finer bars in a bar."""
        return self.bar_us // self.fine_us

    def at_slot(self, slot: int) -> dict[str, Float2D]:
        """All columns at one slot, [1, n_columns] per input."""
        places = self._places(slot)
        missing = places < 0
        given = {name: self.table.columns[name][places] for name in _PRICES if name in self.table.columns}
        values: dict[str, AnyArray] = {}
        out: dict[str, Float2D] = {}
        for spec in self.specs:
            if spec.column not in values:
                values[spec.column] = np.where(missing, np.nan, column_values(given, spec.column))
            out[spec.name] = _first_whole(self._summed(spec, values[spec.column]))[np.newaxis]
        return out

    def over_grid(self, grid: SlotGrid) -> dict[str, Float2D]:
        """All slots, column by column, because every series has rows at other times."""
        out = {spec.name: np.full((len(grid.ts), self.series.shape[1]), np.nan) for spec in self.specs}
        for column in range(self.series.shape[1]):
            numbers = self.series[self.series[:, column] >= 0, column].tolist()
            found = [self._of_series(self.table.series(number), grid) for number in numbers]
            for place, spec in enumerate(self.specs):
                if found:
                    out[spec.name][:, column] = _first_whole([sums[place] for sums in found])
        return out

    def _of_series(self, rows: Rows, grid: SlotGrid) -> list[Float1D]:
        """Sums of one series at every slot [n_slots], input by input."""
        first, last = np.searchsorted(rows.ts, [grid.ts[0] - self.bar_us + 1, grid.ts[-1] + 1])
        ts, known_at = rows.ts[first:last], rows.known_at[first:last]
        slots = grid.first_from(ts)
        before = grid.ts[slots] - ts
        # Of several versions the one known last comes last, and stays when cells are filled in order.
        good = np.flatnonzero(
            (known_at <= grid.ts[slots]) & (before < self.bar_us) & (before % self.fine_us == 0)
        )
        part, slot, chosen = before[good] // self.fine_us, slots[good], good + int(first)
        sums: list[Float1D] = []
        for spec in self.specs:
            laid_out = np.full((self.n_parts, len(grid.ts)), np.nan)
            laid_out[part, slot] = series_values(rows, spec.column)[chosen]
            sums.append(self._summed(spec, laid_out))
        return sums

    def _places(self, slot: int) -> AnyArray:
        """Places of the finer bars as known at a slot [n_parts, n_candidates, n_columns], newest first;
        -1 = not there."""
        newest = np.where(self.series >= 0, self.table.newest(self.series), -1)
        part = np.arange(self.n_parts, dtype=np.int64)[:, np.newaxis, np.newaxis]
        closes = np.broadcast_to(slot - self.fine_us * part, (self.n_parts, *newest.shape))
        series = np.broadcast_to(self.series, closes.shape)
        ts, known_at = self.table.ts, self.table.known_at
        # A feed without holes or revisions has the part's bar that many rows before the newest.
        guess = newest - part
        likely = (newest >= 0) & (guess >= self.table.begin[series])
        guess = np.where(likely, guess, 0)
        likely &= (ts[guess] == closes) & (known_at[guess] <= slot)
        likely &= (part == 0) | (ts[np.minimum(guess + 1, len(ts) - 1)] != closes)
        places = np.where(likely, guess, -1)
        # A series that ended before the bar has none of it.
        open_ = ~likely & (newest >= 0) & (ts[newest] > slot - self.bar_us)
        if open_.any():
            places[open_] = _as_known(self.table, series[open_], closes[open_], slot)
        return places

    def _summed(self, spec: InputSpec, newest_first: AnyArray) -> AnyArray:
        """Sum over the first axis, from the oldest part to the newest; NaN where one is missing.

        Adds part by part, so that a history and a slot give the same bits.
        """
        n_parts = duration_us(spec.within) // self.fine_us if spec.within else self.n_parts
        if not 0 < n_parts <= self.n_parts:
            return np.full(newest_first.shape[1:], np.nan)
        total: AnyArray = newest_first[n_parts - 1]
        for values in newest_first[n_parts - 2 :: -1] if n_parts > 1 else ():
            total = total + values
        return np.where(np.isfinite(total), total, np.nan)


def _as_known(table: TableRows, series: Int1D, closes: Int1D, slot: int) -> Int1D:
    """Place of the bar of each series with that close, as known at the slot; -1 without one."""
    begin, after = table.begin[series], np.full(len(series), slot + 1, dtype=np.int64)
    places = lower_bound(table.ts, table.known_at, begin, table.length[series], closes, after) - 1
    found = (places >= begin) & (table.ts[np.maximum(places, 0)] == closes)
    return np.where(found, places, -1)


def _first_whole(by_venue: Sequence[Float1D] | Float2D) -> Float1D:
    """The value of the first venue that has all its parts."""
    result = by_venue[0]
    for values in by_venue[1:]:
        result = np.where(np.isfinite(result), result, values)
    return result
