"""What the network is trained and calibrated on is what a scorer feeds it, missing bars included."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from riskml.learning.inference import forecast_panel
from riskml.learning.networks.market import FeatureRoles, MarketNet
from riskml.learning.recipe import NetworkSpec
from riskml.learning.windows import make_panel
from riskml.scoring.session import MarketOutput
from riskml.scoring.stream import GraphStream

SPECS = (NetworkSpec(channels=6, hidden=8), NetworkSpec(hidden=8, encoder="none", n_bars=1))
N_BARS = 260
HOLES = {0: [100, 101, 150, 230], 1: [*range(120, 140), 229]}
"""Missing bars per market: single ones, a few in a row, and an outage longer than a window of 8 h."""


class NetworkInPlaceOfTheGraph:
    """The fitted network behind the interface of ``market.onnx``."""

    def __init__(self, net: MarketNet) -> None:
        self._net = net

    def run(self, features: np.ndarray, mask: np.ndarray, market_mask: np.ndarray) -> MarketOutput:
        with torch.inference_mode():
            outputs = self._net(*(torch.from_numpy(value) for value in (features, mask, market_mask)))
        return MarketOutput(*(output.double().numpy() for output in outputs))


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: spec.encoder)
def net(toy: Any, request: pytest.FixtureRequest) -> MarketNet:
    """A network away from its starting point, where every input counts; with a sequence part and without."""
    torch.manual_seed(4)
    spec: NetworkSpec = request.param
    net = MarketNet(spec, FeatureRoles.of(toy.feature_names, spec, {}), 3).eval()
    known = toy.features[:N_BARS].reshape(-1, len(toy.feature_names))
    with torch.no_grad():
        net.mean.copy_(torch.from_numpy(np.nanmean(known, axis=0)))
        net.scale.copy_(torch.from_numpy(np.maximum(np.nanstd(known, axis=0), 0.1)))
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def holed(toy: Any) -> Any:
    """The first bars, with holes in which rolling features go on having values."""
    close = toy.close[:N_BARS].copy()
    for market, bars in HOLES.items():
        close[bars, market] = np.nan
    cut = {name: getattr(toy, name)[:N_BARS] for name in ("ts", "features", "mae", "variance", "stress")}
    return dataclasses.replace(toy, close=close, **cut)


def streamed(net: MarketNet, data: Any, markets: list[int], own: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sigma and stress bar by bar as a scorer runs the graph, [n_bars, n_markets, ...]."""
    names = list(data.feature_names)
    manifest = SimpleNamespace(
        n_bars=net.spec.n_bars, markets=own, features=[{"name": name} for name in names], feature_bounds={}
    )
    bundle: Any = SimpleNamespace(manifest=manifest, features=names, market=NetworkInPlaceOfTheGraph(net))
    stream = GraphStream(bundle, [data.markets[place].symbol for place in markets])
    features = data.features[:, markets].astype(np.float64)
    bars = list(stream.push(data.ts, features, {"close": data.close[:, markets]}))
    return np.stack([bar.output.sigma for bar in bars]), np.stack([bar.output.stress for bar in bars])


def test_a_missing_bar_is_the_same_slot_in_training_and_in_the_scorer(net: MarketNet, holed: Any) -> None:
    panel = make_panel(holed, [0, 1], net.roles.har, N_BARS)
    dense = forecast_panel(net, panel)
    sigma, stress = streamed(net, holed, [0, 1], ["BTC", "ETH"])
    full = slice(net.spec.n_bars, None)
    present = np.isfinite(holed.close[full, :2])
    assert (~present).sum() == sum(len(bars) for bars in HOLES.values())
    np.testing.assert_array_equal(np.isfinite(dense.sigma[full]).all(axis=(2, 3)), present)
    np.testing.assert_allclose(dense.sigma[full][present], sigma[full][present], rtol=2e-5)
    np.testing.assert_allclose(dense.stress[full][present], stress[full][present], rtol=2e-5)


def test_the_holes_are_felt_behind_them(net: MarketNet, toy: Any, holed: Any) -> None:
    whole = dataclasses.replace(holed, close=toy.close[:N_BARS])
    one, other = (
        forecast_panel(net, make_panel(data, [0, 1], net.roles.har, N_BARS)).sigma for data in (holed, whole)
    )
    behind = slice(102, 118)
    felt = not np.allclose(one[behind, 0], other[behind, 0], rtol=1e-4)
    assert felt == (net.spec.encoder != "none")  # without a sequence part a hole ends with its bar
    np.testing.assert_array_equal(one[:100][np.isfinite(one[:100])], other[:100][np.isfinite(other[:100])])


def test_a_market_that_no_fit_saw_is_read_like_any_other_and_changes_none(net: MarketNet, holed: Any) -> None:
    features, close = holed.features.copy(), holed.close.copy()
    features[:, 2], close[:, 2] = features[:, 1], close[:, 1]
    twin = dataclasses.replace(holed, features=features, close=close)
    present = np.isfinite(close[net.spec.n_bars :, 1])
    sigma, _ = (values[net.spec.n_bars :] for values in streamed(net, twin, [0, 1, 2], ["BTC", "ETH"]))
    alone, _ = (values[net.spec.n_bars :] for values in streamed(net, twin, [0, 1], ["BTC", "ETH"]))
    # LINK carries the values of ETH, but is not pooled: its law is that of ETH, and ETH's is what it was
    np.testing.assert_allclose(sigma[present, 2], sigma[present, 1], rtol=1e-6)
    np.testing.assert_allclose(sigma[present, 1], alone[present, 1], rtol=1e-6)
