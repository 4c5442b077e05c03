"""The generated chains: bridge flows, supply, outages and pegs.

Flows are exogenous: a day of strong net outflow is followed by a more volatile day (see
``synthetic_market``), and the row of a day is known an hour after the day has ended, so
that a forecaster can use it. A few rows are restated two days later, as real providers
do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from riskml.arrays import Bool2D, Float1D, Float2D, TimeUs
from riskml.tables.synthetic_market import Drivers, autoregression
from riskml.tables.synthetic_rows import contract_table, round_significant, text
from riskml.units import DAY, HOUR

CHAINS = ("ethereum", "arbitrum", "solana")
STABLECOINS = ("USDC", "USDT")
_TVL_USD = np.array([5.5e10, 2.6e9, 4.5e9])
_SUPPLY_USD = np.array([[2.5e10, 4.0e10], [1.6e9, 2.5e9], [2.2e9, 0.9e9]])
_GAS_USD = np.array([4.0, 0.12, 0.002])
_GAS_GWEI = np.array([22.0, 0.1, np.nan])
"""Solana prices transactions in another unit."""
_TX_PER_HOUR = np.array([4.5e4, 6.0e4, 1.5e6])
_ADDRESSES_PER_HOUR = np.array([2.2e4, 1.4e4, 1.1e5])
_BLOCK_TIME_S = np.array([12.1, 0.26, 0.41])
_BRIDGE_SHARE = (0.65, 0.35)
_BRIDGES = ("sim-canonical", "sim-router")
_LAG = HOUR
"""Time from the end of a day to when its row is known."""


@dataclass(frozen=True)
class ChainHistory:
    """What happened on the chains; daily arrays [n_days, n_chains], hourly [n_hours, n_chains]."""

    net_usd: Float2D
    """Net inflow over bridges per day."""
    gross_usd: Float2D
    supply_usd: Float2D
    """Circulating stablecoins at the end of the day [n_days, n_chains * n_stablecoins]."""
    tvl_usd: Float2D
    lending_rate: Float2D
    stalled: Bool2D
    """The chain makes no blocks in the hour."""
    gas_noise: Float2D
    peg: Float2D
    """Price of each stablecoin at the end of the hour [n_hours, n_stablecoins]."""


def simulate_chains(
    rng: np.random.Generator, start_us: int, n_days: int, account_days: int
) -> tuple[ChainHistory, Drivers]:
    """Draw the chains' history and what the markets feel of it.

    The crash comes in the third fifth of the sample and breaks the USDC peg; a smaller
    fall comes inside the window of the account tables. Heavy outflow precedes both.
    """
    n_hours, n_chains = n_days * 24, len(CHAINS)
    crash_day = max(int(n_days * 0.42), 1)
    after_day = max(n_days - max(account_days // 2, 1), 1)
    common = autoregression(rng.standard_normal(n_days), 0.7, 1.0)
    tails = np.sqrt(3.0 / rng.chisquare(5.0, size=(n_days, 1)))
    score = (0.8 * common[:, None] + 0.6 * rng.standard_normal((n_days, n_chains))) * tails
    for day, size in ((crash_day, 4.0), (after_day, 3.5)):
        score[day - 1] = -size * (0.9 + 0.2 * rng.random(n_chains))
    weight = np.sqrt(_TVL_USD / _TVL_USD.sum())
    net = score * 0.0045 * _TVL_USD.sum() * weight / weight.sum()
    total = net.sum(axis=1)
    # Each day's outflow, in deviations of the sample, acts on the day after it.
    outflow = np.concatenate(([0.0], -total[:-1] / np.median(np.abs(total)) * 0.6745))
    stalled = _outages(rng, n_days, account_days)
    drivers = Drivers(
        hour_of_week=_hour_of_week(start_us, n_hours),
        outflow=np.repeat(outflow, 24),
        stalled=np.asarray(stalled.any(axis=1)),
        crash_hour=crash_day * 24 + 14,
        aftershock_hour=after_day * 24 + 15,
    )
    return _chain_history(rng, net, stalled, drivers.crash_hour), drivers


def _hour_of_week(start_us: int, n_hours: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    # 1970-01-01 was a Thursday: hour 72 of a week that starts on Monday.
    return (start_us // HOUR + np.arange(n_hours, dtype=np.int64) + 72) % 168


def _outages(rng: np.random.Generator, n_days: int, account_days: int) -> Bool2D:
    stalled = np.zeros((n_days * 24, len(CHAINS)), dtype=np.bool_)
    last = max((n_days - account_days) * 24 - 24, 1)
    for chain, count in ((2, 1 + n_days // 120), (1, n_days // 200)):
        for begin in rng.integers(0, last, size=count).tolist():
            stalled[begin : begin + int(rng.integers(4, 17)), chain] = True
    return stalled


def _chain_history(rng: np.random.Generator, net: Float2D, stalled: Bool2D, crash_hour: int) -> ChainHistory:
    n_days, n_chains = net.shape
    n_coins = len(STABLECOINS)
    drift = np.exp(np.cumsum(0.012 * rng.standard_normal((n_days, n_chains)), axis=0))
    tvl = np.maximum(_TVL_USD * drift + 0.5 * np.cumsum(net, axis=0), 0.2 * _TVL_USD)
    moved = np.repeat(np.cumsum(net, axis=0), n_coins, axis=1) * 0.2
    noise = np.exp(np.cumsum(0.002 * rng.standard_normal((n_days, n_chains * n_coins)), axis=0))
    base = _SUPPLY_USD.ravel()
    rate = 0.045 + np.column_stack(
        [autoregression(rng.standard_normal((n_days,)), 10, 0.015) for _ in range(n_chains * n_coins)]
    )
    n_hours = len(stalled)
    peg = 1.0 + 0.0004 * np.column_stack(
        [autoregression(rng.standard_normal(n_hours), 6, 1.0) for _ in STABLECOINS]
    )
    since = np.arange(n_hours) - (crash_hour + 10)
    peg[:, 0] -= np.where(since >= 0, 0.11 * 0.5 ** (np.maximum(since, 0) / 14.0), 0.0)
    return ChainHistory(
        net_usd=net,
        gross_usd=np.abs(net) + 0.006 * _TVL_USD * np.exp(0.4 * rng.standard_normal((n_days, n_chains))),
        supply_usd=np.maximum(base * noise + moved, 0.1 * base),
        tvl_usd=tvl,
        lending_rate=np.maximum(rate, 0.005),
        stalled=stalled,
        gas_noise=np.exp(0.35 * rng.standard_normal((n_hours, n_chains))),
        peg=peg,
    )


def chain_tables(
    rng: np.random.Generator, history: ChainHistory, volatility: Float1D, start_us: int
) -> dict[str, pa.Table]:
    """The tables ``flows``, ``chains`` and ``pegs``.

    ``volatility`` [n_hours] is the market's volatility over its mean: gas follows it.
    """
    n_days, n_hours = len(history.net_usd), len(history.stalled)
    day_end = start_us + DAY * np.arange(1, n_days + 1, dtype=np.int64)
    hour_end = start_us + HOUR * np.arange(1, n_hours + 1, dtype=np.int64)
    return {
        "flows": _flows(rng, history, day_end),
        "chains": _chains(history, volatility, hour_end),
        "pegs": contract_table(
            "pegs",
            {
                "ts": np.repeat(hour_end, len(STABLECOINS)),
                "venue": "sim",
                "asset": text(STABLECOINS, np.tile(np.arange(len(STABLECOINS)), n_hours)),
                "price_usd": np.round(history.peg, 5).ravel(),
                "redemption_usd": np.ones(n_hours * len(STABLECOINS)),
            },
            n_hours * len(STABLECOINS),
        ),
    }


def _flows(rng: np.random.Generator, history: ChainHistory, day_end: TimeUs) -> pa.Table:
    parts = []
    for chain, name in enumerate(CHAINS):
        for share, bridge in zip(_BRIDGE_SHARE, _BRIDGES, strict=True):
            inflow = share * 0.5 * (history.gross_usd[:, chain] + history.net_usd[:, chain])
            outflow = share * 0.5 * (history.gross_usd[:, chain] - history.net_usd[:, chain])
            parts += _with_restated(
                rng,
                day_end,
                {"chain": name, "asset": "ALL", "source": bridge},
                {"inflow_usd": inflow, "outflow_usd": outflow},
            )
        for coin, asset in enumerate(STABLECOINS):
            column = chain * len(STABLECOINS) + coin
            numbers = {
                "supply_usd": history.supply_usd[:, column],
                "lending_rate": history.lending_rate[:, column],
            }
            parts += _with_restated(
                rng, day_end, {"chain": name, "asset": asset, "source": "sim-supply"}, numbers
            )
    return pa.concat_tables(parts)


def _with_restated(
    rng: np.random.Generator, day_end: TimeUs, names: dict[str, str], numbers: dict[str, Float1D]
) -> list[pa.Table]:
    """One source's rows, and one row in fifty once more, restated two days later."""
    first: dict[str, object] = {key: round_significant(values, 7) for key, values in numbers.items()}
    rows = np.flatnonzero(rng.random(len(day_end)) < 0.02)
    factor = 1.0 + 0.02 * rng.standard_normal(len(rows))
    again: dict[str, object] = {
        key: round_significant(values[rows] * factor, 7) for key, values in numbers.items()
    }
    return [
        contract_table("flows", {"ts": day_end, "known_at": day_end + _LAG} | names | first, len(day_end)),
        contract_table(
            "flows",
            {"ts": day_end[rows], "known_at": day_end[rows] + _LAG + 2 * DAY} | names | again,
            len(rows),
        ),
    ]


def _chains(history: ChainHistory, volatility: Float1D, hour_end: TimeUs) -> pa.Table:
    n_hours, n_chains = history.stalled.shape
    busy = history.gas_noise * np.clip(volatility, 0.2, 8.0)[:, None]
    running = ~history.stalled
    # The value of the last day that has ended: a day's flow must not show before its end.
    ended = np.concatenate((history.tvl_usd[:1], history.tvl_usd[:-1]))
    tvl = np.repeat(ended, 24, axis=0)
    return contract_table(
        "chains",
        {
            "ts": np.repeat(hour_end, n_chains),
            "chain": text(CHAINS, np.tile(np.arange(n_chains), n_hours)),
            "source": "sim",
            "tvl_usd": round_significant(tvl, 5).ravel(),
            "gas_usd": round_significant(_GAS_USD * busy, 4).ravel(),
            "gas_gwei": round_significant(_GAS_GWEI * busy, 4).ravel(),
            "active_addresses": np.round(_ADDRESSES_PER_HOUR * np.sqrt(busy) * running).ravel(),
            "tx_count": np.round(_TX_PER_HOUR * np.sqrt(busy) * running).ravel(),
            "block_time_s": round_significant(
                np.where(running, _BLOCK_TIME_S * (1 + 0.02 * np.log(history.gas_noise)), 3600.0), 4
            ).ravel(),
        },
        n_hours * n_chains,
    )
