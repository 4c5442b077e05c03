"""A source that ended holds its market up until it is back, or until a person retires it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from riskml.errors import DataError
from riskml.scoring import AccountBook, Scorer

from .conftest import N_HISTORY, Feed, make_feed, position, slot
from .test_degraded import advance, calmer, without

SILENT = range(N_HISTORY, N_HISTORY + 34)  # funding may be 24 h old before it counts as gone
FUNDING = {"funding_8h"}


@pytest.fixture(scope="module")
def feed() -> Feed:
    return make_feed(n_bars=N_HISTORY + 90)


@pytest.fixture
def book() -> AccountBook:
    row = {"account_id": "a", "cash_usd": 3e3, "ts": slot(N_HISTORY + 100)}
    return AccountBook.from_dicts([row | {"positions": [position("ETH", 6e3)]}])


@pytest.fixture
def silenced(make_warm: Callable[..., Scorer], feed: Feed) -> Scorer:
    """A scorer whose ETH has lost its funding, in a market that calmed down."""
    scorer = make_warm(feed)
    advance(scorer, feed, SILENT, "missing funding", "ETH")
    return scorer


def next_bar(scorer: Scorer, feed: Feed, number: int, broken: str = "missing funding") -> None:
    advance(scorer, feed, range(number, number + 1), broken, "ETH")


def test_a_scorer_names_the_inputs_that_hold_a_market_up(
    make_warm: Callable[..., Scorer], silenced: Scorer
) -> None:
    assert make_warm().lost_inputs == {}
    assert set(silenced.lost_inputs) == {"ETH"}
    assert set(silenced.lost_inputs["ETH"]) >= FUNDING


def test_a_retired_input_lets_the_requirement_fall_from_the_next_bar_on_and_not_before(
    silenced: Scorer, feed: Feed, book: AccountBook
) -> None:
    held = silenced.what_if(book)
    gone = silenced.lost_inputs["ETH"]
    assert silenced.retire_inputs("ETH") == gone
    assert silenced.lost_inputs == {}
    assert silenced.what_if(book).initial_margin_usd == held.initial_margin_usd
    next_bar(silenced, feed, SILENT.stop)
    assert not silenced.forecast.degraded.any()
    assert silenced.what_if(book).initial_margin_usd < 0.8 * held.initial_margin_usd


def test_without_a_word_from_a_person_the_market_stays_held_up(silenced: Scorer, feed: Feed) -> None:
    held = silenced.forecast.sigma[1]
    advance(silenced, feed, range(SILENT.stop, SILENT.stop + 40), "missing funding", "ETH")
    assert silenced.forecast.degraded.tolist() == [False, True, False]
    assert (silenced.forecast.sigma[1] >= held).all()


def test_an_input_that_comes_back_after_all_is_watched_again(silenced: Scorer, feed: Feed) -> None:
    silenced.retire_inputs("ETH")
    back = next(n for n in range(SILENT.stop, SILENT.stop + 9) if len(feed.rows("funding", n)["ts"]))
    for number in range(SILENT.stop, back + 1):
        next_bar(silenced, feed, number, "nothing")
    assert not silenced.forecast.degraded.any()
    advance(silenced, feed, range(back + 1, back + 26), "missing funding", "ETH")
    assert set(silenced.lost_inputs["ETH"]) >= FUNDING
    assert silenced.forecast.degraded.tolist() == [False, True, False]


def test_a_saved_state_remembers_what_is_lost_and_what_was_retired(
    silenced: Scorer, feed: Feed, make_warm: Callable[..., Scorer], tmp_path: Path
) -> None:
    before = silenced.lost_inputs
    other = make_warm()
    other.load_state(silenced.save_state(tmp_path / "lost.npz"))
    assert other.lost_inputs == before
    silenced.retire_inputs("ETH")
    other.load_state(silenced.save_state(tmp_path / "retired.npz"))
    next_bar(other, feed, SILENT.stop)
    assert other.lost_inputs == {}
    assert not other.forecast.degraded.any()


def test_only_some_of_the_lost_inputs_can_be_retired(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    scorer = make_warm(feed)
    for number in range(N_HISTORY, N_HISTORY + 42):
        scorer.observe("bars", calmer(feed.rows("bars", number)))
        for table in ("funding", "open_interest"):
            scorer.observe(table, without(feed.rows(table, number), "ETH"))
        scorer.close_bar(slot(number))
    assert set(scorer.lost_inputs["ETH"]) >= {"funding_8h", "open_interest"}
    assert scorer.retire_inputs("ETH", ["open_interest"]) == ("open_interest",)
    next_bar(scorer, feed, N_HISTORY + 42)
    assert "funding_8h" in scorer.lost_inputs["ETH"]
    assert "open_interest" not in scorer.lost_inputs["ETH"]
    assert scorer.forecast.degraded[1]


@pytest.mark.parametrize(
    ("symbol", "names", "message"),
    [
        ("ETHH", None, "no market 'ETHH'.*ETH"),
        ("ETH", ["fundin"], "'fundin' of 'ETH' cannot be retired: it is not lost"),
        ("BTC", ["funding_8h"], "'funding_8h' of 'BTC' cannot be retired: it is not lost"),
    ],
)
def test_what_is_not_lost_cannot_be_retired(
    silenced: Scorer, symbol: str, names: list[str] | None, message: str
) -> None:
    before = silenced.lost_inputs
    with pytest.raises(DataError, match=message):
        silenced.retire_inputs(symbol, names)
    assert silenced.lost_inputs == before


def test_the_bars_themselves_cannot_be_retired(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    scorer = make_warm(feed)
    advance(scorer, feed, range(N_HISTORY, N_HISTORY + 3), "missing bars", "ETH")
    assert "close" in scorer.lost_inputs["ETH"]
    with pytest.raises(DataError, match="cannot be retired: without the bar there is no forecast"):
        scorer.retire_inputs("ETH", ["close"])
    assert scorer.retire_inputs("ETH") == ()
    next_bar(scorer, feed, N_HISTORY + 3, "missing bars")
    assert scorer.forecast.degraded[1]
