"""The error tree: places, fixes and collected problems."""

from __future__ import annotations

import pytest

from riskml import errors
from riskml.errors import DataError, Problem, RiskmlError


def test_a_message_names_table_market_row_and_fix() -> None:
    error = DataError("low is above high", table="bars", market="BTC", row=7, fix="drop the row")
    assert str(error) == "table 'bars', market 'BTC', row 7: low is above high Fix: drop the row"
    assert (error.table, error.market, error.row, error.fix) == ("bars", "BTC", 7, "drop the row")


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (errors.DataError, ValueError),
        (errors.ContractError, errors.DataError),
        (errors.StaleDataError, errors.DataError),
        (errors.BundleError, RiskmlError),
        (errors.ConfigError, RiskmlError),
    ],
)
def test_the_tree_is_the_documented_one(child: type[Exception], parent: type[Exception]) -> None:
    assert issubclass(child, parent)
    assert issubclass(child, RiskmlError)


def test_collected_problems_are_all_shown_and_the_first_gives_the_place() -> None:
    problems = [
        Problem("negative-volume", "volume is -1", table="bars", market="ETH", row=3),
        Problem("high-below-low", "high 1 < low 2", table="bars", market="ETH", row=4),
    ]
    error = DataError.from_problems(problems, "bars cannot be used")
    assert isinstance(error, DataError)
    assert (error.table, error.market, error.row) == ("bars", "ETH", 3)
    assert "2 problems" in str(error)
    assert "high 1 < low 2 [high-below-low]" in str(error)


def test_a_long_list_of_problems_is_cut_with_a_count() -> None:
    problems = [Problem("gap", f"gap {n}") for n in range(25)]
    assert "and 5 more" in str(DataError.from_problems(problems, "gaps"))


def test_the_nearest_name_is_suggested() -> None:
    assert errors.nearest("bar", ["bars", "marks"]) == " Did you mean 'bars'?"
    assert errors.nearest("zzz", ["bars", "marks"]) == ""


def test_a_missing_extra_names_the_install_command() -> None:
    assert "pip install 'riskml[train]'" in str(errors.missing_extra("torch", "train"))
