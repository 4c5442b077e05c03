"""The crash weeks that measures show apart: dated, each named for the low of the BTC perpetual.

A week is seven days around the day of the low (UTC): two before it, so that the fall is in it, and
four after it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from riskml.arrays import Bool1D, TimeUs
from riskml.units import DAY, format_us, to_us

DAYS_BEFORE: Final = 2
DAYS_AFTER: Final = 4
CRASHES: Final = {
    "2020-03-13": "COVID-19 sell-off",
    "2021-05-19": "deleveraging of May 2021",
    "2022-05-12": "collapse of Terra",
    "2022-06-18": "Celsius and Three Arrows",
    "2022-11-09": "collapse of FTX",
    "2024-08-05": "unwinding of the yen carry trade",
    "2025-04-07": "tariffs of April 2025",
    "2025-10-10": "liquidation cascade of 10 October 2025",
}
"""Day of the low and what fell. Source: the lows that the README of the real data lists to check an adapter
against; the last day from the project's survey of prior art."""


def crash_spans() -> list[tuple[int, int, str]]:
    """Start (inclusive), end (exclusive) in microseconds and name of every week, in order."""
    return [
        (to_us(day) - DAYS_BEFORE * DAY, to_us(day) + (DAYS_AFTER + 1) * DAY, what)
        for day, what in CRASHES.items()
    ]


def in_crash_week(ts: TimeUs) -> Bool1D:
    """Rows [n] at a time of a crash week; ``ts`` in microseconds."""
    times = np.asarray(ts)
    inside = np.zeros(times.shape, dtype=np.bool_)
    for start, end, _ in crash_spans():
        inside |= (times >= start) & (times < end)
    return inside


def crash_weeks_between(start_us: int, end_us: int) -> list[dict[str, str]]:
    """The crash weeks that meet [start, end), as records for the evaluate JSON."""
    return [
        {"start": format_us(start), "end": format_us(end), "what": what}
        for start, end, what in crash_spans()
        if start < end_us and end > start_us
    ]
