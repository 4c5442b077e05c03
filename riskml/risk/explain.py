"""Why a decision is what it is: reasons, actions and contributions of a scored book."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Int1D
from riskml.risk.accounts import AccountBook
from riskml.risk.actions import choose_actions
from riskml.risk.assess import Assessment, MarketLaw
from riskml.risk.collateral import Valuation
from riskml.risk.forecast import Forecast
from riskml.risk.outcome import Contributions
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import Legs, Pools
from riskml.risk.reasons import reason_bit
from riskml.units import HOUR

STALE_SNAPSHOT_US = HOUR
"""Age of a book's snapshot from which a decision carries ``stale-snapshot``."""


@dataclass(frozen=True)
class Scene:
    """What the reasons and the output need beside the assessments."""

    book: AccountBook
    forecast: Forecast
    policy: MarginPolicy
    pools: Pools
    valuation: Valuation
    market: MarketLaw
    legs: Legs
    missing_price: Bool1D
    symbols: Mapping[str, int]
    """Row of each symbol of the book."""


def flag(reasons: AnyArray, name: str, mask: Bool1D, account: Int1D | None = None) -> None:
    """Set a reason's bit for accounts, or for the accounts of flagged rows."""
    if not mask.any():
        return
    bit = np.uint64(reason_bit(name))
    if account is None:
        reasons[mask] |= bit
    else:
        reasons[np.unique(account[mask])] |= bit


def add_equity_reasons(
    reasons: AnyArray, owes: Bool1D, below_initial: Bool1D, below_maintenance: Bool1D
) -> None:
    """What an account lacks in any of its pools (:mod:`riskml.risk.shortfall`); all [n_accounts]."""
    flag(reasons, "negative-equity", owes)
    flag(reasons, "equity-below-initial", below_initial)
    flag(reasons, "equity-below-maintenance", below_maintenance)


def add_book_reasons(reasons: AnyArray, scene: Scene, exposed: Bool1D, ts: int) -> None:
    book, value = scene.book, scene.valuation
    account = book.collateral.account
    backed = np.bincount(account, minlength=len(book)) > 0
    flag(reasons, "no-position", ~exposed)
    flag(reasons, "missing-price", scene.missing_price, book.positions.account)
    flag(reasons, "no-collateral", ~backed)
    for name, mask in (
        ("unpriced-collateral", value.unpriced),
        ("unknown-asset", value.unknown_asset),
        ("remote-collateral", value.remote),
        ("peg-deviation", value.off_peg),
        ("chain-stress", value.stressed_chain),
        ("stale-chain", value.stale_chain),
        ("collateral-size", value.size_charged),
        ("volatile-collateral", value.market >= 0),
    ):
        flag(reasons, name, mask, account)
    if book.ts is not None and ts - book.ts > STALE_SNAPSHOT_US:
        flag(reasons, "stale-snapshot", np.ones(len(book), dtype=np.bool_))


def add_pool_reasons(reasons: AnyArray, scene: Scene, full: Assessment, adding: Bool1D) -> None:
    pools, n_accounts, binding = scene.pools, len(scene.book), full.binding
    alone = np.arange(len(pools.account)) >= n_accounts
    for name, mask in (
        ("isolated-pool", alone),
        ("isolated-margin-unknown", pools.margin_unknown),
        ("static-floor", binding.floored),
        ("offset-cap", binding.offset_capped),
        ("correlation-stress", binding.correlation_stressed),
        ("concentration", binding.concentrated),
        ("size-against-liquidity", binding.illiquid),
        ("open-orders", adding),
    ):
        flag(reasons, name, mask, pools.account)


def add_market_reasons(reasons: AnyArray, scene: Scene, notes: Mapping[str, Bool1D]) -> Bool1D:
    """Reasons of the markets that an account holds or orders; returns whose is stressed [n_accounts]."""
    forecast, orders = scene.forecast, scene.book.orders
    account = scene.pools.account[scene.legs.pool]
    leg_market = scene.legs.market
    adds = ~orders.reduce_only & (orders.size != 0.0)
    if adds.any():
        rows = np.asarray([scene.symbols[name] for name in orders.symbol[adds]], dtype=np.int64)
        account = np.concatenate([account, orders.account[adds]])
        leg_market = np.concatenate([leg_market, np.minimum(rows, len(forecast.markets))])
    stress = np.nan_to_num(forecast.stress[:, scene.market.horizons[2]])
    in_stress = np.append(stress >= scene.policy.market_stress_probability, False)
    flag(reasons, "unknown-market", scene.market.fallback[leg_market], account)
    flag(reasons, "degraded-forecast", np.append(forecast.degraded, False)[leg_market], account)
    flag(reasons, "market-stress", in_stress[leg_market], account)
    for name, mask in notes.items():
        flag(reasons, name, np.append(mask, False)[leg_market], account)
    stressed = np.zeros(len(scene.book), dtype=np.bool_)
    stressed[account[in_stress[leg_market]]] = True
    return stressed


def add_actions(
    reasons: AnyArray,
    scene: Scene,
    probability: AnyArray,
    below_initial: Bool1D,
    below_maintenance: Bool1D,
    stressed: Bool1D,
    ts: int,
    previous: Mapping[str, tuple[int, int]],
) -> AnyArray:
    policy = scene.policy
    likely = probability[:, scene.market.horizons[2]]
    before = np.zeros(len(scene.book), dtype=np.uint8)
    held_h = np.full(len(scene.book), np.inf)
    for row, name in enumerate(scene.book.account_id if previous else ()):
        if name in previous:
            before[row], since = previous[name]
            held_h[row] = (ts - since) / HOUR
    action, held_up = choose_actions(
        likely, below_initial, below_maintenance, stressed, before, held_h, policy
    )
    flag(reasons, "probability-watch", likely >= policy.watch_probability)
    flag(reasons, "probability-restrict", likely >= policy.restrict_probability)
    flag(reasons, "probability-deleverage", likely >= policy.deleverage_probability)
    flag(reasons, "hysteresis", held_up)
    return action


def contributions(scene: Scene, full: Assessment, n_accounts: int) -> Contributions:
    """Shares by account: pools weigh by their scale in USD, so that an account's shares sum to 1."""
    legs, pools = scene.legs, scene.pools
    account = pools.account[legs.pool]
    order = np.argsort(account, kind="stable")
    total = np.maximum(pools.by_account(full.scale_usd, n_accounts), 1e-300)
    share = full.share * full.scale_usd[legs.pool] / total[account]
    names = np.asarray([*scene.symbols, "unknown"], dtype=object)
    indptr = np.searchsorted(account[order], np.arange(n_accounts + 1))
    return Contributions(
        indptr.astype(np.int64), names[legs.symbol][order], share[order], legs.net_usd[order]
    )
