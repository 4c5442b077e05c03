"""What a baseline is: one interface, so that a comparison is a loop and not a list of special cases.

A baseline is fitted on rows whose target window has closed by ``fit_end`` and says, for all
bars, what it has a law for: a variance, a requirement, a probability. ``None`` means that it has
no law for that quantity, NaN that it knows nothing on that row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import numpy as np

from riskml.arrays import Float1D, Float3D, FloatND
from riskml.learning.protocol import Cases, EvaluationData
from riskml.units import duration_us


class Baseline(ABC):
    """A model to beat. Implementations are frozen: :meth:`fit` returns a fitted copy."""

    name: str
    """Its name in the metric rows."""
    notes: tuple[str, ...] = ()
    """What its reader has to know of the fit, such as markets that borrow parameters."""

    @abstractmethod
    def fit(self, data: EvaluationData, fit_end_us: int) -> Self:
        """Fit on the rows whose target window has closed by ``fit_end_us``.

        Raises
        ------
        DataError : too few such rows.
        """

    def variance(self, data: EvaluationData) -> Float3D | None:
        """Forecast of the realised variance [n_bars, n_markets, n_horizons]; None: no such law."""
        return None

    def margin(self, data: EvaluationData, rows: slice) -> FloatND | None:
        """99.5 % requirement, log distance [n rows, n_markets, n_horizons, 2]; None: no such law."""
        return None

    def probability(self, data: EvaluationData, cases: Cases, horizon: int) -> Float1D | None:
        """Liquidation probability of drawn positions [n cases]; None: no such law."""
        return None


def closed_before(data: EvaluationData, end_us: int, horizon: int) -> slice:
    """Bars whose target window of this horizon (an index) has closed by ``end_us``."""
    last = end_us - duration_us(data.horizons[horizon])
    return slice(0, int(np.searchsorted(data.ts, last, side="right")))


def qlike_scale(data: EvaluationData, forecast: Float3D, fit_end_us: int) -> Float1D:
    """Constant per horizon that makes ``mean(realised / forecast) = 1`` on the fit rows [n_horizons].

    It is the scale that minimises QLIKE. NaN handling: rows with a NaN on either side do not
    count; NaN where none is left.
    """
    scale = np.full(len(data.horizons), np.nan)
    for index in range(len(data.horizons)):
        rows = closed_before(data, fit_end_us, index)
        ratio = data.variance[rows, :, index] / forecast[rows, :, index]
        ratio = ratio[np.isfinite(ratio)]
        if ratio.size:
            scale[index] = ratio.mean()
    return scale
