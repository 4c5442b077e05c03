"""A tiny bundle and a small generated lake with an account history."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from riskml.tables.lake import Lake
from riskml.tables.synthetic import generate_sample


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """The script that makes tiny bundles."""
    file = Path(__file__).parents[1] / "scoring" / "make_tiny_bundle.py"
    spec = importlib.util.spec_from_file_location("make_tiny_bundle", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_bundle(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose ``data_end`` lies before the lake's account history."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    maker.make_tiny_bundle(path)
    return path


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """40 days of three markets, 8 accounts; shared, so tests that change one copy it."""
    path = tmp_path_factory.mktemp("lake") / "lake"
    generate_sample(path, days=40, markets=3, accounts=8)
    return Lake(path)


@pytest.fixture(scope="session")
def last_days(lake: Lake) -> list[str]:
    """The days with account snapshots, in order."""
    return sorted(str(part.date) for part in lake.partitions("accounts"))
