"""The compiled statistics: cut anywhere, they give the same bits; agreement with the
definition is in ``tests/features/test_rolling.py``."""

import numpy as np
import pytest

from riskml.features.rolling import Window, segment_starts
from riskml.tables.compiled import CompiledOps

STATISTICS = ("count", "sum", "mean", "std", "min", "max", "quantile", "ewm_mean")


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("bars", [1, 5, 24])
@pytest.mark.parametrize("first_bar", [0, 11, 454_321])
def test_where_a_chunk_begins_changes_no_bit(statistic, bars, first_bar):
    rng = np.random.default_rng(9)
    values = rng.normal(size=(300, 3)) * 10.0 ** rng.integers(-6, 6, (300, 3))
    values[rng.random(values.shape) < 0.1] = np.nan
    values[100:106, 1] = np.nan
    present = np.isfinite(values)
    window = Window(statistic, bars, (bars + 1) // 2, 0.97 if statistic == "ewm_mean" else 1.0)
    ops = CompiledOps()
    whole = ops.rolling(window, values, segment_starts(present), 300, first_bar)
    for begin, end in ((40, 41), (57, 130), (99, 300)):
        offset = begin - bars - 4
        starts = segment_starts(present[offset:end])
        part = ops.rolling(window, values[offset:end], starts, end - begin, first_bar + offset)
        assert part.tobytes() == np.ascontiguousarray(whole[begin:end]).tobytes()


def test_the_result_does_not_alias_or_change_the_input():
    values = np.random.default_rng(0).normal(size=(50, 2))
    copy = values.copy()
    for statistic in STATISTICS:
        window = Window(statistic, 5, 1, 0.9 if statistic == "ewm_mean" else 1.0)
        found = CompiledOps().rolling(window, values, None, 50, 0)
        assert not np.shares_memory(found, values)
    np.testing.assert_array_equal(values, copy)


def test_the_maximum_of_negative_values_and_the_minimum_of_positive_ones_are_exact():
    values = -np.random.default_rng(0).random((60, 1)) - 1.0
    found = CompiledOps().rolling(Window("max", 7, 1), values, None, 60, 3)
    assert found[30, 0] == values[24:31, 0].max()
    found = CompiledOps().rolling(Window("min", 7, 1), -values, None, 60, 3)
    assert found[30, 0] == -values[24:31, 0].max()
