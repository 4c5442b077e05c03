"""The recorded path: prices and funding payments of every market that accounts hold.

A market's prices come from its *sources*, the venues that have bars of it: the position's own venue
first, then the perpetual venues in the order of ``facts/venues.toml``. Which source a leg follows is
chosen per account and time (:mod:`riskml.replay.labels_legs`), by which of them knows the window, so
that a value depends on its own window only and never on how the history was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int1D, Int2D, TimeUs
from riskml.features.asof import AsOfIndex
from riskml.features.nodes import MAX_GAP_BARS
from riskml.markets import venue_order
from riskml.replay.labels_fills import FILLS, fill_bars
from riskml.tables.lake import Lake
from riskml.tables.partitions import LakePartition, damaged
from riskml.units import DAY, HOUR, duration_us, to_us

Source = tuple[str, str]
"""Venue and symbol."""

MARGIN_BARS = 2 * (MAX_GAP_BARS + 1)
"""Bars read beyond a window on either side, so that its edge is never taken for a gap."""
SPAN_US = 31 * DAY
"""Least length of a panel: neighbouring chunks share it."""
NEVER = int(np.iinfo(np.int64).min)
"""No time: nothing is known."""
FUNDING_REACH_US = 4 * DAY
"""Funding read beyond a window on either side, so that its runs are seen whole."""


@dataclass(frozen=True)
class Payments:
    """Funding payments of one source."""

    ts: TimeUs
    """[n_payments] rising."""
    rate: Float1D
    """[n_payments] fraction of the position's value, paid by longs."""
    spacing: Int1D
    """[n_payments] time between payments by the schedule then in force, microseconds."""

    def known(self, start: TimeUs, end: TimeUs) -> Bool1D:
        """Whether the series covers (start, end] [n]: at most three payments in a row are missing."""
        if not len(self.ts):
            return np.zeros(len(start), dtype=np.bool_)
        silent = np.flatnonzero(np.diff(self.ts) > (MAX_GAP_BARS + 1) * self.spacing[1:])
        first, last = np.append(0, silent + 1), np.append(silent, len(self.ts) - 1)
        covers_from = self.ts[first] - self.spacing[first]
        covers_to = self.ts[last] + self.spacing[last]
        run = np.searchsorted(covers_from, start, side="right") - 1
        return np.asarray((run >= 0) & (end <= covers_to[np.maximum(run, 0)]))

    def sum_between(self, start: TimeUs, end: TimeUs) -> Float1D:
        """Sum of the rates in (start, end] [n]."""
        total = np.append(0.0, np.cumsum(self.rate))
        first = np.searchsorted(self.ts, start, side="right")
        last = np.searchsorted(self.ts, end, side="right")
        return np.where(first == last, 0.0, total[last] - total[first])


@dataclass(frozen=True)
class PathPanel:
    """Prices of all sources on one grid of consecutive bars."""

    interval: str
    ts: TimeUs
    """[n_bars] closes."""
    sources: Mapping[Source, int]
    """Column of each source that has bars in the window."""
    low: Float2D
    """[n_bars, n_sources]; in a gap of at most three bars the last close; NaN where not known."""
    high: Float2D
    close: Float2D
    next_unknown: Int2D
    """[n_bars + 1, n_sources] first bar at or after this one that is not known."""
    quotes: tuple[tuple[AsOfIndex, Float1D], ...]
    """Per source its rows and their closes, for look-ups of what was known at a time."""
    funding: Mapping[Source, int]
    payments: tuple[Payments, ...]
    rate: Float2D
    """[n_bars, n_funding] sum of the rates of payments in (previous close, close]."""

    @property
    def step(self) -> int:
        """Bar length, microseconds."""
        return duration_us(self.interval)

    def bar_at(self, ts: TimeUs) -> Int1D:
        """The last bar that closes at or before each time [n]; -1 or less = before the panel."""
        return np.asarray((ts - self.ts[0]) // self.step, dtype=np.int64)

    def start_prices(self, ts: TimeUs) -> Float2D:
        """Last close known at each time [n, n_sources]; NaN where none of the last three bars is."""
        prices = np.full((len(ts), len(self.sources)), np.nan)
        # An unaligned time is at most one bar further from the last close than its own bar is.
        limit = (MAX_GAP_BARS + 1) * self.step - 1
        for column, (index, close) in enumerate(self.quotes):
            rows = index.rows(ts, limit)
            prices[:, column] = np.where(rows >= 0, close[np.maximum(rows, 0)], np.nan)
        return prices


class PathBook:
    """Reads panels from a lake and keeps the last one of each interval.

    Parameters
    ----------
    lake : contract tables ``bars`` and ``funding``.
    fill_interval : bar length at which fills of the ``trades`` table stand in for bars that no venue has;
        None = they never do.
    """

    def __init__(self, lake: Lake, fill_interval: str | None = None) -> None:
        self._lake = lake
        self._fill_interval = fill_interval
        self._venues: dict[str, list[str]] = {}
        self._files: dict[Source, list[LakePartition]] = {}
        for part in lake.partitions("bars"):
            self._files.setdefault((part.keys["venue"], part.keys["symbol"]), []).append(part)
        for venue, symbol in self._files:
            self._venues.setdefault(symbol, []).append(venue)
        self._funded: dict[str, list[str]] = {}
        for part in lake.partitions("funding"):
            venues = self._funded.setdefault(part.keys["symbol"], [])
            if part.keys["venue"] not in venues:
                venues.append(part.keys["venue"])
        self._panels: dict[str, tuple[PathPanel, tuple[int, int], frozenset[Source]]] = {}
        self._ends: dict[tuple[Source, str], int] = {}
        self._delisted: dict[Source, int] | None = None

    def candidates(self, venue: str, symbol: str) -> list[Source]:
        """Sources of prices, best first: the own venue, the perpetual ones by preference, fills."""
        found = _ordered(venue, symbol, self._venues.get(symbol, []))
        return [*found, (venue + FILLS, symbol)] if self._fill_interval and venue else found

    def funding_candidates(self, venue: str, symbol: str) -> list[Source]:
        """Sources of funding, best first."""
        return _ordered(venue, symbol, self._funded.get(symbol, []))

    def intervals(self, symbols: Iterable[str]) -> list[str]:
        """Bar lengths that the lake has of any of the symbols, finest first."""
        wanted = set(symbols)
        found: set[str] = set()
        for (_, symbol), parts in self._files.items():
            if symbol in wanted:
                for part in parts:
                    found |= _intervals_of(part)
        return sorted(found, key=duration_us)

    def end_of(self, source: Source, interval: str, ts: int) -> str:
        """Why a source is not known after ``ts``: ``gap``, ``delisted``, ``data-end`` or ``no-fills``."""
        if source[0].endswith(FILLS):
            return "no-fills"
        key = (source, interval)
        if key not in self._ends:
            self._ends[key] = self._last_close(source, interval)
        if self._ends[key] > ts:
            return "gap"
        if self._delisted is None:
            self._delisted = _delistings(self._lake)
        # Delisting is stated to the hour or day; the bars may stop a little before it.
        known = self._delisted.get(source)
        return "delisted" if known is not None and known <= ts + DAY else "data-end"

    def _last_close(self, source: Source, interval: str) -> int:
        for part in sorted(self._files.get(source, []), key=lambda item: item.span, reverse=True):
            rows = self._read("bars", [source], part.span, [], interval=interval)
            if rows:
                return int(rows[source]["ts"].max())
        return NEVER

    def panel(self, interval: str, pairs: Iterable[Source], start: int, end: int) -> PathPanel:
        """Prices and funding around (start, end] for positions in the given markets.

        Parameters
        ----------
        pairs : (venue, symbol) of positions; venue "" for an asset that is held.
        start, end : microseconds; the panel covers them and ``MARGIN_BARS`` more on either side.
        """
        step = duration_us(interval)
        first = (start // step - MARGIN_BARS) * step
        last = (-(-end // step) + MARGIN_BARS) * step
        wanted = frozenset(pairs)
        if interval in self._panels:
            panel, (begin, stop), held = self._panels[interval]
            if begin <= first and last <= stop and wanted <= held:
                return panel
            wanted |= held
        last = max(last, first + SPAN_US // step * step)
        panel = self._load(interval, sorted(wanted), first, last)
        self._panels[interval] = (panel, (first, last), wanted)
        return panel

    def _load(self, interval: str, pairs: Sequence[Source], first: int, last: int) -> PathPanel:
        step = duration_us(interval)
        ts = np.arange(first, last + 1, step, dtype=np.int64)
        sources = dict.fromkeys(source for pair in pairs for source in self.candidates(*pair))
        columns = ["known_at", "low", "high", "close"]
        on_venues = [source for source in sources if not source[0].endswith(FILLS)]
        bars = self._read("bars", on_venues, (first, last + 1), columns, interval=interval)
        if interval == self._fill_interval:
            # A bar's fills lie after the close before it, and its own close is one of them.
            window = (first - step + 1, last + 1)
            bars |= fill_bars(self._lake, set(sources) - set(on_venues), step, window)
        grids = [_on_grid(rows, ts, step) for rows in bars.values()]
        quotes = [(AsOfIndex(rows["ts"], rows["known_at"]), rows["close"]) for rows in bars.values()]
        funded = dict.fromkeys(source for pair in pairs for source in self.funding_candidates(*pair))
        around = (first - FUNDING_REACH_US, last + FUNDING_REACH_US)
        funding = self._read("funding", funded, around, ["rate", "interval_h"])
        payments = [_payments(rows) for rows in funding.values()]
        low, high, close = (_stack([grid[place] for grid in grids], len(ts)) for place in range(3))
        return PathPanel(
            interval,
            ts,
            {source: place for place, source in enumerate(bars)},
            low,
            high,
            close,
            _stack([grid[3] for grid in grids], len(ts) + 1).astype(np.int64),
            tuple(quotes),
            {source: place for place, source in enumerate(funding)},
            tuple(payments),
            _stack([_per_bar(item, ts, step) for item in payments], len(ts)),
        )

    def _read(
        self,
        table: str,
        sources: Iterable[Source],
        window: tuple[int, int],
        columns: list[str],
        interval: str | None = None,
    ) -> dict[Source, dict[str, AnyArray]]:
        """Rows of each source as numpy columns with ``ts``; a source without rows is left out."""
        wanted = set(sources)
        if not wanted:
            return {}
        rows = self._lake.read(
            table,
            venues={venue for venue, _ in wanted},
            symbols={symbol for _, symbol in wanted},
            interval=interval,
            start=window[0],
            end=window[1],
            columns=["ts", "venue", "symbol", *columns],
        )
        venue, symbol = (
            rows.column(name).combine_chunks().dictionary_encode() for name in ("venue", "symbol")
        )
        venues, symbols = venue.dictionary.to_pylist(), symbol.dictionary.to_pylist()
        code = venue.indices.to_numpy().astype(np.int64) * len(symbols) + symbol.indices.to_numpy()
        values = {name: _numbers(rows, name) for name in ("ts", *columns)}
        order = np.argsort(code, kind="stable")
        found = {}
        for place in np.split(order, np.flatnonzero(np.diff(code[order])) + 1) if len(order) else []:
            at = int(code[place[0]])
            source = (venues[at // len(symbols)], symbols[at % len(symbols)])
            if source in wanted:
                found[source] = {name: column[place] for name, column in values.items()}
        return dict(sorted(found.items()))


def _delistings(lake: Lake) -> dict[Source, int]:
    rows = lake.read("instruments", columns=["venue", "symbol", "delisting"]).to_pylist()
    return {(row["venue"], row["symbol"]): to_us(row["delisting"]) for row in rows if row["delisting"]}


def _ordered(venue: str, symbol: str, venues: Sequence[str]) -> list[Source]:
    others = [name for name in venue_order(venues) if name != venue]
    own = [venue] if venue in venues else []
    return [(name, symbol) for name in (*own, *others)]


def _intervals_of(part: LakePartition) -> set[str]:
    """Bar lengths in a file, from the row groups' statistics where they tell."""
    try:
        with pq.ParquetFile(part.path) as file:
            column = file.schema_arrow.get_field_index("interval")
            groups = range(file.metadata.num_row_groups)
            marks = [file.metadata.row_group(group).column(column).statistics for group in groups]
            if all(mark is not None and mark.has_min_max and mark.min == mark.max for mark in marks):
                return {str(mark.min) for mark in marks}
            return set(pc.unique(file.read(columns=["interval"]).column(0)).to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(part, error) from error


def _payments(rows: Mapping[str, AnyArray]) -> Payments:
    """Payments of one source, the newest revision of each."""
    ts = rows["ts"]
    newest = np.append(ts[1:] != ts[:-1], True)
    spacing = (rows["interval_h"][newest] * HOUR).astype(np.int64)
    return Payments(ts[newest], np.nan_to_num(rows["rate"][newest]), spacing)


def _on_grid(rows: Mapping[str, AnyArray], ts: TimeUs, step: int) -> tuple[Float1D, Float1D, Float1D, Int1D]:
    """Low, high and close [n_bars] of one source and the next bar that is not known [n_bars + 1].

    Rows come sorted by time and revision, so of several revisions the last one written stays: a label
    says what happened, as it is known now.
    """
    place = (rows["ts"] - ts[0]) // step
    values = np.full((3, len(ts)), np.nan)
    for row, name in enumerate(("low", "high", "close")):
        values[row, place] = rows[name]
    present = np.flatnonzero((np.isfinite(values) & (values > 0.0)).all(axis=0))
    if not len(present):
        return values[0], values[1], values[2], np.arange(len(ts) + 1)
    breaks = np.flatnonzero(np.diff(present) > MAX_GAP_BARS + 1)
    starts, ends = present[np.append(0, breaks + 1)], present[np.append(breaks, len(present) - 1)]
    bars = np.arange(len(ts) + 1)
    run = np.searchsorted(starts, bars, side="right") - 1
    known = (run >= 0) & (bars <= ends[np.maximum(run, 0)])
    last = present[np.maximum(np.searchsorted(present, bars[:-1], side="right") - 1, 0)]
    carried = np.where(known[:-1], values[2, last], np.nan)
    missing = np.ones(len(ts), dtype=np.bool_)
    missing[present] = False
    low, high, close = (np.where(missing, carried, values[row]) for row in range(3))
    return low, high, close, np.where(known, ends[np.maximum(run, 0)] + 1, bars)


def _per_bar(payments: Payments, ts: TimeUs, step: int) -> Float1D:
    """Sum of the rates paid in (ts - step, ts] [n_bars]."""
    place = -((ts[0] - payments.ts) // step)
    inside = (place >= 0) & (place < len(ts))
    return np.bincount(place[inside], weights=payments.rate[inside], minlength=len(ts)).astype(np.float64)


def _stack(columns: Sequence[Float1D | Int1D], length: int) -> Float2D:
    return np.ascontiguousarray(np.stack(columns, axis=1)) if columns else np.empty((length, 0))


def _numbers(rows: pa.Table, name: str) -> AnyArray:
    column = rows.column(name)
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_numpy()
