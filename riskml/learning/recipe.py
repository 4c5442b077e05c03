"""Recipes: everything that a fit decides, in one TOML file under ``training/recipes``.

A recipe is read into frozen dataclasses. The defaults live here, in one place; a file
states what differs. Reading collects every mistake before it raises.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from riskml.errors import ConfigError, Problem, nearest
from riskml.features.catalog import CATALOG, select
from riskml.features.spec import FAMILIES
from riskml.learning.boosting import BoostingSpec
from riskml.tables.parts import CALIBRATE_FRACTION, FIT_FRACTION

ENCODERS = ("tcn", "gru", "patch", "none")
"""Sequence parts that ``riskml.learning.networks.encoders`` offers."""
KEPT = ("best", "last")
"""Which epoch a fit may keep."""
PRECISIONS = ("auto", "float32", "bfloat16")
"""Arithmetic of the layers that a fit may use."""
LOADINGS = ("features", "fitted")
"""Where factor loadings come from."""
_Rule = tuple[bool, str]
"""Whether it holds, and what is said where it does not."""
_HAR = ("log_parkinson_1h", "log_har_8h", "log_har_24h", "log_har_7d", "log_har_28d")
_SEQUENCE = ("log_parkinson_1h", "return_1h", "market_return_24h", "taker_imbalance_24h", "funding_rate_8h")
_FEATURES = (
    *("log_parkinson_1h", "log_har_8h", "log_har_24h", "log_har_7d", "log_har_28d"),
    *("log_ewm_variance_24h", "log_ewm_variance_60d", "return_1h", "return_24h", "downside_share_24h"),
    *("jump_share_24h", "vol_of_vol_7d", "tail_range_7d", "relative_volume_24h", "drawdown_7d"),
    *("rebound_7d", "history_28d", "funding_rate_8h", "funding_z_7d", "funding_carry_7d"),
    *("funding_dispersion", "open_interest_change_24h", "basis_bps", "mark_gap_bps", "taker_imbalance_24h"),
    *("bridge_flow_z_30d", "stablecoin_supply_change_7d", "tvl_drawdown_30d", "peg_deviation_24h"),
    *("market_log_variance_24h", "relative_log_variance_24h", "market_return_24h", "dispersion_24h"),
    *("factor_loading_1", "factor_loading_2", "hour_of_week"),
)
"""What the released recipes were chosen on; a feature that is new to the catalogue has to be asked for."""


@dataclass(frozen=True)
class SplitSpec:
    """Where the range is cut when no date is given."""

    fit_fraction: float = FIT_FRACTION
    """Share of the range that is fitted."""
    calibrate_fraction: float = CALIBRATE_FRACTION
    """Share of the range before the end of the calibrate part; the rest is never touched."""
    validation_fraction: float = 0.10
    """Tail of the fit part that chooses the epoch and is not trained on. With 0 there is none: the whole part
    is trained on, and ``[training] keep`` has to be ``last``."""


@dataclass(frozen=True)
class NetworkSpec:
    """Shape of the network, its features and their roles; names that a dataset lacks are left out."""

    encoder: str = "tcn"
    """Sequence part: ``tcn``, ``gru``, ``patch`` or ``none``; it has to see at most ``n_bars`` bars."""
    channels: int = 24
    """Channels of the sequence part."""
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Dilation per layer of ``tcn``; the receptive field is 1 + 2 sum."""
    window_bars: int = 48
    """Receptive field of ``gru`` and ``patch``."""
    patch_bars: int = 8
    """Bars of a patch, which divide ``window_bars``."""
    attention_heads: int = 2
    """Heads of ``patch``, which divide ``channels``."""
    attention_layers: int = 1
    """Layers of ``patch``."""
    hidden: int = 48
    """Width of the joint layer."""
    n_bars: int = 64
    """Window that the market graph is given."""
    dropout: float = 0.1
    """Dropout inside the sequence part and before the heads."""
    channel_dropout: float = 0.05
    """Chance that one input feature is taken away, for a whole chunk and all markets."""
    family_dropout: float = 0.05
    """Chance that a whole family of features is taken away likewise."""
    features: tuple[str, ...] = _FEATURES
    """Features, families of them, or ``all``: what the network reads, in this order."""
    har_features: tuple[str, ...] = _HAR
    """Log-variance features of the skip connection."""
    sequence_features: tuple[str, ...] = _SEQUENCE
    """Fast inputs of the sequence part; slow ones there memorise the calendar."""
    min_coverage: float = 0.25
    """Share of the train rows that a feature has to be known on; one seen less is never read. What is learnt
    of an episode does not hold after it, and of a source that begins later nothing was learnt at all."""
    loadings: str = "features"
    """Factor loadings of books: ``features`` as the correlation features say, or ``fitted`` to the joint
    likelihood of next-bar returns where that holds on the last fifth of the fit part."""
    sequence_level: str = "log_har_7d"
    """Subtracted from log variances in the sequence part, which then sees shape, not level."""

    @property
    def receptive_field(self) -> int:
        """Bars that one forecast reads."""
        bars = {"tcn": 1 + 2 * sum(self.dilations), "none": 1}
        return bars.get(self.encoder, self.window_bars)


@dataclass(frozen=True)
class LossSpec:
    """Weights of the training loss."""

    half_t: float = 1.0
    """Half-t likelihood of the excursions, mean over sides and horizons."""
    distance: float = 0.0
    """Cross-entropy of reaching 1 to 50 %: the log-loss of the liquidation probability."""
    qlike: float = 1.0
    """QLIKE of the variance, mean over horizons."""
    stress: float = 0.5
    """Cross-entropy of the stress onset."""
    nu_penalty: float = 0.02
    """Squared deviation of logit nu from its constant; single shocks drive nu to its bound otherwise."""
    crisis_weight: float = 1.0
    """Of a row whose variance, by the log-HAR at the first horizon, is in the top tenth of its market; others
    weigh 1. What is known at the bar decides: rows chosen by what followed would bias every forecast."""


@dataclass(frozen=True)
class TrainingSpec:
    """How the network is fitted."""

    precision: str = "auto"
    """Arithmetic of the network's layers in training: ``float32``, ``bfloat16``, or ``auto``, which is
    bfloat16 on a GPU that has it. The log-HAR skip, the law and the losses are always float32."""
    epochs: int = 10
    """Most passes over the fit part."""
    patience: int = 4
    """Epochs without a better validation loss before the fit ends; no say with ``keep = "last"``."""
    keep: str = "best"
    """Epoch that is kept: the ``best`` on the validation tail, or the ``last`` after all of them, whose rate
    has fallen to almost nothing. A tail of some months chooses by its own weather."""
    chunk_bars: int = 96
    """Loss positions per chunk; the chunk also carries the receptive field before them."""
    batch_chunks: int = 2
    """Chunks (of all markets each) per step."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule."""
    weight_decay: float = 0.2
    """AdamW decay of network weights; the skip, constants and biases are not decayed."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    averaging: float = 0.98
    """Decay per step of the exponential average of weights, which is what is kept."""
    members: int = 1
    """Networks that differ by seed alone; the graph holds their mean."""
    cross_blocks: int = 0
    """Blocks of the fit part that a network of the *other* blocks forecasts, for the calibration alone: a
    network looks better on the rows that it learnt from than on any later one. 0 = none."""


@dataclass(frozen=True)
class ExpertSpec(BoostingSpec):
    """The boosted expert beside the networks; none with ``n_trees`` 0.

    Blocks of the fit part count its trees, so that ``patience`` has no say.
    """

    n_blocks: int = 5
    """Blocks of the cross-fit that calibration stands on."""
    n_stress_trees: int = 0
    """Trees per horizon that classify stress, beside ``n_trees``; 0 = stress is the networks' alone."""
    family_dropout: float = 0.0
    """Share of the rows that a family of features is taken away on before the trees are fitted, so that they
    know what to do without it. Rows that are forecast keep theirs."""


@dataclass(frozen=True)
class Recipe:
    """A complete fit, apart from the data."""

    name: str
    seed: int = 7
    split: SplitSpec = field(default_factory=SplitSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    loss: LossSpec = field(default_factory=LossSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    expert: ExpertSpec = field(default_factory=ExpertSpec)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; :func:`parse_recipe` reads it back."""
        return _plain(asdict(self))


def recipe_folder() -> Path:
    """Folder of the released recipes: package data when installed, the repository otherwise."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "training" / "recipes"


def recipe_names() -> list[str]:
    """Names of the released recipes."""
    return sorted(file.stem for file in recipe_folder().glob("*.toml"))


def load_recipe(name_or_file: str | Path) -> Recipe:
    """Read a released recipe by name, or any TOML file.

    Raises
    ------
    ConfigError : unknown name, unreadable file, unknown key, wrong type or value out of range;
        all mistakes of a file at once.
    """
    file = Path(name_or_file)
    if file.suffix != ".toml":
        known = recipe_names()
        if str(name_or_file) not in known:
            raise ConfigError(
                f"there is no recipe '{name_or_file}'.{nearest(str(name_or_file), known)}",
                fix=f"use one of {', '.join(known)}, or the path of a .toml file",
            )
        file = recipe_folder() / f"{name_or_file}.toml"
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {file} does not exist", fix="check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {file} is not valid TOML: {error}") from error
    return parse_recipe({"name": file.stem, **raw}, where=str(file))


def parse_recipe(raw: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Build a recipe from its plain form, after checking all of it."""
    problems: list[Problem] = []
    sections = {
        "split": SplitSpec,
        "network": NetworkSpec,
        "loss": LossSpec,
        "training": TrainingSpec,
        "expert": ExpertSpec,
    }
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in sections and isinstance(value, Mapping):
            values[key] = _read_section(key, value, sections[key](), problems)
        elif key in ("name", "seed") and isinstance(value, str if key == "name" else int):
            values[key] = value
        elif key in (*sections, "name", "seed"):
            problems.append(Problem("recipe-type", f"'{key}' has the wrong type ({type(value).__name__})"))
        else:
            hint = nearest(key, [*sections, "name", "seed"])
            problems.append(Problem("recipe-key", f"there is no section '{key}'.{hint}"))
    if "name" not in raw:
        problems.append(Problem("recipe-name", "'name' is required"))
    if not problems:
        recipe = Recipe(**values)
        problems += [*_out_of_range(recipe), *_wrong_features(recipe.network)]
    if problems:
        raise ConfigError.from_problems(problems, f"{where} is not usable")
    return recipe


def complete_recipe(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain form, as run and manifest keep it, with the defaults of keys that are younger than it.

    One that this version cannot read, because a key or a feature is gone, is returned as it is.
    """
    try:
        return parse_recipe(plain).to_dict()
    except ConfigError:
        return dict(plain)


def recipe_digest(plain: Mapping[str, Any]) -> str:
    """sha256 of a recipe in its plain form; a key that is left out counts as its default."""
    text = json.dumps(complete_recipe(plain), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def feature_names(spec: NetworkSpec) -> tuple[str, ...]:
    """The features that a recipe's network reads, families and ``all`` resolved.

    Raises
    ------
    DataError : an unknown name, or a feature chosen twice; :func:`parse_recipe` refuses both before.
    """
    return tuple(feature.name for feature in select(spec.features))


def with_seed(recipe: Recipe, seed: int | None) -> Recipe:
    """The recipe with another seed; None keeps its own."""
    return recipe if seed is None else replace(recipe, seed=int(seed))


def _read_section(name: str, raw: Mapping[str, Any], default: Any, problems: list[Problem]) -> Any:
    known = {item.name: getattr(default, item.name) for item in fields(default)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            problems.append(Problem("recipe-key", f"[{name}] has no key '{key}'.{nearest(key, known)}"))
            continue
        converted = _convert(value, known[key])
        if converted is None:
            wanted = type(known[key]).__name__
            problems.append(Problem("recipe-type", f"[{name}] {key} has to be a {wanted}, found {value!r}"))
            continue
        values[key] = converted
    return replace(default, **values)


def _convert(value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``; None when it is of another type."""
    if isinstance(default, tuple):
        kind = type(default[0])
        right = isinstance(value, (list, tuple)) and all(type(item) is kind for item in value)
        return tuple(value) if right else None
    if isinstance(default, float) and type(value) in (int, float):
        return float(value)
    return value if type(value) is type(default) else None


def _out_of_range(recipe: Recipe) -> list[Problem]:
    rules = [
        *_split_rules(recipe.split, recipe.training),
        *_network_rules(recipe.network),
        *_training_rules(recipe.training),
        *_expert_rules(recipe.expert),
        *_loss_rules(recipe.loss),
    ]
    return [Problem("recipe-range", message) for holds, message in rules if not holds]


def _split_rules(split: SplitSpec, training: TrainingSpec) -> list[_Rule]:
    return [
        (
            0 < split.fit_fraction < split.calibrate_fraction <= 1,
            "[split] 0 < fit < calibrate <= 1 is required",
        ),
        (0 <= split.validation_fraction < 0.5, "[split] validation_fraction has to lie in [0, 0.5)"),
        (
            split.validation_fraction > 0 or training.keep == "last",
            "[split] validation_fraction = 0 leaves nothing to choose the epoch by: set keep = 'last'",
        ),
    ]


def _network_rules(network: NetworkSpec) -> list[_Rule]:
    return [
        (min(network.channels, network.hidden) >= 1, "[network] channels and hidden have to be at least 1"),
        (
            bool(network.dilations) and min(network.dilations, default=0) >= 1,
            "[network] dilations have to be at least 1",
        ),
        (
            network.receptive_field <= network.n_bars,
            f"[network] the {network.encoder} encoder sees {network.receptive_field} bars, "
            f"more than n_bars = {network.n_bars}",
        ),
        *_encoder_rules(network),
        (
            all(0 <= p < 1 for p in (network.dropout, network.channel_dropout, network.family_dropout)),
            "[network] a dropout has to lie in [0, 1)",
        ),
        (bool(network.har_features), "[network] har_features must not be empty"),
        (0 <= network.min_coverage < 1, "[network] min_coverage has to lie in [0, 1)"),
        (
            network.loadings in LOADINGS,
            f"[network] loadings has to be one of {', '.join(LOADINGS)}, found '{network.loadings}'",
        ),
    ]


def _training_rules(training: TrainingSpec) -> list[_Rule]:
    return [
        (
            min(training.epochs, training.patience, training.chunk_bars, training.batch_chunks) >= 1,
            "[training] epochs, patience, chunk_bars and batch_chunks have to be at least 1",
        ),
        (
            training.learning_rate > 0 and training.gradient_clip > 0,
            "[training] learning_rate and gradient_clip have to be positive",
        ),
        (
            training.weight_decay >= 0 and training.warmup_steps >= 0,
            "[training] weight_decay and warmup_steps must not be negative",
        ),
        (0 <= training.averaging < 1, "[training] averaging has to lie in [0, 1)"),
        (training.keep in KEPT, f"[training] keep has to be one of {', '.join(KEPT)}, not '{training.keep}'"),
        (
            training.precision in PRECISIONS,
            f"[training] precision has to be one of {', '.join(PRECISIONS)}, not '{training.precision}'",
        ),
        (1 <= training.members <= 16, "[training] members has to lie in 1 to 16"),
        (
            training.cross_blocks == 0 or 2 <= training.cross_blocks <= 16,
            "[training] cross_blocks has to be 0, or lie in 2 to 16",
        ),
        (
            training.cross_blocks == 0 or training.keep == "last",
            "[training] cross_blocks needs keep = 'last': a tail that chooses the epoch may lie in the block",
        ),
    ]


def _expert_rules(expert: ExpertSpec) -> list[_Rule]:
    return [
        (
            expert.n_trees >= 0
            and expert.num_leaves >= 2
            and expert.n_blocks >= 2
            and min(expert.min_leaf_rows, expert.patience) >= 1
            and 3 <= expert.max_bins <= 255,
            "[expert] n_trees must not be negative; num_leaves and n_blocks have to be at least 2, "
            "min_leaf_rows and patience at least 1, max_bins 3 to 255",
        ),
        (
            expert.n_stress_trees == 0 or (expert.n_stress_trees > 0 and expert.n_trees > 0),
            "[expert] n_stress_trees must not be negative, and needs n_trees above 0",
        ),
        (0 <= expert.family_dropout < 1, "[expert] family_dropout has to lie in [0, 1)"),
        (
            0 < expert.learning_rate <= 1
            and 0 < expert.feature_fraction <= 1
            and 0 < expert.row_fraction <= 1
            and expert.l2 >= 0,
            "[expert] learning_rate and the fractions have to lie in (0, 1], l2 must not be negative",
        ),
    ]


def _loss_rules(loss: LossSpec) -> list[_Rule]:
    return [
        (
            min(loss.half_t, loss.qlike, loss.crisis_weight) > 0
            and min(loss.distance, loss.stress, loss.nu_penalty) >= 0,
            "[loss] half_t, qlike and crisis_weight have to be positive, the others not negative",
        ),
    ]


def _encoder_rules(network: NetworkSpec) -> list[_Rule]:
    sizes = (network.window_bars, network.patch_bars, network.attention_heads, network.attention_layers)
    positive = min(sizes) >= 1
    return [
        (
            network.encoder in ENCODERS,
            f"[network] encoder has to be one of {', '.join(ENCODERS)}, found '{network.encoder}'",
        ),
        (
            positive,
            "[network] window_bars, patch_bars, attention_heads and attention_layers have to be at least 1",
        ),
        (
            network.encoder != "patch" or (positive and network.window_bars % network.patch_bars == 0),
            "[network] patch_bars has to divide window_bars",
        ),
        (
            network.encoder != "patch" or (positive and network.channels % network.attention_heads == 0),
            "[network] attention_heads has to divide channels",
        ),
    ]


def _wrong_features(network: NetworkSpec) -> list[Problem]:
    known = [*(feature.name for feature in CATALOG), *FAMILIES, "all"]
    problems = [
        Problem(
            "recipe-feature",
            f"[network] features: there is no feature or family '{name}'.{nearest(name, known)}",
            "see data/FEATURES.md",
        )
        for name in network.features
        if name not in known
    ]
    if problems:
        return problems
    if not network.features:
        return [Problem("recipe-feature", "[network] features must not be empty")]
    chosen = [feature.name for name in network.features for feature in select([name])]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        problems.append(Problem("recipe-feature", f"[network] features holds {', '.join(twice)} twice"))
    unread = [name for name in network.har_features if name not in chosen]
    if unread:
        problems.append(
            Problem(
                "recipe-feature", f"[network] har_features {', '.join(unread)} have to be in features too"
            )
        )
    return problems


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
