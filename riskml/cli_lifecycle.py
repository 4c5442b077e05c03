"""The verbs around a bundle's life: replay, report, inspect, diff, compare, promote, demo."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from riskml.cli_output import FAILED, MAX_PROBLEMS, REFUSED, Outcome, Progress, text_table
from riskml.cli_verbs import name_list, optional_imports, read_json
from riskml.errors import ConfigError, DataError, Problem

SHOWN_CHARACTERS = 40
"""Of a value in the tables of ``compare``."""
TRACKING_FILE = "tracking.json"
"""In a RUN folder that is tracked; named here because the command line loads no learning library."""


def replay(options: Namespace, progress: Progress) -> Outcome:
    """Run a scored account history against the bars that followed, or label it."""
    if options.what == "labels":
        return replay_labels(options, progress)
    if options.margins is None:
        raise ConfigError(
            "replay needs the margins to run", fix="pass --margins DIR, or 'riskml replay labels'"
        )
    with optional_imports():
        from riskml.replay.history import replay_margins
        from riskml.tables.lake import Lake
    if not Path(options.margins).is_dir():
        raise DataError(f"there are no margins at {options.margins}", fix="pass what 'riskml backfill' wrote")
    report = replay_margins(
        options.margins,
        Lake(options.lake),
        options.out,
        start=options.start,
        end=options.end,
        progress=progress,
    )
    rows = [
        [
            engine.engine,
            engine.account_hours,
            engine.calls,
            engine.needless_calls,
            engine.bad_debt,
            f"{engine.foreseen}/{engine.liquidations}",
            f"{engine.warned}/{engine.liquidations}",
            engine.median_warning_lead_h,
        ]
        for engine in report.engines
    ]
    headers = [
        "engine",
        "account-hours",
        "calls",
        "needless",
        "bad debt",
        "called",
        "warned",
        "median lead h",
    ]
    counts = {
        "account_hours": sum(engine.account_hours for engine in report.engines),
        "in_sample_rows": report.in_sample_rows,
        "unpriced_positions": report.unpriced_positions,
    }
    return Outcome(f"{report.start} to {report.end}\n{text_table(headers, rows)}", (report.path,), counts)


def replay_labels(options: Namespace, progress: Progress) -> Outcome:
    """Label account snapshots by what would have become of them, and compare with what was recorded."""
    with optional_imports():
        from riskml.replay.labels import replay_labels as run
        from riskml.replay.labels import write_labels
        from riskml.replay.labels_check import compare_with_recorded
        from riskml.tables.lake import Lake
    lake = Lake(options.lake)
    progress("labelling account snapshots")
    labels = run(
        lake,
        options.start,
        options.end,
        horizons=name_list(options.horizons, "--horizons"),
        interval=options.interval,
        barrier=options.barrier,
        haircuts=options.haircuts,
        remark=not options.keep_marks,
        fills=options.fills,
        progress=progress,
    )
    progress("comparing with recorded liquidations")
    compared = compare_with_recorded(labels, lake)
    path = write_labels(labels, options.out)
    rows = [
        [
            horizon,
            f"{item['foreseen']}/{item['labelled']}",
            item["followed"],
            item["positive"],
            item["happened"],
        ]
        for horizon, item in compared["horizons"].items()
    ]
    headers = ["horizon", "foreseen", "liquidations", "labelled 1", "of these liquidated"]
    unknown = ", ".join(f"{count:,} {reason}" for reason, count in compared["unknown_by_reason"].items())
    text = f"{labels.num_rows:,} account snapshots; without a path or positions: {unknown or 'none'}"
    counts = {"rows": labels.num_rows, "accounts": compared["accounts"]}
    return Outcome(f"{text}\n{text_table(headers, rows)}", (path,), counts, extra={"recorded": compared})


def report(options: Namespace, progress: Progress) -> Outcome:
    """Write a single-file page."""
    if options.kind == "features":
        return _report_features(options, progress)
    if options.kind == "drift":
        return _report_drift(options, progress)
    _refuse_flags(options, ("fit_end", "calibrate_end", "lake", "bundle", "start", "end"))
    with optional_imports():
        from riskml.report.pages import write_report
    progress(f"drawing the {options.kind} page")
    page = write_report(options.kind, _path(options), options.out or f"{options.kind}.html")
    return Outcome("", (page,))


def _path(options: Namespace) -> str:
    if options.path is None:
        raise ConfigError(f"'riskml report {options.kind}' needs PATH", fix="pass what the step wrote")
    return str(options.path)


def _refuse_flags(options: Namespace, names: tuple[str, ...]) -> None:
    """Refuse flags of other kinds of report: ignoring one would look as if it had been heeded."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: 'riskml report {options.kind}' does not take this",
            fix="leave it out, or see 'riskml report --help' for the report that takes it",
        )


def _report_drift(options: Namespace, progress: Progress) -> Outcome:
    """The page about drift, and its findings."""
    _refuse_flags(options, ("fit_end", "calibrate_end"))
    bundle = options.bundle or options.path
    given = {"bundle": bundle, **{name: getattr(options, name) for name in ("lake", "start", "end")}}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        flags = ", ".join(f"--{name}" for name in missing)
        raise ConfigError(f"'riskml report drift' needs {flags}", fix="see 'riskml report --help'")
    with optional_imports():
        from riskml.learning.drift import measure_drift
        from riskml.report.drift_page import write_drift_page
    report = measure_drift(bundle, options.lake, start=options.start, end=options.end, progress=progress)
    record = report.to_dict()
    outputs = write_drift_page(record, options.out or "drift.html")
    rows = [[item.code, item.subject, len(item.months), item.text] for item in report.findings]
    text = f"{len(rows)} findings in {len(report.months)} months from {report.start} to {report.end}"
    if rows:
        text += "\n" + text_table(["finding", "of", "months", "what"], rows[:MAX_PROBLEMS])
    counts = {"findings": len(rows), "months": len(report.months), "features": len(report.features)}
    return Outcome(text, outputs, counts, extra={"drift": record})


def _report_features(options: Namespace, progress: Progress) -> Outcome:
    _refuse_flags(options, ("bundle", "start", "end"))
    with optional_imports():
        from riskml.report.feature_page import write_feature_page
    progress("reading the dataset")
    page = write_feature_page(
        _path(options),
        options.out or "features.html",
        fit_end=options.fit_end,
        calibrate_end=options.calibrate_end,
        lake=options.lake,
        progress=progress,
    )
    broken = [item for item in page.findings if item.severity == "broken"]
    rows = [
        [item.title, ", ".join(item.features[:3]) + (" ..." if len(item.features) > 3 else ""), item.text]
        for item in broken[:MAX_PROBLEMS]
    ]
    counts = page.counts()
    text = ", ".join(f"{number} {name}" for name, number in counts.items())
    if rows:
        text += "\n" + text_table(["broken", "features", "found"], rows)
    return Outcome(text, (page.html, page.json), counts)


def inspect(options: Namespace, progress: Progress) -> Outcome:
    """Verify a bundle and print what it is."""
    from riskml.bundle import verify_bundle
    from riskml.report.bundles import flatten, summary

    manifest = verify_bundle(options.bundle)
    facts = summary(manifest)
    metrics = flatten(manifest.metrics)
    text = text_table(["", "every file agrees with the manifest"], facts.items())
    if metrics:
        text += "\n\n" + text_table(["metric", "value"], metrics.items())
    return Outcome(text, (), {}, extra={"bundle": facts, "metrics": manifest.metrics})


def diff(options: Namespace, progress: Progress) -> Outcome:
    """Say how two bundles differ; exit code 0 either way."""
    from riskml.bundle import verify_bundle
    from riskml.report.bundles import changed_files, diff_manifests

    first, second = verify_bundle(options.first), verify_bundle(options.second)
    if first.bundle_id == second.bundle_id:
        return Outcome(f"the same bundle: {first.bundle_id}", extra={"same": True, "fields": {}, "files": []})
    fields, changed = diff_manifests(first, second), changed_files(first, second)
    text = text_table(["field", "A", "B"], [[name, one, two] for name, (one, two) in fields.items()])
    text += f"\nfiles that differ: {', '.join(changed)}"
    extra = {"same": False, "fields": {name: list(pair) for name, pair in fields.items()}, "files": changed}
    return Outcome(text, (), {"fields": len(fields), "files": len(changed)}, extra=extra)


def compare(options: Namespace, progress: Progress) -> Outcome:
    """Print how two runs differ: recipe, data, and metrics with the better of the two."""
    from riskml.report.bundles import run_metrics
    from riskml.report.compare import compare_runs

    first, second = run_metrics(options.first), run_metrics(options.second)
    found = compare_runs(options.first, options.second)
    names = (Path(options.first).name, Path(options.second).name)
    shown = {"first": names[0], "second": names[1]}
    rows = [
        [item.metric, item.first, item.second, item.change, shown.get(item.better, item.better)]
        for item in found.metrics
    ]
    parts = [text_table(["metric", *names, "change", "better"], rows)]
    for title, differing in (("recipe", found.recipe), ("data", found.data)):
        if differing:
            table = [[name, _short(one), _short(two)] for name, (one, two) in differing.items()]
            parts.append(text_table([title, *names], table))
        else:
            parts.append(f"{title}: no difference")
    counts = {"metrics": len(found.metrics), "recipe": len(found.recipe), "data": len(found.data)}
    extra = {
        "first": first,
        "second": second,
        "recipe": found.recipe,
        "data": found.data,
        "metrics": [vars(item) for item in found.metrics],
    }
    return Outcome("\n\n".join(parts), (), counts, extra=extra)


def _short(value: object) -> object:
    """A long list of names as its head; --json has all of it."""
    text = str(value)
    return f"{text[:SHOWN_CHARACTERS]} ..." if len(text) > SHOWN_CHARACTERS else value


def promote(options: Namespace, progress: Progress) -> Outcome:
    """Release a run's bundle, or refuse with exit code 3."""
    from riskml.bundle import MANIFEST, verify_bundle
    from riskml.report.promote import current_release, judge, refit_problems, release, same_forecasts

    run, models = Path(options.run_dir), Path(options.models)
    fix = "run 'riskml evaluate --bundle RUN/bundle ... --out RUN/evaluation.json' first"
    evaluation = read_json(Path(options.evaluation or run / "evaluation.json"), "evaluation", fix)
    bundle = run / "bundle"
    if not (bundle / MANIFEST).is_file():
        with optional_imports():
            from riskml.learning.export import export_bundle
        progress("exporting the run")
        export_bundle(run, bundle)
    manifest = verify_bundle(bundle)
    judged = Path(options.fold) if options.fold else None
    now = current_release(models)
    verdict = judge(evaluation, now[1] if now else None)
    released = verify_bundle(now[0]) if now else manifest
    if released.bundle_id != manifest.bundle_id and same_forecasts(manifest, released):
        left = tuple(problem for problem in verdict.problems if problem.code != "not-better")
        verdict = replace(verdict, problems=left)
    if judged is not None:
        more = refit_problems(manifest, verify_bundle(judged), evaluation)
        verdict = replace(verdict, problems=(*verdict.problems, *more))
    text = text_table(
        ["metric", "horizon", "candidate", now[0].name if now else "release", "baseline", "verdict"],
        [
            [line.metric, line.horizon, line.candidate, line.release, line.baseline, line.verdict]
            for line in verdict.table
        ],
    )
    extra = {"bundle_id": manifest.bundle_id, "table": [vars(line) for line in verdict.table]}
    tags = {
        "bundle_id": manifest.bundle_id,
        "model": f"riskml-{manifest.interval}",
        "riskml_version": manifest.riskml_version,
        "verdict": ", ".join(problem.code for problem in verdict.problems) or "released",
    }
    if verdict.problems:
        registered, _ = _register(run, bundle, "challenger", tags)
        return Outcome(f"{text}\n{registered}not released:", (), {}, verdict.problems, REFUSED, extra)
    name = options.name or f"perp-{manifest.interval}-{manifest.riskml_version}"
    target = release(bundle, evaluation, models, name, judged=judged)
    registered, problems = _register(run, bundle, "champion", {**tags, "release": name})
    return Outcome(
        f"{text}\n{registered}released {manifest.bundle_id}",
        (target,),
        {},
        problems,
        FAILED if problems else 0,
        extra,
    )


def _register(run: Path, bundle: Path, alias: str, tags: dict[str, str]) -> tuple[str, tuple[Problem, ...]]:
    """Put the bundle into the model registry: a line to print, and what went wrong.

    The registry is a record: a store that is away does not undo a release, but it is said.
    """
    if not (run / TRACKING_FILE).is_file():
        return "", ()
    with optional_imports():
        from riskml.learning.registry import register_bundle
    try:
        version = register_bundle(run, bundle, alias, tags)
    except ConfigError as error:
        problem = Problem("not-registered", error.message, error.fix or "")
        return f"not in the model registry: {error.message}\n", (problem,)
    return f"{tags['model']} version {version} is the {alias}\n", ()


def demo(options: Namespace, progress: Progress) -> Outcome:
    """Run every step."""
    with optional_imports():
        from riskml.demo import run_demo
    return run_demo(Path(options.out), lake=options.lake, short=options.short, progress=progress)
