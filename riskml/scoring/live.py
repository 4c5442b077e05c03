"""Live features: from observed rows to the forecast stream, bar by bar.

Rows wait in a series store until a bar closes. Closing a bar looks every input up as of that
moment, appends it to the input windows and evaluates the features' plain definition on the
last row. Bars that were skipped are closed on the way as masked slots, and the first close
does the same for the whole lookback, so that there is one code path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from riskml.arrays import AnyArray, TimeUs
from riskml.errors import DataError
from riskml.facts import load_facts
from riskml.features.evaluate import evaluate_features, input_names, lookback_bars
from riskml.features.inputs import assemble_inputs, max_staleness_us
from riskml.features.series import SERIES_TABLES, SeriesStore
from riskml.markets import Market, symbols
from riskml.scoring.buffer import InputBuffer
from riskml.scoring.session import LoadedBundle
from riskml.scoring.stream import PRESENCE_INPUT, WARM_UP, ForecastStream, StreamStep
from riskml.units import duration_bars, duration_us, format_us

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
        self._bars_since_prune = 0
        self._set_up()

    def observe(self, table: str, rows: Mapping[str, AnyArray]) -> None:
        """Keep validated rows of a series table; rows of other tables hold no feature input."""
        if table in SERIES_TABLES:
            self.store.append(table, rows)

    def close(self, ts: int) -> Iterator[StreamStep]:
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
        self._bars_since_prune += n_new
        if self._bars_since_prune >= PRUNE_EVERY_BARS:
            self._bars_since_prune = 0
            self.store.prune(ts - max_staleness_us(self.input_names) - self.interval_us)

    def _advance(self, ts: int, n_new: int) -> Iterator[StreamStep]:
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
            self.stream.fill(features[:filled], {name: values[:filled] for name, values in tail.items()})
        yield from self.stream.push(
            new_ts[n_new - run :], features[filled:], {name: values[filled:] for name, values in tail.items()}
        )

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
        self.stream = ForecastStream(self.bundle, symbols(self.markets), self.input_names)

    def _add_new_markets(self) -> None:
        new = _unknown_markets(self.store, self.bundle.manifest.interval, symbols(self.markets))
        if new:
            self.add_markets(new)

    def add_markets(self, new: list[Market]) -> None:
        """Take more markets into the windows; their history comes from the rows observed so far."""
        before, old_inputs, old_stream = len(self.markets), self.inputs, self.stream
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
            name: np.concatenate([values, history[name]], axis=1) for name, values in old_inputs.views().items()
        }
        self.inputs.append(joined)
        n_bars = self.bundle.manifest.n_bars
        features = self._evaluate(self.last_bar, n_bars)
        self.stream.fill(features, {name: values[-n_bars:] for name, values in joined.items()})
        self.stream.adopt(old_stream, before)


def _unknown_markets(store: SeriesStore, interval: str, known: list[str]) -> list[Market]:
    """Symbols with bars that are not known yet, each on its preferred venue."""
    venues = load_facts("venues")["venue"]
    best: dict[str, tuple[int, str]] = {}
    for key in store.keys("bars"):
        facts = venues.get(key.place, {"preference": 98, "kind": "perpetual"})
        if key.name in known or key.detail != interval or facts["kind"] in ("spot", "aggregate"):
            continue
        rank = (int(facts["preference"]), key.place)
        best[key.name] = min(best.get(key.name, rank), rank)
    return [Market(symbol, venue) for symbol, (_, venue) in sorted(best.items())]
