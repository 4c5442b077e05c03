"""Cross-asset features: the market factor, and how each market hangs on it.

The cross-section is taken over the *reference* markets of the bundle. The two loadings are
correlations, so their squares sum to at most 1 and what is left is the market's own risk:

    standardised return   x_i = r_i / sigma_i, sigma_i from the 24 h before
    factor 1              f = mean of x over the reference markets
    leader                l = x of the first reference market
    loading 1             corr(x_i, f)
    loading 2             corr(x_i, l - its projection on f)
                          = (corr(x_i, l) - corr(x_i, f) corr(f, l)) / sqrt(1 - corr(f, l)^2)

Moments are exponentially weighted over one common sample, which makes the bound exact. Beta and
the short correlations are those of plain returns r_i on the market return m, the mean of r over the
reference markets.
"""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.nodes import Expr
from riskml.features.shape import hour_return, week_drawdown
from riskml.features.spec import Feature
from riskml.features.volatility import (
    bar_return,
    day_realised,
    day_variance,
    log_variance,
    parkinson,
    week_realised,
)
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

_market_return = e.reference_mean(bar_return)
_market_fall = e.at_most(_market_return, 0.0)


def _beside(x: Expr, window: str) -> Expr:
    """Mean of something of the market factor over the bars in which the market has a return."""
    return e.mean(e.where_finite(x, bar_return), window)


_week_covariance = e.mean(bar_return * _market_return, "7d")
_week_correlation = e.correlation(_week_covariance, week_realised, _beside(e.square(_market_return), "7d"))
_day_correlation = e.correlation(
    e.mean(bar_return * _market_return, "24h"), day_realised, _beside(e.square(_market_return), "24h")
)
_common = e.mean(e.square(_factor), "24h") / e.reference_mean(e.mean(e.square(_scaled), "24h"))

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
    Feature(
        "market_beta_7d",
        "cross_asset",
        "ratio",
        "mean r m / mean m^2 over 7 d, clipped at 5",
        "Andersen, Bollerslev, Diebold and Wu (2006), Realized beta",
        e.clip(_week_covariance / _beside(e.square(_market_return), "7d"), -5.0, 5.0),
    ),
    Feature(
        "downside_beta_7d",
        "cross_asset",
        "ratio",
        "mean r m / mean m^2 over the bars of 7 d in which m < 0, clipped at 5",
        "Ang, Chen and Xing (2006), Downside risk",
        e.clip(e.mean(bar_return * _market_fall, "7d") / _beside(e.square(_market_fall), "7d"), -5.0, 5.0),
        "the market never fell in 7 d",
    ),
    Feature(
        "market_correlation_24h",
        "cross_asset",
        "correlation",
        "mean r m / sqrt(mean r^2 mean m^2) over 24 h",
        "Barndorff-Nielsen and Shephard (2004), Econometric analysis of realized covariation",
        _day_correlation,
    ),
    Feature(
        "correlation_jump_24h",
        "cross_asset",
        "correlation",
        "market_correlation_24h less the same over 7 d",
        "correlations rise in falls: Longin and Solnik (2001), Extreme correlation of equity markets",
        _day_correlation - _week_correlation,
    ),
    Feature(
        "commonality_24h",
        "cross_asset",
        "fraction",
        "mean f^2 over 24 h / mean over the reference markets of mean x^2 over 24 h, at most 1",
        "share of risk that is common: Kritzman, Li, Page and Rigobon (2011), Principal components as a "
        "measure of systemic risk",
        e.at_most(_common, 1.0),
    ),
    Feature(
        "drawdown_share_7d",
        "cross_asset",
        "fraction",
        "share of the reference markets more than one weekly sigma below their high of 7 d",
        "breadth of a fall",
        e.reference_mean(e.greater(-week_drawdown, 1.0)),
    ),
    Feature(
        "leader_return_1h",
        "cross_asset",
        "standard deviations",
        "return_1h of the first reference market",
        "lead-lag: Lo and MacKinlay (1990), When are contrarian profits due to stock market overreaction",
        e.leader(hour_return),
    ),
)
"""Every feature of the family."""
