"""The catalogue: every feature, in the order of a bundle's last input axis.

Adding a feature is one entry in a family's module. Its lookback, its inputs, its rule for missing
values, its generated tests and its line in ``data/FEATURES.md`` follow from the entry; its formula
is written out a second time in ``tests/features/formulas.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence

from riskml.errors import DataError, nearest
from riskml.facts import load_facts
from riskml.features.calendar import CALENDAR
from riskml.features.chains import CROSS_CHAIN
from riskml.features.cross_asset import CROSS_ASSET
from riskml.features.evaluate import input_names
from riskml.features.fine_volatility import FINE
from riskml.features.funding import FUNDING
from riskml.features.inputs import input_spec, input_tables
from riskml.features.nodes import MAX_GAP_BARS, MIN_ACROSS_WEIGHT
from riskml.features.positioning import FLOW, INTEREST, PRICE_GAPS
from riskml.features.pressure import PRESSURE
from riskml.features.season import SEASON
from riskml.features.shape import SHAPE
from riskml.features.spec import FAMILIES, Family, Feature
from riskml.features.volatility import LEVELS

CATALOG: tuple[Feature, ...] = (
    *LEVELS,
    *SHAPE,
    *FINE,
    *SEASON,
    *FUNDING,
    *INTEREST,
    *PRICE_GAPS,
    *FLOW,
    *PRESSURE,
    *CROSS_CHAIN,
    *CROSS_ASSET,
    *CALENDAR,
)
"""Every feature."""

_BY_NAME = {feature.name: feature for feature in CATALOG}
_SEMANTICS = 3
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


def missing_tables(features: Sequence[Feature], tables: Collection[str]) -> dict[Family, tuple[str, ...]]:
    """Tables that features read and that are not there, by family.

    Parameters
    ----------
    features : what is asked for.
    tables : names of the tables that there are.

    Returns
    -------
    family -> tables that it lacks, sorted; families that lack nothing are left out.
    """
    lacking: dict[Family, tuple[str, ...]] = {}
    for family in FAMILIES:
        names = input_names([feature for feature in features if feature.family == family])
        lacks = tuple(table for table in input_tables(names) if table not in tables)
        if lacks:
            lacking[family] = lacks
    return lacking


def fingerprint(features: Sequence[Feature], interval: str) -> str:
    """sha256 over everything that decides the features' values.

    Covers names, order, units, expressions, the look-up of their inputs with the limits of its
    sources, the gap rule and the interval, and the columns and weights of chains and stablecoins
    when a feature reads them; a
    runtime whose own fingerprint differs must not be fed to a bundle.
    """
    inputs = [input_spec(name) for name in input_names(features)]
    definition: dict[str, object] = {
        "semantics": _SEMANTICS,
        "interval": interval,
        "max_gap_bars": MAX_GAP_BARS,
        "features": [[feature.name, feature.unit, feature.expr.text] for feature in features],
        "inputs": [spec.text for spec in inputs],
        "source_limits": {
            table: limits
            for table, limits in load_facts("sources")["limits"].items()
            if table in {spec.table for spec in inputs}
        },
    }
    if any(spec.axis in ("chain", "asset") for spec in inputs):
        definition["min_across_weight"] = MIN_ACROSS_WEIGHT
        definition["chain_weights"] = load_facts("chain_weights")
    text = json.dumps(definition, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
