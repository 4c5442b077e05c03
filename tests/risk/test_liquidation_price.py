"""Liquidation prices against the closed form, the barrier itself and the decisions they belong to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law, reason_names
from riskml.risk.engines.hyperliquid import liquidation_price, liquidation_price_over_tiers, tier_table
from riskml.risk.excursion import MAX_DISTANCE
from riskml.risk.liquidation_price import LiquidationPrices, liquidation_prices
from riskml.units import to_us

TS = to_us("2024-05-01")
HORIZONS = ("1h", "8h", "24h")
MARKETS = ("BTC", "ETH", "SOL")
PRICES = {"BTC": 60_000.0, "ETH": 3_000.0, "SOL": 150.0, "NEW": 2.0}
POWER = (1.05, 0.97, 0.95)
LAW = numpy_law(np.array(POWER))
LINEAR_IN_PRICE = ("dydx_v4", "drift_v2", "vega")
ENGINES = (
    *LINEAR_IN_PRICE,
    "binance_pm",
    "derive_v2",
    "hyperliquid",
    "orderly",
    "paradex_pm",
    "span16",
)
N_RANDOM = 12_000


def _forecast(**changes: Any) -> Forecast:
    base = np.array([0.004, 0.005, 0.008])[:, None] * np.sqrt([1.0, 8.0, 24.0])
    values: dict[str, Any] = {
        "ts": TS,
        "markets": MARKETS,
        "horizons": HORIZONS,
        "sigma": np.stack([1.1 * base, base], axis=-1),
        "nu": np.array([[3.2, 3.5, 4.0], [3.7, 3.9, 4.4], [3.0, 3.3, 3.8]]),
        "variance": base**2,
        "stress": np.full((3, 3), 0.01),
        "loadings": np.array([[0.8, 0.0], [0.85, 0.1], [0.7, 0.3]]),
        "degraded": np.zeros(3, dtype=np.bool_),
        "calibration_power": POWER,
    }
    return Forecast(**(values | changes))


def _position(symbol: str, size: float, **more: Any) -> dict[str, Any]:
    return {"venue": "sim", "symbol": symbol, "size": size, "mark_price": PRICES[symbol], **more}


def _account(cash: float, *positions: dict[str, Any], name: str = "a", **more: Any) -> dict[str, Any]:
    return {"account_id": name, "cash_usd": cash, "positions": list(positions), **more}


def _eth(amount: float, price: float = 3_000.0) -> dict[str, Any]:
    return {"chain": "arbitrum", "asset": "ETH", "amount": amount, "price_usd": price}


def _both(
    book: AccountBook, policy: MarginPolicy | None = None, **more: Any
) -> tuple[LiquidationPrices, Decisions]:
    forecast, policy = more.pop("forecast", _forecast()), policy or MarginPolicy()
    found = liquidation_prices(book, forecast, policy, law=LAW, ts=TS, **more)
    return found, decide(book, forecast, policy, law=LAW, ts=TS, **more)


def _of(*accounts: dict[str, Any], policy: MarginPolicy | None = None, **more: Any) -> LiquidationPrices:
    return _both(AccountBook.from_dicts(accounts), policy, **more)[0]


def _random_book(
    seed: int,
    n_accounts: int,
    n_legs: int,
    *,
    venue_maintenance: bool = False,
    largest_usd: float = 3e5,
    symbols: tuple[str, ...] = (*MARKETS, "NEW"),
) -> AccountBook:
    """Cross accounts with ``n_legs`` positions each, some far from, some at and some beyond their barrier."""
    rng = np.random.default_rng(seed)
    ids = np.asarray([f"a{row}" for row in range(n_accounts)], dtype=object)
    held = np.argsort(rng.random((n_accounts, len(symbols))), axis=1)[:, :n_legs]
    mark = np.asarray([PRICES[name] for name in symbols])[held]
    usd = largest_usd * rng.random(held.shape) ** 3 + 1.0
    size = usd / mark * rng.choice([-1.0, 1.0], held.shape)
    gross = usd.sum(axis=1)
    cash = gross * (rng.choice([0.01, 0.1, 0.5, 2.0], n_accounts) * rng.random(n_accounts))
    return AccountBook.from_arrays(
        {
            "account_id": ids,
            "cash_usd": cash,
            "maintenance_margin_usd": gross * 0.02 * rng.random(n_accounts)
            if venue_maintenance
            else np.full(n_accounts, np.nan),
        },
        {
            "account_id": np.repeat(ids, n_legs),
            "venue": np.full(held.size, "sim", dtype=object),
            "symbol": np.asarray(symbols, dtype=object)[held.ravel()],
            "size": size.ravel(),
            "mark_price": mark.ravel(),
            "entry_price": mark.ravel(),
        },
    )


def _shares_of_law(price: np.ndarray, mark: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to 1e-9 of the mark, where the law's fixed steps are exact (down to 64^-3 of the mark)."""
    with np.errstate(invalid="ignore"):
        error = np.abs(price - wanted) / mark
    error = np.where(price == wanted, 0.0, error)
    np.testing.assert_array_less(error, np.where(wanted < 2e-5 * mark, 2e-5, 1e-9 * (1.0 + wanted / mark)))


@pytest.mark.parametrize("owner", ["venue", "riskml", *LINEAR_IN_PRICE])
def test_both_prices_of_a_lone_position_are_the_closed_form(owner: str) -> None:
    book = _random_book(1, N_RANDOM, 1, venue_maintenance=owner == "venue")
    found, decisions = _both(book, MarginPolicy(barrier=owner))
    exposure = book.positions.size * book.positions.mark_price
    buffer = decisions.equity_usd - decisions.barrier_margin_usd
    rate = decisions.barrier_margin_usd / np.abs(exposure)
    factor = 1.0 - buffer / (exposure - rate * np.abs(exposure))
    wanted = np.where(buffer <= 0.0, found.mark, np.maximum(factor, 0.0) * found.mark)
    assert 1_000 < (buffer <= 0.0).sum() < N_RANDOM // 2
    assert 500 < (wanted == 0.0).sum() < N_RANDOM // 2
    # dYdX asks for whole quantums, 1e-6 USD, which is all of a small account's buffer.
    sound = np.abs(exposure) > (1_000.0 if owner == "dydx_v4" else 0.0)
    np.testing.assert_allclose(
        found.standstill_price[sound],
        wanted[sound],
        rtol=5e-8 if owner == "dydx_v4" else 1e-11,
        atol=1e-11 * 60_000.0,
    )
    for column in range(len(HORIZONS)):
        _shares_of_law(found.co_moving_price[:, column], found.mark, wanted)
    assert set(found.barrier) == {owner}


@pytest.mark.parametrize("owner", ["venue", "riskml"])
def test_the_price_of_a_lone_position_is_reached_as_often_as_its_account_is_liquidated(owner: str) -> None:
    book = _random_book(2, N_RANDOM, 1, venue_maintenance=owner == "venue")
    found, decisions = _both(book, MarginPolicy(barrier=owner))
    for reach in (found.co_moving_reach, found.standstill_reach):
        deep = found.standstill_price < 2e-5 * found.mark  # reached in the law's last step only
        np.testing.assert_allclose(
            reach[~deep], decisions.liquidation_probability[~deep], rtol=1e-8, atol=1e-15
        )
        assert np.all(np.diff(reach, axis=1) >= 0.0)
    np.testing.assert_array_equal(found.liquidation_probability, decisions.liquidation_probability)


@pytest.mark.parametrize(("owner", "n_legs"), [("riskml", 2), ("venue", 3), ("hyperliquid", 4)])
def test_at_the_co_moving_prices_the_barrier_is_met_where_the_decisions_say(owner: str, n_legs: int) -> None:
    book = _random_book(3, N_RANDOM, n_legs, venue_maintenance=owner == "venue")
    found, decisions = _both(book, MarginPolicy(barrier=owner))
    np.testing.assert_array_equal(found.distance[::n_legs], decisions.distance)
    exposure = (book.positions.size * found.mark).reshape(-1, n_legs)
    buffer = decisions.equity_usd - decisions.barrier_margin_usd
    rate = decisions.barrier_margin_usd / np.abs(exposure).sum(axis=1)
    stake = exposure - rate[:, None] * np.abs(exposure)
    for column in range(len(HORIZONS)):
        reached = (found.distance[::n_legs, column] < MAX_DISTANCE) & (buffer > 0.0)
        factor = (found.co_moving_price[:, column] / found.mark).reshape(-1, n_legs)
        # The law takes three fixed steps to the barrier: enough while no market moves by more than e-fold.
        reached &= np.all((factor > np.exp(-1.0)) & (factor < np.exp(1.0)), axis=1)
        assert reached.sum() > N_RANDOM // 4
        loss = np.sum(stake[reached] * (1.0 - factor[reached]), axis=1)
        np.testing.assert_allclose(loss, buffer[reached], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("owner", ["venue", *ENGINES])
def test_at_the_standstill_price_equity_is_the_owners_maintenance(owner: str) -> None:
    policy = MarginPolicy(barrier=owner)
    # Every tier and size term is crossed on the way; Orderly and Drift ask for all of a larger position.
    largest = 5e6 if owner in ("orderly", "drift_v2") else 4e8
    n_accounts = {"venue": N_RANDOM, "hyperliquid": 4_000, "derive_v2": 100}.get(owner, 1_000)
    book = _random_book(4, n_accounts, 3, venue_maintenance=owner == "venue", largest_usd=largest)
    found, before = _both(book, policy)
    inside = before.equity_usd > before.barrier_margin_usd
    checked = 0
    for leg in range(3):
        price = book.positions.mark_price.copy()
        row = np.arange(leg, len(price), 3)
        usable = inside & np.isfinite(found.standstill_price[row]) & (found.standstill_price[row] > 0.0)
        price[row[usable]] = found.standstill_price[row[usable]]
        moved = replace(book, positions=replace(book.positions, mark_price=price))
        stated = book.maintenance_margin_usd
        if owner == "venue":  # it moves with exposure
            gross = [
                np.abs(book.positions.size * at).reshape(-1, 3).sum(axis=1) for at in (price, found.mark)
            ]
            moved = replace(moved, maintenance_margin_usd=stated * gross[0] / gross[1])
        after = decide(moved, _forecast(), policy, law=LAW, ts=TS)
        size = np.abs(book.positions.size * price).reshape(-1, 3).sum(axis=1)
        error = np.abs(after.equity_usd - after.barrier_margin_usd)[usable]
        np.testing.assert_array_less(error, 1e-9 * size[usable] + 1e-4)
        checked += int(usable.sum())
    assert checked > n_accounts // 2


def test_hyperliquids_price_of_a_lone_position_is_its_closed_form_over_tiers() -> None:
    book = _random_book(5, 3_000, 1, largest_usd=4e8, symbols=("BTC", "ETH"))
    found, decisions = _both(book, MarginPolicy(barrier="hyperliquid"))
    held = book.positions
    available = decisions.equity_usd - decisions.barrier_margin_usd
    for symbol in ("BTC", "ETH"):
        mine = (held.symbol == symbol) & (available > 0.0)
        wanted = liquidation_price_over_tiers(
            tier_table(symbol, TS), held.mark_price[mine], held.size[mine], available[mine]
        )
        np.testing.assert_allclose(
            found.standstill_price[mine], np.maximum(wanted, 0.0), rtol=1e-10, atol=1e-6
        )
    assert found.standstill_price[available <= 0.0].tolist() == found.mark[available <= 0.0].tolist()


def test_a_position_of_the_first_tier_has_the_venues_textbook_price() -> None:
    found = _of(_account(8_000.0, _position("BTC", 1.0)), policy=MarginPolicy(barrier="hyperliquid"))
    # 40x, so maintenance is 1 / 80 of the notional in the first tier of the facts at that time.
    rate = float(tier_table("BTC", TS).rate[0])
    wanted = liquidation_price(60_000.0, 1.0, 8_000.0 - rate * 60_000.0, 1.0 / rate)
    assert found.standstill_price[0] == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(found.co_moving_price[0], wanted, rtol=1e-12)


def test_with_every_other_market_moving_too_a_long_book_is_liquidated_at_a_smaller_fall() -> None:
    book = _account(20_000.0, _position("BTC", 1.0), _position("ETH", 20.0))
    found = _of(book, forecast=_forecast(nu=np.full((3, 3), 3.7)))
    assert np.all(found.co_moving_price > found.standstill_price[:, None])
    assert np.all(found.co_moving_price < found.mark[:, None])
    # Each market goes only a part of its own scale per scale of the book, so it is there more often.
    assert np.all(found.co_moving_reach > found.liquidation_probability)
    assert np.all(found.standstill_reach < found.liquidation_probability)


def test_a_hedge_moves_with_its_market_and_is_liquidated_below_the_mark() -> None:
    found = _of(_account(9_000.0, _position("BTC", 1.0), _position("ETH", -5.0)))
    assert np.all(found.co_moving_price < found.mark[:, None])  # falling markets: the short leg gains
    assert found.standstill_price[0] < found.mark[0]
    assert found.standstill_price[1] > found.mark[1]


def test_moving_collateral_is_a_leg_and_counts_where_that_is_better() -> None:
    cash, position = 2_000.0, _position("ETH", 10.0)
    pledged, decisions = _both(AccountBook.from_dicts([_account(cash, position, collateral=[_eth(2.0)])]))
    alone = _of(_account(cash, position))
    assert np.all(pledged.co_moving_price < alone.co_moving_price)
    np.testing.assert_array_equal(pledged.distance, decisions.distance)
    # One leg still: 12 ETH of exposure, maintenance asked for on 10.
    buffer = decisions.equity_usd[0] - decisions.barrier_margin_usd[0]
    exposure = 30_000.0 + decisions.collateral_usd[0]
    wanted = 3_000.0 * (1.0 - buffer / (exposure - decisions.barrier_margin_usd[0]))
    np.testing.assert_allclose(pledged.co_moving_price[0], wanted, rtol=1e-11)
    assert pledged.standstill_price[0] == pytest.approx(wanted, rel=1e-11)
    np.testing.assert_allclose(pledged.co_moving_reach[0], decisions.liquidation_probability[0], rtol=1e-9)


def test_collateral_that_costs_more_than_it_is_worth_is_left_out_of_both_prices() -> None:
    """It would lift the account over the size from which concentration is charged."""
    position = _position("BTC", 999_500.0 / 60_000.0)
    pledged, decisions = _both(
        AccountBook.from_dicts([_account(200_000.0, position, collateral=[_eth(0.3)])])
    )
    alone, without = _both(AccountBook.from_dicts([_account(200_000.0, position)]))
    left_out = decisions.barrier_margin_usd[0] - decisions.collateral_usd[0]
    assert left_out == pytest.approx(without.barrier_margin_usd[0], rel=1e-9)
    np.testing.assert_allclose(pledged.standstill_price, alone.standstill_price, rtol=1e-12)
    np.testing.assert_allclose(pledged.co_moving_price, alone.co_moving_price, rtol=1e-12)


@pytest.mark.parametrize("asset_usd", [500.0, 5_000.0, 50_000.0])
@pytest.mark.parametrize("owner", ["riskml", "hyperliquid"])
def test_distance_and_probability_are_the_decisions_with_any_collateral(asset_usd: float, owner: str) -> None:
    collateral = [_eth(asset_usd / 3_000.0), {**_eth(asset_usd / 150.0, 150.0), "asset": "SOL"}]
    account = _account(3_000.0, _position("BTC", 0.5), _position("SOL", -40.0), collateral=collateral)
    found, decisions = _both(AccountBook.from_dicts([account]), MarginPolicy(barrier=owner))
    for row in range(2):
        np.testing.assert_array_equal(found.distance[row], decisions.distance[0])
        np.testing.assert_array_equal(
            found.liquidation_probability[row], decisions.liquidation_probability[0]
        )


def test_an_isolated_position_has_the_price_of_its_own_pool() -> None:
    alone = _position("BTC", 1.0, margin_mode="isolated", isolated_margin_usd=5_000.0)
    both, decisions = _both(AccountBook.from_dicts([_account(90_000.0, alone, _position("ETH", 10.0))]))
    single, cross = _of(_account(0.0, alone)), _of(_account(90_000.0, _position("ETH", 10.0)))
    np.testing.assert_allclose(both.co_moving_price[0], single.co_moving_price[0], rtol=1e-12)
    np.testing.assert_allclose(both.co_moving_price[1], cross.co_moving_price[0], rtol=1e-12)
    assert both.standstill_price[1] == 0.0  # 90,000 USD outlast 30,000 USD of ETH
    np.testing.assert_array_equal(both.distance.min(axis=0), decisions.distance[0])
    engine = _of(
        _account(90_000.0, alone, _position("ETH", 10.0)), policy=MarginPolicy(barrier="hyperliquid")
    )
    rate = float(tier_table("BTC", TS).rate[0])
    assert engine.standstill_price[0] == pytest.approx(55_000.0 / (1.0 - rate), rel=1e-12)


def test_positions_of_one_market_on_two_venues_share_its_move() -> None:
    found = _of(
        _account(
            8_000.0, _position("BTC", 1.0), {**_position("BTC", -0.4, mark_price=61_000.0), "venue": "b"}
        )
    )
    assert np.ptp(found.standstill_price / found.mark) == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_allclose(*(found.co_moving_price / found.mark[:, None]), rtol=1e-15)


def test_what_cannot_be_reached_is_zero_below_infinite_above_and_unknown_without_a_move() -> None:
    flat = [_position("BTC", 1.0), {**_position("BTC", -1.0), "venue": "b"}]
    found = _of(
        _account(70_000.0, _position("BTC", 1.0), name="long"),
        _account(70_000.0, *flat, _position("ETH", 0.0), name="flat"),
        policy=MarginPolicy(barrier="vega"),
    )
    assert found.standstill_price[0] == 0.0
    assert found.co_moving_price[0].tolist() == [0.0, 0.0, 0.0]
    assert found.co_moving_reach[0].tolist() == [0.0, 0.0, 0.0]
    # A flat pair is liquidated by its maintenance alone, when the price has risen enough.
    assert found.standstill_price[1] > 2.0 * found.mark[1]
    assert np.isnan(found.standstill_price[3])
    assert np.isnan(found.co_moving_price[1:]).all()
    assert np.isnan(found.co_moving_reach[3]).all()
    rows = json.loads(json.dumps(found.to_dicts()))
    assert rows[0]["standstill_price"] == 0.0
    assert rows[3]["co_moving_price_8h"] is None


def test_a_short_that_no_rise_within_a_thousandfold_liquidates_has_an_infinite_price() -> None:
    account = _account(9e6, _position("SOL", -1.0))
    engine = _of(account, policy=MarginPolicy(barrier="hyperliquid"))
    assert engine.standstill_price[0] == np.inf
    assert engine.standstill_reach[0].tolist() == [0.0, 0.0, 0.0]
    assert np.isfinite(_of(account).standstill_price[0])


def test_an_account_below_its_barrier_is_liquidated_at_the_mark() -> None:
    for barrier in ("riskml", "hyperliquid"):
        found = _of(
            _account(10.0, _position("BTC", 1.0), _position("ETH", -1.0)),
            policy=MarginPolicy(barrier=barrier),
        )
        assert found.standstill_price.tolist() == found.mark.tolist()
        assert found.co_moving_price.tolist() == np.repeat(found.mark[:, None], 3, axis=1).tolist()
        assert found.standstill_reach.min() == 1.0


def test_unknown_and_degraded_markets_and_entry_prices_carry_their_reason() -> None:
    forecast = _forecast(degraded=np.array([False, True, False]))
    found = _of(
        _account(
            9_000.0,
            _position("NEW", 10.0),
            _position("ETH", 1.0),
            _position("BTC", 0.1, mark_price=np.nan, entry_price=59_000.0),
        ),
        forecast=forecast,
    )
    assert [reason_names(int(bits)) for bits in found.reasons] == [
        ["unknown-market"],
        ["degraded-forecast"],
        ["missing-price"],
    ]
    assert found.mark[2] == 59_000.0


def test_live_prices_move_the_marks_and_a_book_without_positions_has_no_prices() -> None:
    found = _of(_account(8_000.0, _position("BTC", 1.0)), prices={"BTC": 58_000.0})
    assert found.mark.tolist() == [58_000.0]
    assert len(_of(_account(8_000.0))) == 0
    with pytest.raises(DataError, match="row 0: account 'a' has no maintenance_margin_usd"):
        _of(_account(8_000.0, _position("BTC", 1.0)), policy=MarginPolicy(barrier="venue"))
