"""The account book: accounts, their positions and their collateral at one time, in columns.

Columns and their meaning are those of the ``accounts``, ``positions``, ``collateral`` and
``orders`` tables (:mod:`riskml.contracts`). Equity is cash + collateral + open profit + the margin
of isolated positions, which is set aside *outside* cash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D
from riskml.contracts import contract
from riskml.errors import ContractError, DataError, Problem, nearest
from riskml.units import to_us

MARGIN_MODES = ("cross", "isolated", "portfolio")

_REQUIRED: dict[str, tuple[str, ...]] = {
    "accounts": ("account_id", "cash_usd"),
    "positions": ("account_id", "venue", "symbol", "size", "mark_price"),
    "collateral": ("account_id", "chain", "asset", "amount", "price_usd"),
    "orders": ("account_id", "venue", "symbol", "size", "price"),
}
_UNIQUE: dict[str, tuple[str, ...]] = {
    "accounts": ("account_id",),
    "positions": ("account_id", "venue", "symbol"),
    "collateral": ("account_id", "chain", "asset"),
    "orders": (),
}


@dataclass(frozen=True)
class Positions:
    """Open positions [n_positions]."""

    account: Int1D
    """Row of the account in the book."""
    venue: AnyArray
    symbol: AnyArray
    size: Float1D
    """Base units, signed; positive = long."""
    entry_price: Float1D
    mark_price: Float1D
    """Price at which it is valued; NaN = unknown (then the entry price, flagged)."""
    isolated: Bool1D
    """True = a pool of its own that nets with nothing."""
    isolated_margin_usd: Float1D
    """Margin set aside for an isolated position; NaN = not published."""

    @cached_property
    def markets(self) -> tuple[list[tuple[str, str]], Int1D]:
        """Distinct (venue, symbol) pairs and each position's row among them."""
        return encode(self.venue, self.symbol)


@dataclass(frozen=True)
class Collateral:
    """Assets that back the accounts [n_collateral]."""

    account: Int1D
    chain: AnyArray
    asset: AnyArray
    amount: Float1D
    price_usd: Float1D
    """Price of one unit; NaN or 0 = unpriced, which counts as worth nothing (flagged)."""

    @cached_property
    def holdings(self) -> tuple[list[tuple[str, str]], Int1D]:
        """Distinct (chain, asset) pairs and each row's place among them."""
        return encode(self.chain, self.asset)


@dataclass(frozen=True)
class Orders:
    """Open orders [n_orders]."""

    account: Int1D
    venue: AnyArray
    symbol: AnyArray
    size: Float1D
    price: Float1D
    reduce_only: Bool1D


@dataclass(frozen=True)
class AccountBook:
    """Accounts with their positions and collateral; rows of one account need not be adjacent."""

    account_id: AnyArray
    """[n_accounts] str."""
    cash_usd: Float1D
    """[n_accounts]; negative = owed."""
    maintenance_margin_usd: Float1D
    """[n_accounts] the venue's own requirement; NaN = not published."""
    margin_mode: AnyArray
    """[n_accounts] cross, isolated or portfolio; for positions that do not state their own."""
    positions: Positions
    collateral: Collateral
    orders: Orders
    ts: int | None = None
    """Time of the snapshot, microseconds UTC; None where unknown."""

    def __len__(self) -> int:
        return len(self.account_id)

    @classmethod
    def from_arrays(
        cls,
        accounts: Mapping[str, Any],
        positions: Mapping[str, Any] | None = None,
        collateral: Mapping[str, Any] | None = None,
        orders: Mapping[str, Any] | None = None,
    ) -> AccountBook:
        """Build a book from columns.

        Parameters
        ----------
        accounts : ``account_id``, ``cash_usd``; optional ``margin_mode`` ("cross"),
            ``maintenance_margin_usd`` (NaN), ``ts``.
        positions : ``account_id``, ``venue``, ``symbol``, ``size``, ``mark_price``; optional
            ``entry_price`` (the mark price), ``margin_mode`` (the account's), ``isolated_margin_usd``.
        collateral : ``account_id``, ``chain``, ``asset``, ``amount``, ``price_usd``.
        orders : ``account_id``, ``venue``, ``symbol``, ``size``, ``price``; optional ``reduce_only``.

        Raises
        ------
        ContractError : a missing column, a wrong type or unequal lengths.
        DataError : an unknown or duplicate account, a duplicate position or collateral row, a size,
            amount or cash that is not finite, a position without any positive price. All are
            collected, then raised once, with table, market and row.
        """
        tables = {
            name: _columns(name, data)
            for name, data in (
                ("accounts", accounts),
                ("positions", positions or {}),
                ("collateral", collateral or {}),
                ("orders", orders or {}),
            )
        }
        ids = tables["accounts"]["account_id"]
        index = {str(name): row for row, name in enumerate(ids)}
        problems: list[Problem] = []
        for name, columns in tables.items():
            problems.extend(_duplicates(name, columns))
        rows = {
            name: _account_rows(name, tables[name]["account_id"], index, problems)
            for name in ("positions", "collateral", "orders")
        }
        _check_values(tables, problems)
        if problems:
            raise DataError.from_problems(problems, "the book is not usable")
        return cls(
            ids,
            tables["accounts"]["cash_usd"],
            tables["accounts"]["maintenance_margin_usd"],
            tables["accounts"]["margin_mode"],
            _positions(rows["positions"], tables["positions"], tables["accounts"]["margin_mode"]),
            Collateral(
                rows["collateral"],
                *(tables["collateral"][name] for name in ("chain", "asset", "amount", "price_usd")),
            ),
            Orders(
                rows["orders"],
                *(tables["orders"][name] for name in ("venue", "symbol", "size", "price", "reduce_only")),
            ),
            _snapshot_ts(accounts),
        )

    @classmethod
    def from_dicts(cls, accounts: Sequence[Mapping[str, Any]]) -> AccountBook:
        """Build a book from one dict per account.

        Each has the columns of ``accounts`` and the lists ``positions``, ``collateral`` and
        ``orders``, whose items have the columns of those tables without ``account_id``.

        >>> book = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 100.0, "positions": [
        ...     {"venue": "sim", "symbol": "BTC", "size": 1.0, "mark_price": 50.0}]}])
        >>> len(book)
        1
        """
        nested = ("positions", "collateral", "orders")
        plain = [{key: value for key, value in account.items() if key not in nested} for account in accounts]
        missing = [row for row, account in enumerate(plain) if "account_id" not in account]
        if missing:
            raise ContractError("an account has no 'account_id'", table="accounts", row=missing[0])
        lists = {
            name: [
                {**item, "account_id": account["account_id"]}
                for account in accounts
                for item in account.get(name) or ()
            ]
            for name in nested
        }
        return cls.from_arrays(
            _to_columns("accounts", plain), *(_to_columns(name, lists[name]) for name in nested)
        )


def _to_columns(table: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(key for row in rows for key in row)
    required = _REQUIRED[table]
    for number, row in enumerate(rows):
        lacking = [name for name in required if name not in row]
        if lacking:
            raise ContractError(
                f"column '{lacking[0]}' is required.{nearest(lacking[0], row)}", table=table, row=number
            )
    return {name: [row.get(name) for row in rows] for name in names}


def _columns(table: str, data: Mapping[str, Any]) -> dict[str, AnyArray]:
    """Typed columns of one table, optional ones filled in."""
    if not data:
        data = {name: [] for name in _REQUIRED[table]}
    for name in _REQUIRED[table]:
        if name not in data:
            raise ContractError(f"column '{name}' is required.{nearest(name, data)}", table=table)
    size = len(data["account_id"])
    columns: dict[str, AnyArray] = {}
    for column in contract(table).columns:
        if column.kind in ("time", "int") or column.name == "order_id":
            continue
        raw = data.get(column.name)
        columns[column.name] = _column(table, column.name, column.kind, raw, size)
    return columns


def _column(table: str, name: str, kind: str, raw: Any, size: int) -> AnyArray:
    if raw is None:
        default: Any = {"text": _default_text(table, name), "bool": False}.get(kind, np.nan)
        return np.full(size, default, dtype={"text": object, "bool": np.bool_}.get(kind, np.float64))
    if len(raw) != size:
        raise ContractError(f"column '{name}' has {len(raw)} rows; account_id has {size}", table=table)
    if kind == "text":
        fallback = _default_text(table, name)
        text = np.empty(size, dtype=object)
        text[:] = [fallback if item is None else str(item) for item in raw]
        return text
    if kind == "bool":
        return np.fromiter((bool(item) for item in raw), np.bool_, size)
    try:
        return np.asarray(raw, dtype=np.float64).copy()
    except (TypeError, ValueError):
        pass
    # Lists with None (a missing optional number) or text: convert one by one to name the row.
    values = np.empty(size)
    for row, item in enumerate(raw):
        try:
            values[row] = np.nan if item is None else float(item)
        except (TypeError, ValueError):
            raise ContractError(
                f"column '{name}' has to be a number, found {item!r}", table=table, row=row
            ) from None
    return values


def _default_text(table: str, name: str) -> str:
    # A position without its own mode takes the account's.
    return "cross" if name == "margin_mode" and table == "accounts" else ""


def _duplicates(table: str, columns: Mapping[str, AnyArray]) -> list[Problem]:
    key = _UNIQUE[table]
    if not key:
        return []
    seen: dict[tuple[Any, ...], int] = {}
    problems = []
    for row, values in enumerate(zip(*(columns[name] for name in key), strict=True)):
        first = seen.setdefault(values, row)
        if first != row:
            where = ", ".join(f"{name} {value!r}" for name, value in zip(key, values, strict=True))
            problems.append(
                Problem(
                    "duplicate-key",
                    f"{where} is there twice (rows {first} and {row})",
                    "add the rows up, or drop one",
                    table=table,
                    market=str(values[-1]) if table == "positions" else None,
                    row=row,
                )
            )
    return problems


def _account_rows(table: str, names: AnyArray, index: Mapping[str, int], problems: list[Problem]) -> Int1D:
    rows = np.fromiter((index.get(str(name), -1) for name in names), np.int64, len(names))
    for row in np.flatnonzero(rows < 0).tolist():
        name = str(names[row])
        problems.append(
            Problem(
                "unknown-account",
                f"account '{name}' is not among the accounts.{nearest(name, index)}",
                "add its row to accounts",
                table=table,
                row=row,
            )
        )
    return rows


def _check_values(tables: Mapping[str, Mapping[str, AnyArray]], problems: list[Problem]) -> None:
    positions, orders, collateral = tables["positions"], tables["orders"], tables["collateral"]
    mark, entry = positions["mark_price"], positions["entry_price"]
    checks = (
        ("accounts", "cash_usd", ~np.isfinite(tables["accounts"]["cash_usd"]), "a finite number"),
        ("positions", "size", ~np.isfinite(positions["size"]), "a finite number"),
        ("positions", "mark_price", ~(_is_price(mark) | _is_price(entry)), "a positive price"),
        ("orders", "size", ~np.isfinite(orders["size"]), "a finite number"),
        (
            "collateral",
            "amount",
            ~(np.isfinite(collateral["amount"]) & (collateral["amount"] >= 0)),
            "finite and >= 0",
        ),
        (
            "collateral",
            "price_usd",
            np.isinf(collateral["price_usd"]) | (collateral["price_usd"] < 0),
            "finite and >= 0",
        ),
    )
    for table, column, bad, need in checks:
        for row in np.flatnonzero(bad).tolist():
            value = tables[table][column][row]
            symbol = str(tables[table]["symbol"][row]) if "symbol" in tables[table] else None
            problems.append(
                Problem("bad-value", f"{column} has to be {need}, found {value}", "", table, symbol, row)
            )
    for table in ("accounts", "positions"):
        for row, mode in enumerate(tables[table]["margin_mode"]):
            if mode not in MARGIN_MODES and not (table == "positions" and mode == ""):
                problems.append(
                    Problem(
                        "bad-margin-mode",
                        f"margin_mode is '{mode}'.{nearest(mode, MARGIN_MODES)}",
                        f"use one of {', '.join(MARGIN_MODES)}",
                        table=table,
                        row=row,
                    )
                )


def _is_price(values: Float1D) -> Bool1D:
    return np.asarray(np.isfinite(values) & (np.nan_to_num(values) > 0.0))


def _positions(account: Int1D, columns: Mapping[str, AnyArray], account_mode: AnyArray) -> Positions:
    mark = np.where(_is_price(columns["mark_price"]), columns["mark_price"], np.nan)
    entry = np.where(_is_price(columns["entry_price"]), columns["entry_price"], mark)
    mode = np.where(columns["margin_mode"] == "", account_mode[account], columns["margin_mode"])
    isolated = np.asarray(mode == "isolated", dtype=np.bool_)
    return Positions(
        account,
        columns["venue"],
        columns["symbol"],
        columns["size"],
        entry,
        mark,
        isolated,
        columns["isolated_margin_usd"],
    )


def _snapshot_ts(accounts: Mapping[str, Any]) -> int | None:
    times = accounts.get("ts")
    if times is None or len(times) == 0 or times[0] is None:
        return None
    return max(to_us(time) for time in times)


def encode(first: AnyArray, second: AnyArray) -> tuple[list[tuple[str, str]], Int1D]:
    """Distinct pairs of two text columns, in order of appearance, and each row's pair [n]."""
    seen: dict[tuple[str, str], int] = {}
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    codes = np.fromiter((seen.setdefault(pair, len(seen)) for pair in pairs), np.int64, len(first))
    return list(seen), codes
