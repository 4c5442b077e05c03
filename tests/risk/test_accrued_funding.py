"""Funding that is accrued and not yet settled belongs to the account's equity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from riskml.errors import RiskmlError
from riskml.risk import AccountBook, Decisions, decide
from riskml.risk.engines import engine_names, get_engine
from riskml.risk.reasons import reason_names
from riskml.units import to_us

from .property_cases import BARE, make_law, random_forecast

POSITION = {"venue": "sim", "symbol": "BTC", "size": 2.0, "entry_price": 95.0, "mark_price": 100.0}
TS = to_us("2025-01-01")


FORECAST = random_forecast(np.random.default_rng(5), 3)
POSITION["symbol"] = FORECAST.markets[0]


def decided(of: AccountBook) -> Decisions:
    return decide(of, FORECAST, BARE, law=make_law("numpy"), ts=FORECAST.ts)


def book(funding: Any, cash: float = 1_000.0, **more: Any) -> AccountBook:
    position = POSITION | {"accrued_funding_usd": funding} | more
    return AccountBook.from_dicts([{"account_id": "a", "cash_usd": cash, "positions": [position]}])


@pytest.mark.parametrize("size", [2.0, -2.0])
@pytest.mark.parametrize("more", [{}, {"margin_mode": "isolated", "isolated_margin_usd": 50.0}])
@pytest.mark.parametrize("funding", [30.0, -30.0])
def test_equity_moves_by_the_funding_accrued_and_requirements_do_not(
    size: float, more: dict[str, Any], funding: float
) -> None:
    without, accrued = (decided(book(usd, size=size, **more)) for usd in (None, funding))
    assert accrued.equity_usd[0] - without.equity_usd[0] == pytest.approx(funding)
    assert accrued.initial_margin_usd[0] == without.initial_margin_usd[0]
    owed = accrued.liquidation_probability[0] - without.liquidation_probability[0]
    assert (owed * funding <= 0.0).all()


def test_funding_of_an_isolated_position_stays_in_its_own_pool() -> None:
    isolated = {"margin_mode": "isolated", "isolated_margin_usd": 50.0}
    rich = decided(book(-59.0, **isolated))  # its margin and profit were 60
    assert rich.liquidation_probability[0, -1] > 0.9
    assert rich.equity_usd[0] == pytest.approx(1_001.0)


WITH_EQUITY = [
    name for name in engine_names() if get_engine(name).margins(book(0.0), None, TS).equity_usd is not None
]


@pytest.mark.parametrize("engine", WITH_EQUITY)
def test_every_engine_that_states_equity_counts_it(engine: str) -> None:
    stated = get_engine(engine)
    without, accrued = (stated.margins(book(usd), None, TS) for usd in (0.0, -30.0))
    assert accrued.equity_usd[0] == pytest.approx(without.equity_usd[0] - 30.0, abs=1e-5)
    np.testing.assert_array_equal(accrued.maintenance_usd, without.maintenance_usd)


@pytest.mark.parametrize(
    ("funding", "more", "message"),
    [
        (np.inf, {}, "accrued_funding_usd has to be finite, or NaN for none"),
        (5.0, {"size": 0.0}, "accrued_funding_usd has to be 0 without a position: book it in cash_usd"),
        (190.0, {}, "accrued_funding_usd has to be less than the position was worth at entry"),
        ("5", {}, "accrued_funding_usd' has to be a number"),
    ],
)
def test_funding_that_cannot_be_is_refused(funding: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(RiskmlError, match=message):
        book(funding, **more)


@pytest.mark.parametrize("funding", [400.0, -400.0])
def test_without_a_mark_the_stated_entry_price_stands_in_and_the_funding_counts(funding: float) -> None:
    entry = 1_000.0
    with_mark = book(funding, entry_price=entry, mark_price=entry)
    without = book(funding, entry_price=entry, mark_price=None)
    known, missing = decided(with_mark), decided(without)
    assert missing.equity_usd[0] == known.equity_usd[0] == pytest.approx(1_000.0 + funding)
    assert missing.initial_margin_usd[0] == known.initial_margin_usd[0]
    assert "missing-price" in reason_names(int(missing.reasons[0]))


def test_an_unstated_funding_is_none() -> None:
    assert book(None).positions.entry_price.tolist() == book(np.nan).positions.entry_price.tolist() == [95.0]
