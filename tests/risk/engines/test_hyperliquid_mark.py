"""Hyperliquid's mark price against a slow median, and values worked out by hand."""

from __future__ import annotations

import math
import random
from statistics import median

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk.engines.hyperliquid_liquidation import mark_price, update_average, weighted_median

from .test_hyperliquid import MARK

WEIGHTS = dict(MARK.perp_weight)


def slow_weighted_median(prices: dict[str, float]) -> float:
    """The plain median of a list that holds each price as often as its weight says."""
    return median([price for name, price in prices.items() for _ in range(int(WEIGHTS[name]))])


def slow_mark(oracle: float, gap: float, book: list[float], perps: dict[str, float], average: float) -> float:
    found = [] if math.isnan(oracle + gap) else [oracle + gap]
    found += [] if any(math.isnan(price) for price in book) else [sorted(book)[1]]
    known = {name: price for name, price in perps.items() if not math.isnan(price)}
    found += [slow_weighted_median(known)] if known else []
    if len(found) == 2 and not math.isnan(average):
        found.append(average)
    return median(found)


def mark_vectors() -> list[tuple[float, float, list[float], dict[str, float], float]]:
    rng, found = random.Random(17), []
    for number in range(120):
        perps = {name: round(rng.gauss(100, 3), 2) for name in WEIGHTS if rng.random() < 0.7}
        book = [round(rng.gauss(100, 3), 2) for _ in range(3)]
        oracle, average = round(rng.gauss(100, 3), 2), round(rng.gauss(100, 3), 2)
        if number % 3 == 1:
            oracle = math.nan
        if number % 4 == 1:
            book[number % 3] = math.nan
        if number % 5 == 1:
            average = math.nan
        if math.isnan(oracle + sum(book)) and not perps:
            perps = {"okx": 99.0}
        found.append((oracle, round(rng.gauss(0, 1), 2), book, perps, average))
    return found


@pytest.mark.parametrize(("oracle", "gap", "book", "perps", "average"), mark_vectors())
def test_the_mark_is_the_median_of_what_exists(
    oracle: float, gap: float, book: list[float], perps: dict[str, float], average: float
) -> None:
    found = mark_price(
        np.array([oracle]),
        np.array([gap]),
        np.array([book]),
        {name: np.array([price]) for name, price in perps.items()},
        np.array([average]),
        MARK,
    )
    assert found[0] == pytest.approx(slow_mark(oracle, gap, book, perps, average), rel=1e-12)


def test_the_mark_by_hand_and_of_many_markets_at_once() -> None:
    # 1: oracle 100 + 1, book 103, perps: binance (3 of 9) 102, the rest 104 -> 104; median 103.
    # 2: no perp: 101, 103 and the book's 30 s average of 90 -> 101.
    # 3: only perps, 2 of 2 weights each side: the mean of 10 and 20.
    nothing = math.nan
    found = mark_price(
        np.array([100.0, 100.0, nothing]),
        np.ones(3),
        np.array([[103.0, 105.0, 99.0], [103.0, 105.0, 99.0], [nothing, 1.0, 1.0]]),
        {
            "binance": np.array([102.0, nothing, nothing]),
            "okx": np.array([104.0, nothing, 10.0]),
            "bybit": np.array([104.0, nothing, 20.0]),
            "gate": np.array([104.0, nothing, nothing]),
            "mexc": np.array([104.0, nothing, nothing]),
        },
        np.array([90.0, 90.0, nothing]),
        MARK,
    )
    assert found.tolist() == [103.0, 101.0, 15.0]


def test_a_mark_of_nothing_and_an_exchange_without_a_weight_are_refused() -> None:
    empty = np.array([np.nan])
    with pytest.raises(DataError, match="needs an oracle, a book or a perp price"):
        mark_price(empty, empty, np.full((1, 3), np.nan), {}, np.array([5.0]), MARK)
    with pytest.raises(DataError, match="'kraken' has no weight"):
        mark_price(empty, empty, np.full((1, 3), np.nan), {"kraken": np.ones(1)}, empty, MARK)


def test_a_weighted_median_is_that_of_repeated_prices() -> None:
    rng = random.Random(9)
    rows = [[float(rng.randrange(5)) for _ in WEIGHTS] for _ in range(100)]
    found = weighted_median(np.array(rows), np.array(list(WEIGHTS.values())))
    assert found.tolist() == [slow_weighted_median(dict(zip(WEIGHTS, row, strict=True))) for row in rows]
    assert np.isnan(weighted_median(np.full((1, 5), np.nan), np.ones(5))).all()


def test_the_average_follows_its_recursion_and_forgets_over_its_window() -> None:
    rng, numerator, denominator = random.Random(6), np.zeros(2), np.zeros(2)
    slow = [[0.0, 0.0], [0.0, 0.0]]
    for _ in range(50):
        sample, elapsed = [rng.gauss(5, 1), rng.gauss(-5, 1)], [rng.uniform(0.5, 9), 3.0]
        numerator, denominator = update_average(
            numerator, denominator, np.array(sample), np.array(elapsed), MARK.mid_window_s
        )
        for row in range(2):
            keep = math.exp(-elapsed[row] / 150.0)
            slow[row] = [slow[row][0] * keep + sample[row] * elapsed[row], slow[row][1] * keep + elapsed[row]]
    assert (numerator / denominator).tolist() == pytest.approx([n / d for n, d in slow], rel=1e-12)
    # One sample of 8 for one window after a long past of 0: d = D / e + 150, so 8 x 150 / (D / e + 150).
    found = update_average(np.zeros(1), np.full(1, 150.0), np.full(1, 8.0), np.full(1, 150.0), 150.0)
    assert (found[0] / found[1])[0] == pytest.approx(8 / (1 / math.e + 1))
