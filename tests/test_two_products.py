"""The script behind the two products: its fast path equals the scorer's, its measures are the protocol's."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from riskml.learning.protocol import margin_distance, simple_requirement
from riskml.risk.assess import MAINTENANCE, MarketLaw
from riskml.risk.forecast import Forecast
from riskml.risk.margin import ReferenceSigma, slow_scale
from riskml.risk.policy import MarginPolicy
from riskml.units import DAY, HOUR

FILE = Path(__file__).resolve().parents[1] / "training" / "two_products.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, which is no package."""
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("training_two_products", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FILE.parent))
        spec.loader.exec_module(module)
    return module


def rows(script: ModuleType, n: int = 120, n_markets: int = 3) -> object:
    """A random walk of scales and tails with a crash in the middle and a gap of a day."""
    draw = np.random.default_rng(7)
    log_sigma = np.log(0.004) + np.cumsum(draw.normal(0.0, 0.15, (n, n_markets, 1)), axis=0)
    log_sigma[n // 2] += 1.2
    nu = draw.uniform(2.3, 12.0, (n, n_markets))
    ts = np.arange(n, dtype=np.int64) * HOUR
    ts[90:] += DAY
    sigma = np.exp(log_sigma + draw.normal(0.0, 0.05, (n, n_markets, 2)))
    unit = np.ones((n, n_markets, 1, 2))
    multiple = margin_distance(unit, nu[..., None], np.ones(1), 0.995)[..., 0, :1]
    return script.Track(
        ts=ts,
        sigma=sigma,
        stressed=np.full_like(sigma, 0.02),
        long_run=np.full_like(sigma, 0.006),
        multiple={0.995: multiple},
        moved=draw.exponential(0.01, sigma.shape),
        margins={},
    ), nu


@pytest.mark.parametrize(
    "policy",
    [
        MarginPolicy(),
        MarginPolicy(stressed_floor=0.0, rate_limit_per_hour=0.019),
        MarginPolicy(stressed_floor=0.15, slow_weight=0.2, apc="a", rate_limit_per_hour=0.1),
        MarginPolicy(stressed_floor=0.1, slow_weight=0.7, apc="b", rate_limit_per_hour=np.inf),
        MarginPolicy(stressed_floor=0.0, slow_weight=0.0, apc="c", floor=0.03),
    ],
)
def test_the_unrolled_maintenance_is_that_of_the_scorers_steps(
    script: ModuleType, policy: MarginPolicy
) -> None:
    track, nu = rows(script)
    found = script.required(track, [policy])
    previous, previous_nu, expected = None, None, []
    for row in range(len(track.ts)):
        each = nu[row][:, None]
        forecast = Forecast(
            int(track.ts[row]), ("A", "B", "C"), ("1h",), track.sigma[row][:, None], each, each, each,
            np.zeros((3, 1)), np.zeros(3, dtype=bool),
        )  # fmt: skip
        reference = ReferenceSigma(track.stressed[row][:, None], track.long_run[row][:, None])
        elapsed = 0.0 if row == 0 else (track.ts[row] - track.ts[row - 1]) / HOUR
        slow = slow_scale(forecast, previous, elapsed, policy, reference, previous_nu)
        previous, previous_nu = slow.sigma, each
        own = replace(policy, initial_horizon="1h", action_horizon="1h")
        unit = MarketLaw.make(forecast, slow.sigma, own).unit_margins[MAINTENANCE, :3]
        expected.append(np.maximum(unit, policy.floor))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-9)


def test_a_requirement_rises_by_no_more_than_its_limit(script: ModuleType) -> None:
    track, _ = rows(script)
    policy = MarginPolicy(stressed_floor=0.0, slow_weight=0.0, rate_limit_per_hour=0.019)
    found = script.required(track, [policy])
    hours = np.diff(track.hours)[:, None, None]
    assert ((found[1:] / found[:-1]) <= 1.019**hours * (1.0 + 1e-12)).all()


def test_a_daily_limit_is_above_the_lowest_of_a_day(script: ModuleType) -> None:
    asked = np.array([1.0, 5.0, 5.0, 0.5, 5.0])[:, None]
    found = script.daily_limited(asked, np.arange(5.0), 0.6)
    np.testing.assert_allclose(found[:, 0], [1.0, 1.6, 1.6, 0.5, 0.8])


def test_measures_are_read_off_a_small_series(script: ModuleType) -> None:
    track, _ = rows(script, n=100, n_markets=1)
    margin = np.full((100, 1, 2), 0.02)
    margin[40:, 0, 0] = 0.05
    moved = np.full((100, 1, 2), 0.01)
    moved[50, 0, 0], moved[51, 0, 1] = 0.06, 0.04
    moved[0] = np.nan
    found = script.measures(replace(track, moved=moved), margin)
    assert found["n"] == 198
    assert found["breach"] == pytest.approx(2 / 198)
    assert found["excess"] == pytest.approx((0.01 + 0.02) / 2)
    assert found["average"] == pytest.approx((39 * 0.02 + 60 * 0.05 + 99 * 0.02) / 198)
    assert (found["worst_peak_to_trough"], found["peak_to_trough"]) == (2.5, 1.75)
    assert (found["worst_one_day_rise"], found["one_day_rise"]) == pytest.approx((1.5, 0.75))


def test_misses_are_relative_and_a_dominated_point_names_its_better(script: ModuleType) -> None:
    aims = {"average": 0.04, "breach": 0.005}
    assert script.missed({"average": 0.05, "breach": 0.004}, aims) == pytest.approx({"average": 0.25})
    names = script.FRONT
    points = {"a": dict.fromkeys(names, 1.0), "b": dict.fromkeys(names, 1.0) | {"excess": 0.9}}
    assert script.dominated(points) == {"a": ["b"], "b": []}


def test_a_fall_of_a_long_and_a_rise_of_a_short_are_the_losses(script: ModuleType) -> None:
    assert script.usd is simple_requirement
    np.testing.assert_allclose(script.usd(np.array([0.1, 0.1])), [1 - np.exp(-0.1), np.exp(0.1) - 1])
