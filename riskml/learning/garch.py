"""GARCH(1,1) with Student-t innovations, fitted per market through the ``arch`` library.

Fitted once, on the bar's close-to-close returns up to ``fit_end``; parameters are then frozen and
the conditional variance is filtered through all later bars, as a desk would run it. Over several
bars the variance is the closed-form sum of its expectations (Bollerslev 1986).

A GARCH forecasts close-to-close variance, the protocol measures Parkinson variance. One constant per
horizon, pooled over markets and taken on the fit rows, brings its ``variance`` to that scale: without
it QLIKE would judge the unit and not the forecast. Its requirement and probability come from the law
it really has: the path reflected, ``P = 2 (1 - T_nu(z))``, with the raw, unscaled variance; the nu
of one bar is kept for the longer horizons, where the true law has thinner tails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, Float3D, FloatND
from riskml.errors import ConfigError, DataError, missing_extra
from riskml.learning.baseline import Baseline, qlike_scale
from riskml.learning.protocol import Cases, EvaluationData, margin_distance, probability_at
from riskml.risk import excursion

MIN_RETURNS = 2000
"""Returns of the fit part that a market's own fit needs; with fewer it borrows the median law."""
BACKCAST_BARS = 75
BACKCAST_DECAY = 0.94
"""How arch starts its recursion: exponentially weighted squares of the first returns."""


@dataclass(frozen=True)
class GarchLaw:
    """``h[t+1] = omega + alpha r[t]^2 + beta h[t]``, ``r / sqrt(h)`` a Student-t of variance one."""

    omega: float
    """Squared log-return units per bar."""
    alpha: float
    beta: float
    nu: float
    """Degrees of freedom, > 2."""


@dataclass(frozen=True)
class GarchT(Baseline):
    """GARCH(1,1)-t per market with parameters frozen at ``fit_end``."""

    name: str = "garch_t"
    laws: Mapping[str, GarchLaw] = field(default_factory=dict)
    """Per market that had enough returns; empty before :meth:`fit`."""
    scale: tuple[float, ...] = ()
    """Per horizon, Parkinson variance over close-to-close variance on the fit rows."""
    notes: tuple[str, ...] = ()

    def fit(self, data: EvaluationData, fit_end_us: int) -> GarchT:
        """Maximum likelihood per market on returns up to ``fit_end_us``.

        Raises
        ------
        DataError : no returns in the data, or no market with enough of them.
        ConfigError : arch is not installed.
        """
        returns = _returns(data)
        laws: dict[str, GarchLaw] = {}
        borrowed = []
        for column, market in enumerate(data.markets):
            law = fit_garch(returns[data.ts <= fit_end_us, column])
            if law is None:
                borrowed.append(market)
            else:
                laws[market] = law
        if not laws:
            raise DataError(
                f"a GARCH needs a market with {MIN_RETURNS} returns before fit_end, and none has a fit",
                fix="give a longer fit range",
            )
        notes = (f"garch_t: median parameters for {', '.join(borrowed)}",) if borrowed else ()
        fitted = replace(self, laws=laws, scale=(1.0,) * len(data.horizons), notes=notes)
        scale = qlike_scale(data, fitted.return_variance(data), fit_end_us)
        return replace(fitted, scale=tuple(scale.tolist()))

    def law(self, market: str) -> GarchLaw:
        """The market's own law, or the median of all parameters where it has none."""
        if not self.laws:
            raise ConfigError("GARCH has not been fitted", fix="use what fit(data, fit_end_us) returns")
        if market in self.laws:
            return self.laws[market]
        every = np.array([[law.omega, law.alpha, law.beta, law.nu] for law in self.laws.values()])
        return GarchLaw(*np.median(every, axis=0).tolist())

    def return_variance(self, data: EvaluationData) -> Float3D:
        """Close-to-close variance over each horizon [n_bars, n_markets, n_horizons], not rescaled."""
        laws = [self.law(market) for market in data.markets]
        following = filter_variance(_returns(data), laws)
        return np.stack([aggregate(following, laws, bars) for bars in data.horizon_bars], axis=2)

    def variance(self, data: EvaluationData) -> Float3D:
        """Forecast on the scale of the realised (Parkinson) variance."""
        return np.asarray(self.return_variance(data) * np.array(self.scale))

    def margin(self, data: EvaluationData, rows: slice) -> FloatND:
        """The 99.5 % quantile of the reflected path, equal for both sides."""
        sigma, nu = self._half_t(data)
        return margin_distance(sigma[rows], nu[rows], np.ones(len(data.horizons)))

    def probability(self, data: EvaluationData, cases: Cases, horizon: int) -> Float1D:
        """``2 (1 - T_nu(z))`` at the drawn distances, never falling with the horizon."""
        sigma, nu = self._half_t(data)
        bar = np.searchsorted(data.ts, cases.ts)
        return probability_at(
            sigma[bar, cases.market],
            nu[bar, cases.market],
            np.ones(len(data.horizons)),
            horizon=horizon,
            side=cases.side,
            log_distance=cases.log_distance,
        )

    def _half_t(self, data: EvaluationData) -> tuple[FloatND, Float3D]:
        """Scale [n_bars, n_markets, n_horizons, 2] and nu [n_bars, n_markets, n_horizons] of the law."""
        # the tabled law covers these degrees of freedom; the variance is kept
        nu = np.clip([self.law(name).nu for name in data.markets], excursion.NU_MIN, excursion.NU_MAX)
        variance = self.return_variance(data)
        sigma = np.sqrt(variance * ((nu - 2.0) / nu)[:, None])
        return np.repeat(sigma[..., None], 2, axis=3), np.broadcast_to(nu[:, None], variance.shape)


def fit_garch(returns: Float1D) -> GarchLaw | None:
    """Fit one market's law; None with fewer than ``MIN_RETURNS`` returns or without convergence.

    Parameters
    ----------
    returns : [n] log returns per bar. NaN handling: missing returns are left out, the rest joined.
    """
    known = returns[np.isfinite(returns)]
    if known.size < MIN_RETURNS or not known.any():
        return None
    unit = float(known.std())
    # arch's optimiser wants numbers near one
    model = arch_model(known / unit)
    result = model.fit(disp="off", show_warning=False)
    if result.convergence_flag != 0 or not np.isfinite(result.params).all():
        return None
    omega, alpha, beta, nu = (float(value) for value in result.params)
    return GarchLaw(omega * unit**2, alpha, beta, nu)


def arch_model(returns: Float1D) -> Any:
    """The library's own model of these returns: zero mean, GARCH(1,1), Student-t.

    Raises
    ------
    ConfigError : arch is not installed.
    """
    try:
        import arch
    except ImportError as error:
        raise missing_extra("arch", "train") from error
    return arch.arch_model(returns, mean="Zero", vol="GARCH", p=1, q=1, dist="t", rescale=False)


def filter_variance(returns: Float2D, laws: list[GarchLaw]) -> Float2D:
    """Variance of the next bar known at each row [n_bars, n_markets].

    Parameters
    ----------
    returns : [n_bars, n_markets], row t the return of the bar that closes at t.
    laws : one per market.

    Notes
    -----
    NaN handling: a missing return counts as its expectation, so that the variance reverts while
    bars are missing. The start is arch's: weighted squares of the first 75 returns, hence NaN
    until 75 have been seen.
    """
    omega, alpha, beta = (np.array([getattr(law, key) for law in laws]) for key in ("omega", "alpha", "beta"))
    known = np.isfinite(returns)
    squares = np.where(known, returns, 0.0) ** 2
    seen = np.cumsum(known, axis=0)
    following = np.full(returns.shape, np.nan)
    state = np.array([_backcast(squares[:, k], known[:, k]) for k in range(len(laws))])
    state = omega + (alpha + beta) * state
    for row in range(len(returns)):
        # a market's clock starts at its first return
        started = seen[row] > 0
        shock = np.where(known[row], squares[row], state)
        state = np.where(started, omega + alpha * shock + beta * state, state)
        following[row] = np.where(seen[row] >= BACKCAST_BARS, state, np.nan)
    return following


def _backcast(squares: Float1D, known: Bool1D) -> float:
    first = squares[known][:BACKCAST_BARS]
    if first.size == 0:
        return float("nan")
    weight = BACKCAST_DECAY ** np.arange(first.size)
    return float(first @ (weight / weight.sum()))


def aggregate(following: Float2D, laws: list[GarchLaw], n_bars: int) -> Float2D:
    """Expected variance summed over ``n_bars`` [n_bars, n_markets], from the next bar's variance.

    ``E h[t+k] = phi^(k-1) h[t+1] + omega (1 + phi + ... + phi^(k-2))`` with ``phi = alpha + beta``,
    summed over k; written as sums so that ``phi = 1`` (integrated GARCH) needs no case of its own.
    """
    phi = np.array([law.alpha + law.beta for law in laws])
    omega = np.array([law.omega for law in laws])
    power, partial = np.ones_like(phi), np.zeros_like(phi)
    slope, constant = np.zeros_like(phi), np.zeros_like(phi)
    for _ in range(n_bars):
        slope, constant = slope + power, constant + partial
        partial, power = partial + power, power * phi
    return np.asarray(slope * following + omega * constant)


def _returns(data: EvaluationData) -> Float2D:
    if data.returns is None:
        raise DataError(
            "a GARCH needs close-to-close returns, and these data have none",
            fix="read the data with load_data, or set EvaluationData.returns",
        )
    return data.returns
