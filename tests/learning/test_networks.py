"""The network: where it starts, what it is invariant to, and what may not break it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from riskml.errors import DataError
from riskml.learning.networks.market import NU_HIGH, NU_LOW, FeatureRoles, MarketNet
from riskml.learning.networks.tcn import CausalTcn
from riskml.learning.recipe import NetworkSpec
from riskml.learning.start import Start, initialise

SPEC = NetworkSpec(channels=6, hidden=8)


def make_net(toy: Any) -> tuple[MarketNet, Start]:
    torch.manual_seed(0)
    roles = FeatureRoles.of(toy.feature_names, SPEC, {"funding_rate_8h": "funding"})
    net = MarketNet(SPEC, roles, 3)

    def stacked(values: np.ndarray) -> np.ndarray:
        return values[:, :2].reshape(-1, *values.shape[2:])

    features = stacked(toy.features)
    rows = np.isfinite(features[:, 0])
    start = initialise(net, features, stacked(toy.mae), stacked(toy.variance), stacked(toy.stress), rows)
    return net.eval(), start


@pytest.fixture(scope="module")
def started(toy: Any) -> tuple[MarketNet, Start]:
    return make_net(toy)


@pytest.fixture(scope="module")
def moved(toy: Any) -> MarketNet:
    """A network that left its starting point."""
    net, _ = make_net(toy)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def window(toy: Any, end: int, n_bars: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features = torch.from_numpy(np.ascontiguousarray(toy.features[end - n_bars : end].swapaxes(0, 1)))
    return features, torch.isfinite(features), torch.ones(features.shape[0], dtype=torch.bool)


def test_an_untrained_network_is_the_seasonal_log_har(toy: Any, started: tuple[MarketNet, Start]) -> None:
    net, start = started
    for end in (900, 1500, 2500):
        features, mask, present = window(toy, end)
        sigma, nu, variance, stress, _ = net(features, mask, present)
        last = toy.features[end - 1]
        for h, har in enumerate(start.har):
            expected = har.predict(last[:, list(net.roles.har)], last[:, net.roles.season])
            np.testing.assert_allclose(variance[:, h].detach(), expected, rtol=2e-4)
            ratio = sigma[:, h].detach().numpy() / np.sqrt(expected)[:, None]
            np.testing.assert_allclose(ratio, np.broadcast_to(start.sigma_ratio[h], ratio.shape), rtol=2e-4)
        np.testing.assert_allclose(nu.detach(), np.broadcast_to(start.nu, nu.shape), rtol=1e-4)
        assert (stress.diff(dim=-1) >= 0).all()


def test_dense_output_equals_the_last_bar_of_each_window(toy: Any, moved: MarketNet) -> None:
    features, mask, present = window(toy, 1000, n_bars=64 + 30)
    with torch.inference_mode():
        dense = moved.law(features[None], mask[None], present[None])
        for step in (0, 11, 31):
            part = slice(step, step + 63)
            sigma, nu, variance, stress, _ = moved(features[:, part], mask[:, part], present)
            torch.testing.assert_close(sigma, torch.exp(dense.log_sigma[0, :, step]), rtol=1e-5, atol=0)
            torch.testing.assert_close(nu, dense.nu[0, :, step], rtol=1e-5, atol=0)
            torch.testing.assert_close(variance, torch.exp(dense.log_variance[0, :, step]), rtol=1e-5, atol=0)
            torch.testing.assert_close(stress, 1 - torch.exp(-dense.hazard[0, :, step]), rtol=1e-4, atol=1e-7)


def test_markets_may_come_in_any_order(toy: Any, moved: MarketNet) -> None:
    features, mask, present = window(toy, 1000)
    order = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        plain = moved(features, mask, present)
        shuffled = moved(features[order], mask[order], present[order])
    for one, other in zip(plain, shuffled, strict=True):
        torch.testing.assert_close(one[order], other, rtol=1e-5, atol=1e-7)


def test_an_absent_market_changes_no_other(toy: Any, moved: MarketNet) -> None:
    features, mask, present = window(toy, 1000)
    present[2] = False
    other = features.clone()
    other[2] = 3.0
    with torch.inference_mode():
        one, two = moved(features, mask, present), moved(other, mask, present)
        pooled = moved(features, mask, torch.ones(3, dtype=torch.bool))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a[:2], b[:2], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(one[0][:2], pooled[0][:2], rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e29, -1e29])
def test_any_input_gives_a_finite_law_within_bounds(toy: Any, moved: MarketNet, value: float) -> None:
    features, mask, present = window(toy, 1000)
    features[:] = value
    mask[:] = True
    with torch.inference_mode():
        sigma, nu, variance, stress, loadings = moved(features, mask, present)
    for output in (sigma, nu, variance, stress, loadings):
        assert torch.isfinite(output).all()
    assert (sigma > 0).all()
    assert (variance > 0).all()
    assert ((nu >= NU_LOW) & (nu <= NU_HIGH)).all()
    assert ((stress >= 0) & (stress <= 1)).all()
    assert (torch.linalg.vector_norm(loadings, dim=-1) <= 0.9991).all()


def test_a_masked_value_is_not_read(toy: Any, moved: MarketNet) -> None:
    features, mask, present = window(toy, 1000)
    mask[0, -5:, 1:6] = False
    other = features.clone()
    other[0, -5:, 1:6] = 123.0
    with torch.inference_mode():
        for one, two in zip(moved(features, mask, present), moved(other, mask, present), strict=True):
            assert torch.equal(one, two)


def test_a_forecast_never_depends_on_a_later_bar(toy: Any, moved: MarketNet) -> None:
    features, mask, present = window(toy, 1000, n_bars=100)
    other = features.clone()
    other[:, 80:] = 1.0
    with torch.inference_mode():
        one = moved.law(features[None], mask[None], present[None])
        two = moved.law(other[None], torch.ones_like(mask)[None], present[None])
    before = 80 - 62
    assert torch.equal(one.log_sigma[:, :, :before], two.log_sigma[:, :, :before])
    assert not torch.equal(one.log_sigma[:, :, before:], two.log_sigma[:, :, before:])


def test_the_convolution_shortens_by_its_receptive_field() -> None:
    tcn = CausalTcn(2, 4, (1, 2, 4), 0.0)
    assert tcn.receptive_field == 15
    assert tcn(torch.zeros(3, 2, 20)).shape == (3, 4, 6)


def test_a_dataset_without_the_skip_features_is_refused() -> None:
    with pytest.raises(DataError, match="lacks log_har_8h"):
        FeatureRoles.of(("log_parkinson_1h", "log_har_24h", "log_har_7d", "log_har_28d"), SPEC, {})
