"""Open orders: their worst fills are in the initial margin, and in nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law, reason_names
from riskml.units import to_us

TS = to_us("2024-05-01")
PRICES = {"BTC": 60_000.0, "ETH": 3_000.0, "NEW": 2.0}
PLAIN = MarginPolicy(initial_floor=0.0, floor=0.0)
BASE = np.array([0.004, 0.005])[:, None] * np.sqrt([1.0, 8.0, 24.0])
FORECAST = Forecast(
    TS,
    ("BTC", "ETH"),
    ("1h", "8h", "24h"),
    np.stack([BASE, BASE], axis=-1),
    np.full((2, 3), 3.7),
    BASE**2,
    np.full((2, 3), 0.01),
    np.array([[0.8, 0.0], [0.85, 0.1]]),
    np.zeros(2, dtype=np.bool_),
)


def _row(symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    return {"venue": "sim", "symbol": symbol, "size": usd / PRICES[symbol]} | more


def _position(symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    return _row(symbol, usd, mark_price=PRICES[symbol], **more)


def _order(symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    return _row(symbol, usd, price=PRICES[symbol], **more)


def _decide(positions: list[dict[str, Any]], orders: list[dict[str, Any]], **more: Any) -> Decisions:
    account = {"account_id": "a", "cash_usd": 5_000.0, "positions": positions, "orders": orders}
    book = AccountBook.from_dicts([account | more])
    return decide(book, FORECAST, PLAIN, law=numpy_law(np.ones(3)), ts=TS)


def _initial(positions: list[dict[str, Any]], orders: list[dict[str, Any]] | None = None) -> float:
    return float(_decide(positions, orders or []).initial_margin_usd[0])


def test_an_order_that_opens_is_margined_as_the_position_it_would_open() -> None:
    decisions = _decide([], [_order("BTC", 10_000.0)])
    assert decisions.initial_margin_usd[0] == pytest.approx(_initial([_position("BTC", 10_000.0)]), rel=1e-4)
    assert decisions.maintenance_margin_usd[0] == 0.0
    assert decisions.liquidation_probability[0].max() == 0.0
    assert "open-orders" in reason_names(int(decisions.reasons[0]))


def test_an_order_that_adds_counts_in_full_and_changes_no_probability() -> None:
    held = [_position("BTC", 10_000.0)]
    with_order = _decide(held, [_order("BTC", 5_000.0)])
    assert with_order.initial_margin_usd[0] == pytest.approx(1.5 * _initial(held), rel=1e-4)
    without = _decide(held, [])
    np.testing.assert_array_equal(with_order.liquidation_probability, without.liquidation_probability)
    np.testing.assert_array_equal(with_order.maintenance_margin_usd, without.maintenance_margin_usd)


@pytest.mark.parametrize(
    "order",
    [
        _order("BTC", -10_000.0),
        _order("BTC", -4_000.0),
        _order("BTC", 9_000.0, reduce_only=True),
        _order("BTC", 0.0),
    ],
)
def test_an_order_that_can_only_close_a_lone_position_costs_nothing(order: dict[str, Any]) -> None:
    held = [_position("BTC", 10_000.0)]
    decisions = _decide(held, [order])
    assert decisions.initial_margin_usd[0] == pytest.approx(_initial(held), abs=0.011)
    assert "open-orders" not in reason_names(int(decisions.reasons[0]))


def test_an_order_that_closes_a_hedge_is_margined() -> None:
    hedged = [_position("BTC", 10_000.0), _position("ETH", -10_000.0)]
    closing = _initial(hedged, [_order("ETH", 10_000.0)])
    assert closing > _initial(hedged)
    assert closing >= _initial(hedged[:1])


def test_orders_on_both_sides_count_by_the_worse_one() -> None:
    both = _initial([], [_order("BTC", 10_000.0), _order("BTC", -10_000.0)])
    worse = max(_initial([], [_order("BTC", side * 10_000.0)]) for side in (1.0, -1.0))
    assert both == pytest.approx(worse)


def test_an_order_in_an_unknown_market_is_margined_on_the_unknown_scale() -> None:
    assert _initial([], [_order("NEW", 1_000.0)]) > 3.0 * _initial([], [_order("BTC", 1_000.0)])
    reasons = reason_names(int(_decide([], [_order("NEW", 1_000.0)]).reasons[0]))
    assert "unknown-market" in reasons


def test_an_order_on_an_isolated_position_does_not_net_with_the_cross_pool() -> None:
    short = _position("ETH", -9_000.0)
    alone = _position("BTC", 9_000.0, margin_mode="isolated", isolated_margin_usd=900.0)
    order = _order("BTC", 9_000.0)
    assert _initial([short, alone], [order]) >= _initial([short]) + 1.99 * _initial(
        [_position("BTC", 9_000.0)]
    )


def test_an_account_whose_orders_are_not_covered_is_restricted() -> None:
    decisions = _decide([], [_order("BTC", 500_000.0)])
    assert decisions.to_dicts()[0]["action"] == "restrict"
    assert "equity-below-initial" in reason_names(int(decisions.reasons[0]))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_no_set_of_fills_asks_for_more_than_was_asked_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = list(PRICES)
    usd = {name: float(rng.normal() * 5_000.0) for name in names if rng.random() < 0.7}
    orders = [(str(rng.choice(names)), float(rng.normal() * 4_000.0)) for _ in range(rng.integers(1, 5))]
    before = _initial(
        [_position(name, value) for name, value in usd.items()],
        [_order(name, value) for name, value in orders],
    )
    filled = dict(usd)
    for name, value in orders:
        if rng.random() < 0.7:
            filled[name] = filled.get(name, 0.0) + value
    # 3 %: losses are exponential in the move, so the requirement is convex to first order only.
    assert _initial([_position(name, value) for name, value in filled.items()]) <= 1.03 * before + 0.02
