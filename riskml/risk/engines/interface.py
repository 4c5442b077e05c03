"""What every margin engine returns, and how it values positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, FloatND
from riskml.errors import DataError
from riskml.risk.accounts import AccountBook, Positions
from riskml.risk.sums import sum_by


@dataclass(frozen=True)
class EngineMargins:
    """Requirements per account, USD [n_accounts]."""

    initial_usd: Float1D
    maintenance_usd: Float1D
    position_maintenance_usd: Float1D
    """The same per position [n_positions], in the book's order; their sum per account is the maintenance. A
    portfolio engine splits its maintenance over the positions by their notional."""
    equity_usd: Float1D | None = None
    """Account value as the venue's rules weigh it [n_accounts], for what the venue compares with maintenance;
    None = the book's own equity."""


@dataclass(frozen=True)
class Distances:
    """How far each market may travel, by an engine that simulates history."""

    horizons: tuple[str, ...]
    log_distance: Mapping[str, Float2D]
    """Per ``venue:symbol`` or ``symbol``: [n_horizons, 2 (down, up)] log-return units; NaN = unknown."""


@dataclass(frozen=True)
class VenueState:
    """What a venue's rules read beside the book and its prices.

    Keys are as for prices: ``venue:symbol`` goes before ``symbol``. What is missing is taken as the engine's
    docstring says, and never in the account's favour.
    """

    open_interest_usd: Mapping[str, float] = field(default_factory=dict)
    """Open interest at the oracle price."""
    twap_price: Mapping[str, float] = field(default_factory=dict)
    """Five-minute time-weighted average of the oracle price."""
    confidence: Mapping[str, float] = field(default_factory=dict)
    """The oracle's confidence, on the scale that the venue publishes."""
    oracle_age_s: Mapping[str, float] = field(default_factory=dict)
    """Age of the oracle price, seconds."""
    volatility: Mapping[str, float] = field(default_factory=dict)
    """Per square root of a year."""
    deposits_usd: Mapping[str, float] = field(default_factory=dict)
    """Deposits of an asset with the venue, all users."""
    net_user_pnl_usd: Mapping[str, float] = field(default_factory=dict)
    """Open profit of a market's users, net."""
    distances: Mapping[str, Distances] = field(default_factory=dict)
    """Distances by the name of the engine that reads them, made from bars known at the time."""

    def distance(self, engine: str, horizons: Sequence[str], pairs: Sequence[tuple[str, str]]) -> FloatND:
        """Log distance of every (venue, symbol) [n_pairs, n_horizons, 2]; NaN where it is not stated.

        Raises
        ------
        DataError : a horizon that is not stated, or a distance of another shape, negative or infinite.
        """
        result = np.full((len(pairs), len(horizons), 2), np.nan)
        stated = self.distances.get(engine)
        if stated is None:
            return result
        missing = [name for name in horizons if name not in stated.horizons]
        if missing:
            raise DataError(
                f"the distances of '{engine}' have no horizon '{missing[0]}'",
                fix=f"state {', '.join(horizons)}; found {', '.join(stated.horizons) or 'none'}",
            )
        places = [stated.horizons.index(name) for name in horizons]
        for row, (venue, symbol) in enumerate(pairs):
            key = f"{venue}:{symbol}" if f"{venue}:{symbol}" in stated.log_distance else symbol
            if key not in stated.log_distance:
                continue
            values = np.asarray(stated.log_distance[key], dtype=np.float64)
            shape = (len(stated.horizons), 2)
            if values.shape != shape or np.isinf(values).any() or (values < 0.0).any():
                raise DataError(
                    f"the distance of '{key}' for '{engine}' is {values.tolist()!r}",
                    market=symbol,
                    fix=f"state {shape} finite log distances, not negative, NaN where unknown",
                )
            result[row] = values[places]
        return result

    def of(self, name: str, pairs: Sequence[tuple[str, str]]) -> Float1D:
        """One quantity of every (venue, symbol) [n_pairs]; NaN where it is not stated.

        Raises
        ------
        DataError : a stated value that is negative, infinite or not a number (profits may be negative).
        """
        stated: Mapping[str, float] = getattr(self, name)
        result = np.full(len(pairs), np.nan)
        for row, (venue, symbol) in enumerate(pairs):
            key = f"{venue}:{symbol}" if f"{venue}:{symbol}" in stated else symbol
            if key in stated:
                value = float(stated[key])
                if not np.isfinite(value) or (value < 0.0 and name != "net_user_pnl_usd"):
                    raise DataError(
                        f"{name} of '{key}' is {value!r}",
                        market=symbol,
                        fix="state a finite value, not negative, or leave it out",
                    )
                result[row] = value
        return result


def current_marks(positions: Positions, prices: Mapping[str, float] | None) -> tuple[Float1D, Bool1D]:
    """Price of every position [n_positions] and where it had to be taken from its entry.

    A live price of ``venue:symbol`` goes before one of ``symbol``, then the book's mark, then the
    entry price. A live price that is not a positive number is ignored.
    """
    pairs, codes = positions.markets
    live = np.full(len(pairs), np.nan)
    for row, (venue, symbol) in enumerate(pairs if prices else ()):
        for key in (f"{venue}:{symbol}", symbol):
            price = float((prices or {}).get(key, np.nan))
            if np.isfinite(price) and price > 0.0:
                live[row] = price
                break
    quoted = live[codes] if len(pairs) else np.empty(0)
    mark = np.where(np.isnan(quoted), positions.mark_price, quoted)
    missing = np.isnan(mark)
    return np.where(missing, positions.stated_entry_price, mark), missing


def sum_by_account(book: AccountBook, values: Float1D) -> Float1D:
    """Sum of a per-position value over each account [n_accounts]."""
    return sum_by(book.positions.account, values, len(book))
