"""Small literal tables that the tests of the lake share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from riskml.tables.lake import Lake
from riskml.units import HOUR, to_us

T0 = to_us("2024-01-01")
STRESS = ("stress", "stress_liquidation", "stress_depth")


def times(values: Sequence[int]) -> pa.Array:
    """int64 microseconds as contract timestamps."""
    return pa.array(values, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def bars(
    closes: Sequence[float],
    *,
    symbol: str = "BTC",
    venue: str = "binance",
    interval: str = "1h",
    start: int = T0 + HOUR,
    step: int = HOUR,
    **columns: Any,
) -> pa.Table:
    """Bars of one market from their closes; every other column follows or is given."""
    close = np.asarray(closes, float)
    ts = start + step * np.arange(len(close))
    rows: dict[str, Any] = {
        "ts": times(ts),
        "known_at": times(ts),
        "venue": [venue] * len(close),
        "symbol": [symbol] * len(close),
        "interval": [interval] * len(close),
        "open": close,
        "high": close + 1.0,
        "low": close - 1.0,
        "close": close,
        "volume": np.full(len(close), 5.0),
    }
    return pa.table(rows | columns)


def funding(rates: Sequence[float], *, symbol: str = "BTC", venue: str = "binance") -> pa.Table:
    """8 h funding of one market."""
    ts = T0 + 8 * HOUR * np.arange(len(rates))
    return pa.table(
        {
            "ts": times(ts),
            "known_at": times(ts),
            "venue": [venue] * len(rates),
            "symbol": [symbol] * len(rates),
            "rate": np.asarray(rates, float),
            "interval_h": np.full(len(rates), 8.0),
        }
    )


def accounts(ts: int, cash: dict[str, float], *, known_at: int | None = None) -> pa.Table:
    """One account snapshot."""
    n = len(cash)
    return pa.table(
        {
            "ts": times([ts] * n),
            "known_at": times([ts if known_at is None else known_at] * n),
            "account_id": list(cash),
            "margin_mode": ["cross"] * n,
            "cash_usd": list(cash.values()),
        }
    )


def positions(ts: int, size: dict[str, float], *, symbol: str = "BTC") -> pa.Table:
    """One position per account at a time."""
    n = len(size)
    return pa.table(
        {
            "ts": times([ts] * n),
            "known_at": times([ts] * n),
            "account_id": list(size),
            "venue": ["hyperliquid"] * n,
            "symbol": [symbol] * n,
            "size": list(size.values()),
            "entry_price": [100.0] * n,
            "mark_price": [110.0] * n,
            "margin_mode": ["cross"] * n,
        }
    )


@pytest.fixture
def rows() -> SimpleNamespace:
    """Makers of small tables: ``bars``, ``funding``, ``accounts``, ``positions``, ``times``."""
    return SimpleNamespace(
        T0=T0, times=times, bars=bars, funding=funding, accounts=accounts, positions=positions
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake that does not exist yet."""
    return Lake(tmp_path / "lake")


@pytest.fixture(scope="session")
def same_dataset() -> Callable[[Any, Any], None]:
    """Asserts that two datasets in memory hold the same bits."""

    def check(one: Any, other: Any) -> None:
        assert one.markets == other.markets
        for name in ("ts", "features", "close", "mae", "variance", *STRESS):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
        assert one.onsets.equals(other.onsets)

    return check


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """The Parquet files of a folder by relative path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.parquet")}

    return read
