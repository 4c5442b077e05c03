"""Every measure against scikit-learn, scipy, a published number or a hand count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riskml import metrics
from riskml.errors import DataError

sklearn_metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

OUTCOME = np.array([0, 0, 1, 1, 0, 1, 0, 1], dtype=float)
TIED_SCORE = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.4, 0.1, 0.9])


def random_forecast(seed: int, n_rows: int = 4000, decimals: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probability = np.round(generator.beta(0.6, 3.0, n_rows), decimals)
    return (generator.random(n_rows) < probability).astype(float), probability


class TestForecastMeasures:
    def test_qlike_of_a_perfect_forecast_is_zero(self):
        assert metrics.qlike(np.array([0.2, 3.0]), np.array([0.2, 3.0])) == 0.0

    def test_qlike_punishes_a_forecast_that_is_too_low_more_than_one_too_high(self):
        truth = np.array([1.0])
        assert metrics.qlike(truth, np.array([0.5])) == pytest.approx(2 - math.log(2) - 1)
        assert metrics.qlike(truth, np.array([2.0])) == pytest.approx(0.5 + math.log(2) - 1)

    def test_qlike_leaves_out_rows_with_nan(self):
        realised, forecast = np.array([1.0, np.nan, 2.0]), np.array([1.0, 1.0, np.nan])
        assert metrics.qlike(realised, forecast) == 0.0

    def test_log_loss_agrees_with_scikit_learn(self):
        happened, probability = random_forecast(1)
        clipped = np.clip(probability, metrics.PROBABILITY_CLIP, 1 - metrics.PROBABILITY_CLIP)
        assert metrics.log_loss(happened, probability) == pytest.approx(
            sklearn_metrics.log_loss(happened, clipped), rel=1e-12
        )

    def test_a_certain_but_wrong_forecast_costs_the_clip_and_not_infinity(self):
        assert metrics.log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-6))

    def test_calibration_error_agrees_with_scikit_learn_quantile_bins(self):
        calibration = pytest.importorskip("sklearn.calibration")
        happened, probability = random_forecast(2, decimals=8)
        frequency, mean = calibration.calibration_curve(happened, probability, n_bins=20, strategy="quantile")
        expected = np.abs(frequency - mean).mean()  # bins of equal size: no ties at 8 decimals
        assert metrics.expected_calibration_error(happened, probability) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("seed", [3, 4, 5])
    def test_ranking_measures_agree_with_scikit_learn_with_ties(self, seed):
        happened, score = random_forecast(seed, decimals=2)
        assert metrics.roc_auc(happened, score) == pytest.approx(
            sklearn_metrics.roc_auc_score(happened, score), abs=1e-12
        )
        assert metrics.average_precision(happened, score) == pytest.approx(
            sklearn_metrics.average_precision_score(happened, score), abs=1e-12
        )

    def test_ranking_measures_on_a_hand_count_with_ties(self):
        # of 16 event/other pairs 11 are in order, 3 are reversed, 2 are ties
        pairs = [
            (a > b) + 0.5 * (a == b)
            for a, o in zip(TIED_SCORE, OUTCOME, strict=True)
            if o
            for b, q in zip(TIED_SCORE, OUTCOME, strict=True)
            if not q
        ]
        assert metrics.roc_auc(OUTCOME, TIED_SCORE) == pytest.approx(np.mean(pairs))

    def test_ranking_measures_are_nan_when_nothing_can_be_ranked(self):
        assert math.isnan(metrics.roc_auc(np.zeros(3), np.arange(3.0)))
        assert math.isnan(metrics.average_precision(np.zeros(3), np.arange(3.0)))

    def test_slope_is_one_when_calibrated_and_half_when_logits_are_doubled(self):
        generator = np.random.default_rng(6)
        logit = generator.normal(-1.0, 1.5, 60_000)
        happened = generator.random(logit.size) < 1 / (1 + np.exp(-logit))
        for stretch, slope in ((1.0, 1.0), (2.0, 0.5)):
            probability = 1 / (1 + np.exp(-stretch * logit))
            assert metrics.calibration_slope(happened, probability) == pytest.approx(slope, abs=0.03)

    def test_logistic_regression_agrees_with_scikit_learn(self):
        linear_model = pytest.importorskip("sklearn.linear_model")
        generator = np.random.default_rng(7)
        design = np.column_stack([np.ones(3000), generator.normal(size=(3000, 2))])
        happened = (generator.random(3000) < 1 / (1 + np.exp(-design @ [-1.0, 2.0, 0.5]))).astype(float)
        reference = linear_model.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
        expected = reference.fit(design, happened).coef_[0]
        assert metrics.fit_logistic(design, happened) == pytest.approx(expected, rel=1e-5)

    def test_logistic_regression_stays_finite_on_separable_rows(self):
        design = np.column_stack([np.ones(4), [-2.0, -1.0, 1.0, 2.0]])
        assert np.isfinite(metrics.fit_logistic(design, np.array([0.0, 0.0, 1.0, 1.0]))).all()


class TestBacktests:
    @pytest.mark.parametrize(
        ("found", "rows", "statistic"),
        # 2 [12 ln(.012/.005) + 988 ln(.988/.995)] = 2 [10.5056 - 6.9753] = 7.0606
        [(5, 1000, 0.0), (0, 1000, -2000 * math.log1p(-0.005)), (12, 1000, 7.0606)],
    )
    def test_kupiec_statistic_of_a_hand_count(self, found, rows, statistic):
        result = metrics.kupiec(found, rows, 0.005)
        assert result.statistic == pytest.approx(statistic, abs=2e-4)
        assert result.p_value == pytest.approx(stats.chi2.sf(result.statistic, 1), abs=1e-12)

    def test_kupiec_rejects_at_the_published_non_rejection_regions(self):
        # Kupiec (1995), rate 1 %, 95 % confidence: n = 255 -> fewer than 7, n = 1000 -> 5 to 16
        assert metrics.kupiec(6, 255, 0.01).p_value > 0.05 > metrics.kupiec(7, 255, 0.01).p_value
        assert metrics.kupiec(16, 1000, 0.01).p_value > 0.05 > metrics.kupiec(17, 1000, 0.01).p_value
        assert metrics.kupiec(5, 1000, 0.01).p_value > 0.05 > metrics.kupiec(4, 1000, 0.01).p_value

    def test_christoffersen_sees_clusters_and_not_scatter(self):
        scattered, clustered = np.zeros(1000, bool), np.zeros(1000, bool)
        scattered[::100] = True
        clustered[500:510] = True
        assert metrics.christoffersen(scattered).p_value > 0.5
        assert metrics.christoffersen(clustered).p_value < 1e-9

    def test_christoffersen_agrees_with_a_likelihood_ratio_of_the_transition_table(self):
        generator = np.random.default_rng(8)
        hit = generator.random(400) < 0.2
        table = np.zeros((2, 2))
        np.add.at(table, (hit[:-1].astype(int), hit[1:].astype(int)), 1)
        expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        result = metrics.christoffersen(hit)
        assert result.statistic == pytest.approx(expected.statistic, rel=1e-9)
        assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)

    def test_conditional_coverage_adds_both_statistics_with_two_degrees(self):
        hit = np.zeros(600, bool)
        hit[[5, 6, 300]] = True
        result = metrics.conditional_coverage(hit, 0.01)
        total = metrics.kupiec(3, 600, 0.01).statistic + metrics.christoffersen(hit).statistic
        assert result.statistic == pytest.approx(total)
        assert result.p_value == pytest.approx(stats.chi2.sf(total, 2))

    @pytest.mark.parametrize(("breaches", "zone"), [(4, "green"), (5, "yellow"), (9, "yellow"), (10, "red")])
    def test_basel_zones_are_the_published_ones_for_250_days_at_one_percent(self, breaches, zone):
        assert metrics.basel_zone(breaches, 250, 0.01) == zone

    @pytest.mark.parametrize(
        ("found", "rows", "rate"), [(0, 10, 0.3), (40, 8760, 0.005), (700, 87600, 0.005)]
    )
    def test_binomial_distribution_agrees_with_scipy(self, found, rows, rate):
        assert metrics.binomial_cdf(found, rows, rate) == pytest.approx(stats.binom.cdf(found, rows, rate))

    def test_diebold_mariano_without_lags_is_a_t_test_of_the_differences(self):
        generator = np.random.default_rng(9)
        ours, theirs = generator.random(500), generator.random(500) + 0.05
        difference = ours - theirs
        expected = difference.mean() / (difference.std() / math.sqrt(500))
        assert metrics.diebold_mariano(ours, theirs, 0).statistic == pytest.approx(expected)

    def test_diebold_mariano_is_less_sure_when_losses_overlap(self):
        noise = np.convolve(np.random.default_rng(10).normal(size=3000), np.ones(24), "same") + 2.0
        naive = abs(metrics.diebold_mariano(noise, np.zeros(3000), 0).statistic)
        honest = abs(metrics.diebold_mariano(noise, np.zeros(3000), 23).statistic)
        assert honest < naive / 3

    def test_diebold_mariano_of_equal_losses_is_undecided(self):
        assert metrics.diebold_mariano(np.ones(9), np.ones(9), 2) == metrics.TestResult(0.0, 1.0)


class TestMarginSeries:
    @pytest.mark.parametrize(("window", "expected"), [(2, 4.0), (3, 4.0), (5, 8.0), (99, 8.0)])
    def test_peak_to_trough_is_the_largest_ratio_within_a_window(self, window, expected):
        assert metrics.peak_to_trough(np.array([8.0, 4.0, 4.0, 1.0, 4.0]), window) == expected

    def test_peak_to_trough_agrees_with_a_plain_loop(self):
        series = np.exp(np.random.default_rng(11).normal(size=300))
        windows = [series[i : i + 37] for i in range(300 - 37 + 1)]
        assert metrics.peak_to_trough(series, 37) == max(w.max() / w.min() for w in windows)

    def test_largest_rise_compares_rows_one_lag_apart_and_skips_nan(self):
        assert metrics.largest_rise(np.array([1.0, 2.0, np.nan, 3.0, 2.5]), 1) == 1.0
        assert metrics.largest_rise(np.array([1.0, 2.0, np.nan, 3.0, 2.5]), 2) == 0.5
        assert math.isnan(metrics.largest_rise(np.array([1.0]), 24))


class TestIntervals:
    def test_block_sums_add_rows_of_a_day_and_count_nan_as_zero(self):
        values = np.array([[1.0, 1.0], [2.0, 1.0], [np.nan, 0.0], [5.0, 1.0]])
        assert metrics.block_sums(values, np.array([7, 7, 7, 9])).tolist() == [[3.0, 2.0], [5.0, 1.0]]

    def test_the_interval_of_a_mean_has_the_width_that_theory_gives(self):
        values = np.random.default_rng(12).normal(1.0, 2.0, 2000)
        sums = metrics.block_sums(np.column_stack([values, np.ones(2000)]), np.arange(2000))
        low, high = metrics.block_bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1], n_draws=2000)
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(2000), rel=0.1)

    def test_four_blocks_are_too_few_for_an_interval(self):
        low, high = metrics.block_bootstrap(np.ones((4, 1)), lambda drawn: drawn[:, 0])
        assert math.isnan(low)
        assert math.isnan(high)


class TestBadInput:
    def test_rows_without_a_number_are_refused(self):
        with pytest.raises(DataError, match="no row without NaN"):
            metrics.qlike(np.array([np.nan]), np.array([1.0]))

    def test_arrays_of_unequal_size_are_refused(self):
        with pytest.raises(DataError, match=r"equal size.*\[2, 3\]"):
            metrics.log_loss(np.zeros(2), np.zeros(3))

    @pytest.mark.parametrize(("breaches", "rows"), [(1, 0), (5, 4), (-1, 4)])
    def test_impossible_breach_counts_are_refused(self, breaches, rows):
        with pytest.raises(DataError, match="cannot be tested"):
            metrics.kupiec(breaches, rows, 0.005)

    def test_independence_of_a_single_window_is_refused(self):
        with pytest.raises(DataError, match="at least 2 windows"):
            metrics.christoffersen(np.array([True]))

    def test_a_logistic_regression_on_nan_is_refused(self):
        with pytest.raises(DataError, match="finite values"):
            metrics.fit_logistic(np.array([[np.nan]]), np.array([1.0]))


class TestPopulationStability:
    def test_equal_samples_have_not_moved(self):
        sample = np.arange(1000.0)
        assert metrics.population_stability_index(sample, sample[::-1]) == 0.0

    def test_it_is_the_sum_over_deciles_counted_by_hand(self):
        expected = np.arange(1.0, 11.0)
        # one row per decile before; now two in the first, none in the last
        actual = np.array([1, 1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=float)
        by_hand = (0.2 - 0.1) * math.log(0.2 / 0.1) + (1e-4 - 0.1) * math.log(1e-4 / 0.1)
        assert metrics.population_stability_index(expected, actual) == pytest.approx(by_hand)

    def test_rows_that_go_missing_are_a_bin_of_their_own(self):
        expected = np.tile(np.arange(10.0), 10)
        actual = np.where(np.arange(100) < 50, np.nan, expected)
        by_hand = 10 * (0.05 - 0.1) * math.log(0.5) + (0.5 - 1e-4) * math.log(0.5 / 1e-4)
        assert metrics.population_stability_index(expected, actual) == pytest.approx(by_hand)
        both = metrics.population_stability_index(actual, actual)
        assert both == 0.0

    def test_all_missing_before_or_after_is_a_large_but_finite_drift(self):
        known, missing = np.arange(10.0), np.full(10, np.nan)
        one_bin = (1 - 1e-4) * math.log(1 / 1e-4)
        assert metrics.population_stability_index(missing, known) == pytest.approx(2 * one_bin)
        assert metrics.population_stability_index(missing, missing) == 0.0

    def test_a_constant_that_moves_either_way_is_seen(self):
        zeros = np.zeros(50)
        for shift in (-1.0, 1.0):
            assert metrics.population_stability_index(zeros, zeros + shift) > 9.0
        mostly_zero = np.r_[np.zeros(80), np.arange(1.0, 21.0)]
        assert metrics.population_stability_index(mostly_zero, mostly_zero - 1e-3) > 1.0

    def test_two_samples_of_one_law_stay_near_its_expectation(self):
        generator = np.random.default_rng(4)
        found = [
            metrics.population_stability_index(generator.normal(size=2000), generator.normal(size=1000))
            for _ in range(200)
        ]
        assert np.mean(found) == pytest.approx((1 / 2000 + 1 / 1000) * 9, rel=0.15)

    def test_an_empty_sample_is_refused(self):
        with pytest.raises(DataError, match="two samples with at least one row"):
            metrics.population_stability_index(np.arange(3.0), np.empty(0))
