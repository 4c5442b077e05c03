"""A freqtrade data folder: candles by their open, funding rates in ``open``, names of files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from riskml.errors import DataError, Problem
from riskml.tables.ingest import IngestReport, ingest
from riskml.tables.ingest.freqtrade import settlement_intervals
from riskml.tables.lake import Lake
from riskml.units import HOUR, format_us, to_us

T0 = to_us("2024-01-01")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "user_data" / "data"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def dates(*hours: float, unit: str = "ms") -> pa.Array:
    times = pa.array([T0 // 1000 + round(hour * HOUR / 1000) for hour in hours], pa.timestamp("ms", tz="UTC"))
    return times.cast(pa.timestamp(unit, tz="UTC"))


def put(data: Path, name: str, hours: tuple[float, ...] = (0, 1, 2), **columns: Any) -> Path:
    n = len(hours)
    table = {
        "date": dates(*hours),
        "open": [10.0] * n,
        "high": [12.0] * n,
        "low": [9.0] * n,
        "close": [11.0] * n,
        "volume": [5.0] * n,
    }
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table(table | columns)
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    else:
        pyarrow.feather.write_feather(rows, path, compression="lz4")
    return path


def put_funding(data: Path, name: str, hours: tuple[float, ...], rate: float = 1e-4) -> Path:
    zeros = {column: [0.0] * len(hours) for column in ("high", "low", "close", "volume")}
    return put(data, name, hours, open=[rate] * len(hours), **zeros)


def run(path: Path, lake: Lake) -> IngestReport:
    """Ingest without a problem."""
    report = ingest("freqtrade", path, lake.path)
    assert report.problems == ()
    return report


def iso(row: dict[str, Any], column: str = "ts") -> str:
    return format_us(to_us(row[column]))


def test_a_futures_candle_is_a_bar_that_is_stamped_and_known_at_its_close(data, lake):
    put(data, "binance/futures/1000PEPE_USDT_USDT-1h-futures.feather")
    report = run(data, lake)
    rows = lake.read("bars").to_pylist()
    assert [iso(row) for row in rows] == [f"2024-01-01T0{hour}:00:00Z" for hour in (1, 2, 3)]
    assert all(row["known_at"] == row["ts"] for row in rows)
    first = rows[0]
    assert (first["venue"], first["symbol"], first["interval"]) == ("binance", "kPEPE", "1h")
    assert (first["open"], first["high"], first["low"], first["close"]) == (10.0, 12.0, 9.0, 11.0)
    assert (first["volume"], first["trades"]) == (5.0, None)
    assert (report.counts["files"], report.counts["rows_added"]) == (1, 3)
    (instrument,) = lake.read("instruments").to_pylist()
    assert (instrument["contract_multiplier"], instrument["kind"]) == (1000.0, "linear")


@pytest.mark.parametrize(
    ("name", "market"),
    [
        ("binance/futures/BTC_USDT_USDT-5m-futures.feather", ("binance", "BTC", "5m")),
        ("binance/futures/BTC_USDC_USDC-1h-futures.feather", ("binance", "BTC-USDC", "1h")),
        ("hyperliquid/futures/kPEPE_USDC_USDC-1h-futures.feather", ("hyperliquid", "kPEPE", "1h")),
        ("hyperliquid/futures/BTC_USDC_USDC-1h-futures.parquet", ("hyperliquid", "BTC", "1h")),
        ("okx/futures/ETH_USDT_USDT-15m-futures.feather", ("okx", "ETH", "15m")),
        ("bybit/futures/ETH_USDT_USDT-1d-futures.feather", ("bybit", "ETH", "1d")),
        ("binance/BTC_USDT-1h.feather", ("binance_spot", "BTC", "1h")),
        ("kraken/BTC_USD-1h.feather", ("kraken_spot", "BTC", "1h")),
        ("gateio/SOL_USDT-1h.feather", ("gate_spot", "SOL", "1h")),
        ("brand_new/futures/NEW_USDT_USDT-1h-futures.feather", ("brand_new", "NEW", "1h")),
    ],
)
def test_exchange_market_and_interval_are_read_from_the_place(data, lake, name, market):
    put(data, name, (0,))
    run(data, lake)
    (row,) = lake.read("bars").to_pylist()
    assert (row["venue"], row["symbol"], row["interval"]) == market


def test_mark_and_index_candles_of_a_market_become_one_row(data, lake):
    put(data, "gateio/futures/BTC_USDT_USDT-1h-mark.feather", (0, 1))
    put(data, "gateio/futures/BTC_USDT_USDT-1h-index.feather", (0,), close=[10.5])
    run(data, lake)
    rows = lake.read("marks").to_pylist()
    assert [(row["venue"], row["mark_close"], row["index_close"]) for row in rows] == [
        ("gate", 11.0, 10.5),
        ("gate", 11.0, None),
    ]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_dates_of_any_precision_are_the_same_times(data, lake, unit):
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather", date=dates(0, 1, 2, unit=unit))
    run(data, lake)
    assert iso(lake.read("bars").to_pylist()[0]) == "2024-01-01T01:00:00Z"


def test_a_funding_rate_is_the_open_and_covers_the_time_since_the_one_before(data, lake):
    late = 7 / 3_600_000  # seven milliseconds
    put_funding(data, "binance/futures/BTC_USDT_USDT-1h-funding_rate.feather", (0, 8 + late, 16, 20, 24))
    run(data, lake)
    rows = lake.read("funding").to_pylist()
    assert [(iso(row)[8:13], row["rate"], row["interval_h"]) for row in rows] == [
        ("01T00", 1e-4, 8.0),
        ("01T08", 1e-4, 8.0),
        ("01T16", 1e-4, 8.0),
        ("01T20", 1e-4, 4.0),
        ("02T00", 1e-4, 4.0),
    ]
    assert all(row["known_at"] == row["ts"] for row in rows)


@pytest.mark.parametrize(
    ("hours", "intervals"),
    [
        ((0, 8, 16), (8, 8, 8)),
        ((0, 1, 2), (1, 1, 1)),
        ((0, 8, 16, 20, 24), (8, 8, 8, 4, 4)),
        ((0, 4, 8, 16, 20, 24), (4, 4, 4, 4, 4, 4)),  # the row of 12:00 is missing
        ((0, 8, 40, 48), (8, 8, 8, 8)),  # a hole of more than a day
        ((0, 4, 12, 20), (4, 4, 8, 8)),  # a venue that goes back to 8 h
        ((0, 8, 72), (8, 8, 8)),  # a hole before the last row
        ((0, 5, 10), (None, None, None)),
        ((0,), (None,)),
        ((), ()),
    ],
)
def test_the_hours_of_a_rate_follow_from_the_settlements_around_it(hours, intervals):
    found = settlement_intervals(T0 + np.array(hours, np.int64) * HOUR)
    expected = np.array([np.nan if value is None else value for value in intervals], float)
    np.testing.assert_array_equal(found, expected)


def test_a_rate_whose_hours_cannot_be_told_is_dropped_and_told(data, lake):
    put_funding(data, "binance/futures/BTC_USDT_USDT-8h-funding_rate.feather", (0,))
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather")
    report = ingest("freqtrade", data, lake.path)
    (problem,) = report.problems
    assert (problem.code, problem.table, problem.market) == (
        "unknown-interval",
        "funding",
        "binance:BTC/USDT:USDT",
    )
    assert report.counts["rows_dropped"] == 1
    assert lake.tables() == ["instruments", "bars"]


def test_the_last_candle_is_left_out_when_the_file_is_older_than_its_end(data, lake):
    path = put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather")
    written = (T0 + 2 * HOUR) / 1e6 + 600  # ten minutes into the third candle
    os.utime(path, (written, written))
    report = run(data, lake)
    assert [iso(row)[11:13] for row in lake.read("bars").to_pylist()] == ["01", "02"]
    assert [(skip.path, skip.rows) for skip in report.skipped] == [("futures", 1)]
    os.utime(path, (0, 0))  # a time that is older than all rows says nothing
    assert run(data, lake).counts["rows_added"] == 1


def test_both_formats_of_one_market_give_each_row_once_and_ingesting_twice_adds_nothing(data, lake):
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather")
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.parquet")
    first, second = run(data, lake).counts, run(data, lake).counts
    assert (first["rows_added"], first["rows_unchanged"]) == (3, 3)
    assert (second["rows_added"], second["rows_unchanged"]) == (0, 6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("binance/futures/BTC_USD_BTC-1h-futures.feather", "inverse-contract: .* pays profit in BTC"),
        ("binance/futures/BTC_USDT_USDT-240628-1h-futures.feather", "dated-contract"),
        ("binance/futures/BTC_USDT-1h-mark.feather", "has to be BASE_QUOTE_SETTLE"),
        ("binance/futures/BTC_USDT_USDT-1h.feather", "has to be BASE_QUOTE"),
        ("binance/ETH_BTC-1h.feather", "unknown-symbol"),
        ("binance/futures/BTC_USDT_USDT-1h-premiumIndex.feather", "'premiumIndex' is not needed"),
        ("binance/futures/BTC_USDT_USDT-1w-futures.feather", "bars of 1w are not supported"),
        ("binance/futures/BTC_USDT_USDT-1Mo-futures.feather", "bars of 1Mo are not supported"),
        ("gateio/futures/BTC_USDT_USDT-1h-futures.feather", "volume of gate futures is in contracts"),
        ("binance/futures/BTC_USDT_USDT-trades.feather", "single trades"),
        ("binance/BTC_USDT-trades.json.gz", "single trades"),
        ("binance/futures/BTC_USDT_USDT-1h-futures.json.gz", "freqtrade convert-data"),
        ("binance/BTC_USDT-1h.json", "freqtrade convert-data"),
        ("binance/BTC_USDT-1h.h5", "freqtrade convert-data"),
        ("binance/leverage_tiers_USDT.feather", "not one of freqtrade"),
        ("binance/notes.txt", "neither feather nor Parquet"),
    ],
)
def test_what_is_not_supported_is_left_out_by_name_and_unread(data, lake, name, reason):
    put(data, "okx/futures/ETH_USDT_USDT-1h-futures.feather")
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"unread")
    (skip,) = run(data, lake).skipped
    assert skip.path == name
    assert re.search(reason, skip.reason)
    assert [part.keys["symbol"] for part in lake.partitions("bars")] == ["ETH"]


def only_problem(data: Path, lake: Lake) -> Problem:
    put(data, "okx/futures/ETH_USDT_USDT-1h-futures.feather")
    report = ingest("freqtrade", data, lake.path)
    assert [part.keys["symbol"] for part in lake.partitions("bars")] == ["ETH"]
    assert not list(lake.path.rglob(".*"))
    (problem,) = report.problems
    return problem


@pytest.mark.parametrize("suffix", ["feather", "parquet"])
def test_a_truncated_file_is_told_and_leaves_the_others_unharmed(data, lake, suffix):
    path = put(data, f"binance/futures/BTC_USDT_USDT-1h-futures.{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    problem = only_problem(data, lake)
    assert (problem.code, problem.table, problem.market) == ("damaged-file", "bars", "binance:BTC/USDT:USDT")


@pytest.mark.parametrize(
    ("columns", "code", "message"),
    [
        ({"date": [0, 1, 2]}, "wrong-type", "'date' has to hold timestamps, found int64"),
        ({"date": pa.array([None] * 3, pa.timestamp("ms", tz="UTC"))}, "wrong-type", "found null"),
        ({"close": ["a", "b", "c"]}, "wrong-type", "have to be numbers"),
        ({"high": [12.0, 8.0, 12.0]}, "high-below-low", "'high' is below 'low'"),
        ({"close": [11.0, -1.0, 11.0]}, "wrong-sign", "has to be above 0"),
        ({"open": [10.0, float("inf"), 10.0]}, "not-finite", "is infinite"),
    ],
)
def test_wrong_columns_and_values_are_told(data, lake, columns, code, message):
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather", **columns)
    report = ingest("freqtrade", data, lake.path)
    (problem,) = report.problems
    assert (problem.code, message in problem.message) == (code, True)


@pytest.mark.parametrize(("step", "found"), [(0.25, "0.25 h"), (4, "4 h")])
def test_candles_of_another_interval_than_the_name_says_are_refused(data, lake, step, found):
    """Quarter hours in a file of hours would give every fourth one as an hour."""
    hours = tuple(step * k for k in range(16))
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather", hours)
    problem = only_problem(data, lake)
    assert (problem.code, problem.market) == ("wrong-interval", "binance:BTC/USDT:USDT")
    assert f"candles of 1h are expected, most are {found} apart" in problem.message


def test_holes_do_not_make_another_interval(data, lake):
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather", (0, 1, 2, 5, 9, 10, 30))
    run(data, lake)
    assert lake.read("bars").num_rows == 7


def test_a_missing_column_is_told_with_the_nearest_name(data, lake):
    path = put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather")
    rows = pyarrow.feather.read_table(path).rename_columns(["date", "open", "high", "low", "Close", "volume"])
    pyarrow.feather.write_feather(rows, path)
    problem = only_problem(data, lake)
    assert problem.code == "missing-column"
    assert "Did you mean 'Close'" in problem.message


def test_a_single_file_and_an_exchange_s_folder_are_told_by_the_folders_above_them(data, lake):
    path = put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather")
    for part in (path, path.parent, path.parents[1], path.parents[3]):
        run(part, lake)
    assert [part.keys for part in lake.partitions("bars")] == [{"venue": "binance", "symbol": "BTC"}]


def test_a_file_in_a_folder_that_names_no_exchange_is_never_guessed(tmp_path, lake):
    path = put(tmp_path / "downloads", "BTC_USDT-1h.feather")
    with pytest.raises(DataError, match="do not say of which exchange"):
        ingest("freqtrade", path, lake.path)
    assert not lake.path.exists()


def test_bars_that_another_source_stored_with_more_columns_are_one_problem(data, lake):
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather")
    run(data, lake)
    put(data, "binance/futures/BTC_USDT_USDT-1h-futures.feather", volume=[6.0] * 3)
    (problem,) = ingest("freqtrade", data, lake.path).problems
    assert (problem.code, problem.market) == ("conflicting-row", "binance:BTC")
    assert "3 such rows" in problem.message
    assert "one source per market" in problem.fix
