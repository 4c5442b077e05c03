"""Columns of a book, typed and checked: what :class:`riskml.risk.accounts.AccountBook` is made from.

A book is a claim about money, so nothing is guessed: text is not a number, a misspelt optional column
is not left out in silence, and every finding is collected with its table, market and row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D
from riskml.contracts import contract
from riskml.errors import ContractError, Problem, nearest

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


MAX_USD = 1e18
"""Largest amount of a row: far beyond any market, so more is a mistake of units."""
_LOOKS_LIKE = 0.7
"""Similarity from which an unknown column is a misspelt optional one (``marginMode``: 0.86)."""


def to_columns(table: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns from one dict per row; ContractError for a row that lacks a required one."""
    names = dict.fromkeys(key for row in rows for key in row)
    required = _REQUIRED[table]
    for number, row in enumerate(rows):
        lacking = [name for name in required if name not in row]
        if lacking:
            raise ContractError(
                f"column '{lacking[0]}' is required.{nearest(lacking[0], row)}", table=table, row=number
            )
    return {name: [row.get(name) for row in rows] for name in names}


def typed_columns(
    table: str, data: Mapping[str, Any], extra: Mapping[str, str] | None = None
) -> dict[str, AnyArray]:
    """Typed columns of one table, optional ones filled in; no data at all is a table without rows.

    ``extra`` has the kinds of optional columns beside those of the contract.
    """
    if not isinstance(data, Mapping):
        raise ContractError(
            f"{table} have to be columns by name, found a {type(data).__name__}",
            table=table,
            fix="pass a dict of arrays, one value per row",
        )
    if not data:
        data = {name: [] for name in _REQUIRED[table]}
    kinds: dict[str, str] = {
        column.name: column.kind
        for column in contract(table).columns
        if column.kind not in ("time", "int") and column.name != "order_id"
    }
    kinds |= extra or {}
    _check_names(table, data, (*contract(table).column_names, *(extra or ())))
    ids = data["account_id"]
    size = len(ids) if _is_column(ids) else 0
    return {name: _column(table, name, kind, data.get(name), size) for name, kind in kinds.items()}


def _check_names(table: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
    problems = [
        Problem(
            "missing-column",
            f"column '{name}' is required.{nearest(name, data)}",
            f"pass '{name}', one value per row",
            table=table,
        )
        for name in _REQUIRED[table]
        if name not in data
    ]
    free = [name for name in known if name not in data]
    for name in data:
        alike = [] if name in known else difflib.get_close_matches(str(name), free, 1, _LOOKS_LIKE)
        if alike:
            problems.append(
                Problem(
                    "unknown-column",
                    f"there is no column '{name}'. Did you mean '{alike[0]}'?",
                    f"rename it to '{alike[0]}', or leave it out",
                    table=table,
                )
            )
    if problems:
        raise ContractError.from_problems(problems, f"the book's {table} break the contract")


def _column(table: str, name: str, kind: str, raw: Any, size: int) -> AnyArray:
    if raw is None and name != "account_id":
        default: Any = {"text": _default_text(table, name), "bool": False}.get(kind, np.nan)
        return np.full(size, default, dtype={"text": object, "bool": np.bool_}.get(kind, np.float64))
    if not _is_column(raw):
        fix = "pass one value per row"
        raise ContractError(f"column '{name}' has to be an array, found {raw!r}", table=table, fix=fix)
    if len(raw) != size:
        fix = f"pass {size} values"
        raise ContractError(
            f"column '{name}' has {len(raw)} rows; account_id has {size}", table=table, fix=fix
        )
    if kind == "text":
        fallback = _default_text(table, name)
        text = np.empty(size, dtype=object)
        text[:] = [fallback if _is_null(item) else str(item) for item in raw]
        return text
    return _booleans(table, name, raw, size) if kind == "bool" else _numbers(table, name, raw, size)


def _is_column(raw: Any) -> bool:
    """One value per row, as far as that can be seen without looking at them; a text is one value."""
    return not isinstance(raw, (str, bytes)) and hasattr(raw, "__len__") and getattr(raw, "ndim", 1) > 0


def _is_null(item: Any) -> bool:
    return item is None or (isinstance(item, float) and item != item)


def _booleans(table: str, name: str, raw: Any, size: int) -> Bool1D:
    values = np.zeros(size, dtype=np.bool_)
    for row, item in enumerate(raw):
        if _is_null(item):
            continue
        if not isinstance(item, (bool, np.bool_)):  # the text "False" is true
            raise ContractError(
                f"column '{name}' has to be a boolean, found {item!r}",
                table=table,
                row=row,
                fix="write True or False",
            )
        values[row] = bool(item)
    return values


def _numbers(table: str, name: str, raw: Any, size: int) -> Float1D:
    array = np.asarray(raw)
    if array.dtype.kind in "iuf" and array.ndim == 1:
        return array.astype(np.float64)
    # Lists with None (a missing optional number), or a mistake: one by one, to name the row.
    values = np.empty(size)
    for row, item in enumerate(raw):
        try:
            if isinstance(item, (str, bytes, bool, np.bool_)):
                raise TypeError
            values[row] = np.nan if item is None else float(item)
        except (TypeError, ValueError, OverflowError):
            raise ContractError(
                f"column '{name}' has to be a number, found {item!r}",
                table=table,
                row=row,
                fix="write a number, without quotes",
            ) from None
    return values


def _default_text(table: str, name: str) -> str:
    # A position without its own mode takes the account's.
    return "cross" if name == "margin_mode" and table == "accounts" else ""


def find_duplicates(table: str, columns: Mapping[str, AnyArray]) -> list[Problem]:
    """Rows whose key an earlier row has."""
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


def account_rows(table: str, names: AnyArray, index: Mapping[str, int], problems: list[Problem]) -> Int1D:
    """Row of each name among the accounts [n]; unknown ones are -1 and added to ``problems``."""
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


def find_bad_values(tables: Mapping[str, Mapping[str, AnyArray]]) -> list[Problem]:
    """Every value of a book that no requirement can be made from."""
    problems = []
    for table, column, bad, need in (*_bad_numbers(tables), *_empty_names(tables)):
        for row in np.flatnonzero(bad).tolist():
            value = tables[table][column][row]
            symbol = str(tables[table]["symbol"][row]) if "symbol" in tables[table] else None
            problems.append(
                Problem("bad-value", f"{column} has to be {need}, found {value!s}", _FIX, table, symbol, row)
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
    return problems


_FIX = "correct the row, or leave it out of the book"
_Check = tuple[str, str, Bool1D, str]


def _bad_numbers(tables: Mapping[str, Mapping[str, AnyArray]]) -> Iterator[_Check]:
    accounts, positions = tables["accounts"], tables["positions"]
    collateral, orders = tables["collateral"], tables["orders"]
    yield "accounts", "cash_usd", ~_is_amount(accounts["cash_usd"]), f"a finite number within {MAX_USD:g}"
    stated = accounts["maintenance_margin_usd"]
    yield "accounts", "maintenance_margin_usd", _is_wrong(stated), "finite and >= 0, or NaN for unknown"
    size, mark, entry = positions["size"], positions["mark_price"], positions["entry_price"]
    yield "positions", "size", ~np.isfinite(size), "a finite number"
    yield "positions", "mark_price", _is_wrong(mark) | ~(is_price(mark) | is_price(entry)), "a positive price"
    yield "positions", "entry_price", _is_wrong(entry), "a positive price, or NaN for unknown"
    price = np.fmax(mark, entry)
    yield "positions", "size", np.isfinite(size) & _is_beyond(size, price), f"worth less than {MAX_USD:g} USD"
    isolated = positions["isolated_margin_usd"]
    yield "positions", "isolated_margin_usd", _is_wrong(isolated), "finite and >= 0, or NaN for unknown"
    funding = positions["accrued_funding_usd"]
    yield "positions", "accrued_funding_usd", np.isinf(funding), "finite, or NaN for none"
    flat = (size == 0.0) & (np.nan_to_num(funding) != 0.0)
    yield "positions", "accrued_funding_usd", flat, "0 without a position: book it in cash_usd"
    per_unit = funding_per_unit(positions)
    first = np.where(is_price(entry), entry, mark)  # above 0, or the price itself is reported
    huge = np.isfinite(per_unit) & (per_unit >= np.where(is_price(first), first, np.inf))
    yield "positions", "accrued_funding_usd", huge, "less than the position was worth at entry"
    amount, unit = collateral["amount"], collateral["price_usd"]
    yield "collateral", "amount", ~(np.isfinite(amount) & (amount >= 0.0)), "finite and >= 0"
    yield "collateral", "price_usd", _is_wrong(unit), "finite and >= 0"
    too_much = np.isfinite(amount) & _is_beyond(amount, unit)
    yield "collateral", "amount", too_much, f"worth less than {MAX_USD:g} USD"
    ordered, limit = orders["size"], orders["price"]
    yield "orders", "size", ~np.isfinite(ordered), "a finite number"
    yield "orders", "price", ~is_price(limit), "a positive price"
    beyond = np.isfinite(ordered) & _is_beyond(ordered, limit)
    yield "orders", "size", beyond, f"worth less than {MAX_USD:g} USD"


def funding_per_unit(positions: Mapping[str, AnyArray]) -> Float1D:
    """Accrued funding per unit of size, USD [n]: what the entry price is lowered by; 0 where there is none.

    A long that is owed funding has in effect bought cheaper, a short that is owed it sold dearer.
    """
    size, funding = positions["size"], np.nan_to_num(positions["accrued_funding_usd"])
    return np.asarray(np.divide(funding, size, out=np.zeros(len(size)), where=size != 0.0))


def _empty_names(tables: Mapping[str, Mapping[str, AnyArray]]) -> Iterator[_Check]:
    for table, columns in tables.items():
        for name in _REQUIRED[table]:
            if columns[name].dtype == object:
                empty = np.fromiter((not text for text in columns[name]), np.bool_, len(columns[name]))
                yield table, name, empty, "a name"


def _is_amount(values: Float1D) -> Bool1D:
    return np.asarray(np.isfinite(values) & (np.abs(np.nan_to_num(values)) <= MAX_USD))


def _is_wrong(values: Float1D) -> Bool1D:
    """Negative or infinite; NaN = unknown is not wrong."""
    return np.asarray(np.isinf(values) | (np.nan_to_num(values) < 0.0))


def _is_beyond(size: Float1D, price: Float1D) -> Bool1D:
    # Divided, because the product may overflow.
    return np.asarray(np.abs(np.nan_to_num(size)) > MAX_USD / np.maximum(np.nan_to_num(price), 1.0))


def is_price(values: Float1D) -> Bool1D:
    """Finite and above 0."""
    return np.asarray(np.isfinite(values) & (np.nan_to_num(values) > 0.0))
