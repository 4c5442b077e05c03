"""How long features take when one bar closes: rows observed, inputs looked up, features computed.

    python serving/benchmarks/feature_update.py [--markets 10,50,200] [--interval 1h] [--out FILE.json]

Every feature of the catalogue, every input table. The rows are simulated: three venues of bars,
marks, funding, open interest, depth, taker flow, accounts' positions, liquidations, flows of every
chain and prices of every stablecoin. The stream is warmed up over its whole lookback first. One
*bar* is what a scorer does before it runs the market graph:

- ``observe``: the new bars of the markets are validated and stored;
- ``look up``: every input of every market at the close;
- ``features``: one row through the feature stream.

``other rows`` is what the other tables' rows of the same bar cost on top; they arrive at other
times. Prints a table; the last line is the result as JSON, which is also written to
serving/results/.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from latency import RESULTS, commit, processor

from riskml import __version__
from riskml.contracts import contract
from riskml.features.assemble import InputReader
from riskml.features.catalog import CATALOG
from riskml.features.engine import FeatureStream, input_axes
from riskml.features.evaluate import input_names
from riskml.features.inputs import max_staleness_us
from riskml.features.series import SeriesStore
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.scoring.observe import check_rows
from riskml.tables.compiled import CompiledOps
from riskml.units import DAY, HOUR, duration_us, to_us

START = to_us("2024-01-01")
VENUE, OTHER = "binance", "bybit"
STORED_HOURS = 100
N_REFERENCE = 20
"""Markets that define the cross-section, as many as a bundle has."""
PARTS = ("observe", "look up", "features")
PRUNE_EVERY_BARS = 24


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--markets", default="10,50,200", help="numbers of markets (default: 10,50,200)")
    parser.add_argument("--interval", default="1h", help="bar length (default: 1h)")
    parser.add_argument("--bars", type=int, default=300, help="bars that are timed (default: 300)")
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: serving/results/feature-update-<date>.json)"
    )
    options = parser.parse_args()
    sizes = [int(size) for size in options.markets.split(",")]
    result = {
        "benchmark": "feature_update",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python {' '.join(sys.argv)}",
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load_1min": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "riskml": __version__},
        "interval": options.interval,
        "n_features": len(CATALOG),
        "n_inputs": len(input_names(CATALOG)),
        "sizes": [measure(size, options.interval, options.bars) for size in sizes],
    }
    out = options.out or RESULTS / f"feature-update-{result['date'][:10]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for size in result["sizes"]:
        for name, row in size["figures"].items():
            shown = f"p50 {row['p50_ms']:>8.3f} ms  p99 {row['p99_ms']:>8.3f} ms"
            print(f"{size['n_markets']:>4} markets  {name:<12} {shown}")
    print(json.dumps(result))


def measure(n_markets: int, interval: str, n_bars: int) -> dict[str, Any]:
    """Figures for one number of markets."""
    feed = Feed(n_markets, interval)
    began = time.perf_counter()
    stream = warm_stream(feed)
    warm_s = time.perf_counter() - began
    store = SeriesStore()
    for table, rows in feed.past().items():
        store.append(table, rows)
    reader = InputReader(store, feed.markets, interval=interval, names=input_names(CATALOG))
    times: dict[str, list[int]] = {name: [] for name in (*PARTS, "bar", "other rows")}
    gc.collect()
    gc.freeze()  # as a long-running process would, after its start
    for number in range(n_bars + 20):
        slot = feed.first + number * feed.bar_us
        tables = feed.bar(slot)
        marks = [time.perf_counter_ns()]
        for table, rows in tables.items():
            if table != "bars":
                store.append(table, check_rows(table, rows).columns)
        marks.append(time.perf_counter_ns())
        store.append("bars", check_rows("bars", tables["bars"]).columns)
        marks.append(time.perf_counter_ns())
        inputs = reader.read(np.array([slot], dtype=np.int64))
        marks.append(time.perf_counter_ns())
        values = stream.push(np.array([slot], dtype=np.int64), inputs)
        marks.append(time.perf_counter_ns())
        assert np.isfinite(values).mean() > 0.7, "features are missing; the benchmark would be too kind"
        if number % PRUNE_EVERY_BARS == 0:
            store.prune(slot - max_staleness_us())
        if number >= 20:
            spans = np.diff(marks).tolist()
            for name, span in zip(("other rows", *PARTS), spans, strict=True):
                times[name].append(span)
            times["bar"].append(sum(spans[1:]))
    return {
        "n_markets": n_markets,
        "n_bars": n_bars,
        "lookback_bars": stream.lookback_bars,
        "warm_up_s": round(warm_s, 2),
        "state_mb": round(sum(array.nbytes for array in stream.state().values()) / 1e6, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "figures": {name: summary(values) for name, values in times.items()},
    }


def summary(times: list[int]) -> dict[str, float]:
    """Percentiles of nanoseconds."""
    p50, p99 = np.percentile(times, [50, 99]) / 1e6
    return {
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(max(times) / 1e6, 3),
    }


def warm_stream(feed: Feed) -> FeatureStream:
    """A live stream whose windows are full, warmed up with the compiled form: both share states."""
    reference = range(min(N_REFERENCE, len(feed.markets)))
    options: dict[str, Any] = {"interval": feed.interval, "reference": reference}
    fast = FeatureStream(CATALOG, feed.markets, ops=CompiledOps(), **options)
    random = np.random.default_rng(1)
    axes = input_axes(CATALOG)
    portion = 2048
    begin = feed.first - fast.lookback_bars * feed.bar_us
    for first in range(begin, feed.first, portion * feed.bar_us):
        ts = np.arange(first, min(first + portion * feed.bar_us, feed.first), feed.bar_us, dtype=np.int64)
        inputs = {}
        for name, axis in axes.items():
            width = len(feed.markets) if axis == "market" else len(axis_columns(axis))
            inputs[name] = 1.0 + 0.1 * random.random((len(ts), width))
        inputs["high"], inputs["low"] = inputs["close"] * 1.01, inputs["close"] * 0.99
        fast.push(ts, inputs)
    live = FeatureStream(CATALOG, feed.markets, **options)
    live.restore(fast.state())
    return live


class Feed:
    """Simulated rows of every table."""

    def __init__(self, n_markets: int, interval: str) -> None:
        self.interval = interval
        self.bar_us = duration_us(interval)
        self.markets = [Market(f"S{number}", VENUE) for number in range(n_markets)]
        self.first = START + STORED_HOURS * HOUR
        self._random = np.random.default_rng(0)
        self._symbols = np.array([market.symbol for market in self.markets])
        columns = {axis: np.array(axis_columns(axis)) for axis in ("chain", "asset")}
        self._keys: dict[str, dict[str, Any]] = {
            "bars": {
                "venue": [VENUE, OTHER, f"{VENUE}_spot"],
                "symbol": self._symbols,
                "interval": [interval],
            },
            "marks": {"venue": [VENUE], "symbol": self._symbols, "interval": [interval]},
            "funding": {"venue": [VENUE, OTHER], "symbol": self._symbols},
            "open_interest": {"venue": [VENUE, OTHER], "symbol": self._symbols},
            "depth": {"venue": [VENUE], "symbol": self._symbols, "band_bps": [50.0, 100.0]},
            "taker_flow": {"venue": [VENUE], "symbol": self._symbols, "interval": ["4h"]},
            "long_short": {"venue": [VENUE], "symbol": self._symbols, "population": ["global_account"]},
            "liquidations": {
                "venue": [VENUE],
                "symbol": self._symbols,
                "account_id": [""],
                "side": ["long", "short"],
            },
            "flows": {
                "chain": columns["chain"],
                "asset": ["ALL", "USDT", "USDC", "DAI"],
                "source": ["a", "b", "c"],
            },
            "chains": {"chain": columns["chain"], "source": [""]},
            "pegs": {"venue": ["a", "b"], "asset": columns["asset"]},
        }
        self._every = {"funding": 8 * HOUR, "taker_flow": 4 * HOUR, "flows": DAY, "chains": DAY}

    def past(self) -> dict[str, dict[str, np.ndarray]]:
        """The rows that a store holds before the first bar."""
        parts: dict[str, list[dict[str, np.ndarray]]] = {table: [] for table in self._keys}
        hourly = max(self.bar_us, HOUR)
        for slot in range(START, self.first, hourly):
            for table, rows in self.bar(slot).items():
                parts[table].append(rows)
        return {
            table: {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            for table, found in parts.items()
            if found
        }

    def bar(self, slot: int) -> dict[str, dict[str, np.ndarray]]:
        """The rows that become known in one bar."""
        due = {
            table: self._every.get(table, self.bar_us if table in ("bars", "marks") else HOUR)
            for table in self._keys
        }
        return {table: self._rows(table, slot) for table, every in due.items() if slot % every == 0}

    def _rows(self, table: str, slot: int) -> dict[str, np.ndarray]:
        grids = np.meshgrid(*(np.asarray(values) for values in self._keys[table].values()), indexing="ij")
        rows = {name: grid.ravel() for name, grid in zip(self._keys[table], grids, strict=True)}
        n_rows = len(next(iter(rows.values())))
        rows |= dict.fromkeys(("ts", "known_at"), np.full(n_rows, slot, dtype=np.int64))
        spec = contract(table)
        value = 1.0 + 0.1 * self._random.random(n_rows)
        for column in spec.columns:
            if column.kind == "float" and column.name not in rows:
                rows[column.name] = value if column.name != "long_fraction" else value / 2.0
        if table == "bars":
            rows["high"], rows["low"] = value * 1.01, value * 0.99
        if table == "pegs":
            rows["price_usd"], rows["redemption_usd"] = value / 1.05, np.ones(n_rows)
        return rows


if __name__ == "__main__":
    main()
