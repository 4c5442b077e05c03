"""Days of margins: exactly once, resumable, honest about what a bundle had seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pyarrow.compute as pc
import pytest

from riskml.backfill import backfill, local, score_at
from riskml.backfill.bundles import choose_bundle, find_bundles
from riskml.errors import BundleError, ConfigError, DataError
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, format_us, to_us


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def span(last_days: list[str]) -> tuple[str, str]:
    """Three whole days."""
    return last_days[-4], last_days[-1]


def test_a_backfill_writes_each_snapshot_once_for_every_engine(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], tmp_path: Path
) -> None:
    report = backfill(
        tiny_bundle, lake, tmp_path, start=span[0], end=span[1], engines=("riskml", "hyperliquid")
    )
    rows = Lake(tmp_path).read("margins")
    accounts = lake.read("accounts", start=span[0], end=span[1]).num_rows
    assert report.rows == rows.num_rows == 2 * accounts
    assert report.counts["written"] == 3
    assert pc.unique(rows["engine"]).to_pylist() == ["hyperliquid", "riskml"]
    own = rows.filter(pc.equal(rows["engine"], "riskml"))
    assert own["p_liq_8h"].null_count == 0
    assert not any(own["in_sample"].to_pylist())


def test_a_backfilled_row_is_the_decision_of_that_time(
    tiny_bundle: Path, lake: Lake, last_days: list[str], tmp_path: Path
) -> None:
    moment = to_us(last_days[-2]) + 7 * HOUR
    backfill(tiny_bundle, lake, tmp_path, start=moment, end=moment + HOUR)
    rows = Lake(tmp_path).read("margins")
    live = score_at(tiny_bundle, lake, moment)
    by_account = {row["account_id"]: row for row in rows.to_pylist()}
    assert sorted(by_account) == sorted(live.account_id.tolist())
    for place, name in enumerate(live.account_id.tolist()):
        row = by_account[name]
        assert row["maintenance_margin_usd"] == pytest.approx(
            live.maintenance_margin_usd[place], rel=1e-5, abs=0.011
        )
        assert row["p_liq_24h"] == pytest.approx(live.liquidation_probability[place, 2], rel=1e-4)
        assert row["policy_hash"] == live.policy_hash


def test_doing_it_again_or_in_other_pieces_gives_the_same_bytes(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill(tiny_bundle, lake, tmp_path / "one", start=span[0], end=span[1])
    monkeypatch.setattr(local, "DAYS_PER_TASK", 1)
    backfill(tiny_bundle, lake, tmp_path / "two", start=span[0], end=span[1])
    backfill(tiny_bundle, lake, tmp_path / "two", start=span[0], end=span[1])
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_resume_skips_finished_days_and_redoes_damaged_or_outdated_ones(
    tiny_bundle: Path, lake: Lake, last_days: list[str], tmp_path: Path, maker: ModuleType
) -> None:
    start, middle, end = last_days[-4], last_days[-2], last_days[-1]
    backfill(tiny_bundle, lake, tmp_path / "out", start=start, end=middle)
    resumed = backfill(tiny_bundle, lake, tmp_path / "out", start=start, end=end, resume=True)
    assert (resumed.written, resumed.skipped) == ((middle,), (start, last_days[-3]))
    before = files(tmp_path / "out")
    (tmp_path / "out" / "margins" / f"date={start}.parquet").write_bytes(b"cut")
    assert backfill(tiny_bundle, lake, tmp_path / "out", start=start, end=end, resume=True).written == (
        start,
    )
    assert files(tmp_path / "out") == before
    maker.make_tiny_bundle(tmp_path / "newer", card="# Newer\n")
    other = backfill(tmp_path / "newer", lake, tmp_path / "out", start=start, end=end, resume=True)
    assert other.skipped == ()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], last_days: list[str], tmp_path: Path
) -> None:
    report = backfill(tiny_bundle, lake, tmp_path / "out", start=span[0], end=span[1], dry_run=True)
    assert report.written == tuple(last_days[-4:-1])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_processes_write_what_one_process_writes(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], tmp_path: Path
) -> None:
    backfill(tiny_bundle, lake, tmp_path / "one", start=span[0], end=span[1])
    backfill(tiny_bundle, lake, tmp_path / "two", start=span[0], end=span[1], jobs=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_rows_that_the_bundle_had_seen_are_marked(
    maker: ModuleType, lake: Lake, last_days: list[str], tmp_path: Path
) -> None:
    # data ends at 06:00 of the day; the purge of the longest horizon takes 24 h more
    day = to_us(last_days[-3])
    maker.make_tiny_bundle(tmp_path / "bundle", data_end=format_us(day - DAY + 6 * HOUR))
    report = backfill(tmp_path / "bundle", lake, tmp_path / "out", start=day, end=day + DAY)
    rows = Lake(tmp_path / "out").read("margins")
    marked = {row["ts"].hour for row in rows.to_pylist() if row["in_sample"]}
    clean = {row["ts"].hour for row in rows.to_pylist() if not row["in_sample"]}
    assert marked == set(range(6))
    assert clean == set(range(6, 24))
    assert report.in_sample_rows == sum(rows["in_sample"].to_pylist())


def test_each_day_takes_the_newest_bundle_that_had_not_seen_it(maker: ModuleType, tmp_path: Path) -> None:
    for name, end in (("a", "2023-01-01"), ("b", "2024-01-01"), ("c", "2025-01-01")):
        maker.make_tiny_bundle(tmp_path / name, data_end=end)
    choices = find_bundles(tmp_path)
    cases = [
        ("2022-06-01", "a", True),
        ("2023-01-01T12:00", "a", True),
        ("2023-06-01", "a", False),
        ("2024-01-01T12:00", "a", False),
        ("2024-01-02", "b", False),
        ("2026-01-01", "c", False),
    ]
    for time, name, in_sample in cases:
        choice = choose_bundle(choices, to_us(time))
        assert (choice.path.name, choice.in_sample(to_us(time))) == (name, in_sample), time


def test_a_bad_day_is_reported_and_the_others_are_written(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], last_days: list[str], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(lake.path, tmp_path / "lake"))
    bad = last_days[-3]
    (broken / "positions" / f"date={bad}.parquet").unlink()
    (broken / "accounts" / f"date={bad}.parquet").write_bytes(b"PAR1 cut PAR1")
    report = backfill(tiny_bundle, Lake(broken), tmp_path / "out", start=span[0], end=span[1])
    assert report.written == (last_days[-4], last_days[-2])
    assert [problem.code for problem in report.problems] == ["day-failed"]
    assert bad in report.problems[0].message
    written = [name for name in files(tmp_path / "out") if name.startswith("margins")]
    assert written == [f"margins/date={day}.parquet" for day in report.written]


def test_a_write_that_fails_leaves_no_part_of_a_day(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(local, "write_file", fail)
    with pytest.raises(OSError, match="disk full"):
        backfill(tiny_bundle, lake, tmp_path / "out", start=span[0], end=span[1])
    assert files(tmp_path / "out") == {}


def test_a_damaged_record_is_named_by_line(
    tiny_bundle: Path, lake: Lake, span: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"day": "2024-01-01"}) + "\n{cut\n")
    with pytest.raises(DataError, match=r"row 1: .*manifest.jsonl is damaged.*delete that line"):
        backfill(tiny_bundle, lake, tmp_path, start=span[0], end=span[1], resume=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"engines": ("hyperliqid",)},
            ConfigError,
            r"no margin engine 'hyperliqid'. Did you mean 'hyperliquid'\?",
        ),
        ({"engines": ()}, ConfigError, r"at least one engine is required"),
        ({"jobs": 0}, ConfigError, r"jobs is 0; at least 1"),
        ({"start": "2024-02-02", "end": "2024-02-01"}, DataError, r"range from 2024-02-02.* is empty"),
        ({"start": "1999-01-01", "end": "1999-02-01"}, DataError, r"no account snapshot in the range"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tiny_bundle: Path,
    lake: Lake,
    tmp_path: Path,
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        backfill(tiny_bundle, lake, tmp_path, **options)


def test_a_folder_without_bundles_is_refused(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle and holds none"):
        backfill(tmp_path, lake, tmp_path / "out")


def test_scoring_before_the_first_snapshot_is_refused(tiny_bundle: Path, lake: Lake) -> None:
    with pytest.raises(DataError, match=r"no account snapshot at or before"):
        score_at(tiny_bundle, lake, "1999-01-01")
