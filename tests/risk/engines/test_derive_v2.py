"""Derive v2's portfolio margin against the integers of its contract, written once more in plain Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines.derive_v2 import (
    FACTS,
    DeriveV2Engine,
    UniverseRules,
    confidence_contingency,
    multiply_decimal,
    requirement,
    scenario_pnl,
    stable_price,
    to_unit,
    units,
    universe_rules,
)
from riskml.risk.engines.interface import VenueState
from riskml.risk.engines.netting import weighed_equity
from riskml.units import to_us

NOW = to_us("2025-10-10")
E18 = 10**18
CENT = E18 // 100
"""One per cent."""

# Typed from scripts/config-mainnet.sol (BTC, ETH) and docs.derive.xyz. Step of the grid in 1e-5, tails (price
# after the shock in per cent, dampening in 1e-5), then im and mm factor, mm and im perp percent.
_BTC = (4_500, [(34, 21_000), (67, 42_000), (150, 27_720), (200, 13_860), (300, 6_930), (400, 4_620),
                (500, 3_465), (600, 2_772)], 100_000, 80_000, 3_000, 1_000)  # fmt: skip
_SOL = (6_750, [(34, 36_000), (67, 72_000), (150, 48_000), (200, 24_000), (300, 12_000), (400, 8_000),
                (500, 6_000), (600, 4_800)], 110_000, 90_000, 5_000, 1_000)  # fmt: skip
_HYPE = (8_250, [(34, 49_000), (150, 66_000), (200, 33_000), (300, 16_500), (400, 11_000), (500, 8_250),
                 (600, 6_600)], 115_000, 95_000, 7_500, 2_500)  # fmt: skip
_ADA = (10_000, [(25, 53_000), (150, 80_000), (200, 40_000), (300, 20_000), (400, 13_000), (500, 10_000),
                 (600, 8_000)], 115_000, 95_000, 10_000, 5_000)  # fmt: skip
UNIVERSES: dict[str, Any] = {"BTC": _BTC, "ETH": _BTC, "SOL": _SOL, "HYPE": _HYPE, "ADA": _ADA, "kPEPE": _ADA}
E13 = 10**13
"""1e-5 in the contract's units."""

Vector = tuple[str, int, int, int, int, int]
"""Symbol, position, perp price, spot price, confidence, stable price, integers of 1e-18."""


def slow_product(x: int, y: int) -> int:
    """Signed product of the contract: the magnitude is rounded down."""
    magnitude = abs(x) * abs(y) // E18
    return -magnitude if (x < 0) != (y < 0) else magnitude


def slow_requirement(vector: Vector) -> tuple[int, int]:
    """Initial and maintenance margin of one position, scenario by scenario."""
    symbol, position, perp, spot, confidence, stable = vector
    step, tails, im_factor, mm_factor, mm_perp, im_perp = UNIVERSES[symbol]
    scenarios = [(E18 + sign * rung * step * E13, E18) for rung in range(5) for sign in (1, -1)]
    scenarios += [(shock * CENT, dampening * E13) for shock, dampening in tails]
    least = 0
    for shock, dampening in scenarios:
        pnl = slow_product(slow_product(position, slow_product(shock - E18, perp)), dampening)
        least = min(least, pnl)
    notional = slow_product(abs(position), spot)
    factor = im_factor * E13
    if stable < 99 * CENT:
        factor += (99 * CENT - stable) * 4
    maintenance = slow_product(notional, mm_perp * E13)
    initial = maintenance + slow_product(notional, im_perp * E13)
    if confidence < 55 * CENT:
        initial += slow_product(E18 - confidence, notional)
    return initial - slow_product(least, factor), maintenance - slow_product(least, mm_factor * E13)


def run(vector: Vector) -> tuple[int, int]:
    symbol, position, perp, spot, confidence, stable = vector
    columns = [np.array([value], dtype=object) for value in (position, perp, spot, confidence)]
    initial, maintenance = requirement(*columns, stable, universe_rules(symbol, NOW))
    return initial[0], maintenance[0]


def edges() -> list[Vector]:
    """Zeros, single units, both signs and both sides of every threshold, for each universe."""
    vectors: list[Vector] = []
    for symbol in UNIVERSES:
        whole = (3 * E18 + 1, 50_000 * E18 + 7, 50_001 * E18)
        vectors += [(symbol, sign * whole[0], *whole[1:], E18, E18) for sign in (1, -1)]
        vectors += [(symbol, position, *whole[1:], E18, E18) for position in (0, 1, -1)]
        vectors += [(symbol, whole[0], perp, spot, E18, E18) for perp, spot in ((1, 1), (0, E18), (E18, 0))]
        for confidence in (0, 1, 55 * CENT - 1, 55 * CENT, 55 * CENT + 1, E18):
            vectors.append((symbol, -whole[0], *whole[1:], confidence, E18))
        for stable in (0, 1, 87 * CENT, 99 * CENT - 1, 99 * CENT, 99 * CENT + 1, 2 * E18):
            vectors.append((symbol, whole[0], *whole[1:], E18, stable))
    return vectors


def random_vector(rng: random.Random) -> Vector:
    perp = int(10 ** rng.uniform(-6, 5) * 1e18)
    return (
        rng.choice(list(UNIVERSES)),
        rng.choice((-1, 1)) * int(10 ** rng.uniform(-17, 9) * 1e18),
        perp,
        int(perp * rng.uniform(0.97, 1.03)),
        rng.choice((E18, rng.randrange(E18 + 1))),
        rng.choice((E18, rng.randrange(80 * CENT, 101 * CENT))),
    )


_RNG = random.Random(7736900)
VECTORS = [*edges(), *(random_vector(_RNG) for _ in range(260))]


def test_there_are_enough_golden_vectors() -> None:
    assert len(VECTORS) >= 360


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_the_requirement_is_bit_equal_to_the_slow_integers(number: int) -> None:
    assert run(VECTORS[number]) == slow_requirement(VECTORS[number])


def test_many_positions_at_once_equal_one_at_a_time() -> None:
    chosen = [vector for vector in VECTORS if UNIVERSES[vector[0]] is _BTC and vector[5] == E18]
    columns = [np.array([vector[place] for vector in chosen], dtype=object) for place in (1, 2, 3, 4)]
    initial, maintenance = requirement(*columns, E18, universe_rules("ETH", NOW))
    assert list(zip(initial, maintenance, strict=True)) == [slow_requirement(vector) for vector in chosen]


def test_the_contract_truncates_towards_zero() -> None:
    x = np.array([1, -1, 1, -1, 3, -3, 0], dtype=object)
    y = np.array([E18 - 1, E18 - 1, E18, E18, E18 // 2, E18 // 2, 5], dtype=object)
    assert multiply_decimal(x, y).tolist() == [0, 0, 1, -1, 1, -1, 0]


# Cases 29 to 31 of the contract's own tests (test/risk-managers/unit-tests/PMRM_2/portfolio_cases): position,
# perp price, spot price, confidence, then IM and MM of the account, its mark to market taken off:
#   29  IM -608, MM -481.4, mark to market   10: 558 + 45 + 15            and 0.8 x 558 + 45
#   30  IM -3820, MM -1015, mark to market -610: 450 + 45 + 15 + 2700     and 0.8 x 450 + 45
#   31  IM -4380, MM -1521, mark to market -900: 720 + 45 + 15 + 2700     and 0.8 x 720 + 45
_UPSTREAM = [
    (1.0, 3_100.0, 3_000.0, 1.0, 618.0, 491.4),
    (1.0, 2_500.0, 3_000.0, 0.1, 3_210.0, 405.0),
    (-1.0, 4_000.0, 3_000.0, 0.1, 3_480.0, 621.0),
]


@pytest.mark.parametrize(("size", "perp", "spot", "confidence", "initial", "maintenance"), _UPSTREAM)
def test_perp_cases_of_the_contracts_own_tests_come_out(
    size: float, perp: float, spot: float, confidence: float, initial: float, maintenance: float
) -> None:
    grid = universe_rules("ETH", NOW)
    rules = UniverseRules(
        grid.spot_shock[:9], grid.dampening[:9], E18, 80 * CENT, 98 * CENT, 2 * E18, 55 * CENT, E18,
        15 * CENT // 10, CENT // 2,
    )  # fmt: skip
    columns = [units(np.array([value])) for value in (size, perp, spot, confidence)]
    found = requirement(*columns, to_unit(1.00019088635), rules)
    assert [int(usd[0]) / 1e18 for usd in found] == pytest.approx([initial, maintenance], rel=1e-12)


def test_perpetuals_see_nine_spot_shocks_and_eight_damped_tails() -> None:
    rules = universe_rules("BTC", NOW)
    pairs = list(zip(rules.spot_shock.tolist(), rules.dampening.tolist(), strict=True))
    assert len(load_facts(FACTS)["universe"][0]["scenarios"]) == 33
    assert len(pairs) == len(set(pairs)) == 17
    undamped = [shock for shock, dampening in pairs if dampening == E18]
    assert undamped == [to_unit(value) for value in (1.18, 1.135, 1.09, 1.045, 1, 0.955, 0.91, 0.865, 0.82)]
    assert pairs[9:] == [(shock * CENT, dampening * E13) for shock, dampening in _BTC[1]]


def test_a_scenario_is_the_damped_move_of_the_perp_price() -> None:
    pnl = scenario_pnl(
        units(np.array([2.0, -1.0])), units(np.array([100.0, 100.0])), universe_rules("BTC", NOW)
    )
    assert pnl[0, [0, 8, 9, 11]].tolist() == [to_unit(value) for value in (36.0, -36.0, -27.72, 27.72)]
    assert (pnl[0] == -2 * pnl[1]).all()


def test_low_confidence_is_charged_only_below_its_threshold() -> None:
    confidence = np.array([0, 55 * CENT - 1, 55 * CENT], dtype=object)
    charged = confidence_contingency(confidence, units(np.full(3, 100.0)), universe_rules("BTC", NOW))
    assert charged.tolist() == [100 * E18, 45 * E18 + 100, 0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, E18 // 10),
        (-2.5, -5 * E18 // 2),
        (1e-18, 1),
        (4e-19, 0),
        (0.0, 0),
        (123456789.123, 123456789123 * 10**15),
        (1e17, 10**35),
        (0.03465, 3465 * E13),
    ],
)
def test_a_float_becomes_its_shortest_decimal(value: float, expected: int) -> None:
    assert to_unit(value) == expected


SURE = VenueState(confidence={"BTC": 1.0, "ETH": 1.0, "SOL": 1.0, "NEVERLISTED": 1.0})
PAR = {"USDC": 1.0}


def book_of(positions: list[tuple[str, str, float, float]], **account: Any) -> AccountBook:
    names = ("venue", "symbol", "size", "mark_price")
    rows = [dict(zip(names, row, strict=True)) for row in positions]
    return AccountBook.from_dicts(
        [
            {"account_id": "a", "cash_usd": 0.0, "positions": rows, **account},
            {"account_id": "b", "cash_usd": 5.0},
        ]
    )


@pytest.mark.parametrize(
    ("row", "initial", "maintenance"),
    [
        # 100,000 USD: 18 % + 3 % + 1 %, and 0.8 * 18 % + 3 %.
        (("derive", "BTC", 2.0, 50_000.0), 22_000.0, 17_400.0),
        (("derive", "BTC", -2.0, 50_000.0), 22_000.0, 17_400.0),
        (("elsewhere", "ETH-USDC", 50.0, 2_000.0), 22_000.0, 17_400.0),
        # 1.1 * 27 % + 5 % + 1 %, and 0.9 * 27 % + 5 %.
        (("derive", "SOL", 500.0, 200.0), 35_700.0, 29_300.0),
        # 1.15 * 40 % + 10 % + 5 %, and 0.95 * 40 % + 10 %.
        (("derive", "NEVERLISTED", -1e6, 0.1), 61_000.0, 48_000.0),
    ],
)
def test_examples_worked_by_hand(
    row: tuple[str, str, float, float], initial: float, maintenance: float
) -> None:
    state = VenueState(confidence={row[1]: 1.0})
    margins = DeriveV2Engine().margins(book_of([row]), PAR, NOW, state)
    assert margins.initial_usd.tolist() == [initial, 0.0]
    assert margins.maintenance_usd.tolist() == [maintenance, 0.0]
    assert margins.position_maintenance_usd.tolist() == [maintenance]


def test_the_engine_gives_the_exact_integers_rounded_once() -> None:
    rng = random.Random(5)
    rows = [
        ("derive", symbol, round(rng.uniform(-50, 50), 7), round(10 ** rng.uniform(-2, 5), 4))
        for symbol in ("BTC", "ETH", "SOL", "HYPE", "ADA", "kPEPE")
    ]
    state = VenueState(confidence={symbol: 0.4 for _, symbol, _, _ in rows})
    margins = DeriveV2Engine().margins(book_of(rows), {"USDC": 0.95}, NOW, state)
    slow = [
        slow_requirement((symbol, to_unit(size), to_unit(mark), to_unit(mark), 40 * CENT, 95 * CENT))
        for _, symbol, size, mark in rows
    ]
    assert margins.position_maintenance_usd.tolist() == [maintenance / E18 for _, maintenance in slow]
    assert margins.initial_usd[0] == pytest.approx(sum(initial for initial, _ in slow) / E18, rel=1e-12)
    assert margins.maintenance_usd[0] == pytest.approx(margins.position_maintenance_usd.sum())


def test_nothing_offsets_over_markets_venues_or_symbols() -> None:
    rows = [
        ("derive", "BTC", 2.0, 50_000.0),
        ("derive", "BTC-USDC", -2.0, 50_000.0),
        ("x", "BTC", -2.0, 50_000.0),
        ("derive", "ETH", -50.0, 2_000.0),
    ]
    margins = DeriveV2Engine().margins(book_of(rows), PAR, NOW, SURE)
    assert margins.position_maintenance_usd.tolist() == [17_400.0] * 4
    assert margins.maintenance_usd.tolist() == [69_600.0, 0.0]


def test_without_state_initial_margin_assumes_no_confidence_and_the_lowest_stablecoin() -> None:
    # 18 % * (1 + 4 * 0.12) + 3 % + 1 % + all of the notional; maintenance does not depend on either.
    margins = DeriveV2Engine().margins(book_of([("derive", "BTC", 2.0, 50_000.0)]), None, NOW)
    assert margins.initial_usd[0] == pytest.approx(26_640.0 + 4_000.0 + 100_000.0)
    assert margins.maintenance_usd[0] == 17_400.0


@pytest.mark.parametrize(("confidence", "asked"), [(1.0, 0.22), (0.55, 0.22), (0.5, 0.72), (0.0, 1.22)])
def test_a_venue_in_normal_operation_asks_22_per_cent_of_btc(confidence: float, asked: float) -> None:
    state = VenueState(confidence={"BTC": confidence})
    margins = DeriveV2Engine().margins(book_of([("derive", "BTC", 2.0, 50_000.0)]), {"USDC": 1.0}, NOW, state)
    assert margins.initial_usd[0] == pytest.approx(asked * 100_000.0)


def test_what_is_missing_never_lowers_a_requirement() -> None:
    book = book_of([("derive", "BTC", 2.0, 50_000.0), ("derive", "SOL", -9.0, 200.0)])
    missing = DeriveV2Engine().margins(book, None, NOW)
    for confidence in (0.0, 0.3, 0.549, 0.55, 1.0):
        for stable in (0.87, 0.95, 0.99, 1.0, 1.01):
            state = VenueState(confidence={"BTC": confidence, "SOL": confidence})
            stated = DeriveV2Engine().margins(book, {"USDC": stable}, NOW, state)
            assert stated.initial_usd[0] <= missing.initial_usd[0]
            assert stated.maintenance_usd[0] == missing.maintenance_usd[0]


def test_confidence_of_a_venue_goes_before_that_of_a_symbol() -> None:
    state = VenueState(confidence={"BTC": 0.1, "derive:BTC": 0.9})
    rows = [("derive", "BTC", 2.0, 50_000.0)]
    assert DeriveV2Engine().margins(book_of(rows), PAR, NOW, state).initial_usd[0] == 22_000.0
    rows = [("x", "BTC", 2.0, 50_000.0)]
    assert DeriveV2Engine().margins(book_of(rows), PAR, NOW, state).initial_usd[0] == 22_000.0 + 90_000.0


def test_the_lowest_stated_price_of_the_stablecoin_counts() -> None:
    held = [{"chain": "derive", "asset": "USDC", "amount": 1.0, "price_usd": 0.97}]
    bare, holding = book_of([]), book_of([], collateral=held)
    assert stable_price(bare, None, NOW, None) == 0.87
    assert stable_price(bare, {"USDC": 0.98}, NOW, None) == 0.98
    assert stable_price(bare, {"USDC": 1.0, "derive:USDC": 0.96}, NOW, None) == 0.96
    assert stable_price(holding, {"USDC": 0.98}, NOW, None) == 0.97
    assert stable_price(holding, None, NOW, VenueState(twap_price={"USDC": 0.95})) == 0.95
    assert stable_price(bare, {"USDC": float("nan")}, NOW, None) == 0.87
    assert stable_price(bare, {"USDC": -1.0}, NOW, None) == 0.87
    assert stable_price(bare, {"USDC": 1.0}, NOW, VenueState(twap_price={"USDC": 0.0})) == 0.0


def test_a_depegged_stablecoin_raises_initial_margin_only() -> None:
    book = book_of([("derive", "BTC", 2.0, 50_000.0)])
    par = DeriveV2Engine().margins(book, PAR, NOW, SURE)
    low = DeriveV2Engine().margins(book, {"USDC": 0.94}, NOW, SURE)
    # 4 * 0.05 more of the 18,000 of the worst scenario.
    assert low.initial_usd[0] - par.initial_usd[0] == pytest.approx(3_600.0)
    assert low.maintenance_usd[0] == par.maintenance_usd[0]


@pytest.mark.parametrize("symbol", list(UNIVERSES))
def test_a_larger_position_never_lowers_the_requirement(symbol: str) -> None:
    rules = universe_rules(symbol, NOW)
    for sign in (1, -1):
        size = np.array([sign * 3**step for step in range(60)], dtype=object)
        price = np.full(60, 31_415 * E18 // 1_000, dtype=object)
        confidence = np.full(60, 40 * CENT, dtype=object)
        initial, maintenance = requirement(size, price, price, confidence, 98 * CENT, rules)
        assert (np.diff(initial) >= 0).all()
        assert (np.diff(maintenance) >= 0).all()
        assert (initial >= maintenance).all()


def test_lower_confidence_and_a_lower_stablecoin_never_lower_initial_margin() -> None:
    size, price = (np.full(101, value * E18, dtype=object) for value in (3, 50_000))
    falling = np.array([E18 - step * CENT for step in range(101)], dtype=object)
    rules = universe_rules("BTC", NOW)
    assert (np.diff(requirement(size, price, price, falling, E18, rules)[0]) >= 0).all()
    one, sure = size[:1], np.full(1, E18, dtype=object)
    by_peg = [requirement(one, price[:1], price[:1], sure, stable, rules)[0][0] for stable in falling]
    assert (np.diff(np.array(by_peg, dtype=object)) >= 0).all()


def test_an_unknown_market_is_charged_at_least_as_much_as_any_listed() -> None:
    rows = [("derive", symbol, 1.0, 100.0) for symbol in ("BTC", "ETH", "SOL", "HYPE", "ADA", "NEVERLISTED")]
    found = DeriveV2Engine().margins(book_of(rows), None, NOW).position_maintenance_usd
    assert found[-1] == found.max()


def test_equity_counts_collateral_by_the_venues_weights() -> None:
    collateral = [
        {"chain": "derive", "asset": "USDC", "amount": 100.0, "price_usd": 1.02},
        {"chain": "derive", "asset": "ETH", "amount": 2.0, "price_usd": 2_000.0},
        {"chain": "derive", "asset": "NEVERLISTED", "amount": 1e6, "price_usd": 5.0},
        {"chain": "derive", "asset": "WBTC", "amount": 1.0, "price_usd": 0.0},
    ]
    positions = [
        {"venue": "derive", "symbol": "BTC", "size": -1.0, "mark_price": 50_000.0, "entry_price": 50_500.0},
        {
            "venue": "derive", "symbol": "ETH", "size": 1.0, "mark_price": 2_000.0, "entry_price": 2_100.0,
            "margin_mode": "isolated", "isolated_margin_usd": 300.0,
        },
        {"venue": "derive", "symbol": "SOL", "size": 1.0, "mark_price": 200.0, "isolated_margin_usd": 7.0},
    ]  # fmt: skip
    accounts = [
        {"account_id": "a", "cash_usd": 1_000.0, "positions": positions, "collateral": collateral},
        {"account_id": "b", "cash_usd": -5.0},
    ]
    book = AccountBook.from_dicts(accounts)
    margins = DeriveV2Engine().margins(book, {"BTC": 50_200.0}, NOW)
    assert margins.equity_usd is not None
    moved = DeriveV2Engine().margins(book, {"BTC": 50_200.0, "USDC": 0.9, "WBTC": 50_000.0}, NOW)
    assert moved.equity_usd is not None
    # The stablecoin at 0.9, and 0.75 of a bitcoin that now has a price.
    assert moved.equity_usd - margins.equity_usd == pytest.approx([-10.0 + 37_500.0, 0.0])
    # Cash 1,000 + USDC at par 100 + 0.8 * 4,000 + short profit 300 - 100 + margin set aside 300.
    assert margins.equity_usd == pytest.approx([1_000 + 100 + 3_200 + 300 - 100 + 300, -5.0])


def test_equity_of_a_book_without_collateral_is_cash_and_profit() -> None:
    book = book_of([("derive", "BTC", 1.0, 50_000.0)], cash_usd=10.0)
    assert weighed_equity(book, np.array([50_000.0]), None, {}, "USDC").tolist() == [10.0, 5.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_confidence_that_is_no_number_is_refused(value: float) -> None:
    book = book_of([("derive", "BTC", 1.0, 1.0)])
    with pytest.raises(DataError, match=f"confidence of 'BTC' is {value!r}"):
        DeriveV2Engine().margins(book, None, NOW, VenueState(confidence={"BTC": value}))


@pytest.mark.parametrize("value", [1.0000001, 5e17])
def test_a_confidence_on_another_scale_is_refused(value: float) -> None:
    book = book_of([("derive", "BTC", 1.0, 1.0)])
    with pytest.raises(DataError, match="it has to be within 0 and 1"):
        DeriveV2Engine().margins(book, None, NOW, VenueState(confidence={"BTC": value}))


def test_a_negative_price_of_the_stablecoin_in_the_state_is_refused() -> None:
    with pytest.raises(DataError, match="twap_price of 'USDC' is -1.0"):
        DeriveV2Engine().margins(book_of([]), None, NOW, VenueState(twap_price={"USDC": -1.0}))


def test_a_time_before_the_first_facts_is_refused() -> None:
    with pytest.raises(ConfigError, match="no entry is in force at 2020-12-31"):
        universe_rules("BTC", to_us("2020-12-31"))
    with pytest.raises(ConfigError, match="no entry is in force at 2020-12-31"):
        DeriveV2Engine().margins(book_of([]), None, to_us("2020-12-31"))


def test_every_entry_of_the_facts_is_dated_and_sourced() -> None:
    facts = load_facts(FACTS)
    for table in ("universe", "unstated", "collateral"):
        for entry in facts[table]:
            assert {"valid_from", "source"} <= entry.keys()
            assert len(entry["source"]) > 20
    for entry in facts["universe"]:
        assert len(entry["scenarios"]) in (32, 33)
        assert {vol for _, vol, _ in entry["scenarios"]} == {"up", "down", "none", "linear", "abs"}
