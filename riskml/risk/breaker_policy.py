"""The circuit breaker's policy: thresholds, brakes and step sizes, as TOML outside the bundle.

It is apart from :class:`riskml.risk.policy.MarginPolicy`, whose hash stands in every scored row: how a
venue slows trading does not change what an account has to hold. docs/breaker.md says how often each
default fires on real forecasts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from riskml.arrays import Float1D, Float2D
from riskml.errors import ConfigError, Problem, nearest
from riskml.risk.policy_file import PolicyFile
from riskml.units import duration_us

MARKET_STATES = ("normal", "watch", "restrict", "halt")
"""Names of a market's state, 0 to 3."""
SIGNALS = ("stress", "jump", "age_h", "chain_stress")
"""Signals with a threshold per state: fields ``<signal>_watch``, ``_restrict`` and ``_halt``."""

Target = Literal["initial", "maintenance", "probability"]
CutOrder = Literal["contribution", "notional"]


@dataclass(frozen=True)
class BreakerPolicy(PolicyFile):
    """When a market slows down, what an order may do then, and how positions are cut."""

    KIND: ClassVar[str] = "breaker"

    horizon: str = "8h"
    """Horizon of the forecast that stress and jump are read at."""
    stress_watch: float = 0.05
    """Probability of a stress onset within ``horizon``."""
    stress_restrict: float = 0.10
    stress_halt: float = 0.20
    jump_watch: float = 1.5
    """Forecast scale / slow scale; of a degraded market without the stressed scale that it is held up at."""
    jump_restrict: float = 2.25
    jump_halt: float = 3.0
    age_h_watch: float = 2.0
    """Hours since the bar that the forecast was made on closed; one missed hourly bar."""
    age_h_restrict: float = 3.0
    age_h_halt: float = 6.0
    chain_stress_watch: float = 0.5
    """Stress score of the chain that the market's venue settles on."""
    chain_stress_restrict: float = 0.9
    chain_stress_halt: float = math.inf
    """inf = never: the score is 1 when a daily source falls silent as well."""
    hysteresis: float = 0.8
    """A state is left when every signal is below this share of the state's threshold."""
    cool_down_h: float = 2.0
    """Least time in a state after the last signal that called for it."""
    leverage_watch: float = 0.75
    """Isolated leverage allowed in a watched market, as a share of what it is in a normal one."""
    leverage_restrict: float = 0.5
    target: Target = "initial"
    """What deleveraging restores: equity >= initial or maintenance margin, or a probability."""
    target_probability: float = 0.02
    """For ``probability``: of liquidation within ``horizon``."""
    cut_order: CutOrder = "contribution"
    """``contribution`` = the step that takes most off the shortfall first; ``notional`` = the step that takes
    most off per USD closed."""
    step_fraction: float = 0.25
    """Largest step, as a share of the position that the plan starts from."""
    step_liquidity: float = 0.05
    """Largest step, as a share of the market's liquidity (open interest or depth). Where none is known it is
    of the margin policy's ``unknown_market_liquidity_usd``, and no less than ``step_fraction`` squared of the
    position and ``min_step_usd``: not knowing a market is no reason for hundreds of steps."""
    min_step_usd: float = 1_000.0
    """Steps are not cut into less than this, so that small positions close at once (dYdX v4: 1,000 USDC)."""
    closing_cost: float = 0.0005
    """Cost of closing, fraction of notional: a taker fee (Binance 0.05 %, Hyperliquid 0.045 %)."""

    def __post_init__(self) -> None:
        problems = _find_problems(self)
        if problems:
            raise ConfigError.from_problems(problems, "the breaker policy is not usable")

    def thresholds(self, signal: str) -> Float1D:
        """Thresholds of one of :data:`SIGNALS` [3]: watch, restrict, halt."""
        return np.asarray([getattr(self, f"{signal}_{state}") for state in MARKET_STATES[1:]])

    @cached_property
    def threshold_table(self) -> Float2D:
        """:meth:`thresholds` of every one of :data:`SIGNALS` [n_signals, 3]."""
        return np.stack([self.thresholds(signal) for signal in SIGNALS])

    @cached_property
    def leverage_shares(self) -> Float1D:
        """Share of the isolated leverage that each state leaves [4]; 0 = none may be added."""
        return np.asarray([1.0, self.leverage_watch, self.leverage_restrict, 0.0])


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("hysteresis", 0.1, 1.0),
    ("cool_down_h", 0.0, math.inf),
    ("leverage_watch", 0.0, 1.0),
    ("leverage_restrict", 0.0, 1.0),
    ("target_probability", 0.0, 1.0),
    ("step_fraction", 1e-3, 1.0),
    ("step_liquidity", 0.0, math.inf),
    ("min_step_usd", 0.0, math.inf),
    ("closing_cost", 0.0, 0.1),
)


def _find_problems(policy: BreakerPolicy) -> list[Problem]:
    found: list[Problem] = []
    for name, low, high in _RANGES:
        value = getattr(policy, name)
        if not _is_number(value) or not low <= value <= high:
            found.append(
                Problem("out-of-range", f"{name} has to lie in [{low:g}, {high:g}], found {value!r}")
            )
    for signal in SIGNALS:
        steps = [getattr(policy, f"{signal}_{state}") for state in MARKET_STATES[1:]]
        if not all(_is_number(step) for step in steps) or not 0.0 < steps[0] <= steps[1] <= steps[2]:
            message = f"0 < {signal}_watch <= {signal}_restrict <= {signal}_halt is required, found {steps}"
            found.append(Problem("bad-thresholds", message, "write inf for a state that it never calls for"))
    shares = (policy.leverage_watch, policy.leverage_restrict)
    if all(_is_number(share) for share in shares) and shares[0] < shares[1]:
        message = f"leverage_watch >= leverage_restrict is required, found {shares}"
        found.append(Problem("bad-leverage", message, "a worse state never allows more"))
    for name, known in (
        ("target", ("initial", "maintenance", "probability")),
        ("cut_order", ("contribution", "notional")),
    ):
        value = getattr(policy, name)
        if value not in known:
            message = f"{name} is '{value}'.{nearest(str(value), known)}"
            found.append(Problem(f"bad-{name.replace('_', '-')}", message, f"use one of {', '.join(known)}"))
    try:
        duration_us(policy.horizon)
    except (ConfigError, TypeError):
        found.append(Problem("bad-horizon", f"horizon is not a duration: {policy.horizon!r}", "write 8h"))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
