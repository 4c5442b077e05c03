"""The log-HAR law of realised variance: the model to beat, and where the network starts.

HAR (heterogeneous autoregression; Corsi 2009, *A simple approximate long-memory model of
realized volatility*) regresses the log of the variance to come on the logs of past mean
variances over several windows. Here an hour-of-week season may be added. Two steps:

1. least squares in logs, ``ln y = a + sum_k b_k x_k + season[hour]``, with the season
   shrunk towards zero where an hour has few rows;
2. one constant on top, such that ``mean(y / x) = 1`` on the fit rows. That is the scale
   which minimises QLIKE, and it undoes the bias of exponentiating a log forecast.

This is the only definition: the baseline of the evaluation and the skip connection of
the network both call :func:`fit_log_har`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, BoolND, Float1D, Float2D
from riskml.errors import DataError

N_SEASONS = 168
"""Hours of a week."""
SEASON_SHRINKAGE = 50.0
"""Rows of prior weight at zero per hour of the week."""


@dataclass(frozen=True)
class LogHar:
    """A fitted log-HAR for one horizon."""

    intercept: float
    """ln variance at all-zero (centred) inputs, debiasing included."""
    coefficients: Float1D
    """[k], one per log feature."""
    centers: Float1D
    """[k] fit means; a missing feature is replaced by its mean."""
    season: Float1D | None
    """[168] additive log season, weighted mean zero on the fit rows; None when not fitted."""

    def predict_log(self, log_features: Float2D, season: AnyArray | None = None) -> Float1D:
        """Forecast of ln variance [n].

        Parameters
        ----------
        log_features : [n, k].
        season : [n] hour of the week, 0..167; ignored when no season was fitted.

        Notes
        -----
        NaN handling: a missing feature counts as its fit mean, a missing or out-of-range
        hour as no season.
        """
        centred = np.asarray(log_features, dtype=np.float64) - self.centers
        result = self.intercept + np.where(np.isfinite(centred), centred, 0.0) @ self.coefficients
        if self.season is not None and season is not None:
            hours, known = _season_index(np.asarray(season))
            result = result + np.where(known, self.season[hours], 0.0)
        return np.asarray(result, dtype=np.float64)

    def predict(self, log_features: Float2D, season: AnyArray | None = None) -> Float1D:
        """Forecast of the variance [n], in the units of the fitted target."""
        return np.asarray(np.exp(self.predict_log(log_features, season)), dtype=np.float64)


def fit_log_har(
    log_features: Float2D,
    variance: Float1D,
    season: AnyArray | None = None,
    *,
    season_shrinkage: float = SEASON_SHRINKAGE,
) -> LogHar:
    """Fit the log-HAR by least squares in logs, then debias it for QLIKE.

    Parameters
    ----------
    log_features : [n, k] logs of past mean variances.
    variance : [n] realised variance over the horizon, > 0.
    season : [n] hour of the week, 0..167, or None for no season.
    season_shrinkage : prior rows at zero per hour of the week.

    Raises
    ------
    DataError : shapes differ, or fewer than ``20 (k + 1)`` usable rows.

    Notes
    -----
    NaN handling: a row with any missing value (hour included) or a variance that is not
    positive is left out of the fit.
    """
    x = np.asarray(log_features, dtype=np.float64)
    y = np.asarray(variance, dtype=np.float64)
    if x.ndim != 2 or y.shape != (len(x),):
        raise DataError(f"log_features [n, k] and variance [n] are required, found {x.shape} and {y.shape}")
    usable = np.isfinite(x).all(axis=1) & np.isfinite(y) & (y > 0.0)
    hours = None
    if season is not None:
        hours, known = _season_index(np.asarray(season))
        usable &= known
    n_rows, n_terms = int(usable.sum()), x.shape[1]
    if n_rows < 20 * (n_terms + 1):
        raise DataError(
            f"a log-HAR on {n_terms} terms needs at least {20 * (n_terms + 1)} rows without a missing value, "
            f"found {n_rows}",
            fix="give a longer fit range",
        )
    x, y = x[usable], y[usable]
    log_y = np.log(y)
    centers = x.mean(axis=0)
    x = x - centers
    if hours is None:
        coefficients, season_effect = _least_squares(x, log_y - log_y.mean()), None
        fitted = log_y.mean() + x @ coefficients
    else:
        coefficients, season_effect = _seasonal_least_squares(x, log_y, hours[usable], season_shrinkage)
        fitted = log_y.mean() + x @ coefficients + season_effect[hours[usable]]
    intercept = float(log_y.mean() + np.log(np.mean(y / np.exp(fitted))))
    return LogHar(intercept, coefficients, centers, season_effect)


def _seasonal_least_squares(
    x: Float2D, log_y: Float1D, hours: AnyArray, shrinkage: float
) -> tuple[Float1D, Float1D]:
    """Coefficients after removing hourly means (Frisch-Waugh), then the shrunk hourly residuals."""
    counts = np.bincount(hours, minlength=N_SEASONS).astype(np.float64)
    safe = np.maximum(counts, 1.0)

    def hourly_mean(values: Float1D) -> Float1D:
        return np.bincount(hours, values, minlength=N_SEASONS) / safe

    inner_y = log_y - hourly_mean(log_y)[hours]
    inner_x = np.stack([column - hourly_mean(column)[hours] for column in x.T], axis=1)
    coefficients = _least_squares(inner_x, inner_y)
    residual = log_y - log_y.mean() - x @ coefficients
    effect = np.bincount(hours, residual, minlength=N_SEASONS) / (counts + shrinkage)
    effect -= np.average(effect, weights=counts)
    return coefficients, effect


def _least_squares(x: Float2D, y: Float1D) -> Float1D:
    # The normal equations of a few centred columns: exact enough, and one pass over millions of rows.
    gram = x.T @ x
    ridge = 1e-9 * float(np.trace(gram)) / max(len(gram), 1)
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y), dtype=np.float64)


def _season_index(season: AnyArray) -> tuple[AnyArray, BoolND]:
    hours = season.astype(np.float64)
    known = np.isfinite(hours) & (hours >= 0) & (hours < N_SEASONS)
    return np.where(known, hours, 0).astype(np.int64), known
