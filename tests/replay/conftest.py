"""A small world of bars, funding and accounts that the tests of the labels share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from riskml.tables.lake import Lake
from riskml.units import HOUR, duration_us, to_us

Bar = tuple[float, float, float] | None


class World:
    """Builds a lake row by row; every price is (low, high, close) and None is a missing bar."""

    start = to_us("2024-06-03T12:00")

    def __init__(self, folder: Path) -> None:
        self.lake = Lake(folder)
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def at(self, hours: float) -> int:
        """Microseconds UTC of so many hours after the start."""
        return self.start + int(hours * HOUR)

    def add(self, table: str, **row: Any) -> None:
        self._rows.setdefault(table, []).append({"known_at": row["ts"], **row})

    def bars(
        self, symbol: str, bars: Sequence[Bar], *, venue: str = "sim", interval: str = "1h", first: int = 0
    ) -> None:
        """Bars of one source; bar n closes ``first + n`` intervals after the start."""
        for place, bar in enumerate(bars):
            if bar is not None:
                low, high, close = bar
                ts = self.start + (first + place) * duration_us(interval)
                market = {"venue": venue, "symbol": symbol, "interval": interval, "volume": 1.0}
                self.add("bars", ts=ts, **market, open=close, low=low, high=high, close=close)

    def pay(self, symbol: str, rates: Mapping[float, float], *, venue: str = "sim") -> None:
        """Funding rates by hour."""
        for hour, rate in rates.items():
            self.add("funding", ts=self.at(hour), venue=venue, symbol=symbol, rate=rate, interval_h=1.0)

    def account(
        self,
        name: str,
        cash: float,
        positions: Sequence[Mapping[str, Any]] = (),
        *,
        hour: float = 0,
        maintenance: float | None = None,
        collateral: Mapping[str, tuple[float, float]] | None = None,
        mode: str = "cross",
    ) -> None:
        """One snapshot; a position has symbol, size and mark, collateral is (amount, price) per asset."""
        ts = self.at(hour)
        self.add(
            "accounts",
            ts=ts,
            account_id=name,
            margin_mode=mode,
            cash_usd=cash,
            maintenance_margin_usd=maintenance,
        )
        for item in positions:
            mark = item["mark"]
            self.add(
                "positions",
                ts=ts,
                account_id=name,
                venue=item.get("venue", "sim"),
                symbol=item["symbol"],
                size=item["size"],
                entry_price=item.get("entry", mark),
                mark_price=mark,
                margin_mode=item.get("mode", "cross"),
                isolated_margin_usd=item.get("margin"),
            )
        for asset, (amount, price) in (collateral or {}).items():
            self.add(
                "collateral",
                ts=ts,
                account_id=name,
                chain="ethereum",
                asset=asset,
                amount=amount,
                price_usd=price,
            )

    def write(self) -> Lake:
        """Put everything that was added into the lake."""
        for table, rows in self._rows.items():
            names = list(dict.fromkeys(name for row in rows for name in row))
            columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
            for name in {"ts", "known_at", "delisting", "listing"} & set(names):
                columns[name] = columns[name].cast(pa.int64()).cast(pa.timestamp("us", tz="UTC"))
            for name in ("maintenance_margin_usd", "isolated_margin_usd"):
                if name in columns:
                    columns[name] = columns[name].cast(pa.float64())
            self.lake.write(table, pa.table(columns))
        self._rows.clear()
        return self.lake


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty world; nothing is in the lake before ``write``."""
    return World(tmp_path / "lake")
