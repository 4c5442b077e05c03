"""Effective collateral: ``amount x price x (1 - haircut)``; :mod:`riskml.risk.haircuts` has the formulas.

A pegged asset is valued at its peg, and its haircut covers the distance that may be added to the deviation.
An asset with a moving price is a *long leg* of its value in the account law as well, so its haircut
covers the distance over the time of its transfer only. Both are cut for issuer, chain, transfer and size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Float1D, Int1D
from riskml.facts import load_facts, valid_at
from riskml.risk.accounts import AccountBook
from riskml.risk.haircuts import (
    PEG_TOLERANCE,
    margin_period_h,
    peg_haircut,
    size_haircut,
    transfer_haircut,
)
from riskml.risk.policy import MarginPolicy
from riskml.risk.settlement import remote_rows
from riskml.risk.sums import sum_by
from riskml.units import HOUR, SECOND, to_us

UNKNOWN_TRANSFER_H = 168.0
"""Hours of a transfer from a chain without facts: a rollup's canonical exit, the longest that is known."""


@dataclass(frozen=True)
class Conditions:
    """What is known about chains and pegs at the time of a decision; empty = nothing unusual."""

    chain_stress: Mapping[str, float] = field(default_factory=dict)
    """Per chain, the score of :func:`chain_stress_score` in [0, 1]."""
    peg_price_usd: Mapping[str, float] = field(default_factory=dict)
    """Per pegged asset, its market price: of the venue that holds, without its half-spread."""
    redemption_usd: Mapping[str, float] = field(default_factory=dict)
    """Per pegged asset, what redeeming it yields; NaN or absent = not known, the market counts."""
    peg_scale: Mapping[str, float] = field(default_factory=dict)
    """Per pegged asset, the scale of its deviation's change over a day
    (:func:`riskml.risk.haircuts.deviation_scale`), fraction; never counts below facts/assets.toml's."""
    peg_age_h: Mapping[str, float] = field(default_factory=dict)
    """Per pegged asset, hours since its price; absent = 0."""
    chain_age_us: Mapping[str, float] = field(default_factory=dict)
    """Per chain, age of the newest data about it, microseconds; beyond the staleness limit of
    facts/chains.toml the chain is stale. Absent = fresh, inf = never heard of."""
    transfer_delay_h: Mapping[str, float] = field(default_factory=dict)
    """Per chain, hours that a transfer takes beyond the usual; absent = 0, NaN = no end known."""
    asset_liquidity_usd: Mapping[str, float] = field(default_factory=dict)
    """Per asset, what its own market can absorb, USD; absent = the policy's ``unknown_liquidity_usd``."""
    settle_price_usd: Mapping[str, float] = field(default_factory=dict)
    """Per asset, what profit that is paid in it is worth where no peg of it is known, as a stress assumes;
    absent = 1. It values no collateral: a row's own price does."""

    def peg_value_usd(self, asset: str) -> float:
        """Redemption value of a pegged asset where it is known, else its market price; NaN = neither."""
        redemption = self.redemption_usd.get(asset, math.nan)
        return self.peg_price_usd.get(asset, math.nan) if math.isnan(redemption) else redemption


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
    stale_chain: Bool1D
    """Nothing new is known of its chain: it offsets no position settled elsewhere
    (:func:`riskml.risk.settlement.withheld_value`)."""
    size_charged: Bool1D
    """Its size costs something."""


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
    *,
    margin_loss: Float1D | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> Valuation:
    """Value every collateral row of a book.

    Parameters
    ----------
    symbols : row of each market symbol in the caller's list; a moving asset whose market is not in it
        has row ``len(symbols)`` (the market without a forecast).
    prices : live prices by symbol; they re-mark assets that trade under their own name.
    ts : time of the decision, selects the facts in force.
    margin_loss : [n_markets + 1] what 1 USD long in each market loses at the initial level and horizon, last
        the market without a forecast; None = no forecast, the policy's unknown scale for all.
    liquidity_usd : per market symbol, what it can absorb; there the account law charges a moving asset's leg
        for closing, so that its size is not charged here again.

    NaN handling: a NaN or zero price counts as unpriced, worth 0; NaN stress of a chain counts as 1, a NaN
    age as stale, a NaN scale or delay as no knowledge at all (haircut 1).
    """
    rows = book.collateral
    pairs, codes = rows.holdings
    facts = [
        _HoldingFacts.of(chain, asset, symbols, policy, conditions, ts, margin_loss) for chain, asset in pairs
    ]

    def per_row(values: list[float]) -> Float1D:
        return np.asarray(values, dtype=np.float64)[codes] if values else np.empty(0)

    live = per_row([prices.get(item.live_symbol, math.nan) for item in facts])
    price = np.where(np.isfinite(live) & (live > 0.0), live, rows.price_usd)
    pegged = per_row([float(item.pegged) for item in facts]) > 0.0
    peg_price = per_row([item.peg_price for item in facts])
    # A pegged asset is worth its redemption value where that is intact, and never more than 1.
    price = np.where(pegged, np.minimum(np.where(np.isnan(peg_price), price, peg_price), 1.0), price)
    unpriced = ~(np.isfinite(price) & (price > 0.0)) & (rows.amount > 0.0)
    remote = remote_rows(book)
    haircut = np.where(
        remote,
        per_row([item.remote_haircut for item in facts]),
        per_row([item.haircut for item in facts]),
    )
    haircut = np.clip(haircut, 0.0, 1.0)
    value = rows.amount * np.where(unpriced | ~np.isfinite(price), 0.0, price) * (1.0 - haircut)
    depth = [
        item.liquidity(asset, conditions, liquidity_usd or {})
        for item, (_, asset) in zip(facts, pairs, strict=True)
    ]
    size = size_haircut(_held_of_asset(book, value, pairs, codes), per_row(depth), policy)
    return Valuation(
        value * (1.0 - size),
        1.0 - (1.0 - haircut) * (1.0 - size),
        per_row([float(item.market) for item in facts]).astype(np.int64),
        unpriced,
        per_row([float(item.unknown) for item in facts]) > 0.0,
        remote,
        pegged & (np.nan_to_num(price, nan=1.0) < 1.0 - PEG_TOLERANCE),
        per_row([item.chain_stress for item in facts]) > 0.5,
        (per_row([float(item.stale_chain) for item in facts]) > 0.0) & (rows.amount > 0.0),
        size > 0.0,
    )


@dataclass(frozen=True)
class _HoldingFacts:
    """What the fact files say about one (chain, asset)."""

    haircut: float
    """At the venue: everything but transfer and size."""
    remote_haircut: float
    """The same where it has to be transferred first."""
    market: int
    symbol: str
    live_symbol: str
    pegged: bool
    peg_price: float
    unknown: bool
    chain_stress: float
    stale_chain: bool

    @classmethod
    def of(
        cls,
        chain: str,
        asset: str,
        symbols: Mapping[str, int],
        policy: MarginPolicy,
        conditions: Conditions,
        ts: int,
        margin_loss: Float1D | None,
    ) -> _HoldingFacts:
        fact = load_facts("assets")["asset"].get(asset)
        stress = float(conditions.chain_stress.get(chain, 0.0))
        stress = 1.0 if math.isnan(stress) else min(max(stress, 0.0), 1.0)
        base = policy.unknown_asset_haircut if fact is None else float(fact["base_haircut"])
        symbol = "" if fact is None else str(fact.get("market", ""))
        pegged = fact is not None and fact.get("pegged_to") == "USD"
        market = symbols.get(symbol, len(symbols)) if symbol else -1
        transfer_h = _transfer_h(chain, conditions, ts)
        home = base + policy.chain_stress_haircut * stress
        remote = home + _bridge_haircut(transfer_h, policy)
        if fact is not None and pegged:
            scale = np.maximum(conditions.peg_scale.get(asset, 0.0), fact["daily_deviation"])
            hours = margin_period_h(policy) + np.maximum(conditions.peg_age_h.get(asset, 0.0), 0.0)
            home += peg_haircut(float(scale), float(hours), policy)
            remote += peg_haircut(float(scale), float(hours) + transfer_h, policy)
        elif symbol:
            loss = math.nan if margin_loss is None else float(margin_loss[min(market, len(margin_loss) - 1)])
            remote += transfer_haircut(loss, transfer_h, policy)
        return cls(
            haircut=home,
            remote_haircut=remote,
            market=market,
            symbol=symbol,
            live_symbol=symbol if fact is not None and fact.get("live_price", False) else "",
            pegged=pegged,
            peg_price=conditions.peg_value_usd(asset),
            unknown=fact is None,
            chain_stress=stress,
            stale_chain=is_stale_chain(chain, conditions, ts),
        )

    def liquidity(self, asset: str, conditions: Conditions, market_usd: Mapping[str, float]) -> float:
        """What selling the asset is held against, USD; inf = charged elsewhere, NaN = unknown."""
        if not math.isnan(market_usd.get(self.symbol, math.nan)):
            return math.inf  # the leg of the account law pays for closing
        return float(conditions.asset_liquidity_usd.get(asset, math.nan))


def is_stale_chain(chain: str, conditions: Conditions, ts: int) -> bool:
    """Whether the newest data about a chain is older than its staleness limit; of unknown age it is.

    Where any chain is watched, one that nothing is known of (a misspelt name, say) is of unknown age.
    """
    age = float(conditions.chain_age_us.get(chain, np.nan if conditions.chain_age_us else 0.0))
    return math.isnan(age) or age > staleness_us(chain, ts)


def _transfer_h(chain: str, conditions: Conditions, ts: int) -> float:
    """Hours until collateral on a chain can be at a venue elsewhere; NaN = no end known."""
    facts = chain_facts(chain, ts)
    usual = UNKNOWN_TRANSFER_H if facts is None else float(facts["transfer_s"]) / 3600.0
    return usual + float(np.maximum(conditions.transfer_delay_h.get(chain, 0.0), 0.0))


def _bridge_haircut(transfer_h: float, policy: MarginPolicy) -> float:
    cost = policy.remote_haircut_per_hour * transfer_h
    return policy.remote_haircut_cap if math.isnan(cost) else min(cost, policy.remote_haircut_cap)


def _held_of_asset(
    book: AccountBook, value_usd: Float1D, pairs: list[tuple[str, str]], codes: Int1D
) -> Float1D:
    """Per row, all that its account holds of its asset, over chains: what would be sold together."""
    assets = sorted({asset for _, asset in pairs})
    of_pair = np.asarray([assets.index(asset) for _, asset in pairs], dtype=np.int64)
    key = book.collateral.account * max(len(assets), 1) + (of_pair[codes] if pairs else codes)
    groups, place = np.unique(key, return_inverse=True)
    return sum_by(place, value_usd, len(groups))[place]
