"""A forecast at a horizon that its bundle was not fitted for.

A bundle forecasts a few horizons; a question may ask for another one between two of them. Every quantity
is interpolated along ln h, with the weight ``q = ln(h / h0) / ln(h1 / h0)`` of the longer neighbour::

    ln sigma, ln variance           linear in q: exact where both neighbours obey the square root of time
    1 / nu, power b of g(z) = z^b   linear in q
    ln(-ln(1 - stress))             linear in q: the cumulated hazard is a power of time

A horizon that the forecast has comes back unchanged, to the last bit. Nothing is extrapolated: a longer
horizon than the longest, or a shorter one than the shortest, would rest on no fitted number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from riskml.arrays import Float1D, FloatND, Int1D
from riskml.errors import ConfigError
from riskml.risk.forecast import Forecast
from riskml.units import duration_us

_Map = Callable[[FloatND], FloatND]


def with_horizons(forecast: Forecast, horizons: Sequence[str]) -> Forecast:
    """The forecast at other horizons, each one of its own or between two of its own.

    Parameters
    ----------
    forecast : any.
    horizons : ascending durations, none outside the forecast's shortest and longest.

    Returns
    -------
    Forecast : the same markets and time. NaN handling: NaN at a neighbour gives NaN in between.

    Raises
    ------
    ConfigError : no horizon, horizons that do not ascend, or one outside the forecast's range.
    """
    places = _places(forecast.horizons, horizons)
    return replace(
        forecast,
        horizons=tuple(horizons),
        sigma=places.between(forecast.sigma, np.log, np.exp),
        nu=places.between(forecast.nu, np.reciprocal, np.reciprocal),
        variance=places.between(forecast.variance, np.log, np.exp),
        stress=places.between(forecast.stress, _log_hazard, _probability),
        calibration_power=tuple(places.between(forecast.power[None], np.positive, np.positive)[0].tolist()),
    )


@dataclass(frozen=True)
class _Places:
    """Where the wanted horizons lie among the known ones [n_wanted]."""

    low: Int1D
    high: Int1D
    weight: Float1D
    """Of ``high``; 0 = the wanted horizon is ``low`` itself."""

    def between(self, values: FloatND, forward: _Map, inverse: _Map) -> FloatND:
        """Interpolate axis 1 of ``values`` on the scale of ``forward``."""
        weight = self.weight.reshape(-1, *([1] * (values.ndim - 2)))
        first, second = values[:, self.low], values[:, self.high]
        with np.errstate(divide="ignore", invalid="ignore"):
            mixed = inverse(forward(first) * (1.0 - weight) + forward(second) * weight)
        return np.asarray(np.where(weight == 0.0, first, mixed))


def _places(known: Sequence[str], wanted: Sequence[str]) -> _Places:
    have = np.asarray([duration_us(name) for name in known], dtype=np.int64)
    spans = [duration_us(name) for name in wanted]
    if not spans or any(later <= earlier for earlier, later in pairwise(spans)):
        raise ConfigError(f"horizons have to ascend, found {tuple(wanted)}", fix="write ('1h', '6h', '24h')")
    outside = [name for name, span in zip(wanted, spans, strict=True) if not have[0] <= span <= have[-1]]
    if outside:
        raise ConfigError(
            f"the forecast reaches from {known[0]} to {known[-1]}; {', '.join(outside)} lies outside",
            fix="ask for a horizon in between, or fit a bundle with it",
        )
    low = np.searchsorted(have, spans, side="right") - 1
    high = np.minimum(low + 1, len(have) - 1)
    weight = [
        0.0 if span == start else math.log(span / start) / math.log(end / start)
        for span, start, end in zip(spans, have[low].tolist(), have[high].tolist(), strict=True)
    ]
    return _Places(low, high, np.asarray(weight))


def _log_hazard(probability: FloatND) -> FloatND:
    return np.asarray(np.log(-np.log1p(-probability)))


def _probability(log_hazard: FloatND) -> FloatND:
    return np.asarray(-np.expm1(-np.exp(log_hazard)))
