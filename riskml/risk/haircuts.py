"""Haircuts: what collateral may lose before it is sold, one bounded and monotone function per cause.

Effective collateral is ``amount x price x (1 - haircut)`` with::

    haircut = 1 - (1 - min(base + chain + bridge + distance, 1)) (1 - size)

- *base*: issuer, custody and conversion (facts/assets.toml);
- *chain*: the stress score of its chain (:func:`riskml.risk.collateral.chain_stress_score`);
- *bridge*: what a transfer itself may cost, per hour of it, where the collateral is remote;
- *distance*: how far its price may travel until it is sold (:func:`peg_haircut`, :func:`transfer_haircut`);
- *size*: the price impact of selling it (:func:`size_haircut`).

**Nothing is counted twice.** A pegged asset is valued at its peg (the deviation that is there) and is
no leg of the account law, so its distance covers the whole time until it is sold: the age of its price,
the transfer and the margin period. An asset with a moving price is a long leg of its value, so the law
already asks for its distance over the margin period H; what comes on top is the part between H and H +
transfer time, and only where it has to be transferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from riskml.arrays import Float1D, Int1D
from riskml.risk.excursion import quantile
from riskml.risk.policy import MarginPolicy
from riskml.units import DAY, HOUR, duration_us

PEG_TOLERANCE = 0.002
"""Deviations from redemption value within this are bid-ask noise (stablecoins quote at 1-20 bps)."""
PEG_NU = 3.0
"""Degrees of freedom of a peg's deviation: the fat end, as for a market without a forecast."""
PEG_HALF_LIFE = DAY
"""Half-life of the scale of a peg's deviation: a first day of a depeg is half of what is known."""
PEG_STEP = 8 * HOUR
"""Least time between the two prices of a change: shorter ones are mostly a pool's fee going to and fro,
which the square root of time would blow up (15 min changes of a calm pool: 0.1 % per root hour)."""
PEG_HISTORY = 8 * DAY
"""Prices older than this (2^-8 of the weight) do not enter the scale."""
MAX_SIZE_HAIRCUT = 2.0 / 3.0
"""Up to here ``x (1 - h(x))`` rises with x when h grows with its square root, so more is never worth less."""


def peg_haircut(
    daily_scale: float, hours: float, policy: MarginPolicy, tolerance: float = PEG_TOLERANCE
) -> float:
    """How far a peg may fall below where it is within ``hours``, beyond bid-ask noise; in [0, 1].

    ``1 - exp(-max(q s sqrt(hours / 24) - tolerance, 0))``, q the quantile of the excursion law at
    ``initial_level``. Monotone in each of scale, hours and level.

    Parameters
    ----------
    daily_scale : scale of the deviation's change over a day, fraction; from :func:`deviation_scale`.
    hours : age of its price + transfer time + margin period.

    NaN handling: a NaN scale or time is no knowledge at all: 1.
    """
    if math.isnan(daily_scale) or math.isnan(hours):
        return 1.0
    distance = (
        _level_quantile(policy.initial_level) * max(daily_scale, 0.0) * math.sqrt(max(hours, 0.0) / 24.0)
    )
    return -math.expm1(-max(distance - tolerance, 0.0))


def transfer_haircut(margin_loss: float, transfer_h: float, policy: MarginPolicy) -> float:
    """What a moving asset may lose *beyond* its leg's margin while it is transferred; in [0, 1].

    Its leg covers the distance D over the margin period H (``initial_horizon``). Until it can be sold
    at the venue ``H + transfer_h`` go by, over which the law's distance is ``D sqrt(1 + transfer_h / H)``:
    ``1 - exp(-D (sqrt(1 + transfer_h / H) - 1))``. 0 for collateral that is at the venue.

    Parameters
    ----------
    margin_loss : fraction lost at D, ``1 - exp(-D)``; NaN = no forecast, the policy's unknown scale.
    transfer_h : hours; NaN = unknown: 1.
    """
    if math.isnan(transfer_h):
        return 1.0
    period_h = margin_period_h(policy)
    if math.isnan(margin_loss):
        distance = (
            _level_quantile(policy.initial_level) * policy.unknown_daily_scale * math.sqrt(period_h / 24.0)
        )
    else:
        distance = -math.log1p(-min(max(margin_loss, 0.0), 1.0 - 1e-12))
    return -math.expm1(-distance * (math.sqrt(1.0 + max(transfer_h, 0.0) / period_h) - 1.0))


def size_haircut(value_usd: Float1D, liquidity_usd: Float1D, policy: MarginPolicy) -> Float1D:
    """Fraction lost to price impact when a holding is sold [n], in [0, 2/3].

    The square-root law of :func:`riskml.risk.margin.liquidity_cost` on what exceeds
    ``size_free_usd``: cost ``x h(x)``, ``h = min(liquidity_rate sqrt(x / liquidity), 2/3)``. It rises
    with the value and falls with the liquidity, and the value after it never falls with the value.

    NaN handling: unknown liquidity counts as ``unknown_liquidity_usd``; a NaN value costs nothing
    (it is worth nothing).
    """
    value = np.nan_to_num(np.asarray(value_usd, dtype=np.float64))
    depth = np.where(np.isnan(liquidity_usd), policy.unknown_liquidity_usd, liquidity_usd)
    excess = np.maximum(value - policy.size_free_usd, 0.0)
    ratio = np.divide(excess, depth, out=np.full(value.shape, np.inf), where=depth > 0.0)
    with np.errstate(invalid="ignore"):  # rate 0 times no liquidity
        impact = np.nan_to_num(policy.liquidity_rate * np.sqrt(ratio), nan=0.0)
    cost = excess * np.minimum(impact, MAX_SIZE_HAIRCUT)
    return np.asarray(np.divide(cost, value, out=np.zeros(value.shape), where=value > 0.0))


def margin_period_h(policy: MarginPolicy) -> float:
    """Hours until collateral at the venue is sold: the horizon of the initial margin."""
    return duration_us(policy.initial_horizon) / HOUR


def deviation_scale(ts: Int1D, value: Float1D) -> float:
    """Scale of a peg's change over one day, from its prices known so far, fraction.

    Changes over at least :data:`PEG_STEP`, squared, scaled to a day by their own length and averaged
    with weights that halve every :data:`PEG_HALF_LIFE`; a row stands for the time since the row
    before (at most a step), so that a dense stretch does not outweigh a sparse one.

    Parameters
    ----------
    ts : int64 [n], ascending, microseconds.
    value : [n] price or redemption value.

    Returns
    -------
    float : NaN with no two prices a step apart. NaN handling: NaN values are left out.
    """
    known = np.isfinite(value) & (ts > (ts[-1] if len(ts) else 0) - PEG_HISTORY)
    times, prices = ts[known], value[known]
    if not len(times):
        return math.nan
    before = np.searchsorted(times, times - PEG_STEP, side="right") - 1
    rows = np.flatnonzero(before >= 0)
    if not len(rows):
        return math.nan
    lag = (times[rows] - times[before[rows]]).astype(np.float64)
    change = prices[rows] - prices[before[rows]]
    covers = np.minimum(np.diff(times, prepend=times[0])[rows], PEG_STEP).astype(np.float64)
    weight = covers * np.exp2(-(times[-1] - times[rows]) / PEG_HALF_LIFE)
    total = float(weight.sum())
    return (
        math.sqrt(float((weight * change * change * (DAY / lag)).sum()) / total) if total > 0.0 else math.nan
    )


def peg_consensus(deviation: Sequence[float]) -> list[int]:
    """Which of several venues' deviations hold: up to the middle one (of two the smaller), which is last.

    A print that no majority of the venues shares is local to its venue and no depeg; a venue that is stuck
    at the peg does not hide one from a majority. The price is that of the last; the others are at least as
    near to the peg, and another venue further from it only adds one.

    >>> peg_consensus([0.1]), peg_consensus([0.1, 0.001]), peg_consensus([0.1, 0.001, 0.12])
    ([0], [1], [1, 0])
    """
    order = sorted(range(len(deviation)), key=lambda place: abs(deviation[place]))
    return order[: (len(order) + 1) // 2]


def within_spread(price: Float1D, fair: Float1D | float, half_spread: float) -> Float1D:
    """The price nearest to ``fair`` that prints imply on a venue of that half-spread (fraction) [n].

    A pool's fee moves its prints to either side of the price at which it would trade without one.
    NaN in, NaN out.
    """
    deviation = price / fair - 1.0
    return np.asarray(fair * (1.0 + np.copysign(np.maximum(np.abs(deviation) - half_spread, 0.0), deviation)))


@lru_cache(maxsize=64)
def _level_quantile(level: float) -> float:
    return float(quantile(level, PEG_NU))
