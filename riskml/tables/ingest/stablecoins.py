"""Dollar stablecoins by the names that sources use (``facts/symbols.toml``, ``[[pegged]]``)."""

from __future__ import annotations

from functools import cache

import numpy as np

from riskml.arrays import Bool1D, TimeUs
from riskml.facts import load_facts
from riskml.units import to_us

_NEVER = 2**62


@cache
def _pegged() -> dict[str, tuple[str, int]]:
    """Name and end of the peg by every name that a source may use."""
    found: dict[str, tuple[str, int]] = {}
    for entry in load_facts("symbols")["pegged"]:
        end = to_us(entry["until"]) if "until" in entry else _NEVER
        for name in (entry["name"], *entry.get("ids", ())):
            found[name] = (entry["name"], end)
    return found


def pegged_name(name: str) -> str | None:
    """riskml's name of a dollar stablecoin; None for any other asset.

    >>> pegged_name("usd-coin"), pegged_name("USDE"), pegged_name("LUNC")
    ('USDC', 'USDe', None)
    """
    entry = _pegged().get(name)
    return None if entry is None else entry[0]


def is_pegged(names: list[str | None], ts: TimeUs) -> tuple[Bool1D, Bool1D]:
    """Which rows are of a dollar stablecoin, and which of one whose peg was given up before.

    Parameters
    ----------
    names : [n_rows] riskml's names, None for other assets.
    ts : [n_rows] int64 us.

    Returns
    -------
    pegged : [n_rows] a stablecoin with its peg in force.
    given_up : [n_rows] a stablecoin, later than its peg.
    """
    ends = np.array([-_NEVER if name is None else _pegged()[name][1] for name in names], np.int64)
    known = np.array([name is not None for name in names], bool)
    return known & (ts < ends), known & (ts >= ends)
