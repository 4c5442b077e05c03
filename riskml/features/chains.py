"""Cross-chain features: liquidity that arrives on, or leaves, the chains behind a market.

Each is formed per chain or per stablecoin first and then brought to markets with the weights of
``facts/chain_weights.toml``: as their mean where all of the liquidity counts, as the largest value
where one bad chain or coin is enough.

Most inputs move once a day and are known after the day has ended; a window counts bars, so each
day weighs by how long its value was the newest one.
"""

from __future__ import annotations

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.units import BASIS_POINT

_net, _gross = column("bridge_net_flow"), column("bridge_gross_flow")
_supply, _tvl, _rate = column("stablecoin_supply"), column("tvl"), column("lending_rate")
_gas_usd, _gas_gwei = column("gas_usd"), column("gas_gwei")
_transactions, _addresses, _block_time = (
    column("tx_count"),
    column("active_addresses"),
    column("block_time_s"),
)
_peg = column("peg_deviation")
_MIN_FLOW_USD = 1000.0
"""Least flow, and least standard deviation of a flow, that anything is divided by."""
_MIN_RATE_SPREAD = 0.001
"""Least standard deviation of a lending rate in a z-score: a tenth of a percent per year."""
_LEAST_ACTIVITY = 0.01
"""Activity below a hundredth of its habit is a halt, however deep."""
_Z = "standard deviations"
_MEAN = "weighted mean over the market's chains of "
_WORST = "largest over the market's chains of "
_NO_WEIGHT = "chains with less than a quarter of the market's weight have a value"
_NO_CHAIN = "none of the market's chains has a value"


def _log_change(level: Expr, window: str, limit: float) -> Expr:
    return e.clip(e.log(level) - e.log(e.lag(level, window)), -limit, limit)


def _log_to_habit(level: Expr) -> Expr:
    """Log of a level over its mean of 30 d."""
    return e.log(level / e.mean(level, "30d"))


_flow_spread = e.at_least(e.std(_net, "30d"), _MIN_FLOW_USD)
_flow_z = e.clip((_net - e.mean(_net, "30d")) / _flow_spread, -6.0, 6.0)
_flow_3d = e.mean(_net, "3d")
_activity = e.first_finite(
    _transactions / e.mean(_transactions, "30d"), _addresses / e.mean(_addresses, "30d")
)
_off_peg = e.absolute(_peg) / BASIS_POINT

BRIDGES = (
    Feature(
        "bridge_flow_level_7d",
        "cross_chain",
        "fraction, signed",
        _MEAN + "net bridge flow over 7 d / max(gross bridge flow over 7 d, 1000 USD)",
        "direction of the capital that moves between chains",
        e.across_mean(
            e.clip(e.mean(_net, "7d") / e.at_least(e.mean(_gross, "7d"), _MIN_FLOW_USD), -1.0, 1.0)
        ),
        _NO_WEIGHT,
    ),
    Feature(
        "bridge_flow_z_30d",
        "cross_chain",
        _Z,
        _MEAN
        + "(net bridge flow - mean over 30 d) / max(standard deviation over 30 d, 1000 USD), clipped at 6",
        "capital moving between chains ahead of, or after, stress",
        e.across_mean(_flow_z),
        _NO_WEIGHT,
    ),
    Feature(
        "bridge_flow_acceleration_3d",
        "cross_chain",
        _Z,
        _MEAN
        + "(net bridge flow over 3 d - the same 3 d before) / max(standard deviation over 30 d, 1000 USD), "
        "clipped at 6",
        "a run on a chain gathers speed",
        e.across_mean(e.clip((_flow_3d - e.lag(_flow_3d, "3d")) / _flow_spread, -6.0, 6.0)),
        _NO_WEIGHT,
    ),
    Feature(
        "bridge_outflow_worst_30d",
        "cross_chain",
        _Z,
        _WORST + "minus the z-score of bridge_flow_z_30d",
        "one chain that is being left is enough: Nomad and Harmony bridges in 2022",
        e.across_max(-_flow_z),
        _NO_CHAIN,
    ),
)
"""Value that moves over bridges."""

LIQUIDITY = (
    Feature(
        "stablecoin_supply_change_7d",
        "cross_chain",
        "log ratio",
        _MEAN + "ln of stablecoin supply / its value 7 d before, clipped at 0.2",
        "dollars that enter or leave: buying power and redemptions",
        e.across_mean(_log_change(_supply, "7d", 0.2)),
        _NO_WEIGHT,
    ),
    Feature(
        "stablecoin_supply_change_30d",
        "cross_chain",
        "log ratio",
        _MEAN + "ln of stablecoin supply / its value 30 d before, clipped at 0.5",
        "the slow part of the same",
        e.across_mean(_log_change(_supply, "30d", 0.5)),
        _NO_WEIGHT,
    ),
    Feature(
        "tvl_drawdown_30d",
        "cross_chain",
        "log ratio",
        _MEAN + "ln of total value locked / its highest value of 30 d, clipped at -1",
        "lending chains deleverage: value locked falls with prices and withdrawals",
        e.across_mean(e.at_least(e.log(_tvl / e.maximum(_tvl, "30d")), -1.0)),
        _NO_WEIGHT,
    ),
    Feature(
        "lending_rate",
        "cross_chain",
        "percent per year",
        _MEAN + "the borrow rate, clipped to [0, 100]",
        "price of leverage on chain: Gudgeon et al. (2020), DeFi protocols for loanable funds",
        e.across_mean(e.clip(100.0 * _rate, 0.0, 100.0)),
        _NO_WEIGHT,
    ),
    Feature(
        "lending_rate_stress_30d",
        "cross_chain",
        _Z,
        _WORST
        + "(borrow rate - mean over 30 d) / max(standard deviation over 30 d, 0.1 % per year), clipped at 6",
        "pools run dry: rates jump when nearly everything is lent",
        e.across_max(
            e.clip(
                (_rate - e.mean(_rate, "30d")) / e.at_least(e.std(_rate, "30d"), _MIN_RATE_SPREAD), -6.0, 6.0
            )
        ),
        _NO_CHAIN,
    ),
)
"""Dollars and loans on the chains."""

CONGESTION = (
    Feature(
        "gas_stress_30d",
        "cross_chain",
        "log ratio",
        _WORST
        + "ln of the cost of a transaction in USD (else the gas price) / its mean over 30 d, clipped at 4",
        "block space that is fought over: collateral cannot be topped up in time (12 March 2020)",
        e.across_max(e.clip(e.first_finite(_log_to_habit(_gas_usd), _log_to_habit(_gas_gwei)), -4.0, 4.0)),
        _NO_CHAIN,
    ),
    Feature(
        "activity_stall_30d",
        "cross_chain",
        "log ratio",
        _WORST
        + "minus ln of transactions (else active addresses) / their mean over 30 d, clipped to [-2, 4.6]",
        "a chain that stops, or that users leave",
        e.across_max(e.at_least(-e.log(e.at_least(_activity, _LEAST_ACTIVITY)), -2.0)),
        _NO_CHAIN,
    ),
    Feature(
        "block_time_stress_30d",
        "cross_chain",
        "log ratio",
        _WORST + "ln of the time between blocks / its mean over 30 d, clipped at 4",
        "slow blocks delay liquidations and deposits alike",
        e.across_max(e.clip(_log_to_habit(_block_time), -4.0, 4.0)),
        _NO_CHAIN,
    ),
)
"""Chains that are full, or stop."""

PEGS = (
    Feature(
        "peg_deviation_24h",
        "cross_chain",
        "bps",
        "largest over 24 h and the market's stablecoins of |price / redemption - 1|, clipped at 1000 bps",
        "USDC in March 2023, UST in May 2022: collateral that stops being a dollar",
        e.across_max(e.at_most(e.maximum(_off_peg, "24h"), 1000.0)),
        "none of the market's stablecoins has a price",
    ),
    Feature(
        "peg_discount_bps",
        "cross_chain",
        "bps",
        "weighted mean over the market's stablecoins of 1 - price / redemption, clipped at 1000 bps",
        "what collateral has lost: Lyons and Viswanath-Natraj (2023), What keeps stablecoins stable",
        e.across_mean(e.clip(-_peg / BASIS_POINT, -1000.0, 1000.0)),
        "stablecoins with less than a quarter of the market's weight have a price",
    ),
    Feature(
        "peg_speed_24h",
        "cross_chain",
        "bps per day",
        "largest over the market's stablecoins of |price / redemption - 1| less its value 24 h before, "
        "clipped at 1000 bps",
        "a peg that is going, before it is gone",
        e.across_max(e.clip(_off_peg - e.lag(_off_peg, "24h"), -1000.0, 1000.0)),
        "none of the market's stablecoins has a price then and now",
    ),
)
"""Stablecoins against what they redeem for."""

CROSS_CHAIN = (*BRIDGES, *LIQUIDITY, *CONGESTION, *PEGS)
"""Every feature of the family."""
