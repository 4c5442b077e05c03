"""Nothing that becomes known later changes what was computed before, from raw rows to features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskml.contracts import contract
from riskml.errors import DataError
from riskml.features.assemble import assemble_inputs
from riskml.features.blocks import BlockOps
from riskml.features.catalog import CATALOG, select
from riskml.features.engine import FeatureStream, input_axes
from riskml.features.evaluate import evaluate_features, lookback_bars
from riskml.markets import Market
from riskml.tables.compiled import CompiledOps
from riskml.units import DAY, to_us

INTERVAL = "12h"
MARKETS = (Market("BTC", "binance"), Market("SOL", "okx"), Market("ETH", "bybit"))
N_BARS = 200
EVERY_FEATURE = pytest.mark.parametrize("feature", CATALOG, ids=lambda feature: feature.name)


@dataclass(frozen=True, repr=False)
class World:
    """Raw rows and the features of every bar."""

    fill: object
    grid: np.ndarray
    tables: dict[str, dict[str, np.ndarray]]
    before: np.ndarray

    def features(self, tables: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
        return compute(self.fill(tables), self.grid)


def compute(store: object, grid: np.ndarray) -> np.ndarray:
    inputs = assemble_inputs(store, grid, MARKETS, interval=INTERVAL)
    return evaluate_features(CATALOG, inputs, grid, interval=INTERVAL, markets=MARKETS, ops=CompiledOps())


@pytest.fixture(scope="module")
def world(raw_tables):
    grid = raw_tables.columns_of_bar(INTERVAL, N_BARS, to_us("2024-01-01"))
    tables = raw_tables.random_tables(np.random.default_rng(21), grid, MARKETS, INTERVAL)
    return World(raw_tables.fill, grid, tables, compute(raw_tables.fill(tables), grid))


def known_from(columns):
    return np.maximum(columns["ts"], columns["known_at"])


def with_other_values(columns, chosen, rng):
    """The numbers of some rows drawn anew; times and keys stay."""
    changed = dict(columns)
    for name, values in columns.items():
        if values.dtype == np.float64 and name != "band_bps":
            changed[name] = values.copy()
            changed[name][chosen] = rng.choice(values, int(chosen.sum())) * np.exp(rng.normal(0.0, 0.3))
    return changed


def without(columns, chosen):
    return {name: values[~chosen] for name, values in columns.items()}


def with_more_rows(columns, table, known_after, rng):
    """Rows of the same and of new series that become known later, revisions of the past among them."""
    n_rows = len(columns["ts"])
    source = rng.integers(0, n_rows, max(1, n_rows // 2))
    more = {name: values[source].copy() for name, values in columns.items()}
    more["known_at"] = np.maximum(known_after, more["ts"]) + rng.integers(1, 10 * DAY, len(source))
    renamed = rng.random(len(source)) < 0.3
    first_key = contract(table).key[1]
    more[first_key][renamed] = "ethereum" if first_key == "chain" else "aaa_spot"
    every = {name: np.concatenate([columns[name], more[name]]) for name in columns}
    key = zip(*(every[name].tolist() for name in contract(table).full_key), strict=True)
    first = dict(zip(reversed(list(key)), range(len(every["ts"]) - 1, -1, -1), strict=True))
    keep = np.sort(np.fromiter(first.values(), np.int64))
    return {name: values[keep] for name, values in every.items()}


@settings(max_examples=24, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cut=st.integers(1, N_BARS - 1),
    change=st.sampled_from(["values", "remove", "append"]),
)
def test_no_later_row_changes_a_feature_of_the_past_by_a_single_bit(world, seed, cut, change):
    now, rng = int(world.grid[cut - 1]), np.random.default_rng(seed)
    changed = {}
    for table, columns in world.tables.items():
        later = known_from(columns) > now
        if change == "values":
            changed[table] = with_other_values(columns, later, rng)
        elif change == "remove":
            changed[table] = without(columns, later)
        else:
            changed[table] = with_more_rows(columns, table, now, rng)
    after = world.features(changed)
    assert_same_bits(after[:cut], world.before[:cut])


@pytest.fixture(scope="module")
def with_another_past(world):
    rng = np.random.default_rng(5)
    now = int(world.grid[N_BARS // 2])
    changed = {}
    for table, columns in world.tables.items():
        other = with_other_values(columns, known_from(columns) <= now, rng)
        changed[table] = without(other, (known_from(other) <= now) & (rng.random(len(other["ts"])) < 0.1))
    return world.features(changed)


@EVERY_FEATURE
def test_another_past_is_another_feature_so_that_the_rule_is_not_empty(feature, world, with_another_past):
    place = CATALOG.index(feature)
    if feature.inputs:
        assert (with_another_past[:, :, place] != world.before[:, :, place]).any()
    else:
        assert (with_another_past[:, :, place] == world.before[:, :, place]).all()


def assert_same_bits(found, expected):
    """Bit for bit; names the features that differ."""
    same = np.ascontiguousarray(found).view(np.int64) == np.ascontiguousarray(expected).view(np.int64)
    differ = [CATALOG[place].name for place in np.flatnonzero(~same.all(axis=(0, 1)))]
    assert differ == []


def push_in_pieces(ts, inputs, cuts, ops, *, reload=False):
    """Features of a stream that gets the rows in pieces, and is stored and restored between them."""
    stream = FeatureStream(CATALOG, MARKETS, interval=INTERVAL, ops=ops())
    found = []
    for begin, end in zip([0, *cuts], [*cuts, len(ts)], strict=True):
        if reload and begin:
            state = {name: array.copy() for name, array in stream.state().items()}
            stream = FeatureStream(CATALOG, MARKETS, interval=INTERVAL, ops=ops())
            stream.restore(state)
        part = {name: values[begin:end] for name, values in inputs.items()}
        found.append(stream.push(ts[begin:end], part))
    return np.concatenate(found)


@dataclass(frozen=True, repr=False)
class History:
    """Inputs, and what a stream makes of them in one piece."""

    ts: np.ndarray
    inputs: dict[str, np.ndarray]
    whole: dict[type, np.ndarray]


@pytest.fixture(scope="module")
def history(panels):
    n_bars = lookback_bars(CATALOG, INTERVAL) + 200
    ts, inputs = panels.random_panel(n_bars, interval=INTERVAL, seed=8, markets=MARKETS)
    whole = {ops: push_in_pieces(ts, inputs, [], ops) for ops in (BlockOps, CompiledOps)}
    return History(ts, inputs, whole)


@pytest.mark.parametrize("ops", [BlockOps, CompiledOps])
@settings(max_examples=5, deadline=None)
@given(cuts=st.sets(st.integers(1, 500), max_size=5), reload=st.booleans())
def test_a_history_pushed_in_any_pieces_gives_the_same_bits(history, ops, cuts, reload):
    assert len(history.ts) > 500
    found = push_in_pieces(history.ts, history.inputs, sorted(cuts), ops, reload=reload)
    assert_same_bits(found, history.whole[ops])


@pytest.mark.parametrize("ops", [BlockOps, CompiledOps])
def test_a_market_that_joins_with_its_history_goes_on_as_if_it_had_been_there_from_the_start(history, ops):
    """In a stream of all markets; what it takes over comes from one of the reference and itself."""
    settings_ = {"interval": INTERVAL, "reference": (0,), "ops": ops()}
    cut, last = len(history.ts) - 40, len(history.ts)

    def push(stream, columns, first, end):
        part = {
            name: values[first:end, columns] if axes[name] == "market" else values[first:end]
            for name, values in history.inputs.items()
        }
        return stream.push(history.ts[first:end], part)

    axes = input_axes(CATALOG)
    start = FeatureStream(CATALOG, MARKETS, **settings_)
    joins = FeatureStream(CATALOG, MARKETS[:2], **settings_)
    replay = FeatureStream(CATALOG, (MARKETS[0], MARKETS[2]), **settings_)
    push(start, [0, 1, 2], 0, cut)
    push(joins, [0, 1], 0, cut)
    push(replay, [0, 2], 0, cut)
    joins.add_markets(MARKETS[2:])
    joins.adopt(replay, 1)
    assert_same_bits(push(joins, [0, 1, 2], cut, last), push(start, [0, 1, 2], cut, last))


def test_a_market_is_not_taken_over_from_a_stream_of_something_else():
    ts, two = np.array([0]), select("volatility")
    empty = {name: np.full((1, 2), np.nan) for name in input_axes(two)}
    stream = FeatureStream(two, MARKETS[:2], interval=INTERVAL)
    stream.push(ts, empty)
    others = {
        "the last 1 markets differ: okx:SOL and binance:BTC": FeatureStream(
            two, MARKETS[1::-1], interval=INTERVAL
        ),
        "the same features at the same bar": FeatureStream(two, MARKETS[:2], interval=INTERVAL),
    }
    for message, other in others.items():
        with pytest.raises(DataError, match=message):
            stream.adopt(other, 1)
    fewer = FeatureStream(two[:-1], MARKETS[:2], interval=INTERVAL)
    fewer.push(ts, empty)
    with pytest.raises(DataError, match="the same features at the same bar"):
        stream.adopt(fewer, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"features": "volatility,calendar"},
        {"features": "funding"},
        {"markets": MARKETS[1::-1]},
        {"interval": "4h"},
        {"reference": (1, 0)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_state_of_something_else_is_refused_and_nothing_changes(other):
    usual = {"features": "volatility", "markets": MARKETS[:2], "interval": INTERVAL, "reference": (0, 1)}

    def make(features, markets, **options):
        return FeatureStream(select(features), markets, **options)

    one, another = make(**usual), make(**(usual | other))
    for stream in (one, another):
        width = {name: np.ones((1, 2)) for name in input_axes(stream.features)}
        stream.push(np.array([0]), width)
    before = {name: array.tobytes() for name, array in one.state().items()}
    with pytest.raises(DataError, match="belongs to other features or markets, or to another interval"):
        one.restore(another.state())
    assert {name: array.tobytes() for name, array in one.state().items()} == before


@pytest.mark.parametrize("ops", [BlockOps, CompiledOps])
@pytest.mark.parametrize("begin", [1, 77, 200])
def test_a_history_that_begins_a_lookback_earlier_gives_the_same_bits(history, ops, begin):
    part = {name: values[begin:] for name, values in history.inputs.items()}
    found = push_in_pieces(history.ts[begin:], part, [], ops)
    exact = lookback_bars(CATALOG, INTERVAL) - 1
    assert_same_bits(found[exact:], history.whole[ops][begin + exact :])
