"""Finer bars within a bar: which count, when they count, and what they are worth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riskml.features.assemble import InputReader, assemble_inputs
from riskml.features.catalog import fingerprint, select
from riskml.features.evaluate import evaluate_features
from riskml.features.fine import is_finer
from riskml.features.inputs import INPUTS, reach_us
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.units import HOUR, MINUTE

NAN = np.nan
BTC = Market("BTC", "binance")
Bar = tuple[float, float, str, str, float]
"""Close and when it was known (minutes), venue, length, ln(high / low)."""


def store_of(*bars: Bar) -> SeriesStore:
    store = SeriesStore()
    store.append(
        "bars",
        {
            "ts": np.array([int(bar[0] * MINUTE) for bar in bars]),
            "known_at": np.array([int(bar[1] * MINUTE) for bar in bars]),
            "venue": np.array([bar[2] for bar in bars], dtype=object),
            "symbol": np.array(["BTC"] * len(bars), dtype=object),
            "interval": np.array([bar[3] for bar in bars], dtype=object),
            "open": np.full(len(bars), 1.0),
            "high": np.exp([bar[4] for bar in bars]),
            "low": np.full(len(bars), 1.0),
            "close": np.full(len(bars), 1.0),
            "volume": np.full(len(bars), 1.0),
        },
    )
    return store


def quarters(*closes: float, venue: str = "binance", log_range: float = 0.1) -> list[Bar]:
    return [(close, close, venue, "15m", log_range) for close in closes]


def variance(store: SeriesStore, name: str, hours: list[int], interval: str = "1h") -> list[float]:
    """In variances of a bar with ln(high / low) = 0.1; as a history and slot by slot."""
    grid = np.array(hours, dtype=np.int64) * HOUR
    whole = assemble_inputs(store, grid, [BTC], interval=interval, names=[name])[name]
    reader = InputReader(store, [BTC], interval=interval, names=[name])
    slots = np.concatenate([reader.read(grid[row : row + 1])[name] for row in range(len(grid))])
    np.testing.assert_array_equal(slots, whole)
    return [float(value) for value in whole[:, 0] / (0.01 / (4.0 * math.log(2.0)))]


def approx(*expected: float) -> object:
    return pytest.approx(list(expected), rel=1e-12, nan_ok=True)


def test_an_hour_is_the_sum_of_its_four_quarters():
    store = store_of(*quarters(75, 90, 105, 120), *quarters(135, 150, 165, 180, log_range=0.2))
    assert variance(store, "fine_variance_15m", [1, 2, 3, 4]) == approx(NAN, 4, 16, NAN)


@pytest.mark.parametrize("missing", [75, 90, 105, 120])
def test_an_hour_without_one_of_its_quarters_has_no_sum(missing):
    closes = [close for close in (75, 90, 105, 120, 135, 150, 165, 180) if close != missing]
    assert variance(store_of(*quarters(*closes)), "fine_variance_15m", [2, 3]) == approx(NAN, 4)


def test_a_quarter_that_became_known_after_the_close_is_missing_and_a_late_but_timely_one_counts():
    late = store_of(*quarters(75, 90, 105), (120, 121, "binance", "15m", 0.1))
    timely = store_of((75, 119, "binance", "15m", 0.1), *quarters(90, 105, 120))
    assert variance(late, "fine_variance_15m", [2]) == approx(NAN)
    assert variance(timely, "fine_variance_15m", [2]) == approx(4)


def test_a_revision_counts_when_it_was_known_at_the_close():
    bars = quarters(75, 90, 105, 120)
    early = store_of(*bars, (90, 100, "binance", "15m", 0.2))
    later = store_of(*bars, (90, 130, "binance", "15m", 0.2))
    assert variance(early, "fine_variance_15m", [2]) == approx(7)
    assert variance(later, "fine_variance_15m", [2]) == approx(4)


def test_bars_off_the_finer_grid_are_not_counted():
    store = store_of(*quarters(75, 90, 97, 105, 120))
    assert variance(store, "fine_variance_15m", [2]) == approx(4)


def test_another_venue_stands_in_with_all_its_quarters_or_not_at_all():
    own, other = quarters(75, 90, 105), quarters(75, 90, 105, 120, venue="okx", log_range=0.2)
    spot = quarters(75, 90, 105, 120, venue="binance_spot", log_range=0.3)
    assert variance(store_of(*own, *other, *spot), "fine_variance_15m", [2]) == approx(16)
    assert variance(store_of(*own, *other[:3], *spot), "fine_variance_15m", [2]) == approx(NAN)
    assert variance(store_of(*own, *quarters(120), *other), "fine_variance_15m", [2]) == approx(4)


def test_the_last_quarter_is_one_bar_of_15_minutes_or_three_of_5():
    fives = [(close, close, "binance", "5m", 0.1) for close in range(110, 121, 5)]
    assert variance(store_of(*fives), "quarter_variance_5m", [2]) == approx(3)
    assert variance(store_of(*fives[1:]), "quarter_variance_5m", [2]) == approx(NAN)
    assert variance(store_of(*quarters(120)), "quarter_variance_15m", [2]) == approx(1)
    assert variance(store_of(*fives), "fine_variance_5m", [2]) == approx(NAN)


@pytest.mark.parametrize(
    ("fine", "interval", "finer"),
    [
        ("15m", "1h", True),
        ("5m", "15m", True),
        ("15m", "15m", False),
        ("15m", "5m", False),
        ("15m", "20m", False),
    ],
)
def test_only_bars_that_divide_the_bar_are_finer(fine, interval, finer):
    assert is_finer(fine, interval) is finer


def test_at_bars_that_are_not_longer_the_sums_are_missing():
    store = store_of(*quarters(75, 90, 105, 120))
    assert variance(store, "fine_variance_15m", [2], interval="15m") == approx(NAN)


def test_a_last_quarter_that_is_longer_than_the_bar_is_missing():
    fives = [(close, close, "binance", "5m", 0.1) for close in range(105, 121, 5)]
    assert variance(store_of(*fives), "quarter_variance_5m", [2], interval="10m") == approx(NAN)
    assert variance(store_of(*fives), "fine_variance_5m", [2], interval="10m") == approx(2)


def test_a_reader_has_to_reach_back_a_bar_only_where_finer_bars_are_read():
    assert reach_us(["close"], "4h") == 0
    assert reach_us(["close", "fine_variance_5m"], "4h") == 4 * HOUR
    assert reach_us(["funding_8h", "fine_variance_5m"], "4h") == 24 * HOUR


def test_a_part_of_the_bar_belongs_to_the_definition_of_an_input_only_where_there_is_one():
    assert INPUTS["quarter_variance_5m"].text.endswith("|5m|||15m")
    assert INPUTS["close"].text == "close=bars.close|bar||||"
    assert fingerprint(select(["log_har_24h"]), "1h") != fingerprint(select(["log_fine_har_24h"]), "1h")


def path_bars(seed: int, n_hours: int) -> dict[str, np.ndarray]:
    """Hourly inputs of Brownian paths in 60 x 12 steps an hour, hourly variance 1e-4."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0.0, 1e-2 / math.sqrt(720.0), (n_hours, 12, 60))
    path = np.cumsum(steps.reshape(-1)).reshape(steps.shape)
    start = path - steps
    top, bottom = np.maximum(path, start), np.minimum(path, start)
    fine = (top.max(axis=2) - bottom.min(axis=2)) ** 2 / (4.0 * math.log(2.0))
    hours = {
        "open": start[:, 0, 0],
        "close": path[:, -1, -1],
        "high": top.max(axis=(1, 2)),
        "low": bottom.min(axis=(1, 2)),
    }
    inputs = {name: np.exp(values)[:, np.newaxis] for name, values in hours.items()}
    empty = {name: np.full((n_hours, 1), np.nan) for name in INPUTS if name.endswith(("5m", "15m"))}
    inputs |= empty | {"fine_variance_5m": fine.sum(axis=1)[:, np.newaxis]}
    return inputs


def test_twelve_ranges_tell_the_variance_of_an_hour_more_precisely_than_one():
    inputs = path_bars(3, 2000)
    ts = np.arange(1, 2001, dtype=np.int64) * HOUR
    names = ["log_parkinson_1h", "log_fine_variance_1h"]
    found = np.exp(evaluate_features(select(names), inputs, ts, interval="1h")[:, 0]) / 1e-4
    one, twelve = found.std(axis=0) / found.mean(axis=0)
    assert 0.55 < one < 0.75, "0.64 in theory"
    assert 0.15 < twelve < 0.22, "0.185 in theory"
