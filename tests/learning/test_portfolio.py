"""Coverage of random books."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from riskml.learning.metric_rows import MetricRow
from riskml.learning.portfolio import (
    Prices,
    draw_books,
    pool_books,
    portfolio_rows,
    requirements,
    worst_losses,
)
from riskml.learning.protocol import margin_distance, simple_requirement
from riskml.risk import AccountBook, Forecast, MarginPolicy, decide, numpy_law
from riskml.units import to_us


def test_a_book_of_one_leg_needs_what_its_market_needs() -> None:
    sigma, nu, power = np.full((2, 1, 1, 2), 0.02), np.full((2, 1, 1), 4.0), np.ones(1)
    found = requirements(sigma, nu, np.full((2, 1, 2), 0.5), np.array([[1.0], [-1.0]]), power)
    expected = simple_requirement(margin_distance(sigma[0, 0], nu[0, 0], power))[0]
    np.testing.assert_allclose(found["forecast"][:, 0], expected, rtol=1e-6)


def test_the_sum_of_the_legs_alone_is_the_engines() -> None:
    draw = np.random.default_rng(6)
    n_books, n_legs, markets = 40, 3, tuple(f"m{number}" for number in range(120))
    sigma = draw.uniform(0.002, 0.03, (120, 1, 2)) * np.sqrt([1.0, 8.0])[:, None]
    nu = draw.uniform(2.5, 9.0, (120, 2))
    power = np.array([1.1, 0.95])
    loadings = np.stack([draw.uniform(0.3, 0.9, 120), np.zeros(120)], axis=1)
    weight = draw.normal(size=(n_books, n_legs))
    weight /= np.abs(weight).sum(axis=1, keepdims=True)
    found = requirements(
        sigma.reshape(n_books, n_legs, 2, 2),
        nu.reshape(n_books, n_legs, 2),
        loadings.reshape(n_books, n_legs, 2),
        weight,
        power,
    )
    forecast = Forecast(
        ts=to_us("2024-05-01"),
        markets=markets,
        horizons=("1h", "8h"),
        sigma=sigma,
        nu=nu,
        variance=sigma.mean(axis=2) ** 2,
        stress=np.zeros((120, 2)),
        loadings=loadings,
        degraded=np.zeros(120, dtype=np.bool_),
        calibration_power=tuple(power),
    )
    usd = 1e6
    ids = [f"a{number}" for number in range(n_books)]
    book = AccountBook.from_arrays(
        {"account_id": ids, "cash_usd": np.full(n_books, 1e12)},
        {
            "account_id": np.repeat(ids, n_legs),
            "venue": ["sim"] * 120,
            "symbol": list(markets),
            "size": usd * weight.ravel(),
            "mark_price": np.ones(120),
        },
    )
    # What the engine asks for without any offset, at a slow scale that is the forecast.
    bare = {"slow_weight": 0.0, "floor": 0.0, "initial_floor": 0.0, "concentration_rate": 0.0}
    for offset_cap, name in ((0.0, "gross"), (MarginPolicy().offset_cap, "policy")):
        policy = MarginPolicy(offset_cap=offset_cap, action_horizon="8h", **bare)
        asked = decide(book, forecast, policy, law=numpy_law(power), ts=forecast.ts)
        np.testing.assert_allclose(found[name][:, 1], asked.unrounded_usd[:, 0] / usd, rtol=1e-9)
        np.testing.assert_allclose(found[name][:, 0], asked.unrounded_usd[:, 1] / usd, rtol=1e-9)


def test_losses_are_by_closes_and_at_each_legs_extreme() -> None:
    close = np.array([[100.0, 100.0], [90.0, 90.0], [100.0, 100.0]])
    prices = Prices(np.arange(3), close, close + 5.0, close - 5.0)
    found = worst_losses(prices, np.array([0]), np.array([[0, 1]]), np.array([[0.75, -0.25]]), 2)
    np.testing.assert_allclose(found, [[0.05, 0.75 * 0.15 - 0.25 * 0.05]])


@pytest.mark.parametrize(("kind", "signs"), [("long", {1}), ("short", {-1}), ("mixed", {1, -1})])
def test_books_have_two_to_eight_available_legs_of_their_kind(kind: str, signs: set[int]) -> None:
    available = np.ones((50, 10), dtype=bool)
    available[:, 3] = False
    market, weight = draw_books(available, kind, np.random.default_rng(0))
    held = weight != 0.0
    assert held.sum(axis=1).min() >= 2
    assert 3 not in market[held]
    assert all(set(np.sign(row[row != 0]).astype(int)) == signs for row in weight)
    np.testing.assert_allclose(np.abs(weight).sum(axis=1), 1.0)


def simulated(correlation: float, scale: float = 1.0, n: int = 6000) -> tuple[Any, Prices]:
    """Six Brownian markets of one common factor, bars of 12 steps, and the forecast of their true law."""
    draw = np.random.default_rng(4)
    common, own = draw.standard_normal((n * 12, 1)), draw.standard_normal((n * 12, 6))
    step = 0.01 / np.sqrt(12) * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)
    path = np.exp(np.cumsum(step, axis=0)).reshape(n, 12, 6)
    prices = Prices(np.arange(n), path[:, -1], path.max(axis=1), path.min(axis=1))
    history = SimpleNamespace(
        ts=np.arange(n - 30),
        markets=tuple("ABCDEF"),
        horizons=("1h",),
        sigma=np.full((n - 30, 6, 1, 2), 0.01 * scale),
        nu=np.full((n - 30, 6, 1), 30.0),
        available=np.ones((n - 30, 6), dtype=bool),
        loadings=np.tile([np.sqrt(correlation), 0.0], (n - 30, 6, 1)),
    )
    return history, prices


def values(history: Any, prices: Prices) -> dict[tuple[str, str, str], float]:
    rows = portfolio_rows(history, history.loadings, prices, np.ones(1))
    return {(row.metric, row.market, row.side): row.value for row in rows}


@pytest.mark.slow
def test_the_true_law_covers_books_and_offsets_hedges() -> None:
    found = values(*simulated(0.8))
    for kind in ("long", "short", "mixed"):
        assert found["portfolio_breach_closes", kind, "forecast"] < 0.008
    assert 0.001 < found["portfolio_breach", "long", "forecast"] < 0.012
    assert (
        found["portfolio_saving", "mixed", "forecast"] > 0.3 > found["portfolio_saving", "long", "forecast"]
    )
    # what the policy adds only ever asks for more
    for kind in ("long", "short", "mixed"):
        assert found["portfolio_saving", kind, "policy"] <= found["portfolio_saving", kind, "forecast"]
        assert found["portfolio_breach", kind, "policy"] <= found["portfolio_breach", kind, "forecast"]


@pytest.mark.slow
def test_a_scale_of_half_the_truth_is_breached_far_too_often() -> None:
    assert values(*simulated(0.8, scale=0.5))["portfolio_breach_closes", "long", "forecast"] > 0.05


def test_folds_of_books_are_pooled_by_their_number() -> None:
    one = MetricRow("portfolio_breach", "riskml", "1h", "long", "policy", 0.01, 0.005, 300)
    two = MetricRow("portfolio_breach", "riskml", "1h", "long", "policy", 0.03, 0.005, 100)
    other = MetricRow("portfolio_saving", "riskml", "1h", "mixed", "policy", 0.4, 0.0, 50)
    pooled = {row.metric: (row.value, row.n) for row in pool_books([[one, other], [two]])}
    assert pooled["portfolio_breach"] == (pytest.approx(0.015), 400)
    assert pooled["portfolio_saving"] == (pytest.approx(0.4), 50)
    assert pool_books([]) == []
