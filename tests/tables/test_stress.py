"""Stress against plain loops, and that neither the future nor the cut of the rows changes it."""

import itertools
import math

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.tables.stress import KINDS, StressDetector, StressSpec
from riskml.units import HOUR, duration_bars, duration_us, to_us

SPEC = StressSpec(
    drop=0.01, sigmas=4.0, liquidation_quantile=0.9, liquidation_history="2d", depth_history="1d"
)
INTERVALS = ("5m", "1h", "4h")
T0 = to_us("2024-01-01")


def _panel(interval, n_bars, seed=0):
    """Prices with holes and outages, liquidations and depth with holes, for two markets."""
    rng = np.random.default_rng(seed)
    shape = (n_bars, 2)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.004, shape), axis=0))
    series = {
        "close": close,
        "high": close * (1 + rng.random(shape) / 100),
        "low": close * (1 - rng.random(shape) / 100),
        "slow": np.log(np.full(shape, 0.003**2)) + rng.normal(0, 0.3, shape),
        "liquidated_usd": np.where(rng.random(shape) < 0.3, rng.pareto(1.5, shape), 0.0),
        "depth_usd": rng.lognormal(0, 0.6, shape),
    }
    for name in ("liquidated_usd", "depth_usd", "slow"):
        series[name][rng.random(shape) < 0.02] = np.nan
    missing = rng.random(shape) < 0.03
    missing[n_bars // 3 : n_bars // 3 + 9, 0] = True
    for name in ("close", "high", "low"):
        series[name][missing] = np.nan
    ts = T0 + duration_us(interval) * np.arange(1, n_bars + 1, dtype=np.int64)
    return ts, series


def _detect(interval, ts, series, cuts=()):
    detector = StressDetector(SPEC, interval, 2)
    edges = [0, *cuts, len(ts)]
    parts = [
        detector.push(ts[begin:end], {name: values[begin:end] for name, values in series.items()})
        for begin, end in itertools.pairwise(edges)
    ]
    return {
        (kind, name): np.concatenate([getattr(part.signal(kind), name) for part in parts])
        for kind in KINDS
        for name in ("flag", "size", "limit")
    }


def _missing_run(present, row):
    run = 0
    while row - run >= 0 and not present[row - run]:
        run += 1
    return run


def _drop_oracle(series, row, market, bars, hours):
    close, low = series["close"][:, market], series["low"][:, market]
    if row < bars:
        return math.nan, math.nan
    present = np.isfinite(close) & np.isfinite(series["high"][:, market]) & np.isfinite(low)
    window = range(row - bars + 1, row + 1)
    if any(_missing_run(present, place) > 3 for place in window):
        return math.nan, math.nan
    lows = [low[place] for place in window if math.isfinite(low[place])]
    slow = series["slow"][row - bars, market]
    if not lows or not math.isfinite(close[row - bars]) or not math.isfinite(slow):
        return math.nan, math.nan
    return math.log(close[row - bars] / min(lows)), max(0.01, 4.0 * math.sqrt(math.exp(slow) * hours))


def _samples(ts, values, row, window_us, history):
    """Values at whole windows of the history that ended before the row's window began."""
    newest = ts[row] // window_us - 1
    oldest = newest - duration_us(history) // window_us + 1
    found = [values[place] for place in range(row + 1) if ts[place] % window_us == 0
             and oldest <= ts[place] // window_us <= newest]  # fmt: skip
    return [value for value in found if math.isfinite(value)], duration_us(history) // window_us


def _flag(size, limit, beyond):
    return float(beyond) if math.isfinite(size) and math.isfinite(limit) else math.nan


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_kind_equals_a_plain_loop(interval):
    ts, series = _panel(interval, 1000 if interval == "5m" else 300)
    found = _detect(interval, ts, series)
    bars = duration_bars("1h", interval)
    window_us = bars * duration_us(interval)
    sums = np.full((len(ts), 2), np.nan)
    for row in range(bars, len(ts)):
        sums[row] = series["liquidated_usd"][row - bars + 1 : row + 1].sum(axis=0)
    if bars == 1:
        sums[0] = series["liquidated_usd"][0]
    for row in range(0, len(ts), 7):
        for market in range(2):
            size, limit = _drop_oracle(series, row, market, bars, window_us / HOUR)
            if math.isfinite(size):
                np.testing.assert_allclose(found["drop", "size"][row, market], size)
                np.testing.assert_allclose(found["drop", "limit"][row, market], limit)
            np.testing.assert_equal(found["drop", "flag"][row, market], _flag(size, limit, size > limit))

            known, whole = _samples(ts, sums[:, market], row, window_us, SPEC.liquidation_history)
            limit = np.quantile(known, 0.9) if len(known) >= (whole + 1) // 2 else math.nan
            size = sums[row, market]
            np.testing.assert_allclose(found["liquidation", "limit"][row, market], limit)
            expected = _flag(size, limit, size > limit and size > 0)
            np.testing.assert_equal(found["liquidation", "flag"][row, market], expected)

            known, whole = _samples(ts, series["depth_usd"][:, market], row, window_us, SPEC.depth_history)
            limit = 0.5 * np.median(known) if len(known) >= (whole + 1) // 2 else math.nan
            size = series["depth_usd"][row, market]
            np.testing.assert_allclose(found["depth", "limit"][row, market], limit)
            np.testing.assert_equal(found["depth", "flag"][row, market], _flag(size, limit, size < limit))
    for kind in KINDS:
        assert {0.0, 1.0} <= set(found[kind, "flag"][np.isfinite(found[kind, "flag"])].tolist())


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("cuts", [(1, 2, 3), (150,), (17, 96, 97, 240)])
def test_the_cut_of_the_rows_changes_no_bit(interval, cuts):
    ts, series = _panel(interval, 300, seed=5)
    whole, parts = _detect(interval, ts, series), _detect(interval, ts, series, cuts)
    for name, values in whole.items():
        assert parts[name].tobytes() == values.tobytes(), name


def test_nothing_that_happens_later_changes_a_flag_or_its_limit():
    ts, series = _panel("1h", 300, seed=2)
    before = _detect("1h", ts, series)
    for values in series.values():
        values[200:] = np.abs(values[200:]) * 7.0
    after = _detect("1h", ts, series)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][:200], values[:200])


def test_kinds_whose_inputs_are_absent_are_not_known():
    ts, series = _panel("1h", 100)
    found = _detect("1h", ts, {name: series[name] for name in ("close", "high", "low", "slow")})
    assert np.isnan(found["liquidation", "flag"]).all()
    assert np.isnan(found["depth", "flag"]).all()
    assert np.isfinite(found["drop", "flag"]).any()


def test_a_fall_over_an_outage_is_not_known():
    ts, series = _panel("5m", 60, seed=1)
    for values in series.values():
        values[:] = np.where(np.isfinite(values), values, 1.0)
    series["close"][:], series["high"][:], series["low"][:] = 100.0, 101.0, 99.9
    for name in ("close", "high", "low"):
        series[name][20:23] = np.nan  # three bars are no gap
        series[name][40:44] = np.nan  # four are
    series["low"][35:] = 60.0
    flag = _detect("5m", ts, series)["drop", "flag"][:, 0]
    assert flag[35:43].tolist() == [1.0] * 8
    assert np.isnan(flag[43:56]).all()
    assert (flag[12:32] == 0.0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "soon"}, "is not a duration"),
        ({"drop": 0.0}, "have to be positive"),
        ({"sigmas": math.nan}, "have to be positive"),
        ({"sigmas": math.inf}, "have to be positive"),
        ({"drop": math.inf}, "have to be positive"),
        ({"depth_history": "30m"}, "hold no whole window of 1h"),
        ({"liquidation_quantile": 1.0}, "lie between 0 and 1"),
        ({"depth_collapse": -0.1}, "lie between 0 and 1"),
    ],
)
def test_a_definition_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        StressSpec(**options)


def test_a_definition_is_read_from_pairs_and_keeps_the_defaults_of_the_rest():
    assert StressSpec.parse("") == StressSpec()
    assert StressSpec.parse("sigmas=6, window=4h") == StressSpec(sigmas=6.0, window="4h")


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("dorp=0.05", ["there is no 'dorp'. Did you mean 'drop'?"]),
        ("drop=3%,drop=0.03,sigma=8", ["drop has to be a number, not '3%'", "Did you mean 'sigmas'?"]),
        ("drop=0.05,drop=0.06", ["'drop' is given twice"]),
        ("drop", ["drop has to be a number, not ''"]),
        ("drop=0.05,", ["there is no ''"]),
    ],
)
def test_every_pair_that_cannot_be_read_is_named(text, messages):
    with pytest.raises(ConfigError, match=r"there is no|a number|given twice|2 problems") as caught:
        StressSpec.parse(text)
    found = [problem.message for problem in caught.value.problems]
    assert len(found) == len(messages)
    assert all(message in line for message, line in zip(messages, found, strict=True))


@pytest.mark.parametrize(
    ("text", "message"), [("drop=nan", "have to be positive"), ("window=", "is not a dur")]
)
def test_values_out_of_range_are_refused_when_they_are_read(text, message):
    with pytest.raises(ConfigError, match=message):
        StressSpec.parse(text)
