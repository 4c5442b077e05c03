"""Random inputs on a grid of bars, with every kind of hole that the pipeline has to live with.

Drawn from the declarations of the inputs, so that a new one is filled without being named here: prices
(unit ``quote``) follow one random walk per market, differences may be negative, the rest is positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riskml.features.catalog import CATALOG
from riskml.features.evaluate import input_names
from riskml.features.inputs import input_spec
from riskml.features.nodes import Axis, Input, walk
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.units import duration_us

MARKETS = tuple(Market(symbol, "binance") for symbol in ("BTC", "ETH", "SOL", "ARB"))
GAPS = (2, 3, 4, 50)
"""Lengths of the runs of missing bars, one market after the other."""
EPOCH_US = 1_700_000_000_000_000


def random_panel(
    n_bars: int, *, interval: str, seed: int, markets: Sequence[Market] = MARKETS
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Closes of the bars [n_bars] and every input of the catalogue [n_bars, n_columns]."""
    rng = np.random.default_rng(seed)
    bar = duration_us(interval)
    ts = (np.arange(n_bars, dtype=np.int64) + EPOCH_US // bar) * bar
    close = 100.0 * np.exp(np.cumsum(rng.standard_t(4, (n_bars, len(markets))) * 0.01, axis=0))
    absent = missing_bars(rng, n_bars, len(markets))
    axes = input_axes()
    inputs = {}
    for name in input_names(CATALOG):
        width = len(markets) if axes[name] == "market" else max(1, len(axis_columns(axes[name])))
        inputs[name] = _values(rng, name, (n_bars, width), close)
        exact = not input_spec(name).staleness
        inputs[name][absent if exact else _dropouts(rng, (n_bars, width))] = np.nan
    return ts, inputs


def input_axes() -> dict[str, Axis]:
    """What the columns of each input stand for, as the catalogue reads it."""
    nodes = walk(*(feature.expr for feature in CATALOG))
    return {"close": "market"} | {node.name: node.columns for node in nodes if isinstance(node, Input)}


def missing_bars(rng: np.random.Generator, n_bars: int, n_markets: int) -> np.ndarray:
    """Bars missing singly, gaps of :data:`GAPS`, and a last market that is listed late [bool]."""
    absent = rng.random((n_bars, n_markets)) < 0.03
    for place, length in enumerate(GAPS):
        for _ in range(2):
            begin = int(rng.integers(n_bars // 3, n_bars - length - 5))
            absent[begin : begin + length, place % n_markets] = True
    absent[: n_bars // 4, -1] = True
    return absent


def _dropouts(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Cells of a source that are missing: scattered, one outage, and seldom one column throughout."""
    absent = rng.random(shape) < 0.05
    begin = int(rng.integers(0, shape[0]))
    absent[begin : begin + 12] = True
    if shape[1] > 1 and rng.random() < 0.25:
        absent[:, int(rng.integers(shape[1]))] = True
    return absent


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...], close: np.ndarray) -> np.ndarray:
    spec = input_spec(name)
    noise = rng.standard_normal(shape)
    if name == "close":
        return close.copy()
    if name in ("high", "mark_high"):
        return close * np.exp(0.02 + 0.01 * np.abs(noise))
    if name in ("low", "mark_low"):
        return close * np.exp(-0.02 - 0.01 * np.abs(noise))
    if spec.unit == "quote":
        return close * np.exp(0.005 * noise)
    if spec.unit.startswith("fraction"):
        return 1e-3 * (noise if spec.table == "funding" else np.abs(noise))
    if " - " in spec.column:
        return 1e6 * noise
    return np.exp(2.0 + np.cumsum(0.05 * noise, axis=0))
