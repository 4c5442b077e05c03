"""Liquidation prices: where a position's market is when its account, or isolated pool, is liquidated.

A pool has one barrier and many ways to reach it. Two are stated for every position, and named for what the
*other* markets do:

- **co-moving**, under the forecast: every market moves in the barrier's direction r (``riskml.risk.law``)
  up to the distance z to the barrier, so ``price_i = mark_i exp(z r_i)``. It is stated per horizon, because
  z and r are. It is what ``Decisions.distance`` measures; like that it is exact to 1e-9 while no market
  moves by more than a factor e (three fixed steps of the law), and coarse beyond.
- **standstill**, what venues display: the market of the position moves and every other one stands still.
  With exposure W and position gross G of the pool in that market, buffer B = equity - maintenance and
  rate m = maintenance / position gross: ``price = mark (1 - B / (W - m G))``. An engine's maintenance is
  not one rate; its price is solved for on the engine itself (:mod:`riskml.risk.standstill`).

A market is a *symbol*: the positions of a pool in one market move together over venues, with collateral
that moves with that market, which counts as (part of) a leg. As in ``decide``, collateral that moves counts
or does not, whichever is better for the account. The barrier's owner and its treatment are those of
``decide``: ``venue`` and ``riskml`` maintenance move in proportion to gross exposure, and the forecast's
distance takes an engine's so as well (its rate at the marks). For a lone position the two prices are
therefore one number, but for an engine whose rate changes on the way (tiers): there the standstill price is
the engine's own.

A price that cannot be reached is 0 when the market would have to fall, inf when it would have to rise, NaN
when no move of it counts. A pool at or below its barrier has its marks: liquidation is now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import DOWN, UP, AnyArray, Float1D, Float2D, Int1D
from riskml.risk.accounts import AccountBook
from riskml.risk.assess import INITIAL, MAINTENANCE, MarketLaw, assess
from riskml.risk.collateral import Conditions
from riskml.risk.decisions import Prepared, prepare
from riskml.risk.engines import engine_names, get_engine
from riskml.risk.excursion import MAX_DISTANCE, survival
from riskml.risk.explain import flag
from riskml.risk.forecast import Forecast
from riskml.risk.law import MAX_EXPONENT, AccountLawFn, portfolio_scale
from riskml.risk.margin import slow_scale
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import Legs, collateral_variants
from riskml.risk.reasons import reason_names
from riskml.risk.standstill import engine_factors, linear_factors
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class LiquidationPrices:
    """Per position of a book, in the book's order, the two liquidation prices of its market."""

    horizons: tuple[str, ...]
    account_id: AnyArray
    """[n_positions]."""
    venue: AnyArray
    symbol: AnyArray
    mark: Float1D
    """[n_positions] price by which the position is valued now."""
    co_moving_price: Float2D
    """[n_positions, n_horizons] all markets moving as the forecast's law says."""
    standstill_price: Float1D
    """[n_positions] every other market standing still."""
    distance: Float2D
    """[n_positions, n_horizons] scales from the position's pool to its barrier; 1e6 = never."""
    liquidation_probability: Float2D
    """[n_positions, n_horizons] of the position's pool."""
    co_moving_reach: Float2D
    """[n_positions, n_horizons] chance that the market reaches its co-moving price within the horizon: the
    pool's liquidation probability where the pool is that one leg. NaN without a price."""
    standstill_reach: Float2D
    """[n_positions, n_horizons] the same of the standstill price."""
    barrier: AnyArray
    """[n_positions] whose maintenance liquidates."""
    reasons: NDArray[np.uint64]
    """[n_positions] ``unknown-market``, ``degraded-forecast``, ``missing-price`` of the position itself."""

    def __len__(self) -> int:
        return len(self.mark)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready dict per position; a price that is not finite is None."""
        return [self._row(row) for row in range(len(self))]

    def _row(self, row: int) -> dict[str, Any]:
        result: dict[str, Any] = {
            "account_id": str(self.account_id[row]),
            "venue": str(self.venue[row]),
            "symbol": str(self.symbol[row]),
            "mark_price": float(self.mark[row]),
            "standstill_price": _finite(self.standstill_price[row]),
        }
        for column, horizon in enumerate(self.horizons):
            result |= {
                f"co_moving_price_{horizon}": _finite(self.co_moving_price[row, column]),
                f"p_co_moving_price_{horizon}": _finite(self.co_moving_reach[row, column]),
                f"p_standstill_price_{horizon}": _finite(self.standstill_reach[row, column]),
            }
        return result | {
            "barrier": str(self.barrier[row]),
            "reasons": reason_names(int(self.reasons[row])),
        }


def liquidation_prices(
    book: AccountBook,
    forecast: Forecast,
    policy: MarginPolicy,
    *,
    law: AccountLawFn,
    ts: int,
    prices: Mapping[str, float] | None = None,
    market_law: MarketLaw | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> LiquidationPrices:
    """The liquidation prices of every position of a book.

    Parameters
    ----------
    book, forecast, policy, law, ts, prices, conditions, liquidity_usd : as for
        :func:`riskml.risk.decisions.decide`.
    market_law : the law of the forecast and the slow scale, as a scorer keeps it; None = made from the
        forecast alone.

    Returns
    -------
    LiquidationPrices : NaN handling: a position of size 0 has NaN prices. A market without a forecast has the
        policy's unknown scale and a reason.

    Raises
    ------
    DataError : an exposure that is not usable at a live price; ``barrier = "venue"`` and an account without
        one.
    """
    if market_law is None:
        slow = slow_scale(forecast, None, 0.0, policy)
        market_law = MarketLaw.make(forecast, slow.sigma, policy)
    start = prepare(
        book,
        forecast,
        policy,
        market_law,
        ts=ts,
        prices=prices,
        conditions=conditions,
        liquidity_usd=liquidity_usd,
    )
    paths = _assess_paths(book, start, law)
    factor = _standstill_factor(book, start, paths, ts)
    market = _law_rows(book, start)
    pool = start.pools.position_pool
    return LiquidationPrices(
        horizons=forecast.horizons,
        account_id=book.account_id[book.positions.account],
        venue=book.positions.venue,
        symbol=book.positions.symbol,
        mark=start.mark,
        co_moving_price=start.mark[:, None] * paths.growth,
        standstill_price=start.mark * factor,
        distance=paths.distance[pool],
        liquidation_probability=paths.probability[pool],
        co_moving_reach=reach_probability(paths.growth, market, market_law),
        standstill_reach=reach_probability(factor[:, None], market, market_law),
        barrier=start.barrier[book.positions.account],
        reasons=_reasons(forecast, start, market),
    )


def reach_probability(factor: Float2D, market: Int1D, law: MarketLaw) -> Float2D:
    """Chance that a market reaches a price within each horizon [n, n_horizons].

    ``S(g(|ln factor| / sigma))`` of the market's own law on the side of the move; it never falls with a
    longer horizon.

    Parameters
    ----------
    factor : [n, n_horizons or 1] price / current price, >= 0.
    market : [n] row of the market in ``law``.
    law : markets of the forecast, and the unknown one.

    NaN handling: NaN without a price; 0 and inf are never reached.
    """
    with np.errstate(divide="ignore"):
        move = np.log(factor)
    sigma = law.sigma[INITIAL][market]
    scale = np.where(move < 0.0, sigma[..., DOWN], sigma[..., UP])
    z = np.minimum(np.abs(move) / scale, MAX_DISTANCE)
    chance = survival(z**law.power, law.nu[INITIAL][market])
    return np.maximum.accumulate(np.where(z >= MAX_DISTANCE, 0.0, chance), axis=1)


@dataclass
class _Paths:
    """The better of all variants of moving collateral, and what positions move by on its way."""

    distance: Float2D
    """[n_pools, n_horizons]."""
    probability: Float2D
    growth: Float2D
    """[n_positions, n_horizons] co-moving price / mark."""
    barrier_usd: Float1D
    """[n_pools]."""
    standstill_factor: Float1D
    """[n_positions] standstill price / mark for maintenance in proportion to gross exposure."""


def _assess_paths(book: AccountBook, start: Prepared, law: AccountLawFn) -> _Paths:
    """Assess a book whole and without some of its moving collateral; keep the better path of each pool."""
    n_pools, everything = len(start.pools.account), start.net_legs(start.rows)
    variants = [(np.ones(n_pools, dtype=np.bool_), everything, np.zeros(n_pools))]
    variants += [
        (variant.fits, start.net_legs(variant.rows), variant.removed_usd)
        for variant in collateral_variants(start.rows, n_pools)
    ]
    pool, best = start.pools.position_pool, None
    for fits, legs, removed in variants:
        equity = start.pools.equity_usd - removed
        found = assess(legs, equity, start.known_usd, start.market, law, start.policy, start.depth_usd)
        owned = np.isnan(start.known_usd)
        barrier = np.where(owned, found.requirement_usd[MAINTENANCE], start.known_usd)
        leg = _positions_leg(book, start, legs)
        growth = _of_positions(start, leg, _growth(legs, found.distance, start.market), np.nan)
        # What a venue or an engine asks for is given: all collateral counts. Its own maintenance riskml
        # makes for the variant.
        linear = linear_factors(legs, equity, barrier)
        factor = _of_positions(start, leg, linear, np.nan)
        if best is None:
            best = _Paths(found.distance, found.probability, growth, barrier, factor)
            continue
        farther = fits[:, None] & (found.distance > best.distance)
        best.growth = np.where(farther[pool], growth, best.growth)
        best.distance = np.where(farther, found.distance, best.distance)
        lower = fits[:, None] & (found.probability < best.probability)
        best.probability = np.where(lower, found.probability, best.probability)
        cheaper = fits & owned & (barrier + removed < best.barrier_usd)
        best.standstill_factor = np.where(cheaper[pool], factor, best.standstill_factor)
        best.barrier_usd = np.where(cheaper, barrier + removed, best.barrier_usd)
    assert best is not None
    return best


def _standstill_factor(book: AccountBook, start: Prepared, paths: _Paths, ts: int) -> Float1D:
    """Standstill price / mark of every position [n_positions]."""
    if start.policy.barrier not in engine_names():
        return paths.standstill_factor
    legs = start.net_legs(start.rows)
    solved = engine_factors(book, start, legs, get_engine(start.policy.barrier), ts)
    return _of_positions(start, _positions_leg(book, start, legs), solved, np.nan)


def _growth(legs: Legs, distance: Float2D, market: MarketLaw) -> Float2D:
    """``exp(z r)`` of every leg [n_legs, n_horizons]."""
    # The distance of a horizon may be that of a shorter one: its direction goes with it.
    first = np.argmax(distance[:, None, :] == distance[:, :, None], axis=2)
    move = np.take_along_axis(_log_moves(legs, market), first[legs.pool], axis=1)
    z = distance[legs.pool]
    path = np.exp(np.clip(z * move, -MAX_EXPONENT, MAX_EXPONENT))
    never = np.where(move < 0.0, 0.0, np.where(move > 0.0, np.inf, np.nan))
    still = (move == 0.0) & (z > 0.0)
    return np.where(z >= MAX_DISTANCE, never, np.where(still, np.nan, path))


def _log_moves(legs: Legs, market: MarketLaw) -> Float2D:
    """Log-move of every leg per scale of its pool, ``r = -d scale / d w`` [n_legs, n_horizons]."""
    counts = np.diff(legs.indptr)
    gross = np.maximum(sum_by(legs.pool, np.abs(legs.net_usd), len(counts)), 1e-9)
    weight = legs.net_usd / gross[legs.pool]
    moves = np.zeros((len(weight), market.sigma.shape[2]))
    for count in np.unique(counts[counts > 0]):
        leg = legs.indptr[:-1][counts == count][:, None] + np.arange(count)
        sigma = market.sigma[INITIAL][legs.market[leg]][:, :, None]  # [pool, leg, 1, horizon, side]
        _, slope = portfolio_scale(
            weight[leg][:, :, None, None],
            sigma[..., DOWN],
            sigma[..., UP],
            market.loadings[legs.market[leg]],
        )
        moves[leg] = -slope[:, :, 0]
    return moves


def _positions_leg(book: AccountBook, start: Prepared, legs: Legs) -> Int1D:
    """Leg of every position [n_positions], -1 where it has none."""
    width = len(start.depth_usd)
    symbol = np.asarray([start.symbols[name] for name in book.positions.symbol], dtype=np.int64)
    key = start.pools.position_pool * width + symbol
    known = legs.pool * width + legs.symbol
    if not len(known):
        return np.full(len(key), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(known, key), len(known) - 1)
    return np.where((known[place] == key) & (start.pools.exposure_usd != 0.0), place, -1)


def _of_positions(start: Prepared, leg: Int1D, values: AnyArray, missing: float) -> AnyArray:
    """A per-leg value [n_legs, ...] for every position [n_positions, ...]."""
    if not len(values):
        return np.full((len(start.mark), *values.shape[1:]), missing)
    lacks = (leg < 0).reshape(-1, *([1] * (values.ndim - 1)))
    return np.asarray(np.where(lacks, missing, values[np.maximum(leg, 0)]))


def _law_rows(book: AccountBook, start: Prepared) -> Int1D:
    """Row of every position's market in the law [n_positions]."""
    rows = [start.symbols[name] for name in book.positions.symbol]
    return np.minimum(np.asarray(rows, dtype=np.int64), len(start.market.fallback) - 1)


def _reasons(forecast: Forecast, start: Prepared, market: Int1D) -> NDArray[np.uint64]:
    reasons = np.zeros(len(market), dtype=np.uint64)
    flag(reasons, "unknown-market", start.market.fallback[market])
    flag(reasons, "degraded-forecast", np.append(forecast.degraded, False)[market])
    flag(reasons, "missing-price", start.missing)
    return reasons


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
