"""Trades of a what-if: checked by name, then booked into a copy of the book.

A trade fills at its price. What it realises goes to the account's cash, or to the margin of the isolated
position that it changes. A position that it opens has the trade's ``margin_mode``, else the account's; an
isolated one starts with the ``isolated_margin_usd`` of the trade, taken from cash, and without one with the
part of the equity that the engine gives it. These are the rules of an order that is checked
(:class:`riskml.risk.order_fills.Fills`), which fills at the current price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from riskml.arrays import Float1D, Int1D
from riskml.contracts import contract
from riskml.errors import DataError, Problem, nearest
from riskml.risk.accounts import AccountBook, Positions
from riskml.risk.book_columns import MARGIN_MODES, MAX_USD
from riskml.risk.engines.interface import current_marks
from riskml.scoring.prices import is_number

_NAMES = ("account_id", "venue", "symbol")
_KEYS = (*contract("trades").column_names, "margin_mode", "isolated_margin_usd")
"""What a trade may have: the columns of the ``trades`` table, and those of an order that is checked."""
Key = tuple[int, str, str]


@dataclass(frozen=True)
class Trade:
    """A trade that can be booked."""

    account: int
    """Row of the account in the book."""
    venue: str
    symbol: str
    size: float
    """Base units, signed."""
    price: float
    """Price at which it fills."""
    mark: float
    """Current price of the market, where the book has no position yet."""
    is_isolated: bool
    """Mode of a position that it opens."""
    margin_usd: float
    """Set aside from cash for an isolated position; NaN = none."""

    @property
    def key(self) -> Key:
        """What it changes."""
        return self.account, self.venue, self.symbol


def check_trades(book: AccountBook, trades: Any, prices: Mapping[str, float]) -> list[Trade]:
    """The trades by the book and its current prices; None = none.

    Parameters
    ----------
    trades : see :meth:`riskml.scoring.Scorer.what_if`.
    prices : live prices by ``symbol`` or ``venue:symbol``.

    Raises
    ------
    DataError : trades that are no list of dicts; an unknown key, account or mode, a size, price or margin
        that is not usable, no price at all, a margin for a position that is not isolated. All are collected.
    """
    if trades is None:
        return []
    if isinstance(trades, (Mapping, str, bytes)) or not isinstance(trades, Iterable):
        raise DataError(
            f"trades have to be a list of dicts, found a {type(trades).__name__}",
            table="trades",
            fix="pass a list, also for one trade",
        )
    market = _Market.of(book, prices)
    checked: list[Trade] = []
    problems: list[Problem] = []
    for row, trade in enumerate(trades):
        found = _trade_problems(trade, row, market.accounts)
        if not found:
            made = market.trade(trade)
            found = _price_problems(made, row) + market.margin_problems(made, checked, row)
            checked.append(made)
        problems += found
    if problems:
        raise DataError.from_problems(problems, "the trades are not usable")
    return checked


def after_trades(book: AccountBook, prices: Mapping[str, float], trades: Sequence[Trade]) -> AccountBook:
    """The book after trades, one after the other; without any, the book itself.

    A position that changes and whose mark is unknown keeps the price by which it was valued.
    """
    if not trades:
        return book
    positions, place = _with_places(book.positions, trades)
    mark, missing = current_marks(positions, prices)
    sizes, entries = positions.size.copy(), positions.entry_price.copy()
    own, funding = positions.isolated_margin_usd.copy(), positions.funding_per_unit.copy()
    cash, stated = book.cash_usd.copy(), positions.mark_price.copy()
    for trade in trades:
        row = place[trade.key]
        held = sizes[row]
        realised, sizes[row], entries[row] = _fill(held, entries[row], trade.size, trade.price)
        funding[row] = 0.0
        if missing[row]:
            stated[row] = mark[row]
        brought = trade.margin_usd if positions.isolated[row] else np.nan
        if positions.isolated[row] and (np.isfinite(own[row]) or (held == 0.0 and np.isfinite(brought))):
            paid = float(np.nan_to_num(brought))
            left = float(np.nan_to_num(own[row])) + realised + paid
            own[row], back = _margin_left(left, sizes[row] * (mark[row] - entries[row]), bool(sizes[row]))
            realised = back - paid
        cash[trade.account] += realised
    return replace(
        book,
        cash_usd=cash,
        positions=replace(
            positions,
            size=sizes,
            entry_price=entries,
            mark_price=stated,
            isolated_margin_usd=own,
            funding_per_unit=funding,
        ),
    )


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


def _margin_left(left: float, open_profit: float, is_open: bool) -> tuple[float, float]:
    """Margin of an isolated position of which ``left`` is left, and what goes to cash.

    A position that is closed gives its margin back. It loses its margin at most.
    """
    if not is_open:
        return np.nan, max(left, 0.0)
    return max(left, 0.0), min(left, 0.0) if left + open_profit > 0.0 else 0.0


def _with_places(positions: Positions, trades: Sequence[Trade]) -> tuple[Positions, dict[Key, int]]:
    """Positions with one of size 0 for each that a trade opens, and the row of each."""
    place = _rows(positions)
    opening: dict[Key, Trade] = {}
    for trade in trades:
        if trade.key not in place:
            opening.setdefault(trade.key, trade)
    place |= {key: len(positions.size) + number for number, key in enumerate(opening)}
    new = list(opening.values())
    price = np.array([trade.mark for trade in new], dtype=np.float64)
    rows: dict[str, Any] = {
        "account": np.array([trade.account for trade in new], dtype=np.int64),
        "venue": np.array([trade.venue for trade in new], dtype=object),
        "symbol": np.array([trade.symbol for trade in new], dtype=object),
        "size": np.zeros(len(new)),
        "entry_price": price,
        "mark_price": price,
        "isolated": np.array([trade.is_isolated for trade in new], dtype=np.bool_),
        "isolated_margin_usd": np.full(len(new), np.nan),
        "funding_per_unit": np.zeros(len(new)),
    }
    return Positions(**{name: np.concatenate([getattr(positions, name), rows[name]]) for name in rows}), place


def _rows(positions: Positions) -> dict[Key, int]:
    keys = zip(positions.account.tolist(), positions.venue, positions.symbol, strict=True)
    return {(account, str(venue), str(symbol)): row for row, (account, venue, symbol) in enumerate(keys)}


@dataclass(frozen=True)
class _Market:
    """Where trades fill when they do not say, and what they change."""

    book: AccountBook
    prices: Mapping[str, float]
    accounts: Mapping[str, int]
    rows: Mapping[Key, int]
    current: Float1D
    """[n_positions]."""
    marks: Mapping[tuple[str, str], float]
    """By (venue, symbol) and ("", symbol), marks of the book that are known."""

    @classmethod
    def of(cls, book: AccountBook, prices: Mapping[str, float]) -> _Market:
        positions = book.positions
        current, missing = current_marks(positions, prices)
        known: Int1D = np.flatnonzero(~missing)
        marks: dict[tuple[str, str], float] = {}
        for row in known.tolist():
            venue, symbol, mark = str(positions.venue[row]), str(positions.symbol[row]), float(current[row])
            marks |= {("", symbol): mark, (venue, symbol): mark}
        accounts = {str(name): row for row, name in enumerate(book.account_id)}
        return cls(book, prices, accounts, _rows(positions), current, marks)

    def trade(self, trade: Mapping[str, Any]) -> Trade:
        """A trade that :func:`_trade_problems` found nothing in."""
        account, (venue, symbol) = self.accounts[trade["account_id"]], (trade["venue"], trade["symbol"])
        row = self.rows.get((account, venue, symbol))
        current = self._current(venue, symbol) if row is None else float(self.current[row])
        price = current if trade.get("price") is None else float(trade["price"])
        return Trade(
            account,
            venue,
            symbol,
            float(trade["size"]),
            price,
            price if np.isnan(current) else current,
            (trade.get("margin_mode") or self.book.margin_mode[account]) == "isolated",
            np.nan if trade.get("isolated_margin_usd") is None else float(trade["isolated_margin_usd"]),
        )

    def _current(self, venue: str, symbol: str) -> float:
        """Current price of a market; NaN = none is known."""
        known = (self.prices.get(f"{venue}:{symbol}"), self.prices.get(symbol))
        marks = (self.marks.get((venue, symbol)), self.marks.get(("", symbol)))
        return next((float(price) for price in (*known, *marks) if price is not None), np.nan)

    def margin_problems(self, trade: Trade, earlier: Sequence[Trade], row: int) -> list[Problem]:
        if not np.nan_to_num(trade.margin_usd) > 0.0:
            return []
        place = self.rows.get(trade.key)
        opener = next((other for other in earlier if other.key == trade.key), trade)
        if opener.is_isolated if place is None else bool(self.book.positions.isolated[place]):
            return []
        return [
            Problem(
                "bad-value",
                "the trade brings isolated_margin_usd to a position that is not isolated",
                "leave it out, or set margin_mode = 'isolated' on the trade that opens the position",
                "trades",
                trade.symbol,
                row,
            )
        ]


def _trade_problems(trade: Any, row: int, accounts: Mapping[str, int]) -> list[Problem]:
    """What is wrong with a trade in itself and in its account."""
    if not isinstance(trade, Mapping):
        return [
            Problem(
                "not-a-trade",
                f"a trade has to be a dict, found {trade!r}",
                "pass a list of dicts, one per trade",
                "trades",
                None,
                row,
            )
        ]
    symbol = trade.get("symbol")
    market = symbol if isinstance(symbol, str) else None

    def problem(code: str, message: str, fix: str) -> Problem:
        return Problem(code, message, fix, "trades", market, row)

    problems = [
        problem(
            "unknown-column",
            f"a trade has no '{name}'.{nearest(str(name), _KEYS)}",
            f"use {', '.join(('size', 'price', 'margin_mode', 'isolated_margin_usd'))}, or leave it out",
        )
        for name in trade
        if name not in _KEYS
    ]
    problems += [
        problem("missing-column", f"the trade has no '{name}'.{nearest(name, map(str, trade))}", "add it")
        for name in (*_NAMES, "size")
        if name not in trade
    ]
    problems += [
        problem("bad-value", f"the trade's {name} has to be a name, found {trade[name]!r}", "write text")
        for name in _NAMES
        if name in trade and not (isinstance(trade[name], str) and trade[name])
    ]
    return problems or _value_problems(trade, accounts, problem)


def _value_problems(trade: Mapping[str, Any], accounts: Mapping[str, int], problem: Any) -> list[Problem]:
    """Values of a trade whose keys are known and whose names are text."""
    problems = []
    account, size, mode = trade["account_id"], trade["size"], trade.get("margin_mode")
    if account not in accounts:
        message = f"account '{account}' is not in the book.{nearest(account, accounts)}"
        problems.append(problem("unknown-account", message, "use an account of the book"))
    if not is_number(size) or not np.isfinite(size):
        problems.append(problem("not-finite", "the trade's size has to be a finite number", "correct it"))
    if mode and mode not in MARGIN_MODES:
        message = f"margin_mode is {mode!r}.{nearest(str(mode), MARGIN_MODES)}"
        problems.append(problem("bad-margin-mode", message, f"use one of {', '.join(MARGIN_MODES)}"))
    margin = trade.get("isolated_margin_usd")
    if margin is not None and not (is_number(margin) and not np.isinf(margin) and not margin < 0.0):
        message = f"isolated_margin_usd has to be finite and >= 0, found {margin!r}"
        problems.append(problem("bad-value", message, "correct it, or leave it out"))
    price = trade.get("price")
    if price is not None and not is_number(price):
        message = f"the trade has no positive price, found {price!r}"
        problems.append(problem("no-price", message, "write a number, or leave 'price' out"))
    return problems


def _price_problems(trade: Trade, row: int) -> list[Problem]:
    if not (np.isfinite(trade.price) and trade.price > 0.0):
        message, code, fix = "the trade has no positive price", "no-price", "add 'price'"
    elif abs(trade.size) > MAX_USD / max(trade.price, 1.0):
        message, code = f"the trade is worth more than {MAX_USD:g} USD", "bad-value"
        fix = "check the units of size and price"
    else:
        return []
    return [Problem(code, message, fix, "trades", trade.symbol, row)]
