"""What a step in volatility does to requirements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk import MarginPolicy
from riskml.risk.impulse import SETTLE_BARS, measure_response, step_response
from riskml.risk.margin import ReferenceSigma

HORIZONS = ("1h", "8h", "24h")
LONG_RUN = np.array([[[0.004, 0.004], [0.012, 0.011], [0.022, 0.02]], [[0.007, 0.008]] * 3])
REFERENCE = ReferenceSigma(4.0 * LONG_RUN, LONG_RUN)
NU = np.array([[3.5, 4.0, 5.0], [2.6, 3.0, 8.0]])
POLICIES = [
    MarginPolicy(),
    MarginPolicy(rate_limit_per_hour=0.019, slow_weight=0.6, stressed_floor=0.15),
    MarginPolicy(rate_limit_per_hour=0.05, slow_weight=0.0, stressed_floor=0.0),
    *(MarginPolicy(apc=apc, stressed_floor=0.1, rate_limit_per_hour=0.1) for apc in ("a", "b", "c")),
    MarginPolicy(slow_weight=0.0, stressed_floor=0.0, maintenance_horizon="24h", initial_horizon="24h"),
]


def plain(values: list[float]) -> np.ndarray:
    return np.array([*values, *[values[-1]] * SETTLE_BARS])


def test_a_response_is_read_off_its_series() -> None:
    asked = plain([1.0, 1.0, 1.2, 2.4, 2.2, 2.0])
    found = measure_response(np.arange(len(asked)) - 1.0, asked)
    assert (found.before, found.after, found.peak) == (1.0, 2.0, 2.4)
    assert found.overshoot == pytest.approx(0.2)
    assert found.half_life_h == 2.0  # 1.2 is a fifth of the way, 2.4 is beyond it
    assert found.largest_hourly_rise == pytest.approx(1.0)


def test_a_fall_has_a_half_life_and_no_overshoot() -> None:
    found = measure_response(np.arange(4.0 + SETTLE_BARS), plain([2.0, 1.6, 1.4, 1.0]))
    assert (found.half_life_h, found.largest_hourly_rise) == (2.0, 0.0)  # 1.4 is three fifths of the way


def test_a_series_without_a_change_has_no_half_life() -> None:
    found = measure_response(np.arange(40.0), np.ones(40))
    assert np.isnan(found.half_life_h)
    assert found.overshoot == 0.0


@pytest.mark.parametrize(
    ("hours", "asked", "message"),
    [
        (np.arange(40.0) + 1.0, np.ones(40), r"0 of them up to the step"),
        (np.arange(20.0), np.ones(20), r"more than 24 behind it"),
        (np.arange(40.0), np.r_[np.ones(39), np.nan], r"row 39: a requirement is nan"),
        (np.arange(40.0), np.r_[np.ones(39), 0.0], r"a requirement is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(hours: np.ndarray, asked: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure_response(hours, asked)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_threefold_step_overshoots_by_less_than_a_tenth_and_keeps_the_cap(policy: MarginPolicy) -> None:
    asked = step_response(policy, HORIZONS, REFERENCE, NU)
    for values in asked.values():
        hours = np.arange(len(values), dtype=float)
        for column in values.reshape(len(values), -1).T:
            assert measure_response(hours, column).overshoot <= 0.1
    rise = asked["maintenance"][1:] / asked["maintenance"][:-1] - 1.0
    assert rise.max() <= policy.rate_limit_per_hour * (1.0 + 1e-4)


def test_initial_margin_moves_at_once_and_maintenance_takes_its_time() -> None:
    policy = MarginPolicy(rate_limit_per_hour=0.02, slow_weight=0.5, stressed_floor=0.0)
    asked = step_response(policy, HORIZONS, REFERENCE, NU)
    hours = np.arange(len(asked["initial"]), dtype=float)
    initial, slow = (measure_response(hours, asked[name][:, 0, 0]) for name in ("initial", "maintenance"))
    assert initial.half_life_h == 1.0
    # sqrt(3) of the distance in the end; half of the way at about ln(1.366) / ln(1.02) = 15.7 hours
    assert 14.0 <= slow.half_life_h <= 18.0
    assert slow.after / slow.before < initial.after / initial.before < 3.0


def test_a_limit_of_none_moves_maintenance_at_once() -> None:
    policy = MarginPolicy(rate_limit_per_hour=np.inf, slow_weight=0.0, stressed_floor=0.0)
    asked = step_response(policy, HORIZONS, REFERENCE, NU)["maintenance"][:, 1, 1]
    assert asked[1] == pytest.approx(asked[-1])
    assert asked[1] > 2.9 * asked[0]


def test_a_step_from_an_unknown_level_is_refused() -> None:
    unknown = replace(REFERENCE, long_run=np.full_like(LONG_RUN, np.nan))
    with pytest.raises(DataError, match=r"long-run scale of every market"):
        step_response(MarginPolicy(), HORIZONS, unknown, NU)
