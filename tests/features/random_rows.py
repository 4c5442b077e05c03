"""Random rows of every series table, and every input by a plain loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from riskml.contracts import contract
from riskml.features.inputs import EXACT_KINDS, INPUTS, InputSpec, column_values
from riskml.features.series import SERIES_TABLES, SeriesStore
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.units import HOUR, duration_us

PERPETUAL = ("binance", "bybit", "okx", "gate")
KEYS: dict[str, tuple[object, ...]] = {
    "venue": (*PERPETUAL, "binance_spot", "bybit_spot"),
    "symbol": ("BTC", "ETH"),
    "interval": ("1h", "4h"),
    "band_bps": (50.0, 100.0),
    "population": ("global_account", "top_account"),
    "account_id": ("", "a"),
    "side": ("long", "short"),
    "chain": ("ethereum", "solana", "nowhere"),
    "asset": ("USDC", "USDT", "ALL"),
    "source": ("x", "y"),
}
Row = dict[str, Any]


def random_store(seed: int) -> tuple[SeriesStore, dict[str, list[Row]]]:
    """Rows over 120 hours: gaps, delays, revisions, missing cells; as a store and as dicts."""
    random = np.random.default_rng(seed)
    store, tables = SeriesStore(), {}
    for table in SERIES_TABLES:
        rows = tables[table] = _rows(table, random)
        order = random.permutation(len(rows))
        for part in np.array_split(order, 3):  # arrival in any order, in portions
            chosen = [rows[place] for place in part]
            store.append(table, {name: np.array([row[name] for row in chosen]) for name in rows[0]})
    return store, tables


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
        hours = np.flatnonzero(random.random(120) < (0.8 if of_slot else 0.12)).tolist()
        for hour in hours:
            ts = int(hour * HOUR if of_slot else (hour + random.random()) * HOUR)
            delays = [0 if random.random() < 0.7 else int(random.integers(1, 40 * HOUR))]
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


def plain_inputs(
    tables: dict[str, list[Row]], slot: int, markets: Sequence[Market], interval: str
) -> dict[str, np.ndarray]:
    """Every input at one slot, by looking at every row."""
    return {name: _plain(spec, tables[spec.table], slot, markets, interval) for name, spec in INPUTS.items()}


def _plain(
    spec: InputSpec, rows: list[Row], slot: int, markets: Sequence[Market], interval: str
) -> np.ndarray:
    rows = [row for row in rows if row["known_at"] <= slot]
    if spec.axis == "chain":
        return np.array([_of_chain(spec, rows, slot, chain) for chain in axis_columns("chain")])
    if spec.axis == "asset":
        return np.array([_of_asset(spec, rows, slot, asset) for asset in axis_columns("asset")])
    return np.array([_of_market(spec, rows, slot, market, interval) for market in markets])


def _of_market(spec: InputSpec, rows: list[Row], slot: int, market: Market, interval: str) -> float:
    rows = [row for row in rows if row["symbol"] == market.symbol]
    if spec.kind in EXACT_KINDS:
        rows = [row for row in rows if row["interval"] == interval and row["ts"] == slot]
        rows = [row for row in rows if row["known_at"] <= row["ts"]]
        at = {row["venue"]: _value(spec, row) for row in rows}
        if spec.kind == "bar":
            return at.get(market.venue, np.nan)
        if spec.kind == "spot_bar":
            venues = sorted(
                (v for v in at if v.endswith("_spot")), key=lambda v: (v != f"{market.venue}_spot", v)
            )
            return _first([at[venue] for venue in venues])
        others = [at[v] for v in at if v in PERPETUAL and v != market.venue and np.isfinite(at[v])]
        return median(others) if others else np.nan
    if spec.detail:
        rows = [row for row in rows if spec.detail == _detail(spec, row)]
    venues = sorted({row["venue"] for row in rows}, key=lambda venue: (venue != market.venue, venue))
    if spec.kind == "event_sum":
        of_venues = [[row for row in rows if row["venue"] == venue] for venue in venues]
        return _first([_events(spec, of_venue, slot) for of_venue in of_venues])
    newest = _newest(spec, rows, slot)
    if spec.kind == "venue_spread":
        values = [v for v in (_value(spec, row) for row in newest) if np.isfinite(v)]
        return float(np.std(values)) if len(values) >= 2 else np.nan
    newest.sort(key=lambda row: (row["venue"] != market.venue, row["venue"], *map(str, _key(spec, row))))
    if spec.kind == "market_age":
        return _first(
            [(slot - row["ts"]) / HOUR if np.isfinite(_value(spec, row)) else np.nan for row in newest]
        )
    return _first([_value(spec, row) for row in newest])


def _events(spec: InputSpec, rows: list[Row], slot: int) -> float:
    fresh = [row for row in rows if row["ts"] >= slot - duration_us(spec.staleness)]
    if not fresh:
        return np.nan
    first: dict[tuple[object, ...], Row] = {}
    for row in rows:
        kept = first.setdefault((*_key(spec, row), row["ts"]), row)
        if row["known_at"] < kept["known_at"]:
            first[(*_key(spec, row), row["ts"])] = row
    now = [row for row in first.values() if row["known_at"] > slot - HOUR and row["side"] == spec.side]
    return float(sum(_value(spec, row) for row in now if row["ts"] >= slot - duration_us(spec.staleness)))


def _of_chain(spec: InputSpec, rows: list[Row], slot: int, chain: str) -> float:
    newest = _newest(spec, [row for row in rows if row["chain"] == chain], slot)
    by_asset: dict[str, list[float]] = {}
    for row in newest:
        if np.isfinite(_value(spec, row)):
            by_asset.setdefault(row.get("asset", ""), []).append(_value(spec, row))
    every = [value for values in by_asset.values() for value in values]
    if not every:
        return np.nan
    if spec.combine == "supply":
        return float(sum(np.mean(values) for values in by_asset.values()))
    return float(np.mean(every)) if spec.combine == "mean" else float(sum(every))


def _of_asset(spec: InputSpec, rows: list[Row], slot: int, asset: str) -> float:
    newest = _newest(spec, [row for row in rows if row["asset"] == asset], slot)
    values = [v for v in (_value(spec, row) for row in newest) if np.isfinite(v)]
    return min(values, key=abs) if values else np.nan


def _newest(spec: InputSpec, rows: list[Row], slot: int) -> list[Row]:
    """Per series the newest row that is known, unless it is too old."""
    best: dict[tuple[object, ...], Row] = {}
    for row in sorted(rows, key=lambda row: (row["ts"], row["known_at"])):
        best[_key(spec, row)] = row
    return [row for row in best.values() if slot - row["ts"] <= duration_us(spec.staleness)]


def _key(spec: InputSpec, row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in contract(spec.table).key if name != "ts")


def _detail(spec: InputSpec, row: Row) -> str:
    (part,) = _key(spec, row)[2:]
    return f"{part:g}" if isinstance(part, float) else str(part)


def _value(spec: InputSpec, row: Row) -> float:
    columns = {name: np.array([value]) for name, value in row.items() if isinstance(value, float)}
    return float(column_values(columns, spec.column)[0])


def _first(values: list[float]) -> float:
    return next((value for value in values if np.isfinite(value)), np.nan)
