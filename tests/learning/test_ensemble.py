"""Members and the boosted expert: how they are combined, fitted, saved and exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riskml.errors import DataError
from riskml.learning.boosting import BoostingSpec, GammaExpert, fit_gamma
from riskml.learning.expert import ExpertData, fit_expert
from riskml.learning.market_graph import check_parity, export_market_graph
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.networks.market import FeatureRoles, MarketNet
from riskml.learning.recipe import ExpertSpec, NetworkSpec, Recipe, SplitSpec, TrainingSpec
from riskml.learning.runs import EXPERT_FILE, read_run
from riskml.learning.splits import make_splits

from .conftest import FEATURES, HORIZONS, make_toy

SPEC = NetworkSpec(channels=4, hidden=8, dropout=0.0)
RECIPE = Recipe(
    "toy",
    network=NetworkSpec(channels=4, hidden=8),
    training=TrainingSpec(epochs=2, chunk_bars=64, warmup_steps=3, averaging=0.8, members=2),
    expert=ExpertSpec(
        n_trees=20, min_leaf_rows=20, patience=5, n_blocks=3, n_stress_trees=5, family_dropout=0.1
    ),
)


def member(seed: int) -> MarketNet:
    torch.manual_seed(seed)
    net = MarketNet(SPEC, FeatureRoles.of(FEATURES, SPEC, {}), len(HORIZONS))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def window(net: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(9)
    features = torch.randn(3, net.receptive_field, len(FEATURES))
    features[..., FEATURES.index("hour_of_week")] = torch.arange(net.receptive_field) % 168
    return features, torch.ones_like(features, dtype=torch.bool), torch.ones(3, dtype=torch.bool)


def test_one_member_without_an_expert_is_that_member() -> None:
    net = member(0)
    for ours, theirs in zip(
        EnsembleNet([net], has_expert=False)(*window(net)), net(*window(net)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)


def test_members_are_averaged_in_logs_and_in_inverse_nu() -> None:
    nets = [member(0), member(1)]
    one, two = (net(*window(net)) for net in nets)
    sigma, nu, variance, _, loadings = EnsembleNet(nets, has_expert=False)(*window(nets[0]))
    torch.testing.assert_close(sigma, torch.sqrt(one[0] * two[0]))
    torch.testing.assert_close(nu, 2.0 / (1.0 / one[1] + 1.0 / two[1]))
    torch.testing.assert_close(variance, torch.sqrt(one[2] * two[2]))
    torch.testing.assert_close(loadings, one[4])


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_expert_moves_variance_by_its_weight_and_sigma_by_half_of_that(weight: float) -> None:
    net = member(0)
    both = EnsembleNet([net], has_expert=True)
    both.remember_start(net)
    both.expert_weight.fill_(weight)
    features, mask, present = window(net)
    expert = torch.tensor([[0.3, -0.2, 0.1]] * 3)
    plain, moved = net(features, mask, present), both(features, mask, present, expert)
    start = both.start(features.unsqueeze(0), mask.unsqueeze(0))[0, :, -1]
    expected = (1 - weight) * torch.log(plain[2]) + weight * (start + expert)
    torch.testing.assert_close(torch.log(moved[2]), expected, rtol=1e-5, atol=1e-5)
    shift = torch.log(moved[2]) - torch.log(plain[2])
    torch.testing.assert_close(
        torch.log(moved[0]) - torch.log(plain[0]),
        0.5 * shift[..., None].expand(3, 3, 2),
        atol=1e-5,
        rtol=1e-4,
    )
    torch.testing.assert_close(moved[1], plain[1])


def test_the_start_is_the_untrained_network() -> None:
    torch.manual_seed(0)
    net = MarketNet(SPEC, FeatureRoles.of(FEATURES, SPEC, {}), len(HORIZONS)).eval()
    with torch.no_grad():
        net.har.bias.fill_(-9.0)
        net.season.normal_()
    both = EnsembleNet([net], has_expert=True)
    both.remember_start(net)
    features, mask, present = window(net)
    start = both.start(features.unsqueeze(0), mask.unsqueeze(0))[0, :, -1]
    torch.testing.assert_close(torch.exp(start), net(features, mask, present)[2])


def expert_of(net: Any) -> GammaExpert:
    draw = np.random.default_rng(1)
    x = draw.standard_normal((3000, len(FEATURES))).astype(np.float32)
    x[draw.random(x.shape) < 0.1] = np.nan
    y = np.exp(0.5 * np.nan_to_num(x[:, :1]) + 0.2 * draw.standard_normal((3000, net.n_horizons)))
    spec = BoostingSpec(n_trees=15, min_leaf_rows=20)
    rows = np.ones(3000, dtype=np.bool_)
    return fit_gamma(x, y, np.zeros_like(y), rows, None, spec, seed=1, n_threads=1)


@pytest.mark.slow
def test_network_and_graph_say_the_same_with_two_members_and_trees() -> None:
    nets = [member(0), member(1)]
    both = EnsembleNet(nets, has_expert=True)
    both.remember_start(nets[0])
    both.expert_weight.fill_(0.5)
    expert = expert_of(both)
    graph = export_market_graph(both.eval(), expert)
    assert check_parity(both, graph, expert) <= 1e-5


# ---------------------------------------------------------------- the fit of the expert


def expert_data(seed: int = 0) -> tuple[ExpertData, Any]:
    toy = make_toy(seed=3 + seed)
    start = np.broadcast_to(np.nanmean(np.log(toy.variance), axis=(0, 1)), toy.variance.shape).copy()
    data = ExpertData(
        toy.ts, toy.features.astype(np.float32), toy.variance, start, np.isfinite(toy.features[..., 0])
    )
    return data, make_splits(toy.ts, "1h", HORIZONS, SplitSpec())


def run_expert(data: ExpertData, splits: Any) -> Any:
    spec = ExpertSpec(n_trees=15, min_leaf_rows=20, patience=5)
    return fit_expert(data, splits, spec, n_blocks=3, seed=1, n_threads=1)


def test_the_forecast_of_a_row_of_the_fit_part_does_not_know_its_outcome() -> None:
    data, splits = expert_data()
    middle = int(np.searchsorted(data.ts, splits.fit_start)) + 30
    changed = data.variance.copy()
    changed[middle] *= 100.0
    before = run_expert(data, splits).delta
    after = run_expert(replace(data, variance=changed), splits).delta
    block = slice(0, middle)  # the first block; its trees saw the others only
    np.testing.assert_array_equal(before[block], after[block])
    assert (before[-1] != after[-1]).any()  # the final trees did see it


def test_nothing_behind_the_fit_part_is_learnt_from() -> None:
    data, splits = expert_data()
    changed = data.variance.copy()
    changed[data.ts + splits.purge_us >= splits.fit_end] *= 100.0
    assert (
        run_expert(data, splits).expert.to_text()
        == run_expert(replace(data, variance=changed), splits).expert.to_text()
    )


def test_a_part_without_rows_is_refused() -> None:
    data, splits = expert_data()
    with pytest.raises(DataError, match="for the boosted expert"):
        run_expert(replace(data, usable=np.zeros_like(data.usable)), splits)


# ---------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from riskml.learning.fit import fit_run

    return fit_run(make_toy(), RECIPE, tmp_path_factory.mktemp("ensemble") / "run").path


@pytest.mark.slow
def test_a_run_with_members_and_trees_is_read_back_and_exported(run: Path, tmp_path: Path) -> None:
    from riskml.learning.export import export_bundle
    from riskml.scoring.session import load_bundle

    finished = read_run(run)
    assert len(finished.net.members) == 2
    assert finished.expert is not None
    assert len(finished.record["member_epochs"]) == 2
    assert len(finished.record["expert_trees"]) == 2 * len(HORIZONS)  # of variance and of stress
    first, second = (dict(member.named_parameters()) for member in finished.net.members)
    assert not torch.equal(first["joint.weight"], second["joint.weight"])
    bundle = load_bundle(export_bundle(run, tmp_path / "bundle"))
    assert bundle.manifest.recipe["training"]["members"] == 2


def test_changed_trees_are_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    texts = json.loads((copy / EXPERT_FILE).read_text(encoding="utf-8"))
    (copy / EXPERT_FILE).write_text(json.dumps(texts[::-1]), encoding="utf-8")
    with pytest.raises(DataError, match="does not match run.json"):
        read_run(copy)
    (copy / EXPERT_FILE).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_run(copy)


def test_a_network_with_an_expert_does_not_run_without_its_forecast() -> None:
    net = member(0)
    with pytest.raises(DataError, match="whose forecast is missing"):
        EnsembleNet([net], has_expert=True)(*window(net))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics_weights_and_trees(run: Path, tmp_path: Path) -> None:
    from riskml.learning.fit import fit_run

    again = fit_run(make_toy(), RECIPE, tmp_path / "run").path
    for name in ("metrics.json", EXPERT_FILE):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    assert read_run(again).record["weights_sha256"] == read_run(run).record["weights_sha256"]
