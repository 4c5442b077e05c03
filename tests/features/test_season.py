"""The season node: which bars it takes, what is missing, and that portions change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.features import expr as e
from riskml.features.catalog import select
from riskml.features.engine import FeatureStream
from riskml.features.evaluate import evaluate_features
from riskml.features.inputs import column
from riskml.features.spec import Feature
from riskml.markets import Market
from riskml.units import HOUR

NAN = np.nan


def season(ahead: str, period: str, count: int) -> Feature:
    expression = e.season(column("close"), ahead, period, count)
    return Feature("tried", "volatility", "quote", "as tried", "as tried", expression)


def of(feature: Feature, close: list[float], interval: str = "1h") -> list[float]:
    ts = np.arange(1, len(close) + 1, dtype=np.int64) * HOUR * (4 if interval == "4h" else 1)
    inputs = {"close": np.array(close, dtype=np.float64)[:, np.newaxis]}
    return evaluate_features([feature], inputs, ts, interval=interval)[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("ahead", "period", "interval", "offsets"),
    [
        ("1h", "1d", "1h", (23, 47, 71)),
        ("8h", "1d", "1h", (16, 40, 64)),
        ("1h", "1d", "15m", (92, 188, 284)),
        ("1h", "1d", "4h", (5, 11, 17)),
        ("8h", "1d", "1d", (0, 1, 2)),
        ("24h", "7d", "1h", (144, 312, 480)),
    ],
)
def test_the_coming_hours_are_found_one_period_back_at_every_bar_length(ahead, period, interval, offsets):
    node = e.season(column("close"), ahead, period, 3)
    assert node.offsets(interval) == offsets
    assert node.extra_bars(interval) == offsets[-1]


def test_a_mean_is_taken_over_the_same_hour_of_earlier_periods():
    close = [float(number) for number in range(1, 10)]
    # Of the bar t, the coming one is t + 1: two and four hours before that are t - 1 and t - 3.
    assert of(season("1h", "2h", 2), close) == pytest.approx(
        [NAN, 1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], nan_ok=True
    )


def test_missing_values_are_skipped_while_half_of_them_are_there():
    close = [1.0, NAN, 3.0, 4.0, NAN, 6.0, 7.0]
    assert of(season("1h", "2h", 2), close) == pytest.approx([NAN, 1.0, NAN, 2.0, 4.0, 3.0, 5.0], nan_ok=True)
    assert of(season("1h", "1h", 3), [1.0, NAN, NAN, 4.0, 5.0]) == pytest.approx(
        [NAN, NAN, NAN, NAN, 4.5], nan_ok=True
    )


def test_a_gap_of_more_than_three_bars_is_not_looked_across():
    short = [1.0, 2.0, NAN, NAN, NAN, 6.0]
    long = [1.0, 2.0, NAN, NAN, NAN, NAN, 7.0]
    assert of(season("1h", "6h", 1), short)[5] == 1.0
    assert of(season("1h", "6h", 1), long)[6] != 2.0
    assert np.isnan(of(season("1h", "6h", 1), long)[6])


@pytest.mark.parametrize(("ahead", "period", "count"), [("2d", "1d", 3), ("1h", "1d", 0)])
def test_a_season_that_would_look_ahead_is_refused(ahead, period, count):
    with pytest.raises(ConfigError, match="at most one ahead"):
        e.season(column("close"), ahead, period, count)


def test_portions_and_a_saved_state_change_no_bit(panels):
    names = [
        "season_ratio_1h_14d",
        "season_ratio_8h_14d",
        "season_week_1h_4w",
        "season_week_24h_4w",
        "market_season_ratio_1h",
    ]
    ts, inputs = panels.random_panel(500, interval="4h", seed=9)
    whole = FeatureStream(select(names), panels.MARKETS, interval="4h").push(ts, inputs)
    stream = FeatureStream(select(names), panels.MARKETS, interval="4h")
    parts = []
    for first, last in ((0, 1), (1, 2), (2, 300), (300, 301), (301, 480), (480, 500)):
        saved = {name: array.copy() for name, array in stream.state().items()}
        stream = FeatureStream(select(names), panels.MARKETS, interval="4h")
        if saved:
            stream.restore(saved)
        parts.append(
            stream.push(ts[first:last], {name: values[first:last] for name, values in inputs.items()})
        )
    assert np.concatenate(parts).tobytes() == np.ascontiguousarray(whole).tobytes()
    assert np.isfinite(whole[-1]).any(axis=0).all()


def test_a_market_that_trades_by_day_shows_its_hours():
    """Twice the volatility from 12 to 15 UTC: the coming hour is known to be lively, or quiet, before it."""
    hours = np.arange(24 * 40)
    log_range = np.where((hours % 24 >= 12) & (hours % 24 < 15), 0.02, 0.01)[:, np.newaxis]
    close = np.ones((len(hours), 1))
    inputs = {"close": close, "high": close * np.exp(log_range), "low": close}
    names = ["season_ratio_1h_14d", "season_week_1h_4w", "season_ratio_8h_14d", "season_week_24h_4w"]
    found = evaluate_features(select(names), inputs, (hours + 1) * HOUR, interval="1h")[-24:, 0]
    before = np.log(4.0) * 3.0 / 24.0
    lively = np.where((np.arange(24) + 1) % 24 // 3 == 4, np.log(4.0), 0.0) - before
    np.testing.assert_allclose(found[:, 0], lively, atol=1e-12)
    np.testing.assert_allclose(found[:, 1], lively, atol=1e-12)
    assert found[6, 2] > 0.2 > -0.2 > found[16, 2]
    np.testing.assert_allclose(found[:, 3], 0.0, atol=1e-12)


def test_markets_that_join_later_disturb_nobody(panels):
    ts, inputs = panels.random_panel(400, interval="4h", seed=5)
    few = {name: values[:, :3] if values.shape[1] == 4 else values for name, values in inputs.items()}
    chosen = select(["season_ratio_1h_14d", "season_week_24h_4w"])
    wide = FeatureStream(chosen, panels.MARKETS, interval="4h").push(ts, inputs)
    stream = FeatureStream(chosen, panels.MARKETS[:3], interval="4h")
    stream.push(ts[:100], {name: values[:100] for name, values in few.items()})
    stream.add_markets([Market("ARB", "binance")])
    rest = stream.push(ts[100:], {name: values[100:] for name, values in inputs.items()})
    np.testing.assert_array_equal(rest[:, :3], wide[100:, :3])
