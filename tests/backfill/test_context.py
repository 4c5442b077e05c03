"""What a backfill knows beside the graph is what a scorer that never forgets would know."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from riskml.backfill import backfill, local, score_at
from riskml.backfill.context import held_rows, last_closes, read_context
from riskml.features.series import SeriesKey
from riskml.markets import Market
from riskml.risk.outcome import Decisions
from riskml.scoring import Scorer
from riskml.scoring.conditions import HISTORY, TAIL, conditions_at, liquidity_at
from riskml.tables.align import to_columns
from riskml.tables.book import read_book
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, to_us

SILENT_SINCE = to_us("2024-05-20")
"""The last row of every peg, flow and open interest of :func:`silent`: 41 days before its last account."""
NOW = to_us("2024-06-30") + 12 * HOUR
KEPT = ("bars", "marks", "funding", "liquidations", "chains", "accounts", "collateral", "positions", "orders")


def moved(rows: pa.Table, by: int) -> pa.Table:
    """The rows with their times moved by so many microseconds."""
    for name in ("ts", "known_at"):
        times = pc.add(rows[name].cast(pa.int64()), by).cast(pa.timestamp("us", tz="UTC"))
        rows = rows.set_column(rows.schema.get_field_index(name), name, times)
    return rows


def replaced(rows: pa.Table, **columns: Any) -> pa.Table:
    """The rows with other values in some columns."""
    for name, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.float64()))
    return rows


@pytest.fixture(scope="module")
def silent(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The sample, but its pegs fell to .95 and spoke for the last time on 20 May, like flows and interest."""
    path = tmp_path_factory.mktemp("silent") / "lake"
    result = Lake(path)
    for table in KEPT:
        result.write(table, lake.read(table))
    begin = to_us("2024-05-22")
    for table in ("pegs", "flows", "open_interest"):
        rows = lake.read(table, start=begin, end=begin + 10 * DAY + HOUR)
        newest = pc.max(rows["ts"]).cast(pa.int64()).as_py()
        rows = moved(rows, SILENT_SINCE - newest)
        if table == "pegs":
            falling = 1.0 - 0.05 * np.arange(rows.num_rows) / rows.num_rows
            rows = replaced(rows, price_usd=falling, redemption_usd=np.full(rows.num_rows, None))
        if table == "open_interest":  # in base units alone, and thin
            rows = replaced(rows, open_interest=np.full(rows.num_rows, 0.5))
            rows = replaced(rows, open_interest_usd=np.full(rows.num_rows, None))
        result.write(table, rows)
    return result


def asked(decisions: Decisions, account: str) -> list[float]:
    row = decisions.account_id.tolist().index(account)
    names = ("collateral_usd", "equity_usd", "initial_margin_usd", "maintenance_margin_usd")
    usd = [float(getattr(decisions, name)[row]) for name in names]
    return [*usd, *decisions.liquidation_probability[row].tolist()]


def running_scorer(bundle: Path, lake: Lake, start: int, end: int, step: int = DAY) -> Scorer:
    """A scorer that saw all there was by ``start``, and then lived on in steps up to ``end``."""
    scorer = Scorer.load(bundle)
    before = start - 60 * DAY
    for close in [*range(start, end, step), end]:
        for table in ("pegs", "flows", "open_interest", *KEPT[:5]):
            rows = lake.read(table, start=to_us("2024-01-01"), end=close + 1, known_by=close)
            rows = rows.filter(pc.greater(rows["known_at"].cast(pa.int64()), before))
            if rows.num_rows:
                scorer.observe(table, to_columns(rows))
        scorer.close_bar(close)
        before = close
    return scorer


def test_live_and_backfill_decide_alike_on_what_has_been_silent_for_41_days(
    tiny_bundle: Path, silent: Lake, lake: Lake, tmp_path: Path
) -> None:
    live = running_scorer(tiny_bundle, silent, to_us("2024-06-05"), NOW).score(read_book(silent, NOW), NOW)
    at_once = score_at(tiny_bundle, silent, NOW)
    backfill(tiny_bundle, silent, tmp_path / "out", start=NOW, end=NOW + HOUR)
    batch = {row["account_id"]: row for row in Lake(tmp_path / "out").read("margins").to_pylist()}
    assert len(batch) == len(live.account_id) == 8
    for account in live.account_id.tolist():
        expected = asked(live, account)
        row = batch[account]
        found = [
            row["collateral_usd"],
            row["equity_usd"],
            row["initial_margin_usd"],
            row["maintenance_margin_usd"],
            *(row[f"p_liq_{horizon}"] for horizon in live.horizons),
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0.011)
        np.testing.assert_allclose(asked(at_once, account), expected, rtol=1e-5, atol=0.011)
    # The silence matters: with nothing ever said the same accounts look better.
    bare = Lake(shutil.copytree(silent.path, tmp_path / "bare"))
    for table in ("pegs", "flows", "open_interest"):
        shutil.rmtree(bare.path / table)
    never = score_at(tiny_bundle, bare, NOW)
    assert (never.collateral_usd > live.collateral_usd + 1.0).all()


def test_a_backfill_that_started_earlier_or_went_in_pieces_gives_the_same_bytes(
    tiny_bundle: Path, silent: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = "2024-06-30"
    backfill(tiny_bundle, silent, tmp_path / "whole", start="2024-06-18", end="2024-07-01")
    backfill(tiny_bundle, silent, tmp_path / "alone", start=last, end="2024-07-01")
    monkeypatch.setattr(local, "DAYS_PER_TASK", 1)
    backfill(tiny_bundle, silent, tmp_path / "pieces", start="2024-06-29", end="2024-06-30")
    backfill(tiny_bundle, silent, tmp_path / "pieces", start="2024-06-29", end="2024-07-01", resume=True)
    name = f"margins/date={last}.parquet"
    whole = (tmp_path / "whole" / name).read_bytes()
    assert whole == (tmp_path / "alone" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()


def test_a_day_is_done_again_when_an_old_file_that_it_may_rest_on_changed(
    tiny_bundle: Path, silent: Lake, tmp_path: Path
) -> None:
    changed = Lake(shutil.copytree(silent.path, tmp_path / "lake"))
    span = {"start": NOW, "end": NOW + HOUR, "resume": True}
    assert backfill(tiny_bundle, changed, tmp_path / "out", **span).skipped == ()
    assert backfill(tiny_bundle, changed, tmp_path / "out", **span).skipped == ("2024-06-30",)
    changed.write("pegs", pa.Table.from_pylist([peg_row("2019-06-01", 0.8)]))
    assert backfill(tiny_bundle, changed, tmp_path / "out", **span).skipped == ()


def test_where_the_context_begins_changes_no_condition(silent: Lake) -> None:
    ts = NOW
    near, far = (read_context(silent, first, ts + 1) for first in (ts - HOUR, ts - 300 * DAY))
    assert conditions_at(near, ts) == conditions_at(far, ts)
    assert conditions_at(near, ts).peg_price_usd["USDC"] < 0.96
    assert conditions_at(near, ts).chain_age_us["solana"] > 40 * DAY
    prices = {"BTC": 100.0, "ETH": 10.0, "SOL": 1.0}
    assert liquidity_at(near, prices, ts) == liquidity_at(far, prices, ts)
    assert liquidity_at(near, prices, ts)["ETH"] == 5.0
    held, every = (int(store.tables["pegs"].rows.length.sum()) for store in (near, far))
    assert (held, every) == (2 * (24 * 8 + 1), 2 * 24 * 10)


def peg_row(when: str, price: float, known: str | None = None) -> dict[str, Any]:
    return {
        "ts": to_us(when),
        "known_at": to_us(known or when),
        "venue": "pool",
        "asset": "USDC",
        "price_usd": price,
    }


def write_pegs(path: Path, rows: list[dict[str, Any]]) -> Lake:
    lake = Lake(path)
    lake.write("pegs", pa.Table.from_pylist(rows))
    return lake


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # the last row, and the 8 days before it: over the turn of a year
        (
            [("2021-06-01", 0.8), ("2021-12-20", 0.9), ("2021-12-28", 0.91), ("2022-01-02", 0.92)],
            [0.91, 0.92],
        ),
        # a print out of range is passed over, in whatever year the one before it lies
        ([("2020-03-01", 0.97), ("2022-01-02", 300.0), ("2022-02-02", 300.0)], [0.97, 300.0, 300.0]),
        # a row that became known only later is kept beside the one that was known
        ([("2021-12-28", 0.91), ("2021-12-30", 0.95, "2023-06-01")], [0.91, 0.95]),
        # nothing usable was ever said: everything stays, for what may be known later
        ([("2020-03-01", 9.0), ("2022-01-02", 9.0)], [9.0, 9.0]),
    ],
)
def test_the_last_usable_row_of_a_silent_peg_is_found_in_older_year_files(
    tmp_path: Path, rows: list[tuple[Any, ...]], expected: list[float]
) -> None:
    lake = write_pegs(tmp_path / "lake", [peg_row(*row) for row in rows])
    now = to_us("2023-01-01")
    before = now - HISTORY - TAIL["pegs"]
    found = [*held_rows(lake, "pegs", before, now, lake.read("pegs", start=before, end=now))]
    prices = sorted(pa.concat_tables(found)["price_usd"].to_pylist())
    assert prices == sorted(expected)


def test_a_peg_that_still_speaks_needs_no_older_file(tmp_path: Path) -> None:
    lake = write_pegs(tmp_path / "lake", [peg_row("2021-06-01", 0.8), peg_row("2022-12-30", 0.9)])
    (lake.path / "pegs" / "venue=pool" / "asset=USDC" / "year=2021.parquet").write_bytes(b"never read")
    now = to_us("2023-01-01")
    store = read_context(lake, now, now + DAY)
    rows = store.get(SeriesKey("pegs", "pool", "USDC"))
    assert rows is not None
    assert rows.column("price_usd").tolist() == [0.9]


def test_a_market_without_a_bar_now_has_its_last_close_whatever_its_age(lake: Lake, tmp_path: Path) -> None:
    markets = (Market("BTC", "sim"), Market("ETH", "sim"), Market("NONE", "sim"))
    holes = Lake(tmp_path / "lake")
    bars = lake.read("bars")
    stop = to_us("2024-06-01")
    ended = pc.and_(pc.equal(bars["symbol"], "ETH"), pc.greater(bars["ts"].cast(pa.int64()), stop))
    holes.write("bars", bars.filter(pc.invert(ended)))
    found = last_closes(holes, markets, "1h", NOW)
    rows = bars.to_pandas().set_index(["symbol", "ts"])["close"]
    assert sorted(found) == ["BTC", "ETH"]
    assert found["ETH"] == (stop, rows["ETH"].loc["2024-06-01 00:00+00:00"])
    assert found["BTC"] == (NOW - HOUR, rows["BTC"].loc["2024-06-30 11:00+00:00"])


def test_an_old_snapshot_is_marked_as_a_scorer_that_saw_every_bar_marks_it(
    tiny_bundle: Path, lake: Lake, tmp_path: Path
) -> None:
    """The last two bars of ETH are missing: its newest close is older than the bar, newer than the book."""
    holes = Lake(tmp_path / "lake")
    bars = lake.read("bars")
    gone = pc.and_(pc.equal(bars["symbol"], "ETH"), pc.greater(bars["ts"].cast(pa.int64()), NOW - 2 * HOUR))
    holes.write("bars", bars.filter(pc.invert(gone)))
    for table in ("marks", "funding", "open_interest", "liquidations", "flows", "chains", "pegs"):
        holes.write(table, lake.read(table, end=NOW - 5 * HOUR))
    snapshot = NOW - 5 * HOUR
    for table in ("accounts", "collateral", "positions", "orders"):
        holes.write(table, lake.read(table, start=snapshot, end=snapshot + 1))
    book = read_book(holes, NOW)
    assert book.ts == snapshot
    once = score_at(tiny_bundle, holes, NOW)
    live = running_scorer(tiny_bundle, holes, NOW - DAY, NOW, HOUR).score(book, NOW)
    np.testing.assert_allclose(once.equity_usd, live.equity_usd, rtol=1e-9)
    stale = score_at(tiny_bundle, holes, snapshot)
    assert (np.abs(once.equity_usd - stale.equity_usd) > 0.01).any()
