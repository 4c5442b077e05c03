"""The generated market: a path of one-minute steps with structure that can be learnt.

The model runs hour by hour in units of a market's normal hourly volatility, then the
minutes are filled in. Log variance is a sum of

* season: hour of day, weekend and funding hours;
* common and own autoregressive parts with half-lives from hours to weeks, and a
  two-state regime: the multi-scale persistence that log-HAR is made for;
* leverage: it rises after negative returns and falls after positive ones;
* pressure: a slow response to signals that are *known before* - one-sided positioning
  (seen in funding), a jump of open interest, net outflow over bridges, a stalled chain;
* noise per hour, which nobody can forecast.

Liquidations excite each other (a discrete Hawkes process), push the price, and most of
the push fades. The price has no drift, and highs and lows are those of the continuous
path: between two minutes the extremes are drawn from the Brownian bridge, so that range
estimators and the reflection principle hold up to jumps and pushes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Float3D, Int1D

MINUTES = 60
"""Sub-steps per hour."""
HOURS_PER_YEAR = 8760
_JUMP_MINUTES = 3
"""Minutes over which a jump is spread, so that it leaves a range and not only a gap."""
_CRASH_UNITS = (-10.0, -8.0, -5.0, 4.0, -3.0, 3.0)
"""Hourly returns of the crash, in normal hourly volatilities."""
_AFTERSHOCK_UNITS = (-6.0, -5.0, -3.0, 2.0)
"""A smaller fall inside the account window, so that some accounts are liquidated."""


@dataclass(frozen=True)
class MarketTraits:
    """What a generated market is like; every figure is invented and of a plausible size."""

    symbol: str
    price: float
    """Price at the start, USD."""
    decimals: int
    """Digits of the price tick."""
    annual_volatility: float
    """Realised volatility of the median day, as a fraction per square root of a year."""
    common: float
    """Correlation of the returns with the common factor."""
    maintenance_rate: float
    """Maintenance margin as a fraction of notional."""
    open_interest_usd: float
    hourly_volume_usd: float
    funding_interval_h: int


TRAITS = (
    MarketTraits("BTC", 42_000.0, 1, 0.45, 0.88, 0.0125, 9.0e9, 8.0e8, 8),
    MarketTraits("ETH", 2_300.0, 2, 0.56, 0.86, 0.02, 5.0e9, 5.0e8, 8),
    MarketTraits("SOL", 95.0, 3, 0.72, 0.78, 0.025, 1.5e9, 1.6e8, 8),
    MarketTraits("ARB", 1.5, 4, 0.82, 0.74, 0.05, 2.2e8, 2.5e7, 8),
    MarketTraits("DOGE", 0.085, 6, 0.76, 0.70, 0.05, 6.0e8, 6.0e7, 8),
    MarketTraits("XRP", 0.55, 5, 0.62, 0.70, 0.025, 5.0e8, 5.0e7, 1),
    MarketTraits("AVAX", 36.0, 3, 0.76, 0.76, 0.05, 2.5e8, 3.0e7, 8),
    MarketTraits("OP", 3.2, 4, 0.84, 0.74, 0.05, 1.6e8, 2.0e7, 1),
)
"""The markets that a sample can have, in this order."""


@dataclass(frozen=True)
class Drivers:
    """What reaches the markets from outside, per hour [n_hours]."""

    hour_of_week: Int1D
    """Monday 00:00 UTC = 0."""
    outflow: Float1D
    """Standardised net outflow over bridges of the last day that is known, >= 0 matters."""
    stalled: Bool1D
    """A chain is down in this hour."""
    crash_hour: int
    aftershock_hour: int


@dataclass
class HourlyState:
    """The hourly model's history, in units of normal hourly volatility where it is a return.

    Arrays are [n_hours, n_markets].
    """

    sigma: Float2D
    jump: Float2D
    push: Float2D
    """Price move by liquidations, and its fading."""
    positioning: Float2D
    """Standardised one-sidedness of positions; longs crowd when positive."""
    crowding: Float2D
    """Standardised log open interest."""
    long_count: Float2D
    """Liquidations of longs."""
    short_count: Float2D


@dataclass(frozen=True)
class MinutePath:
    """Log prices per minute. ``close[k]`` is the end of minute k; arrays [n_minutes, n_markets]."""

    start: Float1D
    """Log price before the first minute [n_markets]."""
    close: Float2D
    high: Float2D
    low: Float2D


@dataclass(frozen=True)
class MarketPath:
    """The whole simulated market."""

    traits: tuple[MarketTraits, ...]
    hourly: HourlyState
    """``sigma`` is here the standard deviation of an hour's diffusion, as a log return."""
    minutes: MinutePath


@dataclass
class _Moving:
    """State that the hourly recursion carries, each [n_markets]."""

    n: int
    idio_fast: Float1D = field(init=False)
    idio_slow: Float1D = field(init=False)
    leverage: Float1D = field(init=False)
    pressure: Float1D = field(init=False)
    positioning: Float1D = field(init=False)
    crowding: Float1D = field(init=False)
    excite_long: Float1D = field(init=False)
    excite_short: Float1D = field(init=False)
    push: Float1D = field(init=False)

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name != "n":
                setattr(self, name, np.zeros(self.n))


def decay(half_life_hours: float) -> float:
    """The factor per hour of an exponential decay."""
    return float(0.5 ** (1.0 / half_life_hours))


def autoregression(noise: Float1D, half_life_hours: float, deviation: float) -> Float1D:
    """A stationary AR(1) [n] with the given half-life and standard deviation.

    ``noise`` is standard normal; the first value is drawn from the stationary law.
    """
    keep = decay(half_life_hours)
    gain = deviation * np.sqrt(1.0 - keep * keep)
    path = np.empty(len(noise))
    level = deviation * float(noise[0]) if len(noise) else 0.0
    for row, shock in enumerate(noise.tolist()):
        level = level if row == 0 else keep * level + gain * shock
        path[row] = level
    return path


def season_log_variance(hour_of_week: Int1D) -> Float1D:
    """Log variance by hour of the week [n]: quiet nights and weekends, busy funding hours."""
    hour = hour_of_week % 24
    weekend = hour_of_week >= 5 * 24
    daily = 0.55 * np.cos(2 * np.pi * (hour - 15) / 24) + 0.25 * np.cos(4 * np.pi * (hour - 14) / 24)
    opening = np.where(np.isin(hour, (13, 14)) & ~weekend, 0.35, 0.0)
    return daily + opening - 0.6 * weekend + np.where(hour % 8 == 0, 0.2, 0.0)


def exogenous_log_variance(rng: np.random.Generator, drivers: Drivers) -> Float1D:
    """Log variance shared by all markets [n_hours]: season, common parts, regime, crash."""
    n = len(drivers.hour_of_week)
    fast = autoregression(rng.standard_normal(n), 8, 0.30)
    slow = autoregression(rng.standard_normal(n), 24 * 12, 0.45)
    turbulent = np.zeros(n)
    state, draws = 0, rng.random(n)
    for row in range(n):
        leave = 1.0 / (24 * (25 if state == 0 else 6))
        state = 1 - state if draws[row] < leave else state
        turbulent[row] = state
    after = np.zeros(n)
    for hour, size, half_life in ((drivers.crash_hour, 2.2, 36.0), (drivers.aftershock_hour, 1.0, 24.0)):
        since = np.arange(n) - hour
        after += np.where(since >= 0, size * 0.5 ** (np.maximum(since, 0) / half_life), 0.0)
    return season_log_variance(drivers.hour_of_week) + fast + slow + 0.9 * turbulent + after


def simulate_market(
    rng: np.random.Generator, traits: tuple[MarketTraits, ...], drivers: Drivers
) -> MarketPath:
    """Run the hourly model, scale it to each market's volatility and fill in the minutes.

    Parameters
    ----------
    rng : the only source of chance.
    traits : the markets, n_markets of them.
    drivers : what reaches the markets from outside, n_hours of it.
    """
    n_hours, n_markets = len(drivers.hour_of_week), len(traits)
    common = np.array([market.common for market in traits])
    shocks = rng.standard_normal((n_hours, MINUTES, 1)) * common
    shocks += rng.standard_normal((n_hours, MINUTES, n_markets)) * np.sqrt(1.0 - common**2)
    hourly = _simulate_hours(rng, shocks.sum(axis=1) / np.sqrt(MINUTES), drivers, common)
    # The median day, so that the crash does not shrink all else in a short sample.
    usual = np.median(_daily_mean(hourly.sigma**2 + hourly.jump**2), axis=0)
    unit = np.array([market.annual_volatility for market in traits]) / np.sqrt(HOURS_PER_YEAR * usual)
    for name in ("sigma", "jump", "push"):
        setattr(hourly, name, getattr(hourly, name) * unit)
    start = np.log([market.price for market in traits])
    return MarketPath(traits, hourly, _fill_minutes(rng, hourly, shocks, start))


def _daily_mean(values: Float2D) -> Float2D:
    days = max(len(values) // 24, 1)
    return values[: days * 24].reshape(days, -1, values.shape[1]).mean(axis=1)


def _simulate_hours(
    rng: np.random.Generator, shocks: Float2D, drivers: Drivers, common: Float1D
) -> HourlyState:
    """The recursion over hours; ``shocks`` are standardised hourly returns [n_hours, n_markets]."""
    n_hours, n_markets = shocks.shape
    shared = exogenous_log_variance(rng, drivers)
    noise = rng.standard_normal((n_hours, 5, n_markets))
    jump_draws = rng.random((n_hours, 2, n_markets + 1))
    past = HourlyState(*(np.zeros((n_hours, n_markets)) for _ in range(7)))
    moving = _Moving(n_markets)
    events = {drivers.crash_hour + k: size for k, size in enumerate(_CRASH_UNITS)}
    events.update({drivers.aftershock_hour + k: size for k, size in enumerate(_AFTERSHOCK_UNITS)})
    for hour in range(n_hours):
        _advance_volatility(moving, noise[hour])
        log_variance = shared[hour] + moving.idio_fast + moving.idio_slow + moving.leverage + moving.pressure
        sigma = np.exp(0.5 * np.clip(log_variance + 0.35 * noise[hour, 0], -4.0, 3.6))
        jump = sigma * _jumps(jump_draws[hour], moving.pressure, common)
        if hour in events:
            jump = jump + events[hour] * (0.6 + 0.5 * common)
        past.sigma[hour], past.jump[hour], past.push[hour] = sigma, jump, moving.push * sigma
        standardised = shocks[hour] + jump / sigma + moving.push
        _advance_liquidations(rng, moving, past, hour, standardised)
        _advance_signals(moving, past, hour, standardised, noise[hour], drivers)
    return past


def _advance_volatility(moving: _Moving, noise: Float2D) -> None:
    for name, half_life, deviation, row in (("idio_fast", 12.0, 0.30, 1), ("idio_slow", 24 * 6.0, 0.30, 2)):
        keep = decay(half_life)
        level = keep * getattr(moving, name) + deviation * np.sqrt(1 - keep**2) * noise[row]
        setattr(moving, name, level)


def _jumps(draws: Float2D, pressure: Float1D, common: Float1D) -> Float1D:
    """Jumps in units of sigma [n_markets]: rare, likelier under pressure, larger downwards.

    Up and down jumps have the same mean size times probability, so there is no drift.
    """
    chance = 0.0012 * np.exp(np.clip(2.0 * pressure, -1.0, 3.5))
    chance = np.append(chance, 0.0006 * np.exp(np.clip(2.0 * pressure.mean(), -1.0, 3.5)))
    # Down: size 4.5-7.5 with 2/5 of the chance; up: 3-5 with 3/5, both 2.4 on average.
    down = draws[0] < 0.4 * chance
    up = (draws[0] >= 0.4 * chance) & (draws[0] < chance)
    size = np.where(down, -(4.5 + 3.0 * draws[1]), np.where(up, 3.0 + 2.0 * draws[1], 0.0))
    return size[:-1] + common * size[-1]


def _advance_liquidations(
    rng: np.random.Generator, moving: _Moving, past: HourlyState, hour: int, standardised: Float1D
) -> None:
    """Counts of this hour, and the push that they give to the next."""
    crowd = np.exp(np.clip(0.4 * moving.crowding, -1.0, 1.0))
    tilt = np.exp(np.clip(0.35 * moving.positioning, -1.0, 1.0))
    long_rate = 0.8 * tilt + moving.excite_long + 2.0 * crowd * tilt * np.maximum(-standardised - 0.8, 0.0)
    short_rate = 0.8 / tilt + moving.excite_short + 2.0 * crowd / tilt * np.maximum(standardised - 0.8, 0.0)
    longs = rng.poisson(np.minimum(long_rate, 400.0)).astype(np.float64)
    shorts = rng.poisson(np.minimum(short_rate, 400.0)).astype(np.float64)
    moving.excite_long = 0.5 * moving.excite_long + 0.28 * longs
    moving.excite_short = 0.5 * moving.excite_short + 0.28 * shorts
    # The new push minus what fades of the last: in total three quarters are given back.
    push = 0.06 * (np.sqrt(shorts) - np.sqrt(longs))
    moving.push = np.clip(push - 0.4 * moving.push, -1.5, 1.5)
    past.long_count[hour], past.short_count[hour] = longs, shorts


def _advance_signals(
    moving: _Moving, past: HourlyState, hour: int, standardised: Float1D, noise: Float2D, drivers: Drivers
) -> None:
    """Positioning, open interest, leverage and pressure after this hour."""
    clipped = np.clip(standardised, -6.0, 6.0)
    keep = decay(60)
    moving.positioning = keep * moving.positioning + np.sqrt(1 - keep**2) * (
        0.5 * np.clip(clipped, -3, 3) + 0.87 * noise[3]
    )
    keep = decay(72)
    closed = 0.01 * np.minimum(past.long_count[hour] + past.short_count[hour], 40.0)
    moving.crowding = keep * moving.crowding + np.sqrt(1 - keep**2) * noise[4] - closed + 0.044
    past.positioning[hour], past.crowding[hour] = moving.positioning, moving.crowding
    moving.leverage = decay(14) * moving.leverage - 0.09 * np.clip(clipped, -4.0, 2.5)
    build_up = moving.crowding - past.crowding[max(hour - 24, 0)]
    signal = (
        1.1 * np.maximum(np.abs(moving.positioning) - 1.0, 0.0)
        + 0.9 * np.maximum(build_up - 0.3, 0.0)
        + 0.8 * max(float(drivers.outflow[hour]) - 0.4, 0.0)
        + 0.8 * float(drivers.stalled[hour])
    )
    moving.pressure = decay(9) * moving.pressure + (1.0 - decay(9)) * np.minimum(signal, 4.0)


def _fill_minutes(
    rng: np.random.Generator, hourly: HourlyState, shocks: Float3D, start: Float1D
) -> MinutePath:
    """Minutes of every hour, with the extremes of the Brownian bridge between them.

    For a bridge from a to b with variance v the maximum is
    (a + b + sqrt((b - a)^2 - 2 v ln U)) / 2, U uniform (reflection principle).
    """
    n_hours, n_minutes, n_markets = shocks.shape
    steps = shocks
    steps *= (hourly.sigma / np.sqrt(n_minutes))[:, None, :]
    steps += (hourly.push / n_minutes)[:, None, :]
    first = rng.integers(0, n_minutes - _JUMP_MINUTES, size=(n_hours, n_markets))
    for hour, market in zip(*np.nonzero(hourly.jump), strict=True):
        at = first[hour, market]
        steps[hour, at : at + _JUMP_MINUTES, market] += hourly.jump[hour, market] / _JUMP_MINUTES
    close = start + np.cumsum(steps.reshape(-1, n_markets), axis=0)
    high, low = np.empty_like(close), np.empty_like(close)
    for market in range(n_markets):
        after = close[:, market]
        before = np.concatenate(([start[market]], after[:-1]))
        spread = -2.0 * np.repeat(hourly.sigma[:, market] ** 2 / n_minutes, n_minutes)
        for target, sign in ((high, 1.0), (low, -1.0)):
            reach = np.sqrt((after - before) ** 2 + spread * np.log(1.0 - rng.random(len(after))))
            target[:, market] = 0.5 * (before + after + sign * reach)
    return MinutePath(start, close, high, low)
