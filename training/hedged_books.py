"""Hedged books on the fold tests: what the law saves, what it covers, and what a correlation flip does.

    python training/hedged_books.py --folds runs/real/folds --lake runs/real/lake [--part calibrate]

Books are the random ones of :mod:`riskml.learning.portfolio` with longs and shorts; *hedged* are those whose
net exposure is at most a fifth of gross. Saving is against the sum of the legs alone. Losses are by closes
and, as an upper bound, at each leg's own extreme of the bar.

A flip replaces the joint path: every leg keeps its own scale, the paths are those of the fold's own bars in
units of the scale forecast for them. ``zero``: each leg an independent path; ``one``: all legs the same path;
``against``: the same path up for shorts and down for longs, which no law short of gross covers.

Extremes of an hour do not coincide, so the hourly bound is wide. ``fine`` measures hedged books of the
markets that have finer bars, on the same paths cut into bars of 1 h and of every finer length there is: the
shorter the bars, the higher the worst loss by closes and the lower the bound; the true one lies between.
``multiple`` is what a requirement has to be multiplied by to cover ``COVERAGE_LEVEL``. Bars without a trade
count as missing: okx fills its outages with the last price.

The rules ``stress C`` are the policy with another ``correlation_stress``. A default is chosen on the
calibrate parts (``--part calibrate``), on which the levels were calibrated; test parts are reported only.

Appends one line to ``training/results/hedged_books.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from riskml.arrays import Bool2D, Float1D, Float2D, Float3D, FloatND, Int1D, Int2D, TimeUs
from riskml.backfill.forecasts import ForecastHistory, forecast_history, history_markets
from riskml.learning.portfolio import Prices, draw_books, requirements, worst_losses
from riskml.learning.protocol import COVERAGE_LEVEL, FOLDS, LONG_MARKETS, Fold
from riskml.learning.runs import append_record
from riskml.learning.walk_forward import fold_path
from riskml.markets import Market
from riskml.risk.margin import combine
from riskml.risk.policy import MarginPolicy
from riskml.scoring.session import load_bundle
from riskml.tables.align import load_grid
from riskml.tables.lake import Lake
from riskml.units import DAY, duration_bars, duration_us, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "hedged_books.jsonl"
MAX_NET = 0.2
"""|net| / gross up to which a book counts as hedged."""
FLIPS = ("zero", "one", "against")
STRESSES = (0.5, 0.75, 1.0)
"""Values of the policy's ``correlation_stress`` tried beside its default."""
RULES = ("forecast", "policy", "stressed", "gross", *(f"stress {weight:g}" for weight in STRESSES))
FLIPS_PER_BOOK = 4
FINE_FLIPS = ("zero", "one")
"""The flips that the stressed requirement is for (correlations 0 and 1)."""
FINE_DRAWS = 4
"""Books per bar on finer bars, where markets are few and most books are pairs."""
RESOLUTIONS = {"15m": ("1h", "15m"), "5m": ("1h", "15m", "5m"), "1m": ("1h", "15m", "5m", "1m")}
"""Finest bars of a set of books -> the lengths that their paths are cut into."""
SOURCES = {"15m": ("15m", "5m"), "5m": ("5m",), "1m": ("1m",)}
"""Finest bars of a set -> bars of the lake that make them."""
VENUES = ("binance", "okx")
"""Where finer bars come from; a market has one venue per fold, the one with more bars (first on a tie)."""
STRETCH = ("policy", "stressed")
"""Rules whose ``multiple`` is told."""

Measure: TypeAlias = tuple[str, float, int]
"""Name, value, number of books."""


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


def span(fold: Fold, part: str) -> tuple[str, str]:
    """First day of a fold's part, without the purge, and the day after it."""
    return (fold.data_end, fold.test_end) if part == "test" else (fold.fit_end, fold.calibrate_end)


def load(fold: Fold, part: str, folds: Path, lake: Lake) -> tuple[ForecastHistory, Prices, Float1D]:
    """Forecasts of the ``test`` or ``calibrate`` part, its bars, and the calibration powers."""
    bundle = load_bundle(fold_path(folds, fold, "1h"))
    manifest, names = bundle.manifest, list(LONG_MARKETS)
    first, last = span(fold, part)
    start, end = to_us(first) + DAY, to_us(last)
    history = forecast_history(bundle, lake, start, end, markets=names)
    every = {market.symbol: market for market in history_markets(bundle, lake, names)}
    grid = load_grid(lake, [every[name] for name in names], "1h", start, end, ("close", "high", "low"))
    power = np.asarray(manifest.calibration_power or [1.0] * len(manifest.horizons), dtype=np.float64)
    return history, Prices(grid.ts, grid.close, grid.high, grid.low), power


def usable(history: ForecastHistory, prices: Prices) -> Bool2D:
    """(bar, market) pairs with a forecast and a bar."""
    finite = np.isfinite(history.sigma).all(axis=(2, 3)) & np.isfinite(history.loadings).all(axis=2)
    return np.asarray(history.available, dtype=np.bool_) & finite & np.isfinite(prices.close)


def draw(
    history: ForecastHistory,
    available: Bool2D,
    power: Float1D,
    generator: np.random.Generator,
    draws: int = 1,
) -> Books:
    """``draws`` mixed books per bar of the markets ``available`` [n_bars, n_markets] there."""
    bar = np.tile(np.arange(len(available)), draws)
    market, weight = draw_books(available[bar], "mixed", generator)
    kept = np.flatnonzero(np.abs(weight).sum(axis=1) > 0.0)
    n_legs = int((weight[kept] != 0.0).sum(axis=1).max(initial=1))  # legs come before padding
    row, market, weight = bar[kept], market[kept, :n_legs], weight[kept, :n_legs]
    at = row[:, None]
    sigma = history.sigma[at, market]
    required = requirements(sigma, history.nu[at, market], history.loadings[at, market], weight, power)
    margin, stressed, gross = (required[name] for name in ("forecast", "stressed", "gross"))
    for stress in STRESSES:
        policy = replace(MarginPolicy(), correlation_stress=stress)
        required[f"stress {stress:g}"] = combine(margin, stressed, gross, policy)[0]
    return Books(row, market, weight, sigma.mean(axis=-1), required)


def whole(prices: Prices, bars: int, step: int = 1) -> Bool2D:
    """Whether the next ``bars`` bars are all there, for every ``step``-th bar [n_rows, n_markets]."""
    missing = ~(np.isfinite(prices.close) & np.isfinite(prices.high) & np.isfinite(prices.low))
    before = np.concatenate([np.zeros((1, missing.shape[1]), dtype=np.int64), np.cumsum(missing, axis=0)])
    start = np.arange(0, max(len(prices.ts) - bars, 0), step)
    result = np.zeros((-(-len(prices.ts) // step), missing.shape[1]), dtype=np.bool_)
    result[: len(start)] = before[start + bars + 1] == before[start + 1]
    result[: len(start)] &= np.isfinite(prices.close[start])
    return result


@dataclass(frozen=True)
class FlippedPaths:
    """The path that each leg takes instead of its own [n, n_legs]."""

    source: Int2D
    """Market whose path it is."""
    begin: Int2D
    """Bar of the forecasts at which the path starts."""
    ratio: Float2D
    """Scale of the leg to that of the path; negative = the path turned upside down."""
    common: bool
    """All legs are at their high, or at their low, at the same time."""


def flip_paths(
    books: Books,
    history: ForecastHistory,
    allowed: Bool2D,
    flip: str,
    horizon: int,
    generator: np.random.Generator,
) -> FlippedPaths:
    """Draw paths for one flip.

    Parameters
    ----------
    allowed : [n_bars, n_markets] a path may start here: a forecast and every bar of the horizon is there.
    """
    n, n_legs = books.weight.shape
    count = allowed.sum(axis=0)
    starts = np.argsort(~allowed, axis=0, kind="stable")  # [n_bars, n_markets] allowed bars first
    if flip == "zero":
        source, part = books.market, generator.random((n, n_legs))
    else:
        leg = np.argmax(np.abs(books.weight), axis=1)[:, None]
        source = np.repeat(np.take_along_axis(books.market, leg, axis=1), n_legs, axis=1)
        part = np.repeat(generator.random((n, 1)), n_legs, axis=1)
    begin = starts[(part * count[source]).astype(np.int64), source]
    ratio = books.scale[:, :, horizon] / history.sigma[begin, source, horizon].mean(axis=-1)
    if flip == "against":
        ratio = ratio * np.sign(books.weight)
    return FlippedPaths(source, begin, ratio, common=flip != "zero")


def flip_losses(books: Books, paths: FlippedPaths, prices: Prices, bars: int, step: int = 1) -> Float2D:
    """Worst loss per USD of gross along other paths [n, 2]: by closes, and the bound; NaN = a gap.

    Parameters
    ----------
    bars : of ``prices`` in the horizon. step : of ``prices`` per bar of the forecasts.
    """
    logs = [np.log(values) for values in (prices.close, prices.high, prices.low)]
    place, held, worst = paths.begin * step, books.weight != 0.0, np.zeros((len(books.row), 2))
    start = logs[0][place, paths.source]
    for ahead in range(1, bars + 1):
        close, high, low = ((log[place + ahead, paths.source] - start) * paths.ratio for log in logs)
        # A common path turns for all legs at once: the book is at its high or at its low.
        extremes: tuple[FloatND, ...] = (high, low)
        if not paths.common:
            extremes = (np.where(books.weight > 0.0, np.minimum(high, low), np.maximum(high, low)),)
        for index, moves in enumerate(((close,), extremes)):
            for move in moves:
                loss = -np.where(held, books.weight * np.expm1(move), 0.0).sum(axis=1)
                worst[:, index] = np.maximum(worst[:, index], loss)  # NaN stays
    return worst


def coarser(prices: Prices, factor: int) -> Prices:
    """Bars of ``factor`` bars each, the first of them closing with row 0, whose high and low are NaN.

    NaN handling: a bar with a part missing has no high and no low.
    """
    n = (len(prices.ts) - 1) // factor
    parts = [values[1 : n * factor + 1].reshape(n, factor, -1) for values in (prices.high, prices.low)]
    unknown = np.full((1, prices.close.shape[1]), np.nan)
    high = np.concatenate([unknown, parts[0].max(axis=1)])
    low = np.concatenate([unknown, parts[1].min(axis=1)])
    return Prices(prices.ts[::factor], prices.close[::factor], high, low)


@dataclass(frozen=True)
class FinePaths:
    """Bars of one fold from its finest ones, row 0 being the first bar of the forecasts."""

    venues: dict[str, str]
    """Where the bars of each market come from; a market without any is absent."""
    prices: dict[str, Prices]
    """Interval -> its bars, the same paths cut into lengths."""


def traded(lake: Lake, venue: str, interval: str, hours: TimeUs) -> Prices:
    """Bars of :data:`LONG_MARKETS` on one venue over consecutive hours; NaN = missing, or nothing traded."""
    markets = [Market(name, venue) for name in LONG_MARKETS]
    names = ("close", "high", "low", "volume")
    grid = load_grid(lake, markets, interval, hours[0], hours[-1] + 1, names)
    known = grid.inputs["volume"] > 0.0
    close, high, low = (np.where(known, grid.inputs[name], np.nan) for name in names[:3])
    return Prices(grid.ts, close, high, low)


def fine_paths(lake: Lake, finest: str, hours: TimeUs) -> FinePaths:
    """The finest bars of :data:`LONG_MARKETS` over consecutive hours, and the coarser ones they make."""
    ts = np.arange(hours[0], hours[-1] + 1, duration_us(finest))
    high, low, close = (np.full((len(ts), len(LONG_MARKETS)), np.nan) for _ in range(3))
    venues: dict[str, str] = {}
    for venue in VENUES:
        for interval in SOURCES[finest]:
            found = traded(lake, venue, interval, hours)
            if interval != finest:
                found = coarser(found, duration_bars(finest, interval))
            more = np.isfinite(found.high).sum(axis=0) > np.isfinite(high).sum(axis=0)
            close[:, more], high[:, more], low[:, more] = (
                values[:, more] for values in (found.close, found.high, found.low)
            )
            venues.update((LONG_MARKETS[place], f"{venue} {interval}") for place in np.flatnonzero(more))
    best = Prices(ts, close, high, low)
    cuts = {name: coarser(best, duration_bars(name, finest)) for name in RESOLUTIONS[finest]}
    return FinePaths(venues, cuts)


def measure(books: Books, losses: dict[str, Float1D], horizon: int) -> Iterator[Measure]:
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


def measure_hourly(
    history: ForecastHistory, prices: Prices, power: Float1D, generator: np.random.Generator
) -> list[Measure]:
    """Every measure of one fold on 1 h bars, named ``group horizon measure``."""
    forecast = usable(history, prices)
    mixed = draw(history, forecast, power, generator)
    found = []
    for group, books in (("mixed", mixed), ("hedged", mixed.select(mixed.hedged))):
        for index, horizon in enumerate(history.horizons):
            bars = duration_bars(horizon, "1h")
            real = worst_losses(prices, books.row, books.market, books.weight, bars)
            losses = {"closes": real[:, 0], "bound": real[:, 1]}
            found += [(f"{group} {horizon} {name}", v, n) for name, v, n in measure(books, losses, index)]
            if group == "hedged":
                again = books.select(np.tile(np.arange(len(books.row)), FLIPS_PER_BOOK))
                allowed = forecast & whole(prices, bars)
                flips = {}
                for flip in FLIPS:
                    paths = flip_paths(again, history, allowed, flip, index, generator)
                    flips[f"{flip} closes"], flips[flip] = flip_losses(again, paths, prices, bars).T
                rows = measure(again, flips, index)
                found += [(f"flip {horizon} {name}", v, n) for name, v, n in rows if "saving" not in name]
    return found


@dataclass(frozen=True)
class FineFold:
    """Hedged books of one fold on finer bars."""

    n: int
    venues: dict[str, str]
    rows: list[Measure]
    """Named ``group horizon measure rule``, the measure with the loss and the length of its bars."""
    ratios: dict[str, Float1D]
    """Loss to requirement of every book [n], by the name of its ``multiple``."""


def measure_fine(
    history: ForecastHistory,
    forecast: Bool2D,
    power: Float1D,
    fine: FinePaths,
    generator: np.random.Generator,
) -> FineFold:
    """One set of books whose markets all have the finest bars over the longest horizon.

    Parameters
    ----------
    forecast : [n_bars, n_markets] a forecast is there; one bar = 1 h.
    """
    finest = list(fine.prices)[-1]

    def there(horizon: str) -> Bool2D:
        ahead = duration_bars(horizon, finest)
        return forecast & whole(fine.prices[finest], ahead, duration_bars("1h", finest))

    books = draw(history, there(history.horizons[-1]), power, generator, FINE_DRAWS)
    books = books.select(books.hedged)
    rows: list[Measure] = []
    ratios: dict[str, Float1D] = {}
    for index, horizon in enumerate(history.horizons):
        allowed = there(horizon)
        paths = {flip: flip_paths(books, history, allowed, flip, index, generator) for flip in FINE_FLIPS}
        losses: dict[str, dict[str, Float1D]] = {"hedged": {}, "flip": {}}
        for name, prices in fine.prices.items():
            bars, step = duration_bars(horizon, name), duration_bars("1h", name)
            real = worst_losses(prices, books.row * step, books.market, books.weight, bars)
            losses["hedged"] |= {f"closes {name}": real[:, 0], f"bound {name}": real[:, 1]}
            for flip, path in paths.items():
                worst = flip_losses(books, path, prices, bars, step)
                losses["flip"] |= {f"{flip} closes {name}": worst[:, 0], f"{flip} bound {name}": worst[:, 1]}
        for group, found in losses.items():
            for measured, value, n in measure(books, found, index):
                # The multiple says more than the worst loss, and a flip changes no requirement.
                if "worst" not in measured and (group == "hedged" or "saving" not in measured):
                    rows.append((f"{group} {horizon} {measured}", value, n))
            for rule in STRETCH:
                asked = books.required[rule][:, index]
                ratios |= {f"{group} {horizon} multiple {k} {rule}": v / asked for k, v in found.items()}
    return FineFold(len(books.row), fine.venues, rows, ratios)


def fine_record(finest: str, folds: dict[str, FineFold]) -> dict[str, Any]:
    """What is recorded of one set of books: pooled measures; per fold number, venues, finest breaches."""
    measures = pooled([fold.rows for fold in folds.values()])
    for name in next(iter(folds.values())).ratios:
        ratio = np.concatenate([fold.ratios[name] for fold in folds.values()])
        known = ratio[np.isfinite(ratio)]
        measures[name] = [float(f"{np.quantile(known, COVERAGE_LEVEL):.5g}"), len(known)]
    parts = {
        part: {
            "n": fold.n,
            "venues": fold.venues,
            "breach": {
                name: float(f"{value:.5g}")
                for name, value, _ in fold.rows
                if name.startswith("hedged") and f" {finest} " in name
            },
        }
        for part, fold in folds.items()
    }
    return {"folds": parts, "pooled": measures}


def pooled(folds: list[list[Measure]]) -> dict[str, list[float]]:
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
    parser.add_argument("--part", choices=("test", "calibrate"), default="test")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    lake = Lake(options.lake)
    folds: list[list[Measure]] = []
    fine: dict[str, dict[str, FineFold]] = {}
    for seed, fold in enumerate(FOLDS):
        days = " to ".join(span(fold, options.part))
        print(f"books of {days}", file=sys.stderr, flush=True)
        history, prices, power = load(fold, options.part, options.folds, lake)
        folds.append(measure_hourly(history, prices, power, np.random.default_rng(seed)))
        for finest in RESOLUTIONS:
            paths = fine_paths(lake, finest, prices.ts)
            if len(paths.venues) < 2:
                continue
            print(f"  {finest}: {paths.venues}", file=sys.stderr, flush=True)
            generator = np.random.default_rng((seed, duration_us(finest)))
            found = measure_fine(history, usable(history, prices), power, paths, generator)
            fine.setdefault(finest, {})[days] = found
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "training/hedged_books.py", *arguments]),
        "part": options.part,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "max_net": MAX_NET,
        "pooled": pooled(folds),
        "fine": {finest: fine_record(finest, found) for finest, found in fine.items()},
    }
    print(append_record(RESULTS, line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
