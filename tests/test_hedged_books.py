"""The script of the hedged books: what a correlation flip does to a book."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from riskml.learning.portfolio import Prices

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
    history, prices = market()
    return script.flipped(books(script, weight), history, prices, kind, 1, np.random.default_rng(0))


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
    losses = [
        script.flipped(each, history, prices, "one", 0, np.random.default_rng(0)) for each in (small, large)
    ]
    np.testing.assert_allclose(np.log1p(-losses[1]), 2.0 * np.log1p(-losses[0]))


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
