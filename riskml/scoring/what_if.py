"""Books as they would be: after trades, and after a move of prices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Float1D
from riskml.errors import DataError, Problem, nearest
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import current_marks
from riskml.risk.outcome import Decisions
from riskml.risk.pool_books import with_known_margins
from riskml.risk.sums import sum_by
from riskml.scoring.prices import is_number

_ALL = "*"


def changed_book(
    book: AccountBook,
    prices: Mapping[str, float],
    trades: Sequence[Mapping[str, Any]],
    shock: Mapping[str, float] | float | None,
    markets: Sequence[str] = (),
) -> tuple[AccountBook, dict[str, float]]:
    """The book and the prices after ``trades`` at current prices and then ``shock``.

    Parameters
    ----------
    prices : symbol -> price by which the book is marked; positions of other symbols keep their marks.
    trades : see :meth:`riskml.scoring.Scorer.what_if`.
    shock : move per symbol as a fraction, or one number for all.
    markets : further symbols that a shock may name, beside those of the book and of ``prices``.

    Raises
    ------
    DataError : a trade names an unknown account, has no usable size or no price; a shock <= -1, or of
        a symbol that nothing here has.
    """
    moves = _moves(shock)
    columns = _book_columns(book, prices)
    known = {*markets, *prices, *columns["positions"]["symbol"], *columns["collateral"]["asset"], _ALL}
    for symbol in moves:
        if symbol not in known:
            raise DataError(
                f"the shock names '{symbol}', which is no market here.{nearest(symbol, sorted(known))}",
                market=symbol,
                fix="use the symbols of the book, e.g. BTC",
            )
    held = _notional(columns["positions"], book)
    _apply_trades(columns, book, prices, trades)
    positions, collateral = columns["positions"], columns["collateral"]
    positions["mark_price"] = positions["mark_price"] * _factor(positions["symbol"], moves)
    _move_maintenance(columns, book, held)
    moving = dict(moves)
    if _ALL in moving:  # a move of all markets does not move a stablecoin
        general = moving.pop(_ALL)
        traded = {str(symbol) for symbol in positions["symbol"]} | set(prices)
        moving = dict.fromkeys(traded, general) | moving
    collateral["price_usd"] = collateral["price_usd"] * _factor(collateral["asset"], moving)
    shocked = {symbol: price * _move(symbol, moves) for symbol, price in prices.items()}
    return AccountBook.from_arrays(**columns), shocked


def with_margins_of_traders(
    book: AccountBook,
    prices: Mapping[str, float],
    trades: Sequence[Mapping[str, Any]],
    score: Callable[[AccountBook], Decisions],
) -> AccountBook:
    """The book with the isolated margins that are not published fixed, of the accounts that trade.

    A trade would else move them: each is its position's part of the equity.

    Parameters
    ----------
    score : says what the collateral is worth now; asked only where a margin is not published.
    """
    traders = [trade.get("account_id") for trade in trades]
    trading = np.asarray([name in traders for name in book.account_id.tolist()], dtype=np.bool_)
    positions = book.positions
    unknown = positions.isolated & np.isnan(positions.isolated_margin_usd) & (positions.size != 0.0)
    if not (unknown & trading[positions.account]).any():
        return book
    mark, _ = current_marks(positions, prices)
    return with_known_margins(book, mark, score(book).collateral_usd, trading)


def _notional(positions: Mapping[str, Any], book: AccountBook) -> Float1D:
    """Sum of |size x mark| of each account [n_accounts]."""
    row = {str(name): place for place, name in enumerate(book.account_id)}
    accounts = np.array([row[str(name)] for name in positions["account_id"]], dtype=np.int64)
    return sum_by(accounts, np.abs(positions["size"] * positions["mark_price"]), len(book))


def _move_maintenance(columns: dict[str, dict[str, Any]], book: AccountBook, held: Float1D) -> None:
    """The venue's maintenance goes with exposure; of an account that held nothing it becomes unknown."""
    stated = book.maintenance_margin_usd
    now = _notional(columns["positions"], book)
    moved = stated * np.divide(now, held, out=np.full(len(held), np.nan), where=held > 0.0)
    columns["accounts"]["maintenance_margin_usd"] = np.where((now == 0.0) & (held == 0.0), stated, moved)


def _moves(shock: Mapping[str, float] | float | None) -> dict[str, float]:
    moves = {} if shock is None else dict(shock) if isinstance(shock, Mapping) else {_ALL: shock}
    for symbol, move in moves.items():
        if not is_number(move) or not np.isfinite(move) or move <= -1.0:
            raise DataError(
                f"a shock has to be a fraction above -1, found {move!r}",
                market=symbol,
                fix="write -0.2 for a fall by 20 %",
            )
    return moves


def _move(symbol: str, moves: Mapping[str, float]) -> float:
    return 1.0 + moves.get(symbol, moves.get(_ALL, 0.0))


def _factor(names: AnyArray, moves: Mapping[str, float]) -> Float1D:
    return np.array([_move(str(name), moves) for name in names], dtype=np.float64)


def _book_columns(book: AccountBook, prices: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    ids, positions = np.asarray(book.account_id), book.positions
    marks = np.where(np.isfinite(positions.mark_price), positions.mark_price, positions.stated_entry_price)
    return {
        "accounts": {
            "account_id": ids,
            "cash_usd": book.cash_usd.copy(),
            "maintenance_margin_usd": book.maintenance_margin_usd,
            "margin_mode": book.margin_mode,
            "ts": None if book.ts is None else [book.ts] * len(ids),
        },
        "positions": {
            "account_id": ids[positions.account],
            "venue": positions.venue,
            "symbol": positions.symbol,
            "size": positions.size.copy(),
            "entry_price": positions.entry_price.copy(),
            "mark_price": np.array(
                [prices.get(str(name), mark) for name, mark in zip(positions.symbol, marks, strict=True)]
            ),
            "margin_mode": np.where(positions.isolated, "isolated", "cross"),
            # What with_known_margins takes from an equity of 0 may be rounded to less.
            "isolated_margin_usd": np.maximum(positions.isolated_margin_usd, 0.0),
        },
        "collateral": {
            "account_id": ids[book.collateral.account],
            "chain": book.collateral.chain,
            "asset": book.collateral.asset,
            "amount": book.collateral.amount,
            "price_usd": book.collateral.price_usd,
        },
        "orders": {
            "account_id": ids[book.orders.account],
            "venue": book.orders.venue,
            "symbol": book.orders.symbol,
            "size": book.orders.size,
            "price": book.orders.price,
            "reduce_only": book.orders.reduce_only,
        },
    }


def _apply_trades(
    columns: dict[str, dict[str, Any]],
    book: AccountBook,
    prices: Mapping[str, float],
    trades: Sequence[Mapping[str, Any]],
) -> None:
    """Merge trades into the positions; what is realised goes to cash, or to an isolated position's margin."""
    if not trades:
        return
    positions, accounts = columns["positions"], columns["accounts"]
    rows = {name: list(values) for name, values in positions.items()}
    place = {
        key: row
        for row, key in enumerate(zip(rows["account_id"], rows["venue"], rows["symbol"], strict=True))
    }
    account_row = {str(name): row for row, name in enumerate(book.account_id)}
    marks = {
        str(symbol): float(mark) for symbol, mark in zip(rows["symbol"], rows["mark_price"], strict=True)
    }
    problems = []
    for number, trade in enumerate(trades):
        problem = _trade_problem(trade, number, account_row)
        symbol = str(trade.get("symbol", ""))
        given = trade.get("price")
        current = prices.get(symbol, marks.get(symbol, np.nan))
        price = current if given is None else given if is_number(given) else np.nan
        if problem is None and not (np.isfinite(price) and price > 0):
            problem = Problem(
                "no-price",
                "the trade has no positive price",
                "add 'price'",
                "trades",
                str(trade["symbol"]),
                number,
            )
        if problem is not None:
            problems.append(problem)
            continue
        key = (trade["account_id"], trade["venue"], trade["symbol"])
        if key not in place:
            place[key] = len(rows["size"])
            new = dict(zip(("account_id", "venue", "symbol"), key, strict=True)) | {
                "size": 0.0,
                "entry_price": price,
                "mark_price": prices.get(trade["symbol"], marks.get(trade["symbol"], price)),
                "margin_mode": "cross",
                "isolated_margin_usd": np.nan,
            }
            for name, values in rows.items():
                values.append(new[name])
        row = place[key]
        realised, rows["size"][row], rows["entry_price"][row] = _fill(
            float(rows["size"][row]), float(rows["entry_price"][row]), float(trade["size"]), float(price)
        )
        if rows["margin_mode"][row] == "isolated" and np.isfinite(rows["isolated_margin_usd"][row]):
            realised = _into_margin(rows, row, realised)
        accounts["cash_usd"][account_row[trade["account_id"]]] += realised
    if problems:
        raise DataError.from_problems(problems, "the trades are not usable")
    for name in ("size", "entry_price", "mark_price", "isolated_margin_usd"):
        positions[name] = np.array(rows[name], dtype=np.float64)
    for name in ("account_id", "venue", "symbol", "margin_mode"):
        positions[name] = np.array(rows[name], dtype=object)


def _into_margin(rows: dict[str, list[Any]], row: int, realised: float) -> float:
    """Book what a trade realised to the margin of an isolated position; returns what goes to cash.

    A position that is closed gives its margin back. It loses its margin at most.
    """
    size, entry, mark = (float(rows[name][row]) for name in ("size", "entry_price", "mark_price"))
    left = float(rows["isolated_margin_usd"][row]) + realised
    rows["isolated_margin_usd"][row] = max(left, 0.0) if size else np.nan
    if not size:
        return max(left, 0.0)
    return min(left, 0.0) if left + size * (mark - entry) > 0.0 else 0.0


def _trade_problem(trade: Mapping[str, Any], number: int, accounts: Mapping[str, int]) -> Problem | None:
    missing = [name for name in ("account_id", "venue", "symbol", "size") if name not in trade]
    if missing:
        return Problem("missing-column", f"the trade has no '{missing[0]}'", "add it", "trades", None, number)
    if trade["account_id"] not in accounts:
        hint = nearest(str(trade["account_id"]), accounts)
        return Problem(
            "unknown-account",
            f"account '{trade['account_id']}' is not in the book.{hint}",
            "use an account of the book",
            "trades",
            str(trade["symbol"]),
            number,
        )
    if not is_number(trade["size"]) or not np.isfinite(trade["size"]):
        message = "the trade's size has to be a finite number"
        return Problem("not-finite", message, "correct it", "trades", str(trade["symbol"]), number)
    return None


def _fill(size: float, entry: float, traded: float, price: float) -> tuple[float, float, float]:
    """Realised profit, new size and new average entry price after a fill."""
    closing = min(abs(traded), abs(size)) if size * traded < 0 else 0.0
    realised = closing * (price - entry) * np.sign(size)
    total = size + traded
    if size * traded >= 0 and total != 0:
        entry = (size * entry + traded * price) / total
    elif abs(traded) > abs(size):
        entry = price
    return float(realised), total, entry
