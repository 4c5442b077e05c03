"""Training losses: proper scores of the law of section 1, masked and averaged.

Every function returns the loss per element, without reduction; :func:`masked_mean` is the
one way to reduce. No missing value may reach them: targets are filled before and masked
after.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from riskml.risk.excursion import survival_table

MAX_RATIO = 1e4
"""Cap of y / x inside QLIKE; a larger ratio means a broken target, and would end the fit in NaN."""
_SMALLEST_SHARE = 1e-6
"""ln p stays this far below 0, so that ln(1 - p) is finite: the clip of the protocol's log-loss."""


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


def distance_bce(mae: Tensor, log_sigma: Tensor, nu: Tensor, log_distance: Tensor) -> Tensor:
    """Mean cross-entropy of "the excursion reaches d" over some distances, per element.

    It is the log-loss of the liquidation probability, the quantity that an account is judged by. The
    likelihood of the law weighs the body, where most excursions lie and no position is liquidated;
    where the law is not exactly half-t, this says what its tail has to be.

    Parameters
    ----------
    mae : maximum adverse excursion, log-return units, >= 0.
    log_sigma : ln of the scale, same shape as ``mae``.
    nu : degrees of freedom, broadcastable to ``mae``.
    log_distance : [k] ln of the distances d.
    """
    log_p = log_survival(torch.exp(log_distance - log_sigma.unsqueeze(-1)), nu.unsqueeze(-1))
    log_p = log_p.clamp(max=-_SMALLEST_SHARE)
    reached = (mae.unsqueeze(-1) >= torch.exp(log_distance)).to(mae.dtype)
    losses = reached * log_p + (1.0 - reached) * torch.log(-torch.expm1(log_p))
    return -losses.mean(dim=-1)


def log_survival(z: Tensor, nu: Tensor) -> Tensor:
    """ln P(excursion > z scales) with a gradient: :func:`riskml.risk.excursion.log_survival` in torch.

    Parameters
    ----------
    z : distance in scales, >= 0; beyond 1e4 the table's last row counts.
    nu : degrees of freedom within the law's bounds, broadcastable to ``z``.
    """
    values, scales = _survival_grid(z.device, z.dtype)
    n_z, n_nu = values.shape
    inv_nu = 1.0 / nu
    row = (torch.log1p(z) * scales[0]).clamp(0.0, n_z - 1.0)
    column = ((inv_nu - scales[2]) * scales[1]).clamp(0.0, n_nu - 1.0).expand_as(row)
    # a NaN reads some cell; its NaN fraction keeps the result NaN, for the caller to refuse
    low_row = row.detach().nan_to_num(0.0).floor().clamp(max=n_z - 2)
    low_column = column.detach().nan_to_num(0.0).floor().clamp(max=n_nu - 2)
    row_part, column_part = row - low_row, column - low_column
    cell = (low_row * n_nu + low_column).long()
    flat = values.reshape(-1)
    low = torch.lerp(flat[cell], flat[cell + 1], column_part)
    high = torch.lerp(flat[cell + n_nu], flat[cell + n_nu + 1], column_part)
    ratio = z * z * inv_nu
    tail = -0.5 * nu * torch.log1p(ratio) - 0.5 * torch.log1p((0.5 * math.pi) * z * z / (1.0 + ratio))
    return tail + torch.lerp(low, high, row_part)


@cache
def _survival_grid(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, tuple[float, float, float]]:
    """The law's table of residuals, and (cells per ln(1 + z), cells per 1/nu, smallest 1/nu)."""
    table = survival_table()
    n_z, n_nu = table.values.shape
    scales = (n_z - 1) / table.log1p_z_max, (n_nu - 1) / (table.inv_nu_max - table.inv_nu_min)
    return torch.tensor(table.values, dtype=dtype, device=device), (*scales, table.inv_nu_min)


def masked_mean(values: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of ``values`` where ``mask``; zero (with a gradient) when nothing is present.

    Parameters
    ----------
    weight : of the values, >= 0, broadcastable to them, 1 on average over all batches: a batch of heavy rows
        counts for more than one of light rows. None = 1.
    """
    present = mask.to(values.dtype)
    weighted = values * present if weight is None else values * present * weight
    return weighted.sum() / present.sum().clamp(min=1.0)
