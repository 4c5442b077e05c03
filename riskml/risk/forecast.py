"""What the market graph says at one time, with what the scorer knows about its quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from riskml.arrays import Bool1D, Float2D, Float3D
from riskml.errors import ConfigError, DataError, nearest
from riskml.units import format_us


@dataclass(frozen=True)
class Forecast:
    """Excursion law, variance and stress of every market after one closed bar."""

    ts: int
    """Close of the bar, microseconds UTC."""
    markets: tuple[str, ...]
    """Symbols, in the order of the arrays' first axis."""
    horizons: tuple[str, ...]
    """Ascending durations, e.g. ``("1h", "8h", "24h")``."""
    sigma: Float3D
    """Scale of the excursion [n_markets, n_horizons, 2], log-return; side 0 = down, 1 = up."""
    nu: Float2D
    """Degrees of freedom [n_markets, n_horizons]."""
    variance: Float2D
    """Forecast of realised variance [n_markets, n_horizons], log-return squared."""
    stress: Float2D
    """Probability of a stress onset [n_markets, n_horizons]."""
    loadings: Float2D
    """Factor loadings [n_markets, n_factors], each row of norm <= 1."""
    degraded: Bool1D
    """[n_markets] True where inputs were missing, stale or out of bounds."""
    venues: tuple[str, ...] = ()
    """Reference venue of each market; empty where unknown."""
    degraded_reasons: tuple[str, ...] = ()
    """Per market, why it is degraded (codes separated by ``|``); empty where it is not."""
    bundle_id: str = ""
    """Bundle that made it."""
    interval: str = "1h"
    """Bar length."""
    calibration_power: tuple[float, ...] = field(default=())
    """Per horizon, b of the calibration map g(z) = z**b; empty = 1."""

    def __post_init__(self) -> None:
        n_markets, n_horizons = len(self.markets), len(self.horizons)
        expected = {
            "sigma": (n_markets, n_horizons, 2),
            "nu": (n_markets, n_horizons),
            "variance": (n_markets, n_horizons),
            "stress": (n_markets, n_horizons),
            "degraded": (n_markets,),
        }
        for name, shape in expected.items():
            found = np.shape(getattr(self, name))
            if found != shape:
                raise DataError(f"the forecast's {name} has shape {found}; {shape} is required")
        if self.loadings.ndim != 2 or self.loadings.shape[0] != n_markets:
            found = self.loadings.shape
            raise DataError(
                f"the forecast's loadings have shape {found}; ({n_markets}, n_factors) is required"
            )
        if self.calibration_power and len(self.calibration_power) != n_horizons:
            raise DataError(
                f"calibration_power has {len(self.calibration_power)} values for {n_horizons} horizons"
            )

    @cached_property
    def market_index(self) -> dict[str, int]:
        """Row of each symbol."""
        return {symbol: row for row, symbol in enumerate(self.markets)}

    @property
    def power(self) -> np.ndarray:
        """Calibration powers [n_horizons], ones where none is stated."""
        return np.asarray(self.calibration_power or (1.0,) * len(self.horizons), dtype=np.float64)

    def horizon(self, name: str) -> int:
        """Position of a horizon on the horizon axis; ConfigError where there is none."""
        if name not in self.horizons:
            raise ConfigError(
                f"there is no horizon '{name}'.{nearest(name, self.horizons)}",
                fix=f"use one of {', '.join(self.horizons)}",
            )
        return self.horizons.index(name)

    def select(self, markets: Sequence[str]) -> Forecast:
        """The forecast of some markets, in the order asked; DataError for an unknown one."""
        missing = [name for name in markets if name not in self.market_index]
        if missing:
            raise DataError(
                f"the forecast of {format_us(self.ts)} has no market '{missing[0]}'."
                f"{nearest(missing[0], self.markets)}",
                market=missing[0],
            )
        rows = [self.market_index[name] for name in markets]
        return Forecast(
            self.ts,
            tuple(markets),
            self.horizons,
            self.sigma[rows],
            self.nu[rows],
            self.variance[rows],
            self.stress[rows],
            self.loadings[rows],
            self.degraded[rows],
            tuple(self.venues[row] for row in rows) if self.venues else (),
            tuple(self.degraded_reasons[row] for row in rows) if self.degraded_reasons else (),
            self.bundle_id,
            self.interval,
            self.calibration_power,
        )
