"""Limits of isolated positions are what the order check allows, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from riskml.scoring import AccountBook, Scorer

from .conftest import N_HISTORY, PRICES, position, slot

CENT = 0.01


def account(cash: float, *positions: dict[str, Any], **more: Any) -> AccountBook:
    row = {"account_id": "a", "cash_usd": cash, "ts": slot(N_HISTORY + 100), "positions": list(positions)}
    return AccountBook.from_dicts([row | more])


def isolated(symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    return position(symbol, usd, margin_mode="isolated", **more)


def is_short(scorer: Scorer, book: AccountBook, symbol: str, usd: float, **more: Any) -> bool:
    """Whether the order check refuses an order for lack of initial margin."""
    price = scorer._prices.newer_than(book.ts).get(symbol, PRICES[symbol])
    order = {"account_id": ["a"], "venue": ["sim"], "symbol": [symbol], "size": [usd / price]}
    found = scorer.check_orders(book, order | {"price": [price]} | {k: [v] for k, v in more.items()})
    return "equity-below-initial" in found.to_dicts()[0]["reasons"]


BOOKS = {
    f"published, entry at {entry} of the mark": account(
        50_000.0,
        isolated(
            "SOL",
            -1_000.0,
            entry_price=entry * PRICES["SOL"],
            isolated_margin_usd=1_500.0 - 1_000.0 * (entry - 1.0),
        ),
    )
    for entry in (0.5, 1.0, 2.0)
} | {"not published, beside a cross one": account(3_000.0, isolated("SOL", 1_000.0), position("BTC", 1e3))}


@pytest.mark.parametrize("name", BOOKS)
def test_a_limit_is_the_largest_order_that_the_check_lets_through(warm: Scorer, name: str) -> None:
    book = BOOKS[name]
    pairs = [("sim", str(symbol)) for symbol in book.positions.symbol]
    largest = warm.leverage_limits(book, markets=pairs).account.max_new_usd[0]
    for (_, symbol), sides in zip(pairs, largest, strict=True):
        held = float(book.positions.size[book.positions.symbol == symbol][0])
        limit, sign = (sides[0], 1.0) if held > 0.0 else (sides[1], -1.0)
        assert limit > 1_000.0
        assert not is_short(warm, book, symbol, sign * limit)
        assert is_short(warm, book, symbol, sign * (1.001 * limit + CENT))


def test_an_isolated_position_without_a_margin_may_not_be_opened_at_the_cost_of_the_cross_pool(
    warm: Scorer,
) -> None:
    held = position("ETH", 20_000.0)
    asked = float(warm.what_if(account(1e6, held)).initial_margin_usd[0])
    tight, ample = account(1.02 * asked, held), account(3.0 * asked, held)
    for usd in (500.0, 5_000.0):
        assert is_short(warm, tight, "BTC", usd, margin_mode="isolated")
    assert not is_short(warm, ample, "BTC", 500.0, margin_mode="isolated")
