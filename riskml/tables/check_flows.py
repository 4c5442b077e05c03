"""Checks of depth and taker flow against the traded value of the same symbol.

A column that is called USD and holds base units follows every rule of its table. Beside
the bars it stands out: takers cannot trade 50 times what was traded, and the book within
a percent or so is neither a five-hundredth of an hour's trade nor a week of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray
from riskml.errors import Problem
from riskml.tables.partitions import LakePartition
from riskml.units import DAY, HOUR, duration_us

_MONTH = 30 * DAY
_FLOW_FACTOR = 50.0
"""Taker flow over traded volume, per hour; seen on real venues: 0.1 (spot beside perpetual) to 1.8."""
_DEPTH_RANGE = (0.002, 200.0)
"""Depth over the value that is traded in an hour; seen on real venues: 0.04 to 1.2."""


@dataclass(frozen=True)
class _Level:
    """A column's mean per hour over a month."""

    partition: LakePartition
    column: str
    value: float


class TradedLevels:
    """Gathers hourly means of volumes and of depth by symbol and month, then compares them."""

    def __init__(self) -> None:
        self._traded: dict[tuple[str, int], list[tuple[str, float, float]]] = {}
        self._found: dict[tuple[str, int], list[_Level]] = {}

    def add(self, partition: LakePartition, data: pa.Table) -> None:
        """Take a file of bars, taker flow or depth; any other one is left alone."""
        if partition.table == "bars":
            self._add_bars(partition, data)
        elif partition.table == "taker_flow":
            hours = _hours(data)
            for suffix in ("volume", "usd"):
                values = sum(data.column(f"{side}_{suffix}").to_numpy() for side in ("buy", "sell"))
                self._add(partition, data, suffix, values / hours)
        elif partition.table == "depth":
            values = data.column("bid_usd").to_numpy() + data.column("ask_usd").to_numpy()
            self._add(partition, data, "depth", values)

    def problems(self) -> list[Problem]:
        """One finding per file and column that is far from what the bars of its months say."""
        found: dict[tuple[str, str], Problem] = {}
        for (symbol, month), levels in self._found.items():
            for level in levels:
                key = (level.partition.relative, level.column)
                traded = self._reference(symbol, month, level.partition.keys["venue"])
                if traded is None or key in found:
                    continue
                for problem in _judge(level, symbol, *traded):
                    found[key] = problem
        return list(found.values())

    def _add_bars(self, partition: LakePartition, data: pa.Table) -> None:
        volume = data.column("volume").to_numpy() / _hours(data)
        value = volume * data.column("close").to_numpy()
        for month, rows in _months(data):
            entry = (partition.keys["venue"], float(np.mean(volume[rows])), float(np.mean(value[rows])))
            self._traded.setdefault((partition.keys["symbol"], month), []).append(entry)

    def _add(self, partition: LakePartition, data: pa.Table, column: str, values: AnyArray) -> None:
        for month, rows in _months(data):
            present = values[rows][np.isfinite(values[rows])]
            if present.size:
                level = _Level(partition, column, float(np.mean(present)))
                self._found.setdefault((partition.keys["symbol"], month), []).append(level)

    def _reference(self, symbol: str, month: int, venue: str) -> tuple[float, float] | None:
        """Volume and value per hour on the venue itself, else on the symbol's largest venue."""
        entries = self._traded.get((symbol, month), [])
        own = [entry for entry in entries if entry[0] == venue] or entries
        usable = [entry for entry in own if entry[1] > 0 and entry[2] > 0]
        if not usable:
            return None
        largest = max(usable, key=lambda entry: entry[2])
        return largest[1], largest[2]


def _judge(level: _Level, symbol: str, volume: float, value: float) -> Iterator[Problem]:
    if level.column == "depth":
        low, high = _DEPTH_RANGE
        if low * value <= level.value <= high * value:
            return
        message = f"depth of {symbol} is {level.value:g} USD, while {value:g} USD are traded in an hour"
        fix = "bid_usd and ask_usd are in USD: multiply base units by the price of then"
    else:
        traded, unit = (volume, "base units") if level.column == "volume" else (value, "USD")
        if traded / _FLOW_FACTOR <= level.value <= traded * _FLOW_FACTOR:
            return
        message = (
            f"takers trade {level.value:g} {unit} of {symbol} in an hour, while the bars have {traded:g}"
        )
        fix = "buy_volume and sell_volume are in base units, buy_usd and sell_usd in USD"
    partition = level.partition
    market = f"{partition.keys['venue']}:{symbol}"
    yield Problem("wrong-units", message, fix, partition.table, market, None, partition.relative)


def _hours(data: pa.Table) -> AnyArray:
    """Length of each row's interval in hours [n_rows]."""
    encoded = data.column("interval").combine_chunks().dictionary_encode()
    lengths = np.array([duration_us(name) / HOUR for name in encoded.dictionary.to_pylist()])
    return np.asarray(lengths[encoded.indices.to_numpy(zero_copy_only=False)])


def _months(data: pa.Table) -> Iterator[tuple[int, AnyArray]]:
    """Number and rows of each month of a file."""
    months = data.column("ts").cast(pa.int64()).to_numpy() // _MONTH
    order = np.argsort(months, kind="stable")
    edges = np.flatnonzero(np.diff(months[order])) + 1
    for rows in np.split(order, edges):
        if rows.size:
            yield int(months[rows[0]]), rows
