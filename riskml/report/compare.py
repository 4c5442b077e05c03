"""How two runs differ: recipe, data, and metrics with the better of the two."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riskml.errors import DataError
from riskml.report.bundles import flatten, run_metrics

PROMISED_BREACHES = 0.005
"""Of the 99.5 % margin; a breach rate nearer to it is the better one."""
_DATA = (
    *("interval", "horizons", "markets", "venues", "fitted_markets", "features", "features_left_out"),
    *("feature_fingerprint", "fit_start", "fit_end", "calibrate_start", "calibrate_end", "data_end"),
)
_LOWER = re.compile(r"(qlike|loss|ece)(_|\.|$)")
_HIGHER = re.compile(r"(auc|average_precision|recall)(_|\.|$)")
_BASELINE = re.compile(r"_log_har$|^start_|^history")
"""Values that are not the run's own result: what it is held against, and where it began."""


@dataclass(frozen=True)
class MetricChange:
    """One metric of two runs."""

    metric: str
    first: float | None
    second: float | None
    change: float | None
    """Second minus first; None where one lacks it."""
    better: str
    """``first``, ``second``, ``same``, or nothing where neither direction is better."""


@dataclass(frozen=True)
class RunComparison:
    """What differs between two runs."""

    recipe: Mapping[str, tuple[Any, Any]]
    """Dotted key to (first, second); None = absent."""
    data: Mapping[str, tuple[Any, Any]]
    """Range, markets, features and tables, likewise."""
    metrics: tuple[MetricChange, ...]
    """Every metric of either, the course of the losses left out."""


def compare_runs(first: str | Path, second: str | Path) -> RunComparison:
    """Hold two RUN folders against each other.

    A run without ``run.json`` (of a fit that was cut off) is compared by its metrics alone.

    Raises
    ------
    DataError : a folder holds no run, or a damaged one.
    """
    one, two = _record(first), _record(second)
    mine, theirs = run_metrics(first), run_metrics(second)
    names = [*mine, *(name for name in theirs if name not in mine)]
    metrics = tuple(
        _change(name, mine.get(name), theirs.get(name)) for name in names if not name.startswith("history")
    )
    recipes = [dict(record.get("recipe", {})) for record in (one, two)]
    return RunComparison(_differing(*recipes), _differing(_data(one), _data(two)), metrics)


def better_of(metric: str, first: float | None, second: float | None) -> str:
    """Which of two values of a metric is the better one.

    >>> better_of("validation_qlike_8h", 0.5, 0.4), better_of("test.auc", 0.9, 0.8), better_of("epoch", 1, 2)
    ('second', 'first', '')
    >>> better_of("calibrate_breach_rate_1h", 0.001, 0.006)
    'second'
    """
    if first is None or second is None or _BASELINE.search(metric):
        return ""
    if "breach_rate" in metric:
        scores = [abs(value - PROMISED_BREACHES) for value in (first, second)]
    elif _LOWER.search(metric):
        scores = [first, second]
    elif _HIGHER.search(metric):
        scores = [-first, -second]
    else:
        return ""
    if scores[0] == scores[1]:
        return "same"
    return "first" if scores[0] < scores[1] else "second"


def _change(name: str, first: float | None, second: float | None) -> MetricChange:
    change = None if first is None or second is None else second - first
    return MetricChange(name, first, second, change, better_of(name, first, second))


def _data(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was fitted on; tables by the number of their partitions and their hashes."""
    tables: dict[str, dict[str, str]] = {}
    for path, digest in record.get("data_hashes", {}).items():
        tables.setdefault(path.split("/")[0], {})[path] = digest
    return {name: record[name] for name in _DATA if name in record} | {"tables": tables}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    one, two = dict(first), dict(second)
    tables = _tables(one.pop("tables", {}), two.pop("tables", {}))
    flat_one, flat_two = flatten(one), flatten(two)
    names = [*flat_one, *(name for name in flat_two if name not in flat_one)]
    differing = {
        name: (flat_one.get(name), flat_two.get(name))
        for name in names
        if flat_one.get(name) != flat_two.get(name)
    }
    return differing | tables


def _tables(
    one: Mapping[str, Mapping[str, str]], two: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[Any, Any]]:
    """Tables with other partitions; hundreds of hashes tell a reader no more than their number."""
    changed = {}
    for name in sorted({*one, *two}):
        first, second = one.get(name, {}), two.get(name, {})
        if first == second:
            continue
        different = sum(first.get(path) != second.get(path) for path in {*first, *second})
        changed[f"table {name}"] = (f"{len(first)} files", f"{len(second)} files, {different} differ")
    return changed


def _record(run: str | Path) -> dict[str, Any]:
    file = Path(run) / "run.json"
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid JSON: {error}", fix="fit the run again") from error
    if not isinstance(record, dict):
        raise DataError(f"{file} holds no JSON object", fix="fit the run again")
    return record
