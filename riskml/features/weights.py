"""Chains and stablecoins as columns, and how much each counts for a market.

The columns are fixed by ``facts/chain_weights.toml`` and not by what a lake happens to hold, so
that a bundle, a build and a running scorer agree on them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from riskml.arrays import Float2D
from riskml.errors import ConfigError, nearest
from riskml.facts import load_facts
from riskml.features.nodes import Axis
from riskml.markets import Market

_FACTS = "chain_weights"
_WEIGHTS: dict[str, str] = {"chain_weights": "chains", "asset_weights": "assets"}
"""Field with weights -> field with the columns that it may name."""


@cache
def axis_columns(axis: Axis) -> tuple[str, ...]:
    """Names of the columns of an axis: chains or stablecoins; empty for the other axes."""
    if axis not in ("chain", "asset"):
        return ()
    return tuple(_facts()[f"{axis}s"])


def axis_weights(axis: Axis, markets: Sequence[Market]) -> Float2D:
    """How much each chain or stablecoin counts for each market [n_markets, n_columns], >= 0.

    Rows sum to 1. A market's own entry (its chain's coin) comes before its venue's, and that
    before the default.
    """
    out = np.empty((len(markets), len(axis_columns(axis))))
    for place, market in enumerate(markets):
        out[place] = _weights(axis, market)
    return out


@cache
def _weights(axis: Axis, market: Market) -> tuple[float, ...]:
    facts = _facts()
    field = f"{axis}_weights"
    chosen: Mapping[str, float] = (
        facts.get("market", {}).get(market.symbol, {}).get(field)
        or facts.get("venue", {}).get(market.venue, {}).get(field)
        or facts["default"][field]
    )
    weights = [float(chosen.get(name, 0.0)) for name in axis_columns(axis)]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


@cache
def _facts() -> Mapping[str, Any]:
    facts = load_facts(_FACTS)
    validate(facts)
    return facts


def validate(facts: Mapping[str, Any]) -> None:
    """Check a fact file of weights.

    Raises
    ------
    ConfigError : with every problem: an unknown chain, stablecoin or field, a weight that is
        negative or not a number, weights that are all zero, a column twice, no default.
    """
    problems = [
        f"'{name}' is listed twice in {columns}"
        for columns in _WEIGHTS.values()
        for name in sorted({name for name in facts[columns] if facts[columns].count(name) > 1})
    ]
    entries = {"default": facts.get("default", {})}
    for section in ("venue", "market"):
        entries |= {f"{section}.{name}": entry for name, entry in facts.get(section, {}).items()}
    problems += [f"[default] lacks {field}" for field in _WEIGHTS if not facts.get("default", {}).get(field)]
    for where, entry in entries.items():
        problems += [
            f"[{where}] has an unknown field '{field}'.{nearest(field, _WEIGHTS)}"
            for field in entry
            if field not in (*_WEIGHTS, "reason")
        ]
        for field, columns in _WEIGHTS.items():
            problems += _problems(f"[{where}] {field}", entry.get(field), facts[columns])
    if problems:
        raise ConfigError("; ".join(problems), fix=f"mend riskml/facts/{_FACTS}.toml")


def _problems(where: str, weights: Mapping[str, object] | None, columns: Collection[str]) -> list[str]:
    if weights is None:
        return []
    problems = [
        f"{where} names '{name}', which is no column.{nearest(name, columns)}"
        for name in weights
        if name not in columns
    ]
    numbers = [value for value in weights.values() if isinstance(value, (int, float))]
    if len(numbers) < len(weights) or any(not 0.0 <= value < float("inf") for value in numbers):
        problems.append(f"{where} must be finite numbers of at least 0")
    elif sum(numbers) <= 0.0:
        problems.append(f"{where} are all zero")
    return problems
