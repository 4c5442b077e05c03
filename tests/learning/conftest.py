"""A small dataset in memory: persistent volatility, a season, gaps, and a signal that a log-HAR misses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from riskml.arrays import AnyArray
from riskml.features.catalog import fingerprint, select
from riskml.markets import Market
from riskml.units import HOUR, to_us

HORIZONS = ("1h", "8h", "24h")
FEATURES = (
    "log_parkinson_1h",
    "log_har_8h",
    "log_har_24h",
    "log_har_7d",
    "log_har_28d",
    "log_ewm_variance_24h",
    "return_1h",
    "funding_rate_8h",
    "factor_loading_1",
    "factor_loading_2",
    "hour_of_week",
)


@dataclass(frozen=True)
class ToyInfo:
    interval: str = "1h"
    horizons: tuple[str, ...] = HORIZONS
    features: tuple[str, ...] = FEATURES
    fingerprint: str = field(default_factory=lambda: fingerprint(select(FEATURES), "1h"))
    data_hashes: dict[str, str] = field(default_factory=lambda: {"bars/a.parquet": "0" * 64})


@dataclass(frozen=True)
class ToyDataset:
    """The fields of ``riskml.tables.build.Dataset``."""

    info: ToyInfo
    ts: AnyArray
    markets: tuple[Market, ...]
    feature_names: tuple[str, ...]
    features: AnyArray
    close: AnyArray
    mae: AnyArray
    variance: AnyArray
    stress: AnyArray


def make_toy(
    n_bars: int = 2600, symbols: tuple[str, ...] = ("BTC", "ETH", "LINK"), seed: int = 3
) -> ToyDataset:
    """Simulate bars with known persistence, then features and targets by plain loops over windows."""
    draw = np.random.default_rng(seed)
    ts = to_us("2023-01-02") + HOUR * np.arange(1, n_bars + 1, dtype=np.int64)
    n_markets = len(symbols)
    hour_of_week = (ts // HOUR + 72) % 168
    log_variance, signal = np.zeros((n_bars, n_markets)), np.zeros((n_bars, n_markets))
    for t in range(1, n_bars):
        log_variance[t] = 0.97 * log_variance[t - 1] + 0.25 * draw.standard_normal(n_markets)
        signal[t] = 0.95 * signal[t - 1] + 0.3 * draw.standard_normal(n_markets)
    log_variance += -10.0 + 0.8 * np.sin(2 * np.pi * hour_of_week / 24)[:, None]
    log_variance[1:] += signal[:-1]
    steps = draw.standard_normal((n_bars, n_markets, 12)) * np.exp(log_variance / 2)[:, :, None] / np.sqrt(12)
    path = np.cumsum(steps.transpose(0, 2, 1).reshape(-1, n_markets), axis=0).reshape(n_bars, 12, n_markets)
    high, low, close = path.max(axis=1), path.min(axis=1), path[:, -1]
    parkinson = np.maximum((high - low) ** 2 / (4 * np.log(2)), 1e-9)
    features = _features(parkinson, close, hour_of_week, signal, draw)
    features[1200:1206, 0] = np.nan
    mae, variance = _targets(high, low, close, parkinson)
    stress = np.where(np.isfinite(variance), (mae[..., 0] > 0.02).astype(float), np.nan)
    return ToyDataset(
        ToyInfo(),
        ts,
        tuple(Market(symbol, "sim") for symbol in symbols),
        FEATURES,
        features.astype(np.float32),
        np.exp(close),
        mae.astype(np.float32),
        variance.astype(np.float32),
        stress.astype(np.float32),
    )


def _features(
    parkinson: AnyArray, close: AnyArray, hour_of_week: AnyArray, signal: AnyArray, draw: np.random.Generator
) -> AnyArray:
    n_bars, n_markets = parkinson.shape
    total = np.vstack([np.zeros((1, n_markets)), np.cumsum(parkinson, axis=0)])
    columns = []
    for window in (1, 8, 24, 168, 672):
        first = np.maximum(np.arange(1, n_bars + 1) - window, 0)
        mean = (total[1:] - total[first]) / (np.arange(1, n_bars + 1) - first)[:, None]
        columns.append(np.log(mean))
    columns.append(columns[2])
    columns.append(np.vstack([np.zeros((1, n_markets)), np.diff(close, axis=0)]) / np.exp(columns[2] / 2))
    funding = signal * 1e-4
    funding[draw.random((n_bars, n_markets)) < 0.2] = np.nan
    columns.append(funding)
    columns += [np.full((n_bars, n_markets), 0.7), np.full((n_bars, n_markets), 0.1)]
    columns.append(np.repeat(hour_of_week[:, None].astype(float), n_markets, axis=1))
    return np.stack(columns, axis=-1)


def _targets(
    high: AnyArray, low: AnyArray, close: AnyArray, parkinson: AnyArray
) -> tuple[AnyArray, AnyArray]:
    n_bars, n_markets = close.shape
    mae = np.full((n_bars, n_markets, 3, 2), np.nan)
    variance = np.full((n_bars, n_markets, 3), np.nan)
    for index, bars in enumerate((1, 8, 24)):
        for t in range(n_bars - bars):
            ahead = slice(t + 1, t + 1 + bars)
            mae[t, :, index, 0] = np.maximum(close[t] - low[ahead].min(axis=0), 0.0)
            mae[t, :, index, 1] = np.maximum(high[ahead].max(axis=0) - close[t], 0.0)
            variance[t, :, index] = parkinson[ahead].sum(axis=0)
    return mae, variance


@pytest.fixture(scope="session")
def toy() -> ToyDataset:
    """Two markets to fit, and LINK, which no fit may use."""
    return make_toy()
