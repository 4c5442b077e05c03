"""Drift v2 against a slow integer implementation of the program's formulas, written here from its source."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines.drift_v2 import (
    DriftV2Engine,
    asset_weight_1e4,
    margin_ratio_1e4,
    profit_initial_weight_1e4,
    scaled_initial_weight_1e4,
    size_root_1e5,
    strict_price,
    to_units,
)
from riskml.risk.engines.drift_v2_oracle import (
    OracleRules,
    OracleValidity,
    market_oracle_validity,
    oracle_validity,
)
from riskml.risk.engines.interface import VenueState
from riskml.units import to_us

NOW, BEFORE = to_us("2025-09-01"), to_us("2022-12-31")
FACTS = load_facts("drift_v2_markets")
PERPS = {name: entries[-1] for name, entries in FACTS["perp"].items()} | {"?": FACTS["perp_default"][-1]}
SPOTS = {name: entries[-1] for name, entries in FACTS["spot"].items()}
BASE = 10**9


# The slow implementation: one value at a time, Python integers.


def slow_root(number: int) -> int:
    low, high = 0, 1
    while high * high <= number:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle * middle <= number else (low, middle)
    return low


def slow_margin_ratio(size: int, ratio: int, imf: int) -> int:
    if imf == 0:
        return ratio
    numerator = ratio - ratio // 5
    premium = numerator + (slow_root(size * 10 + 1) * imf) // (100_000 * 1_000_000 // 10_000)
    return max(ratio, premium)


def slow_asset_weight(size: int, weight: int, imf: int) -> int:
    if imf == 0:
        return weight
    numerator = 1_000_000 + 1_000_000 // 10
    discounted = (numerator * 10_000) // (1_000_000 + (slow_root(size * 10 + 1) * imf) // 100_000)
    return min(weight, discounted)


def slow_scaled_weight(weight: int, deposits: int, start: int) -> int:
    if start == 0 or deposits < start:
        return weight
    return weight * start // deposits


def slow_profit_weight(profit: int, weight: int, imf: int, net: int, cap: int) -> int:
    if profit <= 0:
        return 10_000
    if weight > 0 and cap > 0 and net > cap:
        weight = weight * cap // net
    return slow_asset_weight(profit * 1000, weight, imf) if weight > 0 else 0


def slow_validity(price: int, twap: int, confidence: int, delay: int, multiple: int) -> str:
    if price <= 0:
        return "NON_POSITIVE"
    if max(price, twap) // max(min(twap, price), 1) > 5:
        return "TOO_VOLATILE"
    if confidence * 1_000_000 // price > 20_000 * multiple:
        return "TOO_UNCERTAIN"
    return "STALE" if delay > 120 else "VALID"


# Vectors: both sides of every boundary, then seeded ones.


def first_size(beyond: int, divisor: int, imf: int) -> int:
    """Least size whose ``root imf // divisor`` reaches a value: where the formula bends."""
    low, high = -1, 10**30
    while high - low > 1:
        middle = (low + high) // 2
        reached = slow_root(10 * middle + 1) * imf // divisor >= beyond
        low, high = (low, middle) if reached else (middle, high)
    return high


def around(value: int) -> list[int]:
    return [max(value - 1, 0), value, value + 1]


def margin_vectors() -> list[tuple[int, int, int]]:
    found = []
    for entry in PERPS.values():
        for ratio in (entry["initial_ratio_1e4"], entry["maintenance_ratio_1e4"]):
            imf = entry["imf_1e6"]
            bend = first_size(ratio // 5 + 1, 10**7, imf) if imf else BASE
            found += [(size, ratio, imf) for size in (0, 1, *around(bend), 10**6 * BASE)]
    # 10 size + 1 a perfect square: the root steps exactly there.
    found += [
        (size, 1000, 10**7) for root in (9, 11, 99_999, 10**9 + 1) for size in around((root**2 - 1) // 10)
    ]
    found += [(BASE, ratio, 8000) for ratio in (0, 1, 4, 5, 6, 9, 10, 11, 9999, 10_000)]
    rng = random.Random(5)
    found += [
        (int(10 ** rng.uniform(0, 20)), rng.randrange(1, 10_001), rng.choice([0, 1, 450, 8000, 10**6]))
        for _ in range(60)
    ]
    return found


def weight_vectors() -> list[tuple[int, int, int]]:
    found = []
    for entry in SPOTS.values():
        for weight in (entry["initial_weight_1e4"], entry["maintenance_weight_1e4"]):
            imf = entry["imf_1e6"]
            # The discount binds once 1.1e10 // (1e6 + x) < weight, so from x > 1.1e10 / weight - 1e6 on.
            bend = first_size(11 * 10**9 // weight - 10**6 + 1, 10**5, imf) if imf else BASE
            found += [(size, weight, imf) for size in (0, *around(bend), 10**4 * bend)]
    rng = random.Random(7)
    found += [
        (int(10 ** rng.uniform(0, 19)), rng.randrange(0, 10_001), rng.choice([0, 1, 3000, 105_000]))
        for _ in range(50)
    ]
    return found


MARGIN, WEIGHT = margin_vectors(), weight_vectors()
SCALED = [
    (weight, deposits, start)
    for weight in (0, 1, 8000, 9999, 10_000)
    for start in (0, 1, 10**13)
    for deposits in (0, *around(start), 3 * start, 10**13 * 7 + 1)
]
PROFIT = [
    (profit, weight, imf, net, cap)
    for profit in (-(10**6), -1, 0, 1, 10**8, 10**14)
    for weight, imf in ((0, 0), (9500, 0), (10_000, 2000))
    for net, cap in ((0, 0), (5, 0), (-(10**12), 10**12), *((n, 10**12) for n in around(10**12)), (10**15, 7))
]
PRICE = 150 * 10**6
ORACLE = [
    *((price, PRICE, 0, 0, 1) for price in (-PRICE, -1, 0, 1, *around(6 * PRICE), *around(5 * PRICE))),
    *(
        (PRICE, twap, 0, 0, 1)
        for twap in (0, 1, *around(PRICE // 5), *around(PRICE // 6), *around(6 * PRICE))
    ),
    *(
        (PRICE, PRICE, PRICE * m // 50 + d, 0, m)
        for m in (1, 2, 10, 50)
        for d in (-150, -1, 0, 1, 149, 150, 151)
    ),
    *((PRICE, PRICE, 0, delay, 1) for delay in (0, *around(120), 10**6)),
    (0, 0, 10**9, 500, 1),
    (PRICE, 7 * PRICE, 10**9, 500, 1),
    (PRICE, PRICE, 10**9, 500, 1),
]


@pytest.mark.parametrize(("size", "ratio", "imf"), MARGIN)
def test_the_margin_ratio_is_bit_equal_to_the_program(size: int, ratio: int, imf: int) -> None:
    found = margin_ratio_1e4(np.array([size], dtype=object), np.array([ratio]), np.array([imf]))
    assert found.tolist() == [slow_margin_ratio(size, ratio, imf)]


@pytest.mark.parametrize(("size", "weight", "imf"), WEIGHT)
def test_the_asset_weight_is_bit_equal_to_the_program(size: int, weight: int, imf: int) -> None:
    found = asset_weight_1e4(np.array([size], dtype=object), np.array([weight]), np.array([imf]))
    assert found.tolist() == [slow_asset_weight(size, weight, imf)]


@pytest.mark.parametrize(("weight", "deposits", "start"), SCALED)
def test_the_scaled_initial_weight_is_bit_equal_to_the_program(
    weight: int, deposits: int, start: int
) -> None:
    found = scaled_initial_weight_1e4(np.array([weight]), np.array([deposits]), np.array([start]))
    assert found.tolist() == [slow_scaled_weight(weight, deposits, start)]


@pytest.mark.parametrize(("profit", "weight", "imf", "net", "cap"), PROFIT)
def test_the_weight_of_profits_is_bit_equal_to_the_program(
    profit: int, weight: int, imf: int, net: int, cap: int
) -> None:
    found = profit_initial_weight_1e4(*(np.array([value]) for value in (profit, weight, imf, net, cap)))
    assert found.tolist() == [slow_profit_weight(profit, weight, imf, net, cap)]


@pytest.mark.parametrize(("price", "twap", "confidence", "delay", "multiple"), ORACLE)
def test_the_validity_of_an_oracle_is_that_of_the_program(
    price: int, twap: int, confidence: int, delay: int, multiple: int
) -> None:
    arrays = (np.array([value]) for value in (price, twap, confidence, delay))
    found = oracle_validity(*arrays, OracleRules.at(NOW), np.array([multiple]))
    assert OracleValidity(found[0]).name == slow_validity(price, twap, confidence, delay, multiple)


def test_many_rows_at_once_are_the_rows_one_by_one() -> None:
    assert margin_ratio_1e4(
        *(np.array(column, dtype=object) for column in zip(*MARGIN, strict=True))
    ).tolist() == [slow_margin_ratio(*vector) for vector in MARGIN]
    assert len(MARGIN) + len(WEIGHT) + len(SCALED) + len(PROFIT) + len(ORACLE) >= 400


@pytest.mark.parametrize(
    ("size", "ratio", "imf", "expected"),
    [
        (1.0, 1000, 8000, 1000),  # root 100000: 800 + 100000 x 8000 / 1e7 = 880, below 1000
        (6.25, 1000, 8000, 1000),  # root 250000: 800 + 200 = 1000, the bend
        (100.0, 1000, 8000, 1600),  # root 1e6: 800 + 800
        (100.0, 500, 8000, 1200),  # 400 + 800: the premium is the same for maintenance
        (10_000.0, 1000, 450, 1250),  # root 1e7: 800 + 450
        (1e6, 2500, 0, 2500),  # no factor, no premium
    ],
)
def test_the_margin_ratio_of_round_sizes(size: float, ratio: int, imf: int, expected: int) -> None:
    found = margin_ratio_1e4(to_units(np.array([size]), 1e9), np.array([ratio]), np.array([imf]))
    assert found.tolist() == [expected]


@pytest.mark.parametrize(
    ("size", "weight", "imf", "expected"),
    [
        (2000.0, 8000, 3000, 8000),  # the documentation's example: 1.1 / (1 + .003 x 44.72) = .96987 > .8
        (40_000.0, 8000, 3000, 6875),  # root 2e7 x 3000 / 1e5 = 6e5: 1.1e10 / 1.6e6 = 6875
        (1.0, 10_000, 0, 10_000),
        (1e4, 8000, 105_000, 956),  # root 1e7: 1.05e7 more: 1.1e10 / 1.15e7 = 956.5, down
    ],
)
def test_the_asset_weight_of_round_sizes(size: float, weight: int, imf: int, expected: int) -> None:
    found = asset_weight_1e4(to_units(np.array([size]), 1e9), np.array([weight]), np.array([imf]))
    assert found.tolist() == [expected]


def test_a_root_is_exact_beyond_the_precision_of_floats() -> None:
    size = np.array([(10**20 + 1) ** 2 // 10, (10**20 + 1) ** 2 // 10 - 1], dtype=object)
    assert size_root_1e5(size).tolist() == [10**20 + 1, 10**20]


def test_the_strict_price_is_the_worse_one_for_either_side() -> None:
    price, twap = np.array([10.0, 10.0, 10.0, 10.0, 10.0]), np.array([9.0, 11.0, 9.0, 11.0, np.nan])
    found = strict_price(price, twap, np.array([1, 1, -1, -1, 1]))
    assert found[:4].tolist() == [9.0, 10.0, 10.0, 11.0]
    assert np.isnan(found[4])


def test_a_larger_size_never_lowers_the_ratio_nor_raises_the_weight() -> None:
    sizes = np.array(sorted(int(10 ** (power / 10)) for power in range(200)), dtype=object)
    for entry in PERPS.values():
        ratio = margin_ratio_1e4(sizes, np.array(entry["initial_ratio_1e4"]), np.array(entry["imf_1e6"]))
        assert (np.diff(ratio) >= 0).all()
        assert (ratio >= entry["initial_ratio_1e4"]).all()
    for entry in SPOTS.values():
        weight = asset_weight_1e4(sizes, np.array(entry["initial_weight_1e4"]), np.array(entry["imf_1e6"]))
        assert (np.diff(weight) <= 0).all()


def book() -> AccountBook:
    return AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 10_000.0,
                "positions": [
                    {"venue": "drift", "symbol": "SOL", "size": 10_000.0, "mark_price": 150.0},
                    {
                        "venue": "drift",
                        "symbol": "BTC",
                        "size": -2.0,
                        "mark_price": 60_000.0,
                        "entry_price": 61_000.0,
                    },
                ],
                "collateral": [
                    {"chain": "solana", "asset": "SOL", "amount": 90_000.0, "price_usd": 150.0},
                    {"chain": "solana", "asset": "USDT", "amount": 1_000.0, "price_usd": 1.0},
                    {"chain": "solana", "asset": "JUNK", "amount": 1_000.0, "price_usd": 5.0},
                    {"chain": "solana", "asset": "USDC", "amount": 7.0, "price_usd": float("nan")},
                ],
            },
            {"account_id": "b", "cash_usd": -5.0},
            {
                "account_id": "c",
                "cash_usd": 0.0,
                "positions": [
                    {
                        "venue": "drift",
                        "symbol": "NEWCOIN",
                        "size": 3.0,
                        "mark_price": 7.0,
                        "entry_price": 6.0,
                    }
                ],
            },
        ]
    )


STATE = VenueState(
    twap_price={"SOL": 120.0, "USDT": 1.5, "JUNK": 5.0},
    deposits_usd={"SOL": 40_000_000.0, "USDT": 1e9},
    net_user_pnl_usd={"BTC": 4_000_000.0, "NEWCOIN": 0.0},
)


def test_the_engine_weighs_a_book_as_worked_out_by_hand() -> None:
    margins = DriftV2Engine().margins(book(), {"SOL": 160.0}, NOW, STATE)
    # SOL: root 1e7 -> initial 800 + 450 = 1250, maintenance 400 + 450 = 850; BTC: root 141421 -> premium 113,
    # so 1000 and 513; NEWCOIN: the default's 2500 and 1250.
    sol, btc, coin = 10_000 * 160.0, 2 * 60_000.0, 21.0
    assert margins.initial_usd.tolist() == pytest.approx([sol * 0.125 + btc * 0.1, 0.0, coin * 0.25])
    assert margins.position_maintenance_usd.tolist() == pytest.approx(
        [sol * 0.085, btc * 0.0513, coin * 0.125]
    )
    assert margins.maintenance_usd.tolist() == pytest.approx([sol * 0.085 + btc * 0.0513, 0.0, coin * 0.125])
    # Deposits: SOL root 3e7 x 1250 / 1e5 = 375000 -> 1.1e10 / 1.375e6 = 8000; USDT .95; junk and unpriced 0.
    # Profits: SOL 10_000 x 10 and BTC 2 x 1000 at full weight.
    held = 90_000 * 160.0 * 0.8 + 950.0
    assert margins.equity_usd is not None
    assert margins.equity_usd.tolist() == pytest.approx([10_000 + held + 100_000 + 2_000, -5.0, 3.0])


def test_the_initial_collateral_is_strict_scaled_and_capped() -> None:
    found = DriftV2Engine().collateral_usd(book(), {"SOL": 160.0}, NOW, STATE, initial=True)
    # SOL at the TWAP of 120, weight 8000 x 10M / 40M = 2000; USDT at 1, not 1.5, weight .9. Profits: SOL's
    # net is unknown, so 0; BTC 2000 x 1M / 4M = 500, of which 100 count; NEWCOIN weighs 0.
    expected = 10_000 + 90_000 * 120.0 * 0.2 + 900.0 + 0.0 + 100.0
    assert found.tolist() == pytest.approx([expected, -5.0, 0.0])


def test_what_the_state_lacks_never_counts_for_the_account() -> None:
    engine = DriftV2Engine()
    bare = engine.collateral_usd(book(), {"SOL": 160.0}, NOW, None, initial=True)
    assert bare.tolist() == [10_000.0, -5.0, 0.0]
    for known in ("twap_price", "deposits_usd", "net_user_pnl_usd"):
        part = VenueState(**{known: getattr(STATE, known)})
        found = engine.collateral_usd(book(), {"SOL": 160.0}, NOW, part, initial=True)
        assert (found <= engine.collateral_usd(book(), {"SOL": 160.0}, NOW, STATE, initial=True)).all()
    with_state = engine.margins(book(), None, NOW, STATE)
    without = engine.margins(book(), None, NOW)
    assert with_state.equity_usd is not None
    assert without.equity_usd is not None
    np.testing.assert_array_equal(with_state.equity_usd, without.equity_usd)


def test_a_loss_counts_in_full_under_either_margin() -> None:
    losing = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 50.0,
                "positions": [
                    {"venue": "drift", "symbol": "ETH", "size": 1.0, "mark_price": 900.0, "entry_price": 2e3}
                ],
            }
        ]
    )
    for initial in (False, True):
        assert DriftV2Engine().collateral_usd(losing, None, NOW, initial=initial).tolist() == [-1050.0]


def test_one_asset_on_two_chains_shares_the_size_discount() -> None:
    def value(parts: list[tuple[str, float]]) -> float:
        rows = [{"chain": chain, "asset": "SOL", "amount": n, "price_usd": 1.0} for chain, n in parts]
        one = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 0.0, "collateral": rows}])
        return float(DriftV2Engine().collateral_usd(one, None, NOW)[0])

    assert value([("solana", 4e5), ("base", 6e5)]) == pytest.approx(value([("solana", 1e6)]))
    assert value([("solana", 1e6)]) < 0.9e6


def test_isolated_margin_counts_where_it_is_published() -> None:
    position = {
        "venue": "drift",
        "symbol": "SOL",
        "size": 1.0,
        "mark_price": 100.0,
        "margin_mode": "isolated",
    }
    isolated = AccountBook.from_dicts(
        [
            {"account_id": "a", "cash_usd": 1.0, "positions": [{**position, "isolated_margin_usd": 20.0}]},
            {"account_id": "b", "cash_usd": 1.0, "positions": [position]},
        ]
    )
    assert DriftV2Engine().collateral_usd(isolated, None, NOW).tolist() == [21.0, 1.0]


def test_seeded_books_agree_with_exact_fractions() -> None:
    rng = random.Random(11)
    accounts, expected = [], []
    for number in range(40):
        positions, needed = [], [Fraction(0), Fraction(0)]
        for symbol in rng.sample(["BTC", "ETH", "SOL", "OTHER"], rng.randrange(0, 5)):
            entry = PERPS.get(symbol, PERPS["?"])
            size = rng.choice([-1, 1]) * rng.randrange(1, 10**13)
            price = rng.randrange(1, 10**11)
            positions.append(
                {"venue": "drift", "symbol": symbol, "size": size / BASE, "mark_price": price / 10**6}
            )
            notional = Fraction(abs(size), BASE) * Fraction(price, 10**6)
            for row, name in enumerate(("initial_ratio_1e4", "maintenance_ratio_1e4")):
                needed[row] += notional * slow_margin_ratio(abs(size), entry[name], entry["imf_1e6"]) / 10_000
        accounts.append({"account_id": str(number), "cash_usd": 0.0, "positions": positions})
        expected.append([float(value) for value in needed])
    margins = DriftV2Engine().margins(AccountBook.from_dicts(accounts), None, NOW)
    found = np.column_stack([margins.initial_usd, margins.maintenance_usd])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_validity_of_a_market_takes_what_is_missing_as_invalid() -> None:
    markets, price = [("drift", "SOL")], np.array([150.0])
    good = VenueState(twap_price={"SOL": 140.0}, confidence={"SOL": 3.0}, oracle_age_s={"SOL": 60.0})
    assert market_oracle_validity(markets, price, good, NOW).tolist() == [OracleValidity.VALID]
    cases = {
        "twap_price": OracleValidity.TOO_VOLATILE,
        "confidence": OracleValidity.TOO_UNCERTAIN,
        "oracle_age_s": OracleValidity.STALE,
    }
    for lacking, expected in cases.items():
        state = VenueState(**{name: getattr(good, name) for name in cases if name != lacking})
        assert market_oracle_validity(markets, price, state, NOW).tolist() == [expected]
    assert market_oracle_validity(markets, price, VenueState(), NOW).tolist() == [OracleValidity.TOO_VOLATILE]
    assert market_oracle_validity(markets, np.array([np.nan]), good, NOW).tolist() == [
        OracleValidity.NON_POSITIVE
    ]
    for change, expected in (
        ({"oracle_age_s": {"SOL": 60.4}}, OracleValidity.STALE),  # 120.8 slots: the 121st has begun
        ({"confidence": {"SOL": 3.0002}}, OracleValidity.TOO_UNCERTAIN),  # 20001 of 1e6
        ({"twap_price": {"SOL": 25.0}}, OracleValidity.TOO_VOLATILE),  # 150 // 25 = 6
        ({"twap_price": {"SOL": 25.1}}, OracleValidity.VALID),  # 5.98 rounds down to 5
    ):
        given = {name: getattr(good, name) for name in cases} | change
        assert market_oracle_validity(markets, price, VenueState(**given), NOW).tolist() == [expected]


@pytest.mark.parametrize("name", ["deposits_usd", "twap_price"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_state_that_is_not_usable_is_refused(name: str, value: float) -> None:
    state = VenueState(**{name: {"SOL": value}})
    with pytest.raises(DataError, match=f"{name} of 'SOL' is"):
        DriftV2Engine().collateral_usd(book(), None, NOW, state, initial=True)


def test_the_net_profit_may_be_negative_but_has_to_be_a_number() -> None:
    engine = DriftV2Engine()
    fine = VenueState(net_user_pnl_usd={"BTC": -1e9})
    # Scaled by nothing: the profit of 2000 counts up to 100.
    assert engine.collateral_usd(book(), None, NOW, fine, initial=True)[0] == pytest.approx(10_100.0)
    with pytest.raises(DataError, match="net_user_pnl_usd of 'BTC' is nan"):
        engine.collateral_usd(
            book(), None, NOW, VenueState(net_user_pnl_usd={"BTC": float("nan")}), initial=True
        )


def test_an_empty_book_and_a_time_before_the_first_facts() -> None:
    empty = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 3.0}])
    margins = DriftV2Engine().margins(empty, None, NOW)
    assert margins.equity_usd is not None
    assert [margins.equity_usd.tolist(), margins.maintenance_usd.tolist()] == [[3.0], [0.0]]
    assert margins.position_maintenance_usd.shape == (0,)
    for some in (empty, book()):
        with pytest.raises(ConfigError, match="no entry is in force at 2022-12-31"):
            DriftV2Engine().margins(some, None, BEFORE)


def test_a_name_without_an_entry_yet_takes_the_default() -> None:
    held = [{"chain": "solana", "asset": "PYUSD", "amount": 100.0, "price_usd": 1.0}]
    one = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 0.0, "collateral": held}])
    engine = DriftV2Engine()
    assert engine.collateral_usd(one, None, to_us("2024-07-31")).tolist() == [0.0]
    assert engine.collateral_usd(one, None, to_us("2024-08-01")).tolist() == [pytest.approx(95.0)]


def test_every_fact_is_dated_and_sourced_and_maintenance_is_below_initial() -> None:
    tables = [FACTS["rules"], FACTS["perp_default"], FACTS["spot_default"]]
    for entry in (e for t in [*tables, *FACTS["perp"].values(), *FACTS["spot"].values()] for e in t):
        assert {"valid_from", "source"} <= entry.keys()
        assert entry.get("maintenance_ratio_1e4", 0) <= entry.get("initial_ratio_1e4", 0)
        assert entry.get("initial_weight_1e4", 0) <= entry.get("maintenance_weight_1e4", 0) <= 10_000
