"""The pages, one per kind of output: bundle (and its impulse), run, backfill and replay, and features."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from riskml.bundle import verify_bundle
from riskml.errors import ConfigError, DataError, nearest
from riskml.report.bundles import flatten, run_metrics, summary
from riskml.report.impulse_page import impulse_sections
from riskml.report.page import Section, embedded, picture, write_page
from riskml.risk import ACTIONS

COLOURS = ("#9aa5b1", "#e6b450", "#d9822b", "#b3261e")


def write_report(kind: str, path: str | Path, out: str | Path) -> Path:
    """Write the page about one output.

    Parameters
    ----------
    kind : features, bundle, impulse, run, backfill or replay.
    path : the folder that the step wrote.
    out : the HTML file.

    Raises
    ------
    ConfigError : unknown kind.
    DataError, BundleError : the folder is not what ``kind`` says.
    """
    if kind == FEATURES:
        from riskml.report.feature_page import write_feature_page

        return write_feature_page(path, out).html
    if kind not in PAGES:
        known = (FEATURES, *PAGES)
        raise ConfigError(
            f"there is no report '{kind}'.{nearest(kind, known)}", fix=f"use {', '.join(known)}"
        )
    sections = PAGES[kind](Path(path))
    write_page(Path(out), f"riskml {kind}", str(path), sections)
    return Path(out)


def _bundle(path: Path) -> list[Section]:
    manifest = verify_bundle(path)
    features = [
        [item["name"], item.get("unit", ""), item.get("lookback", ""), ", ".join(item.get("inputs", []))]
        for item in manifest.features
    ]
    card = (path / "CARD.md").read_text(encoding="utf-8")
    return [
        Section("Bundle", "Every file agrees with the manifest.", ["", ""], list(summary(manifest).items())),
        Section("Metrics", "", ["metric", "value"], _flat_rows(manifest.metrics)),
        Section("Features", "", ["feature", "unit", "lookback", "inputs"], features),
        Section("Model card", "", ["CARD.md"], [[line] for line in card.splitlines() if line.strip()]),
    ]


def _run(path: Path) -> list[Section]:
    sections = [Section("Metrics", "", ["metric", "value"], list(run_metrics(path).items()))]
    record = _read(path / "run.json", "run")
    sections.append(Section("Run", "", ["", ""], _flat_rows(record)))
    for file in sorted((path / "plots").glob("*.png")):
        sections.append(Section(file.stem.replace("_", " "), image=embedded(file)))
    return sections


def _backfill(path: Path) -> list[Section]:
    from riskml.tables.lake import Lake

    data = (
        Lake(path)
        .read(
            "margins",
            columns=[
                "ts",
                "engine",
                "action",
                "equity_usd",
                "maintenance_margin_usd",
                "p_liq_24h",
                "in_sample",
            ],
        )
        .to_pandas()
    )
    if data.empty:
        raise DataError(
            f"{path} holds no margin rows", table="margins", fix="pass what 'riskml backfill' wrote"
        )
    rows = []
    for engine, group in data.groupby("engine"):
        rows.append(
            [
                str(engine),
                len(group),
                100.0 * float(group["in_sample"].astype(float).mean()),
                100.0 * float((group["equity_usd"] < group["maintenance_margin_usd"]).mean()),
                *(100.0 * float((group["action"] == action).mean()) for action in ACTIONS),
            ]
        )
    days = data[data["action"] != "normal"].assign(day=data["ts"].dt.floor("D"))
    counts = days.groupby(["day", "action"]).size().unstack(fill_value=0)

    def draw(axes: Any) -> None:
        floor = np.zeros(len(counts))
        for action, colour in zip(ACTIONS[1:], COLOURS[1:], strict=True):
            height = counts[action].to_numpy() if action in counts else np.zeros(len(counts))
            axes.bar(counts.index, height, bottom=floor, color=colour, label=action)
            floor = floor + height
        axes.set_ylabel("account-hours per day")
        axes.legend()

    headers = [
        "engine",
        "account-hours",
        "in sample %",
        "below maintenance %",
        *(f"{name} %" for name in ACTIONS),
    ]
    sections = [Section("Engines", "", headers, rows)]
    if len(counts):
        sections.append(Section("Actions", image=picture(draw)))
    return sections


def _replay(path: Path) -> list[Section]:
    record = _read(path / "replay.json", "replay")
    engines = record["engines"]
    names = [name for name in engines[0] if name != "engine"] if engines else []
    rows = [[name.replace("_", " "), *(engine[name] for engine in engines)] for name in names]
    text = (
        f"{record['start']} to {record['end']}; {record['in_sample_rows']:,} in-sample rows left out. "
        "Equity is marked again at the next bar's worst prices and held against each engine's maintenance."
    )
    sections = [Section("Engines", text, ["", *(engine["engine"] for engine in engines)], rows)]
    if any(engine["liquidations"] for engine in engines):

        def draw(axes: Any) -> None:
            shares = [100.0 * engine["foreseen"] / max(engine["liquidations"], 1) for engine in engines]
            axes.bar([engine["engine"] for engine in engines], shares, color=COLOURS[2])
            axes.set_ylabel("liquidations called before, %")

        sections.append(Section("Recorded liquidations", image=picture(draw, width=6.0)))
    return sections


FEATURES = "features"
"""The kind with a page of its own, :mod:`riskml.report.feature_page`."""
PAGES: Mapping[str, Callable[[Path], list[Section]]] = {
    "bundle": _bundle,
    "run": _run,
    "backfill": _backfill,
    "replay": _replay,
    "impulse": impulse_sections,
}


def _flat_rows(record: Mapping[str, Any]) -> list[list[object]]:
    return [[name, value] for name, value in flatten(record).items()]


_VERB = {"run": "fit", "replay": "replay"}


def _read(file: Path, what: str) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"there is no {what} at {file}", fix=f"pass what 'riskml {_VERB[what]}' wrote"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid JSON: {error}", fix=f"write the {what} again") from error
    if not isinstance(record, dict):
        raise DataError(f"{file} holds no JSON object", fix=f"write the {what} again")
    return record
