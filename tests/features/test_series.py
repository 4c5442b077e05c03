"""The series store: splitting rows, order of arrival, revisions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskml.errors import ContractError, DataError
from riskml.features.rows import Appended
from riskml.features.series import SeriesKey, SeriesStore

BTC = SeriesKey("funding", "sim", "BTC")


def _funding(rows):
    """Rows (ts, known_at, symbol, rate) as contract columns."""
    return {
        "ts": np.array([row[0] for row in rows], dtype=np.int64),
        "known_at": np.array([row[1] for row in rows], dtype=np.int64),
        "venue": np.array(["sim"] * len(rows), dtype=object),
        "symbol": np.array([row[2] for row in rows], dtype=object),
        "rate": np.array([row[3] for row in rows]),
        "interval_h": np.full(len(rows), 8.0),
    }


def test_rows_of_several_series_are_split_and_sorted():
    store = SeriesStore()
    added = store.append(
        "funding", _funding([(2, 2, "BTC", 0.2), (1, 1, "ETH", 0.9), (1, 1, "BTC", 0.1), (2, 3, "BTC", 0.25)])
    )
    assert added == Appended(added=4, revised=1)
    rows = store.get(BTC)
    assert rows.ts.tolist() == [1, 2, 2]
    assert rows.known_at.tolist() == [1, 2, 3]
    assert rows.column("rate").tolist() == [0.1, 0.2, 0.25]
    assert [key.name for key in store.keys("funding")] == ["BTC", "ETH"]
    assert store.keys("funding", "ETH") == [SeriesKey("funding", "sim", "ETH")]


def test_any_order_of_arrival_gives_the_same_series():
    rng = np.random.default_rng(0)
    rows = [(int(t), int(t + d), "BTC", float(t * 10 + d)) for t in range(20) for d in (0, 3)]
    whole = SeriesStore()
    whole.append("funding", _funding(rows))
    for _ in range(5):
        pieces = SeriesStore()
        for part in np.array_split(rng.permutation(len(rows)), 7):
            pieces.append("funding", _funding([rows[place] for place in part]))
        for name in ("ts", "known_at", "values"):
            np.testing.assert_array_equal(getattr(pieces.get(BTC), name), getattr(whole.get(BTC), name))


@pytest.mark.parametrize("again", [[(1, 1, "BTC", 9.9)], [(1, 1, "BTC", 9.9), (0, 0, "BTC", 0.0)]])
def test_a_row_that_is_there_already_is_left_out(again):
    store = SeriesStore()
    store.append("funding", _funding([(1, 1, "BTC", 0.1), (2, 2, "BTC", 0.2)]))
    found = store.append("funding", _funding(again))
    assert found == Appended(len(again) - 1, out_of_order=len(again) - 1, duplicate=1)
    assert 9.9 not in store.get(BTC).column("rate").tolist()


def test_a_view_that_was_taken_earlier_does_not_change_when_rows_arrive():
    store = SeriesStore()
    store.append("funding", _funding([(1, 1, "BTC", 0.1)]))
    early = store.get(BTC)
    for ts in range(2, 40):
        store.append("funding", _funding([(ts, ts, "BTC", 0.5)]))
    store.append("funding", _funding([(0, 0, "BTC", 0.7)]))
    assert early.column("rate").tolist() == [0.1]
    assert len(store.get(BTC)) == 40


def test_pruning_keeps_the_newest_row():
    store = SeriesStore()
    store.append("funding", _funding([(1, 1, "BTC", 0.1), (2, 2, "BTC", 0.2), (3, 3, "BTC", 0.3)]))
    store.prune(3)
    assert store.get(BTC).ts.tolist() == [3]
    store.prune(99)
    assert store.get(BTC).ts.tolist() == [3]


def test_pruning_takes_a_bound_for_every_series():
    store = SeriesStore()
    rows = [(ts, ts, name, 0.1) for ts in range(5) for name in ("BTC", "ETH")]
    store.append("funding", _funding(rows))
    store.prune(99, {"funding": np.array([1, 3])})
    assert store.get(BTC).ts.tolist() == [1, 2, 3, 4]
    assert store.get(SeriesKey("funding", "sim", "ETH")).ts.tolist() == [3, 4]


def test_numbers_in_a_key_become_part_of_the_detail():
    store = SeriesStore()
    one = np.array([1], dtype=np.int64)
    depth = {"venue": np.array(["sim"]), "symbol": np.array(["BTC"]), "band_bps": np.array([50.0])}
    store.append("depth", {"ts": one, "known_at": one, **depth, "bid_usd": one * 1.0, "ask_usd": one * 1.0})
    assert store.keys("depth") == [SeriesKey("depth", "sim", "BTC", "50")]


def test_a_missing_column_an_unknown_table_and_unequal_lengths_are_refused():
    store = SeriesStore()
    rows = _funding([(1, 1, "BTC", 0.1)])
    with pytest.raises(ContractError, match="column rate is missing"):
        store.append("funding", {name: values for name, values in rows.items() if name != "rate"})
    with pytest.raises(ContractError, match="'positions' is not a time series"):
        store.append("positions", rows)
    with pytest.raises(ContractError, match="no table 'fundings'"):
        store.append("fundings", rows)
    with pytest.raises(DataError, match="unequal lengths"):
        store.append("funding", {**rows, "rate": np.zeros(2)})


def test_an_optional_column_may_be_left_out_and_reads_as_missing():
    store = SeriesStore()
    one = np.array([1], dtype=np.int64)
    store.append(
        "open_interest",
        {
            "ts": one,
            "known_at": one,
            "venue": np.array(["sim"]),
            "symbol": np.array(["BTC"]),
            "open_interest": [5.0],
        },
    )
    rows = store.get(SeriesKey("open_interest", "sim", "BTC"))
    assert rows.column("open_interest").tolist() == [5.0]
    assert np.isnan(rows.column("open_interest_usd")).all()
    nothing = {name: values[:0] for name, values in _empty_interest().items()}
    assert store.append("open_interest", nothing) == Appended(added=0)


def _empty_interest():
    one = np.array([1], dtype=np.int64)
    return {"ts": one, "known_at": one, "venue": np.array(["sim"]), "symbol": np.array(["BTC"])}


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ([(3, 3, "BTC", 0.3)], Appended(1)),
        ([(2, 5, "BTC", 0.3)], Appended(1, revised=1)),
        ([(1, 5, "BTC", 0.3)], Appended(1, revised=1)),
        ([(0, 5, "BTC", 0.3)], Appended(1, out_of_order=1)),
        ([(2, 2, "BTC", 0.3)], Appended(0, duplicate=1)),
        ([(3, 3, "BTC", 0.3), (3, 4, "BTC", 0.4), (3, 4, "BTC", 0.5)], Appended(2, revised=1, duplicate=1)),
        ([(0, 0, "ETH", 0.3)], Appended(1)),
        (
            [(3, 3, "BTC", 0.3), (0, 4, "BTC", 0.4), (2, 2, "BTC", 0.5), (9, 9, "ETH", 0.6)],
            Appended(3, out_of_order=1, duplicate=1),
        ),
    ],
)
def test_revisions_rows_out_of_order_and_duplicates_are_told_apart_and_counted(then, expected):
    store = SeriesStore()
    store.append("funding", _funding([(1, 1, "BTC", 0.1), (2, 2, "BTC", 0.2)]))
    assert store.append("funding", _funding(then)) == expected
    counted = {what: amount for what, amount in expected._asdict().items() if amount and what != "added"}
    assert {what: amount for (_, what), amount in store.counts.items()} == counted


@given(
    portions=st.lists(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from("ABC")), min_size=1, max_size=30
        ),
        max_size=8,
    ),
    pruned=st.integers(0, 9),
)
def test_any_sequence_of_portions_gives_what_a_sorted_list_would_hold(portions, pruned):
    store, model = SeriesStore(), {}
    for number, portion in enumerate(portions):
        rows = [(ts, ts + lag, name, 100.0 * number + place) for place, (ts, lag, name) in enumerate(portion)]
        added = 0
        for ts, known_at, name, rate in rows:
            added += (ts, known_at) not in model.setdefault(name, {})
            model[name].setdefault((ts, known_at), rate)
        assert store.append("funding", _funding(rows)).added == added
        if number % 3 == 2:
            store.prune(pruned)
            for kept in model.values():
                newest = max(kept)
                for times in [times for times in kept if times[0] < pruned and times != newest]:
                    del kept[times]
    for name, kept in model.items():
        rows = store.get(SeriesKey("funding", "sim", name))
        found = list(zip(rows.ts.tolist(), rows.known_at.tolist(), rows.column("rate").tolist(), strict=True))
        assert found == [(*times, kept[times]) for times in sorted(kept)]


def test_a_series_that_outgrows_its_place_moves_and_keeps_its_rows():
    store = SeriesStore()
    names = [f"S{number}" for number in range(40)]
    for ts in range(200):
        rows = [(ts, ts, name, ts + number / 100) for number, name in enumerate(names[: 1 + ts % 40])]
        store.append("funding", _funding(rows))
    for number, name in enumerate(names):
        rows = store.get(SeriesKey("funding", "sim", name))
        expected = [ts for ts in range(200) if ts % 40 >= number]
        assert rows.ts.tolist() == expected
        assert rows.column("rate").tolist() == [ts + number / 100 for ts in expected]


def test_a_column_that_is_given_later_is_missing_before():
    store = SeriesStore()
    store.append("open_interest", _empty_interest() | {"open_interest": np.array([5.0])})
    later = {
        name: values + 1 if name in ("ts", "known_at") else values
        for name, values in _empty_interest().items()
    }
    key = SeriesKey("open_interest", "sim", "BTC")
    before = store.get(key)
    store.append("open_interest", later | {"open_interest_usd": np.array([7.0])})
    assert store.get(key).column("open_interest_usd").tolist()[1:] == [7.0]
    assert np.isnan(store.get(key).column("open_interest_usd")[0])
    assert np.isnan(before.column("open_interest_usd")).tolist() == [True]


def test_the_store_never_writes_to_the_arrays_that_it_was_given():
    store = SeriesStore()
    rows = _funding([(1, 1, "BTC", 0.1), (3, 3, "BTC", 0.3)])
    copies = {name: values.copy() for name, values in rows.items()}
    store.append("funding", rows)
    store.append("funding", _funding([(2, 2, "BTC", 0.2), (4, 4, "BTC", 0.4)]))
    for name, values in copies.items():
        np.testing.assert_array_equal(rows[name], values)


def test_the_oldest_row_of_all_is_known():
    store = SeriesStore()
    assert store.oldest_ts() is None
    store.append("funding", _funding([(5, 5, "BTC", 0.1), (3, 3, "ETH", 0.3)]))
    assert store.oldest_ts() == 3
