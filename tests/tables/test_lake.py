"""The lake: layout, atomic and idempotent writes, filtered and checked reads."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from riskml.errors import ConflictError, ContractError, DataError
from riskml.markets import Market
from riskml.tables import lake as lake_module
from riskml.tables.contracts import enforce, schema
from riskml.tables.lake import Lake
from riskml.tables.merging import LISTED
from riskml.units import DAY, HOUR, MINUTE


def tree(lake: Lake) -> dict[str, bytes]:
    """Every file of a lake with its bytes."""
    files = (path for path in lake.path.rglob("*") if path.is_file())
    return {path.relative_to(lake.path).as_posix(): path.read_bytes() for path in files}


def test_rows_come_back_sorted_by_key_as_they_were_written(lake, rows):
    data = pa.concat_tables([rows.bars([100.0, 101.0], symbol="ETH"), rows.bars([7.0, 8.0])])
    lake.write("bars", data)
    back = lake.read("bars")
    assert back.schema.equals(schema("bars"))
    assert back.column("symbol").to_pylist() == ["BTC", "ETH", "BTC", "ETH"]
    assert back.column("close").to_pylist() == [7.0, 100.0, 8.0, 101.0]


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ("bars", "bars/venue=binance/symbol=BTC/year=2024.parquet"),
        ("funding", "funding/venue=binance/symbol=BTC/year=2024.parquet"),
        ("accounts", "accounts/date=2024-01-01.parquet"),
    ],
)
def test_files_lie_where_the_layout_says(lake, rows, table, path):
    data = {
        "bars": rows.bars([100.0]),
        "funding": rows.funding([1e-4]),
        "accounts": rows.accounts(rows.T0, {"a": 1.0}),
    }
    lake.write(table, data[table])
    assert list(tree(lake)) == [path]
    assert [part.relative for part in lake.partitions(table)] == [path]


def test_a_bar_that_closes_at_new_year_belongs_to_the_new_year(lake, rows):
    lake.write("bars", rows.bars([1.5, 1.5], start=rows.T0 - HOUR))
    assert [part.year for part in lake.partitions("bars")] == [2023, 2024]
    assert lake.read("bars", start="2024-01-01").num_rows == 1


def test_names_that_are_no_safe_path_survive(lake, rows):
    lake.write("bars", rows.bars([100.0], symbol="A/B=C"))
    assert lake.partitions("bars")[0].keys["symbol"] == "A/B=C"
    assert lake.read("bars", symbols=["A/B=C"]).num_rows == 1


@pytest.mark.parametrize("symbol", ["B" * 201, "\N{GREEK CAPITAL LETTER OMEGA}" * 34])
def test_a_name_that_no_file_system_takes_is_refused_before_a_folder_appears(lake, rows, symbol):
    with pytest.raises(ContractError, match="'symbol' may have 200 bytes as a part of a path"):
        lake.write("bars", rows.bars([100.0], symbol=symbol))
    assert not lake.path.exists()
    lake.write("bars", rows.bars([100.0], symbol="B" * 200))
    assert lake.read("bars").num_rows == 1


def test_writing_twice_changes_no_byte_and_reports_nothing_new(lake, rows):
    data = rows.bars([100.0, 101.0, 102.0], trades=[float("nan"), 1.0, 2.0])
    first = lake.write("bars", data)
    before = tree(lake)
    stamps = [path.stat().st_mtime_ns for path in lake.path.rglob("*.parquet")]
    second = lake.write("bars", data)
    assert (first.rows_added, first.rows_unchanged, first.partitions) == (3, 0, 1)
    assert (second.rows_added, second.rows_unchanged, second.partitions) == (0, 3, 0)
    assert tree(lake) == before
    assert [path.stat().st_mtime_ns for path in lake.path.rglob("*.parquet")] == stamps


def test_the_order_of_writes_does_not_change_the_bytes(tmp_path, rows):
    data = rows.bars([100.0, 101.0, 102.0, 103.0])
    forward, backward = Lake(tmp_path / "a"), Lake(tmp_path / "b")
    forward.write("bars", data)
    backward.write("bars", data.slice(2))
    assert backward.write("bars", data).rows_added == 2
    assert tree(forward) == tree(backward)
    assert forward.data_hashes(["bars"]) == backward.data_hashes(["bars"])


def test_a_row_that_contradicts_a_stored_one_is_refused_and_nothing_is_written(lake, rows):
    lake.write("bars", rows.bars([100.0, 101.0]))
    before = tree(lake)
    other = pa.concat_tables([rows.bars([5.0], symbol="ETH"), rows.bars([100.0, 99.5])])
    with pytest.raises(ContractError, match="stored with other values .*close 101.0 -> 99.5") as caught:
        lake.write("bars", other)
    assert caught.value.row == 2
    assert caught.value.market == "binance:BTC"
    assert tree(lake) == before


def test_of_many_contradicting_rows_the_first_are_described_and_all_are_counted(lake, rows):
    n = 24 * 400  # two years: two files
    lake.write("bars", rows.bars([100.0] * n))
    with pytest.raises(ConflictError, match="9,600 rows of 'bars' differ from the stored ones") as caught:
        lake.write("bars", rows.bars([99.5] * (n + 1)))
    assert caught.value.rows == list(range(n))
    assert [problem.row for problem in caught.value.problems] == list(range(LISTED))
    assert caught.value.problems[-1].message.endswith("; and 9,500 more rows like it")


def test_a_value_that_was_missing_is_no_reason_to_overwrite(lake, rows):
    lake.write("bars", rows.bars([100.0]))
    with pytest.raises(ContractError, match="trades None -> 3.0"):
        lake.write("bars", rows.bars([100.0], trades=[3.0]))


def test_a_revision_is_a_new_row_and_known_by_chooses_between_them(lake, rows):
    lake.write("bars", rows.bars([100.0]))
    late = rows.times([rows.T0 + DAY])
    lake.write("bars", rows.bars([100.5], known_at=late))
    assert lake.read("bars").column("close").to_pylist() == [100.0, 100.5]
    assert lake.read("bars", known_by=rows.T0 + 2 * HOUR).column("close").to_pylist() == [100.0]


def test_a_write_that_fails_half_way_leaves_the_lake_as_it_was(lake, rows, monkeypatch):
    lake.write("bars", rows.bars([100.0]))
    before, folders = tree(lake), sorted(lake.path.rglob("*"))
    real, calls = lake_module.write_file, []

    def fail_on_the_second(path: Path, table: str, data: pa.Table) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError("disk full")
        real(path, table, data)

    monkeypatch.setattr(lake_module, "write_file", fail_on_the_second)
    both = pa.concat_tables([rows.bars([1.5], symbol="ETH"), rows.bars([1.5], symbol="SOL")])
    with pytest.raises(OSError, match="disk full"):
        lake.write("bars", both)
    assert tree(lake) == before
    assert sorted(lake.path.rglob("*")) == folders


def test_a_rename_that_fails_leaves_no_temporary_file(lake, rows, monkeypatch):
    def refuse(source: object, target: object) -> None:
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no rename"):
        lake.write("bars", rows.bars([100.0]))
    assert not lake.path.exists() or not tree(lake)


def test_bad_rows_are_refused_before_a_folder_appears(lake, rows):
    with pytest.raises(ContractError, match="'high' is below 'low'"):
        lake.write("bars", rows.bars([100.0], high=[98.0]))
    assert not lake.path.exists()


def test_filters_keep_what_was_asked_for(lake, rows):
    lake.write("bars", rows.bars([100.0] * 4))
    lake.write("bars", rows.bars([50.0] * 4, interval="15m", step=15 * MINUTE))
    lake.write("bars", rows.bars([10.0] * 4, symbol="ETH", venue="bybit"))
    first = rows.T0 + HOUR
    assert set(lake.read("bars", interval="15m").column("close").to_pylist()) == {50.0}
    assert lake.read("bars", venues="bybit").column("symbol").to_pylist() == ["ETH"] * 4
    window = lake.read("bars", symbols=["BTC"], interval="1h", start=first, end=first + 2 * HOUR)
    assert window.num_rows == 2
    assert lake.read("bars", columns=["close", "ts"], venues=["bybit"]).column_names == ["close", "ts"]


def test_a_table_without_rows_reads_as_an_empty_table_of_its_schema(lake, rows):
    lake.write("bars", rows.bars([100.0]))
    assert lake.read("depth").schema.equals(schema("depth"))
    assert lake.read("bars", start="2030-01-01").num_rows == 0
    assert lake.tables() == ["bars"]


def test_a_lake_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no lake at .*nowhere"):
        Lake(tmp_path / "nowhere").read("bars")


def test_an_empty_range_is_an_error(lake, rows):
    lake.write("bars", rows.bars([100.0]))
    with pytest.raises(DataError, match="range from 2024-02-01.* to 2024-01-01.* is empty"):
        lake.read("bars", start="2024-02-01", end="2024-01-01")


def test_an_unknown_symbol_is_an_error_with_the_nearest_name(lake, rows):
    lake.write("bars", rows.bars([100.0], symbol="kPEPE"))
    with pytest.raises(DataError, match="no symbol 'PEPE'. Did you mean 'kPEPE'") as caught:
        lake.read("bars", symbols=["PEPE"])
    assert caught.value.market == "PEPE"
    assert lake.read("funding", symbols=["kPEPE"]).num_rows == 0


def test_a_filter_on_a_column_that_a_table_lacks_is_an_error(lake, rows):
    lake.write("funding", rows.funding([1e-4]))
    with pytest.raises(ContractError, match="no column 'interval'"):
        lake.read("funding", interval="1h")


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.99])
def test_a_truncated_file_is_named_with_its_table_and_the_fix(lake, rows, keep):
    lake.write("bars", rows.bars([100.0] * 50))
    path = lake.partitions("bars")[0].path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="year=2024.parquet is truncated or no Parquet file") as caught:
        lake.read("bars")
    assert (caught.value.table, caught.value.market) == ("bars", "binance:BTC")
    assert "ingest its source again" in caught.value.fix
    with pytest.raises(DataError, match="truncated"):
        lake.markets("1h")


def test_reading_enforces_the_contract_on_files_that_others_wrote(lake, rows):
    lake.write("bars", rows.bars([100.0, 101.0]))
    path = lake.partitions("bars")[0].path
    pq.write_table(rows.bars([100.0, 101.0], volume=[-1.0, 5.0]), path)
    with pytest.raises(ContractError, match="row 0: column 'volume' .* has to be 0 or above") as caught:
        lake.read("bars")
    assert caught.value.problems[0].partition == "bars/venue=binance/symbol=BTC/year=2024.parquet"
    pq.write_table(rows.bars([100.0]).drop_columns(["close"]), path)
    with pytest.raises(ContractError, match="'close' .* is required and missing"):
        lake.read("bars", columns=["volume"])


def test_a_file_in_the_wrong_place_is_refused(lake, rows):
    lake.write("bars", rows.bars([100.0]))
    path = lake.partitions("bars")[0].path
    moved = path.parent.parent / "symbol=ETH" / path.name
    moved.parent.mkdir()
    path.rename(moved)
    with pytest.raises(ContractError, match="column 'symbol' holds 'BTC', the path says 'ETH'"):
        lake.read("bars")


def test_markets_are_the_first_venue_in_order_that_has_the_interval(lake, rows):
    lake.write("bars", rows.bars([1.5], symbol="ZEC", venue="okx"))
    lake.write("bars", rows.bars([1.5], symbol="ZEC", venue="binance", interval="5m"))
    lake.write("bars", rows.bars([1.5], symbol="BTC", venue="sim"))
    lake.write("bars", rows.bars([1.5], symbol="BTC", venue="my_exchange"))
    lake.write("bars", rows.bars([1.5], symbol="AAA", venue="binance_spot"))
    lake.write("bars", rows.bars([1.5], symbol="SIM", venue="sim"))
    assert lake.markets("1h") == [Market("BTC", "my_exchange"), Market("SIM", "sim"), Market("ZEC", "okx")]
    assert lake.markets("5m") == [Market("ZEC", "binance")]


def test_markets_are_found_in_files_that_mix_intervals_in_one_row_group(lake, rows):
    mixed = pa.concat_tables([rows.bars([1.5]), rows.bars([1.5], interval="5m")])
    lake.write("bars", mixed)
    path = lake.partitions("bars")[0].path
    pq.write_table(enforce("bars", mixed), path)
    assert lake.markets("1h") == [Market("BTC", "binance")]
    assert lake.markets("4h") == []
    assert lake.read("bars", interval="5m").num_rows == 1


def test_a_file_in_place_of_the_lake_is_refused_and_stays(tmp_path, rows):
    (tmp_path / "lake").write_text("kept")
    lake = Lake(tmp_path / "lake")
    with pytest.raises(DataError, match="is a file; a lake is a folder"):
        lake.write("bars", rows.bars([100.0]))
    with pytest.raises(DataError, match="is a file; a lake is a folder"):
        lake.read("bars")
    assert (tmp_path / "lake").read_text() == "kept"


def test_a_spot_venue_that_the_facts_do_not_know_is_no_reference(lake, rows):
    for venue in ("new_venue_spot", "new_venue"):
        lake.write("bars", rows.bars([100.0], venue=venue))
    assert lake.markets("1h") == [Market("BTC", "new_venue")]
