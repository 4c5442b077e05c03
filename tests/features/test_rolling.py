"""Every rolling statistic, in all three forms, against a plain loop."""

import math
import statistics

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.features.blocks import BlockOps
from riskml.features.rolling import NumpyOps, Segments, Span, Values, Window, roll
from riskml.tables.compiled import CompiledOps

NAN = math.nan
FORMS = [NumpyOps(), BlockOps(), CompiledOps()]
EVERY_FORM = pytest.mark.parametrize("ops", FORMS, ids=["definition", "carried", "compiled"])
CARRIED = [BlockOps(), CompiledOps()]
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


@EVERY_FORM
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
    start = Segments(values.shape[1]).push(np.isfinite(values), 0) if cut else None
    # A child is finite in missing rows too, for instance when it is itself a mean.
    filled = np.where(np.isnan(values), 0.25, values) if cut else values
    found = roll(ops, window, filled, start=start, bar=0, phase=5)
    for column in range(values.shape[1]):
        starts = [0] * len(values) if start is None else start[:, column].tolist()
        expected = _plain(window, filled[:, column].tolist(), starts)
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-10, atol=1e-12)


@EVERY_FORM
@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_last_rows_alone_equal_the_end_of_all_rows(ops, statistic):
    values = _data()
    window = Window(statistic, 7, 3, 0.8 if statistic == "ewm_mean" else 1.0)
    every = roll(ops, window, values)
    last = roll(ops, window, values[-12:], bar=len(values) - 12)
    np.testing.assert_allclose(last[-6:], every[-6:], rtol=1e-12)


@EVERY_FORM
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
    found = roll(ops, Window(statistic, 3, 2), values)
    np.testing.assert_array_equal(found[:, 0], expected)


@EVERY_FORM
def test_a_spike_leaves_no_trace_once_it_has_left_the_window(ops):
    values = np.full((40, 1), 0.1)
    values[5] = 1e17
    for statistic in ("sum", "mean", "std", "ewm_mean"):
        window = Window(statistic, 8, 4, 0.9 if statistic == "ewm_mean" else 1.0)
        found = roll(ops, window, values, bar=3)
        clean = roll(ops, window, np.full((40, 1), 0.1), bar=3)
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
    assert Segments(1).push(column, 0)[:, 0].tolist() == starts


def _portions(n_rows, rng):
    first = 0
    while first < n_rows:
        last = min(n_rows, first + int(rng.integers(1, 40)))
        yield first, last
        first = last


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("bars", [1, 5, 24])
@pytest.mark.parametrize("bar", [0, 11, 454_321])
def test_the_carried_forms_agree_bit_for_bit_in_whatever_portions_rows_arrive(statistic, bars, bar):
    rng = np.random.default_rng(9)
    values = rng.normal(size=(300, 3)) * 10.0 ** rng.integers(-6, 6, (300, 3))
    values[rng.random(values.shape) < 0.1] = NAN
    values[100:106, 1] = NAN
    start = Segments(3).push(np.isfinite(values), bar)
    window = Window(statistic, bars, (bars + 1) // 2, 0.97 if statistic == "ewm_mean" else 1.0)
    whole = roll(BlockOps(), window, values, start=start, bar=bar, phase=3)
    for ops in CARRIED:
        state = ops.state(window, 3, 3)
        parts = []
        for first, last in _portions(300, rng):
            span = Span(bar + first, last - first, start[first:last])
            parts.append(state.push(Values(values[first:last], span), span))
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_state_goes_from_one_carried_form_to_the_other(statistic):
    values = _data()
    window = Window(statistic, 9, 2, 0.9 if statistic == "ewm_mean" else 1.0)
    whole = roll(CompiledOps(), window, values, phase=4)
    first, second = BlockOps().state(window, 3, 4), CompiledOps().state(window, 3, 4)
    head, rest = Span(0, 50), Span(50, len(values) - 50)
    first.push(Values(values[:50], head), head)
    second.restore(first.arrays())
    assert second.push(Values(values[50:], rest), rest).tobytes() == whole[50:].tobytes()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_state_of_another_width_is_refused(statistic):
    window = Window(statistic, 9, 2, 0.9 if statistic == "ewm_mean" else 1.0)
    narrow, wide = BlockOps().state(window, 1), BlockOps().state(window, 2)
    narrow.push(Values(np.ones((3, 1)), Span(0, 3)), Span(0, 3))
    with pytest.raises(DataError, match="does not fit a window of 9 bars and 2 columns"):
        wide.restore(narrow.arrays())


@EVERY_FORM
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_column_taken_over_from_a_wider_state_goes_on_as_there_and_the_others_as_here(ops, statistic):
    values = _data()
    window = Window(statistic, 9, 2, 0.9 if statistic == "ewm_mean" else 1.0)
    wide = np.concatenate([values[:, ::-1], values[:, :1]], axis=1)
    head, rest = Span(0, 40), Span(40, len(values) - 40)
    state, other = ops.state(window, 2, 4), ops.state(window, 4, 4)
    state.push(Values(values[:40, 1:], head), head)
    other.push(Values(wide[:40], head), head)
    state.widen(1, 40)
    state.adopt(other.arrays(), 1)
    joined = np.concatenate([values[:, 1:], values[:, :1]], axis=1)
    expected = roll(ops, window, joined, phase=4)
    np.testing.assert_array_equal(state.push(Values(joined[40:], rest), rest), expected[40:])
    whole = roll(ops, window, wide, phase=4)
    np.testing.assert_array_equal(other.push(Values(wide[40:], rest), rest), whole[40:])


@EVERY_FORM
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_column_that_joins_late_counts_from_its_first_row_and_disturbs_nobody(ops, statistic):
    values = _data()
    window = Window(statistic, 9, 2, 0.9 if statistic == "ewm_mean" else 1.0)
    late = values.copy()
    late[:40, 2] = NAN
    expected = roll(ops, window, late, phase=4)
    state = ops.state(window, 2, 4)
    head, rest = Span(0, 40), Span(40, len(values) - 40)
    state.push(Values(values[:40, :2], head), head)
    state.widen(1, 40)
    found = state.push(Values(values[40:], rest), rest)
    np.testing.assert_array_equal(found, expected[40:])
