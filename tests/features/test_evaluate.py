"""Expressions: what they derive, what they compute and what they refuse."""

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.features import expr as e
from riskml.features.evaluate import evaluate_features
from riskml.features.inputs import column
from riskml.features.nodes import Rolling
from riskml.features.rolling import NumpyOps
from riskml.features.spec import Feature
from riskml.features.weights import axis_columns
from riskml.units import HOUR

NAN = np.nan
CLOSE = column("close")


def _feature(expr):
    return Feature("x", "volatility", "", "", "", expr)


def _run(expr, close, reference=None, tail=None):
    values = np.asarray(close, dtype=float)
    if values.ndim == 1:
        values = values[:, None]
    ts = np.arange(1, len(values) + 1, dtype=np.int64) * HOUR
    found = evaluate_features(
        [_feature(expr)], {"close": values}, ts, interval="1h", reference=reference, tail=tail
    )
    return found[:, :, 0]


@pytest.mark.parametrize(
    ("expr", "bars"),
    [
        (CLOSE, 1),
        (e.log(CLOSE) * 2.0, 1),
        (e.lag(CLOSE), 2 + 4),
        (e.mean(CLOSE, "24h"), 24 + 4),
        (e.std(e.mean(CLOSE, "24h"), "7d"), 168 + 23 + 4),
        (e.mean(CLOSE, "24h") + e.lag(e.mean(CLOSE, "8h"), "2d"), 8 + 48 + 4),
        (e.reference_mean(e.mean(CLOSE, "24h")), 24 + 4),
        (e.mean(column("tvl"), "24h"), 24),
        (e.HourOfWeek(), 1),
    ],
    ids=str,
)
def test_the_lookback_is_derived_from_the_expression(expr, bars):
    assert expr.lookback_bars("1h") == bars


def test_inputs_are_derived_and_include_presence_where_windows_are_cut():
    assert (column("high") / column("low")).input_names() == ("high", "low")
    assert e.mean(column("volume"), "24h").input_names() == ("close", "volume")
    assert e.mean(column("tvl"), "24h").input_names() == ("tvl",)


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (CLOSE + 1.0, [2.0, 3.0, NAN, 5.0]),
        (1.0 - CLOSE, [0.0, -1.0, NAN, -3.0]),
        (2.0 * CLOSE / CLOSE, [2.0, 2.0, NAN, 2.0]),
        (-CLOSE, [-1.0, -2.0, NAN, -4.0]),
        (1.0 / (CLOSE - 2.0), [-1.0, NAN, NAN, 0.5]),
        (e.log(CLOSE - 1.0), [NAN, 0.0, NAN, np.log(3.0)]),
        (e.sqrt(CLOSE - 2.0), [NAN, 0.0, NAN, np.sqrt(2.0)]),
        (e.clip(CLOSE, 1.5, 3.0), [1.5, 2.0, NAN, 3.0]),
        (e.first_finite(CLOSE, CLOSE * 0.0 + 7.0, e.Constant(7.0)), [1.0, 2.0, 7.0, 4.0]),
        (e.where_finite(e.Constant(3.0), CLOSE), [3.0, 3.0, NAN, 3.0]),
        (e.absolute(CLOSE - 2.0), [1.0, 0.0, NAN, 2.0]),
        (e.lag(CLOSE), [NAN, 1.0, 2.0, NAN]),
        (e.lag(CLOSE, "3h"), [NAN, NAN, NAN, 1.0]),
        (e.total(CLOSE, "2h"), [1.0, 3.0, 2.0, 4.0]),
        (e.BarHours() * CLOSE, [1.0, 2.0, NAN, 4.0]),
    ],
    ids=str,
)
def test_small_expressions_have_the_values_one_reads_off(expr, expected):
    np.testing.assert_array_equal(_run(expr, [1.0, 2.0, NAN, 4.0])[:, 0], expected)


def test_the_cross_section_is_taken_over_the_reference_markets_alone():
    close = [[1.0, 3.0, 100.0], [NAN, 5.0, 100.0]]
    np.testing.assert_array_equal(
        _run(e.reference_mean(CLOSE), close, reference=[0, 1]), [[2.0] * 3, [5.0] * 3]
    )
    np.testing.assert_array_equal(
        _run(e.reference_std(CLOSE), close, reference=[0, 1]), [[1.0] * 3, [NAN] * 3]
    )
    np.testing.assert_array_equal(_run(e.leader(CLOSE), close, reference=[2, 0]), [[100.0] * 3] * 2)


@pytest.mark.parametrize("gap", [3, 4])
def test_no_window_and_no_lag_joins_prices_across_a_long_gap(gap):
    close = [1.0] * 5 + [NAN] * gap + [9.0, 9.0]
    joined = gap <= 3
    assert np.isfinite(_run(e.lag(CLOSE, "6h"), close)[-1, 0]) == joined
    assert _run(e.minimum(CLOSE, "11h", min_window="1h"), close)[-1, 0] == (1.0 if joined else 9.0)


def test_windows_over_the_chains_are_not_cut_at_a_markets_gap():
    close = np.array([1.0] * 3 + [NAN] * 5 + [1.0])[:, None]
    inputs = {"close": close, "tvl": np.repeat(np.arange(9.0)[:, None], len(axis_columns("chain")), axis=1)}
    ts = np.arange(1, 10, dtype=np.int64) * HOUR
    expr = e.across_mean(e.minimum(column("tvl"), "9h")) + 0.0 * CLOSE
    assert evaluate_features([_feature(expr)], inputs, ts, interval="1h", tail=1)[0, 0, 0] == 0.0


def test_the_tail_is_the_end_of_the_whole():
    close = np.exp(np.random.default_rng(0).normal(size=60))
    expr = e.std(e.log(CLOSE) - e.lag(e.log(CLOSE)), "12h")
    np.testing.assert_allclose(_run(expr, close, tail=7), _run(expr, close)[-7:], rtol=1e-12)


def test_a_shared_subtree_is_computed_once():
    calls = []

    class Counting(NumpyOps):
        def state(self, window, n_columns, phase=0):
            calls.append(window)
            return super().state(window, n_columns, phase)

    features = [_feature(e.mean(CLOSE, "3h") * 2.0), _feature(e.lag(e.mean(column("close"), "3h")))]
    ts = np.arange(1, 10, dtype=np.int64) * HOUR
    evaluate_features(features, {"close": np.ones((9, 1))}, ts, interval="1h", ops=Counting())
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("inputs", "ts", "message"),
    [
        ({"close": np.ones((2, 1))}, [HOUR, 3 * HOUR], "consecutive multiples of 1h"),
        ({"close": np.ones((2, 1))}, [1, HOUR + 1], "consecutive multiples of 1h"),
        ({"close": np.ones((3, 1))}, [HOUR, 2 * HOUR], r"\(2, 1\) is required"),
        ({"close": np.ones(2)}, [HOUR, 2 * HOUR], "no input has a column per market"),
        ({"high": np.ones((2, 1))}, [HOUR, 2 * HOUR], "inputs close are missing"),
        ({"close": np.ones((0, 1))}, [], "the grid is empty"),
    ],
)
def test_a_bad_grid_or_input_is_refused(inputs, ts, message):
    with pytest.raises(DataError, match=message):
        evaluate_features([_feature(CLOSE)], inputs, np.array(ts, dtype=np.int64), interval="1h")


def test_no_feature_at_all_is_refused():
    with pytest.raises(DataError, match="at least one feature"):
        evaluate_features([], {"close": np.ones((1, 1))}, np.array([HOUR]), interval="1h")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rolling("mean", CLOSE, "2h", half_life="1h"), "half_life belongs to ewm_mean"),
        (lambda: Rolling("ewm_mean", CLOSE, "2h"), "half_life belongs to ewm_mean"),
        (lambda: Rolling("max", CLOSE, "2h", level=0.5), "level belongs to quantile"),
        (lambda: e.quantile(CLOSE, "2h", 1.5), r"lies in \[0, 1\]"),
    ],
)
def test_a_statistic_refuses_options_that_are_not_its_own(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
