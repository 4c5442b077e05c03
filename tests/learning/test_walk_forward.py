"""Which markets a fold is fitted on, when its bundle is taken again, and what pooling refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from riskml.errors import DataError
from riskml.learning import walk_forward
from riskml.learning.protocol import FOLDS
from riskml.learning.recipe import Recipe
from riskml.markets import Market


@dataclass(frozen=True)
class LakeStub:
    names: tuple[str, ...]

    def markets(self, interval: str) -> list[Market]:
        return [Market(name, "sim") for name in self.names]


@pytest.mark.parametrize(
    ("lake", "scored", "expected"),
    [
        (("SUI", "ETH", "BTC"), None, ["BTC", "ETH"]),
        (("SUI", "ETH", "BTC"), ["SUI"], ["BTC", "ETH", "SUI"]),
        (("XX", "YY"), None, ["XX", "YY"]),
    ],
)
def test_folds_are_fitted_on_the_long_markets_and_those_scored(lake, scored, expected):
    assert walk_forward._default_markets(LakeStub(lake), "1h", scored) == expected


def test_an_unknown_scored_market_is_refused_before_anything_is_fitted():
    with pytest.raises(DataError, match="no market 'QQ'"):
        walk_forward._default_markets(LakeStub(("BTC",)), "1h", ["QQ"])


def test_a_range_without_a_fold_is_refused_before_anything_is_fitted(tmp_path):
    with pytest.raises(DataError, match="no fold is tested"):
        walk_forward.evaluate_walk_forward(
            Recipe("r"), LakeStub(("BTC",)), start="2019-01-01", end="2019-06-01", folds_dir=tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_of_a_fold_is_named_by_its_data_end(tmp_path):
    assert walk_forward.fold_path(tmp_path, FOLDS[1], "1h").name == "perp-1h-2023-01-01"


def test_a_fold_bundle_is_taken_again_only_with_the_same_recipe_and_seams(tmp_path, monkeypatch):
    recipe, fold = Recipe("r"), FOLDS[1]
    manifest = SimpleNamespace(
        recipe=recipe.to_dict(), fit_end="2022-07-01T00:00:00Z", data_end="2023-01-01T00:00:00Z"
    )
    monkeypatch.setattr(walk_forward, "read_manifest", lambda path: manifest)
    assert not walk_forward._is_current(tmp_path, fold, recipe)  # no manifest there
    (tmp_path / "manifest.json").touch()
    assert walk_forward._is_current(tmp_path, fold, recipe)
    assert not walk_forward._is_current(tmp_path, fold, replace(recipe, seed=8))
    assert not walk_forward._is_current(tmp_path, FOLDS[2], recipe)


def test_folds_scored_on_different_markets_are_not_pooled():
    results = [SimpleNamespace(scored=SimpleNamespace(markets=names)) for names in (("A",), ("A", "B"))]
    with pytest.raises(DataError, match="different markets"):
        walk_forward.pool_folds(results, ("2022-01-01", "2024-01-01"))
