"""Adapters of stablecoin prices: which coins are pegged, and which prices are not what they seem."""

from __future__ import annotations

import numpy as np
import pytest

from riskml.facts import load_facts
from riskml.tables.ingest import ingest
from riskml.tables.ingest.stablecoins import is_pegged, pegged_name
from riskml.units import DAY, format_us, to_us


def iso(row, column="ts"):
    return format_us(to_us(row[column]))[:16]


def days(make, *names):
    return make.stamps(*((to_us(name) - make.T0) / DAY * 24 for name in names))


@pytest.mark.parametrize(
    ("vendor_name", "name"),
    [
        ("usd-coin", "USDC"),
        ("USDC.e", "USDC"),
        ("USD₮0", "USDT"),
        ("USDE", "USDe"),
        ("paxos-standard", "USDP"),
        ("usdp", "UnitUSDP"),
        ("nusd", "sUSD"),
        ("LUNC", None),
        ("EURC", None),
    ],
)
def test_a_stablecoin_has_one_name_whatever_its_source_calls_it(vendor_name, name):
    assert pegged_name(vendor_name) == name


def test_no_source_name_stands_for_two_stablecoins():
    names = [
        name for entry in load_facts("symbols")["pegged"] for name in {entry["name"], *entry.get("ids", ())}
    ]
    assert len(names) == len(set(names))


def test_names_of_stablecoins_are_those_of_the_collateral_facts():
    pegged = {entry["name"] for entry in load_facts("symbols")["pegged"]}
    collateral = {
        name
        for name, entry in load_facts("assets")["asset"].items()
        if entry.get("pegged_to") == "USD" and name != "USD"
    }
    assert collateral <= pegged


def test_a_peg_that_was_given_up_ends_on_its_day():
    ts = np.array([to_us("2022-05-27"), to_us("2022-05-28"), to_us("2022-05-28")])
    pegged, given_up = is_pegged(["UST", "UST", None], ts)
    assert (pegged.tolist(), given_up.tolist()) == ([True, False, False], [False, True, False])


def test_the_window_that_is_named_after_usdt_is_usdc_and_overlaps_are_one_row(make, vendor, read):
    make.put(
        vendor,
        "stress/stablecoin_intraday_windows",
        time=make.stamps(0, 0, 0.25),
        window=["data_usdc_no_depeg_1", "data_usdt_price_history", "data_usdt_price_history"],
        open=[1.0] * 3,
        high=[9.0] * 3,
        low=[0.1] * 3,
        close=[0.99, 0.99, 0.98],
        volume=[1.0] * 3,
    )
    rows = read("pegs")
    assert [(row["asset"], row["price_usd"], iso(row), iso(row, "known_at")) for row in rows] == [
        ("USDC", 0.99, "2024-01-01T00:15", "2024-01-01T00:20"),
        ("USDC", 0.98, "2024-01-01T00:30", "2024-01-01T00:35"),
    ]


def test_coins_that_are_not_pegged_are_left_out_of_daily_closes(make, vendor, tmp_path, read):
    make.put(
        vendor,
        "stress/stablecoin_ohlcv_daily_cmc",
        date=days(make, "2024-01-01", "2024-01-01", "2022-05-10", "2024-01-01"),
        symbol=["USDC", "LUNC", "UST", "UST"],
        close=[0.9999, 0.0001, 0.8, 0.02],
    )
    rows = read("pegs")
    assert [(row["asset"], row["price_usd"]) for row in rows] == [("UST", 0.8), ("USDC", 0.9999)]
    assert (iso(rows[1]), iso(rows[1], "known_at")) == ("2024-01-02T00:00", "2024-01-02T06:00")
    skips = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert [(skip.rows, skip.reason) for skip in skips] == [
        (1, "not a dollar stablecoin"),
        (1, "the peg was given up before"),
    ]


def test_a_day_that_was_filled_from_the_next_one_is_left_out_for_every_coin(make, vendor, tmp_path, read):
    make.put(
        vendor,
        "stress/stablecoin_price_daily_20coins",
        date=days(make, "2022-05-07", "2022-05-08", "2022-05-09", "2022-05-08"),
        coin=["terrausd", "terrausd", "terrausd", "usd-coin"],
        price_usd=[0.99, 0.754, 0.754, 1.0],
    )
    assert [(row["asset"], iso(row)[:10], row["price_usd"]) for row in read("pegs")] == [
        ("UST", "2022-05-08", 0.99),
        ("UST", "2022-05-10", 0.754),
    ]
    (skip,) = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert (skip.rows, skip.reason) == (2, "the day's prices are those of the next day, filled backwards")


def test_of_daily_pairs_the_close_counts_and_days_without_trades_do_not(make, vendor, read):
    make.put(
        vendor,
        "stress/stablecoin_spot_daily_exchange",
        date=days(make, "2019-09-20", "2023-03-10", "2023-03-10"),
        venue=["binance", "binance", "coinbase"],
        pair=["BUSDUSDT", "USDCUSDT", "USDT-USD"],
        high=[306.1, None, 1.01],
        low=[0.0005, None, 0.99],
        close=[1.0, 0.9999, 1.004],
        trades=[407, 0, 9],
    )
    rows = read("pegs")
    assert [(row["venue"], row["asset"], row["price_usd"]) for row in rows] == [
        ("binance_spot", "BUSD", 1.0),
        ("coinbase", "USDT", 1.004),
    ]


def test_spot_files_take_the_stablecoins_own_spelling(make, vendor, read):
    make.put_bars(vendor, "stress/spot_USDEUSDT_1h", n=1, close=[0.98], low=[0.97], turnover=[1.0])
    assert [row["asset"] for row in read("pegs")] == ["USDe"]
