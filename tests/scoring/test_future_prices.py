"""A price of the future is none: neither a mark that is dated ahead, nor a clock in other units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.scoring import AccountBook, Scorer
from riskml.units import DAY, HOUR, MINUTE

from .conftest import N_HISTORY, PRICES, Feed, position, slot

NOW = slot(N_HISTORY - 1)


def mark(scorer: Scorer, ts: int, price: float, known_at: int | None = None) -> None:
    row = {
        "ts": np.array([ts]),
        "known_at": np.array([ts if known_at is None else known_at]),
        "venue": ["sim"],
        "symbol": ["BTC"],
        "interval": ["1h"],
    }
    prices = {f"mark_{name}": np.array([price]) for name in ("open", "high", "low", "close")}
    scorer.observe("marks", row | prices)


@pytest.fixture
def book() -> AccountBook:
    row = {"account_id": "a", "cash_usd": 1e5, "ts": slot(0)}
    return AccountBook.from_dicts([row | {"positions": [position("BTC", 5e4)]}])


def equity_at(scorer: Scorer, book: AccountBook) -> float:
    return float(scorer.what_if(book).equity_usd[0])


def test_a_mark_of_the_next_hour_re_marks_and_one_of_the_future_does_not(
    warm: Scorer, book: AccountBook
) -> None:
    before = equity_at(warm, book)
    for ts, known_at in ((NOW + 75 * 365 * DAY, None), (NOW + MINUTE, NOW + 3 * HOUR)):
        mark(warm, ts, 2.0 * PRICES["BTC"], known_at)
        assert equity_at(warm, book) == before
    assert warm.telemetry.value("future_prices", label="BTC") == 2
    mark(warm, NOW + MINUTE, 2.0 * PRICES["BTC"])
    assert equity_at(warm, book) > before + 2e4


def test_marks_of_before_the_first_bar_count_with_it_and_those_of_after_it_do_not(
    tiny_bundle: Path, feed: Feed, book: AccountBook, make_warm: Callable[..., Scorer]
) -> None:
    scorer = Scorer.load(tiny_bundle)
    feed.observe(scorer, 0, N_HISTORY - 1)
    mark(scorer, NOW + 9 * DAY, 9.0 * PRICES["BTC"])
    mark(scorer, NOW + MINUTE, 2.0 * PRICES["BTC"])
    scorer.close_bar(NOW)
    later = make_warm()
    mark(later, NOW + MINUTE, 2.0 * PRICES["BTC"])
    assert equity_at(scorer, book) == equity_at(later, book)


def test_a_clock_in_other_units_is_refused_and_leaves_the_scorer_as_it_was(
    warm: Scorer, book: AccountBook
) -> None:
    before = equity_at(warm, book)
    for call in (
        lambda: warm.on_price("BTC", 1.0, 1_000 * NOW),
        lambda: warm.score(book, 1_000 * NOW),
    ):
        with pytest.raises(DataError, match="more than a year after"):
            call()
    assert equity_at(warm, book) == before
    warm.on_price("BTC", PRICES["BTC"], NOW + MINUTE)
    warm.score(book, NOW + 2 * MINUTE)


def test_there_is_no_state_before_the_first_bar(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no state to save"):
        Scorer.load(tiny_bundle).save_state(tmp_path / "state.npz")
    assert not list(tmp_path.iterdir())
