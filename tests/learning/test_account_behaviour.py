"""Behaviour learnt from the past alone, and where a difference in log-loss comes from."""

from __future__ import annotations

import numpy as np
import pytest

from riskml import metrics
from riskml.errors import DataError
from riskml.learning.account_behaviour import (
    BOTH,
    CHANGED,
    DEPOSITED,
    LIQUIDATED,
    STOOD,
    TRADED,
    UNKNOWN,
    UNTOUCHED,
    fit_shift,
    loss_by,
    next_event,
    period_starts,
    walk_forward,
    what_followed,
)
from riskml.learning.account_evaluation import LEVERAGE, AccountCases, compare_probabilities
from riskml.units import DAY, HOUR, MINUTE, to_us

NEVER = int(np.iinfo(np.int64).max)


def logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log1p(-probability)


def history(n_rows: int = 6000, shift: float = -1.2) -> tuple[np.ndarray, ...]:
    """Three months of rows whose events follow the score's logit moved by ``shift``."""
    rng = np.random.default_rng(2)
    ts = np.sort(rng.integers(to_us("2023-02-01"), to_us("2023-05-01"), n_rows))
    score = rng.normal(-2.0, 1.0, n_rows)
    outcome = (rng.random(n_rows) < 1.0 / (1.0 + np.exp(-(score + shift)))).astype(float)
    return score, outcome, rng.integers(0, 300, n_rows), ts


def test_months_and_weeks_begin_where_the_calendar_says() -> None:
    ts = np.asarray([to_us(day) for day in ("2023-02-28T23:59", "2023-03-01", "2023-03-05T12:00")])
    wanted = {
        "month": ["2023-02-01", "2023-03-01", "2023-03-01"],
        "week": ["2023-02-27", "2023-02-27", "2023-02-27"],
    }
    assert period_starts(ts, "month").tolist() == [to_us(day) for day in wanted["month"]]
    assert period_starts(ts, "week").tolist() == [to_us(day) for day in wanted["week"]]
    assert period_starts(ts[2:] + DAY, "week").tolist() == [to_us("2023-03-06")]


def test_a_shift_makes_probabilities_add_up_to_the_events() -> None:
    score, outcome, _, _ = history()
    found = fit_shift(score, outcome)
    assert (1.0 / (1.0 + np.exp(-(score + found)))).sum() == pytest.approx(outcome.sum(), rel=1e-9)
    assert found == pytest.approx(-1.2, abs=0.15)
    # One number is the best of its neighbours.
    loss = [
        metrics.log_loss(outcome, 1.0 / (1.0 + np.exp(-(score + found + step)))) for step in (-0.01, 0, 0.01)
    ]
    assert loss[1] < min(loss[0], loss[2])


def test_extreme_logits_and_one_event_are_fitted_too() -> None:
    score = np.linspace(-13.8, -9.0, 1000)
    outcome = np.zeros(1000)
    outcome[3] = 1.0
    assert np.exp(score + fit_shift(score, outcome)).sum() == pytest.approx(1.0, rel=0.02)


def test_a_shift_of_outcomes_of_one_kind_is_refused() -> None:
    for outcome in (np.zeros(4), np.ones(4)):
        with pytest.raises(DataError, match="finite logits and outcomes of both kinds"):
            fit_shift(np.zeros(4), outcome)
    with pytest.raises(DataError, match="finite logits"):
        fit_shift(np.asarray([0.0, np.nan]), np.asarray([0.0, 1.0]))


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("period", ["month", "week"])
def test_nothing_after_a_period_began_changes_its_probabilities(period: str, slope: bool) -> None:
    score, outcome, account, ts = history()
    begin = to_us("2023-03-01") if period == "month" else to_us("2023-04-03")

    def fitted(outcome: np.ndarray, score: np.ndarray) -> np.ndarray:
        return walk_forward(score, outcome, account, ts, DAY, period=period, slope=slope)  # type: ignore[arg-type]

    plain = fitted(outcome, score)
    # An outcome of the last day before is not known when the period begins.
    later = ts > begin - DAY
    changed = fitted(np.where(later, 1.0 - outcome, outcome), score)
    until = period_starts(ts, period) <= begin  # type: ignore[arg-type]
    np.testing.assert_array_equal(plain[until], changed[until])
    assert not np.array_equal(plain[~until], changed[~until])


def test_the_first_month_has_no_probability_and_later_ones_learn_the_shift() -> None:
    score, outcome, account, ts = history()
    found = walk_forward(score, outcome, account, ts, HOUR, period="month", slope=False)
    first = ts < to_us("2023-03-01")
    assert np.isnan(found[first]).all()
    assert np.isfinite(found[~first]).all()
    assert found[~first].mean() == pytest.approx(outcome[~first].mean(), rel=0.15)
    raw = 1.0 / (1.0 + np.exp(-score[~first]))
    assert metrics.log_loss(outcome[~first], found[~first]) < metrics.log_loss(outcome[~first], raw)


def test_one_account_with_events_is_not_enough_to_fit() -> None:
    score, outcome, account, ts = history()
    one = np.where(outcome > 0.0, 7, account)
    assert np.isnan(walk_forward(score, outcome, one, ts, HOUR, period="month", slope=True)).all()


def test_a_slope_recovers_any_scale_of_a_yardstick() -> None:
    score, outcome, account, ts = history(20_000)
    same, scaled = (
        walk_forward(values, outcome, account, ts, HOUR, period="month", slope=True)
        for values in (score, 3.0 * score + 5.0)
    )
    known = np.isfinite(same)
    np.testing.assert_allclose(same[known], scaled[known], rtol=1e-4)


def test_a_score_that_is_not_finite_is_refused() -> None:
    score, outcome, account, ts = history(50)
    score[3] = np.inf
    with pytest.raises(DataError, match="row 3: a score is not finite"):
        walk_forward(score, outcome, account, ts, HOUR, period="month", slope=True)


def test_the_next_event_is_the_accounts_own_and_strictly_later() -> None:
    found = next_event(
        np.asarray([0, 0, 1, 2]),
        np.asarray([5, 10, 5, 5]),
        np.asarray([0, 0, 1, -1]),
        np.asarray([10, 8, 3, 9]),
    )
    assert found.tolist() == [8, NEVER, NEVER, NEVER]


def test_each_row_is_named_for_what_was_done_before_the_breach() -> None:
    event, breach = 100 * HOUR, 50 * HOUR
    rows = [  # outcome, held still, deposit, withdrawal, fill, name
        (1.0, 1.0, NEVER, NEVER, NEVER, LIQUIDATED),
        (1.0, np.nan, 2 * HOUR, NEVER, event - MINUTE, LIQUIDATED),  # its own fill; a deposit is no risk
        (1.0, 0.0, NEVER, NEVER, event - HOUR, CHANGED),
        (1.0, 0.0, NEVER, HOUR, NEVER, CHANGED),
        (0.0, np.nan, HOUR, NEVER, HOUR, UNKNOWN),
        (0.0, 0.0, HOUR, NEVER, HOUR, STOOD),
        (0.0, 1.0, HOUR, NEVER, NEVER, DEPOSITED),
        (0.0, 1.0, breach + 1, NEVER, breach, TRADED),
        (0.0, 1.0, HOUR, NEVER, HOUR, BOTH),
        (0.0, 1.0, breach + 1, HOUR, breach + 1, UNTOUCHED),
    ]
    outcome, held, deposit, withdrawal, fill, names = (
        np.asarray(column) for column in zip(*rows, strict=True)
    )
    touched = {"deposit": deposit, "withdrawal": withdrawal, "fill": fill}
    moments = np.full(len(rows), breach), np.full(len(rows), event)
    assert what_followed(outcome, held, *moments, touched).tolist() == names.tolist()


def test_the_parts_of_a_difference_add_up_to_its_mean() -> None:
    rng = np.random.default_rng(4)
    difference, group = rng.normal(size=500), rng.choice(["a", "b", "c"], 500)
    outcome = (rng.random(500) < 0.3).astype(float)
    parts = loss_by(group, difference, outcome, rng.random(500))
    assert sum(part["part"] for part in parts.values()) == pytest.approx(difference.mean(), abs=1e-15)
    assert sum(part["rows"] for part in parts.values()) == 500
    assert parts["b"]["frequency"] == pytest.approx(outcome[group == "b"].mean())
    assert parts["b"]["part"] == pytest.approx(difference[group == "b"].sum() / 500.0)


class TestGivenProbabilities:
    def cases(self) -> tuple[AccountCases, dict[str, np.ndarray]]:
        rng = np.random.default_rng(8)
        chance = 1.0 / (1.0 + np.exp(-rng.normal(-2.0, 1.5, 4000)))
        outcome = (rng.random(4000) < chance).astype(float)
        account = rng.integers(0, 80, 4000)
        cases = AccountCases("1h", account, outcome, chance, np.ones(4000), np.ones(4000))
        return cases, {"true": chance, LEVERAGE: np.full(4000, outcome.mean())}

    def test_the_truth_beats_a_constant_by_log_loss_and_auc(self) -> None:
        cases, given = self.cases()
        loss, area = compare_probabilities(cases, given, ["true"], [LEVERAGE], draws=200)
        assert (loss.metric, area.metric) == ("log_loss", "auc")
        assert loss.value == pytest.approx(metrics.log_loss(cases.outcome, given["true"]))
        assert loss.against == pytest.approx(metrics.log_loss(cases.outcome, given[LEVERAGE]))
        assert loss.significant
        assert area.value == pytest.approx(metrics.roc_auc(cases.outcome, given["true"]))
        assert area.against == 0.5
        assert area.significant
        assert area.low <= area.value - area.against <= area.high

    def test_rows_without_a_probability_count_for_no_model(self) -> None:
        cases, given = self.cases()
        given[LEVERAGE][:1000] = np.nan
        loss, _ = compare_probabilities(cases, given, ["true"], [LEVERAGE], draws=20)
        assert loss.n == 3000
        assert loss.value == pytest.approx(metrics.log_loss(cases.outcome[1000:], given["true"][1000:]))
        given[LEVERAGE][:] = np.nan
        with pytest.raises(DataError, match="no row has a probability of every model"):
            compare_probabilities(cases, given, ["true"], [LEVERAGE])
