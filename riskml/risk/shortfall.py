"""What an account lacks, pool by pool: equity set aside in one pool pays for no other.

An account's equity and its requirements are sums over its pools, for display. Whether they are *met* is asked
of every pool: an isolated position is closed for its own loss however rich the account is, and its margin
backs nothing else. So a shortfall is summed over the pools that have one, and no pool's spare is set off::

    shortfall = sum over pools of max(requirement - equity, 0)        each requirement rounded up to cents
    spare = min over pools of max(equity - initial margin, 0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D
from riskml.risk.assess import INITIAL, MAINTENANCE
from riskml.risk.margin import CENT, round_up_cents
from riskml.risk.pools import Pools

LEAST_DEBT_USD = 0.5 * CENT
"""What a cross pool that holds nothing has to owe for it to be a debt; less is the rounding of a margin that
was taken out of it."""


@dataclass(frozen=True)
class Shortfalls:
    """Requirements against equity by account [n_accounts], USD."""

    initial_usd: Float1D
    maintenance_usd: Float1D
    spare_usd: Float1D
    """Least equity of a pool above its initial margin; 0 where one is short."""
    owes: Bool1D
    """The cross pool's equity is negative."""
    ruined: Bool1D
    """It is, and holds no position: nothing that may be closed brings it back."""


def find_shortfalls(pools: Pools, requirement_usd: Float2D, n_accounts: int) -> Shortfalls:
    """Hold every pool's equity against its requirements.

    Parameters
    ----------
    requirement_usd : [2 or more (initial, maintenance ...), n_pools], not rounded, initial >= maintenance.

    Returns
    -------
    Shortfalls : a pool without positions and orders has a requirement of 0, and a shortfall where it owes;
        an isolated one without position counts for nothing.
    """
    initial, maintenance = (round_up_cents(requirement_usd[row]) for row in (INITIAL, MAINTENANCE))
    idle = (initial <= 0.0) & (pools.gross_usd <= 0.0)
    cross = np.arange(len(pools.account)) < n_accounts
    equity = np.where(cross, pools.equity_usd, np.maximum(pools.equity_usd, 0.0))
    equity = np.where(idle & (np.abs(equity) < LEAST_DEBT_USD), np.maximum(equity, 0.0), equity)
    spare = np.full(n_accounts, np.inf)
    counts = cross | ~idle
    np.minimum.at(spare, pools.account[counts], np.maximum(equity - initial, 0.0)[counts])
    owes = equity[:n_accounts] < 0.0
    return Shortfalls(
        pools.by_account(np.maximum(initial - equity, 0.0), n_accounts),
        pools.by_account(np.maximum(maintenance - equity, 0.0), n_accounts),
        spare,
        owes,
        owes & (pools.gross_usd[:n_accounts] <= 0.0),
    )
