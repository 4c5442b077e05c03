"""Recipes: what a file may say, and what it is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from riskml.errors import ConfigError
from riskml.learning.recipe import (
    Recipe,
    complete_recipe,
    load_recipe,
    parse_recipe,
    recipe_digest,
    recipe_names,
    with_seed,
)


def test_every_released_recipe_is_valid_and_named_after_its_file() -> None:
    assert recipe_names() == ["quick", "standard"]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.network.receptive_field <= recipe.network.n_bars


def test_a_recipe_survives_its_plain_form() -> None:
    recipe = with_seed(load_recipe("quick"), 11)
    assert recipe.seed == 11
    assert parse_recipe(recipe.to_dict()) == recipe


def test_a_file_overrides_only_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[network]\nchannels = 8\ndropout = 0\n", encoding="utf-8")
    recipe = load_recipe(file)
    assert (recipe.name, recipe.network.channels, recipe.network.dropout) == ("mine", 8, 0.0)
    assert recipe.training == parse_recipe({"name": "x"}).training


def test_all_mistakes_are_reported_at_once() -> None:
    raw = {"name": "x", "network": {"chanels": 3, "hidden": "wide"}, "trainning": {}}
    with pytest.raises(ConfigError, match="3 problems") as caught:
        parse_recipe(raw)
    assert "Did you mean 'channels'?" in str(caught.value)
    assert "Did you mean 'training'?" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("network", {"n_bars": 32}, "more than n_bars"),
        ("network", {"dropout": 1.0}, "dropout has to lie"),
        ("network", {"har_features": []}, "har_features"),
        ("training", {"epochs": 0}, "at least 1"),
        ("training", {"averaging": 1.0}, "averaging"),
        ("split", {"fit_fraction": 0.9, "calibrate_fraction": 0.8}, "0 < fit < calibrate"),
        ("loss", {"qlike": 0.0}, "have to be positive"),
    ],
)
def test_a_value_out_of_range_is_refused(section: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe({"name": "x", section: values})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quick'"):
        load_recipe("quik")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[network", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_a_key_that_is_younger_than_a_recipe_does_not_change_its_digest() -> None:
    plain = Recipe("x").to_dict()
    older = {**plain, "training": {k: v for k, v in plain["training"].items() if k != "cross_blocks"}}
    assert recipe_digest(older) == recipe_digest(plain)
    other = {**plain, "training": {**plain["training"], "epochs": plain["training"]["epochs"] + 1}}
    assert recipe_digest(other) != recipe_digest(plain)


def test_a_recipe_that_this_version_cannot_read_has_a_digest_of_its_own() -> None:
    plain = {**Recipe("x").to_dict(), "gone": {"key": 1}}
    assert complete_recipe(plain) == plain
    assert recipe_digest(plain) != recipe_digest(Recipe("x").to_dict())
