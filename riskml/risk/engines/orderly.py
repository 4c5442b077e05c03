"""Orderly: margin ratios that grow with the 4/5 power of a position's notional.

::

    IMR = max(1 / max account leverage, base IMR, f |N|^0.8)        initial     = |N| IMR
    MMR = max(base MMR, (base MMR / base IMR) f |N|^0.8)            maintenance = |N| MMR

An account is liquidated when its collateral / sum |N| is below its maintenance ratio, which is collateral
below the sum of |N| MMR. Source: orderly.network/docs, perpetual-futures/margin-leverage-and-pnl; the ratios
and factors are dated facts.

What is missing or differs, never in the account's favour unless said so:

- A market that is not in the facts has the strictest row of the published table.
- The account's own maximum leverage is a choice that can only raise its initial margin, and is not in the
  book. Not stated, it counts as the highest that the market allows, 1 / base IMR (as the Hyperliquid engine
  takes the highest leverage of a tier).
- A ratio above 1 is left as it is: no cap is stated by the source.
- Left out, which asks for less than the venue does: open orders, which it adds to the notional of the initial
  ratio.
- Collateral is the book's own (``equity_usd`` is None): weights of assets other than USDC were not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Float1D
from riskml.errors import ConfigError
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account


@dataclass(frozen=True)
class MarketRatios:
    """Margin ratios of one market."""

    base_imr: float
    base_mmr: float
    imr_factor: float
    """What ``|N|^notional_power`` is multiplied by."""
    notional_power: float

    def maintenance_ratio(self, notional_usd: Float1D) -> Float1D:
        """Maintenance / notional of each notional [n]."""
        share = self.base_mmr / self.base_imr
        return np.asarray(np.maximum(self.base_mmr, share * self._growing_ratio(notional_usd)))

    def initial_ratio(self, notional_usd: Float1D, account_leverage: Float1D) -> Float1D:
        """Initial margin / notional of each notional [n], at the maximum leverage of its account [n]."""
        ratio = np.maximum(self.base_imr, self._growing_ratio(notional_usd))
        return np.asarray(np.maximum(1.0 / account_leverage, ratio))

    def _growing_ratio(self, notional_usd: Float1D) -> Float1D:
        return np.asarray(self.imr_factor * np.abs(notional_usd) ** self.notional_power)


def market_ratios(symbol: str, ts: int) -> MarketRatios:
    """The ratios of a symbol that were in force at ``ts``; the default for an unlisted one."""
    facts = load_facts("orderly_margins")
    entry = valid_at(facts["market"].get(symbol, facts["default"]), ts)
    return MarketRatios(
        float(entry["base_imr"]),
        float(entry["base_mmr"]),
        float(entry["imr_factor"]),
        float(valid_at(facts["rule"], ts)["notional_power"]),
    )


class OrderlyEngine:
    """Requirements by Orderly's ratios; every position stands alone, there are no offsets.

    Parameters
    ----------
    account_leverage : the maximum leverage that an account chose, by account_id.

    Raises
    ------
    ConfigError : a leverage below 1 or not a number.
    """

    name = "orderly"

    def __init__(self, account_leverage: Mapping[str, float] | None = None) -> None:
        self._leverage = dict(account_leverage or {})
        for account, leverage in self._leverage.items():
            if not 1.0 <= leverage < float("inf"):
                raise ConfigError(
                    f"the maximum leverage of '{account}' is {leverage!r}",
                    fix="state a number from 1 on, or leave it out",
                )

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements of a book at ``ts``, all positions counted, whatever their venue."""
        positions = book.positions
        mark, _ = current_marks(positions, prices)
        notional = np.abs(positions.size * mark)
        leverage = self._account_leverage(book)[positions.account]
        maintenance, initial = np.zeros_like(notional), np.zeros_like(notional)
        pairs, codes = positions.markets
        for row, (_, symbol) in enumerate(pairs):
            ratios, mine = market_ratios(symbol, ts), codes == row
            maintenance[mine] = notional[mine] * ratios.maintenance_ratio(notional[mine])
            initial[mine] = notional[mine] * ratios.initial_ratio(notional[mine], leverage[mine])
        return EngineMargins(sum_by_account(book, initial), sum_by_account(book, maintenance), maintenance)

    def _account_leverage(self, book: AccountBook) -> Float1D:
        """Maximum leverage of every account [n_accounts]; inf = not stated, the market's limit holds."""
        chosen = [self._leverage.get(account, np.inf) for account in book.account_id.tolist()]
        return np.asarray(chosen, dtype=np.float64)
