"""The whole path on real data, measured: raw files in, bundle and account margins out.

    python training/run_real_data.py --data ../shared/data --work runs/real

ingest -> check -> build (long markets, 1 h, 2020 to 2025-09) -> fit, export and evaluate every
fold of the protocol -> backfill of the Hyperliquid accounts of 2023 with the newest fold whose
data ends before them (the one fitted to 2022-06 and calibrated on 2022-H2). Every step runs in a
process of its own, so that its peak memory is its own.
Appends one line to ``training/results/real_data.jsonl``, writes the metric rows beside it as
CSV, and prints the same line last.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riskml.errors import DataError
from riskml.learning.protocol import FOLDS, LONG_MARKETS, Fold
from riskml.units import format_us, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
DATA_START, DATA_END = "2020-01-01", "2025-10-01"
ACCOUNTS_START, ACCOUNTS_END = "2023-02-01", "2023-06-01"
CSV_COLUMNS = (
    "part", "metric", "model", "horizon", "market", "side",
    "value", "baseline", "baseline_model", "n", "low", "high", "p_value", "verdict",
)  # fmt: skip
EVERY_MARKET = ("qlike_ratio", "log_loss", "breach_rate", "kupiec_p", "average_margin", "peak_to_trough")
"""Measures that the CSV gives for every market; the others only pooled."""


def step_ingest(data: str, lake: str) -> dict[str, Any]:
    """All raw files into the lake."""
    from riskml.tables.ingest import ingest

    report = ingest("vendor", data, lake, progress=say_progress)
    counts = dict(report.counts)
    return {"counts": counts, "skipped": len(report.skipped), "problems": len(report.problems)}


def step_check(lake: str) -> dict[str, Any]:
    """All problems of the lake, counted by code."""
    from riskml.tables.checks import check_lake
    from riskml.tables.lake import Lake

    report = check_lake(Lake(lake))
    codes: dict[str, int] = {}
    for problem in report.problems:
        codes[problem.code] = codes.get(problem.code, 0) + 1
    return {"problems": codes}


def step_build(lake: str, out: str) -> dict[str, Any]:
    """The dataset of the long markets."""
    from riskml.tables.build import build_dataset
    from riskml.tables.lake import Lake

    info = build_dataset(Lake(lake), out, markets=list(LONG_MARKETS), start=DATA_START, end=DATA_END)
    return {"rows": info.rows, "markets": len(info.markets), "features": len(info.features)}


def step_fit(dataset: str, run: str, recipe: str, fit_end: str, calibrate_end: str) -> dict[str, Any]:
    """One fold's fit."""
    from riskml.learning.fit import fit_run

    result = fit_run(
        dataset, recipe, run, fit_end=fit_end, calibrate_end=calibrate_end, progress=say_progress
    )
    return {"data_end": result.data_end, "weights_sha256": result.weights_sha256}


def step_export(run: str, bundle: str) -> dict[str, Any]:
    """The run's bundle."""
    from riskml.bundle import read_manifest
    from riskml.learning.export import export_bundle

    path = export_bundle(run, bundle)
    size = sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())
    return {"bundle_id": read_manifest(path).bundle_id, "bytes": size}


def step_evaluate(bundle: str, lake: str, start: str, end: str, out: str) -> dict[str, Any]:
    """The bundle against the baselines on its test part."""
    from riskml.learning.evaluate import evaluate_bundle

    report = evaluate_bundle(bundle, lake, start=start, end=end, markets=list(LONG_MARKETS), progress=say)
    write_text(Path(out), json.dumps(report, allow_nan=False) + "\n")
    return {"rows": report["rows"], "in_sample": report["in_sample"], **headline(report["metrics"])}


def step_backfill(folds: str, lake: str, out: str, report_file: str) -> dict[str, Any]:
    """Margins of every account-hour of the 2023 venue, ranked against its liquidations."""
    from riskml.backfill.bundles import find_bundles
    from riskml.backfill.local import backfill
    from riskml.learning.account_measures import YARDSTICK, account_rows, history_end, read_margins
    from riskml.tables.lake import Lake

    store = Lake(lake)
    start, end = ACCOUNTS_START, ACCOUNTS_END
    engines = ("riskml", YARDSTICK)
    report = backfill(
        folds, store, out, start=start, end=end, engines=engines, resume=True, progress=say_progress
    )
    if report.problems:
        raise DataError.from_problems(report.problems, "the backfill")
    margins = read_margins(Path(out))
    liquidations = store.read("liquidations", start=start, end=end)
    horizons = find_bundles(folds)[0].manifest.horizons
    rows = account_rows(margins, liquidations, horizons, end_us=history_end(margins, to_us(end)))
    in_sample = int(sum(margins["in_sample"].to_pylist()))
    metrics = [row.to_dict() for row in rows]
    write_text(Path(report_file), json.dumps({"metrics": metrics}, allow_nan=False) + "\n")
    return {"rows": margins.num_rows, "in_sample_rows": in_sample, **headline(metrics)}


def headline(metrics: list[dict[str, Any]]) -> dict[str, float | None]:
    """The pooled figures of the bundle and what they have to beat, rounded."""
    wanted = (
        "qlike_ratio", "log_loss", "ece", "auc", "breach_rate",
        "account_log_loss", "account_auc", "account_average_precision",
    )  # fmt: skip
    found: dict[str, float | None] = {}
    for row in metrics:
        if row["metric"] not in wanted or row["market"] != "all":
            continue
        side = "" if row["side"] == "both" else f"_{row['side']}"
        key = f"{row['metric']}_{row['horizon']}{side}"
        value = None if row["value"] is None else round(row["value"], 5)
        if row["model"] == "riskml":
            found[key] = value
        elif row["model"] in ("ewma", row["baseline_model"]):
            found[f"{key}_{row['model']}"] = value
    return found


def measured(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run one step in this (fresh) process; add seconds and peak memory."""
    started = time.perf_counter()
    result = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "peak_mb": round(peak), **result}


def in_process(name: str, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run one step in a process of its own and say what it took."""
    say(f"{name} ...")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(measured, function, *arguments).result()
    say(f"{name}: {json.dumps(result)}")
    return result


def say(text: str) -> None:
    """A line on stderr; stdout carries the result only."""
    print(text, file=sys.stderr, flush=True)


def say_progress(done: int | str, total: int | None = None, message: str = "") -> None:
    """The tenths of a long step."""
    if isinstance(done, str):
        say(done)
    elif total and (done == total or done % max(total // 10, 1) == 0):
        say(f"  {message} {done}/{total}")


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)


def write_csv(file: Path, parts: dict[str, Path]) -> int:
    """The metric rows of all parts as one CSV; returns their number."""
    rows: list[dict[str, Any]] = []
    for part, source in parts.items():
        for row in json.loads(source.read_text(encoding="utf-8"))["metrics"]:
            if row["market"] == "all" or row["metric"] in EVERY_MARKET:
                rows.append({"part": part, **row})
    staging = file.with_name(f".{file.name}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with staging.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            for row in rows:
                rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
                writer.writerow(rounded)
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)
    return len(rows)


def fit_once(work: Path, label: str, resume: bool, *arguments: str) -> dict[str, Any]:
    """Fit, or with ``resume`` take what an interrupted run of this script fitted by the same recipe."""
    note, (_, run, recipe, *_) = work / f"fit-{label}.json", arguments
    if resume and note.is_file():
        from riskml.learning.recipe import load_recipe
        from riskml.learning.runs import read_run

        if read_run(run).recipe == load_recipe(recipe):
            result: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            say(f"fit {label}: taken from {note}")
            return result
    note.unlink(missing_ok=True)
    result = in_process(f"fit {label}", step_fit, *arguments)
    write_text(note, json.dumps(result) + "\n")
    return result


def run_fold(fold: Fold, label: str, work: Path, recipe: str, *, resume: bool) -> tuple[dict[str, Any], Path]:
    """Fit, export and evaluate one fold; returns (steps, report)."""
    run, bundle = work / f"run-{label}", work / "folds" / f"perp-1h-{fold.data_end}"
    report = work / f"evaluate-{label}.json"
    seams = fold.fit_end, fold.calibrate_end
    dataset = str(work / "dataset")
    steps = {
        f"fit_{label}": fit_once(work, label, resume, dataset, str(run), recipe, *seams),
        f"export_{label}": in_process(f"export {label}", step_export, str(run), str(bundle)),
        f"evaluate_{label}": in_process(
            f"evaluate {label}", step_evaluate,
            str(bundle), str(work / "lake"), fold.data_end, fold.test_end, str(report),
        ),
    }  # fmt: skip
    return steps, report


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    default = os.environ.get("RISKML_SHARED_DATA", str(REPOSITORY.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=default, help="folder of raw files (default: %(default)s)")
    work, results = REPOSITORY / "runs" / "real", REPOSITORY / "training" / "results"
    parser.add_argument("--work", default=str(work), help="lake, dataset, runs and bundles")
    parser.add_argument("--recipe", default="quick", help="recipe of the fits (default: %(default)s)")
    parser.add_argument("--results", default=str(results), help="where the figures go")
    parser.add_argument(
        "--resume", action="store_true", help="take up fits that are there, of the same recipe"
    )
    parser.add_argument("--skip-ingest", action="store_true", help="the lake in --work is complete")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run every step and record what it took."""
    options = parse(arguments)
    work, results = Path(options.work), Path(options.results)
    if not options.skip_ingest and not Path(options.data).is_dir():
        say(f"{options.data} does not exist; pass --data, or set RISKML_SHARED_DATA")
        return 1
    steps: dict[str, Any] = {}
    if not options.skip_ingest:
        steps["ingest"] = in_process("ingest", step_ingest, options.data, str(work / "lake"))
    steps["check"] = in_process("check", step_check, str(work / "lake"))
    steps["build"] = in_process("build", step_build, str(work / "lake"), str(work / "dataset"))
    parts: dict[str, Path] = {}
    for fold in FOLDS:
        year = fold.data_end[:4]
        fold_steps, parts[year] = run_fold(fold, year, work, options.recipe, resume=options.resume)
        steps |= fold_steps
    parts["accounts-2023"] = work / "backfill-2023.json"
    folders = str(work / "folds"), str(work / "lake"), str(work / "margins")
    steps["backfill"] = in_process("backfill", step_backfill, *folders, str(parts["accounts-2023"]))
    today = datetime.now(UTC).date().isoformat()
    n_rows = write_csv(results / f"real_data_{options.recipe}.csv", parts)
    line = {
        "date": today,
        "command": " ".join(["python", "training/run_real_data.py", *recorded(arguments)]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "recipe": options.recipe,
        "data": [DATA_START, format_us(to_us(DATA_END))[:10]],
        "seconds": round(sum(step["seconds"] for step in steps.values()), 1),
        "peak_mb": max(step["peak_mb"] for step in steps.values()),
        "csv_rows": n_rows,
        "steps": steps,
    }
    text = json.dumps(line)
    log = results / "real_data.jsonl"
    before = log.read_text(encoding="utf-8") if log.exists() else ""
    write_text(log, before + text + "\n")
    print(text)
    return 0


def recorded(arguments: list[str]) -> list[str]:
    """The arguments without the folders of the machine that it ran on."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if skip or name in ("--data", "--work", "--results"):
            skip = not skip and "=" not in argument
            continue
        kept.append(argument)
    return kept


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
