"""From a book, a forecast and a policy to one decision per account.

The account law works in ratios; this module makes the legs, calls it, and turns ratios into USD,
reasons and actions. How odd input is treated:

- a market without a forecast (or with a NaN forecast): the policy's unknown scale, never milder than
  the wildest known market, a leg of its own that hedges no other; reason ``unknown-market``;
- a market whose liquidity nobody publishes, while that of others is given: the policy's
  ``unknown_market_liquidity_usd``; reason ``size-against-liquidity`` where closing costs more than 1 %;
- a position without a mark: its entry price; reason ``missing-price``;
- unpriced collateral or an unknown asset: worth nothing (policy); reasons say so;
- an isolated position: a pool of its own, which nets with nothing; the account's probability is
  that of its likeliest pool, its requirement the sum over pools, and whether that is met is asked of every
  pool by itself (:mod:`riskml.risk.shortfall`);
- moving collateral: a long leg of its value; of all assessments with and without each such asset
  (the five largest of a pool) the best one counts, so that adding collateral never hurts;
- collateral on a chain of which nothing new is known: sets off no position that settles elsewhere, in the
  initial requirement alone (:mod:`riskml.risk.settlement`); reason ``stale-chain``;
- profit that a venue pays in a stablecoin below its peg, of an account with positions that settle in
  something else: at its value (:mod:`riskml.risk.settled_profit`); reason ``peg-deviation``;
- open orders: their worst fills raise the initial margin alone (:mod:`riskml.risk.orders`), also of an
  account without a position; reason ``open-orders``;
- an exposure that is not finite at a live price: DataError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Float3D
from riskml.errors import DataError
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook
from riskml.risk.actions import risk_score
from riskml.risk.assess import INITIAL, MAINTENANCE, Assessment, MarketLaw, assess
from riskml.risk.book_columns import MAX_USD
from riskml.risk.collateral import Conditions, Valuation, value_collateral
from riskml.risk.engines import get_engine
from riskml.risk.engines.interface import current_marks
from riskml.risk.excursion import MAX_DISTANCE
from riskml.risk.explain import (
    Scene,
    add_actions,
    add_book_reasons,
    add_equity_reasons,
    add_market_reasons,
    add_pool_reasons,
    contributions,
    flag,
)
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn
from riskml.risk.margin import BINDING, market_liquidity, round_up_cents, slow_scale
from riskml.risk.orders import OrderMargin, order_margin
from riskml.risk.outcome import ACTIONS, Contributions, Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.pools import Legs, Pools, Rows, collateral_variants, make_pools, make_rows, net_legs
from riskml.risk.settled_profit import settle_profit
from riskml.risk.settlement import withheld_value
from riskml.risk.shortfall import find_shortfalls
from riskml.risk.sums import sum_by

__all__ = ["ACTIONS", "Conditions", "Contributions", "Decisions", "decide"]


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
    market_law: MarketLaw | None = None,
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
    conditions : pegs, stress and data age of chains, transfers.
    liquidity_usd : per symbol, what the market can absorb (open interest or depth); a symbol that it lacks
        has the policy's ``unknown_market_liquidity_usd``. None = closing costs are not asked for at all.
    previous : per account id, (last action, time it began).
    notes : further reasons by name, [n_markets] True where a market has it (``rate-limited`` ...).
    market_law : the law of ``forecast`` and ``maintenance_sigma`` under ``policy``, made before (it is
        the same for every book of a bar); None = made here.

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
    if market_law is None:
        if maintenance_sigma is None:
            slow = slow_scale(forecast, None, 0.0, policy)
            maintenance_sigma = slow.sigma
            notes = {"anti-procyclical": slow.anti_procyclical, **(notes or {})}
        if maintenance_sigma.shape != forecast.sigma.shape:
            found, wanted = maintenance_sigma.shape, forecast.sigma.shape
            raise DataError(f"maintenance_sigma has shape {found}; {wanted} is required")
        market_law = MarketLaw.make(forecast, maintenance_sigma, policy)
    start = prepare(
        book,
        forecast,
        policy,
        market_law,
        ts=ts,
        prices=prices,
        conditions=conditions,
        liquidity_usd=liquidity_usd,
    )
    book, legs, pools = start.book, start.net_legs(start.rows), start.pools
    full = assess(legs, pools.equity_usd, start.known_usd, market_law, law, policy, start.depth_usd)
    best = _best_of_variants(full, start, law)
    scene = Scene(
        book, forecast, policy, pools, start.valuation, market_law, legs, start.missing, start.symbols
    )
    orders = _orders(scene, start.rows, start.mark, prices or {}, start.depth_usd)
    best, adding = _with_orders(best, orders, start.rows, len(pools.account))
    unwithheld = best.requirement_usd[INITIAL]
    best = _without_stale_chains(best, start, book, orders, law)
    usd = np.stack([*best.requirement_usd, unwithheld])
    return _outcome(scene, full, best, usd, adding, start, ts, bundle_id, previous or {}, notes or {})


@dataclass(frozen=True)
class Prepared:
    """A book, valued and split into pools: what every assessment of it starts from."""

    book: AccountBook
    """Without profit that is withheld (:mod:`riskml.risk.settled_profit`)."""
    withheld_profit_usd: Float1D
    """[n_accounts]."""
    policy: MarginPolicy
    market: MarketLaw
    symbols: Mapping[str, int]
    """Row of every symbol: the forecast's markets, then those without a forecast."""
    mark: Float1D
    """[n_positions] current price."""
    missing: Bool1D
    """[n_positions] that price had to be taken from the entry."""
    valuation: Valuation
    pools: Pools
    rows: Rows
    depth_usd: Float1D
    """[n_symbols + 1] what each market can absorb; NaN = unknown, inf = not asked."""
    known_usd: Float1D
    """[n_pools] maintenance of the barrier's owner; NaN = riskml's own."""
    barrier: AnyArray
    """[n_accounts] whose maintenance liquidates."""

    def net_legs(self, rows: Rows) -> Legs:
        """Legs of some of the rows."""
        return net_legs(rows, len(self.pools.account), len(self.depth_usd), len(self.market.fallback) - 1)


def prepare(
    book: AccountBook,
    forecast: Forecast,
    policy: MarginPolicy,
    market_law: MarketLaw,
    *,
    ts: int,
    prices: Mapping[str, float] | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> Prepared:
    """Value a book and split it into pools; parameters and errors are those of :func:`decide`."""
    live, known_conditions = prices or {}, conditions or Conditions()
    mark, missing = current_marks(book.positions, live)
    symbols = _symbols(book, forecast)
    valuation = value_collateral(
        book,
        symbols,
        live,
        policy,
        known_conditions,
        ts,
        margin_loss=market_law.unit_margins[INITIAL, :, 0],
        liquidity_usd=liquidity_usd,
    )
    account, n_accounts = book.collateral.account, len(book)
    book, withheld = settle_profit(
        book, mark, known_conditions, ts, lambda: sum_by(account, valuation.value_usd, n_accounts)
    )
    pools = make_pools(book, mark, valuation)
    _check_finite(book, pools, valuation)
    pairs, codes = book.positions.markets
    of_pair = np.asarray([symbols[symbol] for _, symbol in pairs], dtype=np.int64)
    rows = make_rows(pools, of_pair[codes] if len(pairs) else codes, valuation, book.collateral.account)
    depth = market_liquidity((*symbols, ""), liquidity_usd)
    known, barrier = _barriers(book, pools, mark, prices, policy, ts)
    return Prepared(
        book,
        withheld,
        policy,
        market_law,
        symbols,
        mark,
        missing,
        valuation,
        pools,
        rows,
        depth,
        known,
        barrier,
    )


def _symbols(book: AccountBook, forecast: Forecast) -> dict[str, int]:
    """Row of every symbol: the forecast's markets, then others that the book holds, orders or pledges."""
    symbols = dict(forecast.market_index)
    facts = load_facts("assets")["asset"]
    for _, asset in book.collateral.holdings[0]:
        symbol = str(facts.get(asset, {}).get("market", ""))
        if symbol:
            symbols.setdefault(symbol, len(symbols))
    for _, symbol in book.positions.markets[0]:
        symbols.setdefault(symbol, len(symbols))
    for symbol in book.orders.symbol:
        symbols.setdefault(symbol, len(symbols))
    return symbols


def _check_finite(book: AccountBook, pools: Pools, valuation: Valuation) -> None:
    """A live price can blow up a book that was sound at its own marks."""
    for table, names, values in (
        ("positions", book.positions.symbol, pools.exposure_usd),
        ("collateral", book.collateral.asset, valuation.value_usd),
    ):
        bad = np.flatnonzero(~(np.abs(values) <= MAX_USD))
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"the row is worth {values[row]:g} USD at the current price; at most {MAX_USD:g} is usable",
                table=table,
                market=str(names[row]),
                row=row,
                fix="check the units of size and price",
            )


def _orders(
    scene: Scene, rows: Rows, mark: Float1D, prices: Mapping[str, float], depth: Float1D
) -> OrderMargin | None:
    orders = scene.book.orders
    if not len(orders.size):
        return None
    unit = np.maximum(*scene.market.unit_margins)  # a position's initial margin is not below its maintenance
    law_row = np.minimum(np.arange(len(scene.symbols) + 1), len(unit) - 1)
    symbol = np.asarray([scene.symbols[name] for name in orders.symbol], dtype=np.int64)
    return order_margin(
        scene.book, scene.pools, rows, symbol, mark, prices, unit[law_row], depth, scene.policy
    )


def _with_orders(
    best: Assessment, orders: OrderMargin | None, rows: Rows, n_pools: int
) -> tuple[Assessment, Bool1D]:
    """The assessment with the worst fills of open orders, and the pools where they ask for more."""
    if orders is None:
        return best, np.zeros(n_pools, dtype=np.bool_)
    moving = sum_by(rows.pool, rows.exposure_usd * ~rows.is_position, n_pools)
    before = best.requirement_usd[INITIAL]
    after = orders.apply(before, moving)
    usd = np.stack([after, best.requirement_usd[MAINTENANCE]])
    return replace(best, requirement_usd=usd), np.asarray(after > before * (1.0 + BINDING))


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


def _best_of_variants(full: Assessment, start: Prepared, law: AccountLawFn) -> Assessment:
    """The better of the full assessment and those without one or more moving collateral assets."""
    best = full
    for variant in collateral_variants(start.rows, len(start.pools.account)):
        fits, removed = variant.fits, variant.removed_usd
        other = assess(
            start.net_legs(variant.rows),
            start.pools.equity_usd - removed,
            start.known_usd,
            start.market,
            law,
            start.policy,
            start.depth_usd,
        )
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


def _without_stale_chains(
    best: Assessment, start: Prepared, book: AccountBook, orders: OrderMargin | None, law: AccountLawFn
) -> Assessment:
    """The initial requirement with nothing that lies on a stale chain set off against positions elsewhere.

    It is what the book needs without that value, plus the value, so that equity above it is what the rest
    leaves free. Maintenance and probability keep the haircut: a silent feed liquidates nobody.
    """
    valuation = start.valuation
    withheld = withheld_value(book, start.pools.exposure_usd, valuation.value_usd, valuation.stale_chain)
    if not withheld.any():
        return best
    left = replace(valuation, value_usd=valuation.value_usd - withheld)
    pools = make_pools(book, start.mark, left)
    position_market = np.asarray([start.symbols[name] for name in book.positions.symbol], dtype=np.int64)
    rest = replace(
        start,
        valuation=left,
        pools=pools,
        rows=make_rows(pools, position_market, left, book.collateral.account),
    )
    full = assess(
        rest.net_legs(rest.rows),
        pools.equity_usd,
        rest.known_usd,
        rest.market,
        law,
        rest.policy,
        rest.depth_usd,
    )
    other, _ = _with_orders(_best_of_variants(full, rest, law), orders, rest.rows, len(pools.account))
    initial = other.requirement_usd[INITIAL] + sum_by(book.collateral.account, withheld, len(pools.account))
    usd = np.stack([np.maximum(best.requirement_usd[INITIAL], initial), best.requirement_usd[MAINTENANCE]])
    return replace(best, requirement_usd=usd)


def _outcome(
    scene: Scene,
    full: Assessment,
    best: Assessment,
    requirement_usd: Float2D,
    adding: Bool1D,
    start: Prepared,
    ts: int,
    bundle_id: str,
    previous: Mapping[str, tuple[int, int]],
    notes: Mapping[str, Bool1D],
) -> Decisions:
    book, pools, n_accounts = scene.book, scene.pools, len(scene.book)
    collateral = sum_by(book.collateral.account, scene.valuation.value_usd, n_accounts)
    equity = pools.account_equity(n_accounts)
    # Initial, maintenance, and initial with nothing withheld [n_accounts, 3].
    unrounded = np.stack([pools.by_account(row, n_accounts) for row in requirement_usd], axis=1)
    unrounded = np.maximum(unrounded, unrounded[:, MAINTENANCE, None])
    initial, maintenance = (round_up_cents(unrounded[:, place]) for place in (INITIAL, MAINTENANCE))
    probability = np.zeros((n_accounts, len(scene.forecast.horizons)))
    distance = np.full(probability.shape, MAX_DISTANCE)
    np.maximum.at(probability, pools.account, best.probability)
    np.minimum.at(distance, pools.account, best.distance)
    exposed = pools.by_account(pools.gross_usd, n_accounts) > 0.0
    lacking = find_shortfalls(pools, requirement_usd, n_accounts)
    probability[lacking.ruined], distance[lacking.ruined] = 1.0, 0.0

    reasons = np.zeros(n_accounts, dtype=np.uint64)
    open_to = exposed | (pools.by_account(adding.astype(np.float64), n_accounts) > 0.0)
    below = (open_to & (lacking.initial_usd > 0.0), exposed & (lacking.maintenance_usd > 0.0))
    add_equity_reasons(reasons, lacking.owes, *below)
    flag(reasons, "peg-deviation", start.withheld_profit_usd > 0.0)
    add_book_reasons(reasons, scene, exposed, ts)
    add_pool_reasons(reasons, scene, full, adding)
    stressed = add_market_reasons(reasons, scene, notes)
    action = add_actions(reasons, scene, probability, *below, stressed, ts, previous)
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
        contributions=contributions(scene, full, n_accounts),
        barrier=start.barrier,
        barrier_margin_usd=pools.by_account(best.barrier_usd, n_accounts),
        unrounded_usd=unrounded,
        initial_shortfall_usd=lacking.initial_usd,
        maintenance_shortfall_usd=lacking.maintenance_usd,
        initial_spare_usd=lacking.spare_usd,
        policy_hash=scene.policy.policy_hash,
        bundle_id=bundle_id,
    )
