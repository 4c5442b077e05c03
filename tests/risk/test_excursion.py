"""The half-t law against scipy, far into the tail."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import t as student

from riskml.errors import DataError
from riskml.risk.excursion import (
    MAX_DISTANCE,
    QUANTILE_POINTS,
    exact_log_survival,
    expected_shortfall,
    log_survival,
    quantile,
    quantile_table,
    survival,
    survival_table,
)


def _points(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    z = np.concatenate(
        [np.expm1(rng.uniform(0.0, np.log1p(MAX_DISTANCE), n)), 10.0 ** rng.uniform(-8, 1.5, n)]
    )
    return z, 1.0 / rng.uniform(1.0 / 30.0, 1.0 / 2.2, z.size)


def test_survival_agrees_with_scipy_to_1e_4_down_to_1e_30() -> None:
    z, nu = _points()
    expected = np.log(2.0) + student.logsf(z, nu)
    far = expected > np.log(1e-30)
    assert far.sum() > 10_000
    assert expected[far].min() < np.log(1e-28)
    assert np.max(np.abs(np.expm1(log_survival(z, nu) - expected)[far])) < 1e-4


def test_the_routine_behind_the_table_is_exact() -> None:
    z, nu = _points(4_000)
    np.testing.assert_allclose(exact_log_survival(z, nu), np.log(2.0) + student.logsf(z, nu), atol=1e-11)


def test_survival_falls_in_z_and_starts_at_one() -> None:
    z = np.expm1(np.linspace(0.0, np.log1p(MAX_DISTANCE), 20_001))
    for nu in (2.2, 3.7, 30.0):
        values = log_survival(z, nu)
        assert values[0] == 0.0
        assert np.all(np.diff(values) < 0.0)


def test_the_table_is_smaller_than_a_megabyte() -> None:
    assert survival_table().values.nbytes < 1_000_000


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99, 0.995, 0.9999])
def test_quantile_inverts_survival_and_agrees_with_scipy(level: float) -> None:
    nu = np.linspace(2.2, 30.0, 200)
    z = quantile(level, nu)
    np.testing.assert_allclose(survival(z, nu), 1.0 - level, rtol=1e-12)
    np.testing.assert_allclose(z, student.isf((1.0 - level) / 2.0, nu), rtol=3e-5)


def test_quantile_table_interpolates_within_3e_5() -> None:
    inv_nu = np.random.default_rng(0).uniform(1 / 30, 1 / 2.2, 500)
    grid = np.linspace(1 / 30, 1 / 2.2, QUANTILE_POINTS)
    for level in (0.9, 0.995, 0.9999):
        found = np.interp(inv_nu, grid, quantile_table([level])[0])
        np.testing.assert_allclose(found, quantile(level, 1.0 / inv_nu), rtol=3e-5)


@pytest.mark.parametrize(("level", "nu"), [(0.95, 2.5), (0.99, 4.0), (0.995, 30.0)])
def test_expected_shortfall_is_the_mean_beyond_the_quantile(level: float, nu: float) -> None:
    z = float(quantile(level, nu))
    beyond, _ = quad(lambda x: 2.0 * student.sf(x, nu), z, np.inf)
    assert float(expected_shortfall(level, nu)) == pytest.approx(z + beyond / (1.0 - level), rel=1e-4)


def test_nan_stays_nan_and_out_of_range_is_clipped() -> None:
    assert np.isnan(survival(np.nan, 3.0))
    assert np.isnan(survival(1.0, np.nan))
    assert float(survival(-1.0, 3.0)) == 1.0
    assert float(survival(2.0, 1e9)) == float(survival(2.0, 30.0))


@pytest.mark.parametrize("level", [0.0, 1.0, np.nan])
def test_a_level_outside_0_and_1_is_refused(level: float) -> None:
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        quantile(level, 3.0)


def test_the_law_is_that_of_a_simulated_path_with_random_variance() -> None:
    rng = np.random.default_rng(1)
    nu, steps, paths = 4.0, 400, 6_000
    sigma = np.sqrt(nu / rng.chisquare(nu, paths))
    walk = np.cumsum(rng.normal(size=(paths, steps)), axis=1) / np.sqrt(steps)
    furthest = sigma * np.maximum(walk.max(axis=1), 0.0)
    for z in (0.5, 1.0, 2.0, 4.0):
        share = float(np.mean(furthest > z))
        # Discrete steps miss a little of the maximum: 0.58 / sqrt(steps) of a scale.
        assert float(survival(z + 0.09, nu)) - 0.02 < share < float(survival(z, nu)) + 0.02
