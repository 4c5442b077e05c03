"""Live features: from observed rows to the forecast stream, bar by bar.

Rows wait in a series store until a bar closes. Closing a bar looks every input up as of that
moment, appends it to the input windows and evaluates the features' plain definition on the
last row. Bars that were skipped are closed on the way as masked slots, and the first close
does the same for the whole lookback, so that there is one code path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from riskml.arrays import AnyArray, Float1D, TimeUs
from riskml.errors import DataError
from riskml.facts import load_facts
from riskml.features.evaluate import evaluate_features, input_names, lookback_bars
from riskml.features.inputs import assemble_inputs, max_staleness_us
from riskml.features.series import SERIES_TABLES, SeriesKey, SeriesStore
from riskml.markets import Market, symbols
from riskml.scoring.buffer import InputBuffer
from riskml.scoring.conditions import HISTORY
from riskml.scoring.guards import GuardedForecast
from riskml.scoring.session import LoadedBundle, MarketOutput
from riskml.scoring.stream import PRESENCE_INPUT, WARM_UP, GraphStream, GuardStream
from riskml.units import duration_bars, duration_us, format_us

_UNLISTED_VENUE = {"preference": 98, "kind": "perpetual"}

PRUNE_EVERY_BARS = 24
"""Forgetting old rows copies what stays, so it is done once in a while."""


class LiveFeatures:
    """Store, input windows and forecast stream of one scorer.

    Parameters
    ----------
    bundle : whose features are computed. The markets are the bundle's, in its order, followed by
        every other symbol that bars are observed of: a market never seen in training is scored
        too, but the bundle's own markets alone define the cross-section.
    """

    def __init__(self, bundle: LoadedBundle) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.interval_us = duration_us(manifest.interval)
        self.store = SeriesStore()
        self.markets = [
            Market(symbol, venue) for symbol, venue in zip(manifest.markets, manifest.venues, strict=True)
        ]
        self.last_bar: int | None = None
        self.input_names = tuple(sorted({*input_names(bundle.features), PRESENCE_INPUT}))
        self._warm_up = duration_bars(WARM_UP, manifest.interval)
        self._lookback = lookback_bars(bundle.features, manifest.interval)
        self.bars_since_prune = 0
        self._set_up()

    def observe(self, table: str, rows: Mapping[str, AnyArray]) -> None:
        """Keep validated rows of a series table; rows of other tables hold no feature input."""
        if table in SERIES_TABLES:
            self.store.append(table, rows)

    def close(self, ts: int) -> Iterator[GuardedForecast]:
        """Close every bar up to ``ts``; yields the bars that the graph ran on, oldest first.

        Raises
        ------
        DataError : ``ts`` is not on the bar grid, or not after the last closed bar.
        """
        self._check_clock(ts)
        self._add_new_markets()
        n_new = self.inputs.rows
        if self.last_bar is not None:
            n_new = min((ts - self.last_bar) // self.interval_us, n_new)
        yield from self._advance(ts, n_new)
        self.bars_since_prune += n_new
        if self.bars_since_prune >= PRUNE_EVERY_BARS:
            self.bars_since_prune = 0
            self.store.prune(ts - max(max_staleness_us(self.input_names), HISTORY) - self.interval_us)

    def closes(self) -> Float1D:
        """Close of every market in the last bar [n_markets]; NaN = no bar."""
        return np.asarray(self.inputs.views()[PRESENCE_INPUT][-1])

    def to_arrays(self) -> dict[str, AnyArray]:
        """Windows and memory for a saved state."""
        values, mask = self.graph.buffer.window()
        good = self.guard.guards.last_good
        return (
            {f"input/{name}": window for name, window in self.inputs.views().items()}
            | {"features": values, "feature_mask": mask, "seen": self.guard.watch.seen}
            | {f"good/{name}": array for name, array in vars(good).items()}
        )

    def from_arrays(self, arrays: Mapping[str, AnyArray]) -> None:
        """Restore :meth:`to_arrays`; KeyError or DataError where something does not fit."""
        self.inputs.restore({name: arrays[f"input/{name}"] for name in self.input_names})
        self.graph.buffer.restore(arrays["features"], arrays["feature_mask"])
        self.guard.watch.seen = arrays["seen"]
        good = {name: arrays[f"good/{name}"] for name in MarketOutput.__dataclass_fields__}
        self.guard.guards.last_good = MarketOutput(**good)

    def _advance(self, ts: int, n_new: int) -> Iterator[GuardedForecast]:
        new_ts = self._grid(ts, n_new)
        block = assemble_inputs(
            self.store, new_ts, self.markets, interval=self.bundle.manifest.interval, names=self.input_names
        )
        self.inputs.append(block)
        self.last_bar = ts
        run = min(n_new, self._warm_up)
        filled = min(n_new - run, self.bundle.manifest.n_bars - 1)
        features = self._evaluate(ts, run + filled)
        tail = {name: values[n_new - run - filled :] for name, values in block.items()}
        if filled:
            self.graph.fill(features[:filled], {name: values[:filled] for name, values in tail.items()})
        newest = {name: values[filled:] for name, values in tail.items()}
        for bar in self.graph.push(new_ts[n_new - run :], features[filled:], newest):
            yield self.guard.step(bar)

    def _evaluate(self, ts: int, tail: int) -> AnyArray:
        # Only as many rows as the asked ones depend on: a live bar does not pay for the warm-up.
        rows = min(self._lookback + tail - 1, self.inputs.rows)
        views = {name: values[-rows:] for name, values in self.inputs.views().items()}
        return evaluate_features(
            self.bundle.features,
            views,
            self._grid(ts, rows),
            interval=self.bundle.manifest.interval,
            reference=range(len(self.bundle.manifest.markets)),
            tail=tail,
        )

    def _grid(self, ts: int, n_bars: int) -> TimeUs:
        return ts - self.interval_us * np.arange(n_bars - 1, -1, -1, dtype=np.int64)

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

    def _set_up(self) -> None:
        rows = self._lookback + self.bundle.manifest.n_bars - 1 + self._warm_up
        self.inputs = InputBuffer(self.input_names, rows, len(self.markets))
        self.graph = GraphStream(self.bundle, symbols(self.markets))
        self.guard = GuardStream(self.bundle, symbols(self.markets), self.input_names)

    def _add_new_markets(self) -> None:
        if self.last_bar is None:
            self.markets = [self._with_bars(market) for market in self.markets]
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

    def add_markets(self, new: list[Market]) -> None:
        """Take more markets into the windows; their history comes from the rows observed so far."""
        before, old_inputs, old_guard = len(self.markets), self.inputs, self.guard
        self.markets = [*self.markets, *new]
        self._set_up()
        if self.last_bar is None:
            return
        history = assemble_inputs(
            self.store,
            self._grid(self.last_bar, self.inputs.rows),
            new,
            interval=self.bundle.manifest.interval,
            names=self.input_names,
        )
        joined = {
            name: np.concatenate([values, history[name]], axis=1)
            for name, values in old_inputs.views().items()
        }
        self.inputs.append(joined)
        n_bars = self.bundle.manifest.n_bars
        features = self._evaluate(self.last_bar, n_bars)
        self.graph.fill(features, {name: values[-n_bars:] for name, values in joined.items()})
        self.guard.adopt(old_guard, before)


def _observed_markets(store: SeriesStore, interval: str) -> dict[str, Market]:
    """Every symbol with bars of the interval, on its preferred venue."""
    venues = load_facts("venues")["venue"]
    best: dict[str, tuple[int, str]] = {}
    for key in store.keys("bars"):
        facts = venues.get(key.place, _UNLISTED_VENUE)
        if key.detail != interval or facts["kind"] in ("spot", "aggregate"):
            continue
        rank = (int(facts["preference"]), key.place)
        best[key.name] = min(best.get(key.name, rank), rank)
    return {symbol: Market(symbol, venue) for symbol, (_, venue) in sorted(best.items())}
