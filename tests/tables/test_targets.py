"""Targets against small tables and a plain loop."""

import math

import numpy as np
import pytest

from riskml.tables.stress import Signal, Stress
from riskml.tables.targets import long_gaps, onsets, targets
from riskml.units import HOUR, duration_bars, duration_us

NAN = math.nan


def _column(*values):
    return np.array(values, dtype=float)[:, None]


def _grid(n_bars):
    return np.arange(1, n_bars + 1, dtype=np.int64) * HOUR


def _targets(close, high, low, horizons=("1h", "2h")):
    return targets(_column(*close), _column(*high), _column(*low), _grid(len(close)), "1h", horizons)


def test_the_excursion_is_read_from_highs_and_lows_strictly_after_the_close():
    found = _targets(close=[100, 101, 99, 100], high=[500, 104, 102, 101], low=[1, 98, 90, 100])
    down, up = found.mae[:, 0, :, 0], found.mae[:, 0, :, 1]
    np.testing.assert_allclose(down[:, 0], [math.log(100 / 98), math.log(101 / 90), 0.0, NAN])
    np.testing.assert_allclose(down[:, 1], [math.log(100 / 90), math.log(101 / 90), NAN, NAN])
    np.testing.assert_allclose(up[:, 0], [math.log(1.04), math.log(102 / 101), math.log(101 / 99), NAN])


def test_the_variance_is_the_sum_of_parkinson_variances_with_a_floor():
    found = _targets(close=[1, 1, 1, 1], high=[1, math.e, 1, 1], low=[1, 1, 1, 1])
    unit = 1 / (4 * math.log(2))
    np.testing.assert_allclose(found.variance[:, 0, 0], [unit, 1e-8, 1e-8, NAN])
    np.testing.assert_allclose(found.variance[:, 0, 1], [unit, 1e-8, NAN, NAN])


def _path(present):
    close = [100.0 if letter == "1" else NAN for letter in present]
    return close, [value * 1.01 for value in close], [value / 1.01 for value in close]


@pytest.mark.parametrize(
    ("present", "defined"),
    [
        ("111111111111", "111111110000"),
        ("110001111111", "110001110000"),
        ("110000111111", "000000110000"),
        ("111111111000", "111110000000"),
        ("111111110001", "111111110000"),
    ],
)
def test_no_window_of_four_bars_touches_a_gap_of_more_than_three(present, defined):
    found = _targets(*_path(present), horizons=("4h",))
    for values in (found.mae[:, 0, 0, 0], found.variance[:, 0, 0]):
        assert "".join("1" if math.isfinite(value) else "0" for value in values) == defined


def test_a_variance_with_missing_bars_is_scaled_to_the_whole_window():
    full, holed = _targets(*_path("1111111"), horizons=("4h",)), _targets(*_path("1101111"), horizons=("4h",))
    assert holed.variance[0, 0, 0] == pytest.approx(full.variance[0, 0, 0], rel=1e-12)


@pytest.mark.parametrize(
    ("present", "gap"),
    [
        ("1111", "0000"),
        ("0111", "1000"),
        ("1110", "0001"),
        ("10001", "00000"),
        ("100001", "011110"),
        ("0000", "1111"),
    ],
)
def test_what_lies_outside_counts_as_missing(present, gap):
    found = long_gaps(np.array([[letter == "1"] for letter in present]))
    assert "".join(str(int(value)) for value in found[:, 0]) == gap


def _market(n_bars, scale, seed=0):
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, scale, (n_bars, 2)), axis=0))
    return close, close * (1 + scale), close * (1 - scale)


def test_an_onset_needs_both_three_percent_and_eight_slow_sigmas():
    calm, wild = _market(400, 0.001), _market(400, 0.01)
    for (close, high, low), expected in ((calm, 1.0), (wild, 0.0)):
        low[300] = close[299] * 0.96
        found = onsets(close, high, low, _grid(400), "1h")
        assert found[300].tolist() == [expected, expected]
        assert np.nansum(found) == 2 * expected
    close, high, low = calm
    low[300] = close[299] * 0.975
    assert np.nansum(onsets(close, high, low, _grid(400), "1h")) == 0.0


def test_stress_says_whether_an_onset_lies_ahead():
    close, high, low = _market(400, 0.001)
    low[300] = close[299] * 0.9
    found = targets(close, high, low, _grid(400), "1h", ("1h", "8h")).stress[:, 0]
    assert np.flatnonzero(found[:, 0] == 1.0).tolist() == [299]
    assert np.flatnonzero(found[:, 1] == 1.0).tolist() == list(range(292, 300))
    assert np.isnan(found[:100]).all()


def test_at_quarter_hours_an_onset_is_a_drop_within_the_hour():
    close, high, low = _market(4 * 24 * 12, 0.0005)
    close[1000:, 0] *= 0.985
    close[1002:, 0] *= 0.97
    high, low = close * 1.0005, close * 0.9995
    ts = np.arange(1, len(close) + 1, dtype=np.int64) * (HOUR // 4)
    found = onsets(close, high, low, ts, "15m")
    assert np.flatnonzero(found[:, 0] == 1.0).tolist() == [1002, 1003, 1004, 1005]
    assert np.nansum(found[:, 1]) == 0.0
    # The flags' hours begin with bars 998 to 1001: no later one has them ahead.
    ahead = targets(close, high, low, ts, "15m", ("30m", "1h", "2h")).stress[:, 0]
    assert np.flatnonzero(ahead[:, 1] == 1.0).tolist() == list(range(998, 1002))
    assert np.flatnonzero(ahead[:, 2] == 1.0).tolist() == list(range(994, 1002))
    assert np.isnan(ahead[:, 0]).all(), "no whole hour lies within half an hour"


def test_what_fell_before_a_bar_is_no_stress_ahead_of_it():
    close, high, low = _market(4 * 24 * 12, 0.0005)
    low[1000] *= 0.9
    ts = np.arange(1, len(close) + 1, dtype=np.int64) * (HOUR // 4)
    found = targets(close, high, low, ts, "15m", ("1h", "8h")).stress[:, 0]
    assert found[999].tolist() == [1.0, 1.0]
    assert (found[1000:1050] == 0.0).all(), "bars 1000 to 1003 are flagged still"


def test_the_past_of_a_bar_changes_none_of_its_excursions():
    close, high, low = _market(60, 0.01)
    before = targets(close, high, low, _grid(60), "1h", ("8h",))
    low[:30] *= 0.5
    after = targets(close, high, low, _grid(60), "1h", ("8h",))
    np.testing.assert_array_equal(after.mae[30:], before.mae[30:])
    np.testing.assert_array_equal(after.variance[30:], before.variance[30:])


def _holed(n_bars, seed):
    close, high, low = _market(n_bars, 0.01, seed=seed)
    rng = np.random.default_rng(seed)
    missing = rng.random(close.shape) < 0.04
    for begin, length in ((20, 2), (50, 6), (80, 3), (n_bars - 30, 4)):
        missing[begin : begin + length, 1] = True
    for values in (close, high, low):
        values[missing] = NAN
    return close, high, low


def _in_long_run(present, row):
    """Whether a missing bar stands in a run of more than three; beyond the ends all is missing."""
    if present[row]:
        return False
    before, after = row, row
    while before >= 0 and not present[before]:
        before -= 1
    while after < len(present) and not present[after]:
        after += 1
    return before < 0 or after == len(present) or after - before - 1 > 3


@pytest.mark.parametrize(("interval", "n_bars"), [("1h", 200), ("5m", 700)])
def test_targets_equal_a_plain_loop_over_markets_with_holes(interval, n_bars):
    close, high, low = _holed(n_bars, seed=3)
    ts = np.arange(1, n_bars + 1, dtype=np.int64) * duration_us(interval)
    flag = np.where(np.random.default_rng(1).random(close.shape) < 0.02, 1.0, 0.0)
    flag[::17] = NAN
    nothing = Signal(*(np.full(close.shape, NAN),) * 3)
    stress = Stress(Signal(flag, flag, flag), nothing, nothing, flag)
    found = targets(close, high, low, ts, interval, ("1h", "24h"), stress=stress)
    for place, step in enumerate((duration_bars("1h", interval), duration_bars("24h", interval))):
        for market in range(2):
            present = np.isfinite(close[:, market])
            gap = [_in_long_run(present, row) for row in range(n_bars)]
            for row in range(n_bars):
                ahead = slice(row + 1, row + step + 1)
                usable = row + step < n_bars and present[row] and not any(gap[ahead]) and present[ahead].any()
                expected = [NAN] * 4
                if usable:
                    known = np.flatnonzero(present[ahead]) + row + 1
                    swing = np.log(high[known, market] / low[known, market]) ** 2 / (4 * math.log(2))
                    flags = flag[ahead, market]
                    expected = [
                        max(0.0, math.log(close[row, market] / low[known, market].min())),
                        max(0.0, math.log(high[known, market].max() / close[row, market])),
                        max(1e-8, swing.sum() * step / len(known)),
                        np.nanmax(flags) if np.isfinite(flags).any() else NAN,
                    ]
                values = [
                    *found.mae[row, market, place],
                    found.variance[row, market, place],
                    found.stress[row, market, place],
                ]
                np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert np.isnan(found.stress_depth).all()


def test_a_target_does_not_depend_on_how_many_rows_lie_before_or_behind_it():
    close, high, low = _holed(400, seed=9)
    ts = np.arange(1, 401, dtype=np.int64) * (HOUR // 4)
    stress = Stress(*(Signal(*(np.zeros(close.shape),) * 3),) * 3, np.zeros(close.shape))
    whole = targets(close, high, low, ts, "15m", ("24h",), stress=stress)
    rows = slice(37, 37 + 200)
    cut = Stress(*(Signal(*(np.zeros((200, 2)),) * 3),) * 3, np.zeros((200, 2)))
    part = targets(close[rows], high[rows], low[rows], ts[rows], "15m", ("24h",), stress=cut)
    for name in ("mae", "variance", "stress"):
        inner = slice(4, 200 - 96 - 4)
        found, expected = getattr(part, name)[inner], getattr(whole, name)[rows][inner]
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), name
        assert np.isfinite(found).any()
