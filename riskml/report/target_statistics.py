"""What a dataset asks to be forecast: sizes of excursions, rates of stress, and its largest moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from riskml.arrays import DOWN, UP, AnyArray, Int1D
from riskml.tables.dataset import STRESS_COLUMNS, Dataset
from riskml.units import DAY, format_us

QUANTILES = (0.5, 0.95, 0.99, 0.999, 1.0)
LARGEST = 12
"""Rows of the table of largest excursions."""
HISTOGRAM_BINS = 40
SMALLEST = 1e-4
"""Left end of the histogram of excursions: 1 bp; what is smaller counts there."""
SAME_EVENT_US = DAY
"""Excursions of one market that begin within a day of each other are one event."""


@dataclass(frozen=True)
class Excursions:
    """The maximum adverse excursion of one side and horizon, log-return units."""

    side: str
    horizon: str
    rows: int
    missing: float
    """Share of the bars without a target."""
    quantiles: tuple[float | None, ...]
    """At :data:`QUANTILES`."""
    shares: tuple[float, ...]
    """Share of the rows per bin of :func:`excursion_edges`."""


@dataclass(frozen=True)
class StressRate:
    """How often stress lies ahead in one market and year."""

    market: str
    year: int
    rows: int
    rate: Mapping[str, float | None]
    """Per kind: share of the rows with an onset within the longest horizon; None = not defined."""
    onsets: Mapping[str, int | None]
    """Per kind: number of onsets; None = not recorded."""


@dataclass(frozen=True)
class LargeMove:
    """One of the largest downward or upward excursions."""

    market: str
    ts: str
    side: str
    excursion: float
    """Over the longest horizon, log-return units."""


@dataclass(frozen=True)
class TargetReport:
    """Everything that the page says about targets."""

    horizon: str
    """The longest one, which rates and largest moves refer to."""
    excursions: tuple[Excursions, ...]
    stress: tuple[StressRate, ...]
    kinds: tuple[str, ...]
    """Kinds of stress that are defined anywhere."""
    largest: tuple[LargeMove, ...]


def describe_targets(data: Dataset, onsets: pa.Table | None = None) -> TargetReport:
    """Describe the targets of a dataset; only rows with a bar of the market count.

    Parameters
    ----------
    data : dataset in memory.
    onsets : its table of onsets (:mod:`riskml.tables.onsets`); None = not recorded.
    """
    present = np.isfinite(data.close)
    last = len(data.info.horizons) - 1
    rates = {kind: getattr(data, name)[:, :, last] for kind, name in STRESS_COLUMNS.items()}
    kinds = tuple(kind for kind, values in rates.items() if np.isfinite(values).any())
    years = data.ts.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
    return TargetReport(
        horizon=data.info.horizons[last],
        excursions=tuple(
            _excursions(word, horizon, data.mae[:, :, place, side][present])
            for place, horizon in enumerate(data.info.horizons)
            for side, word in ((DOWN, "down"), (UP, "up"))
        ),
        stress=_rates(data, present, {kind: rates[kind] for kind in kinds}, years, onsets),
        kinds=kinds,
        largest=_largest(data, last),
    )


def excursion_edges() -> AnyArray:
    """Edges of the histogram of excursions: 1 bp to 100 %, equal steps of the logarithm."""
    return np.geomspace(SMALLEST, 1.0, HISTOGRAM_BINS + 1)


def _excursions(side: str, horizon: str, values: AnyArray) -> Excursions:
    finite = np.sort(values[np.isfinite(values)])
    missing = 1.0 - finite.size / values.size if values.size else 1.0
    if not finite.size:
        return Excursions(side, horizon, 0, missing, (None,) * len(QUANTILES), (0.0,) * HISTOGRAM_BINS)
    places = np.round(np.array(QUANTILES) * (finite.size - 1)).astype(np.int64)
    cuts = np.searchsorted(finite, excursion_edges()[1:-1], side="right")
    counts = np.diff(np.r_[0, cuts, finite.size])
    quantiles = tuple(float(value) for value in finite[places])
    return Excursions(side, horizon, finite.size, missing, quantiles, tuple((counts / finite.size).tolist()))


def _rates(
    data: Dataset, present: AnyArray, rates: Mapping[str, AnyArray], years: Int1D, table: pa.Table | None
) -> tuple[StressRate, ...]:
    counts = None if table is None else _onset_counts(table)
    result = []
    for place, market in enumerate(data.markets):
        for year in np.unique(years[present[:, place]]).tolist():
            rows = present[:, place] & (years == year)
            rate: dict[str, float | None] = {}
            for kind, values in rates.items():
                known = values[rows, place]
                known = known[np.isfinite(known)]
                rate[kind] = float(known.mean()) if known.size else None
            onsets = {
                kind: None if counts is None else counts.get((str(market), kind, year), 0) for kind in rates
            }
            result.append(StressRate(market.symbol, year, int(rows.sum()), rate, onsets))
    return tuple(result)


def _onset_counts(table: pa.Table) -> dict[tuple[str, str, int], int]:
    """Onsets by market, kind and year."""
    years = table["start"].to_numpy().astype("datetime64[Y]").astype(np.int64) + 1970
    counts: dict[tuple[str, str, int], int] = {}
    columns = (table["venue"].to_pylist(), table["symbol"].to_pylist(), table["kind"].to_pylist())
    for venue, symbol, kind, year in zip(*columns, years.tolist(), strict=True):
        key = (f"{venue}:{symbol}", kind, year)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _largest(data: Dataset, horizon: int) -> tuple[LargeMove, ...]:
    """The largest excursions, one per market, side and day."""
    values = np.nan_to_num(data.mae[:, :, horizon], nan=-1.0)
    order = np.argpartition(values, -min(4000, values.size), axis=None)[-min(4000, values.size) :]
    order = order[np.argsort(values.ravel()[order])[::-1]]
    chosen: list[LargeMove] = []
    taken: dict[tuple[int, int], list[int]] = {}
    for bar, market, side in zip(*np.unravel_index(order, values.shape), strict=True):
        ts = int(data.ts[bar])
        near = taken.setdefault((int(market), int(side)), [])
        if values[bar, market, side] <= 0.0 or any(abs(ts - other) <= SAME_EVENT_US for other in near):
            continue
        near.append(ts)
        word = "down" if side == DOWN else "up"
        chosen.append(
            LargeMove(data.markets[market].symbol, format_us(ts), word, float(values[bar, market, side]))
        )
        if len(chosen) == LARGEST:
            break
    return tuple(chosen)
