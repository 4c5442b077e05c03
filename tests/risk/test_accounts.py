"""Building account books, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.errors import ContractError, DataError
from riskml.risk import AccountBook

ACCOUNTS = {"account_id": ["a", "b"], "cash_usd": [100.0, 50.0], "maintenance_margin_usd": [None, 5.0]}
POSITIONS = {
    "account_id": ["b", "a"],
    "venue": ["sim", "sim"],
    "symbol": ["BTC", "ETH"],
    "size": [1.0, -2.0],
    "mark_price": [50.0, 20.0],
}


def _positions(**changes: Any) -> dict[str, Any]:
    return {**POSITIONS, **changes}


def test_arrays_and_dicts_give_the_same_book() -> None:
    arrays = AccountBook.from_arrays(ACCOUNTS, POSITIONS)
    dicts = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 100.0,
                "positions": [{"venue": "sim", "symbol": "ETH", "size": -2.0, "mark_price": 20.0}],
            },
            {
                "account_id": "b",
                "cash_usd": 50.0,
                "maintenance_margin_usd": 5.0,
                "positions": [{"venue": "sim", "symbol": "BTC", "size": 1.0, "mark_price": 50.0}],
            },
        ]
    )
    assert arrays.account_id.tolist() == dicts.account_id.tolist() == ["a", "b"]
    assert np.isnan(arrays.maintenance_margin_usd[0])
    assert np.isnan(dicts.maintenance_margin_usd[0])
    assert arrays.positions.account.tolist() == [1, 0]
    assert dicts.positions.account.tolist() == [0, 1]
    assert arrays.positions.entry_price.tolist() == [50.0, 20.0]


def test_a_position_without_its_own_mode_takes_the_accounts() -> None:
    book = AccountBook.from_arrays(
        {**ACCOUNTS, "margin_mode": ["cross", "isolated"]}, _positions(margin_mode=["", "isolated"])
    )
    assert book.positions.isolated.tolist() == [True, True]
    book = AccountBook.from_arrays(
        {**ACCOUNTS, "margin_mode": ["cross", "isolated"]}, _positions(margin_mode=["cross", ""])
    )
    assert book.positions.isolated.tolist() == [False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"account_id": ["b", "z"]}, r"table 'positions', row 1: account 'z' is not among the accounts"),
        (
            {"symbol": ["BTC", "BTC"], "account_id": ["b", "b"]},
            r"market 'BTC', row 1: .*twice \(rows 0 and 1\)",
        ),
        ({"size": [1.0, np.nan]}, r"market 'ETH', row 1: size has to be a finite number"),
        ({"mark_price": [0.0, 20.0]}, r"market 'BTC', row 0: mark_price has to be a positive price, found 0"),
        ({"margin_mode": ["crss", "cross"]}, r"margin_mode is 'crss'. Did you mean 'cross'\?"),
    ],
)
def test_unusable_positions_are_refused_with_their_row(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AccountBook.from_arrays(ACCOUNTS, _positions(**changes))


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(DataError, match="2 problems") as caught:
        AccountBook.from_arrays(ACCOUNTS, _positions(size=[np.nan, np.inf]))
    assert [problem.row for problem in caught.value.problems] == [0, 1]


def test_a_missing_column_a_wrong_type_and_a_wrong_length_are_refused() -> None:
    with pytest.raises(
        ContractError, match=r"table 'positions': column 'mark_price' is required. Did you mean 'mark_prize'"
    ):
        AccountBook.from_arrays(
            ACCOUNTS,
            {("mark_prize" if key == "mark_price" else key): value for key, value in POSITIONS.items()},
        )
    with pytest.raises(ContractError, match=r"row 1: column 'size' has to be a number, found 'two'"):
        AccountBook.from_arrays(ACCOUNTS, _positions(size=[1.0, "two"]))
    with pytest.raises(ContractError, match=r"column 'size' has 1 rows; account_id has 2"):
        AccountBook.from_arrays(ACCOUNTS, _positions(size=[1.0]))
    with pytest.raises(ContractError, match=r"column 'symbol' is required"):
        AccountBook.from_dicts(
            [{"account_id": "a", "cash_usd": 1.0, "positions": [{"venue": "sim", "size": 1.0}]}]
        )


def test_the_snapshot_time_is_kept() -> None:
    book = AccountBook.from_arrays(
        {**ACCOUNTS, "ts": np.array(["2024-01-01", "2024-01-01"], dtype="datetime64[us]")}
    )
    assert book.ts == 1_704_067_200_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "1.0"}, r"table 'positions', row 0: column 'size' has to be a number, found '1.0'"),
        ({"size": True}, r"column 'size' has to be a number, found True"),
        ({"margin_mod": "isolated"}, r"no column 'margin_mod'. Did you mean 'margin_mode'"),
    ],
)
def test_text_is_no_number_and_a_misspelt_column_is_not_left_out(
    change: dict[str, Any], message: str
) -> None:
    position = {"venue": "sim", "symbol": "BTC", "size": 1.0, "mark_price": 50.0} | change
    with pytest.raises(ContractError, match=message):
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0, "positions": [position]}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"isolated_margin_usd": np.inf}, r"isolated_margin_usd has to be finite and >= 0.* found inf"),
        ({"isolated_margin_usd": -5.0}, r"isolated_margin_usd has to be finite and >= 0.* found -5"),
        ({"entry_price": -1.0}, r"entry_price has to be a positive price, or NaN for unknown, found -1"),
        ({"mark_price": -1.0, "entry_price": 1.0}, r"mark_price has to be a positive price, found -1"),
        ({"size": 1e300}, r"size has to be worth less than 1e\+18 USD, found 1e\+300"),
        ({"symbol": None}, r"symbol has to be a name"),
    ],
)
def test_a_position_that_no_requirement_can_be_made_from_is_named(
    change: dict[str, Any], message: str
) -> None:
    position = {"venue": "sim", "symbol": "BTC", "size": 1.0, "mark_price": 50.0} | change
    with pytest.raises(DataError, match=message):
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0, "positions": [position]}])


@pytest.mark.parametrize("value", [np.inf, -1.0])
def test_a_venues_maintenance_has_to_be_an_amount(value: float) -> None:
    with pytest.raises(DataError, match=r"row 0: maintenance_margin_usd has to be finite and >= 0"):
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0, "maintenance_margin_usd": value}])


def test_reduce_only_is_a_boolean_because_the_text_false_is_true() -> None:
    order = {"venue": "sim", "symbol": "BTC", "size": 1.0, "price": 50.0, "reduce_only": "False"}
    with pytest.raises(ContractError, match=r"table 'orders', row 0: column 'reduce_only' has to be a bool"):
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0, "orders": [order]}])


def test_an_order_without_a_price_is_refused() -> None:
    order = {"venue": "sim", "symbol": "BTC", "size": 1.0, "price": np.nan}
    with pytest.raises(DataError, match=r"table 'orders', market 'BTC', row 0: price has to be a positive"):
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0, "orders": [order]}])


@pytest.mark.parametrize("accounts", [[1], [{"account_id": "a", "cash_usd": 1.0, "positions": "BTC"}]])
def test_an_account_that_is_no_dict_of_lists_is_refused(accounts: list[Any]) -> None:
    with pytest.raises(ContractError, match=r"has to be a (dict|list of dicts)"):
        AccountBook.from_dicts(accounts)


def test_a_book_is_as_old_as_its_oldest_account() -> None:
    accounts = {"account_id": ["a", "b"], "cash_usd": [1.0, 1.0], "ts": [5_000_000, 2_000_000]}
    assert AccountBook.from_arrays(accounts).ts == 2_000_000
    assert AccountBook.from_arrays({**accounts, "ts": [5_000_000, None]}).ts is None
