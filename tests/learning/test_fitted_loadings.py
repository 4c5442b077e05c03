"""Loadings fitted to the joint likelihood: part of the run, of its file and of its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from riskml.errors import ConfigError
from riskml.learning.fit import fit_run
from riskml.learning.market_graph import check_parity, export_market_graph
from riskml.learning.networks.loadings import LoadingHead
from riskml.learning.recipe import NetworkSpec, Recipe, TrainingSpec, parse_recipe
from riskml.learning.runs import read_run

from .conftest import make_toy


def recipe(loadings: str) -> Recipe:
    return Recipe(
        "toy",
        network=NetworkSpec(hidden=8, encoder="none", n_bars=1, loadings=loadings),
        training=TrainingSpec(epochs=1, chunk_bars=64, warmup_steps=3),
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_run(make_toy(), recipe("fitted"), tmp_path_factory.mktemp("loadings") / "run").path


def test_a_run_keeps_its_loadings_and_says_whether_they_helped(fitted: Path) -> None:
    run = read_run(fitted)
    assert isinstance(run.net.loading_head, LoadingHead)
    before, after = run.record["loadings"]["held_back_log_likelihood"]
    assert run.record["loadings"]["kept"] == (after > before)
    moved = bool(run.net.loading_head.change.weight.abs().sum() > 0)
    assert moved == run.record["loadings"]["kept"]


def test_the_graph_gives_the_fitted_loadings(fitted: Path) -> None:
    run = read_run(fitted)
    assert run.net.loading_head is not None
    torch.nn.init.normal_(run.net.loading_head.change.weight, std=0.1)
    assert check_parity(run.net, export_market_graph(run.net)) <= 1e-5
    features = torch.from_numpy(make_toy().features[500:503, 0][:, None].astype(np.float32))
    mask = torch.isfinite(features)
    found = run.net(features, mask, torch.ones(3, dtype=torch.bool))[4]
    torch.testing.assert_close(found, run.net.loading_head(features[:, -1], mask[:, -1]))
    assert (found.square().sum(dim=-1) <= 1.0).all()


def test_without_a_word_loadings_are_the_features(tmp_path: Path) -> None:
    run = read_run(fit_run(make_toy(), recipe("features"), tmp_path / "run").path)
    assert run.net.loading_head is None
    assert run.record["loadings"] == {}


def test_another_source_of_loadings_is_refused() -> None:
    with pytest.raises(ConfigError, match="loadings has to be one of features, fitted, found 'guessed'"):
        parse_recipe({"name": "x", "network": {"loadings": "guessed"}})


def test_loadings_can_be_fitted_without_features_of_their_own(tmp_path: Path) -> None:
    names = tuple(name for name in make_toy().feature_names if not name.startswith("factor_loading"))
    plain = recipe("fitted")
    without = replace(plain, network=replace(plain.network, features=names))
    run = read_run(fit_run(make_toy(), without, tmp_path / "run").path)
    assert np.isfinite(run.record["loadings"]["held_back_log_likelihood"]).all()
    assert run.net.loading_head is not None
    assert torch.isfinite(run.net.loading_head.change.weight).all()
