"""A tiny bundle and a small generated lake with an account history."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from riskml.tables.lake import Lake
from riskml.tables.synthetic import generate_sample


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
