"""The risk score as a frequency, and the table that checks it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from riskml.errors import DataError
from riskml.risk.actions import risk_score
from riskml.risk.score import (
    binomial_interval,
    probability_to_score,
    score_bands,
    score_table,
    score_to_probability,
)

# What docs/limits-and-prices.md prints.
DOCUMENTED = [
    (0.0, 1e-6),
    (100.0 / 6.0, 1e-5),
    (100.0 / 3.0, 1e-4),
    (50.0, 1e-3),
    (200.0 / 3.0, 0.01),
    (250.0 / 3.0, 0.1),
    (100.0, 1.0),
]


@pytest.mark.parametrize(("score", "probability"), DOCUMENTED)
def test_the_documented_scores_stand_for_the_documented_frequencies(score: float, probability: float) -> None:
    assert float(score_to_probability(score)) == pytest.approx(probability, rel=1e-12)
    assert float(probability_to_score(probability)) == pytest.approx(score, abs=1e-12)


def test_scores_and_probabilities_survive_the_round_trip() -> None:
    rng = np.random.default_rng(0)
    score = np.sort(np.concatenate([rng.uniform(0.0, 100.0, 100_000), [1e-9, 100.0 - 1e-9]]))
    np.testing.assert_allclose(
        probability_to_score(score_to_probability(score)), score, rtol=1e-13, atol=1e-12
    )
    chance = 10.0 ** rng.uniform(-6.0, 0.0, 100_000)
    np.testing.assert_allclose(score_to_probability(probability_to_score(chance)), chance, rtol=1e-12)
    np.testing.assert_array_equal(probability_to_score(chance), risk_score(chance))


def test_both_maps_rise_strictly() -> None:
    score = np.linspace(0.0, 100.0, 200_001)
    chance = score_to_probability(score)
    assert np.all(np.diff(chance) > 0.0)
    assert np.all(np.diff(probability_to_score(chance)) > 0.0)


@pytest.mark.parametrize("score", [-0.001, 100.1, np.inf])
def test_a_score_off_the_scale_is_refused(score: float) -> None:
    with pytest.raises(DataError, match=r"row 1: a risk score lies in \[0, 100\], found"):
        score_to_probability([50.0, score])
    with pytest.raises(DataError, match=r"row 0: a probability lies in \[0, 1\], found 1.5"):
        probability_to_score([1.5, 0.2])
    assert np.isnan(score_to_probability([np.nan])[0])


def test_a_calibrated_score_is_found_calibrated_and_a_wrong_one_is_not() -> None:
    rng = np.random.default_rng(3)
    chance = 10.0 ** rng.uniform(-4.0, 0.0, 200_000)
    outcome = rng.random(len(chance)) < chance
    table = score_table(risk_score(chance), outcome)
    filled = table.n_rows > 0
    assert filled.sum() == 8
    assert table.n_rows.sum() == len(chance)
    assert table.calibrated[filled].sum() >= 7
    overconfident = score_table(risk_score(chance / 3.0), outcome)
    # Where enough happened to tell a factor of three; the top band ends below certainty.
    told = overconfident.n_events >= 30
    assert told.sum() >= 5
    assert not overconfident.calibrated[told].any()
    assert [row["n_rows"] for row in table.to_dicts()] == table.n_rows[filled].tolist()


def test_bands_hold_their_lower_edge_and_the_last_one_a_hundred() -> None:
    table = score_table([0.0, 49.9, 50.0, 100.0, np.nan, 20.0], [0, 1, 0, 1, 1, np.nan], edges=[0, 50, 100])
    assert table.n_rows.tolist() == [2, 2]
    assert table.n_events.tolist() == [1, 1]
    assert table.observed.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(table.forecast[1], (1e-3 + 1.0) / 2.0)
    empty = score_table([99.0], [1.0], edges=[0, 50, 100])
    assert np.isnan([empty.forecast[0], empty.observed[0], empty.low[0], empty.high[0]]).all()
    assert empty.calibrated.tolist() == [False, True]
    assert len(score_bands()) - 1 == 12


@pytest.mark.parametrize(("n_events", "n_rows"), [(0, 7), (7, 7), (3, 50), (400, 90_000), (89_000, 90_000)])
def test_the_interval_is_the_exact_one_of_scipy(n_events: int, n_rows: int) -> None:
    wanted = stats.binomtest(n_events, n_rows).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(binomial_interval(n_events, n_rows), [wanted.low, wanted.high], rtol=1e-8)


def test_rows_of_one_account_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    account = np.repeat(np.arange(60), 200)
    outcome = np.repeat(rng.random(60) < 0.3, 200)  # all rows of an account share their outcome
    score = np.full(len(account), float(risk_score(np.array([0.3]))[0]))
    alone, clustered = score_table(score, outcome), score_table(score, outcome, block=account)
    band = int(np.argmax(alone.n_rows))
    widths = [float(table.high[band] - table.low[band]) for table in (alone, clustered)]
    assert widths[1] > 5.0 * widths[0]
    assert clustered.calibrated[band]


def test_nothing_in_few_accounts_is_not_taken_for_certainty() -> None:
    score = np.full(10_000, 60.0)
    table = score_table(score, np.zeros(10_000), block=np.repeat(np.arange(20), 500))
    band = int(np.argmax(table.n_rows))
    np.testing.assert_allclose((table.low[band], table.high[band]), binomial_interval(0, 20))
    few = score_table(score[:100], np.arange(100) % 2, block=np.repeat([0, 1], 50))
    np.testing.assert_allclose((few.low[band], few.high[band]), binomial_interval(1, 2))


def test_unusable_tables_are_refused() -> None:
    with pytest.raises(DataError, match="columns of one length"):
        score_table([1.0, 2.0], [0.0])
    with pytest.raises(DataError, match="an outcome is 0 or 1"):
        score_table([1.0, 2.0], [0.0, 2.0])
    with pytest.raises(DataError, match=r"have to ascend from 0 to 100, found \[0.0, 60.0, 50.0, 100.0\]"):
        score_table([1.0], [0.0], edges=[0, 60, 50, 100])
    with pytest.raises(DataError, match="0 events in 0 rows have no frequency"):
        binomial_interval(0, 0)


def test_events_in_few_blocks_have_the_exact_interval_of_their_blocks() -> None:
    block = np.repeat(np.arange(50), 100)
    outcome = (block == 3) & (np.arange(len(block)) % 2 == 0)  # 50 events, all in one block
    table = score_table(np.full(len(block), 60.0), outcome, block=block)
    band = int(np.argmax(table.n_rows))
    low, high = binomial_interval(1, 50)
    np.testing.assert_allclose((table.low[band], table.high[band]), (0.5 * low, 0.5 * high))
    assert table.n_blocks[band] == 50
    turned = score_table(np.full(len(block), 60.0), ~outcome, block=block)
    np.testing.assert_allclose((turned.low[band], turned.high[band]), (1.0 - 0.5 * high, 1.0 - 0.5 * low))


def test_a_miss_is_the_factor_by_which_the_forecast_leaves_the_interval() -> None:
    score = np.repeat(probability_to_score([0.02, 0.2, 0.5]), 1000)
    outcome = np.concatenate([np.arange(1000) < 20, np.arange(1000) < 50, np.arange(1000) < 900])
    table = score_table(score, outcome)
    found = table.miss[table.n_rows > 0]
    low, high = binomial_interval(900, 1000)[0], binomial_interval(50, 1000)[1]
    np.testing.assert_allclose(found, [1.0, 0.2 / high, 0.5 / low])
    assert np.isnan(table.miss[table.n_rows == 0]).all()
    assert [row["miss"] for row in table.to_dicts()] == found.tolist()
