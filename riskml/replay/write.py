"""A replay's files: ``replay.json``, ``engines.csv`` and ``episodes.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from riskml.replay.history import ReplayReport

EPISODE_COLUMNS = ("engine", "account_id", "ts", "notional_usd", "foreseen", "lead_h")


def write_replay(report: ReplayReport, episodes: Sequence[dict[str, Any]]) -> None:
    """Write the three files of a replay, each one complete or not at all."""
    report.path.mkdir(parents=True, exist_ok=True)
    engines = [_plain(asdict(engine)) for engine in report.engines]
    record = {
        "start": report.start,
        "end": report.end,
        "in_sample_rows": report.in_sample_rows,
        "unpriced_positions": report.unpriced_positions,
        "engines": engines,
    }
    _write(report.path / "engines.csv", _csv(engines, list(engines[0]) if engines else ["engine"]))
    _write(report.path / "episodes.csv", _csv(episodes, EPISODE_COLUMNS))
    _write(report.path / "replay.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
