"""Factor loadings of the portfolio law: the correlation features, and what a linear map adds to them.

``b = base + x A + c`` shrunk to a norm of at most 0.999; A and c start at zero, so an unfitted head
passes the two correlation features through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riskml.learning.networks.market import FEATURE_CLIP, LARGE, LOADING_FEATURES

MAX_NORM = 0.999


class LoadingHead(nn.Module):
    """Loadings [n_markets, 2] from the last bar's features; no market's identity enters.

    Parameters
    ----------
    names : features in the order of the last axis; a missing loading feature counts as its default.

    NaN handling: a masked, NaN or infinite feature counts as its fit mean, a loading as its default.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.base = tuple(self.names.index(name) if name in self.names else None for name in LOADING_FEATURES)
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("scale", torch.ones(len(self.names)))
        self.register_buffer("default", torch.zeros(2))
        self.change = nn.Linear(len(self.names), 2)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """``features`` [..., n_features] and bool ``mask`` of the same shape -> [..., 2]."""
        valid = mask & (features.abs() < LARGE)
        known = torch.where(valid, (features - self.mean) / self.scale, torch.zeros_like(features))
        columns = []
        for factor, index in enumerate(self.base):
            default = self.default[factor].expand(features.shape[:-1])
            columns.append(
                default if index is None else torch.where(valid[..., index], features[..., index], default)
            )
        base = torch.stack(columns, dim=-1).clamp(-1.0, 1.0)
        # in float64, since the terms may cancel: graph and network then agree on small loadings too
        weight, bias = self.change.weight.double(), self.change.bias.double()
        added = nn.functional.linear(known.clamp(-FEATURE_CLIP, FEATURE_CLIP).double(), weight, bias)
        loadings = (base + added.to(base.dtype)).clamp(-1.0, 1.0)
        # the root has no slope at 0, where a market without loading features starts
        norm = torch.sqrt(torch.square(loadings).sum(dim=-1, keepdim=True).clamp(min=1e-12))
        return loadings * (MAX_NORM / norm.clamp(min=MAX_NORM))
