"""From scales to requirements: the slow scale behind maintenance, add-ons, floors and rounding.

Two products from one law: *initial* margin follows the fast forecast at once; *maintenance*
follows a slow scale (a mean in logs of forecast and long-run scale) that never falls below a share
of the scale of a stressed period, because a volatility forecast alone could not margin
10 October 2025, and that rises at a limited rate, so that margin calls do not feed a cascade. The limit is
on what 1 USD needs alone, not on the scale: a fatter tail and the curvature of a short's loss raise it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from riskml.arrays import Bool1D, BoolND, Float1D, Float2D, Float3D, FloatND
from riskml.errors import DataError
from riskml.risk.excursion import NU_MAX, NU_MIN, quantile_table
from riskml.risk.forecast import Forecast
from riskml.risk.law import level_distance
from riskml.risk.policy import MarginPolicy

CENT = 0.01
BINDING = 1e-9
"""Relative difference from which a rule counts as binding; less is rounding."""
MAX_SIZE_RATIO = 100.0
"""Position against liquidity from which closing costs no more per USD: beyond it no market answers."""
ANY_MARKET = "*"
"""Key of the reference scales of a market that was not fitted."""


@dataclass(frozen=True)
class ReferenceSigma:
    """Scales of the fit part, aligned with a forecast's markets: [n_markets, n_horizons, 2]."""

    stressed: Float3D
    """Scale of a stressed period; NaN = unknown, no floor from it."""
    long_run: Float3D
    """Long-run scale; NaN = unknown, the forecast stands in."""


def reference_sigma(
    raw: Mapping[str, Mapping[str, list[list[float]]]], markets: tuple[str, ...], n_horizons: int
) -> ReferenceSigma:
    """Align the manifest's ``reference_sigma`` with a list of markets; ``*`` serves the unseen."""
    unknown = np.full((n_horizons, 2), np.nan)

    def aligned(kind: str) -> Float3D:
        table = raw.get(kind, {})
        rows = [
            np.asarray(table.get(name, table.get(ANY_MARKET, unknown)), dtype=np.float64) for name in markets
        ]
        if any(row.shape != (n_horizons, 2) for row in rows):
            raise DataError(f"reference_sigma '{kind}' has to be [{n_horizons}][2] per market")
        return np.stack(rows) if rows else np.empty((0, n_horizons, 2))

    return ReferenceSigma(aligned("stressed"), aligned("long_run"))


def maintenance_sigma(
    forecast: Forecast,
    previous: Float3D | None,
    elapsed_h: float,
    policy: MarginPolicy,
    reference: ReferenceSigma | None = None,
    previous_nu: Float2D | None = None,
) -> Float3D:
    """The slow scale behind maintenance [n_markets, n_horizons, 2].

    Parameters
    ----------
    previous : the last result for the same markets, or None at the start; NaN rows are new markets.
    elapsed_h : hours since ``previous``; what 1 USD needs rises by at most ``rate_limit_per_hour`` per hour.
    reference : scales of the fit part; None leaves the forecast alone.
    previous_nu : degrees of freedom that ``previous`` was used with; None = those of now.

    Returns
    -------
    float64 : NaN handling: NaN where the forecast is NaN.
    """
    return slow_scale(forecast, previous, elapsed_h, policy, reference, previous_nu).sigma


@dataclass(frozen=True)
class SlowScale:
    """The slow scale, and where a brake or a buffer of the policy made it what it is."""

    sigma: Float3D
    """[n_markets, n_horizons, 2]."""
    rate_limited: Bool1D
    """[n_markets] the rate limit holds down a scale that maintenance is made from."""
    anti_procyclical: Bool1D
    """[n_markets] the ``apc`` option raised one."""
    target: Float3D
    """As ``sigma``, before the rate limit: where it is going while the forecast stays as it is."""


def slow_scale(
    forecast: Forecast,
    previous: Float3D | None,
    elapsed_h: float,
    policy: MarginPolicy,
    reference: ReferenceSigma | None = None,
    previous_nu: Float2D | None = None,
) -> SlowScale:
    """What :func:`maintenance_sigma` returns, with the rules that bind; same parameters."""
    fast = forecast.sigma
    if reference is None:
        stressed, long_run = np.zeros_like(fast), fast
    else:
        stressed = np.nan_to_num(reference.stressed)
        long_run = np.where(np.isnan(reference.long_run), fast, reference.long_run)
    slow = np.exp((1.0 - policy.slow_weight) * np.log(fast) + policy.slow_weight * np.log(long_run))
    slow = plain = np.maximum(slow, policy.stressed_floor * stressed)
    if policy.apc == "a":  # the buffer is used up as the slow scale rises above the long-run one
        slow = np.maximum(slow, np.minimum(1.25 * slow, 1.25 * long_run))
    elif policy.apc == "b":
        slow = 0.75 * slow + 0.25 * np.maximum(stressed, slow)
    elif policy.apc == "c":
        slow = np.maximum(slow, long_run)
    target = slow
    if previous is not None and np.isfinite(policy.rate_limit_per_hour):
        limit = _rise_limit(forecast, previous, previous_nu, elapsed_h, policy)
        slow = np.where(np.isnan(limit), slow, np.minimum(slow, limit))
    # Maintenance is the largest over the horizons up to its own.
    upto = forecast.horizon(policy.maintenance_horizon) + 1

    def binds(high: Float3D, low: Float3D) -> Bool1D:
        with np.errstate(invalid="ignore"):
            return np.asarray((high > low * (1.0 + BINDING))[:, :upto].any(axis=(1, 2)))

    return SlowScale(slow, binds(target, slow), binds(slow, plain), target)


def _rise_limit(
    forecast: Forecast,
    previous: Float3D,
    previous_nu: Float2D | None,
    elapsed_h: float,
    policy: MarginPolicy,
) -> Float3D:
    """Largest scale at which what 1 USD needs has risen by the policy's rate; NaN = no limit.

    With d the distance at the maintenance level and G the growth allowed: a long's ``1 - exp(-d)`` stays
    within G times its last value where d does, a short's ``exp(d) - 1`` where d is at most
    ``ln(1 + G (exp(d_last) - 1))``.
    """
    now = _level_multiple(forecast, forecast.nu, policy.maintenance_level)
    then = now if previous_nu is None else _level_multiple(forecast, previous_nu, policy.maintenance_level)
    last = previous * then[..., None]
    with np.errstate(over="ignore", invalid="ignore"):  # after months the limit is infinite: none at all
        growth = np.float64(1.0 + policy.rate_limit_per_hour) ** max(elapsed_h, 0.0)
        rising = np.log1p(growth * np.expm1(last[..., 1]))
        return np.stack([growth * last[..., 0], rising], axis=-1) / now[..., None]


def hours_to_target(forecast: Forecast, sigma: Float3D, target: Float3D, policy: MarginPolicy) -> Float1D:
    """Hours until the rate limit lets what maintenance asks of 1 USD reach ``target`` [n_markets].

    Parameters
    ----------
    sigma, target : of :class:`SlowScale`, of this forecast.

    Returns
    -------
    float64 : of the slower side and the slowest horizon up to maintenance's own; 0 = there already, or
        no limit; inf = a limit of 0. NaN handling: NaN where a scale is NaN.
    """
    upto = forecast.horizon(policy.maintenance_horizon) + 1
    level = _level_multiple(forecast, forecast.nu, policy.maintenance_level)[:, :upto, None]
    now, then = sigma[:, :upto] * level, target[:, :upto] * level
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log(
            np.stack([then[..., 0] / now[..., 0], np.expm1(then[..., 1]) / np.expm1(now[..., 1])])
        )
        growth = np.where(growth > BINDING, growth, 0.0 * growth)
        hours = np.where(growth == 0.0, 0.0, growth / np.log1p(policy.rate_limit_per_hour))
    return np.asarray(hours.max(axis=(0, 2)))


def _level_multiple(forecast: Forecast, nu: Float2D, level: float) -> Float2D:
    """Distance at the level in scales [n_markets, n_horizons]; NaN in, NaN out."""
    inv_nu = 1.0 / np.clip(nu, NU_MIN, NU_MAX)
    return level_distance(inv_nu[:, None], _quantiles(level), forecast.power)[:, 0, :, 0]


@cache
def _quantiles(level: float) -> Float2D:
    return quantile_table([level])


def combine(
    margin: FloatND, stressed: FloatND, gross: FloatND, policy: MarginPolicy
) -> tuple[FloatND, BoolND, BoolND]:
    """Requirement from the law's ratios and the stand-alone sum; where the cap and where stress binds.

    ``max(margin + c (stressed - margin), (1 - offset_cap) gross)``, c = ``correlation_stress``; all of
    one shape.
    """
    blended = margin + policy.correlation_stress * (stressed - margin)
    capped = (1.0 - policy.offset_cap) * gross
    offset_cap = capped > blended * (1.0 + BINDING)
    raised = (blended > margin * (1.0 + BINDING)) & ~offset_cap
    return np.maximum(blended, capped), offset_cap, raised


def leg_extremes(
    exposure: FloatND, long_unit: FloatND, short_unit: FloatND
) -> tuple[FloatND, FloatND, FloatND]:
    """What a leg adds to a book's loss at correlations 1 and 0; summed over legs for :func:`stressed_loss`.

    Parameters
    ----------
    exposure : signed. long_unit, short_unit : what 1 USD long or short needs alone
        (:func:`riskml.risk.law.unit_loss`), of the leg's market; all of one shape.

    Returns
    -------
    its loss when every market falls as far as a long needs margin for, when every market rises, and the
    square of its own loss. A hedge gains what the other side would lose.
    """
    falling, rising = exposure * long_unit, -exposure * short_unit
    own = np.maximum(falling, rising)
    return falling, rising, own * own


def stressed_loss(margin: FloatND, falling: FloatND, rising: FloatND, squares: FloatND) -> FloatND:
    """The worst of the forecast's correlations, all 1 and all 0.

    Each of the last two is convex and homogeneous in the exposures, exactly, and the loss of one leg for one.
    """
    together = np.maximum(falling, rising)
    return np.asarray(np.maximum(np.maximum(together, np.sqrt(squares)), margin))


def concentration_rate(top_share: Float1D, gross_usd: Float1D, policy: MarginPolicy) -> Float1D:
    """Add-on fraction for a risk share of one market above ``concentration_start`` [n]."""
    room = max(1.0 - policy.concentration_start, 1e-9)
    excess = np.clip((top_share - policy.concentration_start) / room, 0.0, 1.0)
    return np.where(gross_usd >= policy.concentration_min_usd, policy.concentration_rate * excess, 0.0)


def liquidity_cost(exposure_usd: Float1D, liquidity_usd: Float1D, policy: MarginPolicy) -> Float1D:
    """Cost of closing, USD [n]: ``rate |N| sqrt(|N| / liquidity)`` (square-root impact law).

    The ratio is capped at :data:`MAX_SIZE_RATIO`; no liquidity at all (0, or a negative figure) is at the
    cap, so that the cost never falls with less liquidity.

    NaN handling: unknown liquidity (NaN) counts as the policy's ``unknown_market_liquidity_usd``; infinite
    liquidity costs nothing.
    """
    size = np.abs(exposure_usd)
    depth = np.where(np.isnan(liquidity_usd), policy.unknown_market_liquidity_usd, liquidity_usd)
    ratio = np.divide(size, depth, out=np.full_like(size, MAX_SIZE_RATIO), where=depth > 0.0)
    return np.asarray(policy.liquidity_rate * size * np.sqrt(np.minimum(ratio, MAX_SIZE_RATIO)))


def market_liquidity(symbols: Iterable[str], liquidity_usd: Mapping[str, float] | None) -> Float1D:
    """What each market can absorb [n], USD; NaN = not known.

    None says that nobody asks what closing costs (research on the law alone): infinite. A mapping, an empty
    one too, says that it is asked, and a symbol that it lacks is unknown.
    """
    if liquidity_usd is None:
        return np.asarray([np.inf for _ in symbols], dtype=np.float64)
    return np.asarray([liquidity_usd.get(name, np.nan) for name in symbols], dtype=np.float64)


def round_up_cents(usd: Float1D) -> Float1D:
    """Round up to cents; a value that only floating point puts above a whole cent stays.

    The tolerance is a millionth of a cent, or four units in the last place of a larger amount: a
    relative one would round amounts of millions down.
    """
    cents = np.asarray(usd, dtype=np.float64) / CENT
    nearest = np.rint(cents)
    whole = np.abs(cents - nearest) <= np.maximum(1e-6, 4.0 * np.spacing(np.abs(nearest)))
    return np.where(whole, nearest, np.ceil(cents)) / 100.0
