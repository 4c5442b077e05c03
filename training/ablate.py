"""Does each part of the model earn its place: variants of the standard recipe on the test parts of the folds.

    python training/ablate.py sequence --work runs/real
    python training/ablate.py families --work runs/real
    python training/ablate.py loss --work runs/real

``sequence``: the sequence part against the same network without it, on hourly and on finer inputs, on rows
where bars of 5 or 15 minutes exist. ``families``: families of features added one at a time, on rows where
most of the family is known. ``loss``: a family that is missing when the forecast is made, against a model
that never had it. ``seeds``: the standard recipe with other seeds, all members and trees.

Reads the lake and the dataset that ``run_real_data.py`` left in ``--work``; runs are kept there and
taken up again. Variants have fewer members and trees than the release, so that all of them fit into an hour.
Appends a line to ``training/results/ablation.jsonl`` and prints it last.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import Bool2D
from riskml.errors import ConfigError
from riskml.features.catalog import CATALOG
from riskml.learning.ablation import AblationRow, compare, run_forecast
from riskml.learning.baselines import fit_baselines
from riskml.learning.evaluate import score_rows
from riskml.learning.evaluation_data import load_data
from riskml.learning.fit import fit_run
from riskml.learning.protocol import FOLDS, HORIZONS, Fold, Scored, join, test_range
from riskml.learning.recipe import Recipe, TrainingSpec, load_recipe
from riskml.learning.runs import RUN_FILE, Run, append_record, read_run
from riskml.tables.build import Dataset, read_dataset
from riskml.tables.lake import Lake
from riskml.units import to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "ablation.jsonl"
DATA_START = "2020-01-01"
FINE = (
    "log_fine_variance_1h", "fine_ratio_1h", "log_last_quarter_variance", "last_quarter_share_1h",
    "fine_downside_share_1h",
)  # fmt: skip
"""What bars of 5 and 15 minutes say about the hour."""
WITHIN_BAR = (*FINE, "log_fine_har_8h", "log_fine_har_24h")
SEASONS = (
    "season_ratio_1h_14d", "season_ratio_8h_14d", "season_week_1h_4w", "season_week_24h_4w",
    "market_season_ratio_1h", "log_har_3d", "log_har_14d",
)  # fmt: skip
KNOWN_SHARE = 0.5
"""Of a family's features on a row that counts; a peg or a basis alone is always known."""
FAMILY_OF = {feature.name: str(feature.family) for feature in CATALOG}


@dataclass(frozen=True)
class Variant:
    """A recipe, and what is taken away when it forecasts."""

    recipe: Recipe
    lost: tuple[str, ...] = ()
    fitted_as: str = ""
    """Name of the variant whose run this one takes; its own where empty."""


@dataclass(frozen=True)
class Plan:
    """Variants, and which of them are held against which on which rows."""

    variants: dict[str, Variant]
    comparisons: tuple[tuple[str, str, str], ...]
    """(variant, reference, name of the rows)."""
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Rows where half of these features or more are known, by name."""
    folds: tuple[Fold, ...] = FOLDS


def small(recipe: Recipe) -> Recipe:
    """The standard recipe with one member, fewer trees, and no crossed networks."""
    expert = replace(recipe.expert, n_trees=250, n_blocks=2)
    network = replace(recipe.network, loadings="features")  # books are not compared
    training = replace(recipe.training, members=1, cross_blocks=0)
    return replace(recipe, network=network, training=training, expert=expert)


def with_features(recipe: Recipe, names: tuple[str, ...], **network: Any) -> Recipe:
    """The recipe with other features and other settings of the network."""
    return replace(recipe, network=replace(recipe.network, features=names, **network))


def of_families(names: tuple[str, ...], *families: str) -> tuple[str, ...]:
    """Those names that belong to the families."""
    return tuple(name for name in names if FAMILY_OF[name] in families)


def sequence_plan() -> Plan:
    """The sequence part with and without, on hourly and on finer inputs; networks alone, no trees.

    The recipe is the one that the choice was made with, before the release lost its sequence part.
    """
    standard = load_recipe("standard")
    training = TrainingSpec(epochs=8, patience=3, members=2)
    network = replace(standard.network, encoder="tcn", n_bars=64)
    base = Recipe("sequence", standard.seed, network=network, loss=standard.loss, training=training)
    hourly = tuple(name for name in network.features if name not in (*WITHIN_BAR, *SEASONS))
    finer = {"min_coverage": 0.1}
    fast = ("log_parkinson_1h", "return_1h", "leader_return_1h", *FINE)
    variants = {
        "hourly, last bar": with_features(base, hourly, encoder="none"),
        "hourly, sequence": with_features(base, hourly),
        "finer, last bar": with_features(base, (*hourly, *FINE), encoder="none", **finer),
        "finer, sequence": with_features(base, (*hourly, *FINE), sequence_features=fast, **finer),
    }
    comparisons = (
        ("hourly, sequence", "hourly, last bar", "finer bars"),
        ("finer, last bar", "hourly, last bar", "finer bars"),
        ("finer, sequence", "finer, last bar", "finer bars"),
        ("finer, sequence", "hourly, sequence", "finer bars"),
    )
    chosen = {name: Variant(recipe) for name, recipe in variants.items()}
    return Plan(chosen, comparisons, {"finer bars": ("log_fine_variance_1h",)}, FOLDS[2:])


def families_plan() -> Plan:
    """Each family on top of prices, one at a time, then all; a tenth of the train rows knows a feature."""
    base = small(load_recipe("standard"))
    standard = base.network.features
    prices = of_families(standard, "volatility", "calendar")
    market = (*prices, *of_families(standard, "cross_asset"))
    added = {name: of_families(tuple(FAMILY_OF), name) for name in ("funding", "positioning", "cross_chain")}
    features = {
        "volatility": prices,
        "+ cross_asset": market,
        **{f"+ {name}": (*market, *more) for name, more in added.items()},
        "all": (*market, *(name for more in added.values() for name in more)),
    }
    comparisons = (
        ("+ cross_asset", "volatility", "all"),
        *((f"+ {name}", "+ cross_asset", name) for name in added),
        ("all", "+ cross_asset", "all"),
        ("all", "volatility", "all"),
    )
    variants = {name: Variant(with_features(base, own, min_coverage=0.1)) for name, own in features.items()}
    return Plan(variants, comparisons, added)


def loss_plan() -> Plan:
    """Each family that the standard recipe reads, lost at serving time."""
    base = small(load_recipe("standard"))
    standard = base.network.features
    variants = {"standard": Variant(base)}
    comparisons = []
    for family in ("cross_asset", "calendar", "funding", "positioning"):
        gone = of_families(standard, family)
        kept = tuple(name for name in standard if name not in gone)
        variants[f"without {family}"] = Variant(with_features(base, kept))
        variants[f"{family} lost"] = Variant(base, gone, "standard")
        comparisons.append((f"{family} lost", f"without {family}", "all"))
        comparisons.append((f"{family} lost", "standard", "all"))
    return Plan(variants, tuple(comparisons))


def seeds_plan() -> Plan:
    """The standard recipe as it is, with three seeds."""
    standard = load_recipe("standard")
    seeds = (standard.seed, 101, 202)
    variants = {f"seed {seed}": Variant(replace(standard, seed=seed)) for seed in seeds}
    return Plan(variants, tuple((f"seed {seed}", f"seed {seeds[0]}", "all") for seed in seeds[1:]))


PLANS: dict[str, Callable[[], Plan]] = {
    "sequence": sequence_plan,
    "families": families_plan,
    "loss": loss_plan,
    "seeds": seeds_plan,
}


def fitted(folder: Path, data: Dataset, recipe: Recipe, fold: Fold) -> Run:
    """The run in the folder if it is of this recipe, else a new one."""
    if (folder / RUN_FILE).is_file():
        run = read_run(folder)
        seams = [run.record["fit_end"][:10], run.record["calibrate_end"][:10]]
        same_data = run.record["data_hashes"] == dict(data.info.data_hashes)
        if run.recipe == recipe and same_data and seams == [fold.fit_end, fold.calibrate_end]:
            return run
    fit_run(data, recipe, folder, fit_end=fold.fit_end, calibrate_end=fold.calibrate_end)
    return read_run(folder)


def score_fold(plan: Plan, fold: Fold, data: Dataset, lake: Lake, folder: Path) -> dict[str, Scored]:
    """Every variant on the fold's test part."""
    first, _ = test_range(to_us(fold.data_end), to_us(fold.test_end), to_us(fold.data_end), HORIZONS)
    span = to_us(DATA_START), to_us(fold.test_end)
    observed = load_data(lake, list(data.markets), *span, interval="1h", horizons=HORIZONS)
    baselines = fit_baselines(observed, to_us(fold.fit_end))
    found: dict[str, Scored] = {}
    for name, variant in plan.variants.items():
        started = time.perf_counter()
        place = folder / fold.data_end / (variant.fitted_as or name).replace(" ", "-")
        run = fitted(place, data, variant.recipe, fold)
        forecast = run_forecast(run, data, first, fold.test_end, lost=variant.lost)
        power = np.array(run.record["calibration_power"])
        found[name] = score_rows(forecast, observed, baselines, power, first, span[1])
        print(f"{fold.data_end} {name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def known_rows(data: Dataset, scored: Scored, features: tuple[str, ...]) -> Bool2D:
    """Scored rows [n, n_markets] on which half of the features or more are known: their sources exist."""
    columns = [data.feature_names.index(name) for name in features]
    bars = np.searchsorted(data.ts, scored.ts)
    known = np.isfinite(data.features[bars][:, :, columns])
    return np.asarray(known.mean(axis=2) >= KNOWN_SHARE)


def main(arguments: list[str]) -> int:
    """Fit what is missing, compare, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=sorted(PLANS))
    parser.add_argument("--work", default=str(REPOSITORY / "runs" / "real"), help="lake and dataset")
    parser.add_argument("--folds", help="years of test parts, default those of the experiment")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    work, plan = Path(options.work), PLANS[options.experiment]()
    if options.folds:
        years = options.folds.split(",")
        plan = replace(plan, folds=tuple(fold for fold in plan.folds if fold.data_end[:4] in years))
        if len(plan.folds) != len(years):
            raise ConfigError(f"{options.folds} names test parts that {options.experiment} does not have")
    data, lake = read_dataset(work / "dataset"), Lake(work / "lake")
    parts = [
        score_fold(plan, fold, data, lake, work / "ablation" / options.experiment) for fold in plan.folds
    ]
    pooled = {name: join([part[name] for part in parts]) for name in plan.variants}
    found: list[AblationRow] = []
    for variant, reference, rows in plan.comparisons:
        chosen = known_rows(data, pooled[variant], plan.rows[rows]) if rows in plan.rows else None
        pair = (variant, pooled[variant]), (reference, pooled[reference])
        found.extend(compare(*pair, (rows, chosen)))
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python training/ablate.py {options.experiment}"
        + (f" --folds {options.folds}" if options.folds else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "folds": [fold.data_end for fold in plan.folds],
        "rows": [
            {k: round(v, 5) if isinstance(v, float) else v for k, v in row.to_dict().items()} for row in found
        ],
    }
    print(append_record(RESULTS, line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
