"""Cross-chain features: liquidity that arrives on, or leaves, the chains behind a market.

Their inputs move once a day and are known after the day has ended; a window counts bars, so
each day weighs by how long its value was the newest one.
"""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.expr import Expr
from riskml.features.inputs import column
from riskml.features.spec import Feature
from riskml.units import BASIS_POINT

_flow = column("bridge_net_flow")
_tvl = column("tvl")
_MIN_FLOW_SPREAD_USD = 1000.0
"""Least standard deviation of a flow in a z-score."""


def _log_change(level: Expr, window: str, limit: float) -> Expr:
    return e.clip(e.log(level) - e.log(e.lag(level, window)), -limit, limit)


CROSS_CHAIN = (
    Feature(
        "bridge_flow_z_30d",
        "cross_chain",
        "standard deviations",
        "(net bridge flow - mean over 30 d) / max(standard deviation over 30 d, 1000 USD), clipped at 6",
        "capital moving between chains ahead of, or after, stress",
        e.clip(
            (_flow - e.mean(_flow, "30d")) / e.at_least(e.std(_flow, "30d"), _MIN_FLOW_SPREAD_USD),
            -6.0,
            6.0,
        ),
    ),
    Feature(
        "stablecoin_supply_change_7d",
        "cross_chain",
        "log ratio",
        "ln of stablecoin supply / its value 7 d before, clipped at 0.2",
        "dollars that enter or leave: buying power and redemptions",
        _log_change(column("stablecoin_supply"), "7d", 0.2),
    ),
    Feature(
        "tvl_drawdown_30d",
        "cross_chain",
        "log ratio",
        "ln of total value locked / its highest value of 30 d, clipped at -1",
        "lending chains deleverage: value locked falls with prices and withdrawals",
        e.at_least(e.log(_tvl / e.maximum(_tvl, "30d")), -1.0),
    ),
    Feature(
        "peg_deviation_24h",
        "cross_chain",
        "bps",
        "largest over 24 h of the worst stablecoin's distance from redemption, clipped at 1000 bps",
        "USDC in March 2023, UST in May 2022: collateral that stops being a dollar",
        e.at_most(e.maximum(column("peg_deviation"), "24h") / BASIS_POINT, 1000.0),
    ),
)
