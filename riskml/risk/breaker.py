"""The circuit breaker of a market: normal, watch, restrict, halt, from what the forecast says.

A pure recursion over all markets at once, state in and state out. Every state above normal has a latch::

    on_k(t) = called_k(t)  or  on_k(t-1) and (kept_k(t) or t - last_called_k < cool_down)

``called_k`` = a signal is at or above the state's threshold, ``kept_k`` = one is at or above
``hysteresis`` times it. A latch that is on, or was at the step before, calls for the one below, so that a
market comes down one state at a time and stays in each for the cool-down. The state is the highest latch.

Monotone: a path of signals that is never lower has latches that are never off where the other's are on,
by induction over k and t. Signals are the probability of a stress onset, the jump of the forecast scale
against the slow scale behind maintenance, the age of the forecast, the stress of the chain that the
market's venue settles on, and ``degraded``, which calls for watch. A signal that is missing or out of
range counts as the worst that it can be: no forecast, no entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import AnyArray, Bool1D, Bool2D, Float1D, Float2D, Float3D, Int2D
from riskml.errors import DataError
from riskml.facts import load_facts
from riskml.risk.breaker_policy import MARKET_STATES, SIGNALS, BreakerPolicy
from riskml.risk.collateral import Conditions
from riskml.risk.forecast import Forecast
from riskml.risk.reasons import reason_bit, reason_names
from riskml.units import HOUR, format_us

NORMAL, WATCH, RESTRICT, HALT = range(len(MARKET_STATES))
NEVER = -(2**62)
"""``triggered_us`` of a state that no signal has called for."""

_REASONS = {
    "stress": "market-stress",
    "jump": "scale-jump",
    "age_h": "stale-forecast",
    "chain_stress": "chain-stress",
}
_SIGNAL_BITS = np.asarray([[reason_bit(_REASONS[signal])] for signal in SIGNALS], dtype=np.uint64)
_LARGEST = np.asarray([[1.0], [np.inf], [np.inf], [1.0]])
"""Largest valid value of each signal [n_signals, 1]; the smallest is 0."""
_WORST = np.asarray([[np.inf], [np.inf], [np.inf], [1.0]])
"""What a missing one counts as. A chain's stress never halts by default, missing or not."""


@dataclass(frozen=True)
class MarketSignals:
    """What the breaker judges at one time, [n_markets] each.

    NaN handling: NaN, negative or beyond the largest valid value counts as the worst value.
    """

    ts: int
    """Microseconds UTC."""
    markets: tuple[str, ...]
    stress: Float1D
    """Probability of a stress onset within the policy's horizon."""
    jump: Float1D
    """Forecast scale / slow scale, the larger of both sides."""
    age_h: Float1D
    """Hours since the forecast's bar closed."""
    chain_stress: Float1D
    """Stress score of the home chain in [0, 1]; 0 where there is none or nothing is known of it."""
    degraded: Bool1D
    """Inputs were missing, stale or out of bounds."""

    def __post_init__(self) -> None:
        if len(set(self.markets)) != len(self.markets):
            raise DataError("a market is there twice", fix="pass every market once")
        for name in (*SIGNALS, "degraded"):
            found = np.shape(getattr(self, name))
            if found != (len(self.markets),):
                raise DataError(f"the signal {name} has shape {found}; ({len(self.markets)},) is required")

    @cached_property
    def judged_table(self) -> Float2D:
        """All of ``SIGNALS`` with what is missing or out of range at its worst [n_signals, n_markets]."""
        values = np.stack([getattr(self, signal) for signal in SIGNALS]).astype(np.float64)
        with np.errstate(invalid="ignore"):
            usable = (values >= 0.0) & (values <= _LARGEST)
        return np.where(usable, values, _WORST)

    def judged(self, signal: str) -> Float1D:
        """The row of one signal in :attr:`judged_table` [n_markets]."""
        return np.asarray(self.judged_table[SIGNALS.index(signal)])


def market_signals(
    forecast: Forecast,
    slow_sigma: Float3D,
    policy: BreakerPolicy,
    ts: int,
    conditions: Conditions | None = None,
    told_sigma: Float3D | None = None,
) -> MarketSignals:
    """Signals of a forecast's markets at ``ts``.

    Parameters
    ----------
    slow_sigma : [n_markets, n_horizons, 2] scale behind maintenance
        (:func:`riskml.risk.margin.slow_scale`).
    conditions : chain stress; None or a chain that is not in it = nothing known, which calls for nothing.
    told_sigma : as ``forecast.sigma``, what jumps are read from; None = the forecast's. A degraded market's
        forecast is held at its stressed scale, many slow scales up, which is no jump of the market
        (``GuardedForecast.told_sigma``).

    Raises
    ------
    DataError : a scale of another shape, a forecast of the future.
    ConfigError : the policy's horizon is not in the forecast.
    """
    told = forecast.sigma if told_sigma is None else told_sigma
    for name, scale in (("slow_sigma", slow_sigma), ("told_sigma", told)):
        if scale.shape != forecast.sigma.shape:
            raise DataError(f"{name} has shape {scale.shape}; {forecast.sigma.shape} is required")
    if ts < forecast.ts:
        raise DataError(
            f"the forecast of {format_us(forecast.ts)} is later than {format_us(ts)}",
            fix="pass the time of the decision",
        )
    place = forecast.horizon(policy.horizon)
    fast, slow = told[:, place], slow_sigma[:, place]
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(fast) & (fast > 0.0) & np.isfinite(slow) & (slow > 0.0)
    usable = np.asarray(sound.all(axis=1), dtype=np.bool_)
    ratio = np.divide(fast, slow, out=np.full_like(fast, np.nan), where=usable[:, None])
    home = load_facts("chains")["venue_home"]
    known = {} if conditions is None else conditions.chain_stress
    venues = forecast.venues or ("",) * len(forecast.markets)
    return MarketSignals(
        ts,
        forecast.markets,
        forecast.stress[:, place].astype(np.float64),
        ratio.max(axis=1),
        np.full(len(forecast.markets), (ts - forecast.ts) / HOUR),
        np.asarray([known.get(home.get(venue, ""), 0.0) for venue in venues], dtype=np.float64),
        np.asarray(forecast.degraded, dtype=np.bool_),
    )


@dataclass(frozen=True)
class BreakerState:
    """States of all markets after one step, and all that the next step needs."""

    ts: int
    """Time of the step, microseconds UTC."""
    markets: tuple[str, ...]
    on: Bool2D
    """[n_markets, 3] latches of watch, restrict and halt; one that is on has all before it on."""
    triggered_us: Int2D
    """[n_markets, 3] when each was last called for, ``NEVER`` = not yet."""
    reasons: NDArray[np.uint64]
    """[n_markets] bits; 0 for a normal market."""
    age_h: Float1D | None = None
    """[n_markets] hours from the bar of each market's forecast to the step, inf = none that is usable; None =
    not known (a state that an earlier version saved), which counts as none."""

    @property
    def level(self) -> NDArray[np.uint8]:
        """State [n_markets]: 0 normal, 1 watch, 2 restrict, 3 halt."""
        return np.asarray(self.on.sum(axis=1), dtype=np.uint8)

    def of(self, symbols: Sequence[str], ts: int, policy: BreakerPolicy) -> tuple[AnyArray, AnyArray]:
        """State uint8 [n] and reasons uint64 [n] of some symbols at ``ts``.

        A market that the breaker does not know is halted (``unknown-market``). Its forecast is as old at
        ``ts`` as it was at the last step plus the time since, and is judged by that (``stale-forecast``).
        """
        rows = {symbol: row for row, symbol in enumerate(self.markets)}
        place = np.asarray([rows.get(symbol, -1) for symbol in symbols], dtype=np.int64)
        level = np.append(self.level, HALT).astype(np.uint8)[place]
        reasons = np.append(self.reasons, np.uint64(reason_bit("unknown-market")))[place]
        known = np.full(len(self.markets), np.inf) if self.age_h is None else self.age_h
        age_h = np.append(known, 0.0)[place] + max(ts - self.ts, 0) / HOUR
        # The thresholds rise with the state.
        called = (age_h[:, None] >= policy.thresholds("age_h")).sum(axis=1)
        level = np.maximum(level, called).astype(np.uint8)
        reasons = reasons | _bits("stale-forecast", called > NORMAL)
        return level, reasons.astype(np.uint64)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready dict per market: ``market``, ``state``, ``reasons``."""
        rows = zip(self.markets, self.level.tolist(), self.reasons.tolist(), strict=True)
        return [
            {"market": market, "state": MARKET_STATES[level], "reasons": reason_names(bits)}
            for market, level, bits in rows
        ]

    def to_arrays(self) -> dict[str, AnyArray]:
        """Plain arrays for an npz file; :meth:`from_arrays` reads them."""
        return {
            "ts": np.asarray(self.ts, dtype=np.int64),
            "markets": np.asarray(self.markets, dtype=np.str_),
            "on": self.on,
            "triggered_us": self.triggered_us,
            "reasons": self.reasons,
            "age_h": np.full(len(self.markets), np.inf) if self.age_h is None else self.age_h,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> BreakerState:
        """Read :meth:`to_arrays`; DataError where an array is missing or does not fit.

        Without ``age_h``, as an earlier version saved it, no forecast counts as usable until the next step.
        """
        fix = "start the breaker anew: step(None, ...)"
        absent = [name for name in cls.__dataclass_fields__ if name not in arrays and name != "age_h"]
        if absent:
            raise DataError(f"the breaker's state has no '{absent[0]}'", fix=fix)
        markets = tuple(str(name) for name in arrays["markets"])
        on = np.asarray(arrays["on"], dtype=np.bool_)
        age_h = np.asarray(arrays.get("age_h", np.full(len(markets), np.inf)), dtype=np.float64)
        for name, shape in (
            ("on", (len(markets), HALT)),
            ("triggered_us", (len(markets), HALT)),
            ("reasons", (len(markets),)),
            ("age_h", (len(markets),)),
        ):
            found = np.shape(age_h if name == "age_h" else arrays[name])
            if found != shape:
                raise DataError(f"the breaker's {name} has shape {found}; {shape} is required", fix=fix)
        if (on[:, 1:] & ~on[:, :-1]).any():
            raise DataError("a state of the breaker is on without the one below it", fix=fix)
        triggered = np.asarray(arrays["triggered_us"], dtype=np.int64)
        reasons = np.asarray(arrays["reasons"], dtype=np.uint64)
        # NaN or a negative age is no age.
        usable = np.where(age_h >= 0.0, age_h, np.inf)
        return cls(int(arrays["ts"]), markets, on, triggered, reasons, usable)


def step(previous: BreakerState | None, signals: MarketSignals, policy: BreakerPolicy) -> BreakerState:
    """The breaker's state after ``signals``.

    A market of ``previous`` that ``signals`` leave out stays, with every signal missing: it is halted.

    Raises
    ------
    DataError : the signals are older than the state.
    """
    signals, on, triggered = _aligned(previous, signals)
    age_h = signals.judged("age_h")
    near = signals.judged_table >= policy.hysteresis * policy.threshold_table[:, :1]
    if not (near.any() or on.any() or signals.degraded.any()):  # most bars: nothing is called for, or was
        reasons = np.zeros(len(signals.markets), dtype=np.uint64)
        return BreakerState(signals.ts, signals.markets, np.zeros_like(on), triggered, reasons, age_h)
    called, kept = (_called(signals, policy, share) for share in (1.0, policy.hysteresis))
    reasons = _reasons(signals, policy)
    cooling = np.zeros_like(on)
    result = np.zeros_like(on)
    for k in range(HALT - 1, -1, -1):
        calls = called[:, k]
        if k < HALT - 1:
            calls = calls | on[:, k + 1] | result[:, k + 1]
        triggered[:, k] = np.where(calls, signals.ts, triggered[:, k])
        held_h = (signals.ts - triggered[:, k].astype(np.float64)) / HOUR
        cooling[:, k] = on[:, k] & ~kept[:, k] & (held_h < policy.cool_down_h)
        result[:, k] = calls | (on[:, k] & (kept[:, k] | cooling[:, k]))
    # Why a market is in a state that no signal calls for now.
    above = result & ~called
    reasons |= _bits("cool-down", np.any(above & cooling, axis=1))
    reasons |= _bits("hysteresis", np.any(above & kept, axis=1))
    return BreakerState(signals.ts, signals.markets, result, triggered, reasons, age_h)


def _called(signals: MarketSignals, policy: BreakerPolicy, share: float) -> Bool2D:
    """States that signals call for at ``share`` of the thresholds [n_markets, 3]."""
    above = signals.judged_table[:, :, None] >= share * policy.threshold_table[:, None, :]
    called = np.any(above, axis=0)
    called[:, 0] |= signals.degraded
    return np.asarray(called)


def _reasons(signals: MarketSignals, policy: BreakerPolicy) -> AnyArray:
    """Bits of the signals that call for a state [n_markets]."""
    judged = signals.judged_table
    above = judged >= policy.threshold_table[:, :1]
    reasons = np.bitwise_or.reduce(np.where(above, _SIGNAL_BITS, np.uint64(0)), axis=0)
    reasons |= _bits("degraded-forecast", signals.degraded)
    missing = ~np.all(np.isfinite(judged[:2]), axis=0)  # stress or jump
    return np.asarray(reasons | _bits("unknown-market", missing))


def _aligned(
    previous: BreakerState | None, signals: MarketSignals
) -> tuple[MarketSignals, Bool2D, NDArray[np.int64]]:
    """Signals with the markets that they leave out, and the previous latches and times of each row."""
    if previous is None:
        shape = (len(signals.markets), HALT)
        return signals, np.zeros(shape, dtype=np.bool_), np.full(shape, NEVER, dtype=np.int64)
    if signals.ts < previous.ts:
        raise DataError(
            f"signals of {format_us(signals.ts)} come after the step of {format_us(previous.ts)}",
            fix="step the breaker in the order of time",
        )
    if signals.markets == previous.markets:
        return signals, previous.on, previous.triggered_us.copy()
    known = set(signals.markets)
    gone = [market for market in previous.markets if market not in known]
    rows = {market: row for row, market in enumerate(previous.markets)}
    markets = (*signals.markets, *gone)
    place = np.asarray([rows.get(market, len(rows)) for market in markets], dtype=np.int64)
    on = np.concatenate([previous.on, np.zeros((1, HALT), dtype=np.bool_)])[place]
    triggered = np.concatenate([previous.triggered_us, np.full((1, HALT), NEVER, dtype=np.int64)])[place]
    if not gone:
        return signals, on, triggered
    lost = np.full(len(gone), np.nan)

    def widened(name: str) -> Float1D:
        return np.concatenate([getattr(signals, name), lost])

    wide = MarketSignals(
        ts=signals.ts,
        markets=markets,
        stress=widened("stress"),
        jump=widened("jump"),
        age_h=widened("age_h"),
        chain_stress=widened("chain_stress"),
        degraded=np.concatenate([signals.degraded, np.ones(len(gone), dtype=np.bool_)]),
    )
    return wide, on, triggered


def _bits(name: str, mask: AnyArray | np.bool_) -> AnyArray:
    return np.where(mask, np.uint64(reason_bit(name)), np.uint64(0))
