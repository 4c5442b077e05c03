"""The figures that the README shows are the ones that were recorded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_results_of_the_readme_are_those_of_the_newest_recorded_run() -> None:
    spec = importlib.util.spec_from_file_location(
        "results_table", REPOSITORY / "training" / "results_table.py"
    )
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert table.render(table.newest_line()) in readme, "run: python training/results_table.py --write"


def test_every_recorded_result_names_machine_date_and_command() -> None:
    training = [
        json.loads(text)
        for file in REPOSITORY.glob("training/results/*.jsonl")
        for text in file.read_text(encoding="utf-8").splitlines()
    ]
    serving = [json.loads(f.read_text(encoding="utf-8")) for f in REPOSITORY.glob("serving/results/*.json")]
    assert training
    assert serving
    for line in [*training, *serving]:
        assert {"machine", "date", "command"} <= line.keys()
