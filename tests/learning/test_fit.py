"""Fitting end to end on a small dataset: determinism, resuming, refusals, and what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.learning.recipe import NetworkSpec, Recipe, TrainingSpec

RECIPE = Recipe(
    "toy",
    network=NetworkSpec(channels=4, hidden=8),
    training=TrainingSpec(
        epochs=3, chunk_bars=64, batch_chunks=2, warmup_steps=3, averaging=0.8, learning_rate=0.01
    ),
)


def fit(data: Any, out: Path, recipe: Recipe = RECIPE, **options: Any) -> Any:
    from riskml.learning.fit import fit_run

    return fit_run(data, recipe, out, **options)


@pytest.fixture(scope="module")
def first(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fit(toy, tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(autouse=True)
def untracked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first run is tracked: making a store costs more than these fits."""
    request.getfixturevalue("first")
    from riskml.learning import fit as module

    monkeypatch.setattr(module, "track_run", lambda *_: "")


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_run_folder_holds_everything_that_a_reader_needs(first: Any) -> None:
    names = {path.name for path in first.path.iterdir()}
    assert {"run.json", "metrics.json", "model.pt", "checkpoints", "plots", "tracking.json"} <= names
    assert {path.name for path in (first.path / "plots").iterdir()} == {"history.png", "coverage.png"}
    assert (first.path.parent / "mlflow.db").is_file()
    record = read_json(first.path / "run.json")
    assert record["fitted_markets"] == ["BTC", "ETH"]
    assert record["markets"] == ["BTC", "ETH", "LINK"]
    assert set(record["reference_sigma"]["stressed"]) == {"BTC", "ETH", "*"}
    assert record["fallback"]["laws"][0]["features"] == list(RECIPE.network.har_features)


def test_the_kept_epoch_is_no_worse_than_the_start_and_beats_the_log_har(first: Any) -> None:
    history = read_json(first.path / "metrics.json")["history"]
    assert [row["epoch"] for row in history] == [-1.0, 0.0, 1.0, 2.0]
    assert first.metrics["validation_loss"] == min(row["validation_loss"] for row in history)
    # Over eight seeds the loss falls by 0.03 to 0.06, and the ratio ends between 0.87 and 0.91.
    assert first.metrics["validation_loss"] < history[0]["validation_loss"] - 0.01
    # The untrained network, which has the season of the toy data but not its signal, stands at 0.943.
    assert first.metrics["train_qlike_1h_ratio"] < 0.93


def test_the_same_seed_gives_the_same_files(toy: Any, first: Any, tmp_path: Path) -> None:
    second = fit(toy, tmp_path / "second")
    assert second.weights_sha256 == first.weights_sha256
    for name in ("run.json", "metrics.json"):
        assert (second.path / name).read_bytes() == (first.path / name).read_bytes()


def test_another_seed_gives_other_weights(toy: Any, first: Any, tmp_path: Path) -> None:
    assert fit(toy, tmp_path / "run", seed=8).weights_sha256 != first.weights_sha256


def test_a_resumed_fit_ends_where_an_uninterrupted_one_does(
    toy: Any, first: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riskml.learning.module import MarketModule

    step = MarketModule.training_step

    def interrupted(self: MarketModule, batch: Any, batch_index: int) -> Any:
        if self.current_epoch == 2 and batch_index == 1:
            raise OSError("the machine goes down")
        return step(self, batch, batch_index)

    monkeypatch.setattr(MarketModule, "training_step", interrupted)
    with pytest.raises(OSError, match="goes down"):
        fit(toy, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.undo()
    done: list[int] = []
    resumed = fit(toy, tmp_path / "run", resume=True, progress=lambda n, total, text: done.append(n))
    assert done[0] == 3
    assert resumed.weights_sha256 == first.weights_sha256
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (first.path / "metrics.json").read_bytes()


def test_resuming_another_fit_is_refused(toy: Any, first: Any, tmp_path: Path) -> None:
    fit(toy, tmp_path / "run", dataclasses.replace(RECIPE, training=TrainingSpec(epochs=1, chunk_bars=128)))
    with pytest.raises(ConfigError, match="fitted with another recipe"):
        fit(toy, tmp_path / "run", resume=True)


def test_a_foreign_folder_is_not_touched(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds something else than a run"):
        fit(toy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_loss_that_is_not_finite_ends_the_fit_and_keeps_the_checkpoint(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riskml.learning import module

    total = module.total_loss

    calls = {"n": 0}

    def broken(terms: Any, spec: Any) -> Any:
        calls["n"] += 1
        return total(terms, spec) * (float("nan") if calls["n"] > 20 else 1.0)

    monkeypatch.setattr(module, "total_loss", broken)
    with pytest.raises(DataError, match="loss is not finite at epoch"):
        fit(toy, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "run" / "run.json").exists()


def test_weights_that_are_not_finite_after_the_last_step_end_the_fit_too(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riskml.learning.module import MarketModule

    def broken(self: MarketModule) -> None:
        if self.current_epoch == RECIPE.training.epochs - 1:
            self.average.sigma_constant.fill_(float("nan"))

    monkeypatch.setattr(MarketModule, "on_validation_epoch_start", broken, raising=False)
    with pytest.raises(DataError, match="validation loss is not finite after epoch 2"):
        fit(toy, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_no_row_after_the_calibrate_part_or_across_a_seam_moves_a_calibration(toy: Any) -> None:
    from riskml.learning.calibrate import choose_calibration

    draw = np.random.default_rng(0)
    sigma, nu = np.full((900, 2, 1, 2), 0.02), np.full((900, 2, 1), 4.0)
    mae = 0.03 * np.abs(draw.standard_t(4.0, sigma.shape))
    bars = np.arange(900)
    parts = bars < 500, (bars >= 524) & (bars < 800)
    one = choose_calibration(sigma, nu, mae, ("1h",), *parts)
    mae[500:524], mae[800:] = 9.0, 9.0
    other = choose_calibration(sigma, nu, mae, ("1h",), *parts)
    assert one.log_scale[0].min() > 0.1
    np.testing.assert_array_equal(one.log_scale, other.log_scale)
    np.testing.assert_array_equal(one.power, other.power)


def test_nothing_behind_data_end_is_read(toy: Any, first: Any, tmp_path: Path) -> None:
    from riskml.units import to_us

    behind = toy.ts >= to_us(first.data_end)
    assert behind.any()
    changed = {}
    for name in ("features", "mae", "variance", "stress", "close"):
        values = getattr(toy, name).copy()
        values[behind] = 0.123
        changed[name] = values
    again = fit(dataclasses.replace(toy, **changed), tmp_path / "run")
    assert again.weights_sha256 == first.weights_sha256
    assert again.metrics == first.metrics


def test_a_market_kept_out_changes_nothing(toy: Any, first: Any, tmp_path: Path) -> None:
    features = toy.features.copy()
    features[:, 2] = 5.0
    again = fit(dataclasses.replace(toy, features=features), tmp_path / "run")
    assert again.weights_sha256 == first.weights_sha256


def test_a_store_that_is_not_supported_is_refused_before_the_fit(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a file store"):
        fit(toy, tmp_path / "run", tracking_uri="./mlruns")
    assert not (tmp_path / "run").exists()


def test_too_little_data_is_refused(toy: Any, tmp_path: Path) -> None:
    short = {
        name: getattr(toy, name)[:300] for name in ("ts", "features", "mae", "variance", "stress", "close")
    }
    with pytest.raises(DataError, match="shorter than"):
        fit(dataclasses.replace(toy, **short), tmp_path / "run")
    empty = dataclasses.replace(toy, features=np.full_like(toy.features, np.nan))
    with pytest.raises(DataError, match="needs at least"):
        fit(empty, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unfinished_or_damaged_run_is_refused(first: Any, tmp_path: Path) -> None:
    import shutil

    from riskml.learning.runs import read_run

    assert read_run(first.path).recipe == RECIPE
    with pytest.raises(DataError, match="not the folder of a finished fit"):
        read_run(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    record = read_json(copy / "run.json")
    (copy / "run.json").write_text(json.dumps({**record, "weights_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(DataError, match="was changed"):
        read_run(copy)
    (copy / "model.pt").write_bytes(b"not a model")
    with pytest.raises(DataError, match="cannot be read"):
        read_run(copy)
