"""The sequence part of the network, chosen by the recipe's ``[network] encoder``.

Every encoder maps [n, n_inputs, t] to [n, channels, t - receptive_field + 1] without padding: the output
at a bar reads that bar and the ``receptive_field - 1`` before it, nothing later. Hence it is the same whether
the bar is the last of a window or one of many in a training chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor, nn

from riskml.errors import ConfigError, nearest
from riskml.learning.networks.gru import WindowGru
from riskml.learning.networks.patch import PatchTransformer
from riskml.learning.networks.tcn import CausalTcn
from riskml.learning.recipe import ENCODERS, NetworkSpec


class Encoder(Protocol):
    """What the network asks of its sequence part, beside being an ``nn.Module``."""

    channels: int
    """Channels of the output."""
    receptive_field: int
    """Bars that one output depends on."""

    def __call__(self, x: Tensor) -> Tensor: ...


class NoEncoder(nn.Module):
    """No sequence part: [n, n_inputs, t] -> [n, 0, t]; the network then reads the last bar alone."""

    channels, receptive_field = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


def _tcn(n_inputs: int, spec: NetworkSpec) -> nn.Module:
    return CausalTcn(n_inputs, spec.channels, spec.dilations, spec.dropout)


def _gru(n_inputs: int, spec: NetworkSpec) -> nn.Module:
    return WindowGru(n_inputs, spec.channels, spec.window_bars, spec.dropout)


def _patch(n_inputs: int, spec: NetworkSpec) -> nn.Module:
    return PatchTransformer(
        n_inputs,
        spec.channels,
        window_bars=spec.window_bars,
        patch_bars=spec.patch_bars,
        n_heads=spec.attention_heads,
        n_layers=spec.attention_layers,
        dropout=spec.dropout,
    )


def _none(n_inputs: int, spec: NetworkSpec) -> nn.Module:
    return NoEncoder()


_MAKERS: dict[str, Callable[[int, NetworkSpec], nn.Module]] = {
    "tcn": _tcn,
    "gru": _gru,
    "patch": _patch,
    "none": _none,
}
assert tuple(_MAKERS) == ENCODERS, "recipes offer other encoders than there are"


def make_encoder(n_inputs: int, spec: NetworkSpec) -> Encoder:
    """The sequence part that a recipe asks for.

    Parameters
    ----------
    n_inputs : channels of its input.
    spec : ``encoder`` and the sizes that it reads.

    Raises
    ------
    ConfigError : there is no such encoder; :func:`riskml.learning.recipe.parse_recipe` refuses it before.
    """
    if spec.encoder not in _MAKERS:
        raise ConfigError(
            f"there is no encoder '{spec.encoder}'.{nearest(spec.encoder, list(_MAKERS))}",
            fix=f"use one of {', '.join(_MAKERS)}",
        )
    return cast(Encoder, _MAKERS[spec.encoder](n_inputs, spec))
