"""``riskml build``: what is written, that it reads back, and that cutting changes nothing."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from riskml.errors import ConfigError, DataError
from riskml.features.catalog import CATALOG, fingerprint
from riskml.tables.align import load_grid, load_panel
from riskml.tables.build import build_dataset, read_dataset, read_info
from riskml.tables.lake import Lake
from riskml.tables.synthetic import generate_sample
from riskml.tables.targets import targets
from riskml.units import duration_us, to_us

INTERVAL = "4h"
HORIZONS = ("4h", "8h", "24h")


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    path = tmp_path_factory.mktemp("build") / "lake"
    generate_sample(path, days=260, markets=3, accounts=2, interval=INTERVAL)
    return Lake(path)


@pytest.fixture(scope="module")
def built(lake, tmp_path_factory):
    path = tmp_path_factory.mktemp("built") / "data"
    said = []
    info = build_dataset(lake, path, interval=INTERVAL, horizons=HORIZONS, progress=said.append)
    assert len(said) == 2, "one line per calendar year"
    return info, read_dataset(path)


def _files(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))
    }


def test_features_and_targets_read_back_as_they_were_computed(lake, built):
    info, data = built
    panel = load_panel(lake, data.markets, INTERVAL, info.start, info.end)
    alive = np.isfinite(data.close)
    np.testing.assert_array_equal(data.ts, panel.ts)
    np.testing.assert_array_equal(data.close, panel.close)
    np.testing.assert_array_equal(data.features[alive], panel.features.astype(np.float32)[alive])
    expected = targets(panel.close, panel.high, panel.low, panel.ts, INTERVAL, HORIZONS)
    np.testing.assert_array_equal(data.mae, expected.mae)
    np.testing.assert_array_equal(data.variance, expected.variance)
    np.testing.assert_array_equal(data.stress, expected.stress)
    assert np.isfinite(data.mae[1:-6]).mean() > 0.9


def test_the_description_names_everything_that_went_in(lake, built):
    info, data = built
    assert info == read_info(info.path)
    assert info.features == tuple(feature.name for feature in CATALOG) == data.feature_names
    assert info.fingerprint == fingerprint(CATALOG, INTERVAL)
    assert info.horizons == HORIZONS
    assert info.data_hashes == lake.data_hashes(
        ["bars", "marks", "funding", "open_interest", "flows", "chains", "pegs"]
    )
    assert info.rows == np.isfinite(data.features[:, :, -1]).sum()


def test_another_range_gives_the_same_values_where_both_are(lake, built, tmp_path):
    _, data = built
    bar = duration_us(INTERVAL)
    start, end = int(data.ts[200]), int(data.ts[-100])
    build_dataset(lake, tmp_path / "part", interval=INTERVAL, horizons=HORIZONS, start=start, end=end)
    part = read_dataset(tmp_path / "part")
    rows = slice(200, 200 + (end - start) // bar)
    for name in ("features", "close"):
        np.testing.assert_array_equal(getattr(part, name), getattr(data, name)[rows])
    for name in ("mae", "variance", "stress"):
        found, whole = getattr(part, name), getattr(data, name)[rows]
        for place, bars in enumerate((1, 2, 6)):
            np.testing.assert_array_equal(found[:-bars, :, place], whole[:-bars, :, place])
            # a window that leaves the range is not known, although the lake goes on
            assert np.isnan(found[-bars:, :, place]).all()
            assert np.isfinite(whole[-bars:, :, place]).any()


def test_nothing_at_or_after_the_end_changes_the_dataset(lake, built, tmp_path):
    from pathlib import Path

    _, data = built
    start, end = int(data.ts[-60]), int(data.ts[-30])
    longer, cut = tmp_path / "longer", tmp_path / "cut"
    build_dataset(lake, longer, interval=INTERVAL, horizons=HORIZONS, start=start, end=end)
    shorter = Lake(tmp_path / "lake")
    for table in lake.tables():
        rows = lake.read(table)
        if "ts" in rows.column_names:
            rows = rows.filter(pc.less(rows["ts"], pa.scalar(end, pa.timestamp("us", tz="UTC"))))
        shorter.write(table, rows)
    build_dataset(shorter, cut, interval=INTERVAL, horizons=HORIZONS, start=start, end=end)
    assert _files(Path(cut)) == _files(Path(longer))


@pytest.mark.slow
def test_the_number_of_jobs_changes_no_byte(lake, built, tmp_path):
    info, _ = built
    from pathlib import Path

    build_dataset(lake, tmp_path / "jobs", interval=INTERVAL, horizons=HORIZONS, jobs=2)
    assert _files(tmp_path / "jobs") == _files(Path(info.path))


def test_building_again_replaces_the_dataset_and_leaves_nothing_else(lake, tmp_path):
    out = tmp_path / "data"
    for markets in ("all", ["ETH", "BTC"]):
        build_dataset(lake, out, interval=INTERVAL, horizons=("4h",), markets=markets, start="2024-05-01")
    assert read_dataset(out).info.markets == ("ETH", "BTC")
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_is_not_a_dataset_is_left_alone(lake, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a dataset"):
        build_dataset(lake, tmp_path, interval=INTERVAL, horizons=("4h",))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"markets": ["NOPE"]}, DataError, "there is no market 'NOPE'"),
        ({"interval": "5m"}, DataError, "the lake has no 5m bars"),
        ({"start": "2001-01-01", "end": "2001-01-05"}, DataError, "no 4h bar of sim:BTC"),
        ({"start": "2024-03-01", "end": "2024-03-01"}, DataError, "no 4h bar closes between"),
        ({"horizons": ("5h",)}, ConfigError, "not a whole number"),
        ({"jobs": 0}, ConfigError, "jobs is at least 1"),
    ],
)
def test_a_build_that_cannot_work_says_why_and_leaves_nothing(lake, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        build_dataset(lake, tmp_path / "out", **{"interval": INTERVAL, "horizons": ("4h",), **options})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_dataset_is_refused(lake, tmp_path):
    out = tmp_path / "data"
    build_dataset(lake, out, interval=INTERVAL, horizons=("4h",), start="2024-06-01")
    files = sorted(out.rglob("*.parquet"))
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_dataset(out)
    files[0].unlink()
    with pytest.raises(DataError, match="rows, but dataset.json says"):
        read_dataset(out)
    (out / "dataset.json").write_text(json.dumps({"interval": INTERVAL}))
    with pytest.raises(DataError, match="is damaged"):
        read_dataset(out)
    with pytest.raises(DataError, match="does not exist"):
        read_dataset(tmp_path / "nothing")


def test_rows_of_an_outage_are_not_stored(lake, built):
    info, data = built
    grid = load_grid(lake, data.markets, INTERVAL, info.start, info.end, ["close", "high", "low"])
    stored = np.isfinite(data.features[:, :, -1])
    assert (stored >= grid.present).all()
    assert to_us(info.start) == data.ts[0]
