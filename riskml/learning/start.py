"""The starting point of the network: scaling, log-HAR, and the constants of the law.

Everything is estimated on the rows that the network may train on, in closed form or by a
fixed number of steps, and written into the network. From then on an untrained network and
a log-HAR half-t law are the same thing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Float3D
from riskml.errors import DataError
from riskml.learning.har import LogHar, fit_log_har
from riskml.learning.losses import half_t_nll
from riskml.learning.networks.market import NU_HIGH, NU_LOW, MarketNet

CRISIS_SHARE = 0.1
"""Share of a market's rows that ``[loss] crisis_weight`` speaks of."""
_WINSOR = (0.001, 0.999)
_NU_GRID = np.array([2.4, 2.7, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 6.0, 8.0, 12.0, 20.0])
_LAW_ROWS = 200_000
"""Rows that the two constants of the law are estimated on; more would not move them."""
_VARIANCE_MARGIN = 3.0
"""The log variance may leave its fit range by this much."""


@dataclass(frozen=True)
class Start:
    """What :func:`initialise` estimated, for the run's record and the fallback law."""

    har: tuple[LogHar, ...]
    """One per horizon."""
    nu: Float1D
    """[n_horizons]."""
    sigma_ratio: Float2D
    """[n_horizons, 2] sigma / sqrt(variance)."""


def initialise(
    net: MarketNet,
    features: AnyArray,
    mae: AnyArray,
    variance: AnyArray,
    stress: AnyArray,
    rows: Bool1D,
    *,
    like: MarketNet | None = None,
) -> Start:
    """Estimate the starting point and write it into ``net``.

    Parameters
    ----------
    net : fresh network.
    features : [n_rows, n_features], NaN = missing; rows of all fitted markets, stacked.
    mae : [n_rows, n_horizons, 2]; variance, stress : [n_rows, n_horizons].
    rows : [n_rows] rows of the train part.
    like : network whose scaling of features is taken over; None = estimate it on the rows.

    Raises
    ------
    DataError : too few rows without a missing value.
    """
    features, mae, variance, stress = features[rows], mae[rows], variance[rows], stress[rows]
    roles = net.roles
    if like is None:
        mean, scale = _scaling(features)
    else:
        mean, scale = (value.double().numpy() for value in (like.mean, like.scale))
    har_columns = list(roles.har)
    season = None if roles.season is None else features[:, roles.season]
    terms = features[:, har_columns].astype(np.float64)
    fits = tuple(fit_log_har(terms, variance[:, h], season) for h in range(net.n_horizons))
    log_variance = np.stack([fit.predict_log(terms, season) for fit in fits], axis=1)
    nu, log_ratio = _law_constants(log_variance, mae)
    with torch.no_grad():
        _write_scaling(net, mean, scale, features)
        coefficients = np.stack([fit.coefficients for fit in fits])
        offset = np.stack([fit.coefficients @ (mean[har_columns] - fit.centers) for fit in fits])
        net.har.weight.copy_(torch.from_numpy(coefficients * scale[har_columns]))
        net.har.bias.copy_(torch.from_numpy(np.array([fit.intercept for fit in fits]) + offset))
        for h, fit in enumerate(fits):
            if fit.season is not None:
                net.season[:, h] = torch.from_numpy(fit.season)
        net.sigma_constant.copy_(torch.from_numpy(log_ratio))
        share = (nu - NU_LOW) / (NU_HIGH - NU_LOW)
        net.nu_constant.copy_(torch.from_numpy(np.log(share / (1.0 - share))))
        net.hazard_constant.copy_(torch.from_numpy(_hazard_constants(stress)))
        low, high = np.nanmin(np.log(variance), axis=0), np.nanmax(np.log(variance), axis=0)
        bounds = np.stack([low - _VARIANCE_MARGIN, high + _VARIANCE_MARGIN], axis=1)
        net.log_variance_bounds.copy_(torch.from_numpy(bounds))
    return Start(fits, nu, np.exp(log_ratio))


def row_weights(start_log: Float3D, train: Bool1D, crisis_weight: float) -> Float2D | None:
    """Weights of the training loss [n_markets, n_bars]: ``crisis_weight`` in a market's stormiest tenth.

    Parameters
    ----------
    start_log : log variance of the starting law [n_bars, n_markets, n_horizons]; the first horizon ranks.
    train : [n_bars] rows that say where the tenth begins.
    crisis_weight : of such a row beside 1; None is returned for 1.

    Notes
    -----
    NaN handling: a row without a starting law weighs 1.
    """
    if crisis_weight == 1.0:
        return None
    level = start_log[..., 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a market without a row
        limit = np.nanquantile(level[train], 1.0 - CRISIS_SHARE, axis=0)
    return np.asarray(np.where(level >= limit, crisis_weight, 1.0).T)


def _scaling(features: AnyArray) -> tuple[Float1D, Float1D]:
    """Mean and standard deviation per feature, within the 0.1 % and 99.9 % quantiles."""
    n_features = features.shape[1]
    mean, scale = np.zeros(n_features), np.ones(n_features)
    for index in range(n_features):
        column = features[:, index].astype(np.float64)
        column = column[np.isfinite(column)]
        if len(column) == 0:
            continue
        column = np.clip(column, *np.quantile(column, _WINSOR))
        mean[index] = column.mean()
        deviation = column.std()
        # A constant feature carries nothing; a scale of 1 keeps its live value from exploding.
        scale[index] = deviation if deviation > 1e-8 * max(1.0, abs(mean[index])) else 1.0
    return mean, scale


def _write_scaling(net: MarketNet, mean: Float1D, scale: Float1D, features: AnyArray) -> None:
    roles = net.roles
    net.mean.copy_(torch.from_numpy(mean))
    net.scale.copy_(torch.from_numpy(scale))
    projection = np.zeros((len(roles.names), len(roles.sequence)))
    for column, index in enumerate(roles.sequence):
        projection[index, column] = 1.0
        if roles.level is not None and index in roles.har and index != roles.level:
            projection[roles.level, column] = -scale[roles.level] / scale[index]
    net.sequence_map.copy_(torch.from_numpy(projection))
    for factor, loading in enumerate(roles.loadings):
        if loading is not None:
            known = features[:, loading][np.isfinite(features[:, loading])]
            net.loading_default[factor] = float(np.median(known)) if len(known) else 0.0


def _law_constants(log_variance: Float2D, mae: AnyArray) -> tuple[Float1D, Float2D]:
    """nu [n_horizons] and ln(sigma / sqrt(variance)) [n_horizons, 2] by maximum likelihood."""
    n_horizons = log_variance.shape[1]
    nus, ratios = np.zeros(n_horizons), np.zeros((n_horizons, 2))
    for h in range(n_horizons):
        known = np.flatnonzero(np.isfinite(mae[:, h]).all(axis=1))
        if len(known) < 100:
            raise DataError(
                f"only {len(known)} rows of the train part have a target", fix="give a longer range"
            )
        chosen = known[:: max(1, len(known) // _LAW_ROWS)]
        z = mae[chosen, h].astype(np.float64) / np.exp(0.5 * log_variance[chosen, h])[:, None]
        scores = []
        for nu in _NU_GRID:
            log_ratio = _log_scale_given_nu(z, nu)
            nll = half_t_nll(torch.from_numpy(z), torch.from_numpy(log_ratio), torch.tensor(nu))
            scores.append((float(nll.mean()), nu, log_ratio))
        _, nus[h], ratios[h] = min(scores, key=lambda item: item[0])
    return nus, ratios


def _log_scale_given_nu(z: Float2D, nu: float) -> Float1D:
    """ln of the half-t scale per column of z [n, 2], by expectation maximisation."""
    squared = z**2
    scale_squared = squared.mean(axis=0) * max(nu - 2.0, 0.3) / nu
    for _ in range(25):
        weight = (nu + 1.0) / (nu + squared / scale_squared)
        scale_squared = (weight * squared).mean(axis=0)
    return np.asarray(0.5 * np.log(scale_squared), dtype=np.float64)


def _hazard_constants(stress: AnyArray) -> Float1D:
    """ln of the hazard increments that give the base rates of the nested events."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(stress)
        rate = np.where(known, stress, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    hazard = -np.log1p(-np.clip(rate, 1e-4, 0.9))
    steps = np.diff(np.concatenate([[0.0], hazard]))
    return np.asarray(np.log(np.maximum(steps, 1e-5)), dtype=np.float64)
