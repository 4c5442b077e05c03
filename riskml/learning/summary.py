"""What a run records about itself: metrics per part, reference scales, the fallback law.

The metrics here are a fit's own diary, on the parts it knows; figures that count come from
``riskml evaluate`` on data behind ``data_end``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Bool2D, Float3D, FloatND
from riskml.learning.har import LogHar, fit_log_har
from riskml.learning.inference import DenseForecast
from riskml.learning.start import Start
from riskml.metrics import qlike
from riskml.risk import excursion

COVERAGE_LEVEL = 0.995
STRESSED_QUANTILE = 0.99
"""The stressed scale of a market is this quantile of its forecast scale on the fit part."""
BOUNDS_MARGIN = 0.1
"""Feature bounds reach this share of the fit range beyond it."""
FALLBACK_FEATURES = (
    "log_ewm_variance_24h",
    "log_har_24h",
    "log_har_7d",
    "log_har_28d",
    "log_ewm_variance_60d",
)
"""Features that a fallback law may stand on alone, the most timely first."""


def plain_har(terms: FloatND, variance: Float3D, rows: Bool2D) -> list[LogHar]:
    """The log-HAR without a season, one per horizon: the baseline of the run's metrics.

    Parameters
    ----------
    terms : [n_bars, n_markets, k] log features; variance : [n_bars, n_markets, n_horizons].
    rows : [n_bars, n_markets] rows to fit on.
    """
    return [fit_log_har(terms[rows], variance[rows][:, h]) for h in range(variance.shape[2])]


def part_metrics(
    part: str,
    rows: Bool1D,
    forecast: DenseForecast,
    baseline: Float3D,
    mae: FloatND,
    variance: Float3D,
    horizons: Sequence[str],
    power: AnyArray,
) -> dict[str, float]:
    """QLIKE beside the log-HAR's, and the breach rate of the 99.5 % margin, per horizon.

    Parameters
    ----------
    part : prefix of the names.
    rows : [n_bars] rows of the part.
    baseline : log-HAR variance, shape of ``variance`` [n_bars, n_markets, n_horizons].
    power : [n_horizons] exponent of the calibration.

    Notes
    -----
    NaN handling: a row that misses a forecast, a baseline or a target is left out. A part
    without a complete row yields no metric.
    """
    metrics: dict[str, float] = {}
    for h, horizon in enumerate(horizons):
        ours, theirs, target = forecast.variance[rows, :, h], baseline[rows, :, h], variance[rows, :, h]
        sigma, excursions = forecast.sigma[rows, :, h], mae[rows, :, h]
        complete = (
            np.isfinite(ours) & np.isfinite(theirs) & np.isfinite(target) & np.isfinite(excursions).all(-1)
        )
        if not complete.any():
            continue
        ours_qlike = qlike(target[complete], ours[complete])
        har_qlike = qlike(target[complete], theirs[complete])
        metrics[f"{part}_qlike_{horizon}"] = ours_qlike
        metrics[f"{part}_qlike_{horizon}_log_har"] = har_qlike
        metrics[f"{part}_qlike_{horizon}_ratio"] = ours_qlike / har_qlike
        z = (excursions[complete] / sigma[complete]) ** power[h]
        survival = excursion.survival(z, forecast.nu[rows, :, h][complete][:, None])
        metrics[f"{part}_breach_rate_{horizon}"] = float((survival < 1.0 - COVERAGE_LEVEL).mean())
    return {name: round(value, 6) for name, value in metrics.items()}


def reference_sigma(
    sigma: FloatND, rows: Bool1D, markets: Sequence[str]
) -> dict[str, dict[str, list[list[float]]]]:
    """Stressed and long-run scale per market on the fit part, ``[n_horizons][2]`` each.

    A market that was not fitted takes ``*``: the largest stressed and the largest long-run
    scale of the fitted ones, since a new market is rarely calmer than the old.
    """
    tables: dict[str, dict[str, list[list[float]]]] = {"stressed": {}, "long_run": {}}
    for index, market in enumerate(markets):
        known = sigma[rows, index]
        known = known[np.isfinite(known).all(axis=(1, 2))]
        if len(known) == 0:
            continue
        tables["stressed"][market] = _rounded(np.quantile(known, STRESSED_QUANTILE, axis=0))
        tables["long_run"][market] = _rounded(np.exp(np.log(known).mean(axis=0)))
    for table in tables.values():
        table["*"] = np.max(np.array(list(table.values())), axis=0).tolist()
    return tables


def feature_bounds(features: AnyArray, rows: Bool2D, names: Sequence[str]) -> dict[str, list[float]]:
    """[low, high] per feature on the fit part, widened by :data:`BOUNDS_MARGIN` of the range.

    A feature that is never present has no entry.
    """
    bounds = {}
    chosen = features[rows]
    for index, name in enumerate(names):
        column = chosen[:, index]
        column = column[np.isfinite(column)]
        if len(column):
            low, high = float(column.min()), float(column.max())
            margin = BOUNDS_MARGIN * (high - low)
            bounds[name] = [low - margin, high + margin]
    return bounds


def fallback_law(
    features: AnyArray,
    variance: Float3D,
    rows: Bool2D,
    names: Sequence[str],
    har: tuple[list[str], list[LogHar]],
    start: Start,
) -> dict[str, Any]:
    """Constants of the fallback law in the form that ``riskml.scoring.guards`` documents.

    The log-HAR comes first, then laws on one feature each, the most timely first.
    """
    laws = [_law(*har)]
    for name in FALLBACK_FEATURES:
        if name not in names:
            continue
        column = features[rows][:, [list(names).index(name)]].astype(np.float64)
        if np.isfinite(column).mean() < 0.1:
            continue
        fits = [fit_log_har(column, variance[rows][:, h]) for h in range(variance.shape[2])]
        laws.append(_law([name], fits))
    return {"laws": laws, "sigma_ratio": _rounded(start.sigma_ratio), "nu": _rounded(start.nu)}


def _law(names: list[str], fits: Sequence[LogHar]) -> dict[str, Any]:
    return {
        "features": names,
        "intercept": [round(float(fit.intercept - fit.coefficients @ fit.centers), 9) for fit in fits],
        "slopes": [_rounded(fit.coefficients) for fit in fits],
    }


def _rounded(values: AnyArray) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), 9).tolist()
