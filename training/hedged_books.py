"""Hedged books on the fold tests: what the law saves, what it covers, and what a correlation flip does.

    python training/hedged_books.py --folds runs/real/folds --lake runs/real/lake

Books are the random ones of :mod:`riskml.learning.portfolio` with longs and shorts; *hedged* are those whose
net exposure is at most a fifth of gross. Saving is against the sum of the legs alone. Losses are by closes
and, as an upper bound, at each leg's own extreme of the bar.

A flip replaces the joint path: every leg keeps its own scale, the paths are those of the fold's own bars in
units of the scale forecast for them. ``zero``: each leg an independent path; ``one``: all legs the same path;
``against``: the same path up for shorts and down for longs, which no law short of gross covers. Appends one
line to ``training/results/hedged_books.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import Bool2D, Float1D, Float2D, Float3D, FloatND, Int1D, Int2D
from riskml.backfill.forecasts import ForecastHistory, forecast_history, history_markets
from riskml.learning.portfolio import Prices, draw_books, requirements, worst_losses
from riskml.learning.protocol import FOLDS, LONG_MARKETS, Fold
from riskml.learning.runs import append_record
from riskml.learning.walk_forward import fold_path
from riskml.scoring.session import load_bundle
from riskml.tables.align import load_grid
from riskml.tables.lake import Lake
from riskml.units import DAY, duration_bars, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "hedged_books.jsonl"
MAX_NET = 0.2
"""|net| / gross up to which a book counts as hedged."""
FLIPS = ("zero", "one", "against")
RULES = ("forecast", "policy", "stressed", "gross")
FLIPS_PER_BOOK = 4


@dataclass(frozen=True)
class Books:
    """Books of one fold with what is asked of them."""

    row: Int1D
    """[n] bar of ``prices``."""
    market: Int2D
    weight: Float2D
    scale: Float3D
    """Mean scale of both sides of each leg [n, n_legs, n_horizons]."""
    required: dict[str, Float2D]
    """Per USD of gross [n, n_horizons]."""

    def select(self, rows: Any) -> Books:
        """Some of them."""
        return Books(
            self.row[rows],
            self.market[rows],
            self.weight[rows],
            self.scale[rows],
            {name: values[rows] for name, values in self.required.items()},
        )

    @property
    def hedged(self) -> Any:
        """[n] bool."""
        return np.abs(self.weight.sum(axis=1)) <= MAX_NET


def load(fold: Fold, folds: Path, lake: Lake) -> tuple[ForecastHistory, Prices, Float1D]:
    """Forecasts of the test part, its bars, and the calibration powers."""
    bundle = load_bundle(fold_path(folds, fold, "1h"))
    manifest, names = bundle.manifest, list(LONG_MARKETS)
    start, end = to_us(fold.data_end) + DAY, to_us(fold.test_end)
    history = forecast_history(bundle, lake, start, end, markets=names)
    every = {market.symbol: market for market in history_markets(bundle, lake, names)}
    grid = load_grid(lake, [every[name] for name in names], "1h", start, end, ("close", "high", "low"))
    power = np.asarray(manifest.calibration_power or [1.0] * len(manifest.horizons), dtype=np.float64)
    return history, Prices(grid.ts, grid.close, grid.high, grid.low), power


def usable(history: ForecastHistory, prices: Prices) -> Bool2D:
    """(bar, market) pairs with a forecast and a bar."""
    finite = np.isfinite(history.sigma).all(axis=(2, 3)) & np.isfinite(history.loadings).all(axis=2)
    return np.asarray(history.available, dtype=np.bool_) & finite & np.isfinite(prices.close)


def draw(history: ForecastHistory, prices: Prices, power: Float1D, generator: np.random.Generator) -> Books:
    """One mixed book per bar."""
    market, weight = draw_books(usable(history, prices), "mixed", generator)
    row = np.flatnonzero(np.abs(weight).sum(axis=1) > 0.0)
    market, weight, at = market[row], weight[row], row[:, None]
    sigma = history.sigma[at, market]
    required = requirements(sigma, history.nu[at, market], history.loadings[at, market], weight, power)
    return Books(row, market, weight, sigma.mean(axis=-1), required)


def flipped(
    books: Books,
    history: ForecastHistory,
    prices: Prices,
    flip: str,
    horizon: int,
    generator: np.random.Generator,
) -> Float1D:
    """Worst loss per USD of gross when the joint path is replaced [n]; NaN = a path across a gap."""
    bars = duration_bars(history.horizons[horizon], "1h")
    n, n_legs = books.weight.shape
    last = len(prices.ts) - bars
    scale = history.sigma[:, :, horizon].mean(axis=-1)
    if flip == "zero":
        source, begin = books.market, generator.integers(0, last, (n, n_legs))
    else:
        leg = np.argmax(np.abs(books.weight), axis=1)[:, None]
        source = np.repeat(np.take_along_axis(books.market, leg, axis=1), n_legs, axis=1)
        begin = np.repeat(generator.integers(0, last, (n, 1)), n_legs, axis=1)
    ratio = books.scale[:, :, horizon] / scale[begin, source]
    if flip == "against":
        ratio = ratio * np.sign(books.weight)
    start, held, worst = np.log(prices.close[begin, source]), books.weight != 0.0, np.zeros(n)
    for ahead in range(1, bars + 1):
        high = (np.log(prices.high[begin + ahead, source]) - start) * ratio
        low = (np.log(prices.low[begin + ahead, source]) - start) * ratio
        highest, lowest = np.maximum(high, low), np.minimum(high, low)
        # A common path turns for all legs at once: the book is at its high or at its low.
        if flip == "zero":
            moves: tuple[FloatND, ...] = (np.where(books.weight > 0.0, lowest, highest),)
        else:
            moves = (high, low)
        for move in moves:
            loss = -np.where(held, books.weight * np.expm1(move), 0.0).sum(axis=1)
            worst = np.maximum(worst, loss)
    return worst


def measure(books: Books, losses: dict[str, Float1D], horizon: int) -> Iterator[tuple[str, float, int]]:
    """(name, value, number of books) of one horizon."""
    gross = books.required["gross"][:, horizon]
    for rule in RULES:
        asked = books.required[rule][:, horizon]
        yield f"saving {rule}", float(1.0 - asked.mean() / gross.mean()), len(asked)
        for name, loss in losses.items():
            known = np.isfinite(loss)
            yield f"breach {name} {rule}", float((loss[known] > asked[known]).mean()), int(known.sum())
            excess = (loss / asked)[known]
            yield f"worst loss to requirement {name} {rule}", float(excess.max()), int(known.sum())


def measure_fold(fold: Fold, folds: Path, lake: Lake, seed: int) -> list[tuple[str, float, int]]:
    """Every measure of one fold, named ``group horizon measure``."""
    history, prices, power = load(fold, folds, lake)
    generator = np.random.default_rng(seed)
    mixed = draw(history, prices, power, generator)
    found = []
    for group, books in (("mixed", mixed), ("hedged", mixed.select(mixed.hedged))):
        for index, horizon in enumerate(history.horizons):
            bars = duration_bars(horizon, "1h")
            real = worst_losses(prices, books.row, books.market, books.weight, bars)
            losses = {"closes": real[:, 0], "bound": real[:, 1]}
            found += [(f"{group} {horizon} {name}", v, n) for name, v, n in measure(books, losses, index)]
            if group == "hedged":
                again = books.select(np.tile(np.arange(len(books.row)), FLIPS_PER_BOOK))
                flips = {flip: flipped(again, history, prices, flip, index, generator) for flip in FLIPS}
                rows = measure(again, flips, index)
                found += [(f"flip {horizon} {name}", v, n) for name, v, n in rows if "saving" not in name]
    return found


def pooled(folds: list[list[tuple[str, float, int]]]) -> dict[str, list[float]]:
    """Means over books (worst ones: the largest) and their number, by name."""
    grouped: dict[str, list[tuple[float, int]]] = {}
    for name, value, n in (row for fold in folds for row in fold):
        grouped.setdefault(name, []).append((value, n))
    result = {}
    for name, rows in grouped.items():
        counts = [n for _, n in rows]
        values = [value for value, _ in rows]
        value = max(values) if "worst" in name else float(np.average(values, weights=counts))
        result[name] = [float(f"{value:.5g}"), sum(counts)]
    return result


def main(arguments: list[str]) -> int:
    """Measure every fold, pool, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=Path, required=True, help="folder of fold bundles")
    parser.add_argument("--lake", required=True)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    folds = []
    for seed, fold in enumerate(FOLDS):
        print(f"{fold.data_end}: books to {fold.test_end}", file=sys.stderr, flush=True)
        folds.append(measure_fold(fold, options.folds, Lake(options.lake), seed))
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python training/hedged_books.py --folds {options.folds} --lake {options.lake}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "max_net": MAX_NET,
        "pooled": pooled(folds),
    }
    print(append_record(RESULTS, line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
