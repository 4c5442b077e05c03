"""Gradient boosting on the whole catalogue, or on some of it: the strongest plain opponent of the network.

Two models of LightGBM behind the one interface of :mod:`riskml.learning.baseline`:

* **Variance.** Trees by gamma deviance (QLIKE up to a constant) on top of the log-HAR with season, as
  :func:`riskml.learning.boosting.fit_gamma` fits them. The last tenth of the fit part says how many
  trees; then they are fitted again on the whole fit part with that number.
* **Liquidation probability.** A classifier of "the excursion reached the distance" per horizon, on
  positions drawn on the fit part. It never rises with the distance: trees constrained to fall in ln z on
  top of a logistic line in ln z, where z = log-distance / volatility of the log-HAR with season.

The classifier reads the log-HAR and not the boosted forecast: trees follow the rows that they were
fitted on, and a classifier taught on such forecasts would trust them more than it may later.

Source: Ke et al. 2017, *LightGBM*; DESIGN section 7 for rows and draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Float3D, Float32ND, Int1D
from riskml.errors import ConfigError, DataError
from riskml.learning.baseline import Baseline, closed_before
from riskml.learning.baselines import fit_log_hars, har_forecast
from riskml.learning.boosting import (
    BoostingSpec,
    GammaExpert,
    fit_gamma,
    import_lightgbm,
    lightgbm_parameters,
)
from riskml.learning.evaluation_data import catalogue_names
from riskml.learning.har import LogHar
from riskml.learning.protocol import Cases, EvaluationData, draw_cases
from riskml.metrics import fit_logistic
from riskml.units import duration_us

VALIDATION_FRACTION = 0.1
"""Tail of the fit part that says how many trees."""
MIN_COVERAGE = 0.25
"""Share of the fitted rows that a feature has to be known on, as in the recipes."""
TOP_FEATURES = 12
"""Features of most gain in the variance trees that the classifier reads beside ln z and the side."""
CASE_SEED = 2
"""Of the draws that the classifier learns from; the measured ones have seed 0, logit(z) learns from 1."""


@dataclass(frozen=True)
class DistanceClassifier:
    """P(reached) per horizon: ``logistic(a + b ln z + trees)``, never rising with z."""

    line: Float1D
    """a and b <= 0."""
    booster: Any
    """``lightgbm.Booster`` on [ln z, side, top features]; None where its best number of trees is 0."""
    n_trees: int

    def predict(self, design: Float2D, *, n_threads: int = 1) -> Float1D:
        """Probability [n]; NaN handling: NaN where ln z, the first column, is NaN."""
        score = self.line[0] + self.line[1] * design[:, 0]
        if self.booster is not None:
            score = score + self.booster.predict(
                design, raw_score=True, num_iteration=self.n_trees, num_threads=n_threads
            )
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * score)))


@dataclass(frozen=True)
class BoostingBaseline(Baseline):
    """Gradient boosting: variance and liquidation probability."""

    name: str = "boosting"
    spec: BoostingSpec = field(
        default_factory=lambda: BoostingSpec(n_trees=600, learning_rate=0.03, min_leaf_rows=1000)
    )
    """The best of three on the whole catalogue in the second half of 2023, fitted up to June."""
    classifier_spec: BoostingSpec = field(
        default_factory=lambda: BoostingSpec(n_trees=300, num_leaves=15, feature_fraction=0.7, patience=30)
    )
    seed: int = 0
    n_threads: int = 2
    """The same seed and number of threads give the same trees."""
    names: tuple[str, ...] = ()
    """Features that may be read; empty = the whole catalogue."""
    columns: Int1D = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Columns of the catalogue that the trees read."""
    top: Int1D = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Columns of the catalogue that the classifier reads."""
    laws: tuple[LogHar, ...] = ()
    """Log-HAR with season, one per horizon; empty before :meth:`fit`."""
    expert: GammaExpert | None = None
    classifiers: tuple[DistanceClassifier, ...] = ()

    def fit(self, data: EvaluationData, fit_end_us: int) -> BoostingBaseline:
        """Fit both models on the rows whose longest target window has closed by ``fit_end_us``.

        Raises
        ------
        DataError : the data were read without the catalogue, or a part has too few rows.
        """
        features = _catalogue(data)
        laws = fit_log_hars(data, fit_end_us)[1]
        start = np.log(har_forecast(data, laws))
        train, held = _parts(data, fit_end_us)
        usable = np.isfinite(start).all(axis=2) & np.isfinite(data.variance).all(axis=2)
        usable &= (data.variance > 0.0).all(axis=2)
        train_rows, held_rows = usable & train[:, None], usable & held[:, None]
        if not train_rows.any() or not held_rows.any():
            raise DataError(
                "boosting needs rows with features and targets before fit_end and in the tail that says how "
                "many trees",
                fix="give a longer fit range",
            )
        known = np.isfinite(features[usable & (train | held)[:, None]]).mean(axis=0)
        columns = np.flatnonzero((known >= MIN_COVERAGE) & self._allowed(features.shape[2]))
        model = replace(self, laws=laws, columns=columns)
        expert = model._fit_variance(data, start, train_rows, held_rows)
        model = replace(model, expert=expert, top=columns[_most_gain(expert, TOP_FEATURES)])
        classifiers = tuple(model._fit_classifier(data, h, fit_end_us) for h in range(len(data.horizons)))
        return replace(model, classifiers=classifiers)

    def variance(self, data: EvaluationData) -> Float3D:
        """Forecast [n_bars, n_markets, n_horizons]; NaN where a term of the log-HAR is missing."""
        expert = self._fitted()
        forecast = har_forecast(data, self.laws)
        features = _catalogue(data)
        for column in range(len(data.markets)):  # one market at a time: the whole would be copied
            rows = np.flatnonzero(np.isfinite(forecast[:, column]).all(axis=1))
            if rows.size:
                values = np.ascontiguousarray(features[rows, column][:, self.columns])
                delta = expert.predict_delta(values, n_threads=self.n_threads)
                forecast[rows, column] *= np.exp(delta)
        return forecast

    def probability(self, data: EvaluationData, cases: Cases, horizon: int) -> Float1D:
        """Probability [n cases]; NaN where a term of the log-HAR is missing."""
        self._fitted()
        return self.classifiers[horizon].predict(self._design(data, cases, horizon), n_threads=self.n_threads)

    def _allowed(self, n_columns: int) -> Bool1D:
        """Columns of the catalogue that may be read [n_columns]."""
        if not self.names:
            return np.ones(n_columns, dtype=np.bool_)
        order = catalogue_names()
        missing = [name for name in self.names if name not in order]
        if missing or len(order) != n_columns:
            raise DataError(
                f"the catalogue of {n_columns} features lacks {', '.join(missing) or 'some'}, "
                f"which {self.name} reads",
                fix="read the data with this version's load_data(..., catalogue=True)",
            )
        return np.isin(order, self.names)

    def _fitted(self) -> GammaExpert:
        if self.expert is None:
            raise ConfigError("boosting has not been fitted", fix="use what fit(data, fit_end_us) returns")
        return self.expert

    def _fit_variance(
        self, data: EvaluationData, start: Float3D, train: AnyArray, held: AnyArray
    ) -> GammaExpert:
        """The number of trees from the tail, then trees on everything, horizon by horizon."""
        every = train | held
        # only rows that are used: a copy of the whole catalogue would double the memory
        features = _catalogue(data)[every][:, self.columns]
        variance, start = data.variance[every], start[every]
        is_train, everything = train[every], np.ones(int(every.sum()), dtype=np.bool_)
        experts = []
        for h in range(variance.shape[1]):
            target, begin = variance[:, h : h + 1], start[:, h : h + 1]
            fit = partial(fit_gamma, features, target, begin, seed=self.seed, n_threads=self.n_threads)
            count = fit(is_train, ~is_train, self.spec).n_trees[0]
            experts.append(fit(everything, None, replace(self.spec, n_trees=max(1, count))))
        return GammaExpert.join(experts)

    def _fit_classifier(self, data: EvaluationData, horizon: int, fit_end_us: int) -> DistanceClassifier:
        rows = closed_before(data, fit_end_us, horizon)
        usable = np.asarray(np.isfinite(data.log_har[rows]).all(axis=2))
        cases = draw_cases(data, horizon, rows, usable, seed=CASE_SEED)
        design = self._design(data, cases, horizon)
        train, held = _parts(data, fit_end_us)
        bar = np.searchsorted(data.ts, cases.ts)
        return fit_distance_classifier(
            design, cases.outcome, train[bar], held[bar], self.classifier_spec, self.seed, self.n_threads
        )

    def _design(self, data: EvaluationData, cases: Cases, horizon: int) -> Float2D:
        """[ln z, side, top features] of drawn positions [n cases, 2 + n_top]."""
        bar = np.searchsorted(data.ts, cases.ts)
        log_variance = np.full(bar.size, np.nan)
        terms = data.log_har[bar, cases.market]
        known = np.isfinite(terms).all(axis=1)
        season = data.hour_of_week[bar]
        log_variance[known] = self.laws[horizon].predict_log(terms[known], season[known])
        log_z = np.log(cases.log_distance) - 0.5 * log_variance
        values = _catalogue(data)[bar[:, None], cases.market[:, None], self.top]
        return np.column_stack([log_z, cases.side, values]).astype(np.float64)


def fit_distance_classifier(
    design: Float2D,
    outcome: Float1D,
    train: Bool1D,
    held: Bool1D,
    spec: BoostingSpec,
    seed: int,
    n_threads: int,
) -> DistanceClassifier:
    """Fit a classifier that never rises with the first column.

    Parameters
    ----------
    design : [n, k]; first column ln z, finite; NaN = missing in the others.
    outcome : [n] 0 or 1.
    train, held : [n] rows to fit on, and rows that end the fit early.

    Raises
    ------
    DataError : no row in one of the parts.

    Notes
    -----
    The trees stay those of ``train``: a probability needs few, and the tail adds little.
    """
    lightgbm = import_lightgbm()
    if not train.any() or not held.any():
        raise DataError("the distance classifier needs drawn positions in both of its parts")
    straight = np.column_stack([np.ones(len(design)), design[:, 0]])
    line = fit_logistic(straight[train], outcome[train], ridge=1e-6)
    if line[1] > 0.0:  # nothing falls with the distance in these rows
        line = fit_logistic(straight[train, :1], outcome[train], ridge=1e-6)
        line = np.append(line, 0.0)
    parameters = _classifier_parameters(spec, design.shape[1], seed, n_threads)
    first, tail = (
        lightgbm.Dataset(
            design[rows],
            outcome[rows],
            init_score=straight[rows] @ line,
            params=parameters,
            free_raw_data=False,
        )
        for rows in (train, held)
    )
    tail.set_reference(first)
    stop = [lightgbm.early_stopping(spec.patience, verbose=False)]
    booster = lightgbm.train(parameters, first, spec.n_trees, valid_sets=[tail], callbacks=stop)
    trees = int(booster.best_iteration)
    before = _log_loss(straight[held] @ line, outcome[held])
    better = booster.best_score["valid_0"]["binary_logloss"] < before
    return DistanceClassifier(line, booster if better else None, trees if better else 0)


def _classifier_parameters(spec: BoostingSpec, n_columns: int, seed: int, n_threads: int) -> dict[str, Any]:
    return {
        **lightgbm_parameters(spec, seed, n_threads, objective="binary", metric="binary_logloss"),
        "monotone_constraints": [-1, *[0] * (n_columns - 1)],
        # "basic" throws away good splits below a constrained one
        "monotone_constraints_method": "intermediate",
        "boost_from_average": False,
    }


def _parts(data: EvaluationData, fit_end_us: int) -> tuple[Bool1D, Bool1D]:
    """Bars [n_bars] to fit on, and of the tail; no target window of the first ends in the second."""
    longest = max(duration_us(horizon) for horizon in data.horizons)
    begin = int(data.ts[0])
    seam = fit_end_us - int(VALIDATION_FRACTION * max(0, fit_end_us - begin))
    return data.ts + longest <= seam, (data.ts > seam) & (data.ts + longest <= fit_end_us)


def _catalogue(data: EvaluationData) -> Float32ND:
    if data.catalogue is None:
        raise DataError(
            "gradient boosting reads every feature of the catalogue, which these data lack",
            fix="read the data with load_data(..., catalogue=True)",
        )
    return data.catalogue


def _most_gain(expert: GammaExpert, n_features: int) -> Int1D:
    """Columns with the largest share of the gain, averaged over horizons, in rising order."""
    shares = []
    for booster, trees in zip(expert.boosters, expert.n_trees, strict=True):
        gain = np.asarray(booster.feature_importance("gain", iteration=trees), dtype=np.float64)
        shares.append(gain / max(gain.sum(), 1e-300))
    best = np.argsort(-np.mean(shares, axis=0), kind="stable")[:n_features]
    return np.sort(best).astype(np.int64)


def _log_loss(score: Float1D, outcome: Float1D) -> float:
    return float(np.mean(np.logaddexp(0.0, score) - outcome * score))
