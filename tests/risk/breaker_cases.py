"""Random books and one engine for the tests of orders and deleveraging."""

from __future__ import annotations

from typing import Any

import numpy as np

from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law
from riskml.units import to_us

TS = to_us("2024-05-01")
HORIZONS = ("1h", "8h", "24h")
PRICES = {"BTC": 60_000.0, "ETH": 3_000.0, "SOL": 150.0}
MARKETS = tuple(PRICES)
LAW = numpy_law(np.ones(3))
POLICY = MarginPolicy()


def make_forecast(scale: float = 1.0) -> Forecast:
    base = scale * np.array([0.004, 0.005, 0.008])[:, None] * np.sqrt([1.0, 8.0, 24.0])
    return Forecast(
        ts=TS,
        markets=MARKETS,
        horizons=HORIZONS,
        sigma=np.stack([1.1 * base, base], axis=-1),
        nu=np.full((3, 3), 3.7),
        variance=base**2,
        stress=np.full((3, 3), 0.01),
        loadings=np.array([[0.8, 0.0], [0.85, 0.1], [0.7, 0.3]]),
        degraded=np.zeros(3, dtype=np.bool_),
        venues=("hyperliquid",) * 3,
    )


FORECAST = make_forecast()


def score(book: AccountBook, **more: Any) -> Decisions:
    return decide(book, FORECAST, POLICY, law=LAW, ts=TS, **more)


def position(symbol: str, usd: float, *, venue: str = "sim", **more: Any) -> dict[str, Any]:
    price = PRICES.get(symbol, 2.0)
    return {"venue": venue, "symbol": symbol, "size": usd / price, "mark_price": price, **more}


def account(name: str, cash: float, *positions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"account_id": name, "cash_usd": cash, "positions": list(positions), **more}


def random_account(rng: np.random.Generator, name: str, *, cushion: tuple[float, float]) -> dict[str, Any]:
    """An account whose cross equity is some multiple, drawn from ``cushion``, of 8 % of its gross."""
    positions, gross = [], 0.0
    for symbol in (*MARKETS, "NEW"):
        for venue in ("sim", "hyperliquid"):
            if rng.random() > 0.45:
                continue
            usd = float(rng.normal() * rng.choice([4_000.0, 60_000.0]))
            more: dict[str, Any] = {"entry_price": PRICES.get(symbol, 2.0) * float(rng.uniform(0.97, 1.03))}
            if rng.random() < 0.25:
                margin = 0.08 * abs(usd) * float(rng.uniform(*cushion))
                more |= {"margin_mode": "isolated", "isolated_margin_usd": margin}
            else:
                gross += abs(usd)
            positions.append(position(symbol, usd, venue=venue, **more))
    cash = 0.08 * gross * float(rng.uniform(*cushion))
    collateral = [{"chain": "arbitrum", "asset": "USDC", "amount": 0.3 * cash, "price_usd": 1.0}]
    return account(name, 0.7 * cash, *positions, collateral=collateral if rng.random() < 0.5 else [])
