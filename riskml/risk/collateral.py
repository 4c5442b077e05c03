"""Effective collateral: ``amount x price x (1 - haircut)``.

The haircut of a pegged asset covers issuer, peg deviation, the chain's stress and the time that a
transfer takes. An asset with a moving price is a *long leg* of its value in the account law as
well, so its haircut covers the same things and never its volatility.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Float1D, Int1D
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook, encode
from riskml.risk.policy import MarginPolicy
from riskml.units import HOUR, SECOND, to_us

PEG_TOLERANCE = 0.002
"""Deviations from redemption value within this are bid-ask noise (stablecoins quote at 1-20 bps)."""


@dataclass(frozen=True)
class Conditions:
    """What is known about chains and pegs at the time of a decision; empty = nothing unusual."""

    chain_stress: Mapping[str, float] = field(default_factory=dict)
    """Per chain, the score of :func:`chain_stress_score` in [0, 1]."""
    peg_price_usd: Mapping[str, float] = field(default_factory=dict)
    """Per pegged asset, its market price."""
    redemption_usd: Mapping[str, float] = field(default_factory=dict)
    """Per pegged asset, what redeeming it yields; NaN or absent = not known, the market counts."""


@dataclass(frozen=True)
class Valuation:
    """Collateral rows [n_collateral] of a book, valued."""

    value_usd: Float1D
    """After haircut, >= 0."""
    haircut: Float1D
    market: Int1D
    """Row in the list of symbols given to :func:`value_collateral`, -1 for one that does not move."""
    unpriced: Bool1D
    unknown_asset: Bool1D
    remote: Bool1D
    """On a chain from which it has to be transferred first."""
    off_peg: Bool1D
    stressed_chain: Bool1D


def chain_stress_score(outflow_z: float, peg_deviation: float, age_us: float, staleness_us: float) -> float:
    """Stress of a chain in [0, 1]; monotone in each of its inputs.

    ``1 - (1 - flow)(1 - peg)(1 - age)`` with flow = logistic(outflow_z - 3) (net outflow in standard
    deviations of its history), peg = deviation / 5 % and age = 1 for data beyond its staleness limit,
    rising from half of it. A score, not a probability: there are too few outages to learn one.

    NaN handling: an unknown flow or deviation adds nothing; an unknown age counts as stale.
    """
    flow = 0.0 if math.isnan(outflow_z) else 1.0 / (1.0 + math.exp(-max(min(outflow_z - 3.0, 50.0), -50.0)))
    peg = 0.0 if math.isnan(peg_deviation) else min(max(peg_deviation / 0.05, 0.0), 1.0)
    relative = math.inf if math.isnan(age_us) else age_us / max(staleness_us, 1.0)
    age = min(max(2.0 * relative - 1.0, 0.0), 1.0)
    return 1.0 - (1.0 - flow) * (1.0 - peg) * (1.0 - age)


def staleness_us(chain: str, ts: int) -> int:
    """Age from which data about a chain is stale, microseconds; 3 days for a chain without facts."""
    entry = chain_facts(chain, ts)
    return 72 * HOUR if entry is None else int(entry["staleness_s"]) * SECOND


def chain_facts(chain: str, ts: int) -> dict[str, Any] | None:
    """The chain's facts in force at ``ts``; None for an unknown chain, or before its first entry."""
    entries = load_facts("chains")["chain"].get(chain, ())
    begun = [entry for entry in entries if to_us(entry["valid_from"]) <= ts]
    return valid_at(begun, ts) if begun else None


def value_collateral(
    book: AccountBook,
    symbols: Mapping[str, int],
    prices: Mapping[str, float],
    policy: MarginPolicy,
    conditions: Conditions,
    ts: int,
) -> Valuation:
    """Value every collateral row of a book.

    Parameters
    ----------
    symbols : row of each market symbol in the caller's list; a moving asset whose market is not in it
        has row ``len(symbols)`` (the market without a forecast).
    prices : live prices by symbol; they re-mark assets that trade under their own name.
    ts : time of the decision, selects the facts in force.

    NaN handling: a NaN or zero price counts as unpriced, worth 0.
    """
    rows = book.collateral
    pairs, codes = rows.holdings
    facts = [_HoldingFacts.of(chain, asset, symbols, policy, conditions, ts) for chain, asset in pairs]

    def per_row(values: list[float]) -> Float1D:
        return np.asarray(values, dtype=np.float64)[codes] if values else np.empty(0)

    live = per_row([prices.get(item.live_symbol, math.nan) for item in facts])
    price = np.where(np.isfinite(live) & (live > 0.0), live, rows.price_usd)
    pegged = per_row([float(item.pegged) for item in facts]) > 0.0
    peg_price = per_row([item.peg_price for item in facts])
    # A pegged asset is worth its redemption value where that is intact, and never more than 1.
    price = np.where(pegged, np.minimum(np.where(np.isnan(peg_price), price, peg_price), 1.0), price)
    unpriced = ~(np.isfinite(price) & (price > 0.0)) & (rows.amount > 0.0)
    remote = _remote_rows(book, pairs, codes)
    haircut = per_row([item.haircut for item in facts]) + np.where(
        remote, per_row([item.transfer_haircut for item in facts]), 0.0
    )
    haircut = np.clip(haircut, 0.0, 1.0)
    return Valuation(
        rows.amount * np.where(unpriced | ~np.isfinite(price), 0.0, price) * (1.0 - haircut),
        haircut,
        per_row([float(item.market) for item in facts]).astype(np.int64),
        unpriced,
        per_row([float(item.unknown) for item in facts]) > 0.0,
        remote,
        pegged & (np.nan_to_num(price, nan=1.0) < 1.0 - PEG_TOLERANCE),
        per_row([item.chain_stress for item in facts]) > 0.5,
    )


@dataclass(frozen=True)
class _HoldingFacts:
    """What the fact files say about one (chain, asset)."""

    haircut: float
    transfer_haircut: float
    market: int
    live_symbol: str
    pegged: bool
    peg_price: float
    unknown: bool
    chain_stress: float

    @classmethod
    def of(
        cls,
        chain: str,
        asset: str,
        symbols: Mapping[str, int],
        policy: MarginPolicy,
        conditions: Conditions,
        ts: int,
    ) -> _HoldingFacts:
        fact = load_facts("assets")["asset"].get(asset)
        stress = float(conditions.chain_stress.get(chain, 0.0))
        base = policy.unknown_asset_haircut if fact is None else float(fact["base_haircut"])
        symbol = "" if fact is None else str(fact.get("market", ""))
        facts = chain_facts(chain, ts)
        redemption = conditions.redemption_usd.get(asset, math.nan)
        market_price = conditions.peg_price_usd.get(asset, math.nan)
        return cls(
            haircut=base + policy.chain_stress_haircut * stress,
            # How long a transfer from a chain without facts takes is not known: the cap.
            transfer_haircut=policy.remote_haircut_cap
            if facts is None
            else min(
                policy.remote_haircut_per_hour * float(facts["transfer_s"]) / 3600.0,
                policy.remote_haircut_cap,
            ),
            market=symbols.get(symbol, len(symbols)) if symbol else -1,
            live_symbol=symbol if fact is not None and fact.get("live_price", False) else "",
            pegged=fact is not None and fact.get("pegged_to") == "USD",
            peg_price=market_price if math.isnan(redemption) else redemption,
            unknown=fact is None,
            chain_stress=stress,
        )


def _remote_rows(book: AccountBook, pairs: list[tuple[str, str]], codes: Int1D) -> Bool1D:
    """Rows on a chain that is home to none of the account's venues (where those have a home)."""
    home = load_facts("chains")["venue_home"]
    venues, venue_codes = encode(book.positions.venue, book.positions.venue)
    chain_of = [home.get(venue, "") for venue, _ in venues]
    chains = sorted({chain for chain, _ in pairs} | set(chain_of))
    settles = np.zeros((len(book), len(chains)), dtype=np.bool_)
    anywhere = np.zeros(len(book), dtype=np.bool_)
    needs_home = np.zeros(len(book), dtype=np.bool_)
    for code, chain in enumerate(chain_of):
        holders = book.positions.account[venue_codes == code]
        if chain:
            settles[holders, chains.index(chain)] = True
            needs_home[holders] = True
        else:
            anywhere[holders] = True
    account = book.collateral.account
    column = (
        np.asarray([chains.index(chain) for chain, _ in pairs], dtype=np.int64)[codes] if pairs else codes
    )
    return np.asarray(needs_home[account] & ~anywhere[account] & ~settles[account, column])
