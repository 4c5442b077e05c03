"""Losses against outside references, and the log-HAR fit against a plain regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from riskml.errors import DataError
from riskml.learning.har import fit_log_har
from riskml.learning.losses import (
    MAX_RATIO,
    distance_bce,
    half_t_nll,
    hazard_bce,
    log_survival,
    masked_mean,
    qlike,
)
from riskml.risk import excursion


@pytest.mark.parametrize("nu", [2.2, 4.0, 30.0])
@pytest.mark.parametrize("sigma", [1e-3, 0.05])
def test_half_t_nll_equals_twice_the_t_density(nu: float, sigma: float) -> None:
    mae = np.array([0.0, 0.001, 0.02, 0.6])
    expected = -(np.log(2) + stats.t.logpdf(mae / sigma, nu) - math.log(sigma))
    found = half_t_nll(
        torch.from_numpy(mae), torch.tensor(math.log(sigma)).double(), torch.tensor(nu).double()
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("realised", "forecast", "loss"), [(1.0, 1.0, 0.0), (2.0, 1.0, 0.306853), (1.0, 2.0, 0.193147)]
)
def test_qlike_is_zero_at_the_truth_and_asymmetric(realised: float, forecast: float, loss: float) -> None:
    found = qlike(torch.tensor(realised), torch.tensor(math.log(forecast)))
    assert float(found) == pytest.approx(loss, abs=1e-5)


def test_qlike_of_a_broken_target_stays_finite() -> None:
    found = qlike(torch.tensor(1.0), torch.tensor(-200.0))
    assert float(found) == pytest.approx(MAX_RATIO - 201.0)


def test_hazard_cross_entropy_equals_the_binary_one() -> None:
    hazard, event = torch.tensor([1e-6, 0.02, 3.0]).double(), torch.tensor([1.0, 0.0, 1.0]).double()
    expected = torch.nn.functional.binary_cross_entropy(1 - torch.exp(-hazard), event, reduction="none")
    torch.testing.assert_close(hazard_bce(event, hazard), expected, rtol=1e-6, atol=1e-12)


def test_masked_mean_ignores_what_is_masked_and_survives_an_empty_mask() -> None:
    values = torch.tensor([1.0, 5.0, 3.0])
    assert float(masked_mean(values, torch.tensor([True, False, True]))) == 2.0
    assert float(masked_mean(values, torch.zeros(3, dtype=torch.bool))) == 0.0


def test_log_har_without_season_is_least_squares_plus_debiasing() -> None:
    draw = np.random.default_rng(1)
    x = draw.standard_normal((2000, 3)) - 9.0
    y = np.exp(0.3 + x @ np.array([0.5, 0.3, 0.1]) + 0.4 * draw.standard_normal(2000))
    har = fit_log_har(x, y)
    design = np.column_stack([np.ones(2000), x])
    expected = np.linalg.lstsq(design, np.log(y), rcond=None)[0]
    np.testing.assert_allclose(har.coefficients, expected[1:], rtol=1e-6)
    assert np.mean(y / har.predict(x)) == pytest.approx(1.0, abs=1e-12)


def test_log_har_recovers_an_hourly_season() -> None:
    draw = np.random.default_rng(2)
    hours = np.tile(np.arange(168), 120)
    truth = 0.7 * np.sin(2 * np.pi * hours / 24)
    x = draw.standard_normal((len(hours), 1))
    y = np.exp(-9 + 0.6 * x[:, 0] + truth + 0.3 * draw.standard_normal(len(hours)))
    har = fit_log_har(x, y, hours, season_shrinkage=0.0)
    assert har.season is not None
    assert np.abs(har.season - truth[:168]).max() < 0.15
    assert np.average(har.season) == pytest.approx(0.0, abs=1e-9)


def test_log_har_takes_the_fit_mean_for_a_missing_feature_and_no_season_for_an_unknown_hour() -> None:
    draw = np.random.default_rng(3)
    x = draw.standard_normal((1000, 2))
    har = fit_log_har(x, np.exp(x.sum(axis=1)), np.arange(1000) % 168)
    mean = har.predict_log(har.centers[None], np.array([np.nan]))
    assert har.predict_log(np.full((1, 2), np.nan), np.array([999.0])) == pytest.approx(mean)


def test_log_har_refuses_too_few_complete_rows() -> None:
    x = np.full((100, 2), np.nan)
    with pytest.raises(DataError, match="at least 60 rows"):
        fit_log_har(x, np.ones(100))
    with pytest.raises(DataError, match=r"\[n, k\]"):
        fit_log_har(np.ones((5, 2)), np.ones(4))


def test_log_survival_in_torch_is_the_law_and_its_slope() -> None:
    z = torch.tensor([0.0, 1e-3, 0.7, 3.0, 40.0, 5e3], dtype=torch.float64)
    for nu in (2.3, 4.0, 17.0):
        degrees = torch.full_like(z, nu)
        expected = excursion.log_survival(z.numpy(), nu)
        np.testing.assert_allclose(log_survival(z, degrees).numpy(), expected, rtol=1e-12, atol=1e-12)
    inner = z[2:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: log_survival(x, torch.full_like(x, 4.0)), (inner,), eps=1e-9, atol=1e-3
    )


def test_the_distance_loss_is_the_log_loss_of_reaching_the_distances() -> None:
    mae = torch.tensor([0.005, 0.03, 0.4], dtype=torch.float64)
    log_sigma, nu = torch.full_like(mae, math.log(0.01)), torch.full_like(mae, 4.0)
    distances = torch.log(torch.tensor([0.01, 0.1], dtype=torch.float64))
    found = distance_bce(mae, log_sigma, nu, distances)
    p = excursion.survival(np.array([1.0, 10.0]), 4.0)
    reached = np.array([[0, 0], [1, 0], [1, 1]])
    expected = -(reached * np.log(p) + (1 - reached) * np.log1p(-p)).mean(axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_the_distance_loss_is_least_at_the_true_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    mae = 0.01 * torch.randn(200_000, generator=generator, dtype=torch.float64).abs()
    distances = torch.linspace(math.log(0.003), math.log(0.03), 8, dtype=torch.float64)
    losses = [
        float(
            distance_bce(
                mae, torch.full_like(mae, math.log(scale)), torch.full_like(mae, 30.0), distances
            ).mean()
        )
        for scale in (0.007, 0.0098, 0.014)
    ]
    assert losses[1] == min(losses)


def test_a_certain_outcome_has_a_finite_loss() -> None:
    mae, sigma = torch.tensor([0.0, 0.9]), torch.tensor([math.log(1e-6), math.log(5.0)])
    losses = distance_bce(mae, sigma, torch.full((2,), 4.0), torch.log(torch.tensor([0.01, 0.5])))
    assert torch.isfinite(losses).all()
