"""The boosted opponent learns from the past only, falls with the distance, and keeps to the interface."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.learning import boosting_baseline
from riskml.learning.baselines import fit_baselines, fit_log_hars, har_forecast, more_models
from riskml.learning.boosting import BoostingSpec
from riskml.learning.boosting_baseline import (
    MIN_COVERAGE,
    BoostingBaseline,
    fit_distance_classifier,
)
from riskml.learning.protocol import Cases, EvaluationData, draw_cases
from riskml.metrics import qlike
from riskml.units import HOUR

pytest.importorskip("lightgbm")

N_BARS, N_MARKETS = 4000, 2
FIT_END = 3000 * HOUR
SPEC = BoostingSpec(n_trees=40, learning_rate=0.1, num_leaves=7, min_leaf_rows=20, patience=10)
UNFITTED = BoostingBaseline(spec=SPEC, classifier_spec=SPEC, n_threads=1)


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    """Two markets whose variance follows a log-HAR, and a V-shaped feature that the log-HAR cannot see."""
    draw = np.random.default_rng(0)
    shape = (N_BARS, N_MARKETS)
    bend, noise, late = (draw.standard_normal(shape) for _ in range(3))
    late[:2900] = np.nan  # a source that begins near the end of the fit part
    level = np.log(1e-4) + 0.5 * draw.standard_normal(shape)
    size = np.array([1.0, 8.0, 24.0])
    log_variance = (0.6 * level + 0.8 * np.abs(bend))[..., None] + np.log(size)
    variance = np.exp(log_variance + 0.2 * draw.standard_normal((*shape, 3)))
    reach = np.abs(draw.standard_normal((*shape, 3, 2))) * np.sqrt(variance)[..., None]
    return EvaluationData(
        ts=np.arange(1, N_BARS + 1) * HOUR,
        markets=("AAA", "BBB"),
        interval="1h",
        horizons=("1h", "8h", "24h"),
        bar_variance=np.exp(level),
        log_har=np.stack([level, level + 0.1 * draw.standard_normal(shape)], axis=2),
        log_fast=level,
        log_slow=np.full(shape, np.log(1e-4)),
        hour_of_week=np.arange(N_BARS) % 168.0,
        excursion=reach,
        variance=variance,
        stress=np.zeros((*shape, 3)),
        returns=None,
        catalogue=np.stack([level, bend, noise, late], axis=2).astype(np.float32),
    )


@pytest.fixture(scope="module")
def fitted(data: EvaluationData) -> BoostingBaseline:
    return UNFITTED.fit(data, FIT_END)


def test_it_beats_the_log_har_that_it_starts_at(data: EvaluationData, fitted: BoostingBaseline) -> None:
    start = har_forecast(data, fit_log_hars(data, FIT_END)[1])
    forecast = fitted.variance(data)
    for h in range(3):
        realised = data.variance[3050:, :, h]
        assert qlike(realised, forecast[3050:, :, h]) < 0.6 * qlike(realised, start[3050:, :, h])


def test_a_feature_that_the_fit_part_hardly_knows_is_not_read(fitted: BoostingBaseline) -> None:
    assert MIN_COVERAGE > 100 / 3000
    assert fitted.columns.tolist() == [0, 1, 2]
    assert set(fitted.top.tolist()) <= {0, 1, 2}


def test_another_future_changes_no_fit(data: EvaluationData, fitted: BoostingBaseline) -> None:
    other = {name: getattr(data, name).copy() for name in ("variance", "excursion", "catalogue", "log_har")}
    for name in ("catalogue", "log_har"):
        other[name][data.ts > FIT_END] = 0.5
    for index, bars in enumerate(data.horizon_bars):
        unknown = data.ts + bars * HOUR > FIT_END
        other["variance"][unknown, :, index] = 7.0
        other["excursion"][unknown, :, index] = 7.0
    again = UNFITTED.fit(replace(data, **other), FIT_END)
    assert again.expert is not None
    assert fitted.expert is not None
    assert again.expert.to_text() == fitted.expert.to_text()
    for ours, theirs in zip(fitted.classifiers, again.classifiers, strict=True):
        assert np.array_equal(ours.line, theirs.line)
        assert ours.n_trees == theirs.n_trees
        if ours.booster is not None:
            assert ours.booster.model_to_string() == theirs.booster.model_to_string()


def test_the_same_seed_gives_the_same_forecast(data: EvaluationData, fitted: BoostingBaseline) -> None:
    assert np.array_equal(UNFITTED.fit(data, FIT_END).variance(data), fitted.variance(data))


@pytest.mark.parametrize("horizon", [0, 1, 2])
def test_the_probability_never_rises_with_the_distance(
    data: EvaluationData, fitted: BoostingBaseline, horizon: int
) -> None:
    distances = np.geomspace(1e-4, 0.9, 300)
    if horizon == 0:  # the line alone would fall anyway; longer horizons draw too few cases here for trees
        assert fitted.classifiers[horizon].n_trees > 5
    for bar in (3100, 3500, 3900):
        for side in (0, 1):
            ts, zeros = np.full(300, data.ts[bar]), np.zeros(300, dtype=np.int64)
            cases = Cases(ts, zeros, zeros + side, distances, np.zeros(300))
            probability = fitted.probability(data, cases, horizon)
            assert (np.diff(probability) <= 0.0).all()
            assert probability[0] > 0.9
            assert probability[-1] < 0.3


def test_a_classifier_that_could_only_rise_stays_flat() -> None:
    draw = np.random.default_rng(1)
    design = np.column_stack([draw.standard_normal(2000), draw.integers(0, 2, 2000)])
    outcome = (design[:, 0] + 0.3 * draw.standard_normal(2000) > 0).astype(np.float64)
    train = np.arange(2000) < 1500
    model = fit_distance_classifier(design, outcome, train, ~train, SPEC, 0, 1)
    grid = np.column_stack([np.linspace(-3, 3, 200), np.zeros(200)])
    assert np.ptp(model.predict(grid)) < 1e-12


def test_probabilities_beat_the_base_rate_and_lie_between_zero_and_one(
    data: EvaluationData, fitted: BoostingBaseline
) -> None:
    rows = slice(3050, 3950)
    cases = draw_cases(data, 0, rows, np.ones((900, 2), dtype=np.bool_))
    probability = fitted.probability(data, cases, 0)
    assert ((probability >= 0.0) & (probability <= 1.0)).all()
    base = cases.outcome.mean()
    brier, plain = ((p - cases.outcome) ** 2 for p in (probability, base))
    assert brier.mean() < 0.6 * plain.mean()


def test_a_row_without_the_log_har_has_no_forecast(data: EvaluationData, fitted: BoostingBaseline) -> None:
    holes = data.log_har.copy()
    holes[3500, 1, 0] = np.nan
    spoiled = replace(data, log_har=holes)
    forecast = fitted.variance(spoiled)
    assert np.isnan(forecast[3500, 1]).all()
    assert np.isfinite(forecast[3500, 0]).all()
    place = np.array([1])
    cases = Cases(data.ts[[3500]], place, place, np.array([0.1]), np.array([0.0]))
    assert np.isnan(fitted.probability(spoiled, cases, 0)).all()


def test_a_missing_feature_is_no_reason_to_say_nothing(
    data: EvaluationData, fitted: BoostingBaseline
) -> None:
    assert data.catalogue is not None
    forecast = fitted.variance(replace(data, catalogue=np.full_like(data.catalogue, np.nan)))
    assert np.isfinite(forecast).all()


def test_a_market_that_no_fit_has_seen_can_be_forecast(
    data: EvaluationData, fitted: BoostingBaseline
) -> None:
    alone = data.select(["BBB"])
    assert np.array_equal(fitted.variance(alone), fitted.variance(data)[:, 1:])


def test_data_without_the_catalogue_are_refused_and_noted(data: EvaluationData) -> None:
    plain = replace(data, catalogue=None)
    with pytest.raises(DataError, match="every feature of the catalogue"):
        UNFITTED.fit(plain, FIT_END)
    full = fit_baselines(plain, FIT_END, which="full")
    assert any(note.startswith("boosting is left out") for note in full.notes)
    assert "boosting" not in full.variance(plain)


def test_a_fit_part_without_a_tail_is_refused(data: EvaluationData) -> None:
    variance = data.variance.copy()
    variance[2600:] = np.nan
    with pytest.raises(DataError, match="tail that says how"):
        UNFITTED.fit(replace(data, variance=variance), FIT_END)


def test_no_forecast_before_a_fit(data: EvaluationData) -> None:
    with pytest.raises(ConfigError, match="has not been fitted"):
        UNFITTED.variance(data)


def test_boosting_on_some_features_reads_no_other(
    data: EvaluationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boosting_baseline, "catalogue_names", lambda: ("level", "bend", "noise", "late"))
    blind = replace(UNFITTED, names=("level", "noise")).fit(data, FIT_END)
    assert blind.columns.tolist() == [0, 2]
    assert set(blind.top.tolist()) <= {0, 2}
    assert data.catalogue is not None
    other = data.catalogue.copy()
    other[:, :, 1] = 0.0  # the V that only the second feature sees
    same = replace(UNFITTED, names=("level", "noise")).fit(replace(data, catalogue=other), FIT_END)
    np.testing.assert_array_equal(same.variance(data), blind.variance(data))


def test_a_feature_that_the_catalogue_lacks_is_named(
    data: EvaluationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boosting_baseline, "catalogue_names", lambda: ("level", "bend", "noise", "late"))
    with pytest.raises(DataError, match="lacks gone, which boosting reads"):
        replace(UNFITTED, names=("level", "gone")).fit(data, FIT_END)


def test_the_full_set_has_boosting_on_the_features_of_the_model_beside_boosting_on_all() -> None:
    assert [m.name for m in more_models(["a"])][-2:] == ["boosting", "boosting_same"]
    assert "boosting_same" not in [m.name for m in more_models()]
