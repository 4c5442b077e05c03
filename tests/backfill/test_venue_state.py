"""What engines read beside a book: distances and open interest as they were known at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from riskml.backfill import backfill, local, venue_state
from riskml.backfill.venue_state import FhsHistory
from riskml.backfill.venue_state import venue_state as state_at
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.risk.engines.fhs import fhs_rules
from riskml.tables.align import load_grid, to_columns
from riskml.tables.lake import Lake
from riskml.tables.targets import targets
from riskml.units import DAY, HOUR, to_us

MARKETS = tuple(Market(name, "sim") for name in ("BTC", "ETH", "SOL"))
PERIOD = to_us("2024-06-16")
"""A 30-day period of the calendar begins here, within the sample's 40 days."""


@pytest.fixture(autouse=True)
def few_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample is too short for the 2000 windows of the real parameters."""
    monkeypatch.setattr(
        venue_state, "fhs_rules", lambda ts: replace(fhs_rules(ts), min_residuals=200, lookback="20d")
    )


def history(lake: Lake, engines: tuple[str, ...] = ("fhs_ewma", "fhs_slow")) -> FhsHistory:
    return FhsHistory(lake, MARKETS, "1h", engines)


def test_the_distance_is_scale_times_the_quantile_of_closed_windows(lake: Lake) -> None:
    ts = PERIOD + 5 * DAY + 7 * HOUR
    found = history(lake).at(ts + 1)["fhs_ewma"]
    assert found.horizons == ("1h", "8h")
    grid = load_grid(lake, MARKETS, "1h", PERIOD - 20 * DAY, ts + HOUR, ("close", "high", "low"))
    mae = targets(grid.close, grid.high, grid.low, grid.ts, "1h", ("1h",)).mae[:, 0, 0, 0]
    variance = np.log(grid.high[:, 0] / grid.low[:, 0]) ** 2 / (4 * np.log(2))
    scale = np.full(len(grid.ts), np.nan)
    for row in range(23, len(grid.ts)):
        weight = 0.5 ** (np.arange(row + 1)[::-1] / 6.0)
        scale[row] = np.sqrt((weight * variance[: row + 1]).sum() / weight.sum())
    closed = grid.ts + HOUR <= PERIOD
    residual = (mae / scale)[closed]
    expected = scale[-1] * np.quantile(residual[np.isfinite(residual)], 0.995)
    assert found.log_distance["BTC"][0, 0] == pytest.approx(expected, rel=1e-9)


def test_later_bars_change_nothing(lake: Lake, tmp_path: Path) -> None:
    ts = PERIOD + 3 * DAY
    cut = Path(shutil.copytree(lake.path, tmp_path / "lake"))
    for part in lake.partitions("bars"):
        file = cut / part.path.relative_to(lake.path)
        rows = pq.read_table(file)
        pq.write_table(rows.filter(pc.less_equal(rows["ts"].cast(pa.int64()), ts)), file)
    whole, early = history(lake).at(ts), history(Lake(cut)).at(ts)
    for name in ("fhs_ewma", "fhs_slow"):
        for market in ("BTC", "ETH", "SOL"):
            expected = whole[name].log_distance[market]
            assert np.isfinite(expected).all()
            np.testing.assert_array_equal(early[name].log_distance[market], expected)


def test_the_order_of_questions_changes_nothing(lake: Lake) -> None:
    times = [PERIOD + DAY, PERIOD - DAY, PERIOD + 2 * DAY]
    one = history(lake)
    asked = [one.at(ts)["fhs_ewma"].log_distance["ETH"] for ts in times]
    alone = [history(lake).at(ts)["fhs_ewma"].log_distance["ETH"] for ts in times]
    np.testing.assert_array_equal(asked, alone)
    assert not np.array_equal(asked[0], asked[2])


def test_a_market_whose_bars_stopped_is_unknown_after_three(lake: Lake) -> None:
    last = to_us("2024-07-01")
    known = [
        np.isfinite(history(lake).at(last + hours * HOUR)["fhs_ewma"].log_distance["BTC"]).all()
        for hours in (0, 3, 4)
    ]
    assert known == [True, True, False]


def test_engines_without_history_and_markets_without_bars_get_none(lake: Lake) -> None:
    assert history(lake, ("hyperliquid",)).at(PERIOD) == {}
    other = FhsHistory(lake, (Market("NONE", "sim"),), "1h", ("fhs_ewma",))
    assert other.at(PERIOD) == {}


def test_open_interest_is_the_newest_known_by_venue(lake: Lake) -> None:
    store = SeriesStore()
    store.append("open_interest", to_columns(lake.read("open_interest")))
    ts = PERIOD + 90 * 60_000_000  # between two rows
    found = state_at(store, {}, ts, None).open_interest_usd
    rows = lake.read("open_interest", end=ts + 1).to_pandas().query("symbol == 'ETH'").sort_values("ts")
    assert found["sim:ETH"] == rows["open_interest_usd"].iloc[-1]
    assert state_at(SeriesStore(), {}, ts, None).open_interest_usd == {}


def test_base_units_take_the_price_and_are_left_out_without_one() -> None:
    store = SeriesStore()
    store.append(
        "open_interest",
        {
            "ts": np.array([1]),
            "known_at": np.array([5]),
            "venue": np.array(["v"], dtype=object),
            "symbol": np.array(["BTC"], dtype=object),
            "open_interest": np.array([3.0]),
            "open_interest_usd": np.array([np.nan]),
        },
    )
    for prices, ts, expected in (
        ({"BTC": 10.0}, 4, {}),
        ({"BTC": 10.0}, 5, {"BTC": 30.0, "v:BTC": 30.0}),
        ({}, 5, {}),
    ):
        assert state_at(store, prices, ts, None).open_interest_usd == expected


def test_a_backfill_gives_engines_their_state(
    tiny_bundle: Path, lake: Lake, last_days: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = last_days[-2]
    engines = ("hyperliquid", "fhs_ewma", "fhs_slow")
    backfill(tiny_bundle, lake, tmp_path / "one", start=day, end=last_days[-1], engines=engines)
    rows = Lake(tmp_path / "one").read("margins").to_pandas()
    asked = {name: part.sort_values(["ts", "account_id"]) for name, part in rows.groupby("engine")}
    held = asked["fhs_ewma"]["maintenance_margin_usd"].to_numpy() > 0
    ratio = (
        asked["fhs_ewma"]["maintenance_margin_usd"].to_numpy()[held]
        / asked["hyperliquid"]["maintenance_margin_usd"].to_numpy()[held]
    )
    assert held.any()
    assert (ratio < 8.0).all()  # of the whole notional it would be 20 to 100 times
    assert (asked["fhs_ewma"]["initial_margin_usd"] >= asked["fhs_ewma"]["maintenance_margin_usd"]).all()
    monkeypatch.setattr(local, "DAYS_PER_TASK", 1)
    backfill(tiny_bundle, lake, tmp_path / "two", start=last_days[-3], end=last_days[-1], engines=engines)
    name = f"margins/date={day}.parquet"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
