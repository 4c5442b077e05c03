"""One series bar by bar: literal series, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.arrays import AnyArray
from riskml.report.market_statistics import (
    Gap,
    MarketFeature,
    Periods,
    Still,
    describe_rows,
    describe_series,
    run_limit,
    runs_of,
)
from riskml.units import DAY, HOUR, to_us

NAN = np.nan
START = to_us("2024-01-01T01:00")


def grid(n_bars: int, bar: int = HOUR) -> Periods:
    return Periods.of(START + bar * np.arange(n_bars, dtype=np.int64), bar)


def described(series: list[float], present: list[bool] | None = None, **options: object) -> MarketFeature:
    values = np.array(series, dtype=np.float32)
    there = np.ones(values.size, dtype=bool) if present is None else np.array(present)
    defaults = {"run_limit": 100, "bounds": None, "psi": None, "seam": values.size // 2}
    return describe_series(
        "BTC", values, there, runs_of(values), periods=grid(values.size), **{**defaults, **options}
    )


@pytest.mark.parametrize(
    ("series", "runs"),
    [
        ([1, 1, 2, 2, 2], [(0, 1, 2), (2, 4, 3)]),
        # a hole does not end a run, and counts in its length
        ([1, NAN, 1, 2], [(0, 2, 2), (3, 3, 1)]),
        ([NAN, 5, 5, NAN], [(1, 2, 2)]),
        ([NAN, NAN], []),
    ],
)
def test_a_run_is_a_stretch_of_one_value(series: list[float], runs: list[tuple[int, int, int]]) -> None:
    found = runs_of(np.array(series))
    assert list(zip(found.first, found.last, found.values, strict=True)) == runs
    assert found.bars.tolist() == [last - first + 1 for first, last, _ in runs]


def test_the_limit_of_runs_follows_the_feature_and_has_a_floor() -> None:
    moving = runs_of(np.arange(500.0))
    assert run_limit([moving], HOUR) == 72
    assert run_limit([moving], 15 * 60 * 1_000_000) == 288
    daily = runs_of(np.repeat(np.arange(50.0), 48))
    assert run_limit([daily, daily], HOUR) == 144
    assert run_limit([runs_of(np.array([NAN]))], HOUR) == 72


def test_missing_values_are_placed_before_within_and_after() -> None:
    found = described([NAN, NAN, 1, NAN, NAN, NAN, 2, NAN, 3, NAN])
    assert (found.rows, found.coverage) == (10, pytest.approx(0.3))
    assert (found.warm_up_bars, found.missing_at_end) == (2, 1)
    assert (found.first, found.last) == ("2024-01-01T03:00:00Z", "2024-01-01T09:00:00Z")
    assert found.longest_gap == Gap("2024-01-01T04:00:00Z", "2024-01-01T06:00:00Z", 3)


def test_only_bars_of_the_market_count() -> None:
    there = [False, True, True, False, False, True, True, False]
    found = described([NAN, 1, 2, NAN, NAN, 3, NAN, NAN], there)
    assert (found.rows, found.coverage) == (4, 0.75)
    assert found.longest_gap is None
    assert found.missing_at_end == 1
    assert found.by_period == (0.75,)


def test_a_series_without_a_value_says_so() -> None:
    found = described([NAN, NAN, NAN])
    assert (found.coverage, found.first, found.longest_run, found.stale) == (0.0, None, None, None)
    assert (found.distinct, found.warm_up_bars, found.missing_at_end) == (0, 3, 0)


def test_a_value_that_stands_still_is_dated() -> None:
    found = described([1, 2, 2, 2, 3, 4], run_limit=2)
    assert found.longest_run == Still("2024-01-01T02:00:00Z", "2024-01-01T04:00:00Z", 3, 2.0, False)
    assert found.stale == pytest.approx(0.5)
    ended = described([1, 2, 7, 7, 7, NAN], run_limit=2)
    assert ended.longest_run is not None
    assert ended.longest_run.to_the_end


def test_far_values_are_counted_and_the_furthest_is_dated() -> None:
    found = described([0, 0.5, 9, -30, 1, NAN], bounds=(-2.0, 2.0))
    assert (found.outliers, found.extreme, found.extreme_at) == (2, -30.0, "2024-01-01T04:00:00Z")


def test_a_change_of_size_is_dated_by_the_period_from_which_it_lasts() -> None:
    hours = 24 * 200
    values = np.sin(np.arange(hours)).astype(np.float32)
    periods = grid(hours)
    april = int(np.searchsorted(periods.of_bar, periods.labels.index("2024-04")))
    values[april:] *= 100.0
    found = described(values.tolist(), seam=april)
    assert found.size_since == "2024-04-01T01:00:00Z"
    assert found.size_after == pytest.approx(100.0 * (found.size_before or 0.0), rel=0.02)
    assert described(np.sin(np.arange(hours)).tolist(), seam=april).size_since is None


def test_a_bar_that_closes_at_midnight_belongs_to_the_day_before() -> None:
    periods = grid(48)
    assert periods.labels == ("2024-01-01", "2024-01-02")
    assert np.bincount(periods.of_bar).tolist() == [24, 24]
    assert grid(24 * 200).labels[:2] == ("2024-01", "2024-02")


def test_shares_of_periods_are_none_without_a_bar() -> None:
    periods = grid(72)
    hits, present = np.zeros(72, dtype=bool), np.zeros(72, dtype=bool)
    present[:12], hits[:6], present[48:] = True, True, True
    assert periods.shares(hits, present) == (0.5, None, 0.0)


def test_bars_of_a_market_have_ends_and_holes() -> None:
    present: AnyArray = np.zeros(30, dtype=bool)
    present[2:10], present[15:20] = True, True
    rows = describe_rows("BTC", present, Periods.of(START + DAY * np.arange(30, dtype=np.int64), DAY))
    assert (rows.rows, rows.first, rows.last) == (13, "2024-01-03T01:00:00Z", "2024-01-20T01:00:00Z")
    assert rows.longest_gap == Gap("2024-01-11T01:00:00Z", "2024-01-15T01:00:00Z", 5)
    assert rows.by_period[0] is None
    assert rows.by_period[12] == 0.0
    assert describe_rows("BTC", np.zeros(30, dtype=bool), grid(30)).first is None
