"""What looks broken in a dataset, most severe first: a verdict, where, since when, and what to do.

Hits of the rules that share a cause are joined: markets that break together, then features of
the same tables that break together, which is what a dead source looks like.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from riskml.report.feature_rules import (
    SEVERITIES,
    Hit,
    Severity,
    feature_hits,
    market_hits,
    target_hits,
)
from riskml.report.feature_statistics import FeatureReport
from riskml.report.target_statistics import TargetReport
from riskml.tables.dataset import DatasetInfo
from riskml.units import DAY, to_us

TOGETHER_US = 10 * DAY
"""Breaks of one source that lie this near to each other are one: windows end at different times."""
_EVERY_MARKET_HAS = ("bars", "marks")

TITLES = {
    "table": "table absent",
    "empty": "no values",
    "infinite": "infinite values",
    "too-good": "too good to be true",
    "constant": "constant",
    "ended": "source ended",
    "size": "unit or size changed",
    "level": "level moved",
    "still": "stands still",
    "gap": "hole",
    "late": "starts late",
    "sparse": "mostly missing",
    "thin": "coverage lost",
    "outliers": "far out",
    "drift": "drift",
    "bars": "bars missing",
    "targets": "targets",
}
"""What a kind of finding is called, in the order in which they are listed among equals."""


@dataclass(frozen=True)
class Finding:
    """One thing to look at."""

    severity: Severity
    kind: str
    """Key of :data:`TITLES`."""
    features: tuple[str, ...]
    markets: tuple[str, ...]
    """Empty = all of them."""
    tables: tuple[str, ...]
    """Tables that the features read."""
    since: str | None
    until: str | None
    text: str
    """What was found."""
    fix: str

    @property
    def title(self) -> str:
        """The kind in words."""
        return TITLES[self.kind]


def find_problems(report: FeatureReport, targets: TargetReport, info: DatasetInfo) -> tuple[Finding, ...]:
    """Every finding of a dataset, the most severe first.

    Parameters
    ----------
    report : statistics of the features.
    targets : statistics of the targets.
    info : the dataset's own description; its missing tables are findings.
    """
    every = tuple(market.market for market in report.markets if market.rows)
    absent = set(info.missing_tables)
    hits = [
        hit
        for hit in feature_hits(report)
        # An absent table is one finding, not one per feature and market.
        if not (hit.kind == "empty" and absent & set(hit.tables))
    ]
    hits += [*market_hits(report), *target_hits(targets)]
    findings = [_finding(group, every) for group in _join_features(_join_markets(hits))]
    findings += [_absent(report, table) for table in info.missing_tables]
    findings += _off_grid(info)
    kinds = list(TITLES)
    order = {severity: place for place, severity in enumerate(SEVERITIES)}
    return tuple(
        sorted(
            findings,
            key=lambda item: (
                order[item.severity],
                kinds.index(item.kind),
                -len(item.features) * (len(item.markets) or len(every)),
            ),
        )
    )


def _join_markets(hits: Iterable[Hit]) -> list[tuple[Hit, ...]]:
    """Hits of one kind, severity and feature whose dates lie near each other."""
    groups: dict[tuple[str, str, str], list[Hit]] = {}
    for hit in hits:
        groups.setdefault((hit.kind, hit.severity, hit.feature), []).append(hit)
    return [cluster for group in groups.values() for cluster in _near(group)]


def _near(hits: Sequence[Hit]) -> list[tuple[Hit, ...]]:
    """Cut hits where the next one begins more than :data:`TOGETHER_US` after the one before."""
    if _is_undated(hits[0]):
        return [tuple(hits)]
    ordered = sorted(hits, key=_start)
    clusters: list[list[Hit]] = [[ordered[0]]]
    for hit in ordered[1:]:
        if _start(hit) - _start(clusters[-1][-1]) > TOGETHER_US:
            clusters.append([])
        clusters[-1].append(hit)
    return [tuple(cluster) for cluster in clusters]


def _is_undated(hit: Hit) -> bool:
    """Whether dates are examples, not a common cause."""
    moved_on = hit.kind == "still" and hit.until is not None
    return moved_on or hit.kind in ("outliers", "constant", "late", "drift") or hit.severity == "note"


def _start(hit: Hit) -> int:
    return to_us(hit.since) if hit.since else 0


def _join_features(groups: Iterable[tuple[Hit, ...]]) -> list[tuple[Hit, ...]]:
    """Join features of the same tables that break in the same markets at about the same time."""
    joined: dict[tuple[object, ...], list[list[Hit]]] = {}
    for group in sorted(groups, key=lambda group: min(_start(hit) for hit in group)):
        first = group[0]
        markets = tuple(sorted(hit.market for hit in group))
        key: tuple[object, ...] = (first.kind, first.severity, source_tables(first.tables), markets)
        if first.kind in ("too-good", "infinite"):
            key = (*key, first.feature)
        clusters = joined.setdefault(key, [])
        gap = min(map(_start, group)) - max(map(_start, clusters[-1])) if clusters else 0
        if clusters and (gap <= TOGETHER_US or _is_undated(first)):
            clusters[-1].extend(group)
        else:
            clusters.append(list(group))
    return [tuple(cluster) for clusters in joined.values() for cluster in clusters]


def source_tables(tables: Sequence[str]) -> tuple[str, ...]:
    """The tables that can be what broke: not bars and marks, unless there is nothing else.

    >>> source_tables(("bars", "funding")), source_tables(("bars",))
    (('funding',), ('bars',))
    """
    return tuple(table for table in tables if table not in _EVERY_MARKET_HAS) or tuple(tables)


def _finding(hits: tuple[Hit, ...], every: tuple[str, ...]) -> Finding:
    worst = max(hits, key=lambda hit: hit.amount)
    features = tuple(dict.fromkeys(hit.feature for hit in hits if hit.feature))
    found = {hit.market for hit in hits if hit.market}
    markets = tuple(market for market in every if market in found) or tuple(sorted(found))
    dated = [worst] if _is_undated(worst) else hits
    starts = sorted(hit.since for hit in dated if hit.since)
    ends = sorted(hit.until for hit in dated if hit.until)
    return Finding(
        severity=worst.severity,
        kind=worst.kind,
        features=features,
        markets=() if set(markets) == set(every) else markets,
        tables=source_tables(worst.tables),
        since=starts[0] if starts else None,
        until=ends[-1] if ends and len(ends) == len(dated) else None,
        text=_text(hits, worst, features),
        fix=_fix(worst, features),
    )


def _text(hits: tuple[Hit, ...], worst: Hit, features: tuple[str, ...]) -> str:
    if worst.kind == "drift" and len(features) > 1:
        ordered = sorted(hits, key=lambda hit: -hit.amount)
        each = ", ".join(f"{hit.feature} {hit.amount:.2f}" for hit in ordered)
        return f"PSI among the values that are there: {each}"
    if len(hits) == 1 or len({hit.text for hit in hits}) == 1:
        return worst.text
    several = len({hit.market for hit in hits}) > 1
    names = (worst.feature if len(features) > 1 else "", worst.market if several else "")
    place = " ".join(name for name in names if name)
    return f"{worst.text} (the worst: {place})" if place else worst.text


_FIXES = {
    "empty": "ingest {tables} for these markets, or leave the features out with [network] features",
    "infinite": "bound or floor the expression of the feature: a division by zero reached it",
    "too-good": "look for the future in {tables}: ts or known_at too early, or a target among the inputs",
    "constant": "look at {tables} in the lake: the source repeats one value, or only a default arrives",
    "ended": "ingest {tables} behind this date; a fit on what was before learns what serving will lack",
    "size": "compare the unit of {tables} around this date with data/TABLES.md, and ingest it again",
    "level": "compare the unit and the origin of {tables} in both parts, and ingest the wrong one again",
    "still": "look at {tables} in these days: the source repeats its last value instead of leaving it out",
    "gap": "ingest {tables} for these days, or start the fit part behind the hole",
    "late": "start the fit part later, or leave the feature out for these markets",
    "sparse": "ingest more of {tables}, or leave the features out with [network] features",
    "thin": "look for lost files or rows of {tables} in these periods with 'riskml check'",
    "outliers": "look at {tables} around this date: a bad tick, or a bound that is missing in the expression",
    "drift": "fit on later data, or use a relative form: forecasts leave what the fit has seen",
    "bars": "ingest the bars of these days, or leave the market out of the build",
    "targets": "look at the bars of this day: a bad tick is a row to drop, a crash is not",
}


def _fix(hit: Hit, features: tuple[str, ...]) -> str:
    named = source_tables(hit.tables)
    tables = f"table{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else "its source"
    text = _FIXES[hit.kind].format(tables=tables)
    if hit.kind in ("empty", "ended") and set(named) <= set(_EVERY_MARKET_HAS):
        return f"look which of its inputs {tables} lack{'s' if len(named) == 1 else ''}: {text}"
    return text


def _off_grid(info: DatasetInfo) -> list[Finding]:
    if not info.off_grid_bars:
        return []
    return [
        Finding(
            severity="suspect",
            kind="bars",
            features=(),
            markets=(),
            tables=("bars",),
            since=None,
            until=None,
            text=f"{info.off_grid_bars:,} bars close between two bars of the grid, left out",
            fix="see 'riskml check': the ts of a bar is its close, a whole multiple of its length",
        )
    ]


def _absent(report: FeatureReport, table: str) -> Finding:
    features = tuple(feature.name for feature in report.features if table in feature.tables)
    empty = [feature.name for feature in report.features if feature.name in features and not feature.coverage]
    return Finding(
        severity="broken" if empty else "note",
        kind="table",
        features=features,
        markets=(),
        tables=(table,),
        since=None,
        until=None,
        text=f"the lake had no table '{table}': {len(empty)} of {len(features)} features on it are empty",
        fix=f"ingest {table} and build again, or leave the features out with [network] features",
    )
