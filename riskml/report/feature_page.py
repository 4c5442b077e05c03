"""The page about a dataset's features: one HTML file without scripts, and the same numbers as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from riskml import __version__
from riskml.errors import ConfigError
from riskml.report.drawings import number
from riskml.report.feature_findings import Finding, find_problems
from riskml.report.feature_rules import PSI_SHIFT, SEVERITIES, leak_limit
from riskml.report.feature_statistics import QUANTILES, FeatureReport, describe_features, seam_dates
from riskml.report.feature_view import (
    family_views,
    market_views,
    percent,
    source_views,
    target_view,
    verdict_map,
)
from riskml.report.target_statistics import QUANTILES as TARGET_QUANTILES
from riskml.report.target_statistics import TargetReport, describe_targets
from riskml.tables.coverage import coverage, coverage_table
from riskml.tables.dataset import DatasetInfo, read_dataset
from riskml.tables.onsets import ONSETS, read_onsets
from riskml.units import TimeLike

TEMPLATE = "features.html"
TARGET_NAMES = {"variance": "variance", "mae_down": "MAE down", "direction": "direction"}
_SHOWN_NAMES = 8
"""Names of features or markets that a finding spells out."""

Progress = Callable[[int, int, str], None]
Sources = tuple[list[str], list[list[str]]]
"""Header and rows."""


@dataclass(frozen=True)
class FeaturePage:
    """What was written."""

    html: Path
    json: Path
    findings: tuple[Finding, ...]

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        return {name: sum(item.severity == name for item in self.findings) for name in SEVERITIES}


def write_feature_page(
    dataset: str | Path,
    out: str | Path,
    *,
    fit_end: TimeLike | None = None,
    calibrate_end: TimeLike | None = None,
    lake: str | Path | None = None,
    progress: Progress | None = None,
) -> FeaturePage:
    """Describe a dataset, judge it, and write the page with its JSON beside it.

    Parameters
    ----------
    dataset : folder that ``riskml build`` wrote.
    out : the HTML file, or a folder for ``features.html``; the JSON has the same name.
    fit_end, calibrate_end : seams; default as ``riskml fit`` cuts.
    lake : adds what this lake holds by source and year.
    progress : called with (done, total, message).

    Raises
    ------
    DataError : no dataset, no lake, or no bar in a part.
    ConfigError : seams outside the range.
    """
    html = _html_file(Path(out))
    data = read_dataset(dataset)
    sources = None if lake is None else source_table(lake, data.info.interval)
    report = describe_features(data, fit_end=fit_end, calibrate_end=calibrate_end, progress=progress)
    recorded = (Path(dataset) / ONSETS).is_file()
    targets = describe_targets(data, read_onsets(dataset) if recorded else None)
    findings = find_problems(report, targets, data.info)
    html.parent.mkdir(parents=True, exist_ok=True)
    record = to_record(data.info, report, targets, findings)
    _write(html.with_suffix(".json"), json.dumps(record, allow_nan=False) + "\n")
    _write(html, render(data.info, report, targets, findings, sources))
    return FeaturePage(html, html.with_suffix(".json"), findings)


def to_record(
    info: DatasetInfo, report: FeatureReport, targets: TargetReport, findings: Sequence[Finding]
) -> dict[str, Any]:
    """Everything on the page as plain JSON values; what is not finite is null."""
    return {
        "riskml_version": __version__,
        "dataset": {name: value for name, value in _plain(info).items() if name != "data_hashes"},
        "parts": {**seam_dates(report.parts), "held_against_fit": report.later},
        "sample_stride": report.stride,
        "quantiles": list(QUANTILES),
        "target_quantiles": list(TARGET_QUANTILES),
        "findings": [_plain(item) | {"title": item.title} for item in findings],
        "periods": list(report.periods),
        "markets": _plain(report.markets),
        "features": _plain(report.features),
        "persistence": [
            {"target": target, "horizon": horizon, "correlation": value}
            for (target, horizon), value in zip(report.targets, report.persistence, strict=True)
        ],
        "targets": _plain(targets),
    }


def render(
    info: DatasetInfo,
    report: FeatureReport,
    targets: TargetReport,
    findings: Sequence[Finding],
    sources: Sources | None = None,
) -> str:
    """The page as text; ``sources`` is :func:`source_table` of the lake."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    environment.filters["day"] = lambda time: "" if time is None else str(time)[:10]
    environment.filters["some"] = _some
    environment.filters["wanted"] = lambda pairs, name: [
        place for place, (target, _) in enumerate(pairs) if target == name
    ]
    template = environment.from_string(files("riskml.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        info=info,
        report=report,
        version=__version__,
        seams=seam_dates(report.parts),
        findings=[item for item in findings if item.severity != "note"],
        notes=[item for item in findings if item.severity == "note"],
        counts={name: sum(item.severity == name for item in findings) for name in SEVERITIES},
        clean=len(report.features) - len({name for item in findings for name in item.features}),
        source_counts=source_views(report, findings),
        map=verdict_map(report, findings),
        families=family_views(report, findings),
        quantiles=[f"{100.0 * level:g} %" for level in QUANTILES],
        limits=[
            (f"{TARGET_NAMES[target]} {horizon}", value, leak_limit(target, value))
            for (target, horizon), value in zip(report.targets, report.persistence, strict=True)
        ],
        psi_shift=PSI_SHIFT,
        market_rows=market_views(report),
        targets=target_view(targets),
        sources=sources,
    )


def source_table(lake: str | Path, interval: str) -> Sources:
    """What a lake holds by table, source and year."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in coverage_table(coverage(lake, interval=interval)).splitlines()
    ]
    # The second line of a Markdown table is its rule.
    return lines[0], lines[2:]


def _html_file(out: Path) -> Path:
    """``out`` itself, or ``features.html`` in it when it is a folder."""
    if out.is_dir() or not out.suffix:
        return out / "features.html"
    if out.suffix == ".json":
        raise ConfigError(f"{out} is where the numbers would go", fix="name the page, --out features.html")
    return out


def _some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _plain(value: Any) -> Any:
    """Records as JSON values: numbers to seven digits, what is not finite as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
