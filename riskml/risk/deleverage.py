"""Gradual deleveraging: which positions to cut, by how much and in which order, to restore a target.

Per pool (the cross positions of an account, or one isolated position), until the target holds:

1. score the pool after each position's largest allowed step (a fraction of the position, a fraction of the
   market's liquidity), with the engine that scores the book;
2. take the step that takes most off the shortfall: the largest contribution to risk (``cut_order``). A step
   that brings the pool nearer to liquidation closes a hedge and is not taken, even where a cap on offsets
   makes the requirement fall with it;
3. where no single step is left (legs that hedge each other), cut all in proportion;
4. the step that would restore the target is bisected, so that it only just does;
5. at the end every cut is given back as far as the target still holds.

Every step rests on the requirement that the engine asks for the book as it then is; nothing is linearised
(:func:`riskml.risk.actions.deleverage_plan` is the first-order form). Closing is at the mark and costs
``closing_cost``. Open orders that could add exposure are cancelled before anything is closed. A position is
never enlarged or flipped, and no pool pays for another. The target ``initial`` leaves out what is withheld
for a stale chain (:mod:`riskml.risk.settlement`): a feed that falls silent stops new risk and cuts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Float1D, Int1D
from riskml.errors import ConfigError, DataError, Problem, nearest
from riskml.risk.accounts import AccountBook
from riskml.risk.actions import DELEVERAGE
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.deleverage_search import Cut, Meter, find_cuts
from riskml.risk.engines.interface import current_marks
from riskml.risk.policy import MarginPolicy
from riskml.risk.pool_books import (
    Pool,
    PoolBook,
    Score,
    select_accounts,
    split_pools,
    with_known_margins,
    without_orders,
)
from riskml.risk.reasons import reason_bits, reason_names


@dataclass(frozen=True)
class DeleverageStep:
    """One cut, and where its pool stands after it."""

    number: int
    """Order within the plan, from 1; the legs of a proportional cut share a number."""
    row: int
    """Row of the position in the book."""
    venue: str
    symbol: str
    size: float
    """Base units to trade, signed: the opposite of the position."""
    notional_usd: float
    equity_usd: float
    initial_margin_usd: float
    """Without what is withheld for a stale chain, which no cut brings back."""
    maintenance_margin_usd: float
    probability: float
    """Of liquidation within the policy's horizon."""
    reasons: int


@dataclass(frozen=True)
class DeleveragePlan:
    """The cuts of one pool."""

    account_id: str
    pool: str
    """``cross``, or ``venue:symbol`` of an isolated position."""
    feasible: bool
    """The target holds after the last step; False = nothing that may be closed restores it."""
    cancel_orders: bool
    """The pool's open orders that could add exposure are to be cancelled first."""
    steps: tuple[DeleverageStep, ...]
    equity_usd: float
    """Before the first step; as for the next two."""
    initial_margin_usd: float
    maintenance_margin_usd: float
    reasons: int

    @property
    def notional_usd(self) -> float:
        """Sum of what is closed."""
        return sum(step.notional_usd for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict, reasons by name."""
        steps = [{**vars(step), "reasons": reason_names(step.reasons)} for step in self.steps]
        return {**vars(self), "reasons": reason_names(self.reasons), "steps": steps}


def deleverage_plans(
    book: AccountBook,
    score: Score,
    policy: BreakerPolicy,
    *,
    prices: Mapping[str, float] | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
    accounts: Sequence[str] | None = None,
    unknown_liquidity_usd: float = MarginPolicy.unknown_market_liquidity_usd,
) -> list[DeleveragePlan]:
    """Plans for the pools that miss the target, of the accounts whose action is ``deleverage``.

    Parameters
    ----------
    score : the engine: ``decide`` with all but the book given, at the same prices.
    prices : live prices by ``symbol`` or ``venue:symbol``.
    liquidity_usd : per symbol, as for :func:`riskml.risk.decisions.decide`. A market that it lacks, or has
        NaN for, is of unknown liquidity (reason ``unknown-liquidity``). None = nobody asks what closing does
        to a market, and only ``step_fraction`` bounds a step.
    accounts : look at these instead, whatever their action.
    unknown_liquidity_usd : liquidity of a market of which none is known; the margin policy's
        ``unknown_market_liquidity_usd``.

    Raises
    ------
    DataError : accounts that are no list of names, one that is not in the book, a negative liquidity.
    ConfigError : the policy's horizon is not scored.
    """
    for symbol, usd in (liquidity_usd or {}).items():
        if usd < 0.0:
            raise DataError(f"a liquidity has to be >= 0, found {usd}", market=symbol, fix="leave it out")
    if not unknown_liquidity_usd >= 0.0:
        raise DataError(
            f"unknown_liquidity_usd has to be >= 0, found {unknown_liquidity_usd}",
            fix="pass MarginPolicy.unknown_market_liquidity_usd",
        )
    chosen, rows = select_accounts(book, _chosen(book, score, accounts))
    if not len(chosen):
        return []
    mark, _ = current_marks(chosen.positions, prices or {})
    whole = score(chosen)
    if policy.horizon not in whole.horizons:
        raise ConfigError(
            f"the breaker policy's horizon is '{policy.horizon}'.{nearest(policy.horizon, whole.horizons)}",
            fix=f"use one of {', '.join(whole.horizons)}",
        )
    pools = split_pools(chosen, mark, whole.collateral_usd, whole.equity_usd)
    ordered = score(pools.book)
    plain = score(without_orders(pools.book)) if len(pools.book.orders.size) else ordered
    meter = Meter(score, policy, liquidity_usd, unknown_liquidity_usd)
    short = (meter.gap(pools.book, ordered) > 0.0) | (meter.gap(pools.book, plain) > 0.0)
    held = np.zeros(len(pools.book), dtype=np.bool_)
    held[pools.book.positions.account[pools.book.positions.size != 0.0]] = True
    return [_plan(pools, place, rows, meter) for place in np.flatnonzero(short & held).tolist()]


def _chosen(book: AccountBook, score: Score, accounts: Sequence[str] | None) -> Int1D:
    if accounts is None:
        return np.flatnonzero(score(book).action == DELEVERAGE)
    if isinstance(accounts, str) or not isinstance(accounts, Iterable):
        raise DataError(
            f"accounts have to be a list of account ids, found {accounts!r}",
            table="accounts",
            fix=f"write [{accounts!r}]",
        )
    chosen = list(accounts)
    places = {str(name): row for row, name in enumerate(book.account_id)}
    problems = [
        Problem(
            "unknown-account",
            f"account {name!r} is not in the book.{nearest(str(name), places)}",
            "use an account of the book",
            "accounts",
            row=row,
        )
        for row, name in enumerate(chosen)
        if not isinstance(name, str) or name not in places
    ]
    if problems:
        raise DataError.from_problems(problems, "the accounts are not usable")
    return np.asarray([places[name] for name in dict.fromkeys(chosen)], dtype=np.int64)


_TARGETS = {
    "initial": "equity-below-initial",
    "maintenance": "equity-below-maintenance",
    "probability": "probability-deleverage",
}


def _plan(pools: PoolBook, place: int, rows: Int1D, meter: Meter) -> DeleveragePlan:
    """The plan of one pool; ``rows`` [n_positions] are the positions' rows in the caller's book."""
    pool = Pool.of(pools, place, meter.policy.closing_cost)
    cuts, feasible = find_cuts(pool, meter)
    orders = pools.book.orders
    cancel = bool(np.any((orders.account == place) & ~orders.reduce_only & (orders.size != 0.0)))
    path = np.cumsum([np.zeros(len(pool.row)), *(cut.closed for cut in cuts)], axis=0)
    book = pool.variants(path)
    after = meter.score(book)
    equity, need = meter.equity(book, after), after.deleverage_margin_usd
    likely = after.liquidation_probability[:, after.horizons.index(meter.policy.horizon)]
    positions = pool.book.positions
    steps = []
    for number, cut in enumerate(cuts, start=1):
        for leg in np.flatnonzero(cut.closed > 0.0).tolist():
            steps.append(
                DeleverageStep(
                    number,
                    int(rows[pool.row[leg]]),
                    str(positions.venue[leg]),
                    str(positions.symbol[leg]),
                    float(-positions.size[leg] * cut.closed[leg]),
                    float(pool.notional_usd[leg] * cut.closed[leg]),
                    float(equity[number]),
                    float(need[number]),
                    float(after.maintenance_margin_usd[number]),
                    float(likely[number]),
                    reason_bits(_step_reasons(cut, leg, meter.policy.target)),
                )
            )
    names = [_TARGETS[meter.policy.target]]
    names += ["open-orders"] if cancel else []
    names += [] if feasible else ["deleverage-infeasible"]
    owner = int(pools.owner[place])
    alone = positions.isolated
    return DeleveragePlan(
        str(pools.book.account_id[owner]),
        f"{positions.venue[0]}:{positions.symbol[0]}" if alone.any() else "cross",
        feasible,
        cancel,
        tuple(steps),
        float(equity[0]),
        float(need[0]),
        float(after.maintenance_margin_usd[0]),
        reason_bits(names),
    )


def _step_reasons(cut: Cut, leg: int, target: str) -> list[str]:
    names = [_TARGETS[target], "proportional-cut" if cut.proportional else "largest-contribution"]
    if cut.restores:
        names.append("restores-target")
    elif cut.by_liquidity[leg]:
        names.append("size-against-liquidity")
    elif cut.by_fraction[leg]:
        names.append("step-limit")
    if cut.unknown[leg]:
        names.append("unknown-liquidity")
    return names


def apply_plans(
    book: AccountBook,
    plans: Sequence[DeleveragePlan],
    policy: BreakerPolicy,
    *,
    collateral_usd: Float1D,
    prices: Mapping[str, float] | None = None,
) -> AccountBook:
    """The book after the plans: orders cancelled, positions cut at the mark, profit and cost booked.

    Realised profit and the cost of closing go to cash, of an isolated position to its margin. Margins that
    are not published are fixed, in every account that is cut, at the part of the equity that they have now:
    the engine splits by notional, so that a cut would else move the margin of other positions. The venue's
    own maintenance moves with the account's notional.

    Parameters
    ----------
    collateral_usd : [n_accounts] collateral after haircuts (``Decisions.collateral_usd``).

    Raises
    ------
    DataError : a plan for another book: an unknown account or position, or a cut that would flip it.
    """
    positions = book.positions
    mark, _ = current_marks(positions, prices or {})
    left = positions.size.copy()
    for plan in plans:
        for step in plan.steps:
            _check_step(book, plan, step, float(left[step.row]) if step.row < len(left) else 0.0)
            left[step.row] += step.size
            if abs(left[step.row]) <= 1e-12 * abs(positions.size[step.row]):
                left[step.row] = 0.0
    closed = positions.size - left
    booked = closed * (mark - positions.entry_price) - np.abs(closed) * mark * policy.closing_cost
    cut = np.zeros(len(book), dtype=np.bool_)
    cut[positions.account[closed != 0.0]] = True
    pools = split_pools(book, mark, collateral_usd)
    known = with_known_margins(book, mark, collateral_usd, cut)
    margin, cash = known.positions.isolated_margin_usd.copy(), known.cash_usd.copy()
    touched = positions.isolated & (closed != 0.0)
    margin[touched] += booked[touched]
    np.add.at(cash, positions.account[~touched], booked[~touched])
    stated = np.abs(np.where(np.isnan(positions.mark_price), mark, positions.mark_price))
    before = np.bincount(positions.account, np.abs(positions.size) * stated, len(book))
    after = np.bincount(positions.account, np.abs(left) * stated, len(book))
    share = np.divide(after, before, out=np.ones(len(book)), where=before > 0.0)
    changed = replace(
        book,
        cash_usd=cash,
        maintenance_margin_usd=book.maintenance_margin_usd * share,
        positions=replace(positions, size=left, isolated_margin_usd=margin),
    )
    return without_orders(changed, _cancelled(pools, plans))


def _check_step(book: AccountBook, plan: DeleveragePlan, step: DeleverageStep, size: float) -> None:
    positions = book.positions
    fits = (
        step.row < len(positions.size)
        and str(book.account_id[positions.account[step.row]]) == plan.account_id
        and (str(positions.venue[step.row]), str(positions.symbol[step.row])) == (step.venue, step.symbol)
        and step.size * size <= 0.0
        and abs(step.size) <= abs(size) * (1.0 + 1e-9)
    )
    if not fits:
        raise DataError(
            f"step {step.number} of the plan of account '{plan.account_id}' does not fit the position.",
            table="positions",
            market=step.symbol,
            row=step.row,
            fix="apply a plan to the book that it was made from",
        )


def _cancelled(pools: PoolBook, plans: Sequence[DeleveragePlan]) -> Bool1D:
    """Open orders that the plans cancel [n_orders]."""
    names = {
        plan.account_id if plan.pool == "cross" else f"{plan.account_id}|{plan.pool}"
        for plan in plans
        if plan.cancel_orders
    }
    listed = np.asarray([str(name) in names for name in pools.book.account_id], dtype=np.bool_)
    orders = pools.book.orders
    return np.asarray(listed[orders.account] & ~orders.reduce_only, dtype=np.bool_)
