"""Where positions settle and collateral lies: what has to be moved, and what cannot offset what.

Collateral on a chain serves the venues that settle there at once; for any other venue it has to be
transferred first. While nothing is known of a chain (its data are older than their limit) nobody can
say that a transfer would arrive, so collateral there offsets no position that settles elsewhere.
"""

from __future__ import annotations

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Bool2D, Float1D
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook, encode
from riskml.risk.sums import sum_by


def venue_home(venue: str) -> str:
    """The chain on which a venue settles; "" for one that credits every chain (facts/chains.toml)."""
    return str(load_facts("chains")["venue_home"].get(venue, ""))


def settlement_chain(venue: AnyArray) -> AnyArray:
    """:func:`venue_home` of every row [n]."""
    venues, codes = encode(venue, venue)
    homes = np.asarray([venue_home(name) for name, _ in venues], dtype=object)
    return homes[codes] if len(venues) else homes


def remote_rows(book: AccountBook) -> Bool1D:
    """Collateral [n_collateral] on a chain that is home to none of the account's venues.

    False for an account with a venue that has no home, which credits every chain.
    """
    pairs, codes = book.collateral.holdings
    settles, anywhere = _settled_chains(book, pairs)
    account = book.collateral.account
    if not pairs:
        return np.zeros(len(account), dtype=np.bool_)
    needs_home: Bool1D = np.any(settles, axis=1).astype(np.bool_)
    return np.asarray(needs_home[account] & ~anywhere[account] & ~settles[account, codes])


def settled_elsewhere(book: AccountBook, exposure_usd: Float1D) -> Float1D:
    """Part of the account's gross exposure that settles on another chain than the collateral's.

    Parameters
    ----------
    exposure_usd : [n_positions] signed.

    Returns
    -------
    float64 : [n_collateral] in [0, 1]; 1 for an account without exposure, whose collateral could only
        serve positions yet to come. A venue without a home settles elsewhere.
    """
    pairs, codes = book.collateral.holdings
    account, positions = book.collateral.account, book.positions
    if not pairs:
        return np.zeros(len(account))
    chains = sorted({chain for chain, _ in pairs})
    home = settlement_chain(positions.venue)
    size = np.abs(exposure_usd)
    gross = sum_by(positions.account, size, len(book))
    here = np.stack(
        [sum_by(positions.account, np.where(home == chain, size, 0.0), len(book)) for chain in chains], axis=1
    )
    column = np.asarray([chains.index(chain) for chain, _ in pairs], dtype=np.int64)[codes]
    total = gross[account]
    share = np.divide(here[account, column], total, out=np.zeros(len(account)), where=total > 0.0)
    return np.asarray(np.clip(1.0 - share, 0.0, 1.0))


def withheld_value(
    book: AccountBook, exposure_usd: Float1D, value_usd: Float1D, stale_chain: Bool1D
) -> Float1D:
    """Value of each collateral row that does not count towards the initial requirement [n_collateral], USD.

    All of it on a stale chain but the part that backs what settles on that same chain, which is taken by
    share of gross exposure. 0 on a chain that is heard of.
    """
    if not stale_chain.any():
        return np.zeros(len(value_usd))
    return np.asarray(np.where(stale_chain, value_usd * settled_elsewhere(book, exposure_usd), 0.0))


def _settled_chains(book: AccountBook, pairs: list[tuple[str, str]]) -> tuple[Bool2D, Bool1D]:
    """Whether an account has a position that settles on a holding's chain [n_accounts, n_pairs + 1], last
    any other chain; and whether it has one on a venue without a home."""
    home = settlement_chain(book.positions.venue)
    settles = np.zeros((len(book), len(pairs) + 1), dtype=np.bool_)
    for column, (chain, _) in enumerate(pairs):
        settles[book.positions.account[home == chain], column] = True
    settles[book.positions.account[home != ""], -1] = True
    anywhere = np.zeros(len(book), dtype=np.bool_)
    anywhere[book.positions.account[home == ""]] = True
    return settles, anywhere


def on_chain(book: AccountBook, chain: str) -> tuple[Bool1D, Bool1D, Bool1D]:
    """Positions, collateral and orders that are settled, held or placed on a chain."""
    return (
        np.asarray(settlement_chain(book.positions.venue) == chain),
        np.asarray(book.collateral.chain == chain),
        np.asarray(settlement_chain(book.orders.venue) == chain),
    )


def book_chains(book: AccountBook) -> list[str]:
    """Every chain on which a position of the book settles or collateral of it lies, sorted."""
    settled = set(settlement_chain(book.positions.venue).tolist())
    held = {chain for chain, _ in book.collateral.holdings[0]}
    return sorted((settled | held) - {""})
