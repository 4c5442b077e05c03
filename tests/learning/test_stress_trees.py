"""Trees that classify stress: what they learn, and how their hazard joins the networks'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from riskml.arrays import FloatND
from riskml.errors import ConfigError, DataError
from riskml.learning.boosting import BoostingSpec, GammaExpert, fit_gamma, fit_stress
from riskml.learning.expert import ExpertData, ExpertFit, fit_expert
from riskml.learning.market_graph import check_parity, export_market_graph
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.recipe import SplitSpec, parse_recipe
from riskml.learning.splits import Splits, make_splits
from riskml.metrics import roc_auc

from .conftest import FEATURES, HORIZONS, make_toy
from .test_ensemble import member, window

SPEC = BoostingSpec(n_trees=20, min_leaf_rows=20, learning_rate=0.1)
N, K = 6000, len(FEATURES)


def sample() -> tuple[FloatND, FloatND]:
    """Stress follows a high first feature, the likelier the longer the horizon."""
    draw = np.random.default_rng(3)
    x = draw.standard_normal((N, K)).astype(np.float32)
    rate = np.array([0.01, 0.03, 0.06]) * np.where(x[:, :1] > 1.0, 8.0, 1.0)
    return x, (draw.random((N, len(HORIZONS))) < rate).astype(np.float64)


def test_a_classifier_ranks_rows_that_it_did_not_see() -> None:
    x, stress = sample()
    expert = fit_stress(x, stress, np.arange(N) < 4000, SPEC, seed=1, n_threads=1)
    logit = expert.predict_delta(x[4000:])
    for h in range(len(HORIZONS)):
        assert roc_auc(stress[4000:, h], logit[:, h]) > 0.7
        rate = (1.0 / (1.0 + np.exp(-logit[:, h]))).mean()
        assert rate == pytest.approx(stress[:4000, h].mean(), rel=0.3)


def test_a_row_whose_stress_is_unknown_takes_no_part() -> None:
    x, stress = sample()
    rows = np.arange(N) < 4000
    holed = stress.copy()
    holed[3000:] = np.nan
    short = fit_stress(x, stress, np.arange(N) < 3000, SPEC, seed=1, n_threads=1)
    assert fit_stress(x, holed, rows, SPEC, seed=1, n_threads=1).to_text() == short.to_text()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rows_of_one_kind_are_refused(value: float) -> None:
    x, stress = sample()
    with pytest.raises(DataError, match="n_stress_trees = 0"):
        fit_stress(x, np.full_like(stress, value), np.ones(N, dtype=np.bool_), SPEC, seed=1, n_threads=1)


def trees() -> GammaExpert:
    x, stress = sample()
    rows = np.ones(N, dtype=np.bool_)
    variance = np.exp(0.3 * x[:, : len(HORIZONS)].astype(np.float64))
    gamma = fit_gamma(x, variance, np.zeros_like(variance), rows, None, SPEC, seed=1, n_threads=1)
    return GammaExpert.join([gamma, fit_stress(x, stress, rows, SPEC, seed=1, n_threads=1)])


def test_stress_is_the_geometric_mean_of_the_hazards_and_rises_with_the_horizon() -> None:
    net = member(0)
    plain = EnsembleNet([net], has_expert=True)
    joined = EnsembleNet([net], has_expert=True, has_stress_trees=True)
    inputs = window(net)
    logit = torch.tensor([[-3.0, -2.0, -1.0], [2.0, -5.0, -5.0], [-30.0, 0.0, 30.0]])
    delta = torch.zeros(3, len(HORIZONS))
    alone = -torch.log1p(-plain(*inputs, delta)[3])
    found = -torch.log1p(-joined(*inputs, torch.cat([delta, logit], dim=1))[3])
    probability = torch.sigmoid(logit.double())
    hazard = torch.sqrt(alone.double() * -torch.log1p(-probability)).cummax(dim=1).values
    torch.testing.assert_close(found[:2].double(), hazard[:2], rtol=1e-4, atol=1e-7)
    assert (found.diff(dim=1) >= -1e-6).all()
    assert torch.isfinite(found).all()
    for index in (0, 1, 2, 4):  # nothing else moves
        torch.testing.assert_close(
            joined(*inputs, torch.cat([delta, logit], dim=1))[index], plain(*inputs, delta)[index]
        )


def test_network_and_graph_say_the_same_with_trees_of_stress() -> None:
    net = member(0)
    both = EnsembleNet([net], has_expert=True, has_stress_trees=True)
    both.remember_start(net)
    both.expert_weight.fill_(0.5)
    expert = trees()
    assert check_parity(both, export_market_graph(both.eval(), expert), expert) <= 1e-5


def expert_data() -> tuple[ExpertData, Splits]:
    toy = make_toy(seed=3)
    start = np.broadcast_to(np.nanmean(np.log(toy.variance), axis=(0, 1)), toy.variance.shape).copy()
    usable = np.isfinite(toy.features[..., 0])
    data = ExpertData(toy.ts, toy.features.astype(np.float32), toy.variance, start, usable, toy.stress)
    return data, make_splits(toy.ts, "1h", HORIZONS, SplitSpec())


def fitted(data: ExpertData, splits: Splits, *, family_dropout: float = 0.0) -> ExpertFit:
    spec = replace(SPEC, n_trees=8)
    return fit_expert(
        data, splits, spec, n_blocks=2, n_stress_trees=6, family_dropout=family_dropout, seed=1, n_threads=1
    )


def test_stress_behind_the_fit_part_is_not_learnt_from() -> None:
    data, splits = expert_data()
    assert data.stress is not None
    found = fitted(data, splits)
    assert found.n_trees[len(HORIZONS) :] == (6,) * len(HORIZONS)
    assert found.delta.shape[2] == 2 * len(HORIZONS)
    changed = np.where((data.ts + splits.purge_us >= splits.fit_end)[:, None, None], 1.0, data.stress)
    assert fitted(replace(data, stress=changed), splits).expert.to_text() == found.expert.to_text()


def test_progress_counts_every_fit_and_ends_at_its_total() -> None:
    told: list[tuple[int, int]] = []
    fit_expert(
        *expert_data(),
        replace(SPEC, n_trees=3),
        n_blocks=2,
        n_stress_trees=2,
        seed=1,
        n_threads=1,
        progress=lambda done, total: told.append((done, total)),
    )
    total = len(HORIZONS) * (2 + 2)  # two blocks and the whole, and the classifier
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_trees_of_stress_ask_for_stress() -> None:
    data, splits = expert_data()
    with pytest.raises(DataError, match="where stress was"):
        fitted(replace(data, stress=None), splits)


def test_a_family_that_was_taken_away_in_the_fit_has_a_direction_of_its_own() -> None:
    data, splits = expert_data()
    data = replace(data, features=np.nan_to_num(data.features), families=((1, 2),))
    kinds = []
    for share in (0.0, 0.2):
        text = "".join(fitted(data, splits, family_dropout=share).expert.to_text())
        # bits 2 and 3 of a split's decision type say how it treats a missing value: 2 = NaN
        types = {
            int(word) >> 2 & 3
            for line in text.splitlines()
            if line.startswith("decision_type=")
            for word in line.split("=")[1].split()
        }
        kinds.append(types)
    assert 2 not in kinds[0]
    assert 2 in kinds[1]


@pytest.mark.parametrize(
    "section", [{"n_stress_trees": 5}, {"n_trees": 5, "n_stress_trees": -1}, {"family_dropout": 1.0}]
)
def test_settings_that_make_no_sense_are_refused(section: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        parse_recipe({"name": "x", "expert": section})
