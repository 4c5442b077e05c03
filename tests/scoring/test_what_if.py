"""What-if: without a change it is the score, and a change is what it says, pegs and modes included."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.risk.order_check import wanted_orders
from riskml.risk.order_fills import Fills
from riskml.risk.outcome import Contributions
from riskml.risk.reasons import reason_bit, reason_names
from riskml.scoring import AccountBook, Decisions, Scorer

from .conftest import N_HISTORY, PRICES, position, slot

NOW = slot(N_HISTORY - 1)
VENUES = ("sim", "hyperliquid", "binance")
ASSETS = {"USDC": 1.0, "DAI": 0.99, "ETH": PRICES["ETH"], "stETH": PRICES["ETH"], "FOO": 3.0}


def assert_same(found: Decisions, expected: Decisions, rows: Any = ()) -> None:
    """Bit for bit, of all accounts or of some; contributions of all."""
    for item in fields(Decisions):
        one, two = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(one, Contributions):
            if not len(rows):
                for part in fields(Contributions):
                    np.testing.assert_array_equal(getattr(one, part.name), getattr(two, part.name))
        elif isinstance(one, np.ndarray) and len(rows):
            np.testing.assert_array_equal(one[rows], two[rows], err_msg=item.name)
        else:
            np.testing.assert_array_equal(one, two, err_msg=item.name)


def show_peg(scorer: Scorer, price: float, redemption: float = np.nan, asset: str = "USDC") -> None:
    row = {"ts": NOW, "known_at": NOW, "venue": "pool", "asset": asset, "price_usd": price}
    row |= {"redemption_usd": redemption}
    scorer.observe("pegs", {name: np.array([value]) for name, value in row.items()})


def random_positions(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for venue in VENUES:
        for symbol in PRICES:
            if rng.random() > 0.3:
                continue
            mark = PRICES[symbol] * float(rng.uniform(0.7, 1.3))
            size = float(rng.normal() * 20_000.0 / mark)
            row: dict[str, Any] = {"venue": venue, "symbol": symbol, "size": size, "mark_price": mark}
            row["entry_price"] = mark * float(rng.uniform(0.8, 1.2))
            if rng.random() < 0.4:
                row["mark_price"] = None
            if rng.random() < 0.5:
                row["accrued_funding_usd"] = size * mark * float(rng.uniform(-0.1, 0.1))
            if rng.random() < 0.4:
                row["margin_mode"] = "isolated"
                row["isolated_margin_usd"] = float(rng.uniform(0.0, 3_000.0)) if rng.random() < 0.6 else None
            rows.append(row)
    return rows


def random_book(rng: np.random.Generator, n_accounts: int, ts: int | None) -> AccountBook:
    accounts = []
    for number in range(n_accounts):
        order = {"venue": "sim", "symbol": str(rng.choice(["BTC", "SOL", "NEW"])), "price": 90.0}
        accounts.append(
            {
                "account_id": f"a{number}",
                "ts": ts,
                "cash_usd": float(rng.normal() * 4_000.0),
                "margin_mode": str(rng.choice(["cross", "isolated", "portfolio"])),
                "maintenance_margin_usd": float(rng.uniform(0, 900.0)) if rng.random() < 0.4 else None,
                "positions": random_positions(rng),
                "collateral": [
                    {
                        "chain": str(rng.choice(["ethereum", "arbitrum", "hyperliquid"])),
                        "asset": asset,
                        "amount": float(rng.uniform(0.0, 3_000.0) / price),
                        "price_usd": price if rng.random() < 0.8 else None,
                    }
                    for asset, price in ASSETS.items()
                    if rng.random() < 0.4
                ],
                "orders": [order | {"size": float(rng.normal() * 50.0)}] if rng.random() < 0.4 else [],
            }
        )
    return AccountBook.from_dicts(accounts)


@pytest.mark.parametrize("ts", [None, NOW + 60_000_000], ids=["live", "own"])
@pytest.mark.parametrize("peg", [None, 0.93])
def test_without_a_change_it_is_the_score_bit_for_bit(
    warm: Scorer, ts: int | None, peg: float | None
) -> None:
    if peg is not None:
        show_peg(warm, peg)
    rng = np.random.default_rng(5)
    book = random_book(rng, 300, ts)
    found = warm.what_if(book)
    neutral = warm.what_if(book, trades=[], shock=0.0)
    one_of_none = warm.what_if(book, shock={"USDC": 0.0, "BTC": 0.0})
    scored = warm.score(book, NOW + 120_000_000)
    scored = replace(scored, ts=found.ts)
    for decided in (found, neutral, one_of_none):
        assert_same(decided, scored)
    seen = {name for bits in found.reasons.tolist() for name in reason_names(bits)}
    assert seen >= {"missing-price", "isolated-margin-unknown", "open-orders", "unpriced-collateral"}
    assert peg is None or "peg-deviation" in seen


def test_a_trade_changes_the_decisions_of_its_own_account_alone(warm: Scorer) -> None:
    book = random_book(np.random.default_rng(6), 80, None)
    before = warm.what_if(book)
    trade = {"account_id": "a3", "venue": "sim", "symbol": "BTC", "size": 0.3}
    after = warm.what_if(book, [trade])
    others = np.flatnonzero(book.account_id != "a3")
    assert_same(after, before, others)
    assert after.maintenance_margin_usd[3] != before.maintenance_margin_usd[3]


def unmarked(**more: Any) -> AccountBook:
    row = {"venue": "x", "symbol": "ZZZ", "size": 10.0, "entry_price": 100.0, "mark_price": None} | more
    return AccountBook.from_dicts([{"account_id": "a", "cash_usd": 6_000.0, "positions": [row]}])


@pytest.mark.parametrize("funding", [0.0, 150.0])
def test_a_mark_that_is_unknown_moves_with_a_shock_and_stays_named(warm: Scorer, funding: float) -> None:
    book = unmarked(accrued_funding_usd=funding)
    before, after = warm.what_if(book), warm.what_if(book, shock=-0.2)
    assert before.equity_usd[0] == pytest.approx(6_000.0 + funding)
    assert after.equity_usd[0] == pytest.approx(6_000.0 + funding - 0.2 * 1_000.0)
    bit = reason_bit("missing-price")
    assert before.reasons[0] & bit
    assert after.reasons[0] & bit
    dear = [{"account_id": "a", "venue": "x", "symbol": "ZZZ", "size": 10.0, "price": 200.0}]
    traded = warm.what_if(book, dear)
    assert traded.equity_usd[0] == pytest.approx(6_000.0 + funding - 1_000.0)
    assert traded.reasons[0] & bit


# Depegs ------------------------------------------------------------------------------------------


def backed(amount: float = 2_000.0, asset: str = "USDC", price: float | None = 1.0) -> AccountBook:
    row = {"chain": "hyperliquid", "asset": asset, "amount": amount, "price_usd": price}
    held = [position("BTC", 5_000.0, venue="hyperliquid")]
    return AccountBook.from_dicts(
        [
            {"account_id": "a", "cash_usd": 0.0, "positions": held, "collateral": [row]},
            {"account_id": "b", "cash_usd": 0.0, "positions": held, "collateral": [row | {"asset": "DAI"}]},
        ]
    )


@pytest.mark.parametrize(
    ("price", "redemption"),
    [(None, np.nan), (1.0, np.nan), (0.96, np.nan), (1.02, np.nan), (0.95, 1.0), (1.0, 0.98), (1.0, 1.01)],
)
def test_a_depeg_takes_its_part_of_the_collateral_with_and_without_a_known_peg(
    warm: Scorer, price: float | None, redemption: float
) -> None:
    if price is not None:
        show_peg(warm, price, redemption)
    book = backed()
    move, before = -0.1, warm.what_if(book)
    after = warm.what_if(book, shock={"USDC": move})
    assert after.collateral_usd[0] == pytest.approx((1.0 + move) * before.collateral_usd[0], rel=1e-9)
    assert after.equity_usd[0] < before.equity_usd[0] + 0.99 * move * before.collateral_usd[0]
    assert_same(after, before, [1])  # DAI is another asset
    assert after.reasons[0] & reason_bit("peg-deviation")
    assert_same(warm.what_if(book), before)  # nothing is remembered
    general = warm.what_if(book, shock=move)  # of all markets, which moves no stablecoin
    np.testing.assert_array_equal(general.collateral_usd, before.collateral_usd)


def test_a_depeg_prices_no_collateral_that_has_no_price(warm: Scorer) -> None:
    book = backed(price=None)
    assert warm.what_if(book).collateral_usd[0] == 0.0
    assert warm.what_if(book, shock={"USDC": -0.1}).collateral_usd[0] == 0.0


def two_venues(profit: float) -> AccountBook:
    entry = PRICES["BTC"] * (1.0 - profit / 10_000.0)
    rows = [position("BTC", 10_000.0, venue="hyperliquid", entry_price=entry)]
    rows += [position("ETH", 6_000.0, venue="binance")]
    return AccountBook.from_dicts([{"account_id": "a", "cash_usd": 1_000.0, "positions": rows}])


@pytest.mark.parametrize(("known", "worth"), [(None, 0.9), (1.0, 0.9), (0.9, 0.81)])
def test_a_depeg_cuts_profit_that_is_paid_in_the_asset_also_when_a_trade_takes_it(
    warm: Scorer, known: float | None, worth: float
) -> None:
    warm._prices._prices.clear()  # the marks of the book hold
    if known is not None:
        show_peg(warm, known)
    book = two_venues(4_000.0)
    for usd in (0.0, -4_000.0, -10_000.0):
        trade = {"account_id": "a", "venue": "hyperliquid", "symbol": "BTC", "size": usd / PRICES["BTC"]}
        found = warm.what_if(book, [trade] if usd else None, {"USDC": -0.1})
        assert found.equity_usd[0] == pytest.approx(1_000.0 + worth * 4_000.0, rel=1e-12)
        assert found.reasons[0] & reason_bit("peg-deviation")
    other = warm.what_if(book, shock={"USDT": -0.1})  # what the loss would be paid in: no profit there
    assert other.equity_usd[0] == warm.what_if(book).equity_usd[0]


def test_an_asset_moves_with_its_market_unless_it_is_named(warm: Scorer) -> None:
    rows = [
        {"chain": "arbitrum", "amount": 1.0, "price_usd": PRICES["ETH"], "asset": name} for name in ASSETS
    ]
    accounts = [
        {
            "account_id": row["asset"],
            "cash_usd": 0.0,
            "positions": [position("BTC", 100.0)],
            "collateral": [row],
        }
        for row in rows
    ]
    book = AccountBook.from_dicts(accounts)
    before = warm.what_if(book).collateral_usd

    def ratio(shock: Any) -> dict[str, float]:
        after = warm.what_if(book, shock=shock).collateral_usd
        known = before > 0.0
        part = np.round(after[known] / before[known], 9)
        return dict(zip(book.account_id[known].tolist(), part.tolist(), strict=True))

    still = {"USDC": 1.0, "DAI": 1.0, "ETH": 1.0, "stETH": 1.0}
    assert ratio({"ETH": -0.2}) == still | {"ETH": 0.8, "stETH": 0.8}
    assert ratio({"*": -0.2}) == still | {"ETH": 0.8, "stETH": 0.8}
    assert ratio({"ETH": -0.2, "stETH": -0.5}) == still | {"ETH": 0.8, "stETH": 0.5}
    assert ratio({"SOL": -0.2}) == still


def test_an_asset_with_the_live_price_of_its_market_is_not_moved_in_silence(warm: Scorer) -> None:
    with pytest.raises(DataError, match="'WETH', which has the live price of ETH Fix: name ETH"):
        warm.what_if(backed(1.0, "WETH", PRICES["ETH"]), shock={"WETH": -0.2})


# Modes -------------------------------------------------------------------------------------------


def account(mode: str, *rows: dict[str, Any], cash: float = 6_000.0) -> AccountBook:
    return AccountBook.from_dicts(
        [{"account_id": "a", "cash_usd": cash, "margin_mode": mode, "positions": list(rows)}]
    )


@pytest.mark.parametrize("mode", ["cross", "isolated", "portfolio"])
def test_a_trade_at_the_current_price_is_an_order_that_filled(warm: Scorer, mode: str) -> None:
    for own, margin, symbol in product((None, "cross", "isolated"), (None, 700.0), ("BTC", "SOL")):
        if margin is None or symbol == "SOL" or (own or mode) == "isolated":  # a cross one takes none
            assert_is_an_order(warm, mode, own, margin, symbol)


def assert_is_an_order(warm: Scorer, mode: str, own: str | None, margin: float | None, symbol: str) -> None:
    # SOL is open already, isolated without a margin of its own: an order may add to it.
    book = account(
        mode, position("ETH", 5_000.0, margin_mode="cross"), position("SOL", 2_000.0, margin_mode="isolated")
    )
    size = 3_000.0 / PRICES[symbol]
    columns = {"account_id": ["a"], "venue": ["sim"], "symbol": [symbol], "size": [size], "price": [1.0]}
    columns |= {"margin_mode": [own], "isolated_margin_usd": [margin]}
    engine = warm._engine(book, None)
    before = engine.decide(book)
    wanted = wanted_orders(book, columns)
    expected = engine.decide(Fills.of(book, *wanted, engine.prices, before.collateral_usd).book)
    trade = {"account_id": "a", "venue": "sim", "symbol": symbol, "size": size}
    found = warm.what_if(book, [trade | {"margin_mode": own, "isolated_margin_usd": margin}])
    for name in ("equity_usd", "initial_margin_usd", "maintenance_margin_usd", "liquidation_probability"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-9, atol=0.011, err_msg=name
        )
    for name in ("initial_shortfall_usd", "initial_spare_usd"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=0.03, err_msg=name)
    assert found.reasons[0] == expected.reasons[0]


def test_an_isolated_account_opens_an_isolated_position(warm: Scorer) -> None:
    hedge = [{"account_id": "a", "venue": "sim", "symbol": "ETH", "size": -2.0}]
    held = {"isolated_margin_usd": 900.0}
    alone = warm.what_if(account("isolated", position("BTC", 5_000.0, **held)), hedge)
    netted = warm.what_if(account("cross", position("BTC", 5_000.0)), hedge)
    assert alone.reasons[0] & reason_bit("isolated-pool")
    assert not netted.reasons[0] & reason_bit("isolated-pool")
    assert alone.initial_margin_usd[0] > 1.2 * netted.initial_margin_usd[0]  # nothing nets


TRADE = {"account_id": "a", "venue": "sim", "symbol": "BTC", "size": 0.1}


@pytest.mark.parametrize(
    ("trades", "row", "message"),
    [
        (TRADE, None, "trades have to be a list of dicts, found a dict.*Fix: pass a list"),
        ("BTC", None, "trades have to be a list of dicts, found a str"),
        (7, None, "trades have to be a list of dicts, found a int"),
        ([TRADE, "BTC"], 1, "a trade has to be a dict, found 'BTC'"),
        ([TRADE | {"Price": 1.0}], 0, "a trade has no 'Price'. Did you mean 'price'"),
        ([TRADE | {"marginMode": "isolated"}], 0, "Did you mean 'margin_mode'"),
        ([TRADE | {"side": "buy"}], 0, "a trade has no 'side'"),
        ([TRADE | {"account_id": ["a"]}], 0, r"account_id has to be a name, found \['a'\]"),
        ([TRADE | {"symbol": ["BTC"]}], 0, r"symbol has to be a name, found \['BTC'\]"),
        ([TRADE | {"venue": ""}], 0, "venue has to be a name, found ''"),
        ([TRADE | {"size": "1"}], 0, "size has to be a finite number"),
        ([TRADE | {"price": "1"}], 0, "no positive price, found '1'"),
        ([TRADE | {"price": -1.0}], 0, "no positive price"),
        ([TRADE | {"size": 1e15}], 0, "worth more than 1e.18 USD"),
        ([TRADE | {"margin_mode": "isolatd"}], 0, "margin_mode is 'isolatd'. Did you mean 'isolated'"),
        ([TRADE | {"margin_mode": ["isolated"]}], 0, r"margin_mode is \['isolated'\]"),
        ([TRADE | {"isolated_margin_usd": -1.0, "margin_mode": "isolated"}], 0, "has to be finite and >= 0"),
        ([TRADE | {"isolated_margin_usd": 9.0}], 0, "to a position that is not isolated"),
        ([TRADE | {"symbol": "SOL"}, TRADE | {"Price": 1.0}, TRADE | {"size": None}], 1, "2 problems"),
    ],
)
def test_trades_that_are_none_are_named(warm: Scorer, trades: Any, row: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        warm.what_if(account("cross", position("ETH", 900.0)), trades)
    assert (raised.value.table, raised.value.row) == ("trades", row)
    assert raised.value.fix


def test_a_row_of_the_trades_table_is_a_trade(warm: Scorer) -> None:
    book = account("cross", position("ETH", 900.0))
    row = TRADE | {"ts": NOW, "known_at": NOW, "sequence": 3, "is_taker": True, "price": 49_000.0}
    assert_same(warm.what_if(book, [row]), warm.what_if(book, [TRADE | {"price": 49_000.0}]))
    assert_same(warm.what_if(book, ()), warm.what_if(book))
