"""What a venue gets wrong in a call to the scorer is named with its table, its row and the fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.errors import ContractError, DataError
from riskml.scoring import AccountBook, Scorer

from .conftest import PRICES, position

ORDER: dict[str, Any] = {
    "account_id": ["a"],
    "venue": ["sim"],
    "symbol": ["BTC"],
    "size": [0.01],
    "price": [PRICES["BTC"]],
}


@pytest.fixture(scope="module")
def book() -> AccountBook:
    return AccountBook.from_dicts(
        [{"account_id": "a", "cash_usd": 5_000.0, "positions": [position("ETH", 900.0)]}]
    )


@pytest.mark.parametrize(
    ("change", "row", "message"),
    [
        ({"margin_mode": "isolated"}, None, "column 'margin_mode' has to be an array, found 'isolated'"),
        ({"margin_mode": ["isolated", "cross"]}, None, "'margin_mode' has 2 rows; account_id has 1"),
        ({"margin_mode": [3]}, 0, "margin_mode is '3'"),
        ({"isolated_margin_usd": "100"}, None, "'isolated_margin_usd' has to be an array, found '100'"),
        ({"isolated_margin_usd": 100.0}, None, "'isolated_margin_usd' has to be an array, found 100.0"),
        ({"isolated_margin_usd": np.array(1.0)}, None, "'isolated_margin_usd' has to be an array"),
        ({"isolated_margin_usd": ["100"]}, 0, "'isolated_margin_usd' has to be a number, found '100'"),
        ({"isolated_margin_usd": np.array(["100"])}, 0, "'isolated_margin_usd' has to be a number"),
        ({"isolated_margin_usd": [True]}, 0, "'isolated_margin_usd' has to be a number, found True"),
        ({"isolated_margin_usd": [-1.0]}, 0, "isolated_margin_usd has to be finite and >= 0"),
        ({"marginMode": ["isolated"]}, None, "no column 'marginMode'. Did you mean 'margin_mode'"),
        ({"isolated_margin": [9.0]}, None, "Did you mean 'isolated_margin_usd'"),
        ({"reduceOnly": [True]}, None, "Did you mean 'reduce_only'"),
        ({"reduce_only": ["False"]}, 0, "'reduce_only' has to be a boolean, found 'False'"),
        ({"account_id": 5}, None, "column 'account_id' has to be an array, found 5"),
        ({"account_id": None}, None, "column 'account_id' has to be an array, found None"),
    ],
)
def test_a_bad_column_of_orders_is_named(
    warm: Scorer, book: AccountBook, change: dict[str, Any], row: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        warm.check_orders(book, ORDER | change)
    assert (raised.value.table, raised.value.row) == ("orders", row)
    assert raised.value.fix


@pytest.mark.parametrize("orders", [[ORDER], "a", 7, np.zeros(3)], ids=["dicts", "text", "number", "array"])
def test_orders_that_are_no_columns_are_refused(warm: Scorer, book: AccountBook, orders: Any) -> None:
    with pytest.raises(ContractError, match="orders have to be columns by name, found a ") as raised:
        warm.check_orders(book, orders)
    assert raised.value.table == "orders"
    assert raised.value.fix == "pass a dict of arrays, one value per row"


def test_an_optional_column_that_is_none_is_one_that_is_not_given(warm: Scorer, book: AccountBook) -> None:
    plain = warm.check_orders(book, ORDER).to_dicts()
    for change in (
        {"margin_mode": None, "isolated_margin_usd": None, "reduce_only": None},
        {"margin_mode": [None], "isolated_margin_usd": [None]},
        {"margin_mode": [""], "isolated_margin_usd": [np.nan]},
    ):
        assert warm.check_orders(book, ORDER | change).to_dicts() == plain
    isolated = warm.check_orders(book, ORDER | {"margin_mode": ["isolated"]}).to_dicts()
    assert isolated != plain  # without a margin of its own
    assert len(warm.check_orders(book, {})) == 0


@pytest.mark.parametrize(
    ("markets", "row", "message"),
    [
        (["BTC"], 0, r"a market has to be a \(venue, symbol\) pair, found 'BTC'"),
        ([("sim", "BTC"), "ETH"], 1, "found 'ETH'"),
        (["AB"], 0, "found 'AB'"),
        ("BTC", None, r"markets have to be \(venue, symbol\) pairs, found 'BTC'"),
        (("sim", "BTC"), 0, "2 problems"),
        ([("sim", "BTC", "x")], 0, r"found \('sim', 'BTC', 'x'\)"),
        ([("sim", None)], 0, r"found \('sim', None\)"),
        ([("sim", "")], 0, r"found \('sim', ''\)"),
        (7, None, "found 7"),
    ],
)
def test_markets_of_limits_that_are_no_pairs_are_named(
    warm: Scorer, book: AccountBook, markets: Any, row: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        warm.leverage_limits(book, markets=markets)
    assert (raised.value.table, raised.value.row) == ("markets", row)
    assert "pairs" in str(raised.value.fix)


def test_pairs_may_come_as_an_array(warm: Scorer, book: AccountBook) -> None:
    pairs = [("sim", "BTC"), ("sim", "SOL")]
    found, expected = (
        warm.leverage_limits(book, markets=markets).account for markets in (np.array(pairs), pairs)
    )
    assert found is not None
    assert expected is not None
    assert found.markets == expected.markets == tuple(pairs)
    np.testing.assert_array_equal(found.max_new_usd, expected.max_new_usd)


@pytest.mark.parametrize(
    ("sizes", "row", "message"),
    [
        ("1000", 0, "a size has to be a number, found '1000'"),
        ([1e3, "2000"], 0, "a size has to be a number"),
        ([1e3, None], 1, "found None"),
        ([True], 0, "found True"),
        ([[1e3, 1e4]], None, "sizes have to be one number each"),
        ([[1e3], [1e3, 1e4]], None, "sizes have to be one number each"),
        ([1e3, -1.0], 1, "a size has to lie in"),
        ({"BTC": 1e3}, 0, "a size has to be a number"),
    ],
)
def test_sizes_that_are_no_amounts_are_named(warm: Scorer, sizes: Any, row: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        warm.leverage_limits(sizes_usd=sizes)
    assert (raised.value.table, raised.value.row) == ("sizes_usd", row)
    assert raised.value.fix


@pytest.mark.parametrize(
    ("accounts", "row", "message"),
    [
        ("a", None, "accounts have to be a list of account ids, found 'a'"),
        (5, None, "accounts have to be a list of account ids, found 5"),
        (["a", "b"], 1, "account 'b' is not in the book"),
        (["a", 5], 1, "account 5 is not in the book"),
    ],
)
def test_accounts_of_a_plan_that_are_no_names_are_refused(
    warm: Scorer, book: AccountBook, accounts: Any, row: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        warm.deleverage(book, accounts)
    assert (raised.value.table, raised.value.row) == ("accounts", row)
    assert raised.value.fix


def test_a_table_of_a_book_that_is_no_columns_is_refused() -> None:
    with pytest.raises(ContractError, match="table 'accounts': accounts have to be columns by name"):
        AccountBook.from_arrays([{"account_id": "a", "cash_usd": 1.0}])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "accounts",
    [None, 5, "ab", {"account_id": "a"}, (row for row in ())],
    ids=["none", "5", "text", "dict", "it"],
)
def test_accounts_that_are_no_list_of_dicts_are_refused(accounts: Any) -> None:
    with pytest.raises(ContractError, match="the accounts have to be a list of dicts, found a ") as raised:
        AccountBook.from_dicts(accounts)
    assert raised.value.table == "accounts"
    assert raised.value.fix == "pass a list of dicts, one per account"


@pytest.mark.parametrize("table", ["positions", "collateral", "orders"])
@pytest.mark.parametrize("rows", [np.zeros(3), [1], "x", 0, False], ids=["array", "list", "text", "0", "no"])
def test_rows_of_a_book_that_are_no_columns_are_refused(table: str, rows: Any) -> None:
    accounts = {"account_id": ["a"], "cash_usd": [1.0]}
    with pytest.raises(ContractError, match=f"{table} have to be columns by name, found a ") as raised:
        AccountBook.from_arrays(accounts, **{table: rows})
    assert raised.value.fix
    for nothing in (None, {}, [], ()):
        assert len(AccountBook.from_arrays(accounts, **{table: nothing})) == 1  # type: ignore[arg-type]


def test_no_accounts_at_all_are_refused() -> None:
    with pytest.raises(ContractError, match="accounts have to be columns by name, found a NoneType"):
        AccountBook.from_arrays(None)  # type: ignore[arg-type]
    assert len(AccountBook.from_dicts([])) == len(AccountBook.from_dicts(())) == 0


@pytest.mark.parametrize("names", ["funding_8h", 5, b"x"])
def test_inputs_to_retire_that_are_no_list_are_refused(warm: Scorer, names: Any) -> None:
    with pytest.raises(DataError, match="the inputs have to be a list of names, found ") as raised:
        warm.retire_inputs("BTC", names)
    assert raised.value.market == "BTC"
    assert str(raised.value.fix).startswith("pass a list, of ")
