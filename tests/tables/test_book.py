"""Account snapshots as books: which rows belong to one, and what was known then."""

from __future__ import annotations

import pytest

from riskml.errors import DataError
from riskml.tables import read_book, read_books
from riskml.units import DAY, HOUR


def test_the_book_is_the_latest_snapshot_at_or_before_the_time(lake, rows):
    lake.write("accounts", rows.accounts(rows.T0, {"a": 1.0, "b": 2.0}))
    lake.write("accounts", rows.accounts(rows.T0 + HOUR, {"a": 5.0}))
    assert list(read_book(lake, rows.T0 + HOUR - 1).account_id) == ["a", "b"]
    assert list(read_book(lake, rows.T0 + 30 * DAY).account_id) == ["a"]


def test_rows_learned_later_are_not_in_the_book(lake, rows):
    lake.write("accounts", rows.accounts(rows.T0, {"a": 1.0}))
    lake.write("accounts", rows.accounts(rows.T0, {"a": 9.0}, known_at=rows.T0 + DAY))
    assert read_book(lake, rows.T0 + HOUR).cash_usd.tolist() == [1.0]
    assert read_book(lake, rows.T0 + 2 * DAY).cash_usd.tolist() == [9.0]


def test_a_time_before_every_snapshot_is_an_error(lake, rows):
    lake.write("accounts", rows.accounts(rows.T0, {"a": 1.0}))
    with pytest.raises(DataError, match="no account snapshot at or before 2023-12-31"):
        read_book(lake, "2023-12-31")


def test_books_are_streamed_in_order_over_days_with_their_positions(lake, rows):
    for hour in (0, 1, 30):
        ts = rows.T0 + hour * HOUR
        lake.write("accounts", rows.accounts(ts, {"a": 1.0, "b": 2.0}))
        lake.write("positions", rows.positions(ts, {"b": float(hour + 1)}))
    books = list(read_books(lake, rows.T0, rows.T0 + 30 * HOUR + 1))
    assert [(ts - rows.T0) // HOUR for ts, _ in books] == [0, 1, 30]
    assert [book.positions.size.tolist() for _, book in books] == [[1.0], [2.0], [31.0]]
    assert [ts for ts, _ in read_books(lake, rows.T0 + 1, rows.T0 + 30 * HOUR)] == [rows.T0 + HOUR]


def test_an_empty_range_of_books_is_an_error(lake, rows):
    lake.write("accounts", rows.accounts(rows.T0, {"a": 1.0}))
    with pytest.raises(DataError, match="is empty"):
        list(read_books(lake, "2024-01-02", "2024-01-01"))


def test_a_book_is_read_from_a_lake_or_from_its_folder(lake, rows):
    lake.write("accounts", rows.accounts(rows.T0, {"a": 1.0}))
    for place in (lake, lake.path, str(lake.path)):
        assert list(read_book(place, rows.T0).account_id) == ["a"]
        assert [ts for ts, _ in read_books(place, rows.T0, rows.T0 + HOUR)] == [rows.T0]
