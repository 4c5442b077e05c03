"""Hyperliquid's tiers against hand-computed values of its published formulas."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines import engine_names, get_engine
from riskml.risk.engines.hyperliquid import (
    HyperliquidEngine,
    liquidation_price,
    liquidation_price_over_tiers,
    tier_table,
)
from riskml.risk.engines.hyperliquid_liquidation import (
    LiquidationRules,
    MarkRules,
    Stage,
    adl_rank,
    liquidation_fraction,
    liquidation_stage,
    transfer_requirement_usd,
)
from riskml.units import to_us

ALPHA, NOW = to_us("2023-03-01"), to_us("2025-09-01")


@pytest.mark.parametrize(
    ("symbol", "ts", "notional", "maintenance", "initial"),
    [
        ("BTC", ALPHA, 1e6, 1e4, 2e4),  # 50x: 1 %
        ("ARB", ALPHA, 1e6, 1e4, 2e4),
        ("BTC", NOW, 1e6, 12_500.0, 25_000.0),  # 40x: 1.25 %
        ("BTC", NOW, 150e6, 1_875_000.0, 7_500_000.0),
        ("BTC", NOW, 200e6, 200e6 * 0.025 - 1_875_000.0, 10_000_000.0),  # deduction 150M x 1.25 %
        ("ETH", NOW, 200e6, 200e6 / 30 - 100e6 * (1 / 30 - 1 / 50), 200e6 / 15),
        ("DOGE", NOW, 30e6, 30e6 * 0.1 - 20e6 * 0.05, 6e6),
        ("NEVERLISTED", NOW, 1e6, 50_000.0, 100_000.0),
    ],
)
def test_tiers_give_the_published_requirements(
    symbol: str, ts: int, notional: float, maintenance: float, initial: float
) -> None:
    table = tier_table(symbol, ts)
    assert table.maintenance_usd(np.array([notional]))[0] == pytest.approx(maintenance)
    assert table.initial_usd(np.array([notional]))[0] == pytest.approx(initial)


def test_maintenance_is_continuous_at_every_tier() -> None:
    for symbol in load_facts("hyperliquid_tiers")["symbol"]:
        table = tier_table(symbol, NOW)
        for bound in table.lower_usd[1:]:
            around = table.maintenance_usd(np.array([bound * (1 - 1e-12), bound]))
            assert around[0] == pytest.approx(around[1], rel=1e-9)


@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, (50_000 - 5_000) / (1 - 0.0125)), (-1.0, 55_000 / 1.0125)]
)
def test_at_the_liquidation_price_equity_equals_maintenance(size: float, expected: float) -> None:
    equity, price, rate = 5_000.0, 50_000.0, 0.0125
    found = liquidation_price(price, size, equity - rate * price, 1.0 / rate)
    assert found == pytest.approx(expected)
    assert equity + size * (found - price) == pytest.approx(rate * found)


def test_a_position_of_size_zero_has_no_liquidation_price() -> None:
    with pytest.raises(DataError, match="size 0 has no liquidation price"):
        liquidation_price(1.0, 0.0, 1.0, 40.0)


def test_the_engine_adds_up_positions_at_live_prices() -> None:
    book = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 0.0,
                "positions": [
                    {"venue": "hyperliquid", "symbol": "BTC", "size": 1.0, "mark_price": 40_000.0},
                    {"venue": "hyperliquid", "symbol": "ETH", "size": -10.0, "mark_price": 2_000.0},
                ],
            },
            {"account_id": "b", "cash_usd": 0.0},
        ]
    )
    margins = get_engine("hyperliquid").margins(book, {"BTC": 60_000.0}, NOW)
    assert margins.maintenance_usd.tolist() == [60_000.0 / 80 + 20_000.0 / 50, 0.0]
    assert margins.initial_usd.tolist() == [60_000.0 / 40 + 20_000.0 / 25, 0.0]


def test_an_unknown_engine_and_a_time_before_the_first_tiers_are_refused() -> None:
    assert "hyperliquid" in engine_names()
    with pytest.raises(ConfigError, match="there is no margin engine 'hyper'"):
        get_engine("hyper")
    with pytest.raises(ConfigError, match="no entry is in force at 2020-01-01"):
        tier_table("BTC", to_us("2020-01-01"))


def test_every_chain_and_asset_fact_is_dated_sourced_and_complete() -> None:
    chains = load_facts("chains")["chain"]
    assert {"ethereum", "arbitrum", "base", "optimism", "solana", "dydx", "hyperliquid"} <= chains.keys()
    for entries in chains.values():
        for entry in entries:
            assert {
                "valid_from",
                "finality_s",
                "transfer_s",
                "exit_s",
                "staleness_s",
                "source",
            } <= entry.keys()
    for asset in load_facts("assets")["asset"].values():
        assert ("market" in asset) != ("pegged_to" in asset)
        assert 0.0 <= asset["base_haircut"] < 1.0


# Golden vectors against a slow implementation in exact fractions: maintenance is summed slice by slice (no
# deductions), and a liquidation price is the zero of a straight line through two points of its segment.

FACTS = load_facts("hyperliquid_tiers")
RULES, MARK = LiquidationRules.at(NOW), MarkRules.at(NOW)
Tiers = list[dict[str, float]]


def slow_maintenance(tiers: Tiers, notional: Fraction) -> Fraction:
    total = Fraction(0)
    for number, tier in enumerate(tiers):
        lower = Fraction(tier["lower_usd"])
        upper = Fraction(tiers[number + 1]["lower_usd"]) if number + 1 < len(tiers) else notional
        total += max(min(notional, upper) - lower, Fraction(0)) / (2 * Fraction(tier["max_leverage"]))
    return total


def slow_initial(tiers: Tiers, notional: float) -> Fraction:
    leverage = [tier["max_leverage"] for tier in tiers if notional >= tier["lower_usd"]][-1]
    return Fraction(notional) / Fraction(leverage)


def slow_liquidation_price(tiers: Tiers, price: float, size: float, available: float) -> Fraction:
    mark, base = Fraction(price), Fraction(size)
    start = Fraction(available) + slow_maintenance(tiers, abs(base) * mark)

    def excess(at: Fraction) -> Fraction:
        return start + base * (at - mark) - slow_maintenance(tiers, abs(base) * at)

    edges = [Fraction(tier["lower_usd"]) / abs(base) for tier in tiers]
    inside = [number for number, edge in enumerate(edges) if (excess(edge) <= 0) == (base > 0)]
    segment = max(inside, default=0)
    left = edges[segment]
    right = edges[segment + 1] if segment + 1 < len(edges) else 2 * left + 1
    slope = (excess(right) - excess(left)) / (right - left)
    return left - excess(left) / slope


def tier_lists() -> list[tuple[str, str, Tiers]]:
    found = [("NEVERLISTED", str(entry["valid_from"]), entry["tiers"]) for entry in FACTS["default"]]
    for symbol, entries in FACTS["symbol"].items():
        found += [(symbol, str(entry["valid_from"]), entry["tiers"]) for entry in entries]
    return found


def edge_vectors() -> list[tuple[str, str, float]]:
    """Every edge of every table, one cent below, on it and above, and a point beyond."""
    return [
        (symbol, day, max(tier["lower_usd"] + unit, 0.0))
        for symbol, day, tiers in tier_lists()
        for tier in tiers
        for unit in (-0.01, 0.0, 0.01, 12_345_678.9)
    ]


def liquidation_vectors() -> list[tuple[str, float, float, float]]:
    """Longs and shorts whose liquidation lies just below, on and just above each edge, and anywhere."""
    rng, found = random.Random(21), []
    newest = {symbol: tiers for symbol, _, tiers in tier_lists()}
    for symbol, tiers in newest.items():
        for tier in tiers[1:]:
            for side in (1.0, -1.0):
                size, mark = side * tier["lower_usd"] / 1000.0, 1000.0 + 300.0 * side
                for target in (999.9, 1000.0, 1000.1):  # price at which it shall be liquidated
                    notional = Fraction(abs(size)) * Fraction(target)
                    equity = slow_maintenance(tiers, notional) - Fraction(size) * Fraction(target - mark)
                    now = slow_maintenance(tiers, Fraction(abs(size)) * Fraction(mark))
                    found.append((symbol, mark, size, float(equity - now)))
        size = rng.choice([-1, 1]) * 10 ** rng.uniform(-2, 6)
        mark = 10 ** rng.uniform(-1, 5)
        found += [(symbol, mark, size, abs(size) * mark * share) for share in (-0.2, 0.0, 0.01, 0.4, 3.0)]
    return found


EDGE_VECTORS, LIQUIDATION_VECTORS = edge_vectors(), liquidation_vectors()


@pytest.mark.parametrize(("symbol", "day", "notional"), EDGE_VECTORS)
def test_requirements_are_those_of_the_slices_at_every_edge(symbol: str, day: str, notional: float) -> None:
    tiers = next(tiers for name, when, tiers in tier_lists() if (name, when) == (symbol, day))
    table = tier_table(symbol, to_us(day))
    maintenance = float(slow_maintenance(tiers, Fraction(notional)))
    assert table.maintenance_usd(np.array([notional, -notional])).tolist() == pytest.approx(
        [maintenance] * 2, rel=1e-9, abs=1e-9
    )
    initial = float(slow_initial(tiers, notional))
    assert table.initial_usd(np.array([notional]))[0] == pytest.approx(initial, rel=1e-9)


@pytest.mark.parametrize(("symbol", "mark", "size", "available"), LIQUIDATION_VECTORS)
def test_the_liquidation_price_over_tiers_is_exact(
    symbol: str, mark: float, size: float, available: float
) -> None:
    tiers = {name: found for name, _, found in tier_lists()}[symbol]
    expected = slow_liquidation_price(tiers, mark, size, available)
    found = liquidation_price_over_tiers(
        tier_table(symbol, NOW), np.array([mark]), np.array([size]), np.array([available])
    )[0]
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-9 * mark)


def test_all_positions_of_a_market_at_once_are_the_single_ones() -> None:
    rows = [vector for vector in LIQUIDATION_VECTORS if vector[0] == "BTC"]
    mark, size, available = (np.array(column) for column in list(zip(*rows, strict=True))[1:])
    table = tier_table("BTC", NOW)
    together = liquidation_price_over_tiers(table, mark, size, available)
    single = [liquidation_price_over_tiers(table, *(np.array([v]) for v in row[1:]))[0] for row in rows]
    assert together.tolist() == single
    assert len(EDGE_VECTORS) + len(LIQUIDATION_VECTORS) >= 500


def test_within_one_tier_the_price_is_that_of_the_single_tier_rule() -> None:
    table = tier_table("SOL", NOW)
    found = liquidation_price_over_tiers(
        table, np.array([150.0, 150.0]), np.array([100.0, -100.0]), np.array([900.0, 900.0])
    )
    assert found.tolist() == pytest.approx(
        [liquidation_price(150.0, s, 900.0, 40.0) for s in (100.0, -100.0)]
    )


def test_the_liquidation_price_across_the_edge_of_btc_by_hand() -> None:
    # 4_000 BTC at 50_000: 200M, MM = 200M x 2.5 % - 1.875M = 3.125M; 20M more than that.
    # Below 37_500 (150M) the rate is 1.25 %: 23.125M + 4_000 (q - 50_000) = 50 q, so q = 176.875M / 3_950.
    # That is 44_778, above 37_500: so the upper tier holds, 23.125M + 4_000 (q - 50_000) = 100 q - 1.875M,
    # q = 175M / 3_900 = 44_871.79. With 60M more: 63.125M, and q = 136.875M / 3_950 = 34_651.90 in the lower.
    table = tier_table("BTC", NOW)
    found = liquidation_price_over_tiers(
        table, np.full(2, 50_000.0), np.full(2, 4_000.0), np.array([20e6, 60e6])
    )
    assert found.tolist() == pytest.approx([175e6 / 3_900, 136.875e6 / 3_950])


def test_more_margin_moves_the_liquidation_price_away() -> None:
    table = tier_table("ETH", NOW)
    margin = np.linspace(-5e6, 80e6, 500)
    long, short = (
        liquidation_price_over_tiers(table, np.full(500, 3_000.0), np.full(500, size), margin)
        for size in (40_000.0, -40_000.0)
    )
    assert (np.diff(long) < 0).all()
    assert (np.diff(short) > 0).all()


def test_a_size_of_zero_is_refused_with_its_row_and_unknown_prices_stay_unknown() -> None:
    table = tier_table("BTC", NOW)
    with pytest.raises(DataError, match="size 0 has no liquidation price") as error:
        liquidation_price_over_tiers(table, np.ones(2), np.array([1.0, 0.0]), np.ones(2))
    assert error.value.row == 1
    unknown = liquidation_price_over_tiers(
        table, np.array([np.nan, 1.0]), np.ones(2), np.array([1.0, np.nan])
    )
    assert np.isnan(unknown).all()


@pytest.mark.parametrize("maintenance", [3.0, 0.03, 3e9, 7.0, 0.0])
@pytest.mark.parametrize("equity", ["none", "full", "backstop", "zero", "negative"])
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_the_stage_is_that_of_exact_fractions(maintenance: float, equity: str, step: int) -> None:
    exact = Fraction(str(maintenance))
    base = {"none": 2 * exact, "full": exact, "backstop": exact * 2 / 3, "zero": 0, "negative": -exact}[
        equity
    ]
    value = float(base) + step * 1e-6 * max(maintenance, 1.0)
    if step == 0 and equity == "backstop" and maintenance == 7.0:
        value = 4.666666666666666  # 2/3 of 7 is no float; this one lies below it
    found = liquidation_stage(np.array([value]), np.array([maintenance]), RULES)[0]
    if Fraction(value) < exact * 2 / 3:
        expected = Stage.BACKSTOP
    else:
        expected = Stage.MARKET_ORDERS if Fraction(str(value)) < exact else Stage.NONE
    assert found == expected


@pytest.mark.parametrize(
    ("notional", "since", "expected"),
    [
        (100_000.0, math.inf, 1.0),  # "larger than 100k": the edge itself is closed whole
        (99_999.99, math.inf, 1.0),
        (100_000.01, math.inf, 0.2),
        (-250_000.0, math.inf, 0.2),
        (250_000.0, 0.0, 1.0),  # cooldown
        (250_000.0, 29.999, 1.0),
        (250_000.0, 30.0, 1.0),
        (250_000.0, 30.001, 0.2),
        (250_000.0, math.nan, 1.0),
        (math.nan, math.inf, 1.0),
        (0.0, math.inf, 1.0),
    ],
)
def test_a_large_position_is_closed_by_a_fifth_first_and_whole_in_the_cooldown(
    notional: float, since: float, expected: float
) -> None:
    assert liquidation_fraction(np.array([notional]), np.array([since]), RULES).tolist() == [expected]


def test_before_partial_liquidations_every_position_was_closed_whole() -> None:
    early = LiquidationRules.at(ALPHA)
    assert liquidation_fraction(np.array([1e9]), math.inf, early).tolist() == [1.0]
    assert liquidation_stage(np.array([1.9]), np.array([3.0]), early).tolist() == [Stage.BACKSTOP]


def test_an_unknown_equity_or_maintenance_is_in_the_backstop() -> None:
    found = liquidation_stage(np.array([np.nan, 1.0]), np.array([1.0, np.nan]), RULES)
    assert found.tolist() == [Stage.BACKSTOP, Stage.BACKSTOP]


@pytest.mark.parametrize(
    ("initial", "notional", "expected"),
    [
        (5.0, 40.0, 5.0),
        (4.0, 40.0, 4.0),  # the kink: 10x leverage
        (3.99, 40.0, 4.0),
        (1.0, 40.0, 4.0),  # 40x leverage still leaves a tenth
        (0.0, 0.0, 0.0),
    ],
)
def test_a_withdrawal_leaves_the_initial_margin_and_a_tenth_of_the_notional(
    initial: float, notional: float, expected: float
) -> None:
    found = transfer_requirement_usd(np.array([initial]), np.array([notional]), RULES)
    assert found[0] == pytest.approx(expected)


def test_the_rank_is_the_published_index_of_exact_fractions() -> None:
    rng = random.Random(2)
    rows = [
        [rng.uniform(0.1, 1e5), rng.uniform(0.1, 1e5), rng.uniform(0, 1e8), rng.uniform(1, 1e7)]
        for _ in range(50)
    ]
    rows.append([110.0, 100.0, 5_000.0, 1_000.0])  # 1.1 x 5 = 5.5
    found = adl_rank(*np.array(rows).T)
    expected = [
        float(Fraction(mark) / Fraction(entry) * Fraction(notional) / Fraction(value))
        for mark, entry, notional, value in rows
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert found[-1] == pytest.approx(5.5)


def test_an_account_without_value_ranks_first_and_a_rank_needs_prices() -> None:
    ones = np.ones(3)
    assert adl_rank(ones, ones, ones, np.array([0.0, -1.0, 2.0])).tolist() == [math.inf, math.inf, 0.5]
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(DataError, match="a rank needs positive prices") as error:
            adl_rank(ones, np.array([1.0, bad, 1.0]), ones, ones)
        assert error.value.row == 1


def test_the_rules_are_dated() -> None:
    for rules in (LiquidationRules, MarkRules):
        with pytest.raises(ConfigError, match="no entry is in force at 2020-01-01"):
            rules.at(to_us("2020-01-01"))
    assert {"valid_from", "source"} <= FACTS["mark_price"][0].keys()
    assert all({"valid_from", "source"} <= entry.keys() for entry in FACTS["liquidation"])


def test_requirements_of_accounts_of_several_tiers_are_the_sums_of_their_slices() -> None:
    rng = random.Random(12)
    newest = {name: tiers for name, _, tiers in tier_lists()}
    accounts, expected = [], []
    for number in range(30):
        positions, needed = [], [Fraction(0), Fraction(0)]
        for symbol in rng.sample(sorted(newest), rng.randrange(0, 6)):
            size, price = rng.choice([-1, 1]) * rng.randrange(1, 10**6), rng.randrange(1, 2000)
            positions.append(
                {"venue": "hyperliquid", "symbol": symbol, "size": float(size), "mark_price": float(price)}
            )
            needed[0] += slow_initial(newest[symbol], float(abs(size) * price))
            needed[1] += slow_maintenance(newest[symbol], Fraction(abs(size) * price))
        accounts.append({"account_id": str(number), "cash_usd": 0.0, "positions": positions})
        expected.append([float(value) for value in needed])
    margins = HyperliquidEngine().margins(AccountBook.from_dicts(accounts), None, NOW)
    found = np.column_stack([margins.initial_usd, margins.maintenance_usd])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
