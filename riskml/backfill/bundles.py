"""Which bundle may score which time: one bundle, or the newest of several that had not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from riskml.bundle import MANIFEST, Manifest, read_manifest
from riskml.errors import BundleError
from riskml.units import duration_us, to_us


@dataclass(frozen=True)
class BundleChoice:
    """A bundle with the first moment that it had not seen."""

    path: Path
    manifest: Manifest
    usable_from: int
    """``data_end`` + the longest horizon, microseconds: targets before reach into seen data."""

    def in_sample(self, ts: int) -> bool:
        """Whether a row at ``ts`` has to be marked."""
        return ts < self.usable_from


def find_bundles(path: str | Path) -> list[BundleChoice]:
    """The bundle at ``path``, or every bundle in the folders below it, oldest first.

    Raises
    ------
    BundleError : there is none, or a manifest is damaged.
    """
    folder = Path(path)
    folders = [folder]
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        folders = sorted(child for child in folder.iterdir() if (child / MANIFEST).is_file())
        if not folders:
            raise BundleError(
                f"{folder} is no bundle and holds none",
                fix="pass a bundle folder, or the folder of fold bundles",
            )
    choices = []
    for found in folders:
        manifest = read_manifest(found)
        purge = max(duration_us(horizon) for horizon in manifest.horizons)
        choices.append(BundleChoice(found, manifest, to_us(manifest.data_end) + purge))
    return sorted(choices, key=lambda choice: (choice.usable_from, choice.path))


def choose_bundle(choices: Sequence[BundleChoice], ts: int) -> BundleChoice:
    """The newest bundle that had not seen ``ts``; where all had, the oldest, in sample."""
    unseen = [choice for choice in choices if not choice.in_sample(ts)]
    return unseen[-1] if unseen else choices[0]
