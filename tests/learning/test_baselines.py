"""The baselines are what they claim to be: causal, fitted before fit_end, and hard to beat."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from riskml.learning import baselines
from riskml.learning.baselines import (
    DEFAULT_HALF_LIFE,
    HALF_LIVES,
    LogitZ,
    ewma,
    first_passage,
    fit_baselines,
)
from riskml.learning.protocol import Cases, EvaluationData, draw_cases
from riskml.units import HOUR

stats = pytest.importorskip("scipy.stats")

HORIZONS = ("1h", "8h", "24h")
N_BARS = 6000
FIT_END = 4000 * HOUR


def windows(values: np.ndarray, bars: int) -> np.ndarray:
    """[n_bars, n_markets, bars]: the ``bars`` rows after each row, NaN beyond the end."""
    padded = np.concatenate([values[1:], np.full((bars, values.shape[1]), np.nan)])
    return np.lib.stride_tricks.sliding_window_view(padded, bars, axis=0)[: len(values)]


def sample(seed: int = 0, n_bars: int = N_BARS, markets: tuple[str, ...] = ("AAA", "BBB")) -> EvaluationData:
    """Hourly bars of Brownian paths under a persistent log volatility."""
    generator = np.random.default_rng(seed)
    n_markets = len(markets)
    shocks = generator.normal(size=(n_bars, n_markets))
    level = np.zeros(n_markets)
    log_sigma = np.empty((n_bars, n_markets))
    for row in range(n_bars):
        level = 0.985 * level + 0.1 * shocks[row]
        log_sigma[row] = math.log(0.006) + level
    steps = generator.normal(size=(n_bars, n_markets, 30)) * np.exp(log_sigma)[..., None] / math.sqrt(30)
    path = np.cumsum(steps, axis=2)
    close = np.cumsum(path[..., -1], axis=0)
    opened = close - path[..., -1]
    high = opened + np.maximum(path.max(axis=2), 0.0)
    low = opened + np.minimum(path.min(axis=2), 0.0)
    parkinson = (high - low) ** 2 / (4 * math.log(2))
    bars = (1, 8, 24)
    excursion = np.stack(
        [
            np.stack([close - windows(low, h).min(axis=2), windows(high, h).max(axis=2) - close], axis=-1)
            for h in bars
        ],
        axis=2,
    )
    variance = np.stack([windows(parkinson, h).sum(axis=2) for h in bars], axis=2)
    drop = windows(np.vstack([np.full(n_markets, np.nan), close[:-1] - low[1:]]), 24).max(axis=2)
    means = ewma(parkinson, np.array([24.0, 1440.0]))
    har = [ewma(parkinson, np.array([h / 2]))[..., 0] for h in (1, 8, 24, 168)]
    return EvaluationData(
        ts=np.arange(1, n_bars + 1) * HOUR,
        markets=markets,
        interval="1h",
        horizons=HORIZONS,
        bar_variance=parkinson,
        log_har=np.log(np.stack(har, axis=2)),
        log_fast=np.log(means[..., 0]),
        log_slow=np.log(means[..., 1]),
        hour_of_week=np.arange(n_bars) % 168.0,
        excursion=np.maximum(excursion, 0.0),
        variance=variance,
        stress=np.repeat(np.where(np.isnan(drop), np.nan, drop > 0.03)[..., None], 3, axis=2),
    )


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    return sample()


class TestEwma:
    def test_it_equals_a_plain_weighted_mean(self):
        values = np.random.default_rng(1).random((60, 1))
        weight = 0.5 ** (np.arange(60)[::-1] / 7.0)
        expected = (weight * values[:, 0]).sum() / weight.sum()
        assert ewma(values, np.array([7.0]))[-1, 0, 0] == pytest.approx(expected, rel=1e-12)

    def test_a_missing_bar_adds_nothing_but_time_passes(self):
        values = np.random.default_rng(2).random((60, 1))
        values[40:50] = np.nan
        weight = 0.5 ** (np.arange(60)[::-1] / 7.0) * np.isfinite(values[:, 0])
        expected = np.nansum(weight * np.nan_to_num(values[:, 0])) / weight.sum()
        assert ewma(values, np.array([7.0]))[-1, 0, 0] == pytest.approx(expected, rel=1e-12)

    def test_it_says_nothing_before_a_day_of_bars(self):
        result = ewma(np.ones((30, 1)), np.array([6.0]))[:, 0, 0]
        assert np.isnan(result[:23]).all()
        assert (result[23:] == 1.0).all()


class TestProbability:
    def test_first_passage_is_twice_the_normal_tail(self):
        z = np.array([0.0, 0.5, 1.0, 3.0, 8.0])
        assert first_passage(z) == pytest.approx(2 * stats.norm.sf(z), rel=1e-12)

    def test_first_passage_of_nan_is_nan(self):
        assert np.isnan(first_passage(np.array([np.nan]))).all()

    def test_logit_z_is_a_logistic_function_of_log_z_and_its_square(self):
        law = LogitZ(np.array([[0.5, -2.0, -0.25]]))
        score = 0.5 - 2.0 * math.log(3.0) - 0.25 * math.log(3.0) ** 2
        assert law.predict(0, np.array([3.0]))[0] == pytest.approx(1 / (1 + math.exp(-score)))

    def test_distance_is_measured_in_the_volatility_known_at_the_row(self, data):
        cases = Cases(data.ts[[500]], np.array([1]), np.array([0]), np.array([0.2]), np.array([0.0]))
        sigma = math.exp(0.5 * data.log_fast[500, 1])
        assert baselines.case_distance(data, cases, 1)[0] == pytest.approx(0.2 / (sigma * math.sqrt(8)))


class TestFit:
    def test_no_row_whose_window_closes_after_fit_end_changes_the_fit(self, data):
        later = data.ts > FIT_END
        spoiled = {}
        for name in ("bar_variance", "log_har", "log_fast", "log_slow"):
            spoiled[name] = getattr(data, name).copy()
            spoiled[name][later] = 9.0
        for name in ("excursion", "variance", "stress"):
            values = getattr(data, name).copy()
            for index, h in enumerate((1, 8, 24)):
                values[data.ts + h * HOUR > FIT_END, :, index] = 1.0
            spoiled[name] = values
        expected, found = fit_baselines(data, FIT_END), fit_baselines(replace(data, **spoiled), FIT_END)
        assert found.half_life == expected.half_life
        assert found.logit_z is not None
        assert np.array_equal(found.logit_z.coefficients, expected.logit_z.coefficients)
        for ours, theirs in zip(found.log_har_season, expected.log_har_season, strict=True):
            assert np.array_equal(ours.coefficients, theirs.coefficients)
            assert np.array_equal(ours.season, theirs.season)
        assert np.array_equal(found.stress_coefficients, expected.stress_coefficients)

    def test_log_har_is_unbiased_on_the_fit_rows(self, data):
        forecast = fit_baselines(data, FIT_END).variance(data)["log_har"]
        rows = data.ts + 24 * HOUR <= FIT_END
        ratio = np.nanmean(data.variance[rows] / forecast[rows], axis=(0, 1))
        assert ratio == pytest.approx(np.ones(3), abs=0.01)

    def test_the_tuned_half_life_beats_every_other_on_the_fit_rows(self, data):
        chosen = fit_baselines(data, FIT_END).half_life[2]
        rows = data.ts + 24 * HOUR <= FIT_END
        from riskml.metrics import qlike

        losses = {
            name: qlike(data.variance[rows, :, 2], baselines.ewma_forecast(data, (name,) * 3)[rows, :, 2])
            for name in HALF_LIVES
        }
        assert chosen == min(losses, key=losses.__getitem__)

    def test_logit_z_is_calibrated_on_fresh_rows(self, data):
        fitted = fit_baselines(data, FIT_END)
        rows = slice(4100, N_BARS)
        cases = draw_cases(data, 1, rows, np.ones((N_BARS - 4100, 2), bool))
        p = fitted.probability(data, cases, 1)["logit_z"]
        assert p.mean() == pytest.approx(cases.outcome.mean(), rel=0.25)

    def test_a_lake_without_history_leaves_the_fitted_models_out_and_says_so(self, data):
        fitted = fit_baselines(data, 30 * HOUR)
        assert fitted.half_life == (DEFAULT_HALF_LIFE,) * 3
        assert set(fitted.variance(data)) == {"ewma"}
        assert "before the bundle's fit_end" in fitted.notes[0]


class TestFhs:
    def test_requirement_uses_only_windows_that_had_closed(self, data):
        rows = slice(4000, 5000)
        scale = np.sqrt(baselines.ewma_forecast(data, ("24h",) * 3))
        before = baselines.fhs_margins(data, rows, {"fhs": scale})["fhs"]
        future = data.excursion.copy()
        for index, h in enumerate((1, 8, 24)):
            future[data.ts + h * HOUR > data.ts[4999], :, index] = 5.0
        after = baselines.fhs_margins(replace(data, excursion=future), rows, {"fhs": scale})["fhs"]
        assert np.array_equal(before, after)

    def test_requirement_covers_at_its_level(self, data):
        rows = slice(3000, 5900)
        scales = baselines.fhs_scales(data, baselines.ewma_forecast(data, ("24h",) * 3))
        margin = baselines.fhs_margins(data, rows, scales)
        for name in ("fhs_ewma", "fhs_slow"):
            rate = np.nanmean(data.excursion[rows, :, 0] > margin[name][:, :, 0])
            assert 0.001 < rate < 0.02

    def test_a_young_market_borrows_the_quantile_of_all(self, data):
        excursion = data.excursion.copy()
        excursion[:3900, 1] = np.nan
        young = replace(data, excursion=excursion)
        scale = np.ones((N_BARS, 2, 3))
        margin = baselines.fhs_margins(young, slice(4000, 4010), {"fhs": scale})["fhs"]
        assert margin[:, 1, 0].max() <= margin[:, 0, 0].max()  # the pool is the old market's windows
        assert np.isfinite(margin).all()

    def test_too_few_windows_give_no_requirement(self, data):
        margin = baselines.fhs_margins(data, slice(100, 110), {"fhs": np.ones((N_BARS, 2, 3))})["fhs"]
        assert np.isnan(margin).all()
