"""A scorer that sees USDC fall: what a cross-venue account may still do with its profit in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from riskml.risk.reasons import reason_bit
from riskml.scoring import AccountBook, Scorer

from .conftest import N_HISTORY, PRICES, position, slot

NOW = slot(N_HISTORY - 1)
WON = 4_000.0
OFF_PEG = int(reason_bit("peg-deviation"))


@pytest.fixture
def depegged(make_warm: Callable[..., Scorer]) -> Scorer:
    """A scorer without prices of its own that knows USDC at .9."""
    scorer = make_warm()
    scorer._prices._prices.clear()
    row = {"ts": NOW, "known_at": NOW, "venue": "pool", "asset": "USDC", "price_usd": 0.9}
    scorer.observe("pegs", {name: np.array([value]) for name, value in row.items()})
    return scorer


def held(*venues: str, cash: float = 1_000.0) -> AccountBook:
    """BTC with open profit on the first venue, ETH on the others."""
    entry = PRICES["BTC"] * (1.0 - WON / 10_000.0)
    rows = [position("BTC", 10_000.0, venue=venues[0], entry_price=entry)]
    rows += [position("ETH", 6_000.0, venue=venue) for venue in venues[1:]]
    return AccountBook.from_dicts([{"account_id": "a", "cash_usd": cash, "positions": rows}])


@pytest.mark.parametrize(
    ("venues", "equity"),
    [
        (("hyperliquid", "binance"), 1_000.0 + 0.9 * WON),
        (("hyperliquid", "dydx"), 1_000.0 + WON),
        (("hyperliquid",), 1_000.0 + WON),
        (("binance", "hyperliquid"), 1_000.0 + WON),  # USDT is at par
    ],
)
def test_profit_counts_at_the_peg_where_it_pays_for_something_else(
    depegged: Scorer, venues: tuple[str, ...], equity: float
) -> None:
    found = depegged.score(held(*venues))
    assert found.equity_usd[0] == pytest.approx(equity, rel=1e-12)
    assert bool(found.reasons[0] & OFF_PEG) == (equity < 1_000.0 + WON)


@pytest.mark.parametrize("usd", [-10_000.0, -4_000.0, 1.0, -25_000.0])
def test_a_trade_at_the_mark_frees_no_profit(depegged: Scorer, usd: float) -> None:
    book = held("hyperliquid", "binance")
    before = depegged.what_if(book)
    trade = {"account_id": "a", "venue": "hyperliquid", "symbol": "BTC", "size": usd / PRICES["BTC"]}
    after = depegged.what_if(book, [trade])
    np.testing.assert_allclose(after.equity_usd, before.equity_usd, rtol=1e-12)


def test_orders_limits_and_plans_start_from_the_equity_of_decisions(depegged: Scorer) -> None:
    book = held("hyperliquid", "binance")
    same = held("hyperliquid", "binance", cash=1_000.0 - 0.1 * WON)
    # With USDC at par, and 10 % of the profit less in cash, all is as it is now.
    par = {name: np.array([value]) for name, value in {"ts": NOW + 1, "known_at": NOW + 1}.items()}
    par |= {"venue": np.array(["pool"]), "asset": np.array(["USDC"]), "price_usd": np.array([1.0])}
    limits = depegged.leverage_limits(book).account
    price = PRICES["BTC"]
    orders = {
        "account_id": ["a"] * 4,
        "venue": ["hyperliquid"] * 4,
        "symbol": ["BTC"] * 4,
        "size": [usd / price for usd in (1.0, 26_000.0, 29_500.0, 35_000.0)],
        "price": [price] * 4,
    }
    checked = depegged.check_orders(book, orders)
    plans = depegged.deleverage(held("hyperliquid", "binance", cash=-2_800.0), ["a"])
    depegged.observe("pegs", par)
    other = depegged.leverage_limits(same, NOW + 60_000_000).account
    np.testing.assert_allclose(limits.max_new_usd, other.max_new_usd, rtol=1e-3)
    np.testing.assert_allclose(limits.margin_used, other.margin_used, rtol=1e-9)
    assert not np.allclose(
        depegged.leverage_limits(book, NOW + 60_000_000).account.max_new_usd, limits.max_new_usd, rtol=1e-2
    )
    again = depegged.check_orders(same, orders, NOW + 60_000_000)
    assert checked.allowed.tolist() == again.allowed.tolist()
    assert checked.allowed.tolist() == [True, True, False, False]
    without = depegged.deleverage(
        held("hyperliquid", "binance", cash=-2_800.0 - 0.1 * WON), ["a"], NOW + 60_000_000
    )
    assert [plan.feasible for plan in plans] == [True]
    assert [step.notional_usd for plan in plans for step in plan.steps] == pytest.approx(
        [step.notional_usd for plan in without for step in plan.steps], rel=1e-6
    )
