"""``riskml build``: what is written, that it reads back, and that cutting changes nothing."""

import itertools
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from riskml.errors import ConfigError, DataError
from riskml.features.catalog import CATALOG, fingerprint, select
from riskml.features.evaluate import input_names
from riskml.features.inputs import input_tables
from riskml.tables import build as build_module
from riskml.tables import chunks
from riskml.tables.align import load_grid, load_panel
from riskml.tables.build import build_dataset, iter_dataset, read_dataset, read_info
from riskml.tables.lake import Lake
from riskml.tables.onsets import onset_times
from riskml.tables.stress import StressSpec
from riskml.tables.synthetic import generate_sample
from riskml.tables.targets import price_stress, targets
from riskml.units import HOUR, MINUTE, duration_us, to_us

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


def test_features_and_targets_read_back_as_they_were_computed(lake, built):
    info, data = built
    panel = load_panel(lake, data.markets, INTERVAL, info.start, info.end)
    alive = np.isfinite(data.close)
    assert data.feature_names[-1] == panel.feature_names[-1]
    np.testing.assert_array_equal(data.ts, panel.ts)
    np.testing.assert_array_equal(data.close, panel.close)
    np.testing.assert_array_equal(data.features[alive], panel.features.astype(np.float32)[alive])
    expected = targets(panel.close, panel.high, panel.low, panel.ts, INTERVAL, HORIZONS)
    np.testing.assert_array_equal(data.mae, expected.mae)
    np.testing.assert_array_equal(data.variance, expected.variance)
    np.testing.assert_array_equal(data.stress, expected.stress)
    assert np.isfinite(data.mae[1:-6]).mean() > 0.9
    found = price_stress(panel.close, panel.high, panel.low, panel.ts, INTERVAL)
    onsets = onset_times(found, panel.ts, data.markets, INTERVAL, spec=StressSpec())
    assert data.onsets.filter(pc.field("kind") == "drop").equals(onsets)


def test_the_description_names_everything_that_went_in(lake, built):
    info, data = built
    assert info == read_info(info.path)
    assert info.features == tuple(feature.name for feature in CATALOG) == data.feature_names
    assert info.fingerprint == fingerprint(CATALOG, INTERVAL)
    assert info.horizons == HORIZONS
    assert info.data_hashes == lake.data_hashes(input_tables(input_names(CATALOG)))
    assert info.rows == sum(info.chunk_rows.values()) == np.isfinite(data.features[:, :, -1]).sum()
    assert info.missing_tables == ()
    assert info.stress == asdict(StressSpec())


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


def test_nothing_at_or_after_the_end_changes_the_dataset(lake, built, tmp_path, files_of):
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
    assert files_of(Path(cut)) == files_of(Path(longer))


def test_cores_share_the_time_of_long_ranges_and_the_markets_of_short_ones():
    day = 86_400_000_000
    assert chunks.workers_for(2, 8 * 365 * day, 180 * day) == 2
    assert chunks.workers_for(2, 60 * day, 180 * day) == 1
    assert chunks.workers_for(1, 60 * day, 180 * day) == 1


def test_threads_over_the_markets_change_no_byte(lake, built, tmp_path, files_of, monkeypatch):
    info, _ = built
    monkeypatch.setattr(build_module, "_workers", lambda *_: 1)
    build_dataset(lake, tmp_path / "threads", interval=INTERVAL, horizons=HORIZONS, jobs=2)
    assert files_of(tmp_path / "threads") == files_of(Path(info.path))


def test_the_number_of_jobs_changes_no_byte(lake, built, tmp_path, files_of):
    info, _ = built
    build_dataset(lake, tmp_path / "jobs", interval=INTERVAL, horizons=HORIZONS, jobs=2)
    assert files_of(tmp_path / "jobs") == files_of(Path(info.path))


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
        ({"stress": StressSpec(window="6h")}, ConfigError, "6h is not a whole number of 4h bars"),
        ({"stress": StressSpec(cool_down="9h")}, ConfigError, "9h is not a whole number of 4h bars"),
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
    files = sorted(out.rglob("year=*.parquet"))
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


@pytest.mark.parametrize(
    ("setting", "value"), [("YEARLY_FROM", 2**62), ("BLOCK_BYTES", 1), ("BLOCK_BYTES", 2**40)]
)
def test_other_chunks_and_other_blocks_change_no_bit(
    lake, built, tmp_path, monkeypatch, setting, value, same_dataset
):
    _, data = built
    monkeypatch.setattr(chunks, setting, value)
    info = build_dataset(lake, tmp_path / "data", interval=INTERVAL, horizons=HORIZONS)
    assert (len(info.chunk_rows) > 2) == (setting == "YEARLY_FROM")
    monkeypatch.undo()
    same_dataset(read_dataset(tmp_path / "data"), data)


def test_a_dataset_reads_chunk_by_chunk_and_in_part(built):
    info, data = built
    parts = list(iter_dataset(info.path))
    assert [int(part.info.start[:4]) for part in parts] == [2023, 2024]
    for name in ("features", "close", "mae", "variance", "stress", "stress_depth"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(data, name)
        )
    part = read_dataset(info.path, markets=["ETH"], start=data.ts[5], end=data.ts[9])
    assert part.info.markets == ("ETH",)
    np.testing.assert_array_equal(part.features[:, 0], data.features[5:9, data.info.markets.index("ETH")])
    with pytest.raises(DataError, match="no market 'EHT'"):
        read_dataset(info.path, markets=["EHT"])


def test_minute_bars_are_stored_by_month_and_equal_the_panel(tmp_path):
    generate_sample(tmp_path / "lake", days=3, markets=2, accounts=2, interval="5m")
    lake, names = Lake(tmp_path / "lake"), ("log_har_24h", "factor_loading_1", "hour_of_week")
    info = build_dataset(lake, tmp_path / "data", interval="5m", features=names)
    assert {file.name[:6] for file in (tmp_path / "data").rglob("symbol=*/*.parquet")} == {"month="}
    data = read_dataset(tmp_path / "data")
    panel = load_panel(lake, data.markets, "5m", info.start, info.end, features=select(names))
    alive = np.isfinite(data.close)
    np.testing.assert_array_equal(data.features[alive], panel.features.astype(np.float32)[alive])
    expected = targets(panel.close, panel.high, panel.low, panel.ts, "5m", info.horizons)
    for name in ("mae", "variance", "stress"):
        np.testing.assert_array_equal(getattr(data, name), getattr(expected, name))


def test_chunks_and_blocks_tile_a_range_along_the_calendar():
    first, last = to_us("2023-11-30T12:00"), to_us("2025-01-02")
    years = chunks.cut_chunks(first, last, "1h")
    assert [chunk.file_name for chunk in years] == [
        "year=2023.parquet",
        "year=2024.parquet",
        "year=2025.parquet",
    ]
    months = chunks.cut_chunks(first, last, "1m")
    assert [chunk.name for chunk in months[:3]] == ["2023-11", "2023-12", "2024-01"]
    for cut in (years, months):
        assert (cut[0].start, cut[-1].end) == (first, last)
        assert all(one.end == other.start for one, other in itertools.pairwise(cut))
    blocks = list(chunks.cut_blocks(first, first + 1000 * MINUTE, "1m", 256))
    assert all(start % (256 * MINUTE) == 0 for start, _ in blocks[1:])
    assert sum(end - start for start, end in blocks) == 1000 * MINUTE
    runs = chunks.cut_spans([*months[:5], *months[7:]], 3)
    assert [run[0].name for run in runs] == ["2023-11", "2024-06", "2024-10"]
    assert len(chunks.cut_spans(years, 9)) == 3


_PEAK = """
import resource, sys
from riskml.tables.build import build_dataset
from riskml.tables.lake import Lake
build_dataset(Lake(sys.argv[1]), sys.argv[2], interval="1m", start=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_range(tmp_path):
    generate_sample(tmp_path / "lake", days=80, markets=3, accounts=2, interval="1m")
    end = int(Lake(tmp_path / "lake").read("bars", columns=["ts"])["ts"].cast(pa.int64()).to_numpy().max())
    peaks = []
    for days in (10, 75):
        start = str(end - days * 24 * HOUR)
        script = _PEAK.replace("start=sys.argv[3]", "start=int(sys.argv[3])")
        command = [sys.executable, "-c", script, str(tmp_path / "lake"), str(tmp_path / "data"), start]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    # 65 more days of three markets are 0.3 GB as they are stored, and 2 GB in memory as float64.
    assert peaks[1] < peaks[0] + 150_000
