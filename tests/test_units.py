"""Times and durations."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.units import DAY, HOUR, duration_bars, duration_us, format_us, to_us, to_us_array

NOON = 1714564800000000  # 2024-05-01T12:00Z


@pytest.mark.parametrize(
    "time",
    [
        NOON,
        np.int64(NOON),
        "2024-05-01T12:00",
        "2024-05-01T14:00+02:00",
        datetime(2024, 5, 1, 12),
        datetime(2024, 5, 1, 12, tzinfo=UTC),
        datetime(2024, 5, 1, 7, tzinfo=timezone(-timedelta(hours=5))),
        np.datetime64("2024-05-01T12:00", "h"),
        np.datetime64("2024-05-01T12:00:00", "ns"),
    ],
)
def test_every_form_of_a_time_reads_as_the_same_moment(time: object) -> None:
    assert to_us(time) == NOON  # type: ignore[arg-type]


def test_a_date_is_its_midnight() -> None:
    assert to_us(date(2024, 5, 1)) == NOON - 12 * HOUR


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (1.5, "not 1.5"),
        (True, "not True"),
        ("yesterday", "'yesterday' is not a date or time"),
        (np.datetime64("NaT"), "found NaT"),
        (None, "found NoneType"),
    ],
)
def test_what_is_no_time_is_refused(time: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_us(time)  # type: ignore[arg-type]


def test_arrays_of_every_form_read_alike() -> None:
    strings = np.array(["2024-05-01T12:00", "2024-05-02T12:00"])
    moments = strings.astype("datetime64[s]")
    expected = [NOON, NOON + DAY]
    for array in (strings, moments, np.array(expected), strings.astype(object)):
        assert to_us_array(array).tolist() == expected


def test_an_array_with_nat_names_the_row() -> None:
    with pytest.raises(DataError, match="row 1: a time is required, found NaT"):
        to_us_array(np.array(["2024-05-01", "NaT"], dtype="datetime64[us]"))


def test_an_array_of_floats_is_refused() -> None:
    with pytest.raises(DataError, match="dtype float64"):
        to_us_array(np.array([1.0]))


def test_format_is_iso_with_z() -> None:
    assert format_us(NOON) == "2024-05-01T12:00:00Z"
    assert to_us(format_us(NOON)) == NOON


@pytest.mark.parametrize(
    ("duration", "interval", "bars"),
    [("24h", "1h", 24), ("7d", "1h", 168), ("1h", "5m", 12), ("5m", "1h", 1)],
)
def test_durations_are_counted_in_bars(duration: str, interval: str, bars: int) -> None:
    assert duration_bars(duration, interval) == bars


@pytest.mark.parametrize("duration", ["", "1", "h", "0h", "1.5h", "-1h", "1 h", "1y"])
def test_what_is_no_duration_is_refused(duration: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        duration_us(duration)


def test_a_duration_that_is_no_whole_number_of_bars_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a whole number of 7m bars"):
        duration_bars("1h", "7m")
