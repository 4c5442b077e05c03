"""A gated recurrent unit that starts anew in every window.

A state that ran on for ever would depend on where a history begins, and would have to be kept between two
scores. Restarted at the first bar of each window, the output at a bar depends on that window alone. All
windows of a chunk advance side by side: at step k each reads its k-th bar, so nothing is unfolded.

Cell follows Cho et al. 2014, with the reset gate after the recurrent product (as cuDNN has it).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WindowGru(nn.Module):
    """Last state over each window: [n, n_inputs, t] -> [n, channels, t - window_bars + 1].

    Parameters
    ----------
    n_inputs : input channels.
    channels : width of the state.
    window_bars : bars of a window, which is the receptive field.
    dropout : of the last state.
    """

    def __init__(self, n_inputs: int, channels: int, window_bars: int, dropout: float) -> None:
        super().__init__()
        self.channels, self.receptive_field = channels, window_bars
        self.entry = nn.Linear(n_inputs, 3 * channels)
        self.recurrent = nn.Linear(channels, 3 * channels)
        self.dropout = nn.Dropout(dropout)
        bound = channels**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.entry(x.transpose(1, 2))
        steps = self.receptive_field
        state = torch.zeros_like(entered[:, steps - 1 :, : self.channels])
        for step in range(steps):
            later = steps - 1 - step
            bars = entered[:, step:-later] if later else entered[:, step:]
            state = self._advance(bars, state)
        return self.dropout(state).transpose(1, 2)

    def _advance(self, entered: Tensor, state: Tensor) -> Tensor:
        c = self.channels
        again = self.recurrent(state)
        gates = torch.sigmoid(entered[..., : 2 * c] + again[..., : 2 * c])
        reset, keep = gates[..., :c], gates[..., c:]
        proposed = torch.tanh(entered[..., 2 * c :] + reset * again[..., 2 * c :])
        return proposed + keep * (state - proposed)
