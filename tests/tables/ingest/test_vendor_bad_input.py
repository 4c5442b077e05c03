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
