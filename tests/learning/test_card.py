"""The out-of-sample part of a model card says what the evaluation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riskml import cli
from riskml.errors import DataError
from riskml.learning.card_evaluation import evaluation_section
from riskml.learning.fit import fit_run
from riskml.learning.recipe import NetworkSpec, Recipe, SplitSpec, TrainingSpec, recipe_digest

from .conftest import make_toy


def row(metric: str, model: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {
        "metric": metric, "model": model, "horizon": "1h", "market": "all", "side": "both", "value": value,
        "baseline": None, "baseline_model": "", "n": 100, **more,
    }  # fmt: skip


def evaluation(**changes: Any) -> dict[str, Any]:
    metrics = [
        row("qlike", "riskml", 0.5, market="BTC"),
        row("qlike", "log_har", 0.625, market="BTC"),
        row("qlike", "garch_t", None, market="BTC"),
        row("qlike_ratio", "riskml", 0.8),
        row("log_loss_ratio", "riskml", 0.9),
        row("breach_rate", "riskml", 0.005, side="down"),
        row("breach_rate", "riskml", 0.004, side="up"),
        row("peak_to_trough", "riskml", 31.0, side="down"),
        row("peak_to_trough", "fhs_slow", 6.0, side="down"),
    ]
    fold = {"start": "2024-01-02T00:00:00Z", "metrics": [row("qlike_ratio", "riskml", 0.777)]}
    return {
        "start": "2024-01-01", "end": "2025-01-01", "rows": 12345, "in_sample": False,
        "metrics": metrics, "folds": [fold], **changes,
    }  # fmt: skip


def test_the_fold_table_every_market_and_the_yardsticks_are_printed() -> None:
    text = evaluation_section(evaluation())
    assert "| from 2024-01-02 | 0.777 | " in text
    assert "| all folds | 0.800 | 0.900 | 0.50% | 0.40% |" in text
    assert "| market | riskml | log_har |" in text  # a model without a value has no column
    assert "| BTC | 0.5000 | 0.6250 |" in text
    assert "| peak to trough within a year | 1h | down | 31.0 | fhs_slow 6.0 |" in text
    assert "12,345 rows" in text
    assert "10 October 2025" in text
    assert "Early warning of a fall" not in text  # it was not measured


def test_early_warning_is_named_with_the_best_detector() -> None:
    record = evaluation()
    values = {"recall": 0.6, "false_per_week": 0.97, "precision": 0.081, "lead_minutes": 420.0}
    for name, value in values.items():
        more = {"side": "down", "baseline": 0.45, "baseline_model": "drop_1h_sigmas", "n": 321}
        record["metrics"].append(row(f"early_warning_{name}", "riskml", value, **more))
    text = evaluation_section(record)
    assert "recall 0.60 of 321 onsets (best one-line detector, drop_1h_sigmas: 0.45) at 0.97 false" in text
    assert "precision 8.1%, lead 420 min" in text


def test_what_was_seen_in_training_is_not_printed() -> None:
    with pytest.raises(DataError, match="have seen"):
        evaluation_section(evaluation(in_sample=True))


@pytest.mark.parametrize("name", ["metrics", "rows", "in_sample"])
def test_a_file_that_is_no_evaluation_is_refused(name: str) -> None:
    record = evaluation()
    del record[name]
    with pytest.raises(DataError, match=f"lacks {name}"):
        evaluation_section(record)


def test_an_alarm_that_was_never_raised_has_no_precision() -> None:
    record = evaluation()
    more = {"side": "down", "baseline": None, "baseline_model": "", "n": 12}
    values = {"recall": 0.0, "false_per_week": 0.0, "precision": None, "lead_minutes": None}
    for name, value in values.items():
        record["metrics"].append(row(f"early_warning_{name}", "riskml", value, **more))
    text = evaluation_section(record)
    assert "recall 0.00 of 12 onsets (best one-line detector, none was measured) at 0.00 false" in text
    assert "precision -, lead - min" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(
        "toy",
        split=SplitSpec(validation_fraction=0.0),
        network=NetworkSpec(hidden=8, encoder="none", n_bars=1),
        training=TrainingSpec(epochs=1, chunk_bars=64, warmup_steps=3, keep="last"),
    )
    return fit_run(make_toy(), recipe, tmp_path_factory.mktemp("card") / "run").path


@pytest.mark.slow
def test_the_folds_of_the_same_recipe_come_into_the_card(run: Path, tmp_path: Path) -> None:
    digest = recipe_digest(json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"])
    file = tmp_path / "folds.json"
    file.write_text(json.dumps(evaluation(recipe_sha256=digest)), encoding="utf-8")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "b"), "--evaluation", str(file)]) == 0
    text = (tmp_path / "b" / "CARD.md").read_text(encoding="utf-8")
    assert "| from 2024-01-02 | 0.777 | " in text
    assert "every epoch run, the last kept" in text


@pytest.mark.parametrize(
    ("changes", "words"), [({"recipe_sha256": "0" * 64}, "another recipe"), ({"folds": []}, "holds no folds")]
)
def test_an_evaluation_of_something_else_makes_no_bundle(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    digest = recipe_digest(json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"])
    file = tmp_path / "folds.json"
    file.write_text(json.dumps(evaluation(**{"recipe_sha256": digest, **changes})), encoding="utf-8")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "b"), "--evaluation", str(file)]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_card_names_the_worst_fold_and_market() -> None:
    record = evaluation()
    record["folds"] = [
        {"start": "2023-01-02", "metrics": [
            row("breach_rate", "riskml", 0.0083, side="down"),
            row("qlike_ratio_calm", "riskml", 1.032, market="AVAX"),
            row("qlike_ratio_calm", "ewma", 1.5, market="AVAX"),
            row("early_warning_recall", "riskml", 0.19),
        ]},
        {"start": "2024-01-02", "metrics": [
            row("breach_rate", "riskml", 0.004, side="down"),
            row("qlike_ratio_calm", "riskml", 0.9, market="BTC"),
            row("early_warning_recall", "riskml", 0.73),
        ]},
    ]  # fmt: skip
    text = evaluation_section(record)
    assert "- Most breaches of the 99.5 % margin: 0.83% (1h, long, 2023)" in text
    assert "- Largest QLIKE ratio of a market outside crash weeks: 1.032 (1h, AVAX, 2023)" in text
    assert "- Least recall of early warning: 0.19 (1h, 2023)" in text
    assert "random books" not in text  # they were not measured
