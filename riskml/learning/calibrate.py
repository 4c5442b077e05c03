"""Calibration: one scale per horizon and side, one power per horizon, by maximum likelihood.

The calibrated law is ``p = S(g(d / (sigma e^a)))`` with ``g(z) = z^b``: ``a`` moves the whole
law, ``b`` its tail against its body. ``a`` is folded into sigma by the market graph, ``b`` is
the manifest's ``calibration_power``. Both maps are monotone, so the margin at level x is the
distance at which p = 1 - x, whatever was fitted.

What is maximised is the likelihood of the two kinds of events that the project forecasts:
"the excursion reached a distance d", over distances from 1 to 50 % (the liquidation
probability), and "the excursion exceeded the raw law's quantile at level x", from 90 to
99.8 % (the requirement). Level events are weighted by 1 / (1 - x), else the many at 90 %
would decide what the margin is at 99.5 %. A normal prior at the identity (a = 0, b = 1)
holds the estimate back where the sample is short: a recalibration on a short window does
more harm than good.

Even so a calibration may fit the past and miss what follows. :func:`choose_calibration` keeps
one only at the horizons where, fitted on the fit part, it lowers the same score on the calibrate
part; the others stay at the identity. No later row has a say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd, lgamma, log, pi

import numpy as np

from riskml.arrays import DOWN, Bool1D, Float1D, Float2D, FloatND
from riskml.errors import DataError
from riskml.learning.protocol import HIGHEST_DISTANCE, LOWEST_DISTANCE
from riskml.metrics import PROBABILITY_CLIP, log_losses
from riskml.risk import excursion
from riskml.units import duration_bars

PRIOR_SCALE = 0.1
"""Standard deviation of the prior of ``a`` and of ``b``."""
MAX_ROWS = 100_000
"""Rows per horizon that the likelihood is computed on; longer samples are thinned evenly."""
N_DISTANCES = 12
LEVELS = (0.90, 0.95, 0.98, 0.99, 0.995, 0.998)
POWER_BOUNDS = (0.6, 1.6)
SCALE_BOUND = 0.7
"""|a| at most: a law that is wrong by more than a factor 2 is a bug, not a calibration."""
HOURS_PER_WEEK = 168
_MAX_STEPS = 30
_CONVERGED = 1e-5
"""Log-likelihood still to be gained, about; 1 would be one standard error."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Calibration:
    """A monotone map of the raw law; the identity is log_scale 0, power 1."""

    log_scale: Float2D
    """ln of the factor on sigma, [n_horizons, 2]."""
    power: Float1D
    """Exponent b of ``g(z) = z^b``, [n_horizons]."""

    @classmethod
    def identity(cls, n_horizons: int) -> Calibration:
        """The map that changes nothing."""
        return cls(np.zeros((n_horizons, 2)), np.ones(n_horizons))

    def apply(self, sigma: FloatND) -> FloatND:
        """Calibrated sigma: ``sigma * exp(log_scale)``, [..., n_horizons, 2]. NaN stays NaN."""
        return np.asarray(sigma * np.exp(self.log_scale))


def fit_calibration(
    sigma: FloatND, nu: FloatND, mae: FloatND, horizons: Sequence[str], *, interval: str = "1h"
) -> Calibration:
    """Fit scale and power of every horizon.

    Parameters
    ----------
    sigma : raw scales, float [n_bars, n_markets, n_horizons, 2] or [n_rows, n_horizons, 2].
    nu : degrees of freedom, the same without the last axis.
    mae : observed excursions, log units, shape of ``sigma``.
    horizons : e.g. ``("1h", "8h", "24h")``.
    interval : of the bars; with ``horizons`` it says how much successive windows overlap.

    Returns
    -------
    Calibration. A horizon without a usable row keeps the identity.

    Raises
    ------
    DataError : shapes that do not belong together.

    Notes
    -----
    NaN handling: a row with a NaN in sigma, nu or mae is left out.
    Rows of several markets at one time are one observation to the prior, since markets
    move together.
    """
    n_horizons = len(horizons)
    if sigma.shape != mae.shape or sigma.shape[:-1] != nu.shape or sigma.shape[-2:] != (n_horizons, 2):
        raise DataError(
            f"sigma {sigma.shape}, nu {nu.shape} and mae {mae.shape} do not belong together; "
            f"[..., {n_horizons}, 2], [..., {n_horizons}] and [..., {n_horizons}, 2] are required"
        )
    log_scale, power = np.zeros((n_horizons, 2)), np.ones(n_horizons)
    for index, horizon in enumerate(horizons):
        stride = duration_bars(horizon, interval)
        fitted = _fit_horizon(sigma[..., index, :], nu[..., index], mae[..., index, :], stride)
        log_scale[index], power[index] = fitted[:2], fitted[2]
    return Calibration(log_scale, power)


def choose_calibration(
    sigma: FloatND,
    nu: FloatND,
    mae: FloatND,
    horizons: Sequence[str],
    fit_rows: Bool1D,
    calibrate_rows: Bool1D,
    *,
    interval: str = "1h",
) -> Calibration:
    """Fit on both parts, at the horizons where a fit on the first improves the second.

    Parameters
    ----------
    sigma, nu, mae, horizons, interval : as in :func:`fit_calibration`, bar first.
    fit_rows, calibrate_rows : [n_bars] rows of the two parts; no other row is read.

    Returns
    -------
    Calibration : the identity at a horizon where :func:`scores` does not fall.
    """

    def of(rows: Bool1D) -> FloatND:
        return np.where(rows.reshape(-1, *[1] * (mae.ndim - 1)), mae, np.nan)

    trial = fit_calibration(sigma, nu, of(fit_rows), horizons, interval=interval)
    # The rows of the calibrate part alone, so that none of them is thinned out for the others.
    held_back = sigma[calibrate_rows], nu[calibrate_rows], mae[calibrate_rows]
    better = scores(trial, *held_back) < scores(Calibration.identity(len(horizons)), *held_back)
    fitted = fit_calibration(sigma, nu, of(fit_rows | calibrate_rows), horizons, interval=interval)
    return Calibration(np.where(better[:, None], fitted.log_scale, 0.0), np.where(better, fitted.power, 1.0))


def scores(calibration: Calibration, sigma: FloatND, nu: FloatND, mae: FloatND) -> Float1D:
    """Mean log-loss of the weighted events per horizon [n_horizons]; the lower the better.

    Parameters
    ----------
    sigma, nu, mae : raw scales, degrees of freedom and excursions as in :func:`fit_calibration`.

    Notes
    -----
    A proper score: the events are fixed by the raw law, a calibration moves their probability alone.
    NaN handling: a row with a NaN is left out; NaN where no row is left.
    """
    result = np.full(len(calibration.power), np.nan)
    for index, power in enumerate(calibration.power):
        sample = _sample(sigma[..., index, :], nu[..., index], mae[..., index, :])
        if len(sample.nu):
            log_z, outcome, share = _events(sample.scale, sample.nu, sample.observed)
            z = np.exp(power * (log_z - calibration.log_scale[index][:, None]))
            losses = log_losses(outcome, excursion.survival(z, sample.nu[:, None, None]))
            result[index] = (losses * share).mean()
    return result


@dataclass(frozen=True)
class _Sample:
    """Rows of one horizon without a missing value, thinned."""

    scale: Float2D
    """[n, 2]."""
    nu: Float1D
    """[n]."""
    observed: Float2D
    """[n, 2]."""
    usable_share: float
    """Share of the thinned rows that had no missing value."""


def _sample(sigma: FloatND, nu: FloatND, mae: FloatND) -> _Sample:
    """Of sigma and mae [n, (n_markets,) 2], nu [n, (n_markets)]."""
    n_markets = nu.shape[1] if nu.ndim == 2 else 1
    step = _thinning(nu.shape[0] * n_markets)
    scale = np.asarray(sigma[::step], dtype=np.float64).reshape(-1, 2)
    degrees = np.asarray(nu[::step], dtype=np.float64).reshape(-1)
    observed = np.asarray(mae[::step], dtype=np.float64).reshape(-1, 2)
    usable = np.isfinite(scale).all(1) & np.isfinite(degrees) & np.isfinite(observed).all(1)
    share = float(usable.mean()) if usable.size else 0.0
    return _Sample(scale[usable], degrees[usable], observed[usable], share)


def _fit_horizon(sigma: FloatND, nu: FloatND, mae: FloatND, stride: int) -> Float1D:
    """(a_down, a_up, b) of one horizon; sigma and mae [n, (n_markets,) 2], nu [n, (n_markets)]."""
    sample = _sample(sigma, nu, mae)
    if not len(sample.nu):
        return np.array([0.0, 0.0, 1.0])
    # as many observations as there are windows that do not overlap, once over all markets
    n_windows = nu.shape[0] / stride * sample.usable_share
    log_z, outcome, share = _events(sample.scale, sample.nu, sample.observed)
    return _scoring(log_z, outcome, sample.nu[:, None, None], share * n_windows / len(sample.nu))


def _thinning(n_rows: int) -> int:
    """Step that leaves about ``MAX_ROWS``: coprime with the week, so that no hour is left out."""
    step = max(1, -(-n_rows // MAX_ROWS))
    while gcd(step, HOURS_PER_WEEK) > 1:
        step += 1
    return step


def _events(scale: Float2D, nu: Float1D, observed: Float2D) -> tuple[FloatND, FloatND, Float1D]:
    """ln z and outcome of every (row, side, threshold) [n, 2, k], and weights [k]."""
    fraction = np.geomspace(LOWEST_DISTANCE, HIGHEST_DISTANCE, N_DISTANCES)
    distance = np.stack([-np.log1p(-fraction), np.log1p(fraction)])
    table = excursion.quantile_table(LEVELS)
    grid = np.linspace(1.0 / excursion.NU_MAX, 1.0 / excursion.NU_MIN, table.shape[1])
    quantile = np.stack([np.interp(1.0 / nu, grid, row) for row in table], axis=1)
    log_scale = np.log(scale)[:, :, None]
    by_level = np.broadcast_to(np.log(quantile)[:, None, :], (len(nu), 2, len(LEVELS)))
    log_z = np.concatenate([np.log(distance)[None] - log_scale, by_level], axis=2)
    outcome = np.log(np.maximum(observed, _SMALLEST))[:, :, None] - log_scale >= log_z
    tail = 1.0 - np.array(LEVELS)
    share = np.concatenate([np.full(N_DISTANCES, 1.0 / N_DISTANCES), tail[0] / tail / len(LEVELS)])
    return log_z, outcome.astype(np.float64), share


def _scoring(log_z: FloatND, outcome: FloatND, nu: FloatND, weight: Float1D) -> Float1D:
    """Fisher scoring with the prior as a ridge; a step is halved until the objective rises."""
    prior = np.array([0.0, 0.0, 1.0])
    current = prior.copy()
    best, gradient, information = _objective(current, log_z, outcome, nu, weight)
    for _ in range(_MAX_STEPS):
        step = np.linalg.solve(information, gradient)
        if gradient @ step < _CONVERGED:
            break
        scale = 1.0
        while scale > 1e-4:
            trial = current + scale * step
            trial[:2] = np.clip(trial[:2], -SCALE_BOUND, SCALE_BOUND)
            trial[2] = np.clip(trial[2], *POWER_BOUNDS)
            value, trial_gradient, trial_information = _objective(trial, log_z, outcome, nu, weight)
            if value >= best:
                break
            scale /= 2.0
        else:
            break
        current, best, gradient, information = trial, value, trial_gradient, trial_information
    return current


def _objective(
    parameters: Float1D, log_z: FloatND, outcome: FloatND, nu: FloatND, weight: Float1D
) -> tuple[float, Float1D, Float2D]:
    """Penalised log-likelihood, its gradient [3] and its expected information [3, 3]."""
    power = parameters[2]
    shifted = log_z - parameters[:2][:, None]
    z = np.exp(power * shifted)
    p = np.clip(excursion.survival(z, nu), PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    likelihood = outcome * np.log(p) + (1.0 - outcome) * np.log1p(-p)
    # dS/d ln z of the half-t law; the density is elementary up to its constant
    slope = -2.0 * z * np.exp(_log_constant(nu) - 0.5 * (nu + 1.0) * np.log1p(z * z / nu))
    by_scale, by_power = -power * slope, slope * shifted
    variance = p * (1.0 - p) / weight
    residual = (outcome - p) / variance
    gradient = np.empty(3)
    information = np.zeros((3, 3))
    for side in (DOWN, 1 - DOWN):
        gradient[side] = (residual[:, side] * by_scale[:, side]).sum()
        information[side, side] = (by_scale[:, side] ** 2 / variance[:, side]).sum()
        cross = (by_scale[:, side] * by_power[:, side] / variance[:, side]).sum()
        information[side, 2] = information[2, side] = cross
    gradient[2] = (residual * by_power).sum()
    information[2, 2] = (by_power**2 / variance).sum()
    away = parameters - np.array([0.0, 0.0, 1.0])
    value = float((likelihood * weight).sum()) - 0.5 * float(away @ away) / PRIOR_SCALE**2
    return value, gradient - away / PRIOR_SCALE**2, information + np.eye(3) / PRIOR_SCALE**2


def _log_constant(nu: FloatND) -> FloatND:
    """ln of the Student-t density at 0, interpolated on a fine grid of 1 / nu."""
    return np.interp(1.0 / nu, *_log_constant_table())


@cache
def _log_constant_table() -> tuple[Float1D, Float1D]:
    grid = np.linspace(1.0 / excursion.NU_MAX, 1.0 / excursion.NU_MIN, 1001)
    exact = [lgamma(0.5 / x + 0.5) - lgamma(0.5 / x) - 0.5 * log(pi / x) for x in grid.tolist()]
    return grid, np.array(exact)
