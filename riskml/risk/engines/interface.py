"""What every margin engine returns, and how it values positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool1D, Float1D
from riskml.risk.accounts import AccountBook, Positions
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class EngineMargins:
    """Requirements per account, USD [n_accounts]."""

    initial_usd: Float1D
    maintenance_usd: Float1D
    position_maintenance_usd: Float1D
    """The same per position [n_positions], in the book's order."""


def current_marks(positions: Positions, prices: Mapping[str, float] | None) -> tuple[Float1D, Bool1D]:
    """Price of every position [n_positions] and where it had to be taken from its entry.

    A live price of ``venue:symbol`` goes before one of ``symbol``, then the book's mark, then the
    entry price. A live price that is not a positive number is ignored.
    """
    pairs, codes = positions.markets
    live = np.full(len(pairs), np.nan)
    for row, (venue, symbol) in enumerate(pairs if prices else ()):
        for key in (f"{venue}:{symbol}", symbol):
            price = float((prices or {}).get(key, np.nan))
            if np.isfinite(price) and price > 0.0:
                live[row] = price
                break
    quoted = live[codes] if len(pairs) else np.empty(0)
    mark = np.where(np.isnan(quoted), positions.mark_price, quoted)
    missing = np.isnan(mark)
    return np.where(missing, positions.entry_price, mark), missing


def sum_by_account(book: AccountBook, values: Float1D) -> Float1D:
    """Sum of a per-position value over each account [n_accounts]."""
    return sum_by(book.positions.account, values, len(book))
