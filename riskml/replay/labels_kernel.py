"""The walk along the path, compiled: when does a pool's equity fall below its maintenance?

Within a bar only low, high and close of each source are recorded, not when they came. For a pool with
several markets that leaves three answers, each a lower bound of the next one's crossing time:

- *possible*: some prices inside the bar's box of [low, high] per source are a breach. The pool's
  margin (equity less maintenance) is a sum over sources of functions that are concave in their price,
  because maintenance rates rise with notional; so its least value is reached with every source at one of
  its two ends, and is found exactly.
- *together*: all sources at their lows, all at their highs or all at their closes are a breach: markets
  that move as one. This is the label.
- *confirmed*: every path through the bars is a breach: the closes are one, or one source at its worse end
  is, with all others at their best.

With one source per pool the three are the same and exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Int1D, Int2D
from riskml.replay.labels_legs import Tiers

_F = TypeVar("_F", bound=Callable[..., Any])
TOGETHER, POSSIBLE, CONFIRMED = 0, 1, 2


def _jit(function: _F) -> _F:
    compiled: _F = numba.njit(cache=True, nogil=True)(function)
    return compiled


class Walkers(NamedTuple):
    """Legs sorted by row, pool and source [n_legs]; rows are accounts at a time [n_rows]."""

    begin: Int1D
    """[n_rows + 1] row r owns legs begin[r] to begin[r + 1]."""
    pool: Int1D
    source: Int1D
    """Column of the prices."""
    funding: Int1D
    """Column of the funding rates, -1 = none."""
    units: Float1D
    """Signed value over start price."""
    start_price: Float1D
    rate: Float1D
    tier: Int1D
    paid_before: Float1D
    """Rates of the first bar's payments that came at or before the row's time."""


class Windows(NamedTuple):
    """Bars that each row walks through [n_rows]."""

    first: Int1D
    last: Int1D
    """Last one, included; below ``first`` = none."""
    whole: Bool1D
    """Whether the first bar begins at the row's time. If not, only its close is used: its low and high
    may be older than the row."""


class Prices(NamedTuple):
    """See :class:`riskml.replay.labels_path.PathPanel`."""

    low: Float2D
    high: Float2D
    close: Float2D
    rate: Float2D


class Walked(NamedTuple):
    """Result per row."""

    breach: Int2D
    """[n_rows, 3] first bar of a breach, together, possible, confirmed; -1 = none."""
    below_at_start: Bool1D
    equity_start: Float1D
    maintenance_start: Float1D
    equity_min: Float1D
    """Least sum over pools, with all sources at low, high or close; the start included."""
    ratio_min: Float1D
    """Least equity over maintenance of a pool with positions; NaN = no maintenance."""


def walk(
    walkers: Walkers,
    windows: Windows,
    prices: Prices,
    tiers: Tiers,
    pool_equity: Float1D,
    pool_open: Bool1D,
    rest_equity: Float1D,
) -> Walked:
    """Walk every row along its bars.

    Parameters
    ----------
    pool_equity : [n_pools] at the start prices.
    pool_open : [n_pools] the pool has positions, so it can be liquidated.
    rest_equity : [n_rows] equity of pools without legs.
    """
    n_rows = len(windows.first)
    out = Walked(
        np.full((n_rows, 3), -1, dtype=np.int64),
        np.zeros(n_rows, dtype=np.bool_),
        rest_equity.copy(),
        np.zeros(n_rows),
        np.full(n_rows, np.nan),
        np.full(n_rows, np.nan),
    )
    _walk_rows(walkers, windows, prices, tiers, pool_equity.copy(), pool_open, rest_equity, out)
    return out


@_jit
def _walk_rows(
    walkers: Walkers,
    windows: Windows,
    prices: Prices,
    tiers: Tiers,
    pool_cash: Float1D,
    pool_open: Bool1D,
    rest_equity: Float1D,
    out: Walked,
) -> None:
    for row in range(len(windows.first)):
        _start(row, walkers, tiers, pool_cash, pool_open, out)
        for bar in range(windows.first[row], windows.last[row] + 1):
            whole = windows.whole[row] or bar > windows.first[row]
            low = high = close = rest_equity[row]
            leg = walkers.begin[row]
            while leg < walkers.begin[row + 1]:
                pool, end = walkers.pool[leg], _end_of_pool(walkers, leg, walkers.begin[row + 1])
                at = _pool_at_bar(bar, whole, leg, end, walkers, prices, tiers)
                before = pool_cash[pool]
                is_first = bar == windows.first[row]
                pool_cash[pool] -= _funding_due(bar, is_first, leg, end, walkers, prices)
                low, high = low + before + at[0], high + before + at[1]
                close += pool_cash[pool] + at[2]
                if pool_open[pool]:
                    _judge(row, bar, before, pool_cash[pool], at, out)
                leg = end
            out.equity_min[row] = min(out.equity_min[row], low, high, close)


@_jit
def _start(
    row: int, walkers: Walkers, tiers: Tiers, pool_cash: Float1D, pool_open: Bool1D, out: Walked
) -> None:
    leg = walkers.begin[row]
    while leg < walkers.begin[row + 1]:
        pool, end = walkers.pool[leg], _end_of_pool(walkers, leg, walkers.begin[row + 1])
        maintenance = 0.0
        for item in range(leg, end):
            maintenance += _maintenance(
                abs(walkers.units[item] * walkers.start_price[item]),
                walkers.rate[item],
                walkers.tier[item],
                tiers,
            )
        out.equity_start[row] += pool_cash[pool]
        if pool_open[pool]:
            out.maintenance_start[row] += maintenance
            out.below_at_start[row] |= pool_cash[pool] < maintenance
            out.ratio_min[row] = _less(out.ratio_min[row], pool_cash[pool], maintenance)
        leg = end
    out.equity_min[row] = out.equity_start[row]


@_jit
def _judge(
    row: int,
    bar: int,
    before: float,
    after: float,
    at: tuple[float, float, float, float, float, float, float, float],
    out: Walked,
) -> None:
    """Note a breach; payments count from the bar's close on."""
    low, high, close, low_need, high_need, close_need, floor, sure = at
    confirmed = after + (close - close_need) < 0.0 or before + sure < 0.0
    together = confirmed or before + min(low - low_need, high - high_need) < 0.0
    possible = together or before + floor < 0.0
    if confirmed and out.breach[row, 2] < 0:
        out.breach[row, 2] = bar
    if together and out.breach[row, 0] < 0:
        out.breach[row, 0] = bar
    if possible and out.breach[row, 1] < 0:
        out.breach[row, 1] = bar
    out.ratio_min[row] = _less(out.ratio_min[row], before + low, low_need)
    out.ratio_min[row] = _less(out.ratio_min[row], before + high, high_need)
    out.ratio_min[row] = _less(out.ratio_min[row], after + close, close_need)


@_jit
def _pool_at_bar(
    bar: int, whole: bool, begin: int, end: int, walkers: Walkers, prices: Prices, tiers: Tiers
) -> tuple[float, float, float, float, float, float, float, float]:
    """Change in value since the start and maintenance of a pool's legs, at a bar.

    Returns
    -------
    change with all sources at low, high, close; maintenance likewise; least margin in the box (change
    less maintenance); greatest margin with the most harmful source at its worse end.
    """
    low = high = close = low_need = high_need = close_need = 0.0
    floor = ceiling = 0.0
    drop = 0.0  # most that one source can take off the ceiling, <= 0
    at_low = at_high = loose = 0.0
    bent, n_sources = False, 0
    for leg in range(begin, end):
        source, units, start = walkers.source[leg], walkers.units[leg], walkers.start_price[leg]
        last = prices.close[bar, source]
        bottom = prices.low[bar, source] if whole else last
        top = prices.high[bar, source] if whole else last
        rate, tier = walkers.rate[leg], walkers.tier[leg]
        need_low = _maintenance(abs(units * bottom), rate, tier, tiers)
        need_high = _maintenance(abs(units * top), rate, tier, tiers)
        low_need, high_need = low_need + need_low, high_need + need_high
        close_need += _maintenance(abs(units * last), rate, tier, tiers)
        low, high = low + units * (bottom - start), high + units * (top - start)
        close += units * (last - start)
        margin_low, margin_high = units * (bottom - start) - need_low, units * (top - start) - need_high
        at_low, at_high = at_low + margin_low, at_high + margin_high
        loose += max(margin_low, margin_high)
        bent |= tier >= 0 and _tier(abs(units * bottom), tier, tiers) != _tier(abs(units * top), tier, tiers)
        if leg + 1 == end or walkers.source[leg + 1] != source:
            # Straight lines are greatest at an end; a bent sum may be greater between, so it is bounded.
            worst, best = min(at_low, at_high), loose if bent else max(at_low, at_high)
            floor, ceiling, drop = floor + worst, ceiling + best, min(drop, worst - best)
            at_low = at_high = loose = 0.0
            bent, n_sources = False, n_sources + 1
    sure = floor if n_sources == 1 else ceiling + drop
    return low, high, close, low_need, high_need, close_need, floor, sure


@_jit
def _funding_due(bar: int, is_first: bool, begin: int, end: int, walkers: Walkers, prices: Prices) -> float:
    due = 0.0
    for leg in range(begin, end):
        column = walkers.funding[leg]
        if column >= 0:
            rate = prices.rate[bar, column]
            if is_first:
                rate -= walkers.paid_before[leg]
            due += rate * walkers.units[leg] * prices.close[bar, walkers.source[leg]]
    return due


@_jit
def _end_of_pool(walkers: Walkers, leg: int, stop: int) -> int:
    end = leg + 1
    while end < stop and walkers.pool[end] == walkers.pool[leg]:
        end += 1
    return end


@_jit
def _tier(notional: float, table: int, tiers: Tiers) -> int:
    lower = tiers.lower
    tier = 0
    while tier + 1 < lower.shape[1] and notional >= lower[table, tier + 1]:
        tier += 1
    return tier


@_jit
def _maintenance(notional: float, rate: float, table: int, tiers: Tiers) -> float:
    if table < 0:
        return notional * rate
    tier = _tier(notional, table, tiers)
    return notional * tiers.rate[table, tier] - tiers.deduction[table, tier]


@_jit
def _less(ratio: float, equity: float, maintenance: float) -> float:
    """The lesser of a ratio (NaN = none yet) and equity over maintenance."""
    if not maintenance > 0.0:
        return ratio
    found = equity / maintenance
    return found if np.isnan(ratio) or found < ratio else ratio
