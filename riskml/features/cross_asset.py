"""Cross-asset features: the market factor, and how each market hangs on it.

The cross-section is taken over the *reference* markets of the bundle. The two loadings are
correlations, so their squares sum to at most 1 and what is left is the market's own risk:

    standardised return   x_i = r_i / sigma_i, sigma_i from the 24 h before
    factor 1              f = mean of x over the reference markets
    leader                l = x of the first reference market
    loading 1             corr(x_i, f)
    loading 2             corr(x_i, l - its projection on f)
                          = (corr(x_i, l) - corr(x_i, f) corr(f, l)) / sqrt(1 - corr(f, l)^2)

Moments are exponentially weighted over one common sample, which makes the bound exact.
"""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.expr import Expr
from riskml.features.spec import Feature
from riskml.features.volatility import bar_return, day_variance, log_variance, parkinson
from riskml.units import BASIS_POINT

_HALF_LIFE, _WINDOW, _MIN_WINDOW = "10d", "40d", "5d"
_COLLINEAR = 1e-3
"""Least sqrt(1 - corr^2) in loading 2: below it the leader is the factor and loading 2 fades to 0."""

_day_log_variance = log_variance(e.mean(parkinson, "24h"))
_market_log_variance = e.reference_mean(_day_log_variance)

_scaled = e.clip(bar_return / e.sqrt(e.lag(day_variance) * e.BarHours()), -10.0, 10.0)
_factor = e.reference_mean(_scaled)
_leader = e.leader(_scaled)


def _moment(x: Expr, y: Expr) -> Expr:
    product = e.where_finite(x * y, _scaled, _factor, _leader)
    return e.ewm_mean(product, _HALF_LIFE, _WINDOW, min_window=_MIN_WINDOW)


_own_factor = e.correlation(_moment(_scaled, _factor), _moment(_scaled, _scaled), _moment(_factor, _factor))
_own_leader = e.correlation(_moment(_scaled, _leader), _moment(_scaled, _scaled), _moment(_leader, _leader))
_factor_leader = e.correlation(
    _moment(_factor, _leader), _moment(_factor, _factor), _moment(_leader, _leader)
)
_residual_scale = e.at_least(e.sqrt(e.at_least(1.0 - e.square(_factor_leader), 0.0)), _COLLINEAR)

_day_return = e.total(bar_return, "24h")

CROSS_ASSET = (
    Feature(
        "market_log_variance_24h",
        "cross_asset",
        "log of variance per hour",
        "mean over the reference markets of log_har_24h",
        "volatility commonality: Bollerslev, Hood, Huss and Pedersen (2018)",
        _market_log_variance,
    ),
    Feature(
        "relative_log_variance_24h",
        "cross_asset",
        "log ratio",
        "log_har_24h less its mean over the reference markets",
        "volatility of one coin against all",
        _day_log_variance - _market_log_variance,
    ),
    Feature(
        "market_return_24h",
        "cross_asset",
        "standard deviations",
        "mean over the reference markets of the 24 h return / (sqrt(24) x sigma of the same 24 h)",
        "leverage effect of the market as a whole",
        e.reference_mean(e.clip(_day_return / e.sqrt(24.0 * day_variance), -10.0, 10.0)),
    ),
    Feature(
        "dispersion_24h",
        "cross_asset",
        "bps",
        "standard deviation over the reference markets of the 24 h return, clipped at 5000 bps",
        "correlation by another name: low when everything moves together",
        e.at_most(e.reference_std(_day_return) / BASIS_POINT, 5000.0),
    ),
    Feature(
        "factor_loading_1",
        "cross_asset",
        "correlation",
        "EWM correlation (half-life 10 d, cut at 40 d) of the standardised return with the factor",
        "market factor of the portfolio law",
        _own_factor,
    ),
    Feature(
        "factor_loading_2",
        "cross_asset",
        "correlation",
        "the same with the residual of the first reference market on the factor",
        "second factor of the portfolio law: the leader against the rest",
        e.clip((_own_leader - _own_factor * _factor_leader) / _residual_scale, -1.0, 1.0),
    ),
)
