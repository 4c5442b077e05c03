"""Profit in a depegged stablecoin offsets a loss elsewhere at what it is worth, and changes nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.risk import AccountBook, MarginPolicy, decide, numpy_law
from riskml.risk.breaker import MarketSignals, step
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.risk.deleverage import deleverage_plans
from riskml.risk.engines.interface import current_marks
from riskml.risk.forecast import Forecast
from riskml.risk.haircuts import PEG_TOLERANCE
from riskml.risk.order_check import check_orders
from riskml.risk.outcome import Decisions
from riskml.risk.pool_books import split_pools, with_known_margins
from riskml.risk.reasons import reason_bit
from riskml.risk.settled_profit import settle_asset, settle_profit, settle_value, withheld_profit

from . import breaker_cases
from .property_cases import (
    CASES,
    HORIZONS,
    PRODUCTS,
    ROUNDING,
    TS,
    assert_enough,
    assert_never_above,
    make_book,
    random_forecast,
    random_legs,
)

LAW = numpy_law((1.0,) * len(HORIZONS))
N_ACCOUNTS, N_LEGS = 1_000, 4
ASSETS = {"hyperliquid": "USDC", "dydx": "USDC", "drift": "USDC", "binance": "USDT", "kraken": "USD"}
OFF_PEG = np.uint64(reason_bit("peg-deviation"))


def peg(**prices: float) -> Conditions:
    return Conditions(peg_price_usd=prices)


def position(venue: str, symbol: str, profit: float, **more: Any) -> dict[str, Any]:
    """100 USD long at a mark of 10, with so much open profit."""
    row = {"venue": venue, "symbol": symbol, "size": 10.0, "mark_price": 10.0}
    return row | {"entry_price": 10.0 - profit / 10.0} | more


def account(*positions: dict[str, Any], cash: float = 1_000.0) -> AccountBook:
    return AccountBook.from_dicts([{"account_id": "a", "cash_usd": cash, "positions": [*positions]}])


def lost(book: AccountBook, conditions: Conditions) -> float:
    mark, _ = current_marks(book.positions, None)
    return float(withheld_profit(book, mark, conditions, TS)[0])


@pytest.mark.parametrize(
    ("venue", "symbol", "when", "asset"),
    [
        *((venue, "BTC", TS, asset) for venue, asset in ASSETS.items()),
        ("binance", "BTC-USDC", TS, "USDC"),  # another quote than its venue's
        ("paradex", "BTC", TS, "USDC"),
        ("paradex", "BTC", 0, "USD"),  # before its entry
    ],
)
def test_what_a_venue_pays_in_is_among_the_facts(venue: str, symbol: str, when: int, asset: str) -> None:
    assert settle_asset(venue, symbol, when) == asset


@pytest.mark.parametrize(
    ("conditions", "value"),
    [
        (Conditions(), 1.0),
        (peg(USDC=0.9), 0.9),
        (peg(USDC=1.2), 1.0),
        (peg(USDC=1.0 - PEG_TOLERANCE), 1.0),
        (peg(USDC=1.0 - PEG_TOLERANCE - 1e-9), 1.0 - PEG_TOLERANCE - 1e-9),
        (peg(USDC=float("nan")), 1.0),
        (peg(USDC=-0.5), 0.0),
        (Conditions(peg_price_usd={"USDC": 0.9}, redemption_usd={"USDC": 1.0}), 1.0),  # local to a venue
        (Conditions(peg_price_usd={"USDC": 1.0}, redemption_usd={"USDC": 0.8}), 0.8),
    ],
)
def test_profit_counts_at_the_peg_and_never_above_par(conditions: Conditions, value: float) -> None:
    assert settle_value("USDC", conditions) == value


@pytest.mark.parametrize(
    ("positions", "withheld"),
    [
        # USDC at .9, USDT at .5
        ([("hyperliquid", 50.0), ("binance", -30.0)], 5.0),
        ([("hyperliquid", 50.0), ("binance", 30.0)], 5.0 + 15.0),
        ([("hyperliquid", -50.0), ("binance", 30.0)], 15.0),  # a loss counts at par
        ([("hyperliquid", 50.0), ("dydx", -20.0), ("kraken", 0.0)], 3.0),  # net within an asset
        ([("hyperliquid", 50.0), ("dydx", -20.0)], 0.0),  # all in one asset
        ([("kraken", 50.0), ("unheard", -20.0)], 0.0),
        ([("kraken", 50.0), ("hyperliquid", -20.0)], 0.0),
    ],
)
def test_what_is_withheld_by_hand(positions: list[tuple[str, float]], withheld: float) -> None:
    book = account(*(position(venue, "BTC", profit) for venue, profit in positions))
    assert lost(book, peg(USDC=0.9, USDT=0.5)) == pytest.approx(withheld, abs=1e-12)
    assert lost(book, Conditions()) == 0.0


def test_an_isolated_position_pays_for_itself_but_is_a_position_elsewhere() -> None:
    apart = {"margin_mode": "isolated", "isolated_margin_usd": 20.0}
    won = account(position("hyperliquid", "BTC", 50.0, **apart), position("binance", "ETH", 0.0))
    assert lost(won, peg(USDC=0.9)) == 0.0
    elsewhere = account(position("hyperliquid", "BTC", 50.0), position("binance", "ETH", 0.0, **apart))
    assert lost(elsewhere, peg(USDC=0.9)) == pytest.approx(5.0)
    closed = account(position("hyperliquid", "BTC", 50.0), position("binance", "ETH", 0.0, size=0.0))
    assert lost(closed, peg(USDC=0.9)) == 0.0


def random_book(rng: np.random.Generator, forecast: Forecast, *, venues: list[str]) -> AccountBook:
    """Accounts that won and lost, some positions isolated, their margin known or not."""
    usd = random_legs(rng, N_ACCOUNTS, N_LEGS)
    gross = np.abs(usd).sum(axis=1)
    isolated = rng.uniform(size=usd.size) < 0.2
    margin = np.where(rng.uniform(size=usd.size) < 0.5, 0.1 * np.abs(usd.ravel()), np.nan)
    return make_book(
        forecast,
        usd,
        cash=rng.uniform(-0.2, 0.6, N_ACCOUNTS) * gross,
        venue=rng.choice(venues, usd.size).astype(object),
        entry_price=np.exp(rng.normal(0.0, 0.3, usd.size)),
        margin_mode=np.where(isolated, "isolated", "cross").astype(object),
        isolated_margin_usd=np.where(isolated, margin, np.nan),
    )


def decided(book: AccountBook, forecast: Forecast, conditions: Conditions) -> Decisions:
    return decide(book, forecast, MarginPolicy(), law=LAW, ts=TS, conditions=conditions)


def open_profit(book: AccountBook) -> dict[str, np.ndarray]:
    """Net open profit of cross positions per settle asset [n_accounts], the slow way."""
    found = {asset: np.zeros(len(book)) for asset in ("USDC", "USDT", "USD")}
    held = book.positions
    for row, name in enumerate(held.venue.tolist()):
        if not held.isolated[row]:
            gain = held.size[row] * (held.mark_price[row] - held.entry_price[row])
            found[ASSETS[name]][held.account[row]] += gain
    return found


def test_a_depeg_takes_what_the_profit_is_worth_less_and_moves_no_requirement() -> None:
    rng = np.random.default_rng(310)
    seen = hit = 0
    forecast = random_forecast(rng, N_ACCOUNTS * N_LEGS)
    for _ in range(CASES // N_ACCOUNTS):
        book = random_book(rng, forecast, venues=list(ASSETS))
        lower, upper = np.sort(rng.uniform(0.0, 1.1, 2)).tolist()
        tether = float(rng.choice([0.7, 1.0, 1.1]))
        par, mild, deep = (
            decided(book, forecast, conditions)
            for conditions in (Conditions(), peg(USDC=upper, USDT=tether), peg(USDC=lower, USDT=tether))
        )
        seen += assert_never_above(deep.equity_usd, mild.equity_usd, 1e-9 * np.abs(mild.equity_usd))
        assert_never_above(mild.equity_usd, par.equity_usd, 1e-9 * np.abs(par.equity_usd))
        profit = {asset: np.maximum(usd, 0.0) for asset, usd in open_profit(book).items()}
        most = profit["USDC"] * max(1.0 - lower, 0.0) + profit["USDT"] * max(1.0 - tether, 0.0)
        assert_never_above(par.equity_usd - deep.equity_usd, most, 1e-9 * np.abs(par.equity_usd) + 1e-9)
        assert_never_above(par.liquidation_probability, deep.liquidation_probability, 1e-12)
        for name in PRODUCTS:
            np.testing.assert_array_equal(getattr(par, name), getattr(deep, name))
        fell = deep.equity_usd < par.equity_usd - 1e-6
        np.testing.assert_array_equal(deep.reasons[fell] & OFF_PEG, OFF_PEG)
        assert not (par.reasons & OFF_PEG).any()
        hit += int(fell.sum())
    assert_enough(seen)
    assert hit > CASES // 4


@pytest.mark.parametrize("venues", [["hyperliquid"], ["hyperliquid", "dydx", "drift"], ["binance"]])
def test_an_account_whose_positions_settle_in_one_asset_is_decided_as_ever(venues: list[str]) -> None:
    rng = np.random.default_rng(311)
    forecast = random_forecast(rng, N_ACCOUNTS * N_LEGS)
    book = random_book(rng, forecast, venues=venues)
    par, deep = (decided(book, forecast, of) for of in (Conditions(), peg(USDC=0.3, USDT=0.3)))
    for name in (*PRODUCTS, "equity_usd", "liquidation_probability", "distance", "action", "reasons"):
        np.testing.assert_array_equal(getattr(par, name), getattr(deep, name), err_msg=name)


def test_within_bid_ask_noise_nothing_is_withheld() -> None:
    rng = np.random.default_rng(312)
    forecast = random_forecast(rng, N_ACCOUNTS * N_LEGS)
    book = random_book(rng, forecast, venues=list(ASSETS))
    par, near = (
        decided(book, forecast, of) for of in (Conditions(), peg(USDC=1.0 - PEG_TOLERANCE, USDT=1.4))
    )
    np.testing.assert_array_equal(par.equity_usd, near.equity_usd)
    np.testing.assert_array_equal(par.reasons, near.reasons)


def test_a_settled_book_is_decided_like_the_book_and_settles_to_itself() -> None:
    rng = np.random.default_rng(313)
    forecast = random_forecast(rng, N_ACCOUNTS * N_LEGS)
    book = random_book(rng, forecast, venues=list(ASSETS))
    conditions = peg(USDC=0.8, USDT=0.95)
    mark, _ = current_marks(book.positions, None)
    none = np.zeros(len(book))
    settled, withheld = settle_profit(book, mark, conditions, TS, lambda: none)
    again, nothing = settle_profit(settled, mark, conditions, TS, lambda: none)
    assert again is settled
    assert not nothing.any()
    assert (withheld > 0.0).sum() > N_ACCOUNTS // 4
    first, second = (decided(of, forecast, conditions) for of in (book, settled))
    for name in (*PRODUCTS, "equity_usd", "liquidation_probability", "distance"):
        np.testing.assert_allclose(
            getattr(first, name), getattr(second, name), rtol=1e-6, atol=2 * ROUNDING, err_msg=name
        )
    # Fixing margins that are not published changes no equity, as without a depeg.
    fixed = decided(with_known_margins(settled, mark, none), forecast, conditions)
    np.testing.assert_allclose(fixed.equity_usd, first.equity_usd, rtol=1e-9, atol=1e-6)
    # An account per pool has the equity of the pools, nothing withheld twice or given back.
    for of in (book, settled):
        pools = split_pools(of, mark, none, first.equity_usd)
        apart = decided(pools.book, forecast, conditions)
        is_cross = np.arange(len(pools.owner)) < len(book)
        kept = np.where(is_cross, apart.equity_usd, np.maximum(apart.equity_usd, 0.0))
        total = np.bincount(pools.owner, kept)
        np.testing.assert_allclose(total, first.equity_usd, rtol=1e-9, atol=1e-6)


def in_dollars(won: float, *, elsewhere: float = 0.0, cash: float = 0.0) -> AccountBook:
    """10,000 USD of BTC on Hyperliquid, with so much open profit, and ETH on Binance."""
    price = breaker_cases.PRICES["BTC"]
    first = breaker_cases.position(
        "BTC", 10_000.0, venue="hyperliquid", entry_price=price * (1.0 - won / 10_000.0)
    )
    second = breaker_cases.position("ETH", elsewhere, venue="binance")
    held = [first, second] if elsewhere else [first]
    return AccountBook.from_dicts([breaker_cases.account("a", cash, *held)])


def test_an_order_elsewhere_finds_the_profit_at_what_it_is_worth() -> None:
    names = tuple(breaker_cases.PRICES)
    calm = np.zeros(len(names))
    state = step(None, MarketSignals(TS, names, calm, calm, calm, calm, calm > 0.0), BreakerPolicy())
    price = breaker_cases.PRICES["ETH"]
    order = {
        "account_id": ["a"],
        "venue": ["binance"],
        "symbol": ["ETH"],
        "size": [9_000.0 / price],
        "price": [price],
    }
    book = in_dollars(3_000.0)
    allowed = {}
    for value in (1.0, 0.95, 0.4):

        def score(of: AccountBook, value: float = value) -> Decisions:
            return breaker_cases.score(of, conditions=peg(USDC=value))

        allowed[value] = bool(check_orders(book, order, score, state, BreakerPolicy()).allowed[0])
        assert score(book).equity_usd[0] == pytest.approx(3_000.0)  # nothing elsewhere yet
    asked = breaker_cases.score(in_dollars(3_000.0, elsewhere=9_000.0)).initial_margin_usd[0]
    assert 0.4 * 3_000.0 < asked < 0.95 * 3_000.0, "the case no longer tells a depeg from none"
    assert allowed == {1.0: True, 0.95: True, 0.4: False}


def test_a_deleveraging_plan_does_not_close_a_shortfall_with_profit_that_is_withheld() -> None:
    conditions = peg(USDC=0.5)

    def score(of: AccountBook) -> Decisions:
        return breaker_cases.score(of, conditions=conditions)

    book = in_dollars(2_000.0, elsewhere=20_000.0)
    mark, _ = current_marks(book.positions, None)
    settled, withheld = settle_profit(book, mark, conditions, TS, lambda: np.zeros(1))
    assert withheld[0] == pytest.approx(1_000.0)
    policy = BreakerPolicy()
    plans = [
        deleverage_plans(of, by, policy, accounts=["a"])[0]
        for of, by in ((book, breaker_cases.score), (settled, score))
    ]
    closed = [sum(step.notional_usd for step in plan.steps) for plan in plans]
    assert closed[1] > 1.2 * closed[0] > 0.0
    after = plans[1].steps[-1]
    fees = closed[1] * policy.closing_cost
    assert after.equity_usd == pytest.approx(1_000.0 - fees, abs=1.0)
    assert after.equity_usd >= after.initial_margin_usd
