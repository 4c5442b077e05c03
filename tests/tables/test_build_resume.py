"""Builds that are interrupted: nothing half done, and the rest gives the same bytes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from riskml.errors import ConfigError, DataError
from riskml.tables import build_span, chunks
from riskml.tables.build import build_dataset, read_dataset, read_info
from riskml.tables.lake import Lake
from riskml.tables.staging import Staging
from riskml.tables.stress import StressSpec
from riskml.tables.synthetic import generate_sample

INTERVAL = "4h"
HORIZONS = ("4h", "8h", "24h")
FEATURES = "volatility,calendar"
OPTIONS = {"interval": INTERVAL, "horizons": HORIZONS, "features": FEATURES}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    path = tmp_path_factory.mktemp("build") / "lake"
    generate_sample(path, days=260, markets=3, accounts=2, interval=INTERVAL)
    return Lake(path)


@pytest.fixture(scope="module")
def data(lake, tmp_path_factory):
    """The dataset of an undisturbed build."""
    path = tmp_path_factory.mktemp("built") / "data"
    build_dataset(lake, path, **OPTIONS)
    return read_dataset(path)


def _stop_after(monkeypatch, n_chunks):
    """Make a build end like one that is interrupted once so many chunks are in the journal."""
    write, seen = build_span.write_record, []

    def stopping(staging, record):
        write(staging, record)
        seen.append(record.name)
        if len(seen) == n_chunks:
            raise KeyboardInterrupt

    monkeypatch.setattr(build_span, "write_record", stopping)


@pytest.fixture
def interrupted(lake, tmp_path, monkeypatch):
    """The folder of a build that was interrupted after three of nine months."""
    out = tmp_path / "data"
    monkeypatch.setattr(chunks, "YEARLY_FROM", 2**62)
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(lake, out, **OPTIONS)
    assert not out.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [".data.building"]
    return out


def test_an_interrupted_build_goes_on_where_it_was(lake, interrupted, tmp_path, same_dataset, files_of, data):
    said = []
    build_dataset(lake, interrupted, **OPTIONS, resume=True, progress=said.append)
    assert said[0].startswith("kept 3 of ")
    assert [line.partition(":")[0] for line in said[1:3]] == ["built 2024-01", "built 2024-02"]
    same_dataset(read_dataset(interrupted), data)
    build_dataset(lake, tmp_path / "whole", **OPTIONS)
    assert files_of(interrupted) == files_of(tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "whole"]


def test_without_resume_an_interrupted_build_begins_anew(lake, interrupted):
    said = []
    build_dataset(lake, interrupted, **OPTIONS, progress=said.append)
    assert said[0].startswith("built 2023-")
    assert not interrupted.with_name(".data.building").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "calendar"}, "differs in .*features, fingerprint"),
        ({"stress": StressSpec(drop=0.05)}, "differs in stress"),
        ({"horizons": ("8h",)}, "differs in horizons"),
        ({"end": "2024-03-01"}, "differs in range"),
        ({"markets": "ETH,BTC"}, "differs in markets"),
    ],
)
def test_a_resumed_build_of_something_else_says_what_differs(lake, interrupted, options, message):
    with pytest.raises(DataError, match=message):
        build_dataset(lake, interrupted, resume=True, **OPTIONS | options)


def test_a_damaged_chunk_of_an_interrupted_build_is_built_again(lake, interrupted, same_dataset, data):
    staged = interrupted.with_name(".data.building")
    file = sorted((staged / "rows").rglob("month=*.parquet"))[0]
    file.write_bytes(file.read_bytes()[:-10])
    (sorted((staged / "journal").glob("*.json"))[1]).write_text("{")
    said = []
    build_dataset(lake, interrupted, **OPTIONS, resume=True, progress=said.append)
    assert said[0].startswith("kept 1 of ")
    same_dataset(read_dataset(interrupted), data)


def test_the_old_dataset_stays_until_the_new_one_is_whole(lake, tmp_path, monkeypatch, files_of):
    out = tmp_path / "data"
    build_dataset(lake, out, interval=INTERVAL, horizons=("4h",), features="calendar", start="2024-06-01")
    before = files_of(out)
    _stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(lake, out, interval=INTERVAL, horizons=("4h",), features="calendar")
    assert files_of(out) == before
    assert read_info(out).start.startswith("2024-06-01")


def test_two_builds_of_one_dataset_at_once_are_refused(lake, tmp_path):
    with Staging(tmp_path / "data", {}, resume=False), pytest.raises(ConfigError, match="another process"):
        build_dataset(lake, tmp_path / "data", interval=INTERVAL, horizons=("4h",))


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half_done_and_can_be_resumed(lake, tmp_path, files_of):
    whole, out = tmp_path / "whole", tmp_path / "data"
    five = tmp_path / "lake"
    generate_sample(five, days=60, markets=3, accounts=2, interval="5m")
    build_dataset(Lake(five), whole, interval="5m")
    command = [sys.executable, "-m", "riskml.cli", "build", "--lake", str(five), "--out", str(out)]
    worker = subprocess.Popen([*command, "--interval", "5m", "--quiet"], start_new_session=True)
    journal = tmp_path / ".data.building" / "journal"
    while worker.poll() is None and not list(journal.glob("*.json")):
        time.sleep(0.01)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert not out.exists()
    said = []
    build_dataset(Lake(five), out, interval="5m", resume=True, jobs=2, progress=said.append)
    assert said[0].startswith("kept ")
    assert files_of(out) == files_of(whole)
