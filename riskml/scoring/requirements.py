"""From guarded forecasts to decisions: the state that a requirement carries from bar to bar.

Shared by the live scorer and the backfill. Besides the guarded forecast it keeps

- the slow scale behind maintenance, whose rise is rate-limited;
- while a market is degraded, the whole forecast of that market's last sound bar (the
  *anchor*). A hedge may make a book's requirement fall when one scale rises, so holding up
  scales alone is not enough: an account that touches a degraded market gets the larger of
  its requirement under the guarded forecast and under the anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Float3D
from riskml.risk.accounts import AccountBook
from riskml.risk.decisions import Decisions, decide
from riskml.risk.forecast import Forecast
from riskml.risk.margin import maintenance_sigma
from riskml.risk.policy import MarginPolicy
from riskml.scoring.guards import DEGRADED_NAMES, GuardedForecast, reference_sigma
from riskml.scoring.session import LoadedBundle
from riskml.units import HOUR, duration_us

OVERDUE_BARS = 2
"""A forecast older than this many bars is held up by the stressed scale."""


class Requirements:
    """Turns the stream of guarded forecasts into requirements for books.

    Parameters
    ----------
    bundle : gives the account law and the reference scales.
    policy : what is asked.
    """

    def __init__(self, bundle: LoadedBundle, policy: MarginPolicy) -> None:
        self.bundle = bundle
        self.policy = policy
        self.forecast: Forecast | None = None
        self.maintenance: Float3D | None = None
        self.anchors: dict[int, Forecast] = {}
        """Sound forecasts by their time, kept while a market's last sound bar is theirs."""
        self.last_sound: dict[str, int] = {}
        """Time of each market's last sound bar."""
        self.previous: Decisions | None = None

    def take(self, guarded: GuardedForecast, markets: tuple[str, ...], venues: tuple[str, ...]) -> Forecast:
        """Take the next bar; returns it as a :class:`Forecast`."""
        forecast = make_forecast(self.bundle, guarded, markets, venues)
        self._remember_anchors(forecast)
        elapsed_h = 0.0 if self.forecast is None else (forecast.ts - self.forecast.ts) / HOUR
        previous = self.maintenance
        if previous is not None and len(previous) < len(markets):  # new markets start without a past
            none = np.full((len(markets) - len(previous), *previous.shape[1:]), np.nan)
            previous = np.concatenate([previous, none])
        self.maintenance = maintenance_sigma(
            forecast, previous, elapsed_h, self.policy, self._reference(markets)
        )
        self.forecast = forecast
        return forecast
