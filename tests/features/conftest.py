"""A random panel with gaps, listings and stale inputs, shared by the feature tests."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from riskml.features.catalog import CATALOG
from riskml.features.evaluate import input_names
from riskml.units import duration_us

MakePanel = Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]


@pytest.fixture(scope="session")
def make_panel() -> MakePanel:
    """``make_panel(n_bars, n_markets, seed, interval)`` -> grid ts, inputs."""

    def make(
        n_bars: int, n_markets: int = 4, seed: int = 0, interval: str = "1h"
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        shape = (n_bars, n_markets)
        bar = duration_us(interval)
        ts = (np.arange(n_bars, dtype=np.int64) + 1_700_000_000_000_000 // bar) * bar
        close = np.exp(np.cumsum(rng.standard_t(4, shape) * 0.01, axis=0))
        inputs = {name: np.abs(rng.normal(1.0, 0.2, shape)) for name in input_names(CATALOG)}
        inputs |= {
            "close": close,
            "high": close * np.exp(np.abs(rng.normal(0.0, 0.01, shape))),
            "low": close * np.exp(-np.abs(rng.normal(0.0, 0.01, shape))),
            "funding_8h": np.repeat(rng.normal(0.0, 1e-4, (n_bars // 8 + 1, n_markets)), 8, axis=0)[:n_bars],
            "taker_buy_volume": inputs["volume"] * rng.random(shape),
            "peg_deviation": np.abs(rng.normal(0.0, 1e-3, shape)),
            "bridge_net_flow": rng.normal(0.0, 1e6, shape),
        }
        missing = rng.random(shape) < 0.03
        for length in (2, 3, 4, 5, 9):
            begin = int(rng.integers(0, n_bars - length))
            missing[begin : begin + length, int(rng.integers(n_markets))] = True
        missing[: n_bars // 5, -1] = True
        for name in (
            "close",
            "high",
            "low",
            "volume",
            "taker_buy_volume",
            "mark_close",
            "index_close",
            "spot_close",
        ):
            inputs[name] = np.where(missing, np.nan, inputs[name])
        for name in ("funding_8h", "open_interest", "tvl"):
            inputs[name] = np.where(rng.random(shape) < 0.1, np.nan, inputs[name])
        return ts, inputs

    return make


def _helper(name: str) -> ModuleType:
    """A module of this folder that is not a test."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """Features by plain loops."""
    return _helper("oracle")


@pytest.fixture(scope="session")
def panels() -> ModuleType:
    """Random inputs with holes."""
    return _helper("random_panel")


@pytest.fixture(scope="session")
def oracle_inputs() -> ModuleType:
    """Look-ups by plain loops."""
    return _helper("oracle_inputs")


@pytest.fixture(scope="session")
def raw_tables() -> ModuleType:
    """Random rows of every table."""
    return _helper("random_tables")


@pytest.fixture(scope="session")
def formulas() -> ModuleType:
    """The features' formulas written out a second time."""
    return _helper("formulas")


@pytest.fixture(scope="session")
def formulas_across(formulas: ModuleType) -> ModuleType:
    """The same for features across chains, stablecoins and markets."""
    return _helper("formulas_across")
