"""Which rows a scorer takes, which it leaves out, and which mistakes raise."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.errors import ContractError
from riskml.scoring import Scorer
from riskml.scoring.observe import Observed, check_rows

HOUR_US = 3_600_000_000


def bars(**changes: object) -> dict[str, object]:
    columns: dict[str, object] = {
        "ts": np.array([HOUR_US, 2 * HOUR_US]),
        "known_at": np.array([HOUR_US, 2 * HOUR_US]),
        "venue": ["sim", "sim"],
        "symbol": ["BTC", "BTC"],
        "interval": ["1h", "1h"],
        "open": [10.0, 11.0],
        "high": [12.0, 12.0],
        "low": [9.0, 10.0],
        "close": [11.0, 10.5],
        "volume": [1.0, 0.0],
    }
    return {name: value for name, value in (columns | changes).items() if value is not None}


def test_rows_that_follow_the_contract_are_taken_and_optional_columns_filled() -> None:
    checked = check_rows("bars", bars())
    assert (checked.n_rows, checked.problems) == (2, ())
    assert np.isnan(checked.columns["taker_buy_volume"]).all()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"close": [np.nan, 10.5]}, "not-finite"),
        ({"close": [11.0, np.inf]}, "not-finite"),
        ({"low": [-1.0, 10.0]}, "not-positive"),
        ({"volume": [-1.0, 0.0]}, "negative"),
        ({"high": [10.5, 12.0]}, "high-too-low"),
        ({"low": [10.5, 10.0]}, "low-too-high"),
        ({"known_at": np.array([0, 2 * HOUR_US])}, "known-before-it-happened"),
        ({"symbol": ["", "BTC"]}, "empty"),
        ({"quote_volume": [np.inf, 1.0]}, "not-finite"),
    ],
)
def test_a_bad_row_is_left_out_with_its_reason_and_number(changes: dict[str, object], code: str) -> None:
    checked = check_rows("bars", bars(**changes))
    assert checked.n_rows == 1
    assert [problem.code for problem in checked.problems] == [code]
    bad = checked.problems[0].row
    assert checked.columns["ts"].tolist() == [(2 - bad) * HOUR_US]


def test_a_null_in_a_column_that_may_be_null_stays() -> None:
    checked = check_rows("bars", bars(taker_buy_volume=[None, 2.0]))
    assert checked.n_rows == 2
    assert np.isnan(checked.columns["taker_buy_volume"][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"close": None}, r"table 'bars': column 'close' is required"),
        ({"closed": [1.0, 2.0]}, r"no column 'closed'. Did you mean 'close'\?"),
        ({"volume": [1.0]}, r"columns differ in length: .*volume 1"),
        ({"open": ["ten", "eleven"]}, r"column 'open' has to hold numbers"),
        ({"symbol": [1.0, 2.0]}, r"column 'symbol' has to hold text"),
        ({"ts": [0.5, 1.5]}, r"column 'ts' has to hold times"),
    ],
)
def test_a_mistake_in_the_columns_raises(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_rows("bars", bars(**changes))


def test_every_missing_column_is_named_at_once() -> None:
    with pytest.raises(ContractError, match=r"(?s)3 problems.*'high'.*'low'.*'close'") as caught:
        check_rows("bars", bars(high=None, low=None, close=None))
    assert len(caught.value.problems) == 3


def test_an_unknown_table_suggests_the_nearest(warm: Scorer) -> None:
    with pytest.raises(ContractError, match=r"no table 'fundings'. Did you mean 'funding'\?"):
        warm.observe("fundings", {})


def test_the_output_table_is_no_input(warm: Scorer) -> None:
    with pytest.raises(ContractError, match=r"'margins' is what riskml writes"):
        warm.observe("margins", {})


def test_counts_add_up_to_the_rows_and_stay_in_the_telemetry(warm: Scorer) -> None:
    last = warm.forecast.ts
    times = np.array([last, last + HOUR_US, last + 2 * HOUR_US])
    rows = bars(
        ts=times,
        known_at=times,
        venue=["sim"] * 3,
        symbol=["BTC"] * 3,
        interval=["1h"] * 3,
        open=[10.0] * 3,
        high=[12.0] * 3,
        low=[9.0] * 3,
        close=[11.0, 11.0, np.nan],
        volume=[1.0] * 3,
    )
    assert warm.observe("bars", rows) == Observed(accepted=1, late=1, rejected=1)
    assert warm.telemetry.value("late_rows", label="bars") == 1
    assert warm.telemetry.value("rejected_rows") == 1
    assert warm.telemetry.problems[-1].row == 2
    assert 'riskml_late_rows{label="bars"} 1' in warm.telemetry.to_prometheus()


def test_account_tables_are_checked_and_counted(warm: Scorer) -> None:
    rows = {
        "ts": [0, 0],
        "known_at": [0, 0],
        "account_id": ["a", "b"],
        "margin_mode": ["cross", "cross"],
        "cash_usd": [1.0, np.nan],
    }
    seen = warm.observe("accounts", rows)
    assert (seen.late + seen.accepted, seen.rejected) == (1, 1)
