"""What a search may change: keys of a recipe and where each of them may lie, from one TOML file.

    recipe = "quick"
    objective = "validation_loss"

    [training.learning_rate]
    kind = "float"
    low = 0.0005
    high = 0.02
    log = true

Every mistake of the file is reported at once. A key is refused where the objective could not
compare two values of it: the seed, the seams, and whatever the objective itself is made of.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riskml.errors import ConfigError, Problem, RiskmlError, nearest
from riskml.learning.recipe import Recipe, load_recipe, parse_recipe

VALIDATION_LOSS = "validation_loss"
_OBJECTIVE = re.compile(r"(validation|calibrate)_qlike_\w+?(_ratio)?")
_NOT_SEARCHED = {
    "name": "it changes nothing",
    "seed": "the best seed is luck, which does not last; report the spread over seeds instead",
    "split": "other seams are other rows, which do not compare",
}
_NOT_IN_LOSS = {
    "loss": "its weights are part of the loss, so that two values do not compare",
    "expert": "the loss is the network's alone",
}
_SETTINGS = ("recipe", "objective", "name")


@dataclass(frozen=True)
class Dimension:
    """One key of the recipe and its values."""

    key: str
    """Path such as ``training.learning_rate``."""
    kind: str
    """``float``, ``int`` or ``categorical``."""
    low: float = math.nan
    """Least value, inclusive; NaN of a categorical one."""
    high: float = math.nan
    """Greatest value, inclusive."""
    log: bool = False
    """Drawn evenly in logarithms."""
    choices: tuple[Any, ...] = ()
    """Values of a categorical one; lists are allowed."""

    def examples(self) -> tuple[Any, ...]:
        """Values that the recipe has to take: every choice, or both ends."""
        if self.kind == "categorical":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True)
class SearchSpace:
    """A search, apart from the data."""

    name: str
    recipe: Recipe
    """What every trial starts from."""
    objective: str
    """Name in ``metrics.json``; lower is better."""
    dimensions: tuple[Dimension, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, without NaN."""
        plain = [
            {
                name: (list(value) if isinstance(value, tuple) else value)
                for name, value in vars(item).items()
                if value == value
            }
            for item in self.dimensions
        ]
        return {"recipe": self.recipe.to_dict(), "objective": self.objective, "dimensions": plain}

    def draw(self, trial: Any) -> dict[str, Any]:
        """Let an Optuna trial choose a value per key."""
        values: dict[str, Any] = {}
        for item in self.dimensions:
            if item.kind == "float":
                values[item.key] = trial.suggest_float(item.key, item.low, item.high, log=item.log)
            elif item.kind == "int":
                values[item.key] = trial.suggest_int(item.key, int(item.low), int(item.high), log=item.log)
            else:
                # Optuna stores plain values only; JSON carries lists, and keeps 1 and true apart.
                texts = [json.dumps(choice) for choice in item.choices]
                values[item.key] = json.loads(trial.suggest_categorical(item.key, texts))
        return values

    def recipe_of(self, values: Mapping[str, Any], name: str | None = None) -> Recipe:
        """The recipe with some of its keys replaced.

        Raises
        ------
        ConfigError : values that the recipe does not take together.
        """
        raw = self.recipe.to_dict()
        for key, value in values.items():
            section, _, field = key.rpartition(".")
            (raw[section] if section else raw)[field] = value
        return parse_recipe(raw | {"name": name or self.recipe.name}, where=f"recipe of {name or self.name}")


def load_space(file: str | Path) -> SearchSpace:
    """Read a search space.

    Raises
    ------
    ConfigError : unreadable file, or one with mistakes; all of them at once.
    """
    path = Path(file)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"search space {path} cannot be read: {error.strerror}", fix="check --space"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"search space {path} is not valid TOML: {error}") from error
    return parse_space({"name": path.stem, **raw}, where=str(path))


def parse_space(raw: Mapping[str, Any], *, where: str = "search space") -> SearchSpace:
    """Build a search space from its plain form, after checking all of it.

    Raises
    ------
    ConfigError : with one problem per mistake.
    """
    problems: list[Problem] = []
    for name in _SETTINGS:
        if name in raw and not isinstance(raw[name], str):
            problems.append(Problem("space-type", f"'{name}' has to be text, found {raw[name]!r}"))
    recipe = _base_recipe(raw.get("recipe", "quick"), problems)
    objective = str(raw.get("objective", VALIDATION_LOSS))
    if objective != VALIDATION_LOSS and not _OBJECTIVE.fullmatch(objective):
        problems.append(
            Problem(
                "space-objective",
                f"'{objective}' is no objective of a search: nothing behind the calibrate part may steer one",
                f"use {VALIDATION_LOSS}, validation_qlike_8h_ratio or calibrate_qlike_8h_ratio",
            )
        )
    if recipe.split.validation_fraction == 0 and objective.startswith("validation"):
        problems.append(
            Problem(
                "space-objective",
                f"the recipe '{recipe.name}' holds no validation part back, so '{objective}' is not measured",
                "set objective = 'calibrate_qlike_8h_ratio', or start from a recipe that holds one back",
            )
        )
    entries = list(_entries({key: value for key, value in raw.items() if key not in _SETTINGS}))
    if not entries:
        problems.append(Problem("space-empty", "a search needs at least one key of the recipe to change"))
    dimensions = []
    for key, values in entries:
        item = _dimension(key, values, recipe, objective, problems)
        if item is not None:
            dimensions.append(item)
    if problems:
        raise ConfigError.from_problems(problems, f"{where} is not usable")
    return SearchSpace(str(raw.get("name", "search")), recipe, objective, tuple(dimensions))


def _base_recipe(name: Any, problems: list[Problem]) -> Recipe:
    try:
        return load_recipe(str(name))
    except RiskmlError as error:
        problems.append(Problem("space-recipe", error.message, error.fix or ""))
        return Recipe("none")


def _entries(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, description) of every key; a table with a ``kind``, or no table at all, ends a path."""
    for key, value in raw.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        nested = isinstance(value, Mapping) and "kind" not in value
        if nested and value and all(isinstance(item, Mapping) for item in value.values()):
            yield from _entries(value, path)
        else:
            yield path, value


def _dimension(
    key: str, values: Any, recipe: Recipe, objective: str, problems: list[Problem]
) -> Dimension | None:
    """One checked dimension; what is wrong with it is added to ``problems``."""
    found = [*_wrong_key(key, recipe, objective), *_wrong_values(key, values)]
    if found:
        problems.extend(found)
        return None
    item = Dimension(
        key,
        values["kind"],
        float(values.get("low", math.nan)),
        float(values.get("high", math.nan)),
        bool(values.get("log", False)),
        tuple(tuple(value) if isinstance(value, list) else value for value in values.get("choices", ())),
    )
    refused = _refused_values(item, recipe)
    problems.extend(refused)
    return None if refused else item


def _wrong_key(key: str, recipe: Recipe, objective: str) -> list[Problem]:
    section = key.partition(".")[0]
    reasons = _NOT_SEARCHED | (_NOT_IN_LOSS if objective == VALIDATION_LOSS else {})
    if section in reasons:
        fix = "choose an objective such as validation_qlike_8h_ratio" if section in _NOT_IN_LOSS else ""
        return [Problem("space-key", f"'{key}' cannot be searched: {reasons[section]}", fix)]
    raw = recipe.to_dict()
    known = [
        f"{name}.{field}"
        for name, fields in raw.items()
        if isinstance(fields, dict) and name not in reasons
        for field in fields
    ]
    if key in known:
        return []
    return [Problem("space-key", f"a recipe has no key '{key}'.{nearest(key, known)}")]


def _wrong_values(key: str, values: Any) -> list[Problem]:
    if not isinstance(values, Mapping):
        return [Problem("space-type", f"[{key}] has to be a table with a kind, found {values!r}")]
    kind = values.get("kind")
    allowed = {
        "float": ("kind", "low", "high", "log"),
        "int": ("kind", "low", "high", "log"),
        "categorical": ("kind", "choices"),
    }
    if kind not in allowed:
        return [Problem("space-kind", f"[{key}] kind has to be one of {', '.join(allowed)}, found {kind!r}")]
    problems = [
        Problem("space-entry", f"[{key}] a {kind} has no '{name}'.{nearest(name, allowed[kind])}")
        for name in values
        if name not in allowed[kind]
    ]
    if kind == "categorical":
        choices = values.get("choices")
        if not isinstance(choices, list) or len(choices) < 2:
            problems.append(Problem("space-range", f"[{key}] choices need at least two values"))
        return problems
    return [*problems, *_wrong_range(key, kind, values)]


def _wrong_range(key: str, kind: str, values: Mapping[str, Any]) -> list[Problem]:
    wanted = (int,) if kind == "int" else (int, float)
    low, high = (values.get(name, math.nan) for name in ("low", "high"))
    if not all(type(end) in wanted and math.isfinite(end) for end in (low, high)):
        return [
            Problem("space-type", f"[{key}] low and high of type {kind} are required, found {low}, {high}")
        ]
    problems = []
    if not low < high:
        problems.append(Problem("space-range", f"[{key}] the range from {low} to {high} is empty"))
    if type(values.get("log", False)) is not bool:
        problems.append(Problem("space-type", f"[{key}] log has to be true or false"))
    elif values.get("log") and low <= 0:
        problems.append(
            Problem("space-range", f"[{key}] a logarithmic range has to lie above 0, found {low}")
        )
    return problems


def _refused_values(item: Dimension, recipe: Recipe) -> list[Problem]:
    """Every value that the recipe does not take, tried one at a time."""
    section, _, field = item.key.rpartition(".")
    plain = recipe.to_dict()
    if item.kind == "int" and isinstance(plain[section][field], float):
        return [Problem("space-type", f"[{item.key}] is a float in the recipe, so kind has to be float")]
    problems = []
    for value in item.examples():
        try:
            parse_recipe(plain | {section: {**plain[section], field: value}})
        except ConfigError as error:
            problems.append(
                Problem("space-value", f"[{item.key}] {value!r}: {error.message}", error.fix or "")
            )
    return problems
