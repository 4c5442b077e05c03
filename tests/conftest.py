"""Shared by every test: what real data is, and what no test may do.

A test marked ``real_data`` is skipped with a message where the folder of real data is
absent. No test may reach the network, and none may spread over every core, because the
workers of one run share them.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Read by numpy, torch and onnxruntime when they load, so they have to stand before that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("RISKML_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
LOCAL_ADDRESSES = ("127.0.0.1", "::1", "localhost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    absent = pytest.mark.skip(reason=f"no real data at {SHARED_DATA} (set RISKML_SHARED_DATA)")
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(absent)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working copy."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; only for tests marked ``real_data``."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """The script that makes tiny bundles; it needs the training extra."""
    file = REPOSITORY / "tests" / "scoring" / "make_tiny_bundle.py"
    spec = importlib.util.spec_from_file_location("make_tiny_bundle", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves the machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0] if isinstance(address, tuple) else address
            if host not in LOCAL_ADDRESSES:
                raise AssertionError(f"a test tried to reach {host}: tests use no network")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()
