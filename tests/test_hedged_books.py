"""The script of the hedged books: what a correlation flip does to a book."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from riskml.learning.portfolio import Prices, worst_losses
from riskml.risk.policy import MarginPolicy
from riskml.tables.lake import Lake
from riskml.units import HOUR, duration_us, to_us

FILE = Path(__file__).resolve().parents[1] / "training" / "hedged_books.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, which is no package."""
    spec = importlib.util.spec_from_file_location("training_hedged_books", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def market(n: int = 400) -> tuple[SimpleNamespace, Prices]:
    """Two markets of equal scale that move apart."""
    draw = np.random.default_rng(3)
    path = np.cumsum(draw.normal(0.0, 0.01, (n, 2)), axis=0)
    close = 100.0 * np.exp(path)
    history = SimpleNamespace(horizons=("1h", "8h"), sigma=np.full((n, 2, 2, 2), 0.01))
    return history, Prices(np.arange(n), close, close * np.exp(0.004), close * np.exp(-0.004))


def books(script: ModuleType, weight: list[float], n: int = 300) -> object:
    return script.Books(
        np.zeros(n, dtype=np.int64),
        np.tile([0, 1], (n, 1)),
        np.tile(weight, (n, 1)),
        np.full((n, 2, 2), 0.01),
        {name: np.full((n, 2), 0.02) for name in script.RULES},
    )


def flip(script: ModuleType, kind: str, weight: list[float]) -> np.ndarray:
    """The bound over 8 h."""
    history, prices = market()
    book = books(script, weight)
    paths = script.flip_paths(book, history, script.whole(prices, 8), kind, 1, np.random.default_rng(0))
    return script.flip_losses(book, paths, prices, 8)[:, 1]


def hours(prices: Prices, step: int) -> Prices:
    """Bars of ``step`` bars by a plain loop; row 0 has no high and no low."""
    high, low = (values[::step].copy() for values in (prices.high, prices.low))
    high[0] = low[0] = np.nan
    for row in range(1, len(high)):
        inside = slice((row - 1) * step + 1, row * step + 1)
        high[row], low[row] = prices.high[inside].max(axis=0), prices.low[inside].min(axis=0)
    return Prices(prices.ts[::step], prices.close[::step], high, low)


def with_gap(prices: Prices, row: int, column: int) -> Prices:
    """A copy with one bar missing."""
    values = [array.copy() for array in (prices.close, prices.high, prices.low)]
    for array in values:
        array[row, column] = np.nan
    return Prices(prices.ts, *values)


def test_at_correlation_one_an_equal_hedge_loses_nothing(script: ModuleType) -> None:
    np.testing.assert_allclose(flip(script, "one", [0.5, -0.5]), 0.0, atol=1e-12)
    assert flip(script, "one", [0.5, 0.5]).mean() > 0.01


def test_against_a_hedge_loses_as_much_as_both_legs_alone(script: ModuleType) -> None:
    hedged, both = flip(script, "against", [0.5, -0.5]), flip(script, "one", [0.5, 0.5])
    assert hedged.mean() == pytest.approx(both.mean(), rel=0.1)


def test_at_correlation_zero_the_loss_lies_between(script: ModuleType) -> None:
    apart = flip(script, "zero", [0.5, -0.5]).mean()
    assert 0.0 < apart < flip(script, "against", [0.5, -0.5]).mean()


def test_scales_are_those_of_the_book_not_of_the_path(script: ModuleType) -> None:
    history, prices = market()
    small = books(script, [1.0, 0.0])
    large = script.Books(small.row, small.market, small.weight, 2.0 * small.scale, small.required)
    losses = []
    for each in (small, large):
        allowed, draw = script.whole(prices, 1), np.random.default_rng(0)
        paths = script.flip_paths(each, history, allowed, "one", 0, draw)
        losses.append(script.flip_losses(each, paths, prices, 1))
    np.testing.assert_allclose(np.log1p(-losses[1]), 2.0 * np.log1p(-losses[0]))
    assert (losses[0].min(axis=0) == 0.0).all()
    assert (losses[0].max(axis=0) > 0.01).all()


def test_a_path_without_scaling_loses_what_the_book_lost_there(script: ModuleType) -> None:
    _, prices = market()
    book, begin = books(script, [0.7, -0.3]), np.arange(0, 300)
    paths = script.FlippedPaths(book.market, np.stack([begin] * 2, axis=1), np.ones((300, 2)), common=False)
    real = worst_losses(prices, begin, book.market, book.weight, 8)
    np.testing.assert_allclose(script.flip_losses(book, paths, prices, 8), real, atol=1e-14)
    assert (real[:, 1] > real[:, 0]).any()


def test_coarser_bars_hold_the_extremes_of_their_parts(script: ModuleType) -> None:
    _, prices = market(401)
    expected, found = hours(prices, 4), script.coarser(prices, 4)
    for name in ("ts", "close", "high", "low"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    gap = script.coarser(with_gap(prices, 6, 1), 4)  # the bar that closes with row 8
    assert np.argwhere(np.isnan(gap.high)).tolist() == [[0, 0], [0, 1], [2, 1]]
    np.testing.assert_array_equal(np.isnan(gap.high), np.isnan(gap.low))


@pytest.mark.parametrize("step", [1, 4])
def test_a_path_is_whole_where_each_of_its_bars_is_there(script: ModuleType, step: int) -> None:
    _, prices = market(41)
    prices = with_gap(prices, 20, 1)
    found = script.whole(prices, 8, step)
    assert found.shape == (len(range(0, 41, step)), 2)
    for place, row in enumerate(range(0, 41, step)):
        assert found[place].tolist() == [row + 8 <= 40, row + 8 <= 40 and not row <= 20 <= row + 8], row


def test_paths_start_only_where_they_may_and_everywhere_there(script: ModuleType) -> None:
    history, _ = market()
    allowed = np.zeros((400, 2), dtype=np.bool_)
    allowed[[5, 9], 0], allowed[[7, 11, 399], 1] = True, True
    for kind in script.FLIPS:
        paths = script.flip_paths(
            books(script, [0.4, -0.6]), history, allowed, kind, 0, np.random.default_rng(1)
        )
        starts = {
            column: set(paths.begin[paths.source == column].tolist())
            for column in np.unique(paths.source).tolist()
        }
        assert starts == ({0: {5, 9}, 1: {7, 11, 399}} if kind == "zero" else {1: {7, 11, 399}}), kind


def test_the_bound_falls_and_closes_rise_with_shorter_bars(script: ModuleType) -> None:
    _, fine = market(401)
    book, bars = books(script, [0.5, -0.5], n=90), np.arange(90)
    found = {
        step: worst_losses(
            script.coarser(fine, step), bars * (4 // step), book.market, book.weight, 32 // step
        )
        for step in (4, 2, 1)
    }
    for coarse, short in ((4, 2), (2, 1)):
        assert (found[short][:, 0] >= found[coarse][:, 0]).all()
        assert (found[short][:, 1] <= found[coarse][:, 1]).all()
    assert (found[1][:, 0] <= found[1][:, 1]).all()
    assert (found[1] != found[4]).any(axis=0).all()


def hourly_history(n: int, n_markets: int) -> SimpleNamespace:
    """Forecasts of one scale for every market and hour."""
    sigma = np.tile(np.array([0.02, 0.05])[None, None, :, None], (n, n_markets, 1, 2))
    return SimpleNamespace(
        horizons=("1h", "8h"),
        sigma=sigma,
        nu=np.full((n, n_markets, 2), 4.0),
        loadings=np.tile([0.6, 0.0], (n, n_markets, 1)),
    )


def test_a_full_correlation_stress_asks_for_the_stressed_requirement_or_the_capped_sum(
    script: ModuleType,
) -> None:
    history, there = hourly_history(200, 3), np.ones((200, 3), dtype=np.bool_)
    book = script.draw(history, there, np.ones(2), np.random.default_rng(0), draws=2)
    asked, cap = book.required, 1.0 - MarginPolicy().offset_cap
    assert sorted(np.bincount(book.row).tolist()) == [2] * 200
    np.testing.assert_array_equal(asked["stress 1"], np.maximum(asked["stressed"], cap * asked["gross"]))
    half = (asked["forecast"] + asked["stressed"]) / 2.0
    np.testing.assert_allclose(asked["stress 0.5"], np.maximum(half, cap * asked["gross"]), rtol=1e-12)
    assert (asked["stress 0.5"] < asked["stress 1"]).any()


def test_books_on_finer_bars_are_the_same_at_every_length(script: ModuleType) -> None:
    draw, names = np.random.default_rng(5), ("1h", "15m")
    n_hours, n_markets = 300, len(script.LONG_MARKETS)
    close = np.exp(np.cumsum(draw.normal(0.0, 0.005, (4 * (n_hours - 1) + 1, n_markets)), axis=0))
    fine = Prices(np.arange(len(close)), close, close * 1.002, close * 0.998)
    fine = with_gap(fine, 700, 3)
    cuts = {name: script.coarser(fine, 4 if name == "1h" else 1) for name in names}
    found = script.measure_fine(
        hourly_history(n_hours, n_markets),
        np.ones((n_hours, n_markets), dtype=np.bool_),
        np.ones(2),
        script.FinePaths({}, cuts),
        np.random.default_rng(0),
    )
    values = {name: (value, n) for name, value, n in found.rows}
    assert found.n > 100
    assert {n for _, n in values.values()} == {found.n}
    assert all(np.isfinite(ratio).all() for ratio in found.ratios.values())
    for group, flip in (("hedged", ""), ("flip", "zero "), ("flip", "one ")):
        for rule in script.STRETCH:
            low, high = (
                [found.ratios[f"{group} 8h multiple {flip}{kind} {name} {rule}"] for name in names]
                for kind in ("closes", "bound")
            )
            assert (low[0] <= low[1]).all()
            assert (low[1] <= high[1]).all()
            assert (high[1] <= high[0]).all()
            assert high[0].mean() > low[0].mean() > 0.0
            breach = values[f"{group} 8h breach {flip}bound 15m {rule}"][0]
            assert breach == pytest.approx((high[1] > 1.0).mean())


def test_a_part_is_that_of_the_fold(script: ModuleType) -> None:
    fold = script.FOLDS[1]
    assert script.span(fold, "calibrate") == ("2022-07-01", "2023-01-01")
    assert script.span(fold, "test") == ("2023-01-01", "2024-01-01")


def test_the_multiple_is_the_quantile_of_all_folds_together(script: ModuleType) -> None:
    name = "hedged 1h multiple bound 15m policy"
    ratios = np.random.default_rng(2).uniform(0.0, 2.0, 1000)
    folds = {
        test: script.FineFold(
            len(part), {"BTC": "okx 5m"}, [(name.replace("multiple", "breach"), v, 500)], {name: part}
        )
        for test, v, part in (("2022", 0.02, ratios[:500]), ("2023", 0.04, ratios[500:]))
    }
    record = script.fine_record("15m", folds)
    assert record["pooled"][name] == [pytest.approx(np.quantile(ratios, 0.995), rel=1e-4), 1000]
    assert record["pooled"]["hedged 1h breach bound 15m policy"] == [0.03, 1000]
    assert record["folds"]["2023"] == {
        "n": 500,
        "venues": {"BTC": "okx 5m"},
        "breach": {"hedged 1h breach bound 15m policy": 0.04},
    }


def lake_bars(venue: str, symbol: str, interval: str, start: int, n: int) -> pa.Table:
    """``n`` bars whose high is the number of the bar; bar 7 has no trade."""
    step = duration_us(interval)
    ts = start + step * np.arange(1, n + 1)
    number = np.arange(1.0, n + 1.0)
    stamp = pa.array(ts, pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "ts": stamp,
            "known_at": stamp,
            "venue": [venue] * n,
            "symbol": [symbol] * n,
            "interval": [interval] * n,
            "open": number,
            "high": number,
            "low": number,
            "close": number,
            "volume": np.where(number == 7.0, 0.0, 1.0),
            "quote_volume": number,
            "trades": np.ones(n, dtype=np.int64),
            "taker_buy_volume": np.zeros(n),
        }
    )


def test_a_market_has_the_venue_with_more_bars_and_no_bar_without_a_trade(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LONG_MARKETS", ("BTC", "ETH", "SOL"))
    lake, start = Lake(tmp_path / "lake"), to_us("2022-06-01")
    for venue, symbol, interval, n in (
        ("binance", "BTC", "15m", 8),
        ("okx", "BTC", "5m", 12),
        ("binance", "ETH", "15m", 4),
        ("okx", "ETH", "5m", 24),
        ("binance", "SOL", "15m", 8),
        ("okx", "SOL", "5m", 24),
    ):
        lake.write("bars", lake_bars(venue, symbol, interval, start, n))
    found = script.fine_paths(lake, "15m", start + np.arange(3) * HOUR)
    assert found.venues == {"BTC": "binance 15m", "ETH": "okx 5m", "SOL": "binance 15m"}
    high = {name: prices.high[:, :2].T.tolist() for name, prices in found.prices.items()}
    nan = pytest.approx(np.nan, nan_ok=True)
    # Bar 7 of BTC (15m) and of ETH (5m, in its third quarter) is missing, and so is the hour around it.
    assert high["15m"] == [[nan, 1, 2, 3, 4, 5, 6, nan, 8], [nan, 3, 6, nan, 12, 15, 18, 21, 24]]
    assert high["1h"] == [[nan, 4, nan], [nan, nan, 24]]


def test_breaches_and_saving_are_counted_per_rule(script: ModuleType) -> None:
    book = books(script, [0.5, -0.5], n=4)
    book.required["gross"][:] = 0.04
    loss = np.array([0.01, 0.03, 0.05, np.nan])
    found = {name: (value, n) for name, value, n in script.measure(book, {"closes": loss}, 0)}
    assert found["saving policy"] == (pytest.approx(0.5), 4)
    assert found["breach closes policy"] == (pytest.approx(2 / 3), 3)
    assert found["breach closes gross"] == (pytest.approx(1 / 3), 3)
    assert found["worst loss to requirement closes gross"] == (pytest.approx(1.25), 3)


def test_folds_are_pooled_by_their_number_and_the_worst_is_the_largest(script: ModuleType) -> None:
    one = [("hedged 1h breach closes policy", 0.01, 300), ("hedged 1h worst loss closes", 2.0, 300)]
    two = [("hedged 1h breach closes policy", 0.03, 100), ("hedged 1h worst loss closes", 3.0, 100)]
    assert script.pooled([one, two]) == {
        "hedged 1h breach closes policy": [0.015, 400],
        "hedged 1h worst loss closes": [3.0, 400],
    }
