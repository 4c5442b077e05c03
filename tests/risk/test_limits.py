"""Leverage and size limits against the engine that judges the order, and what they never do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law, reason_names
from riskml.risk.collateral import Conditions
from riskml.risk.limits import AccountLimits, MarketLimits, account_limits, market_limits
from riskml.risk.margin import round_up_cents
from riskml.units import to_us

TS = to_us("2024-05-01")
MARKETS = ("BTC", "ETH", "SOL")
PRICES = {"BTC": 60_000.0, "ETH": 3_000.0, "SOL": 150.0, "NEW": 2.0}
PAIRS = tuple(("sim", symbol) for symbol in PRICES)
LAW = numpy_law(np.ones(3))
N_RANDOM = 12_000
SIZES = [400, pytest.param(2_400, marks=pytest.mark.slow)]  # 12,000 held as well, in half an hour


def _forecast(**changes: Any) -> Forecast:
    base = np.array([0.004, 0.005, 0.008])[:, None] * np.sqrt([1.0, 8.0, 24.0])
    values: dict[str, Any] = {
        "ts": TS,
        "markets": MARKETS,
        "horizons": ("1h", "8h", "24h"),
        "sigma": np.stack([1.1 * base, base], axis=-1),
        "nu": np.full((3, 3), 3.7),
        "variance": base**2,
        "stress": np.full((3, 3), 0.01),
        "loadings": np.array([[0.8, 0.0], [0.85, 0.1], [0.7, 0.3]]),
        "degraded": np.zeros(3, dtype=np.bool_),
    }
    return Forecast(**(values | changes))


def _markets(n_markets: int, sigma: np.ndarray, nu: np.ndarray) -> Forecast:
    """Markets of random law: sigma [n_markets] over an hour, nu [n_markets]."""
    scale = sigma[:, None, None] * np.sqrt([1.0, 8.0, 24.0])[:, None] * np.array([1.05, 1.0])
    return _forecast(
        markets=tuple(f"M{number}" for number in range(n_markets)),
        sigma=scale,
        nu=np.repeat(nu[:, None], 3, axis=1),
        variance=scale[..., 0] ** 2,
        stress=np.zeros((n_markets, 3)),
        loadings=np.tile([0.6, 0.2], (n_markets, 1)),
        degraded=np.zeros(n_markets, dtype=np.bool_),
    )


def _leverage(
    forecast: Forecast, sizes: Any, policy: MarginPolicy | None = None, **more: Any
) -> MarketLimits:
    return market_limits(forecast, policy or MarginPolicy(), sizes, law=LAW, **more)


def _engine(policy: MarginPolicy | None = None, **more: Any) -> Callable[[AccountBook], Decisions]:
    settings = {"forecast": _forecast(), "policy": policy or MarginPolicy(), "law": LAW, "ts": TS}
    return partial(decide, **(settings | more))


def _position(symbol: str, size: float, **more: Any) -> dict[str, Any]:
    return {"venue": "sim", "symbol": symbol, "size": size, "mark_price": PRICES[symbol], **more}


def _account(cash: float, *positions: dict[str, Any], name: str = "a", **more: Any) -> dict[str, Any]:
    return {"account_id": name, "cash_usd": cash, "positions": list(positions), **more}


def _limits(*accounts: dict[str, Any], **more: Any) -> AccountLimits:
    pairs = more.pop("pairs", PAIRS)
    return account_limits(AccountBook.from_dicts(accounts), pairs, _engine(**more))


def _random_book(seed: int, n_accounts: int) -> AccountBook:
    """Accounts with up to three positions, spot collateral and an open order now and then."""
    rng = np.random.default_rng(seed)
    accounts = []
    for number in range(n_accounts):
        held = [symbol for symbol in PRICES if rng.random() < 0.45]
        positions = [
            _position(
                symbol,
                float(rng.normal() * 20_000.0 / PRICES[symbol]),
                entry_price=PRICES[symbol] * float(rng.uniform(0.8, 1.2)),
            )
            for symbol in held
        ]
        collateral = [
            {"chain": "arbitrum", "asset": "ETH", "amount": float(rng.uniform(0, 3)), "price_usd": 3_000.0}
        ]
        orders = [{"venue": "sim", "symbol": "BTC", "size": float(rng.normal()), "price": 60_000.0}]
        accounts.append(
            _account(
                float(rng.uniform(0, 30_000)),
                *positions,
                name=f"a{number}",
                collateral=collateral if rng.random() < 0.3 else [],
                orders=orders if rng.random() < 0.2 else [],
            )
        )
    return AccountBook.from_dicts(accounts)


def test_capital_of_the_limit_is_just_enough_for_the_engine() -> None:
    policy, liquidity = MarginPolicy(), {"BTC": 4e7, "SOL": 2e6}
    sizes = np.array([50.0, 12_345.67, 3e5, 2.5e6, 9e7])
    names = (*MARKETS, "NEW")
    found = _leverage(_forecast(), sizes, markets=names, liquidity_usd=liquidity)
    assert found.max_leverage.shape == (4, 5, 2)
    for market, symbol in enumerate(names):
        for side, sign in enumerate((1.0, -1.0)):
            capital = round_up_cents(sizes / found.max_leverage[market, :, side])
            np.testing.assert_array_equal(capital, found.requirement_usd[market, :, side])
            for cash, passes in ((capital, True), (capital - 0.01, False)):
                accounts = [
                    _account(float(money), _position(symbol, sign * size / PRICES[symbol]), name=str(row))
                    for row, (money, size) in enumerate(zip(cash, sizes, strict=True))
                ]
                judged = _engine(policy, liquidity_usd=liquidity)(AccountBook.from_dicts(accounts))
                enough = judged.equity_usd + 1e-9 >= judged.initial_margin_usd
                assert enough.tolist() == [passes] * len(sizes), (symbol, side)


def test_leverage_never_rises_with_volatility_size_thinness_or_a_harder_policy() -> None:
    rng = np.random.default_rng(7)
    n_markets = N_RANDOM
    sigma, nu = 0.05 * rng.random(n_markets) ** 3 + 2e-4, rng.uniform(2.5, 12.0, n_markets)
    sizes = np.sort(10.0 ** rng.uniform(0.0, 9.0, 6))
    liquidity = 10.0 ** rng.uniform(4.0, 10.0, n_markets)
    calm = _markets(n_markets, sigma, nu)

    def leverage(forecast: Forecast, depth: np.ndarray, **policy: Any) -> np.ndarray:
        named = dict(zip(forecast.markets, depth.tolist(), strict=True))
        return _leverage(forecast, sizes, MarginPolicy(**policy), liquidity_usd=named).max_leverage

    base = leverage(calm, liquidity)
    slack = base * (1.0 + 1e-9)
    assert base.size > 10 * N_RANDOM
    assert np.all(np.isfinite(base))
    assert np.all(np.diff(base, axis=1) <= 1e-9 * base[:, 1:])  # size, and with it concentration
    wild = _markets(n_markets, sigma * (1.0 + rng.random(n_markets) ** 2), nu)
    assert np.all(leverage(wild, liquidity) <= slack)
    assert np.all(leverage(calm, liquidity * rng.random(n_markets)) <= slack)
    for name, value in (("concentration_rate", 0.3), ("liquidity_rate", 0.2), ("initial_floor", 0.1)):
        harder = leverage(calm, liquidity, **{name: value})
        assert np.all(harder <= slack)
        assert np.any(harder < base)


def test_the_floor_bounds_leverage_and_a_large_size_lowers_it() -> None:
    calm = _markets(1, np.array([1e-5]), np.array([4.0]))
    found = _leverage(calm, [1_000.0], MarginPolicy(initial_floor=0.02))
    assert found.max_leverage.tolist() == [[[50.0, 50.0]]]
    one = _leverage(_forecast(), [9e5, 1.1e6], markets=["BTC"])
    assert np.all(
        one.max_leverage[0, 1] < 0.92 * one.max_leverage[0, 0]
    )  # concentration sets in at 1 million


def test_an_unknown_market_has_the_least_leverage_and_a_degraded_one_its_reason() -> None:
    forecast = _forecast(degraded=np.array([False, True, False]))
    found = _leverage(forecast, [1_000.0, 1e6], markets=(*MARKETS, "NEW"))
    assert np.all(found.max_leverage[3] < found.max_leverage[:3].min(axis=0))
    assert [reason_names(int(bits)) for bits in found.reasons] == [
        [],
        ["degraded-forecast"],
        [],
        ["unknown-market"],
    ]
    forecast.sigma[2] = np.nan
    missing = _leverage(forecast, [1_000.0, 1e6])
    np.testing.assert_allclose(missing.max_leverage[2], found.max_leverage[3], rtol=1e-12)
    assert reason_names(int(missing.reasons[2])) == ["unknown-market"]


@pytest.mark.parametrize("size", [0.0, -5.0, np.nan, np.inf, 1e19])
def test_a_size_that_is_no_amount_is_refused(size: float) -> None:
    with pytest.raises(DataError, match=r"row 1: a size has to lie in \(0, 1e\+18\] USD, found"):
        _leverage(_forecast(), [1.0, size])


@pytest.mark.parametrize("n_limits", SIZES)
def test_a_limit_of_an_account_passes_the_engine_and_two_cents_more_do_not(n_limits: int) -> None:
    """Every account, market and side of a random book."""
    book, engine = _random_book(11, n_limits // 8), _engine()
    found = account_limits(book, PAIRS, engine)
    assert found.max_new_usd.size == n_limits
    now = engine(book)
    healthy = now.equity_usd >= now.initial_margin_usd
    assert 0.1 < healthy.mean() < 0.95
    assert np.all(found.max_new_usd[~healthy] == 0.0)
    checked = 0
    for market, (venue, symbol) in enumerate(PAIRS):
        for side, sign in enumerate((1.0, -1.0)):
            limit = found.max_new_usd[:, market, side]
            for more, passes in ((0.0, True), (0.02, False)):
                after = engine(_traded(book, venue, symbol, sign * (limit + more)))
                np.testing.assert_allclose(after.equity_usd, now.equity_usd, atol=1e-6)
                fits = after.equity_usd + 1e-6 * passes >= after.initial_margin_usd
                assert np.all(fits[healthy] == passes), (symbol, side, more)
                checked += int(healthy.sum())
    assert checked > n_limits


def _traded(book: AccountBook, venue: str, symbol: str, usd: np.ndarray) -> AccountBook:
    """The book after every account bought ``usd`` of a market at its mark, by plain bookkeeping."""
    accounts = []
    held = book.positions
    for row, name in enumerate(book.account_id):
        positions, bought, cash = [], usd[row] / PRICES[symbol], float(book.cash_usd[row])
        for at in np.flatnonzero(held.account == row):
            size = float(held.size[at])
            if held.symbol[at] == symbol:
                cash -= bought * (PRICES[symbol] - float(held.entry_price[at]))
                size, bought = size + bought, 0.0
            positions.append(_position(held.symbol[at], size, entry_price=float(held.entry_price[at])))
        if bought:
            positions.append(_position(symbol, bought))
        collateral = [
            {"chain": "arbitrum", "asset": "ETH", "amount": float(amount), "price_usd": 3_000.0}
            for amount in book.collateral.amount[book.collateral.account == row]
        ]
        orders = [
            {"venue": venue, "symbol": "BTC", "size": float(size), "price": 60_000.0}
            for size in book.orders.size[book.orders.account == row]
        ]
        accounts.append(_account(cash, *positions, name=name, collateral=collateral, orders=orders))
    return AccountBook.from_dicts(accounts)


@pytest.mark.parametrize(
    "change",
    [
        {
            "forecast": replace(_forecast(), sigma=1.3 * _forecast().sigma),
            "policy": MarginPolicy(unknown_daily_scale=1.3 * MarginPolicy().unknown_daily_scale),
        },
        {"policy": MarginPolicy(concentration_rate=0.5, concentration_min_usd=0.0)},
        {"policy": MarginPolicy(initial_floor=0.1)},
        {"liquidity_usd": dict.fromkeys(PRICES, 5e4)},
        {"conditions": Conditions(chain_stress={"arbitrum": 0.6})},
    ],
    ids=["volatility", "concentration", "floor", "thin markets", "old chain data"],
)
@pytest.mark.parametrize("n_limits", SIZES)
def test_limits_of_an_account_never_rise_with_risk(change: dict[str, Any], n_limits: int) -> None:
    """Volatility rises in all markets together: a hedge may gain where one rises alone."""
    book = _random_book(13, n_limits // 8)
    calm = {"liquidity_usd": dict.fromkeys(PRICES, 5e6)}
    before, after = (account_limits(book, PAIRS, _engine(**more)) for more in (calm, {**calm, **change}))
    # Both are found to the cent; the law is a float of some 1e-7 along a hedge that changes with it.
    assert np.all(after.max_new_usd <= before.max_new_usd * (1.0 + 1e-6) + 0.02)
    assert np.any(after.max_new_usd < 0.9 * before.max_new_usd)
    if "conditions" not in change:  # less collateral moves less as well
        assert np.all(after.margin_used >= before.margin_used * (1.0 - 1e-9))


def test_a_new_account_may_open_what_the_market_limit_allows() -> None:
    sizes = _limits(_account(10_000.0), policy=MarginPolicy(concentration_min_usd=1e12))
    assert np.all(sizes.max_new_usd > 0.0)
    for market, symbol in enumerate(PRICES):
        for side in range(2):
            size = float(sizes.max_new_usd[0, market, side])
            limit = _leverage(_forecast(), [size], MarginPolicy(concentration_min_usd=1e12), markets=[symbol])
            assert size / 10_000.0 == pytest.approx(float(limit.max_leverage[0, 0, side]), rel=1e-6)


def test_leverage_is_stated_beside_the_limit_that_the_book_allows() -> None:
    found = _limits(
        _account(20_000.0, _position("BTC", 1.0), name="a"),
        _account(500.0, name="b"),
        _account(-5.0, _position("BTC", 1.0), name="c"),
    )
    judged = _engine()(AccountBook.from_dicts([_account(20_000.0, _position("BTC", 1.0))]))
    assert found.effective_leverage.tolist() == [3.0, 0.0, np.inf]
    assert found.leverage_limit[0] == pytest.approx(60_000.0 / judged.initial_margin_usd[0])
    assert np.isnan(found.leverage_limit[1])
    assert found.margin_used[0] == pytest.approx(judged.initial_margin_usd[0] / 20_000.0)
    assert found.margin_used[1:].tolist() == [0.0, np.inf]
    assert found.max_new_usd[2].max() == 0.0
    assert "negative-equity" in reason_names(int(found.stopped_by[2, 0, 0]))


def test_a_hedge_may_be_larger_than_an_addition_and_the_reason_names_what_stops_it() -> None:
    found = _limits(_account(9_000.0, _position("BTC", 1.0)))
    more, against = found.max_new_usd[0, PAIRS.index(("sim", "BTC"))]
    assert against > 2.0 * 60_000.0 > more
    unknown = reason_names(int(found.stopped_by[0, PAIRS.index(("sim", "NEW")), 0]))
    assert {"unknown-market", "equity-below-initial"} <= set(unknown)


def test_live_prices_of_the_engine_size_the_order() -> None:
    """An order is sized in USD at the engine's price, not at the book's older mark."""
    account = _account(9_000.0, _position("BTC", 0.1, mark_price=50_000.0, entry_price=60_000.0))
    live = _limits(account, prices={"BTC": 60_000.0, "sim:ETH": 3_000.0})
    fresh = _limits(_account(9_000.0, _position("BTC", 0.1)))
    np.testing.assert_allclose(live.max_new_usd, fresh.max_new_usd, atol=0.02)
    assert live.effective_leverage[0] == pytest.approx(6_000.0 / 9_000.0)


def test_an_isolated_account_opens_pools_of_its_own() -> None:
    """Its new positions net with nothing, not even with one that is cross."""
    held = _position("BTC", 1.0, margin_mode="cross")
    alone, cross = (_limits(_account(12_000.0, held, margin_mode=mode)) for mode in ("isolated", "cross"))
    eth = PAIRS.index(("sim", "ETH"))
    assert alone.max_new_usd[0, eth, 1] < 0.7 * cross.max_new_usd[0, eth, 1]  # no offset for the short


def test_large_books_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    book, engine = _random_book(17, 7), _engine()
    whole = account_limits(book, PAIRS, engine)
    monkeypatch.setattr("riskml.risk.limits.TRIALS_PER_CALL", 20)
    pieces = account_limits(book, PAIRS, engine)
    np.testing.assert_allclose(pieces.max_new_usd, whole.max_new_usd, atol=0.02)
    np.testing.assert_array_equal(pieces.stopped_by, whole.stopped_by)


def test_limits_without_a_market_are_refused_and_an_empty_book_has_none() -> None:
    with pytest.raises(DataError, match="there is no market to state limits for"):
        _limits(_account(1.0), pairs=())
    assert account_limits(AccountBook.from_dicts([]), PAIRS, _engine()).max_new_usd.shape == (0, 4, 2)
