"""Outcomes as text and JSON, and progress on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from riskml.cli_output import Outcome, Progress, finite, outcome_json, print_outcome, text_table
from riskml.cli_verbs import read_json, write_json
from riskml.errors import DataError, Problem


def test_numbers_that_json_has_not_become_null() -> None:
    record = {"a": float("nan"), "b": [np.float64("inf"), np.int64(3)], "c": np.array([1.0, np.nan])}
    assert finite(record) == {"a": None, "b": [None, 3], "c": [1.0, None]}


def test_paths_and_extra_keys_are_in_the_object() -> None:
    text = outcome_json(Outcome(outputs=(Path("a/b"),), extra={"bundle_id": "x"}), "export", 1.23456)
    assert json.loads(text) == {
        "ok": True,
        "command": "export",
        "seconds": 1.235,
        "outputs": ["a/b"],
        "counts": {},
        "problems": [],
        "bundle_id": "x",
    }


def test_long_lists_of_problems_are_cut_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(Outcome(problems=tuple(Problem("gap", f"gap {n}") for n in range(50))))
    said = capsys.readouterr().out
    assert said.count("gap ") == 20
    assert "30 more" in said


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    assert text_table(["name", "n"], [["a", 1], ["b", None], ["c", 1200.0]]).splitlines() == [
        "name      n",
        "a         1",
        "b         -",
        "c     1,200",
    ]


def test_an_empty_table_is_its_headers() -> None:
    assert text_table(["a", "b"], []) == "a  b"


def test_plain_progress_prints_one_line_per_step_and_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(pause=0.0) as progress:
        progress("reading")
        for done in range(1, 101):
            progress(done, 100, "building")
    lines = capsys.readouterr().err.splitlines()
    assert "reading" in lines[0]
    assert len(lines) == 12
    assert lines[-1].endswith("building 100 %")


def test_plain_progress_pauses_between_lines_of_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(pause=3600.0) as progress:
        for done in range(1, 101):
            progress(done, 100, "building")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(enabled=False) as progress:
        progress(1, 2, "building")
    assert capsys.readouterr().err == ""


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "record.json"
    write_json(file, {"value": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(file, {"value": object()})
    assert read_json(file, "record") == {"value": None}
    assert [path.name for path in file.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no record"), ("{", "not valid JSON"), ("[1]", "no JSON object")],
)
def test_an_unusable_json_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "record.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_json(file, "record")
