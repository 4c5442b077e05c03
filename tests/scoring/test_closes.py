"""The closes of bars are prices, each as old as its bar, however many bars a scorer closes at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from riskml.scoring import AccountBook, Scorer
from riskml.units import HOUR

from .conftest import N_HISTORY, SYMBOLS, Feed, position, slot

LAST = N_HISTORY + 4


def without(feed: Feed, symbol: str, first: int, last: int) -> Feed:
    """The feed without the bars of one market in some slots."""
    bars = feed.tables["bars"]
    number = (bars["ts"] - slot(0)) // HOUR
    kept = ~((bars["symbol"] == symbol) & (number >= first) & (number <= last))
    return Feed(feed.tables | {"bars": {name: values[kept] for name, values in bars.items()}})


def close_of(feed: Feed, symbol: str, number: int) -> float:
    rows = feed.rows("bars", number)
    return float(rows["close"][rows["symbol"] == symbol][0])


@pytest.fixture
def halted(feed: Feed) -> Feed:
    """ETH has no bar in the last two slots before ``LAST``, nor in that one."""
    return without(feed, "ETH", LAST - 2, LAST)


@pytest.mark.parametrize("closed", [(LAST,), (N_HISTORY + 2, LAST), tuple(range(N_HISTORY, LAST + 1))])
def test_bars_closed_at_once_mark_like_bars_closed_one_by_one(
    make_warm: Callable[..., Scorer], halted: Feed, closed: tuple[int, ...]
) -> None:
    scorer, seen = make_warm(halted), N_HISTORY
    for number in closed:
        halted.observe(scorer, seen, number)
        scorer.close_bar(slot(number))
        seen = number + 1
    expected = {symbol: (slot(LAST), close_of(halted, symbol, LAST)) for symbol in SYMBOLS if symbol != "ETH"}
    expected["ETH"] = (slot(LAST - 3), close_of(halted, "ETH", LAST - 3))
    assert scorer._prices._prices == expected
    # A book of before the last of these bars is marked by it, one of after it keeps its marks.
    account = {"account_id": "a", "cash_usd": 0.0, "positions": [position("ETH", 1_000.0)]}
    size = account["positions"][0]["size"]
    profit = size * (expected["ETH"][1] - account["positions"][0]["entry_price"])
    for ts, equity in ((slot(LAST - 4), profit), (slot(LAST - 3), 0.0)):
        book = AccountBook.from_dicts([account | {"ts": ts}])
        assert scorer.score(book).equity_usd[0] == pytest.approx(equity, abs=1e-9)
    assert abs(profit) > 1.0


def test_a_first_close_knows_the_closes_of_the_bars_before_it(tiny_bundle: Path, halted: Feed) -> None:
    scorer = Scorer.load(tiny_bundle)
    halted.observe(scorer, 0, LAST)
    scorer.close_bar(slot(LAST))
    assert scorer._prices._prices["ETH"] == (slot(LAST - 3), close_of(halted, "ETH", LAST - 3))


def test_a_skipped_close_replaces_no_newer_price_and_is_not_taken_again(
    make_warm: Callable[..., Scorer], halted: Feed
) -> None:
    scorer = make_warm(halted)
    scorer.on_price("ETH", 77.0, slot(LAST - 3) + 1)
    halted.observe(scorer, N_HISTORY, LAST)
    scorer.close_bar(slot(LAST))
    assert scorer._prices._prices["ETH"] == (slot(LAST - 3) + 1, 77.0)
    other = make_warm(halted)
    halted.observe(other, N_HISTORY, LAST - 3)
    other.close_bar(slot(LAST - 3))
    other.on_price("ETH", 78.0, slot(LAST - 3))  # of the moment of the bar, but later heard of
    halted.observe(other, LAST - 2, LAST)
    other.close_bar(slot(LAST))
    assert other._prices._prices["ETH"] == (slot(LAST - 3), 78.0)


def test_a_market_that_joins_leaves_the_closes_of_the_others(
    make_warm: Callable[..., Scorer], feed: Feed, halted: Feed
) -> None:
    scorer = make_warm(halted)
    halted.observe(scorer, N_HISTORY, LAST)
    rows = {name: values[:1].copy() for name, values in feed.rows("bars", LAST).items()}
    scorer.observe("bars", rows | {"symbol": np.array(["NEW"])})
    scorer.close_bar(slot(LAST))
    found = scorer._prices._prices
    assert found["NEW"] == (slot(LAST), rows["close"][0])
    assert found["ETH"] == (slot(LAST - 3), close_of(halted, "ETH", LAST - 3))
