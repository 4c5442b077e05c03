"""Seasons that are learnt as they come: how the coming hours compared with the average lately.

Crypto has a day (Asia, Europe, America), a weekend and, per coin, hours of its own; they drift with
the market's structure and the clocks of summer. The last fortnight at the same hour of the day, or
the last weeks at the same hour of the week, says what a fixed table by hour would have to be
fitted again for. Every market has its own, one that was never trained on as well.
"""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.features.volatility import log_variance, parkinson

_UNIT = "log ratio"
_IDEA = (
    "intraday periodicity: Andersen and Bollerslev (1997), Intraday periodicity and volatility persistence"
)
_LEVEL_UNIT = "log of variance per hour"
_HAR = "Corsi (2009), A simple approximate long-memory model of realized volatility"

_log_hour = log_variance(e.mean(parkinson, "1h"))


def _level(window: str) -> Expr:
    return log_variance(e.mean(parkinson, window))


def _of_windows(ahead: str, period: str, count: int) -> Expr:
    """Log of the mean variance of the windows ``ahead`` long that began whole periods ago."""
    return log_variance(e.season(e.mean(parkinson, ahead), ahead, period, count))


_hour_of_day = e.season(_log_hour, "1h", "1d", 14) - e.mean(_log_hour, "14d")


def _har(window: str) -> Feature:
    return Feature(
        f"log_har_{window}",
        "volatility",
        _LEVEL_UNIT,
        f"ln max(mean over {window} of ln(H/L)^2 / (4 ln 2), 1 bp^2)",
        _HAR,
        _level(window),
    )


SEASON = (
    _har("3d"),
    _har("14d"),
    Feature(
        "season_ratio_1h_14d",
        "volatility",
        _UNIT,
        "mean of log_parkinson_1h over the last 14 d at the hour of the day that comes next, less its mean "
        "over all hours of 14 d",
        _IDEA,
        _hour_of_day,
    ),
    Feature(
        "season_ratio_8h_14d",
        "volatility",
        _UNIT,
        "ln of the mean variance of the 8 h that come next, on each of the last 14 d, less log_har_14d",
        _IDEA,
        _of_windows("8h", "1d", 14) - _level("14d"),
    ),
    Feature(
        "season_week_1h_4w",
        "volatility",
        _UNIT,
        "mean of log_parkinson_1h over the last 4 weeks at the hour of the week that comes next, less its "
        "mean over all hours of 28 d",
        _IDEA,
        e.season(_log_hour, "1h", "7d", 4) - e.mean(_log_hour, "28d"),
    ),
    Feature(
        "season_week_24h_4w",
        "volatility",
        _UNIT,
        "ln of the mean variance of the 24 h that come next, in each of the last 4 weeks, less log_har_28d",
        _IDEA,
        _of_windows("24h", "7d", 4) - _level("28d"),
    ),
    Feature(
        "market_season_ratio_1h",
        "cross_asset",
        _UNIT,
        "mean over the reference markets of season_ratio_1h_14d",
        _IDEA,
        e.reference_mean(_hour_of_day),
    ),
)
"""Seasons, and levels over windows between those of :data:`riskml.features.volatility.LEVELS`."""
