"""The market states of a scorer: one step of the breaker per closed bar, read at any later moment.

A state is of the last step; what holds at the moment of a call follows from its age
(:meth:`riskml.risk.breaker.BreakerState.of`). Before the first step no market is known, and a market that
is not known is halted: so it is after a state file of before the breaker, until the next bar closes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import AnyArray, Bool1D, Float3D, Int1D
from riskml.errors import ConfigError, nearest
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook
from riskml.risk.breaker import HALT, NEVER, RESTRICT, BreakerState, market_signals, step
from riskml.risk.breaker_policy import MARKET_STATES, BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.risk.forecast import Forecast
from riskml.risk.reasons import reason_bit, reason_names
from riskml.scoring.guards import GuardedForecast
from riskml.scoring.requirements import Requirements
from riskml.units import HOUR

KEPT_BARS = 168
"""Newest bars that another policy steps through again; a week of hourly bars, which is what the guards run
over before the first bar that is used."""
_ROUNDING_US = 1_000.0
"""So close to a threshold of age nothing is kept: the breaker itself says when it is reached."""
StressAt = Callable[[int, Collection[str]], Mapping[str, float]]
"""Time in microseconds and chains -> their stress (:func:`riskml.scoring.conditions.chain_stress_at`)."""
_PAUSED = np.uint64(reason_bit("entries-paused"))
_HALTED = np.uint64(reason_bit("market-halted"))


def breaker_policy(source: BreakerPolicy | str | Path | None, horizons: Sequence[str]) -> BreakerPolicy:
    """The policy from itself, its TOML file or None, whose horizon has to be one that is forecast.

    None = the defaults, at the longest horizon where the default one is not forecast.

    Raises
    ------
    ConfigError : the policy is not usable, or its horizon is not among ``horizons``.
    """
    policy = BreakerPolicy.load(source)
    if policy.horizon in horizons:
        return policy
    if source is None:
        return replace(policy, horizon=horizons[-1])
    raise ConfigError(
        f"the breaker policy's horizon is '{policy.horizon}'; the bundle forecasts {', '.join(horizons)}."
        f"{nearest(policy.horizon, horizons)}",
        fix="use a horizon of the bundle",
    )


class _Bar(NamedTuple):
    """What a step was made from, and its outcome."""

    forecast: Forecast
    slow_sigma: Float3D
    told_sigma: Float3D | None
    conditions: Conditions | None
    after: BreakerState


class MarketStates:
    """Steps the breaker and says what state a market is in.

    Parameters
    ----------
    policy : thresholds, hysteresis and cool-down.
    state : where to go on from; None = no market is known yet.
    """

    def __init__(self, policy: BreakerPolicy, state: BreakerState | None = None) -> None:
        self.policy = policy
        self.state: BreakerState | None = None
        """After the last step; None before the first."""
        self._before = state
        """In force before the first of the kept bars."""
        self._bars: deque[_Bar] = deque()
        self._levels: tuple[int, float, dict[str, int]] = (0, 0.0, {})
        """Level per market, and from which to which time it holds without another bar."""
        if state is not None:
            self._set(state)

    def take_bar(self, requirements: Requirements, guarded: GuardedForecast, stress: StressAt) -> None:
        """:meth:`take` the bar that ``requirements`` have just taken, live and in batch."""
        scales = requirements.scales
        if scales is None:
            raise AssertionError("take the bar before the breaker steps")
        self.take(scales.forecast, scales.maintenance, stress, guarded.told_sigma)

    def take(
        self,
        forecast: Forecast,
        slow_sigma: Float3D,
        stress: StressAt,
        told_sigma: Float3D | None = None,
    ) -> BreakerState:
        """Step on a bar's guarded forecast and the slow scale behind maintenance.

        Parameters
        ----------
        slow_sigma, told_sigma : as for :func:`riskml.risk.breaker.market_signals`.
        stress : of the chains that the markets' venues settle on, as of the bar.
        """
        home = load_facts("chains")["venue_home"]
        # Flows are gone through only of chains whose stress can matter.
        chains = {home[venue] for venue in forecast.venues if venue in home}
        conditions = Conditions(stress(forecast.ts, chains)) if chains else None
        return self._step(forecast, slow_sigma, told_sigma, conditions)

    def under(self, policy: BreakerPolicy) -> MarketStates:
        """The states under another policy: the kept bars again, from what was in force before them."""
        other = MarketStates(policy, self._before)
        for bar in self._bars:
            other._step(bar.forecast, bar.slow_sigma, bar.told_sigma, bar.conditions)
        return other

    def _step(
        self,
        forecast: Forecast,
        slow_sigma: Float3D,
        told_sigma: Float3D | None,
        conditions: Conditions | None,
    ) -> BreakerState:
        signals = market_signals(forecast, slow_sigma, self.policy, forecast.ts, conditions, told_sigma)
        state = step(self.state, signals, self.policy)
        self._set(state)
        self._bars.append(_Bar(forecast, slow_sigma, told_sigma, conditions, state))
        if len(self._bars) > KEPT_BARS:
            self._before = self._bars.popleft().after
        return state

    def _set(self, state: BreakerState) -> None:
        self.state = state
        self._levels = (0, 0.0, {})

    def known(self, ts: int) -> BreakerState:
        """The state, or before the first step one that knows no market: all of them are halted."""
        return _nothing_known(ts) if self.state is None else self.state

    def at(self, symbols: Sequence[str], ts: int) -> tuple[AnyArray, AnyArray]:
        """State uint8 [n] and reason bits uint64 [n] of some symbols at ``ts``."""
        return self.known(ts).of(symbols, ts, self.policy)

    def to_dicts(self, symbols: Sequence[str], ts: int) -> list[dict[str, Any]]:
        """One JSON-ready dict per symbol at ``ts``: ``market``, ``state``, ``reasons``."""
        level, reasons = self.at(symbols, ts)
        return [
            {"market": symbol, "state": MARKET_STATES[state], "reasons": reason_names(bits)}
            for symbol, state, bits in zip(symbols, level.tolist(), reasons.tolist(), strict=True)
        ]

    def add_reasons(self, reasons: NDArray[np.uint64], book: AccountBook, ts: int) -> None:
        """Tell the holders of restricted and halted markets: sets bits of ``reasons`` [n_accounts].

        ``entries-paused`` where a market that the account holds, or has an order open in that could add
        exposure, is restricted or halted; ``market-halted`` where one is halted.
        """
        positions, orders = book.positions, book.orders
        pairs, codes = positions.markets
        known = self._known_levels(ts)
        level = [known.get(symbol, HALT) for _, symbol in pairs]
        if level and max(level) >= RESTRICT:
            _add(reasons, positions.account, level, codes, positions.size != 0.0)
        if len(orders.size):
            level = [known.get(symbol, HALT) for symbol in orders.symbol.tolist()]
            adds = ~orders.reduce_only & (orders.size != 0.0)
            _add(reasons, orders.account, level, np.arange(len(level)), adds)

    def _known_levels(self, ts: int) -> Mapping[str, int]:
        """State of every known market at ``ts``; kept until an age reaches its next threshold."""
        since, until, levels = self._levels
        if since <= ts < until:
            return levels
        state = self.known(ts)
        level, _ = state.of(state.markets, ts, self.policy)
        levels = dict(zip(state.markets, level.tolist(), strict=True))
        age_h = np.zeros(len(levels)) if state.age_h is None else state.age_h
        reached = state.ts + (self.policy.thresholds("age_h") - age_h[:, None]) * HOUR
        until = float(np.min(reached[reached > ts], initial=np.inf)) - _ROUNDING_US
        self._levels = (ts, until, levels)
        return levels


def _add(
    reasons: NDArray[np.uint64], account: Int1D, level: Sequence[int], code: Int1D, counts: Bool1D
) -> None:
    """Set the bits of the accounts whose row counts, at the level of its code [n_rows]."""
    if min(level) >= HALT:  # also a feed that has stopped: no level is looked up
        reasons[account[counts]] |= _PAUSED | _HALTED
        return
    at = np.asarray(level)[code]
    reasons[account[counts & (at >= RESTRICT)]] |= _PAUSED
    reasons[account[counts & (at >= HALT)]] |= _HALTED


def _nothing_known(ts: int) -> BreakerState:
    shape = (0, HALT)
    return BreakerState(
        ts,
        (),
        np.zeros(shape, dtype=np.bool_),
        np.full(shape, NEVER, dtype=np.int64),
        np.zeros(0, dtype=np.uint64),
    )
