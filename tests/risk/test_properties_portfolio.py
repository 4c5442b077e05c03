"""What a book needs: convex, homogeneous, monotone in its scales, and never below its share of the parts.

The *scale* of the account law has these properties exactly. The *requirement* takes the loss of a move of
that scale, with a tail and a curvature that are means over the legs; neither mean is convex, so that two of
the properties hold up to a bound, which is stated at its test and in docs/limits.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskml.arrays import Float1D, Float2D
from riskml.risk import AccountLawFn, Forecast, LawOutput, MarginPolicy
from riskml.risk.excursion import quantile_table

from .property_cases import (
    BARE,
    CASES,
    KINDS,
    N_LEGS,
    N_POLICIES,
    PRODUCTS,
    ROUNDING,
    assert_enough,
    assert_never_above,
    decide_on,
    make_law,
    policies,
    random_forecast,
    random_legs,
    scaled,
    shares_of,
)

PER_POLICY = CASES // N_POLICIES
LAW = make_law("numpy")
EXACT = 1e-12
"""Relative, of float64 sums."""


@pytest.fixture(scope="module", params=["numpy", "graph"])
def law(request: pytest.FixtureRequest) -> AccountLawFn:
    return make_law(request.param)


def law_of(law: AccountLawFn, forecast: Forecast, weight: Float2D, second: float = 1.7) -> LawOutput:
    """The law on weights [n_accounts, n_legs], each leg in a market of its own, with two scenarios."""
    n_accounts, n_legs = weight.shape
    return law(
        leg_market=np.arange(n_accounts * n_legs).reshape(n_accounts, n_legs),
        leg_weight=weight,
        leg_mm_rate=np.zeros(weight.shape),
        buffer_ratio=np.ones(n_accounts),
        sigma=np.stack([forecast.sigma, second * forecast.sigma[:, ::-1]]),
        nu=np.stack([forecast.nu, forecast.nu]),
        loadings=forecast.loadings,
        quantile_table=quantile_table((0.995, 0.99)),
    )


def test_the_scale_is_convex_in_the_exposures(law: AccountLawFn) -> None:
    rng = np.random.default_rng(201)
    forecast = random_forecast(rng, CASES * N_LEGS)
    one, two = rng.normal(size=(2, CASES, N_LEGS)) * rng.integers(0, 2, (2, CASES, N_LEGS))
    part = rng.uniform(0.0, 1.0, (CASES, 1))
    first, second, middle = (
        law_of(law, forecast, weight).scale for weight in (one, two, part * one + (1.0 - part) * two)
    )
    mean = part[:, :, None] * first + (1.0 - part[:, :, None]) * second
    assert_enough(assert_never_above(middle, mean, EXACT * (first + second)) // 6)


def test_scale_and_margin_are_positively_homogeneous_in_the_exposures(law: AccountLawFn) -> None:
    rng = np.random.default_rng(202)
    forecast = random_forecast(rng, CASES * N_LEGS)
    weight, factor = rng.normal(size=(CASES, N_LEGS)), 10.0 ** rng.uniform(-3.0, 3.0, CASES)
    one, times = law_of(law, forecast, weight), law_of(law, forecast, weight * factor[:, None])
    for name in ("scale", "margin_ratio"):
        values = getattr(one, name)
        wanted = values * factor.reshape(-1, *([1] * (values.ndim - 1)))
        seen = assert_never_above(np.abs(getattr(times, name) - wanted), 1e-11 * wanted)
        assert_enough(seen // (values.size // CASES))


def test_a_requirement_without_size_add_ons_is_positively_homogeneous() -> None:
    """The add-ons for size are meant to grow faster: they are left out, the rest of each policy is random."""
    rng = np.random.default_rng(203)
    seen = 0
    for policy in policies(rng, concentration_rate=0.0, liquidity_rate=0.0):
        forecast = random_forecast(rng, PER_POLICY * N_LEGS)
        usd, factor = random_legs(rng, PER_POLICY), 10.0 ** rng.uniform(-2.0, 2.0, PER_POLICY)
        one, times = (decide_on(forecast, of, policy, LAW) for of in (usd, usd * factor[:, None]))
        for name in PRODUCTS:
            wanted = factor * getattr(one, name)
            difference = np.abs(getattr(times, name) - wanted)
            seen += assert_never_above(difference, 1e-9 * wanted + ROUNDING * (1.0 + factor))
    assert_enough(seen // len(PRODUCTS))


def test_a_requirement_with_size_add_ons_grows_at_least_with_the_book() -> None:
    rng = np.random.default_rng(204)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, PER_POLICY * N_LEGS)
        usd, factor = random_legs(rng, PER_POLICY), 10.0 ** rng.uniform(0.0, 3.0, PER_POLICY)
        depth = dict.fromkeys(forecast.markets, 1e8)
        one, times = (
            decide_on(forecast, of, policy, LAW, liquidity_usd=depth) for of in (usd, usd * factor[:, None])
        )
        for name in PRODUCTS:
            seen += assert_never_above(
                factor * (getattr(one, name) - ROUNDING), getattr(times, name), 1e-9 * getattr(times, name)
            )
    assert_enough(seen // len(PRODUCTS))


CONVEX_WITHIN = {"release": (0.005, 0.002), "wide": (0.1, 0.02)}
"""Per kind of market: largest excess over the mean, and the share of cases that have any. Seen in 60,000
cases: .0008 and .0005 on markets like the release's, .02 and .007 on any."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_requirement_is_convex_in_the_exposures_within_the_stated_bound(kind: str) -> None:
    """Cap, floor and correlation stress at their defaults; the concentration add-on has its own test."""
    rng = np.random.default_rng(205)
    policy = MarginPolicy(concentration_rate=0.0)
    forecast = random_forecast(rng, CASES * N_LEGS, kind=kind)
    one, two, part = random_legs(rng, CASES), random_legs(rng, CASES), rng.uniform(0.0, 1.0, (CASES, 1))
    first, second, middle = (
        decide_on(forecast, usd, policy, LAW) for usd in (one, two, part * one + (1.0 - part) * two)
    )
    for name in PRODUCTS:
        mean = part[:, 0] * getattr(first, name) + (1.0 - part[:, 0]) * getattr(second, name)
        assert_within_bound(getattr(middle, name), mean, *CONVEX_WITHIN[kind])


def test_the_concentration_add_on_is_its_rate_at_most_so_it_bends_a_requirement_by_no_more() -> None:
    rng = np.random.default_rng(206)
    seen = 0
    for policy in policies(rng, floor=0.0, initial_floor=0.0, liquidity_rate=0.0):
        forecast = random_forecast(rng, PER_POLICY * N_LEGS)
        usd = random_legs(rng, PER_POLICY)
        plain, added = (
            decide_on(forecast, usd, of, LAW) for of in (replace(policy, concentration_rate=0.0), policy)
        )
        for name in PRODUCTS:
            most = (1.0 + policy.concentration_rate) * getattr(plain, name)
            seen += assert_never_above(getattr(added, name), most, ROUNDING)
    assert_enough(seen // len(PRODUCTS))


SHRINK_WITHIN = {"release": (0.1, 0.008), "wide": (1.0, 0.15)}
"""As :data:`CONVEX_WITHIN`. Seen: .045 and .0056 on markets like the release's, .42 and .12 on any: what adds
risk at the forecast's correlations may hedge at stressed ones, or over the other product's horizon."""


@pytest.mark.parametrize("kind", KINDS)
def test_shrinking_a_leg_that_adds_raises_a_requirement_by_the_stated_bound_at_most(kind: str) -> None:
    """At the default policy. Contributions are shares of the scale; the requirement is not quite it."""
    rng = np.random.default_rng(207)
    n_cases = 2 * CASES
    forecast = random_forecast(rng, n_cases * N_LEGS, kind=kind)
    usd, leg = random_legs(rng, n_cases), rng.integers(0, N_LEGS, n_cases)
    smaller = usd.copy()
    smaller[np.arange(n_cases), leg] *= rng.uniform(0.0, 1.0, n_cases)
    before, after = (decide_on(forecast, of, MarginPolicy(), LAW) for of in (usd, smaller))
    adds = shares_of(after, smaller)[np.arange(n_cases), leg] > 0.0
    for name in PRODUCTS:
        assert_within_bound(getattr(after, name)[adds], getattr(before, name)[adds], *SHRINK_WITHIN[kind])


def assert_within_bound(found: Float1D, limit: Float1D, most: float, share: float) -> None:
    """``found <= limit`` in all but a share of the cases, and there by a fraction ``most`` at most."""
    assert_enough(assert_never_above(found, (1.0 + most) * limit, ROUNDING))
    assert np.mean(found > limit + ROUNDING) <= share


def test_shrinking_a_leg_whose_contribution_stays_positive_never_raises_the_scale(law: AccountLawFn) -> None:
    """Positive at the end of the way is positive all along, because the scale is convex."""
    rng = np.random.default_rng(212)
    n_cases = 2 * CASES
    forecast = random_forecast(rng, n_cases * N_LEGS)
    weight, leg = rng.normal(size=(n_cases, N_LEGS)), rng.integers(0, N_LEGS, n_cases)
    smaller = weight.copy()
    smaller[np.arange(n_cases), leg] *= rng.uniform(0.0, 1.0, n_cases)
    before, after = law_of(law, forecast, weight), law_of(law, forecast, smaller)
    adds = after.contribution[np.arange(n_cases), leg] > 0.0  # [n_cases, n_horizons]
    seen = assert_never_above(
        after.scale[:, 0][adds], before.scale[:, 0][adds], EXACT * before.scale[:, 0][adds]
    )
    assert_enough(seen // 3)


def test_a_requirement_never_falls_when_all_scales_rise_together() -> None:
    rng = np.random.default_rng(208)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, PER_POLICY * N_LEGS)
        usd = random_legs(rng, PER_POLICY)
        factor = np.repeat(1.0 + rng.exponential(0.7, PER_POLICY), N_LEGS)[:, None, None]
        before, after = (decide_on(of, usd, policy, LAW) for of in (forecast, scaled(forecast, factor)))
        for name in PRODUCTS:
            seen += assert_never_above(getattr(before, name), getattr(after, name), ROUNDING)
    assert_enough(seen // len(PRODUCTS))


def test_offsets_never_take_more_than_the_cap_off_the_stand_alone_sum() -> None:
    rng = np.random.default_rng(209)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, PER_POLICY * N_LEGS)
        usd = random_legs(rng, PER_POLICY)
        alone_policy = replace(policy, floor=0.0, initial_floor=0.0, concentration_rate=0.0)
        whole = decide_on(forecast, usd, policy, LAW)
        apart: dict[str, Any] = {name: np.zeros(PER_POLICY) for name in PRODUCTS}
        for leg in range(N_LEGS):
            one = decide_on(forecast, usd * (np.arange(N_LEGS) == leg), alone_policy, LAW)
            for name in PRODUCTS:
                apart[name] += getattr(one, name)
        for name in PRODUCTS:
            least = (1.0 - policy.offset_cap) * (apart[name] - N_LEGS * ROUNDING)
            seen += assert_never_above(least, getattr(whole, name), 1e-9 * apart[name])
    assert_enough(seen // len(PRODUCTS))


def test_offsets_over_two_venues_of_one_market_are_capped_as_well() -> None:
    rng = np.random.default_rng(210)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, PER_POLICY * 2)
        usd = random_legs(rng, PER_POLICY, 2) * np.array([1.0, -1.0])
        symbol = np.repeat(np.asarray(forecast.markets[:PER_POLICY], dtype=object), 2)
        venue = np.tile(np.array(["sim", "other"], dtype=object), PER_POLICY)
        whole = decide_on(forecast, usd, policy, LAW, symbol=symbol, venue=venue)
        plain = replace(policy, floor=0.0, initial_floor=0.0, concentration_rate=0.0)
        for name in PRODUCTS:
            apart = np.zeros(PER_POLICY)
            for leg in range(2):
                only = usd * (np.arange(2) == leg)
                apart += getattr(decide_on(forecast, only, plain, LAW, symbol=symbol, venue=venue), name)
            least = (1.0 - policy.offset_cap) * (apart - 2.0 * ROUNDING)
            seen += assert_never_above(least, getattr(whole, name), 1e-9 * apart)
    assert_enough(seen // len(PRODUCTS))


P_WITHIN = {"release": (0.02, 0.0), "wide": (0.3, 0.01)}
"""Per kind of market: largest relative difference, and the share of cases that may exceed it. Seen: .014 on
markets like the release's; more than .3 in .2 % of the cases on any, where no barrier may be found at all."""


@pytest.mark.parametrize("kind", KINDS)
def test_p_at_the_margin_of_a_book_is_one_minus_the_level_within_the_stated_bound(
    kind: str, law: AccountLawFn
) -> None:
    """Exact for one leg; a book's loss is taken to second order for margin and exactly for the barrier."""
    rng = np.random.default_rng(211)
    forecast = random_forecast(rng, CASES * N_LEGS, kind=kind)
    usd = random_legs(rng, CASES)
    usd *= 1e6 / np.abs(usd).sum(axis=1, keepdims=True)
    policy = replace(BARE, barrier="venue")
    venue = {"maintenance_margin_usd": np.zeros(CASES)}
    margin = decide_on(forecast, usd, policy, law, accounts=venue).initial_margin_usd
    p = decide_on(forecast, usd, policy, law, cash=margin, accounts=venue).liquidation_probability[:, 1]
    ratio = p / (1.0 - policy.initial_level)
    most, share = P_WITHIN[kind]
    assert_enough(len(ratio))
    assert np.mean(~(np.abs(ratio - 1.0) <= most)) <= share
    assert abs(float(np.median(ratio)) - 1.0) < 0.005
