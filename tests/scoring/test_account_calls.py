"""Orders, plans, prices and limits through the scorer: the library on the inputs of a decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml.errors import ContractError, DataError
from riskml.risk.actions import DELEVERAGE
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.deleverage import apply_plans, deleverage_plans
from riskml.risk.limits import account_limits, market_limits
from riskml.risk.liquidation_price import LiquidationPrices, liquidation_prices
from riskml.risk.order_check import check_orders
from riskml.risk.policy import MarginPolicy
from riskml.risk.reasons import reason_bit
from riskml.scoring import AccountBook, Decisions, Scorer, account_engine
from riskml.scoring.conditions import conditions_at, liquidity_at
from riskml.units import HOUR, MINUTE

from .conftest import N_HISTORY, PRICES, SYMBOLS, Feed, position, slot
from .test_degraded import advance

NOW = slot(N_HISTORY - 1)
CALM = BreakerPolicy(
    stress_watch=1.0, stress_restrict=1.0, stress_halt=1.0, jump_watch=1e6, jump_restrict=1e6, jump_halt=1e6
)
DEGRADED = np.uint64(reason_bit("degraded-forecast"))
PRICE_COLUMNS = (
    "mark",
    "co_moving_price",
    "standstill_price",
    "distance",
    "liquidation_probability",
    "co_moving_reach",
    "standstill_reach",
)


@pytest.fixture(scope="module")
def held() -> AccountBook:
    """A comfortable account, two that have to be cut, a hedge, and an isolated position."""
    isolated = position("ETH", 5_000.0, margin_mode="isolated", isolated_margin_usd=900.0)
    accounts = {
        "rich": (50_000.0, [position("BTC", 10_000.0)]),
        "tight": (-200.0, [position("SOL", -8_000.0), position("BTC", 2_000.0)]),
        "hedge": (500.0, [position("BTC", 30_000.0), position("ETH", -29_000.0)]),
        "alone": (4_000.0, [isolated]),
    }
    return AccountBook.from_dicts(
        [
            {"account_id": name, "cash_usd": cash, "positions": positions}
            for name, (cash, positions) in accounts.items()
        ]
    )


def orders(*rows: tuple[str, str, float], venue: str = "sim", **more: list[Any]) -> dict[str, Any]:
    """Columns of orders (account, symbol, USD at the feed's first prices)."""
    names, symbols, usd = zip(*rows, strict=True)
    price = [PRICES[symbol] for symbol in symbols]
    return {
        "account_id": list(names),
        "venue": [venue] * len(rows),
        "symbol": list(symbols),
        "size": [amount / each for amount, each in zip(usd, price, strict=True)],
        "price": price,
    } | more


def inputs(scorer: Scorer, book: AccountBook, ts: int) -> dict[str, Any]:
    """Prices, conditions and liquidity that a decision at ``ts`` rests on, looked up anew."""
    store, minute = scorer._live.store, -(-ts // MINUTE) * MINUTE
    return {
        "prices": scorer._prices.newer_than(book.ts),
        "conditions": conditions_at(store, minute),
        "liquidity_usd": liquidity_at(store, scorer._prices.newer_than(None), minute),
    }


def engine(scorer: Scorer, book: AccountBook, ts: int) -> Callable[[AccountBook], Decisions]:
    given = inputs(scorer, book, ts)
    return lambda trial: scorer._requirements.decide(trial, ts, remember=False, **given)


def degraded_scorer(scorer: Scorer, feed: Feed) -> Scorer:
    """The scorer after two calm hours in which ETH had no bar."""
    advance(scorer, feed, range(N_HISTORY, N_HISTORY + 2), "missing bars", "ETH")
    assert scorer.forecast is not None
    assert scorer.forecast.degraded.tolist() == [False, True, False]
    return scorer


@pytest.fixture(params=["sound", "degraded", "overdue"])
def at(
    request: pytest.FixtureRequest, make_warm: Callable[..., Scorer], feed: Feed
) -> tuple[Scorer, int, str]:
    """A scorer, the moment of the calls, and how the forecast is."""
    scorer = make_warm(breaker=CALM)
    if request.param == "sound":
        return scorer, NOW + 10 * MINUTE, request.param
    if request.param == "overdue":
        return scorer, NOW + 2 * HOUR, request.param
    return degraded_scorer(scorer, feed), slot(N_HISTORY + 1) + MINUTE, request.param


def test_orders_through_the_scorer_are_the_librarys(held: AccountBook, at: tuple[Scorer, int, str]) -> None:
    scorer, ts, _ = at
    wanted = orders(
        ("rich", "BTC", 20_000.0),
        ("rich", "ETH", -5_000.0),
        ("tight", "SOL", 4_000.0),
        ("tight", "BTC", 500.0),
        ("hedge", "ETH", 29_000.0),
        ("alone", "ETH", 2_000.0),
        ("rich", "NEW", 100.0),
    )
    state = scorer.market_states
    assert state is not None
    expected = check_orders(
        held,
        wanted,
        engine(scorer, held, ts),
        state,
        scorer.breaker,
        prices=scorer._prices.newer_than(held.ts),
    )
    found = scorer.check_orders(held, wanted, ts)
    assert found.to_dicts() == expected.to_dicts()
    assert found.allowed.any()
    assert not found.allowed.all()
    unknown = found.to_dicts()[-1]
    assert unknown["market_state"] == "halt"
    assert {"unknown-market", "market-halted"} <= set(unknown["reasons"])


@pytest.mark.parametrize(
    ("hours", "opens", "grows", "reduces"),
    [(0, True, True, True), (3, False, True, True), (6, False, False, True)],
)
def test_a_silent_feed_pauses_entries_then_everything_but_reductions(
    make_warm: Callable[..., Scorer], held: AccountBook, hours: int, opens: bool, grows: bool, reduces: bool
) -> None:
    scorer = make_warm(breaker=CALM)
    wanted = orders(("rich", "ETH", 100.0), ("rich", "BTC", 100.0), ("rich", "BTC", -100.0))
    found = scorer.check_orders(held, wanted, NOW + hours * HOUR)
    assert found.allowed.tolist() == [opens, grows, reduces]
    stale = [("stale-forecast" in row["reasons"]) for row in found.to_dicts()]
    assert stale == [not opens, not grows, False]


def test_a_state_file_without_market_states_lets_only_reductions_pass(
    make_warm: Callable[..., Scorer], held: AccountBook
) -> None:
    scorer = make_warm(breaker=CALM)
    scorer._states = type(scorer._states)(CALM)
    found = scorer.check_orders(held, orders(("rich", "BTC", 100.0), ("rich", "BTC", -100.0)))
    assert found.allowed.tolist() == [False, True]
    assert "unknown-market" in found.to_dicts()[0]["reasons"]


def isolated_order(usd: float, margin: float) -> dict[str, Any]:
    more = {"margin_mode": ["isolated"], "isolated_margin_usd": [margin]}
    return orders(("rich", "BTC", usd), venue="hyperliquid", **more)


def test_the_venues_published_leverage_binds_an_isolated_position(
    make_warm: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_warm(breaker=CALM)
    book = AccountBook.from_dicts([{"account_id": "rich", "cash_usd": 1e6}])
    price = PRICES["BTC"] * 1.0

    def reasons(usd: float, margin: float) -> list[str]:
        row = scorer.check_orders(book, isolated_order(usd, margin)).to_dicts()[0]
        return list(row["reasons"])

    # What riskml asks allows about ten times; a venue that allows two is stricter.
    assert reasons(price, price / 4.0) == ["within-limits"]
    two = {"hyperliquid": lambda symbol, usd, ts: np.full(len(usd), 2.0)}
    monkeypatch.setattr(account_engine, "_VENUE_TIERS", two)
    assert reasons(price, price / 4.0) == ["isolated-leverage"]
    assert reasons(price, price / 1.5) == ["within-limits"]


def test_the_leverage_of_hyperliquid_is_that_of_the_tier_and_the_day() -> None:
    from riskml.units import to_us

    usd = np.array([1e6, 2e8])
    tiers = account_engine._VENUE_TIERS["hyperliquid"]
    assert tiers("BTC", usd, to_us("2024-01-01")).tolist() == [50.0, 50.0]
    assert tiers("BTC", usd, to_us("2025-06-01")).tolist() == [40.0, 20.0]


def test_orders_that_end_in_different_tiers_are_each_held_to_their_own(
    make_warm: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_warm(breaker=CALM)
    book = AccountBook.from_dicts([{"account_id": "rich", "cash_usd": 1e6}])
    tiers = {"hyperliquid": lambda symbol, usd, ts: np.where(np.abs(usd) > 20_000.0, 1.5, 6.0)}
    monkeypatch.setattr(account_engine, "_VENUE_TIERS", tiers)
    sizes = [10_000.0, 40_000.0, -10_000.0, 40_000.0]
    margins = [2_500.0, 10_000.0, 2_500.0, 39_000.0]
    more = {"margin_mode": ["isolated"] * 4, "isolated_margin_usd": margins}
    together = orders(*[("rich", "BTC", usd) for usd in sizes], venue="hyperliquid", **more)
    found = scorer.check_orders(book, together).to_dicts()
    for row, pair in enumerate(zip(sizes, margins, strict=True)):
        assert found[row] == scorer.check_orders(book, isolated_order(*pair)).to_dicts()[0]
    assert [row["allowed"] for row in found] == [True, False, True, True]


def test_plans_through_the_scorer_are_the_librarys(held: AccountBook, at: tuple[Scorer, int, str]) -> None:
    scorer, ts, _ = at
    given = inputs(scorer, held, ts)
    expected = deleverage_plans(
        held,
        engine(scorer, held, ts),
        scorer.breaker,
        prices=given["prices"],
        liquidity_usd=given["liquidity_usd"],
    )
    found = scorer.deleverage(held, ts=ts)
    assert [plan.to_dict() for plan in found] == [plan.to_dict() for plan in expected]
    assert "tight" in {plan.account_id for plan in found}
    assert "rich" not in {plan.account_id for plan in found}


def test_a_plan_restores_the_target_by_the_scorers_own_judgement(warm: Scorer, held: AccountBook) -> None:
    before = warm.what_if(held)
    assert before.action[1] == DELEVERAGE
    plans = warm.deleverage(held, ["tight"])
    assert [(plan.account_id, plan.feasible) for plan in plans] == [("tight", True)]
    prices = warm._prices.newer_than(held.ts)
    after = apply_plans(held, plans, warm.breaker, collateral_usd=before.collateral_usd, prices=prices)
    decided = warm.what_if(after)
    assert decided.equity_usd[1] >= decided.initial_margin_usd[1]
    assert decided.initial_margin_usd[1] > 0.5 * decided.equity_usd[1]  # no more than that


def test_a_plan_in_a_market_of_unknown_liquidity_is_bounded_by_the_scorers_margin_policy(
    make_warm: Callable[..., Scorer],
) -> None:
    thick = make_warm(policy=MarginPolicy(unknown_market_liquidity_usd=1e9))
    thin = make_warm(policy=MarginPolicy(unknown_market_liquidity_usd=2e5))
    book = AccountBook.from_dicts(
        [{"account_id": "a", "cash_usd": 10.0, "positions": [position("NEW", 80_000.0)]}]
    )
    steps = [scorer.deleverage(book, ["a"])[0].steps for scorer in (thick, thin)]
    assert [max(step.notional_usd for step in of) for of in steps] == pytest.approx([20_000.0, 10_000.0])
    assert all(step.reasons & reason_bit("unknown-liquidity") for of in steps for step in of)


def test_prices_through_the_scorer_are_the_librarys_while_all_is_sound(
    warm: Scorer, held: AccountBook
) -> None:
    scales = warm._requirements.scales
    assert scales is not None
    expected = liquidation_prices(
        held,
        scales.forecast,
        warm.policy,
        law=warm.bundle.account,
        ts=NOW,
        market_law=scales.market_law,
        **inputs(warm, held, NOW),
    )
    found = warm.liquidation_prices(held)
    assert len(found) == 6
    for name in PRICE_COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def away(of: LiquidationPrices, name: str) -> np.ndarray:
    """How far the mark is from prices, in logs; inf where they are never reached."""
    price = getattr(of, name)
    mark = of.mark.reshape(-1, *([1] * (price.ndim - 1)))
    with np.errstate(divide="ignore"):
        return np.nan_to_num(np.abs(np.log(price / mark)), nan=np.inf, posinf=np.inf)


def test_holders_of_a_degraded_market_get_the_nearest_price_of_every_view(
    make_warm: Callable[..., Scorer], feed: Feed, held: AccountBook
) -> None:
    scorer = degraded_scorer(make_warm(breaker=CALM), feed)
    ts, of = slot(N_HISTORY + 1), scorer._requirements
    assert of.scales is not None
    views = [
        liquidation_prices(
            held,
            view.forecast,
            scorer.policy,
            law=scorer.bundle.account,
            ts=ts,
            market_law=view.market_law,
            **inputs(scorer, held, ts),
        )
        for view in (of.scales, *of.anchors.values(), *of.floors)
    ]
    found, decided = scorer.liquidation_prices(held), scorer.what_if(held)
    touched = ((decided.reasons & DEGRADED) > 0)[held.positions.account]
    assert touched.tolist() == [False, False, False, True, True, True]
    for name in ("co_moving_price", "standstill_price"):
        nearest = np.min([away(view, name) for view in views], axis=0)
        np.testing.assert_array_equal(away(found, name)[touched], nearest[touched], err_msg=name)
        np.testing.assert_array_equal(getattr(found, name)[~touched], getattr(views[0], name)[~touched])
    assert len(views) > 1
    assert any(
        (away(view, "co_moving_price")[touched] < away(views[0], "co_moving_price")[touched]).any()
        for view in views
    )
    for name, most in (("liquidation_probability", np.max), ("distance", np.min)):
        strictest = most([getattr(view, name) for view in views], axis=0)
        np.testing.assert_array_equal(getattr(found, name)[touched], strictest[touched], err_msg=name)
    # A position's pool is as likely to be liquidated as its account, which has no other.
    np.testing.assert_allclose(
        found.liquidation_probability[3], decided.liquidation_probability[2], rtol=1e-12
    )


def test_market_limits_through_the_scorer_are_the_librarys_or_stricter(
    held: AccountBook, at: tuple[Scorer, int, str]
) -> None:
    scorer, ts, how = at
    scales = scorer._requirements.scales
    assert scales is not None
    plain = market_limits(
        scales.forecast,
        scorer.policy,
        [500.0, 2e6],
        law=scorer.bundle.account,
        market_law=scales.market_law,
        liquidity_usd=inputs(scorer, held, ts)["liquidity_usd"],
    )
    found = scorer.leverage_limits(ts=ts, sizes_usd=[500.0, 2e6])
    assert found.account is None
    assert found.market.markets == SYMBOLS
    sound = {"sound": [0, 1, 2], "degraded": [0, 2], "overdue": []}[how]
    np.testing.assert_array_equal(found.market.max_leverage[sound], plain.max_leverage[sound])
    assert (found.market.max_leverage <= plain.max_leverage).all()
    assert (found.market.requirement_usd >= plain.requirement_usd).all()
    assert ((found.market.reasons & DEGRADED) == 0).tolist() == [row in sound for row in range(3)]
    # A lone position is an account: it has to be asked what the market's limit says.
    price = scorer._prices.newer_than(None)["ETH"]
    lone = {"venue": "sim", "symbol": "ETH", "size": 500.0 / price, "mark_price": price}
    book = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1e3, "positions": [lone]}])
    asked = (
        scorer.what_if(book).initial_margin_usd[0]
        if how != "overdue"
        else scorer.score(book, ts).initial_margin_usd[0]
    )
    assert found.market.requirement_usd[1, 0, 0] == pytest.approx(asked, abs=0.011)


def test_the_limit_of_a_degraded_market_is_the_strictest_of_every_view(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    scorer = degraded_scorer(make_warm(breaker=CALM), feed)
    newest = scorer._requirements.scales
    assert newest is not None
    before = scorer.leverage_limits().market
    wilder = replace(
        newest,
        forecast=replace(newest.forecast, sigma=2.0 * newest.forecast.sigma),
        maintenance=2.0 * newest.maintenance,
    )
    scorer._requirements.anchors[NOW - HOUR] = wilder  # a last sound bar that was twice as wild
    after = scorer.leverage_limits().market
    for name in ("max_leverage", "requirement_usd"):
        was, now = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(now[[0, 2]], was[[0, 2]], err_msg=name)
        ratio = now[1] / was[1] if name == "requirement_usd" else was[1] / now[1]
        assert (ratio > 1.5).all(), name


def test_account_limits_through_the_scorer_are_the_librarys(
    held: AccountBook, at: tuple[Scorer, int, str]
) -> None:
    scorer, ts, _ = at
    pairs = [("sim", "BTC"), ("sim", "SOL")]
    expected = account_limits(held, pairs, engine(scorer, held, ts))
    found = scorer.leverage_limits(held, ts, markets=pairs)
    assert found.account is not None
    np.testing.assert_array_equal(found.account.max_new_usd, expected.max_new_usd)
    np.testing.assert_array_equal(found.account.leverage_limit, expected.leverage_limit)
    assert found.account.max_new_usd[0].min() > 0.0
    assert (found.account.max_new_usd[1] == 0.0).all()
    shown = found.to_dict()
    assert [row["account_id"] for row in shown["accounts"]] == ["rich", "tight", "hedge", "alone"]
    assert [row["market"] for row in shown["markets"]] == list(SYMBOLS)


def test_limits_without_markets_are_of_those_that_the_book_holds_else_of_all(
    warm: Scorer, held: AccountBook
) -> None:
    flat = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1e3}])
    of_held, of_flat = warm.leverage_limits(held).account, warm.leverage_limits(flat).account
    assert of_held is not None
    assert of_flat is not None
    assert of_held.markets == (("sim", "BTC"), ("sim", "SOL"), ("sim", "ETH"))
    assert of_flat.markets == tuple(("sim", symbol) for symbol in SYMBOLS)


Call = Callable[[Scorer, AccountBook, Any], object]
CALLS: dict[str, Call] = {
    "check_orders": lambda scorer, book, ts: scorer.check_orders(book, orders(("rich", "BTC", 9.0)), ts),
    "deleverage": lambda scorer, book, ts: scorer.deleverage(book, ts=ts),
    "liquidation_prices": lambda scorer, book, ts: scorer.liquidation_prices(book, ts),
    "leverage_limits": lambda scorer, book, ts: scorer.leverage_limits(book, ts),
    "market_states_at": lambda scorer, book, ts: scorer.market_states_at(ts),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_before_the_first_bar_and_in_the_past_every_call_is_refused(
    warm: Scorer, tiny_bundle: Path, held: AccountBook, call: Call
) -> None:
    with pytest.raises(DataError, match=r"no bar was closed yet.*call close_bar first"):
        call(Scorer.load(tiny_bundle), held, None)
    with pytest.raises(DataError, match=r"the clock went backwards: .*Fix: score with the newest time"):
        call(warm, held, NOW - 1)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_no_call_is_remembered(make_warm: Callable[..., Scorer], held: AccountBook, call: Call) -> None:
    scorer = make_warm()
    scorer.score(held)
    before = (dict(scorer._requirements.actions), scorer.market_states)
    call(scorer, held, NOW + 30 * HOUR)
    assert (scorer._requirements.actions, scorer.market_states) == before
    scorer.score(held, NOW + 1)  # nor the moment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"account_id": ["rihc"]},
            r"table 'orders', row 0: account 'rihc' is not among .*Did you mean 'rich'",
        ),
        ({"size": [float("nan")]}, r"table 'orders', market 'BTC', row 0: .*size"),
        ({"price": [-1.0]}, r"table 'orders', market 'BTC', row 0: .*price"),
        ({"margin_mode": ["crossed"]}, r"margin_mode is 'crossed'. Did you mean 'cross'"),
        ({"isolated_margin_usd": [-5.0]}, r"isolated_margin_usd"),
    ],
)
def test_an_order_that_cannot_be_judged_is_refused(
    warm: Scorer, held: AccountBook, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        warm.check_orders(held, orders(("rich", "BTC", 100.0)) | change)


def test_orders_without_a_column_or_none_at_all(warm: Scorer, held: AccountBook) -> None:
    wanted = orders(("rich", "BTC", 100.0))
    del wanted["size"]
    with pytest.raises(ContractError, match=r"column 'size' is required"):
        warm.check_orders(held, wanted)
    assert len(warm.check_orders(held, {name: [] for name in orders(("rich", "BTC", 1.0))})) == 0


def test_a_plan_for_an_unknown_account_and_a_size_of_none_are_refused(
    warm: Scorer, held: AccountBook
) -> None:
    with pytest.raises(DataError, match=r"account 'tihgt' is not in the book. Did you mean 'tight'"):
        warm.deleverage(held, ["tihgt"])
    with pytest.raises(DataError, match=r"a size has to lie in \(0, "):
        warm.leverage_limits(sizes_usd=[1e3, float("nan")])
