"""Coverage of random books."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.learning.portfolio import Prices, draw_books, requirements, worst_losses
from riskml.learning.protocol import margin_distance, simple_requirement


def test_a_book_of_one_leg_needs_what_its_market_needs() -> None:
    sigma, nu, power = np.full((2, 1, 1, 2), 0.02), np.full((2, 1, 1), 4.0), np.ones(1)
    found = requirements(sigma, nu, np.full((2, 1, 2), 0.5), np.array([[1.0], [-1.0]]), power)
    expected = simple_requirement(margin_distance(sigma[0, 0], nu[0, 0], power))[0]
    np.testing.assert_allclose(found["forecast"][:, 0], expected, rtol=1e-6)


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
