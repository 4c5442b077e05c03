"""Helper modules of the feature tests as fixtures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


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
