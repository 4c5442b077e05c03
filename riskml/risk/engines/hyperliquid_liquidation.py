"""Hyperliquid's rules around a liquidation, and the mark price that they read.

::

    equity < MM            market orders: the whole position; of one > 100k USD only 20 % at first, then
                           whole ones during 30 s
    equity < 2/3 MM        the backstop vault takes over
    transfer requirement   max(IM, 10 % of sum N): what a withdrawal has to leave
    ADL rank               (mark / entry) (N / account value), the largest first, among positions in profit
    mark                   median(oracle + EMA_150s(mid - oracle), median(bid, ask, last), weighted median of
                           CEX perps); where exactly two of them exist, with EMA_30s of the second
    EMA                    n / d ;  n -> n exp(-t / window) + sample t ;  d -> d exp(-t / window) + t

Source: Hyperliquid's documentation (trading: liquidations, margining, auto-deleveraging, robust prices)
and its announcement of partial liquidations, by which every market order for a *user* is for an entire
position while the cooldown after any partial liquidation of that user lasts. The figures are dated facts,
``liquidation`` and ``mark_price`` in ``facts/hyperliquid_tiers.toml``.

Not stated by the source, and taken as: the last instant of the cooldown still belongs to it; the rank of an
account without positive value is infinite; the rank has one formula for longs and shorts; a weighted median
on which the weights fall exactly in two is the mean of both prices; the median of the book exists where bid,
ask and last all do; the window of the 30 s EMA takes the place of 2.5 minutes in its formula.

Missing inputs, never in the account's favour: an account whose equity or maintenance is unknown is in the
backstop, an unknown time since the last partial liquidation is within the cooldown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from riskml.arrays import AnyArray, Float1D, Float2D, Int1D
from riskml.errors import DataError
from riskml.facts import load_facts, valid_at


class Stage(IntEnum):
    """What the venue does with an account."""

    NONE = 0
    MARKET_ORDERS = 1
    BACKSTOP = 2


@dataclass(frozen=True)
class LiquidationRules:
    """Figures of the liquidation rules."""

    partial_above_usd: float
    """Notional above which only a part is sent to the book at first."""
    partial_fraction: float
    cooldown_s: float
    """Time after a partial liquidation in which only whole positions are sent."""
    backstop_numerator: int
    backstop_denominator: int
    """Together: share of the maintenance below which the backstop takes over."""
    transfer_fraction: float
    """Share of all notional that a withdrawal has to leave as margin."""

    @classmethod
    def at(cls, ts: int) -> LiquidationRules:
        """The rules in force at ``ts``."""
        entry = valid_at(load_facts("hyperliquid_tiers")["liquidation"], ts)
        return cls(**{name: entry[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class MarkRules:
    """Figures of the mark price."""

    mid_window_s: float
    """Window of the average of mid - oracle."""
    fallback_window_s: float
    """Window of the average that steps in for one missing price."""
    perp_weight: Mapping[str, float]
    """Weight of each exchange's perpetual."""

    @classmethod
    def at(cls, ts: int) -> MarkRules:
        """The rules in force at ``ts``."""
        entry = valid_at(load_facts("hyperliquid_tiers")["mark_price"], ts)
        return cls(**{name: entry[name] for name in cls.__dataclass_fields__})


def liquidation_stage(equity_usd: Float1D, maintenance_usd: Float1D, rules: LiquidationRules) -> Int1D:
    """Stage of each account [n], as :class:`Stage`.

    NaN handling: an unknown equity or maintenance is in the backstop.
    """
    equity, maintenance = np.asarray(equity_usd, np.float64), np.asarray(maintenance_usd, np.float64)
    sound = equity >= maintenance
    # Multiplied out, so that the edge is met exactly.
    above_backstop = equity * rules.backstop_denominator >= maintenance * rules.backstop_numerator
    reached = np.where(above_backstop, Stage.MARKET_ORDERS, Stage.BACKSTOP)
    return np.asarray(np.where(sound, Stage.NONE, reached), dtype=np.int64)


def liquidation_fraction(
    notional_usd: Float1D, since_partial_s: AnyArray | float, rules: LiquidationRules
) -> Float1D:
    """Part of a position that one market order closes [n].

    Parameters
    ----------
    notional_usd : [n] of the position that is liquidated.
    since_partial_s : [n] seconds since any position of the *user* was partially liquidated; infinite = never.

    NaN handling: an unknown notional or time gives the whole position.
    """
    partial = (np.abs(notional_usd) > rules.partial_above_usd) & (since_partial_s > rules.cooldown_s)
    return np.asarray(np.where(partial, rules.partial_fraction, 1.0))


def transfer_requirement_usd(initial_usd: Float1D, notional_usd: Float1D, rules: LiquidationRules) -> Float1D:
    """Margin that a withdrawal has to leave in each account [n].

    Parameters
    ----------
    initial_usd : [n] initial margin of all positions.
    notional_usd : [n] sum of their |notional|.
    """
    return np.asarray(np.maximum(initial_usd, rules.transfer_fraction * np.asarray(notional_usd)))


def adl_rank(mark: Float1D, entry: Float1D, notional_usd: Float1D, account_value_usd: Float1D) -> Float1D:
    """Index by which positions in profit are deleveraged, the largest first [n].

    Parameters
    ----------
    mark, entry : [n] prices, positive.
    notional_usd : [n] |notional| of the position.
    account_value_usd : [n]; at or below 0 the rank is infinite.

    Raises
    ------
    DataError : a price that is not positive, or unknown.
    """
    mark, entry = np.asarray(mark, np.float64), np.asarray(entry, np.float64)
    wrong = ~((mark > 0.0) & (entry > 0.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"a rank needs positive prices, found mark {mark[row]}, entry {entry[row]}", row=row)
    value = np.asarray(account_value_usd, np.float64)
    leverage = np.full(np.shape(value), np.inf)
    np.divide(np.abs(notional_usd), value, out=leverage, where=value > 0.0)
    return np.asarray(mark / entry * leverage)


def update_average(
    numerator: Float1D, denominator: Float1D, sample: Float1D, elapsed_s: Float1D, window_s: float
) -> tuple[Float1D, Float1D]:
    """Numerator and denominator of an exponential average after one more sample [n].

    Start from zeros; the average is numerator / denominator.
    """
    elapsed = np.asarray(elapsed_s, np.float64)
    decay = np.exp(-elapsed / window_s)
    return np.asarray(numerator * decay + sample * elapsed), np.asarray(denominator * decay + elapsed)


def weighted_median(values: Float2D, weights: Float1D) -> Float1D:
    """Weighted median of each row [n_rows] of ``values`` [n_rows, n_sources].

    NaN handling: a source without a price has no weight; a row without any gives NaN.
    """
    values = np.asarray(values, np.float64)
    order = np.argsort(values, axis=1)  # unknown ones last
    ranked = np.take_along_axis(values, order, axis=1)
    weight = np.where(np.isnan(ranked), 0.0, np.asarray(weights, np.float64)[order])
    reached, half = np.cumsum(weight, axis=1), weight.sum(axis=1, keepdims=True) / 2.0
    lower, upper = (np.argmax(beyond, axis=1) for beyond in (reached >= half, reached > half))
    rows = np.arange(len(values))
    return np.asarray((ranked[rows, lower] + ranked[rows, upper]) / 2.0)


def mark_price(
    oracle: Float1D,
    mid_gap: Float1D,
    book: Float2D,
    perps: Mapping[str, Float1D],
    book_average: Float1D,
    rules: MarkRules,
) -> Float1D:
    """Mark price of each market [n].

    Parameters
    ----------
    oracle : [n] oracle price.
    mid_gap : [n] exponential average of mid - oracle over ``rules.mid_window_s``.
    book : [n, 3] best bid, best ask, last trade.
    perps : [n] mid prices by exchange, of those in ``rules.perp_weight``.
    book_average : [n] exponential average of the median of ``book`` over ``rules.fallback_window_s``.

    NaN handling: NaN = does not exist. With one price that one is the mark.

    Raises
    ------
    DataError : an exchange without a weight, or a market without any of the three prices.
    """
    unknown = sorted(perps.keys() - rules.perp_weight.keys())
    if unknown:
        raise DataError(
            f"'{unknown[0]}' has no weight in the mark price", fix=f"pass {sorted(rules.perp_weight)}"
        )
    oracle = np.asarray(oracle, np.float64)
    absent = np.full(len(oracle), np.nan)
    mids = np.column_stack([perps.get(name, absent) for name in rules.perp_weight])
    outside = weighted_median(mids, np.asarray(list(rules.perp_weight.values())))
    prices = np.column_stack([oracle + mid_gap, np.median(book, axis=1), outside])
    exist = (~np.isnan(prices)).sum(axis=1)
    if (exist == 0).any():
        raise DataError("a mark price needs an oracle, a book or a perp price", row=int(np.argmin(exist)))
    stand_in = np.where(exist == 2, book_average, np.nan)
    return np.asarray(np.nanmedian(np.column_stack([prices, stand_in]), axis=1))
