"""The fit of the portfolio law's loadings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riskml.errors import DataError
from riskml.learning.joint import fit_loadings, log_likelihood
from riskml.learning.networks.loadings import LoadingHead

NAMES = ("factor_loading_1", "factor_loading_2")


def test_an_untrained_head_passes_the_features_through() -> None:
    head = LoadingHead(NAMES)
    features = torch.tensor([[0.6, -0.2], [0.9, 0.9], [float("nan"), 0.1]])
    found = head(features, torch.isfinite(features))
    scale = float(0.999 / np.sqrt(1.62))
    expected = torch.tensor([[0.6, -0.2], [0.9 * scale, 0.9 * scale], [0.0, 0.1]])
    torch.testing.assert_close(found, expected)


def test_the_likelihood_is_the_multivariate_student_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    loadings = torch.tensor([[[0.6, 0.2], [0.5, -0.3], [0.1, 0.7]]], dtype=torch.float32)
    residual = torch.tensor([[1.0, float("nan"), -2.0]])
    found = float(log_likelihood(loadings, residual, torch.tensor([0.0, np.log(3.0)]))[0])
    b = loadings[0].numpy()[[0, 2]].astype(float)
    covariance = b @ b.T + np.diag(1 - (b**2).sum(axis=1))
    expected = stats.multivariate_t(shape=covariance * 3 / 5, df=5).logpdf([1.0, -2.0])
    assert found == pytest.approx(expected, rel=1e-5)


def test_known_loadings_are_recovered_from_simulated_returns() -> None:
    draw = np.random.default_rng(0)
    n, m = 6000, 6
    factor, own = draw.standard_normal((n, 1)), draw.standard_normal((n, m))
    returns = 0.01 * (0.8 * factor + 0.6 * own)
    features = np.full((n, m, 2), (0.5, 0.0))
    sigma = np.full((n, m, 1, 2), 0.01)
    fit = fit_loadings(features, NAMES, sigma, returns, np.ones(n, dtype=bool), seed=0)
    x = torch.tensor([[0.5, 0.0]])
    found = fit.head(x, torch.isfinite(x))[0].detach().numpy()
    assert fit.kept
    assert fit.held_back_after > fit.held_back_before
    assert np.linalg.norm(found) == pytest.approx(0.8, abs=0.05)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="takes 200 rows"):
        fit_loadings(
            np.zeros((9, 2, 2)), NAMES, np.ones((9, 2, 1, 2)), np.zeros((9, 2)), np.ones(9, dtype=bool), 0
        )
