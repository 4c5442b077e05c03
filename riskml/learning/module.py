"""The training step: the network, its averaged copy, and the loss between them.

The copy that is kept is an exponential average of the weights over steps. It smooths
the last epochs at no cost at inference, and its validation loss chooses the epoch
where a recipe keeps the best one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from riskml.errors import DataError
from riskml.learning.losses import distance_bce, half_t_nll, hazard_bce, masked_mean, qlike
from riskml.learning.networks.market import MarketLaw, MarketNet
from riskml.learning.protocol import HIGHEST_DISTANCE, LOWEST_DISTANCE
from riskml.learning.recipe import LossSpec, Recipe
from riskml.learning.windows import Batch

N_DISTANCES = 12
"""Distances per row at which the liquidation probability is trained."""


def loss_terms(law: MarketLaw, batch: Batch) -> dict[str, Tensor]:
    """Mean losses of a batch: ``half_t``, ``distance``, ``qlike``, ``stress``, ``nu_penalty`` (scalars)."""
    reach = distance_bce(batch.mae, law.log_sigma, law.nu.unsqueeze(-1), _distances(batch.mae)).mean(dim=-1)
    nll = half_t_nll(batch.mae, law.log_sigma, law.nu.unsqueeze(-1)).mean(dim=-1)
    return {
        "half_t": masked_mean(nll, batch.law_mask, batch.weight),
        "distance": masked_mean(reach, batch.law_mask, batch.weight),
        "qlike": masked_mean(qlike(batch.variance, law.log_variance), batch.law_mask, batch.weight),
        "stress": masked_mean(hazard_bce(batch.stress, law.hazard), batch.stress_mask, batch.weight),
        "nu_penalty": masked_mean(torch.square(law.nu_delta), batch.law_mask),
    }


def total_loss(terms: dict[str, Tensor], spec: LossSpec) -> Tensor:
    """Weighted sum of :func:`loss_terms`."""
    return (
        spec.half_t * terms["half_t"]
        + spec.distance * terms["distance"]
        + spec.qlike * terms["qlike"]
        + spec.stress * terms["stress"]
        + spec.nu_penalty * terms["nu_penalty"]
    )


class MarketModule(pl.LightningModule):
    """Fit a :class:`MarketNet` that was initialised at the log-HAR.

    Parameters
    ----------
    net : initialised network.
    recipe : loss weights, schedule, dropout of inputs.
    n_steps : optimiser steps of the whole fit, for the schedule.
    on_epoch : called with the epoch and its losses after each validation.
    validates : False: there are no rows to validate on, and the history holds losses of the training alone.
    """

    def __init__(
        self,
        net: MarketNet,
        recipe: Recipe,
        n_steps: int,
        on_epoch: Callable[[int, dict[str, float]], None] | None = None,
        *,
        validates: bool = True,
    ) -> None:
        super().__init__()
        self._validates = validates
        self.net = net
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.starting_state = copy.deepcopy(net.state_dict())
        self._recipe, self._n_steps, self._on_epoch = recipe, n_steps, on_epoch
        self._sums: dict[str, list[Tensor]] = {}
        self.history: list[dict[str, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        # Seeding by step makes a resumed fit draw the dropout of an uninterrupted one.
        torch.manual_seed(self._recipe.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        law = self.net.law(*_inputs(batch), keep=self._draw_kept(batch))
        terms = loss_terms(law, batch)
        loss = total_loss(terms, self._recipe.loss)
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is not finite at epoch {self.current_epoch}, step {batch_index}",
                fix="check the dataset's features and targets for extreme values, or lower learning_rate",
            )
        self._collect("train", terms)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        # A short warm-up keeps the average from clinging to the start.
        decay = min(self._recipe.training.averaging, (1.0 + self.global_step) / (10.0 + self.global_step))
        with torch.no_grad():
            averaged, current = list(self.average.parameters()), list(self.net.parameters())
            torch._foreach_lerp_(averaged, current, 1.0 - decay)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        terms = loss_terms(self.average.law(*_inputs(batch)), batch)
        weight = batch.law_mask.sum()
        self._collect("validation", {**{k: v * weight for k, v in terms.items()}, "weight": weight})

    def on_validation_epoch_end(self) -> None:
        sums = {
            key: float(torch.stack(values).double().sum()) for key, values in self._pop("validation").items()
        }
        terms = {key: value / max(sums["weight"], 1.0) for key, value in sums.items() if key != "weight"}
        loss = self._total(terms)
        if not math.isfinite(loss):
            raise DataError(
                f"the validation loss is not finite after epoch {self.current_epoch}",
                fix="check the dataset's features and targets for extreme values, or lower learning_rate",
            )
        self.log("validation_loss", torch.tensor(loss, dtype=torch.float32))
        row = {"epoch": float(self.current_epoch), "validation_loss": loss}
        row |= {f"validation_{key}": value for key, value in terms.items()}
        row |= {f"train_{key}": value for key, value in self._train_terms().items()}
        self._record(row, tell=not self.trainer.validating)

    def on_train_epoch_end(self) -> None:
        if not self._validates:
            terms = self._train_terms()
            row = {"epoch": float(self.current_epoch), "train_loss": self._total(terms)}
            self._record(row | {f"train_{key}": value for key, value in terms.items()}, tell=True)

    def _train_terms(self) -> dict[str, float]:
        return {key: float(torch.stack(values).double().mean()) for key, values in self._pop("train").items()}

    def _total(self, terms: dict[str, float]) -> float:
        exact = {key: torch.tensor(value, dtype=torch.float64) for key, value in terms.items()}
        return float(total_loss(exact, self._recipe.loss))

    def _record(self, row: dict[str, float], *, tell: bool) -> None:
        self.history.append(row)
        if self._on_epoch is not None and tell:
            self._on_epoch(self.current_epoch, row)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return Batch(**{item.name: getattr(batch, item.name).to(device) for item in fields(batch)})

    def configure_optimizers(self) -> dict[str, Any]:
        spec = self._recipe.training
        decayed: list[Tensor] = []
        free: list[Tensor] = []
        for name, parameter in self.net.named_parameters():
            is_network = name.startswith(("encoder", "joint", "head")) and parameter.ndim > 1
            (decayed if is_network else free).append(parameter)
        optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": spec.weight_decay},
                {"params": free, "weight_decay": 0.0},
            ],
            lr=spec.learning_rate,
        )

        def rate(step: int) -> float:
            warm = min(1.0, (step + 1) / max(spec.warmup_steps, 1))
            return warm * (
                0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(self._n_steps, 1))))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _draw_kept(self, batch: Batch) -> Tensor:
        """[n_chunks, n_features]: 0 for features and families taken away in a chunk."""
        spec, device = self.net.spec, batch.features.device
        shape = (batch.features.shape[0], batch.features.shape[-1])
        keep = (torch.rand(shape, device=device) >= spec.channel_dropout).to(batch.features.dtype)
        for family in self.net.roles.families:
            stays = (torch.rand((shape[0], 1), device=device) >= spec.family_dropout).to(keep.dtype)
            keep[:, list(family)] *= stays
        return keep

    def _collect(self, part: str, terms: dict[str, Tensor]) -> None:
        for key, value in terms.items():
            self._sums.setdefault(f"{part}/{key}", []).append(value.detach())

    def _pop(self, part: str) -> dict[str, list[Tensor]]:
        names = [key for key in self._sums if key.startswith(f"{part}/")]
        return {key.split("/", 1)[1]: self._sums.pop(key) for key in names}


def _distances(like: Tensor) -> Tensor:
    """ln of the grid of distances at which the liquidation probability is trained, the protocol's range."""
    low, high = math.log(-math.log1p(-LOWEST_DISTANCE)), math.log(-math.log1p(-HIGHEST_DISTANCE))
    return torch.linspace(low, high, N_DISTANCES, dtype=like.dtype, device=like.device)


def _inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Features, feature mask and market mask as :meth:`MarketNet.law` takes them."""
    mask = torch.isfinite(batch.features)
    return batch.features, mask, torch.ones(batch.features.shape[:2], dtype=torch.bool, device=mask.device)
