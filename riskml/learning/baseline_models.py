"""The plain yardsticks behind the one interface: EWMA, log-HAR, FHS, first passage, logit(z).

Each delegates to the functions of :mod:`riskml.learning.baselines`, so that the numbers have one
definition. :func:`every_baseline` lists all models of a set, unfitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from riskml.arrays import Float1D, Float3D, FloatND
from riskml.errors import ConfigError
from riskml.learning.baseline import Baseline
from riskml.learning.baselines import (
    LogitZ,
    Which,
    case_distance,
    ewma_forecast,
    fhs_margins,
    fhs_scales,
    first_passage,
    fit_log_hars,
    fit_logit_z,
    har_forecast,
    more_models,
    tune_half_life,
)
from riskml.learning.har import LogHar
from riskml.learning.protocol import Cases, EvaluationData

T = TypeVar("T")


@dataclass(frozen=True)
class Ewma(Baseline):
    """EWMA of bar variances with the half-life per horizon that wins on the fit rows."""

    name: str = "ewma"
    half_life: tuple[str, ...] = ()

    def fit(self, data: EvaluationData, fit_end_us: int) -> Ewma:
        return replace(self, half_life=tune_half_life(data, fit_end_us))

    def variance(self, data: EvaluationData) -> Float3D:
        _require(self.half_life, self.name)
        return ewma_forecast(data, self.half_life)


@dataclass(frozen=True)
class FhsEwma(Ewma):
    """Filtered historical simulation on the tuned EWMA."""

    name: str = "fhs_ewma"

    def margin(self, data: EvaluationData, rows: slice) -> FloatND:
        scales = fhs_scales(data, self.variance(data))
        return fhs_margins(data, rows, {self.name: scales[self.name]})[self.name]


@dataclass(frozen=True)
class FhsSlow(Baseline):
    """Filtered historical simulation on a volatility of 60 days of half-life; nothing to fit."""

    name: str = "fhs_slow"

    def fit(self, data: EvaluationData, fit_end_us: int) -> FhsSlow:
        return self

    def margin(self, data: EvaluationData, rows: slice) -> FloatND:
        scale = fhs_scales(data, np.ones_like(data.variance))[self.name]
        return fhs_margins(data, rows, {self.name: scale})[self.name]


@dataclass(frozen=True)
class LogHarModel(Baseline):
    """Debiased log-HAR, with the hour-of-week season or without."""

    name: str = "log_har"
    season: bool = False
    laws: tuple[LogHar, ...] = ()
    """One per horizon; empty before :meth:`fit`."""

    def fit(self, data: EvaluationData, fit_end_us: int) -> LogHarModel:
        plain, seasonal = fit_log_hars(data, fit_end_us)
        return replace(self, laws=seasonal if self.season else plain)

    def variance(self, data: EvaluationData) -> Float3D:
        _require(self.laws, self.name)
        return har_forecast(data, self.laws)


@dataclass(frozen=True)
class FirstPassage(Baseline):
    """A driftless Brownian path at the fast volatility; nothing to fit."""

    name: str = "first_passage"

    def fit(self, data: EvaluationData, fit_end_us: int) -> FirstPassage:
        return self

    def probability(self, data: EvaluationData, cases: Cases, horizon: int) -> Float1D:
        return first_passage(case_distance(data, cases, horizon))


@dataclass(frozen=True)
class LogitZModel(Baseline):
    """Logistic regression on (ln z, ln^2 z)."""

    name: str = "logit_z"
    law: LogitZ | None = None

    def fit(self, data: EvaluationData, fit_end_us: int) -> LogitZModel:
        return replace(self, law=fit_logit_z(data, fit_end_us))

    def probability(self, data: EvaluationData, cases: Cases, horizon: int) -> Float1D:
        law = _require(self.law, self.name)
        return law.predict(horizon, case_distance(data, cases, horizon))


def every_baseline(which: Which = "light") -> tuple[Baseline, ...]:
    """All models of a set, unfitted, in the order of the tables."""
    light = (
        Ewma(),
        LogHarModel(),
        LogHarModel("log_har_season", season=True),
        FhsEwma(),
        FhsSlow(),
        FirstPassage(),
        LogitZModel(),
    )
    return light if which == "light" else (*light, *more_models())


def _require(fitted: T | None, name: str) -> T:
    if not fitted:
        raise ConfigError(f"{name} has not been fitted", fix="use what fit(data, fit_end_us) returns")
    return fitted
