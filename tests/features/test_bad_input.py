"""What is wrong is refused by name, or masked: never a number that looks fine."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from riskml.contracts import contract
from riskml.errors import ContractError, DataError
from riskml.features.assemble import assemble_inputs
from riskml.features.blocks import BlockOps
from riskml.features.catalog import CATALOG, missing_tables, select
from riskml.features.engine import FeatureStream
from riskml.features.evaluate import evaluate_features, input_names
from riskml.features.inputs import INPUTS, column, input_spec, input_tables
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.scoring.observe import check_rows
from riskml.tables.compiled import CompiledOps
from riskml.tables.contracts import enforce
from riskml.tables.sharded import ShardedStream
from riskml.units import HOUR, to_us

INTERVAL = "12h"
EVERY_FEATURE = pytest.mark.parametrize("feature", CATALOG, ids=lambda feature: feature.name)
BTC = (Market("BTC", "binance"),)


def bars(*rows):
    """Bars of one market: (hour of the close, interval, close)."""
    hours, intervals, closes = zip(*rows, strict=True)
    ts = np.array(hours, dtype=np.int64) * HOUR
    prices = {name: np.array(closes, dtype=np.float64) for name in ("open", "high", "low", "close", "volume")}
    names = {"venue": "binance", "symbol": "BTC"}
    text = {name: np.full(len(ts), value, dtype=object) for name, value in names.items()}
    return {"ts": ts, "known_at": ts, "interval": np.array(intervals, dtype=object)} | text | prices


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("log_har_24", "no feature or family 'log_har_24'. Did you mean 'log_har_24h'"),
        ("fundin", "no feature or family 'fundin'. Did you mean 'funding'"),
        ("volatility,tvl_drawdown_30", "no feature or family 'tvl_drawdown_30'. Did you mean"),
    ],
)
def test_an_unknown_feature_or_family_is_named_with_the_nearest(wanted, message):
    with pytest.raises(DataError, match=message):
        select(wanted)


def test_an_unknown_input_is_named_with_the_nearest():
    with pytest.raises(DataError, match="no input 'open_intrest'. Did you mean 'open_interest'"):
        column("open_intrest")


def test_tables_that_a_family_lacks_are_named():
    every = {input_spec(name).table for name in input_names(CATALOG)}
    assert missing_tables(CATALOG, every) == {}
    lacking = missing_tables(CATALOG, every - {"flows", "funding"})
    assert lacking["funding"] == ("funding",)
    assert lacking["cross_chain"] == ("flows",)
    assert "volatility" not in lacking


def test_an_unknown_table_is_refused_with_the_series_that_there_are():
    with pytest.raises(ContractError, match="'accounts' is not a time series"):
        SeriesStore().append("accounts", {"ts": np.zeros(1)})


def test_a_missing_required_column_is_named():
    rows = bars((1, "1h", 10.0))
    del rows["high"], rows["low"]
    with pytest.raises(ContractError, match="column high, low is missing"):
        SeriesStore().append("bars", rows)


def test_columns_of_unequal_length_are_refused():
    rows = bars((1, "1h", 10.0), (2, "1h", 11.0))
    rows["close"] = rows["close"][:1]
    with pytest.raises(DataError, match="columns have unequal lengths"):
        SeriesStore().append("bars", rows)


def test_bars_of_two_intervals_in_one_store_never_mix():
    store = SeriesStore()
    store.append("bars", bars((4, "1h", 10.0), (4, "4h", 40.0), (8, "4h", 80.0), (9, "1h", 90.0)))
    grid = np.array([4, 8]) * HOUR
    for interval, expected in (("1h", [10.0, np.nan]), ("4h", [40.0, 80.0])):
        found = assemble_inputs(store, grid, BTC, interval=interval, names=["close"])["close"]
        np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize(
    ("hours", "message"),
    [
        ([], "there is no slot to look up"),
        ([4, 3], "slots have to rise; 1970-01-01T03:00:00Z comes after 1970-01-01T04:00:00Z"),
        ([3, 4, 4, 5], "slots have to rise; 1970-01-01T04:00:00Z comes after 1970-01-01T04:00:00Z"),
    ],
)
def test_slots_that_do_not_rise_are_refused_before_anything_is_looked_up(hours, message):
    store = SeriesStore()
    store.append("bars", bars((3, "1h", 10.0), (4, "1h", 11.0)))
    with pytest.raises(DataError, match=message):
        assemble_inputs(store, np.array(hours, dtype=np.int64) * HOUR, BTC, interval="1h", names=["close"])


def make_stream(interval="1h", features="log_parkinson_1h,return_24h"):
    return FeatureStream(select(features), BTC, interval=interval)


def rows_of(hours, names, value=1.0):
    ts = np.array(hours, dtype=np.int64) * HOUR
    return ts, {name: np.full((len(ts), 1), value) for name in names}


@pytest.mark.parametrize(
    ("interval", "pushes", "message"),
    [
        ("1h", [[5, 6], [6]], "the clock went backwards: a bar of 1970-01-01T06:00:00Z"),
        ("1h", [[5, 6], [3, 4]], "the clock went backwards"),
        ("1h", [[5, 6], [8]], "bars between 1970-01-01T06:00:00Z and 1970-01-01T08:00:00Z were left out"),
        ("1h", [[5, 7]], "consecutive multiples of 1h"),
        ("1h", [[6, 5]], "consecutive multiples of 1h"),
        ("4h", [[4], [5]], "consecutive multiples of 4h"),
        ("4h", [[5, 6, 7]], "consecutive multiples of 4h"),
        ("1h", [[]], "the grid is empty"),
    ],
)
def test_a_clock_that_is_not_the_next_bar_is_refused(interval, pushes, message):
    stream = make_stream(interval)
    *good, bad = pushes
    for hours in good:
        stream.push(*rows_of(hours, ("close", "high", "low")))
    before = {name: array.tobytes() for name, array in stream.state().items()}
    last = stream.last_ts
    with pytest.raises(DataError, match=message):
        stream.push(*rows_of(bad, ("close", "high", "low")))
    assert stream.last_ts == last
    assert {name: array.tobytes() for name, array in stream.state().items()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs.pop("low"), "inputs low are missing; found close, high"),
        (
            lambda inputs: inputs.update(low=np.ones((2, 2))),
            r"input 'low' has shape \(2, 2\); \(2, 1\) is required",
        ),
        (lambda inputs: inputs.update(low=np.ones((3, 1))), r"input 'low' has shape \(3, 1\)"),
        (lambda inputs: inputs.update(low=np.ones(2)), r"input 'low' has shape \(2,\)"),
    ],
)
def test_an_input_that_is_missing_or_of_another_shape_is_named(change, message):
    ts, inputs = rows_of([1, 2], ("close", "high", "low"))
    change(inputs)
    with pytest.raises(DataError, match=message):
        make_stream().push(ts, inputs)


def test_a_chain_input_needs_a_column_per_chain():
    chosen = [feature for feature in CATALOG if "tvl" in feature.inputs][:1]
    names = {name: np.ones((1, 1)) for name in chosen[0].inputs}
    with pytest.raises(DataError, match="a column per chain"):
        FeatureStream(chosen, BTC, interval="1h").push(np.array([HOUR]), names)


@pytest.mark.parametrize("reference", [[1], [-1], [0, 0]])
@pytest.mark.parametrize("make", [FeatureStream, ShardedStream])
def test_a_reference_that_is_no_column_or_one_twice_is_refused(make, reference):
    with pytest.raises(DataError, match=r"has to name columns 0 to 0, each once"):
        make(select("cross_asset"), BTC, interval="1h", reference=reference)


def test_a_market_is_added_once():
    with pytest.raises(DataError, match="binance:BTC is a column already"):
        make_stream().add_markets(BTC)


def test_no_feature_at_all_is_refused():
    with pytest.raises(DataError, match="at least one feature"):
        FeatureStream([], BTC, interval="1h")


@pytest.fixture(scope="module", params=[BlockOps, CompiledOps])
def infinite_and_missing(request, panels):
    """Features of inputs with infinite cells, and with the same cells missing."""
    ts, inputs = panels.random_panel(200, interval=INTERVAL, seed=31)
    settings = {"interval": INTERVAL, "markets": panels.MARKETS, "ops": request.param()}
    rng = np.random.default_rng(1)
    infinite, missing = {}, {}
    for name, values in inputs.items():
        cells = rng.random(values.shape) < 0.05
        sign = np.where(rng.random(values.shape) < 0.5, 1.0, -1.0)
        infinite[name] = np.where(cells, sign * np.inf, values)
        missing[name] = np.where(cells, np.nan, values)
    return [evaluate_features(CATALOG, found, ts, **settings) for found in (infinite, missing)]


@EVERY_FEATURE
def test_an_infinite_input_is_a_missing_one(feature, infinite_and_missing):
    found, expected = (values[:, :, CATALOG.index(feature)] for values in infinite_and_missing)
    np.testing.assert_array_equal(found, expected)


def every_bad_number():
    """(table, column, value) for each number that features read and its contract rules out."""
    ruled_out = {"positive": (-1.0, 0.0), "non-negative": (-1.0,), "fraction": (-0.5, 1.5), "any": ()}
    for table in input_tables(INPUTS):
        for declared in contract(table).columns:
            if declared.kind == "float":
                for value in (*ruled_out[declared.sign], np.inf, -np.inf):
                    yield pytest.param(table, declared.name, value, id=f"{table}.{declared.name} {value}")


@pytest.fixture(scope="module")
def good_rows():
    """Two rows of every table that its contract allows."""
    found = {}
    for table in input_tables(INPUTS):
        columns = {}
        for declared in contract(table).columns:
            value = {"float": 1.0, "int": 1, "text": "x", "time": HOUR}[declared.kind]
            columns[declared.name] = np.array(
                [value, value], dtype=object if declared.kind == "text" else None
            )
        columns["ts"] = columns["known_at"] = to_us("2024-03-01") + np.array([HOUR, 2 * HOUR])
        if "interval" in columns:
            columns["interval"] = np.array(["1h", "1h"], dtype=object)
        found[table] = columns
    return found


@pytest.mark.parametrize(("table", "name", "value"), [*every_bad_number()])
def test_a_number_that_its_contract_rules_out_is_an_error_in_a_lake(table, name, value, good_rows):
    rows = good_rows[table]
    assert enforce(table, as_arrow(rows)).num_rows == 2
    with pytest.raises(ContractError, match=rf"'{name}'"):
        enforce(table, as_arrow(rows | {name: np.array([1.0, value])}))


@pytest.mark.parametrize(("table", "name", "value"), [*every_bad_number()])
def test_a_number_that_its_contract_rules_out_is_a_counted_rejected_row_in_a_scorer(
    table, name, value, good_rows
):
    rows = good_rows[table]
    assert check_rows(table, rows).problems == ()
    checked = check_rows(table, rows | {name: np.array([1.0, value])})
    assert checked.n_rows == 1
    assert [problem.row for problem in checked.problems] == [1]
    assert name in checked.problems[0].message
    assert checked.problems[0].table == table
    assert checked.problems[0].market == ("x" if "symbol" in rows else None)


def as_arrow(columns):
    """Columns as an arrow table with times in UTC."""
    time = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            name: pa.array(values, type=time if name in ("ts", "known_at") else None)
            for name, values in columns.items()
        }
    )
