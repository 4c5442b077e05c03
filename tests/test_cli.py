"""The command line: verbs, exit codes and the one JSON object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from riskml import __version__, cli, cli_verbs
from riskml.cli_output import Outcome, Progress
from riskml.errors import BundleError, ConfigError, ContractError, DataError, Problem

EXAMPLES = {
    "ingest": ["vendor", "DATA", "--lake", "LAKE"],
    "check": ["LAKE"],
    "build": [
        "--lake",
        "LAKE",
        "--out",
        "DIR",
        "--interval",
        "1h",
        "--markets",
        "A,B",
        "--start",
        "2020-01-01",
        "--features",
        "volatility,funding",
        "--stress",
        "drop=0.05,window=4h",
        "--resume",
    ],
    "fit": [
        "--data",
        "D",
        "--recipe",
        "quick",
        "--out",
        "R",
        "--fit-end",
        "2023-01-01",
        "--seed",
        "3",
        "--resume",
    ],
    "export": ["RUN", "--out", "BUNDLE"],
    "evaluate": [
        "--bundle",
        "B",
        "--lake",
        "L",
        "--start",
        "2024-01-01",
        "--end",
        "2025-01-01",
        "--accounts",
        "--out",
        "F",
    ],
    "score": ["--bundle", "B", "--lake", "L", "--at", "2024-01-01T00:00"],
    "backfill": ["--bundle", "B", "--lake", "L", "--out", "D", "--engine", "a,b", "--jobs", "2", "--dry-run"],
    "replay": ["--margins", "D", "--lake", "L", "--out", "R"],
    "report": ["bundle", "B"],
    "inspect": ["B"],
    "diff": ["A", "B"],
    "compare": ["A", "B"],
    "promote": ["RUN"],
    "demo": ["--lake", "L", "--out", "D"],
}

VERBS = tuple(EXAMPLES)

Stand = Callable[[BaseException | Outcome], None]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Replace what ``riskml check`` does by an outcome or an error."""

    def install(result: BaseException | Outcome) -> None:
        def run(options: Namespace, progress: Progress) -> Outcome:
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(cli_verbs, "check", run)

    return install


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    """Exit code and the JSON object; fails when stdout holds anything else."""
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_its_documented_options(verb: str) -> None:
    options = cli.build_parser().parse_args([verb, *EXAMPLES[verb]])
    assert options.command == verb
    assert callable(options.run)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_ends_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([verb, "--help"])
    assert f"Example: riskml {verb}" in " ".join(capsys.readouterr().out.split())


def test_the_example_of_every_verb_parses(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([verb, "--help"])
        example = " ".join(capsys.readouterr().out.split()).rpartition("Example: riskml ")[2].split()
        assert cli.build_parser().parse_args(example).command == verb


def documented_commands(repository: Path) -> list[tuple[str, list[str]]]:
    """Every line of a document that is a riskml command; lines that leave something out are no command."""
    pages = [*repository.glob("*.md"), *repository.glob("docs/*.md"), *repository.glob("*/README.md")]
    found = []
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            words = line.strip().removeprefix("$ ").partition(" #")[0]
            if words.startswith("riskml ") and not re.search(r"\.\.\.|[{|,;]$|\{", words):
                found.append((page.name, words.split()[1:]))
    return found


def test_every_command_of_the_documents_parses(repository: Path) -> None:
    commands = [(page, words) for page, words in documented_commands(repository) if words[0] in VERBS]
    assert len(commands) >= 15
    for page, words in commands:
        assert cli.build_parser().parse_args(words).command == words[0], page


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no rows"), 1),
        (ContractError("no column 'high'"), 1),
        (ConfigError("no recipe 'qiuck'"), 2),
        (BundleError("a byte was changed"), 3),
        (OSError("disk full"), 1),
        (RuntimeError("a mistake of ours"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(error: BaseException, code: int, stand_in: Stand) -> None:
    stand_in(error)
    assert cli.main(["check", "LAKE"]) == code


def test_wrong_usage_is_exit_code_2_and_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "--lake", "L"]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("build", "--start"),
        ("evaluate", "--end"),
        ("backfill", "--start"),
        ("score", "--at"),
        ("fit", "--fit-end"),
        ("replay", "--end"),
    ],
)
def test_a_date_that_is_none_is_wrong_usage(
    verb: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record = run_json(capsys, verb, *EXAMPLES[verb], option, "first of May")
    assert (code, record["problems"][0]["code"]) == (2, "usage")
    assert "'first of May' is not a date or time" in record["problems"][0]["message"]


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_number_of_jobs_below_one_is_wrong_usage(jobs: str) -> None:
    assert cli.main(["build", "--lake", "L", "--out", "D", "--jobs", jobs]) == 2


def test_json_is_one_object_with_the_documented_keys(
    stand_in: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem("high-below-low", "high 1 is below low 2", "ingest again", "bars", "sim:BTC", 4)
    stand_in(Outcome("text for people", counts={"bars": 7}, problems=(problem,), exit_code=3))
    code, record = run_json(capsys, "check", "LAKE")
    assert code == 3
    assert record["ok"] is False
    assert record["command"] == "check"
    assert record["counts"] == {"bars": 7}
    assert record["outputs"] == []
    assert isinstance(record["seconds"], float)
    assert record["problems"] == [problem.to_dict()]
    assert {"table", "market", "row", "code", "message", "fix"} <= record["problems"][0].keys()


def test_json_comes_on_an_error_too_and_names_the_place(
    stand_in: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(DataError("price is 0", table="bars", market="BTC", row=3, fix="drop the row"))
    code, record = run_json(capsys, "check", "LAKE")
    assert code == 1
    found = record["problems"][0]
    assert (found["table"], found["market"], found["row"], found["fix"]) == ("bars", "BTC", 3, "drop the row")


def test_json_comes_on_a_mistake_of_ours_and_the_trace_goes_to_stderr(
    stand_in: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(RuntimeError("unforeseen"))
    assert cli.main(["check", "LAKE", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["problems"][0]["code"] == "internal-error"
    assert "Traceback" in said.err


def test_json_comes_on_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, record = run_json(capsys, "score", "--bundle", "B")
    assert (code, record["command"], record["problems"][0]["code"]) == (2, "score", "usage")


def test_text_shows_problems_and_what_was_written(
    stand_in: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(
        Outcome("one finding", ("lake",), {"bars": 1234}, (Problem("gap", "7 bars missing", table="bars"),))
    )
    assert cli.main(["check", "LAKE"]) == 0
    said = capsys.readouterr().out
    assert "one finding" in said
    assert "7 bars missing" in said
    assert "wrote lake" in said
    stand_in(Outcome(counts={"bars": 1234}))
    assert cli.main(["check", "LAKE"]) == 0
    assert "bars: 1,234" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "extra"), [("pyarrow", "data"), ("torch.nn", "train"), ("jinja2", "report")]
)
def test_a_missing_extra_names_the_install_command(module: str, extra: str) -> None:
    with pytest.raises(ConfigError, match=rf"pip install 'riskml\[{extra}\]'"), cli_verbs.optional_imports():
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)


def test_an_import_failure_of_ours_is_not_taken_for_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="riskml.nothing"), cli_verbs.optional_imports():
        raise ModuleNotFoundError("No module named 'riskml.nothing'", name="riskml.nothing")


def test_a_walk_forward_without_a_recipe_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    range_of_dates = ["--start", "2022-01-01", "--end", "2023-01-01"]
    assert cli.main(["evaluate", "--walk-forward", "--lake", "L", *range_of_dates, "--out", "F"]) == 2
    assert "--recipe quick" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["", "BTC,,ETH", "BTC,BTC"])
def test_empty_and_repeated_names_are_refused(names: str) -> None:
    with pytest.raises(ConfigError, match="empty or repeated name"):
        cli_verbs.name_list(names, "--markets")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"riskml {__version__}"


def test_a_reader_that_has_seen_enough_is_no_error(repository: Path) -> None:
    release = (repository / "models" / "RELEASE").read_text(encoding="utf-8").strip()
    run = "import sys; from riskml.cli import main; sys.exit(main(['inspect', sys.argv[1]]))"
    command = [sys.executable, "-c", run, str(repository / "models" / release)]
    read_end, write_end = os.pipe()
    os.close(read_end)  # nobody reads
    try:
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write_end)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
