"""Checks between sources: venues of one symbol have to agree on the order of its price.

A symbol that one venue quotes per 1 and another per 1000, or open interest in USD that
is stored as base units, shows only beside another source.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray
from riskml.errors import Problem
from riskml.tables.partitions import LakePartition
from riskml.units import DAY

_FAR = np.log(20.0)
"""Two sources of one price that differ by more than this factor use different units."""


class PriceLevels:
    """Gathers the mean log price of each source, symbol and month, then compares them."""

    def __init__(self) -> None:
        self._months: dict[tuple[str, int], dict[str, tuple[float, LakePartition]]] = {}

    def add(self, partition: LakePartition, data: pa.Table) -> None:
        """Take the prices that a file gives or implies."""
        price = self._price(partition, data)
        if price is None:
            return
        ts = data.column("ts").cast(pa.int64()).to_numpy()
        usable = np.flatnonzero(np.isfinite(price) & (price > 0))
        if not usable.size:
            return
        months, codes = np.unique(ts[usable] // (30 * DAY), return_inverse=True)
        means = np.bincount(codes, np.log(price[usable])) / np.bincount(codes)
        source = f"{partition.table} of {partition.keys['venue']}"
        for month, mean in zip(months.tolist(), means.tolist(), strict=True):
            self._months.setdefault((partition.keys["symbol"], month), {})[source] = (mean, partition)

    def problems(self) -> list[Problem]:
        """One finding per file whose prices are far from what the other sources say."""
        found: dict[str, Problem] = {}
        for (symbol, _), levels in self._months.items():
            if len(levels) < 2:
                continue
            for source, (level, partition) in levels.items():
                others = {name: value for name, (value, _) in levels.items() if name != source}
                # With three or more the median of all is one of the agreeing majority.
                several = others if len(levels) == 2 else {**others, source: level}
                gap = level - float(np.median(list(several.values())))
                # Of two sources one cannot tell which is wrong: bars are trusted before others.
                trusted = partition.table == "bars" and not any(name.startswith("bars") for name in others)
                if abs(gap) < _FAR or trusted or partition.relative in found:
                    continue
                message = (
                    f"{source} puts {symbol} at {np.exp(level):g}, other sources at {np.exp(level - gap):g}"
                )
                found[partition.relative] = Problem(
                    "wrong-units",
                    message,
                    "use the same contract size on every venue; open_interest is in base units",
                    partition.table,
                    f"{partition.keys['venue']}:{symbol}",
                    None,
                    partition.relative,
                )
        return list(found.values())

    @staticmethod
    def _price(partition: LakePartition, data: pa.Table) -> AnyArray | None:
        if partition.table == "bars":
            return np.asarray(data.column("close").to_numpy())
        if partition.table == "marks":
            mark, index = (data.column(name).to_numpy() for name in ("mark_close", "index_close"))
            return np.asarray(np.where(np.isnan(mark), index, mark))
        if partition.table == "open_interest":
            base, usd = (data.column(name).to_numpy() for name in ("open_interest", "open_interest_usd"))
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(usd / base)
        return None
