"""Live features: from observed rows to the forecast stream, bar by bar.

Rows wait in a series store until a bar closes. Closing a bar looks every input up as of that
moment and pushes one row through the feature stream, which carries what windows need. Bars that
were skipped are pushed on the way as masked slots. The first close, and one after a gap longer
than the lookback, starts a fresh stream and pushes the whole lookback from the store.

The store keeps no more than look-ups and joining markets need (:data:`KEEP_BARS`); the past
itself is in the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from riskml.arrays import AnyArray, Float1D, Float2D, Int1D, TimeUs
from riskml.errors import DataError, nearest
from riskml.features.assemble import InputReader
from riskml.features.engine import FeatureStream
from riskml.features.evaluate import input_names
from riskml.features.inputs import input_spec, max_staleness_us
from riskml.features.nodes import PRESENCE_INPUT
from riskml.features.rows import Appended
from riskml.features.series import SERIES_TABLES, SeriesKey, SeriesStore
from riskml.markets import Market, symbols, venue_order
from riskml.risk.policy import MarginPolicy
from riskml.scoring.conditions import HISTORY, TAIL, keep_from
from riskml.scoring.guards import GuardedForecast
from riskml.scoring.session import LoadedBundle, MarketOutput
from riskml.scoring.stream import WARM_UP, GraphStream, GuardStream
from riskml.units import duration_bars, duration_us, format_us

KEEP_BARS = 5_000
"""Bars that the store keeps at most, for a market that joins with a history: 208 days of 1 h bars,
3.5 days of 1 min bars. Its windows start with what is there, as after a listing."""
PUSH_ROWS = 256
"""Rows looked up and pushed at once while catching up; bounds the memory that takes."""
PRUNE_EVERY_BARS = 24
"""Old rows are forgotten once in a while."""


class LiveFeatures:
    """Store, feature stream and forecast stream of one scorer.

    Parameters
    ----------
    bundle : whose features are computed. The markets are the bundle's, in its order, followed by
        every other symbol that bars are observed of: a market never seen in training is scored
        too, but the bundle's own markets alone define the cross-section.
    policy : gives the floor of a degraded market; None = the default policy.
    """

    def __init__(self, bundle: LoadedBundle, policy: MarginPolicy | None = None) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.policy = policy
        self.interval_us = duration_us(manifest.interval)
        self.store = SeriesStore()
        self.markets = [
            Market(symbol, venue) for symbol, venue in zip(manifest.markets, manifest.venues, strict=True)
        ]
        self.last_bar: int | None = None
        self.bars_since_prune = 0
        self.missing: Int1D = np.zeros(len(self.markets), dtype=np.int64)
        """Slots without a bar per market, of those that the last :meth:`close` closed."""
        self.input_names = tuple(sorted({*input_names(bundle.features), PRESENCE_INPUT}))
        self._warm_up = duration_bars(WARM_UP, manifest.interval)
        self._bar_series = 0
        self._newest_ts: Int1D
        self._newest_close: Float1D
        self._set_up()

    def observe(self, table: str, rows: Mapping[str, AnyArray]) -> Appended:
        """Keep validated rows of a series table; rows of other tables hold no feature input."""
        if table not in SERIES_TABLES:
            return Appended(len(rows["ts"]))
        return self.store.append(table, rows)

    def close(self, ts: int) -> Iterator[GuardedForecast]:
        """Close every bar up to ``ts``; yields the bars that the graph ran on, oldest first.

        Raises
        ------
        DataError : ``ts`` is not on the bar grid, or not after the last closed bar.
        """
        self._check_clock(ts)
        self._add_new_markets()
        reach = self._reach
        passed = self._first_push(ts) if self.last_bar is None else (ts - self.last_bar) // self.interval_us
        n_new = min(passed, reach)
        if self.last_bar is None or passed > reach:
            # Whatever came before lies outside of every window.
            self.stream = self._new_stream(self.markets)
        # A first close closes one bar; what it pushes before that is history.
        counted_from = n_new - 1 if self.last_bar is None else 0
        self.missing = np.full(len(self.markets), passed - n_new, dtype=np.int64)
        self._newest_close = np.full(len(self.markets), np.nan)
        self.last_bar = ts
        yield from self._advance(ts, n_new, counted_from)
        self._prune(ts, n_new)

    def newest_closes(self) -> tuple[Int1D, Float1D]:
        """Time and close of every market's newest bar among those of the last :meth:`close` [n_markets].

        NaN = it has none of them. The first close closes all that it reads, the history before it included.
        """
        return self._newest_ts, self._newest_close

    def lost_inputs(self) -> dict[str, tuple[str, ...]]:
        """Per market that lost any: inputs that it had before and did not have in the last bar."""
        found = {market.symbol: self.guard.watch.lost_names(row) for row, market in enumerate(self.markets)}
        return {symbol: names for symbol, names in found.items() if names}

    def retire_inputs(self, symbol: str, names: Sequence[str] | None) -> tuple[str, ...]:
        """See :meth:`riskml.scoring.Scorer.retire_inputs`."""
        known = symbols(self.markets)
        if symbol not in known:
            raise DataError(
                f"there is no market '{symbol}'.{nearest(symbol, known)}",
                market=symbol,
                fix="use a symbol of Scorer.markets",
            )
        row = known.index(symbol)
        lost = self.guard.watch.lost_names(row)
        may_go = tuple(name for name in lost if not _is_of_the_bar(name))
        if isinstance(names, (str, bytes)) or not isinstance(names, (Iterable, type(None))):
            raise DataError(
                f"the inputs have to be a list of names, found {names!r}",
                market=symbol,
                fix=f"pass a list, of {', '.join(may_go) or 'nothing'}",
            )
        wanted = may_go if names is None else tuple(names)
        for name in wanted:
            if name not in may_go:
                raise DataError(
                    f"the input '{name}' of '{symbol}' cannot be retired: "
                    + ("without the bar there is no forecast" if name in lost else "it is not lost"),
                    market=symbol,
                    fix=f"what can be is {', '.join(may_go) or 'nothing'}",
                )
        self.guard.watch.retire(row, wanted)
        return wanted

    def to_arrays(self) -> dict[str, AnyArray]:
        """Streams and memory for a saved state."""
        values, mask = self.graph.buffer.window()
        good = self.guard.guards.last_good
        return (
            {f"stream/{name}": array for name, array in self.stream.state().items()}
            | {"features": values, "feature_mask": mask, "seen": self.guard.watch.seen}
            | {"lost": self.guard.watch.lost}
            | {f"good/{name}": array for name, array in vars(good).items()}
        )

    def from_arrays(self, arrays: Mapping[str, AnyArray]) -> None:
        """Restore :meth:`to_arrays`; KeyError or DataError where something does not fit."""
        prefix = "stream/"
        self.stream.restore(
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        )
        self.graph.buffer.restore(arrays["features"], arrays["feature_mask"])
        self.guard.watch.seen = arrays["seen"]
        # A state of before 0.5 has none: what is lost shows with the next bar.
        self.guard.watch.lost = arrays.get("lost", np.zeros_like(arrays["seen"]))
        good = {name: arrays[f"good/{name}"] for name in MarketOutput.__dataclass_fields__}
        self.guard.guards.last_good = MarketOutput(**good)

    def set_markets(self, markets: list[Market]) -> None:
        """Start with these markets, for a saved state: the bundle's, then others."""
        self.markets = list(markets)
        self._set_up()

    def add_markets(self, new: list[Market]) -> None:
        """Take more markets in; the values of the others do not change.

        A market starts as on the day of its listing. Where the store has earlier bars of it, a
        stream of its own with the bundle's markets replays them first.
        """
        before, old_stream, old_graph = len(self.markets), self.stream, self.graph
        old_guard = self.guard
        self.markets = [*self.markets, *new]
        self._set_up()
        if self.last_bar is None:
            return
        self.stream = old_stream
        self.stream.add_markets(new)
        self.guard.adopt(old_guard, before)
        of_new = GraphStream(self.bundle, symbols(new))
        history = self._replay(new, of_new)
        if history is not None:
            self.stream.adopt(history, len(new))
        joined = zip(old_graph.buffer.window(), of_new.buffer.window(), strict=True)
        self.graph.buffer.restore(*(np.concatenate(pair, axis=1) for pair in joined))

    @property
    def _reach(self) -> int:
        """Bars after which nothing depends on what came before them."""
        return self.stream.lookback_bars + self.bundle.manifest.n_bars - 1 + self._warm_up

    def _first_push(self, ts: int) -> int:
        """Bars that the first close pushes: from the oldest row on, since before it all is missing."""
        oldest = self.store.oldest_ts()
        known = 0 if oldest is None else max(0, (ts - oldest) // self.interval_us + 1)
        return min(self._reach, max(known, self.bundle.manifest.n_bars - 1 + self._warm_up))

    def _set_up(self) -> None:
        self.reader = self._new_reader(self.markets)
        self.stream = self._new_stream(self.markets)
        self.graph = GraphStream(self.bundle, symbols(self.markets))
        self.guard = GuardStream(self.bundle, self.markets, self.input_names, self.policy)
        self._newest_ts = np.zeros(len(self.markets), dtype=np.int64)
        self._newest_close = np.full(len(self.markets), np.nan)

    def _new_stream(self, markets: list[Market]) -> FeatureStream:
        manifest = self.bundle.manifest
        return FeatureStream(
            self.bundle.features,
            markets,
            interval=manifest.interval,
            reference=range(len(manifest.markets)),
        )

    def _new_reader(self, markets: list[Market]) -> InputReader:
        return InputReader(
            self.store, markets, interval=self.bundle.manifest.interval, names=self.input_names
        )

    def _advance(self, ts: int, n_new: int, counted_from: int) -> Iterator[GuardedForecast]:
        """Push the last ``n_new`` bars: through the features, then into the window, then the graph."""
        run = min(n_new, self._warm_up)
        filled = min(n_new - run, self.bundle.manifest.n_bars - 1)
        cuts = {n_new - run - filled, n_new - run, counted_from}
        for first, bars in self._portions(ts, n_new, cuts):
            inputs = self.reader.read(bars)
            features = self.stream.push(bars, inputs)
            self._note_newest(bars, inputs[PRESENCE_INPUT])
            if first >= counted_from:
                self.missing += (~np.isfinite(inputs[PRESENCE_INPUT])).sum(axis=0)
            if first >= n_new - run:
                for bar in self.graph.push(bars, features, inputs):
                    yield self.guard.step(bar)
            elif first >= n_new - run - filled:
                self.graph.fill(features, inputs)

    def _note_newest(self, bars: TimeUs, closes: Float2D) -> None:
        """Keep the newest of the closes [n, n_markets] of each market that has any."""
        for place in np.flatnonzero(np.isfinite(closes).any(axis=0)).tolist():
            row = int(np.flatnonzero(np.isfinite(closes[:, place]))[-1])
            self._newest_ts[place], self._newest_close[place] = bars[row], closes[row, place]

    def _portions(self, ts: int, n_bars: int, cuts: set[int]) -> Iterator[tuple[int, TimeUs]]:
        """(place of the first, closes) of the last ``n_bars`` bars, cut at places."""
        closes = ts - self.interval_us * np.arange(n_bars - 1, -1, -1, dtype=np.int64)
        bounds = sorted({*range(0, n_bars, PUSH_ROWS), *cuts, n_bars})
        for first, last in pairwise(bounds):
            yield first, closes[first:last]

    def _replay(self, new: list[Market], graph: GraphStream) -> FeatureStream | None:
        """A stream of the bundle's and the new markets up to the last bar, from the store; None
        where there are no earlier bars of the new ones. Fills the new markets' feature window."""
        last_bar = self.last_bar
        interval = self.bundle.manifest.interval
        keys = [SeriesKey("bars", market.venue, market.symbol, interval) for market in new]
        starts = [rows.ts[0] for rows in map(self.store.get, keys) if rows is not None]
        if last_bar is None or not starts or min(starts) > last_bar:
            return None
        n_bundle, n_bars = len(self.bundle.manifest.markets), self.bundle.manifest.n_bars
        markets = [*self.markets[:n_bundle], *new]
        reader, stream = self._new_reader(markets), self._new_stream(markets)
        n_rows = min(self._first_push(last_bar), KEEP_BARS)
        window = max(n_rows - n_bars, 0)
        for first, bars in self._portions(last_bar, n_rows, {window}):
            inputs = reader.read(bars)
            features = stream.push(bars, inputs)
            if first >= window:
                present = {PRESENCE_INPUT: inputs[PRESENCE_INPUT][:, n_bundle:]}
                graph.fill(features[:, n_bundle:], present)
        return stream

    def _prune(self, ts: int, n_new: int) -> None:
        self.bars_since_prune += n_new
        if self.bars_since_prune < PRUNE_EVERY_BARS:
            return
        self.bars_since_prune = 0
        bars = min(self._reach, KEEP_BARS) * self.interval_us
        before = ts - max(max_staleness_us(self.input_names) + self.interval_us, bars)
        read = [table for table in TAIL if table in self.store.tables]
        self.store.prune(
            before, {table: keep_from(self.store, table, min(before, ts - HISTORY), ts) for table in read}
        )

    def _check_clock(self, ts: int) -> None:
        if ts % self.interval_us:
            raise DataError(
                f"{format_us(ts)} is not the close of a {self.bundle.manifest.interval} bar",
                table="bars",
                fix="pass the bar's close time, not its open time or the current time",
            )
        if self.last_bar is not None and ts <= self.last_bar:
            raise DataError(
                f"the clock went backwards: {format_us(ts)} was asked for after {format_us(self.last_bar)} "
                "had been closed",
                table="bars",
                fix="close bars in order, each once; to start again load a new scorer",
            )

    def _add_new_markets(self) -> None:
        n_series = len(self.store.tables["bars"]) if "bars" in self.store.tables else 0
        if n_series == self._bar_series:
            return
        self._bar_series = n_series
        if self.last_bar is None:
            self.markets = [self._with_bars(market) for market in self.markets]
            self._set_up()
        known = set(symbols(self.markets))
        observed = _observed_markets(self.store, self.bundle.manifest.interval)
        new = [market for symbol, market in observed.items() if symbol not in known]
        if new:
            self.add_markets(new)

    def _with_bars(self, market: Market) -> Market:
        """The market on its own venue, or on the preferred one that was observed instead."""
        interval = self.bundle.manifest.interval
        if self.store.get(SeriesKey("bars", market.venue, market.symbol, interval)) is not None:
            return market
        found = _observed_markets(self.store, interval)
        return found.get(market.symbol, market)


def _is_of_the_bar(name: str) -> bool:
    spec = input_spec(name)
    return spec.table == "bars" and spec.kind == "bar"


def _observed_markets(store: SeriesStore, interval: str) -> dict[str, Market]:
    """Every symbol with bars of the interval, on its preferred venue."""
    venues: dict[str, list[str]] = {}
    for key in store.keys("bars"):
        if key.detail == interval:
            venues.setdefault(key.name, []).append(key.place)
    ordered = {symbol: venue_order(found) for symbol, found in sorted(venues.items())}
    return {symbol: Market(symbol, found[0]) for symbol, found in ordered.items() if found}
