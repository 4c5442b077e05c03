"""Feeds the level control of :mod:`riskml.risk.conformal` with guarded bars.

Shared by the live scorer and the backfill, through :class:`riskml.scoring.requirements.Requirements`.
A degraded market needs no rule here: it gives no feedback, and its anchor keeps the quantiles of its
last sound bar, so that an outage never lowers a requirement through the level either.
"""

from __future__ import annotations

import numpy as np

from riskml.arrays import Float2D
from riskml.errors import ConfigError
from riskml.features.evaluate import input_names
from riskml.risk.conformal import LevelControl, LevelController, LevelQuantiles
from riskml.risk.forecast import Forecast
from riskml.risk.policy import MarginPolicy
from riskml.scoring.guards import GuardedForecast
from riskml.scoring.session import LoadedBundle
from riskml.scoring.stream import PRICE_INPUTS
from riskml.units import duration_bars, duration_us


class LevelFeed:
    """One controller aimed at ``initial_level``; its shift is applied to both levels of the policy."""

    def __init__(self, bundle: LoadedBundle, policy: MarginPolicy) -> None:
        manifest = bundle.manifest
        lower, upper = policy.adaptive_level_max_lower, policy.adaptive_level_max_raise
        control = LevelControl(policy.initial_level, policy.adaptive_level_step, upper, lower)
        bars = [duration_bars(horizon, manifest.interval) for horizon in manifest.horizons]
        self.controller = LevelController(control, bars, 0)
        self._interval_us = duration_us(manifest.interval)
        self._of_level = (
            (policy.initial_horizon, LevelQuantiles(policy.initial_level, lower, upper)),
            (policy.maintenance_horizon, LevelQuantiles(policy.maintenance_level, lower, upper)),
        )

    def take(self, guarded: GuardedForecast, forecast: Forecast) -> Float2D:
        """Take the next bar; quantiles [2 (initial, maintenance), n_nu] at the levels from now on."""
        controller = self.controller
        controller.widen(len(forecast.markets))
        if controller.last_ts is not None and forecast.ts - controller.last_ts != self._interval_us:
            controller.forget()
        prices = guarded.prices
        if prices is None:
            prices = np.full((len(forecast.markets), 3), np.nan)
        controller.step(forecast.ts, prices, forecast.sigma, forecast.nu, forecast.power, ~forecast.degraded)
        return np.stack(
            [
                quantiles.rows(controller.applied_shift(forecast.horizon(horizon)))
                for horizon, quantiles in self._of_level
            ]
        )


def make_level_feed(bundle: LoadedBundle, policy: MarginPolicy) -> LevelFeed | None:
    """The feed that the policy asks for; None = off.

    Raises
    ------
    ConfigError : the bundle does not read the prices that windows are judged by.
    """
    if policy.adaptive_level == "off":
        return None
    read = input_names(bundle.features)
    missing = [name for name in PRICE_INPUTS[:2] if name not in read]
    if missing:
        raise ConfigError(
            f"adaptive_level needs the input '{missing[0]}', which the bundle's features do not read",
            fix="set adaptive_level to off, or export a bundle with features of highs and lows",
        )
    return LevelFeed(bundle, policy)
