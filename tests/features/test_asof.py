"""Point-in-time look-up, against a plain loop and small tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskml.features.asof import AsOfIndex, take

NAN = np.nan


def as_of(query_ts, rows_ts, rows_known_at, values, staleness):
    """Values in force at each query."""
    index = AsOfIndex(rows_ts, rows_known_at)
    found = index.rows(query_ts, staleness)
    assert [index.row(int(query), staleness) for query in query_ts] == found.tolist()
    return take(values, found)


def _plain(query, ts, known_at, values, staleness):
    best = None
    for row in range(len(ts)):
        usable_from = max(known_at[row], ts[row])
        if usable_from <= query and (
            best is None or (ts[row], usable_from) >= (ts[best], max(known_at[best], ts[best]))
        ):
            best = row
    return values[best] if best is not None and query - ts[best] <= staleness else NAN


@pytest.mark.parametrize(
    ("query", "expected"),
    [(9, NAN), (10, 1.0), (19, 1.0), (24, 1.0), (25, 2.0), (30, 2.5), (40, 2.5), (41, NAN)],
)
def test_the_newest_known_row_is_in_force_until_it_is_stale(query, expected):
    #               known from 10   late: 25   revision: 30
    ts = np.array([10, 20, 20])
    known_at = np.array([10, 25, 30])
    found = as_of(np.array([query]), ts, known_at, np.array([1.0, 2.0, 2.5]), 20)
    np.testing.assert_array_equal(found[0], expected)


def test_an_old_row_that_becomes_known_late_does_not_displace_a_newer_one():
    found = as_of(np.array([40]), np.array([20, 10]), np.array([20, 35]), np.array([2.0, 1.0]), 100)
    assert found[0] == 2.0


def test_a_missing_value_in_the_newest_row_is_not_replaced_by_an_older_one():
    found = as_of(np.array([30]), np.array([10, 20]), np.array([10, 20]), np.array([1.0, NAN]), 100)
    assert np.isnan(found[0])


@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=25, unique=True),
    staleness=st.integers(0, 40),
)
def test_look_ups_equal_the_plain_loop(rows, staleness):
    ts = np.array([row[0] for row in rows], dtype=np.int64)
    known_at = np.array([row[0] + row[1] for row in rows], dtype=np.int64)
    values = np.arange(len(rows), dtype=float) + ts * 100
    query = np.arange(0, 55, dtype=np.int64)
    found = as_of(query, ts, known_at, values, staleness)
    order = np.lexsort((known_at, ts))
    expected = [
        _plain(t, ts[order].tolist(), known_at[order].tolist(), values[order].tolist(), staleness)
        for t in query
    ]
    np.testing.assert_array_equal(found, expected)


def test_an_empty_series_answers_nothing():
    index = AsOfIndex(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    assert index.rows(np.array([5]), 10).tolist() == [-1]
    assert np.isnan(take(np.empty(0), np.array([-1]))).tolist() == [True]


def test_nothing_is_known_before_it_happened():
    found = as_of(np.array([9, 10]), np.array([10]), np.array([5]), np.array([1.0]), 100)
    np.testing.assert_array_equal(found, [NAN, 1.0])
