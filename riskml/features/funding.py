"""Funding features: who pays whom for leverage, how much, and when next."""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.nodes import Expr
from riskml.features.positioning import interest_usd, traded_usd_per_hour
from riskml.features.spec import Feature
from riskml.units import BASIS_POINT

_funding = column("funding_8h")
_BPS = 1.0 / BASIS_POINT
_SPREAD_FLOOR = 0.1 * BASIS_POINT
"""Least standard deviation of funding in a z-score: a constant rate has no z of infinity."""


def _carry(days: int, limit: float) -> Feature:
    mean = e.mean(_funding, "24h" if days == 1 else f"{days}d")
    return Feature(
        f"funding_carry_{days}d",
        "funding",
        "bps",
        f"mean funding over {days} d x {3 * days} payments, clipped at {limit:.0f} bps",
        "cumulated carry: what a long paid over the time",
        e.clip(3.0 * days * _BPS * mean, -limit, limit),
    )


def _to_next_payment() -> Expr:
    return e.clip(column("funding_interval_h") - column("funding_age_h"), 0.0, 24.0)


FUNDING = (
    Feature(
        "funding_rate_8h",
        "funding",
        "bps per 8 h",
        "newest funding rate, per 8 h, clipped at 300 bps",
        "crowded longs pay: perpetual funding as leverage demand",
        e.clip(_BPS * _funding, -300.0, 300.0),
    ),
    Feature(
        "funding_z_7d",
        "funding",
        "standard deviations",
        "(funding - mean over 7 d) / max(standard deviation over 7 d, 0.1 bp), clipped at 6",
        "funding against its own recent level",
        e.clip(
            (_funding - e.mean(_funding, "7d")) / e.at_least(e.std(_funding, "7d"), _SPREAD_FLOOR),
            -6.0,
            6.0,
        ),
    ),
    _carry(1, 500.0),
    _carry(3, 1000.0),
    _carry(7, 2000.0),
    Feature(
        "funding_change_24h",
        "funding",
        "bps per 8 h",
        "funding less its value 24 h before, clipped at 300 bps",
        "speed at which leverage demand turns",
        e.clip(_BPS * (_funding - e.lag(_funding, "24h")), -300.0, 300.0),
    ),
    Feature(
        "funding_dispersion",
        "funding",
        "bps per 8 h",
        "standard deviation of the newest funding rate over venues, clipped at 100 bps",
        "venues that disagree: limits to arbitrage between them",
        e.clip(_BPS * column("funding_spread_8h"), 0.0, 100.0),
        "fewer than two venues",
    ),
    Feature(
        "hours_to_funding",
        "funding",
        "hours",
        "max(interval of the newest payment - time since it, 0), clipped at 24 h",
        "payments draw trades ahead of them; 0 = due or late",
        _to_next_payment(),
    ),
    Feature(
        "funding_open_interest",
        "funding",
        "bps",
        "funding per 8 h x open interest / value traded in 8 h (mean over 24 h), clipped at 100 bps",
        "dollars that change hands by funding, against the market's depth in trades",
        e.clip(_BPS * _funding * interest_usd / (8.0 * traded_usd_per_hour), -100.0, 100.0),
        "no open interest, no trade in 24 h",
    ),
)
"""Funding."""
