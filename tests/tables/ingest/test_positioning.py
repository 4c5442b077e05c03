"""Adapters of depth, taker flow, long/short shares and aggregates: units and stamps of each file."""

from __future__ import annotations

import pytest

from riskml.tables.ingest import ingest
from riskml.tables.ingest.vendor_file import match_source, refusals, refused
from riskml.units import format_us, to_us


def iso(row, column="ts"):
    return format_us(to_us(row[column]))[:16]


def put_depth(make, vendor, bid, ask, hours=(1,), symbol="SOLUSDT"):
    make.put(
        vendor,
        f"depth/binance/{symbol}_8h",
        ts=make.stamps(*hours),
        bid_depth_1pct=bid,
        ask_depth_1pct=ask,
        obi=[0.0] * len(bid),
        n_snapshots=[30] * len(bid),
    )


def test_depth_in_base_units_is_valued_at_the_close_that_was_known_at_its_stamp(make, vendor, read):
    make.put_bars(vendor, "bars/binance/SOLUSDT_1h", close=[10.0, 20.0, 40.0], high=[50.0] * 3)
    put_depth(make, vendor, [100.0, 100.0], [200.0, 200.0], hours=(1, 2.5))
    rows = read("depth")
    # The bar that opens at 00:00 closes at 01:00, when the first row happens: 10 and not 20.
    assert [(iso(row), row["bid_usd"], row["ask_usd"]) for row in rows] == [
        ("2024-01-01T01:00", 1000.0, 2000.0),
        ("2024-01-01T02:30", 2000.0, 4000.0),
    ]
    assert all(row["known_at"] == row["ts"] for row in rows)
    assert {(row["venue"], row["symbol"], row["band_bps"]) for row in rows} == {("binance", "SOL", 100.0)}


def test_depth_without_a_recent_price_is_left_out_and_counted(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/SOLUSDT_1h", n=1)
    put_depth(make, vendor, [100.0] * 3, [200.0] * 3, hours=(0.5, 1, 4.5))
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert report.counts["depth"] == 1
    (skip,) = report.skipped
    assert (skip.rows, skip.reason) == (2, "no bar of SOLUSDT tells the price: put bars/binance beside it")


def test_a_finer_bar_tells_the_price_where_the_hourly_one_has_a_hole(make, vendor, read):
    make.put_bars(vendor, "bars/binance/SOLUSDT_1h", n=1, close=[10.0])
    make.put(
        vendor,
        "bars/binance/SOLUSDT_5m",
        ts=make.stamps(8),
        open=[30.0],
        high=[30.0],
        low=[30.0],
        close=[30.0],
        volume=[1.0],
    )
    put_depth(make, vendor, [2.0, 2.0], [2.0, 2.0], hours=(2, 9))
    assert [row["bid_usd"] for row in read("depth")] == [20.0, 60.0]


def test_depth_takes_the_newest_bar_whatever_the_order_of_the_file(make, vendor, read):
    prices = {name: [40.0, 10.0, 20.0] for name in ("open", "high", "low", "close")}
    make.put(vendor, "bars/binance/SOLUSDT_1h", ts=make.stamps(2, 0, 1), volume=[1.0] * 3, **prices)
    put_depth(make, vendor, [1.0] * 3, [1.0] * 3, hours=(1, 2, 3))
    assert [row["bid_usd"] for row in read("depth")] == [10.0, 20.0, 40.0]


def test_a_book_that_lost_one_side_is_left_out(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/XRPUSDT_1h")
    put_depth(make, vendor, [31.7, 1000.0], [1.2e7, 6000.0], hours=(1, 2), symbol="XRPUSDT")
    report = ingest("vendor", vendor, tmp_path / "lake")
    assert report.counts["depth"] == 1
    assert [(skip.rows, skip.reason[:22]) for skip in report.skipped] == [(1, "one side of the book i")]


@pytest.mark.parametrize(
    ("name", "prefix", "venue"),
    [
        ("coinglass_binance/ETH_8h", "aggregated_", "coinglass_binance"),
        ("coinglass_binance_futures/ETHUSDT_4h", "", "coinglass_binance"),
        ("coinglass_binance_spot/ETH_4h", "", "binance_spot"),
    ],
)
def test_depth_in_usd_is_a_snapshot_at_its_stamp(make, vendor, read, name, prefix, venue):
    columns = {f"{prefix}bids_usd": [5.0], f"{prefix}asks_usd": [4.0], f"{prefix}bids_quantity": [1.0]}
    make.put(vendor, f"depth/{name}", ts=make.stamps(8), **columns)
    (row,) = read("depth")
    assert (row["venue"], row["symbol"], row["bid_usd"], row["ask_usd"]) == (venue, "ETH", 5.0, 4.0)
    assert (iso(row), iso(row, "known_at")) == ("2024-01-01T08:00", "2024-01-01T08:10")


def test_a_daily_depth_row_that_differs_from_the_intraday_one_is_a_later_revision(make, vendor, read):
    for interval, bids in (("4h", 5.0), ("1d", 6.0)):
        make.put(
            vendor,
            f"depth/coinglass_binance_spot/BTC_{interval}",
            ts=make.stamps(0),
            bids_usd=[bids],
            asks_usd=[4.0],
        )
    rows = read("depth")
    assert [(row["bid_usd"], iso(row, "known_at")) for row in rows] == [
        (5.0, "2024-01-01T00:10"),
        (6.0, "2024-01-01T06:00"),
    ]


def test_taker_flow_that_is_called_8h_covers_the_15_minutes_before_its_stamp(make, vendor, read):
    flow = {"tfi": [0.5], "buy_vol": [3.0], "sell_vol": [1.0], "total_vol": [4.0]}
    make.put(vendor, "flow/binance/BTCUSDT_8h", ts=make.stamps(8), **flow)
    (row,) = read("taker_flow")
    assert (iso(row), iso(row, "known_at"), row["interval"]) == (
        "2024-01-01T08:00",
        "2024-01-01T08:00",
        "15m",
    )
    assert (row["buy_volume"], row["sell_volume"], row["buy_usd"]) == (3.0, 1.0, None)


@pytest.mark.parametrize(
    ("name", "prefix", "venue", "unit"),
    [
        ("coinglass_binance/ETH_4h", "taker", "binance", "volume"),
        ("coinglass_binance/XRP_4h", "aggregated", "coinglass_binance", "usd"),
        ("coinglass_binance/BTC_all_pairs_4h", "aggregated", "coinglass_binance", "usd"),
        ("coinglass_binance_spot/BTC_4h", "taker", "binance_spot", "usd"),
    ],
)
def test_the_unit_of_taker_flow_is_what_the_file_holds_and_not_its_column_name(
    make, vendor, read, name, prefix, venue, unit
):
    names = [f"{prefix}_{side}_volume_usd" for side in ("buy", "sell")]
    make.put(vendor, f"flow/{name}", ts=make.stamps(0), **dict(zip(names, ([7.0], [8.0]), strict=True)))
    (row,) = read("taker_flow")
    other = {"usd": "volume", "volume": "usd"}[unit]
    assert (row["venue"], row["interval"], row[f"buy_{unit}"], row[f"sell_{unit}"]) == (venue, "4h", 7.0, 8.0)
    assert (row[f"buy_{other}"], row[f"sell_{other}"]) == (None, None)
    assert (iso(row), iso(row, "known_at")) == ("2024-01-01T04:00", "2024-01-01T04:10")


def test_daily_taker_flow_is_known_hours_after_the_day(make, vendor, read):
    sums = {"aggregated_buy_volume_usd": [1.0], "aggregated_sell_volume_usd": [2.0]}
    make.put(vendor, "flow/coinglass_binance/BTC_1d", ts=make.stamps(0), **sums)
    (row,) = read("taker_flow")
    assert (row["interval"], iso(row), iso(row, "known_at")) == ("1d", "2024-01-02T00:00", "2024-01-02T06:00")


def test_long_short_percent_becomes_a_fraction_of_its_population(make, vendor, read):
    for group in ("global_account", "top_position"):
        columns = {f"{group}_long_percent": [44.94], f"{group}_short_percent": [55.06]}
        make.put(vendor, f"long_short/binance/BTCUSDT_{group}_4h", ts=make.stamps(4), **columns)
    rows = read("long_short")
    assert [row["population"] for row in rows] == ["global_account", "top_position"]
    assert all(row["long_fraction"] == pytest.approx(0.4494) for row in rows)
    assert (rows[0]["symbol"], iso(rows[0])) == ("BTC", "2024-01-01T04:00")


def test_open_interest_of_all_exchanges_is_usd_and_of_stablecoin_pairs_is_base_units(make, vendor, read):
    for folder, value in (("all_exchanges", 6e10), ("binance_stablecoin_margined", 9e4)):
        make.put(vendor, f"open_interest/coinglass_{folder}/BTC_4h", ts=make.stamps(0), oi_close=[value])
    total, binance = read("open_interest")
    assert (total["venue"], total["open_interest"], total["open_interest_usd"]) == ("coinglass", None, 6e10)
    assert (binance["venue"], binance["open_interest"], binance["open_interest_usd"]) == (
        "coinglass_binance",
        9e4,
        None,
    )
    assert (iso(total), iso(total, "known_at")) == ("2024-01-01T04:00", "2024-01-01T04:10")


def test_weighted_funding_in_percent_becomes_a_fraction_and_days_stay_apart_from_hours(make, vendor, read):
    for interval in ("1d", "4h"):
        columns = {"open": [0.02], "high": [0.02], "low": [0.0], "close": [0.01]}
        make.put(vendor, f"funding/coinglass_oi_weighted/BTC_{interval}", ts=make.stamps(0), **columns)
    hours, days = read("funding")
    assert (hours["venue"], hours["rate"], hours["interval_h"]) == ("coinglass", pytest.approx(1e-4), 8.0)
    assert (days["venue"], iso(days), iso(days, "known_at")) == (
        "coinglass_daily",
        "2024-01-02T00:00",
        "2024-01-02T06:00",
    )
    assert iso(hours, "known_at") == "2024-01-01T04:10"


def test_hourly_copies_of_settled_funding_are_dropped_and_an_hourly_settlement_pays_an_eighth(
    make, vendor, tmp_path, read
):
    rates = [1e-3] * 8 + [2e-3, 2e-3, 8e-3] + [8e-3] * 6
    make.put(
        vendor,
        "stress/stablecoin_perp_funding_hourly",
        time=make.stamps(*range(17)),
        venue=["bybit"] * 17,
        pair=["USDCUSDT"] * 17,
        funding_rate_8h=rates,
    )
    rows = read("funding")
    assert [(iso(row)[11:13], row["interval_h"], row["rate"]) for row in rows] == [
        ("00", 8.0, 1e-3),
        ("08", 8.0, 2e-3),
        ("10", 2.0, pytest.approx(2e-3)),
        ("16", 6.0, pytest.approx(6e-3)),
    ]
    assert {row["symbol"] for row in rows} == {"USDC"}
    (skip,) = ingest("vendor", vendor, tmp_path / "lake").skipped
    assert (skip.rows, skip.reason) == (13, "copies of the last settled rate")


def test_refused_files_are_listed_with_their_reason_and_never_read(make, vendor, tmp_path):
    make.put_bars(vendor, "bars/binance/BTCUSDT_1h")
    make.put(vendor, "open_interest/coinglass_binance_coin_margined/BTC_4h", nonsense=[1])
    report = ingest("vendor", vendor, tmp_path / "lake")
    (skip,) = report.skipped
    assert skip.path == "open_interest/coinglass_binance_coin_margined/BTC_4h.parquet"
    assert "restates their open interest" in skip.reason
    assert (report.counts["files_refused"], report.counts["files_skipped"], report.ok) == (1, 1, True)


def test_every_refusal_says_why_in_one_line():
    assert refusals()
    for entry in refusals():
        assert "\n" not in entry.reason
        assert len(entry.reason) > 40


def test_a_refusal_comes_before_the_source_that_would_take_the_file(tmp_path):
    name = "depth/coinglass_binance/BTC_8h.parquet"
    assert match_source(tmp_path / name, name) is not None
    assert "same snapshots" in (refused(name) or "")
    assert refused("depth/coinglass_binance/ETH_8h.parquet") is None


def test_a_flow_file_without_its_columns_is_reported(make, vendor, tmp_path):
    make.put(vendor, "flow/coinglass_binance/BTC_4h", ts=make.stamps(0), volume=[1.0])
    (problem,) = ingest("vendor", vendor, tmp_path / "lake").problems
    assert problem.code == "missing-column"
    assert "lacks column 'buy_vol'" in problem.message


def test_a_coin_margined_pair_is_refused_by_name(make, vendor, tmp_path):
    make.put(
        vendor, "depth/binance/BTCUSD_PERP_8h", ts=make.stamps(0), bid_depth_1pct=[1.0], ask_depth_1pct=[1.0]
    )
    (problem,) = ingest("vendor", vendor, tmp_path / "lake").problems
    assert problem.code == "inverse-contract"
