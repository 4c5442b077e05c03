"""Every feature against its formula, written out a second time, and what the formulas are for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riskml.features.catalog import CATALOG, select
from riskml.features.evaluate import evaluate_features

HOUR_US = 3_600_000_000
FROM_DATA = [feature.name for feature in CATALOG if feature.family != "calendar"]
"""The calendar is checked hour by hour in ``test_catalog.py``."""


@pytest.fixture(scope="module")
def panel(formulas):
    return formulas.make_panel()


@pytest.fixture(scope="module")
def found(panel, formulas):
    values = evaluate_features(CATALOG, panel.inputs, panel.ts, interval="1h", markets=formulas.MARKETS)
    return {feature.name: values[:, :, place] for place, feature in enumerate(CATALOG)}


@pytest.mark.parametrize("name", FROM_DATA)
def test_a_feature_is_the_formula_that_it_names(name, panel, found, formulas, formulas_across):
    oracles = formulas.OF_ONE_MARKET | formulas_across.ACROSS
    assert name in oracles, "write its formula in tests/features/formulas.py"
    rows = (1031, 1250, len(panel.ts) - 1)
    expected = [[oracles[name](panel, t, i) for i in range(len(formulas.MARKETS))] for t in rows]
    np.testing.assert_allclose(found[name][list(rows)], expected, rtol=1e-9, atol=1e-12)
    assert np.isfinite(expected).sum() >= 6


@pytest.mark.parametrize(
    "name", ["log_parkinson_1h", "log_har_7d", "log_ewm_variance_60d", "log_realised_7d"]
)
def test_a_level_of_a_steady_market_is_that_level(name, panel):
    n_bars = 400
    steady = {key: np.full((n_bars, 1), np.nan) for key in panel.inputs}
    steady["close"] = np.exp(0.01 * (np.arange(n_bars)[:, None] % 2))
    steady["high"], steady["low"] = steady["close"] * math.exp(0.01), steady["close"] * math.exp(-0.01)
    value = evaluate_features(select([name]), steady, panel.ts[:n_bars], interval="1h", tail=1).item()
    expected = 0.01**2 if "realised" in name else 0.02**2 / (4.0 * math.log(2.0))
    assert value == pytest.approx(math.log(expected), rel=1e-12)


def test_pressure_turns_to_zero_when_a_fall_has_taken_the_longs(panel, formulas):
    names = select(["liquidation_pressure_long", "liquidation_pressure_short"])
    fallen = {name: values.copy() for name, values in panel.inputs.items()}
    for name in ("open", "high", "low", "close"):
        fallen[name][-1] *= 0.8
    before = evaluate_features(names, panel.inputs, panel.ts, interval="1h", markets=formulas.MARKETS, tail=2)
    after = evaluate_features(names, fallen, panel.ts, interval="1h", markets=formulas.MARKETS, tail=2)
    assert (before[-1, :, 0] > 0.01).any()
    assert (after[-1, :, 0] == 0.0).all()
    np.testing.assert_array_equal(after[0], before[0])


# Statistics: what the estimators are for.

SIGMA = 0.006
"""Volatility of the simulated path per root of an hour."""


def brownian_bars(
    n_hours: int, n_paths: int, *, seed: int, drift: float = 0.0, jump: float = 0.0
) -> dict[str, np.ndarray]:
    """Hourly bars of Brownian paths; extremes are exact, drawn from the bridge between the steps.

    Only the larger of a step's two extremes is sure to count in a bar, so drawing the highest and the
    lowest of a step apart from each other does no harm.
    """
    rng = np.random.default_rng(seed)
    n_steps = 30
    step_variance = SIGMA**2 / n_steps
    steps = drift / n_steps + math.sqrt(step_variance) * rng.standard_normal((n_hours, n_steps, n_paths))
    steps[12::24, 7] += jump
    path = np.cumsum(steps.reshape(-1, n_paths), axis=0).reshape(steps.shape)
    start = path - steps
    spread = np.sqrt(steps**2 - 2.0 * step_variance * np.log(rng.random((2, *steps.shape))))
    highest = (0.5 * (start + path + spread[0])).max(axis=1)
    lowest = (0.5 * (start + path - spread[1])).min(axis=1)
    bars = {"open": start[:, 0], "close": path[:, -1], "high": highest, "low": lowest}
    return {name: np.exp(values) for name, values in bars.items()}


def variances(names: list[str], bars: dict[str, np.ndarray]) -> np.ndarray:
    """Hourly variance [n_days, n_paths, n_names], one window per day from the ninth on."""
    n_bars = len(bars["close"])
    ts = np.arange(1, n_bars + 1, dtype=np.int64) * HOUR_US
    values = evaluate_features(select(names), bars, ts, interval="1h")
    return np.exp(values[191::24])


ESTIMATORS = [
    "log_realised_24h",
    "log_har_24h",
    "log_garman_klass_24h",
    "log_rogers_satchell_24h",
    "log_yang_zhang_7d",
    "log_bipower_24h",
]


def test_every_estimator_finds_the_variance_of_a_brownian_path():
    found = variances(ESTIMATORS, brownian_bars(24 * 16, 120, seed=1)) / SIGMA**2
    np.testing.assert_allclose(found.mean(axis=(0, 1)), 1.0, atol=0.03)


def test_ranges_know_more_than_closes():
    found = variances(ESTIMATORS[:4], brownian_bars(24 * 16, 120, seed=2)) / SIGMA**2
    noise = found.var(axis=(0, 1))
    efficiency = noise[0] / noise
    assert 4.0 < efficiency[1] < 6.0, "Parkinson: 4.9 in theory"
    assert 6.0 < efficiency[2] < 9.0, "Garman-Klass: 7.4 in theory"
    assert 4.5 < efficiency[3] < 7.5, "Rogers-Satchell: 6.0 in theory"


def test_a_drift_misleads_parkinson_but_not_rogers_satchell_and_yang_zhang():
    names = ["log_har_24h", "log_rogers_satchell_24h", "log_yang_zhang_7d"]
    found = variances(names, brownian_bars(24 * 16, 120, seed=3, drift=SIGMA)) / SIGMA**2
    level = found.mean(axis=(0, 1))
    assert level[0] > 1.25
    np.testing.assert_allclose(level[1:], 1.0, atol=0.04)


def test_quarticity_of_a_brownian_path_is_the_square_of_its_variance():
    bars = brownian_bars(24 * 16, 120, seed=4)
    found = variances(["log_quarticity_24h"], bars)
    assert (found**2).mean() == pytest.approx(SIGMA**4, rel=0.05)


def test_a_jump_raises_its_share_and_leaves_bipower_near_the_variance():
    names = ["jump_share_24h", "quarticity_ratio_24h", "log_bipower_24h", "log_realised_24h"]
    calm = np.log(variances(names, brownian_bars(24 * 16, 60, seed=5))).mean(axis=(0, 1))
    struck = np.log(variances(names, brownian_bars(24 * 16, 60, seed=5, jump=-10.0 * SIGMA))).mean(
        axis=(0, 1)
    )
    assert calm[0] < 0.15
    assert struck[0] > 0.55
    assert struck[1] > calm[1] + 0.6
    assert struck[3] - calm[3] > 1.4, "ln(1 + 100/24)"
    assert struck[2] - calm[2] < 0.8


def test_good_and_bad_variance_are_told_apart_by_the_sign_of_a_jump():
    names = ["log_semivariance_down_24h", "log_semivariance_up_24h", "downside_share_24h", "skewness_7d"]
    down = np.log(variances(names, brownian_bars(24 * 16, 40, seed=6, jump=-8.0 * SIGMA))).mean(axis=(0, 1))
    up = np.log(variances(names, brownian_bars(24 * 16, 40, seed=6, jump=8.0 * SIGMA))).mean(axis=(0, 1))
    assert down[0] > down[1] + 1.0
    assert up[1] > up[0] + 1.0
    assert down[2] > 0.7 > 0.3 > up[2]
    assert down[3] < -1.0
    assert up[3] > 1.0
