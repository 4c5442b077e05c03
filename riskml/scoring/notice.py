"""Notice of a margin call: where maintenance is going, and when it gets there.

The rate limit of the policy lets what maintenance asks of 1 USD rise slowly; the scale that it rises to is
known from the first bar on. A venue tells its accounts both, so that they can act before the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Float1D
from riskml.risk.accounts import AccountBook
from riskml.risk.collateral import Conditions
from riskml.risk.margin import hours_to_target
from riskml.risk.outcome import Decisions
from riskml.scoring.requirements import Requirements
from riskml.units import format_us


@dataclass(frozen=True)
class MarginNotice:
    """Maintenance now and announced, of every account of a book."""

    account_id: AnyArray
    """[n_accounts]."""
    ts: int
    """Microseconds UTC."""
    equity_usd: Float1D
    maintenance_margin_usd: Float1D
    """[n_accounts] what is asked now."""
    announced_usd: Float1D
    """[n_accounts] what will be asked while forecast, prices and book stay as they are; never less."""
    hours: Float1D
    """[n_accounts] until then, of the slowest of the account's markets; 0 = nothing is announced."""
    call_usd: Float1D
    """[n_accounts] what its pools will be short of by then; 0 = nothing. Equity set aside for an isolated
    position pays for no other pool, so it is not ``announced_usd`` less ``equity_usd``."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready dict per account; ``hours`` is None where the limit never lets it get there."""
        return [
            {
                "account_id": str(self.account_id[row]),
                "ts": format_us(self.ts),
                "maintenance_margin_usd": float(self.maintenance_margin_usd[row]),
                "announced_usd": float(self.announced_usd[row]),
                "hours": float(self.hours[row]) if np.isfinite(self.hours[row]) else None,
                "call_usd": float(self.call_usd[row]),
            }
            for row in range(len(self.account_id))
        ]


def margin_notice(
    requirements: Requirements,
    book: AccountBook,
    ts: int,
    prices: Mapping[str, float],
    *,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> MarginNotice:
    """Notices of a book at ``ts``; nothing is remembered. Parameters as of :meth:`Requirements.decide`."""

    def asked(announced: bool) -> Decisions:
        return requirements.decide(
            book,
            ts,
            prices,
            conditions=conditions,
            liquidity_usd=liquidity_usd,
            remember=False,
            announced=announced,
        )

    scales = requirements.scales
    if scales is None:
        raise AssertionError("take a bar before giving notice")
    decided, coming = asked(announced=False), asked(announced=True)
    now, then = decided.maintenance_margin_usd, coming.maintenance_margin_usd
    of_market = hours_to_target(scales.forecast, scales.maintenance, scales.target, requirements.policy)
    known = dict(zip(scales.forecast.markets, np.nan_to_num(of_market, posinf=np.inf).tolist(), strict=True))
    pairs, codes = book.positions.markets
    of_pair = np.asarray([known.get(symbol, 0.0) for _, symbol in pairs])
    hours = np.zeros(len(book))
    held = np.flatnonzero(book.positions.size != 0.0)
    if len(held):
        np.maximum.at(hours, book.positions.account[held], of_pair[codes[held]])
    rising = then > now
    return MarginNotice(
        book.account_id,
        ts,
        decided.equity_usd,
        now,
        np.maximum(then, now),
        np.where(rising, hours, 0.0),
        np.maximum(decided.maintenance_shortfall_usd, coming.maintenance_shortfall_usd),
    )
