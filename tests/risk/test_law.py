"""Properties of the account law on random books."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from riskml.risk.excursion import MAX_DISTANCE, quantile, quantile_table, survival
from riskml.risk.law import LawOutput, account_law

LEVELS = (0.995, 0.99)
POWER = np.array([1.0, 0.95, 1.05])
MARKETS = 6


def _market(rng: np.random.Generator) -> dict[str, Any]:
    base = rng.uniform(0.003, 0.015, (2, MARKETS, 1, 2)) * np.sqrt([1.0, 8.0, 24.0])[:, None]
    angle = rng.uniform(-0.7, 0.7, (MARKETS, 2))
    return {
        "sigma": base,
        "nu": rng.uniform(2.3, 9.0, (2, MARKETS, 3)),
        "loadings": angle,
        "quantile_table": quantile_table(LEVELS),
    }


def _book(rng: np.random.Generator, accounts: int, legs: int, *, side: int = 0) -> dict[str, Any]:
    weight = rng.normal(size=(accounts, legs))
    weight = np.abs(weight) * side if side else weight
    return {
        "leg_market": rng.integers(0, MARKETS, (accounts, legs)),
        "leg_weight": weight / np.abs(weight).sum(axis=1, keepdims=True),
        "leg_mm_rate": rng.uniform(0.0, 0.05, (accounts, legs)),
        "buffer_ratio": 10.0 ** rng.uniform(-2.5, -0.3, accounts),
    }


def _law(book: dict[str, Any], market: dict[str, Any]) -> LawOutput:
    return account_law(**book, **market, power=POWER)


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.sampled_from([-1, 1]))
@settings(max_examples=40, deadline=None)
def test_one_leg_is_the_single_market_law(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    market, book = _market(rng), _book(rng, 1, 1, side=side)
    out, of = _law(book, market), int(book["leg_market"][0, 0])
    sigma, nu = market["sigma"][0, of, :, 0 if side > 0 else 1], market["nu"][0, of]
    np.testing.assert_allclose(out.scale[0, 0], sigma, rtol=1e-12)
    stake = side - float(book["leg_mm_rate"][0, 0])
    move = -side * np.log(1.0 - book["buffer_ratio"][0] / stake)
    z = move / sigma
    np.testing.assert_allclose(out.distance[0], z, rtol=1e-6)
    np.testing.assert_allclose(
        out.liquidation_probability[0], np.maximum.accumulate(survival(z**POWER, nu)), rtol=1e-5
    )
    level = quantile(0.995, nu) ** (1.0 / POWER)
    loss = np.maximum.accumulate(side * (1.0 - np.exp(-side * level * sigma)))
    np.testing.assert_allclose(out.margin_ratio[0, 0, :, 0], loss, rtol=1e-4)


@given(seeds, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_shares_sum_to_one_and_are_the_slope_of_the_scale(seed: int, legs: int) -> None:
    rng = np.random.default_rng(seed)
    market, book = _market(rng), _book(rng, 3, legs)
    out = _law(book, market)
    np.testing.assert_allclose(out.contribution.sum(axis=1), 1.0, atol=1e-9)
    step = 1e-6
    for leg in range(legs):
        bumped = {**book, "leg_weight": book["leg_weight"].copy()}
        bumped["leg_weight"][:, leg] *= 1.0 + step
        slope = (_law(bumped, market).scale[:, 0] / out.scale[:, 0] - 1.0) / step
        np.testing.assert_allclose(slope, out.contribution[:, leg], atol=2e-4)


@given(seeds, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_padding_leg_order_and_unrelated_markets_change_nothing(seed: int, legs: int) -> None:
    rng = np.random.default_rng(seed)
    market, book = _market(rng), _book(rng, 4, legs)
    out = _law(book, market)
    order = rng.permutation(legs)
    shuffled = {key: value[:, order] if value.ndim == 2 else value for key, value in book.items()}
    padded = {
        key: np.pad(value, ((0, 0), (0, 3))) if value.ndim == 2 else value for key, value in book.items()
    }
    wild = {key: value.copy() for key, value in market.items()}
    for name, axis in (("sigma", 1), ("nu", 1), ("loadings", 0)):
        extra = np.take(wild[name], [0, 1], axis=axis) * (50.0 if name == "sigma" else 1.0)
        wild[name] = np.concatenate([wild[name], extra], axis=axis)
    for other in (_law(shuffled, market), _law(padded, market), _law(book, wild)):
        for name in (
            "liquidation_probability",
            "distance",
            "margin_ratio",
            "scale",
        ):
            np.testing.assert_allclose(
                getattr(other, name), getattr(out, name), rtol=1e-6, atol=1e-12, err_msg=name
            )


def test_a_book_scored_whole_and_account_by_account_is_the_same() -> None:
    rng = np.random.default_rng(3)
    market, book = _market(rng), _book(rng, 50, 5)
    whole = _law(book, market)
    for row in range(50):
        one = _law({key: value[row : row + 1] for key, value in book.items()}, market)
        np.testing.assert_allclose(
            one.liquidation_probability[0], whole.liquidation_probability[row], rtol=1e-9
        )
        np.testing.assert_allclose(one.margin_ratio[0], whole.margin_ratio[row], rtol=1e-9)


@given(seeds, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_probability_and_margin_never_fall_with_a_longer_horizon(seed: int, legs: int) -> None:
    rng = np.random.default_rng(seed)
    market = _market(rng)
    market["sigma"] = rng.permuted(market["sigma"], axis=2)  # horizons out of order
    out = _law(_book(rng, 5, legs), market)
    assert np.all(np.diff(out.liquidation_probability, axis=1) >= 0.0)
    assert np.all(np.diff(out.distance, axis=1) <= 0.0)
    assert np.all(np.diff(out.margin_ratio, axis=2) >= 0.0)
    assert np.all(out.margin_ratio[..., 0] >= out.margin_ratio[..., 1])


@given(seeds, st.sampled_from([-1, 1]))
@settings(max_examples=30, deadline=None)
def test_probability_at_the_margin_is_one_minus_the_level(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    market, book = _market(rng), _book(rng, 1, 1, side=side)
    book["leg_mm_rate"][:] = 0.0
    margin = _law(book, market).margin_ratio[0, 0, 0, 0]
    out = _law({**book, "buffer_ratio": np.array([margin])}, market)
    assert out.liquidation_probability[0, 0] == pytest.approx(0.005, rel=1e-4)


@given(seeds, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_more_buffer_never_raises_the_probability(seed: int, legs: int) -> None:
    rng = np.random.default_rng(seed)
    market, book = _market(rng), _book(rng, 1, legs)
    last = np.ones(3)
    for buffer in (-0.1, 0.0, 1e-4, 0.01, 0.05, 0.2, 0.6):
        found = _law({**book, "buffer_ratio": np.array([buffer])}, market).liquidation_probability[0]
        assert np.all(found <= last + 1e-12)
        last = found


@given(seeds, st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_the_scale_is_convex_and_homogeneous(seed: int, legs: int) -> None:
    rng = np.random.default_rng(seed)
    market, one, two = _market(rng), _book(rng, 6, legs), _book(rng, 6, legs)
    two["leg_market"] = one["leg_market"]
    middle = {**one, "leg_weight": one["leg_weight"] + two["leg_weight"]}
    scales = [_law(book, market).scale for book in (one, two, middle)]
    assert np.all(scales[2] <= (scales[0] + scales[1]) * (1.0 + 1e-12))
    triple = {**one, "leg_weight": 3.0 * one["leg_weight"]}
    np.testing.assert_allclose(_law(triple, market).scale, 3.0 * scales[0], rtol=1e-12)


@pytest.mark.parametrize("side", [-1, 0, 1])
def test_the_barrier_is_the_first_root_of_the_exact_equation(side: int) -> None:
    rng = np.random.default_rng(11)
    market, book = _market(rng), _book(rng, 60, 5, side=side)
    out, step = _law(book, market), 1e-7
    weight = book["leg_weight"]
    stake = weight - book["leg_mm_rate"] * np.abs(weight)
    compared = 0
    for row in range(60):
        one = {key: value[row : row + 1] for key, value in book.items()}
        slope = np.empty(5)
        for leg in range(5):
            bumped = {**one, "leg_weight": one["leg_weight"].copy()}
            bumped["leg_weight"][0, leg] += step
            slope[leg] = (_law(bumped, market).scale[0, 0, 0] - out.scale[row, 0, 0]) / step

        def excess(z: float, row: int = row, slope: np.ndarray = slope) -> float:
            return float(np.sum(stake[row] * (1.0 - np.exp(-z * slope))) - book["buffer_ratio"][row])

        grid = np.linspace(0.0, 40.0, 400)
        above = [z for z in grid if excess(float(z)) > 0.0]
        if above:
            root = brentq(excess, 0.0, float(above[0]))
            assert out.distance[row, 0] == pytest.approx(root, rel=1e-4)
            compared += 1
    assert compared > 25


def test_no_root_means_unreachable_and_no_buffer_means_certain() -> None:
    market = _market(np.random.default_rng(0))
    book = {
        "leg_market": np.zeros((3, 1), dtype=np.int64),
        "leg_weight": np.array([[1.0], [1.0], [0.0]]),
        "leg_mm_rate": np.zeros((3, 1)),
        "buffer_ratio": np.array([1.5, 0.0, 1.0]),  # a long cannot lose more than its value
    }
    out = _law(book, market)
    assert out.distance[:, 0].tolist() == [MAX_DISTANCE, 0.0, MAX_DISTANCE]
    assert out.liquidation_probability[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert np.all(np.isfinite(out.contribution))


def _cancelled_book(rng: np.random.Generator, accounts: int, legs: int) -> dict[str, Any]:
    """Books in which collateral in the same market nearly cancels some of the positions."""
    held = rng.normal(size=(accounts, legs))
    left = np.where(rng.random((accounts, legs)) < 0.4, 10.0 ** rng.uniform(-4.0, 0.0, held.shape), 1.0)
    weight = held * left
    maintenance = np.abs(held) * rng.uniform(0.0, 0.3, (accounts, 1))
    return {
        "leg_market": np.arange(accounts * legs).reshape(accounts, legs),
        "leg_weight": weight / np.abs(weight).sum(axis=1, keepdims=True),
        "leg_mm_rate": maintenance / np.abs(weight),
        "buffer_ratio": 10.0 ** rng.uniform(-2.5, -0.3, accounts),
    }


def test_a_loss_that_falls_at_first_is_never_said_to_be_further_than_it_is_nor_to_be_here() -> None:
    rng = np.random.default_rng(2)
    accounts, legs = 20_000, 4
    book, n_markets = _cancelled_book(rng, accounts, legs), accounts * legs
    scale = np.exp(rng.uniform(np.log(0.002), np.log(0.03), (1, n_markets, 1, 2)))
    market = {
        "sigma": scale,
        "nu": np.full((1, n_markets, 1), 3.7),
        "loadings": rng.uniform(-0.7, 0.7, (n_markets, 2)),
        "quantile_table": quantile_table(LEVELS),
    }
    out = account_law(**book, **market)
    weight = book["leg_weight"]
    stake = weight - book["leg_mm_rate"] * np.abs(weight)
    # The slope of the scale, from its Euler shares.
    slope = out.contribution[:, :, 0] * out.scale[:, 0] / weight
    rows = np.flatnonzero((stake * slope).sum(axis=1) <= 0.0)
    assert len(rows) > 100
    near = np.full(len(rows), MAX_DISTANCE)  # first root, from below, on a grid
    grid = np.concatenate([np.linspace(0.0, 50.0, 5_001), np.geomspace(50.0, 1e5, 2_000)])
    for place, row in enumerate(rows):
        loss = stake[row] @ (1.0 - np.exp(np.minimum(-slope[row][:, None] * grid, 60.0)))
        hit = np.flatnonzero(loss >= book["buffer_ratio"][row])
        if len(hit):
            near[place] = grid[hit[0]]
    found = out.distance[rows, 0]
    assert (near < MAX_DISTANCE).sum() > 80
    assert (found <= near * (1.0 + 1e-3)).all()
    # Until now nearly all of them were at 0, where p is 1; the nearest root is beyond 5 scales.
    assert near.min() > 5.0
    assert np.median(out.liquidation_probability[rows, 0]) < 1e-3
    assert (out.liquidation_probability[rows, 0] > 0.99).mean() < 0.01


def test_an_unknown_number_in_a_book_stays_unknown() -> None:
    rng = np.random.default_rng(5)
    market, book = _market(rng), _book(rng, 3, 4)
    for name in ("leg_weight", "leg_mm_rate"):
        broken = {key: value.copy() for key, value in book.items()}
        broken[name][1, 2] = np.nan
        out, whole = _law(broken, market), _law(book, market)
        assert np.isnan(out.distance[1]).all()
        assert np.isnan(out.liquidation_probability[1]).all()
        np.testing.assert_array_equal(out.distance[[0, 2]], whole.distance[[0, 2]])
