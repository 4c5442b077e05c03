"""Bad vendor files: told with table, market and row, and the good ones beside them arrive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from riskml.errors import Problem
from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us


def only_problem(make: SimpleNamespace, vendor: Path, tmp_path: Path) -> Problem:
    """Ingest a good market beside the bad one: the good one arrives, the bad one is told."""
    make.put_bars(vendor, "bars/okx/ETHUSDT_1h")
    report = ingest("vendor", vendor, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    assert [part.keys for part in lake.partitions("bars")] == [{"venue": "okx", "symbol": "ETH"}]
    assert not list(lake.path.rglob(".*"))
    assert not report.ok
    (problem,) = report.problems
    return problem


def test_a_truncated_file_is_told_and_leaves_nothing(make, vendor, tmp_path):
    path = make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    path.write_bytes(path.read_bytes()[:-50])
    problem = only_problem(make, vendor, tmp_path)
    assert (problem.code, problem.table, problem.market) == ("damaged-file", "bars", "BTCUSDT")
    assert "bars/binance/BTCUSDT_1h.parquet is truncated" in problem.message


def test_a_missing_column_is_told_and_leaves_nothing(make, vendor, tmp_path):
    path = make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    pq.write_table(pq.read_table(path).rename_columns(["ts", "open", "high", "low", "Close", "volume"]), path)
    problem = only_problem(make, vendor, tmp_path)
    assert problem.code == "missing-column"
    assert "lacks column 'close'" in problem.message
    assert "Did you mean 'Close'" in problem.message


def test_a_wrong_type_is_told_and_leaves_nothing(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h", close=["11", "11", "11"])
    problem = only_problem(make, vendor, tmp_path)
    assert (problem.code, problem.partition) == ("wrong-type", "bars/binance/BTCUSDT_1h.parquet")


def test_times_that_are_no_timestamps_are_told(make, vendor, tmp_path):
    path = make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    pq.write_table(pq.read_table(path).set_column(0, "ts", pa.array([0, 1, 2])), path)
    assert "has to hold timestamps, found int64" in only_problem(make, vendor, tmp_path).message


def test_parts_of_a_microsecond_carry_nothing(make, vendor, read):
    path = make.put_bars(vendor, "bars/binance/BTCUSDT_1h", n=1)
    odd = pa.array([make.T0 * 1000 + 1], pa.timestamp("ns", tz="UTC"))
    pq.write_table(pq.read_table(path).set_column(0, "ts", odd), path)
    assert [to_us(row["ts"]) for row in read("bars")] == [make.T0 + HOUR]


@pytest.mark.parametrize(("step", "found"), [(0.25, "0.25 h"), (4.0, "4 h")])
def test_bars_of_another_interval_than_the_name_says_are_refused(make, vendor, tmp_path, step, found):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h", n=8, step=step)
    problem = only_problem(make, vendor, tmp_path)
    assert (problem.code, problem.market) == ("wrong-interval", "BTCUSDT")
    assert f"rows every 1h are expected, most are {found} apart" in problem.message


LOANS = {
    "collateral_symbol": ["WETH"],
    "collateral_amount": [2.0],
    "collateral_usd": [105.0],
    "debt_symbol": ["USDC"],
    "debt_amount": [100.0],
    "debt_repaid_usd": [100.0],
    "account": ["a"],
}
RESERVES = {
    "chain": ["bnb"],
    "symbol": ["USDT"],
    "variable_borrow_apr": [0.04],
    "variable_borrow_index": [1.1],
    "active": [True],
    "frozen": [False],
    "paused": [False],
}
CLOSED = {
    "user": ["a"],
    "coins": ["BTC"],
    "liquidated_notional_usd": [50.0],
    "side": [1.0],
    "mark_px_implied": [25.0],
}
SPOILED = [
    *(("liquidations/aave_v2_2020_2022", "time", LOANS, column) for column in LOANS),
    *(("flows/aave_v3_reserves_daily_by_chain", "snapshot_time", RESERVES, column) for column in RESERVES),
    *(("accounts/hyperliquid_alpha_2023/liquidations", "time", CLOSED, column) for column in CLOSED),
]


@pytest.mark.parametrize("cell", [[1], None], ids=["list", "null"])
@pytest.mark.parametrize(("name", "time", "columns", "spoiled"), SPOILED)
def test_whatever_kind_of_cells_a_column_holds_the_good_market_beside_it_arrives(
    make, vendor, tmp_path, name, time, columns, spoiled, cell
):
    make.put(vendor, name, **{time: make.stamps(0)}, **(columns | {spoiled: [cell]}))
    make.put_bars(vendor, "bars/okx/ETHUSDT_1h")
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert report.counts["bars"] == 3
    if cell is not None:
        assert [problem.code for problem in report.problems] == ["wrong-type"]
        assert f"column '{spoiled}' has to hold" in report.problems[0].message
    elif spoiled in ("coins", "chain", "active"):
        assert not report.ok


def test_bars_beside_depth_that_cannot_be_read_leave_the_other_files_unharmed(make, vendor, tmp_path):
    path = make.put_bars(vendor, "bars/binance/SOLUSDT_1h")
    path.write_bytes(path.read_bytes()[:-50])
    book = {"bid_depth_1pct": [1.0], "ask_depth_1pct": [1.0]}
    make.put(vendor, "depth/binance/SOLUSDT_8h", ts=make.stamps(1), **book)
    make.put_bars(vendor, "bars/okx/ETHUSDT_1h")
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [problem.code for problem in report.problems] == ["damaged-file", "bad-file"]
    assert "depth/binance/SOLUSDT_8h.parquet holds cells that source" in report.problems[1].message
    assert report.counts["bars"] == 3


@pytest.mark.parametrize(("venue", "name"), [("binance", "BTCUSD_PERP"), ("bitmex", "XBTUSD")])
def test_an_inverse_contract_is_told_by_name_and_leaves_nothing(make, vendor, tmp_path, venue, name):
    make.put_bars(vendor, f"bars/{venue}/{name}_1h")
    problem = only_problem(make, vendor, tmp_path)
    assert (problem.code, problem.market) == ("inverse-contract", f"{venue}:{name}")


def test_an_unknown_symbol_is_told_and_leaves_nothing(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCEUR_1h")
    assert only_problem(make, vendor, tmp_path).code == "unknown-symbol"


def test_single_bad_rows_are_dropped_and_told_with_their_number(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h", high=[12.0, 8.0, 12.0])
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [(problem.code, problem.row) for problem in report.problems] == [("high-below-low", 1)]
    assert (report.counts["bars"], report.counts["rows_dropped"]) == (2, 1)


def test_duplicate_keys_in_a_file_are_told_and_the_first_row_stays(make, vendor, tmp_path):
    make.put(
        vendor,
        "funding/binance/BTCUSDT",
        ts=make.stamps(0, 0, 8),
        funding_rate=[1e-4, 2e-4, 3e-4],
        interval_h=[8, 8, 8],
    )
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [problem.code for problem in report.problems] == ["duplicate-key"]
    assert Lake(tmp_path / "lake").read("funding").column("rate").to_pylist() == [1e-4, 3e-4]


def test_history_that_a_provider_restated_is_refused_as_a_conflict(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    ingest("vendor", vendor, tmp_path / "lake")
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h", close=[11.0, 10.5, 11.0])
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [(problem.code, problem.row) for problem in report.problems] == [("conflicting-row", 1)]
    assert Lake(tmp_path / "lake").read("bars").column("close").to_pylist() == [11.0] * 3
