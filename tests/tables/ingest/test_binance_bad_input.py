"""Bad files of Binance's archive: told with place and reason, and the good ones arrive."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskml import cli
from riskml.errors import DataError, Problem
from riskml.tables.ingest import ingest
from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us

T0_MS = to_us("2024-01-01") // 1000
HOUR_MS = HOUR // 1000
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore\n"
)
METRICS = (
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio\n"
)
ORDERS = (
    "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,"
    "last_fill_quantity,accumulated_fill_quantity\n"
)
GOOD = "data/futures/um/monthly/klines/ETHUSDT/1h/ETHUSDT-1h-2024-01.zip"
BAD = "data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip"


def candle(open_ms: int, prices: str = "10.0,12.0,9.0,11.0", close_ms: int | None = None) -> str:
    end = open_ms + HOUR_MS - 1 if close_ms is None else close_ms
    return f"{open_ms},{prices},5,{end},55,7,2,22,0\n"


ROWS = [candle(T0_MS + row * HOUR_MS) for row in range(3)]


def put(tree: Path, name: str, text: str, member: str = "") -> Path:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(member or f"{path.stem}.csv", text)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one good file."""
    put(tmp_path / "archive", GOOD, "".join(ROWS))
    return tmp_path / "archive"


def only_problem(tree: Path, tmp_path: Path) -> Problem:
    """Ingest the good market beside the bad one: the good one arrives, the bad one is told."""
    report = ingest("binance", tree, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    assert [part.keys["symbol"] for part in lake.partitions("bars")] == ["ETH"]
    assert lake.read("bars").num_rows == 3
    assert not list(lake.path.rglob(".*"))
    assert not report.ok
    (problem,) = report.problems
    return problem


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            HEADER.replace("close,", "closing,", 1) + ROWS[0],
            "missing-column",
            "'close' is required.*Did you mean",
        ),
        (HEADER.replace("low", "high") + ROWS[0], "missing-column", "required once"),
        ("1704067200000,10,12,9,11\n", "missing-column", "12 columns are required, found 5"),
        ("".join(ROWS) + ROWS[0][:30], "wrong-type", "Expected 12 columns"),
        (ROWS[0] + candle(T0_MS + HOUR_MS, "10,much,9,11"), "wrong-type", "'much'"),
        (ROWS[0] + ROWS[1].replace(str(T0_MS + HOUR_MS), ""), "wrong-type", "1 rows have no time"),
        ("<html>404</html>\n", "missing-column", "'open_time' is required"),
        (candle(T0_MS // 1000), "wrong-units", "found 1704067200"),
        (ROWS[0] + candle(T0_MS * 1000 + HOUR), "wrong-units", "milliseconds or microseconds throughout"),
        (candle(T0_MS * 1_000_000), "wrong-units", "found 1704067200000000000"),
        (candle(T0_MS - 24 * HOUR_MS), "outside-period", "1 row of 1 lie outside 2024-01-01"),
        (candle(T0_MS, close_ms=T0_MS + 60_000 - 1), "wrong-interval", "most of them last 60 seconds"),
    ],
)
def test_a_file_of_another_form_is_told_and_leaves_nothing(tree, tmp_path, text, code, message):
    put(tree, BAD, text)
    problem = only_problem(tree, tmp_path)
    assert (problem.code, problem.table, problem.market) == (code, "bars", "binance:BTCUSDT")
    assert problem.partition == BAD
    assert re.search(message, problem.message)


@pytest.mark.parametrize(
    "member", ["../../BTCUSDT-1h-2024-01.csv", "/tmp/BTCUSDT-1h-2024-01.csv", "C:\\x.csv"]
)
def test_an_archive_that_would_unpack_outside_the_target_leaves_the_others_unharmed(tree, tmp_path, member):
    put(tree, BAD, "".join(ROWS), member)
    before = sorted(tmp_path.rglob("*"))
    problem = only_problem(tree, tmp_path)
    assert (problem.code, problem.market) == ("unsafe-archive", "binance:BTCUSDT")
    assert [path for path in before if not path.exists()] == []
    outside = [
        path for path in tmp_path.rglob("*") if path not in before and tmp_path / "lake" not in path.parents
    ]
    assert outside == [tmp_path / "lake"]


def test_an_archive_that_unpacks_without_bound_leaves_the_others_unharmed(tree, tmp_path):
    put(tree, BAD, "0" * (16 << 20))
    assert only_problem(tree, tmp_path).code == "too-large"


def test_a_truncated_zip_file_and_a_wrong_checksum_are_told_each(tree, tmp_path):
    path = put(tree, BAD, "".join(ROWS))
    path.with_name(f"{path.name}.CHECKSUM").write_text(f"{'a' * 64}  {path.name}\n", encoding="ascii")
    other = put(tree, BAD.replace("BTC", "SOL"), "".join(ROWS))
    other.write_bytes(other.read_bytes()[:-40])
    report = ingest("binance", tree, tmp_path / "lake")
    assert [(problem.code, problem.market) for problem in report.problems] == [
        ("checksum-mismatch", "binance:BTCUSDT"),
        ("damaged-file", "binance:SOLUSDT"),
    ]
    assert report.counts["bars"] == 3


def test_single_rows_that_break_the_contract_are_dropped_and_told(tree, tmp_path):
    put(tree, BAD, ROWS[0] + candle(T0_MS + HOUR_MS, "10,8,9,11") + ROWS[2])
    report = ingest("binance", tree, tmp_path / "lake")
    assert [(problem.code, problem.row, problem.partition) for problem in report.problems] == [
        ("high-below-low", 1, BAD)
    ]
    assert (report.counts["bars"], report.counts["rows_dropped"]) == (5, 1)


def test_rows_outside_the_period_are_dropped_and_told_and_the_others_stay(tree, tmp_path):
    put(tree, BAD, "".join(ROWS) + candle(T0_MS + 40 * 24 * HOUR_MS))
    report = ingest("binance", tree, tmp_path / "lake")
    assert [(problem.code, problem.row) for problem in report.problems] == [("outside-period", 3)]
    assert report.counts["bars"] == 6


def test_history_that_was_restated_is_one_problem_and_keeps_what_is_stored(tree, tmp_path):
    ingest("binance", tree, tmp_path / "lake")
    put(tree, GOOD, "".join([*ROWS, candle(T0_MS + 3 * HOUR_MS)]).replace("11.0", "11.5"))
    report = ingest("binance", tree, tmp_path / "lake")
    (problem,) = report.problems
    assert (problem.code, problem.market) == ("conflicting-row", "binance:ETH")
    assert "close 11.0 -> 11.5" in problem.message
    assert "3 such rows" in problem.message
    assert (report.counts["rows_added"], report.counts["rows_dropped"]) == (1, 3)
    assert Lake(tmp_path / "lake").read("bars").column("close").to_pylist() == [11.0, 11.0, 11.0, 11.5]


def test_a_damaged_file_of_the_lake_is_told_and_does_not_stop_the_other_markets(tree, tmp_path):
    ingest("binance", tree, tmp_path / "lake")
    (stored,) = (tmp_path / "lake" / "bars").rglob("*.parquet")
    stored.write_bytes(stored.read_bytes()[:100])
    put(tree, BAD, "".join(ROWS))
    report = ingest("binance", tree, tmp_path / "lake")
    (problem,) = report.problems
    assert (problem.table, problem.market) == ("bars", "binance:ETH")
    assert "truncated or no Parquet file" in problem.message
    assert report.counts["bars"] == 3


def test_metrics_of_another_market_are_refused(tree, tmp_path):
    name = "data/futures/um/daily/metrics/BTCUSDT/BTCUSDT-metrics-2024-01-05.zip"
    put(tree, name, METRICS + "2024-01-05 00:05:00,ETHUSDT,1,10,1,1,1,1\n")
    problem = only_problem(tree, tmp_path)
    assert (problem.code, problem.table) == ("wrong-market", "open_interest")
    assert "its rows are of ETHUSDT" in problem.message


def test_liquidations_without_a_header_of_another_side_or_without_a_price_are_refused(tree, tmp_path):
    name = "data/futures/um/daily/liquidationSnapshot/BTCUSDT/BTCUSDT-liquidationSnapshot-2024-01-01.zip"
    put(tree, name, f"{T0_MS},SELL,LIMIT,IOC,3,99,100,FILLED,1,3\n")
    assert "a header" in only_problem(tree, tmp_path).message
    put(tree, name, f"time,side,average_price,accumulated_fill_quantity\n{T0_MS},HOLD,1,1\n")
    assert "has to be BUY or SELL, found HOLD" in only_problem(tree, tmp_path).message
    put(tree, name, f"time,side,average_price,accumulated_fill_quantity\n{T0_MS},SELL,,1\n")
    assert "numbers of 0 or above" in only_problem(tree, tmp_path).message


def test_depth_in_a_band_that_is_no_percentage_is_refused(tree, tmp_path):
    name = "data/futures/um/daily/bookDepth/BTCUSDT/BTCUSDT-bookDepth-2024-01-05.zip"
    put(tree, name, "timestamp,percentage,depth,notional\n2024-01-05 00:00:05,500,1,100\n")
    problem = only_problem(tree, tmp_path)
    assert (problem.code, problem.table) == ("wrong-units", "depth")


@pytest.mark.parametrize("text", ["", HEADER])
def test_a_file_without_rows_is_listed(tree, tmp_path, text):
    put(tree, BAD, text)
    report = ingest("binance", tree, tmp_path / "lake")
    assert report.ok
    assert [(skip.path, skip.reason) for skip in report.skipped] == [(BAD, "holds no row")]


def test_the_command_ends_with_1_when_a_part_could_not_be_used(tree, tmp_path, capsys):
    put(tree, BAD, "".join(ROWS), "../x.csv")
    command = ["ingest", "binance", str(tree), "--lake", str(tmp_path / "lake"), "--quiet", "--json"]
    assert cli.main(command) == 1
    record = json.loads(capsys.readouterr().out)
    assert [problem["code"] for problem in record["problems"]] == ["unsafe-archive"]
    assert record["counts"]["bars"] == 3
    (tree / BAD).unlink()
    assert cli.main(command) == 0


def test_a_lake_that_is_a_file_is_refused_before_anything_is_read(tree, tmp_path):
    (tmp_path / "lake").write_text("kept", encoding="utf-8")
    with pytest.raises(DataError, match="is a file; a lake is a folder"):
        ingest("binance", tree, tmp_path / "lake")


SOURCES = {
    "klines/BTCUSDT/1h/BTCUSDT-1h-2024-01": (HEADER, ROWS),
    "markPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01": (HEADER, ROWS),
    "fundingRate/BTCUSDT/BTCUSDT-fundingRate-2024-01": (
        "calc_time,funding_interval_hours,last_funding_rate\n",
        [f"{T0_MS + row * 8 * HOUR_MS},8,0.0001\n" for row in range(3)],
    ),
    "metrics/BTCUSDT/BTCUSDT-metrics-2024-01-05": (
        METRICS,
        [f"2024-01-05 00:0{row}:00,BTCUSDT,10,100,1,2,3,4\n" for row in (5, 6, 7)],
    ),
    "bookDepth/BTCUSDT/BTCUSDT-bookDepth-2024-01-05": (
        "timestamp,percentage,depth,notional\n",
        [f"2024-01-05 00:00:05,{percent},1,100\n" for percent in (-1, 0.2, 1)],
    ),
    "liquidationSnapshot/BTCUSDT/BTCUSDT-liquidationSnapshot-2024-01": (
        ORDERS,
        [f"{T0_MS + row},SELL,LIMIT,IOC,1,1,1.5,FILLED,1,1\n" for row in range(3)],
    ),
}
"""A good file of each dataset, to be spoiled: header and rows by name."""
CELLS = st.one_of(
    st.sampled_from(
        ["", "nan", "inf", "-1", "0", "1e400", "1e308", "9" * 30, "2024-01-01", '"', "\0", "é", ","]
    ),
    st.text(max_size=6),
    st.integers(-(2**70), 2**70).map(str),
)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SOURCES)),
    edits=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11), CELLS), min_size=1, max_size=3),
    has_header=st.booleans(),
)
def test_whatever_stands_in_the_cells_the_rows_follow_the_contract_or_are_told(name, edits, has_header):
    header, rows = SOURCES[name]
    cells = [row.strip().split(",") for row in rows]
    for row, column, cell in edits:
        cells[row][column % len(cells[row])] = cell
    text = (header if has_header else "") + "".join(f"{','.join(row)}\n" for row in cells)
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), f"data/futures/um/monthly/{name}.zip", text)
        put(Path(folder), GOOD, "".join(ROWS))
        report = ingest("binance", folder, Path(folder) / "lake")
        lake = Lake(Path(folder) / "lake")
        stored = {table: lake.read(table) for table in lake.tables() if table != "instruments"}
    symbols = [symbol for rows in stored.values() for symbol in rows.column("symbol").to_pylist()]
    assert symbols.count("ETH") == 3
    assert "BTC" in symbols or report.problems or report.skipped  # reading has checked the contract
