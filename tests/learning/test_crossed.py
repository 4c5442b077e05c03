"""Calibration on rows that no network has learnt from, weights of rows, and arithmetic of the layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riskml.errors import ConfigError
from riskml.learning import fit as fitting
from riskml.learning.calibrate import choose_calibration
from riskml.learning.crossed import forecast_crossed
from riskml.learning.fit import RunResult, fit_run
from riskml.learning.inference import DenseForecast, forecast_panel
from riskml.learning.recipe import NetworkSpec, Recipe, SplitSpec, TrainingSpec, parse_recipe
from riskml.learning.runs import read_run
from riskml.learning.splits import make_splits
from riskml.learning.start import row_weights
from riskml.learning.trainer import uses_bfloat16
from riskml.learning.windows import ChunkDataset

from .conftest import HORIZONS, make_toy
from .test_windows import CHUNK, CONTEXT, N_BARS, make_panel_of

RECIPE = Recipe(
    "toy",
    split=SplitSpec(validation_fraction=0.0),
    network=NetworkSpec(hidden=8, encoder="none", n_bars=1),
    training=TrainingSpec(epochs=2, chunk_bars=64, warmup_steps=3, keep="last", cross_blocks=3),
)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What the calibration of a crossed fit was given."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, seen: dict[str, Any]) -> RunResult:
    def spy(*arguments: Any) -> DenseForecast:
        seen["arguments"] = arguments
        seen["forecast"] = forecast_crossed(*arguments)
        return seen["forecast"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "forecast_crossed", spy)
        return fit_run(make_toy(), RECIPE, tmp_path_factory.mktemp("crossed") / "run")


def test_a_block_is_forecast_by_the_network_that_did_not_see_it(run: RunResult, seen: dict[str, Any]) -> None:
    net, nets, panel, ts, splits, _ = seen["arguments"]
    assert len(nets) == 3
    whole, crossed = forecast_panel(net, panel), seen["forecast"]
    behind = ts >= splits.fit_end
    for (bars, others), one in zip(splits.blocks(ts, 3), nets, strict=True):
        assert not others[bars].any()
        np.testing.assert_array_equal(crossed.nu[bars], forecast_panel(one, panel).nu[bars])
        assert not np.allclose(crossed.nu[bars], whole.nu[bars], equal_nan=True)
    np.testing.assert_array_equal(crossed.nu[behind], whole.nu[behind])


@pytest.mark.parametrize("part", ["own block", "calibrate"])
def test_a_crossed_network_knows_nothing_of_its_own_block_or_of_what_follows(
    run: RunResult, seen: dict[str, Any], tmp_path: Path, part: str
) -> None:
    _, nets, _, ts, splits, _ = seen["arguments"]
    bars, _ = splits.blocks(ts, 3)[1]
    changed = make_toy()
    inside = np.zeros(len(changed.ts), dtype=np.bool_)
    inside[bars if part == "own block" else slice(int(np.searchsorted(ts, splits.fit_end)), None)] = True
    for values in (changed.mae, changed.variance):
        values[inside] *= 3.0
    changed.stress[inside] = 1.0
    again: dict[str, Any] = {}

    def spy(*arguments: Any) -> DenseForecast:
        again["nets"] = arguments[1]
        return forecast_crossed(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "forecast_crossed", spy)
        fit_run(changed, RECIPE, tmp_path / "run")
    same = [
        all(torch.equal(value, other) for value, other in zip(one, two, strict=True))
        for one, two in (
            (tuple(old.first.parameters()), tuple(new.first.parameters()))
            for old, new in zip(nets, again["nets"], strict=True)
        )
    ]
    assert same == ([False, True, False] if part == "own block" else [True, True, True])


def test_the_calibration_is_that_of_the_crossed_forecast(run: RunResult, seen: dict[str, Any]) -> None:
    data = make_toy()
    splits = seen["arguments"][4]
    kept, n_rows = [0, 1], len(seen["arguments"][3])  # the third toy market is left out of every fit
    parts = [splits.rows(data.ts[:n_rows], part) for part in ("fit", "calibrate")]
    forecast = seen["forecast"]
    expected = choose_calibration(forecast.sigma, forecast.nu, data.mae[:n_rows, kept], HORIZONS, *parts)
    np.testing.assert_allclose(run_record(run)["calibration_log_scale"], expected.log_scale)
    np.testing.assert_allclose(run_record(run)["calibration_power"], expected.power)


def run_record(run: RunResult) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    return record


def test_the_networks_of_the_graph_are_those_of_a_fit_without_crossing(
    run: RunResult, tmp_path: Path
) -> None:
    plain = replace(RECIPE, training=replace(RECIPE.training, cross_blocks=0))
    other = read_run(fit_run(make_toy(), plain, tmp_path / "run").path).net.state_dict()
    for name, value in read_run(run.path).net.state_dict().items():
        if name != "log_scale":
            torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_a_fit_cut_off_among_the_blocks_ends_where_a_whole_one_does(run: RunResult, tmp_path: Path) -> None:
    calls: list[int] = []

    def stop(done: int, total: int, message: str) -> None:
        calls.append(done)
        if message == "fitting" and len(calls) == 4:  # the first block's second epoch
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_run(make_toy(), RECIPE, tmp_path / "run", progress=stop)
    assert (tmp_path / "run" / "checkpoints" / "block-0" / "last.ckpt").is_file()
    again = fit_run(make_toy(), RECIPE, tmp_path / "run", resume=True)
    assert again.weights_sha256 == run.weights_sha256


def test_blocks_tile_the_fit_part_and_lie_a_purge_apart_from_what_is_learnt() -> None:
    ts = make_toy().ts
    splits = make_splits(ts, "1h", HORIZONS, SplitSpec(validation_fraction=0.0))
    blocks = splits.blocks(ts, 4)
    covered = np.concatenate([np.arange(bars.start, bars.stop) for bars, _ in blocks])
    np.testing.assert_array_equal(covered, np.flatnonzero((ts >= splits.fit_start) & (ts < splits.fit_end)))
    for bars, others in blocks:
        assert (others & splits.rows(ts, "fit") == others).all()
        gap = np.abs(ts[others][:, None] - ts[[bars.start, bars.stop - 1]][None]).min()
        assert gap > splits.purge_us


@pytest.mark.parametrize(
    "training",
    [
        {"cross_blocks": 1, "keep": "last"},
        {"cross_blocks": 17, "keep": "last"},
        {"cross_blocks": 4, "keep": "best"},
        {"precision": "float16"},
    ],
)
def test_training_that_makes_no_sense_is_refused(training: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"\[training\]"):
        parse_recipe({"name": "x", "training": training})


def test_the_stormiest_tenth_of_a_market_weighs_more() -> None:
    level = np.stack([np.arange(100.0), np.arange(100.0)[::-1] + 1000.0], axis=1)[..., None]
    level[3] = np.nan
    train = np.arange(100) < 50
    weight = row_weights(level, train, 3.0)
    assert weight is not None
    assert weight.shape == (2, 100)
    assert (weight[0] == 3.0).nonzero()[0].tolist() == list(
        range(45, 100)
    )  # the limit is that of the train rows
    assert (weight[1] == 3.0).nonzero()[0].tolist() == [0, 1, 2, 4, 5]
    assert row_weights(level, train, 1.0) is None


def test_weights_are_relative_and_reach_the_batch() -> None:
    weight = np.ones((2, N_BARS))
    weight[:, 50:] = 4.0
    rows = np.ones(N_BARS, dtype=np.bool_)
    data = ChunkDataset(make_panel_of(), rows, CONTEXT, CHUNK, weight)
    counted = np.concatenate([data[[start]].weight[data[[start]].law_mask.any(-1)] for start in (10, 60)])
    assert counted.max() / counted.min() == 4.0
    whole = ChunkDataset(make_panel_of(), rows, CONTEXT, CHUNK, 7.0 * np.ones((2, N_BARS)))
    assert (whole[[10]].weight == 1.0).all()


def test_crisis_weight_changes_the_fit(run: RunResult, tmp_path: Path) -> None:
    heavier = replace(RECIPE, loss=replace(RECIPE.loss, crisis_weight=5.0))
    assert fit_run(make_toy(), heavier, tmp_path / "run").weights_sha256 != run.weights_sha256


def test_layers_in_bfloat16_end_near_those_in_float32(run: RunResult, tmp_path: Path) -> None:
    mixed = replace(RECIPE, training=replace(RECIPE.training, precision="bfloat16"))
    other = fit_run(make_toy(), mixed, tmp_path / "run")
    assert other.weights_sha256 != run.weights_sha256
    for name in ("calibrate_qlike_1h", "calibrate_qlike_24h"):
        assert other.metrics[name] == pytest.approx(run.metrics[name], rel=0.02)
    state = read_run(other.path).net.state_dict()
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


def test_auto_is_bfloat16_only_where_a_gpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert uses_bfloat16("bfloat16")
    assert not uses_bfloat16("float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not uses_bfloat16("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, ok=supported: ok)
        assert uses_bfloat16("auto") is supported
