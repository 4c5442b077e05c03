"""Ingest of one's own data in contract form: all of it is checked before any is written."""

from __future__ import annotations

from pathlib import Path

import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from riskml.errors import ContractError, DataError
from riskml.tables.contracts import enforce
from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    (folder / "bars" / "2024").mkdir(parents=True)
    return folder


def test_parquet_and_csv_of_one_table_end_in_the_same_lake(source, tmp_path, rows):
    data = enforce("bars", rows.bars([100.0, 101.0], trades=[float("nan"), 2.0]))
    pq.write_table(data.slice(0, 1), source / "bars" / "2024" / "a.parquet")
    pcsv.write_csv(data.slice(1), source / "bars" / "b.csv")
    pcsv.write_csv(rows.funding([1e-4]), source / "funding.csv")
    report = ingest("tables", source, tmp_path / "lake")
    assert (report.counts["bars"], report.counts["funding"], report.counts["files"]) == (2, 1, 3)
    assert Lake(tmp_path / "lake").read("bars").equals(data)


@pytest.mark.parametrize("name", ["ts", "venue", "close"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_appears_twice_is_told(source, tmp_path, rows, name, suffix):
    data = rows.bars([100.0])
    data = data.append_column(name, data.column(name))
    path = source / f"bars.{suffix}"
    if suffix == "csv":
        pcsv.write_csv(data, path)
    else:
        pq.write_table(data, path)
    with pytest.raises(ContractError, match=f"column '{name}' appears twice"):
        ingest("tables", source, tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_csv_times_may_be_text_or_microseconds(source, tmp_path):
    header = "ts,known_at,venue,symbol,rate,interval_h\n"
    (source / "funding.csv").write_text(
        header + "2024-01-01T08:00:00Z,2024-01-01T08:00:00Z,my_venue,BTC,0.0001,8\n", encoding="utf-8"
    )
    ingest("tables", source, tmp_path / "text")
    (source / "funding.csv").write_text(
        header + "1704096000000000,1704096000000000,my_venue,BTC,0.0001,8\n", encoding="utf-8"
    )
    ingest("tables", source, tmp_path / "number")
    assert Lake(tmp_path / "text").read("funding").equals(Lake(tmp_path / "number").read("funding"))


def test_a_single_file_is_enough(source, tmp_path, rows):
    pq.write_table(rows.funding([1e-4]), source / "funding.parquet")
    assert ingest("tables", source / "funding.parquet", tmp_path / "lake").counts["funding"] == 1


def test_ingesting_twice_adds_nothing(source, tmp_path, rows):
    pq.write_table(rows.funding([1e-4, 2e-4]), source / "funding.parquet")
    ingest("tables", source, tmp_path / "lake")
    counts = ingest("tables", source, tmp_path / "lake").counts
    assert (counts["rows_added"], counts["rows_unchanged"]) == (0, 2)


def test_one_bad_file_keeps_every_file_out_and_all_problems_are_told(source, tmp_path, rows):
    pq.write_table(rows.bars([100.0]), source / "bars" / "good.parquet")
    pq.write_table(rows.bars([100.0]).drop_columns(["close"]), source / "bars" / "short.parquet")
    pq.write_table(rows.funding([1e-4, float("nan")]), source / "funding.parquet")
    with pytest.raises(ContractError, match="2 problems") as caught:
        ingest("tables", source, tmp_path / "lake")
    assert [(problem.code, problem.partition) for problem in caught.value.problems] == [
        ("missing-column", "bars/short.parquet"),
        ("null-value", "funding.parquet"),
    ]
    assert not (tmp_path / "lake").exists()


def test_two_files_with_one_key_are_refused(source, tmp_path, rows):
    for name in ("a", "b"):
        pq.write_table(rows.bars([100.0]), source / "bars" / f"{name}.parquet")
    with pytest.raises(ContractError, match="appears more than once"):
        ingest("tables", source, tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_a_truncated_file_is_told_and_nothing_is_written(source, tmp_path, rows):
    path = source / "bars" / "a.parquet"
    pq.write_table(rows.bars([100.0] * 40), path)
    path.write_bytes(path.read_bytes()[:300])
    pq.write_table(rows.funding([1e-4]), source / "funding.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet") as caught:
        ingest("tables", source, tmp_path / "lake")
    assert caught.value.table == "bars"
    assert not (tmp_path / "lake").exists()


def test_a_folder_that_names_no_table_suggests_one(tmp_path, rows):
    folder = tmp_path / "own"
    folder.mkdir()
    pq.write_table(rows.funding([1e-4]), folder / "fundings.parquet")
    with pytest.raises(DataError, match="holds no table .*no table 'fundings'. Did you mean 'funding'"):
        ingest("tables", folder, tmp_path / "lake")


def test_files_that_are_no_table_are_listed(source, tmp_path, rows):
    pq.write_table(rows.funding([1e-4]), source / "funding.parquet")
    (source / "README.md").write_text("x", encoding="utf-8")
    (skip,) = ingest("tables", source, tmp_path / "lake").skipped
    assert (skip.path, skip.reason) == ("README.md", "neither Parquet nor CSV")


HEADER = "ts,known_at,venue,symbol,rate,interval_h\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2024-01-01T16:00:00Z,2024-01-01T16:00:00Z,binance,ETH,much,8", "'rate' holds 'much'.*no float"),
        ("16:00 o'clock,2024-01-01T16:00:00Z,binance,ETH,0.0001,8", "'ts' holds .*no time"),
    ],
)
def test_a_bad_cell_of_a_csv_is_named_with_its_market_and_row(source, tmp_path, row, message):
    good = "2024-01-01T08:00:00Z,2024-01-01T08:00:00Z,binance,BTC,0.0001,8\n"
    (source / "funding.csv").write_text(HEADER + good + row + "\n", encoding="utf-8")
    with pytest.raises(ContractError, match=message) as caught:
        ingest("tables", source, tmp_path / "lake")
    (problem,) = caught.value.problems
    assert (problem.code, problem.table, problem.market, problem.row) == (
        "wrong-type",
        "funding",
        "binance:ETH",
        1,
    )
    assert not (tmp_path / "lake").exists()


def test_times_of_a_csv_may_mix_forms(source, tmp_path):
    (source / "funding.csv").write_text(
        HEADER
        + "2024-01-01T08:00:00Z,2024-01-01T08:00:00Z,binance,BTC,0.0001,8\n"
        + "2024-01-01 16:00,2024-01-01T17:00:00+01:00,binance,BTC,0.0002,8\n",
        encoding="utf-8",
    )
    assert ingest("tables", source, tmp_path / "lake").counts["funding"] == 2
    assert [str(ts) for ts in Lake(tmp_path / "lake").read("funding").column("ts").to_pylist()] == [
        "2024-01-01 08:00:00+00:00",
        "2024-01-01 16:00:00+00:00",
    ]


@pytest.mark.parametrize("content", [b"", b"a\n1,2,3\n", bytes(range(256))])
def test_a_file_that_is_no_csv_is_told_and_nothing_is_written(source, tmp_path, content):
    (source / "funding.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"funding\.csv cannot be read as csv") as caught:
        ingest("tables", source, tmp_path / "lake")
    assert caught.value.problems[0].partition == "funding.csv"
    assert not (tmp_path / "lake").exists()


def test_files_without_a_row_are_an_error(source, tmp_path, rows):
    pq.write_table(rows.funding([1e-4]).slice(0, 0), source / "funding.parquet")
    with pytest.raises(DataError, match="holds no row"):
        ingest("tables", source, tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_an_inverse_contract_is_refused_by_name_and_nothing_is_written(source, tmp_path, rows):
    pq.write_table(rows.funding([1e-4], symbol="BTCUSD_PERP"), source / "funding.parquet")
    with pytest.raises(ContractError, match="binance:BTCUSD_PERP.*inverse") as caught:
        ingest("tables", source, tmp_path / "lake")
    assert caught.value.problems[0].code == "inverse-contract"
    assert not (tmp_path / "lake").exists()
