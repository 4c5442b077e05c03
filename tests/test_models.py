"""The release in ``models/`` is whole, loads in the light runtime and was judged out of sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riskml.bundle import verify_bundle
from riskml.scoring import Scorer

MODELS = Path(__file__).resolve().parents[1] / "models"
LARGEST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def release() -> Path:
    return MODELS / (MODELS / "RELEASE").read_text(encoding="utf-8").strip()


def test_the_release_is_whole_and_small(release: Path) -> None:
    manifest = verify_bundle(release)
    assert manifest.interval == "1h"
    assert sum(file.stat().st_size for file in release.rglob("*") if file.is_file()) < LARGEST_BYTES


def test_the_release_loads_and_passes_its_golden_cases(release: Path) -> None:
    assert Scorer.load(release) is not None


def test_the_release_was_evaluated_after_its_data_end(release: Path) -> None:
    evaluation = json.loads(release.with_name(f"{release.name}.evaluation.json").read_text(encoding="utf-8"))
    manifest = verify_bundle(release)
    assert evaluation["in_sample"] is False
    judged, data_end = evaluation["bundle_id"], manifest.data_end
    if "refit" in evaluation:  # no row is left to judge the release itself by: its newest fold was judged
        refit = evaluation["refit"]
        assert (refit["bundle_id"], refit["data_end"]) == (manifest.bundle_id, manifest.data_end)
        assert refit["judged_data_end"] < manifest.data_end
        data_end = refit["judged_data_end"]
    else:
        assert judged == manifest.bundle_id
    assert evaluation["start"] >= data_end[: len(evaluation["start"])]
