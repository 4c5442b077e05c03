"""The named inputs of features, and how they are looked up in a store.

One function, :func:`assemble_inputs`, serves a whole history and a single live slot. A slot
is the close of a bar; everything in it was known at that moment:

- bar inputs are the market's own bar (or mark) that closed in the slot, as it stood then;
- market inputs are the newest known row of the market's venue, else of the next venue in
  alphabetical order, slot by slot;
- chain inputs are a weighted sum over chains (``facts/chain_weights.toml``);
- anything missing or older than the input's limit is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np

from riskml.arrays import Float1D, Float2D, TimeUs
from riskml.errors import DataError, nearest
from riskml.facts import load_facts
from riskml.features.asof import take
from riskml.features.expr import Input
from riskml.features.series import Rows, SeriesKey, SeriesStore
from riskml.markets import Market
from riskml.units import duration_us

InputKind: TypeAlias = Literal[
    "bar", "spot_bar", "market", "venue_spread", "chain_sum", "chain_supply", "peg"
]


@dataclass(frozen=True)
class InputSpec:
    """Where an input comes from."""

    name: str
    table: str
    column: str
    """A column of the table, or one of the documented expressions over its columns."""
    kind: InputKind
    unit: str
    meaning: str
    staleness: str = ""
    """A row older than this is not used; empty for bars, which are exact."""

    @property
    def of_market(self) -> bool:
        """Whether windows over it are cut at gaps in the market's bars."""
        return self.kind in ("bar", "spot_bar", "market", "venue_spread")

    @property
    def text(self) -> str:
        """What the feature fingerprint covers."""
        return f"{self.name}={self.table}.{self.column}|{self.kind}|{self.staleness}"


_SPECS = (
    InputSpec("close", "bars", "close", "bar", "quote", "close of the bar; says whether the bar is present"),
    InputSpec("high", "bars", "high", "bar", "quote", "highest trade of the bar"),
    InputSpec("low", "bars", "low", "bar", "quote", "lowest trade of the bar"),
    InputSpec("volume", "bars", "volume", "bar", "base", "traded volume of the bar"),
    InputSpec("taker_buy_volume", "bars", "taker_buy_volume", "bar", "base", "volume bought by takers"),
    InputSpec("mark_close", "marks", "mark_close", "bar", "quote", "mark price at the bar's close"),
    InputSpec("index_close", "marks", "index_close", "bar", "quote", "index price at the bar's close"),
    InputSpec(
        "spot_close", "bars", "close", "spot_bar", "quote", "close on the venue's spot market, '<venue>_spot'"
    ),
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
        "funding_spread_8h",
        "funding",
        "rate * 8 / interval_h",
        "venue_spread",
        "fraction per 8 h",
        "standard deviation of the newest funding rate over the venues of the symbol",
        "24h",
    ),
    InputSpec("open_interest", "open_interest", "open_interest", "market", "base", "open contracts", "36h"),
    InputSpec(
        "open_interest_usd", "open_interest", "open_interest_usd", "market", "usd", "open contracts", "36h"
    ),
    InputSpec(
        "bridge_net_flow",
        "flows",
        "inflow_usd - outflow_usd",
        "chain_sum",
        "usd per row's period",
        "value that bridges brought in less what they took out",
        "3d",
    ),
    InputSpec(
        "stablecoin_supply",
        "flows",
        "supply_usd",
        "chain_supply",
        "usd",
        "stablecoins in circulation: mean over sources, sum over assets and chains",
        "3d",
    ),
    InputSpec("tvl", "chains", "tvl_usd", "chain_sum", "usd", "total value locked", "3d"),
    InputSpec(
        "peg_deviation",
        "pegs",
        "abs(price_usd / redemption_usd - 1)",
        "peg",
        "fraction",
        "worst stablecoin's distance from redemption (1 USD where none is given), each at its best venue",
        "24h",
    ),
)

INPUTS: dict[str, InputSpec] = {spec.name: spec for spec in _SPECS}
"""Every input by name."""


def input_spec(name: str) -> InputSpec:
    """The declaration of an input; an unknown name suggests the nearest."""
    try:
        return INPUTS[name]
    except KeyError:
        raise DataError(f"there is no input '{name}'.{nearest(name, INPUTS)}") from None


def column(name: str) -> Input:
    """An input as a leaf of a feature expression."""
    return Input(name, input_spec(name).of_market)


def max_staleness_us(names: Iterable[str] | None = None) -> int:
    """The longest limit among inputs: how far back a store must reach before the first slot."""
    specs = [input_spec(name) for name in (INPUTS if names is None else names)]
    return max((duration_us(spec.staleness) for spec in specs if spec.staleness), default=0)


def input_tables(names: Iterable[str]) -> tuple[str, ...]:
    """The tables that inputs read, sorted."""
    return tuple(sorted({input_spec(name).table for name in names}))


def assemble_inputs(
    store: SeriesStore,
    grid_ts: TimeUs,
    markets: Sequence[Market],
    *,
    interval: str,
    names: Iterable[str] | None = None,
) -> dict[str, Float2D]:
    """Look up inputs for every slot and market.

    Parameters
    ----------
    store : series of all tables that the inputs need; a missing one gives NaN.
    grid_ts : [n_bars] int64 us, closes of the bars (one for a live slot).
    markets : columns of the result.
    interval : bars and marks of other intervals are not looked at.
    names : inputs; default all.

    Returns
    -------
    name -> [n_bars, n_markets] float64, C-contiguous; NaN = missing or stale.
    """
    grid = np.asarray(grid_ts, dtype=np.int64)
    chosen = [input_spec(name) for name in (INPUTS if names is None else names)]
    out: dict[str, Float2D] = {}
    for spec in chosen:
        out[spec.name] = np.ascontiguousarray(_ASSEMBLE[spec.kind](store, grid, markets, interval, spec))
    return out


def _value(rows: Rows, text: str) -> Float1D:
    """The column expression of a spec over the rows of a series [n_rows]."""
    if text == "rate * 8 / interval_h":
        return np.asarray(rows.column("rate") * 8.0 / rows.column("interval_h"))
    if text == "inflow_usd - outflow_usd":
        return np.asarray(rows.column("inflow_usd") - rows.column("outflow_usd"))
    if text == "abs(price_usd / redemption_usd - 1)":
        redemption = rows.column("redemption_usd")
        fair = np.where(np.isfinite(redemption) & (redemption > 0.0), redemption, 1.0)
        deviation = np.abs(rows.column("price_usd") / fair - 1.0)
        # Further than 100 % from one dollar: the row is of an asset that is not pegged to the dollar.
        return np.where(deviation < 1.0, deviation, np.nan)
    return rows.column(text)


def _in_force(store: SeriesStore, key: SeriesKey, grid: TimeUs, spec: InputSpec) -> Float1D | None:
    """The spec's value of one series as known at each slot [n_bars]; None without such a series."""
    rows = store.get(key)
    if rows is None:
        return None
    chosen = rows.index.rows(grid, duration_us(spec.staleness))
    return take(_value(rows, spec.column), chosen)


def _bar(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    suffix = "_spot" if spec.kind == "spot_bar" else ""
    out = np.full((len(grid), len(markets)), np.nan)
    for place, market in enumerate(markets):
        rows = store.get(SeriesKey(spec.table, market.venue + suffix, market.symbol, interval))
        if rows is not None:
            out[:, place] = take(rows.column(spec.column), rows.index.exact_rows(grid))
    return out


def _market(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    out = np.full((len(grid), len(markets)), np.nan)
    for place, market in enumerate(markets):
        keys = store.keys(spec.table, market.symbol)
        for key in sorted(keys, key=lambda key: (key.place != market.venue, key)):
            values = _in_force(store, key, grid, spec)
            missing = ~np.isfinite(out[:, place])
            if values is not None and missing.any():
                out[missing, place] = values[missing]
    return out


def _venue_spread(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    out = np.full((len(grid), len(markets)), np.nan)
    for place, market in enumerate(markets):
        columns = [_in_force(store, key, grid, spec) for key in store.keys(spec.table, market.symbol)]
        found = [values for values in columns if values is not None]
        if len(found) >= 2:
            out[:, place] = _finite_std(found)
    return out


def _finite_std(columns: Sequence[Float1D]) -> Float1D:
    """Standard deviation (divisor n) over columns, NaN skipped; NaN with fewer than two values."""
    finite = [np.isfinite(values) for values in columns]
    counts = np.sum(finite, axis=0)
    total = _sum_in_order([np.where(ok, values, 0.0) for ok, values in zip(finite, columns, strict=True)])
    centre = total / np.maximum(counts, 1)
    squares = _sum_in_order(
        [np.where(ok, np.square(values - centre), 0.0) for ok, values in zip(finite, columns, strict=True)]
    )
    return np.where(counts >= 2, np.sqrt(squares / np.maximum(counts, 1)), np.nan)


def _sum_in_order(columns: Sequence[Float1D]) -> Float1D:
    # One by one: a pairwise sum would change its last bits with the number of columns, and with
    # that a value would depend on which other series happen to be loaded.
    total = np.zeros_like(columns[0])
    for values in columns:
        total += values
    return total


def _chain_sum(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    by_chain: dict[str, list[Float1D]] = {}
    for key in store.keys(spec.table):
        values = _in_force(store, key, grid, spec)
        if values is not None:
            by_chain.setdefault(key.place, []).append(values)
    return _weighted({chain: _total(columns) for chain, columns in by_chain.items()}, grid, markets)


def _chain_supply(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    by_asset: dict[tuple[str, str], list[Float1D]] = {}
    for key in store.keys(spec.table):
        values = _in_force(store, key, grid, spec)
        if values is not None:
            by_asset.setdefault((key.place, key.name), []).append(values)
    by_chain: dict[str, list[Float1D]] = {}
    for (chain, _), columns in by_asset.items():
        counts = np.sum([np.isfinite(values) for values in columns], axis=0)
        by_chain.setdefault(chain, []).append(_total(columns) / np.maximum(counts, 1))
    return _weighted({chain: _total(columns) for chain, columns in by_chain.items()}, grid, markets)


def _total(columns: Sequence[Float1D]) -> Float1D:
    """Sum over columns, NaN skipped; NaN where every one is missing."""
    some = np.any([np.isfinite(values) for values in columns], axis=0)
    total = _sum_in_order([np.where(np.isfinite(values), values, 0.0) for values in columns])
    return np.where(some, total, np.nan)


def _weighted(chains: dict[str, Float1D], grid: TimeUs, markets: Sequence[Market]) -> Float2D:
    """Weighted sum over chains for each market [n_bars, n_markets]."""
    out = np.full((len(grid), len(markets)), np.nan)
    sums: dict[tuple[float, ...], Float1D] = {}
    names = sorted(chains)
    for place, market in enumerate(markets):
        weights = tuple(chain_weight(market.symbol, chain) for chain in names)
        if weights not in sums:
            pairs = zip(weights, names, strict=True)
            used = [weight * chains[chain] for weight, chain in pairs if weight != 0.0]
            sums[weights] = _total(used) if used else np.full(len(grid), np.nan)
        out[:, place] = sums[weights]
    return out


@cache
def chain_weight(symbol: str, chain: str) -> float:
    """How much of a chain's value counts for a market (``facts/chain_weights.toml``)."""
    facts = load_facts("chain_weights")
    weights = facts["markets"].get(symbol, facts["default"])
    return float(weights.get(chain, weights.get("*", 0.0)))


def _peg(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    by_asset: dict[str, Float1D] = {}
    for key in store.keys(spec.table):
        values = _in_force(store, key, grid, spec)
        if values is not None:
            # The best venue: a print on one venue alone is not a depeg.
            by_asset[key.name] = np.fmin(by_asset.get(key.name, values), values)
    worst = np.full(len(grid), np.nan)
    for values in by_asset.values():
        worst = np.fmax(worst, values)
    return np.repeat(worst[:, np.newaxis], len(markets), axis=1)


_Assemble = Callable[[SeriesStore, TimeUs, Sequence[Market], str, InputSpec], Float2D]

_ASSEMBLE: dict[InputKind, _Assemble] = {
    "bar": _bar,
    "spot_bar": _bar,
    "market": _market,
    "venue_spread": _venue_spread,
    "chain_sum": _chain_sum,
    "chain_supply": _chain_supply,
    "peg": _peg,
}
