"""Paradex's portfolio margin against exact fractions written from its documentation."""

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
from riskml.risk.engines.paradex_pm import (
    FACTS,
    AssetRules,
    ParadexPmEngine,
    asset_rules,
    minimum_delta,
    requirement,
    scan_risk,
)
from riskml.units import to_us

FIRST, SECOND, THIRD = to_us("2025-10-10"), to_us("2026-05-01"), to_us("2026-11-01")

# Typed from the pages, all in per cent: step of the grid, tail weights, unhedged and hedged factor.
_GRID = [(4, "u"), *((rung, vol) for rung in (3, 2, 1, 0, -1, -2, -3) for vol in "ud"), (-4, "u")]
_TAILS = (-66, -33, 50, 100, 200, 300, 400, 500)
_ONE = ("4", ["24", "48", "32", "16", "8", "5.33", "4", "3.20"], "2", "1")
_TWO = ("4", ["18", "36", "24", "12", "6", "4", "3", "2.4"], "2", "1")
_BTC = ("3.5", ["10.61", "21.21", "14", "7", "1.75", "0.78", "0.44", "0.28"], "0.2", "0.1")
_ETH = ("4", ["12.12", "24.24", "16", "8", "2", "0.89", "0.5", "0.32"], "0.2", "0.1")
_HYPE = ("7", ["30", "50", "40", "20", "10", "7", "5", "4"], "3", "1.5")
_HYPE_LATE = ("7", ["21.21", "42.42", "28", "14", "3.5", "1.56", "0.88", "0.56"], "0.3", "0.15")
_SOL = ("6", ["18.18", "36.36", "24", "12", "3", "1.33", "0.75", "0.48"], "0.3", "0.15")
_NEAR = ("8", ["24.24", "48.48", "32", "16", "4", "1.78", "1", "0.64"], "0.3", "0.15")
_OTHER = ("8", ["30", "50", "40", "20", "10", "7", "5", "4"], "3", "1.5")
TABLES: dict[int, dict[str, Any]] = {
    FIRST: {"BTC": _ONE, "ETH": _ONE, "HYPE": _HYPE},
    SECOND: {"BTC": _TWO, "ETH": _TWO, "HYPE": _HYPE},
    THIRD: {"BTC": _BTC, "ETH": _ETH, "HYPE": _HYPE_LATE, "SOL": _SOL, "NEAR": _NEAR},
}
FUNDING = {FIRST: Fraction(0), SECOND: Fraction(1, 20), THIRD: Fraction(1, 20)}
FEE = Fraction(45, 100_000)
SYMBOLS = ("BTC", "BTC-USDC", "ETH", "HYPE", "SOL", "NEAR", "DOGE")

Position = tuple[str, str, float, float, bool]
"""Venue, symbol, size, mark, isolated."""


def slow_scenarios(step: str, weights: list[str]) -> list[tuple[Fraction, Fraction]]:
    """The 24 (spot shock, weight) pairs of an asset."""
    grid = [(rung * Fraction(step) / 100, Fraction(1)) for rung, _ in _GRID]
    tails = [
        (Fraction(shock, 100), Fraction(weight) / 100) for shock, weight in zip(_TAILS, weights, strict=True)
    ]
    assert len(grid + tails) == 24
    return grid + tails


def slow_set(net: Fraction, gross: Fraction, asset: str, ts: int) -> tuple[Fraction, Fraction]:
    """Initial and maintenance margin of what nets, scenario by scenario."""
    step, weights, unhedged, hedged = TABLES[ts].get(asset, _OTHER)
    worst = Fraction(0)
    for shock, weight in slow_scenarios(step, weights):
        worst = max(worst, -(net * (1 + shock) - net) * weight)
    cancelled = (gross - abs(net)) / 2
    delta = Fraction(unhedged) / 100 * abs(net) + Fraction(hedged) / 100 * cancelled
    both = max(worst, delta)
    provisions = FUNDING[ts] * abs(net) + FEE * gross
    return both + provisions, both / 2 + provisions


def slow_account(positions: list[Position], ts: int) -> tuple[Fraction, Fraction, list[Fraction]]:
    """Initial, maintenance, and its parts by position."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, (venue, symbol, _, _, isolated) in enumerate(positions):
        groups[(row, "alone") if isolated else (venue, symbol.split("-")[0])].append(row)
    value = [Fraction(size) * Fraction(mark) for _, _, size, mark, _ in positions]
    initial, maintenance = Fraction(0), Fraction(0)
    parts = [Fraction(0)] * len(positions)
    for rows in groups.values():
        net = sum((value[row] for row in rows), Fraction(0))
        gross = sum((abs(value[row]) for row in rows), Fraction(0))
        both = slow_set(net, gross, positions[rows[0]][1].split("-")[0], ts)
        initial, maintenance = initial + both[0], maintenance + both[1]
        for row in rows:
            parts[row] = both[1] * (abs(value[row]) / gross if gross else 0)
    return initial, maintenance, parts


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
    places = [(venue, symbol) for venue in ("paradex", "y") for symbol in SYMBOLS]
    return [
        (
            venue,
            symbol,
            rng.choice((-1, 1)) * rng.choice((1e-6, 0.37, 12.5, 4e4)) * rng.random(),
            round(10 ** rng.uniform(-4, 5), 6),
            rng.random() < 0.15,
        )
        for venue, symbol in rng.sample(places, rng.randint(1, 7))
    ]


def edge_accounts() -> list[list[Position]]:
    """Hand-picked: each asset and sign, zeros, and hedges on both sides of the kink of the two charges."""
    accounts: list[list[Position]] = [
        [("paradex", symbol, size, 2_000.0, False)] for symbol in SYMBOLS for size in (3.0, -3.0, 0.0, 1e-12)
    ]
    long = ("paradex", "BTC", 2.0, 50_000.0, False)
    # scan = unhedged charge + hedged charge where net / gross is 1/29 (16 %), with a unit to each side.
    for cancelled in (0.0, 1.0, 1.8, 28 / 15, 28 / 15 - 1e-6, 28 / 15 + 1e-6, 1.9, 1.99999, 2.0, 2.0001, 3.0):
        accounts.append([long, ("paradex", "BTC-USDC", -cancelled, 50_000.0, False)])
    accounts += [
        [long, ("paradex", "BTC-USDC", 2.0, 50_000.0, False)],
        [long, ("paradex", "BTC-USDC", -2.0, 50_000.0, True)],
        [long, ("y", "BTC", -2.0, 50_000.0, False)],
        [long, ("paradex", "ETH", -50.0, 2_000.0, False)],
    ]
    return accounts


_RNG = random.Random(24)
VECTORS = [*edge_accounts(), *(random_account(_RNG) for _ in range(100))]


def test_there_are_enough_golden_vectors() -> None:
    assert len(VECTORS) * len(TABLES) >= 400


@pytest.mark.parametrize("ts", TABLES)
@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_requirements_equal_the_slow_fractions(number: int, ts: int) -> None:
    positions = VECTORS[number]
    initial, maintenance, parts = slow_account(positions, ts)
    margins = ParadexPmEngine().margins(book_of([positions]), None, ts)
    gross = 1e-9 * sum(abs(size) * mark for _, _, size, mark, _ in positions)
    assert margins.initial_usd[0] == pytest.approx(float(initial), rel=1e-9, abs=gross)
    assert margins.maintenance_usd[0] == pytest.approx(float(maintenance), rel=1e-9, abs=gross)
    assert margins.position_maintenance_usd == pytest.approx(
        [float(part) for part in parts], rel=1e-9, abs=gross
    )


def test_one_book_of_many_accounts_equals_each_alone() -> None:
    together = ParadexPmEngine().margins(book_of([*VECTORS, []]), None, FIRST)
    slow = [slow_account(positions, FIRST) for positions in VECTORS]
    assert together.initial_usd[:-1] == pytest.approx([float(row[0]) for row in slow], rel=1e-9, abs=1e-3)
    assert together.maintenance_usd[:-1] == pytest.approx([float(row[1]) for row in slow], rel=1e-9, abs=1e-3)
    assert together.maintenance_usd[-1] == together.initial_usd[-1] == 0.0


@pytest.mark.parametrize("ts", TABLES)
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_facts_are_the_published_tables(symbol: str, ts: int) -> None:
    step, weights, unhedged, hedged = TABLES[ts].get(symbol.split("-")[0], _OTHER)
    rules = asset_rules(symbol, ts)
    pairs = slow_scenarios(step, weights)
    assert rules.spot_shock == pytest.approx([float(shock) for shock, _ in pairs], abs=1e-15)
    assert rules.weight == pytest.approx([float(weight) for _, weight in pairs], abs=1e-15)
    assert rules.unhedged_margin_factor == float(Fraction(unhedged) / 100)
    assert rules.hedged_margin_factor == float(Fraction(hedged) / 100)
    assert (rules.mmf_factor, rules.fee_rate) == (0.5, 0.00045)
    assert rules.funding_rate == float(FUNDING[ts])


@pytest.mark.parametrize(
    ("positions", "ts", "initial", "maintenance"),
    [
        # 100,000 USD: 16 % scan, 0.045 % fees; maintenance half of the scan.
        ([("BTC", 2.0, 50_000.0)], FIRST, 16_000.0 + 45.0, 8_000.0 + 45.0),
        ([("BTC", -2.0, 50_000.0)], FIRST, 16_000.0 + 45.0, 8_000.0 + 45.0),
        # 5 % of funding from 2026-04-22 on; 14 % for BTC from 2026-10-02 on.
        ([("BTC", 2.0, 50_000.0)], SECOND, 16_000.0 + 5_045.0, 8_000.0 + 5_045.0),
        ([("BTC", 2.0, 50_000.0)], THIRD, 14_000.0 + 5_045.0, 7_000.0 + 5_045.0),
        # Perfectly hedged: 1 % of the 100,000 that cancel, fees on 200,000.
        ([("BTC", 2.0, 50_000.0), ("BTC-USDC", -2.0, 50_000.0)], FIRST, 1_000.0 + 90.0, 500.0 + 90.0),
        # Net 10,000, hedged 90,000: the scan of 1,600 exceeds 200 + 900.
        ([("BTC", 2.0, 50_000.0), ("BTC-USDC", -1.8, 50_000.0)], FIRST, 1_600.0 + 85.5, 800.0 + 85.5),
        # Net 5,000, hedged 95,000: 100 + 950 exceed the scan of 800.
        ([("BTC", 2.0, 50_000.0), ("BTC-USDC", -1.9, 50_000.0)], FIRST, 1_050.0 + 87.75, 525.0 + 87.75),
        # No offset between assets.
        ([("BTC", 2.0, 50_000.0), ("ETH", -50.0, 2_000.0)], FIRST, 32_090.0, 16_090.0),
        # 28 % for HYPE, 32 % for an asset without portfolio margin.
        ([("HYPE", 250.0, 40.0)], FIRST, 2_804.5, 1_404.5),
        ([("NEVERLISTED", -250.0, 40.0)], FIRST, 3_204.5, 1_604.5),
    ],
)
def test_examples_worked_by_hand(
    positions: list[tuple[str, float, float]], ts: int, initial: float, maintenance: float
) -> None:
    margins = ParadexPmEngine().margins(
        book_of([[("paradex", *row, False) for row in positions], []]), None, ts
    )
    assert margins.initial_usd == pytest.approx([initial, 0.0])
    assert margins.maintenance_usd == pytest.approx([maintenance, 0.0])


def test_the_example_of_the_documentation_comes_out() -> None:
    # Net delta -0.5, gross 2.5 at a spot of 70,000: (2 % x 0.5 + 1 % x 1.0) x 70,000 = 1,400.
    charge = minimum_delta(np.array([-35_000.0]), np.array([175_000.0]), asset_rules("BTC", FIRST))
    assert charge == pytest.approx([1_400.0])


def test_a_tail_counts_once_its_weighted_loss_is_the_largest() -> None:
    rules = AssetRules(
        np.array([0.1, -0.1, -0.66, 2.0]), np.array([1.0, 1.0, 0.2, 0.06]), 0.0, 0.0, 0.5, 0.0, 0.0
    )
    # A long loses 0.66 x 0.2 = 13.2 %, a short 2 x 0.06 = 12 %.
    assert scan_risk(np.array([100.0, -100.0, 0.0]), rules) == pytest.approx([13.2, 12.0, 0.0])


def test_maintenance_halves_the_charge_but_not_the_provisions() -> None:
    rules = AssetRules(np.array([0.5, -0.5]), np.ones(2), 0.0, 0.0, 0.5, 0.01, 0.02)
    initial, maintenance = requirement(np.array([100.0]), np.array([300.0]), rules)
    # Half of 100; funding 2 % of the net 100, fees 1 % of the gross 300.
    assert (initial[0], maintenance[0]) == pytest.approx((50.0 + 5.0, 25.0 + 5.0))


@pytest.mark.parametrize(
    ("day", "symbol", "shock", "funding"),
    [
        ("2026-04-21T23:59:59.999999", "BTC", 0.16, 0.0),
        ("2026-04-22", "BTC", 0.16, 0.05),
        ("2026-10-01T23:59:59.999999", "BTC", 0.16, 0.05),
        ("2026-10-02", "BTC", 0.14, 0.05),
        ("2026-10-01T23:59:59.999999", "SOL", 0.32, 0.05),
        ("2026-10-02", "SOL", 0.24, 0.05),
        ("2026-04-22", "DOGE", 0.32, 0.05),
        ("2021-01-01", "DOGE", 0.32, 0.0),
    ],
)
def test_each_rule_holds_from_its_day(day: str, symbol: str, shock: float, funding: float) -> None:
    rules = asset_rules(symbol, to_us(day))
    assert (rules.spot_shock[0], rules.funding_rate) == (shock, funding)


@pytest.mark.parametrize("ts", TABLES)
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_larger_position_never_lowers_the_requirement(symbol: str, ts: int) -> None:
    for sign in (-1.0, 1.0):
        sizes = [sign * 1.7**step for step in range(-20, 20)]
        margins = ParadexPmEngine().margins(
            book_of([[("paradex", symbol, size, 3.0, False)] for size in sizes]), None, ts
        )
        assert (np.diff(margins.maintenance_usd) > 0.0).all()
        assert (np.diff(margins.initial_usd) > 0.0).all()
        assert (margins.initial_usd >= margins.maintenance_usd).all()


def test_hedging_within_an_asset_never_costs_more_than_standing_apart() -> None:
    for positions in VECTORS:
        whole = ParadexPmEngine().margins(book_of([positions]), None, FIRST)
        apart = ParadexPmEngine().margins(book_of([[row] for row in positions]), None, FIRST)
        assert whole.maintenance_usd[0] <= apart.maintenance_usd.sum() * (1.0 + 1e-12)
        assert whole.position_maintenance_usd.sum() == pytest.approx(whole.maintenance_usd[0])


@pytest.mark.parametrize("ts", TABLES)
def test_an_unknown_asset_is_charged_at_least_as_much_as_any_listed(ts: int) -> None:
    net, gross = np.array([1_000.0, -1_000.0, 0.0]), np.array([1_000.0, 1_000.0, 1_000.0])
    initial, maintenance = requirement(net, gross, asset_rules("NEVERLISTED", ts))
    for symbol in TABLES[ts]:
        listed = requirement(net, gross, asset_rules(symbol, ts))
        assert (initial >= listed[0]).all()
        assert (maintenance >= listed[1]).all()


def test_live_prices_of_a_venue_go_before_those_of_a_symbol() -> None:
    book = book_of([[("paradex", "BTC", 1.0, 40_000.0, False)], [("y", "BTC", 1.0, 40_000.0, False)]])
    margins = ParadexPmEngine().margins(book, {"BTC": 60_000.0, "paradex:BTC": 50_000.0}, FIRST)
    assert margins.maintenance_usd == pytest.approx([50_000 * 0.08045, 60_000 * 0.08045])


def test_equity_counts_no_collateral_but_the_stablecoin() -> None:
    book = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 10.0,
                "positions": [
                    {
                        "venue": "paradex",
                        "symbol": "BTC",
                        "size": 2.0,
                        "mark_price": 90.0,
                        "entry_price": 80.0,
                    }
                ],
                "collateral": [
                    {"chain": "paradex", "asset": "USDC", "amount": 100.0, "price_usd": 0.9},
                    {"chain": "paradex", "asset": "ETH", "amount": 5.0, "price_usd": 2_000.0},
                ],
            },
            {"account_id": "b", "cash_usd": 7.0},
        ]
    )
    equity = ParadexPmEngine().margins(book, {"BTC": 95.0}, FIRST).equity_usd
    assert equity is not None
    assert equity == pytest.approx([10.0 + 30.0 + 90.0, 7.0])


def test_the_state_of_the_venue_is_not_read() -> None:
    book = book_of([[("paradex", "BTC", 2.0, 50_000.0, False)]])
    bad = VenueState(volatility={"BTC": float("nan")}, deposits_usd={"USDC": -1.0})
    assert ParadexPmEngine().margins(book, None, FIRST, bad).maintenance_usd[0] == pytest.approx(8_045.0)
    with pytest.raises(DataError, match="volatility of 'BTC' is nan"):
        bad.of("volatility", [("paradex", "BTC")])
    with pytest.raises(DataError, match="deposits_usd of 'USDC' is -1.0"):
        bad.of("deposits_usd", [("paradex", "USDC")])


def test_a_time_before_the_first_facts_is_refused() -> None:
    with pytest.raises(ConfigError, match="no entry is in force at 2020-12-31"):
        asset_rules("BTC", to_us("2020-12-31"))
    with pytest.raises(ConfigError, match="no entry is in force at 2020-12-31"):
        ParadexPmEngine().margins(book_of([[]]), None, to_us("2020-12-31"))


def test_every_entry_of_the_facts_is_dated_and_sourced() -> None:
    facts = load_facts(FACTS)
    for entry in [*facts["asset"], *facts["collateral"]]:
        assert {"valid_from", "source"} <= entry.keys()
        assert len(entry["source"]) > 20
    assert all(len(entry["scenarios"]) == 24 for entry in facts["asset"])
