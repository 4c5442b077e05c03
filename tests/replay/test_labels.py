"""Replay labels on tables small enough to follow by hand.

One BTC position of size 1 at 100 has maintenance 10 % of its value unless a test says otherwise; bars
are (low, high, close) and hour 0 is the snapshot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from riskml.errors import ConfigError, DataError
from riskml.replay.labels import METADATA, replay_labels, write_labels
from riskml.tables.lake import Lake
from riskml.units import HOUR, MINUTE

FLAT = (100.0, 100.0, 100.0)
CALM = [FLAT] * 36


class World(Protocol):
    lake: Lake

    def at(self, hours: float) -> int: ...
    def add(self, table: str, **row: Any) -> None: ...
    def bars(self, symbol: str, bars: Any, **options: Any) -> None: ...
    def pay(self, symbol: str, rates: dict[float, float], **options: Any) -> None: ...
    def account(self, name: str, cash: float, positions: Any = (), **options: Any) -> None: ...
    def write(self) -> Lake: ...


def position(size: float, symbol: str = "BTC", mark: float = 100.0, **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "size": size, "mark": mark, **more}


def path(*moves: tuple[float, float, float]) -> list[tuple[float, float, float]]:
    """The snapshot's bar at 100, the given bars, then calm to the end of a day."""
    return [FLAT, *moves, *([FLAT] * (35 - len(moves)))]


def label(lake: Lake, **options: Any) -> dict[str, Any]:
    """The only row."""
    (row,) = replay_labels(lake, **options).to_pylist()
    return row


def outcomes(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(row[f"liquidated_{horizon}"] for horizon in ("1h", "8h", "24h"))


@pytest.mark.parametrize(
    ("size", "move", "hit"),
    [
        # Equity 20 + (P - 100), maintenance P / 10: the long falls below at P < 88.89.
        (1.0, (89.0, 100.0, 100.0), False),
        (1.0, (88.0, 100.0, 100.0), True),
        (1.0, (100.0, 200.0, 100.0), False),
        # Equity 20 - (P - 100), maintenance P / 10: the short falls below at P > 109.09.
        (-1.0, (100.0, 109.0, 100.0), False),
        (-1.0, (100.0, 110.0, 100.0), True),
        (-1.0, (10.0, 100.0, 100.0), False),
    ],
)
def test_a_single_position_is_liquidated_at_its_own_extreme(
    world: World, size: float, move: tuple[float, float, float], hit: bool
) -> None:
    world.bars("BTC", path(FLAT, FLAT, move))
    world.account("a", 20.0, [position(size)], maintenance=10.0)
    row = label(world.write())
    assert outcomes(row) == ((0.0, 1.0, 1.0) if hit else (0.0, 0.0, 0.0))
    assert row["minutes_to_breach"] == (180.0 if hit else pytest.approx(np.nan, nan_ok=True))
    # One market: what is possible is certain.
    assert row["possible_ts"] == row["first_breach_ts"] == row["confirmed_ts"]
    assert (row["barrier"], row["interval"], row["reason"]) == ("venue", "1h", "")


def test_the_least_equity_and_ratio_are_those_of_the_path(world: World) -> None:
    world.bars("BTC", path((90.0, 104.0, 95.0)))
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    row = label(world.write())
    assert (row["equity_usd"], row["maintenance_usd"]) == (20.0, 10.0)
    assert row["equity_min_usd"] == pytest.approx(10.0)
    assert row["min_margin_ratio"] == pytest.approx(10.0 / 9.0)


def test_a_breach_exactly_at_maintenance_is_none(world: World) -> None:
    world.bars("BTC", path((75.0, 100.0, 100.0)))
    world.account("a", 43.75, [position(1.0)], maintenance=25.0)
    assert outcomes(label(world.write())) == (0.0, 0.0, 0.0)


def test_a_hedge_within_one_market_nets_and_within_two_gives_an_interval(world: World) -> None:
    down = (80.0, 100.0, 90.0)
    world.bars("BTC", path(down))
    world.bars("ETH", path(down))
    world.bars("BTC", path(down), venue="binance")
    legs = [position(1.0), position(-1.0, venue="binance", mark=100.0)]
    world.account("two-venues", 20.0, legs, maintenance=10.0)
    world.account("two-markets", 20.0, [position(1.0), position(-1.0, "ETH")], maintenance=10.0)
    legs = [position(1.0, venue="okx"), position(-1.0, venue="bybit")]
    world.account("same-source", 20.0, legs, maintenance=10.0)
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    # Low and high of two sources could come at once: 20 - 20 - 0 < 9; together they cancel.
    for name in ("two-venues", "two-markets"):
        assert rows[name]["possible_ts"] is not None
        assert (rows[name]["first_breach_ts"], rows[name]["confirmed_ts"]) == (None, None)
    # okx and bybit have no bars here: both legs follow one source and never drift apart.
    assert rows["same-source"]["possible_ts"] is None


def test_closes_confirm_and_so_does_one_leg_that_no_other_can_save(world: World) -> None:
    world.bars("BTC", path((60.0, 100.0, 100.0), (60.0, 100.0, 60.0)))
    world.bars("ETH", path((100.0, 102.0, 100.0), (100.0, 100.0, 100.0)))
    # At BTC 60 the long lost 40; ETH gives 2 at best: 30 - 40 + 2 < maintenance.
    world.account("sure", 30.0, [position(1.0), position(1.0, "ETH")], maintenance=10.0)
    # ETH gives 80 at best, so only the close of hour 2 is sure: 55 - 40 < maintenance 20 / 200 x 160.
    world.account("open", 55.0, [position(1.0), position(40.0, "ETH")], maintenance=41.0)
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    assert rows["sure"]["confirmed_ts"] == rows["sure"]["possible_ts"]
    assert rows["sure"]["minutes_to_breach"] == 60.0
    gap = rows["open"]["confirmed_ts"] - rows["open"]["possible_ts"]
    assert gap.total_seconds() == 3600.0


def test_an_isolated_position_goes_alone_and_its_loss_ends_at_its_margin(world: World) -> None:
    world.bars("BTC", path((85.0, 100.0, 100.0)))
    world.bars("ETH", path())
    isolated = position(1.0, mode="isolated", margin=20.0)
    # 1 % of gross 300 is stated; the isolated pool has 20 - 15 against 0.85.
    world.account("safe", 1000.0, [isolated, position(2.0, "ETH")], maintenance=3.0)
    # The same with 15.5: 0.5 < 0.85, however much cash there is.
    thin = position(1.0, mode="isolated", margin=15.5)
    world.account("thin", 1000.0, [thin, position(2.0, "ETH")], maintenance=3.0)
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    assert outcomes(rows["safe"]) == (0.0, 0.0, 0.0)
    assert outcomes(rows["thin"]) == (1.0, 1.0, 1.0)
    assert rows["thin"]["equity_usd"] == pytest.approx(1015.5)
    assert rows["thin"]["min_margin_ratio"] == pytest.approx(0.5 / 0.85)


def test_a_cross_pool_is_not_saved_by_isolated_margin(world: World) -> None:
    world.bars("BTC", path((85.0, 100.0, 100.0)))
    world.bars("ETH", path())
    legs = [position(1.0), position(0.1, "ETH", mode="isolated", margin=500.0)]
    world.account("a", 20.0, legs, maintenance=11.0)
    assert outcomes(label(world.write())) == (1.0, 1.0, 1.0)


def test_funding_alone_can_kill_and_is_paid_at_its_time(world: World) -> None:
    world.bars("BTC", CALM)
    world.pay("BTC", dict.fromkeys(range(-1, 27), 0.0) | {0: 5.0, 3: 0.06, 6: 0.06})
    # 20 against 10: 6 + 6 of funding leave 8. The payment at the snapshot itself is past.
    world.account("long", 20.0, [position(1.0)], maintenance=10.0)
    world.account("short", 20.0, [position(-1.0)], maintenance=10.0)
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    assert outcomes(rows["long"]) == (0.0, 1.0, 1.0)
    assert rows["long"]["minutes_to_breach"] == 360.0
    assert rows["long"]["equity_min_usd"] == pytest.approx(8.0)
    assert outcomes(rows["short"]) == (0.0, 0.0, 0.0)
    assert rows["long"]["funding_known"] is True


def test_funding_comes_after_the_extremes_of_the_bar_that_it_ends(world: World) -> None:
    world.bars("BTC", path((90.0, 100.0, 100.0)))
    world.pay("BTC", dict.fromkeys(range(27), 0.0) | {1: 0.05})
    # At the low 20 - 10 = 10 against 9; then 5 are paid at a price of 100: 15 against 10.
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    row = label(world.write())
    assert outcomes(row) == (0.0, 0.0, 0.0)
    assert row["equity_min_usd"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("paid", "known"),
    [
        (range(-1, 26), True),
        ([*range(10), *range(13, 26)], True),  # three hourly payments missing
        ([*range(10), *range(14, 26)], False),  # four
        (range(1, 25), True),
        (range(2, 25), False),
        (range(23), False),
        ((), False),
    ],
)
def test_funding_counts_as_known_where_at_most_three_payments_are_missing(
    world: World, paid: Any, known: bool
) -> None:
    world.bars("BTC", CALM)
    world.pay("BTC", dict.fromkeys(paid, 0.001))
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    row = label(world.write())
    assert row["funding_known"] is known
    # Nothing of a series with holes is paid: half of it would be neither.
    expected = sum(1 for hour in paid if 0 < hour <= 24) * 0.1 if known else 0.0
    assert row["equity_min_usd"] == pytest.approx(20.0 - expected)


def test_collateral_that_moves_falls_with_its_market_after_the_haircut(world: World) -> None:
    world.bars("BTC", CALM)
    world.bars("ETH", path((70.0, 100.0, 70.0)))
    world.account("a", 0.0, [position(1.0)], maintenance=10.0, collateral={"ETH": (0.15, 100.0)})
    lake = world.write()
    plain = label(lake, haircuts="none")
    assert plain["equity_usd"] == pytest.approx(15.0)
    assert plain["equity_min_usd"] == pytest.approx(10.5)
    assert outcomes(plain) == (0.0, 0.0, 0.0)
    cut = label(lake, haircuts={"ETH": 0.2})
    assert cut["equity_usd"] == pytest.approx(12.0)
    assert outcomes(cut) == (1.0, 1.0, 1.0)
    assert json.loads(replay_labels(lake, haircuts={"ETH": 0.2}).schema.metadata[METADATA])["haircuts"] == {
        "ETH": 0.2
    }


def test_the_policy_gives_the_haircut_where_no_other_is_asked_for(world: World) -> None:
    world.bars("BTC", CALM)
    holdings = {"USDT": (100.0, 1.0), "NEWCOIN": (100.0, 1.0)}
    leg = position(1.0, venue="elsewhere")  # no home chain, so no haircut for a transfer
    world.account("a", 0.0, [leg], maintenance=10.0, collateral=holdings)
    lake = world.write()
    # facts/assets.toml: 0.5 % for USDT; an unknown asset counts for nothing.
    assert label(lake)["equity_usd"] == pytest.approx(99.5)
    assert label(lake, haircuts={"NEWCOIN": 0.5})["equity_usd"] == pytest.approx(149.5)
    assert label(lake, haircuts="none")["equity_usd"] == pytest.approx(200.0)


def test_hyperliquid_tiers_follow_the_notional_along_the_path(world: World) -> None:
    # PEPE-like default: 10x (5 %) to 3,000,000 USD, then 5x (10 %) less 150,000.
    world.start = 1_760_000_400_000_000 // HOUR * HOUR
    world.bars("XYZ", path((100.0, 120.0, 100.0)))
    leg = position(-30_000.0, "XYZ", venue="hyperliquid")
    # At 120: equity E - 600,000 against 3,600,000 x 10 % - 150,000 = 210,000.
    world.account("safe", 810_001.0, [leg])
    world.account("gone", 809_999.0, [leg])
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    assert rows["safe"]["maintenance_usd"] == pytest.approx(150_000.0)
    assert rows["safe"]["barrier"] == rows["gone"]["barrier"] == "hyperliquid"
    assert (rows["safe"]["liquidated_1h"], rows["gone"]["liquidated_1h"]) == (0.0, 1.0)


def test_an_account_that_is_below_already_is_labelled_at_its_own_time(world: World) -> None:
    world.bars("BTC", CALM)
    world.account("a", 5.0, [position(1.0)], maintenance=10.0)
    world.account("nowhere", 5.0, [position(1.0, "MATIC")], maintenance=10.0)
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    for row in rows.values():
        assert row["below_at_start"] is True
        assert (row["first_breach_ts"], row["minutes_to_breach"]) == (row["ts"], 0.0)
        assert outcomes(row) == (1.0, 1.0, 1.0)
    assert (rows["nowhere"]["reason"], rows["nowhere"]["reason_market"]) == ("no-bars", "MATIC")


@pytest.mark.parametrize(
    ("bars", "reason", "known_hours", "expected"),
    [
        # Three missing bars are bridged, four are not.
        ([FLAT] * 5 + [None] * 3 + [FLAT] * 30, "", 24, (0.0, 0.0, 0.0)),
        ([FLAT] * 5 + [None] * 4 + [FLAT] * 30, "gap", 4, (0.0, np.nan, np.nan)),
        ([FLAT] * 12, "data-end", 11, (0.0, 0.0, np.nan)),
        # Even missing bars at the very end of the window: what came next is not known.
        ([FLAT] * 23, "data-end", 22, (0.0, 0.0, np.nan)),
        ([FLAT] * 25, "", 24, (0.0, 0.0, 0.0)),
        ([None] * 5 + [FLAT] * 31, "no-price", None, (np.nan,) * 3),
        ([FLAT], "data-end", 0, (np.nan,) * 3),
        # The breach at hour 2 is seen, but what is missing does not depend on it.
        ([FLAT, FLAT, (50.0, 100.0, 100.0)] + [FLAT] * 3, "data-end", 5, (0.0, np.nan, np.nan)),
    ],
)
def test_a_path_that_is_not_known_is_never_survival(
    world: World, bars: Any, reason: str, known_hours: int | None, expected: tuple[float, ...]
) -> None:
    world.bars("BTC", bars)
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    row = label(world.write())
    np.testing.assert_equal(outcomes(row), expected)
    assert (row["reason"], row["reason_market"]) == (reason, "BTC" if reason else "")
    until = row["known_until_ts"]
    assert (until is None) == (known_hours is None)
    if known_hours is not None:
        assert (until - row["ts"]).total_seconds() == known_hours * 3600
    assert (row["first_breach_ts"] is not None) == any(bar == (50.0, 100.0, 100.0) for bar in bars)
    assert np.isnan(row["equity_min_usd"]) == bool(reason)


def test_a_delisted_market_is_not_known_after_its_end(world: World) -> None:
    world.bars("BTC", [FLAT] * 10)
    world.add(
        "instruments",
        ts=world.at(-100),
        venue="sim",
        symbol="BTC",
        base="BTC",
        quote="USD",
        settle_asset="USDC",
        contract_multiplier=1.0,
        kind="linear",
        listing=world.at(-100),
        delisting=world.at(9.5),
    )
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    row = label(world.write())
    assert (row["reason"], row["liquidated_1h"]) == ("delisted", 0.0)
    assert np.isnan(row["liquidated_24h"])


def test_one_missing_leg_makes_the_account_unknown(world: World) -> None:
    world.bars("BTC", path((50.0, 100.0, 50.0)))
    world.account("a", 20.0, [position(1.0), position(1.0, "MATIC")], maintenance=10.0)
    row = label(world.write())
    assert np.isnan(outcomes(row)).all()
    assert (row["reason"], row["reason_market"], row["interval"]) == ("no-bars", "MATIC", "")


def test_no_positions_and_no_barrier_are_told_apart(world: World) -> None:
    world.bars("BTC", path((50.0, 100.0, 50.0)))
    world.account("flat", 20.0)
    world.account("unstated", 20.0, [position(1.0)])
    rows = {row["account_id"]: row for row in replay_labels(world.write()).to_pylist()}
    assert (rows["flat"]["reason"], outcomes(rows["flat"])) == ("no-positions", (0.0, 0.0, 0.0))
    assert rows["unstated"]["reason"] == "no-barrier"
    assert np.isnan([*outcomes(rows["unstated"]), rows["unstated"]["maintenance_usd"]]).all()
    engine = replay_labels(world.lake, barrier="hyperliquid").to_pylist()
    assert {row["barrier"] for row in engine} == {"hyperliquid"}
    assert engine[1]["liquidated_1h"] == 1.0


def test_the_finest_bars_that_cover_every_leg_are_taken(world: World) -> None:
    world.bars("BTC", CALM)
    world.bars("BTC", [FLAT] * 121, interval="15m")
    world.bars("ETH", CALM)
    world.bars("SOL", CALM)
    world.bars("SOL", [FLAT] * 20, interval="15m")
    legs = {"BTC": ["BTC"], "both": ["BTC", "ETH"], "short": ["SOL"]}
    for name, symbols in legs.items():
        world.account(name, 50.0, [position(1.0, symbol) for symbol in symbols], maintenance=10.0)
    rows = {row["account_id"]: row["interval"] for row in replay_labels(world.write()).to_pylist()}
    assert rows == {"BTC": "15m", "both": "1h", "short": "1h"}
    fixed = replay_labels(world.lake, interval="15m", horizons=["1h"]).to_pylist()
    assert [row["interval"] for row in fixed] == ["15m", "", "15m"]


def test_a_better_known_venue_stands_in_where_the_own_one_has_a_hole(world: World) -> None:
    world.bars("BTC", [FLAT] * 5, venue="bybit")
    world.bars("BTC", path((50.0, 100.0, 100.0)), venue="okx")
    world.account("a", 20.0, [position(1.0, venue="bybit")], maintenance=10.0)
    assert outcomes(label(world.write())) == (1.0, 1.0, 1.0)


def test_bars_that_begin_before_the_snapshot_count_by_their_close_only(world: World) -> None:
    world.bars("BTC", path((50.0, 100.0, 100.0), FLAT, (50.0, 100.0, 100.0)))
    world.account("a", 20.0, [position(1.0)], maintenance=10.0, hour=0.5)
    row = label(world.write())
    assert outcomes(row) == (0.0, 1.0, 1.0)
    assert row["minutes_to_breach"] == 150.0


def test_the_start_is_marked_at_the_last_close_that_was_known(world: World) -> None:
    world.bars("BTC", [*[FLAT] * 2, (90.0, 90.0, 90.0), *[(90.0, 90.0, 90.0)] * 33])
    stale = position(1.0, mark=100.0)
    world.account("a", 20.0, [stale], hour=2, maintenance=10.0)
    lake = world.write()
    row = label(lake)
    assert (row["equity_usd"], row["remark_change"]) == (pytest.approx(10.0), pytest.approx(0.1))
    assert outcomes(row) == (0.0, 0.0, 0.0)
    kept = label(lake, remark=False)
    assert (kept["equity_usd"], kept["remark_change"]) == (20.0, 0.0)


def test_a_close_that_became_known_later_does_not_mark_the_start(world: World) -> None:
    world.bars("BTC", [FLAT] * 2)
    bar = {"venue": "sim", "symbol": "BTC", "interval": "1h", "volume": 1.0, "open": 80.0}
    world.add("bars", ts=world.at(2), known_at=world.at(2) + 1, **bar, low=80.0, high=80.0, close=80.0)
    world.bars("BTC", [(80.0, 80.0, 80.0)] * 30, first=3)
    world.account("a", 30.0, [position(1.0)], hour=2, maintenance=10.0)
    row = label(world.write())
    assert row["equity_usd"] == 30.0
    assert row["equity_min_usd"] == pytest.approx(10.0)


def test_chunks_change_no_value(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    for symbol in ("BTC", "ETH"):
        close = 100.0 * np.exp(np.cumsum(0.01 * rng.standard_normal(60)))
        world.bars(symbol, [(c * 0.98, c * 1.02, c) for c in close])
        world.pay(symbol, dict.fromkeys(range(60), 0.0001))
    for hour in range(0, 30, 3):
        for name, symbol in (("a", "BTC"), ("b", "ETH")):
            mark = 100.0
            world.account(name, 15.0, [position(1.0, symbol, mark)], hour=hour, maintenance=5.0)
    whole = replay_labels(world.write())
    monkeypatch.setattr("riskml.replay.labels.CHUNK_ROWS", 2)
    monkeypatch.setattr("riskml.replay.labels_books.GROUP_ROWS", 2)
    monkeypatch.setattr("riskml.replay.labels_path.SPAN_US", HOUR)
    assert_frame_equal(replay_labels(world.lake).to_pandas(), whole.to_pandas(), check_exact=True)
    part = replay_labels(world.lake, start=world.at(6), end=world.at(12)).to_pandas()
    assert_frame_equal(part, whole.slice(4, 4).to_pandas(), check_exact=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"barrier": "riskml"}, "no barrier 'riskml' to replay"),
        ({"barrier": "hyperliquit"}, "Did you mean 'hyperliquid'"),
        ({"haircuts": "some"}, "haircuts are 'policy', 'none'"),
        ({"haircuts": {"ETH": 20.0}}, "a haircut lies in \\[0, 1\\]"),
        ({"interval": "4h"}, "longer than the shortest horizon"),
        ({"horizons": ()}, "at least one"),
        ({"horizons": ("1h", "1h")}, "different durations"),
    ],
)
def test_options_that_make_no_sense_are_refused(world: World, options: Any, message: str) -> None:
    world.bars("BTC", CALM)
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    lake = world.write()
    with pytest.raises(ConfigError, match=message):
        replay_labels(lake, **options)


def test_a_range_without_accounts_is_an_error(world: World) -> None:
    world.bars("BTC", CALM)
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    lake = world.write()
    with pytest.raises(DataError, match="no account snapshot in the range"):
        replay_labels(lake, "2020-01-01", "2020-02-01")
    with pytest.raises(DataError, match="the range is empty"):
        replay_labels(lake, "2020-02-01", "2020-01-01")


def test_an_account_counts_as_it_was_known_at_its_own_time(world: World) -> None:
    world.bars("BTC", CALM)
    for cash, known in ((40.0, 0), (0.0, 1)):
        row = {"ts": world.at(0), "known_at": world.at(known), "account_id": "a", "margin_mode": "cross"}
        world.add("accounts", **row, cash_usd=cash, maintenance_margin_usd=10.0)
    late = {"ts": world.at(0), "known_at": world.at(1), "account_id": "late", "margin_mode": "cross"}
    world.add("accounts", **late, cash_usd=1.0, maintenance_margin_usd=10.0)
    leg = {"venue": "sim", "symbol": "BTC", "size": 1.0, "entry_price": 100.0, "mark_price": 100.0}
    world.add("positions", ts=world.at(0), account_id="a", **leg, margin_mode="cross")
    assert label(world.write())["equity_usd"] == 40.0


def test_labels_are_written_whole_and_read_back(world: World, tmp_path: Path) -> None:
    world.bars("BTC", CALM)
    world.account("a", 20.0, [position(1.0)], maintenance=10.0)
    labels = replay_labels(world.write())
    target = write_labels(labels, tmp_path / "deep" / "labels.parquet")
    assert_frame_equal(pq.read_table(target).to_pandas(), labels.to_pandas())
    assert [file.name for file in target.parent.iterdir()] == ["labels.parquet"]


def test_fills_stand_in_for_bars_only_where_asked_and_where_no_venue_has_any(world: World) -> None:
    world.bars("BTC", CALM)
    for place, price in enumerate([100.0, *[101.0] * 3, 85.0, *[100.0] * 40]):
        fill = {"account_id": "b", "venue": "sim", "size": 1.0, "is_taker": True, "sequence": place}
        # Fills of one bar are a minute after its start and at its close.
        world.add("trades", ts=world.at(place - 1) + MINUTE, symbol="ARB", price=price, **fill)
        world.add("trades", ts=world.at(place), symbol="ARB", price=100.0, **fill | {"sequence": 100 + place})
        world.add("trades", ts=world.at(place), symbol="BTC", price=1.0, **fill | {"sequence": 200 + place})
    world.account("a", 20.0, [position(1.0, "ARB")], maintenance=10.0)
    world.account("b", 20.0, [position(1.0, "BTC")], maintenance=10.0)
    lake = world.write()
    plain = replay_labels(lake).to_pylist()
    assert (plain[0]["reason"], plain[1]["liquidated_24h"]) == ("no-bars", 0.0)
    filled = replay_labels(lake, fills=True).to_pylist()
    assert (outcomes(filled[0]), filled[0]["minutes_to_breach"]) == ((0.0, 1.0, 1.0), 240.0)
    np.testing.assert_equal(filled[1], plain[1])


def test_silence_of_the_fills_is_not_survival(world: World) -> None:
    fill = {"account_id": "b", "venue": "sim", "size": 1.0, "is_taker": True, "symbol": "ARB"}
    for place, hour in enumerate([0, 1, 2, 20, 21]):
        world.add("trades", ts=world.at(hour), price=100.0, sequence=place, **fill)
    world.bars("BTC", CALM)
    world.account("a", 20.0, [position(1.0, "ARB")], maintenance=10.0)
    row = label(world.write(), fills=True)
    np.testing.assert_equal(outcomes(row), (0.0, np.nan, np.nan))
    assert (row["reason"], row["reason_market"]) == ("no-fills", "ARB")
