"""Volatility levels: estimators of the variance of a bar, and their averages at several scales.

Levels are logs of a variance *per hour*, so that a bar length can change without changing
their unit. A variance is floored at (1 bp)^2 per hour: a market that does not trade has no
log-variance of minus infinity.

Notation: O, H, L, C are the open, high, low and close of a bar, r its log return.
"""

from __future__ import annotations

import math

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.units import BASIS_POINT

MIN_HOURLY_VARIANCE = BASIS_POINT**2
"""Floor of an hourly variance: (1 bp)^2."""
_UNIT = "log of variance per hour"
_PARKINSON = "Parkinson (1980), The extreme value method for estimating the variance of the rate of return"
_HAR = "Corsi (2009), A simple approximate long-memory model of realized volatility"

_open, _high, _low, _close = column("open"), column("high"), column("low"), column("close")

bar_return: Expr = e.log(_close) - e.lag(e.log(_close))
"""Log return of one bar; NaN on both sides of a missing one."""
bar_range: Expr = e.log(_high / _low)
"""High over low of one bar, in logs."""
parkinson: Expr = e.square(bar_range) / (4.0 * math.log(2.0)) / e.BarHours()
"""Parkinson variance of one bar, per hour."""
_body = e.log(_close / _open)
_overnight = e.log(_open) - e.lag(e.log(_close))
_garman_klass = (0.5 * e.square(bar_range) - (2.0 * math.log(2.0) - 1.0) * e.square(_body)) / e.BarHours()
_rogers_satchell = (
    e.log(_high / _close) * e.log(_high / _open) + e.log(_low / _close) * e.log(_low / _open)
) / e.BarHours()


def log_variance(variance: Expr) -> Expr:
    """Log of an hourly variance, floored at (1 bp)^2."""
    return e.log(e.at_least(variance, MIN_HOURLY_VARIANCE))


fast_variance: Expr = e.ewm_mean(parkinson, "24h", "10d", min_window="24h")
"""Hourly variance, exponentially weighted with a half-life of 24 h; from a day of history on."""
slow_variance: Expr = e.ewm_mean(parkinson, "60d", "180d", min_window="7d")
"""Hourly variance with a half-life of 60 d; from a week of history on."""
fast_sigma: Expr = e.sqrt(e.at_least(fast_variance, MIN_HOURLY_VARIANCE))
day_variance: Expr = e.at_least(e.mean(parkinson, "24h"), MIN_HOURLY_VARIANCE)
"""Hourly variance, mean over 24 h, floored."""

day_realised: Expr = e.mean(e.square(bar_return), "24h")
"""Mean squared return of a bar over 24 h."""
week_realised: Expr = e.mean(e.square(bar_return), "7d")
day_downside: Expr = e.mean(e.square(e.at_most(bar_return, 0.0)), "24h")
"""The part of :data:`day_realised` that negative returns bring."""
day_bipower: Expr = (math.pi / 2.0) * e.mean(e.absolute(bar_return) * e.lag(e.absolute(bar_return)), "24h")
"""Mean bipower variation of a bar over 24 h: variance without jumps."""
day_quarticity: Expr = e.mean(e.square(e.square(bar_return)), "24h") / 3.0
"""Mean quarticity of a bar over 24 h: the fourth power of its volatility."""


def _per_hour(variance_per_bar: Expr) -> Expr:
    return log_variance(variance_per_bar / e.BarHours())


def _yang_zhang(window: str) -> Expr:
    """Yang and Zhang's minimum-variance mix, per hour; needs two bars in the window.

    All three parts are taken over the bars whose open has a close before it, n of them:
    var(overnight) + k var(body) + (1 - k) mean(Rogers-Satchell), k = 0.34 / (1.34 + (n + 1) / (n - 1)).
    """
    n = e.count(_overnight, window)
    k = 0.34 / (1.34 + (n + 1.0) / (n - 1.0))
    unbiased = n / (n - 1.0) / e.BarHours()
    overnight = e.square(e.std(_overnight, window))
    body = e.square(e.std(e.where_finite(_body, _overnight), window))
    drift_free = e.mean(e.where_finite(_rogers_satchell, _overnight), window)
    return unbiased * (overnight + k * body) + (1.0 - k) * drift_free


def _har(name: str, window: str, source: str = _HAR) -> Feature:
    return Feature(
        f"log_{name}_{window}",
        "volatility",
        _UNIT,
        f"ln max(mean over {window} of ln(H/L)^2 / (4 ln 2), 1 bp^2)",
        source,
        log_variance(e.mean(parkinson, window)),
    )


LEVELS = (
    _har("parkinson", "1h", _PARKINSON),
    _har("har", "8h"),
    _har("har", "24h"),
    _har("har", "7d"),
    _har("har", "28d"),
    Feature(
        "log_ewm_variance_24h",
        "volatility",
        _UNIT,
        "ln of the Parkinson variance, EWM of half-life 24 h cut at 10 d, from 24 h of history on",
        "RiskMetrics (1996) technical document, on ranges in place of squared returns",
        log_variance(fast_variance),
    ),
    Feature(
        "log_ewm_variance_60d",
        "volatility",
        _UNIT,
        "ln of the Parkinson variance, EWM of half-life 60 d cut at 180 d, from 7 d of history on",
        "slow-volatility margin: the level that does not follow a single day",
        log_variance(slow_variance),
    ),
    Feature(
        "log_realised_24h",
        "volatility",
        _UNIT,
        "ln of mean r^2 over 24 h, per hour",
        "Andersen, Bollerslev, Diebold and Labys (2003), Modeling and forecasting realized volatility",
        _per_hour(day_realised),
    ),
    Feature(
        "log_realised_7d",
        "volatility",
        _UNIT,
        "ln of mean r^2 over 7 d, per hour",
        _HAR,
        _per_hour(week_realised),
    ),
    Feature(
        "log_garman_klass_24h",
        "volatility",
        _UNIT,
        "ln of the mean over 24 h of 0.5 ln(H/L)^2 - (2 ln 2 - 1) ln(C/O)^2, per hour",
        "Garman and Klass (1980), On the estimation of security price volatilities from historical data",
        log_variance(e.mean(_garman_klass, "24h")),
    ),
    Feature(
        "log_rogers_satchell_24h",
        "volatility",
        _UNIT,
        "ln of the mean over 24 h of ln(H/C) ln(H/O) + ln(L/C) ln(L/O), per hour",
        "Rogers and Satchell (1991), Estimating variance from high, low and closing prices",
        log_variance(e.mean(_rogers_satchell, "24h")),
    ),
    Feature(
        "log_yang_zhang_7d",
        "volatility",
        _UNIT,
        "ln of var(ln O/C_before) + k var(ln C/O) + (1 - k) Rogers-Satchell over the n bars of 7 d, per "
        "hour; k = 0.34 / (1.34 + (n + 1)/(n - 1))",
        "Yang and Zhang (2000), Drift-independent volatility estimation",
        log_variance(_yang_zhang("7d")),
        "fewer than two bars in 7 d",
    ),
    Feature(
        "log_bipower_24h",
        "volatility",
        _UNIT,
        "ln of (pi/2) mean |r_t| |r_(t-1)| over 24 h, per hour",
        "Barndorff-Nielsen and Shephard (2004), Power and bipower variation",
        _per_hour(day_bipower),
    ),
    Feature(
        "log_semivariance_down_24h",
        "volatility",
        _UNIT,
        "ln of mean min(r, 0)^2 over 24 h, per hour",
        "Patton and Sheppard (2015), Good volatility, bad volatility",
        _per_hour(day_downside),
    ),
    Feature(
        "log_semivariance_up_24h",
        "volatility",
        _UNIT,
        "ln of mean max(r, 0)^2 over 24 h, per hour",
        "Patton and Sheppard (2015), Good volatility, bad volatility",
        _per_hour(day_realised - day_downside),
    ),
    Feature(
        "log_quarticity_24h",
        "volatility",
        _UNIT,
        "ln of sqrt(realised quarticity) = sqrt(mean r^4 / 3) over 24 h, per hour",
        "Bollerslev, Patton and Quaedvlieg (2016), Exploiting the errors (HARQ)",
        _per_hour(e.sqrt(day_quarticity)),
    ),
)
"""Levels of variance."""
