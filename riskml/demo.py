"""The whole path in one command: a market is generated, a model fitted, accounts decided.

Everything that is scored lies after the data that the bundle was fitted and calibrated
on, so the printed numbers are out of sample. With a lake of one's own the generated
market is skipped and the same steps run on it.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from riskml.cli_output import Outcome, Progress
from riskml.cli_verbs import action_counts, decisions_text, evaluation_text, write_json
from riskml.errors import ConfigError, DataError
from riskml.units import DAY, duration_us, format_us, to_us

if TYPE_CHECKING:
    from riskml.bundle import Manifest
    from riskml.tables.lake import Lake

SHORT_RECIPE = 'name = "short"\n\n[training]\nepochs = 2\n'
"""For ``--short``: enough to see that every step runs, too little to learn much."""
BACKFILL_DAYS = 3
MARKER = "demo.json"
"""Marks a folder as a demo's own; holds what the last demo took."""
PARTS = ("lake", "data", "run", "bundle", "margins")


@dataclass
class _Steps:
    """Announces steps and remembers how long each took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _name: str = ""
    _started: float = 0.0

    def begin(self, name: str) -> None:
        self.end()
        self._name, self._started = name, time.monotonic()
        self.progress(name)

    def end(self) -> None:
        if self._name:
            self.seconds[self._name] = round(time.monotonic() - self._started, 1)
        self._name = ""


def run_demo(out: Path, *, lake: str | None = None, short: bool = False, progress: Progress) -> Outcome:
    """Run every step and print the riskiest accounts.

    Parameters
    ----------
    out : folder for everything that is written; what an earlier demo wrote there is replaced.
    lake : a lake to use instead of the generated one.
    short : a small market and two epochs.

    Raises
    ------
    ConfigError : ``out`` is a file, or has content that no demo wrote.
    RiskmlError : any step failed; what the steps before it wrote stays.
    """
    from riskml.tables.lake import Lake

    if lake:
        Lake(lake).tables()  # a lake that is not there is told before anything is written
    _claim(out)
    steps = _Steps(progress)
    store = Lake(lake) if lake else _generate(out / "lake", steps, short)
    outputs, text, counts = [store.path], [], {}
    text.append(_check(store, steps))
    bundle, rows = _make_bundle(store, out, steps, short)
    counts["rows"] = rows
    text.append(_evaluate(store, bundle, out, steps))
    outputs += [out / "data", out / "run", bundle, out / "evaluation.json"]
    if "accounts" in store.tables():
        table, found = _score(store, bundle, out, steps)
        text.append(table)
        counts |= found
        outputs.append(out / "margins")
    steps.end()
    write_json(out / MARKER, {"seconds": steps.seconds, "counts": counts})
    total = sum(steps.seconds.values())
    text.append(
        "\n".join(f"{value:7.1f} s  {name}" for name, value in [*steps.seconds.items(), ("in all", total)])
    )
    return Outcome("\n\n".join(text), tuple(outputs), counts, extra={"steps": steps.seconds})


def _claim(out: Path) -> None:
    """Take a folder for the demo, and clear what an earlier one left."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", fix="choose another --out folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ConfigError(f"{out} has content that no demo wrote", fix="choose another --out folder")
    write_json(out / MARKER, {})
    for name in PARTS:
        shutil.rmtree(out / name, ignore_errors=True)


def _generate(path: Path, steps: _Steps, short: bool) -> Lake:
    from riskml.tables.lake import Lake
    from riskml.tables.synthetic import generate_sample

    steps.begin("generate a market and its accounts")
    if short:
        generate_sample(path, days=150, markets=3, accounts=30, progress=steps.progress)
    else:
        generate_sample(path, progress=steps.progress)
    return Lake(path)


def _check(lake: Lake, steps: _Steps) -> str:
    from riskml.tables.checks import check_lake

    steps.begin("check the lake")
    report = check_lake(lake)
    return f"check: {len(report.errors)} errors, {len(report.warnings)} warnings ('riskml check' lists them)"


def _make_bundle(lake: Lake, out: Path, steps: _Steps, short: bool) -> tuple[Path, int]:
    """Build, fit and export; the bundle's folder and the rows of the data set."""
    steps.begin("load the learning libraries")
    from riskml.learning.export import export_bundle
    from riskml.learning.fit import fit_run
    from riskml.tables.build import build_dataset

    steps.begin("build features and targets")
    info = build_dataset(lake, out / "data", progress=steps.progress)
    recipe = "quick"
    if short:
        recipe = str(out / "short.toml")
        Path(recipe).write_text(SHORT_RECIPE, encoding="utf-8")
    steps.begin("fit the market network")
    fit_run(out / "data", recipe, out / "run", progress=steps.progress)
    steps.begin("export the bundle")
    return Path(export_bundle(out / "run", out / "bundle")), info.rows


def _evaluate(lake: Lake, bundle: Path, out: Path, steps: _Steps) -> str:
    from riskml.bundle import read_manifest
    from riskml.learning.evaluate import evaluate_bundle

    steps.begin("evaluate out of sample")
    start, end = _test_range(read_manifest(bundle), out / "data")
    record = evaluate_bundle(bundle, lake, start=start, end=end, progress=steps.progress)
    write_json(out / "evaluation.json", record)
    return evaluation_text(record)


def _score(lake: Lake, bundle: Path, out: Path, steps: _Steps) -> tuple[str, dict[str, int]]:
    from riskml.backfill.local import backfill
    from riskml.backfill.score_at import score_at

    steps.begin("score the last account snapshot")
    newest = lake.partitions("accounts")[-1]
    rows = lake.read("accounts", start=newest.span[0], columns=["ts"])
    last = int(rows.column("ts").cast("int64").to_numpy().max())
    decisions = score_at(bundle, lake, last)
    steps.begin(f"backfill the last {BACKFILL_DAYS} days of the account history")
    report = backfill(
        bundle, lake, out / "margins", start=last - BACKFILL_DAYS * DAY, end=last, progress=steps.progress
    )
    counts = {"margin_rows": report.rows, "accounts": len(decisions), **action_counts(decisions)}
    return decisions_text(decisions), counts


def _test_range(manifest: Manifest, data: Path) -> tuple[str, str]:
    """From the end of the data that the bundle has touched, plus the purge, to the data set's end."""
    from riskml.tables.build import read_dataset

    purge = max(duration_us(horizon) for horizon in manifest.horizons)
    start = to_us(manifest.data_end) + purge
    end = int(read_dataset(data).ts[-1]) + duration_us(manifest.interval)
    if start >= end:
        raise DataError(
            f"no rows are left after {format_us(start)} to test on", fix="use a lake with more history"
        )
    return format_us(start), format_us(end)
