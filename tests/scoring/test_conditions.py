"""Pegs, chain stress and liquidity as read from observed rows."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.features.series import SeriesStore
from riskml.scoring.conditions import conditions_at, liquidity_at
from riskml.units import DAY, to_us

NOW = to_us("2024-06-01")


def pegs(*rows: tuple[str, float, float]) -> SeriesStore:
    store = SeriesStore()
    for venue, price, redemption in rows:
        store.append(
            "pegs",
            {
                "ts": np.array([NOW - DAY]),
                "known_at": np.array([NOW - DAY]),
                "venue": ["v" + venue],
                "asset": ["USDC"],
                "price_usd": np.array([price]),
                "redemption_usd": np.array([redemption]),
            },
        )
    return store


@pytest.mark.parametrize(
    ("rows", "price"),
    [
        ([("a", 0.9, np.nan), ("b", 0.999, np.nan)], 0.999),
        ([("a", 0.9, np.nan)], 0.9),
        ([("a", 0.88, 0.9), ("b", 0.99, 0.9)], 0.88),
    ],
)
def test_the_venue_closest_to_redemption_gives_the_peg(
    rows: list[tuple[str, float, float]], price: float
) -> None:
    assert conditions_at(pegs(*rows), NOW).peg_price_usd == {"USDC": price}


def test_nothing_is_known_before_it_was_known() -> None:
    assert conditions_at(pegs(("a", 0.9, np.nan)), NOW - 2 * DAY).peg_price_usd == {}


def flows(nets: list[float], last_age_days: int = 0) -> SeriesStore:
    store = SeriesStore()
    ts = NOW - DAY * (np.arange(len(nets))[::-1] + last_age_days)
    net = np.array(nets)
    store.append(
        "flows",
        {
            "ts": ts,
            "known_at": ts,
            "chain": np.full(len(nets), "arbitrum"),
            "asset": np.full(len(nets), "ALL"),
            "source": np.full(len(nets), "bridge"),
            "inflow_usd": np.maximum(net, 0.0),
            "outflow_usd": np.maximum(-net, 0.0),
        },
    )
    return store


def test_chain_stress_rises_with_outflow_and_with_the_age_of_its_data() -> None:
    usual = [1.0, -1.0] * 10
    calm = conditions_at(flows([*usual, 0.0]), NOW).chain_stress["arbitrum"]
    run = conditions_at(flows([*usual, -8.0]), NOW).chain_stress["arbitrum"]
    silent = conditions_at(flows([*usual, 0.0], last_age_days=4), NOW).chain_stress["arbitrum"]
    assert calm < 0.1
    assert run > 0.9
    assert silent == 1.0


def test_open_interest_is_summed_over_venues_and_held() -> None:
    store = SeriesStore()
    for venue, base, usd in (("a", 2.0, np.nan), ("b", np.nan, 500.0)):
        store.append(
            "open_interest",
            {
                "ts": np.array([DAY]),
                "known_at": np.array([DAY]),
                "venue": [venue],
                "symbol": ["BTC"],
                "open_interest": np.array([base]),
                "open_interest_usd": np.array([usd]),
            },
        )
    assert liquidity_at(store, {"BTC": 100.0}, NOW) == {"BTC": 700.0}
    assert liquidity_at(store, {}, NOW) == {"BTC": 500.0}
    assert liquidity_at(store, {"BTC": 100.0}, 0) == {}
