"""The level control inside the scorer: off by default, kept in the state, safe in an outage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.markets import Market
from riskml.scoring import AccountBook, MarginPolicy, Scorer, load_bundle
from riskml.scoring.guards import STALE_INPUT, GuardedForecast
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import LoadedBundle, MarketOutput

from .conftest import N_HISTORY, Feed, position, slot

ON = MarginPolicy(adaptive_level="on", slow_weight=0.0, stressed_floor=0.0)
MARKETS = [Market("BTC", "sim"), Market("ETH", "sim")]
BOOK = AccountBook.from_dicts(
    [{"account_id": "a", "cash_usd": 9_000.0, "positions": [position("ETH", 10_000.0)]}]
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> LoadedBundle:
    return load_bundle(tiny_bundle)


def bar(number: int, fall: float, *, degraded: bool = False) -> GuardedForecast:
    sigma = np.full((2, 3, 2), 0.01) * np.array([1.0, 2.8, 4.9])[None, :, None]
    output = MarketOutput(
        sigma=sigma,
        nu=np.full((2, 3), 4.0),
        variance=sigma[:, :, 0] ** 2,
        stress=np.full((2, 3), 0.01),
        loadings=np.array([[0.9, 0.0], [0.9, 0.0]]),
    )
    prices = np.tile([100.0, 100.0 * (1.0 - fall), 100.0], (2, 1))
    bits = np.array([0, STALE_INPUT if degraded else 0], dtype=np.uint8)
    return GuardedForecast(slot(number), output, bits, prices)


def asked(requirements: Requirements, number: int) -> float:
    return float(requirements.decide(BOOK, slot(number), {}, remember=False).initial_margin_usd[0])


def after(bundle: LoadedBundle, falls: list[float], policy: MarginPolicy = ON) -> Requirements:
    requirements = Requirements(bundle, policy)
    for number, fall in enumerate(falls):
        requirements.take(bar(number, fall), MARKETS)
    return requirements


def test_it_is_off_by_default_and_the_hash_covers_it() -> None:
    assert MarginPolicy().adaptive_level == "off"
    hashes = {
        MarginPolicy().policy_hash,
        MarginPolicy(adaptive_level="on").policy_hash,
        MarginPolicy(adaptive_level="on", adaptive_level_step=0.25).policy_hash,
    }
    assert len(hashes) == 3


def test_a_word_that_is_neither_is_refused() -> None:
    with pytest.raises(ConfigError, match="adaptive_level is off or on"):
        MarginPolicy.from_dict({"adaptive_level": "auto"})


def test_without_breaches_on_asks_for_what_off_asks(bundle: LoadedBundle) -> None:
    on, off = after(bundle, [0.0] * 4), after(bundle, [0.0] * 4, replace(ON, adaptive_level="off"))
    assert asked(on, 3) == asked(off, 3)


def test_breaches_raise_the_requirement_and_leave_the_probability(bundle: LoadedBundle) -> None:
    falls = [0.0] + [0.2] * 3
    on, off = after(bundle, falls), after(bundle, falls, replace(ON, adaptive_level="off"))
    assert asked(on, 3) > 1.05 * asked(off, 3)
    on_book, off_book = (of.forecast for of in (on, off))
    assert on_book is not None
    assert off_book is not None
    np.testing.assert_array_equal(on_book.sigma, off_book.sigma)


def test_an_outage_does_not_lower_what_breaches_raised(bundle: LoadedBundle) -> None:
    of = after(bundle, [0.0] + [0.2] * 3)
    before = asked(of, 3)
    for number in range(4, 40):
        of.take(bar(number, 0.0, degraded=True), MARKETS)  # BTC is sound and eases the level
        assert asked(of, number) >= before
    of.take(bar(40, 0.0), MARKETS)
    assert asked(of, 40) < before


def test_a_gap_in_the_bars_keeps_the_level_and_drops_the_open_windows(bundle: LoadedBundle) -> None:
    of = after(bundle, [0.0] + [0.2] * 3)
    assert of.level is not None
    before = of.level.controller.shift.copy()
    of.take(bar(50, 0.9), MARKETS)
    np.testing.assert_array_equal(of.level.controller.shift, before)


def test_a_state_keeps_the_level(make_warm: Callable[..., Scorer], feed: Feed, tmp_path: Path) -> None:
    policy = MarginPolicy(adaptive_level="on", adaptive_level_step=2.0, initial_level=0.7)
    first, second = make_warm(policy=policy), make_warm(policy=policy)
    first.close_bar(slot(N_HISTORY - 1)) if first.forecast is None else None
    first.save_state(tmp_path / "state.npz")
    second.load_state(tmp_path / "state.npz")
    for number in range(N_HISTORY, N_HISTORY + 5):
        for scorer in (first, second):
            feed.observe(scorer, number)
            scorer.close_bar(slot(number))
    ours, theirs = (scorer._requirements.level for scorer in (first, second))
    assert ours is not None
    assert theirs is not None
    assert ours.controller.shift.max() > 0.0
    np.testing.assert_array_equal(ours.controller.shift, theirs.controller.shift)
    books = [scorer.score(BOOK).initial_margin_usd[0] for scorer in (first, second)]
    assert books[0] == books[1]


def test_a_state_saved_without_it_loads_with_it(make_warm: Callable[..., Scorer], tmp_path: Path) -> None:
    make_warm().save_state(tmp_path / "state.npz")
    make_warm(policy=ON).load_state(tmp_path / "state.npz")
