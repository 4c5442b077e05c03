"""What portfolio engines share: which positions net, whose parameters hold, what collateral counts.

One venue is one netting set: positions of one account net only at one venue and on one underlying, and an
isolated position nets with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from riskml.arrays import Float1D, Int1D
from riskml.facts import valid_at
from riskml.risk.accounts import AccountBook, Positions
from riskml.risk.engines.lookup import holding_prices
from riskml.risk.sums import sum_by
from riskml.units import to_us

DEFAULT = "default"
"""Market name of the entry for markets that no other entry names."""


@dataclass(frozen=True)
class NettingSets:
    """Positions that a venue nets: one account, one venue, one underlying; isolated ones stand alone."""

    member: Int1D
    """[n_positions] set of each position."""
    account: Int1D
    """[n_sets] row of the account."""
    pool: Int1D
    """[n_sets] which sets stand together in one account at one venue, from 0."""
    underlying: Int1D
    """[n_sets] place in ``names``."""
    names: tuple[str, ...]
    """Distinct underlyings."""

    def __len__(self) -> int:
        return len(self.account)

    def total(self, values: Float1D) -> Float1D:
        """Sum of a per-position value over each set [n_sets]."""
        return sum_by(self.member, values, len(self))

    def by_account(self, values: Float1D, n_accounts: int) -> Float1D:
        """Sum of a per-set value over each account [n_accounts]."""
        return sum_by(self.account, values, n_accounts)

    def split(self, values: Float1D, notional_usd: Float1D) -> Float1D:
        """A per-set value over its positions by |notional| [n_positions]; equal parts where all are 0."""
        weight = np.abs(notional_usd)
        empty = self.total(weight)[self.member] == 0.0
        weight = np.where(empty, 1.0, weight)
        return np.asarray(values[self.member] * weight / self.total(weight)[self.member])

    def rates(self, rate_of: Mapping[str, float]) -> Float1D:
        """A rate per underlying, for each set [n_sets]."""
        return np.array([rate_of[name] for name in self.names], dtype=np.float64)[self.underlying]


def underlying(symbol: str) -> str:
    """The asset that a symbol is on: what stands before the quote.

    >>> underlying("BTC"), underlying("BTC-USDC"), underlying("kPEPE")
    ('BTC', 'BTC', 'kPEPE')
    """
    return symbol.split("-", 1)[0]


def netting_sets(positions: Positions) -> NettingSets:
    """Group positions by account, venue and underlying; isolated positions are sets of their own."""
    pairs, codes = positions.markets
    venues = {venue: code for code, venue in enumerate(dict.fromkeys(venue for venue, _ in pairs))}
    names = {name: code for code, name in enumerate(dict.fromkeys(underlying(symbol) for _, symbol in pairs))}
    venue = np.array([venues[venue] for venue, _ in pairs], dtype=np.int64)
    name = np.array([names[underlying(symbol)] for _, symbol in pairs], dtype=np.int64)
    pool = positions.account * len(venues) + venue[codes]
    key = pool * len(names) + name[codes]
    # An isolated position gets numbers that no other position has.
    own = np.arange(len(codes), dtype=np.int64)
    pool = np.where(positions.isolated, pool.max(initial=0) + 1 + own, pool)
    key = np.where(positions.isolated, key.max(initial=0) + 1 + own, key)
    _, first, member = np.unique(key, return_index=True, return_inverse=True)
    _, pool = np.unique(pool[first], return_inverse=True)
    return NettingSets(member, positions.account[first], pool, name[codes][first], tuple(names))


def market_entry(entries: list[dict[str, Any]], market: str, ts: int) -> dict[str, Any]:
    """The entry in force whose ``markets`` name a market, else the one of ``default``.

    Raises
    ------
    ConfigError : no entry is in force at ``ts``, not even the default.
    """
    named = [
        entry for entry in entries if market in entry["markets"] and to_us(entry["valid_from"]) <= to_us(ts)
    ]
    return valid_at(named or [entry for entry in entries if DEFAULT in entry["markets"]], ts)


def weighed_equity(
    book: AccountBook,
    mark: Float1D,
    prices: Mapping[str, float] | None,
    weight: Mapping[str, float],
    stable_asset: str,
) -> Float1D:
    """Account value with collateral weighed by asset, USD [n_accounts].

    Cash + weight x value of collateral + open profit + margin set aside for isolated positions. An asset
    without a weight and an unpriced one count nothing, the stablecoin at most 1 USD.

    Parameters
    ----------
    mark : [n_positions] current price of each position.
    prices : live prices; they re-mark collateral by ``chain:asset`` or ``asset``.

    NaN handling: an unpublished isolated margin counts nothing.
    """
    positions, rows, n_accounts = book.positions, book.collateral, len(book)
    price = holding_prices(rows, prices)
    price = np.where(rows.asset == stable_asset, np.minimum(price, 1.0), price)
    counted = np.array([weight.get(asset, 0.0) for asset in rows.asset.tolist()], dtype=np.float64)
    profit = positions.size * (mark - positions.entry_price)
    aside = np.where(positions.isolated, np.nan_to_num(positions.isolated_margin_usd), 0.0)
    collateral = sum_by(rows.account, counted * rows.amount * price, n_accounts)
    return np.asarray(book.cash_usd + collateral + sum_by(positions.account, profit + aside, n_accounts))
