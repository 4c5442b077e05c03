"""Which series may give an input's values: for every column, in order of preference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from riskml.arrays import Int2D
from riskml.facts import load_facts
from riskml.features.inputs import InputKind, InputSpec
from riskml.features.series import SeriesKey, SeriesStore
from riskml.features.weights import axis_columns
from riskml.markets import SPOT_SUFFIX, Market, venue_kind
from riskml.units import duration_us


def candidates(
    store: SeriesStore, spec: InputSpec, markets: Sequence[Market], interval: str
) -> list[list[SeriesKey]]:
    """The series of each column of an input, see :data:`riskml.features.inputs.InputKind`."""
    if spec.axis == "chain":
        return _by(store.keys(spec.table), axis_columns("chain"), lambda key: key.place)
    if spec.axis == "asset":
        return _by(store.keys(spec.table), axis_columns("asset"), lambda key: key.name)
    choose = _OF_MARKET.get(spec.kind, _own_venue_first)
    return [list(choose(store, spec, market, interval)) for market in markets]


_UNLIMITED = np.iinfo(np.int64).max // 4


@cache
def source_limit_us(key: SeriesKey) -> int:
    """How long a value of the series' source stays good (``[limits]`` of ``facts/sources.toml``).

    A source is a venue, and for tables of chains what the row names as its source. The input's own
    limit holds where the source has none; the smaller of the two otherwise.
    """
    limits = load_facts("sources")["limits"].get(key.table, {})
    source = key.place if key.table not in _OF_CHAINS else (key.detail or key.name)
    return duration_us(limits[source]) if source in limits else _UNLIMITED


_OF_CHAINS = ("flows", "chains")


def padded(numbers: Sequence[Sequence[int]]) -> Int2D:
    """Lists per column as an array [n_candidates, n_columns]; -1 where a list is shorter."""
    out = np.full((max(map(len, numbers), default=0), len(numbers)), -1, dtype=np.int64)
    for column, of_column in enumerate(numbers):
        out[: len(of_column), column] = of_column
    return out


def _by(
    keys: Sequence[SeriesKey], names: Sequence[str], part: Callable[[SeriesKey], str]
) -> list[list[SeriesKey]]:
    of_name: dict[str, list[SeriesKey]] = {name: [] for name in names}
    for key in keys:
        if part(key) in of_name:
            of_name[part(key)].append(key)
    return list(of_name.values())


def _own_bar(store: SeriesStore, spec: InputSpec, market: Market, interval: str) -> Iterator[SeriesKey]:
    key = SeriesKey(spec.table, market.venue, market.symbol, interval)
    if store.get(key) is not None:
        yield key


def _spot_bars(store: SeriesStore, spec: InputSpec, market: Market, interval: str) -> Iterator[SeriesKey]:
    own = market.venue + SPOT_SUFFIX
    spot = [key for key in _bars(store, spec, market, interval) if key.place.endswith(SPOT_SUFFIX)]
    yield from sorted(spot, key=lambda key: key.place != own)


def _other_perpetuals(
    store: SeriesStore, spec: InputSpec, market: Market, interval: str
) -> Iterator[SeriesKey]:
    for key in _bars(store, spec, market, interval):
        if key.place != market.venue and venue_kind(key.place) in _SINGLE:
            yield key


def _bars(store: SeriesStore, spec: InputSpec, market: Market, interval: str) -> Iterator[SeriesKey]:
    return (key for key in store.keys(spec.table, market.symbol) if key.detail == interval)


def _own_venue_first(
    store: SeriesStore, spec: InputSpec, market: Market, interval: str
) -> Iterator[SeriesKey]:
    keys = [
        key
        for key in store.keys(spec.table, market.symbol)
        if spec.detail in ("", key.detail)
        and (key.place == market.venue or venue_kind(key.place) in _STANDS_IN)
    ]
    # Sorting is stable: venues of one rank stay in alphabetical order.
    yield from sorted(keys, key=lambda key: _rank(key.place, market.venue))


def _rank(venue: str, own: str) -> int:
    """The own venue first, then its own totals, then venues like it, then totals of several."""
    if venue == own:
        return 0
    stands_in = _STANDS_IN[venue_kind(venue)]
    return 1 if stands_in == _TOTALS and venue.startswith(f"{own}_") else stands_in


def _every_perpetual(
    store: SeriesStore, spec: InputSpec, market: Market, interval: str
) -> Iterator[SeriesKey]:
    keys = store.keys(spec.table, market.symbol)
    return (key for key in keys if spec.detail in ("", key.detail) and venue_kind(key.place) in _SINGLE)


_TOTALS = 3
_STANDS_IN = {"perpetual": 2, "generated": 2, "aggregate": _TOTALS}
"""Kinds of venues that may stand in for a market's own, and their rank. A spot book is a tenth of
a perpetual's, and loans are not positions: neither does."""
_SINGLE = frozenset({"perpetual", "generated"})
"""Kinds that are one venue. An aggregate among them would count each venue again."""


_Choose = Callable[[SeriesStore, InputSpec, Market, str], Iterator[SeriesKey]]

_OF_MARKET: dict[InputKind, _Choose] = {
    "bar": _own_bar,
    "spot_bar": _spot_bars,
    "venue_median": _other_perpetuals,
    "venue_spread": _every_perpetual,
}
