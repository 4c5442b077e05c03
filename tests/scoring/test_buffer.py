"""Windows against a plain list of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskml.errors import DataError
from riskml.scoring.buffer import FeatureBuffer, RowWindow


@given(rows=st.integers(1, 7), blocks=st.lists(st.integers(0, 12), max_size=12))
def test_a_window_is_the_tail_of_everything_appended(rows: int, blocks: list[int]) -> None:
    window = RowWindow(rows, (2,), np.float64, np.nan)
    everything = np.full((rows, 2), np.nan)
    for number, size in enumerate(blocks):
        block = np.full((size, 2), float(number)) + np.arange(size)[:, None] / 100
        window.append(block)
        everything = np.concatenate([everything, block])
    np.testing.assert_array_equal(window.view(), everything[-rows:])


def test_a_window_of_another_shape_is_not_restored() -> None:
    with pytest.raises(DataError, match=r"has shape \(3, 2\); \(4, 2\) is required"):
        RowWindow(4, (2,), np.float64, np.nan).restore(np.zeros((3, 2)))


def test_graph_inputs_put_markets_first() -> None:
    buffer = FeatureBuffer(2, 3, 1)
    values = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    buffer.append(values, values > 2)
    features, mask = buffer.graph_inputs()
    assert features[:, :, 0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert mask[:, :, 0].tolist() == [[False, True], [False, True], [False, True]]
    assert features.flags.c_contiguous
