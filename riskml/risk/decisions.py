"""From a book, a forecast and a policy to one decision per account.

The account law works in ratios; this module makes the legs, calls it, and turns ratios into USD,
reasons and actions. How odd input is treated:

- a market without a forecast (or with a NaN forecast): the policy's unknown scale, never milder than
  the wildest known market, no hedge credit; reason ``unknown-market``;
- a position without a mark: its entry price; reason ``missing-price``;
- unpriced collateral or an unknown asset: worth nothing (policy); reasons say so;
- an isolated position: a pool of its own, which nets with nothing; the account's probability is
  that of its likeliest pool, its requirement the sum over pools;
- moving collateral: a long leg of its value; of all assessments with and without each such asset
  (the three largest of a pool) the best one counts, so that adding collateral never hurts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from riskml.arrays import AnyArray, Bool1D, Float1D, Float3D, Int1D
from riskml.errors import DataError
from riskml.risk.accounts import AccountBook
from riskml.risk.actions import choose_actions, risk_score
from riskml.risk.assess import INITIAL, MAINTENANCE, Assessment, MarketLaw, assess
from riskml.risk.collateral import Conditions, Valuation, value_collateral
from riskml.risk.engines import get_engine
from riskml.risk.engines.interface import current_marks
from riskml.risk.excursion import MAX_DISTANCE
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn
from riskml.risk.margin import maintenance_sigma as slow_sigma
from riskml.risk.margin import round_up_cents
from riskml.risk.outcome import ACTIONS, Contributions, Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import RANKED_ASSETS, Legs, Pools, Rows, make_pools, make_rows, net_legs
from riskml.risk.reasons import reason_bit
from riskml.risk.sums import sum_by
from riskml.units import HOUR

__all__ = ["ACTIONS", "Conditions", "Contributions", "Decisions", "decide"]

STALE_SNAPSHOT_US = HOUR
"""Age of a book's snapshot from which a decision carries ``stale-snapshot``."""


def decide(
    book: AccountBook,
    forecast: Forecast,
    policy: MarginPolicy,
    *,
    law: AccountLawFn,
    ts: int,
    prices: Mapping[str, float] | None = None,
    maintenance_sigma: Float3D | None = None,
    bundle_id: str = "",
    calibration: ArrayLike | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
    previous: Mapping[str, tuple[int, int]] | None = None,
    notes: Mapping[str, Bool1D] | None = None,
) -> Decisions:
    """Decide on every account of a book.

    Parameters
    ----------
    law : evaluates the account law (numpy, or the bundle's graph).
    ts : time of the decision, microseconds UTC.
    prices : live prices by ``symbol`` or ``venue:symbol``; they re-mark positions and collateral.
    maintenance_sigma : slow scales [n_markets, n_horizons, 2] from
        :func:`riskml.risk.margin.maintenance_sigma`; None = made here without reference or history.
    calibration : powers b [n_horizons] that ``law`` uses; None = the forecast's.
    conditions : chain stress and pegs.
    liquidity_usd : per symbol, what the market can absorb (open interest or depth).
    previous : per account id, (last action, time it began).
    notes : further reasons by name, [n_markets] True where a market has it (``rate-limited`` ...).

    Returns
    -------
    Decisions : in the book's order. NaN handling: see the module's text; no output is NaN.

    Raises
    ------
    DataError : a market scale of another shape; ``barrier = "venue"`` and an account without one.
    ConfigError : a horizon of the policy is not in the forecast, or an unknown barrier engine.
    """
    if calibration is not None:
        powers = np.broadcast_to(np.asarray(calibration, dtype=np.float64), (len(forecast.horizons),))
        forecast = replace(forecast, calibration_power=tuple(float(power) for power in powers))
    slow = slow_sigma(forecast, None, 0.0, policy) if maintenance_sigma is None else maintenance_sigma
    if slow.shape != forecast.sigma.shape:
        raise DataError(f"maintenance_sigma has shape {slow.shape}; {forecast.sigma.shape} is required")
    market = MarketLaw.make(forecast, slow, policy)
    mark, missing = current_marks(book.positions, prices)
    index = forecast.market_index
    valuation = value_collateral(book, index, prices or {}, policy, conditions or Conditions(), ts)
    pools = make_pools(book, mark, valuation)
    pairs, codes = book.positions.markets
    unknown_row = len(index)
    of_pair = np.asarray([index.get(symbol, unknown_row) for _, symbol in pairs], dtype=np.int64)
    position_market = of_pair[codes] if len(pairs) else codes
    rows = make_rows(pools, position_market, valuation, book.collateral.account)
    depth = np.asarray([(liquidity_usd or {}).get(name, np.nan) for name in (*forecast.markets, "")])
    known, barrier = _barriers(book, pools, mark, prices, policy, ts)

    legs = net_legs(rows, len(pools.account), unknown_row + 1)
    full = assess(legs, pools.equity_usd, known, market, law, policy, depth)
    best = _best_of_variants(full, rows, pools, known, market, law, policy, depth)
    scene = _Scene(book, forecast, policy, pools, valuation, market, legs, missing, position_market)
    return _outcome(scene, full, best, barrier, ts, bundle_id, previous or {}, notes or {})


@dataclass(frozen=True)
class _Scene:
    """What the reasons and the output need beside the assessments."""

    book: AccountBook
    forecast: Forecast
    policy: MarginPolicy
    pools: Pools
    valuation: Valuation
    market: MarketLaw
    legs: Legs
    missing_price: Bool1D
    position_market: Int1D


def _barriers(
    book: AccountBook,
    pools: Pools,
    mark: Float1D,
    prices: Mapping[str, float] | None,
    policy: MarginPolicy,
    ts: int,
) -> tuple[Float1D, AnyArray]:
    """Known maintenance per pool [n_pools] (NaN = riskml's own), and whose it is per account."""
    n_accounts = len(book)
    owner = np.full(n_accounts, "riskml", dtype=object)
    if policy.barrier == "riskml":
        return np.full(len(pools.account), np.nan), owner
    if policy.barrier not in ("auto", "venue"):
        engine = get_engine(policy.barrier).margins(book, prices, ts)
        owner[:] = policy.barrier
        per_pool = sum_by(pools.position_pool, engine.position_maintenance_usd, len(pools.account))
        return per_pool.astype(np.float64), owner
    venue = book.maintenance_margin_usd
    if policy.barrier == "venue" and np.isnan(venue).any():
        row = int(np.flatnonzero(np.isnan(venue))[0])
        raise DataError(
            f"account '{book.account_id[row]}' has no maintenance_margin_usd, "
            "and the policy's barrier is the venue's",
            table="accounts",
            row=row,
            fix='give it, or set barrier = "auto"',
        )
    owner[~np.isnan(venue)] = "venue"
    # The venue stated it at the snapshot's prices; it moves with exposure, so it is re-marked.
    stated_mark = np.where(np.isnan(book.positions.mark_price), mark, book.positions.mark_price)
    stated = sum_by(book.positions.account, np.abs(book.positions.size * stated_mark), n_accounts)
    rate = np.divide(venue, stated, out=np.where(np.isnan(venue), np.nan, 0.0), where=stated > 0.0)
    return rate[pools.account] * pools.gross_usd, owner


def _best_of_variants(
    full: Assessment,
    rows: Rows,
    pools: Pools,
    known: Float1D,
    market: MarketLaw,
    law: AccountLawFn,
    policy: MarginPolicy,
    depth: Float1D,
) -> Assessment:
    """The better of the full assessment and those without one or more moving collateral assets."""
    if not np.any(rows.rank >= 0):
        return full
    n_pools = len(pools.account)
    assets = np.zeros(n_pools, dtype=np.int64)
    np.maximum.at(assets, rows.pool, rows.rank + 1)
    best = full
    for kept in range(2**RANKED_ASSETS):
        ranked = np.minimum(assets, RANKED_ASSETS)
        # A variant is one of a pool's own subsets; all of its assets is the full assessment.
        fits = (assets > 0) & (kept < 2**ranked) & ~((kept == 2**ranked - 1) & (assets <= RANKED_ASSETS))
        if not fits.any():
            continue
        stays = (rows.rank < 0) | (
            (rows.rank < RANKED_ASSETS) & ((kept >> np.maximum(rows.rank, 0)) & 1 == 1)
        )
        gone = fits[rows.pool] & ~stays
        removed = sum_by(rows.pool, rows.exposure_usd * gone, n_pools)
        legs = net_legs(rows.keep(fits[rows.pool] & stays), n_pools, len(market.fallback))
        other = assess(legs, pools.equity_usd - removed, known, market, law, policy, depth)
        best = replace(
            best,
            requirement_usd=np.where(
                fits, np.minimum(best.requirement_usd, other.requirement_usd + removed), best.requirement_usd
            ),
            probability=np.where(
                fits[:, None], np.minimum(best.probability, other.probability), best.probability
            ),
            distance=np.where(fits[:, None], np.maximum(best.distance, other.distance), best.distance),
            barrier_usd=np.where(
                fits, np.minimum(best.barrier_usd, other.barrier_usd + removed), best.barrier_usd
            ),
        )
    return best


def _outcome(
    scene: _Scene,
    full: Assessment,
    best: Assessment,
    barrier: AnyArray,
    ts: int,
    bundle_id: str,
    previous: Mapping[str, tuple[int, int]],
    notes: Mapping[str, Bool1D],
) -> Decisions:
    book, pools, n_accounts = scene.book, scene.pools, len(scene.book)
    collateral = sum_by(book.collateral.account, scene.valuation.value_usd, n_accounts)
    equity = pools.by_account(pools.equity_usd, n_accounts)
    maintenance = round_up_cents(pools.by_account(best.requirement_usd[MAINTENANCE], n_accounts))
    initial = np.maximum(
        round_up_cents(pools.by_account(best.requirement_usd[INITIAL], n_accounts)), maintenance
    )
    probability = np.zeros((n_accounts, len(scene.forecast.horizons)))
    distance = np.full(probability.shape, MAX_DISTANCE)
    np.maximum.at(probability, pools.account, best.probability)
    np.minimum.at(distance, pools.account, best.distance)
    exposed = pools.by_account(pools.gross_usd, n_accounts) > 0.0
    ruined = ~exposed & (equity < 0.0)
    probability[ruined], distance[ruined] = 1.0, 0.0

    reasons = np.zeros(n_accounts, dtype=np.uint64)
    _add_book_reasons(reasons, scene, equity, initial, maintenance, exposed, ts)
    _add_pool_reasons(reasons, scene, full)
    stressed = _add_market_reasons(reasons, scene, notes)
    action = _add_actions(
        reasons,
        scene,
        probability,
        exposed & (equity < initial),
        exposed & (equity < maintenance),
        stressed,
        ts,
        previous,
    )
    return Decisions(
        account_id=book.account_id,
        ts=ts,
        horizons=scene.forecast.horizons,
        equity_usd=equity,
        collateral_usd=collateral.astype(np.float64),
        initial_margin_usd=initial,
        maintenance_margin_usd=maintenance,
        liquidation_probability=probability,
        distance=distance,
        risk_score=risk_score(probability[:, -1]),
        action=action,
        reasons=reasons,
        contributions=_contributions(scene, full, n_accounts),
        barrier=barrier,
        barrier_margin_usd=pools.by_account(best.barrier_usd, n_accounts),
        policy_hash=scene.policy.policy_hash,
        bundle_id=bundle_id,
    )


def _flag(reasons: AnyArray, name: str, mask: Bool1D, account: Int1D | None = None) -> None:
    """Set a reason's bit for accounts, or for the accounts of flagged rows."""
    if not mask.any():
        return
    bit = np.uint64(reason_bit(name))
    if account is None:
        reasons[mask] |= bit
    else:
        reasons[np.unique(account[mask])] |= bit


def _add_book_reasons(
    reasons: AnyArray,
    scene: _Scene,
    equity: Float1D,
    initial: Float1D,
    maintenance: Float1D,
    exposed: Bool1D,
    ts: int,
) -> None:
    book, value = scene.book, scene.valuation
    account = book.collateral.account
    backed = np.bincount(account, minlength=len(book)) > 0
    _flag(reasons, "no-position", ~exposed)
    _flag(reasons, "negative-equity", equity < 0.0)
    _flag(reasons, "equity-below-maintenance", exposed & (equity < maintenance))
    _flag(reasons, "equity-below-initial", exposed & (equity < initial))
    _flag(reasons, "missing-price", scene.missing_price, book.positions.account)
    _flag(reasons, "no-collateral", ~backed)
    for name, mask in (
        ("unpriced-collateral", value.unpriced),
        ("unknown-asset", value.unknown_asset),
        ("remote-collateral", value.remote),
        ("peg-deviation", value.off_peg),
        ("chain-stress", value.stressed_chain),
        ("volatile-collateral", value.market >= 0),
    ):
        _flag(reasons, name, mask, account)
    if book.ts is not None and ts - book.ts > STALE_SNAPSHOT_US:
        _flag(reasons, "stale-snapshot", np.ones(len(book), dtype=np.bool_))


def _add_pool_reasons(reasons: AnyArray, scene: _Scene, full: Assessment) -> None:
    pools, n_accounts = scene.pools, len(scene.book)
    alone = np.arange(len(pools.account)) >= n_accounts
    for name, mask in (
        ("isolated-pool", alone),
        ("isolated-margin-unknown", pools.margin_unknown),
        ("static-floor", full.floored),
        ("offset-cap", full.offset_capped),
        ("concentration", full.concentrated),
        ("size-against-liquidity", full.illiquid),
    ):
        _flag(reasons, name, mask, pools.account)


def _add_market_reasons(reasons: AnyArray, scene: _Scene, notes: Mapping[str, Bool1D]) -> Bool1D:
    """Reasons of the markets that an account holds; returns who holds a stressed one [n_accounts]."""
    forecast = scene.forecast
    account = scene.pools.account[scene.legs.pool]
    leg_market = scene.legs.market
    stress = np.nan_to_num(forecast.stress[:, scene.market.horizons[2]])
    in_stress = np.append(stress >= scene.policy.market_stress_probability, False)
    _flag(reasons, "unknown-market", scene.market.fallback[leg_market], account)
    _flag(reasons, "degraded-forecast", np.append(forecast.degraded, False)[leg_market], account)
    _flag(reasons, "market-stress", in_stress[leg_market], account)
    for name, mask in notes.items():
        _flag(reasons, name, np.append(mask, False)[leg_market], account)
    stressed = np.zeros(len(scene.book), dtype=np.bool_)
    stressed[account[in_stress[leg_market]]] = True
    return stressed


def _add_actions(
    reasons: AnyArray,
    scene: _Scene,
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
    _flag(reasons, "probability-watch", likely >= policy.watch_probability)
    _flag(reasons, "probability-restrict", likely >= policy.restrict_probability)
    _flag(reasons, "probability-deleverage", likely >= policy.deleverage_probability)
    _flag(reasons, "hysteresis", held_up)
    return action


def _contributions(scene: _Scene, full: Assessment, n_accounts: int) -> Contributions:
    """Shares by account: pools weigh by their scale in USD, so that an account's shares sum to 1."""
    legs, pools = scene.legs, scene.pools
    account = pools.account[legs.pool]
    order = np.argsort(account, kind="stable")
    total = np.maximum(pools.by_account(full.scale_usd, n_accounts), 1e-300)
    share = full.share * full.scale_usd[legs.pool] / total[account]
    names = np.asarray([*scene.forecast.markets, "unknown"], dtype=object)
    indptr = np.searchsorted(account[order], np.arange(n_accounts + 1))
    return Contributions(
        indptr.astype(np.int64), names[legs.market][order], share[order], legs.net_usd[order]
    )
