"""What an order may do in each state of its market; an order that reduces risk is never refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk import AccountBook, Decisions
from riskml.risk.accounts import Orders
from riskml.risk.breaker import HALT, NORMAL, RESTRICT, WATCH, BreakerState, MarketSignals, step
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.risk.order_check import OrderCheck, check_orders
from riskml.risk.order_fills import Fills
from riskml.risk.pool_books import split_pools

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
    # A reduce-only order without a position does nothing, so that it lowers nothing either.
    assert found.reduce_only.tolist() == [False, False, False, False, True, False, False]
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
    """[n_orders, 2]: reduces the position, lowers the account's requirement (by cents: orders are large)."""
    row = {one["account_id"]: number for number, one in enumerate(accounts)}
    owner = [row[order["account_id"]] for order in orders]
    pairs = [
        _slow_fill(accounts[place], order, str(number))
        for number, (place, order) in enumerate(zip(owner, orders, strict=True))
    ]
    before = score(AccountBook.from_dicts(accounts))
    after = score(AccountBook.from_dicts([made for _, made in pairs]))
    change = np.stack(
        [
            after.initial_margin_usd - before.initial_margin_usd[owner],
            after.maintenance_margin_usd - before.maintenance_margin_usd[owner],
        ]
    )
    lowers = (change <= 0.0).all(axis=0) & (change < 0.0).any(axis=0)
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


def _one_sided_account(rng: np.random.Generator, name: str, side: float) -> dict[str, Any]:
    """Positions on one side only, in markets that move together: more on that side hedges nothing."""
    held = []
    for symbol in PRICES:
        for venue in ("sim", "hyperliquid"):
            if rng.random() < 0.4:
                more = {"margin_mode": "isolated"} if rng.random() < 0.3 else {}
                if more and rng.random() < 0.5:
                    more["isolated_margin_usd"] = 5_000.0
                held.append(position(symbol, side * 10.0 ** rng.uniform(2.0, 8.0), venue=venue, **more))
    return account(name, 10.0 ** rng.uniform(3.0, 8.0), *held)


def test_an_order_that_adds_exposure_passes_no_halt_however_small_it_is() -> None:
    rng = np.random.default_rng(8)
    accounts, orders = [], []
    for number in range(500):
        side = float(rng.choice([-1.0, 1.0]))
        accounts.append(_one_sided_account(rng, f"a{number}", side))
        for _ in range(20):
            symbol, size = str(rng.choice(list(PRICES))), 10.0 ** rng.uniform(-9.0, 1.0)
            venue = str(rng.choice(["sim", "hyperliquid"]))
            orders.append(_order(symbol, side * size * PRICES[symbol], f"a{number}", venue))
    halted = _check(accounts, orders, HALT)
    assert len(halted) == 10_000
    assert not halted.allowed.any()
    # To open a position is not to enlarge one, and a restricted market pauses the former at any size.
    held = {
        (one["account_id"], item["venue"], item["symbol"]) for one in accounts for item in one["positions"]
    }
    opens = np.array([(order["account_id"], order["venue"], order["symbol"]) not in held for order in orders])
    assert opens.sum() > 4_000
    assert not _check(accounts, orders, RESTRICT).allowed[opens].any()


def test_a_small_order_passes_a_halt_only_where_a_larger_one_lowers_the_requirement() -> None:
    rng = np.random.default_rng(9)
    accounts = [random_account(rng, f"a{number}", cushion=(1.0, 3.0)) for number in range(300)]
    large, small = [], []
    for one in accounts:
        for _ in range(8):
            symbol, venue = str(rng.choice([*PRICES, "NEW"])), str(rng.choice(["sim", "hyperliquid"]))
            side, price = float(rng.choice([-1.0, 1.0])), PRICES.get(symbol, 2.0)
            large.append(_order(symbol, 10.0 * side, one["account_id"], venue))
            size = 10.0 ** rng.uniform(-9.0, -3.0)
            small.append(_order(symbol, side * size * price, one["account_id"], venue))
    found, tenner = _check(accounts, small, HALT), _check(accounts, large, HALT)
    by_position = np.array(["reduces-position" in row["reasons"] for row in found.to_dicts()])
    # Requirements are convex but for a hundredth: what ten dollars do not lower, less does not, unless a kink
    # (a cap, another correlation that is the worst) lies between.
    alone = np.flatnonzero(found.allowed & ~tenner.allowed)
    assert len(alone) <= 2
    assert all(found.to_dicts()[row]["reasons"] == ["lowers-requirement"] for row in alone)
    assert (found.allowed & ~by_position).sum() > 100
    assert (~found.allowed).sum() > 500


def test_what_is_withheld_for_a_stale_chain_lets_no_order_pass_a_halt() -> None:
    # More exposure on the stale chain lets its collateral serve more, so that the initial margin falls.
    stale = Conditions(chain_age_us={"arbitrum": np.inf})
    held = [{"chain": "arbitrum", "asset": "USDC", "amount": 50_000.0, "price_usd": 1.0}]
    away = position("ETH", -40_000.0, venue="hyperliquid")
    resting = [
        {
            name: value
            for name, value in _order("ETH", 25_000.0, venue="hyperliquid").items()
            if name != "account_id"
        }
    ]

    def judge(part: AccountBook) -> Decisions:
        return score(part, conditions=stale)

    def accounts(usd: float) -> AccountBook:
        here = position("ETH", usd)
        return AccountBook.from_dicts([account("a", 90_000.0, here, away, collateral=held, orders=resting)])

    before, after = (judge(accounts(usd)) for usd in (6_000.0, 14_000.0))
    assert after.initial_margin_usd < before.initial_margin_usd
    assert after.maintenance_margin_usd < before.maintenance_margin_usd
    assert after.deleverage_margin_usd > before.deleverage_margin_usd  # the open order hedges no more
    order = {name: [value] for name, value in _order("ETH", 8_000.0).items()}
    found = check_orders(accounts(6_000.0), order, judge, _state(HALT), POLICY)
    assert _outcome(found) == (False, ["market-stress", "market-halted"])


def test_a_fill_at_the_mark_changes_nothing_else_in_the_account() -> None:
    rng = np.random.default_rng(10)
    accounts = [random_account(rng, f"a{number}", cushion=(0.5, 3.0)) for number in range(300)]
    for one in accounts:
        one["collateral"] = []  # a new venue can bring it nearer, which is a change of its own
        for item in one["positions"]:
            if rng.random() < 0.6 and "isolated_margin_usd" in item:
                del item["isolated_margin_usd"]
    orders = [order for one in accounts for order in _random_orders(rng, one, 6)]
    book = AccountBook.from_dicts(accounts)
    row = {str(name): place for place, name in enumerate(book.account_id)}
    wanted = Orders(
        np.array([row[order["account_id"]] for order in orders]),
        *(np.array([order[name] for order in orders], dtype=object) for name in ("venue", "symbol")),
        *(np.array([order[name] for order in orders]) for name in ("size", "price")),
        np.zeros(len(orders), dtype=np.bool_),
    )
    before = score(book)
    nothing = np.full(len(orders), np.nan)
    fills = Fills.of(book, wanted, book.margin_mode[wanted.account], nothing, {}, before.collateral_usd)
    after = score(fills.book)
    np.testing.assert_allclose(after.equity_usd, before.equity_usd[wanted.account], rtol=1e-9, atol=1e-6)
    known = split_pools(book, book.positions.mark_price, before.collateral_usd).book
    now = split_pools(fills.book, fills.mark, after.collateral_usd).book
    margins = {
        str(name): float(margin)
        for name, margin in zip(known.account_id, _pool_margin(known), strict=True)
        if "|" in str(name)
    }
    seen = 0
    for name, margin in zip(now.account_id, _pool_margin(now), strict=True):
        number, _, pool = str(name).partition("|")
        if not pool:
            continue
        order = orders[int(number)]
        was = margins.get(f"{order['account_id']}|{pool}")
        if was is not None:
            assert margin == pytest.approx(was, rel=1e-9, abs=1e-6)
            seen += 1
    assert seen > 1_000


def _pool_margin(pools: AccountBook) -> np.ndarray:
    """Equity of each isolated pool [n_accounts], 0 for the cross pools."""
    margin = np.zeros(len(pools))
    alone = pools.positions.isolated
    margin[pools.positions.account[alone]] = pools.positions.isolated_margin_usd[alone]
    return margin


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
