"""Static facts (leverage tiers, chains, assets, sources ...) as dated TOML package data.

Exchange and chain parameters drift, so they are data with a date and a source, never
constants in code. Entries that change over time carry ``valid_from``; :func:`valid_at`
picks the one in force.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from riskml.errors import ConfigError, nearest
from riskml.units import TimeLike, format_us, to_us


def fact_names() -> list[str]:
    """The fact files that the package carries, without ``.toml``."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files(__name__).iterdir()
        if entry.name.endswith(".toml")
    )


def fact_text(name: str) -> str:
    """The TOML text of one fact file (bundles keep a copy of what they were made with)."""
    if name not in fact_names():
        raise ConfigError(f"there are no facts '{name}'.{nearest(name, fact_names())}")
    return files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


@cache
def load_facts(name: str) -> dict[str, Any]:
    """Read one fact file. The result is shared: treat it as read-only."""
    return tomllib.loads(fact_text(name))


def valid_at(entries: Sequence[dict[str, Any]], ts: TimeLike) -> dict[str, Any]:
    """The entry with the newest ``valid_from`` at or before ``ts``.

    Raises
    ------
    ConfigError : no entry is in force at ``ts``.
    """
    moment = to_us(ts)
    in_force = [entry for entry in entries if to_us(entry["valid_from"]) <= moment]
    if not in_force:
        raise ConfigError(
            f"no entry is in force at {format_us(moment)}",
            fix="add one with an earlier valid_from to the fact file",
        )
    return max(in_force, key=lambda entry: to_us(entry["valid_from"]))
