"""From the lake to aligned arrays: one grid of bars, one column per market.

The rows go into the same :class:`~riskml.features.series.SeriesStore` and through the same
look-ups as in a running scorer; this module only reads far enough before the first bar and
cuts the extra rows off again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool2D, Float2D, Float3D, TimeUs
from riskml.errors import DataError
from riskml.features.assemble import assemble_inputs
from riskml.features.catalog import CATALOG
from riskml.features.evaluate import evaluate_features, input_names, lookback_bars
from riskml.features.inputs import input_spec
from riskml.features.series import SeriesStore
from riskml.features.spec import Feature
from riskml.markets import Market
from riskml.tables.compiled import CompiledOps
from riskml.tables.feed import LakeFeed, to_columns
from riskml.tables.lake import Lake
from riskml.units import TimeLike, duration_us, format_us, to_us

__all__ = [
    "BAR_INPUTS",
    "Grid",
    "Panel",
    "grid_bounds",
    "load_grid",
    "load_panel",
    "load_store",
    "no_bars",
    "to_columns",
]

BAR_INPUTS = ("close", "high", "low")
"""Inputs that every panel holds, whatever its features read."""


@dataclass(frozen=True)
class Grid:
    """Inputs on a grid of bars, without features."""

    ts: TimeUs
    """[n_bars] int64 us: close of each bar, consecutive multiples of the interval."""
    markets: tuple[Market, ...]
    interval: str
    inputs: dict[str, Float2D]
    """name -> [n_bars, n_columns of the input's axis]; NaN = missing or stale."""

    @property
    def close(self) -> Float2D:
        """[n_bars, n_markets]."""
        return self.inputs["close"]

    @property
    def high(self) -> Float2D:
        """[n_bars, n_markets]."""
        return self.inputs["high"]

    @property
    def low(self) -> Float2D:
        """[n_bars, n_markets]."""
        return self.inputs["low"]

    @property
    def present(self) -> Bool2D:
        """Whether the market's bar is there [n_bars, n_markets]."""
        return np.isfinite(self.close)


@dataclass(frozen=True)
class Panel(Grid):
    """A grid with features."""

    features: Float3D
    """[n_bars, n_markets, n_features] float64; NaN = missing."""
    feature_names: tuple[str, ...]


def load_panel(
    lake: Lake,
    markets: Sequence[Market],
    interval: str,
    start: TimeLike,
    end: TimeLike,
    *,
    features: Sequence[Feature] = CATALOG,
    reference: Sequence[Market] | None = None,
) -> Panel:
    """Features and inputs of every bar that closes in [start, end).

    Parameters
    ----------
    lake : contract tables; a missing table gives NaN.
    markets : columns of the result, in order.
    interval : bar length.
    start, end : first included, last excluded; compared with the bars' closes.
    features : in the order of the last axis.
    reference : markets that define the cross-section, the first being its leader; default
        the panel's own. Those that are not in ``markets`` are loaded and left out again.

    Raises
    ------
    DataError : an empty range, no markets, no bar of any market in the range.
    """
    chosen = tuple(markets)
    basis = chosen if reference is None else tuple(reference)
    every = (*chosen, *(market for market in basis if market not in chosen))
    first, last = grid_bounds(interval, start, end)
    names = {*input_names(features), *BAR_INPUTS}
    warm_up = (lookback_bars(features, interval) - 1) * duration_us(interval)
    grid = load_grid(lake, every, interval, first - warm_up, last, names)
    n_bars = (last - first) // duration_us(interval)
    values = evaluate_features(
        features,
        grid.inputs,
        grid.ts,
        interval=interval,
        reference=[every.index(market) for market in basis],
        ops=CompiledOps(),
        tail=n_bars,
        markets=every,
    )
    width = len(chosen)
    panel = Panel(
        ts=grid.ts[-n_bars:],
        markets=chosen,
        interval=interval,
        inputs={
            name: values[-n_bars:, :width] if input_spec(name).axis == "market" else values[-n_bars:]
            for name, values in grid.inputs.items()
        },
        features=values[:, :width],
        feature_names=tuple(feature.name for feature in features),
    )
    if not panel.present.any():
        raise no_bars(chosen, interval, first, last)
    return panel


def no_bars(markets: Sequence[Market], interval: str, first: int, last: int) -> DataError:
    """The error for a range in which no market has a bar."""
    return DataError(
        f"no {interval} bar of {', '.join(map(str, markets))} closes "
        f"between {format_us(first)} and {format_us(last)}",
        table="bars",
        fix="ask for another range, or ingest these bars first",
    )


def load_grid(
    lake: Lake, markets: Sequence[Market], interval: str, start: TimeLike, end: TimeLike, names: Iterable[str]
) -> Grid:
    """Inputs of every bar that closes in [start, end), without features."""
    if not markets:
        raise DataError("at least one market is required", fix="see the markets of the lake: 'riskml check'")
    first, last = grid_bounds(interval, start, end)
    wanted = sorted(set(names))
    ts = np.arange(first, last, duration_us(interval), dtype=np.int64)
    store = load_store(lake, markets, interval, first, last, wanted)
    inputs = assemble_inputs(store, ts, markets, interval=interval, names=wanted)
    return Grid(ts, tuple(markets), interval, inputs)


def grid_bounds(interval: str, start: TimeLike, end: TimeLike) -> tuple[int, int]:
    """First bar close at or after ``start`` and the first one at or after ``end`` (us).

    Raises
    ------
    DataError : no bar closes in the range.
    """
    bar = duration_us(interval)
    first, last = (-(-to_us(time) // bar) * bar for time in (start, end))
    if first >= last:
        raise DataError(
            f"no {interval} bar closes between {format_us(to_us(start))} and {format_us(to_us(end))}",
            fix="start is inclusive, end is exclusive and has to be later",
        )
    return first, last


def load_store(
    lake: Lake, markets: Sequence[Market], interval: str, start: TimeLike, end: TimeLike, names: Iterable[str]
) -> SeriesStore:
    """The rows that inputs of [start, end) can see, as series.

    Reaches back by the longest staleness limit, so that the first slot sees what a scorer
    that ran since before would see.
    """
    feed = LakeFeed(lake, markets, interval, sorted(set(names)))
    feed.advance(to_us(start), to_us(end))
    return feed.store
