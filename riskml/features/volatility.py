"""Volatility features: range-based levels, and how returns and ranges are distributed.

Levels are logs of a variance *per hour*, so that a bar length can change without changing
their unit. A variance is floored at (1 bp)^2 per hour: a market that does not trade has no
log-variance of minus infinity.
"""

from __future__ import annotations

import math

from riskml.features import expr as e
from riskml.features.expr import Expr
from riskml.features.inputs import column
from riskml.features.spec import Feature
from riskml.units import BASIS_POINT

MIN_HOURLY_VARIANCE = BASIS_POINT**2
"""Floor of an hourly variance: (1 bp)^2."""
_LIMIT = 10.0
"""Ratios to a volatility are clipped here: beyond it only the sign of a data error is left."""
_PARKINSON = "Parkinson (1980), The extreme value method for estimating the variance of the rate of return"
_HAR = "Corsi (2009), A simple approximate long-memory model of realized volatility"

_close, _high, _low = column("close"), column("high"), column("low")
_volume = column("volume")

bar_return: Expr = e.log(_close) - e.lag(e.log(_close))
"""Log return of one bar; NaN on both sides of a missing one."""
parkinson: Expr = e.square(e.log(_high / _low)) / (4.0 * math.log(2.0)) / e.BarHours()
"""Parkinson variance of one bar, per hour."""
bar_range: Expr = e.log(_high / _low)
"""High over low of one bar, in logs."""


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


def _har(name: str, window: str, source: str = _HAR) -> Feature:
    return Feature(
        f"log_{name}_{window}",
        "volatility",
        "log of variance per hour",
        f"ln max(mean over {window} of ln(high/low)^2 / (4 ln 2), 1 bp^2)",
        source,
        log_variance(e.mean(parkinson, window)),
    )


_abs_return = e.absolute(bar_return)
_bipower = (math.pi / 2.0) * e.total(_abs_return * e.lag(_abs_return), "24h")
_realised = e.total(e.square(bar_return), "24h")

LEVELS = (
    _har("parkinson", "1h", _PARKINSON),
    _har("har", "8h"),
    _har("har", "24h"),
    _har("har", "7d"),
    _har("har", "28d"),
    Feature(
        "log_ewm_variance_24h",
        "volatility",
        "log of variance per hour",
        "ln of the Parkinson variance, EWM of half-life 24 h cut at 10 d, from 24 h of history on",
        "RiskMetrics (1996) technical document, on ranges in place of squared returns",
        log_variance(fast_variance),
    ),
    Feature(
        "log_ewm_variance_60d",
        "volatility",
        "log of variance per hour",
        "ln of the Parkinson variance, EWM of half-life 60 d cut at 180 d, from 7 d of history on",
        "slow-volatility margin: the level that does not follow a single day",
        log_variance(slow_variance),
    ),
)

SHAPE = (
    Feature(
        "return_1h",
        "volatility",
        "standard deviations",
        "sum of log returns over 1 h / EWM sigma (24 h) known one hour before, clipped at 10",
        "leverage effect: Black (1976), Studies of stock price volatility changes",
        e.clip(e.total(bar_return, "1h") / e.lag(fast_sigma, "1h"), -_LIMIT, _LIMIT),
    ),
    Feature(
        "return_24h",
        "volatility",
        "standard deviations",
        "sum of log returns over 24 h / (sqrt(24) x EWM sigma (24 h)), clipped at 10",
        "leverage effect at the horizon of a day: Corsi and Reno (2012)",
        e.clip(e.total(bar_return, "24h") / (math.sqrt(24.0) * fast_sigma), -_LIMIT, _LIMIT),
    ),
    Feature(
        "downside_share_24h",
        "volatility",
        "fraction",
        "sum of squared negative returns / sum of squared returns over 24 h",
        "Barndorff-Nielsen, Kinnebrock and Shephard (2010), Measuring downside risk: realised semivariance",
        e.total(e.square(e.at_most(bar_return, 0.0)), "24h") / _realised,
    ),
    Feature(
        "jump_share_24h",
        "volatility",
        "fraction",
        "1 - (pi/2) sum |r_t r_(t-1)| / sum r_t^2 over 24 h, clipped to [0, 1]",
        "Barndorff-Nielsen and Shephard (2004), Power and bipower variation",
        e.clip(1.0 - _bipower / _realised, 0.0, 1.0),
    ),
    Feature(
        "vol_of_vol_7d",
        "volatility",
        "log units",
        "standard deviation over 7 d of the bars' log Parkinson variance",
        "realised quarticity in spirit: Bollerslev, Patton and Quaedvlieg (2016)",
        e.std(log_variance(parkinson), "7d"),
    ),
    Feature(
        "tail_range_28d",
        "volatility",
        "log ratio",
        "ln of the 95 % quantile of the bars' ranges over 28 d / their mean",
        "heaviness of the tail, for the degrees of freedom",
        e.log(e.quantile(bar_range, "28d", 0.95) / e.mean(bar_range, "28d")),
    ),
    Feature(
        "relative_volume_24h",
        "volatility",
        "log ratio",
        "ln of mean volume over 24 h / over 28 d",
        "volume and volatility: Karpoff (1987)",
        e.log(e.mean(_volume, "24h") / e.mean(_volume, "28d")),
    ),
    Feature(
        "drawdown_7d",
        "volatility",
        "standard deviations",
        "ln(close / highest high of 7 d) / (sqrt(168) x EWM sigma (24 h)), clipped at 10",
        "distance from the high: leverage effect at a week",
        e.clip(e.log(_close / e.maximum(_high, "7d")) / (math.sqrt(168.0) * fast_sigma), -_LIMIT, 0.0),
    ),
    Feature(
        "rebound_7d",
        "volatility",
        "standard deviations",
        "ln(close / lowest low of 7 d) / (sqrt(168) x EWM sigma (24 h)), clipped at 10",
        "distance from the low, the mirror of drawdown_7d",
        e.clip(e.log(_close / e.minimum(_low, "7d")) / (math.sqrt(168.0) * fast_sigma), 0.0, _LIMIT),
    ),
    Feature(
        "history_28d",
        "volatility",
        "days",
        "number of bars present over the last 28 d, in days",
        "young markets: wider forecasts until there is history",
        e.count(_close, "28d") * e.BarHours() / 24.0,
    ),
)
