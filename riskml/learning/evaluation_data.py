"""What was observed, read from a lake for the evaluation: bars, targets and what the baselines read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from riskml.arrays import Float2D
from riskml.learning.protocol import EvaluationData
from riskml.markets import Market, symbols
from riskml.units import duration_bars

if TYPE_CHECKING:
    from riskml.tables.lake import Lake

HAR_FEATURES = ("log_parkinson_1h", "log_har_8h", "log_har_24h", "log_har_7d", "log_har_28d")
BASELINE_FEATURES = (*HAR_FEATURES, "log_ewm_variance_24h", "log_ewm_variance_60d", "hour_of_week")


def load_data(
    lake: Lake,
    markets: Sequence[Market],
    start_us: int,
    end_us: int,
    *,
    interval: str,
    horizons: Sequence[str],
    catalogue: bool = False,
) -> EvaluationData:
    """Read bars, baseline features and targets of [start, end); nothing later is read.

    Parameters
    ----------
    catalogue : keep every feature of the catalogue as well, which gradient boosting reads.
    """
    from riskml.features.catalog import select
    from riskml.tables.align import load_panel
    from riskml.tables.onsets import episode_starts
    from riskml.tables.stress import StressSpec
    from riskml.tables.targets import price_stress, targets

    names = catalogue_names() if catalogue else BASELINE_FEATURES
    panel = load_panel(lake, list(markets), interval, start_us, end_us, features=select(names))
    prices = panel.close, panel.high, panel.low
    stress = price_stress(*prices, panel.ts, interval)
    observed = targets(*prices, panel.ts, interval, tuple(horizons), stress=stress)
    n_har = len(HAR_FEATURES)
    slow = panel.features[:, :, n_har + 1]
    cool_bars = max(1, duration_bars(StressSpec().cool_down, interval))
    with np.errstate(invalid="ignore", divide="ignore"):
        drop_in_sigmas = stress.drop.size / stress.sigma
        drawdown = np.log(trailing_maximum(panel.high, duration_bars("24h", interval)) / panel.close)
    return EvaluationData(
        ts=panel.ts,
        markets=tuple(symbols(markets)),
        interval=interval,
        horizons=tuple(horizons),
        bar_variance=np.log(panel.high / panel.low) ** 2 / (4.0 * math.log(2.0)),
        log_har=panel.features[:, :, :n_har],
        log_fast=panel.features[:, :, n_har],
        log_slow=panel.features[:, :, n_har + 1],
        hour_of_week=panel.features[:, 0, n_har + 2],
        excursion=np.asarray(observed.mae, dtype=np.float64),
        variance=np.asarray(observed.variance, dtype=np.float64),
        stress=np.asarray(observed.stress, dtype=np.float64),
        onset=episode_starts(stress.drop.flag, cool_bars),
        detectors={
            "log_range_1h": panel.features[:, :, 0],
            "drop_1h_sigmas": drop_in_sigmas,
            "drawdown_24h": drawdown,
            "drawdown_24h_sigmas": drawdown / np.exp(0.5 * slow),
        },
        returns=np.diff(np.log(panel.close), axis=0, prepend=np.nan),
        prices=np.stack(prices, axis=-1),
        catalogue=panel.features.astype(np.float32) if catalogue else None,
    )


def catalogue_names() -> tuple[str, ...]:
    """Features of ``EvaluationData.catalogue`` in its order: what the other baselines read comes first."""
    from riskml.features.catalog import CATALOG

    return (*BASELINE_FEATURES, *(f.name for f in CATALOG if f.name not in BASELINE_FEATURES))


def trailing_maximum(values: Float2D, n_bars: int) -> Float2D:
    """Largest of the last ``n_bars`` rows, the row included [n, n_markets]. NaN handling: left out."""
    width, current = 1, np.where(np.isfinite(values), values, -np.inf)
    while width < n_bars:
        step = min(width, n_bars - width)
        current[step:] = np.maximum(current[step:], current[:-step])
        width += step
    return np.where(np.isfinite(current), current, np.nan)
