"""Adapters of chain states and stablecoin supply: sources side by side, totals apart."""

from __future__ import annotations

from riskml.tables.ingest import ingest
from riskml.units import format_us, to_us


def iso(row, column="ts"):
    return format_us(to_us(row[column]))[:16]


def test_sources_of_one_chain_and_day_stand_side_by_side(make, vendor, read):
    make.put(vendor, "flows/tvl_daily_by_chain", date=make.stamps(0), chain=["Ethereum"], tvl_usd=[7.0])
    make.put(
        vendor, "stress/gas_price_daily", date=make.stamps(0), chain=["Ethereum"], avg_gas_price_gwei=[30.0]
    )
    make.put(
        vendor,
        "stress/chain_activity_daily",
        date=make.stamps(0, 0),
        chain=["Ethereum", "BNB Chain"],
        tx_count=[100.0, 300.0],
        active_addresses=[10.0, 20.0],
        blocks=[7200, 28800],
        avg_block_time_s=[12.0, 3.0],
    )
    rows = {(row["chain"], row["source"]): row for row in read("chains")}
    assert set(rows) == {
        ("ethereum", "chain-tvl"),
        ("ethereum", "gas-price"),
        ("ethereum", "chain-activity"),
        ("bsc", "chain-activity"),
    }
    gas, activity = rows["ethereum", "gas-price"], rows["ethereum", "chain-activity"]
    assert (gas["gas_gwei"], gas["gas_usd"], gas["tvl_usd"]) == (30.0, None, None)
    assert (activity["tx_count"], activity["active_addresses"], activity["block_time_s"]) == (
        100.0,
        10.0,
        12.0,
    )
    assert (iso(gas), iso(gas, "known_at")) == ("2024-01-02T00:00", "2024-01-02T06:00")


def test_an_hourly_gas_file_may_hold_a_daily_chain(make, vendor, read):
    make.put(
        vendor,
        "stress/gas_usd_per_tx_hourly_l2",
        time=make.stamps(0, 1, 0, 24),
        chain=["Base", "Base", "Ethereum", "Ethereum"],
        gas_usd_per_tx=[0.05, 0.06, 3.0, 4.0],
        median_gas_usd=[0.01, 0.01, 1.0, 1.0],
    )
    rows = read("chains")
    assert [(row["chain"], iso(row), row["gas_usd"]) for row in rows] == [
        ("base", "2024-01-01T01:00", 0.05),
        ("base", "2024-01-01T02:00", 0.06),
        ("ethereum", "2024-01-02T00:00", 3.0),
        ("ethereum", "2024-01-03T00:00", 4.0),
    ]
    assert iso(rows[0], "known_at") == "2024-01-01T02:00"


def test_a_capitalisation_below_zero_is_told_and_never_taken(make, vendor, tmp_path):
    make.put(
        vendor,
        "flows/stablecoin_mcap_daily_coinglass",
        ts=make.stamps(0, 24),
        usdc_mcap_usd=[-5.0, 30.0],
    )
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert [(problem.code, problem.row) for problem in report.problems] == [("wrong-sign", 0)]
    assert (report.counts["flows"], report.counts["rows_dropped"]) == (1, 1)


def test_supply_over_all_chains_stands_apart_from_that_of_single_chains(make, vendor, tmp_path, read):
    make.put(
        vendor,
        "flows/stablecoin_mcap_daily_coinglass",
        ts=make.stamps(0, 24),
        dai_mcap_usd=[0.0, 5.0],
        usdc_mcap_usd=[None, 30.0],
    )
    make.put(
        vendor,
        "flows/stablecoin_total_supply_daily",
        date=make.stamps(24),
        total_usd=[100.0],
        total_units=[99.0],
        usdc_usd=[31.0],
        usde_usd=[None],
        others_usd=[9.0],
        total_chg_30d_pct=[1.0],
    )
    make.put(
        vendor,
        "flows/stablecoin_supply_ethereum_daily",
        date=make.stamps(24),
        total_circulating_usd=[60.0],
        total_minted_usd=[70.0],
    )
    make.put(
        vendor,
        "flows/stablecoin_circulating_daily_by_chain",
        date=make.stamps(24),
        chain=["Ethereum"],
        symbol=["USDC"],
        circulating_usd=[20.0],
    )
    rows = {(row["chain"], row["asset"], row["source"]): row["supply_usd"] for row in read("flows")}
    assert rows == {
        ("all", "DAI", "stablecoin-caps"): 5.0,
        ("all", "USDC", "stablecoin-caps"): 30.0,
        ("all", "USDC", "stablecoin-totals"): 31.0,
        ("all_total", "ALL", "stablecoin-totals"): 100.0,
        ("ethereum_total", "ALL", "stablecoin-ethereum"): 60.0,
        ("ethereum", "USDC", "stablecoin-supply"): 20.0,
    }
    (skip,) = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert (skip.rows, skip.reason) == (1, "a capitalisation of zero: not counted yet")
