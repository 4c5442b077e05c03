"""Binance Portfolio Margin: the unified maintenance margin ratio (uniMMR) and its bands.

::

    equity      = sum over assets of min(x p c, x p)      x = balance - loan + open profit, p = index price,
                                                          c = collateral rate: a debt (x < 0) counts in full
    MM          = sum of |position| price rate_n - cum_n  bracket n: floor_n < notional <= floor_{n+1}
    cum_n       = cum_{n-1} + floor_n (rate_n - rate_{n-1}) ;  cum_0 = 0
    uniMMR      = equity / MM

    uniMMR <= 150 %  a reminder ;  <= 120 %  only orders that reduce ;  <= 105 %  liquidation

Source: Binance FAQ "Portfolio Margin maintenance margin ratio calculation" (5e33af8e6ac04d57a1d0a3398e0a0752)
and "What is the uniMMR and how is it calculated" (4868b2f1aa6c4d08af973328462bb0bd). The figures are in
``facts/binance_pm_rules.toml``, which says of each whether it is documented or riskml's own cautious choice.

``maintenance_usd`` is MM and ``equity_usd`` the equity above, so that their quotient is the uniMMR: the venue
liquidates at 105 % of MM, not at MM (:func:`bands`). The program asks for no initial margin; ``initial_usd``
is the equity above which it accepts new orders, 120 % of MM.

Missing inputs, never in the account's favour: an unlisted perpetual has brackets at or above every documented
table of a small coin; an unlisted asset has the documented lowest rate; an unpriced asset and an isolated
margin that is not published count nothing. Cash and profits are in the quote asset (USDT) at 1 USD and net
with holdings of it. Not in a book, and so not counted: the maintenance of loans of other assets. Not counted
either: the open loss of orders, which the FAQ takes off the equity since November 2024, and the tiered rates
of the Pro program since September 2024. Not stated by the source: a MM of 0; taken as an infinite uniMMR, of
the sign of the equity. Beyond the last bracket, where positions are not allowed, its rate goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from riskml.arrays import Float1D, Int1D
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account
from riskml.risk.engines.lookup import holding_prices, listed_entry
from riskml.risk.sums import sum_by

_FACTS = "binance_pm_rules"


class Band(IntEnum):
    """What the venue does with an account, mildest first."""

    FREE = 0
    WARN = 1
    """A reminder to add funds or reduce."""
    NO_NEW_ORDERS = 2
    """Only orders that reduce are accepted."""
    LIQUIDATE = 3


@dataclass(frozen=True)
class BandRules:
    """Edges of the bands, in whole percent of the maintenance margin; each belongs to the worse band."""

    warn_percent: int
    no_new_orders_percent: int
    liquidate_percent: int
    quote_asset: str
    """Asset of cash and of the perpetuals' profits."""

    @classmethod
    def at(cls, ts: int) -> BandRules:
        """The rules in force at ``ts``; ConfigError before the program."""
        entry = valid_at(load_facts(_FACTS)["bands"], ts)
        names = ("warn_percent", "no_new_orders_percent", "liquidate_percent", "quote_asset")
        return cls(*(entry[name] for name in names))


@dataclass(frozen=True)
class Brackets:
    """Maintenance brackets of one perpetual."""

    floor_usd: Float1D
    """[n_brackets] notional above which the bracket holds; the first is 0."""
    rate: Float1D
    """[n_brackets] maintenance rate."""

    @classmethod
    def at(cls, symbol: str, ts: int) -> Brackets:
        """The brackets of a symbol in force at ``ts``; the default's for an unlisted one."""
        facts = load_facts(_FACTS)
        rows = listed_entry(facts["brackets"], facts["brackets_default"], symbol, ts)["brackets"]
        floor, rate = ([float(row[name]) for row in rows] for name in ("floor_usd", "rate"))
        return cls(np.asarray(floor), np.asarray(rate))

    @property
    def cum_usd(self) -> Float1D:
        """Quick amount of each bracket [n_brackets], which makes the maintenance continuous."""
        return np.cumsum(self.floor_usd * np.diff(self.rate, prepend=self.rate[0]))

    def maintenance_usd(self, notional_usd: Float1D) -> Float1D:
        """Maintenance of each notional [n]; its upper end belongs to a bracket."""
        notional = np.abs(notional_usd)
        bracket = np.maximum(np.searchsorted(self.floor_usd, notional, side="left") - 1, 0)
        return np.asarray(notional * self.rate[bracket] - self.cum_usd[bracket])


def collateral_rate(asset: str, ts: int) -> float:
    """Share of an asset's value that counts, at ``ts``; the default's for an unlisted one."""
    facts = load_facts(_FACTS)
    return float(listed_entry(facts["collateral"], facts["collateral_default"], asset, ts)["rate"])


def adjusted_value_usd(value_usd: Float1D, rate: Float1D) -> Float1D:
    """``min(x p c, x p)`` of each holding's net value [n]: what is owned is discounted, a debt is not."""
    return np.asarray(np.minimum(value_usd * rate, value_usd))


def uni_mmr(equity_usd: Float1D, maintenance_usd: Float1D) -> Float1D:
    """Equity over maintenance of each account [n]; without maintenance infinite, of the equity's sign.

    NaN handling: an unknown equity or maintenance gives NaN.
    """
    equity, maintenance = np.asarray(equity_usd, np.float64), np.asarray(maintenance_usd, np.float64)
    without = np.where(equity < 0.0, -np.inf, np.where(np.isnan(equity), np.nan, np.inf))
    return np.divide(equity, maintenance, out=without, where=maintenance != 0.0)


def bands(equity_usd: Float1D, maintenance_usd: Float1D, rules: BandRules) -> Int1D:
    """Band of each account [n], as :class:`Band`.

    NaN handling: an unknown equity or maintenance is in the worst band.
    """
    percent = 100.0 * np.asarray(equity_usd, np.float64)
    maintenance = np.asarray(maintenance_usd, np.float64)
    found = np.full(percent.shape, int(Band.FREE), dtype=np.int64)
    for band, edge in (
        (Band.WARN, rules.warn_percent),
        (Band.NO_NEW_ORDERS, rules.no_new_orders_percent),
        (Band.LIQUIDATE, rules.liquidate_percent),
    ):
        # Multiplied out, so that an edge is met exactly. An account without maintenance is at an edge of 0.
        above = np.where(maintenance == 0.0, percent >= 0.0, percent > edge * maintenance)
        found[~above] = band
    return found


class BinancePMEngine:
    """Maintenance of Binance's brackets against the account's whole collateral; positions do not net."""

    name = "binance_pm"

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements of a book at ``ts``, all positions counted, whatever their venue."""
        rules = BandRules.at(ts)
        positions = book.positions
        mark, _ = current_marks(positions, prices)
        notional = np.abs(positions.size * mark)
        pairs, codes = positions.markets
        maintenance = np.zeros_like(notional)
        for row, (_, symbol) in enumerate(pairs):
            mine = codes == row
            maintenance[mine] = Brackets.at(symbol, ts).maintenance_usd(notional[mine])
        total = sum_by_account(book, maintenance)
        profit = positions.size * (mark - positions.entry_price)
        isolated = np.where(positions.isolated, np.nan_to_num(positions.isolated_margin_usd), 0.0)
        quote = book.cash_usd + sum_by_account(book, profit + isolated)
        equity = _equity_usd(book, quote, holding_prices(book.collateral, prices), rules.quote_asset, ts)
        return EngineMargins(total * rules.no_new_orders_percent / 100, total, maintenance, equity)


def _equity_usd(book: AccountBook, quote: Float1D, price: Float1D, quote_asset: str, ts: int) -> Float1D:
    """Equity of each account [n_accounts]; an asset nets over its chains, the quote asset also with cash."""
    rows, (pairs, codes) = book.collateral, book.collateral.holdings
    assets = list(dict.fromkeys([quote_asset, *(asset for _, asset in pairs)]))
    place = np.asarray([assets.index(asset) for _, asset in pairs], dtype=np.int64)[codes]
    accounts = np.arange(len(book))
    keys = np.concatenate([accounts, rows.account]) * len(assets)
    keys += np.concatenate([np.zeros_like(accounts), place])  # the quote asset has place 0
    holding, inverse = np.unique(keys, return_inverse=True)
    value = sum_by(inverse, np.concatenate([quote, rows.amount * price]), len(holding))
    rate = np.asarray([collateral_rate(asset, ts) for asset in assets])
    return sum_by(holding // len(assets), adjusted_value_usd(value, rate[holding % len(assets)]), len(book))
