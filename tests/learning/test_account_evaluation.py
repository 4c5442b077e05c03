"""Recorded accounts scored out of sample, compared with yardsticks, and replayed accounts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from riskml import metrics
from riskml.errors import DataError
from riskml.learning.account_evaluation import (
    AccountCases,
    account_cases,
    calibration_table,
    compare,
    cross_fitted,
    liquidation_times,
)
from riskml.learning.account_scoring import (
    KLINES,
    OPEN_INTEREST,
    TRADES,
    MarkFeed,
    ScoredAccounts,
    score_accounts,
    with_peers,
)
from riskml.risk.forecast import Forecast
from riskml.tables.lake import Lake
from riskml.tables.synthetic import SampleRecipe, generate_tables
from riskml.units import HOUR, MINUTE, to_us

START = to_us("2023-03-01")


def stamps(times: list[int]) -> pa.Array:
    return pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def bar_rows(symbol: str, venue: str, closes: dict[int, float], lag: int = 0) -> pa.Table:
    """Bars of 1 h by the hour at which they close."""
    ts = [START + hour * HOUR for hour in closes]
    price = list(closes.values())
    flat = dict.fromkeys(("open", "high", "low", "close"), price)
    return pa.table(
        {
            "ts": stamps(ts),
            "known_at": stamps([moment + lag for moment in ts]),
            "venue": [venue] * len(ts),
            "symbol": [symbol] * len(ts),
            "interval": ["1h"] * len(ts),
            **flat,
            "volume": [1.0] * len(ts),
        }
    )


def interest_rows(symbol: str, hour: int, base: float, usd: float) -> pa.Table:
    ts = stamps([START + hour * HOUR])
    return pa.table(
        {
            "ts": ts,
            "known_at": ts,
            "venue": ["bybit"],
            "symbol": [symbol],
            "open_interest": [base],
            "open_interest_usd": [usd],
        }
    )


class TestMarks:
    def feed(self, tmp_path: Path, *tables: tuple[str, pa.Table]) -> MarkFeed:
        lake = Lake(tmp_path)
        for name, rows in tables:
            lake.write(name, rows)
        return MarkFeed(lake, ["BTC", "ARB", "MATIC"], START, START + 10 * HOUR)

    def test_a_kline_goes_before_open_interest_and_a_market_with_neither_is_not_marked(self, tmp_path):
        feed = self.feed(
            tmp_path,
            ("bars", bar_rows("BTC", "binance", {1: 100.0, 2: 101.0})),
            ("open_interest", interest_rows("BTC", 2, 2.0, 400.0)),
            ("open_interest", interest_rows("ARB", 2, 4.0, 5.0)),
        )
        assert feed.at(START + 2 * HOUR) == {"BTC": (101.0, KLINES), "ARB": (1.25, OPEN_INTEREST)}
        assert feed.with_klines() == ["BTC"]

    def test_a_price_counts_from_the_moment_it_is_known_and_not_longer_than_two_bars(self, tmp_path):
        feed = self.feed(tmp_path, ("bars", bar_rows("BTC", "binance", {1: 100.0, 2: 101.0}, lag=5 * MINUTE)))
        assert feed.at(START + 2 * HOUR)["BTC"][0] == 100.0
        assert feed.at(START + 2 * HOUR + 5 * MINUTE)["BTC"][0] == 101.0
        assert feed.at(START + 4 * HOUR)["BTC"][0] == 101.0
        assert feed.at(START + 4 * HOUR + 1) == {}

    def test_the_preferred_venue_marks_while_it_is_fresh_and_spot_never_does(self, tmp_path):
        feed = self.feed(
            tmp_path,
            ("bars", bar_rows("BTC", "bybit", {1: 90.0, 2: 91.0, 5: 92.0})),
            ("bars", bar_rows("BTC", "binance", {1: 100.0, 2: 101.0})),
            ("bars", bar_rows("ARB", "binance_spot", {2: 1.0})),
        )
        assert feed.at(START + 2 * HOUR) == {"BTC": (101.0, KLINES)}
        assert feed.at(START + 5 * HOUR) == {"BTC": (92.0, KLINES)}

    def test_open_interest_without_its_value_marks_nothing(self, tmp_path):
        feed = self.feed(
            tmp_path,
            ("open_interest", interest_rows("ARB", 2, 4.0, math.nan)),
            ("open_interest", interest_rows("BTC", 2, 0.0, 5.0)),
        )
        assert feed.at(START + 2 * HOUR) == {}


def test_a_market_without_bars_takes_the_mean_law_of_the_others() -> None:
    forecast = Forecast(
        ts=0,
        markets=("BTC", "ETH", "BAD"),
        horizons=("1h",),
        sigma=np.asarray([[[0.01, 0.02]], [[0.04, 0.08]], [[np.nan, np.nan]]]),
        nu=np.asarray([[4.0], [6.0], [5.0]]),
        variance=np.asarray([[1e-4], [4e-4], [1.0]]),
        stress=np.asarray([[0.1], [0.3], [0.9]]),
        loadings=np.asarray([[0.8], [0.6], [0.0]]),
        degraded=np.zeros(3, dtype=np.bool_),
    )
    found = with_peers(forecast, ["ARB", "BTC", "ARB"])
    assert found.markets == ("BTC", "ETH", "BAD", "ARB")
    assert found.sigma[3, 0] == pytest.approx([0.02, 0.04])
    assert found.nu[3, 0] == pytest.approx(2 / (1 / 4 + 1 / 6))
    assert found.loadings[3, 0] == pytest.approx(0.7)
    assert found.degraded.tolist() == [False, False, False, True]
    assert np.array_equal(found.sigma[:2], forecast.sigma[:2])
    assert with_peers(forecast, ["BTC"]) is forecast


@pytest.fixture(scope="module")
def tiny_bundle(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose ``data_end`` lies before the lake's account history."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    maker.make_tiny_bundle(path)
    return path


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    recipe = SampleRecipe(seed=7, days=40, markets=3, accounts=6, interval="1h", account_days=1)
    return generate_tables(recipe)


@pytest.fixture(scope="module")
def lake(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return written(tables, tmp_path_factory.mktemp("lake") / "lake")


def written(tables: dict[str, pa.Table], path: Path) -> Lake:
    found = Lake(path)
    for name, rows in tables.items():
        found.write(name, rows)
    return found


def numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_numpy()


def score(bundle: Path, lake: Lake, tables: dict[str, pa.Table], **options: object) -> ScoredAccounts:
    ts = numbers(tables["accounts"], "ts")
    return score_accounts(bundle, lake, int(ts.min()), int(ts.max()) + 1, ("1h", "6h", "24h"), **options)


@pytest.fixture(scope="module")
def fresh(tiny_bundle: Path, lake: Lake, tables: dict[str, pa.Table]) -> ScoredAccounts:
    """The generated accounts, scored as they are."""
    return score(tiny_bundle, lake, tables)


class TestScoring:
    def test_marks_of_the_record_give_way_to_the_close_that_was_known(self, tiny_bundle, lake, tables, fresh):
        positions = tables["positions"]
        wrong = positions.set_column(
            positions.column_names.index("mark_price"),
            "mark_price",
            pa.array(0.9 * numbers(positions, "mark_price")),
        )
        other = written({**tables, "positions": wrong}, lake.path.parent / "stale")
        stale = score(tiny_bundle, other, tables)
        kept = score(tiny_bundle, other, tables, remark=False)
        assert stale.equity_usd == pytest.approx(fresh.equity_usd, rel=1e-12)
        assert stale.gross_usd == pytest.approx(fresh.gross_usd, rel=1e-12)
        assert kept.gross_usd == pytest.approx(0.9 * fresh.gross_usd, rel=0.02)
        assert fresh.covered.all()
        assert (kept.mark_source == TRADES).all()
        assert not kept.covered.any()

    def test_nothing_that_became_known_later_reaches_a_score(self, tiny_bundle, lake, tables, fresh):
        ts = np.unique(numbers(tables["accounts"], "ts"))
        cut = int(ts[len(ts) // 2])
        changed = dict(tables)
        columns = {"bars": "close", "funding": "rate", "open_interest": "open_interest"}
        for name, column in columns.items():
            rows = tables[name]
            later = numbers(rows, "known_at") > cut
            assert later.any()
            values = np.where(later, 1.001 * numbers(rows, column), numbers(rows, column))
            if name == "bars":
                values = np.clip(values, numbers(rows, "low"), numbers(rows, "high"))
            changed[name] = rows.set_column(rows.column_names.index(column), column, pa.array(values))
        other = written(changed, lake.path.parent / "later")
        before, after = fresh, score(tiny_bundle, other, tables)
        early = before.ts <= cut
        assert np.array_equal(before.probability[early], after.probability[early])
        assert np.array_equal(before.equity_usd[early], after.equity_usd[early])
        assert not np.array_equal(before.equity_usd[~early], after.equity_usd[~early])

    def test_the_probability_of_six_hours_lies_between_those_of_one_and_of_a_day(self, fresh):
        found = fresh
        assert found.horizons == ("1h", "6h", "24h")
        assert (np.diff(found.probability, axis=1) >= 0.0).all()
        inside = (found.probability[:, 2] < 1.0) & (found.probability[:, 0] > 1e-12)
        assert inside.any()
        assert (found.probability[inside, 1] > found.probability[inside, 0]).all()

    def test_a_bundle_that_had_seen_every_snapshot_is_refused(self, tiny_bundle, lake):
        with pytest.raises(DataError, match="no account snapshot in the range"):
            score_accounts(tiny_bundle, lake, "2019-01-01", "2019-02-01", ("1h",))


def scored_rows(*rows: tuple[int, str, float, float]) -> ScoredAccounts:
    """(hour, account, equity, probability) with 100 USD of exposure and 1 USD of maintenance."""
    hours, names, equity, probability = zip(*rows, strict=True)
    count = len(rows)
    return ScoredAccounts(
        horizons=("1h",),
        ts=np.asarray(hours, dtype=np.int64) * HOUR,
        account_id=np.asarray(names, dtype=object),
        equity_usd=np.asarray(equity),
        gross_usd=np.full(count, 100.0),
        maintenance_usd=np.ones(count),
        probability=np.asarray(probability)[:, None],
        mark_source=np.zeros(count, dtype=np.int64),
        forecast_known=np.ones(count, dtype=np.bool_),
    )


class TestCases:
    def test_only_an_own_liquidation_after_the_hour_and_within_the_horizon_counts(self):
        scored = scored_rows(*((hour, name, 10.0, 0.1) for name in "ab" for hour in (1, 2, 3)))
        times = liquidation_times(["a", None, "c"], np.asarray([2 * HOUR, 2 * HOUR + 1, 3 * HOUR]))
        found = account_cases(scored, times, "1h", end_us=100 * HOUR)
        # At hour 1 it lies ahead by exactly the horizon; at hour 2 it has happened.
        assert found.outcome.tolist() == [1, 0, 0, 0, 0, 0]

    def test_an_hour_whose_horizon_leaves_the_record_is_left_out(self):
        scored = scored_rows((1, "a", 10.0, 0.1), (2, "a", 10.0, 0.1))
        assert len(account_cases(scored, {}, "1h", end_us=3 * HOUR)) == 1
        with pytest.raises(DataError, match="known outcome over 1h"):
            account_cases(scored, {}, "1h", end_us=2 * HOUR)

    def test_an_account_past_its_barrier_weighs_as_much_as_the_riskiest_above_for_every_model(self):
        scored = scored_rows(
            (1, "a", 50.0, 0.001), (1, "b", 2.0, 0.4), (1, "c", -30.0, 1.0), (1, "d", 1.0, 1.0)
        )
        found = account_cases(scored, {}, "1h", end_us=100 * HOUR)
        assert found.above.tolist() == [True, True, False, False]
        for name, score_of in found.scores().items():
            assert score_of[2] == score_of[3] == score_of.max(), name
            assert score_of[1] == pytest.approx(score_of[2], rel=0.01), name
            assert score_of[0] < score_of[1], name

    def test_leverage_is_unbounded_without_equity(self):
        scored = scored_rows((1, "a", 50.0, 0.0), (1, "b", 0.0, 1.0))
        assert scored.leverage.tolist() == [2.0, math.inf]
        assert scored.distance == pytest.approx([0.49, -0.01])


def many_cases(signal: float, noise: float, seed: int = 3, accounts: int = 60) -> AccountCases:
    """Accounts whose events follow the model's logit; leverage and distance see it through noise."""
    draw = np.random.default_rng(seed)
    account = np.repeat(np.arange(accounts), 40)
    logit = -3.0 + signal * draw.standard_normal(len(account))
    probability = 1.0 / (1.0 + np.exp(-logit))
    outcome = (draw.random(len(account)) < probability).astype(np.float64)
    leverage = np.exp(0.5 * logit + noise * draw.standard_normal(len(account)))
    return AccountCases("1h", account, outcome, probability, leverage, 1.0 / (1.0 + leverage))


class TestCrossFitting:
    def test_the_outcomes_of_an_account_do_not_enter_its_own_probability(self):
        cases = many_cases(1.5, 0.1)
        score_of = cases.scores()["leverage"]
        mine = cases.account == 5
        assert cases.outcome[mine].any()
        changed = np.where(mine, 1.0, cases.outcome)
        before = cross_fitted(score_of, cases.outcome, cases.account)
        after = cross_fitted(score_of, changed, cases.account)
        assert np.array_equal(before[mine], after[mine])
        assert not np.array_equal(before, after)

    def test_a_sound_logit_is_left_where_it_was(self):
        cases = many_cases(1.5, 0.1, accounts=400)
        found = cross_fitted(cases.scores()["riskml"], cases.outcome, cases.account)
        middle = (cases.probability > 0.01) & (cases.probability < 0.5)
        assert np.abs(found - cases.probability)[middle].mean() < 0.01

    def test_events_of_a_single_account_cannot_be_cross_fitted(self):
        account = np.repeat(np.arange(5), 4)
        with pytest.raises(DataError, match="two accounts with an event, found 1"):
            cross_fitted(np.zeros(20), (account == 2).astype(np.float64), account)


class TestComparison:
    def test_a_model_that_knows_more_beats_both_yardsticks_significantly(self):
        rows = compare(many_cases(2.0, 2.0), draws=300)
        assert {(row.metric, row.model, row.yardstick) for row in rows} == {
            *(("log_loss", model, other) for model in ("riskml", "riskml_recalibrated")
              for other in ("leverage", "distance", "base_rate")),
            ("auc", "riskml", "leverage"),
            ("auc", "riskml", "distance"),
        }  # fmt: skip
        assert all(row.beats and row.significant for row in rows)

    def test_a_yardstick_that_knows_as_much_is_not_beaten_significantly(self):
        cases = many_cases(2.0, 0.0)
        rows = [row for row in compare(cases, draws=300) if row.yardstick == "leverage"]
        area = next(row for row in rows if row.metric == "auc")
        assert area.value == pytest.approx(area.against, abs=1e-9)
        assert not area.significant
        recalibrated = next(row for row in rows if row.model == "riskml_recalibrated")
        assert recalibrated.value == pytest.approx(recalibrated.against, abs=1e-7)

    def test_a_model_off_in_level_loses_raw_and_wins_recalibrated(self):
        cases = many_cases(2.0, 1.0)
        logit = np.log(cases.probability / (1.0 - cases.probability)) + 4.0
        rows = compare(replace(cases, probability=1.0 / (1.0 + np.exp(-logit))), draws=300)
        found = {(row.model, row.yardstick): row for row in rows if row.metric == "log_loss"}
        assert not found["riskml", "leverage"].beats
        assert found["riskml_recalibrated", "leverage"].significant

    def test_the_interval_is_that_of_whole_accounts_and_holds_the_difference(self):
        cases = many_cases(1.0, 1.0)
        once = next(row for row in compare(cases, draws=400) if row.metric == "auc")
        assert once.low < once.value - once.against < once.high
        # The same rows ten times over are no new accounts: the interval stays.
        again = {name: np.tile(getattr(cases, name), 10) for name in
                 ("account", "outcome", "probability", "leverage", "distance")}  # fmt: skip
        more = next(row for row in compare(replace(cases, **again), draws=400) if row.metric == "auc")
        assert more.n == 10 * once.n
        assert more.low == pytest.approx(once.low, abs=1e-3)
        assert more.high == pytest.approx(once.high, abs=1e-3)

    def test_ties_count_half_in_the_interval_as_in_the_area(self):
        cases = many_cases(1.0, 1.0)
        flat = replace(cases, probability=np.full(len(cases), 0.1))
        found = next(row for row in compare(flat, draws=400) if row.metric == "auc")
        assert found.value == 0.5
        assert found.low < 0.5 - found.against < found.high

    def test_areas_and_losses_are_those_of_the_protocol(self):
        cases = many_cases(1.0, 0.7)
        found = {(row.metric, row.model, row.yardstick): row for row in compare(cases, draws=50)}
        area = found["auc", "riskml", "leverage"]
        assert area.against == pytest.approx(metrics.roc_auc(cases.outcome, cases.leverage), abs=2e-4)
        raw = found["log_loss", "riskml", "leverage"]
        assert raw.value == pytest.approx(metrics.log_loss(cases.outcome, cases.probability))
        assert (raw.n, raw.accounts) == (2400, 60)
        assert raw.events == int(cases.outcome.sum())


def test_the_calibration_table_counts_every_row_once() -> None:
    probability = np.asarray([0.0, 0.0005, 0.001, 0.02, 0.02, 0.9, 1.0])
    outcome = np.asarray([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    table = calibration_table(outcome, probability, np.asarray([1, 1, 2, 3, 4, 5, 5]))
    assert [(row["low"], row["high"], row["n"], row["accounts"], row["events"]) for row in table] == [
        (0.0, 0.001, 3, 2, 1),
        (0.01, 0.03, 2, 2, 1),
        (0.3, 1.0, 2, 1, 1),
    ]
    assert table[1]["probability"] == pytest.approx(0.02)
    assert table[2]["frequency"] == pytest.approx(0.5)
