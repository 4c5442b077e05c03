"""Pools and legs: what nets with what, in columns.

A *pool* is what is liquidated together: the cross positions of an account with its collateral, or
one isolated position with the margin set aside for it. A *leg* is a pool's net exposure to one
market, over venues and moving collateral.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool1D, Float1D, Int1D
from riskml.risk.accounts import AccountBook
from riskml.risk.collateral import Valuation
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class Pools:
    """Pools of a book; pool a < n_accounts is account a's cross pool, isolated ones follow."""

    account: Int1D
    """[n_pools] row of the account."""
    equity_usd: Float1D
    """[n_pools] cash + collateral after haircuts + open profit, or isolated margin + profit."""
    gross_usd: Float1D
    """[n_pools] sum of |position exposure|."""
    position_pool: Int1D
    """[n_positions]."""
    exposure_usd: Float1D
    """[n_positions] signed, at current marks."""
    margin_unknown: Bool1D
    """[n_pools] isolated, and its margin is not published: it gets its part of the equity."""

    def by_account(self, values: Float1D, n_accounts: int) -> Float1D:
        """Sum a per-pool value over each account [n_accounts]."""
        return sum_by(self.account, values, n_accounts)

    def account_equity(self, n_accounts: int) -> Float1D:
        """Equity of each account [n_accounts]: an isolated position loses its margin at most."""
        kept = np.maximum(self.equity_usd, 0.0)
        kept[:n_accounts] = self.equity_usd[:n_accounts]
        return self.by_account(kept, n_accounts)


def make_pools(book: AccountBook, mark: Float1D, valuation: Valuation) -> Pools:
    """Split a book into pools.

    Parameters
    ----------
    mark : [n_positions] current price of each position.
    valuation : the collateral, valued; it belongs to the cross pools.
    """
    positions, n_accounts = book.positions, len(book)
    exposure = positions.size * mark
    profit = positions.size * (mark - positions.entry_price)
    isolated = np.flatnonzero(positions.isolated)
    pool = positions.account.copy()
    pool[isolated] = n_accounts + np.arange(len(isolated))
    account = np.concatenate([np.arange(n_accounts), positions.account[isolated]])
    gross = sum_by(pool, np.abs(exposure), len(account))
    equity = sum_by(pool, profit, len(account))
    collateral = sum_by(book.collateral.account, valuation.value_usd, n_accounts)
    equity[:n_accounts] += book.cash_usd + collateral
    margin = positions.isolated_margin_usd[isolated]
    unknown = np.isnan(margin)
    if unknown.any():
        owner = account[n_accounts:]
        # At entry prices: a mark that moves takes nothing from the cross pool, and gives it nothing.
        entered = np.abs(positions.size * positions.entry_price)
        total = sum_by(positions.account, entered, n_accounts)
        part = np.divide(entered[isolated], total[owner], out=np.zeros(len(isolated)), where=total[owner] > 0)
        margin = np.where(unknown, np.maximum(equity[owner], 0.0) * part, margin)
        equity[:n_accounts] -= sum_by(owner, np.where(unknown, margin, 0.0), n_accounts)
    equity[n_accounts:] += margin
    return Pools(
        account.astype(np.int64),
        equity,
        gross,
        pool.astype(np.int64),
        exposure,
        np.concatenate([np.zeros(n_accounts, dtype=np.bool_), unknown]),
    )


@dataclass(frozen=True)
class Rows:
    """Exposures before netting: positions first, then moving collateral."""

    pool: Int1D
    market: Int1D
    """Row in the book's list of symbols: the forecast's markets, then those without a forecast."""
    exposure_usd: Float1D
    is_position: Bool1D
    rank: Int1D
    """Moving collateral: 0, 1 ... = the pool's largest rows, RANKED_ASSETS = all others; positions -1."""

    def keep(self, mask: Bool1D) -> Rows:
        """Only some of the rows."""
        return Rows(
            self.pool[mask],
            self.market[mask],
            self.exposure_usd[mask],
            self.is_position[mask],
            self.rank[mask],
        )


RANKED_ASSETS = 5
"""Rows of moving collateral of a pool whose every combination is assessed (2^5 variants at most), which
is what makes a further row never hurt; of a pool with more, the others are all kept or all dropped."""


def make_rows(pools: Pools, position_market: Int1D, valuation: Valuation, collateral_account: Int1D) -> Rows:
    """Positions and moving collateral of pools that have positions, as exposures by market."""
    held = pools.exposure_usd != 0.0
    moving = (
        (valuation.market >= 0) & (valuation.value_usd > 0.0) & (pools.gross_usd[collateral_account] > 0.0)
    )
    pool, market = collateral_account[moving], valuation.market[moving]
    value = valuation.value_usd[moving]
    return Rows(
        np.concatenate([pools.position_pool[held], pool]),
        np.concatenate([position_market[held], market]),
        np.concatenate([pools.exposure_usd[held], value]),
        np.concatenate([np.ones(int(held.sum()), dtype=np.bool_), np.zeros(len(pool), dtype=np.bool_)]),
        np.concatenate([np.full(int(held.sum()), -1, dtype=np.int64), _value_ranks(pool, value)]),
    )


def _value_ranks(pool: Int1D, value: Float1D) -> Int1D:
    """Rank of each row within its pool by value, largest 0, at most RANKED_ASSETS."""
    if not len(pool):
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((-value, pool))
    owner = pool[order]
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    start = np.repeat(first, np.diff(np.r_[first, len(owner)]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.minimum(np.arange(len(order)) - start, RANKED_ASSETS)
    return rank


@dataclass(frozen=True)
class CollateralVariant:
    """A book without some of its moving collateral."""

    fits: Bool1D
    """[n_pools] pools that have this variant."""
    rows: Rows
    """What stays, of those pools."""
    removed_usd: Float1D
    """[n_pools] value of what is left out."""


def collateral_variants(rows: Rows, n_pools: int) -> Iterator[CollateralVariant]:
    """Every subset of each pool's moving collateral but the whole, ``2^RANKED_ASSETS`` at most."""
    if not np.any(rows.rank >= 0):
        return
    assets = np.zeros(n_pools, dtype=np.int64)
    np.maximum.at(assets, rows.pool, rows.rank + 1)
    for kept in range(2**RANKED_ASSETS):
        ranked = np.minimum(assets, RANKED_ASSETS)
        # A variant is one of a pool's own subsets; all of its assets is the full assessment.
        fits = (assets > 0) & (kept < 2**ranked) & ~((kept == 2**ranked - 1) & (assets <= RANKED_ASSETS))
        if not fits.any():
            continue
        stays = (rows.rank < 0) | (
            (rows.rank < RANKED_ASSETS) & ((kept >> np.maximum(rows.rank, 0)) & 1 == 1)
        )
        gone = fits[rows.pool] & ~stays
        removed = sum_by(rows.pool, rows.exposure_usd * gone, n_pools)
        yield CollateralVariant(fits, rows.keep(fits[rows.pool] & stays), removed)


@dataclass(frozen=True)
class Legs:
    """Net exposure by pool and market, sorted by pool, then market."""

    indptr: Int1D
    """[n_pools + 1]."""
    pool: Int1D
    symbol: Int1D
    """[n_legs] row in the book's list of symbols: two unknown markets never net with each other."""
    market: Int1D
    """[n_legs] row of the market in the law; all unknown symbols share the last one."""
    net_usd: Float1D
    """[n_legs] signed."""
    position_usd: Float1D
    """[n_legs] sum of |position exposure|: what maintenance is asked for."""
    hidden_usd: Float1D
    """[n_legs] exposure that netting within the market removed."""


def net_legs(rows: Rows, n_pools: int, n_symbols: int, n_markets: int) -> Legs:
    """Net exposures within each pool and symbol; symbols from ``n_markets`` on have no forecast."""
    key, inverse = np.unique(rows.pool * n_symbols + rows.market, return_inverse=True)
    size = len(key)
    net = sum_by(inverse, rows.exposure_usd, size)
    gross = sum_by(inverse, np.abs(rows.exposure_usd), size)
    held = sum_by(inverse, np.abs(rows.exposure_usd) * rows.is_position, size)
    pool, symbol = key // n_symbols, key % n_symbols
    indptr = np.searchsorted(pool, np.arange(n_pools + 1))
    return Legs(
        indptr.astype(np.int64), pool, symbol, np.minimum(symbol, n_markets), net, held, gross - np.abs(net)
    )
