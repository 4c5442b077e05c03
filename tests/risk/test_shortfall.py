"""Requirements are met pool by pool: what an isolated position has to spare pays for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from riskml.risk import AccountBook, Decisions, reason_names
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.deleverage import deleverage_plans
from riskml.risk.limits import account_limits
from riskml.risk.order_check import check_orders

from .breaker_cases import PRICES, account, position, score
from .test_order_check import _state

PAIRS = (("sim", "BTC"), ("sim", "ETH"), ("sim", "NEW"))
CROSS = ("equity-below-initial", "equity-below-maintenance", "negative-equity")


def _isolated(symbol: str, usd: float, margin: float | None, **more: Any) -> dict[str, Any]:
    return position(symbol, usd, margin_mode="isolated", isolated_margin_usd=margin, **more)


def _judge(*accounts: dict[str, Any]) -> Decisions:
    return score(AccountBook.from_dicts(accounts))


def _names(decisions: Decisions, row: int = 0) -> set[str]:
    return set(reason_names(int(decisions.reasons[row])))


RICH = _isolated("SOL", 300.0, 100_000.0)
BTC = position("BTC", 60_000.0)
BUY = {"venue": "sim", "symbol": "BTC", "size": 1.0, "price": 60_000.0}


@pytest.mark.parametrize(
    ("cash", "held", "orders", "action", "named"),
    [
        (1_500.0, [BTC], [], "deleverage", {"equity-below-initial"}),
        (500.0, [BTC], [], "deleverage", {"equity-below-initial", "equity-below-maintenance"}),
        (0.0, [], [BUY], "restrict", {"equity-below-initial"}),
        (-5.0, [], [], "deleverage", {"negative-equity"}),
        (30_000.0, [BTC], [], "normal", set()),
    ],
)
def test_a_rich_isolated_position_takes_no_reason_away(
    cash: float, held: list[Any], orders: list[Any], action: str, named: set[str]
) -> None:
    bare = _judge(account("a", cash, *held, orders=orders))
    beside = _judge(account("a", cash, *held, RICH, orders=orders))
    for found in (bare, beside):
        assert found.to_dicts()[0]["action"] == action
        assert named <= _names(found)
    assert bool(named) == bool(_names(beside) & set(CROSS))
    assert beside.liquidation_probability[0, 1] >= bare.liquidation_probability[0, 1]
    # The sums stay sums.
    assert beside.equity_usd[0] == bare.equity_usd[0] + 100_000.0
    assert beside.initial_margin_usd[0] > bare.initial_margin_usd[0]
    for name in ("initial_shortfall_usd", "maintenance_shortfall_usd"):
        assert getattr(beside, name)[0] == pytest.approx(getattr(bare, name)[0], abs=1e-9)


def test_a_short_isolated_position_is_named_however_rich_the_account_is() -> None:
    whole = _judge(account("a", 1e6, BTC, _isolated("SOL", 10_000.0, 20.0)))
    assert {"equity-below-initial", "equity-below-maintenance"} <= _names(whole)
    assert whole.to_dicts()[0]["action"] == "deleverage"
    alone = _judge(account("a", 0.0, _isolated("SOL", 10_000.0, 20.0)))
    row = whole.to_dicts()[0]
    for kind in ("initial", "maintenance"):
        asked = float(getattr(alone, f"{kind}_margin_usd")[0])
        assert row[f"{kind}_shortfall_usd"] == pytest.approx(asked - 20.0)
    assert row["initial_spare_usd"] == 0.0
    # A loss beyond the margin is not the account's: all of the requirement is lacking, and no more.
    lost = _judge(account("a", 1e6, BTC, _isolated("SOL", 10_000.0, 20.0, entry_price=300.0)))
    assert lost.initial_shortfall_usd[0] == pytest.approx(float(alone.initial_margin_usd[0]))
    assert lost.equity_usd[0] == 1e6


def _random_pools(rng: np.random.Generator) -> tuple[float, list[dict[str, Any]], list[dict[str, Any]]]:
    """Cash, cross positions and isolated ones, of an account without orders."""
    cross = [position(symbol, float(rng.normal() * 3e4)) for symbol in ("BTC", "ETH") if rng.random() < 0.6]
    alone = [
        _isolated(symbol, float(rng.normal() * 1e4), float(rng.uniform(0.0, 3e3)), venue="hyperliquid")
        for symbol in ("SOL", "NEW", "BTC")
        if rng.random() < 0.5
    ]
    return float(rng.uniform(-500.0, 6e3)), cross, alone


def test_shortfalls_are_summed_over_pools_as_if_each_were_an_account() -> None:
    rng = np.random.default_rng(5)
    cases = [_random_pools(rng) for _ in range(400)]
    whole = _judge(
        *(account(f"a{row}", cash, *cross, *alone) for row, (cash, cross, alone) in enumerate(cases))
    )
    parts, owner = [], []
    for row, (cash, cross, alone) in enumerate(cases):
        parts += [account(f"{row}", cash, *cross)]
        parts += [account(f"{row}-{number}", 0.0, one) for number, one in enumerate(alone)]
        owner += [row] * (1 + len(alone))
    apart = _judge(*parts)
    for kind in ("initial", "maintenance"):
        lacking = np.maximum(getattr(apart, f"{kind}_margin_usd") - apart.equity_usd, 0.0)
        expected = np.bincount(owner, lacking, len(cases))
        np.testing.assert_allclose(getattr(whole, f"{kind}_shortfall_usd"), expected, atol=1e-9)
        assert 50 < np.count_nonzero(expected) < 350
    spare = np.full(len(cases), np.inf)
    np.minimum.at(spare, owner, np.maximum(apart.equity_usd - apart.initial_margin_usd, 0.0))
    np.testing.assert_allclose(whole.initial_spare_usd, spare, atol=1e-9)
    # Where the sums hide it, the reasons do not.
    hidden = (whole.equity_usd >= whole.initial_margin_usd) & (whole.initial_shortfall_usd > 0.0)
    assert hidden.sum() > 20
    assert all("equity-below-initial" in _names(whole, row) for row in np.flatnonzero(hidden))
    assert (whole.action[hidden] >= 2).all()


def _beside(rng: np.random.Generator, row: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """An account, and the same with an isolated position of any margin, published or not."""
    symbols = [symbol for symbol in ("BTC", "ETH", "NEW") if rng.random() < 0.6]
    cross = [position(symbol, float(rng.normal() * 3e4)) for symbol in symbols]
    collateral = [{"chain": "arbitrum", "asset": "ETH", "amount": float(rng.uniform(0, 2)), "price_usd": 3e3}]
    order = {"venue": "sim", "symbol": "ETH", "size": float(rng.normal() * 5), "price": 3_000.0}
    more = {
        "collateral": collateral if rng.random() < 0.3 else [],
        "orders": [order] if rng.random() < 0.3 else [],
    }
    margin = None if rng.random() < 0.2 else float(rng.choice([0.0, 10.0 ** rng.uniform(0, 7)]))
    extra = _isolated("SOL", float(rng.normal() * 10.0 ** rng.uniform(1, 5)), margin)
    cash = float(rng.uniform(-1e3, 8e3))
    return (account(f"a{row}", cash, *cross, **more), account(f"a{row}", cash, *cross, extra, **more))


def test_an_isolated_position_of_any_margin_takes_no_reason_and_no_action_away() -> None:
    rng = np.random.default_rng(31)
    pairs = [_beside(rng, row) for row in range(10_000)]
    bare, beside = (_judge(*(pair[side] for pair in pairs)) for side in (0, 1))
    gone = bare.reasons & ~beside.reasons
    left = {name for bits in np.unique(gone) for name in reason_names(int(bits))}
    assert left <= {"no-position"}
    assert (beside.action >= bare.action).all()
    assert (beside.liquidation_probability >= bare.liquidation_probability - 1e-12).all()
    assert (beside.initial_spare_usd <= bare.initial_spare_usd + 1e-9).all()
    for name in ("initial_shortfall_usd", "maintenance_shortfall_usd"):
        assert (getattr(beside, name) >= getattr(bare, name) - 1e-9).all()
    for name in CROSS:
        assert 500 < sum(name in _names(bare, row) for row in range(len(pairs))) < 9_500


def test_an_isolated_position_of_any_margin_raises_no_limit() -> None:
    rng = np.random.default_rng(32)
    pairs = [_beside(rng, row) for row in range(120)]
    bare, beside = (
        account_limits(AccountBook.from_dicts([pair[side] for pair in pairs]), PAIRS, score)
        for side in (0, 1)
    )
    assert (beside.max_new_usd <= bare.max_new_usd * (1.0 + 1e-6) + 0.02).all()
    # Whoever is not short keeps what the cross pool allows.
    stated = np.array([pair[1]["positions"][-1]["isolated_margin_usd"] is not None for pair in pairs])
    kept = stated & (_short(pairs, 1) == 0.0) & (_short(pairs, 0) == 0.0)
    np.testing.assert_allclose(beside.max_new_usd[kept], bare.max_new_usd[kept], rtol=1e-6, atol=0.02)
    assert np.count_nonzero(bare.max_new_usd[kept]) > 50
    assert ((beside.margin_used > 1.0) == (_short(pairs, 1) > 0.0)).all()
    assert ((bare.margin_used > 1.0) == (_short(pairs, 0) > 0.0)).all()


def _short(pairs: list[tuple[dict[str, Any], dict[str, Any]]], side: int) -> np.ndarray:
    decisions = _judge(*(pair[side] for pair in pairs))
    return np.where(decisions.initial_margin_usd > 0.0, decisions.initial_shortfall_usd, 0.0)


def test_limit_order_check_and_plan_agree_on_every_pool() -> None:
    poor, rich = account("a", 45.0, RICH), account("b", 5_000.0, RICH)
    book = AccountBook.from_dicts([poor, rich])
    limits = account_limits(book, PAIRS, score)
    assert limits.max_new_usd[0, 0, 0] < 1_000.0 < limits.max_new_usd[1, 0, 0]
    for row, name in enumerate(("a", "b")):
        for more, allowed in ((0.0, True), (0.02, False)):
            size = (float(limits.max_new_usd[row, 0, 0]) + more) / PRICES["BTC"]
            order = {"account_id": [name], "venue": ["sim"], "symbol": ["BTC"], "size": [size]}
            order["price"] = [PRICES["BTC"]]
            found = check_orders(book, order, score, _state(0), BreakerPolicy()).to_dicts()[0]
            assert found["allowed"] == allowed
            assert ("equity-below-initial" in found["reasons"]) != allowed
    short = AccountBook.from_dicts([account("a", 1_500.0, BTC, RICH)])
    assert [plan.pool for plan in deleverage_plans(short, score, BreakerPolicy())] == ["cross"]
    assert account_limits(short, PAIRS, score).max_new_usd.max() == 0.0


def test_a_margin_taken_out_of_an_account_leaves_no_debt_behind() -> None:
    """What is left of an equity that isolated positions share is 0 up to rounding, and nobody owes that."""
    rng = np.random.default_rng(8)
    accounts = [
        account(
            f"a{row}",
            float(rng.uniform(1e3, 1e9)),
            *(_isolated(symbol, float(rng.uniform(1.0, 900.0)), None) for symbol in ("BTC", "ETH", "SOL")),
        )
        for row in range(500)
    ]
    found = _judge(*accounts)
    assert not (found.reasons & np.uint64(2)).any()
    assert (found.liquidation_probability[:, 2] < 1.0).all()
    assert (found.initial_shortfall_usd == 0.0).all()
    assert _names(_judge(account("a", -0.01, RICH))) >= {"negative-equity"}


def test_a_search_starts_from_what_the_pool_has_and_not_from_an_isolated_margin() -> None:
    tried = []

    def engine(book: AccountBook) -> Decisions:
        held = book.positions
        tried.append(float(np.max(np.abs(held.size * held.mark_price)[~held.isolated], initial=0.0)))
        return score(book)

    book = AccountBook.from_dicts([account("a", 9_000.0, _isolated("SOL", 20.0, 1e8))])
    found = account_limits(book, (("sim", "BTC"),), engine)
    assert max(tried) <= 2.0 * found.max_new_usd.max()


@pytest.mark.parametrize("margin", [5.0, 1_000.0, 1e6])
def test_a_search_asks_the_engine_no_more_often_beside_an_isolated_position(margin: float) -> None:
    def calls(*held: dict[str, Any]) -> int:
        seen = []

        def engine(book: AccountBook) -> Decisions:
            seen.append(len(book))
            return score(book)

        judge: Callable[[AccountBook], Decisions] = engine
        account_limits(AccountBook.from_dicts([account("a", 9_000.0, BTC, *held)]), PAIRS, judge)
        return len(seen)

    assert calls(_isolated("SOL", 20.0, margin)) <= 2 * calls()
