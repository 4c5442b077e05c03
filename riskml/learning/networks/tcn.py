"""A small causal, gated temporal convolution network without padding.

Each layer sees only the past (dilated kernel of three bars) and shortens the sequence by
what it consumed. Hence the output at a bar is the same whether the bar is the last of a
window or one of many in a training chunk: there is no edge to treat.

Gate and residual follow van den Oord et al. 2016 (WaveNet).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

KERNEL_BARS = 3


class GatedLayer(nn.Module):
    """One dilated gated convolution with a residual: [n, c, t] -> [n, c, t - 2 dilation]."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.lost_bars = (KERNEL_BARS - 1) * dilation
        self.convolution = nn.Conv1d(channels, 2 * channels, KERNEL_BARS, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.convolution(x).chunk(2, dim=1)
        update = self.mix(torch.tanh(value) * torch.sigmoid(gate))
        return x[:, :, self.lost_bars :] + self.dropout(update)


class CausalTcn(nn.Module):
    """A stack of gated layers: [n, n_inputs, t] -> [n, channels, t - receptive_field + 1].

    Parameters
    ----------
    n_inputs : input channels.
    channels : hidden channels.
    dilations : one layer each; the receptive field is ``1 + 2 sum(dilations)`` bars.
    dropout : of each layer's update.
    """

    def __init__(self, n_inputs: int, channels: int, dilations: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.channels, self.receptive_field = channels, receptive_field(dilations)
        self.entry = nn.Conv1d(n_inputs, channels, 1)
        self.layers = nn.ModuleList(GatedLayer(channels, dilation, dropout) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for layer in self.layers:
            x = layer(x)
        return x


def receptive_field(dilations: Sequence[int]) -> int:
    """Bars that one output of :class:`CausalTcn` depends on.

    >>> receptive_field([1, 2, 4, 8, 16])
    63
    """
    return 1 + (KERNEL_BARS - 1) * sum(dilations)
