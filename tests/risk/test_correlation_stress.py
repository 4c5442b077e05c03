"""What a book loses at correlations 1 and 0, from what its legs lose alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from riskml.arrays import Float1D, Float2D, Float3D
from riskml.risk import MarginPolicy
from riskml.risk.excursion import quantile_table
from riskml.risk.law import unit_loss
from riskml.risk.margin import leg_extremes, stressed_loss

from .property_cases import (
    CASES,
    N_LEGS,
    assert_enough,
    assert_never_above,
    decide_on,
    make_law,
    random_forecast,
    random_legs,
)

RNG = np.random.default_rng(411)
LEVEL = quantile_table([0.995])[0]


def units(n_cases: int = CASES) -> Float3D:
    """What 1 USD needs alone, long and short [n_cases, N_LEGS, 2]."""
    sigma = 10.0 ** RNG.uniform(-3.0, -0.7, (n_cases, N_LEGS, 1, 2))
    nu = RNG.uniform(2.5, 12.0, (n_cases, N_LEGS, 1))
    return unit_loss(sigma, nu, LEVEL, np.ones(1))[:, :, 0]


def stressed(usd: Float2D, unit: Float3D) -> Float1D:
    parts = leg_extremes(usd, unit[..., 0], unit[..., 1])
    return stressed_loss(np.zeros(len(usd)), *(part.sum(axis=1) for part in parts))


def test_one_leg_loses_what_it_needs_alone() -> None:
    unit = units()
    usd = np.zeros((CASES, N_LEGS))
    usd[:, 0] = RNG.normal(size=CASES)
    wanted = np.abs(usd[:, 0]) * np.where(usd[:, 0] >= 0.0, unit[:, 0, 0], unit[:, 0, 1])
    np.testing.assert_allclose(stressed(usd, unit), wanted, rtol=1e-14)


def test_together_is_the_worse_of_a_fall_and_a_rise_of_every_market() -> None:
    unit = np.array([[[0.1, 0.2], [0.3, 0.5]]])
    # long 4, short 1: a fall costs .4 and gives .3; a rise gives .8 and costs .5; apart sqrt(.4^2 + .5^2)
    assert stressed(np.array([[4.0, -1.0]]), unit)[0] == np.hypot(0.4, 0.5)
    # long both: a fall costs .4 + .3, more than apart
    assert np.isclose(stressed(np.array([[4.0, 1.0]]), unit)[0], 0.7)
    # short both: a rise costs .8 + .5
    assert np.isclose(stressed(np.array([[-4.0, -1.0]]), unit)[0], 1.3)


def test_the_stress_is_convex_and_homogeneous_exactly_and_never_above_the_sum_of_the_legs() -> None:
    unit = units()
    one, two, part = (
        RNG.normal(size=(CASES, N_LEGS)),
        RNG.normal(size=(CASES, N_LEGS)),
        RNG.uniform(0.0, 1.0, CASES),
    )
    mixed = part[:, None] * one + (1.0 - part[:, None]) * two
    mean = part * stressed(one, unit) + (1.0 - part) * stressed(two, unit)
    assert_enough(assert_never_above(stressed(mixed, unit), mean, 1e-13 * mean))
    np.testing.assert_allclose(stressed(1e6 * one, unit), 1e6 * stressed(one, unit), rtol=1e-12)
    alone = np.sqrt(leg_extremes(one, unit[..., 0], unit[..., 1])[2]).sum(axis=1)
    assert_never_above(stressed(one, unit), alone, 1e-13 * alone)


def test_wider_legs_never_ask_for_less_apart_and_the_margin_counts_where_it_is_the_most() -> None:
    unit = units()
    usd = RNG.normal(size=(CASES, N_LEGS))
    squares = leg_extremes(usd, unit[..., 0], unit[..., 1])[2].sum(axis=1)
    wider = leg_extremes(usd, 1.1 * unit[..., 0], 1.1 * unit[..., 1])[2].sum(axis=1)
    assert_never_above(squares, wider)
    margin = 2.0 * stressed(usd, unit)
    parts = leg_extremes(usd, unit[..., 0], unit[..., 1])
    np.testing.assert_array_equal(stressed_loss(margin, *(part.sum(axis=1) for part in parts)), margin)


def test_more_stress_never_asks_for_less() -> None:
    forecast = random_forecast(RNG, CASES * N_LEGS)
    usd = random_legs(RNG, CASES)
    law = make_law("numpy")
    found = [
        decide_on(forecast, usd, MarginPolicy(correlation_stress=weight), law) for weight in (0.0, 0.5, 1.0)
    ]
    for less, more in pairwise(found):
        assert_enough(assert_never_above(less.initial_margin_usd, more.initial_margin_usd, 0.011))
        assert_never_above(less.maintenance_margin_usd, more.maintenance_margin_usd, 0.011)
    assert (found[2].initial_margin_usd > 1.01 * found[0].initial_margin_usd).mean() > 0.3
