"""One pass of the account law over netted legs: requirements, probability and shares per pool."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Float3D, FloatND, Int1D
from riskml.risk.excursion import MAX_DISTANCE, quantile_table
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn, unit_loss
from riskml.risk.margin import combine, concentration_rate, leg_extremes, liquidity_cost, stressed_loss
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import Legs
from riskml.risk.sums import sum_by
from riskml.units import DAY, duration_us

BLOCK = 4096
"""Accounts per call of the law: large enough to hide the call, small enough for the cache."""
INITIAL, MAINTENANCE = 0, 1
MATERIAL = 0.01
"""Share of the requirement from which the cost of closing is named as a reason."""
UNKNOWN_NU = 3.0
"""Degrees of freedom of a market without a forecast: the fat end of what is fitted (3.5-4.1)."""


@cache
def _levels_table(levels: tuple[float, ...]) -> Float2D:
    return quantile_table(levels)


@dataclass(frozen=True)
class MarketLaw:
    """The forecast's markets plus one row for those without a forecast, ready for the law."""

    sigma: FloatND
    """[2, n_markets + 1, n_horizons, 2]: the fast forecast, then the slow scale."""
    nu: Float3D
    loadings: Float2D
    fallback: Bool1D
    """[n_markets + 1] rows on the unknown market's scale."""
    quantiles: Float2D
    power: Float1D
    horizons: tuple[int, int, int]
    """Positions of the initial, maintenance and action horizon."""

    @classmethod
    def make(
        cls,
        forecast: Forecast,
        slow: Float3D,
        policy: MarginPolicy,
        quantiles: Float2D | None = None,
    ) -> MarketLaw:
        """Extend a forecast; a row with a NaN or a scale <= 0 counts as unknown.

        ``quantiles`` [2 (initial, maintenance), n_nu] replaces those of the policy's levels.
        """
        n_horizons = len(forecast.horizons)
        with np.errstate(invalid="ignore"):
            bad = ~(
                np.all(np.isfinite(forecast.sigma) & (forecast.sigma > 0.0), axis=(1, 2))
                & np.all(np.isfinite(slow) & (slow > 0.0), axis=(1, 2))
                & np.all(np.isfinite(forecast.nu), axis=1)
            )
        days = np.asarray([duration_us(horizon) / DAY for horizon in forecast.horizons])
        unknown = np.repeat((policy.unknown_daily_scale * np.sqrt(days))[:, None], 2, axis=1)
        scales = []
        for values in (forecast.sigma, slow):
            good = values[~bad]
            # Never milder than the wildest market that is known.
            row = np.maximum(unknown, good.max(axis=0)) if len(good) else unknown
            scales.append(np.concatenate([np.where(bad[:, None, None], row, values), row[None]]))
        nu = np.concatenate(
            [np.where(bad[:, None], UNKNOWN_NU, forecast.nu), np.full((1, n_horizons), UNKNOWN_NU)]
        )
        loadings = np.where(bad[:, None], 0.0, np.nan_to_num(forecast.loadings))
        return cls(
            np.stack(scales),
            np.stack([nu, nu]),
            np.concatenate([loadings, np.zeros((1, loadings.shape[1]))]).astype(np.float64),
            np.append(bad, True),
            _levels_table((policy.initial_level, policy.maintenance_level))
            if quantiles is None
            else quantiles,
            forecast.power,
            (
                forecast.horizon(policy.initial_horizon),
                forecast.horizon(policy.maintenance_horizon),
                forecast.horizon(policy.action_horizon),
            ),
        )

    @cached_property
    def unit_losses(self) -> tuple[FloatND, FloatND]:
        """Per product, what 1 USD loses alone [n_horizons up to the product's, n_markets + 1, 2 sides]."""
        initial, maintenance = (
            np.moveaxis(
                unit_loss(self.sigma[product], self.nu[product], self.quantiles[product], self.power), 1, 0
            )[: self.horizons[product] + 1]
            for product in (INITIAL, MAINTENANCE)
        )
        return initial, maintenance

    @cached_property
    def unit_margins(self) -> Float3D:
        """What 1 USD needs alone [2 (initial, maintenance), n_markets + 1, 2 (long, short)]."""
        return np.stack([losses[-1] for losses in self.unit_losses])


@dataclass(frozen=True)
class Binding:
    """Rules that raised a pool's requirement [n_pools]."""

    floored: Bool1D
    offset_capped: Bool1D
    correlation_stressed: Bool1D
    concentrated: Bool1D
    illiquid: Bool1D
    """The cost of closing is more than ``MATERIAL`` of the requirement."""


@dataclass(frozen=True)
class Assessment:
    """Per pool; pools without legs have requirement 0 and p = 0."""

    requirement_usd: Float2D
    """[2 (initial, maintenance), n_pools]; not yet rounded, initial >= maintenance."""
    probability: Float2D
    distance: Float2D
    share: Float1D
    """[n_legs] Euler share of the pool's scale over the initial horizon."""
    scale_usd: Float1D
    """[n_pools] scale over the initial horizon."""
    binding: Binding
    barrier_usd: Float1D
    """[n_pools] maintenance of the barrier."""


@dataclass(frozen=True)
class _Raw:
    """Ratios of the law, scattered back to pools and legs."""

    probability: Float2D
    distance: Float2D
    ratios: Float2D
    """[2 (initial, maintenance), n_pools] margin at the forecast's correlations."""
    scale: Float1D
    share: Float1D
    top_share: Float1D
    """[n_pools] largest share over the horizons up to the initial one: a longer one never asks for less."""


def assess(
    legs: Legs,
    equity_usd: Float1D,
    known_maintenance_usd: Float1D,
    market: MarketLaw,
    law: AccountLawFn,
    policy: MarginPolicy,
    liquidity_usd: Float1D,
) -> Assessment:
    """Assess every pool that has legs.

    Parameters
    ----------
    equity_usd : [n_pools].
    known_maintenance_usd : [n_pools] maintenance of the barrier's owner; NaN = riskml's own, for which
        the law runs twice: first for the requirement, then for the probability of reaching it.
    liquidity_usd : [n_symbols] what a market can absorb; NaN = unknown, inf = not asked.
    """
    gross = sum_by(legs.pool, np.abs(legs.net_usd), len(equity_usd))
    # A book that nets to nothing still divides by something; its weights are 0.
    gross = np.maximum(gross, 1e-9)
    known = ~np.isnan(known_maintenance_usd)
    given = np.where(known, known_maintenance_usd, 0.0)
    raw = _run(legs, np.where(known, (equity_usd - given) / gross, 1.0), given, gross, market, law)
    requirement, binding = _requirements(legs, raw, gross, market, policy, liquidity_usd)
    probability, distance, barrier = raw.probability, raw.distance, given
    open_pools = ~known & (np.diff(legs.indptr) > 0)
    if open_pools.any():
        barrier = np.where(known, given, requirement[MAINTENANCE])
        own = _run(legs, (equity_usd - barrier) / gross, barrier, gross, market, law, only=open_pools)
        probability = np.where(open_pools[:, None], own.probability, probability)
        distance = np.where(open_pools[:, None], own.distance, distance)
    return Assessment(requirement, probability, distance, raw.share, raw.scale * gross, binding, barrier)


def _requirements(
    legs: Legs, raw: _Raw, gross: Float1D, market: MarketLaw, policy: MarginPolicy, liquidity_usd: Float1D
) -> tuple[Float2D, Binding]:
    n_pools = len(gross)
    margin = raw.ratios * gross
    worst = _stressed_usd(legs, margin, market)
    base, capped, stressed = combine(margin, worst, _stand_alone_usd(legs, n_pools, market), policy)
    concentration = concentration_rate(raw.top_share, gross, policy)
    depth = liquidity_usd[legs.symbol]
    closed = np.abs(legs.net_usd)
    # Moving collateral of a market of unknown liquidity has its size haircut: the leg pays for positions.
    closed = np.where(np.isnan(depth), np.minimum(closed, legs.position_usd), closed)
    cost = sum_by(legs.pool, liquidity_cost(closed, depth, policy), n_pools)
    held = sum_by(legs.pool, legs.position_usd, n_pools)
    usd = base * (1.0 + concentration) + cost
    floors = np.stack([policy.initial_floor * held, policy.floor * held])
    floored = usd < floors
    usd = np.maximum(usd, floors)
    usd[INITIAL] = np.maximum(usd[INITIAL], usd[MAINTENANCE])
    has_legs = np.diff(legs.indptr) > 0
    usd = np.where(has_legs, usd, 0.0)
    return usd, Binding(
        floored.any(axis=0) & has_legs,
        capped.any(axis=0) & has_legs,
        stressed.any(axis=0) & has_legs,
        concentration > 0.0,
        cost > MATERIAL * base[INITIAL],
    )


def _stressed_usd(legs: Legs, margin_usd: Float2D, market: MarketLaw) -> Float2D:
    """At the worst of the forecast's correlations, 1 and 0 [2 (initial, maintenance), n_pools]."""
    n_pools = margin_usd.shape[1]
    worst = margin_usd.copy()
    for product, losses in enumerate(market.unit_losses):
        for unit in losses:  # a hedge gains more over a longer horizon: the shorter ones count as well
            parts = leg_extremes(legs.net_usd, unit[legs.market, 0], unit[legs.market, 1])
            sums = (sum_by(legs.pool, part, n_pools) for part in parts)
            worst[product] = stressed_loss(worst[product], *sums)
    return worst


def _stand_alone_usd(legs: Legs, n_pools: int, market: MarketLaw) -> Float2D:
    """Sum of what each leg needs alone [2 (initial, maintenance), n_pools].

    Exposure that netting within a market hid needs what its worse side does, and a leg's initial margin is
    never below its own maintenance. Taken from the markets' own laws: with the book's mixed tail for every
    leg the sum was up to 30 % lower where the tails of the legs differ.
    """
    side = (legs.net_usd < 0.0).astype(np.int64)
    initial, maintenance = market.unit_margins
    return np.stack(
        [
            sum_by(
                legs.pool,
                np.abs(legs.net_usd) * unit[legs.market, side]
                + legs.hidden_usd * unit.max(axis=1)[legs.market],
                n_pools,
            )
            for unit in (np.maximum(initial, maintenance), maintenance)
        ]
    )


def _run(
    legs: Legs,
    buffer_ratio: Float1D,
    maintenance_usd: Float1D,
    gross: Float1D,
    market: MarketLaw,
    law: AccountLawFn,
    only: Bool1D | None = None,
) -> _Raw:
    """Evaluate pools in blocks, bucketed by leg count (1, 4, 16, 64 ...), and scatter the results."""
    n_pools, n_horizons = len(gross), market.sigma.shape[2]
    counts = np.diff(legs.indptr)
    held = sum_by(legs.pool, legs.position_usd, n_pools)
    weight = legs.net_usd / gross[legs.pool]
    part = np.divide(legs.position_usd, held[legs.pool], out=np.zeros(len(weight)), where=held[legs.pool] > 0)
    load = maintenance_usd[legs.pool] * part / gross[legs.pool]
    rate = np.divide(load, np.abs(weight), out=np.zeros(len(weight)), where=weight != 0.0)
    result = _Raw(
        np.zeros((n_pools, n_horizons)),
        np.full((n_pools, n_horizons), MAX_DISTANCE),
        np.zeros((2, n_pools)),
        np.zeros(n_pools),
        np.zeros(len(weight)),
        np.zeros(n_pools),
    )
    chosen = counts > 0 if only is None else only & (counts > 0)
    for pools, width in _blocks(counts, chosen):
        inside = np.arange(width) < counts[pools][:, None]
        leg = np.where(inside, legs.indptr[pools][:, None] + np.arange(width), 0)
        out = law(
            leg_market=np.where(inside, legs.market[leg], 0),
            leg_weight=np.where(inside, weight[leg], 0.0),
            leg_mm_rate=np.where(inside, rate[leg], 0.0),
            buffer_ratio=buffer_ratio[pools],
            sigma=market.sigma,
            nu=market.nu,
            loadings=market.loadings,
            quantile_table=market.quantiles,
        )
        result.probability[pools], result.distance[pools] = out.liquidation_probability, out.distance
        for scenario in (INITIAL, MAINTENANCE):
            at = (slice(None), scenario, market.horizons[scenario], scenario)
            result.ratios[scenario, pools] = out.margin_ratio[at]
        result.scale[pools] = out.scale[:, 0, market.horizons[INITIAL]]
        upto = out.contribution[:, :, : market.horizons[INITIAL] + 1]
        result.share[leg[inside]] = upto[:, :, -1][inside]
        result.top_share[pools] = np.maximum(upto.max(axis=(1, 2)), 0.0)
    return result


def _blocks(counts: Int1D, chosen: Bool1D) -> list[tuple[Int1D, int]]:
    blocks: list[tuple[Int1D, int]] = []
    low, width = 0, 1
    while low < int(counts[chosen].max(initial=0)):
        pools = np.flatnonzero(chosen & (counts > low) & (counts <= width))
        blocks.extend((pools[start : start + BLOCK], width) for start in range(0, len(pools), BLOCK))
        low, width = width, width * 4
    return blocks
