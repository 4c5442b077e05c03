"""Forecasts of a whole history, equal to what a live scorer would have said bar by bar.

Features come from the lake in the compiled form, the graph and the guards are the scorer's
own. The bundle's markets are always loaded, whatever markets are asked for, because they
define the cross-section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, BoolND, Float2D, Float3D, FloatND, TimeUs
from riskml.errors import DataError, nearest
from riskml.features.evaluate import evaluate_features, input_names, lookback_bars
from riskml.features.inputs import input_spec
from riskml.features.nodes import PRESENCE_INPUT
from riskml.markets import Market, symbols
from riskml.scoring.session import LoadedBundle
from riskml.scoring.stream import WARM_UP, GraphStream, GuardStream, RawBar
from riskml.tables.align import grid_bounds, load_grid
from riskml.tables.compiled import CompiledOps
from riskml.tables.lake import Lake
from riskml.units import TimeLike, duration_bars, duration_us, format_us

CHUNK_BARS = 4096
"""Bars per load: their features fit into memory for hundreds of markets."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ForecastHistory:
    """Forecasts of every bar that closes in a range."""

    ts: TimeUs
    """Closes of the bars [n_ts], a regular grid."""
    markets: tuple[str, ...]
    horizons: tuple[str, ...]
    sigma: FloatND
    """[n_ts, n_markets, n_horizons, 2]."""
    nu: Float3D
    """[n_ts, n_markets, n_horizons]."""
    variance: Float3D
    """Same shape."""
    stress: Float3D
    """Same shape."""
    loadings: Float3D
    """[n_ts, n_markets, n_factors]."""
    available: BoolND
    """The market's bar is there [n_ts, n_markets]; elsewhere the graph saw a masked slot."""
    degraded: AnyArray
    """Bits of ``riskml.scoring.guards.DEGRADED_NAMES`` [n_ts, n_markets]."""


def forecast_history(
    bundle: LoadedBundle,
    lake: Lake,
    start: TimeLike,
    end: TimeLike,
    *,
    markets: Sequence[str] | None = None,
    guarded: bool = False,
    retire_after: str | None = None,
    progress: Progress | None = None,
) -> ForecastHistory:
    """Forecast every bar that closes in ``[start, end)``.

    Parameters
    ----------
    markets : symbols, any that the lake has bars of; default the bundle's own.
    guarded : False gives what the graph says, for evaluation; True what a scorer would have
        used after its guards, which hold values up while a source is missing.
    retire_after : with an operator who retires an input of a market (``Scorer.retire_inputs``) when it
        has been lost for this long without a break; None = nobody ever does.
    progress : called with (bars done, bars in all, a word).

    Raises
    ------
    DataError : an empty range, an unknown market, no bars.
    """
    first, last = grid_bounds(bundle.manifest.interval, start, end)
    every = history_markets(bundle, lake, markets)
    wanted = [symbols(every).index(name) for name in (markets or bundle.manifest.markets)]
    watched = watched_inputs(bundle)
    guard = GuardStream(bundle, every, watched)
    bars: list[RawBar] = []
    outputs: list[dict[str, AnyArray]] = []
    degraded: list[AnyArray] = []
    total = (last - first) // duration_us(bundle.manifest.interval)
    patience = None if retire_after is None else duration_bars(retire_after, bundle.manifest.interval)
    silent = np.zeros(guard.watch.seen.shape, dtype=np.int64)
    for bar in raw_history(bundle, lake, every, first, last):
        result = guard.step(bar)
        if patience is not None:
            silent = np.where(guard.watch.lost, silent + 1, 0)
            guard.watch.seen &= silent < patience
        if bar.ts < first:
            continue
        bars.append(bar)
        chosen = result.output if guarded else bar.output
        outputs.append({name: values[wanted] for name, values in vars(chosen).items()})
        degraded.append(result.degraded[wanted])
        if progress is not None and (len(bars) % 512 == 0 or len(bars) == total):
            progress(len(bars), total, "forecasting bars")
    return ForecastHistory(
        ts=np.array([bar.ts for bar in bars], dtype=np.int64),
        markets=tuple(symbols(every)[place] for place in wanted),
        horizons=tuple(bundle.manifest.horizons),
        available=np.stack([bar.available[wanted] for bar in bars]),
        degraded=np.stack(degraded),
        **{name: np.stack([output[name] for output in outputs]) for name in outputs[0]},
    )


def history_markets(bundle: LoadedBundle, lake: Lake, wanted: Sequence[str] | None) -> list[Market]:
    """The bundle's markets in its order, then others asked for, each on the venue to read.

    A venue of the manifest that the lake has no bars of gives way to the lake's own choice.

    Raises
    ------
    DataError : the lake has no bars of a market asked for, or of no market at all.
    """
    manifest = bundle.manifest
    known = {market.symbol: market for market in lake.markets(manifest.interval)}
    if not known:
        raise DataError(
            f"the lake at {lake.path} has no {manifest.interval} bars", table="bars", fix="ingest bars first"
        )
    for name in wanted or ():
        if name not in known:
            raise DataError(
                f"the lake has no {manifest.interval} bars of '{name}'.{nearest(name, known)}",
                table="bars",
                market=name,
                fix=f"known markets: {', '.join(known)}",
            )
    venues = {(part.keys["symbol"], part.keys["venue"]) for part in lake.partitions("bars")}
    own = [
        Market(symbol, venue) if (symbol, venue) in venues or symbol not in known else known[symbol]
        for symbol, venue in zip(manifest.markets, manifest.venues, strict=True)
    ]
    return own + [known[name] for name in dict.fromkeys(wanted or ()) if name not in manifest.markets]


def watched_inputs(bundle: LoadedBundle) -> tuple[str, ...]:
    """Inputs whose loss degrades a market, the same as in the live scorer."""
    return tuple(sorted({*input_names(bundle.features), PRESENCE_INPUT}))


def raw_history(
    bundle: LoadedBundle, lake: Lake, markets: Sequence[Market], first: int, last: int
) -> Iterator[RawBar]:
    """What the graph says for bars from the guards' warm-up before ``first`` up to ``last``.

    Parameters
    ----------
    markets : from :func:`history_markets`.
    first, last : bar closes, microseconds, ``last`` excluded.
    """
    bar_us = duration_us(bundle.manifest.interval)
    n_fill = bundle.manifest.n_bars - 1
    begin = first - (duration_bars(WARM_UP, bundle.manifest.interval) - 1) * bar_us
    stream = GraphStream(bundle, symbols(markets))
    for chunk in range(begin, last, CHUNK_BARS * bar_us):
        stop = min(chunk + CHUNK_BARS * bar_us, last)
        lead = n_fill if chunk == begin else 0
        ts, features, inputs = _load(bundle, lake, markets, chunk - lead * bar_us, stop)
        if lead:
            stream.fill(features[:lead], {name: values[:lead] for name, values in inputs.items()})
        yield from stream.push(
            ts[lead:], features[lead:], {name: values[lead:] for name, values in inputs.items()}
        )


def _load(
    bundle: LoadedBundle, lake: Lake, markets: Sequence[Market], start: int, end: int
) -> tuple[TimeUs, Float3D, dict[str, Float2D]]:
    """Grid, features and inputs of bars in [start, end); a market that the lake lacks is all NaN."""
    manifest = bundle.manifest
    bar_us = duration_us(manifest.interval)
    in_lake = {market.symbol for market in lake.markets(manifest.interval)}
    places = [place for place, market in enumerate(markets) if market.symbol in in_lake]
    if not places:
        raise DataError(
            f"the lake at {lake.path} has no bars of the bundle's markets between {format_us(start)} and "
            f"{format_us(end)}",
            table="bars",
            fix="pass a bundle fitted on markets of this lake",
        )
    warm_up = (lookback_bars(bundle.features, manifest.interval) - 1) * bar_us
    names = watched_inputs(bundle)
    grid = load_grid(
        lake, [markets[place] for place in places], manifest.interval, start - warm_up, end, names
    )
    inputs = {}
    for name, values in grid.inputs.items():
        inputs[name] = values
        if input_spec(name).axis == "market":
            inputs[name] = np.full((len(grid.ts), len(markets)), np.nan)
            inputs[name][:, places] = values
    n_bars = (end - start) // bar_us
    features = evaluate_features(
        bundle.features,
        inputs,
        grid.ts,
        interval=manifest.interval,
        reference=range(len(manifest.markets)),
        ops=CompiledOps(),
        tail=n_bars,
        markets=markets,
    )
    return grid.ts[-n_bars:], features, {name: values[-n_bars:] for name, values in inputs.items()}
