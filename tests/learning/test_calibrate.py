"""The calibration recovers a known distortion, and leaves a law alone that needs none."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.learning import calibrate
from riskml.learning.calibrate import PRIOR_SCALE, Calibration, choose_calibration, fit_calibration, scores
from riskml.risk import excursion

HORIZONS = ("1h", "8h", "24h")


@pytest.fixture(autouse=True)
def fewer_rows(monkeypatch):
    """Enough for the tolerances below, and fast."""
    monkeypatch.setattr(calibrate, "MAX_ROWS", 30_000)


def simulate(n_bars: int, *, log_scale=((0, 0),) * 3, power=(1, 1, 1), seed: int = 0):
    """Excursions of 4 independent markets from the law with a known scale and power."""
    generator = np.random.default_rng(seed)
    shape = (n_bars, 4, 3)
    sigma = np.exp(generator.normal(np.log([0.012, 0.03, 0.05]), 0.4, shape))[..., None] * np.ones(2)
    nu = generator.uniform(3.0, 8.0, shape)
    t = np.abs(generator.standard_t(nu[..., None] * np.ones(2)))
    mae = sigma * np.exp(log_scale) * t ** (1.0 / np.array(power, float)[:, None])
    return sigma, nu, mae


def test_a_law_that_is_right_is_left_alone():
    calibration = fit_calibration(*simulate(8_000), HORIZONS)
    assert calibration.log_scale == pytest.approx(np.zeros((3, 2)), abs=0.05)
    assert calibration.power == pytest.approx(np.ones(3), abs=0.04)


def test_a_known_scale_and_power_are_recovered_from_a_long_sample():
    truth = np.array([[0.2, -0.1], [0.0, 0.15], [-0.2, -0.2]])
    power = (1.1, 0.95, 1.0)
    calibration = fit_calibration(*simulate(20_000, log_scale=truth, power=power), HORIZONS)
    assert calibration.log_scale == pytest.approx(truth, abs=0.06)
    assert calibration.power == pytest.approx(np.array(power), abs=0.05)


def test_a_short_sample_is_held_near_the_identity():
    truth = np.full((3, 2), 0.3)
    long, short = (
        fit_calibration(*simulate(n, log_scale=truth), HORIZONS).log_scale.mean(axis=1) for n in (8_000, 48)
    )
    assert (short < long).all()
    assert short[2] < PRIOR_SCALE  # two windows of 24 h say next to nothing


def test_a_calibration_is_kept_only_at_the_horizons_where_it_helps_later_rows():
    sigma, nu, mae = simulate(4_000, log_scale=((0.3, 0.3), (0.3, 0.3), (0, 0)))
    # At 8 h the law was wrong on the fit part alone: what was learnt there does harm after it.
    mae[3_000:, :, 1] /= np.exp(0.3)
    fit_rows = np.arange(4_000) < 3_000
    kept = choose_calibration(sigma, nu, mae, HORIZONS, fit_rows, ~fit_rows)
    everywhere = fit_calibration(sigma, nu, mae, HORIZONS)
    assert everywhere.log_scale[1].min() > 0.15
    assert kept.log_scale[1].tolist() == [0.0, 0.0]
    assert kept.power[1] == 1.0
    assert kept.log_scale[0] == pytest.approx(everywhere.log_scale[0])
    assert kept.power[0] == pytest.approx(everywhere.power[0])


def test_the_score_is_lowest_at_the_law_that_made_the_rows():
    sigma, nu, mae = simulate(2_500, log_scale=((0.2, 0.2),) * 3)

    def score(shift, power=1.0):
        return scores(Calibration(np.full((3, 2), shift), np.full(3, power)), sigma, nu, mae)

    best = score(0.2)
    for other in (score(0.0), score(0.1), score(0.3), score(0.2, 1.15), score(0.2, 0.85)):
        assert (other > best).all()


def test_rows_with_nan_change_nothing():
    sigma, nu, mae = simulate(3_000)
    expected = fit_calibration(sigma, nu, mae, HORIZONS)
    gap = np.full((24 * 40, 4, 3, 2), np.nan)
    padded = fit_calibration(
        np.concatenate([sigma, gap]), np.concatenate([nu, gap[..., 0]]), np.concatenate([mae, gap]), HORIZONS
    )
    assert padded.log_scale == pytest.approx(expected.log_scale, abs=1e-6)
    assert padded.power == pytest.approx(expected.power, abs=1e-6)


def test_a_horizon_without_a_row_keeps_the_identity():
    sigma, nu, mae = simulate(2_000)
    mae[:, :, 1] = np.nan
    calibration = fit_calibration(sigma, nu, mae, HORIZONS)
    assert calibration.log_scale[1].tolist() == [0.0, 0.0]
    assert calibration.power[1] == 1.0


def test_flat_rows_are_taken_as_well_as_bars_by_market():
    sigma, nu, mae = simulate(2_000)
    flat = fit_calibration(sigma.reshape(-1, 3, 2), nu.reshape(-1, 3), mae.reshape(-1, 3, 2), HORIZONS)
    assert np.isfinite(flat.log_scale).all()
    assert flat.power == pytest.approx(np.ones(3), abs=0.1)


def test_the_calibrated_quantile_is_exceeded_as_often_as_it_says():
    truth, power = np.full((3, 2), 0.25), (1.1, 1.1, 1.1)
    sigma, nu, mae = simulate(12_000, log_scale=truth, power=power, seed=1)
    calibration = fit_calibration(sigma, nu, mae, HORIZONS)
    fresh_sigma, fresh_nu, fresh_mae = simulate(6_000, log_scale=truth, power=power, seed=2)
    level = excursion.quantile(0.99, fresh_nu) ** (1 / calibration.power)
    breach = fresh_mae > calibration.apply(fresh_sigma) * level[..., None]
    assert breach.mean(axis=(0, 1, 3)) == pytest.approx(np.full(3, 0.01), rel=0.15)


def test_the_identity_changes_no_sigma():
    sigma = np.random.default_rng(3).random((5, 3, 2))
    assert np.array_equal(Calibration.identity(3).apply(sigma), sigma)


def test_arrays_that_do_not_belong_together_are_refused():
    sigma, nu, mae = simulate(10)
    with pytest.raises(DataError, match="do not belong together"):
        fit_calibration(sigma, nu[:5], mae, HORIZONS)
    with pytest.raises(DataError, match="do not belong together"):
        fit_calibration(sigma, nu, mae, ("1h", "8h"))


@pytest.mark.parametrize("n_rows", [10, 200_000, 700_000, 5_000_000])
def test_thinning_visits_every_hour_of_the_week(n_rows):
    step = calibrate._thinning(n_rows)
    assert len({row * step % 168 for row in range(168)}) == 168
    assert n_rows / step <= 30_000
