"""Tracking: one SQLite store by default, batches, plots, and no file stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from riskml.errors import ConfigError
from riskml.learning.tracking import default_tracking_uri, track_bundle, track_run

HISTORY = [{"epoch": -1.0, "validation_loss": 2.0}, {"epoch": 0.0, "validation_loss": 1.5}]


def test_a_run_is_recorded_with_parameters_metrics_plots_and_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "a"
    (run / "plots").mkdir(parents=True)
    (run / "plots" / "history.png").write_bytes(b"png")
    run_id = track_run(run, "a", {"name": "quick", "network": {"channels": 24}}, {"qlike": 0.4}, HISTORY)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}", encoding="utf-8")
    assert track_bundle(run, bundle)

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_tracking_uri(run))
    stored = client.get_run(run_id)
    assert stored.data.params == {"name": "quick", "network.channels": "24"}
    assert stored.data.metrics == {"qlike": 0.4, "validation_loss": 1.5}
    assert [point.step for point in client.get_metric_history(run_id, "validation_loss")] == [-1, 0]
    assert [item.path for item in client.list_artifacts(run_id, "plots")] == ["plots/history.png"]
    assert [item.path for item in client.list_artifacts(run_id, "bundle")] == ["bundle/manifest.json"]
    # the store lies beside the runs, and nothing is left in the current folder
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "bundle"}
    assert (tmp_path / "runs" / "mlflow.db").is_file()


def test_an_untracked_run_takes_no_bundle(tmp_path: Path) -> None:
    assert track_bundle(tmp_path, tmp_path) is False


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns"])
def test_a_file_store_is_refused_with_the_alternative(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="use sqlite:///"):
        track_run(tmp_path, "a", {}, {}, [], uri)


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match="the tracking store sqlite:.* cannot be used"):
        track_run(tmp_path / "run", "a", {}, {}, [])
