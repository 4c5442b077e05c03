"""Hyperliquid's static leverage tiers.

``MM = N rate_n - deduction_n`` with ``rate_n = 1 / (2 max_leverage_n)`` and
``deduction_n = deduction_{n-1} + lower_n (rate_n - rate_{n-1})`` (continuous in N);
``IM = N / leverage``; an account is liquidated when equity < MM. Source: Hyperliquid's documentation
(margining, liquidations, margin tiers); the tiers are dated facts. What happens to an account that is
liquidated, the mark price and the other rules: :mod:`riskml.risk.engines.hyperliquid_liquidation`.

An unlisted symbol has the tiers of the small coins. The edge itself, which the documentation gives to neither
tier ("0-150M", ">150M"), belongs to the upper one, whose initial margin is larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from riskml.arrays import Float1D
from riskml.errors import DataError
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState, current_marks, sum_by_account


@dataclass(frozen=True)
class TierTable:
    """Maintenance tiers of one market."""

    lower_usd: Float1D
    """[n_tiers] notional from which the tier holds; the first is 0."""
    max_leverage: Float1D
    """[n_tiers]."""

    @property
    def rate(self) -> Float1D:
        """Maintenance rate [n_tiers]."""
        return np.asarray(0.5 / self.max_leverage)

    @property
    def deduction(self) -> Float1D:
        """Amount that makes maintenance continuous at each tier's lower bound [n_tiers]."""
        rate = self.rate
        return np.cumsum(self.lower_usd * np.diff(rate, prepend=rate[0]))

    def tier(self, notional_usd: Float1D) -> np.ndarray:
        """Tier of each notional [n] int64."""
        return np.searchsorted(self.lower_usd, np.abs(notional_usd), side="right") - 1

    def maintenance_usd(self, notional_usd: Float1D) -> Float1D:
        """Maintenance of each notional [n]."""
        tier = self.tier(notional_usd)
        return np.asarray(np.abs(notional_usd) * self.rate[tier] - self.deduction[tier])

    def initial_usd(self, notional_usd: Float1D) -> Float1D:
        """Initial margin at the highest leverage that the tier of the notional allows [n]."""
        return np.asarray(np.abs(notional_usd) / self.max_leverage[self.tier(notional_usd)])


def tier_table(symbol: str, ts: int) -> TierTable:
    """The tiers of a symbol that were in force at ``ts``; the default for an unlisted one."""
    facts = load_facts("hyperliquid_tiers")
    entry: dict[str, Any] = valid_at(facts["symbol"].get(symbol, facts["default"]), ts)
    tiers = entry["tiers"]
    return TierTable(
        np.asarray([tier["lower_usd"] for tier in tiers], dtype=np.float64),
        np.asarray([tier["max_leverage"] for tier in tiers], dtype=np.float64),
    )


def liquidation_price(
    price: float, size: float, margin_available: float, maintenance_leverage: float
) -> float:
    """Price at which one position's equity meets maintenance.

    ``p - side margin_available / |size| / (1 - side / maintenance_leverage)``.

    Parameters
    ----------
    price : current mark.
    size : base units, signed.
    margin_available : equity - maintenance at ``price``, USD.
    maintenance_leverage : 1 / maintenance rate of the position's tier.

    Returns
    -------
    float : <= 0 means that a long cannot be liquidated.

    Raises
    ------
    DataError : a size of 0.
    """
    if size == 0.0:
        raise DataError("a position of size 0 has no liquidation price")
    side = 1.0 if size > 0 else -1.0
    return price - side * margin_available / abs(size) / (1.0 - side / maintenance_leverage)


def liquidation_price_over_tiers(
    table: TierTable, price: Float1D, size: Float1D, margin_available: Float1D
) -> Float1D:
    """Price at which each position's equity meets maintenance, over all tiers of its market [n].

    The rule of :func:`liquidation_price`, with the maintenance leverage of the tier that holds *at the
    liquidation price*, as the documentation asks, and ``margin_available`` measured by that tier's line
    ``N rate_n - deduction_n``. Equity less maintenance is strictly monotone in the price and linear within a
    tier, so exactly one tier contains its own solution.

    Parameters
    ----------
    table : tiers of the market.
    price : [n] current mark.
    size : [n] base units, signed.
    margin_available : [n] account value (or isolated margin) less its whole maintenance at ``price``, USD;
        the prices of other positions stand still.

    Returns
    -------
    Float1D : [n]; <= 0 means that no price liquidates a long, or that every price liquidates a short.

    NaN handling: an unknown input gives NaN.

    Raises
    ------
    DataError : a size of 0.
    """
    size, price = np.asarray(size, dtype=np.float64), np.asarray(price, dtype=np.float64)
    if (size == 0.0).any():
        raise DataError(
            "a position of size 0 has no liquidation price", row=int(np.flatnonzero(size == 0.0)[0])
        )
    side, notional = np.sign(size), np.abs(size) * price
    funds = margin_available + table.maintenance_usd(np.nan_to_num(notional))
    # [n, n_tiers - 1]: equity less maintenance where the notional is a tier's lower bound; the solution lies
    # at or beyond a bound where a long is below its maintenance already, or a short not yet.
    bound = table.lower_usd[1:]
    excess = funds[:, None] + side[:, None] * (bound - notional[:, None]) - table.maintenance_usd(bound)
    tier = (side[:, None] * excess <= 0.0).sum(axis=1)
    rate, deduction = table.rate[tier], table.deduction[tier]
    available = funds - (notional * rate - deduction)
    return np.asarray(price - side * available / np.abs(size) / (1.0 - side * rate))


class HyperliquidEngine:
    """Requirements by Hyperliquid's tiers; every position stands alone, there are no offsets."""

    name = "hyperliquid"

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
        maintenance, initial = np.zeros_like(notional), np.zeros_like(notional)
        pairs, codes = positions.markets
        for row, (_, symbol) in enumerate(pairs):
            table = tier_table(symbol, ts)
            mine = codes == row
            maintenance[mine] = table.maintenance_usd(notional[mine])
            initial[mine] = table.initial_usd(notional[mine])
        return EngineMargins(sum_by_account(book, initial), sum_by_account(book, maintenance), maintenance)
