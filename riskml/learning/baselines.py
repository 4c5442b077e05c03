"""The models to beat, on exactly the rows that the bundle is scored on.

Variance: EWMA with the half-life that won on the fit part, log-HAR with and without the
hour-of-week season. Liquidation probability: first passage of a Brownian path, and a
logistic regression on (ln z, ln^2 z). Requirements: filtered historical simulation (FHS)
on the tuned EWMA and on a slow volatility.

What has parameters is fitted on rows before the bundle's ``fit_end`` whose target window
has closed by then, on the same lake. FHS takes its quantile from excursions that had
closed before the row, refreshed every 30 days: that is what a clearing house runs, and it
is a harder opponent than a quantile frozen at ``fit_end``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Float3D, FloatND
from riskml.errors import ConfigError, DataError
from riskml.learning.baseline import Baseline, closed_before
from riskml.learning.har import LogHar, fit_log_har
from riskml.learning.protocol import COVERAGE_LEVEL, Cases, EvaluationData, draw_cases, every_horizon
from riskml.metrics import fit_logistic, qlike
from riskml.risk.engines import fhs
from riskml.risk.engines.fhs import ewma as ewma
from riskml.units import duration_bars

Which = Literal["light", "full"]
"""light: what needs no library; full adds HARQ, GARCH(1,1)-t and gradient boosting."""
HALF_LIVES = ("6h", "12h", "24h", "48h", "96h", "192h")
DEFAULT_HALF_LIFE = "24h"
"""Used where the lake has too few rows before fit_end to choose one."""
SAME_FEATURES = "boosting_same"
"""Boosting on the features of the model that it is held against, where ``boosting`` reads all of them."""
MIN_FIT_ROWS = 1000
"""Rows with a target that a fit needs; with fewer the baseline is left out and said so."""


@dataclass(frozen=True)
class LogitZ:
    """``P = logistic(a + b ln z + c ln^2 z)``, one set of coefficients per horizon."""

    coefficients: Float2D
    """[n_horizons, 3]; a row of NaN where there was nothing to fit."""

    def predict(self, horizon: int, z: Float1D) -> Float1D:
        """Probability [n] of reaching a distance of ``z`` standard deviations; NaN in, NaN out."""
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * (_logit_design(z) @ self.coefficients[horizon]))))


@dataclass(frozen=True)
class Baselines:
    """Fitted baselines: what they need to forecast any row of the data."""

    half_life: tuple[str, ...]
    """Tuned EWMA half-life per horizon."""
    log_har: tuple[LogHar, ...]
    """One per horizon; empty where the lake has too few rows before fit_end."""
    log_har_season: tuple[LogHar, ...]
    logit_z: LogitZ | None
    stress_coefficients: Float2D | None
    """[n_horizons, 3]: logistic regression of a stress onset on ln fast and ln slow variance."""
    notes: tuple[str, ...]
    """What could not be fitted, and why."""
    more: tuple[Baseline, ...] = ()
    """Fitted models of the full set."""

    def variance(self, data: EvaluationData) -> dict[str, Float3D]:
        """Variance forecasts [n_bars, n_markets, n_horizons] per model, for all bars."""
        forecasts = {"ewma": ewma_forecast(data, self.half_life)}
        for name, fitted in (("log_har", self.log_har), ("log_har_season", self.log_har_season)):
            if fitted:
                forecasts[name] = har_forecast(data, fitted)
        offered = {model.name: model.variance(data) for model in self.more}
        return forecasts | {name: values for name, values in offered.items() if values is not None}

    def margin(self, data: EvaluationData, rows: slice) -> dict[str, FloatND]:
        """Requirements of the models of the full set that have a law, as :func:`fhs_margins` gives them."""
        offered = {model.name: model.margin(data, rows) for model in self.more}
        return {name: values for name, values in offered.items() if values is not None}

    def probability(self, data: EvaluationData, cases: Cases, horizon: int) -> dict[str, Float1D]:
        """Probability per model on drawn positions of one horizon."""
        z = case_distance(data, cases, horizon)
        forecasts = {"first_passage": first_passage(z)}
        if self.logit_z is not None:
            forecasts["logit_z"] = self.logit_z.predict(horizon, z)
        offered = {model.name: model.probability(data, cases, horizon) for model in self.more}
        return forecasts | {name: values for name, values in offered.items() if values is not None}

    def stress(self, data: EvaluationData, rows: slice) -> dict[str, Float3D]:
        """Probability of a stress onset from the volatility level alone."""
        if self.stress_coefficients is None:
            return {}
        design = _stress_design(data, rows)
        return {"volatility_logit": 0.5 * (1.0 + np.tanh(0.5 * (design @ self.stress_coefficients.T)))}


def fit_baselines(
    data: EvaluationData,
    fit_end_us: int,
    *,
    published_har: tuple[LogHar, ...] = (),
    which: Which = "light",
    features: Sequence[str] = (),
) -> Baselines:
    """Fit every baseline on the rows before ``fit_end_us``.

    ``which="full"`` adds the models of :func:`fit_more`. A model of it that cannot be fitted on
    these data is left out, and ``notes`` says why. ``features`` are those of the model that is measured.

    Raises
    ------
    ConfigError : ``which`` is neither light nor full, or a library of the full set is missing.
    """
    if which not in ("light", "full"):
        raise ConfigError(f"baselines are 'light' or 'full', found '{which}'", fix="choose one of the two")
    light = _fit_light(data, fit_end_us, published_har)
    if which == "light":
        return light
    more, notes = fit_more(data, fit_end_us, features)
    return replace(light, more=more, notes=(*light.notes, *notes))


def more_models(features: Sequence[str] = ()) -> tuple[Baseline, ...]:
    """What the full set adds, unfitted; with ``features`` boosting on those alone as well."""
    from riskml.learning.boosting_baseline import BoostingBaseline
    from riskml.learning.garch import GarchT
    from riskml.learning.harq import Harq

    boosting = [BoostingBaseline()]
    if features:
        boosting.append(BoostingBaseline(SAME_FEATURES, names=tuple(features)))
    return (Harq(), GarchT(), *boosting)


def fit_more(
    data: EvaluationData, fit_end_us: int, features: Sequence[str] = ()
) -> tuple[tuple[Baseline, ...], tuple[str, ...]]:
    """Fit HARQ, GARCH(1,1)-t and boosting; what was left out is in the notes."""
    fitted: list[Baseline] = []
    notes: list[str] = []
    for model in more_models(features):
        try:
            fitted.append(model.fit(data, fit_end_us))
        except DataError as error:
            notes.append(f"{model.name} is left out: {error}")
    for model in fitted:
        notes.extend(model.notes)
    return tuple(fitted), tuple(notes)


def _fit_light(data: EvaluationData, fit_end_us: int, published_har: tuple[LogHar, ...]) -> Baselines:
    """EWMA, log-HAR and logit(z).

    A target window has to close by ``fit_end_us``. With fewer than ``MIN_FIT_ROWS`` such
    rows the log-HAR is the one that the bundle carries (``published_har``, fitted on its own
    fit part), the other fitted models are left out and ``notes`` says so: a short lake can
    still be measured.
    """
    n_usable = min(
        int(np.isfinite(data.variance[closed_before(data, fit_end_us, index), :, index]).sum())
        for index in range(len(data.horizons))
    )
    if n_usable < MIN_FIT_ROWS:
        note = (
            f"the lake has {n_usable} rows before the bundle's fit_end, fewer than {MIN_FIT_ROWS}: "
            f"log-HAR is {'the one that the bundle carries' if published_har else 'left out'}, "
            f"logit(z) is left out, EWMA has a half-life of {DEFAULT_HALF_LIFE}"
        )
        return Baselines((DEFAULT_HALF_LIFE,) * len(data.horizons), published_har, (), None, None, (note,))
    plain, seasonal = fit_log_hars(data, fit_end_us)
    return Baselines(
        half_life=tune_half_life(data, fit_end_us),
        log_har=plain,
        log_har_season=seasonal,
        logit_z=fit_logit_z(data, fit_end_us),
        stress_coefficients=_fit_stress(data, fit_end_us),
        notes=(),
    )


# ---------------------------------------------------------------- variance


def ewma_forecast(data: EvaluationData, half_life: tuple[str, ...]) -> Float3D:
    """Variance forecast of an EWMA of bar variances: ``h * ewma``, [n_bars, n_markets, n_horizons]."""
    bars = np.array([duration_bars(name, data.interval) for name in half_life], dtype=np.float64)
    return ewma(data.bar_variance, bars) * np.array(data.horizon_bars, dtype=np.float64)


def tune_half_life(data: EvaluationData, fit_end_us: int) -> tuple[str, ...]:
    """Half-life per horizon with the smallest QLIKE on the fit rows."""
    bars = np.array([duration_bars(name, data.interval) for name in HALF_LIVES], dtype=np.float64)
    means = ewma(data.bar_variance, bars)
    best = []
    for index, h in enumerate(data.horizon_bars):
        rows = closed_before(data, fit_end_us, index)
        realised = data.variance[rows, :, index]
        losses = [qlike(realised, h * means[rows, :, k]) for k in range(len(HALF_LIVES))]
        best.append(HALF_LIVES[int(np.argmin(losses))])
    return tuple(best)


def fit_log_hars(data: EvaluationData, fit_end_us: int) -> tuple[tuple[LogHar, ...], tuple[LogHar, ...]]:
    """One fit per horizon over all markets, without and with the hour-of-week season."""
    fitted: list[tuple[LogHar, LogHar]] = []
    for index in range(len(data.horizons)):
        rows = closed_before(data, fit_end_us, index)
        terms = data.log_har[rows].reshape(-1, data.log_har.shape[2])
        target = data.variance[rows, :, index].reshape(-1)
        hour = np.repeat(data.hour_of_week[rows], len(data.markets))
        fitted.append((fit_log_har(terms, target), fit_log_har(terms, target, hour)))
    return tuple(plain for plain, _ in fitted), tuple(seasonal for _, seasonal in fitted)


def har_forecast(data: EvaluationData, fitted: tuple[LogHar, ...]) -> Float3D:
    """Forecast [n_bars, n_markets, n_horizons] of fitted log-HARs; NaN where a term is missing."""
    terms = data.log_har.reshape(-1, data.log_har.shape[2])
    hour = np.repeat(data.hour_of_week, len(data.markets))
    missing = ~np.isfinite(data.log_har).all(axis=2)
    forecast = np.stack([law.predict(terms, hour).reshape(missing.shape) for law in fitted], axis=2)
    # LogHar replaces a missing term by its mean; a yardstick is rather left out of such a row
    forecast[missing] = np.nan
    return forecast


# ---------------------------------------------------------------- liquidation probability


def case_distance(data: EvaluationData, cases: Cases, horizon: int) -> Float1D:
    """z = log-distance / (Parkinson EWM of half-life 24 h x sqrt h) of drawn positions."""
    bar = np.searchsorted(data.ts, cases.ts)
    sigma = np.exp(0.5 * data.log_fast[bar, cases.market])
    return np.asarray(cases.log_distance / (sigma * np.sqrt(data.horizon_hours[horizon])))


def first_passage(z: Float1D) -> Float1D:
    """``2 Phi(-z) = erfc(z / sqrt 2)``: a driftless Brownian path reaches z; NaN in, NaN out."""
    x = np.asarray(z, dtype=np.float64) / math.sqrt(2.0)
    return np.fromiter(map(math.erfc, x.tolist()), np.float64, x.size)


def _logit_design(z: Float1D) -> Float2D:
    log_z = np.log(z)
    return np.column_stack([np.ones_like(log_z), log_z, log_z * log_z])


def fit_logit_z(data: EvaluationData, fit_end_us: int) -> LogitZ:
    """Logistic regression of reaching the distance, per horizon, on the fit rows."""
    coefficients = np.full((len(data.horizons), 3), np.nan)
    for index in range(len(data.horizons)):
        rows = closed_before(data, fit_end_us, index)
        cases = draw_cases(data, index, rows, np.isfinite(data.log_fast[rows]), seed=1)
        if cases.outcome.size:
            z = case_distance(data, cases, index)
            coefficients[index] = fit_logistic(_logit_design(z), cases.outcome)
    return LogitZ(coefficients)


def _stress_design(data: EvaluationData, rows: slice) -> Float3D:
    fast = data.log_fast[rows]
    return np.stack([np.ones_like(fast), fast, data.log_slow[rows]], axis=2)


def _fit_stress(data: EvaluationData, fit_end_us: int) -> Float2D | None:
    coefficients = np.full((len(data.horizons), 3), np.nan)
    for index in range(len(data.horizons)):
        rows = closed_before(data, fit_end_us, index)
        keep: Bool1D = every_horizon(data.ts[rows], data.interval, data.horizon_bars[index])
        design = _stress_design(data, rows)[keep].reshape(-1, 3)
        onset = data.stress[rows, :, index][keep].reshape(-1)
        usable = np.isfinite(design).all(axis=1) & np.isfinite(onset)
        if onset[usable].sum() < 10:
            return None
        coefficients[index] = fit_logistic(design[usable], onset[usable], ridge=1e-6)
    return coefficients


# ---------------------------------------------------------------- requirements


def fhs_margins(data: EvaluationData, rows: slice, scales: Mapping[str, Float3D]) -> dict[str, FloatND]:
    """Requirements by filtered historical simulation, log distance [n rows, n_markets, n_horizons, 2].

    Parameters
    ----------
    data : with the history before ``rows``.
    scales : per model, volatility over each horizon [n_bars, n_markets, n_horizons].

    Notes
    -----
    :func:`riskml.risk.engines.fhs.fhs_distances` at 99.5 %, over all windows that had closed before the
    month's first row.
    """
    rules = fhs.fhs_rules(int(data.ts[rows.start]))
    return {
        name: fhs.fhs_distances(
            data.ts, rows, scale, data.excursion, data.horizons, level=COVERAGE_LEVEL, rules=rules
        )
        for name, scale in scales.items()
    }


def fhs_scales(data: EvaluationData, ewma_variance: Float3D) -> dict[str, Float3D]:
    """Volatilities of the two FHS yardsticks: the tuned EWMA, and 60 days of half-life."""
    return fhs.fhs_scales(ewma_variance, data.log_slow, data.horizon_hours)
