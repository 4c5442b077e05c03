"""Fit the factor loadings of the portfolio law to the next bar's returns of all markets together.

The residual ``r_i = return_i(t + 1) / sigma_i(t)``, with sigma of the side that the return took, is
multivariate Student-t with covariance ``c (B B' + diag(1 - |b_i|^2))``. B comes from features of bar t.
The fit is kept only if it raises the likelihood of the last part of the fit rows, which it did not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riskml.arrays import Bool1D, Float2D, Float3D, FloatND, Int1D
from riskml.errors import DataError
from riskml.learning.networks.loadings import LoadingHead

HELD_BACK = 0.2
"""Last share of the fit rows, on which the fit has to beat the features as they are."""
PURGE_BARS = 24
"""Between the rows that are fitted and those held back."""
EPOCHS = 12
BATCH_BARS = 2048
MIN_ROWS = 200
RESIDUAL_CLIP = 30.0
MIN_MARKETS = 2


@dataclass(frozen=True)
class LoadingFit:
    """A fitted head with its mean log-likelihood per cross-section, nats."""

    head: LoadingHead
    before: float
    """Of the rows fitted to, with the features passed through."""
    after: float
    held_back_before: float
    held_back_after: float
    kept: bool
    """False: the held-back part was not better, ``head`` is the pass-through."""


def fit_loadings(
    features: Float3D, names: Sequence[str], sigma: FloatND, returns: Float2D, rows: Bool1D, seed: int
) -> LoadingFit:
    """Fit a :class:`LoadingHead`.

    Parameters
    ----------
    features : [n_bars, n_markets, n_features], known at the bar's close.
    names : of the last axis.
    sigma : [n_bars, n_markets, n_horizons, 2]; the first horizon has to be one bar.
    returns : [n_bars, n_markets] log return *of* the bar; row t is fitted to the return of t + 1.
    rows : bool [n_bars] fit rows, already purged by at least one bar at the seam.
    seed : of the order of the batches.

    NaN handling: a market without residual takes no part in that bar's cross-section.

    Raises
    ------
    DataError : fewer than 200 fit rows with two markets.
    """
    residual = side_residuals(sigma, returns)
    usable = rows & (np.isfinite(residual).sum(axis=1) >= MIN_MARKETS)
    chosen = np.flatnonzero(usable)
    if chosen.size < MIN_ROWS:
        raise DataError(
            f"fitting loadings takes {MIN_ROWS} rows with two markets, found {chosen.size}",
            fix="fit to a longer range or to more markets",
        )
    cut = int(chosen.size * (1.0 - HELD_BACK))
    train, held = chosen[:cut], chosen[cut:]
    train = train[train < held[0] - PURGE_BARS]
    head = LoadingHead(names)
    _standardise(head, features[train])
    x = torch.from_numpy(np.asarray(features, dtype=np.float32))
    r = torch.from_numpy(np.clip(residual, -RESIDUAL_CLIP, RESIDUAL_CLIP).astype(np.float32))
    law = torch.tensor([0.0, math.log(3.0)], requires_grad=True)  # ln c, ln(nu - 2)
    _train(head, law, (x, r), train, seed, only_law=True)
    before, held_before = _mean(head, law, (x, r), train), _mean(head, law, (x, r), held)
    _train(head, law, (x, r), train, seed, only_law=False)
    after, held_after = _mean(head, law, (x, r), train), _mean(head, law, (x, r), held)
    kept = held_after > held_before
    if not kept:
        torch.nn.init.zeros_(head.change.weight)
        torch.nn.init.zeros_(head.change.bias)
    return LoadingFit(head.eval(), before, after, held_before, held_after, kept)


def side_residuals(sigma: FloatND, returns: Float2D) -> Float2D:
    """Next bar's return over the scale of the side it took [n_bars, n_markets]; NaN where unknown."""
    ahead = np.full(returns.shape, np.nan)
    ahead[:-1] = returns[1:]
    return np.asarray(ahead / np.where(ahead < 0.0, sigma[:, :, 0, 0], sigma[:, :, 0, 1]))


def log_likelihood(loadings: Tensor, residual: Tensor, law: Tensor) -> Tensor:
    """Student-t log density of each cross-section [n]; NaN residuals are left out.

    Parameters
    ----------
    loadings : [n, n_markets, n_factors]. residual : [n, n_markets]. law : ln c and ln(nu - 2).
    """
    present = torch.isfinite(residual)
    r = torch.where(present, residual, torch.zeros_like(residual))
    own = 1.0 - torch.square(loadings).sum(dim=-1)
    precision = present.to(r.dtype) / own
    weighted = loadings * precision.unsqueeze(-1)
    inner = torch.eye(loadings.shape[-1]) + loadings.transpose(1, 2) @ weighted
    projected = (weighted * r.unsqueeze(-1)).sum(dim=1)
    solved = torch.linalg.solve(inner, projected.unsqueeze(-1)).squeeze(-1)
    square = (r * r * precision).sum(dim=-1) - (projected * solved).sum(dim=-1)
    log_det = (torch.log(own) * present).sum(dim=-1) + torch.logdet(inner)
    n, nu = present.sum(dim=-1).to(r.dtype), 2.0 + torch.exp(law[1])
    constant = torch.lgamma(0.5 * (nu + n)) - torch.lgamma(0.5 * nu)
    constant = constant - 0.5 * n * (torch.log(math.pi * (nu - 2.0)) + law[0])
    tail = torch.log1p(square.clamp(min=0.0) * torch.exp(-law[0]) / (nu - 2.0))
    return constant - 0.5 * log_det - 0.5 * (nu + n) * tail


def _standardise(head: LoadingHead, features: FloatND) -> None:
    flat = np.where(np.isfinite(features), features, np.nan).reshape(-1, features.shape[-1])
    count = np.maximum(np.isfinite(flat).sum(axis=0), 1)
    mean = np.nansum(flat, axis=0) / count
    spread = np.sqrt(np.nansum(np.square(flat - mean), axis=0) / count)
    head.mean.copy_(torch.from_numpy(mean))
    head.scale.copy_(torch.from_numpy(np.maximum(spread, 1e-6)))
    for factor, index in enumerate(head.base):
        if index is not None:
            head.default[factor] = float(np.clip(mean[index], -1.0, 1.0))


def _loglik(head: LoadingHead, law: Tensor, data: tuple[Tensor, Tensor], rows: Int1D) -> Tensor:
    x, r = (values[torch.from_numpy(rows)] for values in data)
    return log_likelihood(head(x, torch.isfinite(x)), r, law)


def _train(
    head: LoadingHead, law: Tensor, data: tuple[Tensor, Tensor], rows: Int1D, seed: int, *, only_law: bool
) -> None:
    order = np.random.default_rng(seed)
    parameters = [law] if only_law else [law, *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.05 if only_law else 0.01)
    for _ in range(EPOCHS):
        shuffled = order.permutation(rows)
        for begin in range(0, shuffled.size, BATCH_BARS):
            loss = -_loglik(head, law, data, shuffled[begin : begin + BATCH_BARS]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _mean(head: LoadingHead, law: Tensor, data: tuple[Tensor, Tensor], rows: Int1D) -> float:
    with torch.no_grad():
        return float(_loglik(head, law, data, rows).double().mean())
