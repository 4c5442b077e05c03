"""What an order may do in each state of its market; an order that reduces risk is never refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk import AccountBook
from riskml.risk.breaker import HALT, NORMAL, RESTRICT, WATCH, BreakerState, MarketSignals, step
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.order_check import OrderCheck, check_orders

from .breaker_cases import PRICES, TS, account, position, random_account, score

POLICY = BreakerPolicy()


def _state(level: int, markets: tuple[str, ...] = (*PRICES, "NEW")) -> BreakerState:
    stress = {NORMAL: 0.0, WATCH: 0.05, RESTRICT: 0.10, HALT: 0.20}[level]
    calm = np.zeros(len(markets))
    signals = MarketSignals(TS, markets, np.full(len(markets), stress), calm, calm, calm, calm > 0.0)
    return step(None, signals, POLICY)


def _order(symbol: str, usd: float, name: str = "a", venue: str = "sim", **more: Any) -> dict[str, Any]:
    price = PRICES.get(symbol, 2.0)
    return {"account_id": name, "venue": venue, "symbol": symbol, "size": usd / price, "price": price, **more}


def _check(
    accounts: list[dict[str, Any]], orders: list[dict[str, Any]], level: int, **more: Any
) -> OrderCheck:
    names = dict.fromkeys(key for order in orders for key in order)
    columns = {name: [order.get(name) for order in orders] for name in names}
    return check_orders(AccountBook.from_dicts(accounts), columns, score, _state(level), POLICY, **more)


def _outcome(found: OrderCheck, row: int = 0) -> tuple[bool, list[str]]:
    entry = found.to_dicts()[row]
    return entry["allowed"], entry["reasons"]


@pytest.mark.parametrize(
    ("level", "opens", "grows", "flips"),
    [
        (NORMAL, ["within-limits"], ["within-limits"], ["within-limits"]),
        (WATCH, ["within-limits"], ["within-limits"], ["within-limits"]),
        (
            RESTRICT,
            ["market-stress", "entries-paused"],
            ["within-limits"],
            ["market-stress", "entries-paused"],
        ),
        (
            HALT,
            ["market-stress", "market-halted", "entries-paused"],
            ["market-stress", "market-halted"],
            ["market-stress", "market-halted", "entries-paused"],
        ),
    ],
)
def test_states_pause_entries_first_and_growth_next(
    level: int, opens: list[str], grows: list[str], flips: list[str]
) -> None:
    rich = account("a", 50_000.0, position("BTC", 10_000.0))
    found = _check([rich], [_order("ETH", 5_000.0), _order("BTC", 5_000.0), _order("BTC", -30_000.0)], level)
    assert [_outcome(found, row)[1] for row in range(3)] == [
        opens,
        grows,
        flips,
    ]
    assert found.market_state.tolist() == [level] * 3


def test_every_state_lets_a_reduction_pass_as_reduce_only_and_a_hedge() -> None:
    poor = account("a", 3_000.0, position("BTC", 100_000.0))
    orders = [
        _order("BTC", -1_000.0),
        _order("BTC", -100_000.0),
        _order("ETH", -5_000.0),
        _order("BTC", -500_000.0, reduce_only=True),
        _order("SOL", 5_000.0, reduce_only=True),
        _order("BTC", -220_000.0),  # flips to more than it was
        _order("ETH", 5_000.0),
    ]
    found = _check([poor], orders, HALT)
    assert found.allowed.tolist() == [True, True, True, True, True, False, False]
    assert found.reduce_only.tolist() == [False, False, False, False, False, False, False]
    assert _outcome(found, 2)[1] == ["lowers-requirement"]
    assert _outcome(found, 1)[1] == ["reduces-position", "lowers-requirement"]
    hedged = account("b", 3_000.0, position("BTC", 100_000.0), position("ETH", -20_000.0))
    unhedging = _check([hedged], [_order("ETH", 20_000.0, "b")], HALT)
    assert _outcome(unhedging) == (True, ["reduces-position"])
    assert unhedging.reduce_only.tolist() == [True]


def test_a_restricted_account_may_only_reduce() -> None:
    poor = account("a", 3_000.0, position("BTC", 100_000.0))
    found = _check([poor], [_order("SOL", 5_000.0), _order("BTC", -10.0)], NORMAL)
    assert _outcome(found) == (False, ["equity-below-initial", "account-restricted"])
    assert _outcome(found, 1)[0]
    fine = account("a", 90_000.0, position("BTC", 10_000.0))
    held = score(AccountBook.from_dicts([fine]), previous={"a": (2, TS)})
    assert _outcome(_check([fine], [_order("SOL", 10.0)], NORMAL, decisions=held)) == (
        False,
        ["account-restricted"],
    )


def test_an_order_beyond_initial_margin_is_refused_and_open_orders_count() -> None:
    fine = account("a", 10_000.0)
    need = float(
        score(AccountBook.from_dicts([account("a", 10_000.0, position("BTC", 50_000.0))])).initial_margin_usd[
            0
        ]
    )
    most = 50_000.0 * 10_000.0 / need
    found = _check([fine], [_order("BTC", 0.99 * most), _order("BTC", 1.01 * most)], NORMAL)
    assert found.allowed.tolist() == [True, False]
    assert _outcome(found, 1)[1] == ["equity-below-initial"]
    resting = [{name: value for name, value in _order("BTC", 0.5 * most).items() if name != "account_id"}]
    busy = _check([account("a", 10_000.0, orders=resting)], [_order("BTC", 0.6 * most)], NORMAL)
    assert not busy.allowed[0]


def test_isolated_leverage_is_tightened_by_state() -> None:
    def allowed(level: int, leverage: float, **more: Any) -> bool:
        held = position("BTC", 10_000.0, margin_mode="isolated", isolated_margin_usd=10_000.0)
        order = _order("BTC", 10_000.0 * leverage - 10_000.0)
        return bool(_check([account("a", 50_000.0, held)], [order], level, **more).allowed[0])

    alone = account("a", 0.0, position("BTC", 10_000.0, margin_mode="isolated", isolated_margin_usd=10_000.0))
    limit = 10_000.0 / float(score(AccountBook.from_dicts([alone])).initial_margin_usd[0])
    for level, share in ((NORMAL, 1.0), (WATCH, POLICY.leverage_watch), (RESTRICT, POLICY.leverage_restrict)):
        assert allowed(level, 0.99 * share * limit)
        assert not allowed(level, 1.01 * share * limit)
        assert allowed(level, 0.99 * share * 4.0, max_leverage={"BTC": 4.0})
        assert not allowed(level, 1.01 * share * 4.0, max_leverage={"sim:BTC": 4.0, "BTC": 9.0})
    assert not allowed(HALT, 1.01)


def test_an_isolated_entry_brings_its_margin_from_cash() -> None:
    isolated = {"margin_mode": "isolated"}
    rich = account("a", 20_000.0, position("ETH", 100_000.0))
    orders = [
        _order("BTC", 10_000.0, **isolated, isolated_margin_usd=5_000.0),
        _order("BTC", 10_000.0, **isolated, isolated_margin_usd=400.0),  # too little for it
        _order("BTC", 10_000.0, **isolated, isolated_margin_usd=15_000.0),  # too much for the cross pool
    ]
    found = _check([rich], orders, NORMAL)
    assert [_outcome(found, row) for row in range(3)] == [
        (True, ["within-limits"]),
        (False, ["equity-below-initial", "isolated-leverage"]),
        (False, ["equity-below-initial"]),
    ]
    unknown = _check([rich], [_order("BTC", 10_000.0, **isolated)], NORMAL)
    assert "isolated-margin-unknown" in _outcome(unknown)[1]


def test_an_order_in_a_market_without_a_state_is_refused() -> None:
    found = check_orders(
        AccountBook.from_dicts([account("a", 50_000.0)]),
        {name: [value] for name, value in _order("NEW", 100.0).items()},
        score,
        _state(NORMAL, ("BTC",)),
        POLICY,
    )
    assert _outcome(found) == (False, ["unknown-market", "market-halted", "entries-paused"])


def test_unusable_orders_are_refused_with_their_place() -> None:
    rich = [account("a", 50_000.0, position("BTC", 10_000.0))]
    for order, message in (
        (_order("BTC", 10.0, "x"), "table 'orders', row 0: account 'x' is not among the accounts"),
        (_order("BTC", np.nan), "table 'orders', market 'BTC', row 0: size has to be a finite number"),
        (_order("ETH", 10.0, margin_mode="isolatd"), "margin_mode is 'isolatd'. Did you mean 'isolated'"),
        (
            _order("ETH", 10.0, isolated_margin_usd=-1.0),
            "isolated_margin_usd has to be finite and >= 0, found -1.0",
        ),
        (
            _order("BTC", 10.0, isolated_margin_usd=1.0),
            "market 'BTC', row 0: the order brings isolated_margin_usd",
        ),
    ):
        with pytest.raises(DataError, match=message):
            _check(rich, [order], NORMAL)
    assert len(_check(rich, [_order("BTC", 0.0)], HALT)) == 1


def _slow_fill(one: dict[str, Any], order: dict[str, Any], name: str) -> tuple[bool, dict[str, Any]]:
    """Whether an order reduces its position, and the account after it, the slow way."""
    held = {(item["venue"], item["symbol"]): item for item in one["positions"]}
    key, price = (order["venue"], order["symbol"]), PRICES.get(order["symbol"], 2.0)
    old = held.get(key, {"size": 0.0, "entry_price": price})
    new = old["size"] + order["size"]
    profit, cash = old["size"] * (price - old["entry_price"]), one["cash_usd"]
    filled = {"venue": key[0], "symbol": key[1], "size": new, "mark_price": price}
    if "margin_mode" in old:
        # A margin that the loss uses up cannot be stated: nothing, and what is missing is no one's.
        filled |= {
            "margin_mode": "isolated",
            "isolated_margin_usd": max(old["isolated_margin_usd"] + profit, 0.0),
        }
    else:
        cash += profit
    kept = [item for item in one["positions"] if (item["venue"], item["symbol"]) != key]
    after = {**one, "account_id": name, "cash_usd": cash, "positions": [*kept, filled]}
    return old["size"] != 0.0 and abs(new) <= abs(old["size"]) and old["size"] * new >= 0.0, after


def _slow_rules(accounts: list[dict[str, Any]], orders: list[dict[str, Any]]) -> np.ndarray:
    """[n_orders, 2]: reduces the position, does not raise the account's requirement."""
    row = {one["account_id"]: number for number, one in enumerate(accounts)}
    owner = [row[order["account_id"]] for order in orders]
    pairs = [
        _slow_fill(accounts[place], order, str(number))
        for number, (place, order) in enumerate(zip(owner, orders, strict=True))
    ]
    before = score(AccountBook.from_dicts(accounts))
    after = score(AccountBook.from_dicts([made for _, made in pairs]))
    lowers = (after.initial_margin_usd <= before.initial_margin_usd[owner]) & (
        after.maintenance_margin_usd <= before.maintenance_margin_usd[owner]
    )
    return np.stack([np.array([reduces for reduces, _ in pairs]), lowers], axis=1)


def _random_orders(rng: np.random.Generator, one: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Orders of which six in ten are against a position, to close a part, all or more of it."""
    orders = []
    for _ in range(number):
        held = one["positions"]
        if held and rng.random() < 0.6:
            item = held[int(rng.integers(len(held)))]
            symbol, venue = item["symbol"], item["venue"]
            usd = -item["size"] * PRICES.get(symbol, 2.0) * float(rng.choice([0.1, 0.5, 1.0, 1.5]))
        else:
            symbol, venue = str(rng.choice([*PRICES, "NEW"])), str(rng.choice(["sim", "hyperliquid"]))
            usd = float(rng.normal() * 5e3)
        orders.append(_order(symbol, usd, one["account_id"], venue))
    return orders


def test_an_order_that_reduces_risk_is_never_refused_in_any_state() -> None:
    rng = np.random.default_rng(5)
    accounts = [random_account(rng, f"a{number}", cushion=(0.3, 3.0)) for number in range(100)]
    orders = [order for one in accounts for order in _random_orders(rng, one, 5)]
    slow = _slow_rules(accounts, orders)
    checks = [_check(accounts, orders, level) for level in (NORMAL, WATCH, RESTRICT, HALT)]
    safe = slow.any(axis=1)
    assert 100 < slow[:, 0].sum() < 450
    assert (slow[:, 1] & ~slow[:, 0]).sum() > 30
    for found in checks:
        assert found.allowed[safe].all()
        assert (found.reasons > 0).all()
    # A halted market lets nothing else pass, and a worse state never allows more.
    np.testing.assert_array_equal(checks[HALT].allowed, safe)
    for milder, worse in pairwise(checks):
        assert not (worse.allowed & ~milder.allowed).any()
    assert checks[NORMAL].allowed.sum() > checks[RESTRICT].allowed.sum() > checks[HALT].allowed.sum()


@pytest.mark.slow
def test_ten_thousand_random_reductions_are_never_refused() -> None:
    rng = np.random.default_rng(6)
    accounts = [random_account(rng, f"a{number}", cushion=(0.2, 3.0)) for number in range(2_600)]
    orders = [order for one in accounts for order in _random_orders(rng, one, 10)]
    sizes = {
        (one["account_id"], item["venue"], item["symbol"]): item["size"]
        for one in accounts
        for item in one["positions"]
    }
    held = np.array(
        [sizes.get((order["account_id"], order["venue"], order["symbol"]), 0.0) for order in orders]
    )
    traded = np.array([order["size"] for order in orders])
    reduces = (held * traded < 0.0) & (np.abs(traded) <= np.abs(held))
    found = _check(accounts, orders, HALT)
    assert reduces.sum() > 10_000
    assert found.allowed[reduces].all()
    assert found.allowed.mean() < 0.9
