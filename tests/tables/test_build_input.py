"""What a build makes of a lake that lacks tables, or holds what it should not."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from riskml.errors import ContractError, DataError
from riskml.features.catalog import fingerprint, select
from riskml.tables.build import build_dataset, read_dataset, read_info
from riskml.tables.lake import Lake
from riskml.tables.synthetic import generate_sample

INTERVAL = "4h"
HORIZONS = ("4h", "8h", "24h")


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    path = tmp_path_factory.mktemp("build") / "lake"
    generate_sample(path, days=260, markets=3, accounts=2, interval=INTERVAL)
    return Lake(path)


@pytest.fixture(scope="module")
def data(lake, tmp_path_factory):
    """The dataset of an undisturbed build."""
    path = tmp_path_factory.mktemp("built") / "data"
    build_dataset(lake, path, interval=INTERVAL, horizons=HORIZONS)
    return read_dataset(path)


def test_features_are_chosen_by_name_or_family(lake, tmp_path, data):
    names = ["log_har_24h", *(feature.name for feature in select("funding"))]
    info = build_dataset(
        lake, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS, features=["log_har_24h", "funding"]
    )
    part = read_dataset(tmp_path / "data")
    assert info.features == part.feature_names == tuple(names)
    assert info.fingerprint == fingerprint(select(names), INTERVAL)
    places = [data.feature_names.index(name) for name in names]
    np.testing.assert_array_equal(part.features, data.features[:, :, places])
    np.testing.assert_array_equal(part.stress, data.stress)
    with pytest.raises(DataError, match="no feature or family 'fundin'. Did you mean 'funding'"):
        build_dataset(lake, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS, features="fundin")


@pytest.fixture
def small(lake, tmp_path):
    """A copy of the lake that a test may spoil."""
    shutil.copytree(lake.path, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_a_missing_table_is_an_error_when_asked_for_and_empty_columns_when_not(small, tmp_path):
    shutil.rmtree(small.path / "funding")
    options = {"interval": INTERVAL, "horizons": ("4h",), "start": "2024-06-01"}
    with pytest.raises(DataError, match=r"'funding' needs funding.*ingest funding, or switch 'funding' off"):
        build_dataset(small, tmp_path / "data", features="volatility,funding", **options)
    said = []
    info = build_dataset(small, tmp_path / "data", progress=said.append, **options)
    assert info.missing_tables == ("funding",) == read_info(tmp_path / "data").missing_tables
    assert said[0] == "features of funding stay empty: the lake has no such table"
    data = read_dataset(tmp_path / "data")
    place = data.feature_names.index(select("funding")[0].name)
    assert np.isnan(data.features[:, :, place]).all()


def test_without_liquidations_and_depth_their_stress_is_not_known(small, data, tmp_path):
    for table in ("liquidations", "depth"):
        shutil.rmtree(small.path / table)
    build_dataset(small, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS)
    poorer = read_dataset(tmp_path / "data")
    assert np.isnan(poorer.stress_liquidation).all()
    assert np.isnan(poorer.stress_depth).all()
    np.testing.assert_array_equal(poorer.stress, data.stress)
    assert np.isfinite(data.stress_liquidation).any()
    assert np.isfinite(data.stress_depth).any()


def _spoil(lake, changes):
    """Write a file of bars past the checks, as a careless tool would: column -> row -> value."""
    part = next(part for part in lake.partitions("bars") if part.keys["venue"] == "sim")
    rows = pq.read_table(part.path, partitioning=None)
    for name, cells in changes.items():
        values = rows[name].to_pylist()
        for row, value in cells.items():
            values[row] = values[value] if isinstance(value, int) else value
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    pq.write_table(rows, part.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"high": {3: np.inf}}, "'high' is infinite"),
        ({"close": {3: -1.0}}, "'close' .* has to be above 0"),
        ({"close": {3: np.nan}}, "'close' may not be null"),
        ({"known_at": {3: 2}}, "'known_at' is before 'ts'"),
        ({"ts": {4: 3}, "known_at": {4: 3}}, "appears more than once"),
    ],
)
def test_impossible_bars_stop_the_build_and_are_named(small, tmp_path, changes, message):
    _spoil(small, changes)
    with pytest.raises(ContractError, match=message):
        build_dataset(small, tmp_path / "data", interval=INTERVAL, horizons=("4h",))
    assert [entry.name for entry in tmp_path.iterdir()] == ["lake"]


def test_rows_in_any_order_give_the_same_dataset(small, tmp_path, same_dataset, data):
    for part in small.partitions("bars"):
        rows = pq.read_table(part.path, partitioning=None)
        pq.write_table(rows.take(np.arange(rows.num_rows)[::-1]), part.path)
    build_dataset(small, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS)
    same_dataset(read_dataset(tmp_path / "data"), data)


def test_bars_of_another_length_in_the_same_lake_change_nothing(small, tmp_path, same_dataset, data):
    rows = small.read("bars", symbols=["BTC"], interval=INTERVAL)
    other = rows.set_column(rows.column_names.index("interval"), "interval", pa.array(["1d"] * len(rows)))
    small.write("bars", other)
    build_dataset(small, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS)
    same_dataset(read_dataset(tmp_path / "data"), data)


def test_bars_between_two_slots_are_left_out_and_counted(small, data, tmp_path):
    rows = small.read("bars", symbols=["BTC"], interval=INTERVAL)
    late = rows.slice(0, 30)
    for name in ("ts", "known_at"):
        shifted = pc.add(late[name], pa.scalar(1_000_000, pa.duration("us")))
        late = late.set_column(late.column_names.index(name), name, shifted)
    small.write("bars", late)
    info = build_dataset(small, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS)
    assert info.off_grid_bars == read_info(tmp_path / "data").off_grid_bars > 0
    assert data.info.off_grid_bars == 0
    np.testing.assert_array_equal(read_dataset(tmp_path / "data").features, data.features)


@pytest.mark.slow
def test_a_worker_that_fails_stops_the_others_and_is_told(small, tmp_path):
    _spoil(small, {"close": {3: -1.0}})
    with pytest.raises(ContractError, match="'close' .* has to be above 0"):
        build_dataset(small, tmp_path / "data", interval=INTERVAL, horizons=("4h",), jobs=2)
    assert not (tmp_path / "data").exists()
