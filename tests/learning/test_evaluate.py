"""The protocol on rows drawn from the law itself: the truth passes, a wrong forecast fails."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.learning import protocol
from riskml.learning.account_measures import account_rows, history_end, read_margins
from riskml.learning.baselines import fit_baselines
from riskml.learning.evaluate import (
    Evaluated,
    baseline_markets,
    choose_markets,
    published_log_har,
    score_rows,
)
from riskml.learning.measures import measure
from riskml.learning.protocol import EvaluationData
from riskml.markets import Market
from riskml.units import DAY, HOUR

HORIZONS = ("1h", "8h", "24h")
MARKETS = ("AAA", "BBB", "CCC")
N_BARS, FIT_BARS = 24 * 500, 24 * 250
NU = 4.0
START = (FIT_BARS + 24) * HOUR
END = (N_BARS + 1) * HOUR
POWER = np.ones(3)


@dataclass(frozen=True)
class History:
    """The fields of a forecast history."""

    ts: np.ndarray
    markets: tuple[str, ...]
    horizons: tuple[str, ...]
    sigma: np.ndarray
    nu: np.ndarray
    variance: np.ndarray
    stress: np.ndarray
    available: np.ndarray


def draw_world(seed: int = 0) -> tuple[EvaluationData, History]:
    """Independent rows: excursion = sigma |t_4|, variance = expected x noise, stress = coin."""
    generator = np.random.default_rng(seed)
    shape = (N_BARS, len(MARKETS))
    level = np.zeros(shape)
    for row in range(1, N_BARS):
        level[row] = 0.99 * level[row - 1] + 0.1 * generator.normal(size=shape[1])
    expected = np.exp(level + 2 * math.log(0.008))[..., None] * np.array([1.0, 8.0, 24.0])
    sigma = np.repeat(np.sqrt(expected)[..., None], 2, axis=3)
    chance = 1 / (1 + np.exp(1.0 - 2.0 * level))[..., None] * np.array([0.5, 0.8, 1.0])
    noisy = np.log(expected[..., :1]) + 0.4 * generator.normal(size=(*shape, 3))
    data = EvaluationData(
        ts=np.arange(1, N_BARS + 1) * HOUR,
        markets=MARKETS,
        interval="1h",
        horizons=HORIZONS,
        bar_variance=expected[..., 0] * generator.chisquare(4, shape) / 4,
        log_har=noisy,
        log_fast=noisy[..., 0],
        log_slow=np.full(shape, 2 * math.log(0.008)),
        hour_of_week=np.arange(N_BARS) % 168.0,
        excursion=sigma * np.abs(generator.standard_t(NU, sigma.shape)),
        variance=expected * generator.gamma(3.0, 1 / 3, expected.shape),
        stress=(generator.random(expected.shape) < chance).astype(float),
    )
    history = History(
        data.ts, MARKETS, HORIZONS, sigma, np.full(expected.shape, NU), expected, chance, np.ones(shape, bool)
    )
    return data, history


@pytest.fixture(scope="module")
def world():
    data, history = draw_world()
    return data, history, fit_baselines(data, FIT_BARS * HOUR)


@pytest.fixture(scope="module")
def truth(world):
    data, history, baselines = world
    scored = score_rows(history, data, baselines, POWER, START, END)
    return scored, measure(scored)


def find(rows, metric, model="riskml", horizon="8h", market="all", side="both"):
    wanted = (metric, model, horizon, market, side)
    found = [row for row in rows if (row.metric, row.model, row.horizon, row.market, row.side) == wanted]
    assert len(found) == 1
    return found[0]


class TestTruthPasses:
    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_true_variance_beats_log_har_significantly(self, truth, horizon):
        ratio = find(truth[1], "qlike_ratio", horizon=horizon)
        assert ratio.value < 0.95
        assert ratio.low < ratio.value < ratio.high < 1.0
        test = find(truth[1], "diebold_mariano", horizon=horizon)
        assert test.value < -3
        assert test.verdict == "pass"

    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_true_probability_is_calibrated_and_beats_logit_z(self, truth, horizon):
        loss = find(truth[1], "log_loss", horizon=horizon)
        assert loss.value < loss.baseline
        assert find(truth[1], "slope", horizon=horizon).value == pytest.approx(1.0, abs=0.12)
        assert find(truth[1], "ece", horizon=horizon).value < 0.02
        assert find(truth[1], "auc", horizon=horizon).value > find(truth[1], "auc", horizon=horizon).baseline

    @pytest.mark.parametrize("side", ["down", "up"])
    def test_true_requirement_covers_at_its_level(self, truth, side):
        rate = find(truth[1], "breach_rate", horizon="1h", side=side)
        assert rate.low < 0.005 < rate.high
        p_values = [find(truth[1], "kupiec_p", horizon="1h", market=m, side=side).value for m in MARKETS]
        assert min(p_values) > 0.01  # uniform under the truth: six of them are drawn here

    def test_true_stress_probability_is_calibrated(self, truth):
        assert find(truth[1], "stress_slope", horizon="24h").value == pytest.approx(1.0, abs=0.15)
        row = find(truth[1], "stress_log_loss", horizon="24h")
        assert row.value < row.baseline


class TestWrongForecastsFail:
    def test_half_the_sigma_breaches_too_often(self, world):
        data, history, baselines = world
        narrow = replace(history, sigma=history.sigma / 2)
        rows = measure(score_rows(narrow, data, baselines, POWER, START, END))
        row = find(rows, "kupiec_p", horizon="1h", market="AAA", side="down")
        assert row.verdict == "fail"
        assert find(rows, "basel_zone", horizon="1h", side="down").verdict == "red"
        assert find(rows, "log_loss").value > find(rows, "log_loss").baseline

    def test_double_the_variance_loses_to_log_har(self, world):
        data, history, baselines = world
        wide = replace(history, variance=history.variance * 2)
        rows = measure(score_rows(wide, data, baselines, POWER, START, END))
        assert find(rows, "qlike_ratio").value > 1.0
        assert find(rows, "diebold_mariano").verdict == "fail"

    def test_a_power_above_one_lowers_the_far_margin(self, world):
        data, history, baselines = world
        thin = score_rows(history, data, baselines, POWER * 1.2, START, END)
        fair = score_rows(history, data, baselines, POWER, START, END)
        assert (thin.margin["riskml"] < fair.margin["riskml"]).all()


class TestRows:
    def test_every_model_is_measured_on_identical_rows(self, world):
        data, history, baselines = world
        available = history.available.copy()
        available[FIT_BARS + 100 : FIT_BARS + 700, 1] = False
        rows = measure(score_rows(replace(history, available=available), data, baselines, POWER, START, END))
        full = find(rows, "qlike", market="AAA").n
        for metric, models in (
            ("qlike", ("riskml", "ewma", "log_har", "log_har_season")),
            ("log_loss", ("riskml", "logit_z", "first_passage")),
        ):
            for market in MARKETS:
                assert len({find(rows, metric, model, market=market).n for model in models}) == 1
        assert find(rows, "qlike", market="BBB").n == full - 600

    def test_every_row_has_its_baseline_beside_it(self, truth):
        for row in truth[1]:
            assert row.baseline_model
            assert math.isfinite(row.baseline) or row.metric == "mean_breach_excess"

    def test_draws_of_a_market_do_not_depend_on_the_others(self, world):
        data, _, _ = world
        rows = slice(FIT_BARS, N_BARS)
        everything = protocol.draw_cases(data, 1, rows, np.ones((N_BARS - FIT_BARS, 3), bool))
        alone = protocol.draw_cases(data.select(["BBB"]), 1, rows, np.ones((N_BARS - FIT_BARS, 1), bool))
        own = everything.market == 1
        assert np.array_equal(everything.log_distance[own], alone.log_distance)
        assert np.array_equal(everything.outcome[own], alone.outcome)

    def test_draws_lie_between_1_and_50_percent_on_fair_sides_three_per_row(self, world):
        data, _, _ = world
        cases = protocol.draw_cases(data, 2, slice(0, N_BARS), np.ones((N_BARS, 3), bool))
        assert cases.outcome.size == N_BARS // 24 * 3 * 3
        simple = np.where(cases.side == 0, -np.expm1(-cases.log_distance), np.expm1(cases.log_distance))
        assert 0.01 <= simple.min() < 0.011
        assert 0.48 < simple.max() <= 0.5
        assert cases.side.mean() == pytest.approx(0.5, abs=0.03)
        assert np.median(simple) == pytest.approx(math.sqrt(0.01 * 0.5), rel=0.1)

    def test_requirement_is_a_simple_return_bounded_by_the_position_for_a_long(self):
        assert protocol.simple_requirement(np.array([0.1, 0.1])) == pytest.approx(
            [1 - math.exp(-0.1), math.exp(0.1) - 1]
        )

    def test_requirement_and_probability_are_inverse_to_each_other(self, world):
        _, history, _ = world
        power = np.array([1.1, 0.9, 1.0])
        margin = protocol.margin_distance(history.sigma[:50], history.nu[:50], power)
        for side in (0, 1):
            p = protocol.probability_at(
                history.sigma[:50, 0], history.nu[:50, 0], power,
                horizon=0, side=np.full(50, side), log_distance=margin[:, 0, 0, side],
            )  # fmt: skip
            assert p == pytest.approx(np.full(50, 0.005), rel=1e-3)

    def test_requirement_and_probability_never_fall_with_the_horizon(self, world):
        _, history, _ = world
        shrinking = history.sigma[:50, :, ::-1]
        margin = protocol.margin_distance(shrinking, history.nu[:50], POWER)
        assert (np.diff(margin, axis=2) >= 0).all()
        p = [
            protocol.probability_at(
                shrinking[:, 0],
                history.nu[:50, 0],
                POWER,
                horizon=h,
                side=np.zeros(50, int),
                log_distance=np.full(50, 0.1),
            )
            for h in range(3)
        ]
        assert (p[0] <= p[1]).all()
        assert (p[1] <= p[2]).all()

    def test_short_ranges_have_no_power_and_not_a_pass(self, world):
        data, history, baselines = world
        rows = measure(score_rows(history, data, baselines, POWER, START, START + 60 * DAY))
        row = find(rows, "kupiec_p", horizon="24h", market="AAA", side="down")
        assert row.n * 0.005 < 5
        assert row.verdict == "no power"

    def test_folds_pooled_equal_one_long_range(self, world):
        data, history, baselines = world
        middle = START + 100 * DAY
        spans = ((START, middle), (middle, END))
        parts = [score_rows(history, data, baselines, POWER, *span) for span in spans]
        pooled, whole = protocol.join(parts), score_rows(history, data, baselines, POWER, START, END)
        for metric in ("qlike", "qlike_ratio"):
            assert find(measure(pooled), metric).value == pytest.approx(find(measure(whole), metric).value)
        assert pooled.n_rows == whole.n_rows

    def test_overlapping_folds_are_refused(self, truth):
        with pytest.raises(DataError, match="overlap"):
            protocol.join([truth[0], truth[0]])


class TestRange:
    def test_a_range_after_data_end_is_purged_at_the_seam(self):
        end = 100 * DAY
        assert protocol.test_range(end, 200 * DAY, end, HORIZONS) == (101 * DAY, False)
        assert protocol.test_range(150 * DAY, 200 * DAY, end, HORIZONS) == (150 * DAY, False)

    def test_a_range_before_data_end_is_scored_whole_and_marked(self):
        assert protocol.test_range(50 * DAY, 200 * DAY, 100 * DAY, HORIZONS) == (50 * DAY, True)

    @pytest.mark.parametrize(("start", "end", "message"), [(5, 5, "is empty"), (9, 5, "is empty")])
    def test_an_empty_range_is_refused(self, start, end, message):
        with pytest.raises(DataError, match=message):
            protocol.test_range(start * DAY, end * DAY, 0, HORIZONS)

    def test_a_range_inside_the_purge_is_refused(self):
        with pytest.raises(DataError, match="within the purge"):
            protocol.test_range(100 * DAY, 101 * DAY, 100 * DAY, HORIZONS)

    def test_folds_meeting_a_range_are_chosen(self):
        assert [fold.data_end for fold in protocol.select_folds("2023-03-01", "2024-02-01")] == [
            "2023-01-01",
            "2024-01-01",
        ]

    def test_a_range_without_a_fold_is_refused(self):
        with pytest.raises(DataError, match="no fold is tested"):
            protocol.select_folds("2019-01-01", "2020-01-01")

    def test_rows_without_an_outcome_are_refused(self, world):
        data, history, baselines = world
        nothing = replace(history, available=np.zeros_like(history.available))
        with pytest.raises(DataError, match="has both a forecast and an outcome"):
            score_rows(nothing, data, baselines, POWER, START, END)

    def test_a_market_without_a_forecast_is_named(self, world):
        data, history, baselines = world
        with pytest.raises(DataError, match="no forecast for CCC"):
            score_rows(replace(history, markets=("AAA", "BBB", "XXX")), data, baselines, POWER, START, END)

    def test_other_horizons_are_refused(self, world):
        data, history, baselines = world
        with pytest.raises(DataError, match="forecasts for 1h, 8h, 24h are required, found 1h, 4h, 24h"):
            score_rows(replace(history, horizons=("1h", "4h", "24h")), data, baselines, POWER, START, END)


@dataclass(frozen=True)
class ManifestStub:
    interval: str = "1h"
    markets: tuple[str, ...] = ("BTC", "ETH")
    fallback: dict = field(default_factory=dict)


class TestPublishedLogHar:
    terms = ("log_parkinson_1h", "log_har_8h", "log_har_24h", "log_har_7d", "log_har_28d")

    def test_the_log_har_of_the_fallback_law_is_the_baseline_of_a_short_lake(self, world):
        laws = [{"features": list(self.terms), "intercept": [0.1], "slopes": [[0.2] * 5]}]
        (law,) = published_log_har(ManifestStub(fallback={"laws": laws}))
        assert law.predict(np.full((1, 5), -9.0))[0] == pytest.approx(math.exp(0.1 - 9.0))
        fitted = fit_baselines(world[0], HOUR, published_har=(law,))
        assert fitted.log_har == (law,)
        assert "the one that the bundle carries" in fitted.notes[0]

    def test_a_bundle_without_one_gives_none(self):
        other = [{"features": ["log_har_24h"], "intercept": [0.1], "slopes": [[1.0]]}]
        assert published_log_har(ManifestStub(fallback={"laws": other})) == ()
        assert published_log_har(ManifestStub()) == ()


class TestMarkets:
    available = (Market("BTC", "binance"), Market("SOL", "binance"))

    def test_no_baseline_is_fitted_on_a_market_that_no_fit_may_use(self):
        known = {"BTC", "ETH", "LINK", "DOT"}
        assert baseline_markets(["BTC", "LINK", "SOL", "ETH"], known, ["DOT"]) == ["BTC", "ETH"]
        assert baseline_markets(["LINK"], known, ["DOT"]) == ["DOT"]

    def test_the_bundles_markets_that_the_lake_has_are_scored(self):
        assert choose_markets(ManifestStub(), self.available, None) == [Market("BTC", "binance")]

    def test_an_unknown_market_is_refused_with_the_nearest_name(self):
        with pytest.raises(DataError, match="no market 'SOLL'.*Did you mean 'SOL'"):
            choose_markets(ManifestStub(), self.available, "SOLL")

    def test_a_lake_without_the_bundles_markets_is_refused(self):
        with pytest.raises(DataError, match="no 1h bars of the bundle's markets"):
            choose_markets(ManifestStub(), (Market("SOL", "binance"),), None)


class TestJson:
    def test_the_report_has_the_published_shape_and_no_nan(self, world, truth):
        scored, rows = truth
        result = Evaluated(scored, "abc", "1970-09-08", START, END, False, world[2]).to_dict(rows)
        text = json.dumps(result, allow_nan=False)
        read = json.loads(text)
        assert {"bundle_id", "start", "end", "rows", "in_sample", "metrics"} <= read.keys()
        assert {
            "metric", "model", "horizon", "market", "side", "value", "baseline", "n", "low", "high",
        } <= read["metrics"][0].keys()  # fmt: skip
        assert read["rows"] == scored.n_rows
        assert read["baselines"]["ewma_half_life"].keys() == set(HORIZONS)


class TestAccounts:
    def margins(self, rows):
        pa = pytest.importorskip("pyarrow")
        return pa.table(
            {
                "ts": pa.array([r[0] for r in rows], pa.timestamp("us", "UTC")),
                "account_id": [r[1] for r in rows],
                "engine": [r[2] for r in rows],
                "p_liq_1h": [r[3] for r in rows],
                "equity_usd": [100.0 for _ in rows],
                "maintenance_margin_usd": [r[4] for r in rows],
                "in_sample": [r[5] for r in rows],
            }
        )

    def liquidations(self, *events):
        pa = pytest.importorskip("pyarrow")
        return pa.table(
            {
                "ts": pa.array([ts for ts, _ in events], pa.timestamp("us", "UTC")),
                "account_id": pa.array([name for _, name in events], pa.string()),
            }
        )

    def test_a_liquidation_within_the_horizon_counts_for_its_account_only(self):
        rows = [
            (hour * HOUR, name, engine, p, maintenance, False)
            for hour, name, p, maintenance in (
                (1, "a", 0.2, 10.0), (2, "a", 0.9, 10.0), (1, "b", 0.1, 40.0), (2, "b", 0.1, 40.0)
            )
            for engine in ("riskml", "hyperliquid")
        ]  # fmt: skip
        events = self.liquidations((2 * HOUR + HOUR // 2, "a"), (2 * HOUR, None))
        found = {(r.metric, r.model): r for r in account_rows(self.margins(rows), events, ("1h",))}
        assert found["account_auc", "riskml"].value == 1.0
        assert found["account_auc", "riskml"].baseline == pytest.approx(0.5 / 3)  # tied with one of three
        assert found["account_auc", "riskml"].n == 4
        assert found["account_log_loss", "riskml"].value == pytest.approx(
            -np.mean(np.log([0.8, 0.9, 0.9, 0.9]))
        )

    def test_an_hour_whose_horizon_leaves_the_history_has_no_outcome_and_is_left_out(self):
        rows = [
            (HOUR * k, "a", engine, 0.5, 10.0, False)
            for k in range(30)
            for engine in ("riskml", "hyperliquid")
        ]
        margins, events = self.margins(rows), self.liquidations((4 * HOUR, "a"))
        margins = margins.append_column("p_liq_24h", margins["p_liq_1h"])
        assert history_end(margins, 100 * HOUR) == 29 * HOUR + 1
        assert history_end(margins, 20 * HOUR) == 20 * HOUR
        found = account_rows(margins, events, ("1h", "24h"), end_us=history_end(margins, 100 * HOUR))
        assert {(row.horizon, row.n) for row in found} == {("1h", 29), ("24h", 6)}

    def test_rows_in_sample_are_not_counted(self):
        rows = [
            (HOUR * k, "a", engine, 0.5, 10.0, k < 3)
            for k in range(5)
            for engine in ("riskml", "hyperliquid")
        ]
        found = account_rows(self.margins(rows), self.liquidations((4 * HOUR, "a")), ("1h",))
        assert {row.n for row in found} == {2}

    def test_a_range_without_accounts_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="no account to score"):
            read_margins(tmp_path)
