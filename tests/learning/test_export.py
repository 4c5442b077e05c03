"""Export: the graphs say what the network says, bytes repeat, and nothing half-written stays.

Tracing a whole bundle takes half a minute, so these tests are slow; `test_small_graph` holds the same
promises for a small network in the default run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml.bundle import read_manifest, verify_bundle
from riskml.errors import BundleError, DataError
from riskml.learning.recipe import NetworkSpec, Recipe, TrainingSpec

RECIPE = Recipe(
    "toy",
    network=NetworkSpec(channels=4, hidden=8),
    training=TrainingSpec(epochs=1, chunk_bars=128, learning_rate=0.01, warmup_steps=1),
)


@pytest.fixture(scope="module")
def run(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from riskml.learning.fit import fit_run

    return fit_run(toy, RECIPE, tmp_path_factory.mktemp("runs") / "toy").path


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    from riskml.learning.export import export_bundle

    return export_bundle(run, run.parent / "bundle")


@pytest.mark.slow
def test_a_bundle_is_complete_and_loads_in_the_scoring_runtime(bundle: Path) -> None:
    from riskml.scoring.session import load_bundle

    manifest = verify_bundle(bundle)
    loaded = load_bundle(bundle)
    assert loaded.manifest == manifest
    assert manifest.markets == ["BTC", "ETH", "LINK"]
    assert manifest.n_bars == 64
    assert len(manifest.calibration_power) == 3
    assert {"market.onnx", "account.onnx", "golden.npz", "CARD.md"} <= set(manifest.files)
    assert any(name.startswith("facts/") for name in manifest.files)


@pytest.mark.slow
def test_the_card_names_parts_figures_and_limits(bundle: Path) -> None:
    card = (bundle / "CARD.md").read_text(encoding="utf-8")
    manifest = read_manifest(bundle)
    assert manifest.data_end in card
    assert f"{manifest.metrics['calibrate_qlike_8h']:.4f}" in card
    assert "## Use and limits" in card


@pytest.mark.slow
def test_the_graphs_carry_no_local_path(bundle: Path) -> None:
    repository = str(Path(__file__).resolve().parents[2]).encode()
    for file in (bundle / "market.onnx", bundle / "account.onnx"):
        assert repository not in file.read_bytes()
        assert b"site-packages" not in file.read_bytes()


@pytest.mark.slow
def test_two_exports_are_byte_identical(run: Path, bundle: Path, tmp_path: Path) -> None:
    from riskml.learning.export import export_bundle

    second = export_bundle(run, tmp_path / "second")
    assert read_manifest(second).bundle_id == read_manifest(bundle).bundle_id
    for name in (*read_manifest(bundle).files, "manifest.json"):
        assert (second / name).read_bytes() == (bundle / name).read_bytes(), name


@pytest.mark.slow
def test_the_graph_equals_the_network_on_inputs_other_than_the_traced(run: Path, bundle: Path) -> None:
    from riskml.learning.market_graph import check_parity, parity_cases
    from riskml.learning.runs import read_run

    net = read_run(run).net
    shapes = {case.features.shape[:2] for case in parity_cases(net)}
    assert {(1, 64), (30, 64), (4, 101)} <= shapes
    assert check_parity(net, (bundle / "market.onnx").read_bytes()) < 1e-5


@pytest.mark.slow
def test_the_graph_is_finite_on_nan_and_infinity(run: Path, bundle: Path) -> None:
    from riskml.learning.market_graph import parity_cases, run_graph
    from riskml.learning.runs import read_run

    graph = (bundle / "market.onnx").read_bytes()
    case = parity_cases(read_run(run).net)[0]
    for value in (np.nan, np.inf, -np.inf):
        broken = dataclasses.replace(
            case, features=np.full_like(case.features, value), feature_mask=np.ones_like(case.feature_mask)
        )
        for name, output in run_graph(graph, broken).items():
            assert np.isfinite(output).all(), name


@pytest.mark.slow
def test_a_graph_that_differs_is_refused(run: Path, bundle: Path) -> None:
    import torch

    from riskml.learning.market_graph import check_parity
    from riskml.learning.runs import read_run

    net = read_run(run).net
    with torch.no_grad():
        net.first.sigma_constant.add_(1e-3)
    with pytest.raises(BundleError, match=r"differs from the network by more than 1e-05: .*sigma"):
        check_parity(net, (bundle / "market.onnx").read_bytes())


@pytest.mark.slow
def test_the_golden_account_case_reaches_the_far_tail(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        probability = golden["account_output_liquidation_probability"]
    assert (probability == 1.0).any()
    assert ((probability > 0) & (probability < 1e-6)).any()


def test_an_unfinished_run_leaves_no_bundle(tmp_path: Path) -> None:
    from riskml.learning.export import export_bundle

    with pytest.raises(DataError, match="not the folder of a finished fit"):
        export_bundle(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_run_of_other_feature_definitions_leaves_no_bundle(run: Path, tmp_path: Path) -> None:
    from riskml.learning.export import export_bundle

    other = tmp_path / "run"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text(encoding="utf-8"))
    record["feature_fingerprint"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(BundleError, match="other feature definitions"):
        export_bundle(other, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_failed_export_keeps_the_earlier_bundle(
    run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riskml.learning import export

    target = tmp_path / "bundle"
    shutil.copytree(bundle, target)
    monkeypatch.setattr(export, "ACCOUNT_TOLERANCE", -1.0)
    # The graphs are made already; what is tested is what happens after.
    monkeypatch.setattr(export, "export_market_graph", lambda *_: (bundle / "market.onnx").read_bytes())
    monkeypatch.setattr(export, "_account_graph", lambda run: (bundle / "account.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"account\.onnx differs from the numpy law"):
        export.export_bundle(run, target)
    assert verify_bundle(target) == read_manifest(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_archive_of_the_same_arrays_has_the_same_bytes() -> None:
    from riskml.learning.export import npz_bytes

    arrays = {"b": np.arange(3), "a": np.ones((2, 2), dtype=np.bool_)}
    assert npz_bytes(arrays) == npz_bytes(dict(reversed(arrays.items())))
