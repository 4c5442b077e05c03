"""What is particular to the compiled statistics; their values are in ``tests/features/test_rolling.py``."""

import numpy as np
import pytest

from riskml.features.rolling import Window, roll
from riskml.tables.compiled import CompiledOps

STATISTICS = ("count", "sum", "mean", "std", "min", "max", "quantile", "ewm_mean")


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_result_does_not_alias_or_change_the_input(statistic):
    values = np.random.default_rng(0).normal(size=(50, 2))
    copy = values.copy()
    window = Window(statistic, 5, 1, 0.9 if statistic == "ewm_mean" else 1.0)
    assert not np.shares_memory(roll(CompiledOps(), window, values), values)
    np.testing.assert_array_equal(values, copy)


def test_the_maximum_of_negative_values_and_the_minimum_of_positive_ones_are_exact():
    values = -np.random.default_rng(0).random((60, 1)) - 1.0
    assert roll(CompiledOps(), Window("max", 7, 1), values, bar=3)[30, 0] == values[24:31, 0].max()
    assert roll(CompiledOps(), Window("min", 7, 1), -values, bar=3)[30, 0] == -values[24:31, 0].max()
