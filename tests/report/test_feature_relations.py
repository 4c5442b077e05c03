"""Rank correlation from counts equals the textbook's."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.report.feature_relations import MIN_ROWS, Ranked, rank_correlation, rank_targets

stats = pytest.importorskip("scipy.stats")


def test_equal_values_share_their_mean_rank() -> None:
    ranked = Ranked.of(np.array([3.0, 1.0, 3.0, np.nan, 2.0]))
    assert ranked.ids.tolist() == [2, 0, 2, -1, 1]
    assert ranked.ranks(ranked.ids >= 0).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ranked.ranks(np.array([True, False, True, False, False])).tolist() == [1.5, 1.5]


def test_infinite_values_count_as_missing() -> None:
    assert Ranked.of(np.array([np.inf, 0.0, -np.inf])).ids.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_agrees_with_scipy_on_ties_and_holes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one = np.round(draw.standard_normal(3000), 1)
    other = np.maximum(one + draw.standard_normal(3000), 0.0)
    one[draw.random(3000) < 0.2], other[draw.random(3000) < 0.1] = np.nan, np.nan
    both = np.isfinite(one) & np.isfinite(other)
    found, n_rows = rank_correlation(Ranked.of(one), Ranked.of(other))
    assert n_rows == both.sum()
    assert found == pytest.approx(stats.spearmanr(one[both], other[both]).statistic, abs=1e-12)


def test_too_few_rows_or_a_constant_give_no_correlation() -> None:
    few = np.arange(MIN_ROWS - 1.0)
    assert rank_correlation(Ranked.of(few), Ranked.of(few)) == (None, MIN_ROWS - 1)
    many = np.arange(MIN_ROWS + 0.0)
    assert rank_correlation(Ranked.of(many), Ranked.of(np.zeros(MIN_ROWS))) == (None, MIN_ROWS)
    assert rank_correlation(Ranked.of(many), Ranked.of(-many)) == (-1.0, MIN_ROWS)


def test_persistence_is_the_best_that_had_been_seen_of_a_target_at_the_bar() -> None:
    bars, rows = 600, np.arange(300, 600)
    variance, mae = np.zeros((bars, 1, 2)), np.zeros((bars, 1, 2, 2))
    # 8 h ahead of bar t lies t mod 7: the same had been seen of the window of 7 h that had closed.
    variance[:, 0, 1] = np.arange(bars) % 7
    variance[:, 0, 0] = np.arange(bars) % 7
    targets = rank_targets(variance, mae, rows, "1h", ("7h", "8h"))
    assert targets.names == tuple(
        (name, horizon) for horizon in ("7h", "8h") for name in ("variance", "mae_down", "direction")
    )
    assert targets.persistence == (pytest.approx(1.0), None, None, pytest.approx(1.0), None, None)
    variance[:, 0, 0] = 0.0
    alone = rank_targets(variance, mae, rows, "1h", ("7h", "8h"))
    shifted = stats.spearmanr(np.arange(300, 600) % 7, np.arange(292, 592) % 7).statistic
    assert alone.persistence == (None, None, None, pytest.approx(abs(shifted)), None, None)
    known = [relation.correlation for relation in targets.relations(variance[rows, :, 1])]
    assert known == [pytest.approx(1.0), None, None, pytest.approx(1.0), None, None]


def test_what_had_not_closed_at_the_bar_is_no_past() -> None:
    draw = np.random.default_rng(0)
    variance = draw.random((600, 1, 1))
    targets = rank_targets(variance, np.zeros((600, 1, 1, 2)), np.arange(600), "1h", ("8h",))
    seen = stats.spearmanr(variance[8:, 0, 0], variance[:-8, 0, 0]).statistic
    assert targets.persistence[0] == pytest.approx(abs(seen))
