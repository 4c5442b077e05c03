"""The catalogue: every feature, in the order of a bundle's last input axis.

Adding a feature is one entry in a family's module. Its lookback, its inputs, its tests and
its line in ``data/FEATURES.md`` follow from the entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from riskml.errors import DataError, nearest
from riskml.facts import load_facts
from riskml.features.chains import CROSS_CHAIN
from riskml.features.cross_asset import CROSS_ASSET
from riskml.features.evaluate import input_names
from riskml.features.expr import MAX_GAP_BARS, HourOfWeek
from riskml.features.inputs import input_spec
from riskml.features.positioning import FUNDING, POSITIONING
from riskml.features.spec import FAMILIES, Feature
from riskml.features.volatility import LEVELS, SHAPE

CALENDAR = (
    Feature(
        "hour_of_week",
        "calendar",
        "hours",
        "hour of the week (0 = Monday 00:00 UTC) in which the next bar starts",
        "intraday and weekly season: Andersen and Bollerslev (1997)",
        HourOfWeek(),
    ),
)

CATALOG: tuple[Feature, ...] = (
    *LEVELS,
    *SHAPE,
    *FUNDING,
    *POSITIONING,
    *CROSS_CHAIN,
    *CROSS_ASSET,
    *CALENDAR,
)
"""Every feature."""

_BY_NAME = {feature.name: feature for feature in CATALOG}
_SEMANTICS = 1
"""Raised when the meaning of an expression changes without its text changing."""


def select(names: Sequence[str] | str) -> tuple[Feature, ...]:
    """Features by name or family, in the order asked; ``"all"`` is the catalogue.

    Raises
    ------
    DataError : an unknown name (with the nearest), or a feature chosen twice.
    """
    if isinstance(names, str):
        names = names.split(",")
    chosen: list[Feature] = []
    for name in names:
        if name == "all":
            chosen.extend(CATALOG)
        elif name in FAMILIES:
            chosen.extend(feature for feature in CATALOG if feature.family == name)
        elif name in _BY_NAME:
            chosen.append(_BY_NAME[name])
        else:
            raise DataError(
                f"there is no feature or family '{name}'.{nearest(name, [*_BY_NAME, *FAMILIES])}",
                fix="see data/FEATURES.md",
            )
    if len({feature.name for feature in chosen}) < len(chosen):
        raise DataError(f"a feature is chosen twice in {', '.join(names)}")
    return tuple(chosen)


def fingerprint(features: Sequence[Feature], interval: str) -> str:
    """sha256 over everything that decides the features' values.

    Covers names, order, units, expressions, the look-up of their inputs, the chain weights,
    the gap rule and the interval; a runtime whose own fingerprint differs must not be fed to
    a bundle.
    """
    definition = {
        "semantics": _SEMANTICS,
        "interval": interval,
        "max_gap_bars": MAX_GAP_BARS,
        "features": [[feature.name, feature.unit, feature.expr.text] for feature in features],
        "inputs": [input_spec(name).text for name in input_names(features)],
        "chain_weights": load_facts("chain_weights"),
    }
    text = json.dumps(definition, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
