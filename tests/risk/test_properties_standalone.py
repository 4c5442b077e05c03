"""What one position needs: it never falls with volatility, size, concentration, age or less liquidity."""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise

import numpy as np
import pytest

from riskml.risk import AccountLawFn, MarginPolicy
from riskml.risk.excursion import quantile, survival
from riskml.risk.margin import concentration_rate, liquidity_cost, round_up_cents
from riskml.units import HOUR

from .property_cases import (
    BARE,
    CASES,
    N_POLICIES,
    PRODUCTS,
    ROUNDING,
    TS,
    assert_enough,
    assert_never_above,
    decide_on,
    make_law,
    policies,
    random_forecast,
    random_legs,
    random_usd,
    scaled,
)

PER_POLICY = CASES // N_POLICIES
LAW = make_law("numpy")


@pytest.fixture(scope="module", params=["numpy", "graph"])
def law(request: pytest.FixtureRequest) -> AccountLawFn:
    return make_law(request.param)


def test_a_stand_alone_margin_and_its_probability_never_fall_with_volatility() -> None:
    rng = np.random.default_rng(101)
    seen = 0
    for policy in policies(rng):
        calm = random_forecast(rng, PER_POLICY)
        wild = scaled(
            calm, 1.0 + rng.exponential(0.5, calm.sigma.shape) * rng.integers(0, 2, calm.sigma.shape)
        )
        usd = random_usd(rng, (PER_POLICY, 1))
        cash = rng.uniform(0.0, 1.0, PER_POLICY) * np.abs(usd[:, 0])
        before, after = (decide_on(of, usd, policy, LAW, cash=cash) for of in (calm, wild))
        for name in PRODUCTS:
            seen += assert_never_above(getattr(before, name), getattr(after, name))
        assert_never_above(before.liquidation_probability, after.liquidation_probability, 1e-15)
    assert_enough(seen // len(PRODUCTS))


def test_a_stand_alone_margin_never_falls_with_size() -> None:
    rng = np.random.default_rng(102)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, PER_POLICY)
        usd = random_usd(rng, (PER_POLICY, 1))
        larger = usd * (1.0 + rng.exponential(1.0, usd.shape))
        depth = dict(zip(forecast.markets, 10.0 ** rng.uniform(3.0, 10.0, PER_POLICY), strict=True))
        before, after = (decide_on(forecast, of, policy, LAW, liquidity_usd=depth) for of in (usd, larger))
        for name in PRODUCTS:
            seen += assert_never_above(getattr(before, name), getattr(after, name))
            per_usd = getattr(before, name) / np.abs(usd[:, 0]), getattr(after, name) / np.abs(larger[:, 0])
            assert_never_above(*per_usd, ROUNDING / np.abs(usd[:, 0]))  # nor does the margin of 1 USD
    assert_enough(seen // len(PRODUCTS))


def test_a_margin_never_falls_with_the_concentration_add_on() -> None:
    rng = np.random.default_rng(103)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, 3 * PER_POLICY)
        usd = random_legs(rng, PER_POLICY, 3)
        stricter = replace(
            policy,
            concentration_rate=policy.concentration_rate + rng.exponential(0.1),
            concentration_start=policy.concentration_start * rng.uniform(),
            concentration_min_usd=policy.concentration_min_usd * rng.uniform(),
        )
        before, after = (decide_on(forecast, usd, of, LAW) for of in (policy, stricter))
        for name in PRODUCTS:
            seen += assert_never_above(getattr(before, name), getattr(after, name))
        share, gross = rng.uniform(-1.0, 2.0, PER_POLICY), 10.0 ** rng.uniform(2.0, 9.0, PER_POLICY)
        rates = [
            concentration_rate(share + more, gross * times, policy)
            for more, times in ((0.0, 1.0), (rng.exponential(0.3, PER_POLICY), rng.uniform(1.0, 9.0)))
        ]
        assert_never_above(rates[0], rates[1])
    assert_enough(seen // len(PRODUCTS))


def test_a_margin_never_falls_when_a_book_of_equals_is_moved_into_one_market() -> None:
    rng = np.random.default_rng(104)
    seen = 0
    for policy in policies(rng):
        market = random_forecast(rng, PER_POLICY)
        alike = np.repeat(np.arange(PER_POLICY), 3)
        forecast = replace(
            random_forecast(rng, 3 * PER_POLICY),
            sigma=market.sigma[alike],
            nu=market.nu[alike],
            loadings=market.loadings[alike],
        )
        usd = np.sort(np.abs(random_legs(rng, PER_POLICY, 3)), axis=1) * rng.choice(
            [-1.0, 1.0], (PER_POLICY, 1)
        )
        moved = usd[:, 0] * rng.uniform(0.0, 1.0, PER_POLICY)  # from the smallest leg to the largest
        one_sided = usd + np.stack([-moved, np.zeros(PER_POLICY), moved], axis=1)
        before, after = (decide_on(forecast, of, policy, LAW) for of in (usd, one_sided))
        for name in PRODUCTS:
            seen += assert_never_above(getattr(before, name), getattr(after, name), ROUNDING)
    assert_enough(seen // len(PRODUCTS))


def test_a_margin_never_falls_with_less_open_interest_down_to_none() -> None:
    rng = np.random.default_rng(105)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, PER_POLICY)
        usd = random_usd(rng, (PER_POLICY, 1))
        deep = 10.0 ** rng.uniform(3.0, 11.0, PER_POLICY)
        thin = deep * rng.choice([0.0, 1e-6, 0.1, 0.9], PER_POLICY)
        found = [
            decide_on(forecast, usd, policy, LAW, liquidity_usd=dict(zip(forecast.markets, of, strict=True)))
            for of in (np.full(PER_POLICY, np.inf), deep, thin, -deep)
        ]
        for less, more in ((1, 0), (2, 1), (3, 2)):
            for name in PRODUCTS:
                seen += assert_never_above(getattr(found[more], name), getattr(found[less], name))
        sizes = np.abs(usd[:, 0])
        assert_never_above(liquidity_cost(sizes, deep, policy), liquidity_cost(sizes, 0.0 * deep, policy))
    assert_enough(seen // len(PRODUCTS))


def test_a_margin_never_falls_with_the_age_of_a_snapshot_which_is_named() -> None:
    rng = np.random.default_rng(106)
    forecast = random_forecast(rng, CASES)
    usd = random_usd(rng, (CASES, 1))
    fresh, old = (
        decide_on(forecast, usd, MarginPolicy(), LAW, accounts={"ts": np.full(CASES, TS - age)})
        for age in (0, 3 * HOUR)
    )
    for name in PRODUCTS:
        assert_enough(assert_never_above(getattr(fresh, name), getattr(old, name)))
    assert (old.reasons & ~fresh.reasons > 0).all()


def test_a_margin_never_falls_with_the_level_or_a_fatter_tail() -> None:
    rng = np.random.default_rng(107)
    seen = 0
    for policy in policies(rng):
        thin = random_forecast(rng, PER_POLICY)
        fat = replace(thin, nu=2.2 + (thin.nu - 2.2) * rng.uniform(0.0, 1.0, thin.nu.shape))
        usd = random_usd(rng, (PER_POLICY, 1))
        raised = {
            name: 1.0 - (1.0 - getattr(policy, name)) * float(rng.uniform(0.1, 1.0))
            for name in ("initial_level", "maintenance_level")
        }
        plain, tail, level = (
            decide_on(forecast, usd, of, LAW)
            for forecast, of in ((thin, policy), (fat, policy), (thin, replace(policy, **raised)))
        )
        for name in PRODUCTS:
            seen += assert_never_above(getattr(plain, name), getattr(tail, name))
            assert_never_above(getattr(plain, name), getattr(level, name))
    assert_enough(seen // len(PRODUCTS))


def test_p_at_the_margin_is_one_minus_the_level_for_one_leg(law: AccountLawFn) -> None:
    """Within 1e-4 of itself: the quantile is interpolated, and half a cent of rounding is far below that."""
    rng = np.random.default_rng(108)
    forecast = random_forecast(rng, CASES)
    usd = random_usd(rng, (CASES, 1), low=1e6)
    for level in (0.99, 0.995):
        policy = replace(BARE, initial_level=level, maintenance_level=level, barrier="venue")
        venue = {"maintenance_margin_usd": np.zeros(CASES)}
        margin = decide_on(forecast, usd, policy, law, accounts=venue).initial_margin_usd
        p = decide_on(forecast, usd, policy, law, cash=margin, accounts=venue).liquidation_probability[:, 1]
        assert_enough(assert_never_above(np.abs(p / (1.0 - level) - 1.0), 1e-4))


def test_p_at_the_quantile_is_one_minus_the_level() -> None:
    rng = np.random.default_rng(109)
    nu, level = rng.uniform(2.2, 30.0, CASES), 1.0 - 10.0 ** rng.uniform(-4.0, -0.5, CASES)
    power = rng.uniform(0.8, 1.25, CASES)
    distance = quantile(level, nu) ** (1.0 / power)  # the margin distance of a calibrated law
    p = survival(distance**power, nu)
    assert_enough(assert_never_above(np.abs(p / (1.0 - level) - 1.0), 1e-9))


def test_p_and_margin_never_fall_with_a_longer_horizon(law: AccountLawFn) -> None:
    rng = np.random.default_rng(110)
    seen = 0
    for policy in policies(rng):
        forecast = random_forecast(rng, 3 * PER_POLICY)  # scales of 8 h below those of 1 h among them
        usd = random_legs(rng, PER_POLICY, 3)
        cash = rng.uniform(0.0, 0.5, PER_POLICY) * np.abs(usd).sum(axis=1)
        found = [
            decide_on(
                forecast,
                usd,
                replace(policy, initial_horizon=horizon, maintenance_horizon=horizon),
                law,
                cash=cash,
            )
            for horizon in forecast.horizons
        ]
        for shorter, longer in pairwise(found):
            for name in PRODUCTS:
                seen += assert_never_above(getattr(shorter, name), getattr(longer, name))
        for decisions in found:
            p = decisions.liquidation_probability
            assert_never_above(p[:, :-1], p[:, 1:])
    assert_enough(seen // len(PRODUCTS))


def test_a_requirement_never_lies_below_the_static_floor_and_initial_never_below_maintenance() -> None:
    rng = np.random.default_rng(111)
    seen = 0
    for policy in policies(rng):
        forecast = scaled(random_forecast(rng, 3 * PER_POLICY), rng.choice([1e-6, 0.1, 1.0]))
        usd = random_legs(rng, PER_POLICY, 3)
        mode = rng.choice(["cross", "isolated"], usd.size).astype(object)
        decisions = decide_on(forecast, usd, policy, LAW, margin_mode=mode)
        gross = np.abs(usd).sum(axis=1)
        seen += assert_never_above(policy.floor * gross, decisions.maintenance_margin_usd, 1e-8)
        assert_never_above(policy.initial_floor * gross, decisions.initial_margin_usd, 1e-8)
        assert_never_above(decisions.maintenance_margin_usd, decisions.initial_margin_usd)
    assert_enough(seen)


def test_rounding_is_always_up_to_the_cent() -> None:
    """Up, but for a millionth of a cent or eight units in the last place, which floating point may add."""
    rng = np.random.default_rng(112)
    usd = 10.0 ** rng.uniform(-4.0, 13.0, CASES)
    usd[::5] = np.rint(usd[::5] * 100.0) / 100.0
    free = np.maximum(1e-8, 8.0 * np.spacing(usd))
    rounded = round_up_cents(usd)
    assert_enough(assert_never_above(usd, rounded, free))
    assert_never_above(rounded, usd, 0.01 + free)
    exact = [Decimal(value).quantize(Decimal("0.01"), rounding=ROUND_CEILING) for value in usd.tolist()]
    near = np.abs(np.rint(usd * 100.0) - usd * 100.0) <= 100.0 * free
    wanted = np.array([float(value) for value in exact])
    assert_never_above(np.abs(rounded - wanted)[~near], 0.0)


def test_a_decision_rounds_the_exact_requirement_up() -> None:
    rng = np.random.default_rng(113)
    forecast = random_forecast(rng, CASES)
    usd = random_usd(rng, (CASES, 1))
    decisions = decide_on(forecast, usd, BARE, LAW)
    side = (usd[:, 0] < 0.0).astype(int)
    rows = np.arange(CASES)
    for name, upto in (("initial_margin_usd", 2), ("maintenance_margin_usd", 1)):
        move = quantile(0.995, forecast.nu[:, :upto]) * forecast.sigma[rows, :upto, side]
        exact = np.abs(usd[:, 0]) * np.where(side[:, None] == 0, -np.expm1(-move), np.expm1(move)).max(axis=1)
        if name == "initial_margin_usd":
            exact = np.maximum(exact, decisions.maintenance_margin_usd - 0.01)
        # The law interpolates the quantile within 2e-5 of itself, always above (it is convex in 1/nu).
        assert_enough(assert_never_above(exact, getattr(decisions, name), 2e-5 * exact))
        assert_never_above(getattr(decisions, name), exact, 0.01 + 2e-5 * exact)
