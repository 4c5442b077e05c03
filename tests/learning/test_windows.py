"""Chunks: which positions the loss sees, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riskml.errors import DataError
from riskml.learning.windows import ChunkDataset, ChunkSampler, Panel

N_BARS, CONTEXT, CHUNK = 100, 6, 16


def make_panel_of(n_bars: int = N_BARS) -> Panel:
    """Feature 0 is the bar's number, so that a chunk can be told apart."""
    bars = torch.arange(n_bars, dtype=torch.float32)
    features = bars[None, :, None].repeat(2, 1, 3)
    target = bars[None, :, None].repeat(2, 1, 2) + 1.0
    target[:, -3:] = torch.nan
    target[1, 40:44] = torch.nan
    usable = np.ones((2, n_bars), dtype=np.bool_)
    usable[0, 20] = False
    mae = target.unsqueeze(-1).repeat(1, 1, 1, 2)
    return Panel(features, mae, target.clone(), torch.zeros_like(target), usable)


def test_every_allowed_position_is_seen_exactly_once() -> None:
    rows = np.zeros(N_BARS, dtype=np.bool_)
    rows[10:] = True
    data = ChunkDataset(make_panel_of(), rows, CONTEXT, CHUNK)
    seen = np.zeros((2, N_BARS), dtype=int)
    covered: set[int] = set()
    for start in data.starts():
        batch = data[[start]]
        assert batch.features.shape == (1, 2, CONTEXT + CHUNK, 3)
        new = [bar for bar in range(start, start + CHUNK) if bar not in covered]
        mask = batch.law_mask[0, :, :, 0].numpy()
        for bar in new:
            seen[:, bar] += mask[:, bar - start]
        covered.update(new)
        positions = batch.features[0, 0, CONTEXT:, 0].numpy()
        np.testing.assert_array_equal(positions, np.arange(start, start + CHUNK))
        assert np.all(batch.variance[batch.law_mask].numpy() > 0)
    expected = np.ones((2, N_BARS), dtype=int)
    expected[:, :10] = 0
    expected[:, -3:] = 0
    expected[0, 20] = 0
    expected[1, 40:44] = 0
    np.testing.assert_array_equal(seen, expected)


def test_missing_targets_are_filled_so_that_no_loss_is_nan() -> None:
    data = ChunkDataset(make_panel_of(), np.ones(N_BARS, dtype=np.bool_), CONTEXT, CHUNK)
    batch = data[data.starts()]
    for values in (batch.mae, batch.variance, batch.stress):
        assert torch.isfinite(values).all()
    assert (batch.variance[~batch.law_mask] == 1.0).all()


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    data = ChunkDataset(make_panel_of(), np.ones(N_BARS, dtype=np.bool_), CONTEXT, CHUNK)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = ChunkSampler(data, 2, seed=seed)
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        return drawn

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    # the trainer validates after as many steps as the first epoch had
    assert {len(order(1, epoch)) for epoch in range(12)} == {len(ChunkSampler(data, 2, seed=1))}
    assert list(ChunkSampler(data, 3, seed=None)) == list(ChunkSampler(data, 3, seed=None))


def test_a_part_without_a_usable_row_is_refused() -> None:
    rows = np.zeros(N_BARS, dtype=np.bool_)
    rows[:3] = True
    with pytest.raises(DataError, match="no row has features, targets and the 6 bars before it"):
        ChunkDataset(make_panel_of(), rows, CONTEXT, CHUNK)
