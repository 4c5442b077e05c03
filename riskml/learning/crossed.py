"""Networks that forecast rows they did not learn from, for the calibration to stand on.

A network follows the rows that it was trained on more closely than any later one. A law that is calibrated
on those looks sharper than it is, and its requirement is passed too often afterwards. So the fit part is
cut into blocks; each block is forecast by a network of its own that started at the log-HAR of the others and
was trained on them, a purge apart, beside trees that were crossed in the same way
(:mod:`riskml.learning.expert`). Behind the fit part the members of the graph speak. What a crossed network
shares with them is the scaling of its features, and the log-HAR that the trees add to. It is one seed, where
the graph has the mean of several, so it errs a little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from riskml.arrays import Float2D, Float32ND, TimeUs
from riskml.learning.inference import DenseForecast, forecast_panel
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.networks.market import FeatureRoles
from riskml.learning.recipe import Recipe, with_seed
from riskml.learning.runs import make_net, member_seed
from riskml.learning.splits import Splits
from riskml.learning.trainer import ProgressFn, train
from riskml.learning.windows import ChunkDataset, Panel

_FIRST_SEED = 100
"""Index of the first crossed network's seed; members count from 0."""


def crossed_nets(recipe: Recipe, roles: FeatureRoles, n_horizons: int) -> tuple[EnsembleNet, ...]:
    """Fresh networks of one member, one per block."""
    single = replace(recipe, training=replace(recipe.training, members=1))
    seeds = [member_seed(recipe.seed, _FIRST_SEED + block) for block in range(recipe.training.cross_blocks)]
    return tuple(make_net(with_seed(single, seed), roles, n_horizons) for seed in seeds)


def train_crossed(
    nets: Sequence[EnsembleNet],
    panel: Panel,
    ts: TimeUs,
    splits: Splits,
    recipe: Recipe,
    weight: Float2D | None,
    checkpoints: Path,
    *,
    resume: bool = False,
    progress: ProgressFn | None = None,
) -> None:
    """Train each network, initialised before, on the rows of the other blocks.

    Raises
    ------
    DataError : a block leaves no row to learn from.
    """
    for index, (net, (_, others)) in enumerate(zip(nets, splits.blocks(ts, len(nets)), strict=True)):
        rows = splits.rows(ts, "train") & others
        seeded = with_seed(recipe, member_seed(recipe.seed, _FIRST_SEED + index))
        data = ChunkDataset(panel, rows, net.receptive_field - 1, recipe.training.chunk_bars, weight)
        place = checkpoints / f"block-{index}"
        train(net.first, data, None, seeded, place, resume=resume, progress=progress)


def forecast_crossed(
    net: EnsembleNet,
    nets: Sequence[EnsembleNet],
    panel: Panel,
    ts: TimeUs,
    splits: Splits,
    expert: Float32ND | None,
) -> DenseForecast:
    """Forecast every bar: blocks of the fit part by the network that did not see them, the rest by ``net``.

    Parameters
    ----------
    net : members and weight of the expert.
    nets : trained networks of the blocks; none = ``net`` forecasts every bar.
    expert : as :func:`riskml.learning.inference.forecast_panel` takes it.
    """
    whole = forecast_panel(net, panel, expert)
    for one, (bars, _) in zip(nets, splits.blocks(ts, len(nets)) if nets else (), strict=True):
        one.expert_weight.copy_(net.expert_weight)
        part = forecast_panel(one, panel, expert)
        for name in (item.name for item in fields(DenseForecast)):
            into: np.ndarray = getattr(whole, name)
            into[bars] = getattr(part, name)[bars]
    return whole
