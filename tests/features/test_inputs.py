"""How inputs are looked up: exact bars, staleness, venues, chains, pegs."""

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.features.inputs import INPUTS, assemble_inputs, chain_weight, column, input_spec, max_staleness_us
from riskml.features.series import SeriesStore
from riskml.markets import Market
from riskml.units import DAY, HOUR

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


def _one(store, name, hours, markets=MARKETS[:1]):
    grid = np.array(hours, dtype=np.int64) * HOUR
    return assemble_inputs(store, grid, markets, interval="1h", names=[name])[name]


BARS = "ts known_at venue symbol interval open high low close volume"


def test_a_bar_counts_in_its_own_slot_only_and_as_it_stood_at_its_close():
    store = _store(
        "bars",
        BARS,
        (1, 1, "binance", "BTC", "1h", 1, 1, 1, 10, 1),
        (2, 2.5, "binance", "BTC", "1h", 1, 1, 1, 20, 1),
        (3, 3, "binance", "BTC", "1h", 1, 1, 1, 30, 1),
        (3, 9, "binance", "BTC", "1h", 1, 1, 1, 31, 1),
        (4, 4, "binance", "BTC", "4h", 1, 1, 1, 40, 1),
        (5, 5, "okx", "BTC", "1h", 1, 1, 1, 50, 1),
    )
    assert _one(store, "close", [1, 2, 3, 4, 5])[:, 0].tolist() == pytest.approx(
        [10, NAN, 30, NAN, NAN], nan_ok=True
    )


def test_spot_bars_come_from_the_venues_spot_market():
    store = _store("bars", BARS, (1, 1, "binance_spot", "BTC", "1h", 1, 1, 1, 10, 1))
    assert _one(store, "spot_close", [1])[0, 0] == 10
    assert np.isnan(_one(store, "close", [1])[0, 0])


FUNDING = "ts known_at venue symbol rate interval_h"


def test_funding_is_brought_to_eight_hours_and_goes_stale_after_a_day():
    store = _store("funding", FUNDING, (8, 8, "binance", "BTC", 0.001, 1.0))
    assert _one(store, "funding_8h", [7, 8, 32, 33])[:, 0].tolist() == pytest.approx(
        [NAN, 0.008, 0.008, NAN], nan_ok=True
    )


def test_another_venue_stands_in_only_while_the_own_one_is_silent():
    store = _store(
        "funding",
        FUNDING,
        (0, 0, "binance", "BTC", 0.001, 8.0),
        (30, 30, "bybit", "BTC", 0.002, 8.0),
        (40, 40, "binance", "BTC", 0.003, 8.0),
    )
    assert _one(store, "funding_8h", [24, 29, 31, 40])[:, 0].tolist() == pytest.approx(
        [0.001, NAN, 0.002, 0.003], nan_ok=True
    )


def test_the_spread_of_funding_needs_two_venues():
    store = _store("funding", FUNDING, (1, 1, "binance", "BTC", 0.001, 8.0), (2, 2, "okx", "BTC", 0.003, 8.0))
    assert _one(store, "funding_spread_8h", [1, 2])[:, 0].tolist() == pytest.approx([NAN, 0.001], nan_ok=True)


FLOWS = "ts known_at chain asset source inflow_usd outflow_usd supply_usd"


def test_bridge_flows_are_summed_over_the_chains_behind_a_market():
    store = _store(
        "flows",
        FLOWS,
        (24, 25, "solana", "ALL", "a", 5.0, 2.0, NAN),
        (24, 25, "solana", "ALL", "b", 1.0, 0.0, NAN),
        (24, 25, "ethereum", "ALL", "a", 10.0, 30.0, NAN),
    )
    found = _one(store, "bridge_net_flow", [24, 25, 24 + 72, 24 + 73], MARKETS)
    np.testing.assert_array_equal(found, [[NAN, NAN], [-16.0, 4.0], [-16.0, 4.0], [NAN, NAN]])


def test_supply_is_the_mean_over_sources_and_the_sum_over_assets_and_chains():
    store = _store(
        "flows",
        FLOWS,
        (1, 1, "solana", "USDC", "a", NAN, NAN, 10.0),
        (1, 1, "solana", "USDC", "b", NAN, NAN, 20.0),
        (1, 1, "solana", "USDT", "a", NAN, NAN, 1.0),
        (1, 1, "tron", "USDT", "a", NAN, NAN, 100.0),
    )
    np.testing.assert_allclose(_one(store, "stablecoin_supply", [1], MARKETS), [[116.0, 16.0]])


def test_the_peg_takes_the_best_venue_of_the_worst_asset():
    store = _store(
        "pegs",
        "ts known_at venue asset price_usd redemption_usd",
        (1, 1, "a", "USDC", 0.90, NAN),
        (1, 1, "b", "USDC", 0.99, NAN),
        (1, 1, "a", "USDT", 0.998, NAN),
        (1, 1, "a", "sUSDe", 1.15, 1.16),
        (1, 1, "a", "WETH", 2500.0, NAN),
    )
    np.testing.assert_allclose(_one(store, "peg_deviation", [1], MARKETS), [[0.01, 0.01]])


def test_rows_that_become_known_later_change_no_earlier_slot():
    rng = np.random.default_rng(1)
    early = [(t, t + 2, "binance", "BTC", float(rng.normal()), 8.0) for t in range(0, 40, 8)]
    late = [(t, 41 + t, "binance", "BTC", float(rng.normal()), 8.0) for t in range(0, 40, 4)]
    store = _store("funding", FUNDING, *early)
    before = _one(store, "funding_8h", list(range(41)))
    _add(store, "funding", FUNDING, *late)
    np.testing.assert_array_equal(_one(store, "funding_8h", list(range(41))), before)


def test_one_slot_alone_equals_that_slot_of_the_history():
    rng = np.random.default_rng(2)
    store = _store(
        "flows",
        FLOWS,
        *[
            (24 * day, 24 * day + 1, chain, "ALL", source, *rng.random(3).tolist())
            for day in range(12)
            for chain in ("solana", "ethereum", "base")
            for source in ("a", "b")
        ],
    )
    names = ["bridge_net_flow", "stablecoin_supply", "close"]
    grid = np.arange(300, dtype=np.int64) * HOUR
    whole = assemble_inputs(store, grid, MARKETS, interval="1h", names=names)
    for slot in (0, 25, 100, 299):
        one = assemble_inputs(store, grid[slot : slot + 1], MARKETS, interval="1h", names=names)
        for name in names:
            np.testing.assert_array_equal(one[name][0], whole[name][slot])


def test_an_empty_store_gives_nan_of_the_right_shape():
    found = assemble_inputs(SeriesStore(), np.array([HOUR, 2 * HOUR]), MARKETS, interval="1h")
    assert set(found) == set(INPUTS)
    assert all(values.shape == (2, 2) and np.isnan(values).all() for values in found.values())


def test_an_unknown_input_suggests_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'close'"):
        column("closed")


@pytest.mark.parametrize(
    ("symbol", "chain", "weight"),
    [("BTC", "ethereum", 1.0), ("BTC", "multi", 1.0), ("SOL", "solana", 1.0), ("SOL", "multi", 0.0)],
)
def test_chain_weights_are_those_of_the_facts(symbol, chain, weight):
    assert chain_weight(symbol, chain) == weight


def test_the_longest_staleness_is_that_of_the_inputs_asked_for():
    assert max_staleness_us(["close"]) == 0
    assert max_staleness_us(["close", "funding_8h"]) == DAY
    assert max_staleness_us() >= 3 * DAY
    assert all(input_spec(name).staleness or spec.kind.endswith("bar") for name, spec in INPUTS.items())
