"""One series of values, bar by bar: where it begins and ends, where it is missing, where it stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D, TimeUs
from riskml.units import DAY, HOUR, format_us

RUN_FACTOR = 3.0
"""A run is stale when it is longer than this many times the feature's usual long run ..."""
RUN_QUANTILE = 0.99
"""... which is this quantile of the lengths of its runs over all markets ..."""
MIN_RUN_US = 72 * HOUR
"""... and never when it is shorter than this."""
SIZE_RATIO = 10.0
"""Sizes before and after a seam that are this many times each other are looked into: a unit changed."""
SHORT_RANGE_US = 120 * DAY
"""A shorter range is shown by day, a longer one by month."""


@dataclass(frozen=True)
class Periods:
    """The calendar of a grid: months, or days for a short range."""

    labels: tuple[str, ...]
    of_bar: Int1D
    """[n_bars] which period a bar belongs to."""
    ts: TimeUs
    """[n_bars]."""
    bar: int
    """Length of a bar, us."""

    @classmethod
    def of(cls, ts: TimeUs, bar: int) -> Periods:
        """Cut a grid of consecutive bars."""
        unit = "D" if ts[-1] - ts[0] < SHORT_RANGE_US else "M"
        # A bar is named by its close; the one that closes at midnight belongs to the day before.
        number = (ts - 1).astype("datetime64[us]").astype(f"datetime64[{unit}]")
        first, last = number[0].astype(np.int64), number[-1].astype(np.int64)
        labels = tuple(str(label) for label in np.arange(number[0], number[-1] + 1))
        return cls(labels[: int(last - first) + 1], number.astype(np.int64) - first, ts, bar)

    def shares(self, hits: Bool1D, present: Bool1D) -> tuple[float | None, ...]:
        """Share of each period's present bars that are hits; None where it has none."""
        n_periods = len(self.labels)
        counts = np.bincount(self.of_bar[present], minlength=n_periods)
        found = np.bincount(self.of_bar[hits & present], minlength=n_periods)
        return tuple(
            round(float(hit / count), 4) if count else None for hit, count in zip(found, counts, strict=True)
        )


@dataclass(frozen=True)
class Gap:
    """A stretch of bars."""

    start: str
    """ISO close of its first bar."""
    end: str
    """ISO close of its last bar."""
    bars: int


@dataclass(frozen=True)
class Still(Gap):
    """A stretch over which the value does not change."""

    value: float
    to_the_end: bool
    """Whether it lasts to the last value there is."""


@dataclass(frozen=True)
class MarketRows:
    """The bars of one market."""

    market: str
    rows: int
    first: str | None
    last: str | None
    longest_gap: Gap | None
    """Longest stretch without a bar between the first and the last."""
    by_period: tuple[float | None, ...]
    """Share of the grid's bars that are there, from the first to the last."""


@dataclass(frozen=True)
class MarketFeature:
    """One feature of one market."""

    market: str
    rows: int
    """Bars of the market."""
    coverage: float | None
    """Share of them with a value; None without a bar."""
    first: str | None
    last: str | None
    """First and last bar with a value."""
    warm_up_bars: int
    """Bars of the market before the first value; all of them when it has none."""
    missing_at_end: int
    """Bars of the market after the last value; 0 when it has none."""
    longest_gap: Gap | None
    """Longest stretch of the market's bars without a value, between the first and the last one."""
    distinct: int
    """Number of different values, counted up to 2."""
    longest_run: Still | None
    stale: float | None
    """Share of values in runs longer than expected."""
    psi: float | None
    outliers: int
    """Values far out."""
    extreme: float | None
    """The furthest of them."""
    extreme_at: str | None
    size_before: float | None
    """90 % quantile of the absolute value before the end of the fit part ..."""
    size_after: float | None
    """... and after it."""
    size_since: str | None
    """Where the one is :data:`SIZE_RATIO` times the other: the first bar of the period from
    which on it stays so."""
    by_period: tuple[float | None, ...]
    """Share of the market's bars with a value."""


@dataclass(frozen=True)
class Runs:
    """Stretches of equal finite values of one series; a missing value in between does not end one."""

    first: Int1D
    """[n_runs] bar of the first value."""
    last: Int1D
    """[n_runs] bar of the last value."""
    values: Int1D
    """[n_runs] how many values it has."""

    @property
    def bars(self) -> Int1D:
        """[n_runs] length from the first to the last value."""
        return self.last - self.first + 1


def runs_of(series: AnyArray) -> Runs:
    """The runs of one series [n_bars], NaN = missing."""
    known = np.flatnonzero(np.isfinite(series))
    if not known.size:
        empty = np.empty(0, dtype=np.int64)
        return Runs(empty, empty, empty)
    values = series[known]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    ends = np.r_[starts[1:], known.size] - 1
    return Runs(known[starts], known[ends], ends - starts + 1)


def run_limit(runs: Sequence[Runs], bar: int) -> int:
    """Bars that a value may stand still, from how long it usually does over all markets."""
    lengths = np.concatenate([run.bars for run in runs])
    usual = float(np.quantile(lengths, RUN_QUANTILE)) if lengths.size else 0.0
    return max(int(RUN_FACTOR * usual), -(-MIN_RUN_US // bar))


def describe_rows(market: str, present: Bool1D, periods: Periods) -> MarketRows:
    """Describe the bars of one market [n_bars]."""
    there = np.flatnonzero(present)
    if not there.size:
        return MarketRows(market, 0, None, None, None, (None,) * len(periods.labels))
    inside = np.zeros(present.size, dtype=np.bool_)
    inside[there[0] : there[-1] + 1] = True
    return MarketRows(
        market=market,
        rows=there.size,
        first=format_us(int(periods.ts[there[0]])),
        last=format_us(int(periods.ts[there[-1]])),
        longest_gap=_longest_hole(there, periods.ts),
        by_period=periods.shares(present, inside),
    )


def describe_series(
    market: str,
    series: AnyArray,
    present: Bool1D,
    runs: Runs,
    *,
    periods: Periods,
    run_limit: int,
    bounds: tuple[float, float] | None,
    psi: float | None,
    seam: int,
) -> MarketFeature:
    """Describe one feature of one market.

    Parameters
    ----------
    series : [n_bars], NaN = missing.
    present : [n_bars] whether the market has a bar.
    runs : of the series.
    run_limit : bars that a value may stand still.
    bounds : what lies outside is far out.
    seam : first bar after the fit part.
    """
    bars, known = np.flatnonzero(present), np.flatnonzero(np.isfinite(series))
    rows = bars.size
    before = int(np.searchsorted(bars, known[0])) if known.size else rows
    after = rows - int(np.searchsorted(bars, known[-1], side="right")) if known.size else 0
    run = _longest_run(series, runs, periods, int(known[-1])) if known.size else None
    long = runs.bars > run_limit
    outliers, extreme, where = _far_out(series, known, bounds)
    sizes = (_size(series[known[known < seam]]), _size(series[known[known >= seam]]))
    missing = np.isin(bars, known, assume_unique=True, invert=True)
    return MarketFeature(
        market=market,
        rows=rows,
        coverage=known.size / rows if rows else None,
        first=format_us(int(periods.ts[known[0]])) if known.size else None,
        last=format_us(int(periods.ts[known[-1]])) if known.size else None,
        warm_up_bars=before,
        missing_at_end=after,
        longest_gap=_longest_missing(bars, missing, before, rows - after, periods.ts) if known.size else None,
        distinct=_distinct(series[known]),
        longest_run=run,
        stale=float(runs.values[long].sum() / known.size) if known.size else None,
        psi=psi,
        outliers=outliers,
        extreme=extreme,
        extreme_at=format_us(int(periods.ts[where])) if where is not None else None,
        size_before=sizes[0],
        size_after=sizes[1],
        size_since=_size_since(series, known, sizes, periods),
        by_period=periods.shares(np.isfinite(series), present),
    )


def _longest_hole(there: Int1D, ts: TimeUs) -> Gap | None:
    """Longest stretch of the grid between two of the places ``there``."""
    steps = np.diff(there)
    if not steps.size or steps.max() == 1:
        return None
    place = int(steps.argmax())
    first, last = there[place] + 1, there[place + 1] - 1
    return Gap(format_us(int(ts[first])), format_us(int(ts[last])), int(last - first + 1))


def _longest_missing(bars: Int1D, missing: Bool1D, first: int, last: int, ts: TimeUs) -> Gap | None:
    """Longest run of ``missing`` among the market's bars [first, last)."""
    edges = np.flatnonzero(np.diff(np.r_[False, missing[first:last], False].astype(np.int8)))
    if not edges.size:
        return None
    starts, ends = first + edges[::2], first + edges[1::2]
    place = int((ends - starts).argmax())
    start, end = bars[starts[place]], bars[ends[place] - 1]
    return Gap(format_us(int(ts[start])), format_us(int(ts[end])), int(ends[place] - starts[place]))


def _longest_run(series: AnyArray, runs: Runs, periods: Periods, last: int) -> Still:
    place = int(runs.bars.argmax())
    first, end = int(runs.first[place]), int(runs.last[place])
    return Still(
        start=format_us(int(periods.ts[first])),
        end=format_us(int(periods.ts[end])),
        bars=int(runs.bars[place]),
        value=float(series[first]),
        to_the_end=end == last,
    )


def _far_out(
    series: AnyArray, known: Int1D, bounds: tuple[float, float] | None
) -> tuple[int, float | None, int | None]:
    if bounds is None or not known.size:
        return 0, None, None
    values = series[known]
    beyond = np.maximum(bounds[0] - values, values - bounds[1])
    count = int((beyond > 0.0).sum())
    if not count:
        return 0, None, None
    worst = int(beyond.argmax())
    return count, float(values[worst]), int(known[worst])


def _distinct(values: Float1D) -> int:
    if not values.size:
        return 0
    return 1 if bool((values == values[0]).all()) else 2


def _size(values: AnyArray) -> float | None:
    if not values.size:
        return None
    size = np.abs(values)
    place = int(0.9 * (size.size - 1))
    return float(np.partition(size, place)[place])


def _size_since(
    series: AnyArray, known: Int1D, sizes: tuple[float | None, float | None], periods: Periods
) -> str | None:
    """Begin of the longest tail of periods whose sizes are nearer to the later size."""
    before, after = sizes
    if not before or not after or max(before / after, after / before) < SIZE_RATIO:
        return None
    middle = (before * after) ** 0.5
    starts = np.flatnonzero(np.r_[True, np.diff(periods.of_bar[known]) != 0])
    since = None
    for first, last in reversed(list(zip(starts, np.r_[starts[1:], known.size], strict=True))):
        size = _size(series[known[first:last]])
        if size is None or (size > middle) != (after > middle):
            break
        since = format_us(int(periods.ts[known[first]]))
    return since
