"""Trial books: what an engine says to one more order, for many accounts, markets and sides at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D
from riskml.risk.accounts import AccountBook, Collateral, Orders, Positions
from riskml.risk.book_columns import MAX_USD
from riskml.risk.margin import CENT
from riskml.risk.outcome import Decisions
from riskml.risk.pool_books import Score

SIDES = ("long", "short")
FIRST_SIZE = 0.25
"""Share of equity at which the search starts doubling: below the leverage that most markets allow."""
LARGEST_USD = MAX_USD / 8.0
"""Largest size tried: with what is held it stays within what a book may hold."""
Pair = tuple[str, str]


def own_marks(positions: Positions) -> Float1D:
    """Mark of every position, its entry price where that is unknown [n_positions]."""
    return np.where(np.isnan(positions.mark_price), positions.stated_entry_price, positions.mark_price)


def engine_prices(book: AccountBook, pairs: tuple[Pair, ...], decide_book: Score) -> dict[Pair, float]:
    """Live price by which the engine values each market of ``pairs`` and of the book; NaN = none.

    One unit is marked at 1 and at 2: a price that does not follow the mark is the engine's own.
    """
    wanted = list(dict.fromkeys([*pairs, *book.positions.markets[0]]))
    n_probes = 2 * len(wanted)
    mark = np.tile([1.0, 2.0], len(wanted))
    names = np.repeat(np.asarray([list(pair) for pair in wanted], dtype=object).reshape(-1, 2), 2, axis=0)
    probe = AccountBook(
        np.asarray([f"probe {number}" for number in range(n_probes)], dtype=object),
        np.zeros(n_probes),
        np.zeros(n_probes),
        np.full(n_probes, "cross", dtype=object),
        Positions(
            np.arange(n_probes),
            names[:, 0],
            names[:, 1],
            np.ones(n_probes),
            mark,
            mark,
            np.zeros(n_probes, dtype=np.bool_),
            np.full(n_probes, np.nan),
            np.zeros(n_probes),
        ),
        _rows_of(book.collateral, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)),
        _rows_of_orders(book.orders, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)),
        book.ts,
    )
    found = decide_book(probe).contributions
    value = found.exposure_usd[found.indptr[:-1]].reshape(-1, 2)
    live = np.where(value[:, 0] == value[:, 1], value[:, 0], np.nan)
    return dict(zip(wanted, live.tolist(), strict=True))


@dataclass(frozen=True)
class Trials:
    """One trial account per account, market and side, in that order."""

    decide_book: Score
    book: AccountBook
    """Trial accounts; where an account has no position in the market, one of size 0 waits."""
    account: Int1D
    """[n_trials] row of the account in the book that is tried."""
    traded: Int1D
    """[n_trials] position that the order changes."""
    price: Float1D
    """[n_trials] what the engine values one unit of it at."""
    sign: Float1D
    """[n_trials] 1 buys, -1 sells."""

    @classmethod
    def make(
        cls,
        book: AccountBook,
        accounts: Int1D,
        pairs: tuple[Pair, ...],
        price: Mapping[Pair, float],
        decide_book: Score,
    ) -> Trials:
        """Trials of some accounts in every market of ``pairs``; ``price`` from :func:`engine_prices`."""
        held = book.positions
        account = np.repeat(accounts, len(pairs) * len(SIDES))
        pair = np.tile(np.repeat(np.arange(len(pairs)), len(SIDES)), len(accounts))
        names = np.asarray([list(item) for item in pairs], dtype=object).reshape(-1, 2)[pair]
        owner, row = rows_of_accounts(held.account, len(book), account)
        same = (held.venue[row] == names[owner, 0]) & (held.symbol[row] == names[owner, 1])
        traded = np.full(len(account), -1, dtype=np.int64)
        traded[owner[same]] = np.flatnonzero(same)
        new = np.flatnonzero(traded < 0)
        traded[new] = len(row) + np.arange(len(new))
        live = np.asarray([price[item] for item in pairs])[pair]
        # Without a live price one unit of a new position is marked at 1 USD.
        opened = np.where(np.isnan(live), 1.0, live)[new]
        mark = np.concatenate([own_marks(held)[row], opened])
        entry = np.where(np.isnan(held.entry_price), own_marks(held), held.entry_price)
        alone = book.margin_mode[account[new]] == "isolated"
        positions = Positions(
            np.concatenate([owner, new]),
            np.concatenate([held.venue[row], names[new, 0]]),
            np.concatenate([held.symbol[row], names[new, 1]]),
            np.concatenate([held.size[row], np.zeros(len(new))]),
            np.concatenate([entry[row], opened]),
            mark,
            np.concatenate([held.isolated[row], np.asarray(alone, dtype=np.bool_)]),
            np.concatenate([held.isolated_margin_usd[row], np.full(len(new), np.nan)]),
            np.concatenate([held.funding_per_unit[row], np.zeros(len(new))]),
        )
        names_of = zip(book.account_id[account], range(len(account)), strict=True)
        trial = AccountBook(
            np.asarray([f"{name}, trial {number}" for name, number in names_of], dtype=object),
            book.cash_usd[account],
            book.maintenance_margin_usd[account],
            book.margin_mode[account],
            positions,
            _rows_of(book.collateral, *rows_of_accounts(book.collateral.account, len(book), account)),
            _rows_of_orders(book.orders, *rows_of_accounts(book.orders.account, len(book), account)),
            book.ts,
        )
        unit = np.where(np.isnan(live), mark[traded], live)
        return cls(decide_book, trial, account, traded, unit, np.tile([1.0, -1.0], len(account) // 2))

    def after(self, size_usd: Float1D) -> Decisions:
        """Decisions after an order of ``size_usd`` [n_trials] in every trial account, filled at once."""
        positions = self.book.positions
        change = self.sign * size_usd / self.price
        size = positions.size.copy()
        size[self.traded] += change
        # Filled at the price that it is valued at, an order makes no profit: what the position's entry
        # price makes of it is booked, to cash or to the margin of the isolated position.
        made = change * (self.price - positions.entry_price[self.traded])
        margin = positions.isolated_margin_usd.copy()
        alone = positions.isolated[self.traded] & np.isfinite(margin[self.traded])
        margin[self.traded] -= np.where(alone, made, 0.0)
        cash = self.book.cash_usd - np.where(alone, 0.0, made)
        filled = replace(positions, size=size, isolated_margin_usd=margin)
        return self.decide_book(replace(self.book, cash_usd=cash, positions=filled))

    def search(self, now: Decisions) -> tuple[Float1D, NDArray[np.uint64]]:
        """Largest accepted size of every trial, rounded down to cents, and why the next one was refused.

        Parameters
        ----------
        now : decisions on the book that is tried.
        """
        bracket = _Bracket.start(now, self.account)
        may = bracket.room >= 0.0
        # Without what isolated positions have to spare.
        equity = (now.initial_margin_usd + now.initial_spare_usd)[self.account]
        size = np.clip(equity * FIRST_SIZE, CENT, LARGEST_USD)
        open_ = may.copy()
        while open_.any():
            bracket.take(self.after(np.where(open_, size, 0.0)), size, open_)
            open_ &= np.isinf(bracket.refused) & (size < LARGEST_USD)
            size = np.minimum(2.0 * size, LARGEST_USD)
        step = 0
        while (open_ := bracket.open()).any():
            size = bracket.middle(bisect=step % 3 == 2)
            bracket.take(self.after(np.where(open_, size, 0.0)), size, open_)
            step += 1
        return np.floor(bracket.accepted / CENT) * CENT, bracket.reasons


@dataclass
class _Bracket:
    """What is known of every trial: the largest size accepted and the smallest one refused, USD."""

    accepted: Float1D
    refused: Float1D
    """inf before the first refusal."""
    room: Float1D
    """:func:`_room` at ``accepted``, >= 0; halved while only the other end moves."""
    lack: Float1D
    """The same at ``refused``, < 0."""
    reasons: NDArray[np.uint64]
    """Of the smallest size refused."""
    _up: Bool1D
    _down: Bool1D

    @classmethod
    def start(cls, now: Decisions, account: Int1D) -> _Bracket:
        room = _room(now)[account]
        none = np.zeros(len(account), dtype=np.bool_)
        return cls(
            np.zeros(len(account)),
            np.full(len(account), np.inf),
            room,
            np.full(len(account), -np.inf),
            now.reasons[account],
            none,
            none,
        )

    def open(self) -> Bool1D:
        """Trials whose ends are further apart than half a cent."""
        width = self.refused - self.accepted
        return np.asarray(
            np.isfinite(width) & (width > np.maximum(0.5 * CENT, 8.0 * np.spacing(self.accepted)))
        )

    def middle(self, *, bisect: bool) -> Float1D:
        """The next size: halfway, or where a straight line says (Illinois method: Dowell and Jarratt, 1971).

        A requirement is nearly proportional to size, so that the line lands within cents; a point at an
        end moves inward by what is left to close.
        """
        open_ = self.open()
        width = np.where(open_, self.refused - self.accepted, 0.0)
        part = np.full(len(width), 0.5)
        if not bisect:
            part = np.divide(self.room, self.room - self.lack, out=part, where=open_)
        inward = np.minimum(np.maximum(0.4 * CENT, 4.0 * np.spacing(self.accepted)), 0.5 * width)
        return np.asarray(self.accepted + np.clip(part * width, inward, width - inward))

    def take(self, found: Decisions, size: Float1D, open_: Bool1D) -> None:
        """Move an end of every open trial to ``size``."""
        room = _room(found)
        up, down = open_ & (room >= 0.0), open_ & (room < 0.0)
        self.accepted = np.where(up, size, self.accepted)
        self.refused = np.where(down, size, self.refused)
        self.room = np.where(up, room, np.where(down & self._down, 0.5 * self.room, self.room))
        self.lack = np.where(down, room, np.where(up & self._up, 0.5 * self.lack, self.lack))
        self.reasons = np.where(down, found.reasons, self.reasons)
        self._up, self._down = up, down


def _room(found: Decisions) -> Float1D:
    """Equity above the initial requirement [n_accounts], of the pool nearest to it; < 0 = what pools lack."""
    return np.asarray(found.initial_spare_usd - found.initial_shortfall_usd)


def rows_of_accounts(of_account: Int1D, n_accounts: int, account: Int1D) -> tuple[Int1D, Int1D]:
    """The rows of a table that belong to some accounts, which may be named again and again.

    Parameters
    ----------
    of_account : [n_rows] account of every row.
    account : [n] accounts asked for.

    Returns
    -------
    (place in ``account``, row) of every row of every account asked for, ordered by place.
    """
    order = np.argsort(of_account, kind="stable")
    begin = np.searchsorted(of_account[order], np.arange(n_accounts + 1))
    n_rows = np.diff(begin)[account]
    owner = np.repeat(np.arange(len(account)), n_rows)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    return owner, order[begin[account][owner] + within]


def _rows_of(rows: Collateral, owner: Int1D, row: Int1D) -> Collateral:
    return Collateral(owner, rows.chain[row], rows.asset[row], rows.amount[row], rows.price_usd[row])


def _rows_of_orders(rows: Orders, owner: Int1D, row: Int1D) -> Orders:
    columns: tuple[AnyArray, ...] = (rows.venue, rows.symbol, rows.size, rows.price, rows.reduce_only)
    return Orders(owner, *(column[row] for column in columns))
