"""Search: a space is checked whole, a search goes on where it was cut off, its best recipe is a recipe."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from riskml.errors import ConfigError, DataError
from riskml.learning import search as module
from riskml.learning.fit import RunResult
from riskml.learning.recipe import NetworkSpec, Recipe, TrainingSpec, load_recipe
from riskml.learning.search import recipe_toml, search
from riskml.learning.search_space import SearchSpace, load_space, parse_space

RATE = {"kind": "float", "low": 0.001, "high": 0.1, "log": True}
SPACE = {
    "name": "toy",
    "training": {"learning_rate": RATE, "patience": {"kind": "int", "low": 1, "high": 9}},
    "network": {"dilations": {"kind": "categorical", "choices": [[1, 2], [1, 2, 4]]}},
}


class Fits:
    """In place of a fit: the loss is least at a learning rate of 0.01; every recipe is remembered."""

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []
        self.fail_at: dict[int, BaseException] = {}

    def __call__(self, data: Any, recipe: Recipe, out: Path, **options: Any) -> RunResult:
        place = len(self.recipes)
        self.recipes.append(recipe)
        out.mkdir()
        if place in self.fail_at:
            raise self.fail_at.pop(place)
        rate = recipe.training.learning_rate
        loss = abs(rate - 0.01) + 0.001 * recipe.training.patience
        return RunResult(out, {"validation_loss": loss}, "2023-01-01", "0")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    """Fits that take no time, and no tracking."""
    stub = Fits()
    monkeypatch.setattr(module, "fit_run", stub)
    for name in ("open_group", "record_child", "close_group"):
        monkeypatch.setattr(module, name, lambda *_, **__: "group")
    return stub


def run(toy: Any, out: Path, n_trials: int, space: Any = None, **options: Any) -> Any:
    return search(toy, parse_space(space or SPACE), out, n_trials=n_trials, **options)


def values(recipes: list[Recipe]) -> list[tuple[float, int, tuple[int, ...]]]:
    return [(item.training.learning_rate, item.training.patience, item.network.dilations) for item in recipes]


def test_a_space_is_read_from_toml_with_short_and_nested_paths(tmp_path: Path) -> None:
    file = tmp_path / "rates.toml"
    file.write_text(
        'recipe = "quick"\nobjective = "calibrate_qlike_8h_ratio"\n'
        '["training.learning_rate"]\nkind = "float"\nlow = 0.001\nhigh = 0.1\nlog = true\n'
        '[expert.num_leaves]\nkind = "int"\nlow = 7\nhigh = 63\n',
        encoding="utf-8",
    )
    space = load_space(file)
    assert (space.name, space.recipe.name) == ("rates", "quick")
    assert [(item.key, item.kind, item.log) for item in space.dimensions] == [
        ("training.learning_rate", "float", True),
        ("expert.num_leaves", "int", False),
    ]


def test_every_mistake_of_a_space_is_reported_at_once() -> None:
    raw = {
        "recipe": "quik",
        "objective": "test_qlike_8h",
        "training": {
            "learning_rat": RATE,
            "epochs": {"kind": "int", "low": 9, "high": 9},
            "weight_decay": {"kind": "float", "low": 0.0, "high": 1.0, "log": True},
            "warmup_steps": {"kind": "normal", "low": 1, "high": 2},
            "averaging": {"kind": "float", "low": 0.5, "high": 1.5},
        },
        "seed": {"kind": "int", "low": 1, "high": 9},
        "split": {"fit_fraction": {"kind": "float", "low": 0.5, "high": 0.8}},
        "network": {
            "hidden": {"kind": "categorical", "choices": [8]},
            "dropout": {"kind": "int", "low": 0, "high": 1},
        },
    }
    with pytest.raises(ConfigError, match="search space is not usable: 11 problems") as caught:
        parse_space(raw)
    assert [problem.code for problem in caught.value.problems] == [
        "space-recipe",
        "space-objective",
        "space-key",
        "space-range",
        "space-range",
        "space-kind",
        "space-value",
        "space-key",
        "space-key",
        "space-range",
        "space-type",
    ]
    text = str(caught.value)
    for part in (
        "'quik'",
        "Did you mean 'training.learning_rate'",
        "from 9 to 9 is empty",
        "above 0",
        "luck",
    ):
        assert part in text


def test_a_recipe_without_a_validation_part_needs_another_objective() -> None:
    raw = {"recipe": "standard", "network": {"hidden": {"kind": "int", "low": 8, "high": 16}}}
    with pytest.raises(ConfigError, match="holds no validation part back, so 'validation_loss'"):
        parse_space(raw)
    assert parse_space(raw | {"objective": "calibrate_qlike_8h_ratio"}).recipe.name == "standard"


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("loss", {"qlike": {"kind": "float", "low": 0.5, "high": 2.0}}, "weights are part of the loss"),
        ("expert", {"num_leaves": {"kind": "int", "low": 7, "high": 31}}, "the loss is the network's alone"),
    ],
)
def test_a_key_that_the_loss_cannot_judge_needs_another_objective(
    key: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space({key: values})
    assert parse_space({key: values, "objective": "validation_qlike_8h_ratio"}).dimensions


def test_a_space_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one key"):
        parse_space({"recipe": "quick"})


def test_a_space_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone.toml cannot be read"):
        load_space(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("= 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="bad.toml is not valid TOML"):
        load_space(tmp_path / "bad.toml")


def test_every_recipe_reads_back_from_its_toml(tmp_path: Path) -> None:
    recipe = Recipe("a", training=TrainingSpec(learning_rate=1e-05), network=NetworkSpec(dilations=(1, 3)))
    file = tmp_path / "other.toml"
    file.write_text(recipe_toml(recipe, "trial 3"), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_the_best_trial_becomes_a_recipe_and_every_trial_a_row(toy: Any, fits: Fits, tmp_path: Path) -> None:
    found = run(toy, tmp_path, 25)
    losses = [row.value for row in found.trials]
    assert found.best_trial.value == min(losses)
    assert load_recipe(found.best_file) == found.best
    assert found.best.training.learning_rate == found.best_trial.parameters["training.learning_rate"]
    assert min(losses[10:]) < min(losses[:10])  # after ten random draws the sampler has learnt
    record = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
    assert [row["value"] for row in record["trials"]] == losses
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["validation_loss"]) for row in rows] == losses


def test_an_interrupted_search_goes_on_to_the_same_end(toy: Any, fits: Fits, tmp_path: Path) -> None:
    whole = run(toy, tmp_path / "whole", 14)
    n_whole = len(fits.recipes)
    run(toy, tmp_path / "cut", 6)
    second = run(toy, tmp_path / "cut", 14)
    assert second.trials == whole.trials
    assert values(fits.recipes[n_whole:]) == values(fits.recipes[:n_whole])
    run(toy, tmp_path / "cut", 14)
    assert len(fits.recipes) == 2 * n_whole  # nothing left to do


def test_a_killed_trial_is_marked_failed_and_its_values_are_tried_again(
    toy: Any, fits: Fits, tmp_path: Path
) -> None:
    fits.fail_at = {3: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path, 6)
    assert (tmp_path / "trials" / "trial-0003").is_dir()
    found = run(toy, tmp_path, 6)
    assert [(row.number, row.state) for row in found.trials if row.state == "failed"] == [(3, "failed")]
    assert found.trials[3].note == "its process ended"
    assert values(fits.recipes)[3] == values(fits.recipes)[4]
    assert sum(row.state == "complete" for row in found.trials) == 6
    assert not (tmp_path / "trials" / "trial-0003").exists()


def test_a_trial_that_kills_its_process_every_time_is_given_up(toy: Any, fits: Fits, tmp_path: Path) -> None:
    for place in range(3):
        fits.fail_at = {place: KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            run(toy, tmp_path, 3)
    found = run(toy, tmp_path, 3)
    assert [row.state for row in found.trials] == ["failed", "failed", "failed", "complete", "complete"]


def test_a_fit_that_fails_ends_its_trial_with_the_reason(toy: Any, fits: Fits, tmp_path: Path) -> None:
    fits.fail_at = {1: DataError("the loss is not finite")}
    found = run(toy, tmp_path, 4)
    assert [(row.state, row.note) for row in found.trials][1] == ("failed", "the loss is not finite")
    assert len(found.trials) == 4


def test_a_search_without_any_fit_says_why(toy: Any, fits: Fits, tmp_path: Path) -> None:
    fits.fail_at = {place: DataError("the loss is not finite") for place in range(3)}
    with pytest.raises(DataError, match="none of 3 trials could be fitted: the loss is not finite"):
        run(toy, tmp_path, 3)


def test_values_that_were_fitted_are_not_fitted_again(toy: Any, fits: Fits, tmp_path: Path) -> None:
    space = {"name": "few", "training": {"patience": {"kind": "int", "low": 1, "high": 2}}}
    found = run(toy, tmp_path, 8, space)
    assert len(fits.recipes) == 2
    assert len(found.trials) == 8
    assert sum("not fitted again" in row.note for row in found.trials) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "search.db"}, "no address of a storage"),
        ({"storage": "sqlite:////no/such/folder/search.db"}, "cannot be used: .*unable to open"),
        ({"n_trials": 0}, "at least one trial"),
        ({"tracking_uri": "./mlruns"}, "use sqlite:///"),
    ],
)
def test_an_option_that_cannot_work_is_refused_before_any_fit(
    toy: Any, fits: Fits, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(toy, tmp_path, **{"n_trials": 2, **options})
    assert fits.recipes == []


def test_a_storage_with_another_search_of_the_name_is_refused(toy: Any, fits: Fits, tmp_path: Path) -> None:
    run(toy, tmp_path, 2)
    with pytest.raises(ConfigError, match="a search 'toy' with another seed"):
        run(toy, tmp_path, 2, seed=8)
    narrow = {**SPACE, "training": {"learning_rate": {**RATE, "high": 0.05}}}
    with pytest.raises(ConfigError, match="with another space"):
        run(toy, tmp_path, 2, narrow)


def test_two_searches_never_share_a_folder(toy: Any, fits: Fits, tmp_path: Path) -> None:
    with module._locked(tmp_path), pytest.raises(ConfigError, match="another search is running in"):
        run(toy, tmp_path, 2)


def test_data_that_no_trial_could_use_is_refused_at_once(toy: Any, fits: Fits, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="calibrate part is shorter than 5 of the longest horizons"):
        run(toy, tmp_path, 2, fit_end="2023-04-01", calibrate_end="2023-04-02")
    with pytest.raises(ConfigError, match="names no horizon of the dataset"):
        run(toy, tmp_path, 2, {**SPACE, "objective": "validation_qlike_4h_ratio"})
    assert fits.recipes == []


def test_real_trials_are_children_of_one_tracked_run(toy: Any, tmp_path: Path) -> None:
    base = Recipe(
        "toy",
        network=NetworkSpec(channels=4, hidden=8, dilations=(1, 2)),
        training=TrainingSpec(epochs=1, chunk_bars=128),
    )
    parsed = parse_space({"name": "toy", "training": {"learning_rate": RATE}})
    space = SearchSpace("toy", base, "validation_loss", parsed.dimensions)
    found = search(toy, space, tmp_path, n_trials=2)
    assert (tmp_path / "trials" / "trial-0001" / "run.json").is_file()
    assert not (tmp_path / "trials" / "trial-0001" / "checkpoints").exists()

    from mlflow.tracking import MlflowClient

    place = json.loads((tmp_path / "tracking.json").read_text(encoding="utf-8"))
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    parent = client.get_run(place["run_id"])
    assert parent.data.metrics["validation_loss"] == found.best_trial.value
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{place['run_id']}'"
    )
    assert sorted(run.data.metrics["objective"] for run in children) == sorted(
        row.value for row in found.trials if row.value is not None
    )
    assert all("searched.training.learning_rate" in run.data.tags for run in children)
