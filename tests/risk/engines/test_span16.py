"""SPAN's 16 scenarios against exact fractions written from the published method."""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines.interface import VenueState
from riskml.risk.engines.netting import NettingSets, market_entry, netting_sets, underlying
from riskml.risk.engines.span16 import (
    FACTS,
    Span16Engine,
    SpanRules,
    Spread,
    inter_commodity_credit,
    risk_array,
    scan_range,
    scanning_risk,
    span_rules,
    spreads,
)
from riskml.units import to_us

NOW = to_us("2025-09-01")

# The method, written once more: (price in thirds of the range, volatility, part of the loss).
SCENARIOS = [
    *((thirds, vol, Fraction(1)) for thirds in (0, 1, -1, 2, -2, 3, -3) for vol in (1, -1)),
    (9, 0, Fraction(1, 3)),
    (-9, 0, Fraction(1, 3)),
]
RANGES = {"BTC": "0.18", "ETH": "0.18", "SOL": "0.27", "HYPE": "0.33"}
WIDEST = "0.4"
SPREADS = [("BTC", "ETH", "0.5"), ("BTC", "SOL", "0.3"), ("ETH", "SOL", "0.3")]
SYMBOLS = ("BTC", "BTC-USDC", "ETH", "SOL", "HYPE", "DOGE")

Position = tuple[str, str, float, float, bool]
"""Venue, symbol, size, mark, isolated."""


def slow_account(positions: list[Position]) -> tuple[Fraction, list[Fraction]]:
    """Risk of one account and its parts by position, exactly."""
    groups: dict[Any, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (venue, symbol, _, _, isolated) in enumerate(positions):
        groups[("alone", row) if isolated else venue][symbol.split("-")[0]].append(row)
    value = [Fraction(size) * Fraction(mark) for _, _, size, mark, _ in positions]
    parts = [Fraction(0)] * len(positions)
    for commodities in groups.values():
        net = {name: sum((value[row] for row in rows), Fraction(0)) for name, rows in commodities.items()}
        scanning = {}
        for name, delta in net.items():
            price_range = Fraction(RANGES.get(name, WIDEST))
            losses = [-delta * price_range * thirds / 3 * cover for thirds, _, cover in SCENARIOS]
            scanning[name] = max(Fraction(0), *losses)
        risk, left = dict(scanning), {name: abs(delta) for name, delta in net.items()}
        for first, second, rate in SPREADS:
            if first in net and second in net and net[first] * net[second] < 0:
                formed = min(left[first], left[second])
                for name in (first, second):
                    risk[name] -= Fraction(rate) * scanning[name] / abs(net[name]) * formed
                    left[name] -= formed
        for name, rows in commodities.items():
            gross = sum((abs(value[row]) for row in rows), Fraction(0))
            for row in rows:
                parts[row] = risk[name] * (abs(value[row]) / gross if gross else Fraction(1, len(rows)))
    return sum(parts, Fraction(0)), parts


def book_of(accounts: list[list[Position]]) -> AccountBook:
    return AccountBook.from_dicts(
        [
            {
                "account_id": f"a{number}",
                "cash_usd": 0.0,
                "positions": [
                    {
                        "venue": venue,
                        "symbol": symbol,
                        "size": size,
                        "mark_price": mark,
                        "margin_mode": "isolated" if isolated else "cross",
                    }
                    for venue, symbol, size, mark, isolated in positions
                ],
            }
            for number, positions in enumerate(accounts)
        ]
    )


def random_account(rng: random.Random) -> list[Position]:
    places = [(venue, symbol) for venue in ("x", "y") for symbol in SYMBOLS]
    chosen = rng.sample(places, rng.randint(1, 7))
    return [
        (
            venue,
            symbol,
            rng.choice((-1, 1)) * rng.choice((1e-6, 0.37, 12.5, 4e4)) * rng.random(),
            round(10 ** rng.uniform(-4, 5), 6),
            rng.random() < 0.15,
        )
        for venue, symbol in chosen
    ]


def edge_accounts() -> list[list[Position]]:
    """Hand-picked: cancelled nets, legs used up exactly, one unit to either side, no opposite sides."""
    long = ("x", "BTC", 2.0, 50_000.0, False)
    accounts: list[list[Position]] = [
        [long],
        [("x", "BTC", -2.0, 50_000.0, False)],
        [("x", "BTC", 0.0, 50_000.0, False)],
        [long, ("x", "BTC-USDC", -2.0, 50_000.0, False)],
        [long, ("x", "BTC-USDC", 2.0, 50_000.0, False)],
        [long, ("y", "BTC", -2.0, 50_000.0, False)],
        [long, ("x", "BTC-USDC", -2.0, 50_000.0, True)],
        [long, ("x", "ETH", 50.0, 2_000.0, False)],
        [long, ("y", "ETH", -50.0, 2_000.0, False)],
        [long, ("x", "ETH", -50.0, 2_000.0, True)],
        [long, ("x", "DOGE", -1e6, 0.1, False)],
        [long, ("x", "ETH", -0.0, 2_000.0, False)],
    ]
    for size in (-50.0, -49.9995, -50.0005, -25.0, -100.0, -1e-9):
        accounts.append([long, ("x", "ETH", size, 2_000.0, False)])
    for eth, sol in ((-25.0, -250.0), (-25.0, -249.0), (-50.0, -1.0), (25.0, -1_000.0), (-80.0, 300.0)):
        accounts.append([long, ("x", "ETH", eth, 2_000.0, False), ("x", "SOL", sol, 200.0, False)])
    return accounts


_RNG = random.Random(16)
VECTORS = [*edge_accounts(), *(random_account(_RNG) for _ in range(240))]


def test_there_are_enough_golden_vectors() -> None:
    assert len(VECTORS) >= 250


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_risk_equals_the_slow_fractions(number: int) -> None:
    positions = VECTORS[number]
    risk, parts = slow_account(positions)
    gross = sum(abs(size) * mark for _, _, size, mark, _ in positions)
    margins = Span16Engine().margins(book_of([positions]), None, NOW)
    assert margins.maintenance_usd[0] == pytest.approx(float(risk), rel=1e-9, abs=1e-9 * gross)
    assert margins.initial_usd[0] == pytest.approx(float(risk) * 1.1, rel=1e-9, abs=1e-9 * gross)
    assert margins.position_maintenance_usd == pytest.approx(
        [float(part) for part in parts], rel=1e-9, abs=1e-9 * gross
    )


def test_one_book_of_many_accounts_equals_each_alone() -> None:
    together = Span16Engine().margins(book_of([*VECTORS, []]), None, NOW)
    alone = [float(slow_account(positions)[0]) for positions in VECTORS]
    assert together.maintenance_usd[:-1] == pytest.approx(alone, rel=1e-9, abs=1e-3)
    assert together.maintenance_usd[-1] == together.initial_usd[-1] == 0.0
    assert together.equity_usd is None


def test_the_facts_are_the_sixteen_scenarios_of_the_method() -> None:
    rules = span_rules(NOW)
    expected = [(thirds, vol, cover) for thirds, vol, cover in SCENARIOS]
    rows = load_facts(FACTS)["array"][0]["scenarios"]
    found = [(Fraction(*row["price"]) * 3, row["volatility"], Fraction(*row["cover"])) for row in rows]
    assert found == expected
    assert rules.factor.tolist() == [
        0.0, 0.0, 1 / 3, 1 / 3, -1 / 3, -1 / 3, 2 / 3, 2 / 3, -2 / 3, -2 / 3, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0,
    ]  # fmt: skip
    assert (rules.initial_ratio, rules.inter_month_rate) == (1.1, 0.0)


def test_a_risk_array_has_the_losses_of_one_long_and_the_gains_of_a_short() -> None:
    # 300,000 USD at a range of 10 %: a third is 10,000; the extreme move is 90,000, of which a third counts.
    array = risk_array(np.array([300_000.0, -300_000.0]), np.array([0.1, 0.1]), span_rules(NOW))
    long = [0, 0, -10, -10, 10, 10, -20, -20, 20, 20, -30, -30, 30, 30, -30, 30]
    assert array[0] == pytest.approx([1_000.0 * loss for loss in long])
    assert array[1] == pytest.approx([-1_000.0 * loss for loss in long])


def test_volatility_is_in_the_array_and_changes_nothing() -> None:
    rules = span_rules(NOW)
    array = risk_array(np.array([123.0, -45.0]), np.array([0.18, 0.4]), rules)
    assert sorted(rules.volatility.tolist()) == [-1.0] * 7 + [0.0] * 2 + [1.0] * 7
    assert (array[:, 0:14:2] == array[:, 1:14:2]).all()


def test_an_extreme_move_binds_once_its_cover_exceeds_a_third() -> None:
    # 3 ranges at 40 %: 1.2 ranges, more than the single one of the pair before it.
    rules = SpanRules(np.array([1.0, -1.0, 1.2, -1.2]), np.zeros(4), 1.1, 0.0)
    assert scanning_risk(np.array([100.0, -100.0, 0.0]), np.full(3, 0.5), rules).tolist() == [60.0, 60.0, 0.0]


@pytest.mark.parametrize(
    ("positions", "maintenance"),
    [
        # 100,000 long BTC and 40,000 short ETH, both 18 %: 18,000 + 7,200 - 0.5 * 0.18 * 2 * 40,000.
        ([("x", "BTC", 2.0, 50_000.0), ("x", "ETH", -20.0, 2_000.0)], 18_000.0),
        # The same at two venues: no credit.
        ([("x", "BTC", 2.0, 50_000.0), ("y", "ETH", -20.0, 2_000.0)], 25_200.0),
        # Long both: no credit.
        ([("x", "BTC", 2.0, 50_000.0), ("x", "ETH", 20.0, 2_000.0)], 25_200.0),
        # BTC-USDC is the same commodity: 100,000 - 30,000 of which 18 %.
        ([("x", "BTC", 2.0, 50_000.0), ("x", "BTC-USDC", -0.6, 50_000.0)], 12_600.0),
        # No range of its own: 40 % of 10,000.
        ([("x", "NEVERLISTED", -5.0, 2_000.0)], 4_000.0),
        # BTC 100,000, ETH -40,000, SOL -80,000: credits 0.5 on 40,000, then 0.3 on the 60,000 left of BTC.
        # Credits: 0.5 x 40,000 x (18 % + 18 %) and 0.3 x 60,000 x (18 % + 27 %).
        (
            [("x", "BTC", 2.0, 50_000.0), ("x", "ETH", -20.0, 2_000.0), ("x", "SOL", -400.0, 200.0)],
            46_800.0 - 7_200.0 - 8_100.0,
        ),
    ],
)
def test_examples_worked_by_hand(positions: list[tuple[str, str, float, float]], maintenance: float) -> None:
    margins = Span16Engine().margins(book_of([[(*row, False) for row in positions]]), None, NOW)
    assert margins.maintenance_usd[0] == pytest.approx(maintenance)
    assert margins.initial_usd[0] == pytest.approx(1.1 * maintenance)
    assert margins.position_maintenance_usd.sum() == pytest.approx(maintenance)


def test_spreads_respect_delta_ratios_and_what_earlier_ones_left() -> None:
    # Ratio 1 : 2 and scanning of 10 % each: 30 spreads use up 30 of a and 60 of b.
    sets = NettingSets(
        np.arange(3), np.zeros(3, np.int64), np.zeros(3, np.int64), np.arange(3), ("a", "b", "c")
    )
    net = np.array([100.0, -60.0, -80.0])
    credit = inter_commodity_credit(
        sets,
        net,
        np.abs(net) * 0.1,
        [Spread(("a", "b"), (1.0, 2.0), 0.5), Spread(("a", "c"), (1.0, 1.0), 0.2)],
    )
    # Leg a gets half of 10 % of 30 and a fifth of 10 % of the 70 left, b half of 10 % of 60.
    assert credit == pytest.approx([1.5 + 1.4, 3.0, 1.4])


def test_a_charge_between_months_is_on_what_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = span_rules(NOW)
    charged = SpanRules(rules.factor, rules.volatility, rules.initial_ratio, 0.01)
    monkeypatch.setattr("riskml.risk.engines.span16.span_rules", lambda ts: charged)
    book = book_of([[("x", "BTC", 2.0, 50_000.0, False), ("x", "BTC-USDC", -0.6, 50_000.0, False)]])
    # 12,600 of scanning and 1 % of the 30,000 that cancel.
    assert Span16Engine().margins(book, None, NOW).maintenance_usd[0] == pytest.approx(12_900.0)


def test_live_prices_of_a_venue_go_before_those_of_a_symbol() -> None:
    book = book_of([[("x", "BTC", 1.0, 40_000.0, False)], [("y", "BTC", 1.0, 40_000.0, False)]])
    margins = Span16Engine().margins(book, {"BTC": 60_000.0, "x:BTC": 50_000.0}, NOW)
    assert margins.maintenance_usd == pytest.approx([9_000.0, 10_800.0])


def test_netting_sets_keep_accounts_venues_underlyings_and_isolated_positions_apart() -> None:
    book = book_of(
        [
            [
                ("x", "BTC", 1.0, 1.0, False),
                ("x", "BTC-USDC", 1.0, 1.0, False),
                ("x", "ETH", 1.0, 1.0, True),
                ("y", "BTC", 1.0, 1.0, False),
            ],
            [("x", "BTC", 1.0, 1.0, False)],
        ]
    )
    sets = netting_sets(book.positions)
    assert len(sets) == 4
    member = sets.member.tolist()
    assert member[0] == member[1]
    assert len(set(member)) == 4
    assert sets.account[sets.member].tolist() == [0, 0, 0, 0, 1]
    assert len(set(sets.pool.tolist())) == 4
    assert [sets.names[code] for code in sets.underlying[sets.member]] == ["BTC", "BTC", "ETH", "BTC", "BTC"]


def test_cross_positions_of_one_account_at_one_venue_are_one_pool() -> None:
    sets = netting_sets(book_of([[("x", "BTC", 1.0, 1.0, False), ("x", "ETH", 1.0, 1.0, False)]]).positions)
    assert sets.pool.tolist() == [0, 0]


def test_a_split_follows_notional_and_is_equal_where_there_is_none() -> None:
    sets = NettingSets(
        np.array([0, 0, 1, 1]), np.zeros(2, np.int64), np.zeros(2, np.int64), np.arange(2), ("a", "b")
    )
    split = sets.split(np.array([10.0, 4.0]), np.array([3.0, -1.0, 0.0, 0.0]))
    assert split.tolist() == [7.5, 2.5, 2.0, 2.0]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_larger_position_never_lowers_the_requirement(symbol: str) -> None:
    for sign in (-1.0, 1.0):
        sizes = [sign * 1.7**step for step in range(-20, 20)]
        margins = Span16Engine().margins(
            book_of([[("x", symbol, size, 3.0, False)] for size in sizes]), None, NOW
        )
        assert (np.diff(margins.maintenance_usd) > 0.0).all()
        assert (margins.initial_usd >= margins.maintenance_usd).all()


def test_offsets_never_make_risk_negative_nor_dearer_than_the_sum() -> None:
    for positions in VECTORS:
        whole = Span16Engine().margins(book_of([positions]), None, NOW).maintenance_usd[0]
        apart = Span16Engine().margins(book_of([[row] for row in positions]), None, NOW).maintenance_usd.sum()
        assert 0.0 <= whole <= apart * (1.0 + 1e-12)


def test_an_unknown_market_is_charged_at_least_as_much_as_any_listed() -> None:
    listed = [scan_range(symbol, NOW) for symbol in RANGES]
    assert listed == [float(value) for value in RANGES.values()]
    assert scan_range("NEVERLISTED", NOW) == float(WIDEST) > max(listed)
    assert scan_range("kPEPE", NOW) == float(WIDEST)
    assert underlying("BTC-USDC") == "BTC"


def test_an_entry_that_is_not_yet_in_force_leaves_the_default() -> None:
    entries = [
        {"markets": ["default"], "valid_from": "2020-01-01", "rate": 1},
        {"markets": ["BTC"], "valid_from": "2025-01-01", "rate": 2},
    ]
    assert market_entry(entries, "BTC", to_us("2024-12-31T23:59:59.999999"))["rate"] == 1
    assert market_entry(entries, "BTC", to_us("2025-01-01"))["rate"] == 2
    assert market_entry(entries, "ETH", to_us("2025-01-01"))["rate"] == 1


def test_spreads_are_the_dated_facts_in_their_order() -> None:
    assert [(*spread.legs, spread.rate) for spread in spreads(NOW)] == [
        (first, second, float(rate)) for first, second, rate in SPREADS
    ]


def test_a_time_before_the_first_facts_is_refused() -> None:
    book = book_of([[("x", "BTC", 1.0, 1.0, False)]])
    with pytest.raises(ConfigError, match="no entry is in force at 2019-12-31"):
        Span16Engine().margins(book, None, to_us("2019-12-31"))
    with pytest.raises(ConfigError, match="no entry is in force at 2019-12-31"):
        scan_range("BTC", to_us("2019-12-31"))


def test_the_state_of_the_venue_is_not_read() -> None:
    book = book_of([[("x", "BTC", 1.0, 50_000.0, False)]])
    bad = VenueState(confidence={"BTC": float("nan")}, open_interest_usd={"BTC": -1.0})
    assert Span16Engine().margins(book, None, NOW, bad).maintenance_usd[0] == pytest.approx(9_000.0)
    with pytest.raises(DataError, match="confidence of 'BTC' is nan"):
        bad.of("confidence", [("x", "BTC")])
    with pytest.raises(DataError, match="open_interest_usd of 'BTC' is -1.0"):
        bad.of("open_interest_usd", [("x", "BTC")])


def test_every_entry_of_the_facts_is_dated_and_sourced() -> None:
    facts = load_facts(FACTS)
    for table in ("array", "charge", "range", "credit"):
        for entry in facts[table]:
            assert {"valid_from", "source"} <= entry.keys()
            assert len(entry["source"]) > 20
