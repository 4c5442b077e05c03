"""Static margin engines of other venues: yardsticks, exact to their published formulas."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

from riskml.errors import ConfigError, nearest
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.interface import EngineMargins, VenueState


class Engine(Protocol):
    """A margin engine: requirements per account of a book."""

    @property
    def name(self) -> str:
        """Name in the ``margins`` table and in ``MarginPolicy.barrier``."""
        ...

    def margins(
        self,
        book: AccountBook,
        prices: Mapping[str, float] | None,
        ts: int,
        state: VenueState | None = None,
    ) -> EngineMargins:
        """Requirements at ``ts``; ``prices`` re-mark positions by symbol (or ``venue:symbol``)."""
        ...


_ENGINES: dict[str, str] = {
    "binance_pm": "BinancePMEngine",
    "derive_v2": "DeriveV2Engine",
    "drift_v2": "DriftV2Engine",
    "dydx_v4": "DydxV4Engine",
    "fhs_ewma": "fhs:FhsEwmaEngine",
    "fhs_slow": "fhs:FhsSlowEngine",
    "hyperliquid": "HyperliquidEngine",
    "orderly": "OrderlyEngine",
    "paradex_pm": "ParadexPmEngine",
    "span16": "Span16Engine",
    "vega": "VegaEngine",
}
"""Class of each engine in the module of its name, or ``module:Class``; imported when it is asked for."""


def engine_names() -> list[str]:
    """Names of the static engines."""
    return sorted(_ENGINES)


def get_engine(name: str) -> Engine:
    """The engine of a name; ConfigError suggests the nearest for an unknown one."""
    if name not in _ENGINES:
        raise ConfigError(
            f"there is no margin engine '{name}'.{nearest(name, _ENGINES)}",
            fix=f"use one of {', '.join(engine_names())}",
        )
    module, _, class_name = _ENGINES[name].rpartition(":")
    made: Engine = getattr(import_module(f"riskml.risk.engines.{module or name}"), class_name)()
    return made
