"""HARQ and GARCH equal what others compute, learn from the past only, and stand behind one interface."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.learning import garch
from riskml.learning.baseline import closed_before
from riskml.learning.baseline_models import every_baseline
from riskml.learning.baselines import ewma, fhs_margins, fhs_scales, fit_baselines
from riskml.learning.garch import GarchLaw, GarchT, aggregate, filter_variance, fit_garch
from riskml.learning.harq import Harq, harq_terms, relative_quarticity
from riskml.learning.protocol import EvaluationData, draw_cases
from riskml.units import HOUR

pytest.importorskip("arch")
stats = pytest.importorskip("scipy.stats")

N_BARS = 4000
FIT_END = 3000 * HOUR
LAW = GarchLaw(omega=0.02, alpha=0.08, beta=0.9, nu=5.0)


def simulate(law: GarchLaw, n_bars: int, seed: int) -> np.ndarray:
    """Returns [n_bars] of a GARCH(1,1)-t, one step after the other."""
    unit = np.random.default_rng(seed).standard_t(law.nu, n_bars) * math.sqrt((law.nu - 2) / law.nu)
    variance = law.omega / (1 - law.alpha - law.beta)
    returns = np.empty(n_bars)
    for row in range(n_bars):
        returns[row] = math.sqrt(variance) * unit[row]
        variance = law.omega + law.alpha * returns[row] ** 2 + law.beta * variance
    return returns


def spoil(data: EvaluationData, after_us: int) -> EvaluationData:
    """The same data with another future: everything known after ``after_us`` replaced."""
    changed = {}
    for name in ("bar_variance", "log_har", "log_fast", "log_slow", "returns"):
        changed[name] = getattr(data, name).copy()
        changed[name][data.ts > after_us] = 0.5
    for name in ("excursion", "variance"):
        changed[name] = getattr(data, name).copy()
        for index, bars in enumerate(data.horizon_bars):
            changed[name][data.ts + bars * HOUR > after_us, :, index] = 7.0
    return replace(data, **changed)


def following(values: np.ndarray, bars: int) -> np.ndarray:
    """[n_bars, n_markets, bars]: the rows after each row, NaN beyond the end."""
    padded = np.concatenate([values[1:], np.full((bars, values.shape[1]), np.nan)])
    return np.lib.stride_tricks.sliding_window_view(padded, bars, axis=0)[: len(values)]


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    """Two hourly markets whose returns are a GARCH and whose ranges follow its shocks."""
    scale = 0.006 / math.sqrt(LAW.omega / (1 - LAW.alpha - LAW.beta))
    returns = np.stack([scale * simulate(LAW, N_BARS, seed) for seed in (1, 2)], axis=1)
    noise = np.random.default_rng(3).gamma(4.0, 0.25, returns.shape)
    parkinson = (
        0.5 * filter_variance(returns, [replace(LAW, omega=LAW.omega * scale**2)] * 2) + 1e-6
    ) * noise
    parkinson[:80] = 1e-5
    returns[0] = np.nan
    bars = (1, 8, 24)
    variance = np.stack([following(parkinson, h).sum(axis=2) for h in bars], axis=2)
    path = np.stack([np.abs(following(returns, h).sum(axis=2)) for h in bars], axis=2)
    means = ewma(parkinson, np.array([0.5, 4.0, 12.0, 84.0, 24.0, 1440.0]))
    return EvaluationData(
        ts=np.arange(1, N_BARS + 1) * HOUR,
        markets=("AAA", "BBB"),
        interval="1h",
        horizons=("1h", "8h", "24h"),
        bar_variance=parkinson,
        log_har=np.log(means[..., :4]),
        log_fast=np.log(means[..., 4]),
        log_slow=np.log(means[..., 5]),
        hour_of_week=np.arange(N_BARS) % 168.0,
        excursion=np.stack([path, 0.9 * path], axis=-1),
        variance=variance,
        stress=np.where(np.isfinite(path), (path > 0.02) * 1.0, np.nan),
        returns=returns,
    )


@pytest.fixture(scope="module")
def fitted_garch(data: EvaluationData) -> GarchT:
    return GarchT().fit(data, FIT_END)


class TestQuarticity:
    @pytest.mark.parametrize(
        ("bars", "expected"),
        [
            ([2.0, 2.0, 2.0, 2.0], 1.0),
            ([0.0, 0.0, 0.0, 5.0], 2.0),
            ([1.0, np.nan, 3.0, np.nan], math.sqrt(2 * 10) / 4),
            ([1.0, np.nan, np.nan, np.nan], np.nan),
            ([0.0, 0.0, 0.0, 0.0], np.nan),
        ],
    )
    def test_it_is_one_for_even_bars_and_root_n_for_a_single_burst(self, bars, expected):
        found = relative_quarticity(np.array(bars)[:, None], 4)[-1, 0]
        assert found == pytest.approx(expected, nan_ok=True)

    def test_it_does_not_depend_on_the_unit(self, data):
        bars = data.bar_variance[:100]
        assert relative_quarticity(1e4 * bars, 24) == pytest.approx(
            relative_quarticity(bars, 24), nan_ok=True
        )


class TestHarq:
    def test_slopes_equal_scikit_learns_least_squares(self, data):
        linear_model = pytest.importorskip("sklearn.linear_model")
        law = Harq().fit(data, FIT_END).laws[1]
        rows = closed_before(data, FIT_END, 1)
        x, y = harq_terms(data)[rows].reshape(-1, 6), data.variance[rows, :, 1].ravel()
        keep = np.isfinite(x).all(axis=1) & np.isfinite(y)
        oracle = linear_model.LinearRegression().fit(x[keep], np.log(y[keep]))
        assert law.coefficients == pytest.approx(oracle.coef_, abs=1e-5)

    def test_it_is_unbiased_on_the_fit_rows(self, data):
        forecast = Harq().fit(data, FIT_END).variance(data)
        for index in range(3):
            rows = closed_before(data, FIT_END, index)
            assert np.nanmean(data.variance[rows, :, index] / forecast[rows, :, index]) == pytest.approx(1.0)

    def test_the_future_changes_neither_fit_nor_forecast(self, data):
        fitted, other = Harq().fit(data, FIT_END), Harq().fit(spoil(data, FIT_END), FIT_END)
        before = data.ts <= FIT_END
        expected, found = fitted.variance(data)[before], other.variance(spoil(data, FIT_END))[before]
        assert np.array_equal(expected, found, equal_nan=True)
        assert np.isfinite(expected).any()

    def test_a_row_with_a_missing_term_has_no_forecast(self, data):
        terms = data.log_har.copy()
        terms[2000, 0, 2] = np.nan
        forecast = Harq().fit(data, FIT_END).variance(replace(data, log_har=terms))
        assert np.isnan(forecast[2000, 0]).all()
        assert np.isfinite(forecast[2000, 1]).all()

    def test_too_few_rows_are_refused(self, data):
        with pytest.raises(DataError, match="needs at least"):
            Harq().fit(data, 30 * HOUR)

    def test_an_unfitted_one_says_so(self, data):
        with pytest.raises(ConfigError, match="HARQ has not been fitted"):
            Harq().variance(data)


class TestGarchRecursion:
    def test_it_equals_archs_conditional_variance_at_fixed_parameters(self):
        returns = simulate(LAW, 600, 3)
        fixed = garch.arch_model(returns).fix([LAW.omega, LAW.alpha, LAW.beta, LAW.nu])
        ours = filter_variance(returns[:, None], [LAW])[:, 0]
        # row t of ours is the variance of the bar after it
        assert ours[74:-1] == pytest.approx(fixed.conditional_volatility[75:] ** 2, rel=1e-10)
        assert np.isnan(ours[:74]).all()

    @pytest.mark.parametrize("horizon", [1, 8, 24])
    def test_the_horizon_sum_equals_archs_analytic_forecast(self, horizon):
        returns = simulate(LAW, 600, 4)
        fixed = garch.arch_model(returns).fix([LAW.omega, LAW.alpha, LAW.beta, LAW.nu])
        steps = fixed.forecast(horizon=horizon, method="analytic", reindex=False).variance.to_numpy()
        ours = aggregate(filter_variance(returns[:, None], [LAW]), [LAW], horizon)[-1, 0]
        assert ours == pytest.approx(steps.sum(), rel=1e-10)

    def test_an_integrated_garch_grows_by_omega_per_bar(self):
        law = GarchLaw(0.5, 0.1, 0.9, 5.0)
        assert aggregate(np.array([[2.0]]), [law], 3)[0, 0] == pytest.approx(2.0 + 2.5 + 3.0)

    def test_a_missing_return_counts_as_its_expectation(self):
        returns = simulate(LAW, 200, 5)
        returns[150] = np.nan
        found = filter_variance(returns[:, None], [LAW])[:, 0]
        assert found[150] == pytest.approx(LAW.omega + (LAW.alpha + LAW.beta) * found[149])

    def test_a_market_that_lists_late_is_filtered_as_if_alone(self):
        returns = simulate(LAW, 300, 6)
        late = np.concatenate([np.full(50, np.nan), returns])
        assert np.array_equal(
            filter_variance(late[:, None], [LAW])[50:],
            filter_variance(returns[:, None], [LAW]),
            equal_nan=True,
        )


class TestGarch:
    def test_the_future_changes_neither_fit_nor_forecast(self, data, fitted_garch):
        other = GarchT().fit(spoil(data, FIT_END), FIT_END)
        assert other == fitted_garch
        before = data.ts <= FIT_END
        expected, found = fitted_garch.variance(data), fitted_garch.variance(spoil(data, FIT_END))
        assert np.array_equal(expected[before], found[before], equal_nan=True)
        assert not np.array_equal(expected[~before], found[~before], equal_nan=True)

    def test_one_constant_per_horizon_makes_it_unbiased_on_the_fit_rows(self, data, fitted_garch):
        forecast = fitted_garch.variance(data)
        for index in range(3):
            rows = closed_before(data, FIT_END, index)
            assert np.nanmean(data.variance[rows, :, index] / forecast[rows, :, index]) == pytest.approx(1.0)

    def test_margin_is_the_quantile_of_the_reflected_student_path(self, data, fitted_garch):
        nu = fitted_garch.law("AAA").nu
        sigma = math.sqrt(fitted_garch.return_variance(data)[500, 0, 0] * (nu - 2) / nu)
        margin = fitted_garch.margin(data, slice(500, 501))[0, 0, 0]
        assert margin == pytest.approx(np.full(2, sigma * stats.t.isf(0.0025, nu)), rel=1e-3)

    def test_probability_is_twice_the_student_tail(self, data, fitted_garch):
        rows = slice(500, 600)
        cases = draw_cases(data, 0, rows, np.ones((100, 2), bool))
        bar = np.searchsorted(data.ts, cases.ts)
        nu = np.array([fitted_garch.law(name).nu for name in data.markets])[cases.market]
        sigma = np.sqrt(fitted_garch.return_variance(data)[bar, cases.market, 0] * (nu - 2) / nu)
        expected = 2 * stats.t.sf(cases.log_distance / sigma, nu)
        assert fitted_garch.probability(data, cases, 0) == pytest.approx(expected, rel=2e-3)

    def test_a_market_without_history_borrows_the_median_law_and_says_so(self, data):
        returns = data.returns.copy()
        returns[: N_BARS - 1200, 1] = np.nan
        fitted = GarchT().fit(replace(data, returns=returns), FIT_END)
        assert fitted.law("BBB") == fitted.law("AAA")
        assert fitted.notes == ("garch_t: median parameters for BBB",)

    @pytest.mark.parametrize(
        ("fit_end", "returns", "message"),
        [(100 * HOUR, True, "needs a market with 2000 returns"), (FIT_END, False, "close-to-close returns")],
    )
    def test_data_that_cannot_carry_a_fit_are_refused(self, data, fit_end, returns, message):
        with pytest.raises(DataError, match=message):
            GarchT().fit(data if returns else replace(data, returns=None), fit_end)

    @pytest.mark.slow
    def test_simulated_parameters_are_recovered(self):
        law = fit_garch(1e-3 * simulate(LAW, 40_000, 7))
        assert law.alpha == pytest.approx(LAW.alpha, abs=0.01)
        assert law.beta == pytest.approx(LAW.beta, abs=0.015)
        assert law.nu == pytest.approx(LAW.nu, abs=0.4)
        assert law.omega == pytest.approx(1e-6 * LAW.omega, rel=0.2)


class TestFullSet:
    def test_it_adds_models_and_leaves_the_light_ones_as_they_are(self, data):
        light, full = fit_baselines(data, FIT_END), fit_baselines(data, FIT_END, which="full")
        ours, more = light.variance(data), full.variance(data)
        assert {"harq", "garch_t"} <= set(more) - set(ours)
        for name, values in ours.items():
            assert np.array_equal(values, more[name], equal_nan=True)
        assert light.margin(data, slice(0, 10)) == {}
        assert set(full.margin(data, slice(0, 10))) >= {"garch_t"}

    def test_a_model_that_cannot_be_fitted_is_left_out_with_a_note(self, data):
        full = fit_baselines(replace(data, returns=None), FIT_END, which="full")
        assert "garch_t" not in full.variance(data)
        assert any(note.startswith("garch_t is left out") for note in full.notes)

    def test_another_set_is_refused(self, data):
        with pytest.raises(ConfigError, match="'light' or 'full'"):
            fit_baselines(data, FIT_END, which="medium")


class TestOneInterface:
    def test_the_plain_yardsticks_say_what_the_functions_behind_them_say(self, data):
        old = fit_baselines(data, FIT_END)
        rows = slice(3000, 3200)
        variances = old.variance(data)
        margins = fhs_margins(data, rows, fhs_scales(data, variances["ewma"]))
        cases = draw_cases(data, 1, rows, np.ones((200, 2), bool))
        probabilities = old.probability(data, cases, 1)
        fitted = {model.name: model.fit(data, FIT_END) for model in every_baseline()}
        for name, values in variances.items():
            assert np.array_equal(fitted[name].variance(data), values, equal_nan=True)
        for name, values in margins.items():
            assert np.array_equal(fitted[name].margin(data, rows), values, equal_nan=True)
        for name, values in probabilities.items():
            assert np.array_equal(fitted[name].probability(data, cases, 1), values)

    def test_a_model_says_nothing_where_it_has_no_law(self, data):
        fitted = {model.name: model.fit(data, FIT_END) for model in every_baseline()}
        assert fitted["first_passage"].variance(data) is None
        assert fitted["log_har"].margin(data, slice(0, 1)) is None

    @pytest.mark.parametrize("name", ["ewma", "log_har", "garch_t", "harq"])
    def test_no_forecast_before_a_fit(self, data, name):
        model = next(model for model in every_baseline("full") if model.name == name)
        with pytest.raises(ConfigError, match="has not been fitted"):
            model.variance(data)

    def test_names_are_unique(self):
        names = [model.name for model in every_baseline("full")]
        assert len(set(names)) == len(names)
