"""What several engines look up: dated entries by name, and current prices of holdings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from riskml.arrays import Float1D
from riskml.facts import valid_at
from riskml.risk.accounts import Collateral
from riskml.units import to_us


def listed_entry(
    listed: Mapping[str, Sequence[dict[str, Any]]], default: Sequence[dict[str, Any]], name: str, ts: int
) -> dict[str, Any]:
    """The entry of a name in force at ``ts``; the default's for a name that has none yet.

    Raises
    ------
    ConfigError : ``ts`` lies before the name's entries and before the default's.
    """
    begun = [entry for entry in listed.get(name, ()) if to_us(entry["valid_from"]) <= ts]
    return valid_at(begun or default, ts)


def holding_prices(collateral: Collateral, prices: Mapping[str, float] | None) -> Float1D:
    """Price of one unit of every collateral row [n_collateral], USD.

    A live price of ``chain:asset`` goes before one of ``asset``, then the book's price. A live price that is
    not a positive number is ignored; a holding without any price is worth 0.
    """
    pairs, codes = collateral.holdings
    live = np.full(len(pairs), np.nan)
    for row, (chain, asset) in enumerate(pairs if prices else ()):
        for key in (f"{chain}:{asset}", asset):
            price = float((prices or {}).get(key, np.nan))
            if np.isfinite(price) and price > 0.0:
                live[row] = price
                break
    quoted = live[codes] if len(pairs) else np.empty(0)
    return np.nan_to_num(np.where(np.isnan(quoted), collateral.price_usd, quoted))
