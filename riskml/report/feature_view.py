"""Statistics as the rows, texts and pictures that the page about features lays out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from riskml.features.spec import FAMILIES
from riskml.report.drawings import course, histogram, matrix, number, strip
from riskml.report.feature_findings import Finding, source_tables
from riskml.report.feature_rules import SEVERITIES
from riskml.report.feature_statistics import FeatureReport, FeatureStatistics
from riskml.report.market_statistics import Gap, MarketFeature, Still
from riskml.report.target_statistics import Excursions, StressRate, TargetReport, excursion_edges
from riskml.units import DAY

_ALL = "all"


@dataclass(frozen=True)
class MarketView:
    """One market's line below a feature, or in the table of bars."""

    name: str
    strip: str
    """Picture of coverage."""
    cells: tuple[str, ...]


@dataclass(frozen=True)
class FeatureView:
    """One feature's line and what opens below it."""

    facts: FeatureStatistics
    marks: tuple[tuple[str, str], ...]
    """(severity, verdict), the most severe first."""
    histogram: str
    course: str
    strip: str
    run: str
    usual_run: str
    correlations: tuple[str, ...]
    markets: tuple[MarketView, ...]


@dataclass(frozen=True)
class FamilyView:
    """A section of the page."""

    name: str
    features: tuple[FeatureView, ...]


@dataclass(frozen=True)
class SourceView:
    """One table of the lake, as far as its features show it."""

    table: str
    features: int
    broken: int
    suspect: int
    note: int
    last: str | None
    """Newest bar at which any feature that reads it has a value."""


@dataclass(frozen=True)
class TargetView:
    """The section about targets."""

    facts: TargetReport
    excursions: tuple[tuple[Excursions, str], ...]
    """With a picture of the distribution."""
    years: tuple[int, ...]
    stress: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(market, kind, text per year)."""


def percent(share: float | None) -> str:
    """A share in per cent, with the digits that matter near 0 and 100.

    >>> percent(0.5), percent(0.034), percent(0.9996), percent(1.0), percent(0.00004), percent(None)
    ('50 %', '3.4 %', '99.96 %', '100 %', '0.004 %', '-')
    """
    if share is None:
        return "-"
    small = min(share, 1.0 - share)
    if not 0.0 < small < 0.1:
        return f"{100.0 * share:.0f} %"
    digits = min(max(1, -math.floor(math.log10(100.0 * small))), 4)
    return f"{100.0 * share:.{digits}f} %"


def family_views(report: FeatureReport, findings: Sequence[Finding]) -> list[FamilyView]:
    """The features by family, in the catalogue's order of families."""
    marks: dict[str, dict[str, str]] = {}
    for finding in findings:
        for name in finding.features:
            marks.setdefault(name, {}).setdefault(finding.title, finding.severity)
    return [
        FamilyView(
            family.replace("_", " "),
            tuple(_feature(item, report, marks.get(item.name, {})) for item in features),
        )
        for family, features in _by_family(report)
    ]


def market_views(report: FeatureReport) -> list[MarketView]:
    """The bars of every market: rows, first, last, longest hole."""
    views = []
    for market in report.markets:
        reading = _reading(f"bars of {market.market}", market.by_period, report.periods)
        cells = (
            f"{market.rows:,}",
            (market.first or "-")[:10],
            (market.last or "-")[:10],
            _span(market.longest_gap, report.bar),
        )
        views.append(MarketView(market.market, strip(market.by_period, reading, width=320.0), cells))
    return views


def source_views(report: FeatureReport, findings: Sequence[Finding]) -> list[SourceView]:
    """Per table: how many of the features that read it have a finding of each severity as their worst."""
    worst: dict[str, str] = {}
    for finding in findings:
        for name in finding.features:
            # Findings come with the most severe first.
            worst.setdefault(name, finding.severity)
    views = []
    for table in sorted({table for feature in report.features for table in source_tables(feature.tables)}):
        readers = [feature for feature in report.features if table in source_tables(feature.tables)]
        lasts = [market.last for feature in readers for market in feature.markets if market.last]
        counts = {name: sum(worst.get(feature.name) == name for feature in readers) for name in SEVERITIES}
        views.append(SourceView(table, len(readers), last=max(lasts, default=None), **counts))
    return views


def verdict_map(report: FeatureReport, findings: Sequence[Finding]) -> str:
    """Features by markets, with the worst finding of each pair; a picture."""
    columns = [_ALL, *(market.market for market in report.markets if market.rows)]
    rows: list[tuple[str, str]] = []
    for family, features in _by_family(report):
        rows.append((family.replace("_", " "), ""))
        rows += [(feature.name, f"f-{feature.name}") for feature in features]
    row_of = {name: place for place, (name, anchor) in enumerate(rows) if anchor}
    column_of = {name: place for place, name in enumerate(columns)}
    marks: dict[tuple[int, int], tuple[str, str]] = {}
    for finding in findings:
        for feature in finding.features:
            # Findings come with the most severe first, so the first one at a place stays.
            for market in finding.markets or (_ALL,):
                said = f"{feature}, {market}: {finding.severity}, {finding.title}"
                marks.setdefault((row_of[feature], column_of[market]), (finding.severity, said))
    return matrix(rows, columns, marks)


def target_view(report: TargetReport) -> TargetView:
    """Distributions of excursions, and rates of stress by market and year."""
    edges = excursion_edges()
    reach = (float(edges[0]), float(edges[-1]))
    pictures = tuple(
        (item, histogram(item.shares, (0.0,), reach, names=("all", ""))) for item in report.excursions
    )
    years = tuple(sorted({row.year for row in report.stress}))
    place = {(row.market, row.year): row for row in report.stress}
    markets = tuple(dict.fromkeys(row.market for row in report.stress))
    lines = tuple(
        (market, kind, tuple(_rate(place.get((market, year)), kind) for year in years))
        for kind in report.kinds
        for market in markets
    )
    return TargetView(report, pictures, years, lines)


def _by_family(report: FeatureReport) -> list[tuple[str, list[FeatureStatistics]]]:
    found = {feature.family for feature in report.features}
    order = [family for family in FAMILIES if family in found] + sorted(found - set(FAMILIES))
    return [(name, [item for item in report.features if item.family == name]) for name in order]


def _feature(feature: FeatureStatistics, report: FeatureReport, marks: Mapping[str, str]) -> FeatureView:
    bins, parts = feature.histogram, report.parts
    span = parts.stop - parts.start
    seams = [(seam - parts.start) / span for seam in (parts.fit_end, parts.calibrate_end)]
    shares = _pooled(feature.markets)
    longest = max(
        (item.longest_run for item in feature.markets if item.longest_run),
        key=lambda run: run.bars,
        default=None,
    )
    return FeatureView(
        facts=feature,
        marks=tuple((severity, title) for title, severity in marks.items()),
        histogram=""
        if bins is None
        else histogram(bins.fit, bins.later, (bins.edges[0], bins.edges[-1]), names=("fit", report.later)),
        course=course(feature.quartiles, seams),
        strip=strip(shares, _reading(feature.name, shares, report.periods)),
        run="-" if longest is None else _length(longest.bars, report.bar),
        usual_run=_length(feature.expected_run_bars, report.bar),
        correlations=tuple(
            "-" if relation.correlation is None else f"{relation.correlation:+.2f}"
            for relation in feature.relations
        ),
        markets=tuple(_market(item, report) for item in feature.markets if item.rows),
    )


def _market(item: MarketFeature, report: FeatureReport) -> MarketView:
    reading = _reading(item.market, item.by_period, report.periods)
    cells = (
        percent(item.coverage),
        f"{(item.first or '-')[:10]}",
        f"{(item.last or '-')[:10]}",
        _span(item.longest_gap, report.bar),
        _run(item.longest_run, report.bar),
        percent(item.stale),
        "-" if item.psi is None else f"{item.psi:.2f}",
        f"{item.outliers:,}" if item.outliers else "0",
        "" if item.extreme is None else f"{number(item.extreme)} on {(item.extreme_at or '')[:10]}",
    )
    return MarketView(item.market, strip(item.by_period, reading), cells)


def _pooled(markets: Sequence[MarketFeature]) -> list[float | None]:
    """Mean coverage per period over the markets that have bars in it."""
    shares: list[float | None] = []
    for column in zip(*(item.by_period for item in markets), strict=True):
        known = [share for share in column if share is not None]
        shares.append(sum(known) / len(known) if known else None)
    return shares


def _reading(name: str, shares: Sequence[float | None], periods: Sequence[str]) -> str:
    known = [(share, period) for share, period in zip(shares, periods, strict=True) if share is not None]
    if not known:
        return f"{name}: no bar"
    low, when = min(known)
    mean = sum(share for share, _ in known) / len(known)
    reach = f"from {known[0][1]} to {known[-1][1]}"
    return f"{name}: {percent(mean)} covered, {reach}, least {percent(low)} in {when}"


def _rate(row: StressRate | None, kind: str) -> str:
    if row is None or row.rate.get(kind) is None:
        return ""
    onsets = row.onsets.get(kind)
    return percent(row.rate[kind]) + ("" if onsets is None else f" ({onsets})")


def _run(run: Still | None, bar: int) -> str:
    return "-" if run is None else f"{_span(run, bar)} at {number(run.value)}"


def _span(gap: Gap | None, bar: int) -> str:
    return "-" if gap is None else f"{_length(gap.bars, bar)} from {gap.start[:10]}"


def _length(bars: int, bar: int) -> str:
    hours = bars * bar * 24 / DAY
    return f"{hours / 24:.0f} d" if hours >= 72 else f"{hours:.3g} h"
