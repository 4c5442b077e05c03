"""While a source is missing, stale or invalid, no requirement falls; afterwards it may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from riskml.risk.reasons import REASONS
from riskml.scoring import AccountBook, Decisions, MarginPolicy, Scorer

from .conftest import N_HISTORY, Feed, position, slot

DEGRADED = np.uint64(1 << REASONS.index("degraded-forecast"))


def calmer(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bars that hardly move, so that a forecast from them alone would fall."""
    flat = rows["open"]
    return rows | {"high": flat * 1.0001, "low": flat * 0.9999, "close": flat}


def without(rows: dict[str, np.ndarray], symbol: str) -> dict[str, np.ndarray]:
    return {name: values[rows["symbol"] != symbol] for name, values in rows.items()}


def advance(scorer: Scorer, feed: Feed, numbers: range, broken: str, symbol: str) -> None:
    """Calm slots in which one source of one market is broken in the named way."""
    for number in numbers:
        for table in feed.tables:
            rows = feed.rows(table, number)
            rows = calmer(rows) if table == "bars" else rows
            if broken == f"missing {table}":
                rows = without(rows, symbol)
            if broken == "NaN bars" and table == "bars":
                rows["close"] = np.where(rows["symbol"] == symbol, np.nan, rows["close"])
            scorer.observe(table, rows)
        scorer.close_bar(slot(number))


def assert_not_below(now: Decisions, before: Decisions, rows: np.ndarray) -> None:
    for name in ("initial_margin_usd", "maintenance_margin_usd", "liquidation_probability"):
        assert (getattr(now, name)[rows] >= getattr(before, name)[rows] - 1e-9).all(), name


@pytest.fixture(scope="module")
def eth_book() -> AccountBook:
    """Holders of ETH: alone, as a hedge and hedged; they have the same marks all the time."""
    ts = slot(N_HISTORY + 100)
    accounts = {
        "long": [position("ETH", 6_000.0)],
        "hedge": [position("BTC", 9_000.0), position("ETH", -6_000.0)],
        "pair": [position("ETH", 8_000.0), position("SOL", -7_000.0)],
    }
    return AccountBook.from_dicts(
        [
            {"account_id": name, "cash_usd": 3_000.0, "ts": ts, "positions": positions}
            for name, positions in accounts.items()
        ]
    )


@pytest.mark.parametrize("broken", ["missing bars", "NaN bars", "missing funding", "missing open_interest"])
def test_no_requirement_falls_while_a_source_is_gone(
    make_warm: Callable[..., Scorer], feed: Feed, eth_book: AccountBook, broken: str
) -> None:
    # The other markets' liquidity goes up and down, and what size costs with it.
    scorer = make_warm(policy=MarginPolicy(liquidity_rate=0.0))
    before = scorer.what_if(eth_book)
    # funding may be 24 h old and open interest 36 h before they count as gone
    hours = {"missing bars": 3, "NaN bars": 3, "missing funding": 34, "missing open_interest": 40}[broken]
    held = False
    for number in range(N_HISTORY, N_HISTORY + hours):
        last_sound = scorer.what_if(eth_book) if not scorer.forecast.degraded[1] else before
        advance(scorer, feed, range(number, number + 1), broken, "ETH")
        if scorer.forecast.degraded[1]:
            before, held = last_sound, True
            now = scorer.what_if(eth_book)
            assert (now.reasons & DEGRADED > 0).all()
            assert_not_below(now, before, np.array([True, True, True]))
    assert held
    assert scorer.forecast.degraded.tolist() == [False, True, False]


def test_a_dark_market_stands_on_the_stressed_scale_and_one_that_lost_an_input_on_the_policys_floor(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    dark = make_warm()
    advance(dark, feed, range(N_HISTORY, N_HISTORY + 2), "missing bars", "ETH")
    stressed = np.array(dark.bundle.manifest.reference_sigma["stressed"]["*"])
    assert (dark.forecast.sigma[1] >= stressed).all()
    assert dark.forecast.degraded_reasons[1] == "missing-bar|stale-input"
    for share in (0.1, 0.9):
        impaired = make_warm(policy=MarginPolicy(stressed_floor=share))
        advance(impaired, feed, range(N_HISTORY, N_HISTORY + 34), "missing funding", "ETH")
        assert impaired.forecast.degraded_reasons[1] == "stale-input"
        assert (impaired.forecast.sigma[1] >= share * stressed).all()
        assert (impaired.forecast.sigma[1] < stressed).any()


def test_a_requirement_falls_again_once_the_source_is_back(
    make_warm: Callable[..., Scorer], feed: Feed, eth_book: AccountBook
) -> None:
    scorer = make_warm()
    advance(scorer, feed, range(N_HISTORY, N_HISTORY + 2), "missing bars", "ETH")
    held = scorer.what_if(eth_book)
    advance(scorer, feed, range(N_HISTORY + 2, N_HISTORY + 4), "nothing", "ETH")
    back = scorer.what_if(eth_book)
    assert not scorer.forecast.degraded.any()
    assert (back.initial_margin_usd < held.initial_margin_usd).all()


def test_other_markets_are_free_to_fall_while_one_is_degraded(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    book = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 1e3,
                "ts": slot(N_HISTORY + 100),
                "positions": [position("BTC", 5e3)],
            }
        ]
    )
    scorer = make_warm()
    before = scorer.what_if(book)
    advance(scorer, feed, range(N_HISTORY, N_HISTORY + 3), "missing bars", "ETH")
    now = scorer.what_if(book)
    assert now.initial_margin_usd[0] < before.initial_margin_usd[0]
    assert not int(now.reasons[0] & DEGRADED)


def test_a_forecast_that_is_overdue_is_held_up_and_says_so(
    make_warm: Callable[..., Scorer], eth_book: AccountBook
) -> None:
    scorer = make_warm()
    fresh = scorer.what_if(eth_book)
    overdue = scorer.score(eth_book, slot(N_HISTORY + 4))
    assert (overdue.reasons & DEGRADED > 0).all()
    assert_not_below(overdue, fresh, np.array([True, False, True]))


def test_open_interest_that_falls_silent_is_not_forgotten(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    whale = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 1e9,
                "positions": [position("SOL", 5e6)],
                "ts": slot(N_HISTORY + 200),
            }
        ]
    )
    scorer = make_warm()
    before = scorer.what_if(whale)
    for number in range(N_HISTORY, N_HISTORY + 50):
        scorer.observe("bars", feed.rows("bars", number))
        scorer.close_bar(slot(number))
    flagged = np.uint64(1 << REASONS.index("size-against-liquidity"))
    assert int(before.reasons[0] & flagged)
    assert int(scorer.what_if(whale).reasons[0] & flagged)
