"""Rows that the two margin products are measured on: forecasts, outcomes and yardsticks of one fold.

What ``two_products.py`` reads; run that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from riskml.arrays import BoolND, Float1D, Float3D, FloatND, TimeUs
from riskml.backfill.forecasts import forecast_history, history_markets
from riskml.learning.baselines import ewma_forecast, fhs_margins, fhs_scales, tune_half_life
from riskml.learning.evaluation_data import load_data
from riskml.learning.protocol import COVERAGE_LEVEL, LONG_MARKETS, RETIRE_AFTER, EvaluationData, Fold
from riskml.learning.walk_forward import fold_path
from riskml.risk.engines.hyperliquid import tier_table
from riskml.risk.margin import reference_sigma
from riskml.scoring.session import load_bundle
from riskml.tables.lake import Lake
from riskml.units import DAY, YEAR, duration_us, to_us

TIERS_OF = "2025-06-01"
"""Static tiers of this day are held against every year, as a venue's table would be."""


@dataclass(frozen=True)
class Part:
    """Forecasts and outcomes of one bundle from the start of its calibrate part to the end of its test."""

    ts: TimeUs
    sigma: FloatND
    """[n, n_markets, n_horizons, 2] what the graph says, as the evaluation measures it."""
    nu: Float3D
    served_sigma: FloatND
    """After the guards, which hold scales up while a source is missing; inputs lost for a week retired."""
    served_nu: Float3D
    held_sigma: FloatND
    """The same where nobody ever retires an input, however long ago its source ended."""
    held_nu: Float3D
    degraded: BoolND
    """[n, n_markets] rows where the guards hold up."""
    available: BoolND
    """[n, n_markets] the market's bar is there."""
    power: Float1D
    stressed: Float3D
    """[n_markets, n_horizons, 2] of the manifest."""
    long_run: Float3D
    excursion: FloatND
    """As ``sigma``; NaN where the window is not known."""
    margins: Mapping[str, FloatND]
    """Log distance of the yardsticks, as ``sigma``."""
    data_end: int

    def served(self) -> Part:
        """The same rows as a scorer would have served them."""
        return replace(self, sigma=self.served_sigma, nu=self.served_nu)

    @property
    def calibrate(self) -> BoolND:
        """[n] rows of the calibrate part whose longest window ends in it."""
        return np.asarray(self.ts + DAY <= self.data_end)

    @property
    def test(self) -> BoolND:
        """[n] rows after the purge."""
        return np.asarray(self.ts >= self.data_end + DAY)


def collect(fold: Fold, folds: Path, lake: Lake) -> Part:
    """Forecast, tune and simulate one fold."""
    bundle = load_bundle(fold_path(folds, fold, "1h"))
    manifest, names = bundle.manifest, list(LONG_MARKETS)
    start, end = to_us(manifest.calibrate_start), to_us(fold.test_end)
    every = {market.symbol: market for market in history_markets(bundle, lake, names)}
    markets = [every[name] for name in names]
    data = load_data(lake, markets, to_us(manifest.fit_start), end, interval="1h", horizons=manifest.horizons)
    history = forecast_history(bundle, lake, start, end, markets=names)
    served, held = (
        forecast_history(bundle, lake, start, end, markets=names, guarded=True, retire_after=after)
        for after in (RETIRE_AFTER, None)
    )
    rows = data.between(int(history.ts[0]), int(history.ts[-1]) + 1)
    if not np.array_equal(data.ts[rows], history.ts):
        raise AssertionError("forecasts and outcomes are of the same grid of bars")
    reference = reference_sigma(manifest.reference_sigma, tuple(names), len(manifest.horizons))
    return Part(
        ts=history.ts,
        sigma=history.sigma,
        nu=history.nu,
        served_sigma=served.sigma,
        served_nu=served.nu,
        held_sigma=held.sigma,
        held_nu=held.nu,
        degraded=np.asarray(served.degraded > 0),
        available=np.asarray(history.available, dtype=np.bool_),
        power=np.asarray(manifest.calibration_power or [1.0] * len(manifest.horizons), dtype=np.float64),
        stressed=reference.stressed,
        long_run=reference.long_run,
        excursion=data.excursion[rows],
        margins=yardsticks(data, rows, to_us(manifest.fit_end)),
        data_end=to_us(manifest.data_end),
    )


def yardsticks(data: EvaluationData, rows: slice, fit_end: int) -> dict[str, FloatND]:
    """Log distances of the yardsticks [n rows, n_markets, n_horizons, 2], all causal."""
    variance = ewma_forecast(data, tune_half_life(data, fit_end))
    found = fhs_margins(data, rows, fhs_scales(data, variance))
    normal = NormalDist().inv_cdf(1.0 - (1.0 - COVERAGE_LEVEL) / 2.0)
    found["ewma"] = np.repeat(np.sqrt(variance[rows])[..., None], 2, axis=-1) * normal
    found["historical_1y"] = historical(data, rows)
    return found


def historical(data: EvaluationData, rows: slice) -> FloatND:
    """Plain 99.5 % quantile of the past year's excursions, refreshed every 30 days."""
    result = np.full((rows.stop - rows.start, len(data.markets), len(data.horizons), 2), np.nan)
    period = data.ts[rows] // duration_us("30d")
    for value in np.unique(period):
        mine = np.flatnonzero(period == value)
        first = int(data.ts[rows.start + mine[0]])
        for index, horizon in enumerate(data.horizons):
            past = data.between(first - YEAR, first - duration_us(horizon) + 1)
            sample = data.excursion[past, :, index]
            with np.errstate(invalid="ignore"):
                result[mine, :, index] = np.nanquantile(sample, COVERAGE_LEVEL, axis=0)
    return result


def tiers() -> dict[str, FloatND]:
    """Maintenance and initial rates of Hyperliquid's first tiers [n_markets], a fraction of notional."""
    tables = [tier_table(name, to_us(TIERS_OF)) for name in LONG_MARKETS]
    return {
        "hyperliquid maintenance": np.array([table.rate[0] for table in tables]),
        "hyperliquid initial": np.array([1.0 / table.max_leverage[0] for table in tables]),
    }
