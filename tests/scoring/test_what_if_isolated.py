"""Trades beside isolated positions: what a venue does not publish of a margin, no trade may move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.scoring import AccountBook, Scorer

from .conftest import PRICES, position
from .test_scorer import NUMBERS

CASH = 6_000.0


def isolated(usd: float, **more: Any) -> dict[str, Any]:
    return position("SOL", usd, margin_mode="isolated") | more


def held(*positions: dict[str, Any], cash: float = CASH) -> AccountBook:
    """One account, and another one that never trades."""
    rows = [("a", [*positions]), ("b", [isolated(4_000.0), position("ETH", 9_000.0)])]
    return AccountBook.from_dicts(
        [{"account_id": name, "cash_usd": cash, "positions": of} for name, of in rows]
    )


def trade(symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    return {"account_id": "a", "venue": "sim", "symbol": symbol, "size": usd / PRICES[symbol]} | more


def unpriced(scorer: Scorer) -> Scorer:
    """The scorer without prices of its own, so that the marks of books hold."""
    scorer._prices._prices.clear()
    return scorer


@pytest.mark.parametrize("bought", [8_000.0, -6_000.0, -9_000.0])
def test_a_trade_leaves_the_unpublished_margin_of_another_position(warm: Scorer, bought: float) -> None:
    scorer = unpriced(warm)
    cross = position("BTC", 6_000.0, entry_price=PRICES["BTC"] * 0.8)
    book = held(cross, isolated(2_000.0))
    # Its part of the equity, at entry prices, as the account stands before the trade.
    margin = (CASH + 6_000.0 * 0.2) * 2_000.0 / (2_000.0 + 0.8 * 6_000.0)
    stated = held(cross, isolated(2_000.0, isolated_margin_usd=margin), cash=CASH - margin)
    found, expected = (scorer.what_if(of, [trade("BTC", bought)]) for of in (book, stated))
    for name in NUMBERS:
        np.testing.assert_allclose(
            getattr(found, name)[0], getattr(expected, name)[0], rtol=1e-9, err_msg=name
        )
    before = scorer.what_if(book)
    np.testing.assert_allclose(found.equity_usd, before.equity_usd, rtol=1e-12)
    # The account that does not trade is decided as ever, with its margin not published.
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(found, name)[1], getattr(before, name)[1], err_msg=name)
    assert found.reasons[1] == before.reasons[1]


@pytest.mark.parametrize(
    ("entry", "margin", "cross_cash"),
    [
        (1.0, 500.0, CASH + 500.0),  # flat: the margin comes back
        (0.9, 500.0, CASH + 700.0),  # with a profit of 200 USD
        (1.1, 500.0, CASH + 300.0),  # with a loss
        (1.5, 500.0, CASH),  # with more than its margin: the rest is the venue's
    ],
)
def test_closing_an_isolated_position_gives_back_what_is_left_of_its_margin(
    warm: Scorer, entry: float, margin: float, cross_cash: float
) -> None:
    scorer = unpriced(warm)
    mark = PRICES["SOL"]
    book = held(
        isolated(2_000.0, entry_price=mark * entry, isolated_margin_usd=margin), position("BTC", 5_000.0)
    )
    # 2,000 USD at the mark were bought at ``entry`` times as much.
    after = scorer.what_if(book, [trade("SOL", -2_000.0)])
    alone = scorer.what_if(held(position("BTC", 5_000.0), cash=cross_cash))
    assert after.equity_usd[0] == pytest.approx(cross_cash, rel=1e-12)
    np.testing.assert_allclose(after.liquidation_probability[0], alone.liquidation_probability[0], rtol=1e-9)
    assert after.equity_usd[0] == pytest.approx(scorer.what_if(book).equity_usd[0], rel=1e-12)


@pytest.mark.parametrize(("entry", "equity"), [(0.9, 700.0), (1.1, 300.0), (1.5, 0.0)])
def test_what_an_isolated_position_realises_stays_in_its_pool(
    warm: Scorer, entry: float, equity: float
) -> None:
    scorer = unpriced(warm)
    mark = PRICES["SOL"]
    one = isolated(2_000.0, entry_price=mark * entry, isolated_margin_usd=500.0)
    book = held(one, position("BTC", 5_000.0))
    after = scorer.what_if(book, [trade("SOL", -1_500.0)])
    rest = isolated(500.0, isolated_margin_usd=equity)
    expected = scorer.what_if(held(rest, position("BTC", 5_000.0)))
    assert after.equity_usd[0] == pytest.approx(CASH + equity, rel=1e-12)
    if equity:
        np.testing.assert_allclose(
            after.liquidation_probability[0], expected.liquidation_probability[0], rtol=1e-9
        )


def test_a_price_far_from_the_mark_creates_no_equity(warm: Scorer) -> None:
    scorer = unpriced(warm)
    book = held(isolated(2_000.0, isolated_margin_usd=100.0), position("BTC", 5_000.0))
    # 1,500 USD sold 20 % below the mark: 300 USD are lost, 100 of them were set aside.
    mark = PRICES["SOL"]
    cheap = scorer.what_if(book, [trade("SOL", -1_500.0, price=0.8 * mark)])
    assert cheap.equity_usd[0] == pytest.approx(CASH, rel=1e-12)
    won = held(isolated(2_000.0, isolated_margin_usd=100.0, entry_price=0.5 * mark), position("BTC", 5_000.0))
    total = scorer.what_if(won).equity_usd[0]
    assert total == pytest.approx(CASH + 100.0 + 1_000.0)
    dear = scorer.what_if(won, [trade("SOL", -1_500.0, price=0.3 * mark)])
    assert dear.equity_usd[0] == pytest.approx(total - 0.7 * 1_500.0, rel=1e-12)
