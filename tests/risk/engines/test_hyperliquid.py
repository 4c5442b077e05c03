"""Hyperliquid's tiers against hand-computed values of its published formulas."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines import engine_names, get_engine
from riskml.risk.engines.hyperliquid import liquidation_price, tier_table
from riskml.units import to_us

ALPHA, NOW = to_us("2023-03-01"), to_us("2025-09-01")


@pytest.mark.parametrize(
    ("symbol", "ts", "notional", "maintenance", "initial"),
    [
        ("BTC", ALPHA, 1e6, 1e4, 2e4),  # 50x: 1 %
        ("ARB", ALPHA, 1e6, 1e4, 2e4),
        ("BTC", NOW, 1e6, 12_500.0, 25_000.0),  # 40x: 1.25 %
        ("BTC", NOW, 150e6, 1_875_000.0, 7_500_000.0),
        ("BTC", NOW, 200e6, 200e6 * 0.025 - 1_875_000.0, 10_000_000.0),  # deduction 150M x 1.25 %
        ("ETH", NOW, 200e6, 200e6 / 30 - 100e6 * (1 / 30 - 1 / 50), 200e6 / 15),
        ("DOGE", NOW, 30e6, 30e6 * 0.1 - 20e6 * 0.05, 6e6),
        ("NEVERLISTED", NOW, 1e6, 50_000.0, 100_000.0),
    ],
)
def test_tiers_give_the_published_requirements(
    symbol: str, ts: int, notional: float, maintenance: float, initial: float
) -> None:
    table = tier_table(symbol, ts)
    assert table.maintenance_usd(np.array([notional]))[0] == pytest.approx(maintenance)
    assert table.initial_usd(np.array([notional]))[0] == pytest.approx(initial)


def test_maintenance_is_continuous_at_every_tier() -> None:
    for symbol in load_facts("hyperliquid_tiers")["symbol"]:
        table = tier_table(symbol, NOW)
        for bound in table.lower_usd[1:]:
            around = table.maintenance_usd(np.array([bound * (1 - 1e-12), bound]))
            assert around[0] == pytest.approx(around[1], rel=1e-9)


@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, (50_000 - 5_000) / (1 - 0.0125)), (-1.0, 55_000 / 1.0125)]
)
def test_at_the_liquidation_price_equity_equals_maintenance(size: float, expected: float) -> None:
    equity, price, rate = 5_000.0, 50_000.0, 0.0125
    found = liquidation_price(price, size, equity - rate * price, 1.0 / rate)
    assert found == pytest.approx(expected)
    assert equity + size * (found - price) == pytest.approx(rate * found)


def test_a_position_of_size_zero_has_no_liquidation_price() -> None:
    with pytest.raises(DataError, match="size 0 has no liquidation price"):
        liquidation_price(1.0, 0.0, 1.0, 40.0)


def test_the_engine_adds_up_positions_at_live_prices() -> None:
    book = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 0.0,
                "positions": [
                    {"venue": "hyperliquid", "symbol": "BTC", "size": 1.0, "mark_price": 40_000.0},
                    {"venue": "hyperliquid", "symbol": "ETH", "size": -10.0, "mark_price": 2_000.0},
                ],
            },
            {"account_id": "b", "cash_usd": 0.0},
        ]
    )
    margins = get_engine("hyperliquid").margins(book, {"BTC": 60_000.0}, NOW)
    assert margins.maintenance_usd.tolist() == [60_000.0 / 80 + 20_000.0 / 50, 0.0]
    assert margins.initial_usd.tolist() == [60_000.0 / 40 + 20_000.0 / 25, 0.0]


def test_an_unknown_engine_and_a_time_before_the_first_tiers_are_refused() -> None:
    assert engine_names() == ["hyperliquid"]
    with pytest.raises(ConfigError, match="there is no margin engine 'hyper'"):
        get_engine("hyper")
    with pytest.raises(ConfigError, match="no entry is in force at 2020-01-01"):
        tier_table("BTC", to_us("2020-01-01"))


def test_every_chain_and_asset_fact_is_dated_sourced_and_complete() -> None:
    chains = load_facts("chains")["chain"]
    assert {"ethereum", "arbitrum", "base", "optimism", "solana", "dydx", "hyperliquid"} <= chains.keys()
    for entries in chains.values():
        for entry in entries:
            assert {
                "valid_from",
                "finality_s",
                "transfer_s",
                "exit_s",
                "staleness_s",
                "source",
            } <= entry.keys()
    for asset in load_facts("assets")["asset"].values():
        assert ("market" in asset) != ("pegged_to" in asset)
        assert 0.0 <= asset["base_haircut"] < 1.0
