"""The named inputs of features: where each comes from, and how it is looked up.

Declarations only; :mod:`riskml.features.assemble` looks them up, one way for a whole history
and for a single live slot. A slot is the close of a bar; everything in it was known then:

========================  ==================================================================
kind                      value of a slot
========================  ==================================================================
``bar``                   the market's own row with ``ts`` = slot, as first known by then
``spot_bar``              the same on ``<venue>_spot``, else on another ``*_spot`` venue
``venue_median``          median over the other perpetual venues' bars of the symbol
``market``                newest known row of the market's venue, else of the one that stands
                          in, slot by slot
``market_age``            hours since the ``ts`` of the row that ``market`` would take
``venue_spread``          standard deviation over the perpetual venues of the symbol
``event_sum``             sum over the rows that became known within the bar, of one venue
                          as in ``market``; 0 when none did although the source is alive
``fine_sum``              sum over the finer bars that make up the bar, as known at its close, of
                          the first venue, as in ``market``, that has them all
``chain``                 newest known row per chain, sources of a chain combined
``asset``                 newest known row per stablecoin, of the venue nearest to redemption
                          among those whose rows are nearly as new as the newest
========================  ==================================================================

What stands in for a market's venue: the venue's own totals (``<venue>_daily``), else the other
perpetual venues by name, else totals over several venues. Spot venues and lending pools never
do: theirs are other quantities.

A row older than the input's staleness limit is not used, and a slot without a usable row is
NaN. Limits allow for the source's own rhythm, its delay and one missed row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from riskml.errors import DataError, nearest
from riskml.features.columns import PARKINSON, SQUARED_BODY, SQUARED_FALL
from riskml.features.nodes import Axis, Input
from riskml.units import duration_us

InputKind: TypeAlias = Literal[
    "bar",
    "spot_bar",
    "venue_median",
    "market",
    "market_age",
    "venue_spread",
    "event_sum",
    "fine_sum",
    "chain",
    "asset",
]
Combine: TypeAlias = Literal["", "sum", "supply", "mean"]
"""How the series of one chain become one: ``sum`` over all; ``supply``: mean over sources, then
sum over assets; ``mean`` over all."""

EXACT_KINDS: frozenset[InputKind] = frozenset({"bar", "spot_bar", "venue_median", "fine_sum"})
"""Kinds that read the rows of the slot itself; they have no staleness limit."""


@dataclass(frozen=True)
class InputSpec:
    """Where an input comes from."""

    name: str
    table: str
    column: str
    """A column of the table, or one of :data:`riskml.features.columns.COLUMN_EXPRESSIONS`."""
    kind: InputKind
    unit: str
    meaning: str
    staleness: str = ""
    """A row older than this is not used; empty for bars, which are exact."""
    detail: str = ""
    """Only series with this detail in their key (the band of depth, the population of long_short, the
    length of finer bars); empty: any."""
    side: str = ""
    """Of ``event_sum``: only the rows of this side."""
    combine: Combine = ""
    """Of ``chain``."""
    within: str = ""
    """Of ``fine_sum``: only the finer bars of this last part of the bar; empty: of all of it."""

    @property
    def axis(self) -> Axis:
        """What the columns of the input stand for."""
        if self.kind == "chain":
            return "chain"
        return "asset" if self.kind == "asset" else "market"

    @property
    def text(self) -> str:
        """What the feature fingerprint covers."""
        options = "|".join((self.staleness, self.detail, self.side, self.combine))
        if self.within:  # left out otherwise: inputs from before it came keep their text
            options = f"{options}|{self.within}"
        return f"{self.name}={self.table}.{self.column}|{self.kind}|{options}"


_BARS = (
    InputSpec("open", "bars", "open", "bar", "quote", "first trade of the bar"),
    InputSpec("high", "bars", "high", "bar", "quote", "highest trade of the bar"),
    InputSpec("low", "bars", "low", "bar", "quote", "lowest trade of the bar"),
    InputSpec("close", "bars", "close", "bar", "quote", "close of the bar; says whether the bar is present"),
    InputSpec("volume", "bars", "volume", "bar", "base", "traded volume of the bar"),
    InputSpec("taker_buy_volume", "bars", "taker_buy_volume", "bar", "base", "volume bought by takers"),
    InputSpec("mark_close", "marks", "mark_close", "bar", "quote", "mark price at the bar's close"),
    InputSpec("index_close", "marks", "index_close", "bar", "quote", "index price at the bar's close"),
    InputSpec(
        "spot_close",
        "bars",
        "close",
        "spot_bar",
        "quote",
        "close on the venue's spot market '<venue>_spot', else on another spot venue",
    ),
    InputSpec(
        "venue_close",
        "bars",
        "close",
        "venue_median",
        "quote",
        "median close of the symbol on the other perpetual venues",
    ),
)

_FUNDING = (
    InputSpec(
        "funding_8h",
        "funding",
        "rate * 8 / interval_h",
        "market",
        "fraction per 8 h",
        "newest funding rate",
        "24h",
    ),
    InputSpec(
        "funding_interval_h",
        "funding",
        "interval_h",
        "market",
        "hours",
        "time that the newest funding rate covers",
        "24h",
    ),
    InputSpec(
        "funding_age_h",
        "funding",
        "interval_h",
        "market_age",
        "hours",
        "time since the newest funding payment",
        "24h",
    ),
    InputSpec(
        "funding_spread_8h",
        "funding",
        "rate * 8 / interval_h",
        "venue_spread",
        "fraction per 8 h",
        "standard deviation of the newest funding rate over the perpetual venues of the symbol",
        "24h",
    ),
)

_POSITIONING = (
    InputSpec("open_interest", "open_interest", "open_interest", "market", "base", "open contracts", "36h"),
    InputSpec(
        "open_interest_usd", "open_interest", "open_interest_usd", "market", "usd", "open contracts", "36h"
    ),
    InputSpec(
        "depth_bid_usd",
        "depth",
        "bid_usd",
        "market",
        "usd",
        "resting bids within 100 bps of the mid price",
        "12h",
        detail="100",
    ),
    InputSpec(
        "depth_ask_usd",
        "depth",
        "ask_usd",
        "market",
        "usd",
        "resting asks within 100 bps of the mid price",
        "12h",
        detail="100",
    ),
    InputSpec(
        "taker_flow_imbalance",
        "taker_flow",
        "(buy - sell) / (buy + sell)",
        "market",
        "fraction, signed",
        "taker buys less sells over both, of volume, else of value, in the row's period (15 min to 1 d)",
        "36h",
    ),
    InputSpec(
        "long_fraction",
        "long_short",
        "long_fraction",
        "market",
        "fraction",
        "share of the venue's accounts that are long",
        "36h",
        detail="global_account",
    ),
    InputSpec(
        "liquidated_long_usd",
        "liquidations",
        "notional_usd",
        "event_sum",
        "usd per bar",
        "forced closes of longs that became known in the bar",
        "3d",
        side="long",
    ),
    InputSpec(
        "liquidated_short_usd",
        "liquidations",
        "notional_usd",
        "event_sum",
        "usd per bar",
        "forced closes of shorts that became known in the bar",
        "3d",
        side="short",
    ),
)

_CHAINS = (
    InputSpec(
        "bridge_net_flow",
        "flows",
        "inflow_usd - outflow_usd",
        "chain",
        "usd per row's period",
        "value that bridges brought in less what they took out, summed over bridges",
        "3d",
        combine="sum",
    ),
    InputSpec(
        "bridge_gross_flow",
        "flows",
        "inflow_usd + outflow_usd",
        "chain",
        "usd per row's period",
        "value that bridges moved either way, summed over bridges",
        "3d",
        combine="sum",
    ),
    InputSpec(
        "stablecoin_supply",
        "flows",
        "supply_usd",
        "chain",
        "usd",
        "stablecoins in circulation: mean over sources, sum over assets",
        "3d",
        combine="supply",
    ),
    InputSpec(
        "lending_rate",
        "flows",
        "lending_rate",
        "chain",
        "fraction per year",
        "borrow rate, mean over assets and sources",
        "3d",
        combine="mean",
    ),
    InputSpec("tvl", "chains", "tvl_usd", "chain", "usd", "total value locked", "3d", combine="mean"),
    InputSpec(
        "gas_usd",
        "chains",
        "gas_usd",
        "chain",
        "usd per transaction",
        "cost of a transaction",
        "3d",
        combine="mean",
    ),
    InputSpec("gas_gwei", "chains", "gas_gwei", "chain", "gwei", "gas price", "3d", combine="mean"),
    InputSpec(
        "tx_count",
        "chains",
        "tx_count",
        "chain",
        "count per row's period",
        "transactions",
        "3d",
        combine="mean",
    ),
    InputSpec(
        "active_addresses",
        "chains",
        "active_addresses",
        "chain",
        "count per row's period",
        "addresses that sent or received",
        "3d",
        combine="mean",
    ),
    InputSpec(
        "block_time_s",
        "chains",
        "block_time_s",
        "chain",
        "seconds",
        "mean time between blocks",
        "3d",
        combine="mean",
    ),
    InputSpec(
        "peg_deviation",
        "pegs",
        "price_usd / redemption_usd - 1",
        "asset",
        "fraction, signed",
        "distance from redemption (1 USD where none is given) on the venue where it is least, of rows "
        "within 2 h of the newest",
        "36h",
    ),
)

FINE_INTERVALS = ("5m", "15m")
"""Lengths of the finer bars that features look at, the finest first."""


def _fine(interval: str) -> tuple[InputSpec, ...]:
    """What the bars of a finer length say about a bar; NaN unless all of them are there."""
    kind: InputKind = "fine_sum"

    def of(name: str, text: str, unit: str, meaning: str, within: str = "") -> InputSpec:
        return InputSpec(
            f"{name}_{interval}", "bars", text, kind, unit, meaning, detail=interval, within=within
        )

    return (
        of(
            "fine_variance",
            PARKINSON,
            "variance per bar",
            f"sum of the Parkinson variances of {interval} bars",
        ),
        of("fine_square", SQUARED_BODY, "variance per bar", f"sum of the squared returns of {interval} bars"),
        of("fine_fall", SQUARED_FALL, "variance per bar", f"sum of the squared falls of {interval} bars"),
        of(
            "quarter_variance",
            PARKINSON,
            "variance per 15 min",
            f"sum of the Parkinson variances of the {interval} bars in the last quarter of an hour",
            "15m",
        ),
    )


_FINE = tuple(spec for interval in FINE_INTERVALS for spec in _fine(interval))

INPUTS: dict[str, InputSpec] = {
    spec.name: spec for spec in (*_BARS, *_FINE, *_FUNDING, *_POSITIONING, *_CHAINS)
}
"""Every input by name."""


def input_spec(name: str) -> InputSpec:
    """The declaration of an input; an unknown name suggests the nearest."""
    try:
        return INPUTS[name]
    except KeyError:
        raise DataError(f"there is no input '{name}'.{nearest(name, INPUTS)}") from None


def column(name: str) -> Input:
    """An input as a leaf of a feature expression."""
    return Input(name, input_spec(name).axis)


def max_staleness_us(names: Iterable[str] | None = None) -> int:
    """The longest limit among inputs: how far back a store must reach before the first slot."""
    specs = [input_spec(name) for name in (INPUTS if names is None else names)]
    return max((duration_us(spec.staleness) for spec in specs if spec.staleness), default=0)


def reach_us(names: Iterable[str], interval: str) -> int:
    """How far before a slot the rows lie that its inputs read (us): limits; the bar, for finer bars."""
    chosen = list(names)
    has_fine = any(input_spec(name).kind == "fine_sum" for name in chosen)
    return max(max_staleness_us(chosen), duration_us(interval) if has_fine else 0)


def input_tables(names: Iterable[str]) -> tuple[str, ...]:
    """The tables that inputs read, sorted."""
    return tuple(sorted({input_spec(name).table for name in names}))
