"""Books taken apart: every pool as an account of its own, and a pool at other position sizes.

A requirement belongs to a pool, a decision to an account. An account per pool makes the one engine
(:func:`riskml.risk.decisions.decide`) say what each pool needs, and an account per variant of a pool makes
it say what each cut would do, in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Float2D, Int1D
from riskml.risk.accounts import AccountBook, Collateral, Orders, Positions
from riskml.risk.collateral import Valuation
from riskml.risk.orders import order_pools
from riskml.risk.outcome import Decisions
from riskml.risk.pools import Pools, make_pools
from riskml.risk.sums import sum_by

Table = TypeVar("Table", Positions, Collateral, Orders)
Score = Callable[[AccountBook], Decisions]
"""What scores a book: ``decide`` with all but the book given. It is called on books of invented account
names, so it must not remember them (``Scorer.what_if`` does not)."""


@dataclass(frozen=True)
class PoolBook:
    """A book in which every pool of another one is an account."""

    book: AccountBook
    """Account a < n_accounts is account a's cross pool, isolated positions follow in their order. Positions
    are at their current marks without open profit; cash holds it."""
    owner: Int1D
    """[n_pools] row of the account in the other book."""
    row: Int1D
    """[n_positions here] row of the position in the other book."""


def select_accounts(book: AccountBook, rows: Int1D) -> tuple[AccountBook, Int1D]:
    """Some accounts of a book, each named once, and the rows of their positions in it."""
    place = np.full(len(book), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    held, pledged, ordered = (
        np.flatnonzero(place[table.account] >= 0) for table in (book.positions, book.collateral, book.orders)
    )
    return (
        AccountBook(
            book.account_id[rows],
            book.cash_usd[rows],
            book.maintenance_margin_usd[rows],
            book.margin_mode[rows],
            take_rows(book.positions, held, place[book.positions.account[held]]),
            take_rows(book.collateral, pledged, place[book.collateral.account[pledged]]),
            take_rows(book.orders, ordered, place[book.orders.account[ordered]]),
            book.ts,
        ),
        held,
    )


def take_rows(table: Table, rows: Int1D, account: Int1D) -> Table:
    """Some rows of a table of a book, any row any number of times, with their accounts [n_rows]."""
    names = [name for name in table.__dataclass_fields__ if name != "account"]
    return type(table)(account, *(getattr(table, name)[rows] for name in names))


def without_orders(book: AccountBook, dropped: Bool1D | None = None) -> AccountBook:
    """The book without open orders, or without those of a mask [n_orders]."""
    rows = np.empty(0, dtype=np.int64) if dropped is None else np.flatnonzero(~dropped)
    return replace(book, orders=take_rows(book.orders, rows, book.orders.account[rows]))


def with_known_margins(
    book: AccountBook, mark: Float1D, collateral_usd: Float1D, accounts: Bool1D | None = None
) -> AccountBook:
    """The book with every isolated margin that is not published fixed at what ``decide`` gives it now.

    It is taken off cash, so that equity stays as it is, pool by pool. Whatever then changes one position
    leaves the margin of the others alone.

    Parameters
    ----------
    mark : [n_positions] current price of each position.
    collateral_usd : [n_accounts] collateral after haircuts.
    accounts : [n_accounts] only of these; None = of all.
    """
    positions, n_accounts = book.positions, len(book)
    unknown = positions.isolated & np.isnan(positions.isolated_margin_usd) & (positions.size != 0.0)
    if accounts is not None:
        unknown &= accounts[positions.account]
    if not unknown.any():
        return book
    pools = _pools(book, mark, collateral_usd)
    profit = positions.size * (mark - positions.entry_price)
    given = pools.equity_usd[pools.position_pool] - profit
    margin = np.where(unknown, given, positions.isolated_margin_usd)
    taken = sum_by(positions.account, np.where(unknown, given, 0.0), n_accounts)
    return replace(
        book, cash_usd=book.cash_usd - taken, positions=replace(positions, isolated_margin_usd=margin)
    )


def _pools(book: AccountBook, mark: Float1D, collateral_usd: Float1D) -> Pools:
    """Pools of a book, its collateral as cash."""
    none = np.empty(0, dtype=np.int64)
    flat = replace(
        book, cash_usd=book.cash_usd + collateral_usd, collateral=take_rows(book.collateral, none, none)
    )
    return make_pools(flat, mark, _NO_COLLATERAL)


def split_pools(
    book: AccountBook, mark: Float1D, collateral_usd: Float1D, equity_usd: Float1D | None = None
) -> PoolBook:
    """Take a book apart.

    Parameters
    ----------
    mark : [n_positions] current price of each position.
    collateral_usd : [n_accounts] collateral after haircuts (``Decisions.collateral_usd``): an isolated
        position whose margin is not published gets its part of the equity, as ``decide`` gives it.
    equity_usd : [n_accounts] ``Decisions.equity_usd``; what it lacks against the book (profit that is
        withheld) is taken from the cross pool. None = nothing is withheld.
    """
    positions, n_accounts = book.positions, len(book)
    pools = _pools(book, mark, collateral_usd)
    withheld = np.zeros(n_accounts)
    if equity_usd is not None:
        withheld = np.maximum(pools.account_equity(n_accounts) - equity_usd, 0.0)
    isolated = np.flatnonzero(positions.isolated)
    # The cross pool keeps isolated positions at size 0: their venues say where collateral settles.
    row = np.concatenate([np.arange(len(positions.size)), isolated])
    account = np.concatenate([positions.account, n_accounts + np.arange(len(isolated))])
    alone = np.arange(len(row)) >= len(positions.size)
    taken = take_rows(positions, row, account)
    stated = np.where(np.isnan(positions.mark_price), mark, positions.mark_price)
    gross = sum_by(positions.account, np.abs(positions.size * stated), n_accounts)
    rate = np.divide(book.maintenance_margin_usd, gross, out=np.full(n_accounts, np.nan), where=gross > 0.0)
    rate = np.where(np.isnan(book.maintenance_margin_usd) | (gross > 0.0), rate, 0.0)
    names = [
        f"{book.account_id[positions.account[place]]}|{positions.venue[place]}:{positions.symbol[place]}"
        for place in isolated
    ]
    return PoolBook(
        AccountBook(
            np.asarray([*book.account_id, *names], dtype=object),
            np.concatenate(
                [pools.equity_usd[:n_accounts] - withheld - collateral_usd, np.zeros(len(isolated))]
            ),
            rate[pools.account] * pools.gross_usd,
            book.margin_mode[pools.account],
            replace(
                taken,
                size=np.where(taken.isolated & ~alone, 0.0, taken.size),
                entry_price=mark[row],
                funding_per_unit=np.zeros(len(row)),
                mark_price=mark[row],
                isolated=alone,
                isolated_margin_usd=np.where(alone, pools.equity_usd[account], np.nan),
            ),
            book.collateral,
            replace(book.orders, account=order_pools(book, pools)),
            book.ts,
        ),
        pools.account,
        row,
    )


_NOTHING: AnyArray = np.empty(0)
_NO_COLLATERAL = Valuation(**{item.name: _NOTHING for item in fields(Valuation)})
"""Of no rows: ``make_pools`` reads their values alone, which are in the cash here."""


@dataclass(frozen=True)
class Pool:
    """One pool of a :class:`PoolBook`, to be scored at other sizes of its positions."""

    book: AccountBook
    """A book of this account alone, without orders."""
    row: Int1D
    """[n_positions] row of each position in the book that was taken apart."""
    closing_cost: float
    """Cost of closing, fraction of notional."""

    @classmethod
    def of(cls, pools: PoolBook, place: int, closing_cost: float) -> Pool:
        """The pool at ``place``; positions without size are kept, as they were."""
        book, rows = select_accounts(without_orders(pools.book), np.asarray([place], dtype=np.int64))
        return cls(book, pools.row[rows], closing_cost)

    @cached_property
    def notional_usd(self) -> Float1D:
        """|size x mark| of each position [n_positions]."""
        return np.asarray(np.abs(self.book.positions.size * self.book.positions.mark_price))

    def variants(self, closed: Float2D, added_usd: float = 0.0) -> AccountBook:
        """An account for each row of ``closed`` [n_variants, n_positions], fractions of the positions.

        Closing is at the mark, so equity changes by its cost, and by ``added_usd``, alone.
        """
        n_variants, n_positions = closed.shape
        positions, collateral = self.book.positions, self.book.collateral
        cost = (closed * self.notional_usd).sum(axis=1) * self.closing_cost - added_usd
        alone = bool(positions.isolated.any())
        rows, account = _tiled(n_positions, n_variants)
        taken = take_rows(positions, rows, account)
        gross = self.notional_usd.sum()
        left = ((1.0 - closed) * self.notional_usd).sum(axis=1) / (gross if gross > 0.0 else 1.0)
        return AccountBook(
            np.asarray([str(number) for number in range(n_variants)], dtype=object),
            self.book.cash_usd - (0.0 if alone else cost),
            self.book.maintenance_margin_usd * left,
            np.repeat(self.book.margin_mode, n_variants),
            replace(
                taken,
                size=taken.size * (1.0 - closed.ravel()),
                isolated_margin_usd=taken.isolated_margin_usd - (cost[account] if alone else 0.0),
            ),
            take_rows(collateral, *_tiled(len(collateral.amount), n_variants)),
            without_orders(self.book).orders,
            self.book.ts,
        )


def _tiled(size: int, times: int) -> tuple[Int1D, Int1D]:
    """Rows 0 .. size - 1 ``times`` over, and which time each is."""
    numbers: AnyArray = np.arange(times)
    return np.tile(np.arange(size), times), np.repeat(numbers, size)
