"""Orderly against a slow reading of its published formula in decimals, and values worked out by hand."""

from __future__ import annotations

import random
from decimal import Decimal, localcontext

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.facts import load_facts
from riskml.risk import AccountBook
from riskml.risk.engines.interface import VenueState
from riskml.risk.engines.orderly import MarketRatios, OrderlyEngine, market_ratios
from riskml.units import to_us

EARLY, NOW = to_us("2024-06-01"), to_us("2025-09-01")

# base IMR, base MMR, factor: the table of the documentation
MARKETS = {
    "BTC": ("0.01", "0.006", "0.000000375"),
    "ETH": ("0.01", "0.006", "0.0000003846"),
    "SOL": ("0.01", "0.006", "0.0000010667"),
    "ARB": ("0.10", "0.05", "0.0000021481"),
    "NEVERLISTED": ("0.10", "0.05", "0.0000077523"),
}


def ratios(symbol: str) -> MarketRatios:
    base_imr, base_mmr, factor = (float(value) for value in MARKETS[symbol])
    return MarketRatios(base_imr, base_mmr, factor, 0.8)


# The slow reading: the fifth root of the fourth power, to fifty digits.


def slow_ratios(symbol: str, notional: float, leverage: float) -> tuple[Decimal, Decimal]:
    base_imr, base_mmr, factor = (Decimal(value) for value in MARKETS[symbol])
    with localcontext() as context:
        context.prec = 50
        size = abs(Decimal(notional))
        power = (size**4) ** (Decimal(1) / Decimal(5)) if size else Decimal(0)
        initial = max(Decimal(1) / Decimal(leverage), base_imr, factor * power)
        return initial, max(base_mmr, base_mmr / base_imr * factor * power)


def kink(symbol: str) -> float:
    """Notional at which the growing ratio meets the base ratio: (base / f)^(5 / 4)."""
    base_imr, _, factor = (Decimal(value) for value in MARKETS[symbol])
    return float((base_imr / factor) ** Decimal("1.25"))


def notionals(symbol: str) -> list[float]:
    draw, edge = random.Random(symbol), kink(symbol)
    hand = [0.0, 1e-6, 1.0, -1.0, 1e5, -1e5, 1e6, 1e9, edge * (1 - 1e-9), edge, edge * (1 + 1e-9)]
    return hand + [draw.choice((1, -1)) * 10 ** draw.uniform(0, 10) for _ in range(40)]


CASES = [
    (symbol, notional, leverage)
    for symbol in MARKETS
    for number, notional in enumerate(notionals(symbol))
    for leverage in ((100.0, 100.0, 10.0, 50.0, 1.0)[number % 5],)
]


def test_there_are_enough_golden_vectors() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("symbol", MARKETS)
def test_the_facts_hold_the_published_table(symbol: str) -> None:
    assert market_ratios(symbol, NOW) == ratios(symbol)


@pytest.mark.parametrize(
    ("symbol", "base_imr", "base_mmr", "factor"),
    [
        ("BTC", 0.02, 0.012, 4.35e-7),
        ("ETH", 0.02, 0.012, 4.836e-7),
        ("SOL", 0.10, 0.05, 7.7523e-6),
        ("ARB", 0.10, 0.05, 2.1481e-6),
        ("NEVERLISTED", 0.10, 0.05, 7.7523e-6),
    ],
)
def test_the_older_table_holds_before_the_newer_one(
    symbol: str, base_imr: float, base_mmr: float, factor: float
) -> None:
    assert market_ratios(symbol, EARLY) == MarketRatios(base_imr, base_mmr, factor, 0.8)


def test_an_unlisted_market_has_the_strictest_row_of_the_table() -> None:
    unlisted = market_ratios("NEVERLISTED", NOW)
    for symbol in load_facts("orderly_margins")["market"]:
        listed = market_ratios(symbol, NOW)
        assert unlisted.base_imr >= listed.base_imr
        assert unlisted.base_mmr >= listed.base_mmr
        assert unlisted.imr_factor >= listed.imr_factor
        slope = listed.imr_factor * listed.base_mmr / listed.base_imr
        assert unlisted.imr_factor * unlisted.base_mmr / unlisted.base_imr >= slope


def test_every_fact_is_dated_and_sourced() -> None:
    facts = load_facts("orderly_margins")
    for entries in [*facts["market"].values(), facts["default"], facts["rule"]]:
        assert all(entry["source"] and entry["valid_from"] for entry in entries)


@pytest.mark.parametrize(("symbol", "notional", "leverage"), CASES)
def test_ratios_equal_the_slow_ones(symbol: str, notional: float, leverage: float) -> None:
    initial, maintenance = slow_ratios(symbol, notional, leverage)
    market, size = ratios(symbol), np.array([notional])
    assert market.initial_ratio(size, np.array([leverage]))[0] == pytest.approx(float(initial), rel=1e-12)
    assert market.maintenance_ratio(size)[0] == pytest.approx(float(maintenance), rel=1e-12)


@pytest.mark.parametrize(
    ("symbol", "notional", "leverage", "initial", "maintenance"),
    [
        # 100 000^.8 = 10 000: BTC .00375 is below the base, SOL .010667 above it
        ("BTC", 100_000.0, 100.0, 1_000.0, 600.0),
        ("SOL", 100_000.0, 100.0, 1_066.7, 640.02),
        ("ARB", 100_000.0, 100.0, 10_000.0, 5_000.0),
        # .0000077523 x 10 000 = .077523, still below 10 %
        ("NEVERLISTED", -100_000.0, 100.0, 10_000.0, 5_000.0),
        # 3 200 000^.8 = 32^.8 x 10 000 = 160 000: .06, .0615360, .170672, .343696, 1.240368
        ("BTC", 3_200_000.0, 100.0, 192_000.0, 115_200.0),
        ("ETH", -3_200_000.0, 100.0, 196_915.2, 118_149.12),
        ("SOL", 3_200_000.0, 100.0, 546_150.4, 327_690.24),
        ("ARB", 3_200_000.0, 100.0, 1_099_827.2, 549_913.6),
        # a ratio above 1 stays
        ("NEVERLISTED", 3_200_000.0, 100.0, 3_969_177.6, 1_984_588.8),
        # the account's leverage of 10 asks for 10 % where the market asks for 6 %; maintenance stays
        ("BTC", 3_200_000.0, 10.0, 320_000.0, 115_200.0),
        ("BTC", 100_000.0, 50.0, 2_000.0, 600.0),
        ("ARB", 100_000.0, 1.0, 100_000.0, 5_000.0),
        ("BTC", 0.0, 1.0, 0.0, 0.0),
    ],
)
def test_the_published_formula_gives_the_values_worked_out_by_hand(
    symbol: str, notional: float, leverage: float, initial: float, maintenance: float
) -> None:
    market, size = ratios(symbol), np.array([notional])
    found = abs(notional) * market.initial_ratio(size, np.array([leverage]))[0]
    assert found == pytest.approx(initial, rel=1e-12)
    assert abs(notional) * market.maintenance_ratio(size)[0] == pytest.approx(maintenance, rel=1e-12)


@pytest.mark.parametrize("symbol", MARKETS)
def test_both_ratios_leave_their_base_at_the_same_notional(symbol: str) -> None:
    market, edge = ratios(symbol), kink(symbol)
    size, leverage = np.array([edge * 0.99, edge, edge * 1.01]), np.full(3, 1e9)
    initial, maintenance = market.initial_ratio(size, leverage), market.maintenance_ratio(size)
    assert initial[0] == market.base_imr
    assert maintenance[0] == market.base_mmr
    assert initial[1] == pytest.approx(market.base_imr, rel=1e-12)
    assert initial[2] > market.base_imr * 1.007
    assert maintenance[2] > market.base_mmr * 1.007


@pytest.mark.parametrize("leverage", [1.0, 5.0, 20.0])
def test_the_largest_notional_of_a_leverage_needs_exactly_that_leverage(leverage: float) -> None:
    # update-leverage-setting: max notional = (1 / (leverage f))^(1 / .8)
    largest = (1.0 / (leverage * 3.75e-7)) ** 1.25
    found = ratios("BTC").initial_ratio(np.array([largest]), np.array([100.0]))[0]
    assert found == pytest.approx(1.0 / leverage, rel=1e-12)


@pytest.mark.parametrize("symbol", MARKETS)
def test_more_size_or_less_leverage_never_needs_less(symbol: str) -> None:
    market, size = ratios(symbol), np.sort(np.abs(np.array(notionals(symbol))))
    for leverage in (1.0, 10.0, 100.0):
        initial = size * market.initial_ratio(size, np.full(len(size), leverage))
        assert (np.diff(initial) >= 0).all()
    assert (np.diff(size * market.maintenance_ratio(size)) >= 0).all()
    leverages = np.array([1.0, 2.0, 10.0, 50.0, 100.0])
    assert (np.diff(market.initial_ratio(np.full(5, 1e5), leverages)) <= 0).all()
    assert (market.maintenance_ratio(size) < market.initial_ratio(size, np.full(len(size), 100.0))).all()
    assert (market.maintenance_ratio(size) == market.maintenance_ratio(-size)).all()


# The engine over a book.

BOOK = AccountBook.from_dicts(
    [
        {
            "account_id": "a",
            "cash_usd": 1_000.0,
            "positions": [
                {"venue": "orderly", "symbol": "BTC", "size": 80.0, "mark_price": 50_000.0},
                {"venue": "orderly", "symbol": "SOL", "size": -1_000.0, "mark_price": 100.0},
                {"venue": "other", "symbol": "SOL", "size": 32_000.0, "mark_price": 100.0},
            ],
        },
        {"account_id": "idle", "cash_usd": 5.5},
        {
            "account_id": "c",
            "cash_usd": 0.0,
            "positions": [
                {"venue": "orderly", "symbol": "NEVERLISTED", "size": -1.0, "mark_price": 100_000.0}
            ],
        },
    ]
)


def test_the_engine_adds_up_positions_at_live_prices() -> None:
    margins = OrderlyEngine().margins(BOOK, {"BTC": 40_000.0}, NOW)
    # BTC 3.2 M, SOL 100 k and 3.2 M each on its own, the unlisted one 100 k: the table above
    assert margins.initial_usd == pytest.approx([192_000.0 + 1_066.7 + 546_150.4, 0.0, 10_000.0])
    assert margins.maintenance_usd == pytest.approx([115_200.0 + 640.02 + 327_690.24, 0.0, 5_000.0])
    assert margins.position_maintenance_usd == pytest.approx([115_200.0, 640.02, 327_690.24, 5_000.0])
    assert margins.equity_usd is None


def test_an_account_that_chose_less_leverage_needs_more_initial_margin() -> None:
    chosen = OrderlyEngine({"a": 10.0, "c": 1_000.0}).margins(BOOK, {"BTC": 40_000.0}, NOW)
    assert chosen.initial_usd == pytest.approx([320_000.0 + 10_000.0 + 546_150.4, 0.0, 10_000.0])
    assert chosen.maintenance_usd == pytest.approx([443_530.26, 0.0, 5_000.0])


def test_no_account_has_more_leverage_than_the_market_allows() -> None:
    tiny = AccountBook.from_dicts(
        [
            {
                "account_id": "a",
                "cash_usd": 0.0,
                "positions": [{"venue": "orderly", "symbol": "BTC", "size": 1.0, "mark_price": 100.0}],
            }
        ]
    )
    for engine in (OrderlyEngine(), OrderlyEngine({"a": 500.0})):
        assert engine.margins(tiny, None, NOW).initial_usd == pytest.approx([1.0])
        assert engine.margins(tiny, None, EARLY).initial_usd == pytest.approx([2.0])


@pytest.mark.parametrize("leverage", [0.0, 0.99, -5.0, float("nan"), float("inf")])
def test_a_leverage_that_no_account_can_have_is_refused(leverage: float) -> None:
    with pytest.raises(ConfigError, match="the maximum leverage of 'a' is"):
        OrderlyEngine({"a": leverage})


def test_a_time_before_the_facts_is_refused() -> None:
    for symbol in ("BTC", "NEVERLISTED"):
        with pytest.raises(ConfigError, match="no entry is in force at 2023-11-30"):
            market_ratios(symbol, to_us("2023-11-30"))
    with pytest.raises(ConfigError, match="no entry is in force at 2020-01-01"):
        OrderlyEngine().margins(BOOK, None, to_us("2020-01-01"))


def test_the_state_of_the_venue_is_not_read_but_a_bad_price_of_it_is_ignored() -> None:
    plain = OrderlyEngine().margins(BOOK, None, NOW)
    other = OrderlyEngine().margins(
        BOOK, {"BTC": float("nan"), "SOL": -1.0}, NOW, VenueState(open_interest_usd={"BTC": 1e12})
    )
    assert other.initial_usd.tolist() == plain.initial_usd.tolist()
    with pytest.raises(DataError, match="open_interest_usd of 'BTC' is nan"):
        VenueState(open_interest_usd={"BTC": float("nan")}).of("open_interest_usd", [("orderly", "BTC")])


def test_a_book_without_positions_needs_nothing() -> None:
    margins = OrderlyEngine().margins(
        AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1.0}]), None, NOW
    )
    assert margins.initial_usd.tolist() == margins.maintenance_usd.tolist() == [0.0]
    assert margins.position_maintenance_usd.shape == (0,)
