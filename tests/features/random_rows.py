"""Random rows of every series table: gaps, delays, revisions, missing cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from riskml.contracts import contract
from riskml.features.inputs import FINE_INTERVALS
from riskml.features.series import SERIES_TABLES, SeriesStore
from riskml.units import HOUR, duration_us

PERPETUAL = ("binance", "bybit", "okx", "gate")
KEYS: dict[str, tuple[object, ...]] = {
    "venue": (*PERPETUAL, "binance_spot", "bybit_spot"),
    "symbol": ("BTC", "ETH"),
    "interval": ("1h", "4h", *FINE_INTERVALS),
    "band_bps": (50.0, 100.0),
    "population": ("global_account", "top_account"),
    "account_id": ("", "a"),
    "side": ("long", "short"),
    "chain": ("ethereum", "solana", "nowhere"),
    "asset": ("USDC", "USDT", "ALL"),
    "source": ("x", "y"),
}
Row = dict[str, Any]


def random_store(seed: int) -> SeriesStore:
    """Rows over 120 hours, that arrived in any order and in portions."""
    random = np.random.default_rng(seed)
    store = SeriesStore()
    for table in SERIES_TABLES:
        rows = _rows(table, random)
        order = random.permutation(len(rows))
        for part in np.array_split(order, 3):  # arrival in any order, in portions
            chosen = [rows[place] for place in part]
            store.append(table, {name: np.array([row[name] for row in chosen]) for name in rows[0]})
    return store


def _rows(table: str, random: np.random.Generator) -> list[Row]:
    spec = contract(table)
    names = [name for name in spec.key if name != "ts"]
    keys: list[Row] = [{}]
    for name in names:
        keys = [key | {name: value} for key in keys for value in KEYS[name]]
    rows = []
    for key in keys:
        if random.random() < 0.15:
            continue
        of_slot = table in ("bars", "marks")
        hours: list[float] = np.flatnonzero(random.random(120) < (0.8 if of_slot else 0.12)).tolist()
        fine = of_slot and key["interval"] in FINE_INTERVALS
        if fine:  # bars within some of the hours, nearly all of them
            step = duration_us(str(key["interval"])) / HOUR
            hours = [when for when in np.arange(20, 60, step).tolist() if random.random() < 0.98]
        for hour in hours:
            ts = round(hour * HOUR) if of_slot else int((hour + random.random()) * HOUR)
            delays = [0 if random.random() < (0.98 if fine else 0.7) else int(random.integers(1, 40 * HOUR))]
            delays += [delays[0] + int(random.integers(1, 9 * HOUR))] if random.random() < 0.1 else []
            rows += [{"ts": ts, "known_at": ts + delay} | key | _values(spec, random) for delay in delays]
    return rows


def _values(spec: Any, random: np.random.Generator) -> Row:
    values = {}
    for column in spec.columns:
        if column.kind == "float" and column.name not in spec.full_key:
            missing = column.nullable and random.random() < 0.2
            values[column.name] = float("nan") if missing else 1.0 + 0.1 * float(random.random())
    return values
