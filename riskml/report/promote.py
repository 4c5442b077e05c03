"""The gate in front of a release: a bundle goes out only if it beats what is out.

Both are judged by their evaluations on the same rows. QLIKE and log-loss are pooled over
markets; for each, the mean over horizons decides. The candidate has to be better in one
and not worse in the other, and it has to cover wherever the release does: sharper margins
that are breached too often are no progress. A release's evaluation lies beside its folder,
because a bundle's identity covers every file inside.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riskml.bundle import MANIFEST, MARKET_GRAPH, Manifest, verify_bundle
from riskml.errors import BundleError, DataError, Problem

DECIDING = ("qlike", "log_loss")
"""Metrics that decide; lower is better."""
COVERAGE = "breach_rate"
"""Share of rows whose excursion passes the 99.5 % margin, mean of both sides, pooled over markets."""
COVERED = (0.0035, 0.0065)
"""Breach rates that count as covered, DESIGN section 7: .35 to .65 % where .5 % is promised."""
SHARED = (
    "recipe", "seed", "feature_fingerprint", "features", "interval", "horizons", "markets",
    "venues", "fit_start",
)  # fmt: skip
"""What a refit has in common with the fold that is judged in its place."""
CANDIDATE = "riskml"
"""The bundle's name among the models of an evaluation."""
TOLERANCE = 1e-9
"""Relative; two evaluations of the same bundle tie."""


@dataclass(frozen=True)
class Comparison:
    """One line of the table: a metric of one horizon, or the mean that decides."""

    metric: str
    horizon: str
    """A horizon, or ``mean`` for what decides."""
    candidate: float | None
    release: float | None
    """None without a release, or where its evaluation lacks the metric."""
    baseline: float | None
    verdict: str
    """``better``, ``worse`` or ``same`` than the release; of coverage ``holds`` or ``outside``."""


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may replace the release."""

    problems: tuple[Problem, ...]
    """Why not; empty = promoted."""
    scores: Mapping[str, tuple[float, float | None]]
    """Per deciding metric: candidate, release (None without a release)."""
    table: tuple[Comparison, ...] = ()
    """What the verdict rests on, by metric and horizon."""


def pooled_scores(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Mean over horizons of each deciding metric of the candidate, pooled over markets.

    Raises
    ------
    DataError : the evaluation lacks one of them.
    """
    scores = {}
    for metric in DECIDING:
        values = [
            row["value"]
            for row in evaluation["metrics"]
            if row["metric"] == metric and row["model"] == CANDIDATE and row["market"] == "all"
        ]
        if not values or any(value is None for value in values):
            raise DataError(
                f"the evaluation has no pooled {metric} of '{CANDIDATE}'", fix="evaluate the bundle again"
            )
        scores[metric] = sum(values) / len(values)
    return scores


def judge(candidate: Mapping[str, Any], release: Mapping[str, Any] | None) -> Verdict:
    """Hold a candidate's evaluation against the release's.

    Parameters
    ----------
    candidate, release : evaluation records; None = nothing is released yet.
    """
    problems = []
    if candidate["in_sample"]:
        problems.append(
            _refusal("in-sample", "the evaluation has rows that the bundle has seen", "evaluate later data")
        )
    ours = pooled_scores(candidate)
    table = protocol_table(candidate, release)
    if release is None:
        return Verdict(tuple(problems), {name: (value, None) for name, value in ours.items()}, table)
    if release["in_sample"]:
        problems.append(
            _refusal(
                "in-sample",
                "the evaluation of the release has rows that it has seen",
                "evaluate it on later data",
            )
        )
    if _rows(candidate) != _rows(release):
        problems.append(
            _refusal(
                "different-rows",
                f"the candidate was evaluated on {_rows(candidate)}, the release on {_rows(release)}",
                "evaluate both on the same lake, markets and range",
            )
        )
    theirs = pooled_scores(release)
    scores = {name: (ours[name], theirs[name]) for name in DECIDING}
    worse = [name for name, (new, old) in scores.items() if new > old + TOLERANCE * abs(old)]
    better = [name for name, (new, old) in scores.items() if new < old - TOLERANCE * abs(old)]
    for name in worse:
        new, old = scores[name]
        problems.append(_refusal("worse", f"{name} is {new:.6g}, the release has {old:.6g}", ""))
    if not worse and not better:
        problems.append(_refusal("not-better", "no deciding metric is better than the release's", ""))
    problems += _lost_coverage(table)
    return Verdict(tuple(problems), {name: (new, old) for name, (new, old) in scores.items()}, table)


def protocol_table(candidate: Mapping[str, Any], release: Mapping[str, Any] | None) -> tuple[Comparison, ...]:
    """Candidate, release and baseline by metric and horizon, pooled over markets.

    A metric that the candidate's evaluation lacks is left out, unless the release's has it.
    """
    lines = []
    for metric in (*DECIDING, COVERAGE):
        ours, baseline = _by_horizon(candidate, metric, "value"), _by_horizon(candidate, metric, "baseline")
        theirs = {} if release is None else _by_horizon(release, metric, "value")
        for horizon in dict.fromkeys([*ours, *theirs]):
            new, old = ours.get(horizon), theirs.get(horizon)
            lines.append(
                Comparison(metric, horizon, new, old, baseline.get(horizon), _line_verdict(metric, new, old))
            )
        if metric in DECIDING and ours:
            new, old = _mean(ours), _mean(theirs)
            lines.append(
                Comparison(metric, "mean", new, old, _mean(baseline), _line_verdict(metric, new, old))
            )
    return tuple(lines)


def _by_horizon(evaluation: Mapping[str, Any], metric: str, field: str) -> dict[str, float]:
    """Pooled value per horizon, the mean of both sides where a metric has sides."""
    found: dict[str, list[float]] = {}
    for row in evaluation["metrics"]:
        if row["metric"] == metric and row["model"] == CANDIDATE and row["market"] == "all":
            value = row.get(field)
            if value is not None:
                found.setdefault(row["horizon"], []).append(float(value))
    return {horizon: sum(values) / len(values) for horizon, values in found.items()}


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _line_verdict(metric: str, new: float | None, old: float | None) -> str:
    if new is None:
        return "missing"
    if metric == COVERAGE:
        return "holds" if _covered(new) else "outside"
    if old is None:
        return ""
    if abs(new - old) <= TOLERANCE * abs(old):
        return "same"
    return "better" if new < old else "worse"


def _covered(rate: float) -> bool:
    return COVERED[0] <= rate <= COVERED[1]


def _lost_coverage(table: Sequence[Comparison]) -> list[Problem]:
    """A refusal per horizon where the release covers and the candidate does not."""
    span = f"{100.0 * COVERED[0]:.2f} to {100.0 * COVERED[1]:.2f} %"
    problems = []
    for line in table:
        if line.metric != COVERAGE or line.release is None or not _covered(line.release):
            continue
        if line.candidate is None:
            message = f"the evaluation has no {COVERAGE} at {line.horizon}, which the release has"
            problems.append(_refusal("coverage-lost", message, "evaluate the bundle again"))
        elif not _covered(line.candidate):
            message = (
                f"at {line.horizon} {100.0 * line.candidate:.3f} % of rows breach the 99.5 % margin, "
                f"{span} is required; the release has {100.0 * line.release:.3f} %"
            )
            problems.append(_refusal("coverage-lost", message, ""))
    return problems


def current_release(models: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest release and its evaluation; None when nothing is released.

    Raises
    ------
    DataError : the release has no evaluation beside it.
    """
    named = models / "RELEASE"
    if not named.is_file():
        return None
    folder = models / named.read_text(encoding="utf-8").strip()
    file = evaluation_path(folder)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise DataError(
            f"the release {folder} has no readable evaluation at {file}", fix="evaluate it"
        ) from error
    return folder, record


FORECASTING = (
    "feature_fingerprint", "feature_bounds", "interval", "horizons", "markets", "venues", "fit_end",
    "data_end", "calibration_power", "reference_sigma", "fallback",
)  # fmt: skip
"""What forecasts follow from, beside ``market.onnx``."""


def same_forecasts(one: Manifest, other: Manifest) -> bool:
    """Whether two bundles forecast alike, bit by bit, and differ in account law, facts or texts alone.

    Such an export again has nothing to beat: ``not-better`` does not speak against it.
    """
    graphs = [manifest.files[MARKET_GRAPH] for manifest in (one, other)]
    return graphs[0] == graphs[1] and all(getattr(one, name) == getattr(other, name) for name in FORECASTING)


def refit_problems(refit: Manifest, judged: Manifest, evaluation: Mapping[str, Any]) -> list[Problem]:
    """Why a bundle may not be judged by an earlier fold of itself; empty = it may.

    A release is fitted to all data that there are, so no row is left that could judge it. What is judged is
    the newest fold of the same frozen recipe; the refit differs from it by its later data alone.
    """
    differing = [name for name in SHARED if getattr(refit, name) != getattr(judged, name)]
    problems = []
    if differing:
        message = f"the bundle and the fold that is judged for it differ in {', '.join(differing)}"
        fix = "fit both with the same recipe, seed and markets, on data that know the same features"
        problems.append(_refusal("not-a-refit", message, fix))
    for name in ("fit_end", "data_end"):
        if getattr(refit, name) <= getattr(judged, name):
            message = f"the bundle's {name} is {getattr(refit, name)}, the fold's {getattr(judged, name)}"
            problems.append(_refusal("not-later", message, "refit to later data than the fold's"))
    if evaluation["end"] < refit.data_end[: len(evaluation["end"])]:
        message = f"the fold was tested to {evaluation['end']}, the bundle's data end at {refit.data_end}"
        problems.append(_refusal("not-newest", message, "judge the newest fold, up to the refit's data end"))
    return problems


def release(
    bundle: Path,
    evaluation: Mapping[str, Any],
    models: Path,
    name: str,
    *,
    judged: Path | None = None,
) -> Path:
    """Copy a verified bundle to ``models/<name>`` and point ``models/RELEASE`` to it.

    Parameters
    ----------
    judged : bundle of the fold that the evaluation is of, where ``bundle`` is its refit to later data; the
        evaluation beside the release then says so under ``refit``.

    Raises
    ------
    BundleError : the bundle is damaged, or the name is taken by another one.
    DataError : the evaluation is of another bundle, or the bundle is no refit of the one judged.
    """
    manifest = verify_bundle(bundle)
    expected = manifest if judged is None else verify_bundle(judged)
    if evaluation["bundle_id"] != expected.bundle_id:
        raise DataError(
            f"the evaluation is of bundle {evaluation['bundle_id'][:12]}, not of {expected.bundle_id[:12]}",
            fix="evaluate this bundle",
        )
    if judged is not None:
        problems = refit_problems(manifest, expected, evaluation)
        if problems:
            raise DataError.from_problems(problems, str(bundle))
        refit = {"bundle_id": manifest.bundle_id, "data_end": manifest.data_end}
        evaluation = {**evaluation, "refit": {**refit, "judged_data_end": expected.data_end}}
    target = models / name
    if target.exists():
        if verify_bundle(target).bundle_id != manifest.bundle_id:
            raise BundleError(f"{target} is another bundle", fix="release under another --name")
    else:
        _copy(bundle, target, [*manifest.files, MANIFEST])
    _write(evaluation_path(target), json.dumps(evaluation, indent=1, allow_nan=False) + "\n")
    _write(models / "RELEASE", name + "\n")
    return target


def evaluation_path(folder: Path) -> Path:
    """Where the evaluation of a released bundle lies."""
    return folder.with_name(f"{folder.name}.evaluation.json")


def _copy(bundle: Path, target: Path, names: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in names:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, staging / name)
        staging.chmod(0o755)
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def _rows(evaluation: Mapping[str, Any]) -> str:
    markets = sorted({row["market"] for row in evaluation["metrics"]})
    span = f"{evaluation['start']} to {evaluation['end']}"
    return f"{evaluation['rows']} rows of {len(markets)} markets from {span}"


def _refusal(code: str, message: str, fix: str) -> Problem:
    return Problem(code, message, fix)
