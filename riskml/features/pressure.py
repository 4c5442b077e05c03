"""Estimated liquidation pressure: leverage that a move from here would force out.

Nobody publishes at which price positions were opened and how far they are levered. Both are
estimated from what is known at the time:

- *when opened*: the net growth of open interest over buckets of age (the last day, 1 to 3 d and 3 to
  7 d ago), each as a share of what is open now; shrinking buckets add nothing;
- *at what price*: the mean log close of the bucket;
- *how levered*: equal parts at three tiers. At leverage L a venue closes a position when half of
  its initial margin 1/L is lost (maintenance = half the initial margin at the tier's leverage, the
  rule of Hyperliquid and close to that of others), so at a log distance of 1/(2L) from entry;
- *still open*: the extreme price since the bucket ended has not passed that level, else the
  positions are gone already;
- *near*: weight exp(-distance from now / sigma of a day), 1 at the price of now.

Pressure is the sum over buckets and tiers: the share of open interest that is liquidated by a
small move, in [0, 1]. Longs are hit by a fall, shorts by a rise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce

from riskml.features import expr as e
from riskml.features.inputs import column
from riskml.features.nodes import Expr
from riskml.features.spec import Feature
from riskml.features.volatility import fast_sigma

TIER_LEVERAGE = (50.0, 20.0, 10.0)
"""Leverage of the tiers, of equal weight: liquidation 1 %, 2.5 % and 5 % from entry."""
_DISTANCES = tuple(1.0 / (2.0 * leverage) for leverage in TIER_LEVERAGE)
BUCKETS = (("", "24h", "24h"), ("24h", "72h", "48h"), ("72h", "7d", "96h"))
"""Age at the end and at the begin of each bucket, and its length; "" is now."""
_MAX_GROWTH = 2.0
"""Open interest that grew or fell by more than e^2 is another source, not positions."""
_MAX_EXPONENT = 50.0
"""Keeps exp() finite; the exponent is a distance in daily sigmas."""

_close, _high, _low = column("close"), column("high"), column("low")
_interest, _interest_usd = column("open_interest"), column("open_interest_usd")
_log_close = e.log(_close)
_day_sigma = math.sqrt(24.0) * fast_sigma
_in_base = e.log(_interest)
_in_usd = e.log(_interest_usd) - _log_close


def _sum(parts: Sequence[Expr]) -> Expr:
    return reduce(operator.add, parts)


def _share_open(age: str) -> Expr:
    """Open interest ``age`` ago over that of now, in base units; 1 at age zero."""
    if not age:
        return e.as_expr(1.0)
    growth = e.first_finite(e.lag(_in_base, age) - _in_base, e.lag(_in_usd, age) - _in_usd)
    return e.exp(e.clip(growth, -_MAX_GROWTH, _MAX_GROWTH))


def _bucket(end: str, begin: str, span: str, side: int) -> Expr:
    """Share of open interest in a bucket, times tiers, that a move against ``side`` would close.

    ``side`` is +1 for longs and -1 for shorts.
    """
    added = e.at_least(_share_open(end) - _share_open(begin), 0.0)
    mean = e.mean(_log_close, span)
    entry = e.lag(mean, end) if end else mean
    if side > 0:
        lost = entry - e.log(e.minimum(_low, end) if end else _low)
    else:
        lost = e.log(e.maximum(_high, end) if end else _high) - entry
    tiers = [e.greater(e.as_expr(d), lost) * e.exp(-d / _day_sigma) for d in _DISTANCES]
    # A long gains what a short of the same entry loses, so one factor is the inverse of the other.
    behind = e.exp(e.clip((entry - _log_close) / _day_sigma, -_MAX_EXPONENT, _MAX_EXPONENT))
    near = added * behind if side > 0 else added / behind
    return near * _sum(tiers)


def _pressure(side: int) -> Expr:
    per_tier = 1.0 / len(TIER_LEVERAGE)
    return e.at_most(per_tier * _sum([_bucket(*bucket, side) for bucket in BUCKETS]), 1.0)


def _feature(side: int, name: str, move: str) -> Feature:
    return Feature(
        f"liquidation_pressure_{name}",
        "positioning",
        "fraction of open interest",
        f"sum over ages and leverage tiers of open interest added x not yet liquidated x exp(-{move} to "
        "liquidation / sigma of a day), see riskml/features/pressure.py",
        "Brunnermeier and Pedersen (2009), Market liquidity and funding liquidity; estimate of where forced "
        "closes lie",
        _pressure(side),
        "a bucket of age without open interest at its end or begin",
    )


PRESSURE = (_feature(1, "long", "fall"), _feature(-1, "short", "rise"))
"""Leverage near its liquidation, longs and shorts apart."""
