"""Finer bars through a running scorer: observed as they close, they make the features of a build."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from riskml.features.assemble import assemble_inputs
from riskml.features.evaluate import evaluate_features
from riskml.scoring import Scorer
from riskml.units import HOUR, MINUTE

from .conftest import N_HISTORY, SYMBOLS, Feed, slot

FINE = ("log_fine_variance_1h", "log_last_quarter_variance", "log_fine_har_24h", "season_ratio_1h_14d")
N_LIVE = 30


@pytest.fixture
def fine_bundle(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny bundle with features of finer bars and of the season."""
    monkeypatch.setattr(maker, "FEATURES", (*maker.FEATURES, *FINE))
    maker.make_tiny_bundle(tmp_path / "fine")
    return tmp_path / "fine"


def quarters(number: int) -> list[dict[str, np.ndarray]]:
    """The bars of 15 min that close in the hour before a slot, one quarter after the other."""
    found = []
    for part in (45, 30, 15, 0):
        close = slot(number) - part * MINUTE
        random = np.random.default_rng(close // MINUTE)
        prices = 100.0 * np.exp(0.003 * random.standard_normal((len(SYMBOLS), 4)))
        found.append(
            {
                "ts": np.full(len(SYMBOLS), close),
                "known_at": np.full(len(SYMBOLS), close),
                "venue": np.full(len(SYMBOLS), "sim"),
                "symbol": np.array(SYMBOLS),
                "interval": np.full(len(SYMBOLS), "15m"),
                "open": prices[:, 0],
                "high": prices.max(axis=1),
                "low": prices.min(axis=1),
                "close": prices[:, 1],
                "volume": np.ones(len(SYMBOLS)),
            }
        )
    return found


def newest(scorer: Scorer, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A feature in the newest row of the window [n_markets], and whether it is there."""
    place = [feature.name for feature in scorer.bundle.features].index(name)
    values, mask = scorer._live.graph.buffer.window()
    return values[-1, :, place].copy(), mask[-1, :, place].copy()


def test_finer_bars_that_are_observed_as_they_close_make_the_features_of_the_whole_history(
    fine_bundle: Path, feed: Feed, tmp_path: Path
) -> None:
    scorer = Scorer.load(fine_bundle)
    for number in range(N_HISTORY - 40, N_HISTORY):
        for rows in quarters(number):
            scorer.observe("bars", rows)
    feed.observe(scorer, 0, N_HISTORY - 1)
    scorer.close_bar(slot(N_HISTORY - 1))
    for number in range(N_HISTORY, N_HISTORY + N_LIVE):
        for place, rows in enumerate(quarters(number)):
            if (number, place) != (N_HISTORY + N_LIVE - 4, 1):  # one that never comes
                observed = scorer.observe("bars", rows)
                assert (observed.accepted, observed.late) == (len(SYMBOLS), 0)
        feed.observe(scorer, number)
        scorer.close_bar(slot(number))
        if number == N_HISTORY + 5:  # a restart in between
            scorer.save_state(tmp_path / "state.npz")
            scorer = Scorer.load(fine_bundle)
            scorer.load_state(tmp_path / "state.npz")
    live = scorer._live
    grid = np.arange(slot(0), slot(N_HISTORY + N_LIVE), HOUR)
    inputs = assemble_inputs(live.store, grid, live.markets, interval="1h", names=live.input_names)
    whole = evaluate_features(
        scorer.bundle.features, inputs, grid, interval="1h", tail=8, markets=live.markets
    ).astype(np.float32)
    values, mask = live.graph.buffer.window()
    for name in FINE:
        place = [feature.name for feature in scorer.bundle.features].index(name)
        there = np.isfinite(whole[:, :, place])
        np.testing.assert_array_equal(mask[:, :, place], there, err_msg=name)
        np.testing.assert_array_equal(values[:, :, place][there], whole[:, :, place][there], err_msg=name)
        assert there[-1].all(), name
    hour_with_a_hole = mask[4, :, [feature.name for feature in scorer.bundle.features].index(FINE[0])]
    assert not hour_with_a_hole.any()


def test_finer_bars_are_no_markets_and_no_bars_of_the_hour(fine_bundle: Path, feed: Feed) -> None:
    scorer = Scorer.load(fine_bundle)
    feed.observe(scorer, 0, N_HISTORY - 1)
    scorer.close_bar(slot(N_HISTORY - 1))
    stranger = {name: values.copy() for name, values in quarters(N_HISTORY)[0].items()}
    stranger["symbol"] = np.array(["NEW", "NEW2", "NEW3"])
    scorer.observe("bars", stranger)
    forecast = scorer.close_bar(slot(N_HISTORY))
    assert list(forecast.markets) == list(SYMBOLS)
    assert not newest(scorer, "log_parkinson_1h")[1].any(), "the hour's own bar was not observed"
