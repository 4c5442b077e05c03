"""Limits and liquidation prices on a live scorer: the older its forecast, the less it lets anyone open."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from riskml.risk.limits import account_limits
from riskml.risk.reasons import reason_names
from riskml.scoring import AccountBook, Scorer

from .conftest import N_HISTORY, PRICES, position, slot

PAIRS = tuple(("sim", symbol) for symbol in PRICES)


@pytest.fixture(scope="module")
def holders() -> AccountBook:
    accounts = {"new": [], "long": [position("BTC", 9_000.0)], "hedged": [position("ETH", -4_000.0)]}
    return AccountBook.from_dicts(
        [
            {"account_id": name, "cash_usd": 3_000.0, "positions": held, "ts": slot(N_HISTORY + 100)}
            for name, held in accounts.items()
        ]
    )


def test_limits_never_rise_as_the_forecast_ages_and_are_what_the_scorer_accepts(
    warm: Scorer, holders: AccountBook
) -> None:
    by_age = []
    for hours in (0, 1, 2, 5, 30):
        warm.on_price("BTC", PRICES["BTC"], slot(N_HISTORY - 1 + hours))
        by_age.append(account_limits(holders, PAIRS, warm.what_if))
    for younger, older in pairwise(by_age):
        assert np.all(older.max_new_usd <= younger.max_new_usd + 0.02)
    assert np.all(by_age[-1].max_new_usd[0, :3] < by_age[0].max_new_usd[0, :3])
    assert "degraded-forecast" in reason_names(int(by_age[-1].stopped_by[0, 0, 0]))

    last = by_age[-1]
    for row, account in enumerate(holders.account_id):
        for side, sign in enumerate((1.0, -1.0)):
            for more, passes in ((0.0, True), (0.05, False)):
                size = sign * (last.max_new_usd[row, 2, side] + more) / PRICES["SOL"]
                trade = {"account_id": account, "venue": "sim", "symbol": "SOL", "size": size}
                after = warm.what_if(holders, [trade | {"price": PRICES["SOL"]}])
                fits = after.equity_usd[row] + 1e-6 * passes >= after.initial_margin_usd[row]
                assert fits == passes, (account, side, more)
