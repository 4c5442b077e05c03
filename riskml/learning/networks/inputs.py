"""What the market graph is given, in words and sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInput:
    """One input of the graph."""

    name: str
    shape: tuple[str | int, ...]
    """A word is an axis of any length, a number a fixed one."""
    dtype: str
    meaning: str


def market_inputs(n_features: int, receptive_field: int) -> tuple[TensorInput, ...]:
    """Inputs of a market graph, in the order of its arguments.

    Parameters
    ----------
    n_features : length of the feature axis.
    receptive_field : fewest bars that a window has to hold.
    """
    return (
        TensorInput(
            "features",
            ("n_markets", "n_bars", n_features),
            "float32",
            "features as the catalogue defines them, unscaled, oldest bar first; "
            f"at least {receptive_field} bars; NaN and infinity count as missing",
        ),
        TensorInput(
            "feature_mask",
            ("n_markets", "n_bars", n_features),
            "bool",
            "True = the value is present; a masked value is not read",
        ),
        TensorInput(
            "market_mask",
            ("n_markets",),
            "bool",
            "True = the market counts in the mean over markets; one outside is scored all the same",
        ),
    )
