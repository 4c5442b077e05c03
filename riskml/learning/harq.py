"""HARQ: a log-HAR that trusts its shortest term less where that term is measured badly.

Bollerslev, Patton and Quaedvlieg 2016, *Exploiting the errors*: realised variance is measured with
an error whose size the realised quarticity tells, and the coefficient of the shortest HAR term is
attenuated by it. Their form is in levels; here it is in logs, like the log-HAR that it extends, so
that every forecast is positive, markets of different volatility share one fit and their insanity
filter is not needed:

    ln y = log-HAR + b_Q q (x_1 - x_k) + b_q q        q = sqrt(RQ) / RV over the last 24 h

``x_1`` is the shortest log term, ``x_k`` the longest: a large error pulls the first towards the last
(``b_Q < 0``). With n bar variances v, ``q = sqrt(n sum v^2) / sum v``, between 1 and sqrt(n); the
constant of a Parkinson variance's fourth moment goes into ``b_Q``. One fit per horizon over all
markets, debiased on the fit rows as the log-HAR is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import Float2D, Float3D
from riskml.errors import ConfigError
from riskml.learning.baseline import Baseline, closed_before
from riskml.learning.har import LogHar, fit_log_har
from riskml.learning.protocol import EvaluationData
from riskml.units import duration_bars

QUARTICITY_WINDOW = "24h"


@dataclass(frozen=True)
class Harq(Baseline):
    """Log-HARQ, one law per horizon."""

    name: str = "harq"
    laws: tuple[LogHar, ...] = ()
    """Fitted laws; empty before :meth:`fit`."""

    def fit(self, data: EvaluationData, fit_end_us: int) -> Harq:
        """Least squares in logs per horizon, then ``mean(y / x) = 1``; DataError with too few rows."""
        terms = harq_terms(data)
        laws = []
        for index in range(len(data.horizons)):
            rows = closed_before(data, fit_end_us, index)
            x = terms[rows].reshape(-1, terms.shape[2])
            laws.append(fit_log_har(x, data.variance[rows, :, index].reshape(-1)))
        return replace(self, laws=tuple(laws))

    def variance(self, data: EvaluationData) -> Float3D:
        """Forecast [n_bars, n_markets, n_horizons]; NaN where any term is missing."""
        if not self.laws:
            raise ConfigError("HARQ has not been fitted", fix="use what fit(data, fit_end_us) returns")
        terms = harq_terms(data)
        shape = terms.shape[:2]
        flat = terms.reshape(-1, terms.shape[2])
        forecast = np.stack([law.predict(flat).reshape(shape) for law in self.laws], axis=2)
        forecast[~np.isfinite(terms).all(axis=2)] = np.nan
        return forecast


def relative_quarticity(bar_variance: Float2D, window: int) -> Float2D:
    """``sqrt(n sum v^2) / sum v`` over the last ``window`` bars, row t included.

    Parameters
    ----------
    bar_variance : [n_bars, n_markets].

    Returns
    -------
    float [n_bars, n_markets], between 1 and sqrt(window). NaN handling: a missing bar is left
    out of sums and n; NaN with fewer than half of the bars, or where all of them stand still.
    """
    known = np.isfinite(bar_variance)
    padding = [(window - 1, 0), (0, 0)]
    # windows rather than cumulated sums: a crisis years ago would leave its rounding in every later row
    filled = np.pad(np.where(known, bar_variance, 0.0), padding)
    count = np.lib.stride_tricks.sliding_window_view(np.pad(known, padding), window, axis=0).sum(axis=2)
    views = np.lib.stride_tricks.sliding_window_view(filled, window, axis=0)
    total, squares = views.sum(axis=2), np.einsum("ijk,ijk->ij", views, views)
    usable = (2 * count >= window) & (total > 0.0)
    return np.asarray(np.where(usable, np.sqrt(count * squares) / np.where(usable, total, 1.0), np.nan))


def harq_terms(data: EvaluationData) -> Float3D:
    """The log-HAR terms, the corrected shortest term and the error itself [n_bars, n_markets, k + 2]."""
    error = relative_quarticity(data.bar_variance, duration_bars(QUARTICITY_WINDOW, data.interval))
    corrected = error * (data.log_har[:, :, 0] - data.log_har[:, :, -1])
    return np.concatenate([data.log_har, corrected[..., None], error[..., None]], axis=2)
