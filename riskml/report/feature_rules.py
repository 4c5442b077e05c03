"""The rules that find broken features: each reads statistics and says what it hit, and how badly.

A rule gives three degrees: *broken* (no fit should use it as it is), *suspect* (look before a fit),
*note* (worth knowing). Thresholds stand here with their reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from riskml.report.feature_statistics import QUANTILES, FeatureReport, FeatureStatistics
from riskml.report.market_statistics import SIZE_RATIO, Gap, MarketFeature, Still
from riskml.report.target_statistics import TargetReport
from riskml.units import DAY, to_us

Severity: TypeAlias = Literal["broken", "suspect", "note"]
SEVERITIES: tuple[Severity, ...] = ("broken", "suspect", "note")

MIN_BARS = 100
"""With fewer values of a market nothing is said about them."""
DEAD_AFTER_US = 7 * DAY
"""No staleness limit of a source is longer; a value that is missing for longer has lost its source."""
LONG_GAP_US = 30 * DAY
"""A hole that a fit notices; one between this and :data:`DEAD_AFTER_US` is a note."""
LATE_START_US = 60 * DAY
"""Longer than half of any window but the slowest, which begin with a few days of history."""
SPARSE = 0.5
"""A feature that is there in less than half of the bars is mostly its fit mean."""
COVERAGE_DROP = 0.5
"""A month with less than this share of the usual coverage has lost something."""
STILL_BROKEN_US = 30 * DAY
"""A value that stands still to the end for longer than this is no longer measured."""
STILL_SUSPECT_US = 14 * DAY
"""A value that stands still for less than this, and moves on, may well have done so."""
PSI_SHIFT, PSI_LARGE = 0.25, 1.0
"""Siddiqi's limit of a shift; and where hardly any part of the two distributions overlaps."""
OUTLIER_SHARE = 1e-3
"""Share of values far out that is more than a few crashes."""
MIN_PART_COVERAGE = 0.05
"""A part with less of a feature has no distribution to compare."""
LEVEL_RANGES = 5.0
"""A median that moves by this many times the 5-95 % range of the fit part has another origin or unit."""
MIN_PERSISTENCE = 0.2
"""Taken for a target whose own past says less than this about it."""
DIRECTION_LIMIT = 0.3
"""Bars say next to nothing about which way price goes (reversal and carry reach a few hundredths); a value
that holds a part of the next bar says this much."""
LARGE_EXCURSION = 0.9
"""Log-return; a fall by 60 % or a rise by 146 % within the longest horizon is a bad tick until shown true."""


@dataclass(frozen=True)
class Hit:
    """One rule that one feature of one market (or of all of them) breaks."""

    kind: str
    severity: Severity
    feature: str
    """Empty for the bars of a market and for targets."""
    market: str
    """Empty = all markets at once."""
    tables: tuple[str, ...]
    text: str
    """What was found, without names."""
    amount: float
    """How much, for sorting; larger is worse."""
    since: str | None = None
    until: str | None = None


def leak_limit(target: str, persistence: float | None) -> float:
    """Largest plausible rank correlation of a feature with a target.

    Half way from what the target's own past reaches to certainty: what is known at a bar
    does not halve what the past leaves open, but a value that has seen the future does.
    The direction has a limit of its own.
    """
    if target == "direction":
        return DIRECTION_LIMIT
    return 0.5 * (1.0 + max(persistence or 0.0, MIN_PERSISTENCE))


def feature_hits(report: FeatureReport) -> Iterator[Hit]:
    """Every rule that a feature breaks."""
    bar = report.bar
    for feature in report.features:
        yield from _whole_feature(feature, report)
        for market in feature.markets:
            if market.rows >= MIN_BARS:
                yield from _missing(feature, market, bar)
                yield from _still(feature, market, bar)
                yield from _values(feature, market)


def market_hits(report: FeatureReport) -> Iterator[Hit]:
    """What is wrong with the bars of markets."""
    bar = report.bar
    last = max(to_us(market.last) for market in report.markets if market.last)
    for market in report.markets:
        if market.last is None:
            yield Hit("bars", "broken", "", market.market, ("bars",), "no bar at all", 1.0)
            continue
        ended = last - to_us(market.last)
        if ended > DEAD_AFTER_US:
            text = f"the last bar is {ended // DAY} days before those of other markets"
            yield Hit("bars", "suspect", "", market.market, ("bars",), text, ended / DAY, market.last)
        gap = market.longest_gap
        if gap and gap.bars * bar > DAY:
            severity: Severity = "suspect" if gap.bars * bar > DEAD_AFTER_US else "note"
            text = f"no bar for {_days(gap, bar)}"
            yield Hit("bars", severity, "", market.market, ("bars",), text, gap.bars, gap.start, gap.end)


def target_hits(report: TargetReport) -> Iterator[Hit]:
    """What is wrong with the targets."""
    rates = [row.rate.get("drop") for row in report.stress]
    if not any(rates):
        text = "no stress onset in any market: a stress head has nothing to learn"
        yield Hit("targets", "suspect", "", "", ("bars",), text, 1.0)
    for move in report.largest:
        if move.excursion > LARGE_EXCURSION:
            text = f"an excursion {move.side} of {move.excursion:.2f} log-return within {report.horizon}"
            yield Hit("targets", "suspect", "", move.market, ("bars",), text, move.excursion, move.ts)


def _whole_feature(feature: FeatureStatistics, report: FeatureReport) -> Iterator[Hit]:
    name, tables = feature.name, feature.tables
    if feature.infinite:
        text = f"{feature.infinite:,} infinite values"
        yield Hit("infinite", "broken", name, "", tables, text, feature.infinite)
    for relation, persistence in zip(feature.relations, report.persistence, strict=True):
        found = abs(relation.correlation or 0.0)
        if found > leak_limit(relation.target, persistence):
            text = (
                f"rank correlation {relation.correlation:.2f} with {relation.target} {relation.horizon} over "
                f"{relation.rows:,} rows; the target's own past reaches {persistence or 0.0:.2f}"
            )
            yield Hit("too-good", "broken", name, "", tables, text, found)
            break
    moved = _level_shift(feature)
    if moved is not None and moved > LEVEL_RANGES:
        text = f"the median moved by {moved:.1f} times the 5-95 % range of the fit part"
        yield Hit("level", "broken", name, "", tables, text, moved)
    elif feature.psi_present is not None and feature.psi_present > PSI_SHIFT and _comparable(feature):
        severity: Severity = "suspect" if feature.psi_present > PSI_LARGE else "note"
        text = f"PSI {feature.psi_present:.2f} among the values that are there"
        yield Hit("drift", severity, name, "", tables, text, feature.psi_present)


def _level_shift(feature: FeatureStatistics) -> float | None:
    fit = dict(zip(QUANTILES, feature.fit.quantiles, strict=True))
    later = dict(zip(QUANTILES, feature.later.quantiles, strict=True))
    low, high, before, after = fit[0.05], fit[0.95], fit[0.5], later[0.5]
    if low is None or high is None or before is None or after is None or high == low:
        return None
    return abs(after - before) / (high - low)


def _comparable(feature: FeatureStatistics) -> bool:
    """Whether both parts have enough of the feature for its distribution to mean anything."""
    return max(feature.fit.missing, feature.later.missing) < 1.0 - MIN_PART_COVERAGE


def _missing(feature: FeatureStatistics, market: MarketFeature, bar: int) -> Iterator[Hit]:
    """At most one verdict per market: the one that explains most of what is missing."""
    name, tables = feature.name, feature.tables
    if market.coverage is None or market.first is None:
        yield Hit("empty", "broken", name, market.market, tables, "no value at all", 1.0)
        return
    found = False
    if market.missing_at_end * bar > DEAD_AFTER_US:
        found = True
        text = "no value since"
        days = market.missing_at_end * bar / DAY
        yield Hit("ended", "broken", name, market.market, tables, text, days, market.last)
    gap = market.longest_gap
    if gap and gap.bars * bar > DEAD_AFTER_US:
        found = True
        severity: Severity = "suspect" if gap.bars * bar > LONG_GAP_US else "note"
        text = f"no value for up to {_days(gap, bar)}"
        yield Hit("gap", severity, name, market.market, tables, text, gap.bars, gap.start, gap.end)
    if market.warm_up_bars * bar > LATE_START_US:
        found = True
        text = f"first value {market.warm_up_bars * bar // DAY} days of bars after the first bar"
        yield Hit("late", "note", name, market.market, tables, text, market.warm_up_bars, None, market.first)
    if not found:
        yield from _thin(feature, market)


def _thin(feature: FeatureStatistics, market: MarketFeature) -> Iterator[Hit]:
    name, tables, coverage = feature.name, feature.tables, market.coverage or 0.0
    if coverage < SPARSE:
        text = f"a value in {100.0 * coverage:.0f} % of the bars"
        yield Hit("sparse", "suspect", name, market.market, tables, text, 1.0 - coverage)
        return
    shares = [share for share in market.by_period if share is not None]
    usual = sorted(shares)[len(shares) // 2]
    # The first period holds the warm-up, the last may be a stub.
    low = [share for share in shares[1:-1] if share < COVERAGE_DROP * usual]
    if low:
        text = f"coverage falls to {100.0 * min(low):.0f} % in {len(low)} of {len(shares)} periods"
        yield Hit("thin", "suspect", name, market.market, tables, text, len(low) / len(shares))


def _still(feature: FeatureStatistics, market: MarketFeature, bar: int) -> Iterator[Hit]:
    run = market.longest_run
    if run is None or feature.counts_bars or (market.coverage or 0.0) * market.rows < MIN_BARS:
        return
    name, tables = feature.name, feature.tables
    resting = feature.resting_value is not None and run.value == feature.resting_value
    elsewhere = any(other.distinct > 1 for other in feature.markets)
    if market.distinct == 1:
        severity: Severity = "note" if resting and elsewhere else "broken"
        text = f"one value only: {run.value:.6g}"
        yield Hit("constant", severity, name, market.market, tables, text, 1.0, run.start, run.end)
    elif run.bars > feature.expected_run_bars:
        text = f"stands at {run.value:.6g} for {_days(run, bar)}; {_usual(feature, bar)}"
        yield Hit(
            "still",
            _still_severity(run, resting, bar),
            name,
            market.market,
            tables,
            text,
            run.bars,
            run.start,
            None if run.to_the_end else run.end,
        )


def _still_severity(run: Still, resting: bool, bar: int) -> Severity:
    length = run.bars * bar
    if resting or length < STILL_SUSPECT_US:
        return "note"
    return "broken" if run.to_the_end and length > STILL_BROKEN_US else "suspect"


def _usual(feature: FeatureStatistics, bar: int) -> str:
    return f"up to {feature.expected_run_bars * bar / DAY:.1f} days are usual"


def _values(feature: FeatureStatistics, market: MarketFeature) -> Iterator[Hit]:
    name, tables = feature.name, feature.tables
    before, after = market.size_before, market.size_after
    if market.size_since is not None and before and after:
        factor = after / before
        many = f"{factor:.3g} times as large" if factor > 1.0 else f"{1.0 / factor:.3g} times smaller"
        text = f"values are {many} than in the fit part"
        amount = max(factor, 1.0 / factor)
        if amount >= SIZE_RATIO:
            yield Hit("size", "broken", name, market.market, tables, text, amount, market.size_since)
            return
    values = (market.coverage or 0.0) * market.rows
    if market.outliers and values >= MIN_BARS:
        severity: Severity = "suspect" if market.outliers > OUTLIER_SHARE * values else "note"
        text = f"{market.outliers:,} values far out, the furthest {market.extreme:.4g}"
        yield Hit("outliers", severity, name, market.market, tables, text, market.outliers, market.extreme_at)


def _days(gap: Gap, bar: int) -> str:
    days = gap.bars * bar / DAY
    return f"{days:.0f} days" if days >= 3 else f"{gap.bars * bar / DAY * 24:.0f} hours"
