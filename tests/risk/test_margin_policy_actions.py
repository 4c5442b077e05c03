"""The slow scale, rounding, the policy file and actions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.risk import Forecast, MarginPolicy
from riskml.risk.actions import deleverage_plan, risk_score
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.collateral import chain_stress_score
from riskml.risk.excursion import quantile
from riskml.risk.margin import ReferenceSigma, maintenance_sigma, reference_sigma, round_up_cents
from riskml.risk.reasons import REASONS, reason_bits, reason_names


def _forecast(scale: float) -> Forecast:
    return Forecast(
        0,
        ("BTC",),
        ("1h",),
        np.full((1, 1, 2), scale),
        np.full((1, 1), 4.0),
        np.full((1, 1), scale**2),
        np.zeros((1, 1)),
        np.zeros((1, 2)),
        np.zeros(1, dtype=np.bool_),
    )


def _reference(stressed: float, long_run: float) -> ReferenceSigma:
    return ReferenceSigma(np.full((1, 1, 2), stressed), np.full((1, 1, 2), long_run))


@pytest.mark.parametrize(
    ("policy", "fast", "expected"),
    [
        (MarginPolicy(slow_weight=0.5, stressed_floor=0.0), 0.01, 0.02),  # sqrt(.01 x .04)
        (MarginPolicy(slow_weight=0.0, stressed_floor=0.0), 0.01, 0.01),
        (MarginPolicy(slow_weight=0.5, stressed_floor=0.5), 0.01, 0.05),  # half of the stressed scale
        (MarginPolicy(slow_weight=0.5, stressed_floor=0.0, apc="a"), 0.01, 0.025),  # 1.25 x
        (MarginPolicy(slow_weight=0.5, stressed_floor=0.0, apc="a"), 0.16, 0.08),  # buffer used up
        (MarginPolicy(slow_weight=0.5, stressed_floor=0.0, apc="b"), 0.01, 0.04),  # .75 x .02 + .25 x .1
        (MarginPolicy(slow_weight=0.5, stressed_floor=0.0, apc="c"), 0.01, 0.04),  # the long-run scale
    ],
)
def test_the_slow_scale_blends_floors_and_damps(policy: MarginPolicy, fast: float, expected: float) -> None:
    found = maintenance_sigma(_forecast(fast), None, 0.0, policy, _reference(0.1, 0.04))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_rate_limit_holds_rises_only() -> None:
    policy = MarginPolicy(slow_weight=0.0, stressed_floor=0.0, rate_limit_per_hour=0.25)
    before = np.full((1, 1, 2), 0.01)
    found = maintenance_sigma(_forecast(0.05), before, 2.0, policy)
    assert found[0, 0, 0] == pytest.approx(0.01 * 1.25**2)
    # of a short the loss exp(d) - 1 is what may rise, not the scale
    level = quantile(policy.maintenance_level, 4.0)
    rise = np.expm1(found[0, 0, 1] * level) / np.expm1(0.01 * level)
    assert rise == pytest.approx(1.25**2, rel=1e-4)
    np.testing.assert_allclose(maintenance_sigma(_forecast(0.002), before, 2.0, policy), 0.002)
    np.testing.assert_allclose(
        maintenance_sigma(_forecast(0.05), np.full((1, 1, 2), np.nan), 1.0, policy), 0.05
    )


def test_a_fatter_tail_does_not_lift_a_requirement_over_the_limit() -> None:
    policy = MarginPolicy(slow_weight=0.0, stressed_floor=0.0, rate_limit_per_hour=0.02)
    thin = np.full((1, 1), 8.0)
    fat = replace(_forecast(0.01), nu=np.full((1, 1), 2.5))
    before = np.full((1, 1, 2), 0.01)
    found = maintenance_sigma(fat, before, 1.0, policy, previous_nu=thin)
    asked = [scale * float(quantile(policy.maintenance_level, nu)) for scale, nu in ((0.01, 8.0), (1.0, 2.5))]
    assert (found[0, 0] * asked[1] / asked[0] <= 1.02 * (1.0 + 1e-4)).all()
    assert found[0, 0, 0] * asked[1] / asked[0] == pytest.approx(1.02, rel=1e-4)


def test_reference_scales_align_by_name_and_fall_back_to_the_star() -> None:
    raw = {"stressed": {"BTC": [[1.0, 2.0]], "*": [[3.0, 4.0]]}, "long_run": {}}
    found = reference_sigma(raw, ("NEW", "BTC"), 1)
    assert found.stressed[:, 0].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert np.isnan(found.long_run).all()
    with pytest.raises(DataError, match=r"has to be \[2\]\[2\] per market"):
        reference_sigma(raw, ("BTC",), 2)


@pytest.mark.parametrize(
    ("usd", "expected"),
    [(1.0, 1.0), (1.001, 1.01), (0.0, 0.0), (2.675, 2.68), (0.1 + 0.2, 0.3), (1e9 + 0.001, 1e9 + 0.01)],
)
def test_cents_are_rounded_up_but_float_noise_is_not(usd: float, expected: float) -> None:
    assert float(round_up_cents(np.array([usd]))[0]) == expected


def test_a_policy_file_is_read_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('initial_level = 0.99\napc = "b"\n')
    policy = MarginPolicy.load(file)
    assert (policy.initial_level, policy.apc, policy.maintenance_level) == (0.99, "b", 0.995)
    assert policy.policy_hash == MarginPolicy(initial_level=0.99, apc="b").policy_hash
    assert policy.policy_hash != MarginPolicy().policy_hash
    assert MarginPolicy.load(None) == MarginPolicy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("offset_cpa = 0.5", "no 'offset_cpa'. Did you mean 'offset_cap'"),
        ("offset_cap = 1.5", r"offset_cap has to lie in \[0, 1\], found 1.5"),
        ("initial_level = 1.0", r"initial_level has to lie in \[0.5, 1\)"),
        ('apc = "d"', "apc is none, a, b or c"),
        ('initial_horizon = "soon"', "initial_horizon is not a duration"),
        ("watch_probability = 0.9", "watch <= restrict <= deleverage"),
        ("offset_cap = 2\nfloor = -1", "2 problems"),
        ("offset_cap =", "is not valid TOML"),
        ("liquidity_rate = inf", r"liquidity_rate has to lie in \[0, 10\], found inf"),
        ("unknown_daily_scale = nan", r"unknown_daily_scale has to lie in \[0, 10\], found nan"),
        ("initial_floor = 1.5", r"initial_floor has to lie in \[0, 1\]"),
    ],
)
def test_an_unusable_policy_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        MarginPolicy.load(file)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "a int is no margin policy"),
        (BreakerPolicy(), "a BreakerPolicy is no margin policy"),
        ({"offset_cpa": 0.5}, "no 'offset_cpa'"),
        (Path("/"), "there is no policy file /"),
    ],
)
def test_what_is_no_policy_is_refused(source: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MarginPolicy.load(source)  # type: ignore[arg-type]


def test_a_policy_is_read_from_a_dict() -> None:
    assert MarginPolicy.load({"offset_cap": 0.3}) == MarginPolicy(offset_cap=0.3)


def test_a_missing_policy_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no policy file .*absent\.toml"):
        MarginPolicy.load(tmp_path / "absent.toml")


def test_the_risk_score_rises_with_probability() -> None:
    score = risk_score(np.array([0.0, 1e-6, 1e-3, 0.01, 1.0]))
    np.testing.assert_allclose(score, [0.0, 0.0, 50.0, 100.0 * 4.0 / 6.0, 100.0], atol=1e-9)


def test_deleveraging_closes_the_largest_contribution_first_and_only_as_much_as_needed() -> None:
    exposure, share = np.array([100.0, -50.0, 80.0]), np.array([0.7, -0.1, 0.4])
    assert deleverage_plan(exposure, share, 120.0, 100.0).tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(deleverage_plan(exposure, share, 65.0, 100.0), [0.5, 0.0, 0.0])
    np.testing.assert_allclose(deleverage_plan(exposure, share, 10.0, 100.0), [1.0, 0.0, 0.5])


def test_chain_stress_rises_with_each_of_its_inputs() -> None:
    calm = chain_stress_score(0.0, 0.0, 0.0, 100.0)
    assert calm < 0.06
    assert chain_stress_score(6.0, 0.0, 0.0, 100.0) > 0.9
    assert chain_stress_score(0.0, 0.05, 0.0, 100.0) == 1.0
    assert chain_stress_score(0.0, 0.0, 200.0, 100.0) == 1.0
    assert chain_stress_score(float("nan"), float("nan"), 0.0, 100.0) == 0.0
    assert chain_stress_score(0.0, 0.0, float("nan"), 100.0) == 1.0


def test_reason_bits_survive_the_round_trip() -> None:
    assert len(REASONS) == len(set(REASONS)) <= 64
    assert reason_names(reason_bits(["stale-snapshot", "no-position"])) == ["no-position", "stale-snapshot"]
