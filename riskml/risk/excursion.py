"""The law of the maximum adverse excursion: a half-Student-t.

A driftless Brownian path's furthest excursion to one side is exactly half-normal over any
horizon (reflection principle); with a random variance that is common to the whole path it is
half-Student-t. So with ``z = log-distance / sigma``::

    S(z) = P(excursion > z sigma) = 2 (1 - T_nu(z))

numpy, torch and ONNX evaluate S through one table, so that they agree and stay exact in the far
tail, where ``2 (1 - T)`` is 0 in floating point::

    ln S(z, nu) = tail(z, nu) + R(ln(1 + z), 1 / nu)
    tail        = -nu/2 ln(1 + z^2/nu) - 1/2 ln(1 + (pi/2) z^2 / (1 + z^2/nu))

``tail`` behaves as S does for small and for large z, so the tabulated residual R stays within
(-0.2, 0.02), and a bilinear table of 314 kB is within 1e-4 relative of S down to 1e-30 and below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from riskml.arrays import Float2D, FloatND
from riskml.errors import DataError

NU_MIN = 2.2
"""Smallest degrees of freedom of the law: the variance of the excursion has to exist."""
NU_MAX = 30.0
"""Largest degrees of freedom; beyond it the law is half-normal for every practical level."""
MAX_DISTANCE = 1e6
"""Distance reported where liquidation cannot be reached; larger distances are capped here."""

_TABLE_Z_MAX = 1e4
_TABLE_SHAPE = (801, 49)
QUANTILE_POINTS = 257
"""Points of :func:`quantile_table` on the axis of 1/nu."""
_FRACTION_TERMS = 400


@dataclass(frozen=True)
class SurvivalTable:
    """The residual R on a regular grid; what the torch module and the ONNX graph embed."""

    values: Float2D
    """R [n_z, n_nu] over ln(1 + z) in [0, log1p_z_max] and 1/nu in [inv_nu_min, inv_nu_max]."""
    log1p_z_max: float
    inv_nu_min: float
    inv_nu_max: float


def log_tail(z: FloatND, nu: FloatND) -> FloatND:
    """The elementary part of ln S; NaN in, NaN out."""
    square = z * z
    ratio = square / nu
    return -0.5 * nu * np.log1p(ratio) - 0.5 * np.log1p((0.5 * math.pi) * square / (1.0 + ratio))


@cache
def survival_table() -> SurvivalTable:
    """The table of R, made once per process from :func:`exact_log_survival` (about 0.1 s)."""
    n_z, n_nu = _TABLE_SHAPE
    z = np.expm1(np.linspace(0.0, math.log1p(_TABLE_Z_MAX), n_z))
    nu = 1.0 / np.linspace(1.0 / NU_MAX, 1.0 / NU_MIN, n_nu)
    values = exact_log_survival(z[:, None], nu[None, :]) - log_tail(z[:, None], nu[None, :])
    values.flags.writeable = False
    return SurvivalTable(values, math.log1p(_TABLE_Z_MAX), 1.0 / NU_MAX, 1.0 / NU_MIN)


def log_survival(z: ArrayLike, nu: ArrayLike) -> FloatND:
    """ln P(excursion > z scales), broadcast over ``z`` and ``nu``.

    Parameters
    ----------
    z : distance in scales; a negative one counts as 0 (ln S = 0).
    nu : degrees of freedom, clipped to [2.2, 30].

    Returns
    -------
    float64 : broadcast shape. NaN handling: NaN in either gives NaN.
    """
    distance = np.minimum(np.maximum(np.asarray(z, dtype=np.float64), 0.0), MAX_DISTANCE)
    degrees = np.clip(np.asarray(nu, dtype=np.float64), NU_MIN, NU_MAX)
    return log_tail(distance, degrees) + _residual(distance, 1.0 / degrees)


def survival(z: ArrayLike, nu: ArrayLike) -> FloatND:
    """P(excursion > z scales) in [0, 1]; see :func:`log_survival`."""
    return np.exp(log_survival(z, nu))


def _residual(z: FloatND, inv_nu: FloatND) -> FloatND:
    table = survival_table()
    n_z, n_nu = table.values.shape
    row, row_part = _cell(np.log1p(z) * ((n_z - 1) / table.log1p_z_max), n_z)
    step = (n_nu - 1) / (table.inv_nu_max - table.inv_nu_min)
    column, column_part = _cell((inv_nu - table.inv_nu_min) * step, n_nu)
    flat = table.values.ravel()
    cell = row * n_nu + column
    low = flat[cell] * (1.0 - column_part) + flat[cell + 1] * column_part
    high = flat[cell + n_nu] * (1.0 - column_part) + flat[cell + n_nu + 1] * column_part
    return np.asarray(low * (1.0 - row_part) + high * row_part)


def _cell(position: FloatND, points: int) -> tuple[np.ndarray, FloatND]:
    # NaN positions read cell 0; their NaN fraction keeps the result NaN.
    inside = np.minimum(np.maximum(position, 0.0), float(points - 1))
    index = np.minimum(np.floor(np.nan_to_num(inside)), float(points - 2)).astype(np.int64)
    return index, inside - index


def quantile(level: ArrayLike, nu: ArrayLike) -> FloatND:
    """The excursion, in scales, that is exceeded with probability ``1 - level``.

    It is the inverse of :func:`survival` as tabulated, so S(quantile(a)) = 1 - a to 1e-12.

    Raises
    ------
    DataError : a level outside (0, 1).
    """
    levels = np.asarray(level, dtype=np.float64)
    if not bool(np.all((levels > 0.0) & (levels < 1.0))):
        raise DataError(f"a level lies strictly between 0 and 1, found {level!r}")
    target, degrees = np.broadcast_arrays(np.log1p(-levels), np.asarray(nu, dtype=np.float64))
    low = np.full(target.shape, 0.0)
    high = np.full(target.shape, math.log1p(MAX_DISTANCE))
    for _ in range(60):  # bisection on ln(1 + z): 14 / 2^60 is below double precision
        middle = 0.5 * (low + high)
        above = log_survival(np.expm1(middle), degrees) > target
        low = np.where(above, middle, low)
        high = np.where(above, high, middle)
    return np.where(np.isnan(degrees), np.nan, np.expm1(0.5 * (low + high)))


def quantile_table(levels: ArrayLike) -> Float2D:
    """Quantiles [n_levels, n_nu] on an even grid of 1/nu over [1/30, 1/2.2].

    What the account law interpolates linearly; the grid is fine enough for 2e-5 relative at levels
    up to .9999.
    """
    grid = np.linspace(1.0 / NU_MAX, 1.0 / NU_MIN, QUANTILE_POINTS)
    return quantile(np.atleast_1d(np.asarray(levels, dtype=np.float64))[:, None], 1.0 / grid[None, :])


def expected_shortfall(level: ArrayLike, nu: ArrayLike) -> FloatND:
    """Mean excursion, in scales, given that it exceeds its ``level`` quantile q.

    ``2 f(q) (nu + q^2) / (nu - 1) / (1 - level)`` with f the Student-t density.
    """
    degrees = np.clip(np.asarray(nu, dtype=np.float64), NU_MIN, NU_MAX)
    point = quantile(level, degrees)
    ratio = point * point / degrees
    log_density = _log_density_constant(degrees) - 0.5 * (degrees + 1.0) * np.log1p(ratio)
    tail = 1.0 - np.asarray(level, dtype=np.float64)
    return 2.0 * np.exp(log_density) * degrees * (1.0 + ratio) / (degrees - 1.0) / tail


def _log_gamma(x: FloatND) -> FloatND:
    values = np.asarray(x, dtype=np.float64)
    return np.fromiter((math.lgamma(item) for item in values.ravel()), np.float64, values.size).reshape(
        values.shape
    )


def _log_density_constant(nu: FloatND) -> FloatND:
    return _log_gamma(0.5 * (nu + 1.0)) - _log_gamma(0.5 * nu) - 0.5 * np.log(nu * math.pi)


def exact_log_survival(z: ArrayLike, nu: ArrayLike) -> FloatND:
    """ln S without the table: ``S = I_x(nu/2, 1/2)``, ``x = nu / (nu + z^2)``.

    The incomplete beta function is summed by its continued fraction (modified Lentz), on the side
    of the symmetry ``I_x(a, b) = 1 - I_{1-x}(b, a)`` where that converges fast. Slow: for making
    the table and for tests.
    """
    distance, degrees = np.broadcast_arrays(np.asarray(z, dtype=np.float64), np.asarray(nu, dtype=np.float64))
    ratio = distance * distance / degrees
    half = 0.5 * degrees
    log_x = -np.log1p(ratio)
    with np.errstate(divide="ignore"):  # z = 0: ln 0, and its term vanishes
        log_rest = np.log(ratio) + log_x
    log_beta = _log_gamma(half) + math.lgamma(0.5) - _log_gamma(half + 0.5)
    front = half * log_x + 0.5 * log_rest - log_beta
    far = np.exp(log_x) < (half + 1.0) / (half + 2.5)
    fraction = _beta_fraction(
        np.where(far, half, 0.5), np.where(far, 0.5, half), np.where(far, np.exp(log_x), np.exp(log_rest))
    )
    log_part = front + np.log(fraction)
    near = np.log1p(-np.minimum(np.exp(np.where(far, -1.0, log_part + math.log(2.0))), 1.0 - 1e-16))
    return np.where(far, log_part - np.log(half), near)


def _beta_fraction(a: FloatND, b: FloatND, x: FloatND) -> FloatND:
    """Continued fraction of the incomplete beta function (modified Lentz algorithm)."""
    tiny = 1e-300
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
    c = np.ones_like(d)
    total = d
    for m in range(1, _FRACTION_TERMS + 1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = np.ones_like(d)
        for numerator in (even, odd):
            d = 1.0 + numerator * d
            d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1.0 + numerator / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            change = c * d
            total = total * change
        if float(np.max(np.abs(change - 1.0))) < 1e-15:
            break
    return total
