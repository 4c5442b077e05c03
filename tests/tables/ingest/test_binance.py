"""Binance's public archive: each dataset's rows, and how a file's place says what it is."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from riskml.errors import ConfigError, DataError
from riskml.tables.ingest import IngestReport, ingest
from riskml.tables.lake import Lake
from riskml.units import HOUR, MINUTE, format_us, to_us

T0_MS = to_us("2024-01-01") // 1000
HOUR_MS = HOUR // 1000
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore\n"
)
UM = "data/futures/um/monthly"


def candle(open_ms: int, close: float = 11.0, *, volume: float = 5.0, span_ms: int = HOUR_MS) -> str:
    return f"{open_ms},10.0,12.0,9.0,{close},{volume},{open_ms + span_ms - 1},55.0,7,2.0,22.0,0\n"


def candles(n: int = 3, **options: Any) -> str:
    return "".join(candle(T0_MS + row * HOUR_MS, **options) for row in range(n))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def put(tree: Path, name: str, text: str) -> Path:
    """Write ``text`` as the CSV of a zip file, or as a CSV file, by the name's ending."""
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        path.write_text(text, encoding="utf-8")
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{path.stem}.csv", text)
    return path


def run(path: Path, lake: Lake, **options: Any) -> IngestReport:
    """Ingest without a problem."""
    report = ingest("binance", path, lake.path, **options)
    assert report.problems == ()
    return report


def iso(row: dict[str, Any], column: str = "ts") -> str:
    return format_us(to_us(row[column]))


def test_a_kline_is_a_bar_that_is_stamped_and_known_at_its_close(tree, lake):
    put(tree, f"{UM}/klines/1000PEPEUSDT/1h/1000PEPEUSDT-1h-2024-01.zip", HEADER + candles())
    report = run(tree, lake)
    rows = lake.read("bars").to_pylist()
    assert [iso(row) for row in rows] == [f"2024-01-01T0{hour}:00:00Z" for hour in (1, 2, 3)]
    assert all(row["known_at"] == row["ts"] for row in rows)
    assert {name: rows[0][name] for name in rows[0] if name not in ("ts", "known_at")} == {
        "venue": "binance",
        "symbol": "kPEPE",
        "interval": "1h",
        "open": 10.0,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0,
        "volume": 5.0,
        "quote_volume": 55.0,
        "trades": 7.0,
        "taker_buy_volume": 2.0,
    }
    assert (report.counts["files"], report.counts["rows_added"], report.counts["bars"]) == (1, 3, 3)
    (instrument,) = lake.read("instruments").to_pylist()
    assert (instrument["vendor_symbol"], instrument["contract_multiplier"]) == ("1000PEPEUSDT", 1000.0)
    assert (instrument["kind"], iso(instrument, "listing")) == ("linear", "2024-01-01T01:00:00Z")


def test_a_header_a_byte_order_mark_and_an_unzipped_file_change_nothing(tree, lake, tmp_path):
    name = f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01"
    put(tree / "a", f"{name}.zip", candles())
    put(tree / "b", f"{name}.zip", "\ufeff" + HEADER + candles())
    put(tree / "c", f"{name}.csv", HEADER.replace("\n", "\r\n") + candles().replace("\n", "\r\n"))
    lakes = [Lake(tmp_path / f"lake-{part}") for part in "abc"]
    for part, lake in zip("abc", lakes, strict=True):
        run(tree / part, lake)
    assert lakes[0].read("bars").num_rows == 3
    assert all(lakes[0].read("bars").equals(lake.read("bars")) for lake in lakes[1:])


def test_spot_files_in_microseconds_give_the_bars_of_those_in_milliseconds(tree, lake):
    at = to_us("2025-01-01")
    row = f"{at},10,12,9,11,5,{at + HOUR - 1},55,7,2,22,0\n"
    put(tree, "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01-01.zip", row)
    put(tree, "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles(1))
    run(tree, lake)
    rows = lake.read("bars").to_pylist()
    assert [(iso(row), row["venue"]) for row in rows] == [
        ("2024-01-01T01:00:00Z", "binance_spot"),
        ("2025-01-01T01:00:00Z", "binance_spot"),
    ]
    assert lake.read("instruments").to_pylist()[0]["kind"] == "spot"


def test_mark_and_index_prices_of_a_market_become_one_row(tree, lake):
    dull = {"volume": 0.0}
    put(tree, f"{UM}/markPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", HEADER + candles(3, **dull))
    put(tree, f"{UM}/indexPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles(2, close=10.5, **dull))
    assert run(tree, lake).counts["marks"] == 3
    rows = lake.read("marks").to_pylist()
    assert [(iso(row), row["mark_close"], row["index_close"]) for row in rows] == [
        ("2024-01-01T01:00:00Z", 11.0, 10.5),
        ("2024-01-01T02:00:00Z", 11.0, 10.5),
        ("2024-01-01T03:00:00Z", 11.0, None),
    ]


def test_an_index_that_comes_after_its_marks_were_stored_is_one_problem_with_the_way_out(tree, lake):
    put(tree, f"{UM}/markPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles(3, volume=0.0))
    run(tree, lake)
    put(tree, f"{UM}/indexPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles(3, volume=0.0))
    (problem,) = ingest("binance", tree, lake.path).problems
    assert (problem.code, problem.market) == ("conflicting-row", "binance:BTC")
    assert "3 such rows" in problem.message
    assert "mark and index files to one ingest" in problem.fix


def test_funding_keeps_its_own_interval_and_loses_the_milliseconds_of_its_stamp(tree, lake):
    rows = f"{T0_MS + 7},8,0.0001\n{T0_MS + 4 * HOUR_MS},4,-0.002\n"
    text = f"calc_time,funding_interval_hours,last_funding_rate\n{rows}"
    put(tree, f"{UM}/fundingRate/BTCUSDC/BTCUSDC-fundingRate-2024-01.zip", text)
    run(tree, lake)
    rows = lake.read("funding").to_pylist()
    assert [(iso(row), row["symbol"], row["rate"], row["interval_h"]) for row in rows] == [
        ("2024-01-01T00:00:00Z", "BTC-USDC", 0.0001, 8.0),
        ("2024-01-01T04:00:00Z", "BTC-USDC", -0.002, 4.0),
    ]


METRICS = (
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio\n"
)


def metrics(tree: Path, day: str, *rows: str) -> None:
    text = METRICS + "".join(f"{row}\n" for row in rows)
    put(tree, f"data/futures/um/daily/metrics/BTCUSDT/BTCUSDT-metrics-{day}.zip", text)


def test_metrics_are_open_interest_and_the_share_that_is_long_known_five_minutes_later(tree, lake):
    metrics(tree, "2024-01-05", "2024-01-05 00:05:00,BTCUSDT,100.5,4000000.0,1.0,0.25,3.0,0.9")
    report = run(tree, lake)
    (interest,) = lake.read("open_interest").to_pylist()
    assert (iso(interest), iso(interest, "known_at")) == ("2024-01-05T00:05:00Z", "2024-01-05T00:10:00Z")
    assert (interest["open_interest"], interest["open_interest_usd"]) == (100.5, 4e6)
    shares = {row["population"]: row["long_fraction"] for row in lake.read("long_short").to_pylist()}
    assert shares == {"global_account": 0.75, "top_account": 0.5, "top_position": 0.2}
    assert [(skip.path, skip.rows) for skip in report.skipped] == [("metrics", 1)]
    assert "the taker ratio" in report.skipped[0].reason


def test_metrics_that_are_labelled_with_the_start_of_their_minutes_are_moved_to_the_end(tree, lake):
    metrics(tree, "2026-06-24", "2026-06-25 00:00:00,BTCUSDT,1.0,10.0,1,1,1,1")
    metrics(tree, "2026-06-25", "2026-06-25 00:00:00,BTCUSDT,2.0,20.0,1,1,1,1")
    run(tree, lake)
    rows = lake.read("open_interest").to_pylist()
    assert [(iso(row), row["open_interest"]) for row in rows] == [
        ("2026-06-25T00:00:00Z", 1.0),
        ("2026-06-25T00:05:00Z", 2.0),
    ]


def test_an_open_interest_of_zero_is_a_hole_and_a_repeated_row_is_one_row(tree, lake):
    good = "2022-03-08 00:10:00,BTCUSDT,1.0,10.0,1,1,,1"
    metrics(tree, "2022-03-08", "2022-03-08 00:05:00,BTCUSDT,0,0,1,1,1,1", good, good)
    report = run(tree, lake)
    assert lake.read("open_interest").num_rows == 1
    counted = {skip.reason: skip.rows for skip in report.skipped}
    assert counted["open interest of 0 or none: it was not recorded"] == 1
    assert counted["no long/short ratio"] == 2
    assert report.counts["rows_unchanged"] == 3


def test_book_depth_is_the_last_snapshot_of_each_minute_in_bands_around_the_middle(tree, lake):
    def snapshot(at: str, scale: float, *percents: float) -> str:
        return "".join(f"2024-01-05 {at},{p},{scale * abs(p)},{scale * abs(p) * 100}\n" for p in percents)

    text = (
        "timestamp,percentage,depth,notional\n"
        + snapshot("00:00:05", 1.0, -1, -0.2, 0.2, 1)
        + snapshot("00:00:35", 2.0, -1, -0.2, 0.2, 1)
        + snapshot("00:01:10", 3.0, -5, -1, 1)
    )
    put(tree, "data/futures/um/daily/bookDepth/BTCUSDT/BTCUSDT-bookDepth-2024-01-05.zip", text)
    report = run(tree, lake)
    rows = lake.read("depth").to_pylist()
    assert [(iso(row), row["band_bps"], row["bid_usd"], row["ask_usd"]) for row in rows] == [
        ("2024-01-05T00:00:35Z", 20.0, 40.0, 40.0),
        ("2024-01-05T00:00:35Z", 100.0, 200.0, 200.0),
        ("2024-01-05T00:01:10Z", 100.0, 300.0, 300.0),
    ]
    assert iso(rows[0], "known_at") == "2024-01-05T00:00:36Z"
    assert sorted(skip.rows for skip in report.skipped) == [1, 4]


def test_liquidations_count_each_order_once_and_a_forced_sale_closes_a_long(tree, lake):
    header = (
        "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,"
        "last_fill_quantity,accumulated_fill_quantity\n"
    )
    sale = f"{T0_MS + 5},SELL,LIMIT,IOC,3,99,100.0,FILLED,1,3\n"
    other = f"{T0_MS + 5},SELL,LIMIT,IOC,1,99,120.0,FILLED,1,1\n"
    bought = f"{T0_MS + 9},BUY,LIMIT,IOC,2,99,50.0,FILLED,2,2\n"
    name = "data/futures/um/daily/liquidationSnapshot/BTCUSDT/BTCUSDT-liquidationSnapshot-2024-01-01.zip"
    put(tree, name, header + sale + sale + other + bought + bought)
    run(tree, lake)
    rows = lake.read("liquidations").to_pylist()
    assert [(row["side"], row["size"], row["price"], row["notional_usd"]) for row in rows] == [
        ("long", 4.0, 105.0, 420.0),
        ("short", 2.0, 50.0, 100.0),
    ]


def test_a_month_and_its_days_give_each_row_once_and_ingesting_twice_adds_nothing(tree, lake):
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", HEADER + candles(4))
    put(tree, "data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01-01.zip", candles(3))
    first = run(tree, lake).counts
    assert (first["rows_added"], first["rows_unchanged"], first["rows_dropped"]) == (4, 3, 0)
    files = {path: path.read_bytes() for path in lake.path.rglob("*.parquet")}
    second = run(tree, lake).counts
    assert (second["rows_added"], second["rows_unchanged"]) == (0, 7)
    assert {path: path.read_bytes() for path in lake.path.rglob("*.parquet")} == files


def test_days_that_contradict_their_month_are_one_problem_and_the_month_counts(tree, lake):
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles(4))
    put(tree, "data/futures/um/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01-01.zip", candles(3, close=10.0))
    (problem,) = ingest("binance", tree, lake.path).problems
    assert (problem.code, problem.table, problem.market) == ("conflicting-files", "bars", "binance:BTC")
    assert "3 rows are given twice" in problem.message
    assert lake.read("bars").column("close").to_pylist() == [11.0] * 4


def test_bars_of_several_intervals_and_the_turn_of_the_year_are_kept_apart(tree, lake):
    at = to_us("2023-12-31T23:00") // 1000
    minutes = "".join(candle(T0_MS + row * 60_000, span_ms=60_000) for row in range(2))
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2023-12.zip", candle(at))
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles(1))
    put(tree, f"{UM}/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01.zip", minutes)
    run(tree, lake)
    hours = lake.read("bars", interval="1h").to_pylist()
    assert [iso(row) for row in hours] == ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"]
    assert lake.read("bars", interval="1m").num_rows == 2


def test_the_archive_and_the_vendor_layout_of_the_same_history_are_the_same_rows(make, tree, vendor, lake):
    ohlc = {"open": [10.0] * 3, "high": [12.0] * 3, "low": [9.0] * 3, "close": [11.0] * 3}
    make.put_bars(
        vendor,
        "bars/binance/1000PEPEUSDT_1h",
        quote_volume=[55.0] * 3,
        trades=[7] * 3,
        taker_buy_volume=[2.0] * 3,
    )
    make.put(vendor, "mark/binance/1000PEPEUSDT_1h", ts=make.stamps(0, 1, 2), **ohlc)
    make.put(
        vendor,
        "funding/binance/1000PEPEUSDT",
        ts=make.stamps(0, 8),
        funding_rate=[1e-4, 2e-4],
        interval_h=[8, 8],
    )
    name = "1000PEPEUSDT/1h/1000PEPEUSDT-1h-2024-01.zip"
    put(tree, f"{UM}/klines/{name}", candles())
    put(tree, f"{UM}/markPriceKlines/{name}", candles(volume=0.0))
    funding = f"{T0_MS},8,0.0001\n{T0_MS + 8 * HOUR_MS},8,0.0002\n"
    put(tree, f"{UM}/fundingRate/1000PEPEUSDT/1000PEPEUSDT-fundingRate-2024-01.zip", funding)
    assert ingest("vendor", vendor, lake.path).counts["rows_added"] == 8
    again = run(tree, lake).counts
    assert (again["rows_added"], again["rows_unchanged"]) == (0, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("data/futures/cm/monthly/klines/BTCUSD_PERP/1h/BTCUSD_PERP-1h-2024-01.zip", "inverse-contract"),
        (f"{UM}/klines/BTCUSD_PERP/1h/BTCUSD_PERP-1h-2024-01.zip", "inverse-contract"),
        (f"{UM}/klines/BTCUSDT_240628/1h/BTCUSDT_240628-1h-2024-01.zip", "dated-contract"),
        (f"{UM}/klines/ETHBTC/1h/ETHBTC-1h-2024-01.zip", "unknown-symbol"),
        (f"{UM}/klines/BTCUSDT/1mo/BTCUSDT-1mo-2024-01.zip", "bars of 1mo are not supported"),
        (f"{UM}/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-01.zip", "single trades"),
        (f"{UM}/trades/BTCUSDT/BTCUSDT-trades-2024-01.zip", "single trades"),
        (f"{UM}/premiumIndexKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", "the premium is derived"),
        (f"{UM}/bookTicker/BTCUSDT/BTCUSDT-bookTicker-2024-01.zip", "best quotes"),
        (f"{UM}/novel/BTCUSDT/BTCUSDT-novel-2024-01.zip", "no dataset 'novel'"),
        ("data/option/daily/BVOLIndex/BTC/BTC-BVOLIndex-2024-01-01.zip", "options are not supported"),
        (f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-13.zip", "its name is not one of the archive"),
        (f"{UM}/klines/BTCUSDT/1h/copy of BTCUSDT-1h-2024-01.zip", "its name is not one of the archive"),
        ("notes.txt", "neither zip nor CSV"),
        (f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2023-01.zip.CHECKSUM", "of a file that is not here"),
    ],
)
def test_what_is_not_supported_is_left_out_by_name_and_unread(tree, lake, name, reason):
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles())
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not even a zip file")
    report = run(tree, lake)
    (skip,) = report.skipped
    assert (skip.path, reason in skip.reason) == (name, True)
    assert report.counts["files_skipped"] == 1
    assert [part.keys["symbol"] for part in lake.partitions("bars")] == ["BTC"]


def test_a_folder_of_nothing_that_is_taken_is_an_error_with_the_reasons(tree, lake):
    put(tree, "data/futures/cm/monthly/klines/BTCUSD_PERP/1h/BTCUSD_PERP-1h-2024-01.zip", candles())
    with pytest.raises(DataError, match="no file that can be taken: .*inverse-contract"):
        ingest("binance", tree, lake.path)
    with pytest.raises(DataError, match="does not exist"):
        ingest("binance", tree / "absent", lake.path)
    assert not lake.path.exists()


def test_a_part_of_the_tree_and_a_single_file_are_told_by_the_folders_above_them(tree, lake):
    path = put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles())
    for part in (path, path.parent, path.parents[2], path.parents[4]):
        run(part, lake)
    assert [part.keys for part in lake.partitions("bars")] == [{"venue": "binance", "symbol": "BTC"}]


def test_a_lone_file_of_candles_is_never_guessed_but_asked_for(tree, lake):
    path = put(tree, "BTCUSDT-1h-2024-01.zip", candles())
    with pytest.raises(DataError, match="neither its name nor its folders say") as caught:
        ingest("binance", path, lake.path)
    assert "--market um" in caught.value.problems[0].fix
    assert run(path, lake, market="um").counts["bars"] == 3
    assert run(path, lake, market="spot").counts["bars"] == 3
    venues = sorted(part.keys["venue"] for part in lake.partitions("bars"))
    assert venues == ["binance", "binance_spot"]


def test_a_lone_file_whose_name_says_what_it_is_needs_no_folders(tree, lake):
    text = f"{T0_MS},8,0.0001\n"
    put(tree, "BTCUSDT-fundingRate-2024-01.csv", text)
    assert run(tree, lake).counts["funding"] == 1


def test_mark_prices_passed_as_klines_are_told_by_their_lack_of_volume(tree, lake):
    path = put(tree, "BTCUSDT-1h-2024-01.zip", candles(volume=0.0))
    (problem,) = ingest("binance", path, lake.path, market="um").problems
    assert problem.code == "ambiguous-file"
    assert "mark or index prices" in problem.message
    assert not lake.path.exists()


def test_a_csv_beside_its_zip_file_is_not_read_twice(tree, lake):
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", candles())
    put(tree, f"{UM}/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.csv", "damaged")
    assert [skip.reason for skip in run(tree, lake).skipped] == ["the zip file beside it is taken"]


def test_candles_off_their_grid_are_left_out_and_counted(tree, lake):
    text = candles(2) + candle(T0_MS + 2 * HOUR_MS + 94_789) + candle(T0_MS + 4 * HOUR_MS, span_ms=14_839)
    put(tree, "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip", text)
    report = run(tree, lake)
    assert [iso(row)[11:13] for row in lake.read("bars").to_pylist()] == ["01", "02", "05"]
    assert [(skip.path, skip.rows) for skip in report.skipped] == [("klines", 1)]


def test_only_the_binance_layout_has_a_market(tree, lake):
    for kind, market in (("vendor", "um"), ("binance", "cm")):
        with pytest.raises(ConfigError, match=f"market '{market}' of kind '{kind}' is not supported"):
            ingest(kind, tree, lake.path, market=market)


def test_a_month_of_minutes_is_read_in_well_under_a_second(tree, lake):
    minute_ms = MINUTE // 1000
    text = "".join(candle(T0_MS + row * minute_ms, span_ms=minute_ms) for row in range(31 * 1440))
    put(tree, f"{UM}/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01.zip", HEADER + text)
    started = time.process_time()
    assert run(tree, lake).counts["bars"] == 44_640
    assert time.process_time() - started < 2.0  # 0.2 s on an idle core; generous for a shared one
