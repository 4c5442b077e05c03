"""The model registry: which bundle is released, and which was held against it last.

It lies in the tracking store of the run, one model per interval, one version per bundle. Like all
tracking it is a record: ``models/RELEASE`` says what is released, and nothing is read back from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from riskml.learning.runs import TRACKING_FILE
from riskml.learning.tracking import tracking_store

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases: what is released, and what was refused last."""


def register_bundle(run: Path, bundle: Path, alias: str, tags: Mapping[str, str]) -> str | None:
    """Register a run's bundle as a version of its model and give it an alias.

    Parameters
    ----------
    run : RUN folder; its bundle is attached to the tracked run first, if it is not yet.
    bundle : verified bundle folder.
    alias : ``champion`` for what is released, ``challenger`` for what was held against it. The
        alias leaves the version that had it; a new champion is no challenger any more.
    tags : ``bundle_id`` and ``model`` (``riskml-<interval>``) are required; all are set on the version.

    Returns
    -------
    str : number of the version; None when the run is not tracked. A bundle that is registered
        already keeps its version.

    Raises
    ------
    ConfigError : the store cannot be reached.
    """
    file = run / TRACKING_FILE
    if not file.is_file():
        return None
    place = json.loads(file.read_text(encoding="utf-8"))
    name = tags["model"]
    with tracking_store(place["tracking_uri"]) as client:
        if not client.list_artifacts(place["run_id"], "bundle"):
            client.log_artifacts(place["run_id"], str(bundle), "bundle")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        known = client.search_model_versions(f"name = '{name}' and tags.bundle_id = '{tags['bundle_id']}'")
        if known:
            version = str(known[0].version)
        else:
            source = f"{client.get_run(place['run_id']).info.artifact_uri}/bundle"
            made = client.create_model_version(name, source, run_id=place["run_id"], tags=dict(tags))
            version = str(made.version)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        aliases = client.get_registered_model(name).aliases
        if alias == CHALLENGER and str(aliases.get(CHAMPION)) == version:
            return version
        client.set_registered_model_alias(name, alias, version)
        if alias == CHAMPION and str(aliases.get(CHALLENGER)) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
    return version
