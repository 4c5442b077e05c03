"""Fitting a run: dataset and recipe in, RUN folder out.

Order: cut the range; start the networks at the log-HAR of the train part; train each; keep its
best epoch on the tail of the fit part, or its last; fit the boosted expert, if the recipe has one;
forecast the fit part by blocks, each by networks and trees of the others; calibrate on fit and
calibrate parts together, at the horizons where a calibration of the fit part alone improves the
calibrate part; record.
No row at or after ``data_end`` is read. The same data, recipe, seed and number of threads
give the same ``metrics.json`` and the same hash of weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import riskml
from riskml.arrays import Float2D, FloatND, TimeUs
from riskml.errors import ConfigError, DataError
from riskml.learning.calibrate import Calibration, choose_calibration
from riskml.learning.columns import covered_columns, missing_columns, recipe_columns
from riskml.learning.crossed import crossed_nets, forecast_crossed, train_crossed
from riskml.learning.expert import WEIGHT, ExpertData, ExpertFit, fit_expert
from riskml.learning.inference import DenseForecast, start_panel
from riskml.learning.networks.ensemble import EnsembleNet
from riskml.learning.networks.market import FeatureRoles
from riskml.learning.plots import write_plots
from riskml.learning.recipe import Recipe, load_recipe, with_seed
from riskml.learning.runs import (
    CHECKPOINTS,
    EXPERT_FILE,
    METRICS_FILE,
    MODEL_FILE,
    PLOTS,
    RUN_FILE,
    make_net,
    member_seed,
    weights_hash,
    write_expert,
    write_json,
    write_weights,
)
from riskml.learning.splits import Splits, fitted_markets, make_splits
from riskml.learning.start import Start, initialise, row_weights
from riskml.learning.summary import (
    fallback_law,
    feature_bounds,
    part_metrics,
    plain_har,
    reference_sigma,
)
from riskml.learning.tracking import check_tracking_uri, track_run
from riskml.learning.trainer import Fitted, ProgressFn, train
from riskml.learning.windows import ChunkDataset, Panel, make_panel
from riskml.units import TimeLike, duration_bars

if TYPE_CHECKING:
    from riskml.tables.build import Dataset

_IDENTITY = "identity.json"
_RANDOM_PARTS = ("encoder.", "joint.")
"""Parts of a network whose starting weights are drawn; all others are estimated or zero."""


@dataclass(frozen=True)
class RunResult:
    """What :func:`fit_run` made."""

    path: Path
    """The RUN folder."""
    metrics: dict[str, float]
    """``metrics.json``."""
    data_end: str
    """ISO time; nothing at or after it was read."""
    weights_sha256: str
    """Hash over the fitted tensors."""


@dataclass(frozen=True)
class _Job:
    """What one fit works on."""

    data: Any
    recipe: Recipe
    splits: Splits
    markets: list[int]
    families: dict[str, str]
    net: EnsembleNet
    crossed: tuple[EnsembleNet, ...]
    """One network per block of the fit part, for the calibration; not part of the result."""
    panel: Panel

    @property
    def n_rows(self) -> int:
        return int(self.panel.features.shape[1])

    @property
    def bars(self) -> TimeUs:
        """Times of the bars of the fit [n_bars]."""
        return np.asarray(self.data.ts[: self.n_rows])

    @property
    def has_tail(self) -> bool:
        """Whether a tail of the fit part is held back to choose the epoch."""
        return self.splits.validation_start < self.splits.fit_end

    def cut(self, values: FloatND) -> FloatND:
        """The rows and markets of the fit, bar first."""
        return np.asarray(values[: self.n_rows, self.markets])

    def rows(self, part: str) -> Any:
        """[n_bars] rows of a part."""
        return self.splits.rows(self.bars, part)


def fit_run(
    data: Dataset | str | Path,
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    fit_end: TimeLike | None = None,
    calibrate_end: TimeLike | None = None,
    seed: int | None = None,
    tracking_uri: str | None = None,
    resume: bool = False,
    progress: ProgressFn | None = None,
) -> RunResult:
    """Fit a recipe to a dataset and write a RUN folder.

    Parameters
    ----------
    data : dataset, or the folder that ``riskml build`` wrote; of its features those that the recipe names.
    recipe : recipe, name of a released one, or a TOML file.
    out : RUN folder. Without ``resume`` an earlier run in it is replaced.
    fit_end, calibrate_end : seams, exclusive; the recipe's fractions where None.
    seed : in place of the recipe's.
    tracking_uri : MLflow store; None = SQLite beside the RUN folder.
    resume : go on from the last checkpoint in ``out``, if there is one.
    progress : called with (done, total, message).

    Returns
    -------
    RunResult

    Raises
    ------
    ConfigError : recipe or seams that cannot be used; ``resume`` with other data or recipe; a tracking
        store that cannot be reached (the run is complete by then).
    DataError : too little data, features of another version, no market to fit, or a loss that is not
        finite. The last good checkpoint stays, ``run.json`` is not written.

    Notes
    -----
    NaN handling: a missing feature counts as its fit mean, a missing target takes no part.
    """
    check_tracking_uri(tracking_uri)
    chosen = with_seed(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), seed)
    dataset = _dataset(data)
    dataset = recipe_columns(dataset, chosen.network)
    folder = Path(out)
    job = _prepare(dataset, chosen, fit_end, calibrate_end)
    start = _start(job)
    _open_folder(folder, _identity(job), resume)
    weight = row_weights(start_panel(job.net, job.panel), job.rows("train"), chosen.loss.crisis_weight)
    fitted = _train(job, weight, folder / CHECKPOINTS, resume, progress)
    within, places = (job.panel, job.bars, job.splits), folder / CHECKPOINTS
    train_crossed(job.crossed, *within, chosen, weight, places, resume=resume, progress=progress)
    expert = _expert(job, progress) if job.net.has_expert else None
    _say(progress, chosen, "calibrating")
    calibration, forecast = _calibrate(job, expert)
    metrics, fallback = _measure(job, start, fitted[0], calibration, forecast)
    joint = _loadings(job, forecast, calibration) if job.net.loading_head is not None else {}
    record = _record(job, calibration, forecast, metrics) | {"fallback": fallback, "loadings": joint}
    record["member_epochs"] = [member.epoch for member in fitted]
    if expert is not None:
        record["expert_sha256"] = write_expert(folder / EXPERT_FILE, expert.expert)
        record["expert_trees"] = list(expert.n_trees)
        record["expert_weight"] = job.net.expert_weight.tolist()
    write_weights(folder / MODEL_FILE, job.net)
    write_plots(
        folder / PLOTS,
        fitted[0].history,
        forecast,
        job.cut(dataset.mae),
        calibration.power,
        dataset.info.horizons,
    )
    histories = {f"history_{index}": member.history for index, member in enumerate(fitted) if index}
    write_json(folder / METRICS_FILE, {**metrics, "history": fitted[0].history, **histories})
    write_json(folder / RUN_FILE, record)
    track_run(folder, folder.name, chosen.to_dict(), metrics, fitted[0].history, tracking_uri)
    return RunResult(folder, metrics, str(record["data_end"]), str(record["weights_sha256"]))


def feature_families(names: Sequence[str]) -> dict[str, str]:
    """Family per feature, from the catalogue; a name it lacks is a family of its own."""
    from riskml.features.catalog import CATALOG

    known = {feature.name: str(feature.family) for feature in CATALOG}
    return {name: known.get(name, name) for name in names}


def _dataset(data: Dataset | str | Path) -> Dataset:
    if isinstance(data, (str, Path)):
        from riskml.tables.build import read_dataset

        return read_dataset(Path(data))
    return data


def _prepare(data: Dataset, recipe: Recipe, fit_end: TimeLike | None, calibrate_end: TimeLike | None) -> _Job:
    info = data.info
    splits = make_splits(
        data.ts,
        info.interval,
        info.horizons,
        recipe.split,
        fit_end=fit_end,
        calibrate_end=calibrate_end,
    )
    markets = fitted_markets(data.markets)
    data = covered_columns(data, splits.rows(data.ts, "train"), markets, recipe.network)
    families = feature_families(data.feature_names)
    roles = FeatureRoles.of(data.feature_names, recipe.network, families)
    nets = make_net(recipe, roles, len(info.horizons)), crossed_nets(recipe, roles, len(info.horizons))
    n_rows = int(np.searchsorted(data.ts, splits.data_end))
    return _Job(data, recipe, splits, markets, families, *nets, make_panel(data, markets, roles.har, n_rows))


def _start(job: _Job) -> Start:
    def stacked(values: FloatND) -> FloatND:
        chosen = job.cut(values)
        return chosen.reshape((-1, *chosen.shape[2:]))

    data = job.data
    rows = np.repeat(job.rows("train"), len(job.markets)) & job.panel.usable.T.ravel()
    first = job.net.first
    observed = stacked(data.features), stacked(data.mae), stacked(data.variance), stacked(data.stress)
    start = initialise(first, *observed, rows)
    # The other members start at the same law; what is theirs is drawn at random, not estimated.
    estimated = {
        name: value for name, value in first.state_dict().items() if not name.startswith(_RANDOM_PARTS)
    }
    for member in list(job.net.members)[1:]:
        member.load_state_dict({**member.state_dict(), **estimated})
    job.net.remember_start(first)
    # A crossed network starts at the law of its own rows; the trees beside it add to the start of all rows.
    blocks = job.splits.blocks(job.bars, len(job.crossed)) if job.crossed else []
    for net, (_, others) in zip(job.crossed, blocks, strict=True):
        initialise(net.first, *observed, rows & np.repeat(others, len(job.markets)), like=first)
        net.remember_start(first)
    return start


def _train(
    job: _Job, weight: Float2D | None, checkpoints: Path, resume: bool, progress: ProgressFn | None
) -> list[Fitted]:
    """Train every member from a seed of its own; the first one's checkpoints lie where a single one's do."""
    recipe = job.recipe
    context, chunk = job.net.receptive_field - 1, recipe.training.chunk_bars
    train_data = ChunkDataset(job.panel, job.rows("train"), context, chunk, weight)
    validation_data = None
    if job.has_tail:
        validation_data = ChunkDataset(job.panel, job.rows("validation"), context, chunk)
    return [
        train(
            member,
            train_data,
            validation_data,
            with_seed(recipe, member_seed(recipe.seed, index)),
            checkpoints / f"member-{index}" if index else checkpoints,
            resume=resume,
            progress=progress,
        )
        for index, member in enumerate(job.net.members)
    ]


def _expert(job: _Job, progress: ProgressFn | None) -> ExpertFit:
    """Fit the boosted expert."""
    data = ExpertData(
        ts=job.bars,
        features=np.ascontiguousarray(job.panel.features.transpose(0, 1).numpy()),
        variance=job.cut(job.data.variance),
        start_log=start_panel(job.net, job.panel),
        usable=job.panel.usable.T,
        stress=job.cut(job.data.stress),
        families=job.net.roles.families,
    )
    data = replace(data, usable=data.usable & np.isfinite(data.start_log).all(axis=2))

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, "fitting trees")

    fitted = fit_expert(
        data,
        job.splits,
        job.recipe.expert,
        n_blocks=job.recipe.expert.n_blocks,
        n_stress_trees=job.recipe.expert.n_stress_trees,
        family_dropout=job.recipe.expert.family_dropout,
        seed=job.recipe.seed,
        n_threads=torch.get_num_threads(),
        progress=report,
    )
    job.net.expert_weight.fill_(WEIGHT)
    return fitted


def _loadings(job: _Job, forecast: DenseForecast, calibration: Calibration) -> dict[str, Any]:
    """Fit the loadings to the returns of the bars after the fit part's rows; what came of it.

    The scale is the one before the calibration, which has looked at later rows.
    """
    from riskml.learning.joint import fit_loadings

    first, interval = job.data.info.horizons[0], job.data.info.interval
    if duration_bars(first, interval) != 1:
        raise DataError(
            f"loadings are fitted to the next bar, but the first horizon is {first} on bars of {interval}",
            fix="set [network] loadings = 'features'",
        )
    sigma = forecast.sigma / np.exp(calibration.log_scale)
    close = job.cut(job.data.close)
    returns = np.full(close.shape, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        returns[1:] = np.diff(np.log(close), axis=0)
    features = job.panel.features.transpose(0, 1).numpy()
    names = job.data.feature_names
    found = fit_loadings(features, names, sigma, returns, job.rows("fit"), job.recipe.seed)
    job.net.loading_head = found.head
    return {
        "kept": found.kept,
        "held_back_log_likelihood": [found.held_back_before, found.held_back_after],
    }


def _say(progress: ProgressFn | None, recipe: Recipe, message: str) -> None:
    if progress is not None:
        progress(recipe.training.epochs, recipe.training.epochs, message)


def _identity(job: _Job) -> dict[str, Any]:
    """What a resumed fit has to share with the one that was cut off."""
    info = job.data.info
    return {
        "recipe": job.recipe.to_dict(),
        "splits": job.splits.to_dict(),
        "features": list(job.data.feature_names),
        "fingerprint": info.fingerprint,
        "data_hashes": dict(info.data_hashes),
        "markets": [market.symbol for market in job.data.markets],
    }


def _open_folder(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """Make the RUN folder ready: an old result goes first, so that a failure leaves no stale one."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", fix="choose another --out folder")
    file = folder / _IDENTITY
    if resume and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = sorted(
            key for key in identity if before.get(key) != json.loads(json.dumps(identity[key]))
        )
        if differing:
            raise ConfigError(
                f"{folder} was fitted with another {' and '.join(differing)}, so it cannot go on from there",
                fix="leave out --resume, or choose another --out folder",
            )
    elif folder.is_dir() and any(folder.iterdir()) and not file.is_file():
        raise ConfigError(f"{folder} holds something else than a run", fix="choose another --out folder")
    elif folder.is_dir():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RUN_FILE, METRICS_FILE, MODEL_FILE, EXPERT_FILE):
        (folder / name).unlink(missing_ok=True)
    write_json(file, identity)


def _calibrate(job: _Job, expert: ExpertFit | None) -> tuple[Calibration, DenseForecast]:
    """Calibrate on fit and calibrate rows, write the scale into the network and the forecast."""
    info = job.data.info
    delta = None if expert is None else expert.delta
    forecast = forecast_crossed(job.net, job.crossed, job.panel, job.bars, job.splits, delta)
    parts = job.rows("fit"), job.rows("calibrate")
    mae = job.cut(job.data.mae)
    if not np.isfinite((mae + forecast.sigma)[parts[0] | parts[1]]).any():
        raise DataError("no row of the fit and calibrate parts has a forecast and a target")
    calibration = choose_calibration(
        forecast.sigma, forecast.nu, mae, info.horizons, *parts, interval=info.interval
    )
    job.net.log_scale.copy_(torch.from_numpy(calibration.log_scale))
    calibrated = DenseForecast(
        np.asarray(calibration.apply(forecast.sigma)), forecast.nu, forecast.variance, forecast.stress
    )
    return calibration, calibrated


def _measure(
    job: _Job, start: Start, fitted: Fitted, calibration: Calibration, forecast: DenseForecast
) -> tuple[dict[str, float], dict[str, Any]]:
    """``metrics.json`` beside the log-HAR without a season, which also leads the fallback law."""
    horizons, usable = job.data.info.horizons, job.panel.usable.T
    features, variance, mae = job.cut(job.data.features), job.cut(job.data.variance), job.cut(job.data.mae)
    terms = features[:, :, list(job.net.roles.har)].astype(np.float64)
    rows = job.rows("train")[:, None] & usable
    hars = plain_har(terms, variance, rows)
    flat = terms.reshape(-1, terms.shape[-1])
    baseline = np.stack([har.predict(flat) for har in hars], axis=1).reshape(variance.shape)
    baseline[~usable] = np.nan
    metrics: dict[str, float] = {
        "epoch": float(fitted.epoch),
    }
    if job.has_tail:
        metrics["validation_loss"] = fitted.history[fitted.epoch + 1]["validation_loss"]
        metrics["start_validation_loss"] = fitted.history[0]["validation_loss"]
    for part in ("train", *(("validation",) if job.has_tail else ()), "calibrate"):
        metrics |= part_metrics(
            part, job.rows(part), forecast, baseline, mae, variance, horizons, calibration.power
        )
    names = [job.net.roles.names[index] for index in job.net.roles.har]
    fallback = fallback_law(features, variance, rows, job.data.feature_names, (names, hars), start)
    return metrics, fallback


def _record(
    job: _Job, calibration: Calibration, forecast: DenseForecast, metrics: dict[str, float]
) -> dict[str, Any]:
    """``run.json`` but for the fallback law."""
    data, info = job.data, job.data.info
    fitted_symbols = [data.markets[index].symbol for index in job.markets]
    rows = job.rows("fit")
    return {
        "riskml_version": riskml.__version__,
        "recipe": job.recipe.to_dict(),
        "seed": job.recipe.seed,
        "interval": info.interval,
        "horizons": list(info.horizons),
        "markets": [market.symbol for market in data.markets],
        "venues": [market.venue for market in data.markets],
        "fitted_markets": fitted_symbols,
        "features": list(data.feature_names),
        "features_left_out": list(missing_columns(data, job.recipe.network)),
        "families": job.families,
        "feature_fingerprint": info.fingerprint,
        "data_hashes": dict(info.data_hashes),
        **job.splits.to_dict(),
        "metrics": metrics,
        "feature_bounds": feature_bounds(
            job.cut(data.features), rows[:, None] & job.panel.usable.T, data.feature_names
        ),
        "reference_sigma": reference_sigma(forecast.sigma, rows, fitted_symbols),
        "calibration_power": calibration.power.tolist(),
        "calibration_log_scale": calibration.log_scale.tolist(),
        "weights_sha256": weights_hash(job.net.state_dict()),
    }
