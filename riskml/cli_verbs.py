"""The verbs from raw data to decisions; each imports the tier that it needs.

Every function takes the parsed options and a progress reporter and returns an
:class:`~riskml.cli_output.Outcome`; errors are raised and turned into exit codes by
``cli.main``.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riskml.cli_output import FAILED, REFUSED, Outcome, Progress, finite, text_table
from riskml.errors import ConfigError, DataError, missing_extra
from riskml.units import format_us

if TYPE_CHECKING:
    from riskml.risk.decisions import Decisions

EXTRAS = {
    "data": {"pandas", "pyarrow", "polars", "numba"},
    "train": {
        "torch",
        "pytorch_lightning",
        "mlflow",
        "sklearn",
        "onnx",
        "onnxscript",
        "optuna",
        "lightgbm",
        "arch",
    },
    "report": {"matplotlib", "jinja2"},
}
"""Which extra brings which module, for the message when one is missing."""

SHOWN_ACCOUNTS = 12
HEADLINES = ("qlike", "log_loss", "breach_rate", "early_warning_recall", "early_warning_false_per_week")
"""Metrics that the terminal shows; the file has all of them."""


@contextmanager
def optional_imports() -> Iterator[None]:
    """Turn the lack of an optional library into an error that names the install command."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, names in EXTRAS.items():
            if module in names:
                raise missing_extra(module, extra) from error
        raise


def ingest(options: Namespace, progress: Progress) -> Outcome:
    """Read a folder of source files into a lake."""
    with optional_imports():
        from riskml.tables.ingest import ingest as run
    report = run(
        options.kind,
        options.path,
        options.lake,
        progress=lambda done, total, name: progress(done, total, "ingesting"),
        market=options.market,
    )
    text = text_table(["what", "count"], report.counts.items())
    if report.skipped:
        examples = "; ".join(f"{item.path}: {item.reason}" for item in report.skipped[:3])
        text += f"\n{len(report.skipped)} left out on purpose (--json lists all): {examples}"
    skipped = [{"path": item.path, "reason": item.reason, "rows": item.rows} for item in report.skipped]
    counts = dict(report.counts)
    exit_code = FAILED if report.problems else 0
    lake = Path(options.lake)
    outputs = (lake,) if lake.is_dir() else ()
    return Outcome(text, outputs, counts, tuple(report.problems), exit_code, {"skipped": skipped})


def check(options: Namespace, progress: Progress) -> Outcome:
    """Report every finding of a lake; exit code 3 when there is an error among them."""
    with optional_imports():
        from riskml.tables.checks import check_lake
        from riskml.tables.lake import Lake
    progress(f"checking {options.lake}")
    report = check_lake(Lake(options.lake))
    text = text_table(["what", "count"], report.counts.items())
    codes = Counter(problem.code for problem in report.problems)
    if codes:
        text += "\n" + ", ".join(f"{count} {code}" for code, count in codes.most_common())
    findings = (*report.errors, *report.warnings)
    return Outcome(text, (), dict(report.counts), findings, 0 if report.ok else REFUSED)


def build(options: Namespace, progress: Progress) -> Outcome:
    """Compute features and targets of a lake."""
    with optional_imports():
        from riskml.tables.build import build_dataset
        from riskml.tables.lake import Lake
        from riskml.tables.stress import StressSpec
    markets = options.markets if options.markets == "all" else name_list(options.markets, "--markets")
    features = options.features if options.features == "all" else name_list(options.features, "--features")
    info = build_dataset(
        Lake(options.lake),
        options.out,
        interval=options.interval,
        markets=markets,
        start=options.start,
        end=options.end,
        jobs=options.jobs,
        features=features,
        stress=StressSpec.parse(options.stress),
        resume=options.resume,
        progress=progress,
    )
    text = f"{info.rows:,} rows of {len(info.features)} features, {len(info.markets)} markets"
    if info.missing_tables:
        text += f"\nthe lake has no {', '.join(info.missing_tables)}: features of these tables are empty"
    if info.off_grid_bars:
        text += f"\n{info.off_grid_bars:,} bars close between two bars of the grid and were left out"
    counts = {"rows": info.rows, "markets": len(info.markets), "features": len(info.features)}
    counts["off_grid_bars"] = info.off_grid_bars
    return Outcome(text, (Path(options.out),), counts, extra={"missing_tables": list(info.missing_tables)})


def fit(options: Namespace, progress: Progress) -> Outcome:
    """Train the market network."""
    with optional_imports():
        from riskml.learning.fit import fit_run
    result = fit_run(
        options.data,
        options.recipe,
        options.out,
        fit_end=options.fit_end,
        calibrate_end=options.calibrate_end,
        seed=options.seed,
        tracking_uri=options.tracking_uri,
        resume=options.resume,
        progress=progress,
    )
    metrics = {name: value for name, value in result.metrics.items() if isinstance(value, (int, float))}
    text = text_table(["metric", "value"], metrics.items())
    return Outcome(text, (Path(options.out),), extra={"metrics": result.metrics})


def export(options: Namespace, progress: Progress) -> Outcome:
    """Write the ONNX bundle of a run."""
    with optional_imports():
        from riskml.learning.export import export_bundle
    from riskml.bundle import read_manifest

    progress("exporting both graphs")
    fix = "run 'riskml evaluate --walk-forward ... --out FILE' first"
    evaluation = read_json(Path(options.evaluation), "evaluation", fix) if options.evaluation else None
    path = Path(export_bundle(options.run_dir, options.out, evaluation=evaluation))
    manifest = read_manifest(path)
    return Outcome(f"bundle {manifest.bundle_id}", (path,), extra={"bundle_id": manifest.bundle_id})


def evaluate(options: Namespace, progress: Progress) -> Outcome:
    """Measure a bundle or, fold by fold, a recipe against the baselines."""
    if options.walk_forward and not options.recipe:
        raise ConfigError("--walk-forward needs a recipe", fix="add --recipe quick")
    with optional_imports():
        from riskml.learning.evaluate import evaluate_bundle
        from riskml.learning.walk_forward import FOLDS_FOLDER, evaluate_walk_forward
        from riskml.tables.lake import Lake
    lake = Lake(options.lake)
    common: dict[str, Any] = {
        "start": options.start,
        "end": options.end,
        "markets": name_list(options.markets, "--markets") if options.markets else None,
        "baselines": options.baselines,
        "portfolios": options.portfolios,
        "progress": progress,
    }
    if options.walk_forward:
        result = evaluate_walk_forward(options.recipe, lake, **common)
    else:
        result = evaluate_bundle(options.bundle, lake, accounts=options.accounts, **common)
    out = Path(options.out)
    write_json(out, result)
    outputs = (out, Path(FOLDS_FOLDER)) if options.walk_forward else (out,)
    text = evaluation_text(result)
    counts = {"rows": result["rows"], "metrics": len(result["metrics"])}
    return Outcome(
        text, outputs, counts, extra={"bundle_id": result["bundle_id"], "in_sample": result["in_sample"]}
    )


def backfill(options: Namespace, progress: Progress) -> Outcome:
    """Score an account history into the margins table."""
    with optional_imports():
        from riskml.backfill.local import backfill as run
        from riskml.tables.lake import Lake
    report = run(
        options.bundle,
        Lake(options.lake),
        options.out,
        start=options.start,
        end=options.end,
        engines=tuple(name_list(options.engine, "--engine")),
        jobs=options.jobs,
        resume=options.resume,
        dry_run=options.dry_run,
        breaker=options.breaker,
        progress=progress,
    )
    return backfill_outcome(report, Path(options.out), dry_run=options.dry_run)


def backfill_outcome(report: Any, out: Path, *, dry_run: bool = False) -> Outcome:
    """The outcome of a backfill report; any failed partition makes it a partial run."""
    problems = tuple(getattr(report, "problems", ()))
    outputs = () if dry_run else (out,)
    return Outcome("", outputs, dict(report.counts), problems, FAILED if problems else 0)


def name_list(text: str, option: str) -> list[str]:
    """Names separated by commas; an empty or repeated one is an error."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise ConfigError(
            f"{option} '{text}' has an empty or repeated name",
            fix="write each name once, separated by commas",
        )
    return names


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON object atomically; non-finite numbers become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    try:
        staging.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def read_json(path: Path, what: str, fix: str | None = None) -> dict[str, Any]:
    """Read one JSON object; ``what`` names it in the error, ``fix`` says how to get a missing one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no {what} at {path}", fix=fix) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", fix=f"write the {what} again") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} holds no JSON object", fix=f"write the {what} again")
    return record


def evaluation_text(result: Mapping[str, Any]) -> str:
    """The headline metrics, pooled over markets: the bundle beside every baseline on the same rows."""
    lines: dict[tuple[str, str, str], dict[str, float | None]] = {}
    for row in result["metrics"]:
        if row["market"] == "all" and row["metric"] in HEADLINES:
            lines.setdefault((row["metric"], row["horizon"], row["side"]), {})[row["model"]] = row["value"]
    rows = []
    for key, values in lines.items():
        ours = values.pop("riskml", None)
        others = (
            f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in values.items()
        )
        rows.append([*key, ours, ", ".join(others)])
    table = text_table(["metric", "horizon", "side", "riskml", "baselines"], rows)
    note = " - in sample: these numbers do not count" if result["in_sample"] else ""
    return f"{result['start']} to {result['end']}, {result['rows']:,} rows{note}\n{table}"


def action_counts(decisions: Decisions) -> dict[str, int]:
    """How many accounts each action has, ``normal`` left out."""
    from riskml.risk import ACTIONS

    counts = Counter(ACTIONS[int(code)] for code in decisions.action)
    return {name: counts[name] for name in ACTIONS[1:] if counts[name]}


def decisions_text(decisions: Decisions) -> str:
    """The riskiest accounts as a table."""
    from riskml.risk import ACTIONS

    order = sorted(range(len(decisions)), key=lambda row: -float(decisions.risk_score[row]))
    rows = [
        [
            str(decisions.account_id[row]),
            f"{decisions.equity_usd[row]:,.0f}",
            f"{decisions.maintenance_margin_usd[row]:,.0f}",
            f"{decisions.initial_margin_usd[row]:,.0f}",
            *(f"{100 * value:.2f} %" for value in decisions.liquidation_probability[row]),
            f"{decisions.risk_score[row]:.0f}",
            ACTIONS[int(decisions.action[row])],
        ]
        for row in order[:SHOWN_ACCOUNTS]
    ]
    probabilities = [f"p {horizon}" for horizon in decisions.horizons]
    headers = ["account", "equity", "maintenance", "initial", *probabilities, "score", "action"]
    title = (
        f"{len(rows)} riskiest of {len(order)} accounts at {format_us(decisions.ts)} "
        "(USD; p = probability of liquidation within the horizon)"
    )
    return f"{title}\n{text_table(headers, rows)}"
