"""The model registry: one version per bundle, and aliases that say what is out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riskml.errors import ConfigError
from riskml.learning.registry import register_bundle
from riskml.learning.tracking import default_tracking_uri, track_run

MODEL = "riskml-1h"


def tracked(folder: Path, name: str) -> tuple[Path, Path]:
    run, bundle = folder / name, folder / name / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    track_run(run, name, {}, {"qlike": 0.4}, [])
    return run, bundle


def aliases(run: Path) -> dict[str, str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_tracking_uri(run))
    found: Any = client.get_registered_model(MODEL).aliases
    return {name: str(version) for name, version in found.items()}


def test_champion_and_challenger_follow_what_was_promoted(tmp_path: Path) -> None:
    run, bundle = tracked(tmp_path, "one")
    other, other_bundle = tracked(tmp_path, "two")
    first, second = ({"model": MODEL, "bundle_id": name} for name in ("aa", "bb"))
    assert register_bundle(run, bundle, "champion", first) == "1"
    assert register_bundle(other, other_bundle, "challenger", second) == "2"
    assert aliases(run) == {"champion": "1", "challenger": "2"}
    assert register_bundle(other, other_bundle, "champion", second) == "2"
    assert aliases(run) == {"champion": "2"}
    # a champion that is held against itself stays what it is
    assert register_bundle(other, other_bundle, "challenger", second) == "2"
    assert aliases(run) == {"champion": "2"}

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_tracking_uri(run))
    version = client.get_model_version_by_alias(MODEL, "champion")
    assert version.tags["bundle_id"] == "bb"
    place = json.loads((other / "tracking.json").read_text(encoding="utf-8"))
    assert version.run_id == place["run_id"]
    assert [item.path for item in client.list_artifacts(version.run_id, "bundle")] == ["bundle/manifest.json"]


def test_a_run_that_is_not_tracked_is_not_registered(tmp_path: Path) -> None:
    assert register_bundle(tmp_path, tmp_path, "champion", {"model": MODEL, "bundle_id": "aa"}) is None


def test_a_store_that_is_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    place = {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "run_id": "0"}
    (tmp_path / "tracking.json").write_text(json.dumps(place), encoding="utf-8")
    with pytest.raises(ConfigError, match="the tracking store sqlite:.* cannot be used"):
        register_bundle(tmp_path, tmp_path, "champion", {"model": MODEL, "bundle_id": "aa"})
