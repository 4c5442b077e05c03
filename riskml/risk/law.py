"""The account law: from a market forecast to one account's probability and margin.

Numpy reference of ``account.onnx``; ``riskml.learning.account_graph`` states the same law in
torch, and the two agree to 1e-9. Everything is float64 and a ratio to the account's gross
exposure; USD is ``ratio x gross``, made outside.

Portfolio scale (w signed exposures / gross, b factor loadings, sigma per side)::

    L_ik^up = b_ik sigma_i^(up if b_ik > 0 else down)    L_ik^down = b_ik sigma_i^(down if b_ik > 0 else up)
    e_k^s = sum_i w_i L_ik^s      g_k = max(e_k^down, -e_k^up, 0)
    u_i = sqrt(1 - |b_i|^2) max(w_i sigma_i^down, -w_i sigma_i^up)
    scale = sqrt(sum_k g_k^2 + sum_i u_i^2)      share_i = w_i (d scale / d w_i) / scale

It is convex and homogeneous in w and equals the single-market law for one leg. A leg moves by
``z r_i`` with ``r_i = -d scale / d w_i`` when the account is z scales down.

Margin: the loss of that move at the a-quantile z_a. Losses are exponential in z; with the mean
rate R = sum w_i r_i^2 / scale the book's loss is ``scale (1 - exp(-R z)) / R``, exact for one leg
(``1 - exp(-z sigma)`` for a long, ``exp(z sigma) - 1`` for a short) and monotone in z.

Barrier: equity reaches maintenance where ``sum_i v_i (1 - exp(z r_i)) = B``, with
``v_i = w_i - m_i |w_i|``. Each of three fixed steps replaces the left side by the one exponential
that has its value, slope and curvature at the current z (a Newton step of third order, exact for
one leg from z = 0). Where maintenance falls faster than equity at z = 0 (positions that are nearly cancelled
by collateral in the same market), no step can start; the legs that gain are left out then, which gives a
distance that is never larger than the first root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from riskml.arrays import Float1D, Float2D, Float3D, FloatND, Int2D
from riskml.risk.excursion import MAX_DISTANCE, NU_MAX, NU_MIN, log_survival

BARRIER_STEPS = 3
"""Fixed number of steps to the barrier."""
# The exporter to ONNX passes scalars through float32, so those below are exact in it.
REACHED = 1.0 - 2.0**-13
"""Share of the buffer that the loss at the last step has to reach to count as a root."""
MIN_SCALE = 2.0**-40
"""Floor of a scale used as a divisor; an account without exposure has scale 0."""
MAX_EXPONENT = 60.0
"""Log-moves are clipped here: exp(60) is beyond any price."""
FAR_LOSS = -(2.0**87)
"""Loss of a leg that gains at an unbounded distance: about -exp(60)."""
MIN_REMAINDER = 2.0**-6
"""Floor of the one-exponential remainder, so that a saturated step still moves on."""
MIN_ARGUMENT = 2.0**-20
"""Floor of |x| in (1 - exp(-x)) / x and -ln(1 - x) / x, which lose their digits at 0; it moves a
result by 5e-7 of itself at most."""


@dataclass(frozen=True)
class LawOutput:
    """Outputs of the account law, all float64, in ratios to the account's gross exposure."""

    liquidation_probability: Float2D
    """[n_accounts, n_horizons] from scenario 0; never falls with a longer horizon."""
    distance: Float2D
    """[n_accounts, n_horizons] scales to the barrier; 1e6 = cannot be reached, 0 = reached."""
    margin_ratio: FloatND
    """[n_accounts, n_scenarios, n_horizons, n_levels] loss at the level, forecast correlations."""
    scale: Float3D
    """[n_accounts, n_scenarios, n_horizons] portfolio scale."""
    contribution: Float3D
    """[n_accounts, n_legs, n_horizons] Euler shares of the scale in scenario 0; sum to 1."""


LAW_OUTPUTS = (
    "liquidation_probability",
    "distance",
    "margin_ratio",
    "scale",
    "contribution",
)
"""Output names of the graph, in order; the fields of :class:`LawOutput`."""
LAW_INPUTS = (
    "leg_market",
    "leg_weight",
    "leg_mm_rate",
    "buffer_ratio",
    "sigma",
    "nu",
    "loadings",
    "quantile_table",
)
"""Input names of the graph, in order; the keywords of :class:`AccountLawFn`."""


class AccountLawFn(Protocol):
    """Whatever evaluates the account law: numpy, torch or the ONNX graph."""

    def __call__(
        self,
        *,
        leg_market: Int2D,
        leg_weight: Float2D,
        leg_mm_rate: Float2D,
        buffer_ratio: Float1D,
        sigma: FloatND,
        nu: Float3D,
        loadings: Float2D,
        quantile_table: Float2D,
    ) -> LawOutput: ...


def numpy_law(power: ArrayLike) -> AccountLawFn:
    """The numpy law with calibration powers b [n_horizons] (g(z) = z**b), as a scorer's law."""
    powers = np.asarray(power, dtype=np.float64)

    def law(
        *,
        leg_market: Int2D,
        leg_weight: Float2D,
        leg_mm_rate: Float2D,
        buffer_ratio: Float1D,
        sigma: FloatND,
        nu: Float3D,
        loadings: Float2D,
        quantile_table: Float2D,
    ) -> LawOutput:
        return account_law(
            leg_market,
            leg_weight,
            leg_mm_rate,
            buffer_ratio,
            sigma,
            nu,
            loadings,
            quantile_table,
            power=powers,
        )

    return law


def account_law(
    leg_market: Int2D,
    leg_weight: Float2D,
    leg_mm_rate: Float2D,
    buffer_ratio: Float1D,
    sigma: FloatND,
    nu: Float3D,
    loadings: Float2D,
    quantile_table: Float2D,
    *,
    power: ArrayLike = 1.0,
) -> LawOutput:
    """Evaluate the law for a block of accounts.

    Parameters
    ----------
    leg_market : int64 [n_accounts, n_legs], row of ``sigma``; padding has 0 with weight 0.
    leg_weight : [n_accounts, n_legs] signed exposure / gross exposure.
    leg_mm_rate : [n_accounts, n_legs] maintenance / exposure of the leg, of the barrier's owner.
    buffer_ratio : [n_accounts] (equity - maintenance) / gross exposure.
    sigma : [n_scenarios, n_markets, n_horizons, 2] excursion scales; scenario 0 is the forecast.
    nu : [n_scenarios, n_markets, n_horizons] degrees of freedom.
    loadings : [n_markets, n_factors], each row of norm <= 1.
    quantile_table : [n_levels, n_nu] from :func:`riskml.risk.excursion.quantile_table`.
    power : b [n_horizons] (or one value) of the calibration map g(z) = z**b.

    Returns
    -------
    LawOutput : NaN handling: NaN in an account's own legs makes that account NaN, no other.
    """
    powers = np.broadcast_to(np.asarray(power, dtype=np.float64), (sigma.shape[2],))
    weight = leg_weight[:, :, None, None]  # [a, l, s, h]
    leg_sigma = np.moveaxis(sigma, 1, 0)[leg_market]  # [a, l, s, h, side]
    down, up = leg_sigma[..., 0], leg_sigma[..., 1]
    scale, slope = portfolio_scale(weight, down, up, loadings[leg_market])
    divisor = np.maximum(scale, MIN_SCALE)
    share = weight * slope / divisor[:, None]
    inv_nu = _mixed_inv_nu(share, 1.0 / np.clip(np.moveaxis(nu, 1, 0)[leg_market], NU_MIN, NU_MAX))
    level = level_distance(inv_nu, quantile_table, powers)

    rate = np.sum(weight * slope * slope, axis=1) / divisor
    distance = _barrier(leg_weight, leg_mm_rate, buffer_ratio, slope[:, :, 0])
    probability = np.where(
        distance >= MAX_DISTANCE, 0.0, np.exp(log_survival(distance**powers, 1.0 / inv_nu[:, 0]))
    )
    margin = loss_at(scale, rate, level)
    return LawOutput(
        np.maximum.accumulate(probability, axis=1),
        np.minimum.accumulate(distance, axis=1),
        np.maximum.accumulate(margin, axis=2),
        scale,
        share[:, :, 0],
    )


def portfolio_scale(weight: FloatND, down: FloatND, up: FloatND, loading: Float3D) -> tuple[Float3D, FloatND]:
    """Scale [a, s, h] and its slope d scale / d w [a, l, s, h]."""
    b = loading[:, :, None, None, :]  # [a, l, s, h, k]
    rising, falling = np.maximum(b, 0.0), np.maximum(-b, 0.0)
    load_down = rising * down[..., None] - falling * up[..., None]
    load_up = rising * up[..., None] - falling * down[..., None]
    sum_down = np.sum(weight[..., None] * load_down, axis=1)  # [a, s, h, k]
    sum_up = np.sum(weight[..., None] * load_up, axis=1)
    worst = np.maximum(np.maximum(sum_down, -sum_up), 0.0)
    worst_down = np.where(sum_down >= -sum_up, worst, 0.0)
    worst_up = worst - worst_down
    own = np.sqrt(np.maximum(1.0 - np.sum(b * b, axis=-1), 0.0)) * np.where(weight >= 0.0, down, -up)
    own_loss = weight * own
    scale = np.sqrt(np.sum(worst * worst, axis=-1) + np.sum(own_loss * own_loss, axis=1))
    common = np.sum(worst_down[:, None] * load_down - worst_up[:, None] * load_up, axis=-1)
    return scale, (common + own_loss * own) / np.maximum(scale, MIN_SCALE)[:, None]


def _mixed_inv_nu(share: FloatND, leg_inv_nu: FloatND) -> Float3D:
    """1/nu of the book [a, s, h]: mean over legs, weighted with their risk-increasing shares."""
    adding = np.maximum(share, 0.0)
    total = np.maximum(np.sum(adding, axis=1), MIN_SCALE)
    mixed = np.sum(adding * leg_inv_nu, axis=1) / total
    return np.asarray(np.clip(mixed, 1.0 / NU_MAX, 1.0 / NU_MIN))


def level_distance(inv_nu: FloatND, quantile_table: Float2D, powers: Float1D) -> FloatND:
    """Distance at each level, in scales [..., h, level], of ``inv_nu`` [..., h]: g^-1(S^-1(1 - a))."""
    points = quantile_table.shape[1]
    position = (inv_nu - 1.0 / NU_MAX) * ((points - 1) / (1.0 / NU_MIN - 1.0 / NU_MAX))
    index = np.clip(np.floor(np.nan_to_num(position)), 0, points - 2).astype(np.int64)
    part = (position - index)[..., None]
    table = quantile_table.T
    raw = table[index] * (1.0 - part) + table[index + 1] * part
    return np.asarray(raw ** (1.0 / powers)[:, None])


def unit_loss(sigma: FloatND, nu: FloatND, quantiles: Float1D, powers: Float1D) -> FloatND:
    """What 1 USD loses alone at a level, long and short; a longer horizon never asks for less.

    ``1 - exp(-z sigma)`` for a long (side 0), ``exp(z sigma) - 1`` for a short.

    Parameters
    ----------
    sigma : [..., n_horizons, 2]. nu : [..., n_horizons]. powers : [n_horizons].
    quantiles : [n_nu] row of :func:`riskml.risk.excursion.quantile_table`.

    Returns
    -------
    float64 : [..., n_horizons, 2]; the requirement of a book of one leg, exactly. NaN in, NaN out.
    """
    inv_nu = 1.0 / np.clip(nu, NU_MIN, NU_MAX)
    move = sigma * level_distance(inv_nu, quantiles[None], powers)
    loss = np.stack([-np.expm1(-move[..., 0]), np.expm1(move[..., 1])], axis=-1)
    return np.asarray(np.maximum.accumulate(loss, axis=-2))


def loss_at(scale: FloatND, rate: FloatND, distance: FloatND) -> FloatND:
    """Loss ``scale (1 - exp(-R z)) / R`` for the last axis of ``distance``; scale * z where R is 0."""
    argument = np.maximum(rate[..., None] * distance, -MAX_EXPONENT)
    safe = np.where(np.abs(argument) < MIN_ARGUMENT, MIN_ARGUMENT, argument)
    return np.asarray(scale[..., None] * distance * ((1.0 - np.exp(-safe)) / safe))


def _barrier(weight: Float2D, mm_rate: Float2D, buffer: Float1D, slope: FloatND) -> Float2D:
    """Distance to the barrier [a, h]; each leg moves by ``-slope`` [a, l, h] per scale."""
    stake = (weight - mm_rate * np.abs(weight))[:, :, None]
    target, move = np.maximum(buffer, 0.0)[:, None], -slope
    rise = stake * slope  # of the loss in z, at z = 0
    # Where the loss falls at first, what gains is left out: that is never below it, so its root comes first.
    stake = np.where(np.maximum(np.sum(rise, axis=1, keepdims=True), rise) <= 0.0, 0.0, stake)
    slope_stake = stake * slope
    curve_stake = slope_stake * slope
    z = _advance(target, np.sum(slope_stake, axis=1), np.sum(curve_stake, axis=1))
    for _ in range(BARRIER_STEPS - 1):
        growth = _growth(z, move)
        missing = target - np.sum(stake * (1.0 - growth), axis=1)
        ahead = _advance(missing, np.sum(slope_stake * growth, axis=1), np.sum(curve_stake * growth, axis=1))
        z = np.clip(z + ahead, 0.0, MAX_DISTANCE)
    reached = np.sum(stake * (1.0 - _growth(z, move)), axis=1)
    limit = np.where(move > 0.0, FAR_LOSS, np.where(move < 0.0, 1.0, 0.0))  # of 1 - exp(z move)
    at_infinity = np.sum(stake * limit, axis=1)
    reachable = np.maximum(reached, at_infinity) >= REACHED * target
    z = np.where(reachable, z, MAX_DISTANCE)
    return np.where(buffer[:, None] <= 0.0, 0.0, np.where(np.isnan(reached), np.nan, z))


def _growth(z: Float2D, move: FloatND) -> FloatND:
    return np.asarray(np.exp(np.minimum(z[:, None, :] * move, MAX_EXPONENT)))


def _advance(missing: Float2D, slope: Float2D, curve: Float2D) -> Float2D:
    """Step d with ``slope (1 - exp(-R d)) / R = missing``, R = curve / slope."""
    positive = np.maximum(slope, MIN_SCALE)
    linear = missing / positive
    argument = linear * curve / positive
    safe = np.where(np.abs(argument) < MIN_ARGUMENT, MIN_ARGUMENT, argument)
    bent = -np.log(np.maximum(1.0 - safe, MIN_REMAINDER)) / safe
    return np.asarray(np.clip(linear * bent, -MAX_DISTANCE, MAX_DISTANCE))
