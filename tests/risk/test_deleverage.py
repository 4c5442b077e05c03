"""Deleveraging plans: they restore the target, only just, from the legs that carry the risk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.risk import AccountBook, Decisions, reason_names
from riskml.risk.actions import DELEVERAGE
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.risk.deleverage import DeleveragePlan, apply_plans, deleverage_plans
from riskml.risk.pool_books import select_accounts, split_pools, without_orders

from .breaker_cases import PRICES, account, position, random_account, score

BREAKER = BreakerPolicy()
CENT = 0.01


def _plans(book: AccountBook, policy: BreakerPolicy = BREAKER, **more: Any) -> list[DeleveragePlan]:
    names = more.pop("accounts", [str(name) for name in book.account_id])
    return deleverage_plans(book, score, policy, accounts=names, **more)


def _after(book: AccountBook, plans: list[DeleveragePlan], policy: BreakerPolicy = BREAKER) -> AccountBook:
    return apply_plans(book, plans, policy, collateral_usd=score(book).collateral_usd)


def _pools(book: AccountBook) -> tuple[list[str], Decisions]:
    """Every pool of a book, scored as an account of its own."""
    mark = np.where(
        np.isnan(book.positions.mark_price), book.positions.entry_price, book.positions.mark_price
    )
    pools = split_pools(book, mark, score(book).collateral_usd)
    return [str(name) for name in pools.book.account_id], score(pools.book)


def _name(plan: DeleveragePlan) -> str:
    return plan.account_id if plan.pool == "cross" else f"{plan.account_id}|{plan.pool}"


def _pool_of(book: AccountBook, place: int) -> str:
    rows = book.positions
    name = str(book.account_id[rows.account[place]])
    return f"{name}|{rows.venue[place]}:{rows.symbol[place]}" if rows.isolated[place] else name


def _scaled(plan: DeleveragePlan, number: int, share: float) -> DeleveragePlan:
    """The plan with the cuts of one step scaled."""
    steps = [replace(step, size=step.size * share) if step.number == number else step for step in plan.steps]
    return replace(plan, steps=tuple(steps))


def _random_book(seed: int, n_accounts: int) -> AccountBook:
    rng = np.random.default_rng(seed)
    return AccountBook.from_dicts(
        [random_account(rng, f"a{number}", cushion=(0.1, 1.2)) for number in range(n_accounts)]
    )


def _check_book(book: AccountBook, policy: BreakerPolicy) -> tuple[int, int]:
    """Hold every plan of a book against what a plan has to be; plans and steps seen."""
    plans = _plans(book, policy)
    names, before = _pools(book)
    row = {name: number for number, name in enumerate(names)}
    after_book = _after(book, plans, policy)
    _, after = _pools(after_book)
    # No leg grows or flips, and what is not in a plan stays.
    left, size = after_book.positions.size, book.positions.size
    assert (np.abs(left) <= np.abs(size)).all()
    assert (left * size >= 0.0).all()
    cut = {step.row for plan in plans for step in plan.steps}
    assert all(left[place] == size[place] for place in range(len(size)) if place not in cut)
    short = {
        name
        for name, missing in zip(names, before.initial_margin_usd - before.equity_usd, strict=True)
        if missing > 0.0
    }
    assert {_name(plan) for plan in plans} == short
    everything = np.bincount(
        [row[_pool_of(book, place)] for place in range(len(size))],
        np.abs(size) * book.positions.mark_price,
        len(names),
    )
    for plan in plans:
        place = row[_name(plan)]
        # Closing all of it restores the target wherever there is equity to pay for that.
        if before.equity_usd[place] >= policy.closing_cost * everything[place]:
            assert plan.feasible, plan.to_dict()
        if not plan.feasible:
            continue
        assert after.equity_usd[place] >= after.initial_margin_usd[place] - CENT
        assert plan.steps[-1].initial_margin_usd == pytest.approx(after.initial_margin_usd[place], abs=CENT)
        assert plan.steps[-1].equity_usd == pytest.approx(after.equity_usd[place], abs=CENT)
        assert all(step.reasons for step in plan.steps)
        # Minimal: with 1 % less of the last cut, or of all that any leg gives up, the target is missed.
        shorter = [_scaled(plan, plan.steps[-1].number, 0.99)]
        for leg in {step.row for step in plan.steps}:
            steps = [replace(step, size=step.size * 0.99) if step.row == leg else step for step in plan.steps]
            shorter.append(replace(plan, steps=tuple(steps)))
        for less in shorter:
            _, missed = _pools(_after(book, [less], policy))
            assert missed.equity_usd[place] < missed.initial_margin_usd[place]
    return sum(plan.feasible for plan in plans), sum(len(plan.steps) for plan in plans)


@pytest.mark.parametrize(
    ("seed", "policy"),
    [
        (0, BREAKER),
        (1, BreakerPolicy(cut_order="notional")),
        (2, BreakerPolicy(step_fraction=1.0, min_step_usd=0.0, closing_cost=0.0)),
    ],
)
def test_a_plan_restores_the_target_to_the_cent_and_nothing_less_would(
    seed: int, policy: BreakerPolicy
) -> None:
    plans, steps = _check_book(_random_book(seed, 4), policy)
    assert plans >= 4
    assert steps > plans


@pytest.mark.slow
def test_two_hundred_random_accounts_get_a_minimal_plan() -> None:
    found = np.array([_check_book(_random_book(100 + seed, 10), BREAKER) for seed in range(20)])
    assert found[:, 0].sum() > 200
    assert found[:, 1].sum() > 600


def test_the_largest_contribution_goes_first_and_hedges_stay() -> None:
    book = AccountBook.from_dicts(
        [
            account(
                "a",
                5_000.0,
                position("BTC", 100_000.0),
                position("SOL", 20_000.0),
                position("ETH", -50_000.0),
            )
        ]
    )
    (plan,) = _plans(book)
    assert plan.feasible
    assert {step.symbol for step in plan.steps} == {"BTC"}
    assert [reason_names(step.reasons) for step in plan.steps] == [
        *[["equity-below-initial", "largest-contribution", "step-limit"]] * (len(plan.steps) - 1),
        ["equity-below-initial", "largest-contribution", "restores-target"],
    ]
    assert all(step.size < 0.0 for step in plan.steps)
    assert json.loads(json.dumps(plan.to_dict()))["steps"][0]["reasons"][0] == "equity-below-initial"


def test_the_order_of_cuts_is_the_policys() -> None:
    # BTC carries most of the risk, SOL most of it per USD.
    book = AccountBook.from_dicts(
        [account("a", 7_800.0, position("BTC", 100_000.0), position("SOL", 40_000.0))]
    )
    (largest,) = _plans(book)
    (dearest,) = _plans(book, BreakerPolicy(cut_order="notional"))
    assert (largest.steps[0].symbol, dearest.steps[0].symbol) == ("BTC", "SOL")
    assert largest.feasible
    assert dearest.feasible
    assert dearest.notional_usd < largest.notional_usd


def test_a_hedged_book_is_cut_less_than_the_same_legs_unhedged() -> None:
    rng = np.random.default_rng(3)
    saved = []
    for _ in range(5):
        long, short = (float(rng.uniform(40_000.0, 100_000.0)) for _ in range(2))
        cash = 0.04 * (long + short) * float(rng.uniform(0.3, 0.9))
        hedged, unhedged = (
            account(name, cash, position("BTC", long), position("ETH", side * short))
            for name, side in (("hedged", -1.0), ("unhedged", 1.0))
        )
        plans = {
            plan.account_id: plan.notional_usd for plan in _plans(AccountBook.from_dicts([hedged, unhedged]))
        }
        assert plans["unhedged"] > 0.0
        assert plans.get("hedged", 0.0) < plans["unhedged"]
        saved.append(1.0 - plans.get("hedged", 0.0) / plans["unhedged"])
    assert np.mean(saved) > 0.2


def test_legs_that_hedge_each_other_are_closed_in_proportion_only_when_nothing_else_helps() -> None:
    # Long on one venue, short on the other: closing either alone uncovers the other.
    book = AccountBook.from_dicts(
        [account("a", 900.0, position("BTC", 60_000.0), position("BTC", -60_000.0, venue="hyperliquid"))]
    )
    (plan,) = _plans(book)
    assert plan.feasible
    assert all("proportional-cut" in reason_names(step.reasons) for step in plan.steps)
    first = [step for step in plan.steps if step.number == 1]
    assert [step.venue for step in first] == ["sim", "hyperliquid"]
    assert first[0].size == pytest.approx(-first[1].size)
    left = _after(book, [plan]).positions.size
    assert left.sum() == pytest.approx(0.0, abs=1e-12)


def test_an_isolated_leg_restores_its_own_pool_and_no_other() -> None:
    isolated = {"margin_mode": "isolated", "isolated_margin_usd": 500.0}
    poor = account("a", 50_000.0, position("ETH", 40_000.0), position("BTC", 20_000.0, **isolated))
    book = AccountBook.from_dicts([poor])
    (plan,) = _plans(book)
    assert (plan.pool, plan.feasible) == ("sim:BTC", True)
    assert {step.row for step in plan.steps} == {1}
    rich_isolated = account(
        "a",
        500.0,
        position("ETH", 40_000.0),
        position("BTC", 20_000.0, **{**isolated, "isolated_margin_usd": 20_000.0}),
    )
    (plan,) = _plans(AccountBook.from_dicts([rich_isolated]))
    assert plan.pool == "cross"
    assert {step.symbol for step in plan.steps} == {"ETH"}


def test_a_step_is_bounded_by_fraction_and_by_liquidity() -> None:
    book = AccountBook.from_dicts([account("a", 2_000.0, position("BTC", 100_000.0))])
    (plan,) = _plans(book, BreakerPolicy(step_fraction=0.1))
    assert max(step.notional_usd for step in plan.steps) == pytest.approx(10_000.0)
    thin = {"BTC": 100_000.0}
    (plan,) = _plans(book, liquidity_usd=thin)
    assert max(step.notional_usd for step in plan.steps) == pytest.approx(5_000.0)
    assert "size-against-liquidity" in reason_names(plan.steps[0].reasons)
    small = AccountBook.from_dicts([account("a", 10.0, position("BTC", 900.0))])
    (plan,) = _plans(small)
    assert len(plan.steps) == 1  # less than min_step_usd is not cut up


def test_what_cannot_be_restored_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = AccountBook.from_dicts([account("a", 2_000.0, position("BTC", 100_000.0))])
    (plan,) = _plans(stuck, liquidity_usd={"BTC": 0.0})
    assert (plan.feasible, plan.steps) == (False, ())
    assert "deleverage-infeasible" in reason_names(plan.reasons)
    isolated = {"margin_mode": "isolated", "isolated_margin_usd": 10.0, "entry_price": 70_000.0}
    for broke in (
        account("a", -100.0, position("BTC", 10_000.0)),
        account("a", 0.0, position("BTC", 10_000.0, **isolated)),
    ):
        book = AccountBook.from_dicts([broke])
        for target in ("initial", "maintenance", "probability"):
            (plan,) = _plans(book, BreakerPolicy(target=target))
            assert not plan.feasible
            assert sum(step.notional_usd for step in plan.steps) == pytest.approx(10_000.0)
    monkeypatch.setattr("riskml.risk.deleverage_search.MAX_STEPS", 20)
    thin = AccountBook.from_dicts([account("a", 600.0, position("BTC", 1_000_000.0))])
    (plan,) = _plans(thin, liquidity_usd={"BTC": 100.0})
    assert (plan.feasible, len({step.number for step in plan.steps})) == (False, 20)


def test_a_probability_can_be_the_target() -> None:
    book = AccountBook.from_dicts([account("a", 2_500.0, position("BTC", 100_000.0))])
    policy = BreakerPolicy(target="probability", target_probability=0.02)
    assert score(book).liquidation_probability[0, 1] > 0.3
    (plan,) = _plans(book, policy)
    after = score(_after(book, [plan], policy)).liquidation_probability[0, 1]
    assert after == pytest.approx(0.02, rel=1e-6)
    assert after <= 0.02
    missed = score(_after(book, [_scaled(plan, plan.steps[-1].number, 0.99)], policy))
    assert missed.liquidation_probability[0, 1] > 0.02
    assert "probability-deleverage" in reason_names(plan.steps[0].reasons)
    # From certain liquidation as well.
    sunk = AccountBook.from_dicts([account("a", 500.0, position("BTC", 100_000.0))])
    assert score(sunk).liquidation_probability[0, 1] == 1.0
    (plan,) = _plans(sunk, policy)
    assert plan.feasible
    assert score(_after(sunk, [plan], policy)).liquidation_probability[0, 1] == pytest.approx(0.02, rel=1e-6)


def test_open_orders_are_cancelled_before_anything_is_closed() -> None:
    order = {"venue": "sim", "symbol": "ETH", "size": 20.0, "price": 3_000.0}
    close = {"venue": "sim", "symbol": "BTC", "size": -0.1, "price": 60_000.0, "reduce_only": True}
    held = position("BTC", 20_000.0)
    need = float(score(AccountBook.from_dicts([account("a", 9_000.0, held)])).initial_margin_usd[0])
    book = AccountBook.from_dicts([account("a", need + 1.0, held, orders=[order, close])])
    assert score(book).initial_margin_usd[0] > need + 1.0
    (plan,) = _plans(book)
    assert (plan.cancel_orders, plan.steps, plan.feasible) == (True, (), True)
    assert "open-orders" in reason_names(plan.reasons)
    after = _after(book, [plan])
    assert after.orders.reduce_only.tolist() == [True]
    assert score(after).initial_margin_usd[0] == need


def test_only_accounts_that_are_to_deleverage_get_a_plan() -> None:
    poor = account("poor", 300.0, position("BTC", 100_000.0))
    tight = account("tight", 6_000.0, position("BTC", 100_000.0))
    book = AccountBook.from_dicts([tight, poor, account("rich", 90_000.0, position("BTC", 100_000.0))])
    assert score(book).action.tolist() == [2, 3, 0]
    (plan,) = deleverage_plans(book, score, BREAKER)
    assert (plan.account_id, {step.row for step in plan.steps}) == ("poor", {1})
    assert [plan.account_id for plan in _plans(book)] == ["tight", "poor"]
    assert deleverage_plans(book, score, BREAKER, accounts=["rich"]) == []
    assert deleverage_plans(book, score, BREAKER, accounts=[]) == []


def test_the_venues_maintenance_and_an_unstated_margin_move_with_the_cut() -> None:
    held = position("BTC", 100_000.0, entry_price=66_000.0)
    lone = position("ETH", 30_000.0, margin_mode="isolated", entry_price=3_050.0)
    book = AccountBook.from_dicts([account("a", 15_500.0, held, lone, maintenance_margin_usd=1_300.0)])
    plans = _plans(book)
    assert {plan.pool for plan in plans} == {"cross", "sim:ETH"}
    after = _after(book, plans)
    names, pools = _pools(after)
    assert (pools.equity_usd >= pools.initial_margin_usd - CENT).all(), names
    left = (np.abs(after.positions.size) * [PRICES["BTC"], PRICES["ETH"]]).sum()
    assert after.maintenance_margin_usd[0] == pytest.approx(1_300.0 * left / 130_000.0)
    closed = sum(plan.notional_usd for plan in plans)
    assert score(after).equity_usd[0] == pytest.approx(
        score(book).equity_usd[0] - BREAKER.closing_cost * closed
    )


def test_pools_add_up_to_what_the_engine_asks_of_the_account() -> None:
    book = _random_book(9, 40)
    stated = np.where(np.arange(40) % 2 == 0, 2_000.0, np.nan)
    book = replace(book, maintenance_margin_usd=stated)
    whole = score(book)
    mark = book.positions.mark_price
    pools = split_pools(book, mark, whole.collateral_usd)
    apart = score(pools.book)
    for name in ("initial_margin_usd", "maintenance_margin_usd", "equity_usd", "barrier_margin_usd"):
        summed = np.bincount(pools.owner, getattr(apart, name), len(book))
        np.testing.assert_allclose(summed, getattr(whole, name), atol=0.1)
    likeliest = np.zeros(len(book))
    np.maximum.at(likeliest, pools.owner, apart.liquidation_probability[:, 1])
    np.testing.assert_allclose(likeliest, whole.liquidation_probability[:, 1], atol=1e-9)
    some, rows = select_accounts(book, np.array([7, 3]))
    np.testing.assert_allclose(score(some).initial_margin_usd, whole.initial_margin_usd[[7, 3]])
    assert set(book.positions.account[rows].tolist()) <= {3, 7}


@pytest.mark.parametrize("target", ["initial", "maintenance", "probability"])
def test_a_feed_that_falls_silent_changes_no_plan(target: str) -> None:
    rng = np.random.default_rng(12)
    policy = BreakerPolicy(target=target, step_fraction=0.5)
    accounts = [random_account(rng, f"a{number}", cushion=(0.1, 1.2)) for number in range(12)]
    for one in accounts:
        chain = str(rng.choice(["arbitrum", "hyperliquid", "ethereum"]))
        moving = {"chain": chain, "asset": "ETH", "amount": 1.0, "price_usd": PRICES["ETH"]}
        pegged = {"chain": "arbitrum", "asset": "USDC", "amount": one["cash_usd"] + 1.0, "price_usd": 1.0}
        one["collateral"] = [pegged] + ([moving] if rng.random() < 0.5 else [])
    book = AccountBook.from_dicts(accounts)
    stress = dict.fromkeys(("arbitrum", "hyperliquid", "ethereum"), 0.7)

    def judge(silent: float) -> Callable[[AccountBook], Decisions]:
        ages = dict.fromkeys(stress, silent)
        return lambda part: score(part, conditions=Conditions(chain_stress=stress, chain_age_us=ages))

    heard, silent = judge(0.0), judge(np.inf)
    names = [str(name) for name in book.account_id]
    plans = [deleverage_plans(book, engine, policy, accounts=names) for engine in (heard, silent)]
    assert len(plans[0]) > 5
    assert sum(len(plan.steps) for plan in plans[0]) > 5
    assert plans[0] == plans[1]
    before, after = heard(book), silent(book)
    # It withholds from nearly all of them, in the initial margin alone, and orders none to be cut.
    assert (after.initial_margin_usd > before.initial_margin_usd + 1.0).sum() > 8
    np.testing.assert_array_equal(after.deleverage_margin_usd, before.initial_margin_usd)
    np.testing.assert_array_equal(after.maintenance_margin_usd, before.maintenance_margin_usd)
    np.testing.assert_array_equal(after.action == DELEVERAGE, before.action == DELEVERAGE)


def test_a_cut_moves_no_margin_of_another_position_that_is_not_published() -> None:
    isolated = {"margin_mode": "isolated", "entry_price": 62_000.0}
    held = position("BTC", 20_000.0, venue="hyperliquid", **isolated)
    book = AccountBook.from_dicts([account("a", 9_000.0, held, position("ETH", 200_000.0))])
    names, before = _pools(book)
    plans = [plan for plan in _plans(book) if plan.pool == "cross"]
    assert plans[0].steps
    _, after = _pools(_after(book, plans))
    place = names.index("a|hyperliquid:BTC")
    assert after.equity_usd[place] == pytest.approx(before.equity_usd[place], rel=1e-12)
    cost = BREAKER.closing_cost * plans[0].notional_usd
    assert after.equity_usd[0] == pytest.approx(before.equity_usd[0] - cost, rel=1e-12)


def test_misuse_is_named() -> None:
    book = AccountBook.from_dicts([account("a", 2_000.0, position("BTC", 100_000.0))])
    with pytest.raises(DataError, match="account 'b' is not in the book"):
        _plans(book, accounts=["b"])
    with pytest.raises(DataError, match="market 'BTC': a liquidity has to be >= 0, found -1"):
        _plans(book, liquidity_usd={"BTC": -1.0})
    for bad in (-1.0, np.nan):
        with pytest.raises(DataError, match=f"unknown_liquidity_usd has to be >= 0, found {bad}"):
            _plans(book, unknown_liquidity_usd=bad)
    with pytest.raises(ConfigError, match="the breaker policy's horizon is '4h'"):
        _plans(book, BreakerPolicy(horizon="4h"))
    plans = _plans(book)
    other = AccountBook.from_dicts([account("a", 2_000.0, position("BTC", 10_000.0))])
    with pytest.raises(DataError, match="does not fit the position. Fix: apply a plan to the book"):
        _after(other, plans)
    assert len(without_orders(book).orders.size) == 0
