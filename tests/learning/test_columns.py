"""Which features a fit reads: the recipe's, whatever else the dataset holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.features.catalog import CATALOG, fingerprint, select
from riskml.learning.columns import covered_columns
from riskml.learning.recipe import NetworkSpec, Recipe, TrainingSpec, feature_names, parse_recipe

from .conftest import make_toy

SMALL = TrainingSpec(epochs=1, chunk_bars=64, warmup_steps=1)
HAR = NetworkSpec().har_features


def reordered(data: Any, names: tuple[str, ...], **more: float) -> Any:
    """The dataset with its features in another order, and constant ones added."""
    every = (*names, *more)
    columns = [data.features[:, :, data.feature_names.index(name)] for name in names]
    columns += [np.full(data.features.shape[:2], value, dtype=np.float32) for value in more.values()]
    info = dataclasses.replace(data.info, features=every, fingerprint=fingerprint(select(every), "1h"))
    return dataclasses.replace(
        data, info=info, feature_names=every, features=np.stack(columns, axis=-1).astype(np.float32)
    )


def recipe(**network: Any) -> Recipe:
    return Recipe("toy", network=NetworkSpec(channels=4, hidden=8, **network), training=SMALL)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Any:
    from riskml.learning import fit as module

    monkeypatch.setattr(module, "track_run", lambda *_: "")
    return module.fit_run


def test_the_default_features_are_a_choice_that_the_catalogue_does_not_change_by_growing() -> None:
    names = feature_names(NetworkSpec())
    assert len(names) == 36
    assert names[:5] == HAR
    assert {name for name in NetworkSpec().sequence_features if name not in names} == set()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("hour_of_week", *HAR), ("hour_of_week", *HAR)),
        (("all",), tuple(feature.name for feature in CATALOG)),
        (
            ("funding", "hour_of_week"),
            (*(f.name for f in CATALOG if f.family == "funding"), "hour_of_week"),
        ),
    ],
)
def test_names_and_families_are_resolved_in_the_order_asked(
    asked: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert feature_names(NetworkSpec(features=asked)) == expected


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"features": [*HAR, "funding_rate_8"]}, "Did you mean 'funding_rate_8h'"),
        ({"features": ["volatilty"]}, "Did you mean 'volatility'"),
        ({"features": []}, "must not be empty"),
        ({"features": ["volatility", "log_har_8h"]}, "holds log_har_8h twice"),
        ({"features": ["funding"]}, "log_har_28d have to be in features too"),
        ({"features": "all"}, "has to be a tuple"),
    ],
)
def test_a_selection_that_cannot_be_used_is_refused(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe({"name": "x", "network": network})


def test_columns_are_cut_and_ordered_as_the_recipe_says(toy: Any) -> None:
    from riskml.learning.columns import missing_columns, recipe_columns

    spec = NetworkSpec(features=("hour_of_week", *HAR, "basis_bps"))
    cut = recipe_columns(toy, spec)
    assert cut.feature_names == ("hour_of_week", *HAR)
    assert cut.info.features == cut.feature_names
    assert cut.info.fingerprint == fingerprint(select(cut.feature_names), "1h")
    for place, name in enumerate(cut.feature_names):
        np.testing.assert_array_equal(
            cut.features[..., place], toy.features[..., toy.feature_names.index(name)]
        )
    assert cut.mae is toy.mae
    assert missing_columns(toy, spec) == ("basis_bps",)


def test_a_dataset_of_other_definitions_is_refused(toy: Any) -> None:
    from riskml.learning.columns import recipe_columns

    other = dataclasses.replace(toy, info=dataclasses.replace(toy.info, fingerprint="0" * 64))
    with pytest.raises(DataError, match="other feature definitions than this version's"):
        recipe_columns(other, NetworkSpec())
    renamed = dataclasses.replace(toy, feature_names=("log_har_9h", *toy.feature_names[1:]))
    with pytest.raises(DataError, match="built by another version.*'log_har_9h'"):
        recipe_columns(renamed, NetworkSpec())
    with pytest.raises(DataError, match="none of the features"):
        recipe_columns(toy, NetworkSpec(features=("basis_bps",)))


def test_further_columns_and_another_order_change_no_fit(toy: Any, fit: Any, tmp_path: Path) -> None:
    wide = reordered(toy, toy.feature_names[::-1], basis_bps=7.0, jump_share_24h=np.nan)
    chosen = recipe(features=(*HAR, "funding_rate_8h", "return_1h", "hour_of_week"))
    plain, other = fit(toy, chosen, tmp_path / "plain"), fit(wide, chosen, tmp_path / "wide")
    assert other.weights_sha256 == plain.weights_sha256
    assert (other.path / "run.json").read_bytes() == (plain.path / "run.json").read_bytes()


def test_the_run_knows_the_recipes_features_alone(toy: Any, fit: Any, tmp_path: Path) -> None:
    names = (*HAR, "return_1h", "basis_bps", "hour_of_week")
    result = fit(toy, recipe(features=names), tmp_path / "run")
    record = json.loads((result.path / "run.json").read_text(encoding="utf-8"))
    kept = tuple(name for name in names if name != "basis_bps")
    assert tuple(record["features"]) == kept
    assert record["features_left_out"] == ["basis_bps"]
    assert set(record["feature_bounds"]) == set(kept) == set(record["families"])
    assert record["feature_fingerprint"] == fingerprint(select(kept), "1h")
    assert [law["features"] for law in record["fallback"]["laws"]] == [
        list(HAR),
        *([name] for name in ("log_har_24h", "log_har_7d", "log_har_28d")),
    ]


@pytest.mark.slow
def test_a_bundle_lists_and_loads_the_selection_alone(toy: Any, fit: Any, tmp_path: Path) -> None:
    from riskml.learning.export import export_bundle
    from riskml.scoring.session import load_bundle

    names = (*HAR, "funding_rate_8h", "hour_of_week")
    run = fit(toy, recipe(features=names), tmp_path / "run")
    bundle = load_bundle(export_bundle(run.path, tmp_path / "bundle"))
    assert tuple(item["name"] for item in bundle.manifest.features) == names
    assert tuple(feature.name for feature in bundle.features) == names
    assert bundle.manifest.feature_fingerprint == fingerprint(select(names), "1h")
    assert bundle.manifest.recipe["network"]["features"] == list(names)


def test_a_feature_that_the_train_rows_hardly_know_is_left_out_unless_the_skip_stands_on_it() -> None:
    data = make_toy()
    rows = np.arange(len(data.ts)) < 1000
    late = data.feature_names.index("funding_rate_8h")
    skip = data.feature_names.index("log_har_28d")
    data.features[:800, :, [late, skip]] = np.nan
    kept = covered_columns(data, rows, [0, 1], NetworkSpec(min_coverage=0.25)).feature_names
    assert set(data.feature_names) - set(kept) == {"funding_rate_8h"}
    assert covered_columns(data, rows, [0, 1], NetworkSpec(min_coverage=0.15)) is data


def test_coverage_counts_the_bars_that_are_there() -> None:
    data = make_toy()
    rows = np.arange(len(data.ts)) < 1000
    late = data.feature_names.index("funding_rate_8h")
    data.features[:800, :, late] = np.nan
    data.close[:900] = np.nan  # a market that begins late knows its feature from the first bar on
    assert covered_columns(data, rows, [0, 1], NetworkSpec(min_coverage=0.6)) is data
