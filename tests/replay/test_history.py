"""Replay: a small history with known losses, calls and liquidations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from riskml import cli
from riskml.errors import DataError
from riskml.replay.episodes import Episode, liquidation_episodes, seen_before
from riskml.replay.history import NextBar, replay_margins
from riskml.report.pages import write_report
from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us

START = to_us("2024-06-01")
BARS = ((100.0, 101.0, 99.0), (100.0, 102.0, 97.0), (100.0, 100.5, 90.0), (95.0, 96.0, 94.0))
"""close, high, low per hour."""


def at(hour: int) -> int:
    return START + hour * HOUR


def table(rows: list[dict[str, Any]]) -> pa.Table:
    stamped = [{**row, "known_at": row.get("known_at", row["ts"])} for row in rows]
    data = pa.Table.from_pylist(stamped)
    for name in ("ts", "known_at"):
        place = data.column_names.index(name)
        data = data.set_column(place, name, data.column(name).cast(pa.timestamp("us", tz="UTC")))
    return data


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """One market, two accounts: 'long' of 10 units and 'flat' without a position."""
    store = Lake(tmp_path / "lake")
    market = {"venue": "sim", "symbol": "BTC"}
    bars = [
        {"ts": at(n), **market, "interval": "1h", "open": c, "close": c, "high": h, "low": low, "volume": 1.0}
        for n, (c, h, low) in enumerate(BARS)
    ]
    position = {"account_id": "long", **market, "size": 10.0, "entry_price": 100.0, "margin_mode": "cross"}
    store.write("bars", table(bars))
    store.write("positions", table([{"ts": at(n), **position, "mark_price": 100.0} for n in range(3)]))
    close = {"ts": at(2) + HOUR // 2, **market, "account_id": "long", "side": "long", "notional_usd": 950.0}
    store.write("liquidations", table([close]))
    return store


@pytest.fixture
def margins(tmp_path: Path) -> Path:
    """Equity 80 against maintenance 40, 70 and 90; the engine asks for more at hour 2 only."""
    rows = []
    for hour, maintenance in enumerate((40.0, 70.0, 90.0)):
        for account, equity in (("long", 80.0), ("flat", 80.0)):
            rows.append(
                {
                    "ts": at(hour),
                    "account_id": account,
                    "engine": "riskml",
                    "bundle_id": "b",
                    "equity_usd": equity,
                    "collateral_usd": equity,
                    "initial_margin_usd": maintenance,
                    "maintenance_margin_usd": maintenance if account == "long" else 0.0,
                    "action": "restrict" if (account, hour) == ("long", 2) else "normal",
                    "barrier": "riskml",
                    "in_sample": (account, hour) == ("flat", 0),
                    "policy_hash": "p",
                }
            )
    Lake(tmp_path / "margins").write("margins", table(rows))
    return tmp_path / "margins"


def test_the_move_of_the_next_bar_is_taken_and_never_across_a_gap(tmp_path: Path, lake: Lake) -> None:
    later = {"venue": "sim", "symbol": "BTC", "interval": "1h", "open": 50.0, "close": 50.0, "volume": 1.0}
    lake.write("bars", table([{"ts": at(9), **later, "high": 51.0, "low": 1.0}]))
    low, high = NextBar.load(lake, "1h").moves("BTC", np.array([at(0), at(1), at(3), at(9)]))
    np.testing.assert_allclose(low, [-0.03, -0.10, np.nan, np.nan])
    np.testing.assert_allclose(high, [0.02, 0.005, np.nan, np.nan])


def test_an_engine_is_held_against_the_next_bars_worst_price(
    lake: Lake, margins: Path, tmp_path: Path
) -> None:
    report = replay_margins(margins, lake, tmp_path / "replay")
    (engine,) = report.engines
    # The long loses 30, 100 and 60 USD: after hour 0 it is at 50, after hour 1 at -20.
    assert (engine.account_hours, report.in_sample_rows, report.unpriced_positions) == (5, 1, 0)
    assert (engine.calls, engine.warnings, engine.needless_calls) == (1, 1, 0)
    assert (engine.jumped, engine.bad_debt) == (1, 1)
    assert engine.bad_debt_usd == pytest.approx(20.0)
    assert engine.maintenance_share == pytest.approx(0.2 / 3)
    assert (engine.liquidations, engine.foreseen, engine.median_lead_h) == (1, 1, 0.5)
    assert (engine.warned, engine.median_warning_lead_h) == (1, 0.5)


def test_the_three_files_and_the_page_are_written(lake: Lake, margins: Path, tmp_path: Path) -> None:
    out = tmp_path / "replay"
    assert cli.main(["replay", "--margins", str(margins), "--lake", str(lake.path), "--out", str(out)]) == 0
    assert json.loads((out / "replay.json").read_text())["engines"][0]["bad_debt"] == 1
    assert (out / "episodes.csv").read_text().splitlines() == [
        "engine,account_id,ts,notional_usd,foreseen,lead_h",
        "riskml,long,2024-06-01T02:30:00Z,950.0,True,0.5",
    ]
    assert (out / "engines.csv").read_text().startswith("engine,account_hours,calls")
    page = write_report("replay", out, tmp_path / "replay.html").read_text()
    assert "Recorded liquidations" in page
    assert "data:image/png;base64," in page


def test_the_page_of_a_backfill_counts_actions_per_engine(margins: Path, tmp_path: Path) -> None:
    page = write_report("backfill", margins, tmp_path / "backfill.html").read_text()
    assert "16.667" in page  # one of six rows is restricted
    assert "Actions" in page


def test_a_range_without_margin_rows_is_an_error(lake: Lake, margins: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no margin rows in the range"):
        replay_margins(margins, lake, tmp_path / "replay", start="2025-01-01")
    assert not (tmp_path / "replay").exists()


def test_the_loss_of_an_isolated_position_ends_at_its_margin(
    lake: Lake, margins: Path, tmp_path: Path
) -> None:
    isolated = {"account_id": "flat", "venue": "sim", "symbol": "BTC", "margin_mode": "isolated", "size": 1e6}
    row = {**isolated, "ts": at(1), "entry_price": 100.0, "mark_price": 100.0, "isolated_margin_usd": 15.0}
    lake.write("positions", table([row]))
    (engine,) = replay_margins(margins, lake, tmp_path / "replay").engines
    assert engine.bad_debt == 1  # 'flat' keeps 80 - 15


def test_closes_within_the_quiet_time_are_one_episode(lake: Lake) -> None:
    close = {"venue": "sim", "symbol": "BTC", "account_id": "long", "side": "long", "notional_usd": 10.0}
    lake.write("liquidations", table([{"ts": at(hour), **close} for hour in (4, 60, 61)]))
    nameless = {**close, "account_id": ""}
    lake.write("liquidations", table([{"ts": at(5), **nameless}]))
    found = liquidation_episodes(lake, START, at(100), 24 * HOUR)
    assert [(item.ts, item.notional_usd) for item in found] == [(at(2) + HOUR // 2, 960.0), (at(60), 20.0)]


def test_an_episode_of_an_account_that_was_not_scored_is_left_out() -> None:
    accounts, times = np.array(["a", "a", "b"]), np.array([at(0), at(1), at(0)])
    called = np.array([False, True, False])
    episodes = [
        Episode("a", at(3), 1.0),
        Episode("b", at(3), 1.0),
        Episode("c", at(3), 1.0),
        Episode("a", at(90), 1.0),
    ]
    seen = seen_before(accounts, times, called, episodes, 24 * HOUR)
    assert [(item.episode.account_id, item.lead_us) for item in seen] == [("a", 2 * HOUR), ("b", None)]
