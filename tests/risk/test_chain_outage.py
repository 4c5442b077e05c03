"""A chain out of reach for an hour: the account is two, and each part stands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law
from riskml.risk.chain_outage import ChainOutage, chain_outage, slow_bridges, worst_chain_outage
from riskml.risk.collateral import Conditions
from riskml.risk.excursion import quantile
from riskml.units import to_us

TS = to_us("2024-05-01")
HORIZONS = (1.0, 8.0, 24.0)
PRICES = {"BTC": 60_000.0, "ETH": 3_000.0, "SOL": 150.0, "USDC": 1.0}
MARKETS = ("BTC", "ETH", "SOL")
HOMES = {"sim": "arbitrum", "drift": "solana", "dydx": "dydx", "binance": ""}
POWER = 1.1
LAW = numpy_law(np.full(3, POWER))


def _forecast() -> Forecast:
    base = np.array([0.004, 0.005, 0.008])[:, None] * np.sqrt(HORIZONS)
    return Forecast(
        ts=TS,
        markets=MARKETS,
        horizons=("1h", "8h", "24h"),
        sigma=np.stack([1.1 * base, base], axis=-1),
        nu=np.array([[3.5] * 3, [4.0] * 3, [5.0] * 3]),
        variance=base**2,
        stress=np.full((3, 3), 0.01),
        loadings=np.array([[0.8, 0.0], [0.85, 0.1], [0.7, 0.3]]),
        degraded=np.zeros(3, dtype=np.bool_),
        calibration_power=(POWER,) * 3,
    )


def _position(venue: str, symbol: str, usd: float, **more: Any) -> dict[str, Any]:
    return {
        "venue": venue,
        "symbol": symbol,
        "size": usd / PRICES[symbol],
        "mark_price": PRICES[symbol],
        **more,
    }


def _held(chain: str, asset: str, usd: float) -> dict[str, Any]:
    return {"chain": chain, "asset": asset, "amount": usd / PRICES[asset], "price_usd": PRICES[asset]}


def _account(name: str, cash: float, positions: list[Any], collateral: list[Any]) -> dict[str, Any]:
    return {"account_id": name, "cash_usd": cash, "positions": positions, "collateral": collateral}


def _random_account(rng: np.random.Generator, name: str) -> dict[str, Any]:
    positions = []
    for venue in HOMES:
        for symbol in MARKETS:
            if rng.random() < 0.35:
                isolated = rng.random() < 0.15
                more = {"margin_mode": "isolated", "isolated_margin_usd": 500.0} if isolated else {}
                usd = float(rng.normal() * 10.0 ** rng.uniform(2, 6))
                positions.append(_position(venue, symbol, usd, **more))
    collateral = [
        _held(chain, asset, float(10.0 ** rng.uniform(2, 6)))
        for chain in ("arbitrum", "solana", "ethereum")
        for asset in ("USDC", "ETH", "SOL")
        if rng.random() < 0.25
    ]
    return _account(name, float(rng.normal() * 5_000.0), positions, collateral)


def _part(account: dict[str, Any], chain: str, there: bool) -> dict[str, Any]:
    return {
        **account,
        "cash_usd": 0.0,
        "positions": [row for row in account["positions"] if (HOMES[row["venue"]] == chain) == there],
        "collateral": [row for row in account["collateral"] if (row["chain"] == chain) == there],
    }


def _decide(accounts: list[dict[str, Any]], forecast: Forecast, policy: MarginPolicy) -> Decisions:
    return decide(AccountBook.from_dicts(accounts), forecast, policy, law=LAW, ts=TS)


def _outage(accounts: list[dict[str, Any]], chain: str | Sequence[str], **more: Any) -> ChainOutage:
    policy = more.pop("policy", MarginPolicy())
    book = AccountBook.from_dicts(accounts)
    return chain_outage(book, chain, _forecast(), policy, law=LAW, ts=TS, **more)


def _reaching_further(hours: float) -> Forecast:
    factor = np.array([math.sqrt((horizon + hours) / horizon) for horizon in HORIZONS])
    return replace(_forecast(), sigma=_forecast().sigma * factor[None, :, None])


@cache
def _alone(symbol: str, long: bool, hours: float, upto: int) -> float:
    """What 1 USD needs alone, by the formula of the law, largest over the horizons up to its own."""
    row, worst = MARKETS.index(symbol), 0.0
    for place in range(upto + 1):
        further = math.sqrt((HORIZONS[place] + hours) / HORIZONS[place])
        sigma = float(_forecast().sigma[row, place, 0 if long else 1]) * further
        nu = float(_forecast().nu[row, place])
        move = sigma * float(quantile(0.995, nu)) ** (1.0 / POWER)
        worst = max(worst, 1.0 - math.exp(-move) if long else math.exp(move) - 1.0)
    return worst


def _stand_alone_sum(account: dict[str, Any], chain: str, hours: float, upto: int) -> float:
    """Sum over every market of every part and pool: the worst that can be asked without any offset."""
    legs: dict[tuple[Any, ...], float] = {}
    for number, row in enumerate(account["positions"]):
        there = HOMES[row["venue"]] == chain
        pool = number if row.get("margin_mode") == "isolated" else -1
        key = (there, pool, row["symbol"])
        legs[key] = legs.get(key, 0.0) + row["size"] * row["mark_price"]
    return sum(
        abs(usd) * _alone(key[2], usd > 0.0, hours if key[0] else 0.0, upto) for key, usd in legs.items()
    )


@pytest.mark.parametrize("n_books", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_book_falls_below_the_stand_alone_stress_number(n_books: int) -> None:
    rng = np.random.default_rng(11)
    accounts = [_random_account(rng, str(number)) for number in range(n_books)]
    policy = MarginPolicy(slow_weight=0.0)
    whole = _decide(accounts, _forecast(), policy)
    n_raised = 0
    for chain in ("arbitrum", "solana"):
        found = _outage(accounts, chain, policy=policy)
        there = _decide([_part(one, chain, True) for one in accounts], _reaching_further(1.0), policy)
        rest = _decide([_part(one, chain, False) for one in accounts], _forecast(), policy)
        for row, name in enumerate(("initial_margin_usd", "maintenance_margin_usd")):
            number = getattr(there, name) + getattr(rest, name)
            need, plain = found.requirement_usd[row], getattr(whole, name)
            assert int((need < number - 1e-6).sum()) == 0
            assert int((need < plain).sum()) == 0
            np.testing.assert_allclose(found.stand_alone_usd[row], number, rtol=1e-9, atol=0.02)
            n_raised += int((need > 1.01 * plain).sum())
    assert n_raised > 0.4 * n_books  # it asks for more in many of them


def test_no_offset_beyond_the_cap_is_left_between_the_parts() -> None:
    rng = np.random.default_rng(12)
    accounts = [_random_account(rng, str(number)) for number in range(1_500)]
    for account in accounts:
        account["collateral"] = [row for row in account["collateral"] if row["asset"] == "USDC"]
    policy = MarginPolicy()
    found = _outage(accounts, "arbitrum", policy=policy)
    for row, upto in ((0, 1), (1, 0)):
        least = np.array([_stand_alone_sum(account, "arbitrum", 1.0, upto) for account in accounts])
        assert np.all(found.requirement_usd[row] >= (1.0 - policy.offset_cap) * least * (1.0 - 1e-4))


def test_a_hedge_on_the_chain_out_of_reach_is_worth_nothing() -> None:
    long, short = _position("sim", "BTC", 60_000.0), _position("drift", "BTC", -60_000.0)
    hedged = _account("a", 10_000.0, [long, short], [])
    found = _outage([hedged], "arbitrum")
    there, rest = (
        _decide([{**hedged, "positions": [long]}], _reaching_further(1.0), MarginPolicy()),
        _decide([{**hedged, "positions": [short]}], _forecast(), MarginPolicy()),
    )
    assert found.requirement_usd[0, 0] == pytest.approx(
        there.initial_margin_usd[0] + rest.initial_margin_usd[0], abs=0.02
    )
    assert (
        found.requirement_usd[0, 0]
        > 1.9 * _decide([hedged], _forecast(), MarginPolicy()).initial_margin_usd[0]
    )
    assert found.chain[0] == "arbitrum"


def test_collateral_out_of_reach_covers_nothing_elsewhere() -> None:
    position = _position("drift", "SOL", 20_000.0)
    account = _account("a", 500.0, [position], [_held("arbitrum", "USDC", 30_000.0)])
    calm = _decide([account], _forecast(), MarginPolicy())
    assert calm.equity_usd[0] > calm.initial_margin_usd[0]
    found = _outage([account], "arbitrum")
    assert found.shortfall_usd[0, 0] == pytest.approx(calm.initial_margin_usd[0] - 500.0, abs=0.02)
    near = _outage([account], "ethereum")
    assert near.shortfall_usd[0, 0] == 0.0
    assert near.chain[0] == ""


def test_cash_counts_on_the_side_where_it_helps_least() -> None:
    positions = [_position("sim", "BTC", 50_000.0), _position("drift", "SOL", 50_000.0)]
    account = _account("a", 100_000.0, positions, [])
    for chain, there in (("arbitrum", 0), ("solana", 1)):
        laws = [_reaching_further(1.0) if part == there else _forecast() for part in (0, 1)]
        needs = [
            float(_decide([{**account, "positions": [position]}], law, MarginPolicy()).initial_margin_usd[0])
            for position, law in zip(positions, laws, strict=True)
        ]
        found = _outage([account], chain)
        assert found.shortfall_usd[0, 0] == pytest.approx(max(needs), abs=0.02)
    home = _account("b", 100_000.0, positions[:1], [])
    assert _outage([home], "arbitrum").shortfall_usd[0, 0] == 0.0


def test_the_spare_margin_of_an_isolated_position_covers_no_part_of_a_shortfall() -> None:
    rich = _position("sim", "ETH", 1_000.0, margin_mode="isolated", isolated_margin_usd=50_000.0)
    short, far = _position("sim", "BTC", 40_000.0), _position("drift", "SOL", 9_000.0)
    for cash in (0.0, 300.0, -300.0):
        found = _outage([_account("a", cash, [rich, short, far], [])], "arbitrum")
        parts = [
            _decide([_account("a", 0.0, [row], [])], law, MarginPolicy())
            for row, law in ((short, _reaching_further(1.0)), (far, _forecast()))
        ]
        for row, name in enumerate(("initial_margin_usd", "maintenance_margin_usd")):
            needs = sum(float(getattr(part, name)[0]) for part in parts)
            assert found.shortfall_usd[row, 0] == pytest.approx(needs - cash, abs=0.03)


def test_an_outage_lacks_no_less_than_the_account_lacks_without_one() -> None:
    rng = np.random.default_rng(15)
    accounts = [_random_account(rng, str(number)) for number in range(200)]
    whole = _decide(accounts, _forecast(), MarginPolicy())
    for chain in ("arbitrum", "solana", "optimism"):
        found = _outage(accounts, chain)
        for row, name in enumerate(("initial_shortfall_usd", "maintenance_shortfall_usd")):
            assert np.all(found.shortfall_usd[row] >= getattr(whole, name))
    assert np.any(whole.initial_shortfall_usd > 0.0)


def test_a_longer_outage_never_asks_for_less() -> None:
    rng = np.random.default_rng(13)
    accounts = [_random_account(rng, str(number)) for number in range(500)]
    hours = (0.0, 0.5, 1.0, 6.0, 24.0)
    asked = [_outage(accounts, "solana", outage_h=outage).requirement_usd for outage in hours]
    for shorter, longer in pairwise(asked):
        assert np.all(longer >= shorter - 1e-9)
    assert np.any(asked[-1] > 1.5 * asked[0])
    policy = MarginPolicy(chain_outage_h=6.0)
    np.testing.assert_array_equal(_outage(accounts, "solana", policy=policy).requirement_usd, asked[3])


@pytest.mark.parametrize("n_books", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_two_chains_out_at_once_are_never_milder_than_either_alone(n_books: int) -> None:
    rng = np.random.default_rng(14)
    accounts = [_random_account(rng, str(number)) for number in range(n_books)]
    policy = MarginPolicy(slow_weight=0.0)
    names = ("arbitrum", "solana")
    both = _outage(accounts, names, policy=policy)
    single = [_outage(accounts, name, policy=policy) for name in names]
    for found in single:
        assert int((both.requirement_usd < found.requirement_usd).sum()) == 0
        assert int((both.shortfall_usd < found.shortfall_usd).sum()) == 0
    # Three books of the test's own: what is on either chain, and what is on neither.
    further = _reaching_further(1.0)
    parts = [_decide([_part(one, name, True) for one in accounts], further, policy) for name in names]
    neither = [_part(_part(one, names[0], False), names[1], False) for one in accounts]
    parts.append(_decide(neither, _forecast(), policy))
    for row, name in enumerate(("initial_margin_usd", "maintenance_margin_usd")):
        number = np.sum([getattr(part, name) for part in parts], axis=0)
        np.testing.assert_allclose(both.stand_alone_usd[row], number, rtol=1e-9, atol=0.03)
        assert int((both.requirement_usd[row] < number - 0.03).sum()) == 0
    worse = np.maximum(*(found.requirement_usd for found in single))
    assert (both.requirement_usd > 1.01 * worse).any(axis=0).mean() > 0.15
    # Collateral cut off from every position asks for nothing, so that more parts can ask for less.
    low = both.stand_alone_usd < np.maximum(*(found.stand_alone_usd for found in single)) - 0.05
    assert low.mean() > 0.1
    assert np.all(both.requirement_usd[low] > both.stand_alone_usd[low])


def test_a_hedge_between_two_chains_that_are_both_out_is_worth_nothing() -> None:
    long, short = _position("sim", "BTC", 60_000.0), _position("drift", "BTC", -60_000.0)
    held = _held("ethereum", "USDC", 90_000.0)
    hedged = _account("a", 1_000.0, [long, short], [held])
    parts = [
        _decide([_account("a", 0.0, [leg], [])], _reaching_further(1.0), MarginPolicy())
        for leg in (long, short)
    ]
    needs = [float(part.initial_margin_usd[0]) for part in parts]
    found = _outage([hedged], ("solana", "arbitrum"))
    assert found.requirement_usd[0, 0] == pytest.approx(sum(needs), abs=0.02)
    # Collateral elsewhere reaches neither, and cash is where it helps least.
    assert found.shortfall_usd[0, 0] == pytest.approx(sum(needs) - 1_000.0, abs=0.02)
    assert found.chain[0] == "solana+arbitrum"
    away = _outage([hedged], ("arbitrum", "optimism"))
    alone = _outage([hedged], "arbitrum")
    assert away.chain[0] == alone.chain[0] == "arbitrum"
    for name in ("requirement_usd", "stand_alone_usd", "shortfall_usd"):
        np.testing.assert_allclose(getattr(away, name), getattr(alone, name), atol=0.01)
        np.testing.assert_array_equal(
            getattr(_outage([hedged], ["arbitrum", "arbitrum"]), name), getattr(alone, name)
        )


def test_the_worst_outage_is_that_of_each_accounts_own_chain() -> None:
    accounts = [
        _account("a", 0.0, [_position("sim", "BTC", 9_000.0)], [_held("arbitrum", "USDC", 5_000.0)]),
        _account("b", 0.0, [_position("drift", "SOL", 9_000.0)], [_held("ethereum", "USDC", 5_000.0)]),
        _account("c", 100.0, [], []),
    ]
    book = AccountBook.from_dicts(accounts)
    found = worst_chain_outage(book, _forecast(), MarginPolicy(), law=LAW, ts=TS)
    assert found.chain.tolist() == ["arbitrum", "solana", ""]  # b is cut off from what backs it
    assert found.shortfall_usd[0].tolist() == [0.0, pytest.approx(found.requirement_usd[0, 1], rel=0.1), 0.0]
    for chain in ("arbitrum", "ethereum", "solana"):
        assert np.all(found.requirement_usd >= _outage(accounts, chain).requirement_usd)
    nothing = AccountBook.from_dicts(accounts[2:])
    assert worst_chain_outage(nothing, _forecast(), MarginPolicy(), law=LAW, ts=TS).chain.tolist() == [""]


def test_a_venues_own_maintenance_as_barrier_stops_no_stress() -> None:
    account = _account("a", 9_000.0, [_position("sim", "BTC", 9_000.0)], [])
    for barrier in ("venue", "hyperliquid"):
        found = _outage([account], "arbitrum", policy=MarginPolicy(barrier=barrier))
        assert found.requirement_usd[0, 0] > 0.0


def test_slow_bridges_cut_remote_collateral_alone_and_never_speed_a_transfer_up() -> None:
    position = _position("sim", "BTC", 9_000.0)
    held = [
        _held("arbitrum", "USDC", 5_000.0),
        _held("optimism", "USDC", 5_000.0),
        _held("optimism", "ETH", 5_000.0),
    ]

    def values(conditions: Conditions) -> list[float]:
        books = [AccountBook.from_dicts([_account("a", 0.0, [position], [row])]) for row in held]
        return [
            float(
                decide(
                    book, _forecast(), MarginPolicy(), law=LAW, ts=TS, conditions=conditions
                ).collateral_usd[0]
            )
            for book in books
        ]

    usual, day, exits = (
        values(conditions)
        for conditions in (Conditions(), slow_bridges(Conditions(), TS, 24.0), slow_bridges(Conditions(), TS))
    )
    assert usual[0] == day[0] == exits[0]
    assert usual[1] > day[1] > exits[1] > 0.0
    assert usual[2] > day[2] > exits[2] > 0.0
    assert exits[2] < 0.9 * exits[1]  # a week of ether's price law
    slow = Conditions(transfer_delay_h={"optimism": 500.0, "base": math.nan})
    assert slow_bridges(slow, TS).transfer_delay_h["optimism"] == 500.0
    assert math.isnan(slow_bridges(slow, TS).transfer_delay_h["base"])


@pytest.mark.parametrize("hours", [-1.0, math.nan, math.inf])
def test_an_outage_that_is_no_time_is_refused(hours: float) -> None:
    with pytest.raises(ConfigError, match="an outage lasts a finite number of hours, found"):
        _outage([_account("a", 1.0, [], [])], "solana", outage_h=hours)
    with pytest.raises(ConfigError, match="an outage of no chain at all is none"):
        _outage([_account("a", 1.0, [], [])], [])
    if not hours > 0.0:
        with pytest.raises(ConfigError, match="a delay is a number of hours >= 0, found"):
            slow_bridges(Conditions(), TS, hours)
