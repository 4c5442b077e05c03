"""What the risk engine gets back: one row per account, in columns.

:func:`riskml.risk.decisions.decide` makes them from a book, a forecast and a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import AnyArray, Float1D, Float2D, Int1D
from riskml.risk.margin import round_up_cents
from riskml.risk.reasons import reason_names
from riskml.units import format_us

ACTIONS = ("normal", "watch", "restrict", "deleverage")
"""Names of ``Decisions.action``: 0 normal, 1 watch, 2 restrict, 3 deleverage."""
UNWITHHELD = 2
"""Column of ``Decisions.unrounded_usd``, after ``INITIAL`` and ``MAINTENANCE`` of
:mod:`riskml.risk.assess`: initial margin with nothing withheld for a stale chain."""


@dataclass(frozen=True)
class Contributions:
    """Each account's risk by market, compressed by row (CSR)."""

    indptr: Int1D
    """[n_accounts + 1]; account a owns entries indptr[a] to indptr[a + 1]."""
    symbol: AnyArray
    """[n_entries] market symbol; volatile collateral is an entry of its market."""
    share: Float1D
    """[n_entries] Euler share of the account's scale; sums to 1 per account, a hedge is negative."""
    exposure_usd: Float1D
    """[n_entries] signed net exposure."""

    def of(self, row: int) -> list[tuple[str, float, float]]:
        """(symbol, share, exposure_usd) of one account, largest share first."""
        span = slice(int(self.indptr[row]), int(self.indptr[row + 1]))
        entries = zip(self.symbol[span], self.share[span], self.exposure_usd[span], strict=True)
        return sorted(((str(s), float(c), float(e)) for s, c, e in entries), key=lambda entry: -entry[1])


@dataclass(frozen=True)
class Decisions:
    """Risk and requirement of every account of a book, in the book's order."""

    account_id: AnyArray
    """[n_accounts] str."""
    ts: int
    """Microseconds UTC."""
    horizons: tuple[str, ...]
    equity_usd: Float1D
    """Cash + collateral after haircuts + open profit + margin of isolated positions."""
    collateral_usd: Float1D
    """Collateral after haircuts."""
    initial_margin_usd: Float1D
    """Needed to open or add; rounded up to cents, never below maintenance."""
    maintenance_margin_usd: Float1D
    """Needed to keep; rounded up to cents."""
    liquidation_probability: Float2D
    """[n_accounts, n_horizons]; of several pools, the likeliest."""
    distance: Float2D
    """[n_accounts, n_horizons] scales to liquidation; 1e6 = cannot be reached."""
    risk_score: Float1D
    """0-100: ``100 (1 + log10(p) / 6)`` of the longest horizon's p; 1e-6 = 0, 1 % = 67, certain = 100."""
    action: NDArray[np.uint8]
    """0 normal, 1 watch, 2 restrict, 3 deleverage."""
    reasons: NDArray[np.uint64]
    """Bits; names in :data:`riskml.risk.REASONS`."""
    contributions: Contributions
    barrier: AnyArray
    """[n_accounts] whose maintenance liquidates: venue, riskml or an engine's name."""
    barrier_margin_usd: Float1D
    """[n_accounts] that maintenance."""
    unrounded_usd: Float2D
    """[n_accounts, 3] requirements before rounding: initial, maintenance, and the initial one without what is
    withheld for a stale chain (:func:`riskml.risk.settlement.withheld_value`)."""
    initial_shortfall_usd: Float1D
    """[n_accounts] what pools lack to their initial margin, summed over those that lack something. Not equity
    less initial margin: the spare equity of an isolated position pays for no other pool."""
    maintenance_shortfall_usd: Float1D
    """[n_accounts] the same to maintenance."""
    initial_spare_usd: Float1D
    """[n_accounts] what the pool nearest to its initial margin has above it; 0 where one is short."""
    policy_hash: str = ""
    bundle_id: str = ""
    engine: str = "riskml"

    def __len__(self) -> int:
        return len(self.account_id)

    @property
    def deleverage_margin_usd(self) -> Float1D:
        """Initial margin that closing positions may restore [n_accounts], rounded up to cents.

        ``initial_margin_usd`` without what is withheld for a stale chain: a feed that falls silent stops
        new risk, and liquidates nobody.
        """
        return np.maximum(round_up_cents(self.unrounded_usd[:, UNWITHHELD]), self.maintenance_margin_usd)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready dict per account, horizons spelled out (``p_liq_8h``, ``distance_8h``)."""
        return [self._row(row) for row in range(len(self))]

    def _row(self, row: int) -> dict[str, Any]:
        result: dict[str, Any] = {
            "account_id": str(self.account_id[row]),
            "ts": format_us(self.ts),
            "equity_usd": float(self.equity_usd[row]),
            "collateral_usd": float(self.collateral_usd[row]),
            "initial_margin_usd": float(self.initial_margin_usd[row]),
            "maintenance_margin_usd": float(self.maintenance_margin_usd[row]),
            "initial_shortfall_usd": float(self.initial_shortfall_usd[row]),
            "maintenance_shortfall_usd": float(self.maintenance_shortfall_usd[row]),
            "initial_spare_usd": float(self.initial_spare_usd[row]),
        }
        for column, horizon in enumerate(self.horizons):
            result[f"p_liq_{horizon}"] = float(self.liquidation_probability[row, column])
        for column, horizon in enumerate(self.horizons):
            result[f"distance_{horizon}"] = float(self.distance[row, column])
        result |= {
            "risk_score": float(self.risk_score[row]),
            "action": ACTIONS[int(self.action[row])],
            "reasons": reason_names(int(self.reasons[row])),
            "contributions": [
                {"symbol": symbol, "share": share, "exposure_usd": exposure}
                for symbol, share, exposure in self.contributions.of(row)
            ],
            "barrier": str(self.barrier[row]),
            "barrier_margin_usd": float(self.barrier_margin_usd[row]),
            "policy_hash": self.policy_hash,
            "bundle_id": self.bundle_id,
        }
        return result
