"""The formulas of the features, written out a second time in plain numpy, and a panel to try them on.

Nothing here looks at an expression: each oracle is the formula of the literature over the window
that the feature's name says, for one market and one bar. Bars are hourly; one market misses a few.
Features of chains and of the cross-section are in ``formulas_across.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from riskml.features.inputs import INPUTS
from riskml.features.weights import axis_columns
from riskml.markets import Market

HOUR_US = 3_600_000_000
N_BARS = 1400
MARKETS = (Market("BTC", "binance"), Market("SOL", "binance"), Market("HYPE", "hyperliquid"))
FLOOR = 1e-8
"""(1 bp)^2."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Inputs [n_bars, n_columns], and windows of them that end at a bar."""

    ts: np.ndarray
    inputs: dict[str, np.ndarray]

    def window(self, values: np.ndarray | str, t: int, i: int, hours: int) -> np.ndarray:
        """The finite values of the last ``hours`` bars."""
        column = (self.inputs[values] if isinstance(values, str) else values)[t - hours + 1 : t + 1, i]
        return column[np.isfinite(column)]

    def at(self, name: str, t: int, i: int) -> float:
        return float(self.inputs[name][t, i])

    @cached_property
    def returns(self) -> np.ndarray:
        log_close = np.log(self.inputs["close"])
        return np.vstack([np.full(log_close.shape[1], np.nan), np.diff(log_close, axis=0)])

    @cached_property
    def parkinson(self) -> np.ndarray:
        return np.log(self.inputs["high"] / self.inputs["low"]) ** 2 / (4 * math.log(2))

    @cached_property
    def traded(self) -> np.ndarray:
        return self.inputs["close"] * self.inputs["volume"]

    @cached_property
    def interest(self) -> np.ndarray:
        usd = self.inputs["open_interest_usd"]
        return np.where(np.isfinite(usd), usd, self.inputs["open_interest"] * self.inputs["close"])

    def sigma(self, t: int, i: int) -> float:
        """EWM of half-life 24 h over 240 h."""
        values = self.parkinson[t - 239 : t + 1, i]
        weights = 0.5 ** (np.arange(239, -1, -1) / 24.0)
        there = np.isfinite(values)
        return math.sqrt(max((values * weights)[there].sum() / weights[there].sum(), FLOOR))

    @cached_property
    def market_returns(self) -> np.ndarray:
        """Mean return over the markets that have one [n_bars, 1]."""
        there = np.isfinite(self.returns)
        total = np.where(there, self.returns, 0.0).sum(axis=1, keepdims=True)
        return total / np.maximum(there.sum(axis=1, keepdims=True), 1)


def make_panel() -> Panel:
    """Three markets over eight weeks."""
    rng = np.random.default_rng(21)
    n_markets = len(MARKETS)
    common = rng.standard_normal((N_BARS, 12, 1))
    steps = 0.002 * (0.7 * common + 0.7 * rng.standard_t(4, (N_BARS, 12, n_markets)))
    path = 4.0 + np.cumsum(steps.reshape(-1, n_markets), axis=0).reshape(steps.shape)
    open_ = path[:, 0] + 0.0005 * rng.standard_normal((N_BARS, n_markets))
    inputs = {name: np.full((N_BARS, n_markets), np.nan) for name in INPUTS}
    inputs |= {
        "open": np.exp(open_),
        "close": np.exp(path[:, -1]),
        "high": np.exp(np.maximum(path.max(axis=1), open_)),
        "low": np.exp(np.minimum(path.min(axis=1), open_)),
    }
    close = inputs["close"]
    for name in ("mark_close", "index_close", "spot_close", "venue_close"):
        inputs[name] = close * np.exp(0.001 * rng.standard_normal(close.shape))
    inputs["index_close"][:, 1] = np.nan
    _fill_fine(np.random.default_rng(22), inputs)
    inputs["volume"] = np.exp(rng.normal(6.0, 0.8, close.shape))
    inputs["taker_buy_volume"] = inputs["volume"] * rng.random(close.shape)
    inputs["taker_buy_volume"][:, 2] = np.nan
    inputs["taker_flow_imbalance"] = rng.uniform(-1.0, 1.0, close.shape)
    inputs["funding_8h"] = np.repeat(rng.normal(1e-4, 2e-4, (N_BARS // 8, n_markets)), 8, axis=0)
    inputs["funding_interval_h"] = np.full(close.shape, 8.0)
    inputs["funding_age_h"] = np.tile(np.arange(N_BARS)[:, None] % 8 * 1.0, n_markets)
    inputs["funding_spread_8h"] = np.abs(rng.normal(0.0, 1e-4, close.shape))
    inputs["open_interest"] = 1e4 * np.exp(np.cumsum(rng.normal(0.0005, 0.01, close.shape), axis=0))
    inputs["open_interest_usd"] = inputs["open_interest"] * close
    inputs["open_interest"][:, 0] = np.nan
    inputs["open_interest_usd"][:, 1] = np.nan
    inputs["depth_bid_usd"] = np.exp(rng.normal(12.0, 0.3, close.shape))
    inputs["depth_ask_usd"] = np.exp(rng.normal(12.0, 0.3, close.shape))
    inputs["long_fraction"] = rng.uniform(0.3, 0.7, close.shape)
    for side in ("long", "short"):
        burst = np.exp(rng.normal(6.0, 1.0, close.shape))
        inputs[f"liquidated_{side}_usd"] = np.where(rng.random(close.shape) < 0.1, burst, 0.0)
    _fill_chains(rng, inputs)
    for row in (1020, 1100, 1240, 1241):
        for name in ("open", "high", "low", "close", "volume", "taker_buy_volume", "mark_close"):
            inputs[name][row, 1] = np.nan
    return Panel(np.arange(1, N_BARS + 1, dtype=np.int64) * HOUR_US, inputs)


def _fill_fine(rng: np.random.Generator, inputs: dict[str, np.ndarray]) -> None:
    """The first market has bars of 5 min but for two days, the others of 15 min only."""
    shape = inputs["close"].shape
    for interval in ("5m", "15m"):
        inputs[f"fine_variance_{interval}"] = np.exp(rng.normal(-10.0, 1.0, shape))
        inputs[f"quarter_variance_{interval}"] = inputs[f"fine_variance_{interval}"] * rng.random(shape)
        inputs[f"fine_square_{interval}"] = np.exp(rng.normal(-10.0, 1.0, shape))
        inputs[f"fine_fall_{interval}"] = inputs[f"fine_square_{interval}"] * rng.random(shape)
    for name in ("fine_variance", "quarter_variance", "fine_square", "fine_fall"):
        inputs[f"{name}_5m"][:, 1:] = np.nan
        inputs[f"{name}_5m"][1231:1279, 0] = np.nan
        inputs[f"{name}_15m"][1230:1234, 2] = np.nan


def _fill_chains(rng: np.random.Generator, inputs: dict[str, np.ndarray]) -> None:
    shape = (N_BARS, len(axis_columns("chain")))

    def daily(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, 24, axis=0)[: shape[0]]

    days = (N_BARS // 24 + 1, shape[1])
    gross = daily(np.exp(rng.normal(14.0, 1.0, days)))
    inputs["bridge_gross_flow"] = gross
    inputs["bridge_net_flow"] = gross * daily(rng.uniform(-1.0, 1.0, days))
    for name, step in (("stablecoin_supply", 0.005), ("tvl", 0.03), ("tx_count", 0.1), ("gas_usd", 0.3)):
        inputs[name] = daily(np.exp(10.0 + np.cumsum(rng.normal(0.0, step, days), axis=0)))
    inputs["gas_gwei"] = daily(np.exp(rng.normal(3.0, 0.5, days)))
    inputs["gas_usd"][:, axis_columns("chain").index("tron")] = np.nan
    inputs["active_addresses"] = inputs["tx_count"] * 0.3
    inputs["block_time_s"] = daily(np.exp(rng.normal(1.0, 0.2, days)))
    inputs["lending_rate"] = daily(np.abs(rng.normal(0.05, 0.02, days)))
    inputs["lending_rate"][:, axis_columns("chain").index("multi")] = np.nan
    inputs["peg_deviation"] = rng.normal(-5e-4, 1e-3, (N_BARS, len(axis_columns("asset"))))


def log_floored(variance: float) -> float:
    return math.log(max(variance, FLOOR))


def rv(p: Panel, t: int, i: int, hours: int) -> float:
    return float(np.mean(p.window(p.returns, t, i, hours) ** 2))


def bipower(p: Panel, t: int, i: int) -> float:
    r = np.abs(p.returns[:, i])
    products = [r[s] * r[s - 1] for s in range(t - 23, t + 1) if np.isfinite(r[s] * r[s - 1])]
    return math.pi / 2.0 * sum(products) / len(products)


def quarticity(p: Panel, t: int, i: int) -> float:
    """Mean form of n/3 sum r^4: (n/3 sum r^4) / n^2."""
    r = p.window(p.returns, t, i, 24)
    return float((len(r) / 3.0 * (r**4).sum()) / len(r) ** 2)


def garman_klass(p: Panel, t: int, i: int) -> float:
    o, h, low, c = (p.inputs[name][t - 23 : t + 1, i] for name in ("open", "high", "low", "close"))
    bars = 0.5 * np.log(h / low) ** 2 - (2.0 * math.log(2.0) - 1.0) * np.log(c / o) ** 2
    return float(np.nanmean(bars))


def rogers_satchell_bars(p: Panel, i: int) -> np.ndarray:
    o, h, low, c = (p.inputs[name][:, i] for name in ("open", "high", "low", "close"))
    return np.log(h / c) * np.log(h / o) + np.log(low / c) * np.log(low / o)


def yang_zhang(p: Panel, t: int, i: int) -> float:
    o, c = p.inputs["open"][:, i], p.inputs["close"][:, i]
    overnight = np.log(o[1:] / c[:-1])[t - 168 : t]
    body, rs = np.log(c / o)[t - 167 : t + 1], rogers_satchell_bars(p, i)[t - 167 : t + 1]
    there = np.isfinite(overnight)
    n = int(there.sum())
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    v_open, v_close = np.var(overnight[there], ddof=1), np.var(body[there], ddof=1)
    return float(v_open + k * v_close + (1 - k) * rs[there].mean())


def semivariance(p: Panel, t: int, i: int, side: int) -> float:
    r = p.window(p.returns, t, i, 24)
    return float((r[side * r > 0.0] ** 2).sum() / len(r))


def corwin_schultz(p: Panel, t: int, i: int) -> float:
    high, low = p.inputs["high"][:, i], p.inputs["low"][:, i]
    spreads = []
    for s in range(t - 23, t + 1):
        beta = math.log(high[s] / low[s]) ** 2 + math.log(high[s - 1] / low[s - 1]) ** 2
        gamma = math.log(max(high[s], high[s - 1]) / min(low[s], low[s - 1])) ** 2
        if not math.isfinite(beta):
            continue
        k = 3.0 - 2.0 * math.sqrt(2.0)
        alpha = (math.sqrt(2.0 * beta) - math.sqrt(beta)) / k - math.sqrt(gamma / k)
        spreads.append(max(2.0 * (math.exp(alpha) - 1.0) / (1.0 + math.exp(alpha)), 0.0))
    return min(1e4 * sum(spreads) / len(spreads), 500.0)


def range_exhaustion(p: Panel, t: int, i: int) -> float:
    spent = math.log(p.window("high", t, i, 24).max() / p.window("low", t, i, 24).min())
    return spent / (math.sqrt(8.0 / math.pi * 24.0) * p.sigma(t - 24, i))


def range_position(p: Panel, t: int, i: int) -> float:
    top, bottom = math.log(p.window("high", t, i, 24).max()), math.log(p.window("low", t, i, 24).min())
    return (math.log(p.at("close", t, i)) - bottom) / (top - bottom)


def jump_component(p: Panel, t: int, i: int) -> float:
    return math.sqrt(max(rv(p, t, i, 24) - bipower(p, t, i), 0.0)) / p.sigma(t - 24, i)


def skewness(p: Panel, t: int, i: int) -> float:
    r = p.window(p.returns, t, i, 168)
    return float(math.sqrt(len(r)) * (r**3).sum() / (r**2).sum() ** 1.5)


def slow_variance(p: Panel, t: int, i: int) -> float:
    """Half-life of 60 d over what there is of 180 d."""
    values = p.parkinson[: t + 1, i]
    weights = 0.5 ** (np.arange(t, -1, -1) / 1440.0)
    there = np.isfinite(values)
    return log_floored((values * weights)[there].sum() / weights[there].sum())


def tail_range(p: Panel, t: int, i: int) -> float:
    ranges = p.window(np.log(p.inputs["high"] / p.inputs["low"]), t, i, 168)
    return math.log(np.quantile(ranges, 0.95) / ranges.mean())


def finest(p: Panel, name: str) -> np.ndarray:
    """Bars of 5 min where they are, else of 15 min [n_bars, n_markets]."""
    five, fifteen = p.inputs[f"{name}_5m"], p.inputs[f"{name}_15m"]
    return np.where(np.isnan(five), fifteen, five)


def fine_har(hours: int) -> Callable[[Panel, int, int], float]:
    return lambda p, t, i: log_floored(p.window(finest(p, "fine_variance"), t, i, hours).mean())


def last_quarter(p: Panel, t: int, i: int) -> float:
    return log_floored(4.0 * finest(p, "quarter_variance")[t, i])


def downside(p: Panel, t: int, i: int) -> float:
    return float(finest(p, "fine_fall")[t, i] / finest(p, "fine_square")[t, i])


def log_hours(p: Panel, i: int) -> np.ndarray:
    return np.log(np.maximum(p.parkinson[:, i], FLOOR))


def season_of_hours(p: Panel, t: int, i: int, period: int, count: int) -> float:
    """The coming hour is ``t + 1``: the same one of earlier days or weeks, against all hours since."""
    x = log_hours(p, i)
    same = [x[t + 1 - period * number] for number in range(1, count + 1)]
    return float(np.nanmean(same) - np.nanmean(x[t + 1 - period * count : t + 1]))


def season_of_windows(p: Panel, t: int, i: int, hours: int, period: int, count: int) -> float:
    """The same for the mean variance of the coming ``hours``."""
    x = p.parkinson[:, i]
    starts = [t + 1 - period * number for number in range(1, count + 1)]
    same = [np.nanmean(x[start : start + hours]) for start in starts]
    return log_floored(float(np.nanmean(same))) - log_floored(float(np.nanmean(x[starts[-1] : t + 1])))


Oracle = Callable[[Panel, int, int], float]

VOLATILITY: dict[str, Oracle] = {
    "log_parkinson_1h": lambda p, t, i: log_floored(p.parkinson[t, i]),
    "log_har_8h": lambda p, t, i: log_floored(p.window(p.parkinson, t, i, 8).mean()),
    "log_har_24h": lambda p, t, i: log_floored(p.window(p.parkinson, t, i, 24).mean()),
    "log_har_7d": lambda p, t, i: log_floored(p.window(p.parkinson, t, i, 168).mean()),
    "log_har_28d": lambda p, t, i: log_floored(p.window(p.parkinson, t, i, 672).mean()),
    "log_ewm_variance_24h": lambda p, t, i: log_floored(p.sigma(t, i) ** 2),
    "log_ewm_variance_60d": slow_variance,
    "log_realised_24h": lambda p, t, i: log_floored(rv(p, t, i, 24)),
    "log_realised_7d": lambda p, t, i: log_floored(rv(p, t, i, 168)),
    "log_garman_klass_24h": lambda p, t, i: log_floored(garman_klass(p, t, i)),
    "log_rogers_satchell_24h": lambda p, t, i: log_floored(
        np.nanmean(rogers_satchell_bars(p, i)[t - 23 : t + 1])
    ),
    "log_yang_zhang_7d": lambda p, t, i: log_floored(yang_zhang(p, t, i)),
    "log_bipower_24h": lambda p, t, i: log_floored(bipower(p, t, i)),
    "log_semivariance_down_24h": lambda p, t, i: log_floored(semivariance(p, t, i, -1)),
    "log_semivariance_up_24h": lambda p, t, i: log_floored(semivariance(p, t, i, 1)),
    "log_quarticity_24h": lambda p, t, i: 0.5 * math.log(quarticity(p, t, i)),
    "quarticity_ratio_24h": lambda p, t, i: 0.5 * math.log(quarticity(p, t, i) / rv(p, t, i, 24) ** 2),
    "return_1h": lambda p, t, i: p.returns[t, i] / p.sigma(t - 1, i),
    "return_24h": lambda p, t, i: p.window(p.returns, t, i, 24).sum() / (math.sqrt(24) * p.sigma(t, i)),
    "downside_share_24h": lambda p, t, i: semivariance(p, t, i, -1) / rv(p, t, i, 24),
    "jump_share_24h": lambda p, t, i: max(1.0 - bipower(p, t, i) / rv(p, t, i, 24), 0.0),
    "jump_component_24h": jump_component,
    "skewness_7d": skewness,
    "vol_of_vol_7d": lambda p, t, i: np.log(np.maximum(p.window(p.parkinson, t, i, 168), FLOOR)).std(),
    "tail_range_7d": tail_range,
    "relative_volume_24h": lambda p, t, i: math.log(
        p.window("volume", t, i, 24).mean() / p.window("volume", t, i, 672).mean()
    ),
    "drawdown_7d": lambda p, t, i: (
        math.log(p.at("close", t, i) / p.window("high", t, i, 168).max()) / (math.sqrt(168) * p.sigma(t, i))
    ),
    "rebound_7d": lambda p, t, i: (
        math.log(p.at("close", t, i) / p.window("low", t, i, 168).min()) / (math.sqrt(168) * p.sigma(t, i))
    ),
    "range_exhaustion_24h": range_exhaustion,
    "range_position_24h": range_position,
    "high_low_spread_24h": corwin_schultz,
    "history_28d": lambda p, t, i: p.window("close", t, i, 672).size / 24.0,
    "log_fine_variance_1h": fine_har(1),
    "fine_ratio_1h": lambda p, t, i: fine_har(1)(p, t, i) - log_floored(p.parkinson[t, i]),
    "log_last_quarter_variance": last_quarter,
    "last_quarter_share_1h": lambda p, t, i: last_quarter(p, t, i) - fine_har(1)(p, t, i),
    "fine_downside_share_1h": downside,
    "log_fine_har_8h": fine_har(8),
    "log_fine_har_24h": fine_har(24),
    "log_har_3d": lambda p, t, i: log_floored(p.window(p.parkinson, t, i, 72).mean()),
    "log_har_14d": lambda p, t, i: log_floored(p.window(p.parkinson, t, i, 336).mean()),
    "season_ratio_1h_14d": lambda p, t, i: season_of_hours(p, t, i, 24, 14),
    "season_ratio_8h_14d": lambda p, t, i: season_of_windows(p, t, i, 8, 24, 14),
    "season_week_1h_4w": lambda p, t, i: season_of_hours(p, t, i, 168, 4),
    "season_week_24h_4w": lambda p, t, i: season_of_windows(p, t, i, 24, 168, 4),
}


def funding_z(p: Panel, t: int, i: int) -> float:
    rates = p.window("funding_8h", t, i, 168)
    return (p.at("funding_8h", t, i) - rates.mean()) / max(rates.std(), 1e-5)


def carry(days: int) -> Oracle:
    """Every eighth hour of the panel pays; a rate is in force for eight bars."""
    return lambda p, t, i: 1e4 * p.window("funding_8h", t, i, 24 * days).sum() / 8.0


FUNDING: dict[str, Oracle] = {
    "funding_rate_8h": lambda p, t, i: 1e4 * p.at("funding_8h", t, i),
    "funding_z_7d": funding_z,
    "funding_carry_1d": carry(1),
    "funding_carry_3d": carry(3),
    "funding_carry_7d": carry(7),
    "funding_change_24h": lambda p, t, i: 1e4 * (p.at("funding_8h", t, i) - p.at("funding_8h", t - 24, i)),
    "funding_dispersion": lambda p, t, i: 1e4 * p.at("funding_spread_8h", t, i),
    "hours_to_funding": lambda p, t, i: 8.0 - t % 8,
    "funding_open_interest": lambda p, t, i: (
        1e4 * p.at("funding_8h", t, i) * p.interest[t, i] / (8.0 * p.window(p.traded, t, i, 24).mean())
    ),
}


def interest_change(p: Panel, t: int, i: int) -> float:
    if np.isfinite(p.at("open_interest", t, i)):
        return math.log(p.at("open_interest", t, i) / p.at("open_interest", t - 24, i))
    usd = math.log(p.at("open_interest_usd", t, i) / p.at("open_interest_usd", t - 24, i))
    return usd - p.window(p.returns, t, i, 24).sum()


def depth(p: Panel) -> np.ndarray:
    return p.inputs["depth_bid_usd"] + p.inputs["depth_ask_usd"]


def gap(first: str, second: str) -> Oracle:
    return lambda p, t, i: 1e4 * math.log(p.at(first, t, i) / p.at(second, t, i))


def anchor(p: Panel) -> np.ndarray:
    return np.where(np.isfinite(p.inputs["index_close"]), p.inputs["index_close"], p.inputs["spot_close"])


def basis(p: Panel, t: int, i: int) -> float:
    return 1e4 * p.window(np.log(p.inputs["close"] / anchor(p)), t, i, 8).mean()


def mark_gap(p: Panel, t: int, i: int) -> float:
    return 1e4 * math.log(p.at("mark_close", t, i) / anchor(p)[t, i])


def largest_gap(name: str) -> Oracle:
    return lambda p, t, i: 1e4 * np.abs(p.window(np.log(p.inputs["close"] / p.inputs[name]), t, i, 24)).max()


def taker_imbalance(p: Panel, t: int, i: int) -> float:
    buys = p.window("taker_buy_volume", t, i, 24)
    if buys.size == 0:
        return float(p.window("taker_flow_imbalance", t, i, 24).mean())
    sells = p.window("volume", t, i, 24).sum() - buys.sum()
    return float((buys.sum() - sells) / (buys.sum() + sells))


def toxicity(p: Panel, t: int, i: int) -> float:
    buys, volume = p.window("taker_buy_volume", t, i, 24), p.window("volume", t, i, 24)
    return float(np.abs(buys - (volume - buys)).sum() / volume.sum()) if buys.size else math.nan


def illiquidity(p: Panel, t: int, i: int) -> float:
    bars = np.abs(p.returns) / p.traded
    return math.log(p.window(bars, t, i, 24).mean() / p.window(bars, t, i, 672).mean())


def liquidated(p: Panel, t: int, i: int) -> tuple[float, float]:
    return tuple(float(p.window(f"liquidated_{side}_usd", t, i, 24).sum()) for side in ("long", "short"))


def liquidation_imbalance(p: Panel, t: int, i: int) -> float:
    long, short = liquidated(p, t, i)
    return (long - short) / max(long + short, 1.0)


def liquidation_pressure(side: int) -> Oracle:
    """A book of positions: each bucket of age as one entry per tier, followed to its liquidation."""

    def value(p: Panel, t: int, i: int) -> float:
        base = p.inputs["open_interest"][:, i]
        if not np.isfinite(base[t]):
            base = p.inputs["open_interest_usd"][:, i] / p.inputs["close"][:, i]
        log_close = np.log(p.inputs["close"])
        pressure = 0.0
        for newest, oldest in ((0, 24), (24, 72), (72, 168)):
            added = (base[t - newest] - base[t - oldest]) / base[t]
            entry = p.window(log_close, t - newest, i, oldest - newest).mean()
            since = max(newest, 1)
            for leverage in (50, 20, 10):
                liquidation = entry - side / (2 * leverage)
                if side > 0:
                    gone = math.log(p.window("low", t, i, since).min()) <= liquidation
                else:
                    gone = math.log(p.window("high", t, i, since).max()) >= liquidation
                distance = side * (log_close[t, i] - liquidation)
                if added > 0.0 and not gone:
                    pressure += added / 3.0 * math.exp(-distance / (math.sqrt(24) * p.sigma(t, i)))
        return min(pressure, 1.0)

    return value


POSITIONING: dict[str, Oracle] = {
    "open_interest_level_28d": lambda p, t, i: math.log(
        p.interest[t, i] / p.window(p.interest, t, i, 672).mean()
    ),
    "open_interest_change_24h": interest_change,
    "open_interest_to_volume": lambda p, t, i: math.log(
        p.interest[t, i] / (24.0 * p.window(p.traded, t, i, 24).mean())
    ),
    "open_interest_to_depth": lambda p, t, i: math.log(p.interest[t, i] / depth(p)[t, i]),
    "long_account_skew": lambda p, t, i: p.at("long_fraction", t, i) - (1.0 - p.at("long_fraction", t, i)),
    "basis_bps": basis,
    "mark_gap_bps": largest_gap("mark_close"),
    "mark_index_gap_bps": mark_gap,
    "perp_spot_gap_bps": gap("close", "spot_close"),
    "venue_gap_bps": gap("close", "venue_close"),
    "venue_gap_largest_24h": largest_gap("venue_close"),
    "taker_imbalance_24h": taker_imbalance,
    "order_flow_toxicity_24h": toxicity,
    "illiquidity_24h": illiquidity,
    "depth_imbalance": lambda p, t, i: (
        (p.at("depth_bid_usd", t, i) - p.at("depth_ask_usd", t, i)) / depth(p)[t, i]
    ),
    "depth_change_7d": lambda p, t, i: math.log(depth(p)[t, i] / p.window(depth(p), t, i, 168).mean()),
    "liquidation_imbalance_24h": liquidation_imbalance,
    "liquidation_intensity_24h": lambda p, t, i: math.log1p(
        1e4 * sum(liquidated(p, t, i)) / (24.0 * p.window(p.traded, t, i, 24).mean())
    ),
    "liquidation_pressure_long": liquidation_pressure(1),
    "liquidation_pressure_short": liquidation_pressure(-1),
}

OF_ONE_MARKET = VOLATILITY | FUNDING | POSITIONING
