"""Actions: when to watch, restrict and deleverage, and what to close first.

Thresholds on the probability of liquidation, with hysteresis and a cool-down so that an account at
a threshold does not flicker. Risk-reducing orders are never blocked at any action.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from riskml.arrays import Bool1D, Float1D
from riskml.risk.policy import MarginPolicy

NORMAL, WATCH, RESTRICT, DELEVERAGE = 0, 1, 2, 3

RISK_SCORE_DECADES = 6.0
"""Decades of probability that the risk score spans: 1e-6 is 0, certainty is 100."""


def risk_score(probability: Float1D) -> Float1D:
    """Map a probability to 0-100: ``100 (1 + log10(p) / 6)``, clipped; strictly rising from 1e-6 on."""
    clipped = np.clip(probability, 10.0**-RISK_SCORE_DECADES, 1.0)
    return np.asarray(np.clip(100.0 * (1.0 + np.log10(clipped) / RISK_SCORE_DECADES), 0.0, 100.0))


def choose_actions(
    probability: Float1D,
    below_initial: Bool1D,
    below_maintenance: Bool1D,
    stressed: Bool1D,
    previous: NDArray[np.uint8],
    held_h: Float1D,
    policy: MarginPolicy,
) -> tuple[NDArray[np.uint8], Bool1D]:
    """The action of each account [n_accounts], and where hysteresis or cool-down holds it up.

    Parameters
    ----------
    probability : liquidation probability over ``policy.action_horizon``.
    stressed : a market that the account holds is likely to see a stress onset.
    previous : last action, 0 where there is none.
    held_h : hours since it began.
    """
    thresholds = (policy.watch_probability, policy.restrict_probability, policy.deleverage_probability)
    fresh = np.zeros(probability.shape, dtype=np.uint8)
    kept = np.zeros(probability.shape, dtype=np.uint8)
    for level, threshold in enumerate(thresholds, start=1):
        fresh[probability >= threshold] = level
        kept[probability >= threshold * policy.hysteresis] = level
    fresh = np.maximum(fresh, np.where(stressed, WATCH, NORMAL))
    fresh = np.maximum(fresh, np.where(below_initial, RESTRICT, NORMAL))
    fresh = np.maximum(fresh, np.where(below_maintenance, DELEVERAGE, NORMAL)).astype(np.uint8)
    easing = np.where(held_h < policy.cool_down_h, previous, np.minimum(previous, kept))
    action = np.maximum(fresh, easing).astype(np.uint8)
    return action, np.asarray(action > fresh)


def deleverage_plan(
    exposure_usd: Float1D, share: Float1D, equity_usd: float, requirement_usd: float, target: float = 1.0
) -> Float1D:
    """How much of each leg to close, fractions [n_legs] in [0, 1].

    Largest risk contributions first, only as much as brings the requirement down to
    ``equity / target``. By Euler's theorem closing a leg fully takes ``share x requirement`` off, to
    first order; hedges (share <= 0) are kept, and the plan is remade after every step.
    """
    excess = requirement_usd - equity_usd / target
    plan = np.zeros(exposure_usd.shape)
    for leg in np.argsort(-share, kind="stable"):
        relief = float(share[leg]) * requirement_usd
        if excess <= 0.0 or relief <= 0.0:
            break
        plan[leg] = min(1.0, excess / relief)
        excess -= plan[leg] * relief
    return plan
