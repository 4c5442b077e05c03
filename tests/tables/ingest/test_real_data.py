"""The vendor folder of real data: known values arrive in the right rows and units."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from riskml.tables.checks import check_lake
from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us

REAL = Path(os.environ.get("RISKML_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def real_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """BTC of one venue, the flows and the account history: a minute's worth of the folder."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL} (set RISKML_SHARED_DATA)")
    lake = tmp_path_factory.mktemp("real") / "lake"
    for part in ("bars/binance/BTCUSDT_1h.parquet", "funding/binance", "flows", "accounts"):
        report = ingest("vendor", REAL / part, lake)
        assert report.problems == ()
    return Lake(lake)


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
    (row,) = real_lake.read("bars", symbols="BTC", interval="1h", start=close, end=close + 1).to_pylist()
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


def test_the_real_lake_has_warnings_but_no_errors(real_lake):
    report = check_lake(real_lake)
    assert report.errors == ()
    assert report.warnings
