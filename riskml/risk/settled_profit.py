"""Open profit that a venue pays in a stablecoin, where it has to make good what is lost elsewhere.

A venue pays open profit P in its settle asset. While that is worth x < 1 USD, P offsets what is lost in USD
or in another asset at x P only. So of an account whose positions settle in more than one asset, the positive
net open profit of its cross positions in each asset counts at that asset's value, and a net loss at par::

    withheld = sum over assets of max(P_asset, 0) (1 - x_asset)

It is 0 for an account whose positions all settle in one asset: its venues count profit, loss and requirement
in the same unit, whatever that is worth (docs/collateral.md). All of P counts as needed elsewhere: what the
other positions will need is not known before they are assessed. An isolated position pays for itself, so its
own profit is not cut, but it counts as a position elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from riskml.arrays import Float1D
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook
from riskml.risk.collateral import Conditions
from riskml.risk.haircuts import PEG_TOLERANCE
from riskml.risk.pool_books import with_known_margins
from riskml.risk.sums import sum_by
from riskml.units import to_us

UNKNOWN_SETTLE_ASSET = "USD"
"""What a venue without facts settles in: at par."""


def settle_asset(venue: str, symbol: str, ts: int) -> str:
    """What a venue pays the profit of a market in at ``ts``, microseconds (facts/venues.toml).

    >>> settle_asset("hyperliquid", "BTC", 0), settle_asset("binance", "BTC-USDC", 0)
    ('USDC', 'USDC')
    """
    _, _, quote = symbol.partition("-")  # a contract in another quote than its venue's keeps it in its name
    if quote:
        return quote
    facts = load_facts("venues")
    if venue in facts["venue"]:
        return str(facts["venue"][venue]["settle_asset"])
    begun = [entry for entry in facts["venue_settle"].get(venue, ()) if to_us(entry["valid_from"]) <= ts]
    return str(begun[-1]["settle_asset"]) if begun else UNKNOWN_SETTLE_ASSET


def settle_value(asset: str, conditions: Conditions) -> float:
    """What profit in an asset counts for, in [0, 1]; 1 within bid-ask noise, and where nothing is known."""
    value = conditions.peg_value_usd(asset)
    value = conditions.settle_price_usd.get(asset, math.nan) if math.isnan(value) else value
    return 1.0 if math.isnan(value) or value >= 1.0 - PEG_TOLERANCE else max(value, 0.0)


def withheld_profit(book: AccountBook, mark: Float1D, conditions: Conditions, ts: int) -> Float1D:
    """Open profit of each account that counts for nothing [n_accounts], USD >= 0; see the module.

    Parameters
    ----------
    mark : [n_positions] current price of each position.
    """
    positions, n_accounts = book.positions, len(book)
    withheld = np.zeros(n_accounts)
    if not (conditions.peg_price_usd or conditions.redemption_usd or conditions.settle_price_usd):
        return withheld
    pairs, codes = positions.markets
    of_pair = [settle_asset(venue, symbol, ts) for venue, symbol in pairs]
    assets = sorted(set(of_pair))
    value = np.asarray([settle_value(asset, conditions) for asset in assets])
    if len(assets) < 2 or (value == 1.0).all():
        return withheld
    asset = np.asarray([assets.index(name) for name in of_pair], dtype=np.int64)[codes]
    cell = positions.account * len(assets) + asset
    shape = (n_accounts, len(assets))
    held = sum_by(cell, positions.size != 0.0, n_accounts * len(assets)).reshape(shape) > 0.0
    cross = ~positions.isolated * positions.size * (mark - positions.entry_price)
    profit = sum_by(cell, cross, n_accounts * len(assets)).reshape(shape)
    several = held.sum(axis=1) > 1
    return np.asarray(np.where(several, np.maximum(profit, 0.0) @ (1.0 - value), 0.0))


def settle_profit(
    book: AccountBook,
    mark: Float1D,
    conditions: Conditions,
    ts: int,
    collateral_usd: Callable[[], Float1D],
) -> tuple[AccountBook, Float1D]:
    """The book with that profit gone, and how much it is [n_accounts] USD.

    The cross positions of the accounts that lose any are booked: at their current price, with their profit in
    the cash. So whatever then closes one of them pays no more, and doing it again changes nothing.

    Parameters
    ----------
    collateral_usd : gives the collateral after haircuts [n_accounts]; asked only where an account loses any,
        for the isolated margins that are not published and stay as they are.
    """
    withheld = withheld_profit(book, mark, conditions, ts)
    losing = withheld > 0.0
    if not losing.any():
        return book, withheld
    held = with_known_margins(
        replace(book, cash_usd=book.cash_usd - withheld), mark, collateral_usd(), losing
    )
    positions = held.positions
    booked = losing[positions.account] & ~positions.isolated
    profit = np.where(booked, positions.size * (mark - positions.entry_price), 0.0)
    cash = held.cash_usd + sum_by(positions.account, profit, len(book))
    changed = replace(
        positions,
        entry_price=np.where(booked, mark, positions.entry_price),
        funding_per_unit=np.where(booked, 0.0, positions.funding_per_unit),
    )
    return replace(held, cash_usd=cash, positions=changed), withheld
