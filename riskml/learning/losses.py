"""Training losses: proper scores of the law of section 1, masked and averaged.

Every function returns the loss per element, without reduction; :func:`masked_mean` is the
one way to reduce. No missing value may reach them: targets are filled before and masked
after.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_RATIO = 1e4
"""Cap of y / x inside QLIKE; a larger ratio means a broken target, and would end the fit in NaN."""


def half_t_nll(mae: Tensor, log_sigma: Tensor, nu: Tensor) -> Tensor:
    """Negative log density of a half-Student-t, per element.

    ``f(m) = 2 Gamma((nu + 1) / 2) / (Gamma(nu / 2) sqrt(nu pi) sigma) (1 + z^2 / nu)^(-(nu + 1) / 2)``
    with ``z = m / sigma``.

    Parameters
    ----------
    mae : maximum adverse excursion, log-return units, >= 0.
    log_sigma : ln of the scale, same shape as ``mae``.
    nu : degrees of freedom, broadcastable to ``mae``.
    """
    half = 0.5 * (nu + 1.0)
    normaliser = torch.lgamma(0.5 * nu) - torch.lgamma(half) + 0.5 * torch.log(nu * math.pi) - math.log(2.0)
    z_squared = torch.square(mae * torch.exp(-log_sigma))
    return normaliser + log_sigma + half * torch.log1p(z_squared / nu)


def qlike(variance: Tensor, log_forecast: Tensor) -> Tensor:
    """``y / x - ln(y / x) - 1`` per element; zero where the forecast is exact (Patton 2011)."""
    log_ratio = torch.log(variance) - log_forecast
    return torch.clamp(torch.exp(log_ratio), max=MAX_RATIO) - log_ratio - 1.0


def hazard_bce(event: Tensor, hazard: Tensor) -> Tensor:
    """Binary cross-entropy of an event of probability ``1 - exp(-hazard)``, per element.

    Parameters
    ----------
    event : 0 or 1.
    hazard : cumulated hazard, > 0.
    """
    log_probability = torch.log(-torch.expm1(-hazard))
    return event * -log_probability + (1.0 - event) * hazard


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``; zero (with a gradient) when nothing is present."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1.0)
