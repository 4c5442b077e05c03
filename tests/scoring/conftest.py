"""A tiny bundle, markets to feed it and a book to score, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from riskml.scoring import AccountBook, Scorer
from riskml.units import HOUR, to_us

START = to_us("2024-02-01")
SYMBOLS = ("BTC", "ETH", "SOL")
N_HISTORY = 400
PRICES = {"BTC": 50_000.0, "ETH": 2_500.0, "SOL": 100.0, "NEW": 10.0}


@pytest.fixture(scope="session")
def tiny_bundle(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder; tests that damage one work on a copy."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    maker.make_tiny_bundle(path)
    return path


@dataclass
class Feed:
    """Rows of a simulated market, slot by slot."""

    tables: dict[str, dict[str, np.ndarray]]

    def rows(self, table: str, first: int, last: int | None = None) -> dict[str, np.ndarray]:
        """Rows whose slot lies in [first, last]; one slot when ``last`` is absent."""
        columns = self.tables[table]
        slot = (columns["ts"] - START) // HOUR
        keep = (slot >= first) & (slot <= (first if last is None else last))
        return {name: values[keep] for name, values in columns.items()}

    def observe(self, scorer: Scorer, first: int, last: int | None = None) -> None:
        """Show the scorer every table's rows of the slots."""
        for table in self.tables:
            scorer.observe(table, self.rows(table, first, last))


def slot(number: int) -> int:
    """Close of a slot, microseconds."""
    return START + number * HOUR


def _market(symbol: str, n_bars: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    volatility = 0.005 * np.exp(0.5 * np.sin(np.arange(n_bars) / 40 + seed))
    close = PRICES[symbol] * np.exp(np.cumsum(random.normal(0.0, volatility)))
    open_ = np.concatenate([[PRICES[symbol]], close[:-1]])
    spread = np.abs(random.normal(0.0, 0.6, size=(2, n_bars))) * volatility
    ts = slot(0) + HOUR * np.arange(n_bars)
    volume = random.lognormal(3.0, 0.5, n_bars)
    return {
        "ts": ts,
        "known_at": ts,
        "venue": np.full(n_bars, "sim"),
        "symbol": np.full(n_bars, symbol),
        "interval": np.full(n_bars, "1h"),
        "open": open_,
        "high": np.maximum(open_, close) * np.exp(spread[0]),
        "low": np.minimum(open_, close) * np.exp(-spread[1]),
        "close": close,
        "volume": volume,
        "taker_buy_volume": volume * random.uniform(0.3, 0.7, n_bars),
    }


def _joined(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_feed(symbols: tuple[str, ...] = SYMBOLS, n_bars: int = N_HISTORY + 60) -> Feed:
    """Bars of every hour, funding every eighth, open interest hourly; the same every time."""
    bars = _joined([_market(symbol, n_bars, seed) for seed, symbol in enumerate(symbols)])
    random = np.random.default_rng(99)
    n_rows = len(bars["ts"])
    keys = {name: bars[name] for name in ("ts", "known_at", "venue", "symbol")}
    paid = (bars["ts"] // HOUR) % 8 == 0
    funding = {name: values[paid] for name, values in keys.items()} | {
        "rate": random.normal(1e-4, 5e-5, paid.sum()),
        "interval_h": np.full(paid.sum(), 8.0),
    }
    interest = keys | {"open_interest": random.lognormal(8.0, 0.1, n_rows)}
    return Feed({"bars": bars, "funding": funding, "open_interest": interest})


@pytest.fixture(scope="session")
def feed() -> Feed:
    return make_feed()


@pytest.fixture
def make_warm(tiny_bundle: Path, feed: Feed) -> Callable[..., Scorer]:
    """Makes a scorer that has closed the first ``N_HISTORY`` slots of the feed."""

    def make(of: Feed = feed, **options: Any) -> Scorer:
        scorer = Scorer.load(tiny_bundle, **options)
        of.observe(scorer, 0, N_HISTORY - 1)
        scorer.close_bar(slot(N_HISTORY - 1))
        return scorer

    return make


@pytest.fixture
def warm(make_warm: Callable[..., Scorer]) -> Scorer:
    return make_warm()


def position(symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    """A position of about ``usd`` at the feed's first prices."""
    mark = PRICES[symbol]
    return {
        "venue": "sim",
        "symbol": symbol,
        "size": usd / mark,
        "mark_price": mark,
        "entry_price": mark,
    } | more


@pytest.fixture(scope="session")
def book() -> AccountBook:
    """Long, short, hedged, isolated, with volatile collateral, and without a position."""
    usdc = {"chain": "ethereum", "asset": "USDC", "price_usd": 1.0}
    ether = {"chain": "ethereum", "asset": "ETH", "amount": 2.0, "price_usd": PRICES["ETH"]}
    accounts = [
        ("long", 2_000.0, [position("BTC", 10_000.0)], []),
        ("short", 0.0, [position("SOL", -8_000.0)], [usdc | {"amount": 2_500.0}]),
        ("hedged", 500.0, [position("BTC", 9_000.0), position("ETH", -5_000.0)], [usdc | {"amount": 800.0}]),
        (
            "isolated",
            4_000.0,
            [position("ETH", 5_000.0, margin_mode="isolated", isolated_margin_usd=900.0)],
            [],
        ),
        ("pledged", 100.0, [position("ETH", -4_000.0)], [ether]),
    ]
    return AccountBook.from_dicts(
        [
            {"account_id": name, "cash_usd": cash, "positions": positions, "collateral": collateral}
            for name, cash, positions, collateral in accounts
        ]
    )
