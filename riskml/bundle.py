"""The bundle: a folder with two ONNX graphs, its manifest, golden cases and model card.

``bundle_id`` is a sha256 over the protocol and the sha256 of every file. It cannot cover the
manifest that carries it, so the manifest has a seal of its own (``manifest_sha256``).
:func:`verify_bundle` recomputes both before anything is loaded: one changed byte anywhere is
refused. Writing is atomic: a bundle folder appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from riskml.errors import BundleError, missing_extra

PROTOCOL = 1
"""Version of the bundle format; a loader takes this and every older one that it names."""
MARKET_GRAPH = "market.onnx"
ACCOUNT_GRAPH = "account.onnx"
GOLDEN = "golden.npz"
CARD = "CARD.md"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
REQUIRED_FILES = (MARKET_GRAPH, ACCOUNT_GRAPH, GOLDEN, CARD)


@dataclass(frozen=True)
class Manifest:
    """What a bundle is, what it was made from and what it needs (``manifest.json``)."""

    bundle_id: str
    """sha256 over protocol and files; made by :func:`write_bundle`."""
    riskml_version: str
    features: list[dict[str, Any]]
    """``{name, unit, lookback, inputs}`` in the order of the graph's last axis."""
    feature_fingerprint: str
    """sha256 of the features' definitions; a runtime with another one refuses the bundle."""
    interval: str
    horizons: list[str]
    markets: list[str]
    """Reference markets, in column order: they define the cross-asset factor."""
    venues: list[str]
    """Reference venue of each market."""
    n_bars: int
    """Length of the feature window of the market graph, in bars."""
    fit_start: str
    fit_end: str
    calibrate_start: str
    calibrate_end: str
    data_end: str
    """No row at or after this time has touched the bundle (ISO, UTC)."""
    seed: int
    recipe: dict[str, Any]
    data_hashes: dict[str, str]
    metrics: dict[str, Any]
    feature_bounds: dict[str, list[float]]
    """Per feature [low, high] on the fit part; outside, the scorer clips and flags."""
    files: dict[str, str]
    """sha256 per file."""
    protocol: int = PROTOCOL
    created: str = ""
    """ISO date; not part of the identity, so that two exports agree."""
    calibration_power: list[float] = field(default_factory=list)
    """Per horizon: the exponent b of g(z) = z**b in the account graph."""
    reference_sigma: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    """``{"stressed": {market: [n_horizons][2]}, "long_run": ...}`` of the fit part;
    ``*`` = any other market."""
    fallback: dict[str, Any] = field(default_factory=dict)
    """Constants of the fallback law (a log-HAR on what remains), see ``scoring.guards``."""
    notes: str = ""
    manifest_sha256: str = ""
    """sha256 of the manifest's text with this field empty; made by :func:`manifest_text`."""

    def to_json(self) -> str:
        """Deterministic, sealed JSON text."""
        return manifest_text(asdict(self))


def manifest_text(fields_by_name: Mapping[str, Any]) -> str:
    """The one text of a manifest with these fields, sealed with its own sha256."""
    unsealed = _plain_text({**fields_by_name, "manifest_sha256": ""})
    return _plain_text({**fields_by_name, "manifest_sha256": hashlib.sha256(unsealed.encode()).hexdigest()})


def _plain_text(fields_by_name: Mapping[str, Any]) -> str:
    return json.dumps(fields_by_name, indent=1, sort_keys=True, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def compute_bundle_id(protocol: int, file_hashes: Mapping[str, str]) -> str:
    """sha256 over the protocol and the sorted (name, sha256) pairs."""
    text = json.dumps([protocol, sorted(file_hashes.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Read and validate ``manifest.json`` of a bundle folder, without checking the files.

    Raises
    ------
    BundleError : missing or damaged manifest, unknown protocol, missing field.
    """
    file = Path(path) / MANIFEST
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{file} does not exist", fix="pass the folder that 'riskml export' wrote"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is not valid JSON: {error}", fix="export the bundle again") from error
    if not isinstance(raw, dict) or raw.get("protocol") != PROTOCOL:
        found = raw.get("protocol") if isinstance(raw, dict) else None
        raise BundleError(
            f"{file} has protocol {found}; this runtime reads protocol {PROTOCOL}",
            fix="export the bundle again, or use the riskml version that wrote it",
        )
    known = {item.name for item in fields(Manifest)}
    optional = {"created", "calibration_power", "reference_sigma", "fallback", "notes", "manifest_sha256"}
    missing = sorted(known - optional - raw.keys())
    if missing:
        raise BundleError(f"{file} lacks {', '.join(missing)}", fix="export the bundle again")
    return Manifest(**{name: value for name, value in raw.items() if name in known})


def verify_bundle(path: str | Path, public_key: bytes | None = None) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Parameters
    ----------
    path : bundle folder.
    public_key : raw 32-byte Ed25519 key; when given, ``manifest.sig`` has to be a valid
        signature of ``manifest.json``.

    Raises
    ------
    BundleError : a file is missing, added or changed, or the signature is not valid.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name in REQUIRED_FILES:
        if name not in manifest.files:
            raise BundleError(f"{folder} does not list {name}", fix="export the bundle again")
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{folder} lists '{name}', which lies outside the bundle")
        if not file.is_file():
            raise BundleError(f"{file} is missing", fix="copy the whole bundle folder again")
        if sha256_file(file) != expected:
            raise BundleError(
                f"{file} was changed: its sha256 differs from the manifest",
                fix="copy the bundle again from its source",
            )
    if compute_bundle_id(manifest.protocol, manifest.files) != manifest.bundle_id:
        raise BundleError(f"{folder / MANIFEST} was changed: bundle_id does not match the files")
    text = (folder / MANIFEST).read_bytes()
    if text != manifest_text(json.loads(text)).encode():
        raise BundleError(
            f"{folder / MANIFEST} was changed: it does not match its own seal",
            fix="copy the bundle again from its source",
        )
    if public_key is not None:
        _verify_signature(folder, public_key)
    return manifest


def write_bundle(out: str | Path, contents: Mapping[str, bytes], manifest: Manifest) -> Manifest:
    """Write a bundle folder atomically; an existing one is replaced.

    Parameters
    ----------
    out : folder to create.
    contents : bytes per relative file name, manifest excluded.
    manifest : with ``bundle_id`` and ``files`` still empty; they are filled here.

    Returns
    -------
    Manifest : as written.
    """
    target = Path(out)
    missing = [name for name in REQUIRED_FILES if name not in contents]
    if missing:
        raise BundleError(f"a bundle needs {', '.join(missing)}")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())}
    complete = Manifest(
        **{**asdict(manifest), "files": hashes, "bundle_id": compute_bundle_id(manifest.protocol, hashes)}
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, data in contents.items():
            file = staging / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        (staging / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
        staging.chmod(0o755)
        _replace_folder(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return complete


def _replace_folder(staging: Path, target: Path) -> None:
    if not target.exists():
        os.replace(staging, target)
        return
    if not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle", fix="choose another --out folder")
    retired = staging.with_name(staging.name + "-old")
    os.replace(target, retired)
    try:
        os.replace(staging, target)
    except BaseException:
        os.replace(retired, target)
        raise
    shutil.rmtree(retired)


def sign_bundle(path: str | Path, private_key: bytes) -> None:
    """Sign ``manifest.json`` with a raw 32-byte Ed25519 key into ``manifest.sig``."""
    ed25519 = _ed25519()
    folder = Path(path)
    signature = ed25519.Ed25519PrivateKey.from_private_bytes(private_key).sign(
        (folder / MANIFEST).read_bytes()
    )
    staging = folder / f".{SIGNATURE}.tmp"
    staging.write_bytes(signature)
    os.replace(staging, folder / SIGNATURE)


def _verify_signature(folder: Path, public_key: bytes) -> None:
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    file = folder / SIGNATURE
    if not file.is_file():
        raise BundleError(
            f"{file} is missing, but a public key was given", fix="sign the bundle, or pass no key"
        )
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(file.read_bytes(), (folder / MANIFEST).read_bytes())
    except (InvalidSignature, ValueError) as error:
        raise BundleError(f"{file} is not a valid signature of {MANIFEST} by the given key") from error


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise missing_extra("cryptography", "sign") from error
    return ed25519
