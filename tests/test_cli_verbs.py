"""The verbs on real files: quick ones on the small sample, the whole path as one slow test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riskml import cli
from riskml.cli_output import Progress
from riskml.cli_verbs import evaluation_text
from riskml.demo import MARKER, PARTS, run_demo
from riskml.errors import ConfigError

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The sample of the repository, ingested by the command."""
    folder = tmp_path_factory.mktemp("sample") / "lake"
    assert (
        cli.main(["ingest", "tables", str(repository / "data" / "sample"), "--lake", str(folder), "--quiet"])
        == 0
    )
    return folder


def run(said: Said, *arguments: str | Path) -> dict[str, Any]:
    """The JSON object of a command that has to succeed."""
    code = cli.main([*map(str, arguments), "--json", "--quiet"])
    record: dict[str, Any] = json.loads(said.readouterr().out)
    assert code == 0, record["problems"]
    assert record["ok"]
    return record


def test_ingesting_twice_adds_nothing(lake: Path, repository: Path, capsys: Said) -> None:
    capsys.readouterr()
    record = run(capsys, "ingest", "tables", repository / "data" / "sample", "--lake", lake)
    assert record["counts"]["rows_added"] == 0
    assert record["counts"]["rows_unchanged"] > 10_000
    assert [item["path"] for item in record["skipped"]] == ["recipe.toml"]


def test_check_counts_what_it_looked_at(lake: Path, capsys: Said) -> None:
    record = run(capsys, "check", lake)
    assert record["counts"]["errors"] == 0
    assert record["counts"]["bars"] > 1000


def test_check_refuses_a_lake_with_an_error(lake: Path, tmp_path: Path, capsys: Said) -> None:
    broken = tmp_path / "lake"
    for file in lake.glob("bars/**/*.parquet"):
        target = broken / file.relative_to(lake)
        target.parent.mkdir(parents=True)
        target.write_bytes(file.read_bytes()[:-100])
    assert cli.main(["check", str(broken), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)["problems"][0]
    assert found["table"] == "bars"
    assert "truncated" in found["message"]


def test_build_writes_a_dataset_and_its_page(lake: Path, tmp_path: Path, capsys: Said) -> None:
    record = run(capsys, "build", "--lake", lake, "--out", tmp_path / "data", "--markets", "BTC,ETH")
    assert record["counts"]["markets"] == 2
    assert record["outputs"] == [str(tmp_path / "data")]
    run(capsys, "report", "features", tmp_path / "data", "--out", tmp_path / "features.html")
    page = (tmp_path / "features.html").read_text()
    assert "log_har_24h" in page
    assert "<svg" in page
    assert "BTC" in json.loads((tmp_path / "features.json").read_text())["dataset"]["markets"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--markets", "BTCC"], "Did you mean 'BTC'?"),
        (["--start", "2030-01-01"], "no 1h bar"),
        (["--start", "2024-06-20", "--end", "2024-06-10"], "end is exclusive and has to be later"),
    ],
)
def test_build_on_nothing_is_an_error_and_leaves_nothing(
    arguments: list[str], message: str, lake: Path, tmp_path: Path, capsys: Said
) -> None:
    assert cli.main(["build", "--lake", str(lake), "--out", str(tmp_path / "data"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_build_takes_a_definition_of_stress(lake: Path, tmp_path: Path, capsys: Said) -> None:
    options = ["--lake", lake, "--markets", "BTC", "--features", "calendar", "--out", tmp_path / "data"]
    run(capsys, "build", *options, "--stress", "drop=0.001,sigmas=0.5,window=4h")
    stress = json.loads((tmp_path / "data" / "dataset.json").read_text())["stress"]
    assert (stress["drop"], stress["sigmas"], stress["window"]) == (0.001, 0.5, "4h")
    assert stress["cool_down"] == "24h"
    assert cli.main(["build", *map(str, options), "--stress", "dorp=0.05"]) == 2
    assert "there is no 'dorp'. Did you mean 'drop'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["check", "NOWHERE"],
        ["build", "--lake", "NOWHERE", "--out", "D"],
        ["export", "NOWHERE", "--out", "B"],
        ["replay", "--margins", "NOWHERE", "--lake", "NOWHERE", "--out", "R"],
        ["compare", "NOWHERE", "NOWHERE"],
        ["promote", "NOWHERE"],
        ["report", "run", "NOWHERE"],
        ["inspect", "NOWHERE"],
    ],
    ids=lambda command: command[0],
)
def test_a_path_that_does_not_exist_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) in (1, 3)
    assert "NOWHERE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["check", "FILE"], "FILE is a file; a lake is a folder"),
        (["ingest", "tables", "FUNDING.csv", "--lake", "FILE"], "holds no table"),
        (["ingest", "tables", "funding.csv", "--lake", "FILE"], "FILE is a file; a lake is a folder"),
        (["build", "--lake", "FILE", "--out", "D"], "FILE is a file; a lake is a folder"),
        (["demo", "--out", "FILE"], "FILE is a file"),
        (["demo", "--lake", "NOWHERE", "--out", "D"], "there is no lake at NOWHERE"),
    ],
)
def test_a_file_where_a_folder_is_needed_is_named_and_nothing_is_written(
    command: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("kept")
    for name in ("funding.csv", "FUNDING.csv"):
        Path(name).write_text(
            "ts,known_at,venue,symbol,rate,interval_h\n"
            "2024-01-01T08:00:00Z,2024-01-01T08:00:00Z,binance,BTC,0.0001,8\n"
        )
    before = sorted(tmp_path.iterdir())
    assert cli.main(command) in (1, 2)
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert Path("FILE").read_text() == "kept"


def test_check_refuses_a_folder_that_is_no_lake(tmp_path: Path, capsys: Said) -> None:
    assert cli.main(["check", str(tmp_path), "--json"]) == 3
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["code"] == "no-table"


@pytest.mark.parametrize("kind", ["vendor", "tables", "binance", "freqtrade"])
def test_an_ingest_of_an_empty_folder_fails_and_makes_no_lake(
    kind: str, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["ingest", kind, str(tmp_path / "empty"), "--lake", str(tmp_path / "lake")]) == 1
    assert "empty holds no" in capsys.readouterr().err
    assert not (tmp_path / "lake").exists()


def test_only_the_binance_layout_takes_a_market(tmp_path: Path, capsys: Said) -> None:
    command = ["ingest", "tables", str(tmp_path), "--lake", str(tmp_path / "lake"), "--market", "um"]
    assert cli.main(command) == 2
    assert "only kind 'binance' has a market" in capsys.readouterr().err


def test_an_evaluation_that_is_in_sample_says_so() -> None:
    row = {"metric": "qlike", "horizon": "1h", "side": "both", "market": "all"}
    rows = [{**row, "model": "riskml", "value": 0.4}, {**row, "model": "log_har", "value": None}]
    text = evaluation_text({"start": "a", "end": "b", "rows": 3, "in_sample": True, "metrics": rows})
    assert "these numbers do not count" in text
    assert "log_har -" in text


def test_the_demo_takes_no_folder_that_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "precious").write_text("kept")
    with pytest.raises(ConfigError, match="has content that no demo wrote"):
        run_demo(tmp_path, progress=Progress(enabled=False))
    assert (tmp_path / "lake" / "precious").read_text() == "kept"


@pytest.mark.slow
def test_the_whole_path_from_the_demo_to_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    record = run(capsys, "demo", "--short", "--out", "d")
    assert all(Path(path).exists() for path in record["outputs"])
    assert {path.name for path in Path("d").iterdir()} >= {*PARTS, MARKER}
    assert record["counts"]["accounts"] == 30

    identity = run(capsys, "inspect", "d/bundle")["bundle"]["bundle"]
    again = run(capsys, "export", "d/run", "--out", "again")
    assert again["bundle_id"] == identity
    assert run(capsys, "diff", "d/bundle", "again")["same"]

    decided = run(capsys, "score", "--bundle", "d/bundle", "--lake", "d/lake", "--at", "2024-06-30T12:00")[
        "decisions"
    ]
    assert len(decided) == 30
    assert {"account_id", "p_liq_8h", "initial_margin_usd", "action", "reasons"} <= decided[0].keys()

    days = ["--start", "2024-06-28", "--end", "2024-07-01"]
    engines = ["--engine", "riskml,hyperliquid", *days]
    filled = run(capsys, "backfill", "--bundle", "d/bundle", "--lake", "d/lake", "--out", "margins", *engines)
    assert filled["counts"]["written"] == 3
    resumed = run(
        capsys,
        "backfill",
        "--bundle",
        "d/bundle",
        "--lake",
        "d/lake",
        "--out",
        "margins",
        *engines,
        "--resume",
    )
    assert resumed["counts"]["skipped"] == 3
    replayed = run(capsys, "replay", "--margins", "margins", "--lake", "d/lake", "--out", "replay")
    assert (
        replayed["counts"]["account_hours"] + replayed["counts"]["in_sample_rows"] == filled["counts"]["rows"]
    )

    for kind, path in (
        ("bundle", "d/bundle"),
        ("run", "d/run"),
        ("backfill", "margins"),
        ("replay", "replay"),
    ):
        run(capsys, "report", kind, path, "--out", f"{kind}.html")
        assert "<table>" in Path(f"{kind}.html").read_text()

    assert run(capsys, "compare", "d/run", "d/run")["first"]
    run(capsys, "export", "d/run", "--out", "d/run/bundle")
    released = run(capsys, "promote", "d/run", "--evaluation", "d/evaluation.json", "--models", "models")
    assert released["bundle_id"] == identity
    assert cli.main(["promote", "d/run", "--evaluation", "d/evaluation.json", "--models", "models"]) == 3
