"""Which columns of a dataset a recipe reads, chosen once, before anything else looks at the data.

A dataset holds the whole catalogue, and the catalogue grows. A recipe names what its network
reads, so that a new feature changes no fit that did not ask for it; the run, its fingerprint and
the bundle's manifest then know these features only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from riskml.arrays import Bool1D
from riskml.errors import DataError
from riskml.features.catalog import fingerprint, select
from riskml.learning.recipe import NetworkSpec, feature_names

if TYPE_CHECKING:
    from riskml.tables.build import Dataset


def recipe_columns(data: Dataset, spec: NetworkSpec) -> Dataset:
    """The dataset with the recipe's features alone, in the recipe's order.

    Parameters
    ----------
    data : dataset; its features may be more, fewer and in another order than the recipe's.
    spec : its ``features`` name what to keep.

    Returns
    -------
    Dataset : ``feature_names``, ``features`` and the fingerprint are those of the selection; all
        else is shared with ``data``. A feature that the dataset lacks is left out.

    Raises
    ------
    DataError : the dataset was built from other feature definitions than this version's, or has
        none of the recipe's features.
    """
    _check_definitions(data)
    place = {name: index for index, name in enumerate(data.feature_names)}
    kept = tuple(name for name in feature_names(spec) if name in place)
    if not kept:
        raise DataError(
            "the dataset has none of the features that the recipe names",
            fix="build the dataset with these features, or change [network] features",
        )
    return _only(data, kept)


def covered_columns(data: Dataset, rows: Bool1D, markets: Sequence[int], spec: NetworkSpec) -> Dataset:
    """The dataset without features that the train rows hardly know.

    Parameters
    ----------
    data : dataset with the recipe's features.
    rows : [n_bars] train rows.
    markets : positions of the fitted markets.
    spec : ``min_coverage`` of the bars that are there; features of the skip stay whatever they cover.

    Notes
    -----
    A source that begins after the train part would enter the network through weights that nothing has
    taught; one that covers an episode tells which episode it is.
    """
    present = np.isfinite(data.close[:, markets][rows])
    total = max(int(present.sum()), 1)

    def covers(index: int, name: str) -> bool:
        known = np.isfinite(data.features[:, markets, index][rows]) & present
        return name in spec.har_features or float(known.sum()) / total >= spec.min_coverage

    return _only(data, tuple(name for index, name in enumerate(data.feature_names) if covers(index, name)))


def _only(data: Dataset, kept: tuple[str, ...]) -> Dataset:
    if kept == data.feature_names:
        return data
    place = {name: index for index, name in enumerate(data.feature_names)}
    columns = np.array([place[name] for name in kept])
    info = replace(data.info, features=kept, fingerprint=fingerprint(select(kept), data.info.interval))
    return replace(data, info=info, feature_names=kept, features=data.features[:, :, columns])


def missing_columns(data: Dataset, spec: NetworkSpec) -> tuple[str, ...]:
    """Features of the recipe that the dataset lacks, and that a fit therefore goes without."""
    return tuple(name for name in feature_names(spec) if name not in data.feature_names)


def _check_definitions(data: Dataset) -> None:
    """A dataset of other definitions would be fitted under names that mean something else here."""
    fix = "build the dataset again with this version"
    try:
        features = select(list(data.feature_names))
    except DataError as error:
        raise DataError(f"the dataset was built by another version: {error.message}", fix=fix) from error
    if fingerprint(features, data.info.interval) != data.info.fingerprint:
        raise DataError("the dataset was built from other feature definitions than this version's", fix=fix)
