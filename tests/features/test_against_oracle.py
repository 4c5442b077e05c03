"""Features and look-ups against plain loops, cell by cell, on tables full of holes."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from riskml.features.assemble import assemble_inputs
from riskml.features.blocks import BlockOps
from riskml.features.catalog import CATALOG
from riskml.features.evaluate import evaluate_features, lookback_bars
from riskml.features.inputs import INPUTS
from riskml.features.rolling import NumpyOps
from riskml.markets import Market
from riskml.tables.compiled import CompiledOps
from riskml.units import to_us

EVERY_FEATURE = pytest.mark.parametrize("feature", CATALOG, ids=lambda feature: feature.name)
EVERY_INPUT = pytest.mark.parametrize("name", INPUTS)
REFERENCE = (2, 0, 1)
"""Not all markets and not in order, so that the cross-section and its leader are told apart."""


@dataclass(frozen=True)
class World:
    """One random table, what each form makes of it, and the oracle that looks at the same cells."""

    forms: dict[str, np.ndarray]
    oracle: Any
    rows: np.ndarray
    """Rows that are compared: the oracle is slow."""


def make_world(
    oracle: ModuleType, panels: ModuleType, *, interval: str, n_bars: int, n_rows: int, tail: int, seed: int
) -> World:
    ts, inputs = panels.random_panel(n_bars, interval=interval, seed=seed)
    settings = {"interval": interval, "reference": REFERENCE, "markets": panels.MARKETS}
    gone = ~np.isfinite(inputs["close"])
    edges = np.flatnonzero((gone[1:] != gone[:-1]).any(axis=1)) + 1
    edges = edges[edges >= n_bars - tail]
    rng = np.random.default_rng(seed)
    rows = np.union1d(
        rng.choice(edges, min(len(edges), n_rows // 2), replace=False),
        rng.choice(np.arange(n_bars - tail, n_bars), n_rows // 2, replace=False),
    )
    forms = {"plain": NumpyOps(), "carried": BlockOps(), "compiled": CompiledOps()}
    found = {
        name: evaluate_features(CATALOG, inputs, ts, ops=ops, **settings)[rows] for name, ops in forms.items()
    }
    return World(found, oracle.Oracle(inputs, ts, **settings), rows)


def check(world: World, feature: Any) -> None:
    place = CATALOG.index(feature)
    n_markets = len(world.oracle.markets)
    expected = np.array(
        [
            [world.oracle.feature(feature.expr, int(row), market) for market in range(n_markets)]
            for row in world.rows
        ]
    )
    for name, found in world.forms.items():
        np.testing.assert_allclose(found[:, :, place], expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert np.isfinite(expected).mean() > 0.2, "a comparison of nothing"


@pytest.fixture(scope="module", params=[("12h", 420, 60), ("4h", 1200, 24)], ids=lambda param: param[0])
def world(request, oracle, panels):
    interval, n_bars, n_rows = request.param
    return make_world(oracle, panels, interval=interval, n_bars=n_bars, n_rows=n_rows, tail=n_bars, seed=4)


@EVERY_FEATURE
def test_every_form_of_a_feature_equals_a_plain_loop(feature, world):
    check(world, feature)


@pytest.fixture(scope="module")
def hourly_world(oracle, panels):
    n_bars = lookback_bars(CATALOG, "1h") + 60
    return make_world(oracle, panels, interval="1h", n_bars=n_bars, n_rows=4, tail=60, seed=6)


@pytest.mark.slow
@EVERY_FEATURE
def test_every_form_of_an_hourly_feature_equals_a_plain_loop(feature, hourly_world):
    check(hourly_world, feature)


MARKETS = (Market("BTC", "binance"), Market("SOL", "okx"), Market("NEW", "hyperliquid"))
"""The last has no row of its own venue."""


@dataclass(frozen=True)
class Books:
    """Raw rows, what the pipeline looks up in them, and the oracle over the same rows."""

    grid: np.ndarray
    found: dict[str, np.ndarray]
    oracle: Any


@pytest.fixture(scope="module")
def books(oracle_inputs, raw_tables):
    grid = raw_tables.columns_of_bar("1h", 240, to_us("2024-03-01"))
    tables = raw_tables.random_tables(np.random.default_rng(11), grid, MARKETS, "1h")
    found = assemble_inputs(raw_tables.fill(tables), grid, MARKETS, interval="1h")
    return Books(grid, found, oracle_inputs.LookUps(tables, "1h"))


@EVERY_INPUT
def test_a_look_up_equals_a_plain_loop_over_the_rows(name, books):
    spec, found = INPUTS[name], books.found[name]
    for row in range(0, len(books.grid), 3):
        slot = int(books.grid[row])
        if spec.axis == "market":
            expected = [books.oracle.market(spec, slot, market) for market in MARKETS]
        else:
            expected = [books.oracle.column(spec, slot, place) for place in range(found.shape[1])]
        np.testing.assert_allclose(found[row], expected, rtol=1e-12, atol=0.0, err_msg=f"slot {row}")
    assert np.isfinite(found).any()
    assert np.isnan(found).any()


@EVERY_INPUT
def test_one_slot_alone_looks_up_the_same_bits_as_the_history(name, books, raw_tables):
    tables = raw_tables.random_tables(np.random.default_rng(12), books.grid, MARKETS, "1h")
    store = raw_tables.fill(tables)
    whole = assemble_inputs(store, books.grid, MARKETS, interval="1h", names=[name])[name]
    for row in (0, 50, 239):
        slot = books.grid[row : row + 1]
        alone = assemble_inputs(store, slot, MARKETS, interval="1h", names=[name])[name]
        assert alone.tobytes() == np.ascontiguousarray(whole[row : row + 1]).tobytes()
