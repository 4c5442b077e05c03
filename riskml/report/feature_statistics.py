"""What a dataset's features look like: distribution, coverage, staleness, drift and correlation.

Pure functions from a :class:`~riskml.tables.dataset.Dataset` to plain records; nothing here judges
(:mod:`riskml.report.feature_findings`) or draws (:mod:`riskml.report.feature_page`).

Coverage, runs and outliers count every bar. Distributions, drift and correlation look at every
``stride``-th bar, which shares no factor with the week, so that every hour of it takes part.
Only rows with a bar of the market count; infinite values are counted and treated as missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from riskml.arrays import AnyArray, Bool2D, Int1D, TimeUs
from riskml.errors import DataError
from riskml.features.catalog import CATALOG
from riskml.features.inputs import input_tables
from riskml.features.nodes import Rolling, walk
from riskml.features.spec import Feature
from riskml.metrics import population_stability_index
from riskml.report.feature_relations import Relation, Targets, rank_targets
from riskml.report.market_statistics import (
    MarketFeature,
    MarketRows,
    Periods,
    describe_rows,
    describe_series,
    run_limit,
    runs_of,
)
from riskml.tables.dataset import Dataset
from riskml.tables.parts import Parts, cut_range
from riskml.units import TimeLike, duration_us, format_us

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SAMPLE_BARS = 12_000
"""Bars that distributions and correlations are taken from, at most about this many."""
HISTOGRAM_BINS = 36
OUTLIER_SPREADS = 3.0
"""A value is far out when it lies this many times the 1-99 % range of the fit part outside of it."""
COMMON_SHARE = 0.2
"""A value that this share of the rows, and more than half of the markets, have is the feature's resting
value: a cap, zero, a default rate."""


@dataclass(frozen=True)
class Spread:
    """The distribution of one part, over all markets."""

    rows: int
    """Rows of the sample, missing ones too."""
    missing: float
    """Share of them without a finite value."""
    quantiles: tuple[float | None, ...]
    """At :data:`QUANTILES`; the first and the last are the extremes of the sample."""


@dataclass(frozen=True)
class Histogram:
    """Shares of the finite rows of two parts in the same bins; the outer bins hold what lies beyond."""

    edges: tuple[float, ...]
    fit: tuple[float, ...]
    later: tuple[float, ...]


@dataclass(frozen=True)
class FeatureStatistics:
    """One feature over all markets, and market by market."""

    name: str
    family: str
    unit: str
    formula: str
    tables: tuple[str, ...]
    """Tables that it reads; empty for a feature that the catalogue lacks."""
    inputs: tuple[str, ...]
    """Inputs that it reads."""
    counts_bars: bool
    """Whether it says how much history there is: complete data make it constant."""
    rows: int
    """Bars of all markets."""
    coverage: float
    """Share of them with a finite value."""
    infinite: int
    resting_value: float | None
    """The value of at least :data:`COMMON_SHARE` of the finite sample, if most markets have it."""
    fit: Spread
    later: Spread
    histogram: Histogram | None
    """None without a finite value."""
    quartiles: tuple[tuple[float | None, float | None, float | None], ...]
    """Per period: 25 %, 50 %, 75 % over all markets."""
    psi: float | None
    """Population stability index of the later part against the fit part, markets with both pooled."""
    psi_present: float | None
    """The same among the values that are there, so that coverage plays no part."""
    expected_run_bars: int
    """A value that stands still for longer is noted as stale."""
    bounds: tuple[float, float] | None
    """Outside of these a value is far out."""
    relations: tuple[Relation, ...]
    markets: tuple[MarketFeature, ...]


@dataclass(frozen=True)
class FeatureReport:
    """Everything that the page about features shows."""

    bar: int
    """Length of a bar, us."""
    parts: Parts
    later: str
    """Part that is held against the fit part: ``test``, or ``calibrate`` where nothing follows it."""
    stride: int
    periods: tuple[str, ...]
    """Labels of months, or of days for a short range."""
    markets: tuple[MarketRows, ...]
    features: tuple[FeatureStatistics, ...]
    targets: tuple[tuple[str, str], ...]
    persistence: tuple[float | None, ...]
    """Largest rank correlation of each target with its own last values."""


def describe_features(
    data: Dataset,
    *,
    fit_end: TimeLike | None = None,
    calibrate_end: TimeLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> FeatureReport:
    """Describe every feature of a dataset.

    Parameters
    ----------
    data : dataset in memory.
    fit_end, calibrate_end : seams; default as ``riskml fit`` cuts.
    progress : called with (done, total, message).

    Raises
    ------
    ConfigError : seams outside the range.
    DataError : the dataset has no bar of any market in its fit part, or none after it.
    """
    frame = _Frame.of(
        data, cut_range(data.ts, data.info.interval, fit_end=fit_end, calibrate_end=calibrate_end)
    )
    horizon = max(duration_us(name) for name in data.info.horizons)
    # A target of a row near the seam looks into the next part.
    before_seam = frame.fit[data.ts[frame.fit] + horizon < frame.parts.fit_end]
    targets = rank_targets(data.variance, data.mae, before_seam, data.info.interval, data.info.horizons)
    features = []
    for place, name in enumerate(data.feature_names):
        features.append(_describe(name, data.features[:, :, place], frame, targets, before_seam))
        if progress is not None:
            progress(place + 1, len(data.feature_names), "describing features")
    return FeatureReport(
        bar=frame.bar,
        parts=frame.parts,
        later=frame.later_name,
        stride=frame.stride,
        periods=frame.periods.labels,
        markets=tuple(
            describe_rows(market.symbol, frame.present[:, place], frame.periods)
            for place, market in enumerate(data.markets)
        ),
        features=tuple(features),
        targets=targets.names,
        persistence=targets.persistence,
    )


@dataclass(frozen=True)
class _Frame:
    """What all features of a dataset share."""

    ts: TimeUs
    bar: int
    markets: tuple[str, ...]
    present: Bool2D
    """[n_bars, n_markets] whether the market has a bar."""
    parts: Parts
    later_name: str
    stride: int
    fit: Int1D
    """Sampled bars of the fit part."""
    later: Int1D
    """Sampled bars of the part that is held against it."""
    periods: Periods

    @classmethod
    def of(cls, data: Dataset, parts: Parts) -> _Frame:
        bar = duration_us(data.info.interval)
        present = np.isfinite(data.close)
        stride = sample_stride(len(data.ts), bar)
        sampled = np.arange(0, len(data.ts), stride)
        rows = {name: sampled[parts.rows(data.ts, name)[sampled]] for name in ("fit", "calibrate", "test")}
        later = "test" if present[rows["test"]].any() else "calibrate"
        for name in ("fit", later):
            if not present[rows[name]].any():
                raise DataError(f"no market has a bar in the {name} part", fix="move the seams")
        names = tuple(market.symbol for market in data.markets)
        periods = Periods.of(data.ts, bar)
        return cls(data.ts, bar, names, present, parts, later, stride, rows["fit"], rows[later], periods)


def sample_stride(n_bars: int, bar: int) -> int:
    """Every how many-th bar a sample takes, about :data:`SAMPLE_BARS` at most and every hour of the week."""
    week = duration_us("7d") // bar
    stride = max(1, math.ceil(n_bars / SAMPLE_BARS))
    while math.gcd(stride, max(week, 1)) > 1:
        stride += 1
    return stride


def _describe(
    name: str, column: AnyArray, frame: _Frame, targets: Targets, before_seam: Int1D
) -> FeatureStatistics:
    values = np.where(frame.present, column, np.nan).astype(np.float32)
    infinite = np.isinf(values)
    values[infinite] = np.nan
    fit, later = values[frame.fit], values[frame.later]
    spreads = (_spread(fit, frame.present[frame.fit]), _spread(later, frame.present[frame.later]))
    bounds = _bounds(spreads[0])
    runs = [runs_of(values[:, place]) for place in range(values.shape[1])]
    limit = run_limit(runs, frame.bar)
    kept = [place for place in range(values.shape[1]) if _in_both(frame, place)]
    facts = _FACTS.get(name)
    rows = int(frame.present.sum())
    return FeatureStatistics(
        name=name,
        family=facts.family if facts else "other",
        unit=facts.unit if facts else "",
        formula=facts.formula if facts else "",
        tables=input_tables(facts.inputs) if facts else (),
        inputs=facts.inputs if facts else (),
        counts_bars=_counts_bars(facts) if facts else False,
        rows=rows,
        coverage=float(np.isfinite(values).sum() / rows),
        infinite=int(infinite.sum()),
        resting_value=_resting_value(fit),
        fit=spreads[0],
        later=spreads[1],
        histogram=_histogram(fit, later, spreads),
        quartiles=_quartiles(values, frame),
        psi=_psi(frame, fit, later, kept) if kept else None,
        psi_present=_psi_present(fit[:, kept], later[:, kept]),
        expected_run_bars=limit,
        bounds=bounds,
        relations=targets.relations(values[before_seam]),
        markets=tuple(
            describe_series(
                frame.markets[place],
                values[:, place],
                frame.present[:, place],
                runs[place],
                periods=frame.periods,
                run_limit=limit,
                bounds=bounds,
                psi=_psi(frame, fit, later, [place]) if place in kept else None,
                seam=int(np.searchsorted(frame.ts, frame.parts.fit_end)),
            )
            for place in range(values.shape[1])
        ),
    )


_FACTS = {feature.name: feature for feature in CATALOG}


def _counts_bars(feature: Feature) -> bool:
    windows = [node.statistic for node in walk(feature.expr) if isinstance(node, Rolling)]
    return bool(windows) and set(windows) == {"count"}


def _in_both(frame: _Frame, place: int) -> bool:
    return bool(frame.present[frame.fit, place].any() and frame.present[frame.later, place].any())


def _psi(frame: _Frame, fit: AnyArray, later: AnyArray, places: list[int]) -> float:
    before = fit[:, places][frame.present[frame.fit][:, places]]
    after = later[:, places][frame.present[frame.later][:, places]]
    return population_stability_index(before, after)


def _psi_present(fit: AnyArray, later: AnyArray) -> float | None:
    before, after = fit[np.isfinite(fit)], later[np.isfinite(later)]
    return population_stability_index(before, after) if before.size and after.size else None


def _spread(values: AnyArray, present: Bool2D) -> Spread:
    finite = np.sort(values[np.isfinite(values)])
    rows = int(present.sum())
    if not finite.size:
        return Spread(rows, 1.0, (None,) * len(QUANTILES))
    places = np.round(np.array(QUANTILES) * (finite.size - 1)).astype(np.int64)
    return Spread(rows, 1.0 - finite.size / rows, tuple(float(value) for value in finite[places]))


def _bounds(fit: Spread) -> tuple[float, float] | None:
    low, high = (fit.quantiles[QUANTILES.index(level)] for level in (0.01, 0.99))
    if low is None or high is None or low == high:
        return None
    reach = OUTLIER_SPREADS * (high - low)
    return low - reach, high + reach


def _resting_value(values: AnyArray) -> float | None:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    distinct, counts = np.unique(finite, return_counts=True)
    most = int(counts.argmax())
    have = (values == distinct[most]).any(axis=0).sum()
    shared = counts[most] >= COMMON_SHARE * finite.size and 2 * have > np.isfinite(values).any(axis=0).sum()
    return float(distinct[most]) if shared else None


def _histogram(fit: AnyArray, later: AnyArray, spreads: tuple[Spread, Spread]) -> Histogram | None:
    reach = [
        spread.quantiles[QUANTILES.index(level)]
        for spread in spreads
        for level in (0.01, 0.99)
        if spread.quantiles[0] is not None
    ]
    known = [value for value in reach if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    margin = 0.04 * (high - low) or max(abs(low), 1.0) * 0.01
    edges = np.linspace(low - margin, high + margin, HISTOGRAM_BINS + 1)
    shares = []
    for values in (fit, later):
        finite = values[np.isfinite(values)]
        place = np.clip(np.searchsorted(edges, finite, side="right") - 1, 0, HISTOGRAM_BINS - 1)
        counts = np.bincount(place, minlength=HISTOGRAM_BINS)
        shares.append(tuple((counts / max(finite.size, 1)).tolist()))
    return Histogram(tuple(edges.tolist()), *shares)


def _quartiles(
    values: AnyArray, frame: _Frame
) -> tuple[tuple[float | None, float | None, float | None], ...]:
    """25 %, 50 % and 75 % per period over all markets, of the sampled bars."""
    sample = values[:: frame.stride]
    period = frame.periods.of_bar[:: frame.stride]
    starts = np.searchsorted(period, np.arange(len(frame.periods.labels) + 1))
    result: list[tuple[float | None, float | None, float | None]] = []
    for first, last in pairwise(starts.tolist()):
        finite = sample[first:last]
        finite = np.sort(finite[np.isfinite(finite)])
        if not finite.size:
            result.append((None, None, None))
            continue
        low, middle, high = (float(finite[round(q * (finite.size - 1))]) for q in (0.25, 0.5, 0.75))
        result.append((low, middle, high))
    return tuple(result)


def seam_dates(parts: Parts) -> dict[str, str]:
    """The seams as ISO times, by name."""
    return {name: format_us(getattr(parts, name)) for name in ("start", "fit_end", "calibrate_end", "stop")}
