"""A margin call is announced: how far maintenance is going to rise, and when it will have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk.margin import hours_to_target, slow_scale
from riskml.scoring import AccountBook, MarginPolicy, Scorer

from .conftest import N_HISTORY, Feed, position, slot

SLOW = MarginPolicy(rate_limit_per_hour=0.02, slow_weight=0.0, stressed_floor=0.0)


@pytest.fixture
def book() -> AccountBook:
    accounts = {
        "long": [position("BTC", 6_000.0)],
        "short": [position("BTC", -6_000.0)],
        "elsewhere": [position("ETH", 6_000.0)],
        "none": [],
    }
    row = {"cash_usd": 700.0, "ts": slot(N_HISTORY + 200)}
    return AccountBook.from_dicts(
        [row | {"account_id": name, "positions": held} for name, held in accounts.items()]
    )


def shaken(rows: dict[str, np.ndarray], symbol: str) -> dict[str, np.ndarray]:
    """Bars in which one market swings by tenths."""
    wild = rows["symbol"] == symbol
    return rows | {
        "high": np.where(wild, rows["high"] * 1.1, rows["high"]),
        "low": np.where(wild, rows["low"] * 0.9, rows["low"]),
    }


@pytest.fixture
def stormy(make_warm: Callable[..., Scorer], feed: Feed) -> Scorer:
    """BTC turned wild an hour ago."""
    scorer = make_warm(policy=SLOW)
    for table in feed.tables:
        rows = feed.rows(table, N_HISTORY)
        scorer.observe(table, shaken(rows, "BTC") if table == "bars" else rows)
    scorer.close_bar(slot(N_HISTORY))
    return scorer


def test_a_rise_that_the_limit_holds_back_is_announced(stormy: Scorer, book: AccountBook) -> None:
    notice = stormy.notice(book)
    decided = stormy.what_if(book)
    np.testing.assert_array_equal(notice.maintenance_margin_usd, decided.maintenance_margin_usd)
    assert (notice.announced_usd[:2] > 1.2 * notice.maintenance_margin_usd[:2]).all()
    growth = notice.announced_usd[0] / notice.maintenance_margin_usd[0]
    # of a long what 1 USD needs falls behind its distance by the curvature of the loss
    assert np.log(growth) / np.log(1.02) <= notice.hours[0] <= 1.3 * np.log(growth) / np.log(1.02)
    np.testing.assert_array_equal(notice.call_usd, np.maximum(notice.announced_usd - 700.0, 0.0))
    assert notice.hours[3] == notice.announced_usd[3] == 0.0


def test_the_spare_margin_of_an_isolated_position_answers_no_call(stormy: Scorer) -> None:
    btc = position("BTC", 6_000.0)
    rich = position("ETH", 1_000.0, margin_mode="isolated", isolated_margin_usd=90_000.0)
    row = {"cash_usd": 50.0, "ts": slot(N_HISTORY + 200)}
    held = AccountBook.from_dicts(
        [
            row | {"account_id": "cross", "positions": [btc]},
            row | {"account_id": "both", "positions": [btc, rich]},
            row | {"account_id": "rich", "positions": [rich]},
        ]
    )
    notice = stormy.notice(held)
    np.testing.assert_allclose(notice.call_usd[:2], notice.announced_usd[0] - 50.0, rtol=1e-12)
    assert notice.call_usd[2] == 0.0
    assert notice.call_usd[0] > stormy.what_if(held).maintenance_shortfall_usd[0] > 0.0
    assert notice.equity_usd[1] > 1_000.0 + notice.announced_usd[1]
    assert notice.to_dicts()[1]["call_usd"] == notice.call_usd[1]


def test_what_was_announced_is_what_comes_when_nothing_else_changes(
    stormy: Scorer, book: AccountBook
) -> None:
    requirements = stormy._requirements
    scales = requirements.scales
    assert scales is not None
    notice = stormy.notice(book)
    hours = hours_to_target(scales.forecast, scales.maintenance, scales.target, SLOW)
    # The limit after that many hours, from today's scale, is the scale announced; a little earlier it is not.

    for share, reached in ((1.0, True), (0.9, False)):
        after = slow_scale(scales.forecast, scales.maintenance, share * hours[0], SLOW)
        upto = scales.forecast.horizon(SLOW.maintenance_horizon) + 1
        close = after.sigma[0, :upto] >= scales.target[0, :upto] * (1.0 - 1e-3)
        assert close.all() == reached
    assert notice.hours[:2] == pytest.approx(hours[0])


def test_nothing_is_announced_without_a_limit_and_nothing_is_remembered(
    make_warm: Callable[..., Scorer], feed: Feed, book: AccountBook
) -> None:
    free = make_warm(policy=MarginPolicy(rate_limit_per_hour=np.inf))
    notice = free.notice(book)
    assert notice.hours.tolist() == [0.0] * 4
    np.testing.assert_array_equal(notice.announced_usd, notice.maintenance_margin_usd)
    assert free._requirements.actions == {}


def test_a_limit_of_0_never_gets_there_and_says_so(
    make_warm: Callable[..., Scorer], feed: Feed, book: AccountBook
) -> None:
    frozen = make_warm(policy=MarginPolicy(rate_limit_per_hour=0.0, slow_weight=0.0, stressed_floor=0.0))
    for table in feed.tables:
        rows = feed.rows(table, N_HISTORY)
        frozen.observe(table, shaken(rows, "BTC") if table == "bars" else rows)
    frozen.close_bar(slot(N_HISTORY))
    notice = frozen.notice(book)
    assert notice.hours[:2].tolist() == [np.inf, np.inf]
    assert notice.to_dicts()[0]["hours"] is None


def test_an_announcement_survives_a_restart(
    stormy: Scorer, book: AccountBook, make_warm: Callable[..., Scorer], tmp_path: Path
) -> None:
    other = make_warm(policy=SLOW)
    other.load_state(stormy.save_state(tmp_path / "state.npz"))
    assert other.notice(book).to_dicts() == stormy.notice(book).to_dicts()


def test_before_the_first_bar_there_is_nothing_to_announce(tiny_bundle: Path, book: AccountBook) -> None:
    with pytest.raises(DataError, match="no bar was closed yet"):
        Scorer.load(tiny_bundle).notice(book)
