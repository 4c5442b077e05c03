"""Static margin engines of other venues: yardsticks, exact to their published formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from riskml.errors import ConfigError, nearest
from riskml.risk.accounts import AccountBook
from riskml.risk.engines.hyperliquid import HyperliquidEngine
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


_ENGINES: dict[str, Callable[[], Engine]] = {"hyperliquid": HyperliquidEngine}


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
    return _ENGINES[name]()
