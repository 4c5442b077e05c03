"""Drift v2: whether an oracle's price may be used for margin, in the program's integers.

Prices in 1e6 units of USD, ``//`` rounding down; the first that holds is the finding::

    price <= 0                                             non-positive
    max(price, TWAP) // max(min(price, TWAP), 1) > 5       too volatile
    confidence 10^6 // price > 20_000 x tier multiple      too uncertain (2 % of the price)
    delay > 120 slots                                      stale

Source: drift-labs/protocol-v2 (04c1f94), programs/drift/src: math/oracle.rs, ``oracle_validity`` and, for
``MarginCalc``, ``is_oracle_valid_for_action``; state/state.rs (0979445). Of its findings, too few publishers
and stale for the AMM do not concern margin and are left out, and so is the tripled age of stablecoins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from riskml.arrays import AnyArray, Float1D, Int1D
from riskml.facts import load_facts, valid_at
from riskml.risk.engines.drift_v2 import entry_column, perp_entries, to_units
from riskml.risk.engines.interface import VenueState


class OracleValidity(IntEnum):
    """What is wrong with an oracle's price, worst first; only VALID allows new risk or withdrawals."""

    NON_POSITIVE = 0
    TOO_VOLATILE = 1
    TOO_UNCERTAIN = 2
    STALE = 3
    VALID = 4


@dataclass(frozen=True)
class OracleRules:
    """Limits of a valid oracle price."""

    stale_after_slots: int
    max_confidence_1e6: int
    """Width of the confidence interval, of the price."""
    too_volatile_ratio: int
    slot_s: float
    """Seconds of a slot."""

    @classmethod
    def at(cls, ts: int) -> OracleRules:
        """The rules in force at ``ts``."""
        entry = valid_at(load_facts("drift_v2_markets")["rules"], ts)
        names = ("stale_after_slots", "max_confidence_1e6", "too_volatile_ratio", "slot_s")
        return cls(*(entry[name] for name in names))


def oracle_validity(
    price_1e6: AnyArray,
    twap_1e6: AnyArray,
    confidence_1e6: AnyArray,
    delay_slots: AnyArray,
    rules: OracleRules,
    multiplier: AnyArray | int = 1,
) -> Int1D:
    """Worst finding about an oracle's price [n], as :class:`OracleValidity`.

    Parameters
    ----------
    price_1e6, twap_1e6, confidence_1e6 : [n] price, its time-weighted average (the program keeps one of the
        funding period for this) and half width of the confidence interval, in 1e6 units of USD.
    delay_slots : [n] age of the price.
    multiplier : the market tier's multiple of the widest interval.
    """
    price, twap = np.asarray(price_1e6, dtype=object), np.asarray(twap_1e6, dtype=object)
    high, low = np.maximum(price, twap), np.maximum(np.minimum(price, twap), 1)
    width = np.asarray(confidence_1e6, dtype=object) * 10**6 // np.maximum(price, 1)
    widest = rules.max_confidence_1e6 * np.asarray(multiplier, dtype=object)
    stale = np.asarray(delay_slots, dtype=object) > rules.stale_after_slots
    found = np.where(stale, OracleValidity.STALE, OracleValidity.VALID)
    found = np.where(width > widest, OracleValidity.TOO_UNCERTAIN, found)
    found = np.where(high // low > rules.too_volatile_ratio, OracleValidity.TOO_VOLATILE, found)
    return np.asarray(np.where(price <= 0, OracleValidity.NON_POSITIVE, found), dtype=np.int64)


def market_oracle_validity(
    markets: Sequence[tuple[str, str]], price: Float1D, state: VenueState, ts: int
) -> Int1D:
    """:func:`oracle_validity` of (venue, symbol) pairs [n_pairs] at oracle prices ``price``, USD.

    ``state.confidence`` is in USD, like the price; an age counts in full slots. What the state lacks is taken
    as invalid: a TWAP as too volatile, a confidence as too uncertain, an age as stale.
    """
    rules, known = OracleRules.at(ts), np.nan_to_num(np.asarray(price, dtype=np.float64))
    twap, confidence, age = (state.of(name, markets) for name in ("twap_price", "confidence", "oracle_age_s"))
    found = oracle_validity(
        to_units(known, 1e6),
        to_units(np.where(np.isnan(twap), known, twap), 1e6),
        to_units(np.nan_to_num(confidence), 1e6),
        to_units(np.ceil(np.nan_to_num(age) / rules.slot_s), 1.0),
        rules,
        entry_column(perp_entries(markets, ts), "confidence_multiplier", np.arange(len(markets))),
    )
    for value, worst in (
        (twap, OracleValidity.TOO_VOLATILE),
        (confidence, OracleValidity.TOO_UNCERTAIN),
        (age, OracleValidity.STALE),
    ):
        found = np.where(np.isnan(value), np.minimum(found, worst), found)
    return np.asarray(found, dtype=np.int64)
