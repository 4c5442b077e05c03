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
from riskml.errors import ContractError, DataError, Problem
from riskml.risk.book_columns import (
    account_rows,
    find_bad_values,
    find_duplicates,
    funding_per_unit,
    to_columns,
    typed_columns,
)
from riskml.risk.book_columns import is_price as _is_price
from riskml.units import to_us


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
    """Average entry price less the funding accrued per unit: the break-even price."""
    mark_price: Float1D
    """Price at which it is valued; NaN = unknown (then the entry price, flagged)."""
    isolated: Bool1D
    """True = a pool of its own that nets with nothing."""
    isolated_margin_usd: Float1D
    """Margin set aside for an isolated position; NaN = not published."""
    funding_per_unit: Float1D
    """Accrued funding that ``entry_price`` is less by; 0 for none."""

    @property
    def stated_entry_price(self) -> Float1D:
        """Entry price as stated, without the accrued funding [n_positions]."""
        return self.entry_price + self.funding_per_unit

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
    """[n_accounts] cross, isolated or portfolio; for positions that do not state their own.

    Cross and portfolio positions share the account's pool, its collateral and, by the forecast's law, its
    offsets: riskml margins both as one portfolio. Venues that give a cross account no offsets are the
    engines' to state. An isolated position is a pool of its own.
    """
    positions: Positions
    collateral: Collateral
    orders: Orders
    ts: int | None = None
    """Time of the snapshot, microseconds UTC, the oldest of its accounts'; None where one is unknown."""

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
            ``entry_price`` (the mark price), ``margin_mode`` (the account's), ``isolated_margin_usd``,
            ``accrued_funding_usd`` (0; funding not yet settled, positive = the account receives it).
        collateral : ``account_id``, ``chain``, ``asset``, ``amount``, ``price_usd``.
        orders : ``account_id``, ``venue``, ``symbol``, ``size``, ``price``; optional ``reduce_only``.

        Raises
        ------
        ContractError : a missing column, a misspelt one, a wrong type or unequal lengths.
        DataError : an unknown or duplicate account, a duplicate position or collateral row, an empty
            name, a size, amount, margin or cash that is not usable, a position or order without a
            positive price, an exposure beyond any market. All are collected, then raised once, with
            table, market and row.
        """
        tables = {
            name: typed_columns(name, data)
            for name, data in (
                ("accounts", accounts),
                ("positions", _or_none(positions)),
                ("collateral", _or_none(collateral)),
                ("orders", _or_none(orders)),
            )
        }
        ids = tables["accounts"]["account_id"]
        index = {str(name): row for row, name in enumerate(ids)}
        problems: list[Problem] = []
        for name, columns in tables.items():
            problems.extend(find_duplicates(name, columns))
        rows = {
            name: account_rows(name, tables[name]["account_id"], index, problems)
            for name in ("positions", "collateral", "orders")
        }
        problems.extend(find_bad_values(tables))
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
        _check_dicts(accounts, nested)
        plain = [{key: value for key, value in account.items() if key not in nested} for account in accounts]
        lists = {
            name: [
                {**item, "account_id": account["account_id"]}
                for account in accounts
                for item in account.get(name) or ()
            ]
            for name in nested
        }
        return cls.from_arrays(
            to_columns("accounts", plain), *(to_columns(name, lists[name]) for name in nested)
        )


def _or_none(data: Any) -> Any:
    """A table that is not given has no rows."""
    return {} if data is None or (isinstance(data, (list, tuple)) and not data) else data


def _check_dicts(accounts: Sequence[Mapping[str, Any]], nested: Sequence[str]) -> None:
    if isinstance(accounts, (Mapping, str)) or not hasattr(accounts, "__len__"):
        raise ContractError(
            f"the accounts have to be a list of dicts, found a {type(accounts).__name__}",
            table="accounts",
            fix="pass a list of dicts, one per account",
        )
    for row, account in enumerate(accounts):
        if not isinstance(account, Mapping):
            raise ContractError(
                f"an account has to be a dict, found {account!r}",
                table="accounts",
                row=row,
                fix="pass a list of dicts, one per account",
            )
        if "account_id" not in account:
            raise ContractError("an account has no 'account_id'", table="accounts", row=row)
        for name in nested:
            items = account.get(name) or ()
            if isinstance(items, (Mapping, str)) or not all(isinstance(item, Mapping) for item in items):
                raise ContractError(
                    f"'{name}' of account '{account['account_id']}' has to be a list of dicts",
                    table=name,
                    row=row,
                )


def _positions(account: Int1D, columns: Mapping[str, AnyArray], account_mode: AnyArray) -> Positions:
    mark = np.where(_is_price(columns["mark_price"]), columns["mark_price"], np.nan)
    entry = np.where(_is_price(columns["entry_price"]), columns["entry_price"], mark)
    funding = funding_per_unit(columns)
    mode = np.where(columns["margin_mode"] == "", account_mode[account], columns["margin_mode"])
    isolated = np.asarray(mode == "isolated", dtype=np.bool_)
    return Positions(
        account,
        columns["venue"],
        columns["symbol"],
        columns["size"],
        entry - funding,
        mark,
        isolated,
        columns["isolated_margin_usd"],
        funding,
    )


def _snapshot_ts(accounts: Mapping[str, Any]) -> int | None:
    times = accounts.get("ts")
    if times is None or len(times) == 0 or any(time is None for time in times):
        return None
    # Of the oldest: what is newer re-marks every account, and an old one is not made fresh by another.
    return min(to_us(time) for time in times)


def encode(first: AnyArray, second: AnyArray) -> tuple[list[tuple[str, str]], Int1D]:
    """Distinct pairs of two text columns, in order of appearance, and each row's pair [n]."""
    seen: dict[tuple[str, str], int] = {}
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    codes = np.fromiter((seen.setdefault(pair, len(seen)) for pair in pairs), np.int64, len(first))
    return list(seen), codes
