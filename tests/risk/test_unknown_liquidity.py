"""A market whose liquidity nobody publishes is taken as thin, and no small account pays much for that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.risk import AccountBook, Decisions, MarginPolicy, decide
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.deleverage import DeleveragePlan, deleverage_plans
from riskml.risk.limits import market_limits
from riskml.risk.margin import liquidity_cost, market_liquidity
from riskml.risk.reasons import reason_names

from .breaker_cases import account, position
from .breaker_cases import score as breaker_score
from .property_cases import TS, make_law, random_forecast, random_usd

LAW = make_law("numpy")
FORECAST = random_forecast(np.random.default_rng(3), 2)
KNOWN, UNKNOWN = FORECAST.markets
NO_FLOORS: dict[str, Any] = {"floor": 0.0, "initial_floor": 0.0, "concentration_rate": 0.0}


def judge(*positions: tuple[str, float], collateral: float = 0.0, **more: Any) -> Decisions:
    """One account with positions (symbol, USD) at a price of 1 and ether of so many USD."""
    held = [{"venue": "sim", "symbol": name, "size": usd, "mark_price": 1.0} for name, usd in positions]
    ether = [{"chain": "ethereum", "asset": "ETH", "amount": collateral, "price_usd": 1.0}]
    book = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 1e12,
                "positions": held,
                "collateral": ether if collateral else [],
            }
        ]
    )
    policy = more.pop("policy", MarginPolicy(**NO_FLOORS))
    return decide(book, FORECAST, policy, law=LAW, ts=TS, **more)


@pytest.mark.parametrize("usd", [1e3, 1e4, 1e6, -1e8])
def test_a_market_that_the_liquidity_lacks_costs_what_the_policy_says(usd: float) -> None:
    free, thin = (judge((UNKNOWN, usd), liquidity_usd=depth) for depth in (None, {KNOWN: 1e9}))
    ratio = min(abs(usd) / 1_000_000.0, 100.0)
    cost = 0.05 * abs(usd) * np.sqrt(ratio)
    for name in ("initial_margin_usd", "maintenance_margin_usd"):
        more = getattr(thin, name)[0] - getattr(free, name)[0]
        assert more == pytest.approx(cost, abs=0.02, rel=1e-9)
    named = "size-against-liquidity" in reason_names(int(thin.reasons[0]))
    assert named == (cost > 0.01 * (thin.initial_margin_usd[0] - cost))


def test_an_account_of_ten_thousand_dollars_pays_half_a_per_cent() -> None:
    cost = liquidity_cost(np.array([1e4]), np.array([np.nan]), MarginPolicy())
    assert cost[0] / 1e4 == pytest.approx(0.005)


@pytest.mark.parametrize("given", [{}, {UNKNOWN: np.nan}, {KNOWN: 5.0}])
def test_nothing_known_of_a_market_is_the_same_however_it_is_not_said(given: dict[str, float]) -> None:
    expected = judge((UNKNOWN, 2e6), liquidity_usd={UNKNOWN: 1_000_000.0})
    found = judge((UNKNOWN, 2e6), liquidity_usd=given)
    assert found.initial_margin_usd[0] == expected.initial_margin_usd[0]


def test_who_does_not_ask_for_closing_costs_has_none() -> None:
    assert market_liquidity(["a", "b"], None).tolist() == [np.inf, np.inf]
    assert np.isnan(market_liquidity(["a"], {})).all()
    sizes = 10.0 ** np.arange(2.0, 12.0)
    assert not liquidity_cost(sizes, np.full(10, np.inf), MarginPolicy()).any()


def test_an_unknown_liquidity_never_asks_for_less_than_a_known_one_above_the_policys() -> None:
    rng = np.random.default_rng(7)
    sizes = np.abs(random_usd(rng, (10_000,)))
    policy = MarginPolicy()
    known = policy.unknown_market_liquidity_usd * 10.0 ** rng.uniform(0.0, 5.0, len(sizes))
    unknown = liquidity_cost(sizes, np.full(len(sizes), np.nan), policy)
    assert (unknown >= liquidity_cost(sizes, known, policy)).all()
    assert (unknown <= liquidity_cost(sizes, 0.0 * known, policy)).all()


def test_moving_collateral_of_unknown_liquidity_has_its_haircut_and_no_second_charge() -> None:
    """Ether is no market here: its haircut pays for selling it, the position's leg for closing that alone."""
    asked = {"liquidity_usd": {KNOWN: 1e9}}
    alone = judge((KNOWN, 1e5), collateral=5e6, **asked)
    free = judge((KNOWN, 1e5), collateral=5e6, liquidity_usd={KNOWN: 1e9, "ETH": np.inf})
    assert "collateral-size" in reason_names(int(alone.reasons[0]))
    assert alone.collateral_usd[0] < free.collateral_usd[0]
    # The leg of ether is charged for its law's distance, and for nothing else.
    assert alone.initial_margin_usd[0] <= free.initial_margin_usd[0]
    both = judge((KNOWN, 1e5), ("ETH", 1e6), collateral=5e6, **asked)
    nothing = judge((KNOWN, 1e5), ("ETH", 1e6), collateral=5e6, policy=MarginPolicy(**NO_FLOORS))
    assert both.collateral_usd[0] == nothing.collateral_usd[0]
    cost = 0.05 * 1e6 + 0.05 * 1e5 * np.sqrt(1e5 / 1e9)
    assert both.initial_margin_usd[0] - nothing.initial_margin_usd[0] == pytest.approx(cost, abs=0.02)


def test_limits_and_decisions_read_the_same_liquidity() -> None:
    limits = market_limits(
        FORECAST, MarginPolicy(**NO_FLOORS), [1e6], law=LAW, markets=[UNKNOWN], liquidity_usd={KNOWN: 1e9}
    )
    asked = judge((UNKNOWN, 1e6), liquidity_usd={KNOWN: 1e9}).initial_margin_usd[0]
    assert limits.requirement_usd[0, 0, 0] == asked


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_a_policy_without_a_usable_number_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"unknown_market_liquidity_usd has to lie in \[0, inf\]"):
        MarginPolicy(unknown_market_liquidity_usd=value)


def _plan(usd: float, policy: BreakerPolicy | None = None, **more: Any) -> DeleveragePlan:
    """The plan of one account that holds so much BTC on next to nothing."""
    book = AccountBook.from_dicts([account("a", 1e-3 * usd, position("BTC", usd))])
    (plan,) = deleverage_plans(book, breaker_score, policy or BreakerPolicy(), **more)
    return plan


def _largest(plan: DeleveragePlan) -> float:
    return max(step.notional_usd for step in plan.steps)


@pytest.mark.parametrize("given", [{}, {"BTC": np.nan}, {"ETH": 5e9}])
def test_a_plan_takes_an_unknown_market_to_be_as_thin_as_margins_do(given: dict[str, float]) -> None:
    for usd in (500.0, 1e5, 4e5):
        plan, known = (_plan(usd, liquidity_usd=depth) for depth in (given, {"BTC": 1_000_000.0}))
        assert [step.size for step in plan.steps] == [step.size for step in known.steps]
        assert all("unknown-liquidity" in reason_names(step.reasons) for step in plan.steps)
        assert not any("unknown-liquidity" in reason_names(step.reasons) for step in known.steps)
    assert _largest(_plan(4e5, liquidity_usd=given)) == pytest.approx(50_000.0)
    other = _plan(4e5, liquidity_usd=given, unknown_liquidity_usd=600_000.0)
    assert _largest(other) == pytest.approx(30_000.0)
    assert "size-against-liquidity" in reason_names(other.steps[0].reasons)


@pytest.mark.parametrize(("usd", "fraction", "most"), [(1.4e7, 0.25, 16), (1e9, 0.25, 16), (1e9, 0.5, 4)])
def test_not_knowing_a_market_makes_no_plan_of_hundreds_of_steps(
    usd: float, fraction: float, most: int
) -> None:
    policy = BreakerPolicy(step_fraction=fraction)
    for depth in (MarginPolicy.unknown_market_liquidity_usd, 0.0):
        plan = _plan(usd, policy, liquidity_usd={}, unknown_liquidity_usd=depth)
        assert plan.feasible
        assert len(plan.steps) == most
        assert _largest(plan) == pytest.approx(fraction**2 * usd)
    tiny = _plan(3_000.0, policy, liquidity_usd={}, unknown_liquidity_usd=0.0)
    assert _largest(tiny) == pytest.approx(1_000.0)  # min_step_usd


def test_a_plan_that_does_not_ask_for_liquidity_is_bounded_by_the_fraction_alone() -> None:
    plan = _plan(1.4e7)
    assert _largest(plan) == pytest.approx(0.25 * 1.4e7)
    assert not any("unknown-liquidity" in reason_names(step.reasons) for step in plan.steps)
