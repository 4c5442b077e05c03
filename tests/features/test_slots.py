"""Rows of slots: a grid of slots per series and one slot of many series, against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskml.features.rows import Block, TableRows
from riskml.features.slots import SlotGrid, exact_places, newest_places

SLOTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=40
)


def _table(rows):
    """Rows (series, ts, delay); the series are numbered, and series 3 is there without rows of these."""
    table = TableRows(("value",))
    for _ in range(4):
        table.add_series()
    rows = [*rows, *[(number, 0, 0) for number in range(4)]]
    series, ts, delay = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    table.append(Block(series, ts, ts + delay, {"value": np.arange(len(ts), dtype=float)}))
    return table


def _plain_newest(table, number, slot):
    rows = table.series(number)
    known = [row for row in range(len(rows)) if rows.known_at[row] <= slot and rows.ts[row] <= slot]
    return max(known, key=lambda row: (rows.ts[row], rows.known_at[row]), default=None)


def _plain_exact(table, number, slot):
    rows = table.series(number)
    known = [row for row in range(len(rows)) if rows.ts[row] == slot and rows.known_at[row] <= slot]
    return max(known, default=None)


@given(rows=SLOTS, slot=st.integers(-1, 55))
def test_one_slot_of_many_series_equals_a_plain_loop(rows, slot):
    table, numbers = _table(rows), np.array([[0, 1, 2], [3, -1, 0]])
    for places, plain in (
        (newest_places(table, numbers, slot), _plain_newest),
        (exact_places(table, numbers, slot), _plain_exact),
    ):
        for number, place in zip(numbers.ravel().tolist(), places.ravel().tolist(), strict=True):
            row = None if number < 0 else plain(table, number, slot)
            assert place == (-1 if row is None else table.begin[number] + row)


def test_a_series_whose_newest_hundred_rows_are_not_known_yet_is_indexed():
    table = TableRows(())
    table.add_series()
    ts = np.arange(120, dtype=np.int64)
    known_at = np.where(ts < 10, ts, 10_000)
    table.append(Block(np.zeros(120, dtype=np.int64), ts, known_at, {}))
    assert newest_places(table, np.array([0]), 200).tolist() == [9]
    assert newest_places(table, np.array([0]), 10_000).tolist() == [119]


@given(rows=SLOTS, first=st.integers(0, 20), step=st.integers(1, 4), n_slots=st.integers(2, 12))
def test_a_grid_of_slots_equals_a_plain_loop(rows, first, step, n_slots):
    table = _table(rows)
    grid = SlotGrid(first + step * np.arange(n_slots, dtype=np.int64))
    for number in range(3):
        rows = table.series(number)
        slots, places = grid.exact(rows)
        found = dict(
            zip(np.arange(n_slots)[slots].tolist(), np.arange(len(rows))[places].tolist(), strict=False)
        )
        expected = {slot: _plain_exact(table, number, ts) for slot, ts in enumerate(grid.ts.tolist())}
        assert found == {slot: row for slot, row in expected.items() if row is not None}
        changes = grid.changes(rows.ts, rows.known_at, rows.ts + 7 + 1)
        at_changes = rows.index.rows(grid.ts[changes], 7)
        everywhere = rows.index.rows(grid.ts, 7)
        np.testing.assert_array_equal(np.repeat(at_changes, grid.repeats(changes)), everywhere)


@pytest.mark.parametrize("step", [1, 5])
def test_an_uneven_grid_answers_as_an_even_one(step):
    even = SlotGrid(np.arange(0, 50, step, dtype=np.int64))
    uneven = SlotGrid(np.append(even.ts, 1_000))
    times = np.arange(-3, 60, dtype=np.int64)
    expected = np.minimum(uneven.first_from(times), len(even.ts))
    np.testing.assert_array_equal(even.first_from(times), expected)
