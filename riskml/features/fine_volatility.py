"""Variance from the bars within a bar: 5 minutes where they exist, else 15.

One range per hour measures the hour's variance with a standard error of 64 %; twelve ranges within
it with 18 % (Parkinson's estimator has the relative variance 0.41, divided by the number of bars).
What happened last within the hour is known besides: a storm that began ten minutes ago is in the
last quarter of an hour, not yet in the mean.

The choice between 5 and 15 minutes is made bar by bar. Sums are of whole bars only, see
:mod:`riskml.features.fine`.
"""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.inputs import FINE_INTERVALS, column
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.features.volatility import log_variance, parkinson

_UNIT = "log of variance per hour"
_FINE_RANGE = "Christensen and Podolskij (2007), Realized range-based estimation of integrated variance"
_QUARTERS_PER_HOUR = 4.0
_NOTE = "one of the bars of 5 min and one of 15 min is not there"


def _finest(name: str) -> Expr:
    """The input of the finest bars that are all there."""
    return e.first_finite(*(column(f"{name}_{interval}") for interval in FINE_INTERVALS))


def _downside_share(interval: str) -> Expr:
    fall, square = column(f"fine_fall_{interval}"), column(f"fine_square_{interval}")
    return e.mean(fall, "1h") / e.mean(square, "1h")


fine_variance: Expr = _finest("fine_variance") / e.BarHours()
"""Hourly variance of one bar, from the bars within it."""
_log_hour = log_variance(e.mean(fine_variance, "1h"))
_log_quarter = log_variance(_QUARTERS_PER_HOUR * _finest("quarter_variance"))


def _har(window: str) -> Feature:
    return Feature(
        f"log_fine_har_{window}",
        "volatility",
        _UNIT,
        f"ln max(mean over {window} of the bars' sums of ln(H/L)^2 / (4 ln 2) over their 5 min (else 15 min) "
        "bars, per hour, 1 bp^2)",
        _FINE_RANGE,
        log_variance(e.mean(fine_variance, window)),
    )


FINE = (
    Feature(
        "log_fine_variance_1h",
        "volatility",
        _UNIT,
        "ln max(sum over the hour's 5 min (else 15 min) bars of ln(H/L)^2 / (4 ln 2), 1 bp^2)",
        _FINE_RANGE,
        _log_hour,
        _NOTE,
    ),
    Feature(
        "fine_ratio_1h",
        "volatility",
        "log ratio",
        "log_fine_variance_1h less log_parkinson_1h: above 0 when price went to and fro, below when it ran",
        "variance ratio between sampling frequencies: Lo and MacKinlay (1988)",
        _log_hour - log_variance(e.mean(parkinson, "1h")),
        _NOTE,
    ),
    Feature(
        "log_last_quarter_variance",
        "volatility",
        _UNIT,
        "ln max(4 x sum over the 5 min (else 15 min) bars of the last 15 min of "
        "ln(H/L)^2 / (4 ln 2), 1 bp^2)",
        "the newest part of the hour says most about the next: Corsi (2009) at a finer scale",
        _log_quarter,
    ),
    Feature(
        "last_quarter_share_1h",
        "volatility",
        "log ratio",
        "log_last_quarter_variance less log_fine_variance_1h: 0 when the last quarter of the hour was like "
        "the others, ln 4 when all of it happened there",
        "direction of volatility within the hour",
        _log_quarter - _log_hour,
    ),
    Feature(
        "fine_downside_share_1h",
        "volatility",
        "fraction",
        "sum of min(ln(C/O), 0)^2 over the hour's 5 min (else 15 min) bars / sum of ln(C/O)^2",
        "Barndorff-Nielsen, Kinnebrock and Shephard (2010), Measuring downside risk: realised semivariance",
        e.clip(e.first_finite(*map(_downside_share, FINE_INTERVALS)), 0.0, 1.0),
        f"{_NOTE}; no bar moved",
    ),
    _har("8h"),
    _har("24h"),
)
"""Features of finer bars."""
