"""Haircuts: bounded, monotone in every input, and nothing counted twice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from riskml.facts import load_facts
from riskml.risk import AccountBook, Decisions, Forecast, MarginPolicy, decide, numpy_law, reason_names
from riskml.risk.collateral import Conditions, chain_facts, is_stale_chain, staleness_us, value_collateral
from riskml.risk.haircuts import (
    MAX_SIZE_HAIRCUT,
    PEG_NU,
    deviation_scale,
    peg_consensus,
    peg_haircut,
    size_haircut,
    transfer_haircut,
    within_spread,
)
from riskml.units import DAY, HOUR, MINUTE, to_us

TS = to_us("2024-05-01")
CASES = 10_000
HOME = "arbitrum"  # where the venue "sim" settles
STABLE, MOVING = ("USDC", "DAI", "USDe"), ("ETH", "WBTC", "SOL")
SYMBOLS = {"BTC": 0, "ETH": 1, "SOL": 2}
PRICES = {"USDC": 1.0, "DAI": 1.0, "USDe": 1.0, "ETH": 3_000.0, "WBTC": 60_000.0, "SOL": 150.0}


def _forecast(scale: float = 1.0) -> Forecast:
    base = scale * np.array([0.004, 0.005, 0.008])[:, None] * np.sqrt([1.0, 8.0, 24.0])
    return Forecast(
        ts=TS,
        markets=tuple(SYMBOLS),
        horizons=("1h", "8h", "24h"),
        sigma=np.stack([1.1 * base, base], axis=-1),
        nu=np.full((3, 3), 3.7),
        variance=base**2,
        stress=np.full((3, 3), 0.01),
        loadings=np.array([[0.8, 0.0], [0.85, 0.1], [0.7, 0.3]]),
        degraded=np.zeros(3, dtype=np.bool_),
    )


def _held(chain: str, asset: str, usd: float) -> dict[str, Any]:
    return {"chain": chain, "asset": asset, "amount": usd / PRICES[asset], "price_usd": PRICES[asset]}


def _account(
    *held: dict[str, Any], cash: float = 0.0, venue: str = "sim", size: float = 0.1
) -> dict[str, Any]:
    position = {"venue": venue, "symbol": "BTC", "size": size, "mark_price": 60_000.0}
    return {"account_id": "a", "cash_usd": cash, "collateral": list(held), "positions": [position]}


def _decide(account: dict[str, Any], scale: float = 1.0, **more: Any) -> Decisions:
    policy = more.pop("policy", MarginPolicy())
    return decide(
        AccountBook.from_dicts([account]), _forecast(scale), policy, law=numpy_law(np.ones(3)), ts=TS, **more
    )


def _reasons(decisions: Decisions) -> list[str]:
    return reason_names(int(decisions.reasons[0]))


def test_peg_and_transfer_haircuts_are_bounded_and_rise_with_every_input() -> None:
    rng = np.random.default_rng(1)
    levels = [MarginPolicy(initial_level=level) for level in (0.9, 0.99, 0.995, 0.999)]
    for _ in range(CASES):
        low, high = sorted(rng.choice(4, 2))
        scale, hours, loss = 10.0 ** rng.uniform(-5, 1), 10.0 ** rng.uniform(-1, 3), rng.random()
        more_scale, more_hours = scale * rng.uniform(1, 3), hours * rng.uniform(1, 3)
        more_loss = loss + (1.0 - loss) * rng.random()
        peg, transfer = peg_haircut(scale, hours, levels[low]), transfer_haircut(loss, hours, levels[low])
        assert 0.0 <= peg <= peg_haircut(more_scale, hours, levels[low]) <= 1.0
        assert peg <= peg_haircut(scale, more_hours, levels[low])
        assert peg <= peg_haircut(scale, hours, levels[high])
        assert 0.0 <= transfer <= transfer_haircut(more_loss, hours, levels[low]) <= 1.0
        assert transfer <= transfer_haircut(loss, more_hours, levels[low])


def test_the_size_haircut_rises_with_size_and_more_is_never_worth_less() -> None:
    rng = np.random.default_rng(2)
    value = 10.0 ** rng.uniform(3, 12, CASES)
    liquidity = np.where(rng.random(CASES) < 0.1, np.nan, 10.0 ** rng.uniform(4, 11, CASES))
    more, deeper = value * rng.uniform(1, 3, CASES), liquidity * rng.uniform(1, 3, CASES)
    for policy in (MarginPolicy(), MarginPolicy(liquidity_rate=2.0, size_free_usd=0.0)):
        cut = size_haircut(value, liquidity, policy)
        larger = size_haircut(more, liquidity, policy)
        assert np.all((cut >= 0.0) & (cut <= MAX_SIZE_HAIRCUT))
        assert np.all(larger >= cut - 1e-15)
        assert np.all(size_haircut(value, deeper, policy) <= cut + 1e-15)
        assert np.all(more * (1.0 - larger) >= value * (1.0 - cut) * (1.0 - 1e-12))
        assert cut.max() > 0.3


@pytest.mark.parametrize(
    ("value", "liquidity", "cut"),
    [
        (1_000_000.0, np.nan, 0.0),  # what an account can sell anywhere
        (101_000_000.0, np.nan, 0.05 * 100.0 / 101.0),  # as large as a market of unknown size
        (101_000_000.0, 1e10, 0.005 * 100.0 / 101.0),
        (5_000_000.0, 0.0, MAX_SIZE_HAIRCUT * 4.0 / 5.0),  # no market at all
        (np.nan, 1e9, 0.0),
    ],
)
def test_size_costs_the_square_root_of_its_share_of_the_market(
    value: float, liquidity: float, cut: float
) -> None:
    found = size_haircut(np.array([value]), np.array([liquidity]), MarginPolicy())
    assert found[0] == pytest.approx(cut)


def test_the_peg_haircut_is_the_quantile_of_the_law_beyond_bid_ask_noise() -> None:
    t_quantile = 7.453319  # scipy.stats.t.ppf(0.9975, 3)
    distance = t_quantile * 0.01 * math.sqrt(8.0 / 24.0) - 0.002
    assert PEG_NU == 3.0
    assert peg_haircut(0.01, 8.0, MarginPolicy()) == pytest.approx(1.0 - math.exp(-distance), rel=1e-4)
    assert peg_haircut(0.0004, 8.0, MarginPolicy()) == 0.0  # USDC on a quiet day
    assert peg_haircut(math.nan, 8.0, MarginPolicy()) == peg_haircut(0.01, math.nan, MarginPolicy()) == 1.0


def test_leg_margin_and_transfer_haircut_together_are_the_margin_over_both_times() -> None:
    # A leg's distance D over 8 h and 1 h of transfer: D sqrt(9 / 8) in all, none of it twice.
    distance = 0.3
    cut = transfer_haircut(1.0 - math.exp(-distance), 1.0, MarginPolicy())
    assert -math.log(1.0 - cut) + distance == pytest.approx(distance * math.sqrt(9.0 / 8.0))
    assert transfer_haircut(0.3, 0.0, MarginPolicy()) == 0.0
    assert transfer_haircut(math.nan, 1.0, MarginPolicy()) > cut  # no forecast: the wild one
    assert transfer_haircut(0.3, math.nan, MarginPolicy()) == 1.0


def test_a_moving_asset_at_the_venue_is_cut_for_nothing_that_its_leg_covers() -> None:
    wild, calm = (_decide(_account(_held(HOME, "ETH", 9_000.0)), scale) for scale in (5.0, 1.0))
    assert wild.collateral_usd[0] == calm.collateral_usd[0] == pytest.approx(9_000.0 * 0.99)
    assert wild.initial_margin_usd[0] > calm.initial_margin_usd[0]
    far = [
        _decide(_account(_held("ethereum", "ETH", 9_000.0)), scale).collateral_usd[0] for scale in (5.0, 1.0)
    ]
    assert far[0] < far[1] < calm.collateral_usd[0]


def _conditions(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    every = (*STABLE, *MOVING)
    return {
        "chain_stress": {"solana": rng.random()},
        "peg_price_usd": {asset: rng.uniform(0.5, 1.02) for asset in STABLE},
        "peg_scale": {asset: 10.0 ** rng.uniform(-5, 0) for asset in STABLE},
        "peg_age_h": {asset: 10.0 ** rng.uniform(-1, 3) for asset in STABLE},
        "transfer_delay_h": {"solana": rng.uniform(0, 200)},
        "asset_liquidity_usd": {asset: 10.0 ** rng.uniform(5, 10) for asset in every},
    }


WORSE = {
    "chain_stress": lambda value, rng: value + (1.0 - value) * rng.random(),
    "peg_price_usd": lambda value, rng: value * rng.random(),
    "peg_scale": lambda value, rng: value * rng.uniform(1, 10),
    "peg_age_h": lambda value, rng: value * rng.uniform(1, 10),
    "transfer_delay_h": lambda value, rng: value + rng.uniform(0, 500),
    "asset_liquidity_usd": lambda value, rng: value * rng.random(),
}


def test_no_condition_that_worsens_lowers_a_haircut_or_raises_a_value() -> None:
    rng = np.random.default_rng(3)
    policy = MarginPolicy()
    rows = [_held("solana", asset, 10.0 ** rng.uniform(2, 9)) for asset in (*STABLE, *MOVING)]
    book = AccountBook.from_dicts([_account(*rows)])
    n_changed = 0
    for case in range(CASES // len(rows) + 1):
        good = _conditions(rng)
        loss = rng.random(4)
        name = list(WORSE)[case % len(WORSE)]
        bad = {**good, name: {key: WORSE[name](value, rng) for key, value in good[name].items()}}
        before, after = (
            value_collateral(book, SYMBOLS, {}, policy, Conditions(**conditions), TS, margin_loss=loss)
            for conditions in (good, bad)
        )
        wilder = value_collateral(
            book, SYMBOLS, {}, policy, Conditions(**good), TS, margin_loss=loss + (1.0 - loss) * 0.5
        )
        for found in (before, after, wilder):
            assert np.all((found.haircut >= 0.0) & (found.haircut <= 1.0) & (found.value_usd >= 0.0))
        assert np.all(after.value_usd <= before.value_usd * (1.0 + 1e-12))
        assert np.all(wilder.value_usd <= before.value_usd * (1.0 + 1e-12))
        if name != "peg_price_usd":  # a smaller holding is cut less for its size
            assert np.all(after.haircut >= before.haircut - 1e-12)
        n_changed += int((after.value_usd < before.value_usd).sum())
    assert n_changed > CASES // 4


def test_more_of_an_asset_on_any_chain_is_never_worth_less() -> None:
    rng = np.random.default_rng(4)
    policy = MarginPolicy(liquidity_rate=1.0)
    accounts, richer = [], []
    for number in range(2_000):
        held = [_held(chain, "USDC", 10.0 ** rng.uniform(4, 10)) for chain in (HOME, "solana")]
        more = [held[0], {**held[1], "amount": held[1]["amount"] * rng.uniform(1, 4)}]
        accounts.append({**_account(*held), "account_id": str(number)})
        richer.append({**_account(*more), "account_id": str(number)})
    values = [
        value_collateral(AccountBook.from_dicts(books), SYMBOLS, {}, policy, Conditions(), TS)
        for books in (accounts, richer)
    ]
    poor, rich = (np.bincount(np.repeat(np.arange(2_000), 2), weights=found.value_usd) for found in values)
    assert np.all(rich >= poor * (1.0 - 1e-12))
    assert values[0].size_charged.any()


def test_one_large_holding_is_named_and_one_whose_leg_pays_for_closing_is_not_cut_again() -> None:
    large = _decide(_account(_held(HOME, "USDC", 50e6)))
    assert large.collateral_usd[0] == pytest.approx(50e6 - 49e6 * 0.05 * 0.7)
    assert "collateral-size" in _reasons(large)
    assert "collateral-size" not in _reasons(_decide(_account(_held(HOME, "USDC", 0.9e6))))
    unknown, known = (
        _decide(_account(_held(HOME, "ETH", 50e6)), liquidity_usd=depth) for depth in ({}, {"ETH": 1e9})
    )
    assert "collateral-size" in _reasons(unknown)
    assert "collateral-size" not in _reasons(known)
    assert known.collateral_usd[0] == pytest.approx(50e6 * 0.99)


@pytest.mark.parametrize(
    ("conditions", "value"),
    [
        ({"chain_stress": {HOME: math.nan}}, 800.0),
        ({"chain_stress": {HOME: 7.0}}, 800.0),
        ({"peg_scale": {"USDC": math.nan}}, 0.0),
        ({"peg_scale": {"USDC": -1.0}}, 1_000.0),
        ({"peg_age_h": {"USDC": math.nan}}, 0.0),
        ({"transfer_delay_h": {HOME: math.nan}}, 1_000.0),  # nothing has to be transferred
    ],
)
def test_what_is_not_known_is_never_in_the_accounts_favour(
    conditions: dict[str, dict[str, float]], value: float
) -> None:
    decisions = _decide(_account(_held(HOME, "USDC", 1_000.0)), conditions=Conditions(**conditions))
    assert decisions.collateral_usd[0] == pytest.approx(value)


def test_a_transfer_without_a_known_end_leaves_remote_collateral_worthless() -> None:
    slow = Conditions(transfer_delay_h={"solana": math.nan})
    for asset in ("USDC", "ETH"):
        assert _decide(_account(_held("solana", asset, 1_000.0)), conditions=slow).collateral_usd[0] == 0.0


# Chains of which nothing new is known.


def _aged(chain: str, hours: float) -> Conditions:
    return Conditions(chain_age_us={chain: hours * HOUR}, chain_stress={chain: 1.0 if hours > 72.0 else 0.0})


def test_collateral_on_a_stale_chain_frees_nothing_for_positions_settled_elsewhere() -> None:
    account = _account(_held("solana", "USDC", 5_000.0), cash=4_000.0)
    fresh, stale = (_decide(account, conditions=_aged("solana", hours)) for hours in (72.0, 72.1))
    without = _decide({**account, "collateral": []})
    free = [float(one.equity_usd[0] - one.initial_margin_usd[0]) for one in (fresh, stale, without)]
    assert free[0] > free[2] + 4_900.0
    assert free[1] == pytest.approx(free[2], abs=0.02)
    assert "stale-chain" in _reasons(stale)
    assert "stale-chain" not in _reasons(fresh)


def test_a_silent_feed_liquidates_nobody() -> None:
    account = _account(_held("solana", "USDC", 5_000.0), cash=300.0)
    fresh, stale = (_decide(account, conditions=_aged("solana", hours)) for hours in (1.0, 1_000.0))
    assert stale.maintenance_margin_usd[0] == fresh.maintenance_margin_usd[0]
    assert stale.equity_usd[0] == pytest.approx(
        300.0 + 5_000.0 * (fresh.equity_usd[0] - 300.0) / 5_000.0 - 1_000.0
    )
    assert stale.to_dicts()[0]["action"] == "restrict"
    assert "equity-below-initial" in _reasons(stale)


def test_a_stale_chain_still_backs_what_settles_on_it_less_the_haircut() -> None:
    account = _account(_held(HOME, "USDC", 5_000.0))
    fresh, stale = (_decide(account, conditions=_aged(HOME, hours)) for hours in (1.0, 1_000.0))
    assert stale.collateral_usd[0] == pytest.approx(0.8 * fresh.collateral_usd[0])
    assert stale.initial_margin_usd[0] == fresh.initial_margin_usd[0]
    half = {**account, "positions": [*account["positions"], {**account["positions"][0], "venue": "drift"}]}
    mixed, both = (_decide(half, conditions=_aged(HOME, hours)) for hours in (1.0, 1_000.0))
    assert both.initial_margin_usd[0] == pytest.approx(mixed.initial_margin_usd[0] + 0.5 * 4_000.0, abs=0.02)


def test_moving_collateral_on_a_stale_chain_hedges_nothing_elsewhere() -> None:
    short = {"venue": "sim", "symbol": "ETH", "size": -3.0, "mark_price": 3_000.0}
    account = {"account_id": "a", "cash_usd": 2_000.0, "positions": [short]}
    held = {**account, "collateral": [_held("solana", "ETH", 9_000.0)]}
    policy = MarginPolicy(offset_cap=1.0, correlation_stress=0.0)
    fresh, stale = (
        _decide(held, conditions=_aged("solana", hours), policy=policy) for hours in (1.0, 1_000.0)
    )
    bare = _decide(account, policy=policy)
    free = [float(one.equity_usd[0] - one.initial_margin_usd[0]) for one in (fresh, stale, bare)]
    assert fresh.initial_margin_usd[0] < 0.5 * bare.initial_margin_usd[0]
    assert free[1] == pytest.approx(free[2], abs=0.02)


def test_a_chain_never_heard_of_is_stale_and_one_of_unknown_age_too() -> None:
    account = _account(_held("solana", "USDC", 5_000.0))
    for age in (math.inf, math.nan):
        decisions = _decide(account, conditions=Conditions(chain_age_us={"solana": age}))
        assert "stale-chain" in _reasons(decisions)


def test_an_account_without_positions_cannot_open_any_against_a_stale_chain() -> None:
    account = {**_account(_held("solana", "USDC", 5_000.0), cash=100.0), "positions": []}
    stale = _decide(account, conditions=_aged("solana", 1_000.0))
    assert stale.equity_usd[0] - stale.initial_margin_usd[0] == pytest.approx(100.0, abs=0.01)
    assert stale.to_dicts()[0]["action"] == "normal"


# The peg's price and scale.


def test_a_print_that_no_majority_shares_is_local() -> None:
    assert peg_consensus([0.1]) == [0]
    assert peg_consensus([0.1, 0.0]) == [1]
    assert peg_consensus([-0.1, 0.0, 0.09]) == [1, 2]
    assert peg_consensus([0.0, 0.08, 0.1, 0.11]) == [0, 1]


def test_a_print_inside_the_fee_says_nothing_about_the_peg() -> None:
    found = within_spread(np.array([0.997, 1.003, 0.98, 1.02, np.nan]), 1.0, 0.003)
    assert found == pytest.approx([1.0, 1.0, 0.983, 1.017, np.nan], nan_ok=True)


def test_the_scale_of_a_random_walk_is_found_at_any_spacing() -> None:
    rng = np.random.default_rng(5)
    for step in (15 * MINUTE, HOUR, DAY):
        n_rows = 8 * DAY // step + 1
        found = []
        for _ in range(200):
            moves = rng.normal(size=n_rows) * 0.01 * math.sqrt(step / DAY)
            found.append(deviation_scale(step * np.arange(n_rows), 1.0 + np.cumsum(moves)))
        assert math.sqrt(np.mean(np.square(found))) == pytest.approx(0.01, rel=0.1)


def test_the_scale_forgets_and_needs_two_prices_a_step_apart() -> None:
    times = HOUR * np.arange(96)
    price = np.where(times < 20 * HOUR, 0.95, 1.0)
    scales = [deviation_scale(times[:stop], price[:stop]) for stop in (30, 60, 96)]
    assert scales[0] > scales[1] > scales[2] > 0.0
    assert math.isnan(deviation_scale(times[:7], price[:7]))
    assert math.isnan(deviation_scale(times[:0], price[:0]))
    assert deviation_scale(times, np.where(times == 50 * HOUR, np.nan, price)) < 0.05
    assert deviation_scale(times, np.ones(96)) == 0.0


def test_fees_to_and_fro_are_no_scale_but_a_step_down_is_one() -> None:
    times = 15 * MINUTE * np.arange(400)
    bounce = within_spread(1.0 + 0.003 * (-1.0) ** np.arange(400), 1.0, 0.003)
    assert deviation_scale(times, bounce) == pytest.approx(0.0, abs=1e-12)
    fallen = np.where(np.arange(400) >= 396, 0.98, bounce)
    assert deviation_scale(times, fallen) > 0.004


# Facts.

CHAINS = ("ethereum", "arbitrum", "base", "optimism", "solana", "dydx", "cosmos", "hyperliquid")


@pytest.mark.parametrize("chain", CHAINS)
def test_the_facts_of_a_chain_are_complete_dated_and_sourced(chain: str) -> None:
    bridges = {entry["name"]: entry["chain"] for entry in load_facts("bridges")["bridge"]}
    entries = load_facts("chains")["chain"][chain]
    dates = [entry["valid_from"] for entry in entries]
    assert dates == sorted(set(dates))
    for entry in entries:
        assert 0.0 < entry["block_time_s"] <= entry["finality_s"] <= max(entry["transfer_s"], entry["exit_s"])
        assert 0.0 < entry["fast_transfer_s"] <= entry["transfer_s"] <= entry["exit_s"]
        assert entry["staleness_s"] > 0
        assert len(entry["source"]) > 40
        assert entry["fast_bridge"] in bridges
        own = entry["canonical_bridge"]
        assert own == "" or bridges[own] == entry.get("data_chain", chain)
    assert staleness_us(chain, TS) == 3 * DAY
    assert chain_facts(chain, to_us("2015-01-01")) is None


def test_every_pegged_asset_has_a_scale_below_which_it_is_never_taken() -> None:
    for name, fact in load_facts("assets")["asset"].items():
        assert ("daily_deviation" in fact) == (fact.get("pegged_to") == "USD"), name
        assert ("market" in fact) != ("pegged_to" in fact), name
        assert 0.0 <= fact.get("daily_deviation", 0.0) < 0.01


def test_a_chain_that_nobody_knows_is_stale_where_any_is_watched() -> None:
    watched = Conditions(chain_age_us={"arbitrum": 0.0})
    assert is_stale_chain("etherium", watched, TS)
    assert not is_stale_chain("arbitrum", watched, TS)
    assert not is_stale_chain("etherium", Conditions(), TS)
