"""Funding and positioning features: who pays whom, and how much is open."""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.spec import Feature
from riskml.features.volatility import bar_return
from riskml.units import BASIS_POINT

_funding = column("funding_8h")
_close, _volume, _taker = column("close"), column("volume"), column("taker_buy_volume")
_interest, _interest_usd = column("open_interest"), column("open_interest_usd")
_BPS = 1.0 / BASIS_POINT
_FUNDING_SPREAD_FLOOR = 0.1 * BASIS_POINT
"""Least standard deviation of funding in a z-score: a constant rate has no z of infinity."""

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
            (_funding - e.mean(_funding, "7d")) / e.at_least(e.std(_funding, "7d"), _FUNDING_SPREAD_FLOOR),
            -6.0,
            6.0,
        ),
    ),
    Feature(
        "funding_carry_7d",
        "funding",
        "bps",
        "mean funding over 7 d x 21 payments, clipped at 2000 bps",
        "cumulated carry: what a long paid over a week",
        e.clip(21.0 * _BPS * e.mean(_funding, "7d"), -2000.0, 2000.0),
    ),
    Feature(
        "funding_dispersion",
        "funding",
        "bps per 8 h",
        "standard deviation of the newest funding rate over venues, clipped at 100 bps",
        "venues that disagree: limits to arbitrage between them",
        e.at_most(_BPS * column("funding_spread_8h"), 100.0),
    ),
)

_interest_change = e.log(_interest) - e.log(e.lag(_interest, "24h"))
_usd_change = e.log(_interest_usd) - e.log(e.lag(_interest_usd, "24h")) - e.total(bar_return, "24h")

POSITIONING = (
    Feature(
        "open_interest_change_24h",
        "positioning",
        "log ratio",
        "ln of open interest / its value 24 h before, in base (else USD less the return), clipped at 1",
        "leverage build-up; a change of source shows as a jump, hence the clip",
        e.clip(e.first_finite(_interest_change, _usd_change), -1.0, 1.0),
    ),
    Feature(
        "basis_bps",
        "positioning",
        "bps",
        "ln(close / index, else / spot close), mean over 8 h, clipped at 500 bps",
        "perpetual against spot: the pressure that funding answers to",
        e.clip(
            _BPS * e.mean(e.log(_close / e.first_finite(column("index_close"), column("spot_close"))), "8h"),
            -500.0,
            500.0,
        ),
    ),
    Feature(
        "mark_gap_bps",
        "positioning",
        "bps",
        "largest |ln(close / mark)| over 24 h, clipped at 500 bps",
        "last trades that leave the mark: thin books",
        e.at_most(_BPS * e.maximum(e.absolute(e.log(_close / column("mark_close"))), "24h"), 500.0),
    ),
    Feature(
        "taker_imbalance_24h",
        "positioning",
        "fraction, signed",
        "2 x taker buys / volume - 1 over 24 h",
        "order flow: Kyle (1985); given by some venues only",
        e.clip(
            2.0 * e.total(_taker, "24h") / e.total(e.where_finite(_volume, _taker), "24h") - 1.0,
            -1.0,
            1.0,
        ),
    ),
)
