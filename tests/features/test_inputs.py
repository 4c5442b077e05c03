"""How inputs are looked up: exact bars, staleness, venues, events, chains, stablecoins."""

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.features.assemble import InputReader, assemble_inputs
from riskml.features.inputs import EXACT_KINDS, INPUTS, column, input_spec, max_staleness_us
from riskml.features.series import SeriesStore
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.units import DAY, HOUR

from .random_rows import random_store

NAN = np.nan
MARKETS = (Market("BTC", "binance"), Market("SOL", "binance"))


def _store(table, names, *rows):
    """Rows as tuples in the order of ``names``; times in hours."""
    store = SeriesStore()
    _add(store, table, names, *rows)
    return store


def _add(store, table, names, *rows):
    columns = {}
    for place, name in enumerate(names.split()):
        values = np.array([row[place] for row in rows], dtype=object)
        if name in ("ts", "known_at"):
            values = (values.astype(float) * HOUR).astype(np.int64)
        elif isinstance(rows[0][place], (int, float)):
            values = values.astype(float)
        columns[name] = values
    store.append(table, columns)


def _one(store, name, hours, markets=MARKETS[:1], place=0):
    """One column of an input at slots, looked up as a history and slot by slot."""
    grid = np.array(hours, dtype=np.int64) * HOUR
    whole = assemble_inputs(store, grid, markets, interval="1h", names=[name])[name]
    reader = InputReader(store, markets, interval="1h", names=[name])
    slots = np.concatenate([reader.read(grid[row : row + 1])[name] for row in range(len(grid))])
    np.testing.assert_array_equal(slots, whole)
    return whole[:, place].tolist()


def _approx(*expected):
    return pytest.approx(list(expected), nan_ok=True)


BARS = "ts known_at venue symbol interval open high low close volume"


def _bar(ts, known_at, venue, close, interval="1h"):
    return (ts, known_at, venue, "BTC", interval, close, close, close, close, 1.0)


def test_a_bar_counts_in_its_own_slot_only_and_as_it_stood_at_its_close():
    store = _store(
        "bars",
        BARS,
        _bar(1, 1, "binance", 10.0),
        _bar(2, 2.5, "binance", 20.0),
        _bar(3, 3, "binance", 30.0),
        _bar(3, 9, "binance", 31.0),
        _bar(4, 4, "binance", 40.0, "4h"),
        _bar(5, 5, "okx", 50.0),
    )
    assert _one(store, "close", [1, 2, 3, 4, 5]) == _approx(10, NAN, 30, NAN, NAN)


def test_a_row_off_the_grid_is_in_no_slot():
    store = _store("bars", BARS, _bar(1, 1, "binance", 10.0), _bar(1.5, 1.5, "binance", 15.0))
    assert _one(store, "close", [1, 2, 3]) == _approx(10, NAN, NAN)


def test_spot_bars_come_from_the_venues_spot_market_else_from_another_one():
    store = _store(
        "bars",
        BARS,
        _bar(1, 1, "bybit_spot", 11.0),
        _bar(2, 2, "bybit_spot", 12.0),
        _bar(2, 2, "binance_spot", 20.0),
        _bar(3, 3, "okx", 30.0),
    )
    assert _one(store, "spot_close", [1, 2, 3]) == _approx(11, 20, NAN)
    assert _one(store, "close", [1, 2]) == _approx(NAN, NAN)


def test_the_venue_median_leaves_out_the_own_venue_spot_and_venues_that_are_no_perpetual():
    store = _store(
        "bars",
        BARS,
        *[_bar(1, 1, venue, close) for venue, close in (("okx", 1.0), ("bybit", 2.0), ("gate", 9.0))],
        *[_bar(1, 1, venue, 1000.0) for venue in ("binance", "binance_spot", "coinalyze")],
        *[_bar(2, 2, venue, close) for venue, close in (("okx", 1.0), ("bybit", 2.0), ("binance", 7.0))],
        _bar(3, 3, "okx", 3.0),
        _bar(4, 4, "binance", 4.0),
    )
    assert _one(store, "venue_close", [1, 2, 3, 4]) == _approx(2, 1.5, 3, NAN)
    assert _one(store, "venue_close", [4], [Market("BTC", "okx")]) == [4.0]


FUNDING = "ts known_at venue symbol rate interval_h"


def test_funding_is_brought_to_eight_hours_and_goes_stale_after_a_day():
    store = _store("funding", FUNDING, (8, 8, "binance", "BTC", 0.001, 1.0))
    assert _one(store, "funding_8h", [7, 8, 32, 33]) == _approx(NAN, 0.008, 0.008, NAN)


def test_another_venue_stands_in_only_while_the_own_one_is_silent():
    store = _store(
        "funding",
        FUNDING,
        (0, 0, "binance", "BTC", 0.001, 8.0),
        (30, 30, "bybit", "BTC", 0.002, 8.0),
        (40, 40, "binance", "BTC", 0.003, 8.0),
    )
    assert _one(store, "funding_8h", [24, 29, 31, 40]) == _approx(0.001, NAN, 0.002, 0.003)
    assert _one(store, "funding_age_h", [24, 29, 31, 40, 42]) == _approx(24, NAN, 1, 0, 2)


def test_only_the_band_that_an_input_names_is_looked_at():
    store = _store(
        "depth",
        "ts known_at venue symbol band_bps bid_usd ask_usd",
        (1, 1, "binance", "BTC", 50.0, 5.0, 6.0),
        (1, 1, "binance", "BTC", 100.0, 10.0, 11.0),
    )
    assert _one(store, "depth_bid_usd", [1]) == [10.0]
    assert _one(store, "depth_ask_usd", [1]) == [11.0]


def test_the_spread_of_funding_needs_two_venues():
    store = _store("funding", FUNDING, (1, 1, "binance", "BTC", 0.001, 8.0), (2, 2, "okx", "BTC", 0.003, 8.0))
    assert _one(store, "funding_spread_8h", [1, 2]) == _approx(NAN, 0.001)


LIQUIDATIONS = "ts known_at venue symbol account_id side notional_usd"


def _event(ts, known_at, usd, venue="binance", side="long", account=""):
    return (ts, known_at, venue, "BTC", account, side, usd)


def test_events_count_in_the_bar_in_which_they_became_known_and_once():
    store = _store(
        "liquidations",
        LIQUIDATIONS,
        _event(0.5, 0.5, 1.0),
        _event(0.7, 1.5, 2.0),
        _event(1.2, 1.2, 4.0, account="a"),
        _event(1.2, 3.5, 400.0, account="a"),  # a revision
        _event(1.2, 1.3, 8.0, side="short"),
    )
    assert _one(store, "liquidated_long_usd", [1, 2, 3, 4]) == _approx(1, 6, 0, 0)
    assert _one(store, "liquidated_short_usd", [0, 1, 2, 3, 4]) == _approx(NAN, 0, 8, 0, 0)


def test_a_bar_without_events_is_zero_only_while_the_source_is_alive():
    store = _store("liquidations", LIQUIDATIONS, _event(1, 1, 5.0), _event(200, 200, 7.0))
    hours = [0, 1, 2, 73, 74, 199, 200]
    assert _one(store, "liquidated_long_usd", hours) == _approx(NAN, 5, 0, 0, NAN, NAN, 7)


def test_events_of_another_venue_stand_in_as_a_whole():
    store = _store(
        "liquidations",
        LIQUIDATIONS,
        _event(1, 1, 5.0),
        _event(1, 1, 100.0, venue="okx"),
        _event(100, 100, 30.0, venue="okx"),
    )
    assert _one(store, "liquidated_long_usd", [1, 2, 100]) == _approx(5, 0, 30)


def test_an_event_that_becomes_known_too_late_is_no_event():
    store = _store("liquidations", LIQUIDATIONS, _event(1, 90, 5.0), _event(90, 90, 1.0))
    assert _one(store, "liquidated_long_usd", [90, 91]) == [1.0, 0.0]


FLOWS = "ts known_at chain asset source inflow_usd outflow_usd supply_usd"


def _chain(name):
    return axis_columns("chain").index(name)


def test_bridge_flows_are_summed_over_the_bridges_of_a_chain():
    store = _store(
        "flows",
        FLOWS,
        (24, 25, "solana", "ALL", "a", 5.0, 2.0, NAN),
        (24, 25, "solana", "ALL", "b", 1.0, 0.0, NAN),
        (24, 25, "ethereum", "ALL", "a", 10.0, 30.0, NAN),
    )
    hours = [24, 25, 24 + 72, 24 + 73]
    assert _one(store, "bridge_net_flow", hours, place=_chain("solana")) == _approx(NAN, 4, 4, NAN)
    assert _one(store, "bridge_net_flow", hours, place=_chain("ethereum")) == _approx(NAN, -20, -20, NAN)
    assert _one(store, "bridge_gross_flow", [25], place=_chain("solana")) == [8.0]


def test_supply_is_the_mean_over_sources_and_the_sum_over_assets():
    store = _store(
        "flows",
        FLOWS,
        (1, 1, "solana", "USDC", "a", NAN, NAN, 10.0),
        (1, 1, "solana", "USDC", "b", NAN, NAN, 20.0),
        (1, 1, "solana", "USDT", "a", NAN, NAN, 1.0),
        (2, 2, "solana", "USDC", "b", NAN, NAN, NAN),
        (1, 1, "tron", "USDT", "a", NAN, NAN, 100.0),
    )
    assert _one(store, "stablecoin_supply", [0, 1, 2], place=_chain("solana")) == _approx(NAN, 16, 11)
    assert _one(store, "stablecoin_supply", [1], place=_chain("tron")) == [100.0]


def test_a_lending_rate_is_the_mean_over_assets_and_sources():
    store = _store(
        "flows",
        "ts known_at chain asset source lending_rate",
        (1, 1, "ethereum", "USDC", "a", 0.02),
        (1, 1, "ethereum", "USDT", "a", 0.06),
    )
    assert _one(store, "lending_rate", [1], place=_chain("ethereum")) == _approx(0.04)


def test_a_chain_without_a_source_of_its_own_name_is_read_as_well():
    store = _store("chains", "ts known_at chain tvl_usd", (1, 1, "ethereum", 5.0), (1, 1, "nowhere", 9.0))
    assert _one(store, "tvl", [1], place=_chain("ethereum")) == [5.0]
    assert np.isfinite(assemble_inputs(store, np.array([HOUR]), MARKETS, interval="1h")["tvl"]).sum() == 1


def test_the_peg_is_that_of_the_venue_nearest_to_redemption():
    store = _store(
        "pegs",
        "ts known_at venue asset price_usd redemption_usd",
        (1, 1, "a", "USDC", 0.90, NAN),
        (1, 1, "b", "USDC", 0.99, NAN),
        (1, 1, "a", "DAI", 1.15, 1.16),
        (2, 2, "b", "USDC", 2500.0, NAN),
    )
    usdc, dai = (axis_columns("asset").index(name) for name in ("USDC", "DAI"))
    assert _one(store, "peg_deviation", [0, 1, 2], place=usdc) == _approx(NAN, -0.01, -0.1)
    assert _one(store, "peg_deviation", [1], place=dai) == _approx(1.15 / 1.16 - 1.0)


def test_a_daily_price_at_par_does_not_hide_the_prints_of_the_day_on_which_a_peg_breaks():
    store = _store(
        "pegs",
        "ts known_at venue asset price_usd redemption_usd",
        (1, 1, "daily", "USDC", 1.00, NAN),
        (2, 2, "prints", "USDC", 0.96, NAN),
        (4, 4, "prints", "USDC", 0.90, NAN),
    )
    usdc = axis_columns("asset").index("USDC")
    assert _one(store, "peg_deviation", [1, 2, 4], place=usdc) == _approx(0.0, 0.0, -0.1)


def test_a_peg_that_is_lost_altogether_is_no_missing_value():
    store = _store(
        "pegs",
        "ts known_at venue asset price_usd redemption_usd",
        (1, 1, "a", "UST", 0.80, NAN),
        (1, 1, "b", "UST", 0.75, NAN),
        (25, 25, "a", "UST", 0.41, NAN),
        (25, 25, "b", "UST", 0.37, NAN),
    )
    ust = axis_columns("asset").index("UST")
    assert _one(store, "peg_deviation", [1, 24, 25], place=ust) == _approx(-0.20, -0.20, -0.59)


def test_the_own_venues_totals_stand_in_before_another_venue():
    store = _store(
        "liquidations",
        LIQUIDATIONS,
        _event(1, 1, 5.0, venue="hyperliquid"),
        _event(1, 1, 70.0, venue="binance_daily"),
        _event(1, 1, 900.0, venue="coinalyze"),
        _event(80, 80, 5.0, venue="hyperliquid"),
        _event(80, 80, 900.0, venue="coinalyze"),
    )
    assert _one(store, "liquidated_long_usd", [1, 80]) == [70.0, 5.0]
    assert _one(store, "liquidated_long_usd", [1], [Market("BTC", "okx")]) == [5.0]


def test_neither_spot_nor_loans_stand_in_for_a_perpetual_and_aggregates_come_last():
    store = _store(
        "depth",
        "ts known_at venue symbol band_bps bid_usd ask_usd",
        (1, 1, "binance_spot", "BTC", 100.0, 1.0, 1.0),
        (1, 1, "aave", "BTC", 100.0, 2.0, 2.0),
    )
    assert _one(store, "depth_bid_usd", [1]) == _approx(NAN)
    for venue, usd in (("coinglass_binance", 3.0), ("okx", 4.0)):
        _add(
            store,
            "depth",
            "ts known_at venue symbol band_bps bid_usd ask_usd",
            (1, 1, venue, "BTC", 100.0, usd, usd),
        )
        assert _one(store, "depth_bid_usd", [1]) == _approx(usd)


def test_an_hourly_source_is_dead_sooner_than_a_daily_one():
    store = _store(
        "open_interest",
        "ts known_at venue symbol open_interest open_interest_usd",
        (1, 1, "bybit", "BTC", 1.0, NAN),
        (1, 1, "coinalyze", "BTC", 2.0, NAN),
    )
    assert _one(store, "open_interest", [5, 6, 37, 38]) == _approx(1.0, 2.0, 2.0, NAN)


def test_rows_that_become_known_later_change_no_earlier_slot():
    rng = np.random.default_rng(1)
    early = [(t, t + 2, "binance", "BTC", float(rng.normal()), 8.0) for t in range(0, 40, 8)]
    late = [(t, 41 + t, "binance", "BTC", float(rng.normal()), 8.0) for t in range(0, 40, 4)]
    store = _store("funding", FUNDING, *early)
    before = _one(store, "funding_8h", list(range(41)))
    _add(store, "funding", FUNDING, *late)
    assert _one(store, "funding_8h", list(range(41))) == _approx(*before)


@pytest.mark.parametrize("seed", range(3))
def test_every_input_is_the_same_in_a_history_and_in_one_slot(seed):
    store = random_store(seed)
    markets = [Market("BTC", "binance"), Market("ETH", "okx"), Market("BTC", "gate"), Market("NONE", "gate")]
    grid = np.arange(5, 120, dtype=np.int64) * HOUR
    whole = assemble_inputs(store, grid, markets, interval="1h")
    reader = InputReader(store, markets, interval="1h")
    for row, slot in enumerate(grid):
        one = reader.read(grid[row : row + 1])
        for name in INPUTS:
            np.testing.assert_array_equal(one[name][0], whole[name][row], err_msg=f"{name}, slot {slot}")
    assert all(np.isfinite(whole[name]).any() for name in INPUTS)


def test_slots_that_are_not_equally_far_apart_give_the_same_values():
    store = random_store(7)
    grid = np.arange(5, 120, dtype=np.int64) * HOUR
    some = np.array([0, 1, 4, 30, 31, 90])
    names = [name for name, spec in INPUTS.items() if spec.kind != "event_sum"]
    whole = assemble_inputs(store, grid, MARKETS, interval="1h", names=names)
    part = assemble_inputs(store, grid[some], MARKETS, interval="1h", names=names)
    for name in names:
        np.testing.assert_array_equal(part[name], whole[name][some])


def test_a_reader_finds_series_that_appear_after_it_was_made():
    store = SeriesStore()
    reader = InputReader(store, MARKETS, interval="1h", names=["funding_8h"])
    grid = np.array([10 * HOUR])
    assert np.isnan(reader.read(grid)["funding_8h"]).all()
    _add(store, "funding", FUNDING, (8, 8, "okx", "BTC", 0.001, 8.0))
    assert reader.read(grid)["funding_8h"][0, 0] == 0.001
    _add(store, "funding", FUNDING, (8, 8, "binance", "BTC", 0.002, 8.0))
    assert reader.read(grid)["funding_8h"][0, 0] == 0.002


def test_an_empty_store_gives_nan_of_the_right_shape():
    found = assemble_inputs(SeriesStore(), np.array([HOUR, 2 * HOUR]), MARKETS, interval="1h")
    assert set(found) == set(INPUTS)
    for name, values in found.items():
        axis = input_spec(name).axis
        assert values.shape == (2, len(MARKETS) if axis == "market" else len(axis_columns(axis)))
        assert np.isnan(values).all()


def test_an_unknown_input_suggests_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'close'"):
        column("closed")


def test_the_longest_staleness_is_that_of_the_inputs_asked_for():
    assert max_staleness_us(["close"]) == 0
    assert max_staleness_us(["close", "funding_8h"]) == DAY
    assert max_staleness_us() >= 3 * DAY
    assert all(bool(spec.staleness) == (spec.kind not in EXACT_KINDS) for spec in INPUTS.values())
