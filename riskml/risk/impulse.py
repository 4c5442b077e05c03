"""How a requirement answers a step in volatility: overshoot, pace and half-life.

The step goes into the fast forecast itself, from the long-run scale to a multiple of it within one bar, which
is the harshest case; then down the path of the scorer: slow scale with its brakes, the law's unit margins,
floors. How fast a network's forecast follows a step in *prices* is a question to bars, not to the policy
(``training/impulse_response.py``); :func:`measure_response` reads both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riskml.arrays import Float1D, Float2D, Float3D
from riskml.errors import DataError
from riskml.risk.assess import INITIAL, MAINTENANCE, MarketLaw
from riskml.risk.forecast import Forecast
from riskml.risk.margin import ReferenceSigma, slow_scale
from riskml.risk.policy import MarginPolicy
from riskml.units import HOUR

PRODUCTS = {"initial": INITIAL, "maintenance": MAINTENANCE}
VOLATILITY_STEP = 3.0
"""Factor of the step that is reported."""
SETTLE_BARS = 24
"""Bars at the end of a response over which the new level is averaged."""


@dataclass(frozen=True)
class ImpulseResponse:
    """What a step did to one series."""

    before: float
    after: float
    """The new level: mean of the last ``SETTLE_BARS`` bars."""
    peak: float
    overshoot: float
    """Peak above the new level, a fraction of it; 0 where it never rises above."""
    half_life_h: float
    """Hours until half of the way to the new level is behind; NaN where the level did not change."""
    largest_hourly_rise: float
    """Largest relative rise from one bar to the next, per hour."""


def measure_response(hours: Float1D, asked: Float1D) -> ImpulseResponse:
    """Measure one response.

    Parameters
    ----------
    hours : since the step [n], ascending; the last one at or below 0 is the bar before the step.
    asked : requirement at each of them [n], > 0.

    Raises
    ------
    DataError : no bar before the step, fewer than ``SETTLE_BARS`` behind it, or a value that is not
        positive and finite.
    """
    time, series = np.asarray(hours, dtype=np.float64), np.asarray(asked, dtype=np.float64)
    start = int(np.searchsorted(time, 0.0, side="right")) - 1
    if time.shape != series.shape or start < 0 or len(series) - start <= SETTLE_BARS:
        raise DataError(
            f"a response of {len(series)} bars, {start + 1} of them up to the step, cannot be measured",
            fix=f"give a bar at or before 0 h and more than {SETTLE_BARS} behind it",
        )
    bad = np.flatnonzero(~(np.isfinite(series) & (series > 0.0)))
    if len(bad):
        raise DataError(
            f"a requirement is {series[bad[0]]:g}", row=int(bad[0]), fix="leave out bars without one"
        )
    before, after = float(series[start]), float(series[-SETTLE_BARS:].mean())
    peak = float(series[start + 1 :].max())
    covered = np.flatnonzero((series[start:] - before) * np.sign(after - before) >= 0.5 * abs(after - before))
    moved = abs(after - before) > 1e-9 * before
    rise = (series[1:] / series[:-1]) ** (1.0 / np.diff(time)) - 1.0
    return ImpulseResponse(
        before,
        after,
        peak,
        max(peak / after - 1.0, 0.0),
        float(time[start + covered[0]]) if moved else float("nan"),
        float(rise[start:].max()),
    )


def step_response(
    policy: MarginPolicy,
    horizons: tuple[str, ...],
    reference: ReferenceSigma,
    nu: Float2D,
    power: tuple[float, ...] = (),
    *,
    factor: float = VOLATILITY_STEP,
    bars: int = 240,
) -> dict[str, Float3D]:
    """Requirement of 1 USD per product [1 + bars, n_markets, 2 (long, short)]; row 0 is before the step.

    Parameters
    ----------
    horizons : of the reference scales, ascending.
    reference : long-run scale, where the step starts, and stressed scale of each market.
    nu : degrees of freedom [n_markets, n_horizons].
    factor : of the scale at the step. ``bars`` : hours that are followed.

    Raises
    ------
    DataError : a long-run scale that is unknown, or a factor that is not positive.
    """
    if not (np.isfinite(reference.long_run).all() and (reference.long_run > 0.0).all() and factor > 0.0):
        raise DataError(
            "a step needs the long-run scale of every market and a positive factor",
            fix="use a bundle whose manifest has reference_sigma",
        )
    found: dict[str, list[Float2D]] = {name: [] for name in PRODUCTS}
    previous: Float3D | None = None
    for hour in range(bars + 1):
        forecast = _forecast(reference.long_run * (factor if hour else 1.0), nu, horizons, power, hour)
        slow = slow_scale(forecast, previous, 1.0, policy, reference, nu)
        previous = slow.sigma
        unit = MarketLaw.make(forecast, slow.sigma, policy).unit_margins[:, :-1]
        maintenance = np.maximum(unit[MAINTENANCE], policy.floor)
        found["maintenance"].append(maintenance)
        found["initial"].append(np.maximum(np.maximum(unit[INITIAL], policy.initial_floor), maintenance))
    return {name: np.stack(rows) for name, rows in found.items()}


def _forecast(
    sigma: Float3D, nu: Float2D, horizons: tuple[str, ...], power: tuple[float, ...], hour: int
) -> Forecast:
    n_markets = len(sigma)
    return Forecast(
        ts=hour * HOUR,
        markets=tuple(f"market {place}" for place in range(n_markets)),
        horizons=horizons,
        sigma=sigma,
        nu=nu,
        variance=np.square(sigma).mean(axis=2),
        stress=np.zeros_like(nu),
        loadings=np.zeros((n_markets, 1)),
        degraded=np.zeros(n_markets, dtype=np.bool_),
        calibration_power=power,
    )
