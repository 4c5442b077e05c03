"""What loading a bundle refuses, and what a fresh process loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from riskml.bundle import Manifest, manifest_text, read_manifest, write_bundle
from riskml.errors import BundleError, ConfigError
from riskml.scoring.session import check_golden, load_bundle, make_session, read_golden

HEAVY = ("torch", "pandas", "pyarrow", "polars", "numba", "onnx", "sklearn", "matplotlib", "mlflow")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture
def rewrite(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny bundle again with other files, hashes and identity included."""

    def make(files: dict[str, bytes]) -> Path:
        manifest = read_manifest(tiny_bundle)
        contents = {name: (tiny_bundle / name).read_bytes() for name in manifest.files} | files
        write_bundle(tmp_path / "again", contents, Manifest(**asdict(manifest)))
        return tmp_path / "again"

    return make


def test_a_fresh_process_loads_no_table_or_training_library() -> None:
    code = f"import sys, riskml.scoring; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_whole_bundle_loads_with_its_features_in_order(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert [feature.name for feature in bundle.features] == [
        item["name"] for item in bundle.manifest.features
    ]
    assert bundle.path == tiny_bundle


@pytest.mark.parametrize("name", ["market.onnx", "account.onnx", "golden.npz", "CARD.md"])
def test_one_changed_byte_is_refused_by_file_name(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} was changed.*copy the bundle again"):
        load_bundle(copy)


def test_a_missing_folder_names_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest.json does not exist.*riskml export"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("protocol", 99, r"protocol 99; this runtime reads protocol 1"),
        ("feature_fingerprint", "0" * 64, r"manifest.json was made with other feature definitions"),
    ],
)
def test_another_protocol_or_feature_version_is_refused(
    copy: Path, field: str, value: object, message: str
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(manifest_text(manifest | {field: value}))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_a_feature_that_this_runtime_lacks_is_refused_by_name(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["features"][0]["name"] = "moon_phase"
    (copy / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(BundleError, match=r"does not have.*moon_phase"):
        load_bundle(copy)


def test_a_graph_that_onnxruntime_cannot_read_is_refused(rewrite: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"market.onnx cannot be loaded by onnxruntime"):
        load_bundle(rewrite({"market.onnx": b"not a graph"}))


def test_a_graph_with_other_outputs_is_refused(rewrite: Callable[..., Path], tiny_bundle: Path) -> None:
    account = (tiny_bundle / "account.onnx").read_bytes()
    with pytest.raises(BundleError, match=r"market.onnx has inputs .*'features'.* are required"):
        load_bundle(rewrite({"market.onnx": account}))


def test_a_golden_case_that_does_not_come_out_is_refused(
    rewrite: Callable[..., Path], tiny_bundle: Path
) -> None:
    golden = read_golden(tiny_bundle / "golden.npz")
    golden["market_output_sigma"] = golden["market_output_sigma"] * 1.01
    buffer = BytesIO()
    np.savez(buffer, **golden)
    with pytest.raises(BundleError, match=r"golden.npz: output 'sigma' of market.onnx differs"):
        load_bundle(rewrite({"golden.npz": buffer.getvalue()}))


def test_golden_cases_are_required_and_have_to_be_readable(tmp_path: Path, tiny_bundle: Path) -> None:
    session = make_session(tiny_bundle / "market.onnx")
    with pytest.raises(BundleError, match=r"has no case for market.onnx"):
        check_golden(tmp_path / "golden.npz", {}, {"market": session})
    (tmp_path / "golden.npz").write_bytes(b"PK damaged")
    with pytest.raises(BundleError, match=r"golden.npz cannot be read"):
        read_golden(tmp_path / "golden.npz")


def test_zero_threads_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"threads is 0; at least 1"):
        make_session(tiny_bundle / "market.onnx", threads=0)


def test_a_fallback_law_of_another_shape_is_refused(maker: ModuleType, tmp_path: Path) -> None:
    from riskml.scoring.guards import FallbackLaw

    law = {"laws": [], "sigma_ratio": [[1.0, 1.0]], "nu": [3.0]}
    manifest = maker.make_tiny_bundle(tmp_path / "odd", fallback=law)
    with pytest.raises(BundleError, match=r"fallback law is not usable"):
        FallbackLaw(manifest)
