"""Onsets and leads on small literal tables."""

import math

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.markets import Market
from riskml.tables.onsets import (
    MarketOnsets,
    episode_starts,
    leads,
    market_onsets,
    onset_times,
    read_onsets,
    warnings_before,
)
from riskml.tables.stress import Signal, Stress, StressSpec
from riskml.units import HOUR, MINUTE

NAN = math.nan
MARKETS = (Market("BTC", "sim"), Market("ETH", "sim"))


def _flags(text):
    return np.array([[{"1": 1.0, "0": 0.0, ".": NAN}[letter]] for letter in text])


@pytest.mark.parametrize(
    ("flags", "cool", "starts"),
    [
        ("0110", 2, "0100"),
        ("0100100", 2, "0100100"),
        ("0101010", 2, "0100000"),
        ("1.10", 1, "1010"),
        ("1001", 3, "1000"),
    ],
)
def test_a_flag_within_the_cool_down_of_another_begins_nothing(flags, cool, starts):
    found = episode_starts(_flags(flags), cool)[:, 0]
    assert "".join(str(int(value)) for value in found) == starts


def _stress(drop, liquidation="0000000000"):
    def signal(one, other, size):
        flag = np.concatenate([_flags(one), _flags(other)], axis=1)
        return Signal(flag, flag * size, flag * size / 2)

    nothing = Signal(*(np.full((10, 2), NAN),) * 3)
    return Stress(
        signal(drop, "0000000001", 0.1),
        signal(liquidation, liquidation, 5e6),
        nothing,
        np.full((10, 2), 0.01),
    )


def test_the_table_has_the_start_and_the_close_of_each_onset_bar():
    ts = HOUR * np.arange(1, 11, dtype=np.int64)
    table = onset_times(_stress("0011000000", "0000010000"), ts, MARKETS, "1h", spec=StressSpec()).to_pydict()
    assert table["symbol"] == ["BTC", "BTC", "ETH", "ETH"]
    assert table["kind"] == ["drop", "liquidation", "drop", "liquidation"]
    assert [moment.hour for moment in table["start"]] == [2, 5, 9, 5]
    assert [moment.hour for moment in table["close"]] == [3, 6, 10, 6]
    assert table["size"] == [0.1, 5e6, 0.1, 5e6]
    assert table["sigma"] == [0.01, None, 0.01, None]


def test_onsets_of_a_part_are_those_of_the_whole_that_lie_in_it():
    ts = HOUR * np.arange(1, 11, dtype=np.int64)
    spec = StressSpec(cool_down="2h")
    whole = onset_times(_stress("0100110001"), ts, MARKETS, "1h", spec=spec)
    parts = [
        onset_times(_stress("0100110001"), ts, MARKETS, "1h", spec=spec, first_row=first, last_row=last)
        for first, last in ((0, 5), (5, 10))
    ]
    assert sum(part.num_rows for part in parts) == whole.num_rows == 4
    assert [moment.hour for moment in market_onsets(whole, MARKETS[0]).close.astype("M8[us]").tolist()] == [
        2,
        5,
        10,
    ]
    with pytest.raises(DataError, match="no kind of stress 'drops'. Did you mean 'drop'"):
        market_onsets(whole, MARKETS[0], "drops")


ONSETS = MarketOnsets(start=np.array([10, 40]) * HOUR, close=np.array([11, 41]) * HOUR)


@pytest.mark.parametrize(
    ("alarm_h", "lead_h"),
    [
        (9.0, 1.0),
        (10.0, 0.0),  # the bar opens as the alarm is raised
        (11.0, NAN),  # it has closed
        (-13.0, 23.0),
        (-14.0, NAN),  # 25 hours before the close
        (16.9, NAN),
        (17.0, 23.0),
        (41.0, NAN),
    ],
)
def test_a_lead_runs_to_the_start_of_a_bar_that_closes_within_a_day(alarm_h, lead_h):
    found = leads(np.array([int(alarm_h * HOUR)]), ONSETS)
    np.testing.assert_allclose(found, [lead_h])


def test_leads_equal_a_plain_loop_over_random_alarms():
    rng = np.random.default_rng(0)
    close = np.sort(rng.choice(2000, 30, replace=False)) * HOUR
    onsets = MarketOnsets(close - HOUR, close)
    alarms = rng.integers(0, 2000 * 60, 200) * MINUTE
    found, caught = leads(alarms, onsets, "8h"), warnings_before(alarms, onsets, "8h")
    for alarm, lead in zip(alarms, found, strict=True):
        later = [
            start for start, end in zip(onsets.start, close, strict=True) if alarm < end <= alarm + 8 * HOUR
        ]
        np.testing.assert_allclose(lead, (later[0] - alarm) / HOUR if later else NAN)
    for start, end, lead in zip(onsets.start, close, caught, strict=True):
        counted = [alarm for alarm in alarms if alarm < end <= alarm + 8 * HOUR]
        np.testing.assert_allclose(lead, (start - min(counted)) / HOUR if counted else NAN)


def test_a_folder_without_onsets_is_named(tmp_path):
    with pytest.raises(DataError, match=r"onsets.parquet cannot be read"):
        read_onsets(tmp_path)
