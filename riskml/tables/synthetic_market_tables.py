"""The simulated market as contract tables: bars, marks, funding, open interest, ..."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from riskml.arrays import Float2D, Int1D, TimeUs
from riskml.errors import ConfigError
from riskml.tables.synthetic_market import MINUTES, MarketPath
from riskml.tables.synthetic_rows import contract_table, round_significant, text
from riskml.units import DAY, HOUR, MINUTE, duration_us

VENUE = "sim"
OTHER_VENUE = "sim2"
"""A second venue that publishes funding only, so that funding differs between venues."""
_DEPTH_BANDS_BPS = (25.0, 100.0)
_DEPTH_EVERY_H = 4
_FLOW_HOURS = 4
_POPULATIONS = (("global_account", -0.09, 0.012), ("top_position", 0.07, 0.008))
"""Groups of accounts: how far each leans with the crowd's positioning, and its noise. Small accounts
take the other side of the crowd's money, as exchanges publish it."""


@dataclass(frozen=True)
class HourlySeries:
    """What the tables share, per hour [n_hours, n_markets]."""

    price: Float2D
    """Last price at the end of the hour, on the tick."""
    activity: Float2D
    """Log variance of the hour over its median."""
    volume_usd: Float2D
    taker_share: Float2D
    """Share of the volume that takers bought."""
    basis: Float2D
    """Log of mark over index price."""
    funding: Float2D
    """Rate per 8 hours."""
    open_interest: Float2D
    """Base units."""


def bar_minutes(interval: str) -> int:
    """Minutes of an interval that divides an hour or a day.

    Raises
    ------
    ConfigError : it does neither, or it is not a whole number of minutes.
    """
    minutes, rest = divmod(duration_us(interval), MINUTE)
    divides_hour = minutes > 0 and MINUTES % minutes == 0
    divides_day = minutes > 0 and minutes % MINUTES == 0 and DAY // MINUTE % minutes == 0
    if rest or not (divides_hour or divides_day):
        raise ConfigError(
            f"bars of {interval} cannot be generated: they must divide an hour or a day",
            fix="use 1m, 5m, 15m, 1h, 4h or 1d",
        )
    return minutes


def hourly_series(rng: np.random.Generator, path: MarketPath) -> HourlySeries:
    """Volume, basis, funding and open interest that follow from the simulated state."""
    hourly, traits = path.hourly, path.traits
    n_hours, n_markets = hourly.sigma.shape
    decimals = [market.decimals for market in traits]
    price = rounded_prices(path.minutes.close[MINUTES - 1 :: MINUTES], decimals)
    before = np.vstack([np.round(np.exp(path.minutes.start), 9), price[:-1]])
    variance = hourly.sigma**2 + hourly.jump**2
    activity = np.log(variance / np.median(variance, axis=0))
    moved = np.log(price / before) / np.sqrt(variance)
    noise = rng.standard_normal((4, n_hours, n_markets))
    base_volume = np.array([market.hourly_volume_usd for market in traits])
    crowd = hourly.positioning
    steep = np.sign(crowd) * np.maximum(np.abs(crowd) - 1.0, 0.0) ** 2
    premium = 2.2e-4 * _trailing_mean(crowd, 8) + 1.0e-4 * _trailing_mean(steep, 8)
    base_interest = np.array([market.open_interest_usd / market.price for market in traits])
    return HourlySeries(
        price=price,
        activity=activity,
        volume_usd=base_volume * np.exp(0.5 * activity + 0.3 * noise[0] + 0.05 * np.abs(crowd)),
        taker_share=np.clip(0.5 + 0.06 * np.tanh(moved) + 0.012 * crowd + 0.02 * noise[1], 0.15, 0.85),
        basis=4e-4 * crowd + 2e-4 * noise[2],
        funding=np.clip(1e-4 + premium, -7.5e-3, 7.5e-3),
        open_interest=base_interest * np.exp(0.35 * hourly.crowding + 0.003 * noise[3]),
    )


def rounded_prices(log_price: Float2D, decimals: list[int]) -> Float2D:
    """Prices on each market's tick [n, n_markets]; rounding keeps the order of prices."""
    price = np.exp(log_price)
    for market, digits in enumerate(decimals):
        price[:, market] = np.maximum(np.round(price[:, market], digits), 10.0**-digits)
    return price


def _trailing_mean(values: Float2D, window: int) -> Float2D:
    total = np.cumsum(np.vstack([np.zeros((1, values.shape[1])), values]), axis=0)
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)[:, None]


def market_tables(
    rng: np.random.Generator, path: MarketPath, series: HourlySeries, start_us: int, interval: str
) -> dict[str, pa.Table]:
    """Every table of the market, ``liquidations`` without those of single accounts."""
    bars, marks = _bars_and_marks(rng, path, series, start_us, interval)
    return {
        "instruments": _instruments(path, start_us),
        "bars": bars,
        "marks": marks,
        "funding": _funding(rng, path, series, start_us),
        "open_interest": _open_interest(path, series, start_us),
        "depth": _depth(rng, path, series, start_us),
        "liquidations": _liquidation_totals(rng, path, series, start_us),
    }


def _symbols(path: MarketPath) -> list[str]:
    return [market.symbol for market in path.traits]


def _long_form(path: MarketPath, ts: TimeUs) -> dict[str, object]:
    """Key columns of a table with one row per time and market."""
    n_markets = len(path.traits)
    codes: Int1D = np.tile(np.arange(n_markets), len(ts))
    return {"ts": np.repeat(ts, n_markets), "venue": VENUE, "symbol": text(_symbols(path), codes)}


def _hour_ends(start_us: int, n_hours: int) -> TimeUs:
    return start_us + HOUR * np.arange(1, n_hours + 1, dtype=np.int64)


def _instruments(path: MarketPath, start_us: int) -> pa.Table:
    rows = len(path.traits)
    symbols = pa.array(_symbols(path))
    return contract_table(
        "instruments",
        {
            "venue": VENUE,
            "symbol": symbols,
            "ts": np.full(rows, start_us),
            "base": symbols,
            "quote": "USDC",
            "settle_asset": "USDC",
            "contract_multiplier": np.ones(rows),
            "kind": "linear",
            "vendor_symbol": pa.array([f"{symbol}-PERP" for symbol in _symbols(path)]),
            "listing": np.full(rows, start_us),
        },
        rows,
    )


def _bars_and_marks(
    rng: np.random.Generator, path: MarketPath, series: HourlySeries, start_us: int, interval: str
) -> tuple[pa.Table, pa.Table]:
    minutes = bar_minutes(interval)
    n_markets = len(path.traits)
    decimals = [market.decimals for market in path.traits]
    n_bars = len(path.minutes.close) // minutes
    close = path.minutes.close[minutes - 1 :: minutes]
    prices = {
        "open": rounded_prices(np.vstack([path.minutes.start, close[:-1]]), decimals),
        "high": rounded_prices(path.minutes.high.reshape(n_bars, minutes, n_markets).max(axis=1), decimals),
        "low": rounded_prices(path.minutes.low.reshape(n_bars, minutes, n_markets).min(axis=1), decimals),
        "close": rounded_prices(close, decimals),
    }
    volume_usd, buy_usd = _volume_per_bar(rng, series, n_bars)
    ts = start_us + minutes * MINUTE * np.arange(1, n_bars + 1, dtype=np.int64)
    key = _long_form(path, ts) | {"interval": interval}
    rows = n_bars * n_markets
    columns = key | {name: value.ravel() for name, value in prices.items()}
    columns["volume"] = round_significant(volume_usd / prices["close"], 7).ravel()
    columns["quote_volume"] = round_significant(volume_usd, 7).ravel()
    columns["trades"] = np.ceil(volume_usd / 1500.0).ravel()
    columns["taker_buy_volume"] = round_significant(buy_usd / prices["close"], 6).ravel()
    # The mark lies between the last price and the index; one factor per bar keeps high >= low.
    at_hour = ((np.arange(1, n_bars + 1) * minutes - 1) // MINUTES).astype(np.int64)
    basis = series.basis[at_hour]
    marks = dict(key)
    for name, value in prices.items():
        marks[f"mark_{name}"] = round_significant(value * np.exp(-0.1 * basis), 8).ravel()
        marks[f"index_{name}"] = round_significant(value * np.exp(-1.1 * basis), 8).ravel()
    return contract_table("bars", columns, rows), contract_table("marks", marks, rows)


def _volume_per_bar(rng: np.random.Generator, series: HourlySeries, n_bars: int) -> tuple[Float2D, Float2D]:
    """Traded and taker-bought value per bar [n_bars, n_markets], summing to the hours'."""
    n_hours, n_markets = series.volume_usd.shape
    buy = series.volume_usd * series.taker_share
    if n_bars <= n_hours:
        shape = (n_bars, n_hours // n_bars, n_markets)
        return series.volume_usd.reshape(shape).sum(axis=1), buy.reshape(shape).sum(axis=1)
    parts = n_bars // n_hours
    weight = rng.gamma(4.0, size=(n_hours, parts, n_markets))
    weight /= weight.sum(axis=1, keepdims=True)
    flat = (n_bars, n_markets)
    return (series.volume_usd[:, None] * weight).reshape(flat), (buy[:, None] * weight).reshape(flat)


def funding_due(path: MarketPath, series: HourlySeries, start_us: int) -> Float2D:
    """The rate that is paid at the end of each hour, 0 when none is due [n_hours, n_markets]."""
    interval_h = np.array([market.funding_interval_h for market in path.traits])
    hour = _hour_ends(start_us, len(series.funding)) // HOUR
    due = hour[:, None] % interval_h == 0
    return np.where(due, np.round(series.funding * interval_h / 8.0, 9), 0.0)


def _funding(rng: np.random.Generator, path: MarketPath, series: HourlySeries, start_us: int) -> pa.Table:
    interval_h = np.array([market.funding_interval_h for market in path.traits])
    rate = funding_due(path, series, start_us)
    ts = _hour_ends(start_us, len(rate))
    hour, market = np.nonzero((ts // HOUR)[:, None] % interval_h == 0)
    parts = []
    for venue in (VENUE, OTHER_VENUE):
        values = rate[hour, market]
        if venue == OTHER_VENUE:
            spread = 0.6e-4 * rng.standard_normal(len(values)) * interval_h[market] / 8.0
            values = np.round(0.9 * values + spread, 9)
        columns = {
            "ts": ts[hour],
            "venue": venue,
            "symbol": text(_symbols(path), market),
            "rate": values,
            "interval_h": interval_h[market].astype(np.float64),
        }
        parts.append(contract_table("funding", columns, len(values)))
    return pa.concat_tables(parts)


def _open_interest(path: MarketPath, series: HourlySeries, start_us: int) -> pa.Table:
    ts = _hour_ends(start_us, len(series.price))
    columns = _long_form(path, ts) | {
        "open_interest": round_significant(series.open_interest, 6).ravel(),
        "open_interest_usd": round_significant(series.open_interest * series.price, 6).ravel(),
    }
    return contract_table("open_interest", columns, series.price.size)


def _depth(rng: np.random.Generator, path: MarketPath, series: HourlySeries, start_us: int) -> pa.Table:
    """Resting orders every few hours; books thin out when the market is wild."""
    ts = _hour_ends(start_us, len(series.price))[_DEPTH_EVERY_H - 1 :: _DEPTH_EVERY_H]
    wild = series.activity[_DEPTH_EVERY_H - 1 :: _DEPTH_EVERY_H]
    tilt = 0.1 * path.hourly.positioning[_DEPTH_EVERY_H - 1 :: _DEPTH_EVERY_H]
    base = np.array([market.hourly_volume_usd for market in path.traits])
    parts = []
    for band in _DEPTH_BANDS_BPS:
        level = 0.05 * base * (band / 100.0) ** 0.8 * np.exp(-0.3 * wild)
        noise = rng.standard_normal((3, *wild.shape))
        columns = _long_form(path, ts) | {
            "band_bps": np.full(wild.size, band),
            "bid_usd": round_significant(level * np.exp(0.2 * noise[0] + tilt), 5).ravel(),
            "ask_usd": round_significant(level * np.exp(0.2 * noise[1] - tilt), 5).ravel(),
            "spread_bps": round_significant(0.8 * np.exp(0.4 * wild + 0.2 * noise[2]), 4).ravel(),
        }
        parts.append(contract_table("depth", columns, wild.size))
    return pa.concat_tables(parts)


def flow_tables(
    rng: np.random.Generator, path: MarketPath, series: HourlySeries, start_us: int
) -> dict[str, pa.Table]:
    """``taker_flow`` and ``long_short``, from the same volumes and positioning as the other tables.

    They draw from a stream of their own, so that no other table depends on them.
    """
    return {
        "taker_flow": _taker_flow(path, series, start_us),
        "long_short": _long_short(rng, path, start_us),
    }


def _taker_flow(path: MarketPath, series: HourlySeries, start_us: int) -> pa.Table:
    """Takers' buys and sells: exactly the bars' volume and taker volume, added up."""
    n_hours, n_markets = series.volume_usd.shape
    ts = _hour_ends(start_us, n_hours)[_FLOW_HOURS - 1 :: _FLOW_HOURS]
    columns = _long_form(path, ts) | {"interval": f"{_FLOW_HOURS}h"}
    for name, share in (("buy", series.taker_share), ("sell", 1.0 - series.taker_share)):
        usd = series.volume_usd * share
        for suffix, values in (("volume", usd / series.price), ("usd", usd)):
            total = values.reshape(len(ts), _FLOW_HOURS, n_markets).sum(axis=1)
            columns[f"{name}_{suffix}"] = round_significant(total, 6).ravel()
    return contract_table("taker_flow", columns, len(ts) * n_markets)


def _long_short(rng: np.random.Generator, path: MarketPath, start_us: int) -> pa.Table:
    crowd = path.hourly.positioning[_FLOW_HOURS - 1 :: _FLOW_HOURS]
    ts = _hour_ends(start_us, len(path.hourly.positioning))[_FLOW_HOURS - 1 :: _FLOW_HOURS]
    parts = []
    for population, lean, noise in _POPULATIONS:
        share = 0.5 + lean * np.tanh(crowd) + noise * rng.standard_normal(crowd.shape)
        columns = _long_form(path, ts) | {
            "population": population,
            "long_fraction": np.round(np.clip(share, 0.05, 0.95), 4).ravel(),
        }
        parts.append(contract_table("long_short", columns, crowd.size))
    return pa.concat_tables(parts)


def _liquidation_totals(
    rng: np.random.Generator, path: MarketPath, series: HourlySeries, start_us: int
) -> pa.Table:
    """Hourly totals per side of all accounts that the account tables do not list."""
    ts = _hour_ends(start_us, len(series.price))
    mean_usd = np.array([1.2e-5 * market.open_interest_usd for market in path.traits])
    parts = []
    for side, count in (("long", path.hourly.long_count), ("short", path.hourly.short_count)):
        hour, market = np.nonzero(count)
        number = count[hour, market]
        notional = mean_usd[market] * rng.gamma(0.7 * number, 1.0 / 0.7)
        notional = np.maximum(round_significant(notional, 6), 1.0)
        columns = {
            "ts": ts[hour],
            "venue": VENUE,
            "symbol": text(_symbols(path), market),
            "account_id": "",
            "side": side,
            "size": round_significant(notional / series.price[hour, market], 6),
            "notional_usd": notional,
        }
        parts.append(contract_table("liquidations", columns, len(number)))
    return pa.concat_tables(parts)
