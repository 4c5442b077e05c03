"""Every rolling statistic, in both forms, against a plain loop."""

import math
import statistics

import numpy as np
import pytest

from riskml.features.rolling import NumpyOps, Window, segment_starts
from riskml.tables.compiled import CompiledOps

NAN = math.nan
BOTH_FORMS = pytest.mark.parametrize("ops", [NumpyOps(), CompiledOps()], ids=["numpy", "compiled"])
STATISTICS = ("count", "sum", "mean", "std", "min", "max", "quantile", "ewm_mean")


def _quantile(values, level):
    ordered = sorted(values)
    place = (len(ordered) - 1) * level
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _plain(window, column, start):
    """One column, one row at a time, from the definition."""
    out = []
    for row in range(len(column)):
        inside = [
            k for k in range(max(row - window.bars + 1, start[row], 0), row + 1) if math.isfinite(column[k])
        ]
        values = [column[k] for k in inside]
        if window.statistic == "count":
            out.append(float(len(values)))
            continue
        if len(values) < max(window.min_count, 1):
            out.append(NAN)
            continue
        weights = [window.decay ** (row - k) for k in inside]
        out.append(
            {
                "sum": lambda v, w: math.fsum(v),
                "mean": lambda v, w: statistics.fmean(v),
                "std": lambda v, w: statistics.pstdev(v),
                "min": lambda v, w: min(v),
                "max": lambda v, w: max(v),
                "quantile": lambda v, w: _quantile(v, window.level),
                "ewm_mean": lambda v, w: math.fsum(a * b for a, b in zip(v, w, strict=True)) / math.fsum(w),
            }[window.statistic](values, weights)
        )
    return out


def _data():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(90, 3))
    values[rng.random(values.shape) < 0.15] = NAN
    values[30:37, 1] = NAN
    values[:12, 2] = NAN
    values[50, 0] = math.inf
    values[-5:, 0] = NAN
    return values


@BOTH_FORMS
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("bars", [1, 2, 7, 30, 200])
@pytest.mark.parametrize("cut", [False, True], ids=["uncut", "segments"])
def test_a_statistic_equals_the_plain_loop(ops, statistic, bars, cut):
    values = _data()
    window = Window(
        statistic,
        bars,
        0 if statistic == "count" else (bars + 1) // 2,
        0.9 if statistic == "ewm_mean" else 1.0,
        0.3,
    )
    start = segment_starts(np.isfinite(values)) if cut else None
    # A child is finite in missing rows too, for instance when it is itself a mean.
    filled = np.where(np.isnan(values), 0.25, values) if cut else values
    found = ops.rolling(window, filled, start, len(values), 1234)
    for column in range(values.shape[1]):
        starts = [0] * len(values) if start is None else start[:, column].tolist()
        expected = _plain(window, filled[:, column].tolist(), starts)
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-10, atol=1e-12)


@BOTH_FORMS
@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_last_rows_alone_equal_the_end_of_all_rows(ops, statistic):
    values = _data()
    window = Window(statistic, 7, 3, 0.8 if statistic == "ewm_mean" else 1.0)
    every = ops.rolling(window, values, None, len(values), 0)
    last = ops.rolling(window, values[-12:], None, 6, len(values) - 12)
    np.testing.assert_allclose(last, every[-6:], rtol=1e-12)


@BOTH_FORMS
@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("sum", [NAN, 3.0, 3.0, 6.0]),
        ("mean", [NAN, 1.5, 1.5, 3.0]),
        ("max", [NAN, 2.0, 2.0, 4.0]),
        ("count", [1.0, 2.0, 2.0, 2.0]),
    ],
)
def test_missing_values_are_skipped_and_too_few_give_nan(ops, statistic, expected):
    values = np.array([[1.0], [2.0], [NAN], [4.0]])
    found = ops.rolling(Window(statistic, 3, 2), values, None, 4, 0)
    np.testing.assert_array_equal(found[:, 0], expected)


@BOTH_FORMS
def test_a_spike_leaves_no_trace_once_it_has_left_the_window(ops):
    values = np.full((40, 1), 0.1)
    values[5] = 1e17
    for statistic in ("sum", "mean", "std", "ewm_mean"):
        window = Window(statistic, 8, 4, 0.9 if statistic == "ewm_mean" else 1.0)
        found = ops.rolling(window, values, None, 40, 3)
        clean = ops.rolling(window, np.full((40, 1), 0.1), None, 40, 3)
        np.testing.assert_allclose(found[20:], clean[20:], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("present", "starts"),
    [
        ("11111111", [0, 0, 0, 0, 0, 0, 0, 0]),
        ("11000111", [0, 0, 0, 0, 0, 0, 0, 0]),
        ("11000011", [0, 0, 0, 0, 0, 6, 6, 6]),
        ("00001111", [1, 2, 3, 4, 4, 4, 4, 4]),
        ("11100000", [0, 0, 0, 0, 0, 0, 7, 8]),
    ],
)
def test_more_than_three_missing_bars_end_a_segment(present, starts):
    column = np.array([[letter == "1"] for letter in present])
    assert segment_starts(column)[:, 0].tolist() == starts
