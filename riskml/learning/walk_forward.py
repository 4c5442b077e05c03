"""Walk-forward evaluation: one bundle per fold, each tested after its data, then pooled.

A recipe is frozen before this runs: every fold fits it on data up to its own ``data_end``,
writes a bundle to ``<folds>/perp-<interval>-<data_end>/`` and scores its own test part.
Pooling joins the scored rows, not the metrics, so that a tail measure sees all years at once.
The folder of bundles is what a backfill takes to score years of history out of sample.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riskml.bundle import MANIFEST, read_manifest
from riskml.errors import DataError
from riskml.learning.baselines import Which
from riskml.learning.evaluate import Evaluated, Progress, evaluate_rows
from riskml.learning.measures import measure
from riskml.learning.portfolio import pool_books
from riskml.learning.protocol import FOLDS, HORIZONS, LONG_MARKETS, Fold, join, select_folds
from riskml.markets import choose, symbols
from riskml.units import TimeLike, format_us, to_us

if TYPE_CHECKING:
    from riskml.learning.recipe import Recipe
    from riskml.tables.lake import Lake

FOLDS_FOLDER = "models/folds"


@dataclass(frozen=True)
class FoldTask:
    """What every fold shares."""

    recipe: Recipe
    lake: Lake
    folder: Path
    interval: str
    markets: Sequence[str] | str | None
    fit_markets: Sequence[str]
    reuse: bool
    tracking_uri: str | None
    progress: Progress | None
    baselines: Which
    portfolios: bool

    def say(self, text: str) -> None:
        """Report a step."""
        if self.progress is not None:
            self.progress(text)


def evaluate_walk_forward(
    recipe: Recipe | str | Path,
    lake: str | Path | Lake,
    *,
    start: TimeLike,
    end: TimeLike,
    markets: Sequence[str] | str | None = None,
    fit_markets: Sequence[str] | None = None,
    folds_dir: str | Path = FOLDS_FOLDER,
    folds: Sequence[Fold] = FOLDS,
    interval: str = "1h",
    seed: int | None = None,
    reuse: bool = False,
    tracking_uri: str | None = None,
    baselines: Which = "light",
    portfolios: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit a recipe fold by fold, test each fold after its data, pool the scored rows.

    Parameters
    ----------
    recipe : recipe, name of a released one, or a TOML file.
    lake : folder, or a lake.
    start, end : dates that the test parts are cut to, start inclusive, end exclusive.
    markets : scored; default what each bundle was made with.
    fit_markets : in the dataset of every fold; default the long markets that the lake has
        and those scored, else all.
    folds_dir : where the bundles are kept.
    folds : seams; the default is the protocol's.
    seed : in place of the recipe's.
    reuse : take a fold's bundle from ``folds_dir`` if it has the same recipe, seed and seams.
    tracking_uri : MLflow store of the fits; default a SQLite file that is thrown away.
    baselines, portfolios : as in :func:`riskml.learning.evaluate.evaluate_bundle`.
    progress : called with a line of text per step.

    Returns
    -------
    dict : the evaluate JSON over all folds; ``folds`` has the same per fold, and
        ``bundle_id`` is a sha256 over the folds' ids.

    Raises
    ------
    DataError : no fold is tested in the range, an unknown market, folds of other markets.
    """
    from riskml.learning.recipe import Recipe as RecipeClass
    from riskml.learning.recipe import load_recipe, with_seed
    from riskml.tables.lake import as_lake

    chosen = with_seed(recipe if isinstance(recipe, RecipeClass) else load_recipe(recipe), seed)
    store = as_lake(lake)
    span = (format_us(to_us(start)), format_us(to_us(end)))
    tested = select_folds(*span, folds)
    fitted = list(fit_markets) if fit_markets is not None else _default_markets(store, interval, markets)
    task = FoldTask(
        chosen, store, Path(folds_dir), interval, markets, fitted, reuse, tracking_uri, progress,
        baselines, portfolios,
    )  # fmt: skip
    results = [_evaluate_fold(fold, task, to_us(start), to_us(end)) for fold in tested]
    task.say(f"pooling {len(results)} folds")
    return pool_folds(results, span)


def _default_markets(lake: Lake, interval: str, scored: Sequence[str] | str | None) -> list[str]:
    available = lake.markets(interval)
    names = symbols(available)
    asked = symbols(choose(scored, available)) if scored is not None else []
    chosen = [name for name in LONG_MARKETS if name in names]
    return chosen + [name for name in asked if name not in chosen] or names


def fold_path(folder: Path, fold: Fold, interval: str) -> Path:
    """Where a fold's bundle is kept: ``<folder>/perp-<interval>-<data_end>``."""
    return folder / f"perp-{interval}-{fold.data_end}"


def _evaluate_fold(fold: Fold, task: FoldTask, start_us: int, end_us: int) -> Evaluated:
    from riskml.scoring.session import load_bundle

    bundle = fold_path(task.folder, fold, task.interval)
    if task.reuse and _is_current(bundle, fold, task.recipe):
        task.say(f"{bundle.name}: taking the bundle that is there")
    else:
        fit_fold(fold, task)
    task.say(f"{bundle.name}: testing to {fold.test_end}")
    return evaluate_rows(
        load_bundle(bundle),
        task.lake,
        start=max(start_us, to_us(fold.data_end)),
        end=min(end_us, to_us(fold.test_end)),
        markets=task.markets,
        baselines=task.baselines,
        portfolios=task.portfolios,
        progress=task.progress,
    )


def fit_fold(fold: Fold, task: FoldTask) -> Path:
    """Build, fit and export one fold; nothing at or after its ``data_end`` is read.

    Returns
    -------
    Path : the bundle. The dataset and the run are thrown away.
    """
    from riskml.learning.export import export_bundle
    from riskml.learning.fit import fit_run
    from riskml.tables.build import build_dataset

    bundle = fold_path(task.folder, fold, task.interval)
    task.folder.mkdir(parents=True, exist_ok=True)

    def fitting(done: int, total: int, message: str) -> None:
        task.say(f"{bundle.name}: {message} ({done}/{total})")

    with tempfile.TemporaryDirectory(prefix="riskml-fold-") as work:
        task.say(f"{bundle.name}: building the dataset")
        dataset, run = Path(work) / "dataset", Path(work) / "run"
        build_dataset(
            task.lake,
            dataset,
            interval=task.interval,
            markets=task.fit_markets,
            end=fold.data_end,
            horizons=HORIZONS,
        )
        fit_run(
            dataset,
            task.recipe,
            run,
            fit_end=fold.fit_end,
            calibrate_end=fold.calibrate_end,
            tracking_uri=task.tracking_uri,
            progress=fitting,
        )
        return Path(export_bundle(run, bundle))


def _is_current(bundle: Path, fold: Fold, recipe: Recipe) -> bool:
    if not (bundle / MANIFEST).is_file():
        return False
    manifest = read_manifest(bundle)
    seams = (to_us(manifest.fit_end), to_us(manifest.data_end))
    same_recipe = json.loads(json.dumps(recipe.to_dict())) == manifest.recipe
    return same_recipe and seams == (to_us(fold.fit_end), to_us(fold.data_end))


def pool_folds(results: Sequence[Evaluated], span: tuple[str, str]) -> dict[str, Any]:
    """The evaluate JSON of all folds together, with each fold's own below ``folds``."""
    markets = {result.scored.markets for result in results}
    if len(markets) > 1:
        raise DataError(
            "the folds were scored on different markets, so their rows cannot be pooled",
            fix="name the markets that every fold has",
        )
    pooled = join([result.scored for result in results])
    ids = [result.bundle_id for result in results]
    last = results[-1]
    notes = [note for result in results for note in result.baselines.notes]
    recipes = {result.recipe_sha256 for result in results}
    whole = Evaluated(
        scored=pooled,
        bundle_id=hashlib.sha256("".join(ids).encode()).hexdigest(),
        data_end=last.data_end,
        start_us=to_us(span[0]),
        end_us=to_us(span[1]),
        in_sample=any(result.in_sample for result in results),
        baselines=replace(last.baselines, notes=tuple(dict.fromkeys(notes))),
        recipe_sha256=recipes.pop() if len(recipes) == 1 else "",
    )
    books = pool_books([result.books for result in results])
    report = whole.to_dict([*measure(pooled), *books])
    report["folds"] = [result.to_dict([*measure(result.scored), *result.books]) for result in results]
    return report
