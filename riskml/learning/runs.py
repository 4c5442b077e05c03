"""The RUN folder: what a finished fit left behind, and how it is read back.

``run.json`` is written after all that it describes, so a folder without it is an unfinished run. ``model.pt``
holds tensors only and is read with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riskml.errors import DataError
from riskml.learning.boosting import GammaExpert
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.networks.market import FeatureRoles, MarketNet
from riskml.learning.recipe import Recipe, parse_recipe

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
MODEL_FILE = "model.pt"
EXPERT_FILE = "expert.json"
"""The boosted expert's trees in LightGBM's text form, one text per horizon."""
TRACKING_FILE = "tracking.json"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    record: Mapping[str, Any]
    """``run.json``."""
    recipe: Recipe
    net: EnsembleNet
    """Fitted and calibrated, in evaluation mode."""
    expert: GammaExpert | None
    """Its boosted expert, if the recipe has one."""


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    staging = file.with_name(f".{file.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)


def append_record(file: Path, record: Mapping[str, Any]) -> str:
    """Add one line to a file of JSON lines, atomically; returns the line."""
    text = json.dumps(record)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    write_text(file, before + text + "\n")
    return text


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically, with sorted keys and without NaN."""
    write_text(file, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_weights(file: Path, net: EnsembleNet) -> None:
    """Write the state of a network atomically."""
    staging = file.with_name(f".{file.name}.tmp")
    try:
        torch.save(net.state_dict(), staging)
        os.replace(staging, file)
    finally:
        staging.unlink(missing_ok=True)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names and values, which does not depend on the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_expert(file: Path, expert: GammaExpert) -> str:
    """Write the trees atomically; returns their sha256."""
    text = json.dumps(expert.to_text())
    write_text(file, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_expert(file: Path, sha256: str) -> GammaExpert:
    """Read the trees of a run.

    Raises
    ------
    DataError : the file is missing, damaged or not the run's.
    """
    try:
        text = file.read_text(encoding="utf-8")
        found = hashlib.sha256(text.encode()).hexdigest()
        trees = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", fix="fit again") from error
    if found != sha256:
        raise DataError(f"{file} was changed: it does not match {RUN_FILE}", fix="fit again")
    return GammaExpert.from_text(trees)


def make_net(recipe: Recipe, roles: FeatureRoles, n_horizons: int) -> EnsembleNet:
    """Fresh networks of a recipe; each member's weights are drawn from a seed of its own."""
    members = []
    with torch.random.fork_rng(devices=[]):
        for index in range(recipe.training.members):
            torch.manual_seed(member_seed(recipe.seed, index))
            members.append(MarketNet(recipe.network, roles, n_horizons))
    return EnsembleNet(
        members,
        has_expert=recipe.expert.n_trees > 0,
        has_stress_trees=recipe.expert.n_stress_trees > 0,
    )


def member_seed(seed: int, index: int) -> int:
    """Seed of one member; the first has the recipe's own."""
    return seed + 1_000 * index


def read_run(path: str | Path) -> Run:
    """Read a finished run.

    Raises
    ------
    DataError : the folder is no finished run, or a file is damaged or does not fit the others.
    """
    folder = Path(path)
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {RUN_FILE}: it is not the folder of a finished fit",
            fix="run 'riskml fit ... --out' to the end, with --resume if it was cut off",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / RUN_FILE} is damaged: {error}", fix="fit again") from error
    recipe = parse_recipe(record["recipe"], where=str(folder / RUN_FILE))
    roles = FeatureRoles.of(record["features"], recipe.network, record["families"])
    net = make_net(recipe, roles, len(record["horizons"]))
    file = folder / MODEL_FILE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except Exception as error:  # torch raises errors of many kinds for a damaged file
        raise DataError(f"{file} cannot be read: {error}", fix="fit again") from error
    if weights_hash(state) != record["weights_sha256"]:
        raise DataError(f"{file} was changed: it does not match {RUN_FILE}", fix="fit again")
    expert = None
    if net.has_expert:
        expert = read_expert(folder / EXPERT_FILE, record["expert_sha256"])
    return Run(folder, record, recipe, net.eval(), expert)
