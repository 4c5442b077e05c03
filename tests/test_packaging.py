"""What a fresh machine meets: the commands, the pins, the size of what is committed."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from riskml import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_FILE_BYTES = 2_000_000


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def constraints() -> dict[str, str]:
    """Pinned version by normalised package name."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalised(name): version for name, version in pins}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(project: dict) -> list[str]:
    table = project["project"]
    groups = [
        table["dependencies"],
        *table["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    names = [re.match(r"[\w.-]+", item).group() for group in groups for item in group]
    return [normalised(name) for name in names if name != "riskml"]


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if listed.returncode != 0:
        pytest.skip("not a git working copy: there is no list of committed files")
    return [REPOSITORY / name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


def test_the_runtime_needs_only_numpy_and_onnxruntime(project: dict) -> None:
    names = [re.match(r"[\w-]+", item).group() for item in project["project"]["dependencies"]]
    assert names == ["numpy", "onnxruntime"]


def test_torch_is_held_below_the_release_that_pulls_in_cuda(project: dict) -> None:
    train = project["project"]["optional-dependencies"]["train"]
    assert [item for item in train if item.startswith("torch")] == ["torch>=2.9,<2.14"]


def test_every_requirement_is_pinned_by_the_constraints(project: dict) -> None:
    assert set(requirements(project)) - constraints().keys() == set()


def test_constraints_name_no_platform_build_and_no_index() -> None:
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert not [version for version in constraints().values() if "+" in version]
    assert not [line for line in text.splitlines() if line.startswith(("-", "http"))]
    assert not [name for name in constraints() if name.startswith("nvidia-")]


def test_the_two_commands_are_in_the_makefile() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: \$\(STAMP\)", text, re.MULTILINE)
    assert re.search(r"^test: \$\(STAMP\)", text, re.MULTILINE)


def test_the_changelog_describes_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in text
    assert "### Numbers changed" in text


def test_ignored_folders_do_not_hide_modules_of_the_package() -> None:
    patterns = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    named = {folder.name for folder in (REPOSITORY / "riskml").rglob("*") if folder.is_dir()}
    assert not [pattern for pattern in patterns if pattern.strip("/") in named - {"__pycache__"}]


def test_modules_and_functions_stay_readable() -> None:
    too_long = []
    for file in sorted(REPOSITORY.glob("riskml/**/*.py")) + sorted(REPOSITORY.glob("tests/**/*.py")):
        source = file.read_text(encoding="utf-8")
        name = file.relative_to(REPOSITORY)
        if source.count("\n") > MAX_MODULE_LINES:
            too_long.append(f"{name}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_committed_files_stay_small() -> None:
    large = [
        f"{file}: {file.stat().st_size}" for file in tracked_files() if file.stat().st_size > MAX_FILE_BYTES
    ]
    assert not large, "\n".join(large)


def test_top_level_folders_say_what_they_hold() -> None:
    missing = [
        name
        for name in ("data", "training", "models", "serving", "tests")
        if not (REPOSITORY / name / "README.md").is_file()
    ]
    assert not missing


def test_links_in_the_documents_lead_to_files() -> None:
    broken = []
    for page in tracked_files():
        if page.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPOSITORY)} -> {target}")
    assert not broken, "\n".join(broken)
