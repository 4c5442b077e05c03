"""dYdX v4: what liquidation takes, at which price, how fast, and when withdrawals wait.

::

    bankruptcy quote = -dN - floor(TNC |dMM| / MM)
    fill price       = (N - clamp(adjustment (1 - TNC / MM), 0, 1) spread MM_position) / size
    per block        : max(min(least, |N|), floor(|N| portion)) of a position,
                       a notional and an insurance loss per subaccount
    withdrawals wait : block - last seen < gate   (a negative subaccount, or an outage of five minutes)

in the integers of :mod:`riskml.risk.engines.dydx_v4` and with its roundings. Source:
dydxprotocol/v4-chain, x/clob/keeper/liquidations.go (commit 014223b) and x/subaccounts/keeper/subaccount.go
(the withdrawal gate); the parameters are dated facts. Steps of order sizes and ticks of prices are left out:
a limit here is in notional and a price is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from riskml.errors import DataError
from riskml.facts import load_facts
from riskml.risk.engines.dydx_v4 import ONE_MILLION, Risk, parameters


@dataclass(frozen=True)
class LiquidationLimits:
    """How much one block may liquidate, at which price, and when withdrawals wait; quote quantums."""

    min_position_notional_liquidated: int
    """A position may always be liquidated by this much, or fully if it is smaller."""
    max_position_portion_liquidated_ppm: int
    max_notional_liquidated: int
    """Per subaccount and block."""
    max_quantums_insurance_lost: int
    """Per subaccount and block."""
    bankruptcy_adjustment_ppm: int
    """How fast the fill price moves away from the oracle price as TNC / MM falls."""
    spread_to_maintenance_margin_ratio_ppm: int
    """Largest distance of the fill price from the oracle price, as a part of maintenance."""
    withdrawal_gate_blocks: int

    def position_notional(self, notional_quantums: int) -> tuple[int, int]:
        """Least and most notional of a position that one block may liquidate."""
        size = abs(notional_quantums)
        least = min(self.min_position_notional_liquidated, size)
        return least, max(least, size * self.max_position_portion_liquidated_ppm // ONE_MILLION)

    def subaccount_notional(self, liquidated_quantums: int) -> int:
        """Notional that the block may still liquidate of a subaccount of which it liquidated some."""
        return _rest("notional liquidated", self.max_notional_liquidated, liquidated_quantums)

    def subaccount_insurance(self, lost_quantums: int) -> int:
        """Insurance that the block may still pay for a subaccount for which it paid some."""
        return _rest("insurance lost", self.max_quantums_insurance_lost, lost_quantums)

    def liquidatable_notional(self, notional_quantums: int, liquidated_quantums: int = 0) -> int:
        """Most notional of a position that the block may liquidate: both limits together."""
        _, most = self.position_notional(notional_quantums)
        return min(most, self.subaccount_notional(liquidated_quantums))

    def withdrawals_blocked(self, block: int, last_negative: int | None, last_outage: int | None) -> bool:
        """Whether withdrawals and transfers wait.

        Parameters
        ----------
        block : the current height.
        last_negative, last_outage : height at which a subaccount with negative net collateral, or a chain
            outage of five minutes, was last seen; None = never.

        Raises
        ------
        DataError : one of them was seen after ``block``.
        """
        ages = [block - seen for seen in (last_negative, last_outage) if seen is not None]
        if ages and min(ages) < 0:
            raise DataError(f"block {block} is before block {block - min(ages)}, which was seen already")
        return any(age < self.withdrawal_gate_blocks for age in ages)


def liquidation_limits(ts: int) -> LiquidationLimits:
    """Liquidation limits in force at ``ts``."""
    return LiquidationLimits(**parameters(load_facts("dydx_v4_tiers")["liquidations"], ts))


def bankruptcy_quantums(total: Risk, before: Risk, after: Risk) -> int:
    """Quote received (> 0) or paid for closing a part of a position that uses up its share of collateral.

    Rounded up, so that a close at this price costs the insurance fund nothing.

    Parameters
    ----------
    total : the subaccount.
    before, after : the position, before and after the part is closed.

    Raises
    ------
    DataError : a subaccount without maintenance, or a position whose maintenance grows.
    """
    change = after.maintenance - before.maintenance
    if total.maintenance <= 0 or change > 0:
        raise DataError("a bankruptcy price needs a position with maintenance, of which a part is closed")
    share = total.net_collateral * abs(change) // total.maintenance
    return before.net_collateral - after.net_collateral - share


def fill_price(total: Risk, position: Risk, base_quantums: int, limits: LiquidationLimits) -> Fraction:
    """Limit price of a liquidation order, quote quantums per base quantum, exact.

    Parameters
    ----------
    total : the subaccount.
    position : the whole position, of the signed size ``base_quantums``.

    Raises
    ------
    DataError : a subaccount without maintenance, or a size of 0.
    """
    if total.maintenance <= 0 or base_quantums == 0:
        raise DataError("a fill price needs a position with maintenance and a size other than 0")
    rating = Fraction(limits.bankruptcy_adjustment_ppm, ONE_MILLION) * (
        1 - Fraction(total.net_collateral, total.maintenance)
    )
    bounded = min(max(rating, Fraction(0)), Fraction(1))
    spread = Fraction(limits.spread_to_maintenance_margin_ratio_ppm, ONE_MILLION) * position.maintenance
    return (position.net_collateral - bounded * spread) / base_quantums


def _rest(name: str, limit: int, used: int) -> int:
    if not 0 <= used <= limit:
        raise DataError(f"{name} has to be in [0, {limit}] quantums, found {used}")
    return limit - used
