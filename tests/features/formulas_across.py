"""The formulas of features across chains, stablecoins and markets, written out in plain numpy.

See ``formulas.py``, which has to be loaded before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from formulas import FLOOR, MARKETS, N_BARS, VOLATILITY, Oracle, Panel

from riskml.features.weights import axis_weights


def across(axis: str, value: Oracle, *, worst: bool = False) -> Oracle:
    """A value per chain or stablecoin, brought to market i."""

    def market_value(p: Panel, t: int, i: int) -> float:
        weights = axis_weights(axis, [MARKETS[i]])[0]
        found = {c: value(p, t, c) for c in np.flatnonzero(weights)}
        usable = {c: v for c, v in found.items() if math.isfinite(v)}
        if worst:
            return max(usable.values())
        return sum(weights[c] * v for c, v in usable.items()) / sum(weights[c] for c in usable)

    return market_value


def flow_spread(p: Panel, t: int, c: int) -> float:
    return max(float(p.window("bridge_net_flow", t, c, 720).std()), 1000.0)


def flow_z(p: Panel, t: int, c: int) -> float:
    flows = p.window("bridge_net_flow", t, c, 720)
    return float(np.clip((flows[-1] - flows.mean()) / flow_spread(p, t, c), -6.0, 6.0))


def flow_acceleration(p: Panel, t: int, c: int) -> float:
    now, before = (
        p.window("bridge_net_flow", t, c, 72).mean(),
        p.window("bridge_net_flow", t - 72, c, 72).mean(),
    )
    return float(np.clip((now - before) / flow_spread(p, t, c), -6.0, 6.0))


def to_habit(name: str) -> Oracle:
    def value(p: Panel, t: int, c: int) -> float:
        window = p.window(name, t, c, 720)
        return math.log(window[-1] / window.mean()) if window.size else math.nan

    return value


def gas(p: Panel, t: int, c: int) -> float:
    in_usd = to_habit("gas_usd")(p, t, c)
    return in_usd if math.isfinite(in_usd) else to_habit("gas_gwei")(p, t, c)


def lending_z(p: Panel, t: int, c: int) -> float:
    rates = p.window("lending_rate", t, c, 720)
    if rates.size == 0:
        return math.nan
    return float(np.clip((rates[-1] - rates.mean()) / max(rates.std(), 0.001), -6.0, 6.0))


def log_change(name: str, hours: int, limit: float) -> Oracle:
    return lambda p, t, c: float(
        np.clip(math.log(p.at(name, t, c) / p.at(name, t - hours, c)), -limit, limit)
    )


def off_peg(p: Panel, t: int, a: int) -> float:
    return 1e4 * abs(p.at("peg_deviation", t, a))


CROSS_CHAIN: dict[str, Oracle] = {
    "bridge_flow_level_7d": across(
        "chain",
        lambda p, t, c: (
            p.window("bridge_net_flow", t, c, 168).sum() / p.window("bridge_gross_flow", t, c, 168).sum()
        ),
    ),
    "bridge_flow_z_30d": across("chain", flow_z),
    "bridge_flow_acceleration_3d": across("chain", flow_acceleration),
    "bridge_outflow_worst_30d": across("chain", lambda p, t, c: -flow_z(p, t, c), worst=True),
    "stablecoin_supply_change_7d": across("chain", log_change("stablecoin_supply", 168, 0.2)),
    "stablecoin_supply_change_30d": across("chain", log_change("stablecoin_supply", 720, 0.5)),
    "tvl_drawdown_30d": across(
        "chain", lambda p, t, c: max(math.log(p.at("tvl", t, c) / p.window("tvl", t, c, 720).max()), -1.0)
    ),
    "lending_rate": across("chain", lambda p, t, c: 100.0 * p.at("lending_rate", t, c)),
    "lending_rate_stress_30d": across("chain", lending_z, worst=True),
    "gas_stress_30d": across("chain", gas, worst=True),
    "activity_stall_30d": across("chain", lambda p, t, c: -to_habit("tx_count")(p, t, c), worst=True),
    "block_time_stress_30d": across("chain", to_habit("block_time_s"), worst=True),
    "peg_deviation_24h": across(
        "asset", lambda p, t, a: 1e4 * np.abs(p.window("peg_deviation", t, a, 24)).max(), worst=True
    ),
    "peg_discount_bps": across("asset", lambda p, t, a: -1e4 * p.at("peg_deviation", t, a)),
    "peg_speed_24h": across("asset", lambda p, t, a: off_peg(p, t, a) - off_peg(p, t - 24, a), worst=True),
}


def pairs(p: Panel, t: int, i: int, hours: int) -> tuple[np.ndarray, np.ndarray]:
    rows = slice(t - hours + 1, t + 1)
    own, market = p.returns[rows, i], p.market_returns[rows, 0]
    return own[np.isfinite(own)], market[np.isfinite(own)]


def beta(p: Panel, t: int, i: int) -> float:
    own, market = pairs(p, t, i, 168)
    return float((own * market).sum() / (market**2).sum())


def downside_beta(p: Panel, t: int, i: int) -> float:
    own, market = pairs(p, t, i, 168)
    fell = market < 0.0
    return float((own * market)[fell].sum() / (market[fell] ** 2).sum())


def correlation(hours: int) -> Oracle:
    def value(p: Panel, t: int, i: int) -> float:
        own, market = pairs(p, t, i, hours)
        return float((own * market).sum() / math.sqrt((own**2).sum() * (market**2).sum()))

    return value


@cache
def scaled(p: Panel) -> np.ndarray:
    """Return over the root of the mean Parkinson variance of the 24 h before."""
    out = np.full_like(p.returns, np.nan)
    for t in range(25, N_BARS):
        for i in range(len(MARKETS)):
            variance = max(p.window(p.parkinson, t - 1, i, 24).mean(), FLOOR)
            out[t, i] = np.clip(p.returns[t, i] / math.sqrt(variance), -10.0, 10.0)
    return out


def commonality(p: Panel, t: int, i: int) -> float:
    x = scaled(p)[t - 23 : t + 1]
    factor = np.nanmean(x, axis=1)
    return float(np.mean(factor**2) / np.mean(np.nanmean(x**2, axis=0)))


def weighted_correlations(p: Panel, t: int, i: int) -> tuple[float, float, float]:
    """EWM correlations (half-life 10 d over 40 d): own-factor, own-leader, factor-leader."""
    x = scaled(p)[t - 959 : t + 1]
    factor, leader = np.nanmean(x, axis=1), x[:, 0]
    weights = 0.5 ** (np.arange(959, -1, -1) / 240.0)
    use = np.isfinite(x[:, i]) & np.isfinite(leader) & np.isfinite(factor)
    own, factor, leader, weights = x[use, i], factor[use], leader[use], weights[use]

    def corr(a: np.ndarray, b: np.ndarray) -> float:
        return float((weights * a * b).sum() / math.sqrt((weights * a**2).sum() * (weights * b**2).sum()))

    return corr(own, factor), corr(own, leader), corr(factor, leader)


def loading_2(p: Panel, t: int, i: int) -> float:
    own_factor, own_leader, factor_leader = weighted_correlations(p, t, i)
    return (own_leader - own_factor * factor_leader) / math.sqrt(1.0 - factor_leader**2)


def each_market(value: Oracle) -> Callable[[Panel, int], np.ndarray]:
    return lambda p, t: np.array([value(p, t, i) for i in range(len(MARKETS))])


day_returns = each_market(lambda p, t, i: p.window(p.returns, t, i, 24).sum())
day_variances = each_market(lambda p, t, i: p.window(p.parkinson, t, i, 24).mean())
drawdowns = each_market(VOLATILITY["drawdown_7d"])
seasons = each_market(VOLATILITY["season_ratio_1h_14d"])

CROSS_ASSET: dict[str, Oracle] = {
    "market_log_variance_24h": lambda p, t, i: np.log(day_variances(p, t)).mean(),
    "relative_log_variance_24h": lambda p, t, i: (
        np.log(day_variances(p, t))[i] - np.log(day_variances(p, t)).mean()
    ),
    "market_return_24h": lambda p, t, i: (day_returns(p, t) / np.sqrt(24.0 * day_variances(p, t))).mean(),
    "dispersion_24h": lambda p, t, i: 1e4 * day_returns(p, t).std(),
    "factor_loading_1": lambda p, t, i: weighted_correlations(p, t, i)[0],
    "factor_loading_2": loading_2,
    "market_beta_7d": beta,
    "downside_beta_7d": downside_beta,
    "market_correlation_24h": correlation(24),
    "correlation_jump_24h": lambda p, t, i: correlation(24)(p, t, i) - correlation(168)(p, t, i),
    "commonality_24h": commonality,
    "drawdown_share_7d": lambda p, t, i: float((drawdowns(p, t) < -1.0).mean()),
    "market_season_ratio_1h": lambda p, t, i: seasons(p, t).mean(),
    "leader_return_1h": lambda p, t, i: VOLATILITY["return_1h"](p, t, 0),
}

ACROSS = CROSS_CHAIN | CROSS_ASSET
