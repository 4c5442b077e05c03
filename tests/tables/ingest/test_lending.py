"""Adapters of on-chain lending: units of rates, and what a liquidated loan was."""

from __future__ import annotations

import pytest

from riskml.tables.ingest import ingest
from riskml.units import format_us, to_us


def put_loans(make, vendor, **columns):
    n = len(columns["collateral_usd"])
    defaults = {
        "time": make.stamps(*range(n)),
        "account": ["a"] * n,
        "collateral_symbol": ["WETH"] * n,
        "collateral_amount": [2.0] * n,
        "debt_symbol": ["USDC"] * n,
        "debt_amount": [100.0] * n,
        "debt_repaid_usd": [100.0] * n,
    }
    make.put(vendor, "liquidations/aave_v2_2020_2022", **(defaults | columns))


def test_a_loan_on_a_volatile_asset_closes_a_long_of_its_market(make, vendor, read):
    put_loans(make, vendor, collateral_usd=[105.0])
    (row,) = read("liquidations")
    assert (row["venue"], row["symbol"], row["side"], row["account_id"]) == ("aave_v2", "ETH", "long", "a")
    assert (row["size"], row["price"], row["notional_usd"]) == (2.0, 52.5, 105.0)


def test_a_debt_of_a_volatile_asset_against_a_stablecoin_closes_a_short(make, vendor, read):
    put_loans(
        make,
        vendor,
        collateral_symbol=["USDC"],
        collateral_amount=[105.0],
        collateral_usd=[105.0],
        debt_symbol=["AmmWBTC"],
        debt_amount=[0.5],
    )
    (row,) = read("liquidations")
    assert (row["symbol"], row["side"], row["size"], row["price"]) == ("BTC", "short", 0.5, 210.0)


def test_contradictory_values_are_left_out_and_a_missing_one_is_replaced(make, vendor, tmp_path, read):
    put_loans(
        make,
        vendor,
        collateral_usd=[110.0, 2317.0, 43.0, None, 107.0, None],
        debt_repaid_usd=[100.0, 100.0, 100.0, 99.0, None, None],
    )
    assert [row["notional_usd"] for row in read("liquidations")] == [110.0, 99.0, 107.0]
    skips = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert [(skip.rows, skip.reason) for skip in skips] == [
        (1, "neither side has a value in USD"),
        (2, "collateral sold is not 1 to 1.2 times the debt repaid"),
    ]


def test_calls_of_one_second_and_account_are_one_row(make, vendor, read):
    put_loans(make, vendor, time=make.stamps(0, 0), collateral_usd=[104.0, 106.0])
    (row,) = read("liquidations")
    assert (row["notional_usd"], row["size"], row["price"]) == (210.0, 4.0, 52.5)


def test_an_unknown_amount_is_an_unknown_size_and_never_zero(make, vendor, read):
    put_loans(
        make,
        vendor,
        time=make.stamps(0, 0, 1),
        collateral_usd=[104.0, 106.0, 105.0],
        collateral_amount=[2.0, None, None],
    )
    assert [(row["size"], row["price"], row["notional_usd"]) for row in read("liquidations")] == [
        (None, None, 210.0),
        (None, None, 105.0),
    ]


def test_collateral_events_are_longs_of_the_wrapped_asset(make, vendor, tmp_path, read):
    make.put(
        vendor,
        "liquidations/aave_ethereum/btc_collateral_events",
        ts=make.stamps(0, 1),
        protocol=["aave", "aave"],
        collateral=["wBTC", "cbBTC"],
        amount=[0.5, 0.0],
        amount_usd=[20_000.0, 0.0],
        account_id=[418, 7],
        liquidator_id=[29, 1],
    )
    (row,) = read("liquidations")
    assert (row["venue"], row["symbol"], row["side"], row["account_id"]) == ("aave", "BTC", "long", "418")
    assert (row["size"], row["price"], row["notional_usd"]) == (0.5, 40_000.0, 20_000.0)
    (skip,) = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert (skip.rows, skip.reason) == (1, "no value in USD")


def test_borrow_rates_are_fractions_of_open_stablecoin_reserves_only(make, vendor, tmp_path, read):
    columns = {
        "snapshot_time": make.stamps(*[21.65] * 6),
        "chain": ["bnb", "polygon", "polygon", "polygon", "polygon", "polygon"],
        "symbol": ["USDT", "USDC", "USDC.e", "WETH", "DAI", "GHO"],
        "variable_borrow_apr": [0.04, 0.06, 0.08, 0.02, 0.9, 0.0],
        "variable_borrow_index": [1.1, 1.1, 1.2, 1.1, 1.3, 1.0],
        "active": [True] * 6,
        "frozen": [False, False, False, False, True, False],
        "paused": [False] * 6,
    }
    make.put(vendor, "flows/aave_v3_reserves_daily_by_chain", **columns)
    rows = read("flows")
    assert [(row["chain"], row["asset"], row["lending_rate"]) for row in rows] == [
        ("bsc", "USDT", 0.04),
        ("polygon", "USDC", pytest.approx(0.07)),
    ]
    assert {row["source"] for row in rows} == {"aave-v3"}
    assert format_us(to_us(rows[0]["known_at"]) - to_us(rows[0]["ts"])) == "1970-01-01T00:10:00Z"
    skips = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert [(skip.rows, skip.reason) for skip in skips] == [
        (1, "not a dollar stablecoin"),
        (1, "the reserve is frozen, paused or inactive"),
        (1, "nobody ever borrowed from the reserve"),
    ]


def test_daily_rates_in_percent_become_fractions_of_a_year(make, vendor, read):
    make.put(
        vendor,
        "stress/stablecoin_lending_rate_daily_aave_dune",
        date=make.stamps(0),
        symbol=["USDT"],
        lending_rate_pct=[52.55],
    )
    (row,) = read("flows")
    assert (row["chain"], row["asset"], row["source"]) == ("ethereum", "USDT", "aave-dune")
    assert row["lending_rate"] == pytest.approx(0.5255)
    assert format_us(to_us(row["known_at"]))[:16] == "2024-01-02T06:00"
