"""Shape of volatility: how returns and ranges are distributed, and where the price stands in them.

What is measured in standard deviations is divided by the EWM sigma of half-life 24 h (``sigma``).
"""

from __future__ import annotations

import math

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.features.volatility import (
    bar_range,
    bar_return,
    day_bipower,
    day_downside,
    day_quarticity,
    day_realised,
    fast_sigma,
    log_variance,
    parkinson,
    week_realised,
)
from riskml.units import BASIS_POINT

_LIMIT = 10.0
"""Ratios to a volatility are clipped here: beyond it only the sign of a data error is left."""
_SIGMAS = "standard deviations"
_DAY, _WEEK = math.sqrt(24.0), math.sqrt(168.0)
"""Hours of the horizon, rooted: sigma is per square root of an hour."""
_RANGE_OF_BROWNIAN = math.sqrt(8.0 / math.pi)
"""Expected range of a Brownian path over its standard deviation (Feller 1951)."""
_CORWIN_SCHULTZ = 3.0 - 2.0 * math.sqrt(2.0)

_high, _low, _close, _volume = column("high"), column("low"), column("close"), column("volume")

_hour_hours: Expr = e.at_least(e.BarHours(), 1.0)
"""Hours that a window of "1h" covers: one, or a bar where that is longer."""
hour_return: Expr = e.clip(
    e.total(bar_return, "1h") / (e.sqrt(_hour_hours) * e.lag(fast_sigma, "1h")), -_LIMIT, _LIMIT
)
"""Return of an hour in sigmas known before it."""
week_drawdown: Expr = e.clip(e.log(_close / e.maximum(_high, "7d")) / (_WEEK * fast_sigma), -_LIMIT, 0.0)
"""Distance below the high of 7 d in weekly sigmas, at most 0."""
_day_high, _day_low = e.maximum(_high, "24h"), e.minimum(_low, "24h")
_day_range = e.log(_day_high / _day_low)


def _high_low_spread() -> Expr:
    """Corwin and Schultz's spread of a bar and the one before it, as a fraction, at least 0.

    beta = sum of both squared log ranges, gamma = squared log range of both together,
    alpha = (sqrt(2 beta) - sqrt(beta)) / (3 - 2 sqrt 2) - sqrt(gamma / (3 - 2 sqrt 2)),
    spread = 2 (exp(alpha) - 1) / (1 + exp(alpha)).
    """
    beta = e.square(bar_range) + e.lag(e.square(bar_range))
    gamma = e.square(e.log(e.larger(_high, e.lag(_high)) / e.smaller(_low, e.lag(_low))))
    alpha = ((math.sqrt(2.0) - 1.0) / _CORWIN_SCHULTZ) * e.sqrt(beta) - e.sqrt(gamma / _CORWIN_SCHULTZ)
    growth = e.exp(e.clip(alpha, 0.0, 1.0))
    return 2.0 * (growth - 1.0) / (growth + 1.0)


SHAPE = (
    Feature(
        "return_1h",
        "volatility",
        _SIGMAS,
        "sum of r over 1 h / sigma known one hour before, clipped at 10",
        "leverage effect: Black (1976), Studies of stock price volatility changes",
        hour_return,
    ),
    Feature(
        "return_24h",
        "volatility",
        _SIGMAS,
        "sum of r over 24 h / (sqrt(24) sigma), clipped at 10",
        "leverage effect at the horizon of a day: Corsi and Reno (2012)",
        e.clip(e.total(bar_return, "24h") / (_DAY * fast_sigma), -_LIMIT, _LIMIT),
    ),
    Feature(
        "downside_share_24h",
        "volatility",
        "fraction",
        "sum of squared negative r / sum of r^2 over 24 h",
        "Barndorff-Nielsen, Kinnebrock and Shephard (2010), Measuring downside risk: realised semivariance",
        e.clip(day_downside / day_realised, 0.0, 1.0),
        "no return differs from 0",
    ),
    Feature(
        "jump_share_24h",
        "volatility",
        "fraction",
        "1 - (pi/2) mean |r_t r_(t-1)| / mean r_t^2 over 24 h, clipped to [0, 1]",
        "Barndorff-Nielsen and Shephard (2004), Power and bipower variation",
        e.clip(1.0 - day_bipower / day_realised, 0.0, 1.0),
        "no return differs from 0",
    ),
    Feature(
        "jump_component_24h",
        "volatility",
        _SIGMAS,
        "sqrt of max(realised variance - bipower variation, 0) per hour over 24 h / sigma of 24 h before, "
        "clipped at 10",
        "Andersen, Bollerslev and Diebold (2007), Roughing it up: including jump components",
        e.at_most(
            e.sqrt(e.at_least(day_realised - day_bipower, 0.0) / e.BarHours()) / e.lag(fast_sigma, "24h"),
            _LIMIT,
        ),
    ),
    Feature(
        "quarticity_ratio_24h",
        "volatility",
        "log ratio",
        "ln of sqrt(mean r^4 / 3) / mean r^2 over 24 h, clipped to [-1, 4]; 0 for normal returns",
        "measurement error of realised variance: Bollerslev, Patton and Quaedvlieg (2016), HARQ",
        e.clip(e.log(e.sqrt(day_quarticity) / day_realised), -1.0, 4.0),
        "no return differs from 0",
    ),
    Feature(
        "skewness_7d",
        "volatility",
        "ratio",
        "mean r^3 / (mean r^2)^1.5 over 7 d, clipped at 10",
        "Amaya, Christoffersen, Jacobs and Vasquez (2015), Does realized skewness predict returns",
        e.clip(
            e.mean(bar_return * e.square(bar_return), "7d") / (week_realised * e.sqrt(week_realised)),
            -_LIMIT,
            _LIMIT,
        ),
        "no return differs from 0",
    ),
    Feature(
        "vol_of_vol_7d",
        "volatility",
        "log units",
        "standard deviation over 7 d of the bars' log Parkinson variance",
        "Corsi, Mittnik, Pigorsch and Pigorsch (2008), The volatility of realized volatility",
        e.std(log_variance(parkinson), "7d"),
    ),
    Feature(
        "tail_range_7d",
        "volatility",
        "log ratio",
        "ln of the 95 % quantile of the bars' ln(H/L) over 7 d / their mean, clipped at 5",
        "heaviness of the tail, for the degrees of freedom",
        e.clip(e.log(e.quantile(bar_range, "7d", 0.95) / e.mean(bar_range, "7d")), -5.0, 5.0),
        "no bar of 7 d has a range",
    ),
    Feature(
        "relative_volume_24h",
        "volatility",
        "log ratio",
        "ln of mean volume over 24 h / over 28 d, clipped at 6",
        "volume and volatility: Karpoff (1987)",
        e.clip(e.log(e.mean(_volume, "24h") / e.mean(_volume, "28d")), -6.0, 6.0),
        "no trade in 24 h",
    ),
    Feature(
        "drawdown_7d",
        "volatility",
        _SIGMAS,
        "ln(C / highest H of 7 d) / (sqrt(168) sigma), clipped at 10",
        "distance from the high: leverage effect at a week",
        week_drawdown,
    ),
    Feature(
        "rebound_7d",
        "volatility",
        _SIGMAS,
        "ln(C / lowest L of 7 d) / (sqrt(168) sigma), clipped at 10",
        "distance from the low, the mirror of drawdown_7d",
        e.clip(e.log(_close / e.minimum(_low, "7d")) / (_WEEK * fast_sigma), 0.0, _LIMIT),
    ),
    Feature(
        "range_exhaustion_24h",
        "volatility",
        "ratio",
        "ln(highest H / lowest L of 24 h) / (sqrt(8/pi) sqrt(24) sigma of 24 h before), clipped at 10",
        "range so far over the range of a Brownian path: Feller (1951), The asymptotic distribution of the "
        "range; above 1 the day has spent its usual range",
        e.clip(_day_range / (_RANGE_OF_BROWNIAN * _DAY * e.lag(fast_sigma, "24h")), 0.0, _LIMIT),
    ),
    Feature(
        "range_position_24h",
        "volatility",
        "fraction",
        "ln(C / lowest L) / ln(highest H / lowest L) over 24 h",
        "Lane (1984), Lane's stochastics: 0 = at the low, 1 = at the high",
        e.clip(e.log(_close / _day_low) / _day_range, 0.0, 1.0),
        "no range in 24 h",
    ),
    Feature(
        "high_low_spread_24h",
        "volatility",
        "bps",
        "mean over 24 h of the spread that the ranges of two bars imply, clipped at 500 bps",
        "Corwin and Schultz (2012), A simple way to estimate bid-ask spreads from daily high and low prices",
        e.at_most(e.mean(_high_low_spread(), "24h") / BASIS_POINT, 500.0),
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
"""Shape of returns and ranges."""
