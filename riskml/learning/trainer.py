"""Running the Lightning trainer: deterministic, resumable, keeping the best epoch or the last.

Checkpoints hold tensors and plain values only and are read with ``weights_only``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from riskml.errors import ConfigError
from riskml.learning.module import MarketModule
from riskml.learning.networks.market import MarketNet
from riskml.learning.recipe import Recipe, TrainingSpec
from riskml.learning.windows import ChunkDataset, ChunkSampler

ProgressFn = Callable[[int, int, str], None]
_MONITOR = "validation_loss"


@dataclass(frozen=True)
class Fitted:
    """Outcome of the training."""

    epoch: int
    """Epoch that was kept; -1 = no epoch beat the starting point."""
    history: list[dict[str, float]]
    """Losses per epoch; the row of epoch -1 is the starting point."""


def train(
    net: MarketNet,
    train_data: ChunkDataset,
    validation_data: ChunkDataset | None,
    recipe: Recipe,
    checkpoints: Path,
    *,
    resume: bool = False,
    progress: ProgressFn | None = None,
) -> Fitted:
    """Fit ``net`` in place; it ends with the averaged weights of the epoch that the recipe keeps.

    Parameters
    ----------
    net : initialised network.
    train_data, validation_data : chunks of both parts; the second is None where the recipe has no such part.
    recipe : schedule and loss.
    checkpoints : folder for ``last.ckpt`` and ``best.ckpt``.
    resume : go on from ``last.ckpt`` where there is one.
    progress : called with (epoch, epochs, message).

    Raises
    ------
    DataError : the loss is not finite; the checkpoints so far stay.
    ConfigError : a checkpoint cannot be read.
    """
    training = recipe.training
    keep_last = training.keep == "last"
    sampler = ChunkSampler(train_data, training.batch_chunks, seed=recipe.seed)
    net.mixed = uses_bfloat16(training.precision)

    def report(epoch: int, row: dict[str, float]) -> None:
        if progress is not None:
            progress(epoch + 1, training.epochs, "fitting")

    validates = validation_data is not None
    module = MarketModule(net, recipe, training.epochs * len(sampler), report, validates=validates)
    with _quiet(), torch.random.fork_rng():
        trainer = _make_trainer(training, checkpoints, validates=validates)
        validation_loader, start = None, []
        if validation_data is not None:
            validation_sampler = ChunkSampler(validation_data, 2 * training.batch_chunks, seed=None)
            validation_loader = DataLoader(validation_data, batch_size=None, sampler=validation_sampler)
            # What was reached before anything is learnt; an epoch has to beat it to be kept.
            start.append({"epoch": -1.0, _MONITOR: _validation_loss(module, trainer, validation_loader)})
        last = checkpoints / "last.ckpt"
        trainer.fit(
            module,
            DataLoader(train_data, batch_size=None, sampler=sampler),
            validation_loader,
            ckpt_path=last if resume and last.is_file() else None,
            weights_only=True,
        )
    history = [*start, *module.history]
    chosen = history[-1] if keep_last else min(history, key=lambda row: row[_MONITOR])
    epoch = int(chosen["epoch"])
    if epoch >= 0:
        _load_average(net, last if keep_last else checkpoints / "best.ckpt")
    else:
        net.load_state_dict(module.starting_state)
    net.cpu().eval()
    return Fitted(epoch, history)


def uses_bfloat16(precision: str) -> bool:
    """Whether the layers train in bfloat16: asked for, or with ``auto`` on a GPU that computes in it."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def _make_trainer(training: TrainingSpec, checkpoints: Path, *, validates: bool) -> pl.Trainer:
    """Lightning's trainer, with the checkpoints that a fit resumes from and ends with."""
    best = ModelCheckpoint(
        dirpath=checkpoints,
        filename="best",
        monitor=_MONITOR if validates else None,
        save_last=True,
        save_top_k=1,
        enable_version_counter=False,
        # Saved any earlier, the epoch does not count as done, and a resumed fit repeats its order of chunks.
        save_on_train_epoch_end=True,
    )
    ends = [] if training.keep == "last" else [EarlyStopping(_MONITOR, patience=training.patience)]
    return pl.Trainer(
        max_epochs=training.epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
        gradient_clip_val=training.gradient_clip,
        num_sanity_val_steps=0,
        callbacks=[best, *ends],
    )


def _validation_loss(module: MarketModule, trainer: pl.Trainer, loader: DataLoader[object]) -> float:
    trainer.validate(module, loader, verbose=False)
    return module.history.pop()[_MONITOR]


def _load_average(net: MarketNet, checkpoint: Path) -> None:
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        averaged = {
            key.removeprefix("average."): value for key, value in state.items() if key.startswith("average.")
        }
        net.load_state_dict(averaged)
    except Exception as error:  # torch raises errors of many kinds for a damaged file
        raise ConfigError(
            f"{checkpoint} cannot be read: {error}", fix="fit again without --resume"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainer's hints out of the output, and its global switches in here."""
    # Deterministic matrix products on a GPU need this workspace; on a CPU it does nothing.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic = torch.are_deterministic_algorithms_enabled()
    loggers = [
        logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The panel lies in memory: worker processes would only copy it.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # Resuming is meant to find a folder with checkpoints.
            warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
            # The averaged copy of the network is meant to be in evaluation mode.
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*")
            # A fit may have no validation part.
            warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
            # Lightning 2.6 asks torch in a way that torch 2.13 deprecates.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        torch.use_deterministic_algorithms(deterministic)
