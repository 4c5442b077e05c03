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
