"""The verbs around a bundle's life: replay, report, inspect, diff, compare, promote, demo."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from riskml.cli_output import MAX_PROBLEMS, REFUSED, Outcome, Progress, text_table
from riskml.cli_verbs import name_list, optional_imports, read_json
from riskml.errors import ConfigError, DataError


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
    given = [name for name in ("fit_end", "calibrate_end", "lake") if getattr(options, name) is not None]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{flags}: only 'riskml report features' takes this", fix="leave it out")
    with optional_imports():
        from riskml.report.pages import write_report
    progress(f"drawing the {options.kind} page")
    return Outcome("", (write_report(options.kind, options.path, options.out or f"{options.kind}.html"),))


def _report_features(options: Namespace, progress: Progress) -> Outcome:
    with optional_imports():
        from riskml.report.feature_page import write_feature_page
    progress("reading the dataset")
    page = write_feature_page(
        options.path,
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
    """Print the metrics of two runs side by side."""
    from riskml.report.bundles import run_metrics

    first, second = run_metrics(options.first), run_metrics(options.second)
    names = [*first, *(name for name in second if name not in first)]
    rows = []
    for name in names:
        one, two = first.get(name), second.get(name)
        change = None if one is None or two is None else two - one
        rows.append([name, one, two, change])
    text = text_table(["metric", Path(options.first).name, Path(options.second).name, "change"], rows)
    return Outcome(text, (), {"metrics": len(names)}, extra={"first": first, "second": second})


def promote(options: Namespace, progress: Progress) -> Outcome:
    """Release a run's bundle, or refuse with exit code 3."""
    from riskml.bundle import MANIFEST, verify_bundle
    from riskml.report.promote import current_release, judge, release

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
    now = current_release(models)
    verdict = judge(evaluation, now[1] if now else None)
    rows = [[name, ours, theirs] for name, (ours, theirs) in verdict.scores.items()]
    text = text_table(["metric", "candidate", now[0].name if now else "release"], rows)
    if verdict.problems:
        return Outcome(f"{text}\nnot released:", (), {}, verdict.problems, REFUSED)
    name = options.name or f"perp-{manifest.interval}-{manifest.riskml_version}"
    target = release(bundle, evaluation, models, name)
    return Outcome(
        f"{text}\nreleased {manifest.bundle_id}", (target,), extra={"bundle_id": manifest.bundle_id}
    )


def demo(options: Namespace, progress: Progress) -> Outcome:
    """Run every step."""
    with optional_imports():
        from riskml.demo import run_demo
    return run_demo(Path(options.out), lake=options.lake, short=options.short, progress=progress)
