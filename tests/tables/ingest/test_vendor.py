"""Vendor ingest on small literal files: units, times, names, refusals, repetition."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from riskml.errors import ConfigError, DataError
from riskml.tables.ingest import ingest
from riskml.tables.ingest.chain_adapters import bridge_chain, chain_name
from riskml.tables.ingest.vendor import ADAPTERS
from riskml.tables.ingest.vendor_file import sources
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, MINUTE, format_us, to_us


def iso(row: dict[str, Any], column: str = "ts") -> str:
    return format_us(to_us(row[column]))


def test_a_bar_is_stamped_with_its_close_which_is_when_it_is_known(make, vendor, read):
    make.put_bars(
        vendor, "bars/binance/1000PEPEUSDT_15m", step=0.25, trades=pa.array([1, None, 3], pa.int32())
    )
    rows = read("bars")
    assert [iso(row) for row in rows] == [f"2024-01-01T00:{minute}:00Z" for minute in (15, 30, 45)]
    assert all(row["known_at"] == row["ts"] for row in rows)
    assert (rows[0]["venue"], rows[0]["symbol"], rows[0]["interval"]) == ("binance", "kPEPE", "15m")
    assert [row["trades"] for row in rows] == [1.0, None, 3.0]


def test_files_and_venues_that_were_never_seen_are_taken_by_their_names(make, vendor, read):
    make.put_bars(vendor, "bars/brand_new_venue/NEWCOIN_4h", n=1)
    (row,) = read("bars")
    assert (row["venue"], row["symbol"], iso(row)) == ("brand_new_venue", "NEWCOIN", "2024-01-01T04:00:00Z")


@pytest.mark.parametrize(
    ("name", "market"),
    [
        ("binance/FARTCOINUSDT_1h", ("binance", "FARTCOIN", "1h")),
        ("binance/1000BONKUSDT_30m", ("binance", "kBONK", "30m")),
        ("binance/1MBABYDOGEUSDT_1m", ("binance", "MBABYDOGE", "1m")),
        ("hyperliquid/kBONK_5m", ("hyperliquid", "kBONK", "5m")),
        ("dydx/ETH-USD_1h", ("dydx", "ETH", "1h")),
        ("aster/ASTERUSDT_2h", ("aster", "ASTER", "2h")),
        ("paradex/BTC-USD-PERP_1h", ("paradex", "BTC", "1h")),
        ("kraken_spot/BTCUSD_1d", ("kraken_spot", "BTC", "1d")),
    ],
)
def test_names_of_any_venue_market_and_interval_are_read(make, vendor, read, name, market):
    make.put_bars(vendor, f"bars/{name}", n=1)
    (row,) = read("bars")
    assert (row["venue"], row["symbol"], row["interval"]) == market


def test_an_account_history_of_another_year_in_several_files_is_taken(make, vendor, read):
    base = "accounts/hyperliquid_2026"
    position = {"coin": ["NEW"], "side": [1], "entry_px": [1.0], "mark_px_last_trade": [1.0]}
    for month in (1, 2):
        at = make.stamps(month)
        make.put(
            vendor,
            f"{base}/position_hourly_2026_0{month}",
            time=at,
            user=["a"],
            size=[2.0],
            notional_usd=[2.0],
            **position,
        )
        make.put(vendor, f"{base}/ledger_updates_2026_0{month}", time=at, user=["a"], delta_usd=[5.0])
        fill = {"coin": ["NEW"], "px": [1.0], "signed_size": [1.0], "seq": [1]}
        make.put(vendor, f"{base}/trades_2026_0{month}", time=at, user=["a"], **fill)
    assert [len(read(table)) for table in ("positions", "ledger", "trades")] == [2, 2, 2]


def test_a_file_without_rows_is_listed(make, vendor, tmp_path):
    path = make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [(skip.path, skip.reason) for skip in report.skipped] == [
        ("bars/binance/BTCUSDT_1h.parquet", "holds no row")
    ]
    assert not (tmp_path / "lake").exists()


def test_marks_are_bars_and_an_index_price_is_an_event(make, vendor, read):
    ohlc = {"open": [10.0], "high": [12.0], "low": [9.0], "close": [11.0]}
    make.put(vendor, "mark/binance/BTCUSDT_1h", ts=make.stamps(0), **ohlc)
    make.put(vendor, "mark/deribit/BTC_index_1h", ts=make.stamps(5), index_price=[20.0])
    binance, deribit = read("marks")
    assert (iso(binance), binance["mark_close"], binance["index_close"]) == (
        "2024-01-01T01:00:00Z",
        11.0,
        None,
    )
    assert (iso(deribit), deribit["symbol"], deribit["index_close"]) == ("2024-01-01T05:00:00Z", "BTC", 20.0)


def test_funding_keeps_its_stamp_and_its_own_interval(make, vendor, read):
    make.put(
        vendor,
        "funding/dydx/BTC-USD",
        ts=make.stamps(0, 1),
        funding_rate=[1e-5, 2e-5],
        interval_h=pa.array([1, 8], pa.int8()),
    )
    rows = read("funding")
    assert [(iso(row), row["symbol"], row["rate"], row["interval_h"]) for row in rows] == [
        ("2024-01-01T00:00:00Z", "BTC", 1e-5, 1.0),
        ("2024-01-01T01:00:00Z", "BTC", 2e-5, 8.0),
    ]


def test_open_interest_is_known_after_its_bar_and_the_daily_panel_after_its_day(make, vendor, read):
    make.put(
        vendor,
        "open_interest/bybit/BTCUSDT_1h",
        ts=make.stamps(0),
        open_interest=[2.0],
        open_interest_usd=[80.0],
    )
    make.put(
        vendor,
        "open_interest/gate/BTCUSDT_1h",
        ts=make.stamps(0),
        open_interest_usd=[70.0],
        mark_price=[40.0],
    )
    make.put(
        vendor,
        "open_interest/coinalyze/daily_oi_usd_panel",
        ts=make.stamps(0, 0),
        symbol=["ETHUSDT_PERP.A", "BTCUSD_PERP.A"],
        coin=["ETH", "BTC"],
        oi_open=[1.0, 1.0],
        oi_high=[1.0, 1.0],
        oi_low=[1.0, 1.0],
        oi_close=[9.0, 9.0],
    )
    bybit, gate, panel = read("open_interest")
    assert (iso(bybit), bybit["open_interest"], bybit["open_interest_usd"]) == (
        "2024-01-01T01:00:00Z",
        2.0,
        80.0,
    )
    assert (gate["open_interest"], gate["open_interest_usd"]) == (None, 70.0)
    assert (panel["symbol"], iso(panel), iso(panel, "known_at")) == (
        "ETH",
        "2024-01-02T00:00:00Z",
        "2024-01-02T01:00:00Z",
    )


def test_inverse_contracts_of_a_panel_are_listed_as_left_out(make, vendor, tmp_path):
    make.put(
        vendor,
        "open_interest/coinalyze/daily_oi_usd_panel",
        ts=make.stamps(0, 24),
        symbol=["BTCUSD_PERP.A"] * 2,
        oi_close=[9.0, 9.0],
    )
    (skip,) = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert (skip.rows, skip.reason) == (2, "inverse-contract: BTCUSD_PERP.A")


def test_liquidation_totals_have_a_row_per_side_and_no_account(make, vendor, read):
    make.put(
        vendor,
        "liquidations/coinglass_binance/BTC_4h",
        ts=make.stamps(0),
        long_liq_usd=[5.0],
        short_liq_usd=[3.0],
    )
    make.put(
        vendor,
        "liquidations/coinglass_binance/BTC_1d",
        ts=make.stamps(-20),
        long_liq_usd=[9.0],
        short_liq_usd=[0.0],
    )
    rows = read("liquidations")
    assert [(row["venue"], row["side"], row["notional_usd"], row["account_id"]) for row in rows] == [
        ("binance", "long", 5.0, ""),
        ("binance", "short", 3.0, ""),
        ("binance_daily", "long", 9.0, ""),
        ("binance_daily", "short", 0.0, ""),
    ]
    assert iso(rows[0], "known_at") == "2024-01-01T04:10:00Z"
    assert iso(rows[2], "known_at") == "2024-01-01T10:00:00Z"


def test_bridges_go_to_their_chain_or_to_multi_and_are_known_after_the_day(make, vendor, read):
    make.put(
        vendor,
        "flows/bridge_volume_daily_by_bridge",
        bridge_id=[1, 2, 3],
        date=make.stamps(0, 0, 0),
        bridge=["Arbitrum Bridge", "Stargate", "Some New Bridge"],
        deposit_usd=[10.0, 20.0, 30.0],
        withdraw_usd=[1.0, 2.0, 3.0],
        total_usd=[0.0] * 3,
        net_usd=[0.0] * 3,
    )
    rows = {row["source"]: row for row in read("flows")}
    assert {name: row["chain"] for name, row in rows.items()} == {
        "Arbitrum Bridge": "arbitrum",
        "Stargate": "multi",
        "Some New Bridge": "multi",
    }
    row = rows["Arbitrum Bridge"]
    assert (row["asset"], row["inflow_usd"], row["outflow_usd"]) == ("ALL", 10.0, 1.0)
    assert (iso(row), iso(row, "known_at")) == ("2024-01-02T00:00:00Z", "2024-01-02T06:00:00Z")


@pytest.mark.parametrize(
    ("bridge", "chain"),
    [
        ("Base Bridge", "base"),
        ("Optimism Gateway", "optimism"),
        ("Polygon PoS Bridge", "polygon"),
        ("ZKsync Era Bridge", "zksync_era"),
        ("Avalanche Bridge", "avalanche"),
        ("Hyperliquid", "hyperliquid"),
        ("IBC", "cosmos"),
        ("Wormhole", "multi"),
        ("Circle CCTP", "multi"),
    ],
)
def test_canonical_bridges_map_to_one_chain_from_their_date_on(make, bridge, chain):
    assert bridge_chain(bridge, make.T0) == chain
    assert bridge_chain(bridge, to_us("2015-01-01")) == "multi"


def test_chain_names_of_sources_become_one_name():
    assert [chain_name(name) for name in ("Ethereum", "Binance", "BSC", "zkSync Era", "xDai")] == [
        "ethereum",
        "bsc",
        "bsc",
        "zksync_era",
        "gnosis",
    ]


def test_supply_that_two_collectors_agree_on_is_one_row(make, vendor, read):
    make.put(
        vendor,
        "flows/stablecoin_circulating_daily_by_chain",
        date=make.stamps(0, 0, 24),
        chain=["Ethereum"] * 3,
        symbol=["USDC"] * 3,
        circulating_usd=[5.0, 5.0, 6.0],
        source=["a", "b", "a"],
    )
    rows = read("flows")
    assert [(row["chain"], row["asset"], row["supply_usd"]) for row in rows] == [
        ("ethereum", "USDC", 5.0),
        ("ethereum", "USDC", 6.0),
    ]


def test_value_locked_and_stablecoin_prices_reach_their_tables(make, vendor, read):
    make.put(vendor, "flows/tvl_daily_by_chain", date=make.stamps(0), chain=["Arbitrum"], tvl_usd=[7.0])
    make.put_bars(vendor, "stress/spot_USDCUSDT_1h", n=1, close=[0.98], low=[0.97], turnover=[1.0])
    assert [(row["chain"], row["tvl_usd"]) for row in read("chains")] == [("arbitrum", 7.0)]
    (peg,) = read("pegs")
    assert (peg["asset"], peg["price_usd"], iso(peg)) == ("USDC", 0.98, "2024-01-01T01:00:00Z")


def test_instruments_are_filled_from_what_was_ingested(make, vendor, read):
    make.put_bars(vendor, "bars/binance/1000PEPEUSDT_1h")
    make.put_bars(vendor, "bars/binance_spot/ETHUSDT_1h")
    rows = read("instruments")
    assert [(row["symbol"], row["base"], row["contract_multiplier"], row["kind"]) for row in rows] == [
        ("kPEPE", "PEPE", 1000.0, "linear"),
        ("ETH", "ETH", 1.0, "spot"),
    ]
    assert to_us(rows[0]["listing"]) == make.T0 + HOUR


def test_files_that_no_source_takes_are_listed(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    make.put(vendor, "long_short/binance/BTCUSDT_4h", ts=make.stamps(0))
    (vendor / "notes.txt").write_text("x")
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [skip.path for skip in report.skipped] == ["long_short/binance/BTCUSDT_4h.parquet", "notes.txt"]
    assert (report.counts["files"], report.counts["files_skipped"], report.ok) == (1, 2, True)


def test_ingesting_twice_changes_no_byte(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    make.put_bars(vendor, "bars/binance/BTCUSDT_5m", step=1 / 12)
    make.put_accounts(vendor)
    first = ingest("vendor", vendor, tmp_path / "lake")
    before = {path: path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file()}
    second = ingest("vendor", vendor, tmp_path / "lake")
    assert first.counts["bars"] == 6
    assert (second.counts["rows_added"], second.counts["rows_unchanged"]) == (0, first.counts["rows_added"])
    assert {path: path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file()} == before


def test_a_folder_or_file_inside_the_vendor_folder_is_enough(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    file = make.put_bars(vendor, "bars/okx/ETHUSDT_1h")
    ingest("vendor", vendor / "bars" / "binance", tmp_path / "lake")
    ingest("vendor", file, tmp_path / "lake")
    assert {part.keys["symbol"] for part in Lake(tmp_path / "lake").partitions("bars")} == {"BTC", "ETH"}


def test_a_folder_without_parquet_is_an_error(vendor, tmp_path):
    with pytest.raises(DataError, match="holds no Parquet file"):
        ingest("vendor", vendor, tmp_path / "lake")
    with pytest.raises(DataError, match="does not exist"):
        ingest("vendor", tmp_path / "nowhere", tmp_path / "lake")


@pytest.mark.parametrize("kind", ["kraken", "vendr"])
def test_a_kind_that_is_not_there_names_those_that_are(kind, vendor, tmp_path):
    known = "vendor, tables, binance, freqtrade"
    with pytest.raises(ConfigError, match=f"ingest of kind '{kind}' is not supported, only {known}"):
        ingest(kind, vendor, tmp_path / "lake")


def test_progress_reaches_the_number_of_files(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    make.put_bars(vendor, "bars/binance/BTCUSDT_4h", step=4.0)
    make.put_bars(vendor, "bars/binance/ETHUSDT_1h")
    calls: list[tuple[int, int]] = []
    ingest(
        "vendor", vendor, tmp_path / "lake", progress=lambda done, total, name: calls.append((done, total))
    )
    assert calls == [(2, 3), (3, 3)]


def test_every_source_names_an_adapter_and_sane_limits():
    for source in sources():
        assert source.adapter in ADAPTERS
        assert 0 <= source.lag_us <= DAY
        assert source.staleness_us >= 10 * MINUTE
        assert {"dated", "basis"} <= source.options.keys()
