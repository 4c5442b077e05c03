"""The account history of a venue: cash, collateral, signs, shares, and no outcomes."""

from __future__ import annotations

from riskml.tables.lake import Lake


def test_equity_less_open_profit_is_collateral_or_owed_cash(make, vendor, read):
    make.put_accounts(vendor)
    accounts, collateral = read("accounts"), read("collateral")
    assert [(row["account_id"], row["cash_usd"], row["maintenance_margin_usd"]) for row in accounts] == [
        ("a", 0.0, 3.0),
        ("b", -15.0, 4.0),
    ]
    assert [(row["chain"], row["asset"], row["amount"], row["price_usd"]) for row in collateral] == [
        ("hyperliquid", "USDC", 60.0, 1.0),
        ("hyperliquid", "USDC", 0.0, 1.0),
    ]


def test_positions_and_fills_are_signed_and_the_ledger_says_its_kind(make, vendor, read):
    make.put_accounts(vendor)
    assert [(row["symbol"], row["size"], row["mark_price"]) for row in read("positions")] == [
        ("ETH", -2.0, 12.0),
        ("SOL", 3.0, 13.0),
    ]
    assert [(row["size"], row["sequence"], row["is_taker"]) for row in read("trades")] == [(-2.0, 7, True)]
    assert [(row["delta_usd"], row["kind"]) for row in read("ledger")] == [
        (50.0, "deposit"),
        (-20.0, "withdrawal"),
    ]


def test_a_liquidation_of_several_coins_is_split_by_the_positions_before_it(make, vendor, read):
    make.put_accounts(vendor)
    assert [
        (row["account_id"], row["symbol"], row["side"], row["notional_usd"], row["size"])
        for row in read("liquidations")
    ] == [
        ("b", "ETH", "short", 60.0, None),
        ("b", "SOL", "long", 20.0, None),
        ("a", "BTC", "long", 50.0, 2.0),
    ]


def test_outcomes_never_enter_the_lake(make, vendor, read, tmp_path):
    make.put_accounts(vendor)
    read("accounts")
    lake = Lake(tmp_path / "lake")
    names = {name for table in lake.tables() for name in lake.read(table).column_names}
    assert not {name for name in names if name.startswith(("next_liq", "liq_", "minutes_", "life_end"))}
    assert "equity_below_mm_flag" not in names
