"""A fit that keeps its last epoch, with a validation tail and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.learning.fit import RunResult, fit_run
from riskml.learning.recipe import NetworkSpec, Recipe, SplitSpec, TrainingSpec, parse_recipe
from riskml.learning.runs import read_run
from riskml.learning.splits import make_splits

from .conftest import HORIZONS, make_toy

RECIPE = Recipe(
    "toy",
    network=NetworkSpec(hidden=8, encoder="none", n_bars=1),
    training=TrainingSpec(epochs=3, chunk_bars=64, warmup_steps=3, keep="last", patience=1),
)


def without_tail(recipe: Recipe) -> Recipe:
    return replace(recipe, split=SplitSpec(validation_fraction=0.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return fit_run(make_toy(), without_tail(RECIPE), tmp_path_factory.mktemp("last") / "run")


def test_without_a_tail_every_epoch_is_run_and_the_last_kept(run: RunResult) -> None:
    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["epoch"] == 2.0
    assert [row["epoch"] for row in metrics["history"]] == [0.0, 1.0, 2.0]
    assert all(np.isfinite(row["train_loss"]) for row in metrics["history"])
    assert not [name for name in metrics if name.startswith("validation")]
    assert metrics["train_qlike_1h_ratio"] < 1.0
    record = read_run(run.path).record
    assert record["validation_start"] == record["fit_end"]


def test_without_a_tail_the_whole_fit_part_is_trained_on() -> None:
    ts = make_toy().ts
    splits = make_splits(ts, "1h", HORIZONS, SplitSpec(validation_fraction=0.0))
    np.testing.assert_array_equal(splits.rows(ts, "train"), splits.rows(ts, "fit"))
    assert not splits.rows(ts, "validation").any()


def test_the_last_epoch_is_kept_whatever_the_tail_says(tmp_path: Path) -> None:
    kept = fit_run(make_toy(), RECIPE, tmp_path / "run")
    metrics = json.loads((kept.path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["epoch"] == 2.0  # a patience of one would have ended it on the first worse epoch
    assert metrics["validation_loss"] == metrics["history"][-1]["validation_loss"]


def test_a_fit_that_was_cut_off_ends_where_a_whole_one_does(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if message == "fitting" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_run(make_toy(), without_tail(RECIPE), tmp_path / "run", progress=stop)
    assert not (tmp_path / "run" / "run.json").exists()
    again = fit_run(make_toy(), without_tail(RECIPE), tmp_path / "run", resume=True)
    assert again.weights_sha256 == run.weights_sha256


@pytest.mark.parametrize(
    "raw",
    [
        {"split": {"validation_fraction": 0}},
        {"split": {"validation_fraction": -0.1}, "training": {"keep": "last"}},
        {"training": {"keep": "first"}},
    ],
)
def test_settings_that_leave_no_epoch_to_keep_are_refused(raw: dict[str, dict[str, object]]) -> None:
    with pytest.raises(ConfigError):
        parse_recipe({"name": "x", **raw})
