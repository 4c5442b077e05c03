"""Forecasts of a fitted network over a whole history, computed densely.

One pass over long chunks gives the law at every bar. It equals what the exported graph
says bar by bar, because no layer pads; calibration and the run's own metrics use it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from riskml.arrays import Float3D, Float32ND, FloatND
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.networks.market import onset_probability
from riskml.learning.windows import Panel

_CHUNK_BARS = 1024


@dataclass(frozen=True)
class DenseForecast:
    """float64 arrays, bar first; NaN on bars without a full window or any skip feature."""

    sigma: FloatND
    """[n_bars, n_markets, n_horizons, 2], with the calibration of the scale."""
    nu: FloatND
    """[n_bars, n_markets, n_horizons]."""
    variance: FloatND
    """[n_bars, n_markets, n_horizons]."""
    stress: FloatND
    """[n_bars, n_markets, n_horizons] probability."""


def forecast_panel(net: EnsembleNet, panel: Panel, expert: Float32ND | None = None) -> DenseForecast:
    """Forecast every bar of a panel; the network is left in evaluation mode.

    Parameters
    ----------
    net : members and, with ``expert``, its weight.
    panel : features of all markets.
    expert : [n_bars, n_markets, n_outputs] what the trees say, as the network's ``forward`` takes it.
    """
    net.eval()
    n_markets, n_bars = panel.usable.shape
    shape = (n_bars, n_markets, net.n_horizons)
    sigma = np.full((*shape, 2), np.nan)
    nu, variance, stress = (np.full(shape, np.nan) for _ in range(3))
    context = net.receptive_field - 1
    market_mask = torch.ones((1, n_markets), dtype=torch.bool)
    with torch.inference_mode():
        for begin in range(context, n_bars, _CHUNK_BARS):
            end = min(begin + _CHUNK_BARS, n_bars)
            features = panel.features[:, begin - context : end].unsqueeze(0)
            added = None
            if expert is not None:
                added = torch.from_numpy(expert[begin:end]).transpose(0, 1).unsqueeze(0)
            law = net.law(features, torch.isfinite(features), market_mask, added)
            rows = slice(begin, end)
            for target, values in (
                (sigma, torch.exp(law.log_sigma + net.log_scale)),
                (nu, law.nu),
                (variance, torch.exp(law.log_variance)),
                (stress, onset_probability(law.hazard)),
            ):
                target[rows] = values[0].transpose(0, 1).double().numpy()
    absent = ~panel.usable.T
    for target in (sigma, nu, variance, stress):
        target[absent] = np.nan
    return DenseForecast(sigma, nu, variance, stress)


def start_panel(net: EnsembleNet, panel: Panel) -> Float3D:
    """Log variance of the log-HAR that the expert adds to, [n_bars, n_markets, n_horizons].

    NaN on bars without a full window or any skip feature, as in :func:`forecast_panel`.
    """
    n_markets, n_bars = panel.usable.shape
    result = np.full((n_bars, n_markets, net.n_horizons), np.nan)
    context = net.receptive_field - 1
    if n_bars > context:
        with torch.inference_mode():
            features = panel.features.unsqueeze(0)
            start = net.start(features, torch.isfinite(features))
        result[context:] = start[0].transpose(0, 1).double().numpy()
    result[~panel.usable.T] = np.nan
    return result
