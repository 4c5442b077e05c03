"""Chunks of contiguous bars for dense training.

A chunk carries the receptive field and then ``chunk_bars`` bars at which the loss is taken,
for all markets together, so that the network can pool over them. Neighbouring windows
share their convolutions: one pass over a chunk costs what a few single windows would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from riskml.arrays import AnyArray, Bool1D, Bool2D, Float2D
from riskml.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Chunks for one step; targets hold 0 or 1 where they are missing, and their mask is False."""

    features: Tensor
    """float32 [n_chunks, n_markets, context + chunk_bars, n_features], NaN = missing."""
    mae: Tensor
    """[n_chunks, n_markets, chunk_bars, n_horizons, 2]."""
    variance: Tensor
    """[n_chunks, n_markets, chunk_bars, n_horizons]."""
    stress: Tensor
    """Same shape, 0 or 1."""
    law_mask: Tensor
    """Same shape; True where excursion and variance are known."""
    stress_mask: Tensor
    """Same shape."""
    weight: Tensor
    """[n_chunks, n_markets, chunk_bars, 1] in the loss, 1 where a recipe does not say otherwise."""


@dataclass(frozen=True)
class Panel:
    """Features and targets of the fitted markets as tensors, market first."""

    features: Tensor
    """float32 [n_markets, n_bars, n_features], NaN = missing; all of a slot without a bar."""
    mae: Tensor
    """float32 [n_markets, n_bars, n_horizons, 2]."""
    variance: Tensor
    """float32 [n_markets, n_bars, n_horizons]."""
    stress: Tensor
    """float32 [n_markets, n_bars, n_horizons]."""
    usable: Bool2D
    """[n_markets, n_bars]; True where the row has any feature of the skip."""


def make_panel(data: Any, markets: list[int], har: tuple[int, ...], n_rows: int) -> Panel:
    """Take the fitted markets out of a dataset.

    Parameters
    ----------
    data : :class:`riskml.tables.build.Dataset`.
    markets : positions of the fitted markets.
    har : feature columns of the skip; a row without any of them is excluded from the loss.
    n_rows : leading rows to keep; what lies behind is not read.

    Notes
    -----
    A slot without a bar is missing as a whole, although its rolling features have values: that
    is what a scorer feeds the graph (:class:`riskml.scoring.stream.GraphStream`).
    """

    def cut(values: AnyArray) -> Tensor:
        chosen = np.ascontiguousarray(np.swapaxes(values[:n_rows, markets], 0, 1), dtype=np.float32)
        return torch.from_numpy(chosen)

    features = cut(data.features)
    absent = ~np.isfinite(data.close[:n_rows, markets]).T
    features[torch.from_numpy(np.ascontiguousarray(absent))] = torch.nan
    usable = np.isfinite(features[:, :, list(har)].numpy()).any(axis=-1)
    return Panel(features, cut(data.mae), cut(data.variance), cut(data.stress), usable)


class ChunkDataset(Dataset[Batch]):
    """Chunks by the bar of their first loss position; indexed by a list of such bars.

    Parameters
    ----------
    panel : features and targets.
    rows : [n_bars] rows of the part; loss is taken at no other.
    context : bars before a loss position that the network sees (receptive field - 1).
    chunk_bars : loss positions per chunk.
    weight : [n_markets, n_bars] of the rows in the loss, relative to each other; None = all alike.

    Raises
    ------
    DataError : no row of the part has features, targets and a full receptive field.
    """

    def __init__(
        self, panel: Panel, rows: Bool1D, context: int, chunk_bars: int, weight: Float2D | None = None
    ) -> None:
        self.panel, self.context, self.chunk_bars = panel, context, chunk_bars
        known = torch.isfinite(panel.variance) & torch.isfinite(panel.mae).all(dim=-1)
        wanted = rows & (np.arange(len(rows)) >= context)
        allowed = torch.from_numpy(panel.usable & wanted)
        self._law_mask = known & allowed.unsqueeze(-1)
        self._stress_mask = torch.isfinite(panel.stress) & allowed.unsqueeze(-1)
        self.any_row = self._law_mask.any(dim=-1).any(dim=0).numpy()
        positions = np.flatnonzero(self.any_row)
        if len(positions) == 0:
            raise DataError(
                f"no row has features, targets and the {context} bars before it",
                fix="check the range and the gaps of the dataset with 'riskml check'",
            )
        self.first, self.last = int(positions[0]), int(positions[-1])
        counted = self._law_mask.any(dim=-1)
        self.n_positions = int(counted.sum())
        relative = torch.ones(counted.shape) if weight is None else torch.from_numpy(weight).float()
        self._weight = (relative / relative[counted].mean()).unsqueeze(-1)

    def starts(self, offset: int = 0) -> list[int]:
        """First loss positions of chunks that tile the part, shifted by ``offset`` bars."""
        longest = len(self.any_row) - self.chunk_bars
        starts = np.arange(self.first - offset, self.last + 1, self.chunk_bars)
        starts = np.unique(np.clip(starts, self.context, max(longest, self.context)))
        return [int(s) for s in starts if self.any_row[s : s + self.chunk_bars].any()]

    def __len__(self) -> int:
        return len(self.starts())

    def __getitem__(self, starts: list[int]) -> Batch:
        panel = self.panel
        features = torch.stack([panel.features[:, s - self.context : s + self.chunk_bars] for s in starts])

        def targets(values: Tensor) -> Tensor:
            return torch.stack([values[:, s : s + self.chunk_bars] for s in starts])

        law_mask, stress_mask = targets(self._law_mask), targets(self._stress_mask)
        return Batch(
            features=features,
            mae=targets(panel.mae).masked_fill(~law_mask.unsqueeze(-1), 0.0),
            variance=targets(panel.variance).masked_fill(~law_mask, 1.0),
            stress=targets(panel.stress).masked_fill(~stress_mask, 0.0),
            law_mask=law_mask,
            stress_mask=stress_mask,
            weight=targets(self._weight),
        )


class ChunkSampler(Sampler[list[int]]):
    """Order of chunks: shuffled and shifted anew every epoch, the same for the same seed and epoch.

    The trainer calls :meth:`set_epoch`, so that a resumed fit sees the chunks that an
    uninterrupted one would have seen.
    """

    def __init__(self, data: ChunkDataset, batch_chunks: int, *, seed: int | None) -> None:
        self._data, self._batch_chunks, self._seed, self._epoch = data, batch_chunks, seed, 0
        self._n_chunks = len(data)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        starts = self._draw()
        for begin in range(0, len(starts), self._batch_chunks):
            yield starts[begin : begin + self._batch_chunks]

    def __len__(self) -> int:
        return (self._n_chunks + self._batch_chunks - 1) // self._batch_chunks

    def _draw(self) -> list[int]:
        if self._seed is None:
            return self._data.starts()
        draw = np.random.default_rng([self._seed, self._epoch])
        starts = self._data.starts(int(draw.integers(self._data.chunk_bars)))
        # A shift may cut off a chunk or add one. The trainer validates after a fixed number of steps, and
        # would skip an epoch that is one step short, so one chunk is left out or comes twice.
        order = np.resize(draw.permutation(len(starts)), self._n_chunks)
        return [starts[index] for index in order]
