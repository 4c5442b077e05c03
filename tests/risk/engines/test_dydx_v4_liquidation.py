"""dYdX v4's liquidations against a slow reading of its source in fractions, and values worked out by hand."""

from __future__ import annotations

import random
from fractions import Fraction
from math import floor

import pytest

from riskml.errors import DataError
from riskml.risk.engines.dydx_v4 import LiquidityTier, Risk, account_risk, position_risk
from riskml.risk.engines.dydx_v4_liquidation import (
    bankruptcy_quantums,
    fill_price,
    liquidation_limits,
)

from .test_dydx_v4 import LIMITS, NOW, TIERS, USDC

# Bankruptcy and fill price.


def slow_bankruptcy(total: Risk, before: Risk, after: Risk) -> int:
    given_up = (
        Fraction(total.net_collateral) * abs(after.maintenance - before.maintenance) / total.maintenance
    )
    return -(after.net_collateral - before.net_collateral) - floor(given_up)


def liquidation_cases() -> list[tuple[Risk, Risk, Risk]]:
    draw, cases = random.Random("liquidation"), []
    for number in range(220):
        tier = LiquidityTier(*TIERS[draw.choice(list(TIERS))])
        notional = draw.choice((1, -1)) * draw.randint(1, 10 ** draw.randint(1, 14))
        rest = draw.choice(
            (0, notional // 2, notional - (notional > 0) + (notional < 0), draw.randint(0, abs(notional)))
        )
        rest = abs(rest) if notional > 0 else -abs(rest)
        before, after = position_risk(tier, notional, None), position_risk(tier, rest, None)
        other = position_risk(tier, draw.randint(-(10**9), 10**9), None)
        wealth = draw.choice((-1, 0, 1, draw.randint(-(10**10), 10**10)))
        if number % 7 == 0:
            wealth = before.maintenance + other.maintenance
        cases.append((account_risk(wealth - notional - other.net_collateral, [before, other]), before, after))
    return cases


LIQUIDATIONS = liquidation_cases()


@pytest.mark.parametrize(("total", "before", "after"), LIQUIDATIONS)
def test_the_bankruptcy_price_equals_the_slow_one_in_every_bit(
    total: Risk, before: Risk, after: Risk
) -> None:
    assert bankruptcy_quantums(total, before, after) == slow_bankruptcy(total, before, after)


@pytest.mark.parametrize(("total", "before", "after"), LIQUIDATIONS[::3])
def test_the_fill_price_equals_the_slow_one(total: Risk, before: Risk, after: Risk) -> None:
    size = before.net_collateral * 3 + (1 if before.net_collateral > 0 else -1)
    shortfall = 1 - Fraction(total.net_collateral, total.maintenance)
    rating = 0 if shortfall < 0 else 1 if shortfall > 1 else shortfall
    expected = (before.net_collateral - rating * Fraction(3, 2) * before.maintenance) / Fraction(size)
    assert fill_price(total, before, size, LIMITS) == expected


def test_a_single_long_goes_bankrupt_at_the_price_that_leaves_nothing() -> None:
    # 1 BTC at 50 000 with a debt of 49 500: closing all of it has to bring 49 500
    tier = LiquidityTier(*TIERS["large"])
    long, flat = position_risk(tier, 50_000 * USDC, None), position_risk(tier, 0, None)
    total = account_risk(-49_500 * USDC, [long])
    assert total.liquidatable
    assert bankruptcy_quantums(total, long, flat) == 49_500 * USDC
    # half of it: 25 000 - half of the 500
    half = position_risk(tier, 25_000 * USDC, None)
    assert bankruptcy_quantums(total, long, half) == 24_750 * USDC
    # TNC / MM = 500 / 600: rating 1 / 6, spread 150 % of 600, so 50 000 - 150 per BTC of 1e10 quantums
    assert fill_price(total, long, 10**10, LIMITS) == Fraction(49_850 * USDC, 10**10)


def test_a_single_short_goes_bankrupt_above_the_oracle_price() -> None:
    tier = LiquidityTier(*TIERS["large"])
    short, flat = position_risk(tier, -50_000 * USDC, None), position_risk(tier, 0, None)
    total = account_risk(50_500 * USDC, [short])
    assert bankruptcy_quantums(total, short, flat) == -50_500 * USDC
    assert fill_price(total, short, -(10**10), LIMITS) == Fraction(50_150 * USDC, 10**10)


@pytest.mark.parametrize(
    ("net", "spread"),
    [
        (601, 0.0),  # above maintenance the rating is 0
        (600, 0.0),
        (300, 450.0),  # half of 150 % of 600
        (0, 900.0),
        (-1, 900.0),  # and below 0 it is 1
        (-10_000, 900.0),
    ],
)
def test_the_fill_price_moves_between_the_oracle_price_and_the_full_spread(net: int, spread: float) -> None:
    long = Risk(50_000 * USDC, 1_000 * USDC, 600 * USDC)
    total = Risk(net * USDC, 1_000 * USDC, 600 * USDC)
    assert fill_price(total, long, 1, LIMITS) == (50_000 - Fraction(spread)) * USDC


def test_a_bankruptcy_price_is_rounded_in_favour_of_the_insurance_fund() -> None:
    # 1 x 1 / 3 of a quantum is given up: floor -> 0; -1 / 3 -> -1, so a quantum more is needed
    before, after = Risk(300, 60, 3), Risk(200, 40, 2)
    assert bankruptcy_quantums(Risk(1, 60, 3), before, after) == 100
    assert bankruptcy_quantums(Risk(-1, 60, 3), before, after) == 101


def test_prices_of_nothing_are_refused() -> None:
    nothing, long = Risk(0, 0, 0), Risk(100, 10, 5)
    with pytest.raises(DataError, match="a bankruptcy price needs a position with maintenance"):
        bankruptcy_quantums(nothing, nothing, nothing)
    with pytest.raises(DataError, match="of which a part is closed"):
        bankruptcy_quantums(long, long, Risk(200, 20, 10))
    with pytest.raises(DataError, match="a fill price needs a position with maintenance"):
        fill_price(nothing, nothing, 1, LIMITS)
    with pytest.raises(DataError, match="a size other than 0"):
        fill_price(long, long, 0, LIMITS)


# Limits per block and the withdrawal gate.


def test_the_facts_hold_the_published_limits() -> None:
    assert liquidation_limits(NOW) == LIMITS


@pytest.mark.parametrize(
    ("notional", "least", "most"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (999_999_999, 999_999_999, 999_999_999),
        (1_000 * USDC, 1_000 * USDC, 1_000 * USDC),
        (1_000 * USDC + 1, 1_000 * USDC, 1_000 * USDC),
        (-9_999 * USDC, 1_000 * USDC, 1_000 * USDC),  # 10 % would be 999.9
        (10_000 * USDC, 1_000 * USDC, 1_000 * USDC),
        (10_000 * USDC + 9, 1_000 * USDC, 1_000 * USDC),  # 10 % is rounded down
        (10_000 * USDC + 10, 1_000 * USDC, 1_000 * USDC + 1),
        (-50_000 * USDC, 1_000 * USDC, 5_000 * USDC),
        (5_000_000 * USDC, 1_000 * USDC, 500_000 * USDC),
    ],
)
def test_a_block_takes_a_tenth_of_a_position_and_at_least_a_thousand(
    notional: int, least: int, most: int
) -> None:
    assert LIMITS.position_notional(notional) == (least, most)
    assert LIMITS.liquidatable_notional(notional) == min(most, 100_000 * USDC)


@pytest.mark.parametrize(
    ("liquidated", "left"),
    [(0, 100_000), (1, 99_999), (99_999, 1), (100_000, 0)],
)
def test_a_subaccount_loses_at_most_its_notional_per_block(liquidated: int, left: int) -> None:
    assert LIMITS.subaccount_notional(liquidated * USDC) == left * USDC
    assert LIMITS.liquidatable_notional(-(10**18), liquidated * USDC) == left * USDC


def test_more_than_a_limit_cannot_have_been_used() -> None:
    assert LIMITS.subaccount_insurance(0) == 1_000_000 * USDC
    assert LIMITS.subaccount_insurance(1_000_000 * USDC) == 0
    with pytest.raises(DataError, match="notional liquidated has to be in"):
        LIMITS.subaccount_notional(100_000 * USDC + 1)
    with pytest.raises(
        DataError, match=r"insurance lost has to be in \[0, 1000000000000\] quantums, found -1"
    ):
        LIMITS.subaccount_insurance(-1)


@pytest.mark.parametrize(
    ("block", "negative", "outage", "blocked"),
    [
        (100, None, None, False),
        (100, 100, None, True),
        (149, 100, None, True),
        (150, 100, None, False),
        (149, None, 100, True),
        (150, None, 100, False),
        (150, 100, 101, True),
        (151, 101, 100, False),
    ],
)
def test_withdrawals_wait_fifty_blocks(
    block: int, negative: int | None, outage: int | None, blocked: bool
) -> None:
    assert LIMITS.withdrawals_blocked(block, negative, outage) is blocked


def test_a_block_cannot_follow_what_is_seen_later() -> None:
    with pytest.raises(DataError, match="block 99 is before block 100"):
        LIMITS.withdrawals_blocked(99, None, 100)
