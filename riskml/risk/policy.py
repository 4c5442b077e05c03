"""The margin policy: what is asked of accounts, as TOML outside the bundle.

A bundle says how far price can travel; the policy says which level, over which horizon, with
which floors and brakes. It is validated as a whole, and its hash is written into every row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from riskml.errors import ConfigError, Problem, nearest
from riskml.risk.policy_file import PolicyFile
from riskml.units import duration_us

AntiProcyclicality = Literal["none", "a", "b", "c"]
AdaptiveLevel = Literal["off", "on"]


@dataclass(frozen=True)
class MarginPolicy(PolicyFile):
    """Levels, floors, brakes and action thresholds; every default lives here."""

    KIND: ClassVar[str] = "margin"

    maintenance_level: float = 0.995
    """Level of the maintenance requirement."""
    maintenance_horizon: str = "1h"
    initial_level: float = 0.995
    initial_horizon: str = "8h"
    floor: float = 0.01
    """Least maintenance, fraction of gross position exposure."""
    initial_floor: float = 0.02
    """Least initial margin, fraction of gross position exposure."""
    offset_cap: float = 0.5
    """Most that offsets may take off the sum of the legs' stand-alone requirements."""
    correlation_stress: float = 0.75
    """Weight of the worst of correlations 0 and 1, against the forecast's own."""
    rate_limit_per_hour: float = 0.019
    """Largest rise per hour of what maintenance asks of 1 USD alone, as a fraction; inf = none. The default
    is the largest that keeps a day's rise under 60 %."""
    apc: AntiProcyclicality = "none"
    """EMIR RTS 153/2013 Art. 28: a = 25 % buffer, used up in stress; b = 25 % weight on the
    stressed scale; c = not below the long-run scale."""
    slow_weight: float = 0.5
    """Weight (in logs) of the long-run scale in the slow one; 0 = the fast forecast."""
    stressed_floor: float = 0.22
    """Share of the stressed scale below which the slow one never falls."""
    adaptive_level: AdaptiveLevel = "off"
    """on = both levels follow the breaches seen since (riskml.risk.conformal)."""
    adaptive_level_step: float = 0.5
    """Log-odds by which a window that every market breaches raises the level; docs/conformal.md says why."""
    adaptive_level_max_raise: float = 3.0
    """Most that the level is raised, log-odds: .995 becomes .99975."""
    adaptive_level_max_lower: float = 0.0
    """Most that it is lowered, log-odds; 0 = never below the stated level."""
    unknown_daily_scale: float = 0.2
    """24 h excursion scale of a market without a forecast; a wild altcoin's, by choice."""
    concentration_start: float = 0.5
    """Share of an account's risk in one market from which the concentration add-on starts."""
    concentration_rate: float = 0.1
    """Add-on at a share of 1, fraction of the requirement; linear in between. Waived for
    accounts below ``concentration_min_usd``."""
    concentration_min_usd: float = 1_000_000.0
    liquidity_rate: float = 0.05
    """Cost of closing a position as large as the market's liquidity (depth or open interest given
    to ``decide``), fraction of exposure; grows with the square root of the size."""
    remote_haircut_per_hour: float = 0.005
    """Haircut per hour of transfer of collateral that is not on the venue's chain."""
    remote_haircut_cap: float = 0.1
    chain_stress_haircut: float = 0.2
    """Haircut of collateral on a chain whose stress score is 1; proportional below."""
    unknown_asset_haircut: float = 1.0
    """Haircut of an asset without an entry in facts/assets.toml."""
    size_free_usd: float = 1_000_000.0
    """Collateral of one asset that an account can sell without a price impact; more costs
    ``liquidity_rate`` by the square-root law (docs/collateral.md)."""
    unknown_liquidity_usd: float = 100_000_000.0
    """Liquidity of a collateral asset of which none is known: small against the large stablecoins."""
    unknown_market_liquidity_usd: float = 1_000_000.0
    """Liquidity of a position's market of which none is known: less than the open interest of 97 % of the
    market-days of 2024-01 to 2025-09 (docs/collateral.md)."""
    chain_outage_h: float = 1.0
    """Hours that a chain is out of reach in the stress of :mod:`riskml.risk.chain_outage`."""
    barrier: str = "auto"
    """Whose maintenance liquidates: ``venue`` (given with the account), ``riskml``, the name of an
    engine, or ``auto`` = venue where given, else riskml."""
    action_horizon: str = "8h"
    watch_probability: float = 0.02
    restrict_probability: float = 0.10
    deleverage_probability: float = 0.35
    hysteresis: float = 0.7
    """An action ends when its probability falls below this share of its threshold."""
    cool_down_h: float = 1.0
    """Least time at an action before it may ease."""
    market_stress_probability: float = 0.5
    """Probability of a stress onset at ``action_horizon`` from which holders are watched."""

    def __post_init__(self) -> None:
        problems = _find_problems(self)
        if problems:
            raise ConfigError.from_problems(problems, "the margin policy is not usable")


_FRACTIONS = (
    "offset_cap",
    "correlation_stress",
    "slow_weight",
    "stressed_floor",
    "concentration_start",
    "remote_haircut_cap",
    "chain_stress_haircut",
    "unknown_asset_haircut",
    "hysteresis",
    "market_stress_probability",
)
_LARGEST = {
    "floor": 1.0,
    "initial_floor": 1.0,
    "rate_limit_per_hour": math.inf,
    "adaptive_level_step": 20.0,
    "adaptive_level_max_raise": 20.0,
    "adaptive_level_max_lower": 20.0,
    "unknown_daily_scale": 10.0,
    "concentration_rate": 10.0,
    "concentration_min_usd": math.inf,
    "liquidity_rate": 10.0,
    "remote_haircut_per_hour": 1.0,
    "size_free_usd": math.inf,
    "unknown_liquidity_usd": math.inf,
    "unknown_market_liquidity_usd": math.inf,
    "chain_outage_h": 8_760.0,
    "cool_down_h": math.inf,
}
"""Of the numbers that may not be negative; beyond, a requirement would no longer be a number."""


def _find_problems(policy: MarginPolicy) -> list[Problem]:
    found: list[Problem] = []
    for name, low, high in (
        *((name, 0.0, 1.0) for name in _FRACTIONS),
        *((name, 0.0, most) for name, most in _LARGEST.items()),
    ):
        value = getattr(policy, name)
        if not _is_number(value) or not low <= value <= high:
            message = f"{name} has to lie in [{low:g}, {high:g}], found {value!r}"
            found.append(Problem("out-of-range", message, "correct it, or leave it out for the default"))
    for name in ("maintenance_level", "initial_level"):
        value = getattr(policy, name)
        if not _is_number(value) or not 0.5 <= value < 1.0:
            message = f"{name} has to lie in [0.5, 1), found {value!r}"
            found.append(Problem("out-of-range", message, "write 0.995 for 99.5 %"))
    for name in ("maintenance_horizon", "initial_horizon", "action_horizon"):
        try:
            duration_us(getattr(policy, name))
        except (ConfigError, TypeError):
            found.append(
                Problem("bad-horizon", f"{name} is not a duration: {getattr(policy, name)!r}", "write 8h")
            )
    from riskml.risk.engines import engine_names  # here, because engines read books, which read policies

    owners = ("auto", "venue", "riskml", *engine_names())
    if policy.barrier not in owners:
        message = f"there is no barrier '{policy.barrier}'.{nearest(str(policy.barrier), owners)}"
        found.append(Problem("bad-barrier", message, f"use one of {', '.join(owners)}"))
    if policy.apc not in ("none", "a", "b", "c"):
        message = f"apc is none, a, b or c, found {policy.apc!r}"
        found.append(Problem("bad-apc", message, 'write "none"'))
    if policy.adaptive_level not in ("off", "on"):
        found.append(
            Problem("bad-adaptive-level", f"adaptive_level is off or on, found {policy.adaptive_level!r}")
        )
    steps = (policy.watch_probability, policy.restrict_probability, policy.deleverage_probability)
    if not all(_is_number(step) for step in steps) or not 0.0 < steps[0] <= steps[1] <= steps[2] <= 1.0:
        found.append(
            Problem(
                "bad-thresholds",
                f"0 < watch <= restrict <= deleverage probability <= 1 is required, found {steps}",
            )
        )
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
