"""A small transformer over patches of the last bars.

Each window is cut in patches that are counted back from its last bar. Patches attend to each other freely:
all of them are past. The output is the patch that ends at the last bar. A patch is embedded once however many
windows hold it, as a convolution over the chunk; only its place differs between windows.

Patches follow Nie et al. 2023 (PatchTST); normalisation comes before each part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionLayer(nn.Module):
    """Attention over the patches of a window, then a two-layer map: [..., n_patches, c] -> the same."""

    def __init__(self, channels: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before_attention = nn.LayerNorm(channels)
        self.queries_keys_values = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.before_map = nn.LayerNorm(channels)
        self.map = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, channels)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(self.before_attention(x)).unflatten(-1, (3 * self.n_heads, -1))
        query, key, value = split.transpose(-3, -2).chunk(3, dim=-3)
        scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
        seen = (torch.softmax(scores, dim=-1) @ value).transpose(-3, -2).flatten(-2)
        x = x + self.dropout(self.mix(seen))
        return x + self.dropout(self.map(self.before_map(x)))


class PatchTransformer(nn.Module):
    """Last patch of each window: [n, n_inputs, t] -> [n, channels, t - window_bars + 1].

    Parameters
    ----------
    n_inputs : input channels.
    channels : width of a patch's embedding, a multiple of ``n_heads``.
    window_bars : bars of a window, a multiple of ``patch_bars``; the receptive field.
    patch_bars : bars of a patch.
    n_heads, n_layers : attention heads per layer, and layers.
    dropout : of each layer's updates.
    """

    def __init__(
        self,
        n_inputs: int,
        channels: int,
        *,
        window_bars: int,
        patch_bars: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.channels, self.receptive_field, self.patch_bars = channels, window_bars, patch_bars
        self.embedding = nn.Conv1d(n_inputs, channels, patch_bars)
        self.place = nn.Parameter(0.02 * torch.randn(window_bars // patch_bars, channels))
        self.layers = nn.ModuleList(AttentionLayer(channels, n_heads, dropout) for _ in range(n_layers))
        self.exit = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x).transpose(1, 2)
        patches = []
        for start in range(0, self.receptive_field, self.patch_bars):
            later = self.receptive_field - self.patch_bars - start
            patches.append(embedded[:, start:-later] if later else embedded[:, start:])
        windows = torch.stack(patches, dim=2) + self.place
        for layer in self.layers:
            windows = layer(windows)
        return self.exit(windows[:, :, -1]).transpose(1, 2)
