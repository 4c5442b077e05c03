"""What a bundle is, and how two bundles or two runs differ, as plain records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from riskml.bundle import Manifest
from riskml.errors import DataError

UNREMARKABLE = frozenset({"bundle_id", "files", "created", "data_hashes"})
"""Manifest fields that differ between any two bundles; ``diff`` does not list them one by one."""


def summary(manifest: Manifest) -> dict[str, str]:
    """What a reader asks of a bundle first, in reading order."""
    return {
        "bundle": manifest.bundle_id,
        "riskml": manifest.riskml_version,
        "protocol": str(manifest.protocol),
        "interval": manifest.interval,
        "horizons": ", ".join(manifest.horizons),
        "markets": ", ".join(
            f"{venue}:{market}" for market, venue in zip(manifest.markets, manifest.venues, strict=True)
        ),
        "features": f"{len(manifest.features)} ({manifest.feature_fingerprint[:12]})",
        "window": f"{manifest.n_bars} bars",
        "fit": f"{manifest.fit_start} to {manifest.fit_end}",
        "calibrated": f"{manifest.calibrate_start} to {manifest.calibrate_end}",
        "data end": manifest.data_end,
        "seed": str(manifest.seed),
        "recipe": str(manifest.recipe.get("name", "custom")),
        "files": ", ".join(sorted(manifest.files)),
    }


def diff_manifests(first: Manifest, second: Manifest) -> dict[str, tuple[Any, Any]]:
    """Every manifest value that differs, as dotted name to (first, second); None = absent.

    Identity, dates of writing and hashes are left out: they differ between any two bundles.
    """
    one = {key: value for key, value in asdict(first).items() if key not in UNREMARKABLE}
    two = {key: value for key, value in asdict(second).items() if key not in UNREMARKABLE}
    flat_one, flat_two = flatten(one), flatten(two)
    names = [*flat_one, *(name for name in flat_two if name not in flat_one)]
    return {
        name: (flat_one.get(name), flat_two.get(name))
        for name in names
        if flat_one.get(name) != flat_two.get(name)
    }


def changed_files(first: Manifest, second: Manifest) -> list[str]:
    """Files that only one bundle has, or whose bytes differ."""
    names = first.files.keys() | second.files.keys()
    return sorted(name for name in names if first.files.get(name) != second.files.get(name))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted names; features are named, not numbered.

    >>> flatten({"recipe": {"seed": 7}, "horizons": ["1h", "8h"]})
    {'recipe.seed': 7, 'horizons': '1h, 8h'}
    """
    if isinstance(value, Mapping):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    if isinstance(value, list):
        if value and all(isinstance(item, Mapping) and "name" in item for item in value):
            return flatten({item["name"]: item for item in value}, prefix)
        if all(isinstance(item, (str, int, float, bool)) or item is None for item in value):
            return {prefix: ", ".join(str(item) for item in value)}
        return flatten({str(number): item for number, item in enumerate(value)}, prefix)
    return {prefix: value}


def run_metrics(run: str | Path) -> dict[str, float]:
    """The numbers of a run's ``metrics.json`` by dotted name.

    Raises
    ------
    DataError : the folder holds no run, or a damaged one.
    """
    file = Path(run) / "metrics.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{run} holds no metrics.json", fix="pass a folder that 'riskml fit' finished"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid JSON: {error}", fix="fit the run again") from error
    return {
        name: float(value)
        for name, value in flatten(record).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
