"""Who may import whom: each part of riskml has an allow-list, read from the sources.

The rule keeps the risk engine's process small (no torch, no pandas) and research out of
production. Imports inside functions count too: a lazy import is still a dependency.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "riskml"

CORE_MODULES = ("errors", "arrays", "units", "contracts", "markets", "metrics", "bundle")
CORE = frozenset({*CORE_MODULES, "__version__", "features", "risk", "facts"})
TABLE_LIBRARIES = frozenset({"numpy", "pandas", "pyarrow", "polars", "numba"})


@dataclass(frozen=True)
class Rule:
    """What one part of the package may import beside the standard library and itself."""

    internal: frozenset[str]
    external: frozenset[str] = field(default_factory=lambda: frozenset({"numpy"}))


_CORE_RULE = Rule(CORE)
_RUNTIME = Rule(CORE | {"tables", "scoring", "backfill"}, TABLE_LIBRARIES | {"onnxruntime"})
RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted(CORE - {"__version__", "bundle"}), _CORE_RULE),
    "bundle": Rule(CORE, frozenset({"numpy", "cryptography"})),
    "scoring": Rule(CORE, frozenset({"numpy", "onnxruntime"})),
    "tables": Rule(CORE, TABLE_LIBRARIES),
    "backfill": _RUNTIME,
    "replay": _RUNTIME,
    "learning": Rule(
        CORE | {"tables", "scoring", "backfill"},
        TABLE_LIBRARIES
        | {
            "onnxruntime",
            "torch",
            "pytorch_lightning",
            "sklearn",
            "mlflow",
            "onnx",
            "onnxscript",
            "onnx_ir",
            "optuna",
            "matplotlib",
            "lightgbm",
            "arch",
        },
    ),
    "report": Rule(CORE | {"tables", "backfill"}, TABLE_LIBRARIES | {"matplotlib", "jinja2"}),
}
COMMANDS = ("cli", "demo")
"""The command line may import everything of ours, but only inside functions."""


def part_of(module: str) -> str:
    """The part of the package that a dotted module name belongs to (``riskml.risk.law`` -> ``risk``)."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__version__"


def imported_names(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in a module, relative ones resolved."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            if base == "riskml":
                found += [(node.lineno, f"riskml.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, base))
    return found


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every import of a module that its part's rule does not allow."""
    part = part_of(module)
    rule = RULES[part]
    bad = []
    for line, name in imported_names(ast.parse(source), module, is_package):
        root = name.partition(".")[0]
        if root == "riskml":
            allowed = part_of(name) in rule.internal | {part}
        else:
            allowed = root in sys.stdlib_module_names or root in rule.external
        if not allowed:
            bad.append(f"{module}:{line} imports {name}, which '{part}' may not")
    return bad


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module of the package."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), file))
    return found


def is_command(module: str) -> bool:
    """Whether the module belongs to the command line (``cli``, ``cli_output``, ``demo``)."""
    return part_of(module).partition("_")[0] in COMMANDS


def test_every_part_of_the_package_has_a_rule() -> None:
    parts = {part_of(name) for name, _ in modules() if name != "riskml" and not is_command(name)}
    assert parts <= RULES.keys()


def test_every_part_imports_only_what_its_rule_allows() -> None:
    bad = []
    for name, file in modules():
        if name != "riskml" and not is_command(name):
            bad += violations(file.read_text(encoding="utf-8"), name, is_package=file.name == "__init__.py")
    assert not bad, "\n".join(bad)


def test_the_package_itself_imports_nothing() -> None:
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert imported_names(ast.parse(source), "riskml", True) == []


def test_commands_import_heavy_parts_only_inside_functions() -> None:
    bad = []
    for name, file in modules():
        if not is_command(name):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top_level = ast.Module(
            [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], type_ignores=[]
        )
        for line, target in imported_names(top_level, name, False):
            root, part = target.partition(".")[0], part_of(target)
            light = (
                part in CORE or is_command(target) if root == "riskml" else root in sys.stdlib_module_names
            )
            if not light:
                bad.append(f"{name}:{line} imports {target} at the top")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("riskml.risk.law", "import torch"),
        ("riskml.risk.law", "def f():\n    from pandas import DataFrame"),
        ("riskml.risk.law", "from riskml.tables.lake import Lake"),
        ("riskml.risk.law", "from ..scoring import scorer"),
        ("riskml.scoring.scorer", "import pyarrow.parquet as pq"),
        ("riskml.scoring.scorer", "from riskml import learning"),
        ("riskml.tables.lake", "from riskml.learning import fit"),
        ("riskml.backfill.local", "import riskml.learning.fit"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("riskml.risk.law", "import math\nimport numpy as np\nfrom riskml.errors import DataError"),
        ("riskml.risk.law", "from .excursion import survival"),
        ("riskml.scoring.session", "import onnxruntime as ort"),
        ("riskml.learning.fit", "import torch\nfrom riskml.tables.build import read_dataset"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("module", ["riskml.scoring", "riskml.cli"])
def test_a_fresh_process_stays_free_of_research_libraries(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'polars', 'numba', 'mlflow', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
