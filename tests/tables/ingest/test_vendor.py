"""Vendor ingest on small literal files: units, times, names, refusals, repetition."""

from __future__ import annotations

from pathlib import Path
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

T0 = to_us("2024-01-01")


def stamps(*hours: float) -> pa.Array:
    return pa.array([T0 // 1000 + int(hour * 3_600_000) for hour in hours], pa.timestamp("ms", tz="UTC"))


def put(folder: Path, name: str, **columns: Any) -> Path:
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def put_bars(folder: Path, name: str, n: int = 3, step: float = 1.0, **columns: Any) -> Path:
    ohlc = {
        "open": [10.0] * n,
        "high": [12.0] * n,
        "low": [9.0] * n,
        "close": [11.0] * n,
        "volume": [5.0] * n,
    }
    return put(folder, name, ts=stamps(*(step * row for row in range(n))), **(ohlc | columns))


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    folder = tmp_path / "vendor"
    folder.mkdir()
    return folder


@pytest.fixture
def read(vendor: Path, tmp_path: Path):
    """Ingest the vendor folder and read one table as a list of rows."""

    def run(table: str) -> list[dict[str, Any]]:
        report = ingest("vendor", vendor, tmp_path / "lake")
        assert report.problems == ()
        return Lake(tmp_path / "lake").read(table).to_pylist()

    return run


def iso(row: dict[str, Any], column: str = "ts") -> str:
    return format_us(to_us(row[column]))


def test_a_bar_is_stamped_with_its_close_which_is_when_it_is_known(vendor, read):
    put_bars(vendor, "bars/binance/1000PEPEUSDT_15m", step=0.25, trades=pa.array([1, None, 3], pa.int32()))
    rows = read("bars")
    assert [iso(row) for row in rows] == [f"2024-01-01T00:{minute}:00Z" for minute in (15, 30, 45)]
    assert all(row["known_at"] == row["ts"] for row in rows)
    assert (rows[0]["venue"], rows[0]["symbol"], rows[0]["interval"]) == ("binance", "kPEPE", "15m")
    assert [row["trades"] for row in rows] == [1.0, None, 3.0]


def test_files_and_venues_that_were_never_seen_are_taken_by_their_names(vendor, read):
    put_bars(vendor, "bars/brand_new_venue/NEWCOIN_4h", n=1)
    (row,) = read("bars")
    assert (row["venue"], row["symbol"], iso(row)) == ("brand_new_venue", "NEWCOIN", "2024-01-01T04:00:00Z")


def test_marks_are_bars_and_an_index_price_is_an_event(vendor, read):
    ohlc = {"open": [10.0], "high": [12.0], "low": [9.0], "close": [11.0]}
    put(vendor, "mark/binance/BTCUSDT_1h", ts=stamps(0), **ohlc)
    put(vendor, "mark/deribit/BTC_index_1h", ts=stamps(5), index_price=[20.0])
    binance, deribit = read("marks")
    assert (iso(binance), binance["mark_close"], binance["index_close"]) == (
        "2024-01-01T01:00:00Z",
        11.0,
        None,
    )
    assert (iso(deribit), deribit["symbol"], deribit["index_close"]) == ("2024-01-01T05:00:00Z", "BTC", 20.0)


def test_funding_keeps_its_stamp_and_its_own_interval(vendor, read):
    put(
        vendor,
        "funding/dydx/BTC-USD",
        ts=stamps(0, 1),
        funding_rate=[1e-5, 2e-5],
        interval_h=pa.array([1, 8], pa.int8()),
    )
    rows = read("funding")
    assert [(iso(row), row["symbol"], row["rate"], row["interval_h"]) for row in rows] == [
        ("2024-01-01T00:00:00Z", "BTC", 1e-5, 1.0),
        ("2024-01-01T01:00:00Z", "BTC", 2e-5, 8.0),
    ]


def test_open_interest_is_known_after_its_bar_and_the_daily_panel_after_its_day(vendor, read):
    put(vendor, "open_interest/bybit/BTCUSDT_1h", ts=stamps(0), open_interest=[2.0], open_interest_usd=[80.0])
    put(vendor, "open_interest/gate/BTCUSDT_1h", ts=stamps(0), open_interest_usd=[70.0], mark_price=[40.0])
    put(
        vendor,
        "open_interest/coinalyze/daily_oi_usd_panel",
        ts=stamps(0, 0),
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


def test_inverse_contracts_of_a_panel_are_listed_as_left_out(vendor, tmp_path):
    put(
        vendor,
        "open_interest/coinalyze/daily_oi_usd_panel",
        ts=stamps(0, 24),
        symbol=["BTCUSD_PERP.A"] * 2,
        oi_close=[9.0, 9.0],
    )
    (skip,) = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert (skip.rows, skip.reason) == (2, "inverse-contract: BTCUSD_PERP.A")


def test_liquidation_totals_have_a_row_per_side_and_no_account(vendor, read):
    put(
        vendor, "liquidations/coinglass_binance/BTC_4h", ts=stamps(0), long_liq_usd=[5.0], short_liq_usd=[3.0]
    )
    put(
        vendor,
        "liquidations/coinglass_binance/BTC_1d",
        ts=stamps(-20),
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


def test_bridges_go_to_their_chain_or_to_multi_and_are_known_after_the_day(vendor, read):
    put(
        vendor,
        "flows/bridge_volume_daily_by_bridge",
        bridge_id=[1, 2, 3],
        date=stamps(0, 0, 0),
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
def test_canonical_bridges_map_to_one_chain_from_their_date_on(bridge, chain):
    assert bridge_chain(bridge, T0) == chain
    assert bridge_chain(bridge, to_us("2015-01-01")) == "multi"


def test_chain_names_of_sources_become_one_name():
    assert [chain_name(name) for name in ("Ethereum", "Binance", "BSC", "zkSync Era", "xDai")] == [
        "ethereum",
        "bsc",
        "bsc",
        "zksync_era",
        "gnosis",
    ]


def test_supply_that_two_collectors_agree_on_is_one_row(vendor, read):
    put(
        vendor,
        "flows/stablecoin_circulating_daily_by_chain",
        date=stamps(0, 0, 24),
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


def test_value_locked_and_stablecoin_prices_reach_their_tables(vendor, read):
    put(vendor, "flows/tvl_daily_by_chain", date=stamps(0), chain=["Arbitrum"], tvl_usd=[7.0])
    put_bars(vendor, "stress/spot_USDCUSDT_1h", n=1, close=[0.98], low=[0.97], turnover=[1.0])
    assert [(row["chain"], row["tvl_usd"]) for row in read("chains")] == [("arbitrum", 7.0)]
    (peg,) = read("pegs")
    assert (peg["asset"], peg["price_usd"], iso(peg)) == ("USDC", 0.98, "2024-01-01T01:00:00Z")


def test_instruments_are_filled_from_what_was_ingested(vendor, read):
    put_bars(vendor, "bars/binance/1000PEPEUSDT_1h")
    put_bars(vendor, "bars/binance_spot/ETHUSDT_1h")
    rows = read("instruments")
    assert [(row["symbol"], row["base"], row["contract_multiplier"], row["kind"]) for row in rows] == [
        ("kPEPE", "PEPE", 1000.0, "linear"),
        ("ETH", "ETH", 1.0, "spot"),
    ]
    assert to_us(rows[0]["listing"]) == T0 + HOUR


def put_accounts(folder: Path) -> None:
    base = "accounts/hyperliquid_alpha_2023"
    outcome = {
        "next_liq_time": stamps(9, 9),
        "liq_1h": [True, False],
        "minutes_to_next_liq": [5.0, 5.0],
        "equity_below_mm_flag": [False, True],
        "life_end_recon_residual_usd": [1.0, 1.0],
    }
    put(
        folder,
        f"{base}/account_hourly_labelled",
        time=stamps(0, 0),
        user=["a", "b"],
        equity_recon_usd=[100.0, -5.0],
        unrealized_pnl_usd=[40.0, 10.0],
        maintenance_margin_usd=[3.0, 4.0],
        **outcome,
    )
    put(
        folder,
        f"{base}/position_hourly",
        time=stamps(0, 0),
        user=["b", "b"],
        coin=["ETH", "SOL"],
        side=[-1, 1],
        size=[2.0, 3.0],
        entry_px=[10.0, 11.0],
        mark_px_last_trade=[12.0, 13.0],
        mark_age_s=[1.0, 1.0],
        notional_usd=[30.0, 10.0],
        unrealized_pnl_usd=[0.0, 0.0],
    )
    put(
        folder,
        f"{base}/trades",
        time=stamps(0),
        user=["a"],
        coin=["ETH"],
        side=["Ask"],
        px=[10.0],
        size=[2.0],
        signed_size=[-2.0],
        is_taker=[True],
        seq=[7],
    )
    put(folder, f"{base}/ledger_updates", time=stamps(0, 1), user=["a", "a"], delta_usd=[50.0, -20.0])
    put(
        folder,
        f"{base}/liquidations",
        time=stamps(0.5, 0.6),
        user=["b", "a"],
        coins=["ETH+SOL", "BTC"],
        liquidated_notional_usd=[80.0, 50.0],
        side=[None, 1.0],
        mark_px_implied=[None, 25.0],
    )


def test_equity_less_open_profit_is_collateral_or_owed_cash(vendor, read):
    put_accounts(vendor)
    accounts, collateral = read("accounts"), read("collateral")
    assert [(row["account_id"], row["cash_usd"], row["maintenance_margin_usd"]) for row in accounts] == [
        ("a", 0.0, 3.0),
        ("b", -15.0, 4.0),
    ]
    assert [(row["chain"], row["asset"], row["amount"], row["price_usd"]) for row in collateral] == [
        ("hyperliquid", "USDC", 60.0, 1.0),
        ("hyperliquid", "USDC", 0.0, 1.0),
    ]


def test_positions_and_fills_are_signed_and_the_ledger_says_its_kind(vendor, read):
    put_accounts(vendor)
    assert [(row["symbol"], row["size"], row["mark_price"]) for row in read("positions")] == [
        ("ETH", -2.0, 12.0),
        ("SOL", 3.0, 13.0),
    ]
    assert [(row["size"], row["sequence"], row["is_taker"]) for row in read("trades")] == [(-2.0, 7, True)]
    assert [(row["delta_usd"], row["kind"]) for row in read("ledger")] == [
        (50.0, "deposit"),
        (-20.0, "withdrawal"),
    ]


def test_a_liquidation_of_several_coins_is_split_by_the_positions_before_it(vendor, read):
    put_accounts(vendor)
    assert [
        (row["account_id"], row["symbol"], row["side"], row["notional_usd"], row["size"])
        for row in read("liquidations")
    ] == [
        ("b", "ETH", "short", 60.0, None),
        ("b", "SOL", "long", 20.0, None),
        ("a", "BTC", "long", 50.0, 2.0),
    ]


def test_outcomes_never_enter_the_lake(vendor, read, tmp_path):
    put_accounts(vendor)
    read("accounts")
    lake = Lake(tmp_path / "lake")
    names = {name for table in lake.tables() for name in lake.read(table).column_names}
    assert not {name for name in names if name.startswith(("next_liq", "liq_", "minutes_", "life_end"))}
    assert "equity_below_mm_flag" not in names


def test_files_that_no_source_takes_are_listed(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h")
    put(vendor, "long_short/binance/BTCUSDT_4h", ts=stamps(0))
    (vendor / "notes.txt").write_text("x")
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [skip.path for skip in report.skipped] == ["long_short/binance/BTCUSDT_4h.parquet", "notes.txt"]
    assert (report.counts["files"], report.counts["files_skipped"], report.ok) == (1, 2, True)


def test_ingesting_twice_changes_no_byte(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h")
    put_bars(vendor, "bars/binance/BTCUSDT_5m", step=1 / 12)
    put_accounts(vendor)
    first = ingest("vendor", vendor, tmp_path / "lake")
    before = {path: path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file()}
    second = ingest("vendor", vendor, tmp_path / "lake")
    assert first.counts["bars"] == 6
    assert (second.counts["rows_added"], second.counts["rows_unchanged"]) == (0, first.counts["rows_added"])
    assert {path: path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file()} == before


def test_a_folder_or_file_inside_the_vendor_folder_is_enough(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h")
    file = put_bars(vendor, "bars/okx/ETHUSDT_1h")
    ingest("vendor", vendor / "bars" / "binance", tmp_path / "lake")
    ingest("vendor", file, tmp_path / "lake")
    assert {part.keys["symbol"] for part in Lake(tmp_path / "lake").partitions("bars")} == {"BTC", "ETH"}


def only_problem(vendor: Path, tmp_path: Path) -> Any:
    """Ingest a good market beside the bad one: the good one arrives, the bad one is told."""
    put_bars(vendor, "bars/okx/ETHUSDT_1h")
    report = ingest("vendor", vendor, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    assert [part.keys for part in lake.partitions("bars")] == [{"venue": "okx", "symbol": "ETH"}]
    assert not list(lake.path.rglob(".*"))
    assert not report.ok
    (problem,) = report.problems
    return problem


def test_a_truncated_file_is_told_and_leaves_nothing(vendor, tmp_path):
    path = put_bars(vendor, "bars/binance/BTCUSDT_1h")
    path.write_bytes(path.read_bytes()[:-50])
    problem = only_problem(vendor, tmp_path)
    assert (problem.code, problem.table, problem.market) == ("damaged-file", "bars", "BTCUSDT")
    assert "bars/binance/BTCUSDT_1h.parquet is truncated" in problem.message


def test_a_missing_column_is_told_and_leaves_nothing(vendor, tmp_path):
    path = put_bars(vendor, "bars/binance/BTCUSDT_1h")
    pq.write_table(pq.read_table(path).rename_columns(["ts", "open", "high", "low", "Close", "volume"]), path)
    problem = only_problem(vendor, tmp_path)
    assert problem.code == "missing-column"
    assert "lacks column 'close'" in problem.message
    assert "Did you mean 'Close'" in problem.message


def test_a_wrong_type_is_told_and_leaves_nothing(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h", close=["11", "11", "11"])
    problem = only_problem(vendor, tmp_path)
    assert (problem.code, problem.partition) == ("wrong-type", "bars/binance/BTCUSDT_1h.parquet")


def test_times_that_are_no_timestamps_are_told(vendor, tmp_path):
    path = put_bars(vendor, "bars/binance/BTCUSDT_1h")
    pq.write_table(pq.read_table(path).set_column(0, "ts", pa.array([0, 1, 2])), path)
    assert "has to hold timestamps, found int64" in only_problem(vendor, tmp_path).message


@pytest.mark.parametrize(("venue", "name"), [("binance", "BTCUSD_PERP"), ("bitmex", "XBTUSD")])
def test_an_inverse_contract_is_told_by_name_and_leaves_nothing(vendor, tmp_path, venue, name):
    put_bars(vendor, f"bars/{venue}/{name}_1h")
    problem = only_problem(vendor, tmp_path)
    assert (problem.code, problem.market) == ("inverse-contract", f"{venue}:{name}")


def test_an_unknown_symbol_is_told_and_leaves_nothing(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCEUR_1h")
    assert only_problem(vendor, tmp_path).code == "unknown-symbol"


def test_single_bad_rows_are_dropped_and_told_with_their_number(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h", high=[12.0, 8.0, 12.0])
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [(problem.code, problem.row) for problem in report.problems] == [("high-below-low", 1)]
    assert (report.counts["bars"], report.counts["rows_dropped"]) == (2, 1)


def test_duplicate_keys_in_a_file_are_told_and_the_first_row_stays(vendor, tmp_path):
    put(
        vendor,
        "funding/binance/BTCUSDT",
        ts=stamps(0, 0, 8),
        funding_rate=[1e-4, 2e-4, 3e-4],
        interval_h=[8, 8, 8],
    )
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [problem.code for problem in report.problems] == ["duplicate-key"]
    assert Lake(tmp_path / "lake").read("funding").column("rate").to_pylist() == [1e-4, 3e-4]


def test_history_that_a_provider_restated_is_refused_as_a_conflict(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h")
    ingest("vendor", vendor, tmp_path / "lake")
    put_bars(vendor, "bars/binance/BTCUSDT_1h", close=[11.0, 10.5, 11.0])
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [(problem.code, problem.row) for problem in report.problems] == [("conflicting-row", 1)]
    assert Lake(tmp_path / "lake").read("bars").column("close").to_pylist() == [11.0] * 3


def test_a_folder_without_parquet_is_an_error(vendor, tmp_path):
    with pytest.raises(DataError, match="holds no Parquet file"):
        ingest("vendor", vendor, tmp_path / "lake")
    with pytest.raises(DataError, match="does not exist"):
        ingest("vendor", tmp_path / "nowhere", tmp_path / "lake")


@pytest.mark.parametrize("kind", ["binance", "freqtrade", "vendr"])
def test_a_kind_that_is_not_there_names_those_that_are(kind, vendor, tmp_path):
    with pytest.raises(ConfigError, match=f"ingest of kind '{kind}' is not supported, only vendor, tables"):
        ingest(kind, vendor, tmp_path / "lake")


def test_progress_reaches_the_number_of_files(vendor, tmp_path):
    put_bars(vendor, "bars/binance/BTCUSDT_1h")
    put_bars(vendor, "bars/binance/BTCUSDT_4h", step=4.0)
    put_bars(vendor, "bars/binance/ETHUSDT_1h")
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
