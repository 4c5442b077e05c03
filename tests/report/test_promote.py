"""Promotion: what is released has to beat what is out, on the same rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from riskml import cli
from riskml.bundle import PROTOCOL, Manifest, verify_bundle, write_bundle
from riskml.errors import BundleError, DataError
from riskml.report.bundles import changed_files, diff_manifests, run_metrics, summary
from riskml.report.promote import current_release, judge, pooled_scores, release

CONTENTS = {"market.onnx": b"m", "account.onnx": b"a", "golden.npz": b"g", "CARD.md": b"# card\n"}


def manifest(**changes: Any) -> Manifest:
    plain = Manifest(
        bundle_id="",
        riskml_version="0.1.0",
        features=[{"name": "log_har_24h", "unit": "log", "lookback": 24, "inputs": ["high", "low"]}],
        feature_fingerprint="f" * 64,
        interval="1h",
        horizons=["1h", "8h", "24h"],
        markets=["BTC", "ETH"],
        venues=["sim", "sim"],
        n_bars=64,
        fit_start="2023-01-01",
        fit_end="2024-01-01",
        calibrate_start="2024-01-02",
        calibrate_end="2024-03-01",
        data_end="2024-03-01",
        seed=7,
        recipe={"name": "quick"},
        data_hashes={"bars": "0" * 64},
        metrics={"qlike": {"1h": 0.5}},
        feature_bounds={"log_har_24h": [-12.0, -3.0]},
        files={},
        protocol=PROTOCOL,
    )
    return replace(plain, **changes)


def evaluation(bundle_id: str, qlike: float, log_loss: float, **changes: Any) -> dict[str, Any]:
    metrics = [
        {
            "metric": metric,
            "model": "riskml",
            "horizon": horizon,
            "market": market,
            "side": "both",
            "value": value,
        }
        for metric, value in (("qlike", qlike), ("log_loss", log_loss))
        for horizon in ("1h", "8h", "24h")
        for market in ("all", "BTC")
    ]
    record = {
        "bundle_id": bundle_id,
        "start": "2024-03-02",
        "end": "2024-07-01",
        "rows": 900,
        "in_sample": False,
    }
    return {**record, "metrics": metrics, **changes}


def with_coverage(record: dict[str, Any], rates: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """An evaluation with pooled breach rates (down, up) per horizon."""
    rows = [
        {"metric": "breach_rate", "model": "riskml", "horizon": horizon, "market": "all", "side": side}
        | {"value": value, "baseline": 0.01}
        for horizon, both in rates.items()
        for side, value in zip(("down", "up"), both, strict=True)
    ]
    return {**record, "metrics": [*record["metrics"], *rows]}


@pytest.mark.parametrize(
    ("ours", "theirs", "codes"),
    [
        ({"8h": (0.005, 0.005)}, {"8h": (0.005, 0.005)}, []),
        ({"8h": (0.003, 0.005)}, {"8h": (0.005, 0.005)}, []),  # the mean of both sides decides
        ({"8h": (0.009, 0.007)}, {"8h": (0.005, 0.005)}, ["coverage-lost"]),
        ({"8h": (0.001, 0.002)}, {"8h": (0.005, 0.005)}, ["coverage-lost"]),
        ({}, {"8h": (0.005, 0.005)}, ["coverage-lost"]),
        ({"8h": (0.009, 0.007)}, {"8h": (0.009, 0.009)}, []),  # the release does not hold it either
        ({"8h": (0.009, 0.007)}, {}, []),
    ],
)
def test_a_candidate_covers_wherever_the_release_does(
    ours: dict[str, tuple[float, float]], theirs: dict[str, tuple[float, float]], codes: list[str]
) -> None:
    candidate = with_coverage(evaluation("new", 0.4, 0.1), ours)
    verdict = judge(candidate, with_coverage(evaluation("old", 0.5, 0.1), theirs))
    assert [problem.code for problem in verdict.problems] == codes


def test_the_table_has_every_metric_by_horizon_with_the_baseline() -> None:
    candidate = with_coverage(evaluation("new", 0.4, 0.1), {"8h": (0.004, 0.008)})
    for row in candidate["metrics"]:
        row.setdefault("baseline", 0.6)
    table = judge(candidate, evaluation("old", 0.5, 0.1)).table
    assert [(line.metric, line.horizon, line.verdict) for line in table] == [
        *(("qlike", horizon, "better") for horizon in ("1h", "8h", "24h", "mean")),
        *(("log_loss", horizon, "same") for horizon in ("1h", "8h", "24h", "mean")),
        ("breach_rate", "8h", "holds"),
    ]
    assert (table[0].candidate, table[0].release, table[0].baseline) == (0.4, 0.5, 0.6)
    assert (table[-1].candidate, table[-1].release) == (0.006, None)


def test_without_a_release_an_out_of_sample_evaluation_is_enough() -> None:
    assert judge(evaluation("x", 0.5, 0.1), None).problems == ()


@pytest.mark.parametrize(
    ("qlike", "log_loss", "changes", "codes"),
    [
        (0.49, 0.10, {}, []),
        (0.49, 0.09, {}, []),
        (0.50, 0.10, {}, ["not-better"]),
        (0.49, 0.11, {}, ["worse"]),
        (0.51, 0.11, {}, ["worse", "worse"]),
        (0.49, 0.10, {"in_sample": True}, ["in-sample"]),
        (0.49, 0.10, {"rows": 901}, ["different-rows"]),
        (0.49, 0.10, {"start": "2024-03-03"}, ["different-rows"]),
    ],
)
def test_a_candidate_is_refused_with_every_reason(
    qlike: float, log_loss: float, changes: dict[str, Any], codes: list[str]
) -> None:
    verdict = judge(evaluation("new", qlike, log_loss, **changes), evaluation("old", 0.5, 0.1))
    assert [problem.code for problem in verdict.problems] == codes


def test_an_evaluation_without_a_pooled_metric_decides_nothing() -> None:
    record = evaluation("x", 0.5, 0.1)
    record["metrics"] = [row for row in record["metrics"] if row["metric"] == "qlike"]
    with pytest.raises(DataError, match="no pooled log_loss"):
        pooled_scores(record)


def test_a_release_is_a_verified_copy_with_its_evaluation_beside(tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "bundle", CONTENTS, manifest())
    target = release(
        tmp_path / "bundle", evaluation(made.bundle_id, 0.5, 0.1), tmp_path / "models", "perp-1h-0.1.0"
    )
    assert verify_bundle(target).bundle_id == made.bundle_id
    found = current_release(tmp_path / "models")
    assert found is not None
    assert found[0] == target
    assert found[1]["bundle_id"] == made.bundle_id


def test_the_evaluation_of_another_bundle_releases_nothing(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", CONTENTS, manifest())
    with pytest.raises(DataError, match="evaluation is of bundle"):
        release(tmp_path / "bundle", evaluation("other", 0.5, 0.1), tmp_path / "models", "first")
    assert not (tmp_path / "models").exists()


def test_a_released_name_is_never_given_to_another_bundle(tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = write_bundle(tmp_path / "one", CONTENTS, manifest())
    second = write_bundle(tmp_path / "two", {**CONTENTS, "CARD.md": b"# other\n"}, manifest())
    release(tmp_path / "one", evaluation(first.bundle_id, 0.5, 0.1), models, "same")
    with pytest.raises(BundleError, match="is another bundle"):
        release(tmp_path / "two", evaluation(second.bundle_id, 0.4, 0.1), models, "same")


REFIT = {"fit_end": "2025-04-01T00:00:00Z", "data_end": "2025-10-01T00:00:00Z"}


def test_a_refit_is_released_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, run = tmp_path / "models", tmp_path / "run"
    fold = write_bundle(tmp_path / "fold", CONTENTS, manifest(data_end="2025-01-01T00:00:00Z"))
    refit = write_bundle(run / "bundle", {**CONTENTS, "CARD.md": b"# refit\n"}, manifest(**REFIT))
    judged = evaluation(fold.bundle_id, 0.5, 0.1, end="2025-10-01")
    (run / "evaluation.json").write_text(json.dumps(judged))
    arguments = ["promote", str(run), "--models", str(models), "--fold", str(tmp_path / "fold")]
    assert cli.main([*arguments, "--name", "new"]) == 0
    assert f"released {refit.bundle_id}" in capsys.readouterr().out
    assert (models / "RELEASE").read_text(encoding="utf-8") == "new\n"


def test_a_release_that_was_judged_in_sample_is_no_yardstick() -> None:
    verdict = judge(evaluation("new", 0.4, 0.1), evaluation("old", 0.5, 0.1, in_sample=True))
    assert [problem.code for problem in verdict.problems] == ["in-sample"]


def test_a_refit_is_released_by_the_fold_that_was_judged(tmp_path: Path) -> None:
    models = tmp_path / "models"
    fold = write_bundle(tmp_path / "fold", CONTENTS, manifest(data_end="2025-01-01T00:00:00Z"))
    later = {**CONTENTS, "CARD.md": b"# refit\n"}
    refit = write_bundle(tmp_path / "refit", later, manifest(**REFIT))
    judged = evaluation(fold.bundle_id, 0.5, 0.1, end="2025-10-01")
    with pytest.raises(DataError, match="evaluation is of bundle"):
        release(tmp_path / "refit", judged, models, "new")
    target = release(tmp_path / "refit", judged, models, "new", judged=tmp_path / "fold")
    assert verify_bundle(target).bundle_id == refit.bundle_id
    found = current_release(models)
    assert found is not None
    assert found[1]["refit"] == {
        "bundle_id": refit.bundle_id,
        "data_end": "2025-10-01T00:00:00Z",
        "judged_data_end": "2025-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data_end": "2025-01-01T00:00:00Z"}, "not-later"),
        ({"fit_end": "2024-01-01"}, "not-later"),
        ({"data_end": "2025-11-01T00:00:00Z"}, "not-newest"),
        ({"seed": 99}, "not-a-refit"),
        ({"recipe": {"name": "other"}}, "not-a-refit"),
        ({"fit_start": "2020-01-01"}, "not-a-refit"),
    ],
)
def test_what_is_no_refit_is_refused_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: str
) -> None:
    models, run = tmp_path / "models", tmp_path / "run"
    fold = write_bundle(tmp_path / "fold", CONTENTS, manifest(data_end="2025-01-01T00:00:00Z"))
    write_bundle(run / "bundle", {**CONTENTS, "CARD.md": b"# refit\n"}, manifest(**REFIT | changes))
    judged = evaluation(fold.bundle_id, 0.5, 0.1, end="2025-10-01")
    (run / "evaluation.json").write_text(json.dumps(judged))
    arguments = ["promote", str(run), "--models", str(models), "--fold", str(tmp_path / "fold"), "--json"]
    assert cli.main(arguments) == 3
    assert [item["code"] for item in json.loads(capsys.readouterr().out)["problems"]] == [code]
    assert not models.exists()


def test_promote_refuses_with_exit_code_3_and_leaves_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    codes = []
    for name, qlike in (("first", 0.5), ("worse", 0.6), ("better", 0.4)):
        run = tmp_path / name
        made = write_bundle(run / "bundle", {**CONTENTS, "CARD.md": name.encode()}, manifest())
        (run / "evaluation.json").write_text(json.dumps(evaluation(made.bundle_id, qlike, 0.1)))
        codes.append(cli.main(["promote", str(run), "--models", str(models), "--name", name]))
    assert codes == [0, 3, 0]
    assert (models / "RELEASE").read_text() == "better\n"
    assert not (models / "worse").exists()
    assert "qlike is 0.6, the release has 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "more", "code"),
    [
        ({"account.onnx": b"another law"}, {}, 0),
        ({"market.onnx": b"another forecast"}, {}, 3),
        ({"account.onnx": b"another law"}, {"calibration_power": [1.1, 1.0, 1.0]}, 3),
    ],
)
def test_an_export_again_with_the_same_forecasts_has_nothing_to_beat(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, bytes],
    more: dict[str, Any],
    code: int,
) -> None:
    models = tmp_path / "models"
    for name, contents, fields in (("old", CONTENTS, {}), ("again", {**CONTENTS, **changed}, more)):
        run = tmp_path / name
        made = write_bundle(run / "bundle", contents, manifest(**fields))
        (run / "evaluation.json").write_text(json.dumps(evaluation(made.bundle_id, 0.5, 0.1)))
        done = cli.main(["promote", str(run), "--models", str(models), "--name", name])
    assert done == code
    assert (models / "RELEASE").read_text() == ("again\n" if code == 0 else "old\n")
    assert ("no deciding metric is better" in capsys.readouterr().out) == (code == 3)


def test_an_export_again_that_lost_its_coverage_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name, rates in (("old", (0.005, 0.005)), ("again", (0.009, 0.009))):
        run = tmp_path / name
        made = write_bundle(run / "bundle", {**CONTENTS, "account.onnx": name.encode()}, manifest())
        record = with_coverage(evaluation(made.bundle_id, 0.5, 0.1), {"1h": rates})
        (run / "evaluation.json").write_text(json.dumps(record))
        done = cli.main(["promote", str(run), "--models", str(models), "--name", name])
    assert done == 3


def test_diff_names_fields_and_files_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_bundle(tmp_path / "one", CONTENTS, manifest())
    two = write_bundle(
        tmp_path / "two", {**CONTENTS, "CARD.md": b"# other\n"}, manifest(seed=8, markets=["BTC", "SOL"])
    )
    assert diff_manifests(one, two) == {"markets": ("BTC, ETH", "BTC, SOL"), "seed": (7, 8)}
    assert changed_files(one, two) == ["CARD.md"]
    assert cli.main(["diff", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert "files that differ: CARD.md" in capsys.readouterr().out
    assert cli.main(["diff", str(tmp_path / "one"), str(tmp_path / "one")]) == 0
    assert "the same bundle" in capsys.readouterr().out


def test_inspect_prints_what_a_bundle_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_bundle(tmp_path / "bundle", CONTENTS, manifest())
    assert summary(made)["markets"] == "sim:BTC, sim:ETH"
    assert cli.main(["inspect", str(tmp_path / "bundle")]) == 0
    said = capsys.readouterr().out
    assert made.bundle_id in said
    assert "qlike.1h" in said


def test_inspect_refuses_a_bundle_with_one_byte_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path / "bundle", CONTENTS, manifest())
    (tmp_path / "bundle" / "market.onnx").write_bytes(b"n")
    assert cli.main(["inspect", str(tmp_path / "bundle"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["problems"][0]["code"] == "bundle-refused"


def write_run(folder: Path, recipe: dict[str, Any], data: dict[str, Any], **metrics: float) -> None:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({**metrics, "history": [{"epoch": 0, "x": 1.0}]}))
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, **data}))


def test_compare_names_recipe_data_and_the_better_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"fit_end": "2024-01-01", "markets": ["BTC"], "data_hashes": {"bars/a": "1", "bars/b": "2"}}
    two = {"fit_end": "2024-02-01", "markets": ["BTC"], "data_hashes": {"bars/a": "1", "bars/b": "3"}}
    first, second = tmp_path / "one", tmp_path / "two"
    numbers = {"validation_loss": 0.5, "calibrate_breach_rate_1h": 0.004, "calibrate_qlike_1h": 0.3}
    write_run(first, {"seed": 7, "training": {"epochs": 3}}, one, **numbers, epoch=2)
    numbers = {"validation_loss": 0.4, "calibrate_breach_rate_1h": 0.009, "calibrate_qlike_1h": 0.3}
    write_run(second, {"seed": 7, "training": {"epochs": 9}}, two, **numbers, epoch=5)
    assert cli.main(["compare", str(first), str(second), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"] == {"training.epochs": [3, 9]}
    assert said["data"] == {
        "fit_end": ["2024-01-01", "2024-02-01"],
        "table bars": ["2 files", "2 files, 1 differ"],
    }
    assert {item["metric"]: item["better"] for item in said["metrics"]} == {
        "validation_loss": "second",
        "calibrate_breach_rate_1h": "first",
        "calibrate_qlike_1h": "same",
        "epoch": "",
    }
    assert cli.main(["compare", str(first), str(first)]) == 0
    assert "recipe: no difference" in capsys.readouterr().out


def test_compare_shows_metrics_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a", 0.5), ("b", 0.4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"test": {"qlike": value}, "label": "text"}))
    assert run_metrics(tmp_path / "a") == {"test.qlike": 0.5}
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "test.qlike  0.5  0.4    -0.1" in capsys.readouterr().out
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path)]) == 1
