"""Why a decision is what it is: one bit per reason."""

from __future__ import annotations

from collections.abc import Iterable

REASONS: tuple[str, ...] = (
    "no-position",
    "negative-equity",
    "equity-below-maintenance",
    "equity-below-initial",
    "unknown-market",
    "degraded-forecast",
    "missing-price",
    "unpriced-collateral",
    "unknown-asset",
    "no-collateral",
    "remote-collateral",
    "peg-deviation",
    "chain-stress",
    "volatile-collateral",
    "isolated-pool",
    "isolated-margin-unknown",
    "static-floor",
    "offset-cap",
    "correlation-stress",
    "rate-limited",
    "anti-procyclical",
    "concentration",
    "size-against-liquidity",
    "probability-watch",
    "probability-restrict",
    "probability-deleverage",
    "market-stress",
    "hysteresis",
    "stale-snapshot",
    "open-orders",
    "scale-jump",
    "stale-forecast",
    "cool-down",
    "market-halted",
    "entries-paused",
    "account-restricted",
    "isolated-leverage",
    "reduces-position",
    "lowers-requirement",
    "within-limits",
    "largest-contribution",
    "proportional-cut",
    "step-limit",
    "restores-target",
    "deleverage-infeasible",
    "stale-chain",
    "collateral-size",
    "unknown-liquidity",
)
"""Reason codes; the position is the bit number in ``Decisions.reasons``. Only ever appended to."""

_BITS = {name: 1 << bit for bit, name in enumerate(REASONS)}


def reason_bit(name: str) -> int:
    """The bit mask of a reason."""
    return _BITS[name]


def reason_names(bits: int) -> list[str]:
    """Names of the reasons in a bit mask, in bit order."""
    return [name for bit, name in enumerate(REASONS) if bits >> bit & 1]


def reason_bits(names: Iterable[str]) -> int:
    """The bit mask of some reasons; the inverse of :func:`reason_names`."""
    mask = 0
    for name in names:
        mask |= _BITS[name]
    return mask
