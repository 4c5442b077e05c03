"""Early warning: literal alarms and onsets, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riskml.arrays import Bool2D, Float2D
from riskml.learning.early_warning import alarms, choose_threshold, tally, warn


def marks(n: int, *rows: int) -> Bool2D:
    result = np.zeros((n, 1), dtype=np.bool_)
    result[list(rows)] = True
    return result


def everything(n: int) -> Bool2D:
    return np.ones((n, 1), dtype=np.bool_)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ([0, 1, 1, 1, 0, 1], [1, 5]),  # staying above raises nothing, crossing again does
        ([1, 1, 0, 1, 0, 1], [0, 3]),  # the third crossing comes two bars after the last alarm
        ([0, math.nan, 1, math.nan, 1, 0], [2]),  # a missing score is below; bar 4 is in the cool-down
        ([0, 0, 0, 0, 0, 0], []),
    ],
)
def test_alarms_are_upward_crossings_with_a_cool_down(score: list[float], expected: list[int]) -> None:
    found = alarms(np.array(score, dtype=np.float64)[:, None], 0.5, cool_bars=3)
    assert np.flatnonzero(found[:, 0]).tolist() == expected


@pytest.mark.parametrize(
    ("alarm", "onset", "recall", "precision", "lead"),
    [
        ([10], [20], 1.0, 1.0, 9 * 60.0),  # raised at the close of bar 10; bar 20 opens at the close of 19
        ([10], [34], 1.0, 1.0, 23 * 60.0),  # closes exactly 24 h later
        ([10], [35], 0.0, 0.0, math.nan),  # one hour too late
        ([20], [20], 0.0, 0.0, math.nan),  # at the close of the onset's own bar: no warning
        ([19], [20], 1.0, 1.0, 0.0),
        ([10, 60], [20], 1.0, 0.5, 9 * 60.0),
        ([10], [20, 80], 0.5, 1.0, 9 * 60.0),
        ([], [20], 0.0, math.nan, math.nan),
    ],
)
def test_an_alarm_hits_what_closes_within_a_day(
    alarm: list[int], onset: list[int], recall: float, precision: float, lead: float
) -> None:
    found = tally(marks(168, *alarm), marks(168, *onset), everything(168), "1h")
    np.testing.assert_equal(
        (found.recall, found.precision, found.median_lead_minutes), (recall, precision, lead)
    )


def test_false_alarms_count_per_market_week_and_hours_in_alarm_once() -> None:
    found = tally(marks(336, 10, 20, 200), marks(336, 30), everything(336), "1h")
    assert found.false_per_week == pytest.approx(0.5)
    # (10, 34] and (20, 44] overlap, and (200, 224]
    assert found.alarm_share == pytest.approx((34 + 24) / 336)


def test_what_is_not_usable_counts_nowhere() -> None:
    usable = everything(168)
    usable[100:] = False
    found = tally(marks(168, 120), marks(168, 130), usable, "1h")
    assert (found.n_alarms, found.n_onsets) == (0, 0)


def planted(n: int = 4000, seed: int = 0) -> tuple[Float2D, Bool2D]:
    """Noise in [0, 1), and a score of 2 six bars before every onset."""
    score = np.random.default_rng(seed).random((n, 1))
    onset = np.zeros((n, 1), dtype=np.bool_)
    onset[100::200] = True
    score[94::200] = 2.0
    return score, onset


def test_the_threshold_finds_a_planted_signal_within_the_budget() -> None:
    score, onset = planted()
    threshold, recall = choose_threshold(score, onset, everything(len(score)), "1h")
    assert threshold > 1.0
    assert recall == 1.0


def test_noise_alone_stays_within_the_budget_and_catches_little() -> None:
    noise = np.random.default_rng(1).random((4000, 1))
    _, onset = planted()
    threshold, recall = choose_threshold(noise, onset, everything(4000), "1h")
    found = tally(alarms(noise, threshold, 24), onset, everything(4000), "1h")
    assert found.false_per_week <= 1.0
    assert found.alarm_share <= 0.15
    assert recall < 0.4


def test_a_score_that_is_always_missing_raises_no_alarm() -> None:
    _, onset = planted()
    missing = np.full(onset.shape, np.nan)
    assert choose_threshold(missing, onset, everything(len(onset)), "1h") == (math.inf, 0.0)
    assert not alarms(missing, math.inf, 24).any()


def test_the_threshold_is_of_the_calibrate_part_alone() -> None:
    score, onset = planted()
    scores = {"own": score, "other": np.random.default_rng(2).random(score.shape)}
    part = scores, onset, everything(len(score))
    first = warn(part, (scores, onset), "1h")
    assert set(first.alarm) == {"own", "other"}
    assert first.alarm["own"].sum() == onset.sum()
    moved = {name: values * 3.0 for name, values in scores.items()}
    assert warn(part, (moved, onset), "1h").thresholds == first.thresholds
