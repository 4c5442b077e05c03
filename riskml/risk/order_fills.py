"""Orders filled: each one in a copy of its account, so that an engine can say what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D
from riskml.risk.accounts import AccountBook, Orders, Positions
from riskml.risk.book_columns import is_price
from riskml.risk.engines.interface import current_marks
from riskml.risk.pool_books import take_rows, with_known_margins
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class Fills:
    """Each order filled at the current price, in a copy of its account."""

    book: AccountBook
    """An account per order."""
    place: Int1D
    """[n_orders] row of the filled position in that book."""
    mark: Float1D
    """[n_positions] current price of each position of that book."""
    reduces: Bool1D
    """Makes |position| smaller without flipping it, or may do nothing else."""
    enters: Bool1D
    """Opens a position, or flips one."""
    enlarges: Bool1D
    """Makes an isolated position larger, or opens one."""
    moves_margin: Bool1D
    """Sets cash aside for an isolated position."""
    margin_unknown: Bool1D
    """The filled position is isolated, and its margin is not known."""

    @classmethod
    def of(
        cls,
        book: AccountBook,
        orders: Orders,
        mode: AnyArray,
        margin: Float1D,
        prices: Mapping[str, float],
        collateral_usd: Float1D | None = None,
    ) -> Fills:
        """Fill ``orders``, whose accounts are rows of ``book``.

        ``collateral_usd`` [n_accounts] after haircuts: isolated margins that are not published are fixed at
        their part of the equity before the fill, which would else move it. None = the book has none of them,
        or is taken as it is.
        """
        n_orders = len(orders.size)
        not_published = np.isnan(book.positions.isolated_margin_usd)
        mark, _ = current_marks(book.positions, prices)
        if collateral_usd is not None:
            book = with_known_margins(book, mark, collateral_usd)
        rows, copy = _rows_of(book.positions.account, orders.account)
        taken, taken_mark = take_rows(book.positions, rows, copy), mark[rows]
        is_it = (taken.venue == orders.venue[copy]) & (taken.symbol == orders.symbol[copy])
        found = np.full(n_orders, -1, dtype=np.int64)
        found[copy[is_it]] = np.flatnonzero(is_it)
        opening = np.flatnonzero(found < 0)
        found[opening] = len(rows) + np.arange(len(opening))
        positions = _with_new(taken, orders, opening, mode, prices)
        current = np.concatenate([taken_mark, positions.mark_price[len(rows) :]])
        held = positions.size[found]
        not_published = np.concatenate([not_published[rows], np.isnan(margin[opening])])[found]
        opposite = held * orders.size < 0.0
        # A reduce-only order trades what closes its position at most, and nothing on the same side.
        most = np.where(opposite, np.minimum(np.abs(orders.size), np.abs(held)), 0.0)
        traded = np.where(orders.reduce_only, np.sign(orders.size) * most, orders.size)
        new = held + traded
        filled, cash = _filled(positions, found, new, current[found], margin)
        gross = sum_by(positions.account, np.abs(positions.size) * current, n_orders)
        after = sum_by(positions.account, np.abs(filled.size) * current, n_orders)
        share = np.divide(after, gross, out=np.full(n_orders, np.nan), where=gross > 0.0)
        collateral, of_copy = _rows_of(book.collateral.account, orders.account)
        open_orders, of_order = _rows_of(book.orders.account, orders.account)
        isolated = filled.isolated[found]
        return cls(
            AccountBook(
                np.asarray([str(number) for number in range(n_orders)], dtype=object),
                book.cash_usd[orders.account] + cash,
                book.maintenance_margin_usd[orders.account] * share,
                book.margin_mode[orders.account],
                filled,
                take_rows(book.collateral, collateral, of_copy),
                take_rows(book.orders, open_orders, of_order),
                book.ts,
            ),
            found,
            current,
            orders.reduce_only | (opposite & (np.abs(orders.size) <= np.abs(held))),
            (new != 0.0) & ((held == 0.0) | (held * new < 0.0)),
            isolated & (np.abs(new) > np.abs(held)),
            isolated & (np.nan_to_num(margin) > 0.0),
            isolated & not_published & (new != 0.0),
        )


def _rows_of(owner: Int1D, accounts: Int1D) -> tuple[Int1D, Int1D]:
    """Rows of a table that belong to each of ``accounts``, one after the other, and whose they are."""
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], accounts, side="left")
    count = np.searchsorted(owner[order], accounts, side="right") - first
    copy = np.repeat(np.arange(len(accounts)), count)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return order[first[copy] + within], copy


def _with_new(
    positions: Positions, orders: Orders, opening: Int1D, mode: AnyArray, prices: Mapping[str, float]
) -> Positions:
    """Positions with one of size 0 for each order that has none."""
    venue, symbol = orders.venue[opening], orders.symbol[opening]
    live = [prices.get(f"{v}:{s}", prices.get(s, np.nan)) for v, s in zip(venue, symbol, strict=True)]
    price = np.asarray(live, dtype=np.float64)
    price = np.where(is_price(price), price, orders.price[opening])
    new = {
        "account": opening,
        "venue": venue,
        "symbol": symbol,
        "size": np.zeros(len(opening)),
        "entry_price": price,
        "mark_price": price,
        "isolated": np.asarray(mode[opening] == "isolated", dtype=np.bool_),
        "isolated_margin_usd": np.full(len(opening), np.nan),
        "funding_per_unit": np.zeros(len(opening)),
    }
    return Positions(**{name: np.concatenate([getattr(positions, name), new[name]]) for name in new})


def _filled(
    positions: Positions, place: Int1D, size: Float1D, mark: Float1D, margin: Float1D
) -> tuple[Positions, Float1D]:
    """Positions with the sizes at ``place`` [n_orders] changed at the mark, and what goes to each's cash."""
    sizes, entries = positions.size.copy(), positions.entry_price.copy()
    own, funding = positions.isolated_margin_usd.copy(), positions.funding_per_unit.copy()
    profit = sizes[place] * (mark - entries[place])
    isolated = positions.isolated[place]
    paid = np.where(isolated, np.nan_to_num(margin), 0.0)
    stated = np.isfinite(own[place]) | (isolated & np.isfinite(margin) & (sizes[place] == 0.0))
    keeps = isolated & stated
    sizes[place], entries[place], funding[place] = size, mark, 0.0
    own[place] = np.where(keeps, np.nan_to_num(own[place]) + profit + paid, own[place])
    cash = np.where(keeps, -paid, profit)
    filled = replace(
        positions, size=sizes, entry_price=entries, isolated_margin_usd=own, funding_per_unit=funding
    )
    return filled, cash
