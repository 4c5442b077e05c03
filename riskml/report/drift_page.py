"""The page about drift: findings first, then coverage, calibration and features by month."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riskml.report.page import Section, picture, write_page

PSI_SHIFT = 0.25
SHOWN_FEATURES = 40
"""Rows of the picture; the table and the JSON have every feature."""


def write_drift_page(record: Mapping[str, Any], out: str | Path) -> tuple[Path, Path]:
    """Write the page and the same numbers as JSON beside it.

    Parameters
    ----------
    record : ``DriftReport.to_dict()`` of ``riskml.learning.drift``.
    out : the HTML file; the JSON has the same name.

    Returns
    -------
    (HTML file, JSON file).

    Notes
    -----
    NaN handling: a dash on the page, null in the JSON.
    """
    html = Path(out)
    write_page(html, "riskml drift", f"bundle {record['bundle_id']}", drift_sections(record))
    file = html.with_suffix(".json")
    staging = file.with_name(f".{file.name}.tmp")
    try:
        staging.write_text(json.dumps(_plain(record), allow_nan=False) + "\n", encoding="utf-8")
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)
    return html, file


def drift_sections(record: Mapping[str, Any]) -> list[Section]:
    """The sections of the page, in reading order."""
    findings = [
        [item["code"], item["subject"], _months(item["months"]), item["text"]] for item in record["findings"]
    ]
    range_text = (
        f"{record['start']} to {record['end']} of {', '.join(record['markets'])}, held against the fit part "
        f"{record['fit_start']} to {record['fit_end']}."
    )
    if not findings:
        range_text += " Nothing has drifted."
    sections = [
        Section("Findings", range_text, ["finding", "of", "months", "what"], findings),
        _coverage(record["coverage"]),
        _calibration(record["calibration"]),
        _features(record["features"], record["months"]),
    ]
    if record["features"] and record["months"]:
        sections.append(_feature_map(record["features"], record["months"]))
    return sections


def _coverage(rows: Sequence[Mapping[str, Any]]) -> Section:
    text = (
        "Share of bars and sides whose worst move passes the 99.5 % margin: 0.50 % is promised. The p-value "
        "(Kupiec) counts overlapping windows once; a dash stands where a month expects under 5 breaches."
    )
    table = [
        [row["month"], row["horizon"], row["n"], 100.0 * row["breach_rate"], row["p_value"]] for row in rows
    ]
    return Section("Coverage by month", text, ["month", "horizon", "rows", "breaches %", "p"], table)


def _calibration(rows: Sequence[Mapping[str, Any]]) -> Section:
    text = (
        "Drawn positions of the evaluation protocol: the mean probability of liquidation beside the share "
        "that was liquidated, and the log-loss as a multiple of the baseline's (below 1 is better)."
    )
    table = [
        [
            row["month"],
            row["horizon"],
            row["n"],
            row["predicted"],
            row["observed"],
            row["log_loss"],
            row["log_loss"] / row["baseline_log_loss"] if row["baseline_log_loss"] else math.nan,
        ]
        for row in rows
    ]
    headers = ["month", "horizon", "positions", "predicted", "observed", "log-loss", "x baseline"]
    return Section("Calibration by month", text, headers, table)


def _features(rows: Sequence[Mapping[str, Any]], months: Sequence[str]) -> Section:
    text = (
        "Population stability index of every month against the fit part: below 0.1 stable, above 0.25 a "
        "shift. A slow feature sees only a part of its law in a month, so 'usual' says what 95 % of the fit "
        "part's own months stay below; a shift passes both."
    )
    table = [
        [row["feature"], row["usual"], *(row["psi"].get(month) for month in months)] for row in _sorted(rows)
    ]
    return Section("Features by month", text, ["feature", "usual", *months], table)


def _feature_map(rows: Sequence[Mapping[str, Any]], months: Sequence[str]) -> Section:
    shown = _sorted(rows)[:SHOWN_FEATURES]
    values = np.array([[row["psi"].get(month, math.nan) for month in months] for row in shown], dtype=float)

    def draw(axes: Any) -> None:
        # From 0 to twice the limit: what is dark has shifted, however far.
        axes.imshow(values, aspect="auto", cmap="Reds", vmin=0.0, vmax=2.0 * PSI_SHIFT)
        axes.set_xticks(range(len(months)), months, rotation=90, fontsize=7)
        axes.set_yticks(range(len(shown)), [row["feature"] for row in shown], fontsize=7)

    height = 1.5 + 0.18 * len(shown)
    return Section("Features that moved most", image=picture(draw, height=height))


def _sorted(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -max(row["psi"].values(), default=0.0))


def _months(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} to {names[-1]} ({len(names)})"


def _plain(value: Any) -> Any:
    """Nested containers as JSON takes them; what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
