"""From the lake to arrays: the same values as a scorer that saw the rows arrive."""

import numpy as np
import pyarrow as pa
import pytest

from riskml.errors import DataError
from riskml.features.assemble import assemble_inputs
from riskml.features.catalog import CATALOG, select
from riskml.features.engine import FeatureStream
from riskml.features.evaluate import input_names, lookback_bars
from riskml.features.inputs import max_staleness_us
from riskml.features.series import SERIES_TABLES, SeriesStore
from riskml.markets import Market
from riskml.tables.align import grid_bounds, load_grid, load_panel, load_store, to_columns
from riskml.tables.lake import Lake
from riskml.tables.synthetic import generate_sample
from riskml.units import HOUR, duration_us, to_us

INTERVAL = "4h"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    path = tmp_path_factory.mktemp("align") / "lake"
    generate_sample(path, days=260, markets=3, accounts=2, interval=INTERVAL)
    return Lake(path)


@pytest.fixture(scope="module")
def markets(lake):
    return lake.markets(INTERVAL)


@pytest.fixture(scope="module")
def end(lake):
    return int(lake.read("bars", columns=["ts"])["ts"].cast(pa.int64()).to_numpy().max()) - 5 * duration_us(
        INTERVAL
    )


def _arrivals(lake):
    """Every row of every series table with the moment it became known."""
    tables = {}
    for table in SERIES_TABLES:
        columns = to_columns(lake.read(table))
        order = np.argsort(columns["known_at"], kind="stable")
        tables[table] = {name: values[order] for name, values in columns.items()}
    return tables


@pytest.mark.parametrize("interval", ["1d", pytest.param("4h", marks=pytest.mark.slow)])
def test_a_scorer_that_sees_rows_arrive_computes_the_same_features(interval, tmp_path):
    generate_sample(tmp_path / "lake", days=260, markets=3, accounts=2, interval=interval)
    lake, bar, n_bars = Lake(tmp_path / "lake"), duration_us(interval), 12
    markets = lake.markets(interval)
    end = int(lake.read("bars", columns=["ts"])["ts"].cast(pa.int64()).to_numpy().max()) - 5 * bar
    panel = load_panel(lake, markets, interval, end - n_bars * bar, end)
    lookback = lookback_bars(CATALOG, interval)
    names = input_names(CATALOG)
    tables, seen = _arrivals(lake), dict.fromkeys(SERIES_TABLES, 0)
    store = SeriesStore()
    slots = np.arange(end - (n_bars + lookback) * bar, end, bar)
    live = FeatureStream(CATALOG, markets, interval=interval)
    rows = []
    for ts in slots:
        for table, columns in tables.items():
            known = int(np.searchsorted(columns["known_at"], ts, side="right"))
            fresh = {name: values[seen[table] : known] for name, values in columns.items()}
            store.append(table, fresh)
            seen[table] = known
        store.prune(ts - max_staleness_us() - bar)
        slot = np.array([ts])
        inputs = assemble_inputs(store, slot, markets, interval=interval, names=names)
        rows.append(live.push(slot, inputs)[0])
    assert np.stack(rows[-n_bars:]).tobytes() == np.ascontiguousarray(panel.features).tobytes()
    assert np.isfinite(panel.features).mean() > 0.9


def test_a_panel_of_a_part_equals_that_part_of_the_panel(lake, markets, end):
    bar = duration_us(INTERVAL)
    whole = load_panel(lake, markets, INTERVAL, end - 300 * bar, end)
    part = load_panel(lake, markets[1:], INTERVAL, end - 40 * bar, end - 7 * bar, reference=markets)
    np.testing.assert_array_equal(part.ts, whole.ts[260:293])
    assert part.features.tobytes() == np.ascontiguousarray(whole.features[260:293, 1:]).tobytes()
    np.testing.assert_array_equal(part.close, whole.close[260:293, 1:])
    assert part.markets == tuple(markets[1:])


def test_without_other_reference_markets_the_factor_is_the_market_itself(lake, markets, end):
    bar = duration_us(INTERVAL)
    alone = load_panel(lake, markets[:1], INTERVAL, end - bar, end, features=select(["factor_loading_1"]))
    assert alone.features[0, 0, 0] == pytest.approx(1.0)


def test_the_lake_decides_nothing_by_rows_after_the_slot(lake, markets, end):
    names = input_names(CATALOG)
    bar = duration_us(INTERVAL)
    short = load_grid(lake, markets, INTERVAL, end - 30 * bar, end, names)
    long = load_grid(lake, markets, INTERVAL, end - 30 * bar, end + 4 * bar, names)
    for name in names:
        np.testing.assert_array_equal(long.inputs[name][:30], short.inputs[name])


def test_the_store_holds_only_what_the_inputs_need(lake, markets, end):
    store = load_store(lake, markets[:1], INTERVAL, end - 10 * HOUR, end, ["close", "funding_8h"])
    assert {key.table for key in store.keys("bars") + store.keys("funding")} == {"bars", "funding"}
    assert {key.name for key in store.keys("bars")} == {markets[0].symbol}
    assert store.keys("flows") == []


@pytest.mark.parametrize(
    ("interval", "start", "end", "expected"),
    [
        ("1h", "2024-01-01", "2024-01-01T03:00", ("2024-01-01T00:00", "2024-01-01T03:00")),
        ("1h", "2024-01-01T00:01", "2024-01-01T02:59", ("2024-01-01T01:00", "2024-01-01T03:00")),
        ("8h", "2024-01-01T01:00", "2024-01-02", ("2024-01-01T08:00", "2024-01-02T00:00")),
    ],
)
def test_bounds_are_bar_closes_with_the_end_excluded(interval, start, end, expected):
    assert grid_bounds(interval, start, end) == tuple(to_us(time) for time in expected)


def test_an_empty_range_no_market_and_no_bars_are_refused(lake, markets, end):
    with pytest.raises(DataError, match="no 4h bar closes between"):
        load_panel(lake, markets, INTERVAL, end, end)
    with pytest.raises(DataError, match="at least one market"):
        load_grid(lake, [], INTERVAL, end - 100 * HOUR, end, ["close"])
    with pytest.raises(DataError, match="no 4h bar of sim:"):
        load_panel(lake, markets, INTERVAL, "2001-01-01", "2001-02-01", features=select("calendar"))
    with pytest.raises(DataError, match="no symbol 'NOPE'"):
        load_panel(lake, [Market("NOPE", "sim")], INTERVAL, end - 100 * HOUR, end)
