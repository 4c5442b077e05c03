"""dYdX v4 against a slow reading of its source in fractions, and against values worked out by hand."""

from __future__ import annotations

import random
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts, valid_at
from riskml.risk import AccountBook
from riskml.risk.engines.dydx_v4 import (
    DydxV4Engine,
    LiquidityTier,
    Risk,
    account_risk,
    ceil_ppm,
    liquidity_tier,
    notional_quantums,
    position_risk,
)
from riskml.risk.engines.dydx_v4_liquidation import (
    LiquidationLimits,
)
from riskml.risk.engines.interface import VenueState
from riskml.units import to_us

EARLY, NOW = to_us("2024-06-01"), to_us("2025-09-01")
USDC = 10**6
MILLION = 10**6

# base ppm, maintenance fraction ppm, lower cap, upper cap (quantums), straight from genesis.sh
TIERS = {
    "large": (20_000, 600_000, 0, 0),
    "small": (100_000, 500_000, 20_000_000 * USDC, 50_000_000 * USDC),
    "long_tail": (200_000, 500_000, 5_000_000 * USDC, 10_000_000 * USDC),
    "safety": (1_000_000, 200_000, 2_000_000 * USDC, 5_000_000 * USDC),
    "isolated": (50_000, 600_000, 500_000 * USDC, 1_000_000 * USDC),
    "mid": (50_000, 600_000, 40_000_000 * USDC, 100_000_000 * USDC),
    "fx": (10_000, 500_000, 500_000 * USDC, 1_000_000 * USDC),
}
LIMITS = LiquidationLimits(1_000 * USDC, 100_000, 100_000 * USDC, 1_000_000 * USDC, 1_000_000, 1_500_000, 50)


# The slow reading, in fractions of 1 where the source has parts per million.


def slow_fraction(tier: tuple[int, int, int, int], interest: int | None) -> Fraction:
    base, _, lower, upper = Fraction(tier[0], MILLION), tier[1], tier[2], tier[3]
    if upper == 0:
        return base
    if interest is None:
        return Fraction(1)
    if interest <= lower:
        return base
    if interest >= upper:
        return Fraction(1)
    increase = Fraction(interest - lower, upper - lower) * (1 - base)
    return base + Fraction(floor(increase * MILLION), MILLION)


def slow_initial(tier: tuple[int, int, int, int], notional: int, interest: int | None, custom: int) -> int:
    return ceil(abs(notional) * max(slow_fraction(tier, interest), Fraction(custom, MILLION)))


def slow_maintenance(tier: tuple[int, int, int, int], notional: int) -> int:
    return ceil(ceil(abs(notional) * Fraction(tier[0], MILLION)) * Fraction(tier[1], MILLION))


def interests(tier: tuple[int, int, int, int], draw: random.Random) -> list[int | None]:
    _, _, lower, upper = tier
    edges = [lower - 1, lower, lower + 1, (lower + upper) // 2, upper - 1, upper, upper + 1]
    inside = [draw.randint(lower, max(upper, lower + 1)) for _ in range(12)]
    return [None, 0, 1, *(edge for edge in edges if edge >= 0), *inside]


FRACTION_CASES = [
    (name, interest) for name, tier in TIERS.items() for interest in interests(tier, random.Random(name))
]


def amounts(draw: random.Random) -> list[int]:
    hand = [0, 1, -1, 2, 9, 10, 49, 50, 51, 99_999, 999_999, MILLION, MILLION + 1, 2**53 + 1, 2**62, -(2**62)]
    return hand + [draw.choice((1, -1)) * draw.randint(1, 10 ** draw.randint(1, 18)) for _ in range(14)]


MARGIN_CASES = [
    (name, notional, draw.choice(interests(tier, draw)), draw.choice((0, 0, 1, 33_333, 500_001, MILLION)))
    for name, tier in TIERS.items()
    for draw in (random.Random(f"margin {name}"),)
    for notional in amounts(draw)
]


def test_there_are_enough_golden_vectors() -> None:
    assert len(FRACTION_CASES) > 120
    assert len(MARGIN_CASES) >= 200


@pytest.mark.parametrize("name", TIERS)
def test_the_facts_hold_the_published_tiers(name: str) -> None:
    entry = valid_at(load_facts("dydx_v4_tiers")["tier"][name], NOW)
    assert (
        entry["initial_margin_ppm"],
        entry["maintenance_fraction_ppm"],
        entry["open_interest_lower_cap"],
        entry["open_interest_upper_cap"],
    ) == TIERS[name]


@pytest.mark.parametrize(
    ("symbol", "ts", "tier"),
    [
        ("BTC", NOW, TIERS["large"]),
        ("ETH", NOW, TIERS["large"]),
        ("BTC", EARLY, (50_000, 600_000, 0, 0)),
        ("SOL", NOW, TIERS["mid"]),
        ("SOL", EARLY, TIERS["small"]),
        ("XRP", NOW, TIERS["small"]),
        ("kPEPE", NOW, TIERS["small"]),
        ("MKR", NOW, TIERS["long_tail"]),
        ("EIGEN", EARLY, TIERS["long_tail"]),
        ("EIGEN", NOW, TIERS["isolated"]),
        ("NEVERLISTED", NOW, TIERS["long_tail"]),
        ("NEVERLISTED", EARLY, TIERS["long_tail"]),
    ],
)
def test_a_market_has_the_tier_of_its_time(symbol: str, ts: int, tier: tuple[int, int, int, int]) -> None:
    assert liquidity_tier(symbol, ts) == LiquidityTier(*tier)


def test_an_unlisted_market_has_the_strictest_tier_of_ordinary_markets() -> None:
    unlisted, facts = liquidity_tier("NEVERLISTED", NOW), load_facts("dydx_v4_tiers")
    for symbol in facts["market"]:
        listed = liquidity_tier(symbol, NOW)
        assert unlisted.initial_margin_ppm >= listed.initial_margin_ppm
        assert unlisted.maintenance_margin_ppm >= listed.maintenance_margin_ppm


def test_every_fact_is_dated_and_sourced() -> None:
    facts = load_facts("dydx_v4_tiers")
    lists = [*facts["tier"].values(), *facts["market"].values(), facts["default"], facts["liquidations"]]
    for entries in [*lists, facts["collateral"], facts["funding"]]:
        assert all(entry["source"] and entry["valid_from"] for entry in entries)


def test_a_time_before_the_scaling_by_open_interest_is_refused() -> None:
    for symbol in ("BTC", "NEVERLISTED"):
        with pytest.raises(ConfigError, match="no entry is in force at 2024-04-07"):
            liquidity_tier(symbol, to_us("2024-04-07"))


@pytest.mark.parametrize(("name", "interest"), FRACTION_CASES)
def test_the_fraction_equals_the_slow_one_in_every_bit(name: str, interest: int | None) -> None:
    tier = TIERS[name]
    assert Fraction(LiquidityTier(*tier).initial_fraction_ppm(interest), MILLION) == slow_fraction(
        tier, interest
    )


@pytest.mark.parametrize(("name", "notional", "interest", "custom"), MARGIN_CASES)
def test_margins_equal_the_slow_ones_in_every_bit(
    name: str, notional: int, interest: int | None, custom: int
) -> None:
    tier = LiquidityTier(*TIERS[name])
    assert tier.initial_quantums(notional, interest, custom) == slow_initial(
        TIERS[name], notional, interest, custom
    )
    assert tier.maintenance_quantums(notional) == slow_maintenance(TIERS[name], notional)


@pytest.mark.parametrize("dtype", [np.int64, object])
def test_an_array_of_notionals_gives_the_same_bits_as_one_by_one(dtype: type) -> None:
    for name, tier in TIERS.items():
        values = amounts(random.Random(f"array {name}"))
        notional, engine = np.array(values, dtype=dtype), LiquidityTier(*tier)
        assert engine.maintenance_quantums(notional).tolist() == [slow_maintenance(tier, v) for v in values]
        initial = engine.initial_quantums(notional, tier[3] - 1, 7)
        assert initial.tolist() == [slow_initial(tier, v, tier[3] - 1, 7) for v in values]


def test_parts_per_million_round_up_at_every_remainder() -> None:
    for ppm in (0, 1, 7, 333_333, 999_999, MILLION):
        for value in (*range(40), MILLION - 1, MILLION, MILLION + 1, 2**62 - 1, 10**30 + 1):
            assert ceil_ppm(value, ppm) == ceil(Fraction(value * ppm, MILLION))


# By hand: tier, open interest USDC, notional USDC, custom ppm -> fraction ppm, initial, maintenance.
BY_HAND = [
    # 2 % of 1 M; maintenance 60 % of it
    ("large", None, 1_000_000.0, 0, 20_000, 20_000.0, 12_000.0),
    # the account chose 10x: 10 %, maintenance stays
    ("large", 9e9, 1_000_000.0, 100_000, 100_000, 100_000.0, 12_000.0),
    # half way from 20 M to 50 M: .1 + .9 / 2 = .55
    ("small", 35e6, 10_000.0, 0, 550_000, 5_500.0, 500.0),
    # a third of the way from 5 M to 10 M is 6 666 667: .2 + .8 x .3333334 = .46666672, floored to .466666
    ("long_tail", 6_666_667.0, 1_000.0, 0, 466_666, 466.666, 100.0),
    # a custom fraction below the scaled one does nothing
    ("small", 35e6, 10_000.0, 400_000, 550_000, 5_500.0, 500.0),
    # not known: as above the upper cap
    ("mid", None, 5_000.0, 0, 1_000_000, 5_000.0, 150.0),
    ("safety", 0.0, 5_000.0, 0, 1_000_000, 5_000.0, 1_000.0),
    ("fx", 750_000.0, 200.0, 0, 505_000, 101.0, 1.0),
]


@pytest.mark.parametrize(("name", "interest", "notional", "custom", "ppm", "initial", "maintenance"), BY_HAND)
def test_the_published_formula_gives_the_values_worked_out_by_hand(
    name: str,
    interest: float | None,
    notional: float,
    custom: int,
    ppm: int,
    initial: float,
    maintenance: float,
) -> None:
    tier = LiquidityTier(*TIERS[name])
    open_interest = None if interest is None else round(interest * USDC)
    size = round(notional * USDC)
    assert max(tier.initial_fraction_ppm(open_interest), custom) == ppm
    assert tier.initial_quantums(size, open_interest, custom) == round(initial * USDC)
    assert tier.maintenance_quantums(-size) == round(maintenance * USDC)


def test_one_quantum_of_notional_needs_one_quantum() -> None:
    tier = LiquidityTier(*TIERS["large"])  # ceil(.02) = 1, ceil(ceil(.02) x .6) = 1
    assert (tier.initial_quantums(1, None), tier.maintenance_quantums(1)) == (1, 1)
    assert (tier.initial_quantums(0, None), tier.maintenance_quantums(0)) == (0, 0)
    # 51 x 2 % = 1.02 -> 2; 2 x 60 % = 1.2 -> 2, where 51 x 1.2 % = .612 would be 1: rounded twice
    assert tier.maintenance_quantums(51) == 2


def test_equal_caps_switch_from_base_to_full_just_above_them() -> None:
    tier = LiquidityTier(50_000, 600_000, 10, 10)
    assert [tier.initial_fraction_ppm(interest) for interest in (9, 10, 11)] == [50_000, 50_000, MILLION]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("large", 48_000),  # 6 x (2 % - 1.2 %)
        ("small", 300_000),  # 6 x (10 % - 5 %)
        ("safety", 4_800_000),  # 6 x (100 % - 20 %)
        ("isolated", 120_000),  # 6 x (5 % - 3 %)
    ],
)
def test_funding_is_capped_at_six_times_the_gap_of_the_margins(name: str, expected: int) -> None:
    factor = load_facts("dydx_v4_tiers")["funding"][0]["rate_clamp_factor_ppm"]
    assert LiquidityTier(*TIERS[name]).max_funding_ppm(factor) == expected


def test_the_funding_cap_rounds_as_the_test_of_the_source_says() -> None:
    # liquidity_tier_test.go: 42 397.8721 % x (74.5345 % - floor of its 56.4947 %) = 13 748.1459 %
    assert LiquidityTier(745_345, 564_947, 0, 0).max_funding_ppm(423_978_721) == 137_481_459


@pytest.mark.parametrize("name", TIERS)
def test_more_size_or_more_open_interest_never_needs_less(name: str) -> None:
    tier, draw = LiquidityTier(*TIERS[name]), random.Random(f"monotone {name}")
    sizes = sorted({draw.randint(0, 10**13) for _ in range(60)} | set(range(200)))
    known = sorted(interest for interest in interests(TIERS[name], draw) if interest is not None)
    for interest in (*known, None):
        initial = [tier.initial_quantums(size, interest) for size in sizes]
        assert initial == sorted(initial)
    maintenance = [tier.maintenance_quantums(size) for size in sizes]
    assert maintenance == sorted(maintenance)
    fractions = [tier.initial_fraction_ppm(interest) for interest in known]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= tier.initial_fraction_ppm(None) <= MILLION
    assert all(m <= tier.initial_quantums(s, 0) for s, m in zip(sizes, maintenance, strict=True))


@pytest.mark.parametrize(
    ("base", "resolution", "price", "exponent", "expected"),
    [
        # 1 BTC = 1e10 base quantums at 60 000 = 6e9 x 1e-5
        (10**10, -10, 6_000_000_000, -5, 60_000 * USDC),
        (-(10**10), -10, 6_000_000_000, -5, -60_000 * USDC),
        # one base quantum of BTC is .000006 USDC; 1.9 and -1.9 quantums both go towards 0
        (1, -10, 6_000_000_000, -5, 6),
        (19, -10, 10_000_000, -5, 0),
        (190_000_000, -10, 10_000_000, -13, 0),
        (19, 0, 1, -7, 1),
        (-19, 0, 1, -7, -1),
        # an exponent of 0 or more is exact
        (7, 1, 3, -7, 21),
        (-7, 1, 3, -5, -2_100),
        (0, -10, 6_000_000_000, -5, 0),
    ],
)
def test_notional_is_cut_towards_zero(
    base: int, resolution: int, price: int, exponent: int, expected: int
) -> None:
    assert notional_quantums(base, resolution, price, exponent) == expected


def test_notional_equals_the_exact_product_cut_towards_zero() -> None:
    draw = random.Random(5)
    for _ in range(200):
        base, price = draw.randint(-(10**14), 10**14), draw.randint(1, 10**11)
        resolution, exponent = draw.randint(-10, 1), draw.randint(-12, -3)
        exact = base * price * Fraction(10) ** (resolution + exponent + 6)
        assert notional_quantums(base, resolution, price, exponent) == (
            floor(exact) if exact >= 0 else ceil(exact)
        )


@pytest.mark.parametrize(
    ("net", "maintenance", "liquidatable"),
    [
        (99, 100, True),
        (100, 100, False),
        (101, 100, False),
        (0, 0, False),
        (-1, 0, False),
        (-1, 1, True),
        (0, 1, True),
    ],
)
def test_an_account_is_liquidatable_only_below_a_maintenance_that_it_has(
    net: int, maintenance: int, liquidatable: bool
) -> None:
    assert Risk(net, maintenance, maintenance).liquidatable is liquidatable


def test_net_collateral_is_the_quote_balance_and_the_signed_notionals() -> None:
    tier = LiquidityTier(*TIERS["large"])
    # long 100 000 bought with 99 000 of debt, short 50 000 that brought 50 500
    long, short = position_risk(tier, 100_000 * USDC, None), position_risk(tier, -50_000 * USDC, None)
    total = account_risk((-99_000 + 50_500) * USDC, [long, short])
    assert total == Risk(1_500 * USDC, 3_000 * USDC, 1_800 * USDC)
    assert total.liquidatable
    assert not account_risk(total.net_collateral, []).liquidatable


# The engine over a book.

POSITIONS = [
    {"venue": "dydx", "symbol": "BTC", "size": 1.5, "mark_price": 60_000.0, "entry_price": 50_000.0},
    {"venue": "dydx", "symbol": "SOL", "size": -100.0, "mark_price": 150.25, "entry_price": 160.0},
]
BOOK = AccountBook.from_dicts(
    [
        {"account_id": "a", "cash_usd": 1_000.0, "positions": POSITIONS},
        {
            "account_id": "idle",
            "cash_usd": 5.5,
            "collateral": [
                {"chain": "dydx", "asset": "USDC", "amount": 100.0, "price_usd": 0.97},
                {"chain": "dydx", "asset": "USDT", "amount": 100.0, "price_usd": 1.0},
                {"chain": "ethereum", "asset": "USDC", "amount": 100.0, "price_usd": 1.0},
            ],
        },
        {
            "account_id": "c",
            "cash_usd": -10.0,
            "positions": [
                {
                    "venue": "dydx",
                    "symbol": "NEVERLISTED",
                    "size": 0.1,
                    "mark_price": 3.0,
                    "entry_price": 2.0,
                    "margin_mode": "isolated",
                    "isolated_margin_usd": 7.0,
                }
            ],
        },
    ]
)


def test_the_engine_adds_up_positions_at_live_prices() -> None:
    state = VenueState(open_interest_usd={"BTC": 1e9, "dydx:SOL": 70e6, "SOL": 1.0, "NEVERLISTED": 5e6})
    margins = DydxV4Engine().margins(BOOK, {"BTC": 40_000.0}, NOW, state)
    # BTC 60 000 at 2 %; SOL 15 025 half way from 5 % to 100 %; .30000000000000004 is 300 001 quantums
    assert margins.initial_usd.tolist() == [1_200.0 + 15_025.0 * 0.525, 0.0, 0.060001]
    assert margins.maintenance_usd.tolist() == [720.0 + 450.75, 0.0, 0.030001]
    assert margins.position_maintenance_usd.tolist() == [720.0, 450.75, 0.030001]
    # 1 000 - 15 000 + 975; USDC on the venue's chain at par, nothing else; -10 + 7 + .1, rounded down
    assert margins.equity_usd is not None
    assert margins.equity_usd.tolist()[:2] == [-13_025.0, 105.5]
    assert margins.equity_usd[2] in (-2.9, -2.900001)


def test_open_interest_that_is_not_stated_asks_for_the_full_notional() -> None:
    known = DydxV4Engine().margins(BOOK, None, NOW, VenueState(open_interest_usd={"SOL": 0.0}))
    missing = DydxV4Engine().margins(BOOK, None, NOW)
    assert missing.initial_usd.tolist()[0] == 90_000.0 * 0.02 + 15_025.0
    assert known.initial_usd.tolist()[0] == 90_000.0 * 0.02 + 15_025.0 * 0.05
    assert missing.maintenance_usd.tolist() == known.maintenance_usd.tolist()


def test_a_custom_fraction_raises_the_initial_margin_of_its_account_and_market_only() -> None:
    state = VenueState(open_interest_usd={"SOL": 0.0, "NEVERLISTED": 0.0})
    plain = DydxV4Engine().margins(BOOK, None, NOW, state)
    chosen = DydxV4Engine({("a", "BTC"): 250_000, ("idle", "BTC"): 500_000, ("a", "SOL"): 1}).margins(
        BOOK, None, NOW, state
    )
    assert chosen.initial_usd[0] - plain.initial_usd[0] == pytest.approx(90_000.0 * 0.23)
    assert chosen.initial_usd[1:].tolist() == plain.initial_usd[1:].tolist()
    assert chosen.maintenance_usd.tolist() == plain.maintenance_usd.tolist()


@pytest.mark.parametrize("ppm", [0, -1, MILLION + 1])
def test_a_custom_fraction_beyond_the_protocol_is_refused(ppm: int) -> None:
    with pytest.raises(ConfigError, match="the custom fraction of 'a' for 'BTC' is"):
        DydxV4Engine({("a", "BTC"): ppm})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_open_interest_that_is_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="open_interest_usd of 'BTC' is"):
        DydxV4Engine().margins(BOOK, None, NOW, VenueState(open_interest_usd={"BTC": value}))


def test_the_engine_refuses_a_time_before_its_facts() -> None:
    with pytest.raises(ConfigError, match="no entry is in force at 2020-01-01"):
        DydxV4Engine().margins(BOOK, None, to_us("2020-01-01"))


def test_the_engine_agrees_with_the_slow_reading_on_random_books() -> None:
    draw = random.Random("book")
    symbols = ["BTC", "SOL", "XRP", "MKR", "EIGEN", "NEVERLISTED"]
    accounts = [
        {
            "account_id": f"account {number}",
            "cash_usd": draw.uniform(-1e4, 1e4),
            "positions": [
                {
                    "venue": "dydx",
                    "symbol": symbol,
                    "size": draw.choice((1, -1)) * draw.uniform(1e-6, 10 ** draw.randint(-3, 6)),
                    "mark_price": draw.uniform(0.01, 1e5),
                }
                for symbol in draw.sample(symbols, number % 4)
            ],
        }
        for number in range(40)
    ]
    interest = {symbol: draw.uniform(0, 1.2e8) for symbol in symbols[:-1]}
    margins = DydxV4Engine().margins(
        AccountBook.from_dicts(accounts), None, NOW, VenueState(open_interest_usd=interest)
    )
    names = dict(zip(symbols, ("large", "mid", "small", "long_tail", "isolated", "long_tail"), strict=True))
    for row, account in enumerate(accounts):
        initial = maintenance = 0
        for position in account["positions"]:
            tier, symbol = TIERS[names[position["symbol"]]], position["symbol"]
            notional = ceil(abs(Fraction(position["size"]) * Fraction(position["mark_price"])) * USDC)
            known = ceil(Fraction(interest[symbol]) * USDC) if symbol in interest else None
            initial += slow_initial(tier, notional, known, 0)
            maintenance += slow_maintenance(tier, notional)
        # a float notional is at most one quantum off the exact product, and its rounding two
        assert margins.initial_usd[row] == pytest.approx(initial / USDC, rel=1e-12, abs=4e-6)
        assert margins.maintenance_usd[row] == pytest.approx(maintenance / USDC, rel=1e-12, abs=4e-6)


def test_a_book_without_positions_needs_nothing() -> None:
    margins = DydxV4Engine().margins(
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0}]), None, NOW
    )
    assert margins.initial_usd.tolist() == margins.maintenance_usd.tolist() == [0.0]
    assert margins.position_maintenance_usd.shape == (0,)


def test_a_notional_beyond_int64_is_counted_in_full() -> None:
    book = AccountBook.from_dicts(
        [
            {
                "account_id": "whale",
                "cash_usd": 0.0,
                "positions": [{"venue": "dydx", "symbol": "BTC", "size": 1e9, "mark_price": 1e6}],
            }
        ]
    )
    margins = DydxV4Engine().margins(book, None, NOW)
    assert margins.initial_usd.tolist() == [2e13]
    assert margins.maintenance_usd.tolist() == [1.2e13]
