"""Time and price units: one way to read a time, a duration and a number of bars.

Inside riskml a time is an int64 count of microseconds since 1970-01-01 UTC. At the
public boundary it may be any of the forms that :func:`to_us` takes.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

import numpy as np

from riskml.arrays import AnyArray, TimeUs
from riskml.errors import ConfigError, DataError

MICROSECOND = 1
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
YEAR = 365 * DAY

BASIS_POINT = 1e-4

TimeLike: TypeAlias = int | np.integer | str | datetime | date | np.datetime64

_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"(\d+)(s|m|h|d|w)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_us(time: TimeLike) -> int:
    """Read a time as microseconds since 1970-01-01 UTC.

    Takes an int (already microseconds), an ISO string (UTC when it has no offset), a
    ``datetime`` (naive = UTC; pandas timestamps are datetimes), a ``date`` or a
    ``numpy.datetime64``.

    >>> to_us("1970-01-02")
    86400000000
    """
    if isinstance(time, (bool, np.bool_, float, np.floating)):
        raise DataError(f"a time is an int in microseconds, a date or an ISO string, not {time!r}")
    if isinstance(time, (int, np.integer)):
        return int(time)
    if isinstance(time, np.datetime64):
        if np.isnat(time):
            raise DataError("a time is required, found NaT")
        return int(time.astype("datetime64[us]").astype(np.int64))
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError as error:
            raise DataError(
                f"'{time}' is not a date or time.", fix="write it as 2024-05-01 or 2024-05-01T12:00"
            ) from error
    if isinstance(time, datetime):
        aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(microseconds=1)
    if isinstance(time, date):
        return to_us(datetime(time.year, time.month, time.day, tzinfo=UTC))
    raise DataError(f"a time is required, found {type(time).__name__}")


def to_us_array(times: AnyArray) -> TimeUs:
    """Read an array of times (int64 microseconds, datetime64 or ISO strings) as [n] int64."""
    array = np.asarray(times)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.datetime64):
        if np.isnat(array).any():
            row = int(np.flatnonzero(np.isnat(array))[0])
            raise DataError("a time is required, found NaT", row=row)
        return array.astype("datetime64[us]").astype(np.int64)
    if array.dtype == object or array.dtype.kind in "US":
        return np.fromiter((to_us(item) for item in array.ravel()), np.int64, array.size)
    raise DataError(f"times have dtype {array.dtype}; int64 microseconds or datetime64 is required")


def format_us(time_us: int) -> str:
    """The ISO form of a time, seconds precision, with ``Z``; beyond the year 9999 the number itself.

    >>> format_us(86400000000)
    '1970-01-02T00:00:00Z'
    """
    try:
        moment = _EPOCH + timedelta(microseconds=int(time_us))
    except OverflowError:  # for messages about times in other units
        return f"{int(time_us)} us"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def duration_us(duration: str) -> int:
    """Read a duration such as ``15m``, ``1h`` or ``30d`` as microseconds.

    >>> duration_us("15m") // MINUTE
    15
    """
    match = _DURATION.fullmatch(duration)
    if match is None or int(match.group(1)) == 0:
        raise ConfigError(
            f"'{duration}' is not a duration.", fix="write a whole number and s, m, h, d or w: 15m"
        )
    return int(match.group(1)) * _UNITS[match.group(2)]


def duration_bars(duration: str, interval: str) -> int:
    """How many bars of ``interval`` make up ``duration`` (at least 1; must divide)."""
    span, bar = duration_us(duration), duration_us(interval)
    if span < bar:
        return 1
    if span % bar:
        raise ConfigError(f"a duration of {duration} is not a whole number of {interval} bars")
    return span // bar
