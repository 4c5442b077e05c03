"""Calendar features: where in the day and the week the next bar lies. Nothing but the clock."""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.nodes import Expr
from riskml.features.spec import Feature

_hour = e.HourOfWeek()
_WEEK_HOURS = 168.0
_SATURDAY = 120.0
"""Saturday 00:00 UTC."""
_EXPIRY = 104.0
"""Friday 08:00 UTC: options and dated futures of Deribit, OKX and Binance expire."""
_US_SESSION = 15.0
"""Hour of the day (UTC) around which volume and volatility peak: New York's morning."""


def _hour_of_day() -> Expr:
    days = e.greater(_hour, 23.5)
    for day in range(2, 7):
        days = days + e.greater(_hour, 24.0 * day - 0.5)
    return _hour - 24.0 * days


def _closeness(centre: float) -> Expr:
    """1 at an hour of the day, falling in a line to -1 twelve hours away, round the clock."""
    apart = e.absolute(_hour_of_day() - centre)
    return 1.0 - e.smaller(apart, 24.0 - apart) / 6.0


CALENDAR = (
    Feature(
        "hour_of_week",
        "calendar",
        "hours",
        "hour of the week (0 = Monday 00:00 UTC) in which the next bar starts",
        "intraday and weekly season: Andersen and Bollerslev (1997)",
        _hour,
    ),
    Feature(
        "day_phase",
        "calendar",
        "-1 .. 1",
        "1 at 15:00 UTC, falling in a line to -1 at 03:00",
        "volume and volatility peak in New York's morning: Andersen and Bollerslev (1997)",
        _closeness(_US_SESSION),
    ),
    Feature(
        "day_phase_quarter",
        "calendar",
        "-1 .. 1",
        "1 at 21:00 UTC, falling in a line to -1 at 09:00; with day_phase it tells the hour without a seam",
        "as day_phase, a quarter of a day later",
        _closeness(_US_SESSION + 6.0),
    ),
    Feature(
        "hours_to_weekend",
        "calendar",
        "hours",
        "hours until Saturday 00:00 UTC, 0 at the weekend",
        "thin books while the banks are shut: weekend effect in crypto markets",
        e.at_least(_SATURDAY - _hour, 0.0),
    ),
    Feature(
        "hours_to_weekly_expiry",
        "calendar",
        "hours",
        "hours until Friday 08:00 UTC",
        "weekly expiry of options: hedges are unwound into it",
        _EXPIRY - _hour + _WEEK_HOURS * e.greater(_hour, _EXPIRY - 0.5),
    ),
)
"""The clock."""
