"""``check``: every kind of finding is found in a lake that has it, and none in a good one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from riskml.errors import DataError
from riskml.tables.checks import check_lake
from riskml.tables.contracts import enforce, from_arrays
from riskml.units import DAY, HOUR, format_us, to_us

T0 = to_us("2024-01-01")


def found(lake, **options):
    """Codes and places of the findings."""
    return [(problem.code, problem.partition) for problem in check_lake(lake, **options).problems]


def moving(n: int, level: float = 100.0) -> np.ndarray:
    return level + np.sin(np.arange(n))


BTC = "bars/venue=binance/symbol=BTC/year=2024.parquet"


def test_a_good_lake_has_no_finding_and_its_rows_are_counted(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    lake.write("funding", rows.funding([1e-4, -2e-4, 1e-4]))
    report = check_lake(lake)
    assert report.problems == ()
    assert report.ok
    assert report.counts == {
        "tables": 2,
        "partitions": 2,
        "rows": 63,
        "bars": 60,
        "funding": 3,
        "errors": 0,
        "warnings": 0,
    }


def test_a_missing_lake_is_an_error_not_a_finding(lake):
    with pytest.raises(DataError, match="there is no lake"):
        check_lake(lake)


def test_gaps_are_found_per_interval_with_their_length(lake, rows):
    data = rows.bars(moving(60))
    lake.write("bars", pa.concat_tables([data.slice(0, 20), data.slice(25, 10), data.slice(45)]))
    report = check_lake(lake)
    assert [problem.code for problem in report.problems] == ["gap"]
    assert "2 gaps of 1h, the longest 11 h" in report.problems[0].message
    assert report.problems[0].row == 20
    assert report.ok


def test_a_gap_over_new_year_is_found_between_two_files(lake, rows):
    lake.write("bars", rows.bars(moving(10), start=rows.T0 - 10 * HOUR))
    lake.write("bars", rows.bars(moving(10), start=rows.T0 + 5 * HOUR))
    (problem,) = check_lake(lake).problems
    assert f"longest 6 h from {format_us(rows.T0 - HOUR)}" in problem.message
    assert problem.partition == BTC


def test_rows_that_break_the_contract_are_all_reported_with_table_partition_and_row(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    data = enforce("bars", rows.bars(moving(60)))
    volume, high = np.full(60, 5.0), data.column("high").to_numpy().copy()
    volume[7], high[9] = -1.0, 1.0
    bad = data.set_column(data.column_names.index("volume"), data.schema.field("volume"), pa.array(volume))
    bad = bad.set_column(bad.column_names.index("high"), bad.schema.field("high"), pa.array(high))
    pq.write_table(pa.concat_tables([bad, bad.slice(20, 1)]), lake.path / BTC)
    problems = {problem.code: problem for problem in check_lake(lake).problems}
    assert {"wrong-sign", "high-below-low", "duplicate-key"} <= problems.keys()
    assert [problems[code].row for code in ("wrong-sign", "high-below-low", "duplicate-key")] == [7, 9, 60]
    assert all(problem.table == "bars" and problem.partition == BTC for problem in problems.values())


def test_time_that_runs_backwards_is_found(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    data = enforce("bars", rows.bars(moving(60)))
    pq.write_table(data.take(pa.array([*range(30), 31, 30, *range(32, 60)])), lake.path / BTC)
    (problem,) = check_lake(lake).problems
    assert (problem.code, problem.row) == ("unsorted-rows", 31)


def test_a_truncated_file_is_found_and_the_others_are_still_checked(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    lake.write("bars", rows.bars(moving(60), symbol="ETH"))
    (lake.path / BTC).write_bytes((lake.path / BTC).read_bytes()[:200])
    report = check_lake(lake)
    assert [(problem.code, problem.partition) for problem in report.problems] == [("damaged-file", BTC)]
    assert report.counts["bars"] == 60
    assert not report.ok


def test_a_price_that_stands_still_is_stale_and_over_the_whole_file_constant(lake, rows):
    still = moving(100)
    still[40:80] = still[40]
    lake.write("bars", rows.bars(still))
    lake.write("bars", rows.bars(np.full(60, 7.0), symbol="ETH"))
    assert [code for code, _ in found(lake)] == ["stale-column", "constant-column"]


def test_funding_in_percent_is_found_by_one_large_rate_or_by_the_level(lake, rows):
    lake.write("funding", rows.funding([0.01, 0.3, 0.01]))
    lake.write("funding", rows.funding([0.01, 0.012, 0.01], symbol="ETH"))
    lake.write("funding", rows.funding([0.0001, -0.0003, 0.0375], symbol="SOL"))
    report = check_lake(lake)
    assert [(problem.code, problem.market) for problem in report.problems] == [
        ("wrong-units", "binance:BTC"),
        ("wrong-units", "binance:ETH"),
    ]
    assert report.problems[0].row == 1


def test_a_price_that_jumps_by_a_thousand_is_a_change_of_unit(lake, rows):
    prices = moving(60)
    prices[30:] *= 1000.0
    lake.write("bars", rows.bars(prices))
    (problem,) = check_lake(lake).problems
    assert (problem.code, problem.row) == ("wrong-units", 30)


def test_a_crash_by_half_is_no_change_of_unit(lake, rows):
    prices = moving(60)
    prices[30:] *= 0.4
    lake.write("bars", rows.bars(prices))
    assert found(lake) == []


def test_venues_that_quote_another_contract_size_are_found(lake, rows):
    for venue, level in (("binance", 100.0), ("bybit", 101.0), ("okx", 100_000.0)):
        lake.write("bars", rows.bars(moving(60, level), venue=venue))
    assert found(lake) == [("wrong-units", "bars/venue=okx/symbol=BTC/year=2024.parquet")]


def open_interest(rows, base: np.ndarray, usd: np.ndarray) -> pa.Table:
    bars = rows.bars(moving(len(base)))
    named = bars.select(["ts", "known_at", "venue", "symbol"])
    return named.append_column("open_interest", pa.array(base)).append_column(
        "open_interest_usd", pa.array(usd)
    )


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_open_interest_in_the_wrong_unit_is_found(lake, rows, factor):
    lake.write("bars", rows.bars(moving(60)))
    usd = moving(60, 5e6)
    lake.write("open_interest", open_interest(rows, usd / factor, usd))
    assert {code for code, _ in found(lake)} == {"wrong-units"}


def test_open_interest_in_base_units_passes(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    base = moving(60, 5e4)
    lake.write("open_interest", open_interest(rows, base, base * moving(60)))
    assert found(lake) == []


def test_times_in_milliseconds_read_as_microseconds_are_found(lake, rows):
    path = lake.path / "bars/venue=binance/symbol=BTC/year=1970.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows.bars(moving(30), start=rows.T0 // 1000), path)
    assert {code for code, _ in found(lake)} == {"wrong-units"}


def test_a_folder_without_a_table_is_an_error(lake):
    lake.path.mkdir()
    report = check_lake(lake)
    assert [problem.code for problem in report.errors] == ["no-table"]


def test_a_bar_length_that_is_none_and_an_impossible_year_are_found(lake, rows):
    path = lake.path / BTC
    path.parent.mkdir(parents=True)
    pq.write_table(rows.bars(moving(30), interval="1hour"), path)
    pq.write_table(rows.bars(moving(30)), path.with_name("year=55970.parquet"))
    assert [code for code, _ in found(lake)] == ["foreign-file", "wrong-interval"]


def test_bars_off_their_grid_and_a_close_outside_its_bar_are_found(lake, rows):
    lake.write("bars", rows.bars(moving(30), start=rows.T0 + 7))
    lake.write("bars", rows.bars(moving(30), symbol="ETH", open=moving(30) + 5.0))
    assert [code for code, _ in found(lake)] == ["off-grid", "price-outside-bar"]


def test_foreign_types_files_and_folders_are_found(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    data = enforce("bars", rows.bars(moving(60)))
    index = data.column_names.index("venue")
    foreign = data.set_column(index, "venue", data.column("venue").cast(pa.large_string()))
    pq.write_table(foreign, lake.path / BTC)
    (lake.path / "bars" / "notes.txt").write_text("x")
    (lake.path / "bars" / ".half.tmp").write_text("x")
    (lake.path / "bar").mkdir()
    report = check_lake(lake)
    assert [problem.code for problem in report.problems] == ["foreign-file"] * 3 + ["foreign-type"]
    assert "Did you mean 'bars'" in report.problems[0].message
    assert "'venue' large_string for string" in report.problems[3].message


def test_age_is_judged_only_against_the_time_passed_in(lake, rows):
    lake.write("bars", rows.bars(moving(60)))
    assert found(lake) == []
    assert found(lake, now=rows.T0 + 61 * HOUR) == []
    assert [code for code, _ in found(lake, now=rows.T0 + 10 * DAY)] == ["stale-table"]
    assert [code for code, _ in found(lake, now=rows.T0 + 30 * HOUR)] == ["from-the-future"]


def flow_rows(lake, table, n=48, **columns):
    """Hourly rows of BTC on a venue, next to bars of 5 BTC at 100 USD an hour."""
    ts = [T0 + HOUR * (row + 1) for row in range(n)]
    keys = {"ts": ts, "known_at": ts, "venue": ["binance"] * n, "symbol": ["BTC"] * n}
    values = {name: value if isinstance(value, list) else list(value) for name, value in columns.items()}
    lake.write(table, from_arrays(table, {name: np.array(v) for name, v in (keys | values).items()}))


def wrong_units(lake):
    return [problem.message for problem in check_lake(lake).problems if problem.code == "wrong-units"]


@pytest.mark.parametrize(("level", "wrong"), [(150.0, False), (5e5, True), (0.5, True)])
def test_depth_is_compared_with_what_is_traded_in_an_hour(lake, rows, level, wrong):
    lake.write("bars", rows.bars(moving(48)))
    side = level / 2 * (1 + 0.1 * np.sin(np.arange(48)))
    flow_rows(lake, "depth", band_bps=[100.0] * 48, bid_usd=side, ask_usd=side)
    messages = wrong_units(lake)
    assert bool(messages) is wrong
    assert all("USD are traded in an hour" in message for message in messages)


@pytest.mark.parametrize(
    ("columns", "wrong"),
    [
        (("buy_volume", "sell_volume", 2.5), False),
        (("buy_usd", "sell_usd", 250.0), False),
        (("buy_usd", "sell_usd", 2.5), True),
        (("buy_volume", "sell_volume", 250.0), True),
    ],
)
def test_taker_flow_in_the_other_unit_stands_out_beside_the_bars(lake, rows, columns, wrong):
    lake.write("bars", rows.bars(moving(48)))
    buy, sell, level = columns
    values = {name: level * (1 + 0.1 * np.sin(np.arange(48))) for name in (buy, sell)}
    flow_rows(lake, "taker_flow", interval=["1h"] * 48, **values)
    messages = wrong_units(lake)
    assert len(messages) == wrong
    assert all(message.startswith("takers trade") for message in messages)


def test_taker_flow_whose_base_and_usd_columns_are_equal_is_in_one_unit(lake, rows):
    values = 2.5 * (1 + 0.1 * np.sin(np.arange(48)))
    flow_rows(
        lake,
        "taker_flow",
        interval=["1h"] * 48,
        buy_volume=values,
        sell_volume=values,
        buy_usd=values,
        sell_usd=values * 100,
    )
    assert wrong_units(lake) == ["'buy_volume' and 'buy_usd' are equal in all 48 rows"]


def test_a_share_of_longs_that_stands_still_is_found(lake):
    flow_rows(lake, "long_short", population=["global_account"] * 48, long_fraction=[0.55] * 48)
    (problem,) = check_lake(lake).problems
    assert problem.code == "constant-column"
    assert "'long_fraction' of global_account stands still for 48 rows" in problem.message


def test_lending_rates_in_percent_are_found_by_their_level(lake):
    ts = np.array([T0 + DAY * day for day in range(3)])
    names = {"chain": "ethereum", "asset": "USDC", "source": "x"}
    columns = {name: np.array([value] * 3, object) for name, value in names.items()}
    rates = {"ts": ts, "known_at": ts, "lending_rate": np.array([0.9, 1.1, 1.9])}
    lake.write("flows", from_arrays("flows", columns | rates))
    (message,) = wrong_units(lake)
    assert "the median lending rate of USDC, x is 1.1 per year, as if in percent" in message
