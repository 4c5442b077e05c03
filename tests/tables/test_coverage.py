"""The coverage of a lake: rows and shares by series and year, and its summary by source."""

from __future__ import annotations

import math

import pytest

from riskml.errors import DataError
from riskml.tables.contracts import from_arrays
from riskml.tables.coverage import coverage, coverage_table, main
from riskml.units import DAY, HOUR, to_us

T0 = to_us("2024-01-01")
YEAR_HOURS = 366 * 24


def series(table, times, **columns):
    rows = {"ts": times, "known_at": times} | columns
    return from_arrays(table, {name: _column(value, len(times)) for name, value in rows.items()})


def _column(value, n):
    return [value] * n if isinstance(value, (str, float)) else value


def test_bars_are_counted_by_year_and_interval_with_the_share_of_the_year(lake, rows):
    lake.write("bars", rows.bars([100.0] * 24))
    lake.write("bars", rows.bars([100.0] * 12, interval="5m", step=HOUR // 12))
    (hourly,) = coverage(lake)
    assert (hourly.table, hourly.place, hourly.name, hourly.detail) == ("bars", "binance", "BTC", "1h")
    assert (hourly.year, hourly.rows, hourly.share) == (2024, 24, pytest.approx(24 / YEAR_HOURS))
    assert (hourly.first_us, hourly.last_us) == (T0 + HOUR, T0 + 24 * HOUR)
    assert [(row.detail, row.rows) for row in coverage(lake, interval=None)] == [("1h", 24), ("5m", 12)]
    assert [row.detail for row in coverage(lake, interval="5m")] == ["5m"]


def test_a_series_over_new_year_has_a_row_per_year(lake, rows):
    lake.write("bars", rows.bars([1.0] * 5, start=T0 - 2 * HOUR, low=[0.5] * 5, high=[2.0] * 5))
    assert [(row.year, row.rows) for row in coverage(lake)] == [(2023, 2), (2024, 3)]


def test_a_revision_is_a_row_but_covers_no_more_of_the_year(lake):
    days = [T0 + day * DAY for day in (1, 2, 3)]
    supply = {"chain": "ethereum", "asset": "USDC", "source": "x", "supply_usd": [1.0] * 3}
    lake.write("flows", series("flows", days, **supply))
    later = {"ts": days, "known_at": [day + DAY for day in days]}
    lake.write("flows", series("flows", days, **(supply | later)))
    (row,) = coverage(lake)
    assert (row.place, row.name, row.detail) == ("ethereum", "USDC", "x")
    assert (row.rows, row.share) == (6, pytest.approx(3 / 366))


def test_funding_is_covered_by_its_intervals_and_not_across_gaps(lake):
    """Two days of 8 h rates, a hole of ten days, then a day of 1 h rates."""
    eight = [T0 + 8 * HOUR * k for k in range(7)]
    one = [T0 + 12 * DAY + HOUR * k for k in range(25)]
    hours = [8.0] * 7 + [1.0] * 25
    data = series("funding", eight + one, venue="binance", symbol="BTC", rate=[1e-4] * 32, interval_h=hours)
    lake.write("funding", data)
    (row,) = coverage(lake)
    assert row.share == pytest.approx((8 + 48 + 24) / YEAR_HOURS)


def test_events_and_uneven_series_have_no_share(lake):
    uneven = [T0, T0 + HOUR, T0 + 9 * HOUR, T0 + 100 * HOUR]
    lake.write("pegs", series("pegs", uneven, venue="v", asset="USDC", price_usd=[1.0] * 4))
    event = {"venue": "aave", "symbol": "BTC", "account_id": "a", "side": "long", "notional_usd": [1.0] * 4}
    lake.write("liquidations", series("liquidations", uneven, **event))
    assert [(row.table, row.rows, math.isnan(row.share)) for row in coverage(lake)] == [
        ("liquidations", 4, True),
        ("pegs", 4, True),
    ]


def test_tables_by_day_are_added_up_over_their_files(lake):
    for day in (0, 1):
        times = [T0 + day * DAY + hour * HOUR for hour in range(24)]
        columns = {"account_id": "a", "margin_mode": "cross", "cash_usd": [1.0] * 24}
        lake.write("accounts", series("accounts", times, **columns))
    (row,) = coverage(lake)
    assert (row.table, row.place, row.rows, row.share) == ("accounts", "", 48, pytest.approx(48 / YEAR_HOURS))


def test_a_lake_from_before_chains_had_a_source_is_counted(lake):
    import pyarrow.parquet as pq

    lake.write("chains", series("chains", [T0, T0 + DAY], chain="ethereum", tvl_usd=[1.0, 2.0]))
    (partition,) = lake.partitions("chains")
    pq.write_table(pq.read_table(partition.path).drop_columns(["source"]), partition.path)
    (row,) = coverage(lake)
    assert (row.place, row.detail, row.rows) == ("ethereum", "", 2)


def test_the_table_has_a_line_per_source_and_a_column_per_year(lake, rows):
    lake.write("bars", rows.bars([100.0] * 24))
    lake.write("bars", rows.bars([100.0] * 24, symbol="ETH"))
    lake.write("bars", rows.bars([100.0] * 24, start=T0 + 366 * DAY))
    lines = coverage_table(coverage(lake)).splitlines()
    assert lines[0] == "| table | source | series | first | last | 2024 | 2025 |"
    assert lines[2] == "| bars | binance 1h | 2 | 2024-01-01 | 2025-01-01 | 48 (0 %) | 24 (0 %) |"
    assert len(lines) == 3


def test_bridges_are_one_line_and_providers_have_their_own(lake):
    flows = {"chain": "arbitrum", "asset": "ALL", "inflow_usd": [1.0], "outflow_usd": [1.0]}
    for source in ("Arbitrum Bridge", "Some Bridge", "stablecoin-caps"):
        lake.write("flows", series("flows", [T0], source=source, **flows))
    sources = [line.split(" | ")[1:3] for line in coverage_table(coverage(lake)).splitlines()[2:]]
    assert sorted(sources) == [["bridges and others, by name", "2"], ["stablecoin-caps", "1"]]


def test_the_command_prints_or_writes(lake, rows, tmp_path, monkeypatch, capsys):
    lake.write("bars", rows.bars([100.0] * 24))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert main([str(lake.path)]) == 0
    printed = capsys.readouterr().out
    assert "24 rows of 1 tables" in printed
    assert main([str(lake.path), "--write"]) == 0
    assert (tmp_path / "data" / "COVERAGE.md").read_text() == printed
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "there is no lake" in capsys.readouterr().err


def test_no_lake_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no lake"):
        coverage(tmp_path / "nowhere")
