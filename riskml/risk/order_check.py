"""Orders against the circuit breaker: which may be placed, and why.

An order is checked against the book as it is, one by one, as if it filled at the current price. Rules that
refuse one:

- the market is halted (``market-halted``);
- the market is restricted and the order opens or flips a position (``entries-paused``); an existing
  position may still grow, within tightened limits;
- the account's action is restrict or deleverage (``account-restricted``);
- an isolated position would be new or larger, and its leverage above the state's limit
  (``isolated-leverage``). The limit is the leverage that initial margin allows, and the venue's maximum
  where given, both times :attr:`BreakerPolicy.leverage_shares`;
- a pool that the order touches would have less equity than initial margin, open orders included
  (``equity-below-initial``).

**An order that reduces risk is never refused**, whatever the state. It does so when

- it makes ``|position|`` smaller without flipping it, or is reduce-only (``reduces-position``), or
- it lowers what the account has to hold when it fills (``lowers-requirement``): before rounding, none of
  initial margin, maintenance and the initial margin without what is withheld for a stale chain rises, and
  one of them falls by more than :data:`MEASURABLE` of itself. An order too small for that to be seen is no
  hedge: in a halted market it may make ``|position|`` smaller and nothing else.

Several orders may each reduce a position and together flip it, so an order that only the first rule lets
pass is to be executed reduce-only: ``OrderCheck.reduce_only`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D
from riskml.errors import DataError, Problem, nearest
from riskml.risk.accounts import AccountBook, Orders
from riskml.risk.actions import RESTRICT as ACCOUNT_RESTRICT
from riskml.risk.book_columns import MARGIN_MODES, typed_columns
from riskml.risk.breaker import HALT, RESTRICT, BreakerState
from riskml.risk.breaker_policy import MARKET_STATES, BreakerPolicy
from riskml.risk.margin import BINDING
from riskml.risk.order_fills import Fills
from riskml.risk.outcome import Decisions
from riskml.risk.pool_books import Score, select_accounts, split_pools
from riskml.risk.reasons import reason_bit, reason_names

MEASURABLE = BINDING
"""Least fall of a requirement, relative, that an order which lowers it has to bring; less may be rounding."""
ROUNDING = 1e-12
"""Rise of a requirement, relative, that is rounding of sums in another order."""

_EXTRA = {"margin_mode": "text", "isolated_margin_usd": "float"}
"""Columns of an order to be checked beside those of the ``orders`` table, and their kinds."""


@dataclass(frozen=True)
class OrderCheck:
    """What becomes of each order, in the order given [n_orders]."""

    allowed: Bool1D
    reduce_only: Bool1D
    """Allowed only because it reduces its position: execute it as reduce-only."""
    market_state: NDArray[np.uint8]
    """State of the order's market: 0 normal, 1 watch, 2 restrict, 3 halt."""
    reasons: NDArray[np.uint64]
    """Bits, never 0: why it is refused, or why it passes."""

    def __len__(self) -> int:
        return len(self.allowed)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready dict per order."""
        return [
            {
                "allowed": bool(self.allowed[row]),
                "reduce_only": bool(self.reduce_only[row]),
                "market_state": MARKET_STATES[int(self.market_state[row])],
                "reasons": reason_names(int(self.reasons[row])),
            }
            for row in range(len(self))
        ]


def check_orders(
    book: AccountBook,
    orders: Mapping[str, Any],
    score: Score,
    state: BreakerState,
    policy: BreakerPolicy,
    *,
    decisions: Decisions | None = None,
    prices: Mapping[str, float] | None = None,
    max_leverage: Mapping[str, float] | None = None,
) -> OrderCheck:
    """Check orders that are to be placed.

    Parameters
    ----------
    book : accounts, positions, collateral and the orders that are open already.
    orders : columns of the ``orders`` table, and optionally ``margin_mode`` of a position that the order
        would open (the account's) and ``isolated_margin_usd``, set aside from cash for an isolated one
        (none; then the engine gives a new one its part of the equity). An open position keeps its own mode,
        and the margin that it has or, where that is not published, that the engine gives it before the fill.
    score : the engine: ``decide`` with all but the book given, at the same prices.
    state : the breaker's.
    decisions : the account's actions with their hysteresis; the worse of these and of ``score`` counts.
    prices : live prices by ``symbol`` or ``venue:symbol``; a market without one fills at the order's price.
    max_leverage : the venue's maximum by ``symbol`` or ``venue:symbol``.

    Raises
    ------
    ContractError, DataError : orders that are no columns or break the contract, a misspelt optional column,
        an unknown account, a margin that is negative or on an order that is not isolated.
    """
    wanted, mode, margin = wanted_orders(book, orders)
    rows = np.unique(wanted.account)
    chosen, _ = select_accounts(book, rows)
    wanted = replace(wanted, account=np.searchsorted(rows, wanted.account))
    before = score(chosen)
    level, market_reasons = state.of([str(name) for name in wanted.symbol], before.ts, policy)
    fills = Fills.of(chosen, wanted, mode, margin, prices or {}, before.collateral_usd)
    _check_margin(wanted, margin, fills)
    after = score(fills.book)
    short, leverage_short = _pool_tests(fills, after, score, level, policy, max_leverage or {})
    action = before.action[wanted.account]
    if decisions is not None:
        known = dict(zip(decisions.account_id.tolist(), decisions.action.tolist(), strict=True))
        given = [known.get(chosen.account_id[row], 0) for row in wanted.account.tolist()]
        action = np.maximum(action, np.asarray(given, dtype=action.dtype))

    reduces = fills.reduces
    lowers = _lowers(before.unrounded_usd[wanted.account], after.unrounded_usd)
    by_market = np.zeros(len(level), dtype=np.uint64)
    for name, mask in (
        ("market-halted", level >= HALT),
        ("entries-paused", (level >= RESTRICT) & fills.enters),
        ("isolated-leverage", leverage_short),
    ):
        by_market |= _bits(name, mask)
    refusals = np.where(by_market > 0, by_market | market_reasons, np.uint64(0)).astype(np.uint64)
    refusals |= _bits("account-restricted", action >= ACCOUNT_RESTRICT) | _bits("equity-below-initial", short)
    allowed = reduces | lowers | (refusals == 0)
    passes = _bits("reduces-position", reduces) | _bits("lowers-requirement", lowers)
    passes = np.where(passes == 0, np.uint64(reason_bit("within-limits")), passes)
    reasons = np.where(allowed, passes, refusals) | _bits("isolated-margin-unknown", fills.margin_unknown)
    return OrderCheck(
        allowed, reduces & ~lowers & (refusals != 0), level.astype(np.uint8), reasons.astype(np.uint64)
    )


def wanted_orders(book: AccountBook, orders: Mapping[str, Any]) -> tuple[Orders, AnyArray, Float1D]:
    """Orders by the contract, the mode of what each would open and the margin that it brings, NaN = none.

    Parameters and errors as of :func:`check_orders`.
    """
    columns = typed_columns("orders", orders, _EXTRA)
    mode, margin = (columns.pop(name) for name in _EXTRA)
    accounts = {"account_id": book.account_id, "cash_usd": np.zeros(len(book))}
    wanted = AccountBook.from_arrays(accounts, orders=columns).orders
    mode = np.where(mode == "", book.margin_mode[wanted.account], mode)
    problems = [
        Problem(
            "bad-margin-mode",
            f"margin_mode is '{value}'.{nearest(str(value), MARGIN_MODES)}",
            f"use one of {', '.join(MARGIN_MODES)}",
            "orders",
            str(wanted.symbol[row]),
            row,
        )
        for row, value in enumerate(mode.tolist())
        if value not in MARGIN_MODES
    ]
    bad = np.isinf(margin) | (np.nan_to_num(margin) < 0.0)
    problems += [
        Problem(
            "bad-value",
            f"isolated_margin_usd has to be finite and >= 0, found {margin[row]}",
            "correct it, or leave it out",
            "orders",
            str(wanted.symbol[row]),
            row,
        )
        for row in np.flatnonzero(bad).tolist()
    ]
    if problems:
        raise DataError.from_problems(problems, "the orders are not usable")
    return wanted, mode, margin


def _check_margin(orders: Orders, margin: Float1D, fills: Fills) -> None:
    lost = (np.nan_to_num(margin) > 0.0) & ~fills.book.positions.isolated[fills.place]
    if lost.any():
        row = int(np.flatnonzero(lost)[0])
        raise DataError(
            "the order brings isolated_margin_usd to a position that is not isolated",
            table="orders",
            market=str(orders.symbol[row]),
            row=row,
            fix="leave it out, or set margin_mode = 'isolated' on the order that opens the position",
        )


def _pool_tests(
    fills: Fills,
    after: Decisions,
    score: Score,
    level: NDArray[np.uint8],
    policy: BreakerPolicy,
    max_leverage: Mapping[str, float],
) -> tuple[Bool1D, Bool1D]:
    """Orders after which a touched pool is short of initial margin, and those beyond isolated leverage."""
    n_orders, positions = len(fills.place), fills.book.positions
    pools = split_pools(fills.book, fills.mark, after.collateral_usd, after.equity_usd)
    scored = score(pools.book)
    equity = scored.equity_usd
    isolated = np.flatnonzero(positions.isolated)
    own = np.arange(n_orders)
    alone = positions.isolated[fills.place]
    own[alone] = n_orders + np.searchsorted(isolated, fills.place[alone])
    short = scored.initial_margin_usd[own] > equity[own]
    cross = scored.initial_margin_usd[:n_orders] > equity[:n_orders]
    # Cash set aside by the order, or the share of the equity that a new position without a margin takes.
    draws = fills.moves_margin | (alone & np.isnan(positions.isolated_margin_usd[fills.place]))
    short |= draws & cross
    share = policy.leverage_shares[level]
    exposure = np.abs(positions.size[fills.place]) * fills.mark[fills.place]
    names = zip(positions.venue[fills.place], positions.symbol[fills.place], strict=True)
    most = np.asarray(
        [max_leverage.get(f"{v}:{s}", max_leverage.get(s, np.inf)) for v, s in names], dtype=np.float64
    )
    capped = np.isfinite(most)
    allowed = np.where(capped, most, 0.0) * share * np.maximum(equity[own], 0.0)
    beyond = (scored.initial_margin_usd[own] > share * equity[own]) | (capped & (exposure > allowed))
    return short, fills.enlarges & beyond


def _lowers(before: Float2D, after: Float2D) -> Bool1D:
    """Orders that lower a requirement and raise none; both [n_orders, 3], USD before rounding."""
    rises = after > before * (1.0 + ROUNDING)
    falls = after < before * (1.0 - MEASURABLE)
    return np.asarray(falls.any(axis=1) & ~rises.any(axis=1))


def _bits(name: str, mask: Bool1D) -> NDArray[np.uint64]:
    return np.where(mask, np.uint64(reason_bit(name)), np.uint64(0)).astype(np.uint64)
