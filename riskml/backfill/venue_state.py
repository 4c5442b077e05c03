"""What margin engines read beside a book, as it was known at a time: open interest and FHS distances.

Filtered historical simulation needs the past. Its distances at ``ts`` are those of the newest bar that had
closed by then, from the bars of the 30-day period of ``ts`` and ``lookback`` days before it: the quantile
from windows that had closed when the period began, the volatility from every bar up to ``ts``. A period is
computed once, and it depends on nothing but the lake, so that days can be done in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from riskml.arrays import Bool2D, FloatND, TimeUs
from riskml.features.evaluate import evaluate_features
from riskml.features.nodes import MAX_GAP_BARS
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.risk.engines.fhs import EWMA, SLOW, FhsRules, ewma, fhs_distances, fhs_rules, fhs_scales
from riskml.risk.engines.interface import Distances, VenueState
from riskml.scoring.conditions import liquidity_at, open_interest_at
from riskml.tables.align import Grid, load_grid
from riskml.tables.compiled import CompiledOps
from riskml.tables.lake import Lake
from riskml.tables.targets import slow_features, targets
from riskml.units import HOUR, duration_bars, duration_us

FHS_ENGINES = (EWMA, SLOW)
"""Engines that simulate history."""
FHS_YEARS = 3
"""Calendar years before a day's own that its distances may reach into."""


class FhsHistory:
    """Distances of the FHS engines at any time of a lake.

    Parameters
    ----------
    lake : with bars of ``interval``.
    markets : whose distances are asked for, by their symbols.
    engines : names; those that do not simulate history are left out.
    """

    def __init__(self, lake: Lake, markets: Sequence[Market], interval: str, engines: Sequence[str]) -> None:
        self._lake, self._interval = lake, interval
        known = {market.symbol for market in lake.markets(interval)}
        self._markets = tuple(market for market in markets if market.symbol in known)
        self._engines = tuple(name for name in FHS_ENGINES if name in engines)
        self._period = -1
        self._ts: TimeUs = np.empty(0, dtype=np.int64)
        self._distance: dict[str, FloatND] = {}

    def at(self, ts: int) -> dict[str, Distances]:
        """Distances by engine from bars known at ``ts``.

        NaN handling: a market has NaN without enough history, and when its bars have been missing for more
        than 3 in a row; the engine then asks for the whole notional.
        """
        if not self._engines or not self._markets:
            return {}
        rules = fhs_rules(ts)
        refresh = duration_us(rules.refresh)
        if ts // refresh != self._period:
            self._load(ts // refresh * refresh)
            self._period = ts // refresh
        row = int(np.searchsorted(self._ts, ts, side="right")) - 1
        if row < 0:  # before the first close of the period: nothing of it is known yet
            return {}
        return {
            name: Distances(
                rules.horizons,
                {market.symbol: values[row, place] for place, market in enumerate(self._markets)},
            )
            for name, values in self._distance.items()
        }

    def _load(self, begin: int) -> None:
        """Distances of every bar that closes in the period from ``begin``."""
        rules = fhs_rules(begin)
        start, end = begin - duration_us(rules.lookback), begin + duration_us(rules.refresh)
        grid = load_grid(
            self._lake, self._markets, self._interval, max(start, 0), end, ("close", "high", "low")
        )
        first = int(np.searchsorted(grid.ts, begin))
        every = simulated(grid, rules, first)
        self._ts = grid.ts[first:]
        held = _held(grid.present, first)
        self._distance = {
            name: np.where(
                held[..., None, None] >= 0, _take(every[name], np.maximum(held - first, 0)), np.nan
            )
            for name in self._engines
        }


def simulated(grid: Grid, rules: FhsRules, first: int) -> dict[str, FloatND]:
    """Log distances of bars ``first`` on by engine [n, n_markets, 2 (maintenance, initial), 2 (down, up)]."""
    horizons, interval = rules.horizons, grid.interval
    hours = [duration_us(horizon) / HOUR for horizon in horizons]
    bars = np.array([duration_bars(horizon, interval) for horizon in horizons], dtype=np.float64)
    half_life = [duration_bars(rules.ewma_half_life[horizon], interval) for horizon in horizons]
    parkinson = np.log(grid.high / grid.low) ** 2 / (4.0 * np.log(2.0))
    means = ewma(parkinson, np.array(half_life, dtype=np.float64))
    prices = {"close": grid.close, "high": grid.high, "low": grid.low}
    slow = evaluate_features(slow_features(), prices, grid.ts, interval=interval, ops=CompiledOps())[:, :, 0]
    observed = targets(grid.close, grid.high, grid.low, grid.ts, interval, horizons)
    return {
        name: fhs_distances(
            grid.ts,
            slice(first, len(grid.ts)),
            scale,
            np.asarray(observed.mae, dtype=np.float64),
            horizons,
            level=rules.level,
            rules=rules,
        )
        for name, scale in fhs_scales(means * bars, slow.astype(np.float64), hours).items()
    }


def _held(present: Bool2D, first: int) -> np.ndarray:
    """Row of the newest bar, ``MAX_GAP_BARS`` old at most, for rows ``first`` on [n, n_markets]; -1: none."""
    rows = np.arange(len(present))[:, None]
    newest = np.maximum.accumulate(np.where(present, rows, -1), axis=0)
    fresh = (newest >= first) & (rows - newest <= MAX_GAP_BARS)
    return np.asarray(np.where(fresh, newest, -1)[first:])


def _take(values: FloatND, row: np.ndarray) -> FloatND:
    return np.asarray(values[row, np.arange(values.shape[1])[None, :]])


def venue_state(
    context: SeriesStore, closes: Mapping[str, float], ts: int, history: FhsHistory | None
) -> VenueState:
    """What the lake says about the venues at ``ts``.

    Parameters
    ----------
    context : rows of ``open_interest``. A venue's own figure stands under ``venue:symbol``; the sum over
        venues that publish one, as decisions read it, under ``symbol``.
    closes : symbol -> price for venues that publish base units only.
    """
    by_series = open_interest_at(context, closes, ts)
    interest = dict(liquidity_at(context, closes, ts))
    interest |= {f"{key.place}:{key.name}": value for key, value in by_series.items()}
    return VenueState(open_interest_usd=interest, distances={} if history is None else history.at(ts))
