"""Positioning features: how much is open, who takes, what the price is elsewhere, how deep the book is."""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.features.volatility import bar_return
from riskml.units import BASIS_POINT

_close, _volume, _taker = column("close"), column("volume"), column("taker_buy_volume")
_interest, _interest_usd = column("open_interest"), column("open_interest_usd")
_mark, _spot = column("mark_close"), column("spot_close")
_anchor = e.first_finite(column("index_close"), _spot)
_bid, _ask = column("depth_bid_usd"), column("depth_ask_usd")
_BPS = 1.0 / BASIS_POINT
_MIN_LIQUIDATED_USD = 1.0
"""Below it there was no liquidation, and neither side prevails."""

_traded_usd = _close * _volume
interest_usd: Expr = e.first_finite(_interest_usd, _interest * _close)
"""Open interest in USD."""
traded_usd_per_hour: Expr = e.mean(_traded_usd, "24h") / e.BarHours()
"""Value traded per hour, mean over 24 h."""

_interest_growth = e.log(_interest) - e.log(e.lag(_interest, "24h"))
_usd_growth = e.log(_interest_usd) - e.log(e.lag(_interest_usd, "24h")) - e.total(bar_return, "24h")
_illiquidity = e.absolute(bar_return) / _traded_usd
_liquidated_long = e.total(column("liquidated_long_usd"), "24h")
_liquidated_short = e.total(column("liquidated_short_usd"), "24h")
_liquidated = _liquidated_long + _liquidated_short


def _gap_bps(numerator: Expr, denominator: Expr) -> Expr:
    return _BPS * e.log(numerator / denominator)


INTEREST = (
    Feature(
        "open_interest_level_28d",
        "positioning",
        "log ratio",
        "ln of open interest in USD / its mean over 28 d, clipped at 3",
        "leverage against the market's own habit",
        e.clip(e.log(interest_usd / e.mean(interest_usd, "28d")), -3.0, 3.0),
    ),
    Feature(
        "open_interest_change_24h",
        "positioning",
        "log ratio",
        "ln of open interest / its value 24 h before, in base (else USD less the return), clipped at 1",
        "leverage build-up; a change of source shows as a jump, hence the clip",
        e.clip(e.first_finite(_interest_growth, _usd_growth), -1.0, 1.0),
    ),
    Feature(
        "open_interest_to_volume",
        "positioning",
        "log ratio",
        "ln of open interest in USD / value traded in 24 h, clipped at 6",
        "hot money turns over, crowded positions stay: Bessembinder and Seguin (1993)",
        e.clip(e.log(interest_usd / (24.0 * traded_usd_per_hour)), -6.0, 6.0),
        "no trade in 24 h",
    ),
    Feature(
        "open_interest_to_depth",
        "positioning",
        "log ratio",
        "ln of open interest in USD / bids and asks within 100 bps, clipped to [-2, 12]",
        "how often the book would have to be emptied to close everything",
        e.clip(e.log(interest_usd / (_bid + _ask)), -2.0, 12.0),
    ),
    Feature(
        "long_account_skew",
        "positioning",
        "fraction, signed",
        "2 x share of accounts that are long - 1",
        "one-sided crowds: long/short account ratios as the venues publish them",
        e.clip(2.0 * column("long_fraction") - 1.0, -1.0, 1.0),
    ),
)
"""Open interest."""

PRICE_GAPS = (
    Feature(
        "basis_bps",
        "positioning",
        "bps",
        "ln(close / index, else / spot close), mean over 8 h, clipped at 500 bps",
        "perpetual against spot: the pressure that funding answers to",
        e.clip(_BPS * e.mean(e.log(_close / _anchor), "8h"), -500.0, 500.0),
    ),
    Feature(
        "mark_gap_bps",
        "positioning",
        "bps",
        "largest |ln(close / mark)| over 24 h, clipped at 500 bps",
        "last trades that leave the mark: thin books",
        e.at_most(_BPS * e.maximum(e.absolute(e.log(_close / _mark)), "24h"), 500.0),
    ),
    Feature(
        "mark_index_gap_bps",
        "positioning",
        "bps",
        "ln(mark / index, else / spot close), clipped at 500 bps",
        "premium of the price that liquidates over the price that anchors it",
        e.clip(_gap_bps(_mark, _anchor), -500.0, 500.0),
    ),
    Feature(
        "perp_spot_gap_bps",
        "positioning",
        "bps",
        "ln(close / spot close), clipped at 500 bps",
        "He, Manela, Ross and von Wachter (2022), Fundamentals of perpetual futures: the gap to spot",
        e.clip(_gap_bps(_close, _spot), -500.0, 500.0),
    ),
    Feature(
        "venue_gap_bps",
        "positioning",
        "bps",
        "ln(close / median close of the other perpetual venues), clipped at 500 bps",
        "Makarov and Schoar (2020), Trading and arbitrage in cryptocurrency markets",
        e.clip(_gap_bps(_close, column("venue_close")), -500.0, 500.0),
        "no other venue has the bar",
    ),
    Feature(
        "venue_gap_largest_24h",
        "positioning",
        "bps",
        "largest |ln(close / median close of the other venues)| over 24 h, clipped at 500 bps",
        "segmented venues under stress: Makarov and Schoar (2020)",
        e.at_most(e.maximum(e.absolute(_gap_bps(_close, column("venue_close"))), "24h"), 500.0),
        "no other venue has the bars",
    ),
)
"""Prices of the same thing that differ."""

FLOW = (
    Feature(
        "taker_imbalance_24h",
        "positioning",
        "fraction, signed",
        "2 x taker buys / volume - 1 over 24 h, of the bars; else mean over 24 h of the taker flow table",
        "order flow: Kyle (1985), Continuous auctions and insider trading",
        e.clip(
            e.first_finite(
                2.0 * e.total(_taker, "24h") / e.total(e.where_finite(_volume, _taker), "24h") - 1.0,
                e.mean(column("taker_flow_imbalance"), "24h"),
            ),
            -1.0,
            1.0,
        ),
        "neither the bars nor the taker flow table tell takers apart",
    ),
    Feature(
        "order_flow_toxicity_24h",
        "positioning",
        "fraction",
        "mean |2 x taker buys - volume| / mean volume over 24 h",
        "Easley, Lopez de Prado and O'Hara (2012), Flow toxicity and liquidity (VPIN), in bars of time",
        e.clip(
            e.mean(e.absolute(2.0 * _taker - _volume), "24h")
            / e.mean(e.where_finite(_volume, _taker), "24h"),
            0.0,
            1.0,
        ),
        "the bars do not tell takers apart",
    ),
    Feature(
        "illiquidity_24h",
        "positioning",
        "log ratio",
        "ln of mean |r| / value traded over 24 h / the same over 28 d, clipped at 5",
        "Amihud (2002), Illiquidity and stock returns",
        e.clip(e.log(e.mean(_illiquidity, "24h") / e.mean(_illiquidity, "28d")), -5.0, 5.0),
        "bars without a trade do not count",
    ),
    Feature(
        "depth_imbalance",
        "positioning",
        "fraction, signed",
        "(bids - asks) / (bids + asks) within 100 bps",
        "Cont, Kukanov and Stoikov (2014), The price impact of order book events",
        e.clip((_bid - _ask) / (_bid + _ask), -1.0, 1.0),
    ),
    Feature(
        "depth_change_7d",
        "positioning",
        "log ratio",
        "ln of bids and asks within 100 bps / their mean over 7 d, clipped at 3",
        "depth that leaves before a fall: the fuel of a cascade",
        e.clip(e.log((_bid + _ask) / e.mean(_bid + _ask, "7d")), -3.0, 3.0),
    ),
    Feature(
        "liquidation_imbalance_24h",
        "positioning",
        "fraction, signed",
        "(longs - shorts) / max(longs + shorts, 1 USD) of what was liquidated over 24 h; 0 when nothing was",
        "side on which forced closes run",
        (_liquidated_long - _liquidated_short) / e.at_least(_liquidated, _MIN_LIQUIDATED_USD),
        "no liquidation table for the market",
    ),
    Feature(
        "liquidation_intensity_24h",
        "positioning",
        "log of bps",
        "ln(1 + liquidated value / traded value over 24 h, in bps), clipped at 8",
        "forced closes as a share of all trades: liquidation cascades feed themselves",
        e.at_most(e.log(1.0 + _BPS * _liquidated / (24.0 * traded_usd_per_hour)), 8.0),
        "no liquidation table for the market, no trade in 24 h",
    ),
)
"""Takers, the book and forced closes."""
