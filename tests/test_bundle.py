"""Bundles: identity, verification and atomic writing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from riskml import bundle
from riskml.bundle import Manifest, read_manifest, sign_bundle, verify_bundle, write_bundle
from riskml.errors import BundleError

CONTENTS = {name: name.encode() for name in bundle.REQUIRED_FILES} | {"facts/chains.toml": b"a = 1\n"}


def manifest() -> Manifest:
    return Manifest(
        bundle_id="",
        riskml_version="0.1.0",
        features=[{"name": "log_har_24h", "unit": "log", "lookback": 24, "inputs": ["high", "low"]}],
        feature_fingerprint="f" * 64,
        interval="1h",
        horizons=["1h", "8h", "24h"],
        markets=["BTC"],
        venues=["binance"],
        n_bars=64,
        fit_start="2020-01-01",
        fit_end="2021-07-01",
        calibrate_start="2021-07-02",
        calibrate_end="2022-01-01",
        data_end="2022-01-01",
        seed=7,
        recipe={},
        data_hashes={},
        metrics={},
        feature_bounds={},
        files={},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "perp-1h", CONTENTS, manifest())
    return tmp_path / "perp-1h"


def test_a_bundle_reads_back_as_it_was_written(folder: Path) -> None:
    assert verify_bundle(folder) == read_manifest(folder)
    assert len(read_manifest(folder).manifest_sha256) == 64
    assert sorted(p.name for p in folder.parent.iterdir()) == ["perp-1h"]


def test_the_identity_depends_on_the_files_and_not_on_the_clock(tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", CONTENTS, manifest())
    two = write_bundle(tmp_path / "two", CONTENTS, manifest())
    other = write_bundle(tmp_path / "other", CONTENTS | {"CARD.md": b"?"}, manifest())
    assert one.bundle_id == two.bundle_id != other.bundle_id


def test_one_changed_byte_of_the_manifest_is_refused_wherever_it_is(folder: Path) -> None:
    file = folder / "manifest.json"
    original = file.read_bytes()
    for position in range(len(original)):
        data = bytearray(original)
        data[position] ^= 1
        file.write_bytes(data)
        with pytest.raises(
            BundleError, match=r"was changed|is missing|is not valid|has protocol|lacks|does not list"
        ):
            verify_bundle(folder)


@pytest.mark.parametrize("name", [*bundle.REQUIRED_FILES, "facts/chains.toml"])
def test_one_changed_byte_is_refused_by_file_name(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        verify_bundle(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "CARD.md").unlink()
    with pytest.raises(BundleError, match="CARD.md is missing"):
        verify_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 99}, "protocol 99; this runtime reads protocol 1"),
        ({"bundle_id": "0" * 64}, "bundle_id does not match"),
        ({"files": {}}, "does not list market.onnx"),
        ({"seed": None, "files": None}, None),
    ],
)
def test_a_changed_manifest_is_refused(folder: Path, change: dict[str, object], message: str | None) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    if message is None:
        raw = {name: value for name, value in raw.items() if name not in change}
        message = "lacks files, seed"
    else:
        raw |= change
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=message):
        verify_bundle(folder)


def test_a_file_outside_the_bundle_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"]["../secret"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="lies outside the bundle"):
        verify_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="manifest.json"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        read_manifest(tmp_path)


def test_a_file_in_the_place_of_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="does not exist"):
        read_manifest(tmp_path / "file")


def test_an_incomplete_bundle_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a bundle needs golden.npz"):
        write_bundle(tmp_path / "b", {k: v for k, v in CONTENTS.items() if k != "golden.npz"}, manifest())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_manifest(folder)
    real = os.replace

    def full_disk(source: Path, target: Path) -> None:
        if target == folder and not str(source).endswith("-old"):
            raise OSError("no space left on device")
        real(source, target)

    monkeypatch.setattr(bundle.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_bundle(folder, CONTENTS | {"CARD.md": b"new"}, manifest())
    assert verify_bundle(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_bundle_is_replaced_as_a_whole(folder: Path) -> None:
    contents = {name: data for name, data in CONTENTS.items() if name != "facts/chains.toml"}
    write_bundle(folder, contents, manifest())
    assert not (folder / "facts").exists()
    verify_bundle(folder)


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write_bundle(tmp_path / "thesis", CONTENTS, manifest())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_signature_is_checked_when_a_key_is_given(folder: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private, other = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    with pytest.raises(BundleError, match="manifest.sig is missing"):
        verify_bundle(folder, private.public_key().public_bytes_raw())
    sign_bundle(folder, private.private_bytes_raw())
    verify_bundle(folder, private.public_key().public_bytes_raw())
    with pytest.raises(BundleError, match="not a valid signature"):
        verify_bundle(folder, other.public_key().public_bytes_raw())
    with pytest.raises(BundleError, match="not a valid signature"):
        verify_bundle(folder, b"short")
