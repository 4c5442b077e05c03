"""The figures that the README shows are the ones that were recorded."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results"


def script(name: str) -> ModuleType:
    """A script of the folder ``training``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"training_{name}", REPOSITORY / "training" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_results_of_the_readme_are_those_of_the_newest_recorded_run() -> None:
    table = script("results_table")
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


def newest_targets() -> tuple[ModuleType, list[dict[str, Any]]]:
    targets = script("targets")
    return targets, targets.newest_lines()


def test_the_table_of_targets_is_that_of_the_newest_recorded_runs() -> None:
    targets, lines = newest_targets()
    text = targets.TABLE.read_text(encoding="utf-8")
    assert text == targets.render(*lines), "run: python training/targets.py --write"


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("log_loss_ratio 8h all both", 0.99, "log-loss ratio to logit(z)"),
        ("breach_rate 1h all down", 0.0066, "breaches, long, pooled"),
        ("breach_rate 1h all down", 0.0034, "breaches, long, pooled"),
        ("portfolio_saving 24h mixed policy", 0.29, "mixed books below gross"),
    ],
)
def test_a_figure_beyond_its_target_is_called_missed(key: str, value: float, name: str) -> None:
    targets, lines = newest_targets()
    lines[0]["pooled"][key][0] = value
    row = next(line for line in targets.render(*lines).splitlines() if line.startswith(f"| {name} |"))
    assert row.endswith("**missed** |")


@pytest.mark.parametrize("name", ["sequence", "families", "loss", "seeds"])
def test_the_variants_of_an_experiment_can_be_fitted_and_differ(name: str) -> None:
    from riskml.learning.recipe import parse_recipe

    plan = script("ablate").PLANS[name]()
    recipes = {}
    for label, variant in plan.variants.items():
        assert parse_recipe(variant.recipe.to_dict()) == variant.recipe
        if variant.fitted_as:
            assert variant.recipe == plan.variants[variant.fitted_as].recipe
            assert set(variant.lost) <= set(variant.recipe.network.features)
            assert variant.lost
        else:
            recipes[label] = json.dumps(variant.recipe.to_dict(), sort_keys=True)
    assert len(set(recipes.values())) == len(recipes)
    for variant, reference, rows in plan.comparisons:
        assert {variant, reference} <= plan.variants.keys()
        assert rows == "all" or plan.rows[rows]


def test_the_sequence_part_is_what_its_experiment_varies() -> None:
    variants = script("ablate").PLANS["sequence"]().variants
    for inputs in ("hourly", "finer"):
        last, sequence = (variants[f"{inputs}, {part}"].recipe.network for part in ("last bar", "sequence"))
        assert (last.encoder, sequence.encoder) == ("none", "tcn")
        assert last.features == sequence.features
    finer, hourly = (variants[f"{kind}, last bar"].recipe.network.features for kind in ("finer", "hourly"))
    assert set(finer) - set(hourly) == set(script("ablate").FINE)


def test_a_record_is_added_as_one_line(tmp_path: Path) -> None:
    from riskml.learning.runs import append_record

    file = tmp_path / "results.jsonl"
    lines = [append_record(file, {"n": n, "text": "a\nb"}) for n in range(3)]
    assert file.read_text(encoding="utf-8").splitlines() == lines
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]
