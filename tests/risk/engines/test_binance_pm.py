"""Binance Portfolio Margin against exact fractions of its published formulas and against published tables."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from riskml.errors import ConfigError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines.binance_pm import (
    Band,
    BandRules,
    BinancePMEngine,
    Brackets,
    adjusted_value_usd,
    bands,
    collateral_rate,
    uni_mmr,
)
from riskml.units import to_us

FACTS = load_facts("binance_pm_rules")
NOW, BEFORE = to_us("2025-11-01"), to_us("2022-04-17")
RULES = BandRules.at(NOW)
EDGES = ((105, "LIQUIDATE"), (120, "NO_NEW_ORDERS"), (150, "WARN"))


# The slow implementation: one value at a time, in exact fractions.


def slow_maintenance(rows: list[dict[str, float]], notional: float) -> Fraction:
    """Summed bracket by bracket: each slice of the notional at its own rate (no quick amount)."""
    total, exact = Fraction(0), Fraction(abs(notional))
    for number, row in enumerate(rows):
        floor = Fraction(row["floor_usd"])
        cap = Fraction(rows[number + 1]["floor_usd"]) if number + 1 < len(rows) else exact
        total += max(min(exact, cap) - floor, Fraction(0)) * Fraction(str(row["rate"]))
    return total


def slow_band(equity: float, maintenance: float) -> str:
    exact = Fraction(str(equity))  # the decimal that is written, 1.05 = 21 / 20
    if maintenance == 0.0:
        return "FREE" if exact >= 0 else "LIQUIDATE"
    ratio = exact / Fraction(str(maintenance))
    for percent, name in EDGES:
        if ratio <= Fraction(percent, 100):
            return name
    return "FREE"


def tables() -> list[tuple[str, str, list[dict[str, float]]]]:
    found = [("NEVERLISTED", str(e["valid_from"]), e["brackets"]) for e in FACTS["brackets_default"]]
    for symbol, entries in FACTS["brackets"].items():
        found += [(symbol, str(entry["valid_from"]), entry["brackets"]) for entry in entries]
    return found


def notional_vectors() -> list[tuple[str, str, float]]:
    rng, found = random.Random(3), []
    for symbol, day, rows in tables():
        for row in rows:
            floor = row["floor_usd"]
            found += [(symbol, day, max(floor + unit, 0.0)) for unit in (-0.01, 0.0, 0.01)]
        found += [(symbol, day, 10 ** rng.uniform(0, 9.5)) for _ in range(4)]
    return found


def band_vectors() -> list[tuple[float, float]]:
    found = [(0.0, 0.0), (1e-9, 0.0), (-1e-9, 0.0), (1e9, 0.0), (0.0, 1.0), (-5.0, 1.0), (1e12, 1e-3)]
    for maintenance in (100, 1, 20, 1_000_000, 0.01):
        for percent in (0, 100, 105, 120, 150):
            edge = percent * maintenance / 100
            found += [(edge, maintenance), (edge - 1e-6, maintenance), (edge + 1e-6, maintenance)]
    rng = random.Random(4)
    found += [(rng.uniform(-1, 3) * 10**6, rng.uniform(0.1, 2) * 10**6) for _ in range(40)]
    return found


NOTIONAL, BAND = notional_vectors(), band_vectors()
VALUE = [
    (value, rate)
    for value in (-1e9, -1.0, -0.01, 0.0, 0.01, 1.0, 12_345.678, 1e9)
    for rate in (0.0, 0.1, 0.7, 0.95, 0.9999, 1.0)
]


@pytest.mark.parametrize(("symbol", "day", "notional"), NOTIONAL)
def test_maintenance_is_that_of_the_slices_of_the_notional(symbol: str, day: str, notional: float) -> None:
    rows = next(rows for name, when, rows in tables() if (name, when) == (symbol, day))
    found = Brackets.at(symbol, to_us(day)).maintenance_usd(np.array([notional, -notional]))
    expected = pytest.approx(float(slow_maintenance(rows, notional)), rel=1e-9, abs=1e-9)
    assert found.tolist() == [expected, expected]


@pytest.mark.parametrize(("equity", "maintenance"), BAND)
def test_the_band_is_that_of_the_exact_ratio(equity: float, maintenance: float) -> None:
    found = bands(np.array([equity]), np.array([maintenance]), RULES)
    assert Band(found[0]).name == slow_band(equity, maintenance)


@pytest.mark.parametrize(("value", "rate"), VALUE)
def test_what_is_owned_is_discounted_and_what_is_owed_is_not(value: float, rate: float) -> None:
    expected = min(Fraction(value) * Fraction(rate), Fraction(value))
    found = adjusted_value_usd(np.array([value]), np.array([rate]))
    assert found[0] == pytest.approx(float(expected), rel=1e-12)


def test_there_are_enough_vectors_and_all_at_once_are_the_single_ones() -> None:
    assert len(NOTIONAL) + len(BAND) + len(VALUE) >= 300
    equity, maintenance = (np.array(column) for column in zip(*BAND, strict=True))
    assert [Band(b).name for b in bands(equity, maintenance, RULES)] == [slow_band(*pair) for pair in BAND]


@pytest.mark.parametrize(
    ("symbol", "day", "cums"),
    [
        # The venue's own quick amounts, as its API gives them.
        ("BTC", "2023-09-29", [0, 50, 1300, 46300, 546300, 2546300, 5046300, 8046300, 28046300, 103046300]),
        ("ETH", "2023-09-29", [0, 150, 1025, 21025, 471025, 1971025, 3471025, 5471025, 15471025, 52971025]),
        ("SOL", "2023-09-29", [0, 100, 900, 1900, 26900, 126900, 246900, 996900, 5496900]),
    ],
)
def test_the_quick_amounts_are_the_published_ones(symbol: str, day: str, cums: list[float]) -> None:
    assert Brackets.at(symbol, to_us(day)).cum_usd.tolist() == pytest.approx(cums)


@pytest.mark.parametrize(
    ("symbol", "notional", "expected"),
    [
        ("BTC", 50_000.0, 200.0),  # 50_000 x .4 %
        ("BTC", 100_000.0, 450.0),  # x .5 % - 50
        ("BTC", 10_000_000.0, 203_700.0),  # x 2.5 % - 46_300
        ("BTC", 600_000_000.0, 196_953_700.0),  # beyond the last bracket: x 50 % - 103_046_300
        ("ETH", 1_000_000.0, 8_975.0),  # x 1 % - 1_025
        ("NEVERLISTED", 100_000.0, 8_750.0),  # 25_000 x 5 % + 75_000 x 10 %
    ],
)
def test_maintenance_of_round_notionals(symbol: str, notional: float, expected: float) -> None:
    assert Brackets.at(symbol, NOW).maintenance_usd(np.array([notional]))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("asset", "day", "rate"),
    [
        ("BTC", "2022-04-18", 0.95),
        ("USDT", "2022-04-18", 1.0),
        ("NEVERLISTED", "2025-01-01", 0.1),
        ("TRX", "2025-08-25", 0.1),
        ("TRX", "2025-08-26", 0.85),
        ("PAXG", "2025-10-21", 0.6),
    ],
)
def test_the_collateral_rate_of_a_day(asset: str, day: str, rate: float) -> None:
    assert collateral_rate(asset, to_us(day)) == rate


def test_the_default_brackets_ask_at_least_what_the_small_coins_listed_ask() -> None:
    grid = np.concatenate([np.logspace(0, 9, 400), [row["floor_usd"] for _, _, t in tables() for row in t]])
    default = Brackets.at("NEVERLISTED", NOW)
    for symbol in FACTS["brackets"]:
        ask = Brackets.at(symbol, NOW).maintenance_usd(grid)
        assert (default.maintenance_usd(grid) >= ask).all()


def test_a_larger_position_never_lowers_the_maintenance_nor_its_share() -> None:
    grid = np.logspace(0, 9, 1000)
    for symbol in [*FACTS["brackets"], "NEVERLISTED"]:
        ask = Brackets.at(symbol, NOW).maintenance_usd(grid)
        assert (np.diff(ask) > 0).all()
        assert (np.diff(ask / grid) > -1e-12).all()
        assert Brackets.at(symbol, NOW).maintenance_usd(np.zeros(1)).tolist() == [0.0]


def test_a_falling_equity_never_leads_to_a_milder_band() -> None:
    equity = np.linspace(-10.0, 200.0, 2000)
    found = bands(equity, np.full(2000, 100.0), RULES)
    assert (np.diff(found) <= 0).all()
    assert set(found.tolist()) == {0, 1, 2, 3}


def test_an_unknown_equity_or_maintenance_is_in_the_worst_band() -> None:
    unknown = float("nan")
    found = bands(np.array([unknown, 1.0, unknown]), np.array([1.0, unknown, 0.0]), RULES)
    assert found.tolist() == [Band.LIQUIDATE] * 3
    assert np.isnan(uni_mmr(np.array([unknown, 1.0, unknown]), np.array([1.0, unknown, 0.0]))).all()


def test_the_ratio_without_maintenance_has_the_sign_of_the_equity() -> None:
    found = uni_mmr(np.array([3.0, 1.0, 0.0, -1.0]), np.array([2.0, 0.0, 0.0, 0.0]))
    assert found.tolist() == [1.5, np.inf, np.inf, -np.inf]


def book() -> AccountBook:
    return AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": -2_000.0,
                "positions": [
                    {
                        "venue": "binance",
                        "symbol": "BTC",
                        "size": -0.5,
                        "mark_price": 50_000.0,
                        "entry_price": 52_000.0,
                    },
                    {"venue": "binance", "symbol": "OTHER", "size": 100.0, "mark_price": 10.0},
                ],
                "collateral": [
                    {"chain": "binance", "asset": "BTC", "amount": 0.1, "price_usd": 50_000.0},
                    {"chain": "ethereum", "asset": "USDT", "amount": 500.0, "price_usd": 1.0},
                    {"chain": "binance", "asset": "ODD", "amount": 100.0, "price_usd": 3.0},
                    {"chain": "binance", "asset": "ETH", "amount": 9.0, "price_usd": float("nan")},
                ],
            },
            {"account_id": "b", "cash_usd": -3.0},
            {"account_id": "c", "cash_usd": 7.0},
        ]
    )


def test_the_engine_weighs_a_book_as_worked_out_by_hand() -> None:
    margins = BinancePMEngine().margins(book(), {"BTC": 40_000.0}, NOW)
    # BTC 20_000 x .4 % = 80, OTHER 1_000 x 5 % = 50. Equity: USDT -2000 + .5 x 12_000 + 500 = 4_500;
    # BTC .1 x 40_000 x .95 = 3_800; ODD 300 x .1 = 30; unpriced ETH 0.
    assert margins.position_maintenance_usd.tolist() == pytest.approx([80.0, 50.0])
    assert margins.maintenance_usd.tolist() == pytest.approx([130.0, 0.0, 0.0])
    assert margins.initial_usd.tolist() == pytest.approx([156.0, 0.0, 0.0])
    assert margins.equity_usd is not None
    assert margins.equity_usd.tolist() == pytest.approx([8_330.0, -3.0, 7.0])
    found = bands(margins.equity_usd, margins.maintenance_usd, RULES)
    assert found.tolist() == [Band.FREE, Band.LIQUIDATE, Band.FREE]


def test_an_asset_nets_over_chains_and_the_quote_asset_with_cash() -> None:
    rate = next(entry for entry in FACTS["collateral"]["BTC"])["rate"]
    rows = [{"chain": chain, "asset": "BTC", "amount": 1.0, "price_usd": 100.0} for chain in ("x", "y")]
    one = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 0.0, "collateral": rows}])
    margins = BinancePMEngine().margins(one, None, NOW)
    assert margins.equity_usd is not None
    assert margins.equity_usd.tolist() == pytest.approx([200.0 * rate])


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (None, 100.0),
        ({"PAXG": 50.0}, 50.0),
        ({"PAXG": 50.0, "x:PAXG": 70.0}, 70.0),
        ({"PAXG": 50.0, "y:PAXG": 70.0}, 50.0),
        ({"PAXG": float("nan"), "x:PAXG": -1.0}, 100.0),
    ],
)
def test_a_live_price_of_the_chain_goes_before_one_of_the_asset(
    prices: dict[str, float] | None, expected: float
) -> None:
    held = [{"chain": "x", "asset": "PAXG", "amount": 1.0, "price_usd": 100.0}]
    one = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 0.0, "collateral": held}])
    margins = BinancePMEngine().margins(one, prices, NOW)
    assert margins.equity_usd is not None
    assert margins.equity_usd.tolist() == pytest.approx([0.6 * expected])


def test_isolated_margin_counts_where_it_is_published() -> None:
    position = {"venue": "binance", "symbol": "SOL", "size": 1.0, "mark_price": 100.0}
    position["margin_mode"] = "isolated"
    isolated = AccountBook.from_dicts(
        [
            {"account_id": "a", "cash_usd": 1.0, "positions": [{**position, "isolated_margin_usd": 20.0}]},
            {"account_id": "b", "cash_usd": 1.0, "positions": [position]},
        ]
    )
    margins = BinancePMEngine().margins(isolated, None, NOW)
    assert margins.equity_usd is not None
    assert margins.equity_usd.tolist() == [21.0, 1.0]


def test_seeded_books_agree_with_exact_fractions() -> None:
    rng = random.Random(8)
    rates = {
        "BTC": Fraction("0.95"),
        "USDT": Fraction(1),
        "ODD": Fraction("0.1"),
        "PAXG": Fraction("0.6"),
    }
    current = {name: rows for name, _, rows in tables()}
    accounts, expected = [], []
    for number in range(60):
        held: dict[str, Fraction] = {name: Fraction(0) for name in rates}
        cash = float(rng.randrange(-(10**6), 10**6))
        held["USDT"] += Fraction(cash)
        positions, needed = [], Fraction(0)
        for symbol in rng.sample(["BTC", "ETH", "SOL", "NEVERLISTED"], rng.randrange(0, 5)):
            size, mark, entry = rng.choice([-1, 1]) * rng.randrange(1, 10**4), rng.randrange(1, 9999), 5000
            positions.append(
                {
                    "venue": "v",
                    "symbol": symbol,
                    "size": float(size),
                    "mark_price": float(mark),
                    "entry_price": float(entry),
                }
            )
            needed += slow_maintenance(current[symbol], float(size * mark))
            held["USDT"] += size * (mark - entry)
        collateral = []
        for asset in rng.sample(sorted(rates), rng.randrange(0, 5)):
            amount, price = rng.randrange(0, 10**6), rng.randrange(1, 100)
            collateral.append({"chain": "c", "asset": asset, "amount": amount, "price_usd": float(price)})
            held[asset] += amount * price
        accounts.append(
            {"account_id": str(number), "cash_usd": cash, "positions": positions, "collateral": collateral}
        )
        equity = sum(min(value * rates[name], value) for name, value in held.items())
        expected.append([float(needed), float(equity), float(needed * Fraction(6, 5))])
    margins = BinancePMEngine().margins(AccountBook.from_dicts(accounts), None, NOW)
    assert margins.equity_usd is not None
    found = np.column_stack([margins.maintenance_usd, margins.equity_usd, margins.initial_usd])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_an_empty_book_and_a_time_before_the_program() -> None:
    empty = AccountBook.from_dicts([{"account_id": "a", "cash_usd": 3.0}])
    margins = BinancePMEngine().margins(empty, None, NOW)
    assert margins.equity_usd is not None
    assert [margins.equity_usd.tolist(), margins.maintenance_usd.tolist()] == [[3.0], [0.0]]
    for some in (empty, book()):
        with pytest.raises(ConfigError, match="no entry is in force at 2022-04-17"):
            BinancePMEngine().margins(some, None, BEFORE)


def test_a_symbol_without_an_entry_yet_takes_the_default() -> None:
    early = Brackets.at("SOL", to_us("2023-09-28"))
    assert early.rate.tolist() == Brackets.at("NEVERLISTED", NOW).rate.tolist()
    assert Brackets.at("SOL", NOW).rate[0] == 0.01


def test_every_fact_is_dated_sourced_and_labelled() -> None:
    lists = [FACTS["bands"], FACTS["collateral_default"], FACTS["brackets_default"]]
    for entry in (e for t in [*lists, *FACTS["collateral"].values(), *FACTS["brackets"].values()] for e in t):
        assert "valid_from" in entry
        assert entry["source"].startswith(("documented", "riskml's own cautious choice"))
        rates = [row["rate"] for row in entry.get("brackets", [])]
        floors = [row["floor_usd"] for row in entry.get("brackets", [])]
        assert rates == sorted(set(rates))
        assert floors == sorted(set(floors))
        assert floors[:1] in ([], [0.0])
        assert 0.0 <= entry.get("rate", 0.0) <= 1.0
