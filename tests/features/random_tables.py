"""Random rows of every table that features read, as a venue delivers them: late, revised, out of order.

Drawn from the contracts, so that a new table or column is filled without being named here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from riskml.contracts import Column, TableContract, contract
from riskml.features.inputs import FINE_INTERVALS, INPUTS, input_tables
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.units import DAY, HOUR, MINUTE, duration_us

Tables = dict[str, dict[str, np.ndarray]]

EXACT_TABLES = ("bars", "marks")
DELAYS = np.array([0, 0, 0, 5 * MINUTE, 2 * HOUR, 30 * HOUR])
"""How long after the event a row is known."""


def key_values(table: str, markets: Sequence[Market], interval: str) -> dict[str, list[object]]:
    """Values that the key columns take; in each something that no input asks for."""
    spot = ["binance_spot", "okx_spot"] if table in ("bars", "depth") else []
    return {
        "venue": ["binance", "bybit", "okx", "coinalyze", "binance_daily", "aave", "gate", *spot],
        "symbol": [*sorted({market.symbol for market in markets}), "OTHER"],
        "interval": [interval, "3d", *FINE_INTERVALS],
        "population": ["global_account", "top_account"],
        "band_bps": [100.0, 500.0],
        "account_id": ["", "somebody"],
        "side": ["long", "short"],
        "chain": ["ethereum", "solana", "multi", "arbitrum", "nowhere"],
        "asset": ["USDT", "USDC", "DAI", "WETH"],
        "source": ["a", "b"],
    }


def random_tables(
    rng: np.random.Generator, grid_ts: np.ndarray, markets: Sequence[Market], interval: str
) -> Tables:
    """table -> column -> [n_rows] in no order; no two rows have an equal full key."""
    return {
        table: _rows(rng, contract(table), grid_ts, key_values(table, markets, interval))
        for table in input_tables(INPUTS)
    }


def fill(tables: Tables, *, parts: int = 3) -> SeriesStore:
    """A store that got the rows in a few deliveries."""
    store = SeriesStore()
    for table, columns in tables.items():
        for part in range(parts):
            store.append(table, {name: values[part::parts] for name, values in columns.items()})
    return store


def _rows(
    rng: np.random.Generator, declared: TableContract, grid_ts: np.ndarray, choices: dict[str, list[object]]
) -> dict[str, np.ndarray]:
    names = [name for name in declared.key if name != "ts"]
    silence = int(grid_ts[0]) + int(rng.integers(DAY, 3 * DAY))
    ts, known_at, keys = [], [], []
    for number, key in enumerate(itertools.product(*(choices[name] for name in names))):
        if number and declared.name not in EXACT_TABLES and rng.random() < 0.35:
            continue
        fine = key[-1] if declared.name == "bars" and key[-1] in FINE_INTERVALS else ""
        if fine and rng.random() < 0.6:
            continue
        when, known = (
            _fine_times(rng, grid_ts, str(fine)) if fine else _times(rng, declared.name, grid_ts, silence)
        )
        ts.append(when)
        known_at.append(known)
        keys += [key] * len(when)
    order = rng.permutation(len(keys))
    columns = {"ts": np.concatenate(ts)[order], "known_at": np.concatenate(known_at)[order]}
    for place, name in enumerate(names):
        columns[name] = np.array([key[place] for key in keys], dtype=object)[order]
        if declared.column(name).kind == "float":
            columns[name] = columns[name].astype(np.float64)
    for column in declared.columns:
        if column.name not in columns:
            columns[column.name] = _values(rng, column, len(keys))
    return columns


def _fine_times(rng: np.random.Generator, grid_ts: np.ndarray, fine: str) -> tuple[np.ndarray, np.ndarray]:
    """The bars within some neighbouring bars of the grid: most whole, some with a hole or a late part."""
    first = int(rng.integers(0, len(grid_ts) // 2))
    last = min(first + max(len(grid_ts) // 6, 30), len(grid_ts) - 1)
    ts = np.arange(grid_ts[first], grid_ts[last], duration_us(fine))
    ts = ts[rng.random(len(ts)) < 0.99]
    delay = np.where(rng.random(len(ts)) < 0.97, 0, rng.choice(DELAYS, len(ts)))
    revised = rng.random(len(ts)) < 0.05
    again = delay[revised] + rng.integers(1, 2 * HOUR, int(revised.sum()))
    return np.append(ts, ts[revised]), np.append(ts + delay, ts[revised] + again)


def _times(
    rng: np.random.Generator, table: str, grid_ts: np.ndarray, silence: int
) -> tuple[np.ndarray, np.ndarray]:
    """When rows happened and became known: scattered, a silence of the source, some revised later."""
    if table in EXACT_TABLES:
        ts = grid_ts[rng.random(len(grid_ts)) < 0.85]
        delay = np.where(rng.random(len(ts)) < 0.9, 0, rng.choice(DELAYS, len(ts)))
    else:
        first, last = int(grid_ts[0]) - 5 * DAY, int(grid_ts[-1]) + DAY
        ts = np.unique(rng.integers(first, last, len(grid_ts) // 4) // (30 * MINUTE) * 30 * MINUTE)
        ts = ts[(ts < silence) | (ts > silence + 5 * DAY)]
        delay = rng.choice(DELAYS, len(ts))
    revised = rng.random(len(ts)) < 0.15
    again = delay[revised] + rng.integers(1, 20 * HOUR, int(revised.sum()))
    return np.append(ts, ts[revised]), np.append(ts + delay, ts[revised] + again)


def _values(rng: np.random.Generator, column: Column, n_rows: int) -> np.ndarray:
    if column.kind == "text":
        return np.full(n_rows, "", dtype=object)
    if column.name == "interval_h":
        return rng.choice([1.0, 4.0, 8.0], n_rows)
    if column.name in ("price_usd", "redemption_usd"):
        values = 1.0 + rng.normal(0.0, 0.01, n_rows)
        values[rng.random(n_rows) < 0.05] = 2500.0
        values[rng.random(n_rows) < 0.05] = 0.2
    elif column.sign == "fraction":
        values = rng.random(n_rows)
    elif column.sign == "any":
        values = rng.normal(0.0, 1e-3, n_rows)
    else:
        values = np.exp(rng.normal(0.0, 1.0, n_rows))
    if not column.required:
        values[rng.random(n_rows) < 0.15] = np.nan
    return values


def columns_of_bar(interval: str, n_bars: int, start_us: int) -> np.ndarray:
    """Closes of consecutive bars [n_bars], the first at or after ``start_us``."""
    bar = duration_us(interval)
    return (np.arange(n_bars, dtype=np.int64) - (-start_us // bar)) * bar
