"""Batch and streaming: a scorer that sees rows arrive, bar by bar, computes what a build computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from riskml.features.assemble import InputReader, assemble_inputs
from riskml.features.catalog import CATALOG
from riskml.features.engine import FeatureStream
from riskml.features.evaluate import evaluate_features, input_names, lookback_bars
from riskml.features.inputs import input_tables, max_staleness_us
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.tables.align import to_columns
from riskml.tables.compiled import CompiledOps
from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake
from riskml.tables.synthetic import generate_sample
from riskml.units import DAY, HOUR, duration_us, to_us

NAMES = input_names(CATALOG)


@dataclass(frozen=True)
class Period:
    """Rows of every table that the features can see in a stretch of bars."""

    tables: dict[str, dict[str, np.ndarray]]
    grid: np.ndarray
    """Closes of all bars, those of the warm-up first."""
    warm_up: int
    markets: tuple[Market, ...]
    interval: str


def read_period(lake: Lake, markets: Sequence[Market], interval: str, start: int, end: int) -> Period:
    bar, warm_up = duration_us(interval), lookback_bars(CATALOG, interval)
    grid = np.arange(start - warm_up * bar, end, bar, dtype=np.int64)
    reach = int(grid[0]) - max_staleness_us()
    tables = {table: to_columns(lake.read(table, start=reach, end=end)) for table in input_tables(NAMES)}
    for table, columns in tables.items():
        order = np.argsort(np.maximum(columns["known_at"], columns["ts"]), kind="stable")
        tables[table] = {name: values[order] for name, values in columns.items()}
    return Period(tables, grid, warm_up, tuple(markets), interval)


def halt(period: Period, market: Market, bars: range) -> None:
    """Take a market's bars out, counted from the end of the warm-up."""
    columns = period.tables["bars"]
    stopped = period.grid[period.warm_up :][list(bars)]
    gone = np.isin(columns["ts"], stopped) & (columns["symbol"] == market.symbol)
    gone &= columns["venue"] == market.venue
    assert gone.any()
    period.tables["bars"] = {name: values[~gone] for name, values in columns.items()}


def batch(period: Period) -> np.ndarray:
    """Everything at once, compiled."""
    store = SeriesStore()
    for table, columns in period.tables.items():
        store.append(table, columns)
    inputs = assemble_inputs(store, period.grid, period.markets, interval=period.interval, names=NAMES)
    found = evaluate_features(
        CATALOG, inputs, period.grid, interval=period.interval, markets=period.markets, ops=CompiledOps()
    )
    return found[period.warm_up :]


def stream(period: Period) -> np.ndarray:
    """A warm start from what was known, then bar by bar with the rows that became known since."""
    store = SeriesStore()
    reader = InputReader(store, period.markets, interval=period.interval, names=NAMES)
    features = FeatureStream(CATALOG, period.markets, interval=period.interval)
    seen = dict.fromkeys(period.tables, 0)

    def arrive(until: int) -> None:
        for table, columns in period.tables.items():
            usable_from = np.maximum(columns["known_at"], columns["ts"])
            known = int(np.searchsorted(usable_from, until, side="right"))
            if known > seen[table]:
                fresh = slice(seen[table], known)
                store.append(table, {name: values[fresh] for name, values in columns.items()})
                seen[table] = known

    warm, live = period.grid[: period.warm_up], period.grid[period.warm_up :]
    arrive(int(warm[-1]))
    features.push(warm, reader.read(warm))
    found = []
    for ts in live:
        arrive(int(ts))
        store.prune(int(ts) - max_staleness_us() - duration_us(period.interval))
        slot = np.array([ts])
        found.append(features.push(slot, reader.read(slot))[0])
    return np.stack(found)


def check(period: Period, *, finite: float) -> np.ndarray:
    built, streamed = batch(period), stream(period)
    for place, feature in enumerate(CATALOG):
        np.testing.assert_allclose(
            streamed[:, :, place], built[:, :, place], rtol=1e-9, atol=1e-12, err_msg=feature.name
        )
    assert np.isfinite(built).mean() > finite
    return built


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("streaming") / "lake"
    generate_sample(path, days=260, markets=3, accounts=2, interval="12h")
    return Lake(path)


def test_the_generated_market_streams_as_it_is_built(sample):
    markets = sample.markets("12h")
    last = int(to_columns(sample.read("bars", columns=["ts"]))["ts"].max())
    period = read_period(sample, markets, "12h", last - 40 * DAY // 2, last)
    halt(period, markets[1], range(3, 5))
    halt(period, markets[1], range(12, 17))
    halt(period, markets[2], range(9, 13))
    check(period, finite=0.8)


PARTS = (
    *(f"bars/binance/{coin}USDT_1h.parquet" for coin in ("BTC", "ETH", "SOL", "AVAX")),
    *("bars/binance/BTCUSDT_5m.parquet", "bars/binance/SOLUSDT_15m.parquet"),
    *("bars/bybit", "bars/hyperliquid", "bars/binance_spot", "mark", "funding", "open_interest", "depth"),
    *("flow", "long_short", "liquidations", "flows", "stress"),
)


@pytest.fixture(scope="module")
def real_lake(shared_data: Path, tmp_path_factory) -> Lake:
    """The sources of a few markets."""
    lake = tmp_path_factory.mktemp("real") / "lake"
    for part in PARTS:
        ingest("vendor", shared_data / part, lake)
    return Lake(lake)


SUPPLY = {"stablecoin_supply_change_7d", "stablecoin_supply_change_30d"}
ACTIVITY = {"activity_stall_30d", "block_time_stress_30d"}
PERIODS = [
    # Two holes of 72 and 48 hours in the published bars; before the tables of bridges and depth.
    (
        "2022-02-22",
        "2022-04-08",
        Market("SOL", "binance"),
        120,
        SUPPLY
        | {feature.name for feature in CATALOG if "bridge_net_flow" in feature.inputs}
        | {feature.name for feature in CATALOG if "depth_bid_usd" in feature.inputs}
        | {"long_account_skew"},
    ),
    # A stablecoin leaves its peg.
    ("2023-03-01", "2023-04-05", Market("SOL", "binance"), 0, ACTIVITY | {"long_account_skew"}),
    # A fortnight without bars, then 7 and 5 hours; the tables of chains have ended.
    (
        "2025-07-14",
        "2025-08-20",
        Market("SOL", "hyperliquid"),
        368,
        SUPPLY | ACTIVITY | {"gas_stress_30d", "tvl_drawdown_30d", "order_flow_toxicity_24h"},
    ),
]
"""Start, end, a market, how many of its bars are missing, and the features that have no value yet or no
more, for want of data."""


def test_every_feature_is_compared_on_real_data():
    assert set.intersection(*(without for *_, without in PERIODS)) == set()


@pytest.mark.real_data
@pytest.mark.parametrize(("start", "end", "halted", "gap_bars", "without"), PERIODS)
def test_real_bars_stream_as_they_are_built_over_gaps_and_all(
    real_lake, start, end, halted, gap_bars, without
):
    markets = (Market("BTC", "binance"), Market("ETH", "binance"), halted, Market("AVAX", "binance"))
    first, last = to_us(start), to_us(end)
    assert last - first >= 30 * DAY
    period = read_period(real_lake, markets, "1h", first, last)
    for begin, length in ((100, 1), (200, 2), (300, 3), (400, 4), (500, 30)):
        halt(period, markets[3], range(begin, begin + length))
    built = check(period, finite=0.5)
    there = np.isfinite(built).any(axis=(0, 1))
    assert {feature.name for feature, found in zip(CATALOG, there, strict=True) if not found} == without
    bars = period.tables["bars"]
    mine = (bars["symbol"] == halted.symbol) & (bars["venue"] == halted.venue) & (bars["interval"] == "1h")
    there = np.isin(period.grid[period.warm_up :], bars["ts"][mine])
    assert (~there).sum() == gap_bars
    assert len(built) == (last - first) // HOUR
    returns = [place for place, feature in enumerate(CATALOG) if feature.name == "return_1h"]
    assert np.isnan(built[~there][:, 2, returns]).all()
