"""Random inputs of every feature, written once and read by each engine in its own process.

A file holds one input as float64 [n_bars, n_columns], row after row. Prices are random walks; one bar in a
thousand is missing, never four in a row, so that no window is cut and the peers need no gap rule.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from riskml.features.catalog import CATALOG
from riskml.features.evaluate import input_names
from riskml.features.inputs import input_spec
from riskml.features.nodes import Axis, Input, walk
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.units import duration_us, to_us

INTERVAL = "1m"
START = "2022-01-03"
SYMBOLS = (
    "BTC", "ETH", "SOL", "BNB", "XRP", "DOGE", "ADA", "AVAX", "LINK", "LTC",
    "DOT", "BCH", "TRX", "NEAR", "APT", "ARB", "OP", "SUI", "UNI", "AAVE",
)  # fmt: skip
_MISSING = 1e-3
_STEP_BARS = 100_000


@dataclass(frozen=True)
class InputFolder:
    """Inputs on disk."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, int]:
        """``n_bars`` and ``n_markets``."""
        return dict(json.loads((self.path / "facts.json").read_text(encoding="utf-8")))

    @property
    def n_bars(self) -> int:
        return self.facts["n_bars"]

    @property
    def markets(self) -> tuple[Market, ...]:
        return make_markets(self.facts["n_markets"])

    @cached_property
    def ts(self) -> np.ndarray:
        """Closes of the bars [n_bars] int64 us."""
        return to_us(START) + np.arange(1, self.n_bars + 1, dtype=np.int64) * duration_us(INTERVAL)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Rows of an input [end - begin, n_columns], read into memory of their own."""
        width = n_columns(input_axes()[name], self.facts["n_markets"])
        rows = (self.n_bars if end is None else end) - begin
        values = np.fromfile(self.path / f"{name}.f64", count=rows * width, offset=8 * begin * width)
        return values.reshape(rows, width)

    @property
    def n_values(self) -> int:
        """Numbers in all inputs together."""
        return sum(self.n_bars * n_columns(axis, self.facts["n_markets"]) for axis in input_axes().values())


def make_markets(n_markets: int) -> tuple[Market, ...]:
    """The first markets; beyond the named ones they are numbered."""
    names = [*SYMBOLS, *(f"X{place}" for place in range(len(SYMBOLS), n_markets))]
    return tuple(Market(name, "binance") for name in names[:n_markets])


@cache
def input_axes() -> dict[str, Axis]:
    """Every input that the catalogue reads, and what its columns stand for."""
    nodes = walk(*(feature.expr for feature in CATALOG))
    axes = {node.name: node.columns for node in nodes if isinstance(node, Input)}
    return {name: axes.get(name, "market") for name in input_names(CATALOG)}


def n_columns(axis: Axis, n_markets: int) -> int:
    """Columns of an axis."""
    return n_markets if axis == "market" else max(1, len(axis_columns(axis)))


def write_inputs(path: Path, n_bars: int, n_markets: int, seed: int = 0) -> InputFolder:
    """Draw every input and write it, step by step, so that no more than a few steps are in memory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "facts.json").write_text(json.dumps({"n_bars": n_bars, "n_markets": n_markets}), encoding="utf-8")
    rng = np.random.default_rng(seed)
    level: dict[str, np.ndarray | float] = {"close": 0.0}
    files = {name: (path / f"{name}.f64").open("wb") for name in input_axes()}
    try:
        for begin in range(0, n_bars, _STEP_BARS):
            rows = min(_STEP_BARS, n_bars - begin)
            steps = rng.standard_t(4, (rows, n_markets)) * 5e-4
            log_close = level["close"] + np.cumsum(steps, axis=0)
            level["close"] = log_close[-1]
            missing = rng.random((rows, n_markets)) < _MISSING
            missing[1:] &= ~missing[:-1]
            for name, axis in input_axes().items():
                shape = (rows, n_columns(axis, n_markets))
                values = _draw(rng, name, shape, 100.0 * np.exp(log_close), level)
                if not input_spec(name).staleness:
                    values[missing] = np.nan
                values.tofile(files[name])
    finally:
        for file in files.values():
            file.close()
    return InputFolder(path)


def _draw(
    rng: np.random.Generator,
    name: str,
    shape: tuple[int, ...],
    close: np.ndarray,
    level: dict[str, np.ndarray | float],
) -> np.ndarray:
    spec = input_spec(name)
    noise = rng.standard_normal(shape, dtype=np.float32).astype(np.float64)
    if name == "close":
        return close.copy()
    if name in ("high", "mark_high"):
        return close * np.exp(2e-3 + 5e-4 * np.abs(noise))
    if name in ("low", "mark_low"):
        return close * np.exp(-2e-3 - 5e-4 * np.abs(noise))
    if spec.unit == "quote":
        return close * np.exp(1e-3 * noise)
    if spec.unit.startswith("fraction"):
        return 1e-3 * (noise if spec.table == "funding" else np.abs(noise))
    if " - " in spec.column:
        return 1e6 * noise
    walk_of_input = level.get(name, 2.0) + np.cumsum(1e-3 * noise, axis=0)
    level[name] = walk_of_input[-1]
    return np.exp(walk_of_input)
