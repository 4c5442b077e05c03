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
    if text not in rows.derived:
        rows.derived[text] = _derive(rows, text)
    return rows.derived[text]


def _derive(rows: Rows, text: str) -> Float1D:
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
    return np.ascontiguousarray(rows.column(text))


def _look_up(rows: Rows | None, grid: TimeUs, spec: InputSpec) -> Float1D:
    """The spec's value of one series at each slot [n_bars]; NaN without such a series."""
    if rows is None:
        return np.full(len(grid), np.nan)
    values = _value(rows, spec.column)
    exact = not spec.staleness
    limit = 0 if exact else _staleness_us(spec.staleness)
    if len(grid) == 1:
        slot = int(grid[0])
        row = rows.index.exact_row(slot) if exact else rows.index.row(slot, limit)
        return values[row : row + 1] if row >= 0 else np.full(1, np.nan)
    return take(values, rows.index.exact_rows(grid) if exact else rows.index.rows(grid, limit))


_staleness_us = cache(duration_us)


def _matrix(store: SeriesStore, keys: Sequence[SeriesKey], grid: TimeUs, spec: InputSpec) -> Float2D:
    """Values of several series [n_bars, n_series]."""
    out = np.empty((len(grid), len(keys)))
    for place, key in enumerate(keys):
        out[:, place] = _look_up(store.get(key), grid, spec)
    return out


def _bar(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    suffix = "_spot" if spec.kind == "spot_bar" else ""
    keys = [SeriesKey(spec.table, market.venue + suffix, market.symbol, interval) for market in markets]
    return _matrix(store, keys, grid, spec)


def _market(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    out = np.full((len(grid), len(markets)), np.nan)
    for place, market in enumerate(markets):
        keys = store.keys(spec.table, market.symbol)
        keys.sort(key=lambda key: key.place != market.venue)
        for key in keys:
            missing = ~np.isfinite(out[:, place])
            if missing.any():
                out[missing, place] = _look_up(store.get(key), grid, spec)[missing]
    return out


def _venue_spread(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    out = np.full((len(grid), len(markets)), np.nan)
    for place, market in enumerate(markets):
        keys = store.keys(spec.table, market.symbol)
        if len(keys) < 2:
            continue
        values = _matrix(store, keys, grid, spec)
        counts = np.isfinite(values).sum(axis=1)
        centre = _total(values) / np.maximum(counts, 1)
        squares = _total(np.square(values - centre[:, np.newaxis]))
        out[:, place] = np.where(counts >= 2, np.sqrt(squares / np.maximum(counts, 1)), np.nan)
    return out


def _chain_sum(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    keys = store.keys(spec.table)
    return _weighted(_matrix(store, keys, grid, spec), keys, markets)


def _chain_supply(
    store: SeriesStore, grid: TimeUs, markets: Sequence[Market], interval: str, spec: InputSpec
) -> Float2D:
    keys = store.keys(spec.table)
    values = _matrix(store, keys, grid, spec)
    if keys:
        # Keys are sorted, so the sources of one chain and asset stand next to each other.
        names = [(key.place, key.name) for key in keys]
        first = [place for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
        counts = np.add.reduceat(np.isfinite(values).astype(np.int64), first, axis=1)
        group = np.repeat(np.arange(len(first)), np.diff([*first, len(keys)]))
        values = values / np.maximum(counts, 1)[:, group]
    return _weighted(values, keys, markets)


def _weighted(values: Float2D, keys: Sequence[SeriesKey], markets: Sequence[Market]) -> Float2D:
    """Sum over series, weighted by their chain's weight for each market [n_bars, n_markets]."""
    out = np.full((len(values), len(markets)), np.nan)
    sums: dict[str, Float1D] = {}
    for place, market in enumerate(markets):
        profile = _weight_profile(market.symbol)
        if profile not in sums:
            weights = np.array([chain_weight(market.symbol, key.place) for key in keys])
            sums[profile] = _total(np.where(weights == 0.0, np.nan, weights * values) if keys else values)
        out[:, place] = sums[profile]
    return out


def _total(values: Float2D) -> Float1D:
    """Sum over the last axis [n_bars], NaN skipped; NaN where every value is missing."""
    finite = np.isfinite(values)
    if values.shape[1] == 0:
        return np.full(len(values), np.nan)
    # A running sum adds from left to right. A pairwise one would change its last bits with the
    # number of columns, and a value would depend on which other series happen to be loaded.
    total = np.cumsum(np.where(finite, values, 0.0), axis=1)[:, -1]
    return np.where(finite.any(axis=1), total, np.nan)


def _weight_profile(symbol: str) -> str:
    """Markets with an equal profile have equal weights."""
    return symbol if symbol in load_facts("chain_weights")["markets"] else ""


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
        values = _look_up(store.get(key), grid, spec)
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
