"""The gate in front of a release: a bundle goes out only if it beats what is out.

Both are judged by their evaluations on the same rows. QLIKE and log-loss are pooled over
markets; for each, the mean over horizons decides. The candidate has to be better in one
and not worse in the other. A release's evaluation lies beside its folder, because a
bundle's identity covers every file inside.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riskml.bundle import MANIFEST, verify_bundle
from riskml.errors import BundleError, DataError, Problem

DECIDING = ("qlike", "log_loss")
"""Metrics that decide; lower is better."""
CANDIDATE = "riskml"
"""The bundle's name among the models of an evaluation."""
TOLERANCE = 1e-9
"""Relative; two evaluations of the same bundle tie."""


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may replace the release."""

    problems: tuple[Problem, ...]
    """Why not; empty = promoted."""
    scores: Mapping[str, tuple[float, float | None]]
    """Per deciding metric: candidate, release (None without a release)."""


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
    if release is None:
        return Verdict(tuple(problems), {name: (value, None) for name, value in ours.items()})
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
    return Verdict(tuple(problems), {name: (new, old) for name, (new, old) in scores.items()})


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


def release(bundle: Path, evaluation: Mapping[str, Any], models: Path, name: str) -> Path:
    """Copy a verified bundle to ``models/<name>`` and point ``models/RELEASE`` to it.

    Raises
    ------
    BundleError : the bundle is damaged, or the name is taken by another one.
    DataError : the evaluation is of another bundle.
    """
    manifest = verify_bundle(bundle)
    if evaluation["bundle_id"] != manifest.bundle_id:
        raise DataError(
            f"the evaluation is of bundle {evaluation['bundle_id'][:12]}, not of {manifest.bundle_id[:12]}",
            fix="evaluate this bundle",
        )
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
