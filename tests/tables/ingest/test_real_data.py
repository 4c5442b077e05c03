"""The vendor folder of real data: known values arrive in the right rows and units."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from riskml.tables.checks import check_lake
from riskml.tables.coverage import coverage_markdown
from riskml.tables.ingest import IngestReport, ingest
from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us

REAL = Path(os.environ.get("RISKML_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
pytestmark = pytest.mark.real_data

ROWS = {
    "bars": 7_443_415,
    "marks": 667_290,
    "funding": 603_776,
    "open_interest": 728_957,
    "depth": 35_236,
    "taker_flow": 31_135,
    "long_short": 5_781,
    "liquidations": 43_396,
    "flows": 91_024,
    "chains": 113_030,
    "pegs": 52_540,
    "accounts": 26_862,
    "positions": 37_748,
}


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, IngestReport]:
    """The whole folder, about 20 seconds of work."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL} (set RISKML_SHARED_DATA)")
    lake = tmp_path_factory.mktemp("real") / "lake"
    return Lake(lake), ingest("vendor", REAL, lake)


@pytest.fixture(scope="module")
def real_lake(ingested: tuple[Lake, IngestReport]) -> Lake:
    return ingested[0]


def test_every_file_is_taken_or_refused_for_a_stated_reason(ingested):
    _, report = ingested
    unread = [skip for skip in report.skipped if skip.rows is None]
    assert [skip for skip in unread if not skip.reason.startswith("refused: ")] == []
    assert (report.counts["files"], report.counts["files_refused"]) == (428, 8)
    assert report.problems == ()
    assert report.counts["rows_dropped"] == 0


def test_tables_hold_the_rows_of_their_files(ingested):
    """Known totals; where a table has fewer rows than its files, the rest is in ``skipped``."""
    _, report = ingested
    found = {name: report.counts[name] for name in ROWS}
    assert found == ROWS


def test_rows_that_are_left_out_are_counted_by_reason(ingested):
    _, report = ingested
    left_out = {
        (skip.path.split("/")[-1].split(".")[0], skip.reason[:24]): skip.rows for skip in report.skipped
    }
    assert left_out["aave_v2_2020_2022", "collateral sold is not 1"] == 590
    assert left_out["XRPUSDT_8h", "one side of the book is "] == 14
    assert left_out["stablecoin_price_daily_20coins", "the day's prices are tho"] == 20
    assert left_out["stablecoin_ohlcv_daily_cmc", "not a dollar stablecoin"] == 2259


@pytest.mark.parametrize(
    ("opened", "low"),
    [
        ("2020-03-13T02:00", 3621.8),
        ("2021-05-19T13:00", 28688.0),
        ("2022-05-12T07:00", 26631.0),
        ("2022-06-18T20:00", 17593.0),
        ("2022-11-09T22:00", 15462.6),
        ("2024-08-05T06:00", 48888.0),
        ("2025-04-07T07:00", 74457.0),
    ],
)
def test_known_lows_of_bitcoin_are_in_the_bar_that_opened_then(real_lake, opened, low):
    close = to_us(opened) + HOUR
    chosen = {"venues": "binance", "symbols": "BTC", "interval": "1h"}
    (row,) = real_lake.read("bars", **chosen, start=close, end=close + 1).to_pylist()
    assert row["low"] == pytest.approx(low, abs=0.5)


def test_the_account_history_is_whole_and_its_positions_belong_to_accounts(real_lake):
    accounts, positions = real_lake.read("accounts"), real_lake.read("positions")
    assert (accounts.num_rows, positions.num_rows) == (26862, 37748)
    owners = set(zip(*(accounts.column(name).to_pylist() for name in ("ts", "account_id")), strict=True))
    held = set(zip(*(positions.column(name).to_pylist() for name in ("ts", "account_id")), strict=True))
    assert held == owners


def test_liquidations_keep_the_total_of_their_records(real_lake):
    import pyarrow.parquet as pq

    source = pq.read_table(REAL / "accounts/hyperliquid_alpha_2023/liquidations.parquet")
    rows = real_lake.read("liquidations", venues="hyperliquid")
    assert sum(rows.column("notional_usd").to_pylist()) == pytest.approx(
        sum(source.column("liquidated_notional_usd").to_pylist())
    )
    assert set(rows.column("side").to_pylist()) == {"long", "short"}


def test_depth_of_two_sources_agrees_in_usd(real_lake):
    """Base units that were taken for USD, or a price of another time, would show."""
    rows = real_lake.read("depth", symbols="BTC", venues=["binance", "coinglass_binance"]).to_pandas()
    wide = rows.drop_duplicates(["venue", "ts"]).pivot(index="ts", columns="venue", values="bid_usd").dropna()
    ratio = wide["binance"] / wide["coinglass_binance"]
    assert len(ratio) > 900
    assert 0.95 < ratio.median() < 1.25
    assert ((ratio > 0.5) & (ratio < 2.0)).mean() > 0.98


def test_taker_flow_adds_up_to_the_bars_of_its_interval(real_lake):
    flow = real_lake.read("taker_flow", venues="binance", symbols="BTC", interval="15m").to_pandas()
    bars = real_lake.read("bars", venues="binance", symbols="BTC", interval="15m").to_pandas()
    both = flow.merge(bars, on="ts")
    assert len(both) > 4000
    assert (both["buy_volume"] + both["sell_volume"]).to_numpy() == pytest.approx(both["volume"].to_numpy())
    bought = both.dropna(subset=["taker_buy_volume"])
    assert bought["buy_volume"].to_numpy() == pytest.approx(bought["taker_buy_volume"].to_numpy())


def test_the_depeg_of_usdc_is_known_at_the_quarter_hour_and_the_day_after_it_has_ended(real_lake):
    pegs = real_lake.read("pegs", known_by="2023-03-12").to_pandas()
    usdc = pegs[(pegs["asset"] == "USDC") & (pegs["ts"] >= "2023-03-11")]
    intraday = usdc[usdc["venue"] == "dex_pool"]
    assert intraday["price_usd"].min() == pytest.approx(0.9008, abs=1e-4)
    daily = usdc[usdc["venue"] == "coinmarketcap"]
    assert daily["price_usd"].tolist() == pytest.approx([0.999479], abs=1e-6)


def test_the_coverage_in_the_repository_is_that_of_the_data(real_lake):
    stored = (Path(__file__).parents[3] / "data" / "COVERAGE.md").read_text(encoding="utf-8")
    assert coverage_markdown(real_lake) == stored, "run: python -m riskml.tables.coverage LAKE --write"


def test_the_real_lake_has_warnings_but_no_errors(real_lake):
    report = check_lake(real_lake)
    assert report.errors == ()
    assert report.warnings
