"""A slow second opinion on look-ups: one slot, one cell at a time, over lists of raw rows.

Follows the words of the declarations (:mod:`riskml.features.inputs`); no index, no sorting of series.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from riskml.contracts import contract
from riskml.facts import load_facts
from riskml.features.columns import MAX_PEG_PREMIUM
from riskml.features.inputs import InputSpec
from riskml.features.weights import axis_columns
from riskml.markets import Market

Row: TypeAlias = dict[str, Any]
HOUR_US = 3600 * 10**6
UNIT_HOURS = {"h": 1, "d": 24}
MINUTE_US = HOUR_US // 60
NAN = math.nan


class LookUps:
    """Inputs of any slot from the raw rows of all tables."""

    def __init__(self, tables: Mapping[str, Mapping[str, np.ndarray]], interval: str) -> None:
        self.interval = interval
        self.series: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
        for table, columns in tables.items():
            names = list(columns)
            series: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
            for cells in zip(*(columns[name].tolist() for name in names), strict=True):
                row = dict(zip(names, cells, strict=True))
                series[tuple(row[name] for name in contract(table).key if name != "ts")].append(row)
            self.series[table] = dict(sorted(series.items(), key=lambda item: tuple(map(str, item[0]))))

    def market(self, spec: InputSpec, slot: int, market: Market) -> float:
        """The cell of an input with a column per market."""
        return {
            "bar": self._bar,
            "spot_bar": self._spot_bar,
            "venue_median": self._venue_median,
            "market": lambda *place: self._newest_of_market(*place)[0],
            "market_age": self._age,
            "venue_spread": self._venue_spread,
            "event_sum": self._event_sum,
            "fine_sum": self._fine_sum,
        }[spec.kind](spec, slot, market)

    def column(self, spec: InputSpec, slot: int, place: int) -> float:
        """The cell of an input with a column per chain or stablecoin."""
        name = axis_columns(spec.axis)[place]
        return self._chain(spec, slot, name) if spec.kind == "chain" else self._asset(spec, slot, name)

    def _of(self, table: str, **wanted: object) -> list[tuple[dict[str, Any], list[Row]]]:
        """Series of a table whose key has the wanted values, in the order of their keys."""
        names = [name for name in contract(table).key if name != "ts"]
        found = []
        for key, rows in self.series.get(table, {}).items():
            parts = dict(zip(names, key, strict=True))
            if all(parts.get(name) == value for name, value in wanted.items()):
                found.append((parts, rows))
        return found

    def _exact(self, spec: InputSpec, slot: int, venue: str, symbol: str) -> float:
        for _, rows in self._of(spec.table, venue=venue, symbol=symbol, interval=self.interval):
            for row in rows:
                if row["ts"] == slot and row["known_at"] <= slot:
                    return cell(spec.column, row)
        return NAN

    def _bar(self, spec: InputSpec, slot: int, market: Market) -> float:
        return self._exact(spec, slot, market.venue, market.symbol)

    def _spot_bar(self, spec: InputSpec, slot: int, market: Market) -> float:
        own = f"{market.venue}_spot"
        others = {key["venue"] for key, _ in self._of(spec.table, symbol=market.symbol)} - {own}
        venues = [own, *sorted(venue for venue in others if venue.endswith("_spot"))]
        values = [self._exact(spec, slot, venue, market.symbol) for venue in venues]
        return next((value for value in values if math.isfinite(value)), NAN)

    def _venue_median(self, spec: InputSpec, slot: int, market: Market) -> float:
        found = {key["venue"] for key, _ in self._of(spec.table, symbol=market.symbol)} - {market.venue}
        perpetual = [venue for venue in found if kind_of(venue) in ("perpetual", "generated")]
        values = [self._exact(spec, slot, venue, market.symbol) for venue in perpetual]
        values = [value for value in values if math.isfinite(value)]
        return statistics.median(values) if values else NAN

    def _market_series(self, spec: InputSpec, market: Market) -> list[tuple[dict[str, Any], list[Row]]]:
        """The symbol's series: the market's own venue first, see :func:`rank`."""
        found = [
            (key, rows)
            for key, rows in self._of(spec.table, symbol=market.symbol)
            if key["venue"] == market.venue or kind_of(key["venue"]) in STAND_INS
        ]
        if spec.detail:
            found = [(key, rows) for key, rows in found if spec.detail in map(as_text, key.values())]
        if spec.side:
            found = [(key, rows) for key, rows in found if key["side"] == spec.side]
        return sorted(found, key=lambda item: rank(item[0]["venue"], market))

    def _newest_of_market(self, spec: InputSpec, slot: int, market: Market) -> tuple[float, float]:
        """Value and hours since its ``ts``."""
        for key, rows in self._market_series(spec, market):
            row = newest(rows, slot, limit_hours(spec, key))
            if row is not None and math.isfinite(value := cell(spec.column, row)):
                return value, (slot - row["ts"]) / HOUR_US
        return NAN, NAN

    def _age(self, spec: InputSpec, slot: int, market: Market) -> float:
        return self._newest_of_market(spec, slot, market)[1]

    def _venue_spread(self, spec: InputSpec, slot: int, market: Market) -> float:
        values = self._newest_values(
            spec,
            slot,
            (
                (key, rows)
                for key, rows in self._of(spec.table, symbol=market.symbol)
                if kind_of(key["venue"]) in ("perpetual", "generated")
            ),
        )
        return statistics.pstdev(values) if len(values) >= 2 else NAN

    def _event_sum(self, spec: InputSpec, slot: int, market: Market) -> float:
        every = self._market_series(replace(spec, side=""), market)
        venues = sorted({key["venue"] for key, _ in every}, key=lambda venue: rank(venue, market))
        before = slot - hours(self.interval) * HOUR_US
        for venue in venues:
            alive, amounts = False, []
            for key, rows in every:
                if key["venue"] != venue:
                    continue
                alive = alive or newest(rows, slot, hours(spec.staleness)) is not None
                for row in rows:
                    first = min(known(other) for other in rows if other["ts"] == row["ts"])
                    recent = slot - row["ts"] <= hours(spec.staleness) * HOUR_US
                    now = before < known(row) <= slot and known(row) == first
                    if key["side"] == spec.side and now and recent:
                        amounts.append(cell(spec.column, row))
            amounts = [amount for amount in amounts if math.isfinite(amount)]
            if amounts or alive:
                return math.fsum(amounts)
        return NAN

    def _fine_sum(self, spec: InputSpec, slot: int, market: Market) -> float:
        fine, bar = minutes(spec.detail), minutes(self.interval)
        span = minutes(spec.within) if spec.within else bar
        if fine >= bar or bar % fine or span > bar:
            return NAN
        for _, rows in self._market_series(spec, market):
            parts = []
            for close in range(slot, slot - span * MINUTE_US, -fine * MINUTE_US):
                known_rows = [row for row in rows if row["ts"] == close and known(row) <= slot]
                if known_rows:
                    parts.append(cell(spec.column, max(known_rows, key=known)))
            if len(parts) == span // fine and all(map(math.isfinite, parts)):
                return math.fsum(parts)
        return NAN

    def _newest_values(
        self, spec: InputSpec, slot: int, series: Iterable[tuple[dict[str, Any], Sequence[Row]]]
    ) -> list[float]:
        found = (newest(rows, slot, limit_hours(spec, key)) for key, rows in series)
        values = [cell(spec.column, row) for row in found if row is not None]
        return [value for value in values if math.isfinite(value)]

    def _chain(self, spec: InputSpec, slot: int, chain: str) -> float:
        every = self._of(spec.table, chain=chain)
        if spec.combine == "supply":
            means = []
            for asset in sorted({key["asset"] for key, _ in every}):
                of_asset = ((key, rows) for key, rows in every if key["asset"] == asset)
                if values := self._newest_values(spec, slot, of_asset):
                    means.append(math.fsum(values) / len(values))
            return math.fsum(means) if means else NAN
        values = self._newest_values(spec, slot, every)
        if not values:
            return NAN
        return math.fsum(values) / (len(values) if spec.combine == "mean" else 1)

    def _asset(self, spec: InputSpec, slot: int, asset: str) -> float:
        every = self._of(spec.table, asset=asset)
        rows = (newest(rows, slot, limit_hours(spec, key)) for key, rows in every)
        known_rows = [row for row in rows if row is not None and math.isfinite(cell(spec.column, row))]
        freshest = max((row["ts"] for row in known_rows), default=0)
        near = [row for row in known_rows if row["ts"] >= freshest - PEG_COMPANY_H * HOUR_US]
        return min((cell(spec.column, row) for row in near), key=abs, default=NAN)


STAND_INS = ("perpetual", "generated", "aggregate")
PEG_COMPANY_H = 2
"""Prices of a stablecoin further apart than this are not compared."""


def kind_of(venue: str) -> str:
    """What a venue is; one that the facts lack is a perpetual one, unless it is called spot."""
    unlisted = "spot" if venue.endswith("_spot") else "perpetual"
    return str(load_facts("venues")["venue"].get(venue, {}).get("kind", unlisted))


def rank(venue: str, market: Market) -> tuple[int, str]:
    """Own venue first, then its own totals, then single ones, other totals last; each by name."""
    if venue == market.venue:
        return 0, venue
    if kind_of(venue) != "aggregate":
        return 2, venue
    return (1 if venue.startswith(market.venue + "_") else 3), venue


def limit_hours(spec: InputSpec, key: Mapping[str, Any]) -> int:
    """The input's limit, or its source's where that is smaller."""
    limits = load_facts("sources")["limits"].get(spec.table, {})
    source = key["source"] if spec.table in ("flows", "chains") else key["venue"]
    return min(hours(spec.staleness), hours(limits.get(source, "9999h")))


def hours(duration: str) -> int:
    """``"36h"`` -> 36."""
    return int(duration[:-1]) * UNIT_HOURS[duration[-1]]


def minutes(duration: str) -> int:
    """``"15m"`` -> 15."""
    return int(duration[:-1]) if duration.endswith("m") else 60 * hours(duration)


def as_text(part: object) -> str:
    """A part of a key as a declaration writes it: 100.0 as 100."""
    return f"{part:g}" if isinstance(part, float) else str(part)


def known(row: Row) -> int:
    """Nothing is known before it happened."""
    return int(max(row["ts"], row["known_at"]))


def newest(rows: Sequence[Row], slot: int, staleness_h: int) -> Row | None:
    """The row with the latest ``ts`` that is known; of several versions the one that was known last."""
    usable = [row for row in rows if known(row) <= slot]
    if not usable:
        return None
    row = max(usable, key=lambda row: (row["ts"], known(row)))
    return row if slot - row["ts"] <= staleness_h * HOUR_US else None


def _imbalance(buy: float, sell: float) -> float:
    return (buy - sell) / (buy + sell) if buy + sell > 0.0 else NAN


def _taker(row: Row) -> float:
    of_volume = _imbalance(row["buy_volume"], row["sell_volume"])
    return of_volume if math.isfinite(of_volume) else _imbalance(row["buy_usd"], row["sell_usd"])


def _peg(row: Row) -> float:
    fair = row["redemption_usd"]
    away = row["price_usd"] / (fair if math.isfinite(fair) and fair > 0.0 else 1.0) - 1.0
    return away if away <= MAX_PEG_PREMIUM else NAN


EXPRESSIONS: dict[str, Callable[[Row], float]] = {
    "rate * 8 / interval_h": lambda row: row["rate"] * 8.0 / row["interval_h"],
    "inflow_usd - outflow_usd": lambda row: row["inflow_usd"] - row["outflow_usd"],
    "inflow_usd + outflow_usd": lambda row: row["inflow_usd"] + row["outflow_usd"],
    "(buy - sell) / (buy + sell)": _taker,
    "price_usd / redemption_usd - 1": _peg,
    "ln(high / low)^2 / (4 ln 2)": lambda row: math.log(row["high"] / row["low"]) ** 2 / math.log(16.0),
    "ln(close / open)^2": lambda row: math.log(row["close"] / row["open"]) ** 2,
    "min(ln(close / open), 0)^2": lambda row: min(math.log(row["close"] / row["open"]), 0.0) ** 2,
}


def cell(column: str, row: Row) -> float:
    """A column of a row, or the expression that a declaration names."""
    return float(EXPRESSIONS[column](row) if column in EXPRESSIONS else row[column])
