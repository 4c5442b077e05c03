"""Hyperparameter search: many short fits of one recipe, the best of them as a recipe file.

Trial n draws with a seed of its own, from the trials before it, so that a search which was cut
off and started again ends where an uninterrupted one does. What is minimised comes from the fit
and calibrate parts; nothing behind ``calibrate_end`` is read by any trial.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riskml.errors import ConfigError, DataError, RiskmlError, missing_extra, nearest
from riskml.learning.fit import fit_run
from riskml.learning.recipe import Recipe, load_recipe
from riskml.learning.runs import CHECKPOINTS, write_json, write_text
from riskml.learning.search_space import SearchSpace, load_space
from riskml.learning.splits import fitted_markets, make_splits
from riskml.learning.tracking import check_tracking_uri, close_group, open_group, record_child
from riskml.units import TimeLike

if TYPE_CHECKING:
    from riskml.tables.build import Dataset

BEST_FILE = "best.toml"
TRIALS_CSV = "trials.csv"
TRIALS_JSON = "trials.json"
TRIALS_FOLDER = "trials"
MAX_RETRIES = 2
"""How often a trial whose process died is tried again; one that kills the process each time has to end."""
_IDENTITY = "identity"

ProgressFn = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TrialRow:
    """What one trial came to."""

    number: int
    state: str
    """``complete`` or ``failed``."""
    value: float | None
    """Of the objective; lower is better."""
    parameters: Mapping[str, Any]
    note: str = ""
    """Why it failed, or which trial had the same values."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**vars(self), "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class SearchResult:
    """What :func:`search` found."""

    path: Path
    best_file: Path
    """The best recipe as a TOML file."""
    best: Recipe
    objective: str
    trials: tuple[TrialRow, ...]
    """By number; retries of a killed trial have numbers of their own."""

    @property
    def best_trial(self) -> TrialRow:
        """The complete trial with the lowest value; the first of equal ones."""
        done = [row for row in self.trials if row.value is not None]
        return min(done, key=lambda row: (row.value, row.number))


@dataclass(frozen=True)
class _Search:
    """One call of :func:`search`."""

    data: Any
    space: SearchSpace
    folder: Path
    seams: Mapping[str, TimeLike | None]
    seed: int
    tracking_uri: str
    group: str


def search(
    data: Dataset | str | Path,
    space: SearchSpace | str | Path,
    out: str | Path,
    *,
    n_trials: int,
    storage: str | None = None,
    fit_end: TimeLike | None = None,
    calibrate_end: TimeLike | None = None,
    seed: int = 7,
    tracking_uri: str | None = None,
    progress: ProgressFn | None = None,
) -> SearchResult:
    """Search a recipe's keys until ``n_trials`` trials have ended.

    Parameters
    ----------
    data : dataset, or the folder that ``riskml build`` wrote.
    space : search space, or its TOML file.
    out : folder for the RUN folders of trials, ``best.toml``, ``trials.csv`` and ``trials.json``.
    n_trials : trials in all, those of an interrupted search included.
    storage : Optuna storage; None = SQLite in ``out``.
    fit_end, calibrate_end : seams, exclusive; the recipe's fractions where None.
    seed : of the draws. Every trial is fitted with the recipe's seed.
    tracking_uri : MLflow store; None = SQLite in ``out``. Trials are children of one run.
    progress : called with (trials ended, trials, message).

    Raises
    ------
    ConfigError : a space, storage or store that cannot be used; a storage that holds this search
        with other data, seams or space; a search that is running in ``out`` already.
    DataError : too little data, or no trial that could be fitted.
    """
    if n_trials < 1:
        raise ConfigError(f"at least one trial is required, found {n_trials}", fix="pass --trials 30")
    check_tracking_uri(tracking_uri)
    chosen = space if isinstance(space, SearchSpace) else load_space(space)
    dataset = _dataset(data)
    _check_data(dataset, chosen, fit_end, calibrate_end)
    folder = Path(out)
    _make_folder(folder)
    with _locked(folder), _quiet_optuna():
        seams = {"fit_end": fit_end, "calibrate_end": calibrate_end}
        identity = _identity(dataset, chosen, seams, seed, folder)
        study = _open_study(storage or f"sqlite:///{folder.resolve() / 'search.db'}", chosen.name, identity)
        uri = tracking_uri or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        group = open_group(folder, f"search {chosen.name}", identity["space"]["recipe"], uri)
        job = _Search(dataset, chosen, folder, seams, seed, uri, group)
        _retry_killed(study, job)
        while (done := _n_ended(study)) < n_trials:
            _say(progress, done, n_trials, _best_text(study))
            _run_trial(study, job)
            _write_trials(folder, study, chosen)
        _say(progress, n_trials, n_trials, _best_text(study))
        return _finish(study, job)


def _dataset(data: Dataset | str | Path) -> Any:
    if isinstance(data, (str, Path)):
        from riskml.tables.build import read_dataset

        return read_dataset(Path(data))
    return data


def _check_data(
    data: Any, space: SearchSpace, fit_end: TimeLike | None, calibrate_end: TimeLike | None
) -> None:
    """Refuse before the first trial what every trial would fail with."""
    info = data.info
    make_splits(
        data.ts,
        info.interval,
        info.horizons,
        space.recipe.split,
        fit_end=fit_end,
        calibrate_end=calibrate_end,
    )
    fitted_markets(data.markets)
    parts = space.objective.split("_qlike_")
    horizons = list(info.horizons)
    if len(parts) == 2 and parts[1].removesuffix("_ratio") not in horizons:
        hint = nearest(parts[1].removesuffix("_ratio"), horizons)
        raise ConfigError(
            f"the objective '{space.objective}' names no horizon of the dataset, "
            f"which has {', '.join(horizons)}.{hint}"
        )


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", fix="choose another --out folder")
    (folder / TRIALS_FOLDER).mkdir(parents=True, exist_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone: a second search would take this one's running trial for a dead one."""
    with (folder / ".lock").open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another search is running in {folder}", fix="wait for it, or choose another --out"
            ) from None
        yield


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("optuna", "train") from error
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Optuna announces interfaces of its own that may change; the searches here do not depend on it.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _identity(
    data: Any, space: SearchSpace, seams: Mapping[str, TimeLike | None], seed: int, folder: Path
) -> dict[str, Any]:
    """What a search that goes on has to share with the one that was cut off."""
    hashes = json.dumps(dict(data.info.data_hashes), sort_keys=True)
    identity = {
        "space": space.to_dict(),
        "seams": {name: None if time is None else str(time) for name, time in seams.items()},
        "seed": seed,
        "data": [
            hashlib.sha256(hashes.encode()).hexdigest(),
            len(data.ts),
            str(data.info.fingerprint),
            [market.symbol for market in data.markets],
        ],
        "folder": str(folder.resolve()),
    }
    return dict(json.loads(json.dumps(identity)))


def _open_study(storage: str, name: str, identity: dict[str, Any]) -> Any:
    """The study of this search, new or as it was left.

    Raises
    ------
    ConfigError : the storage cannot be used, or holds another search of this name.
    """
    import optuna

    if "://" not in storage:
        raise ConfigError(
            f"'{storage}' is no address of a storage", fix="use sqlite:///path/search.db, or leave it out"
        )
    try:
        study = optuna.create_study(
            storage=storage, study_name=f"riskml-{name}", direction="minimize", load_if_exists=True
        )
        known = study.user_attrs.get(_IDENTITY)
        if known is None:
            study.set_user_attr(_IDENTITY, identity)
    except Exception as error:  # Optuna and the drivers below it raise unrelated types
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the storage {storage} cannot be used: {reason}", fix="check --storage") from error
    differing = sorted(key for key in identity if known is not None and known.get(key) != identity[key])
    if differing:
        raise ConfigError(
            f"the storage {storage} holds a search '{name}' with another {' and '.join(differing)}",
            fix="give the search another name in its space file, or use another --storage",
        )
    return study


def _retry_killed(study: Any, job: _Search) -> None:
    """Mark trials that never ended as failed, and queue their values again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        retries = int(trial.user_attrs.get("retries", 0))
        study.tell(trial.number, state=TrialState.FAIL)
        shutil.rmtree(_run_folder(job, trial.number), ignore_errors=True)
        if retries < MAX_RETRIES:
            attributes = {"retries": retries + 1, "retry_of": trial.number}
            study.enqueue_trial(trial.params, user_attrs=attributes)


def _n_ended(study: Any) -> int:
    """Trials that count: each killed one is counted by its retry."""
    retried = {trial.user_attrs.get("retry_of") for trial in study.get_trials(deepcopy=False)}
    return sum(
        trial.state.is_finished() and trial.number not in retried
        for trial in study.get_trials(deepcopy=False)
    )


def _run_trial(study: Any, job: _Search) -> None:
    """Draw, fit, tell and record one trial. An interruption leaves it running, for the next call to retry."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    waiting = [item.number for item in trials if item.state == optuna.trial.TrialState.WAITING]
    number = min(waiting, default=len(trials))
    # A seed per trial: the draws of a search that goes on do not begin again.
    study.sampler = optuna.samplers.TPESampler(seed=(1_000_003 * job.seed + number) % 2**32)
    trial = study.ask()
    values = job.space.draw(trial)
    twin = _twin(trials, trial.params)
    if twin is not None:
        trial.set_user_attr("note", f"same values as trial {twin.number}, not fitted again")
        study.tell(trial, twin.value)
        return
    folder = _run_folder(job, trial.number)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        value = _fit_trial(job, folder, values)
    except RiskmlError as error:
        trial.set_user_attr("note", error.message)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        record_child(job.tracking_uri, job.group, folder, values, failed=error.message)
        return
    study.tell(trial, value)
    record_child(job.tracking_uri, job.group, folder, values, {"objective": value})
    # Weights stay, to export the run; the checkpoints of a finished fit serve nobody.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _twin(trials: list[Any], parameters: Mapping[str, Any]) -> Any | None:
    """A finished trial with the same values, if there is one."""
    done = [item for item in trials if item.value is not None and item.state.is_finished()]
    return next((item for item in done if item.params == parameters), None)


def _fit_trial(job: _Search, folder: Path, values: Mapping[str, Any]) -> float:
    recipe = job.space.recipe_of(values, f"{job.space.name}-{folder.name}")
    result = fit_run(
        job.data,
        recipe,
        folder,
        fit_end=job.seams["fit_end"],
        calibrate_end=job.seams["calibrate_end"],
        tracking_uri=job.tracking_uri,
    )
    value = result.metrics.get(job.space.objective)
    if value is None:
        raise DataError(
            f"the fit measured no '{job.space.objective}'.{nearest(job.space.objective, result.metrics)}"
        )
    return float(value)


def _run_folder(job: _Search, number: int) -> Path:
    return job.folder / TRIALS_FOLDER / f"trial-{number:04d}"


def _rows(study: Any) -> tuple[TrialRow, ...]:
    from optuna.trial import TrialState

    states = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}
    return tuple(
        TrialRow(
            trial.number,
            states[trial.state],
            None if trial.value is None else float(trial.value),
            {key: json.loads(v) if isinstance(v, str) else v for key, v in trial.params.items()},
            # What was told without a reason is a trial whose process ended before it could give one.
            str(trial.user_attrs.get("note", "" if trial.value is not None else "its process ended")),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state in states
    )


def _write_trials(folder: Path, study: Any, space: SearchSpace) -> tuple[TrialRow, ...]:
    rows = _rows(study)
    record = {
        "objective": space.objective,
        "space": space.to_dict(),
        "trials": [row.to_dict() for row in rows],
    }
    write_json(folder / TRIALS_JSON, record)
    keys = [item.key for item in space.dimensions]
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["trial", "state", space.objective, *keys, "note"])
    for row in rows:
        value = "" if row.value is None else repr(row.value)
        table.writerow(
            [row.number, row.state, value, *(row.parameters.get(key, "") for key in keys), row.note]
        )
    write_text(folder / TRIALS_CSV, buffer.getvalue())
    return rows


def _finish(study: Any, job: _Search) -> SearchResult:
    rows = _write_trials(job.folder, study, job.space)
    done = [row for row in rows if row.value is not None]
    if not done:
        reasons = sorted({row.note for row in rows})
        raise DataError(
            f"none of {len(rows)} trials could be fitted: {'; '.join(reasons[:3])}",
            fix=f"see {job.folder / TRIALS_CSV}",
        )
    best = min(done, key=lambda row: (row.value, row.number))
    recipe = job.space.recipe_of(best.parameters, f"{job.space.name}-best")
    file = job.folder / BEST_FILE
    head = f"Trial {best.number} of {len(rows)}: {job.space.objective} {best.value:.6g}."
    write_text(file, recipe_toml(recipe, head))
    if load_recipe(file) != recipe:
        raise AssertionError(f"{file} does not read back as the best recipe")
    close_group(job.group, job.tracking_uri, {job.space.objective: float(best.value or 0.0)})
    return SearchResult(job.folder, file, recipe, job.space.objective, rows)


def recipe_toml(recipe: Recipe, comment: str = "") -> str:
    """A recipe as the text of a TOML file, every key stated; ``load_recipe`` reads it back equal."""
    plain = recipe.to_dict()
    lines = [f"# {comment}"] if comment else []
    lines += [f"{key} = {_toml(value)}" for key, value in plain.items() if not isinstance(value, dict)]
    for section, values in plain.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # TOML writes text, numbers, truth values and lists of these as JSON does; repr keeps every digit.
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _best_text(study: Any) -> str:
    values = [item.value for item in study.get_trials(deepcopy=False) if item.value is not None]
    return f"searching, best {min(values):.5g}" if values else "searching"


def _say(progress: ProgressFn | None, done: int, total: int, message: str) -> None:
    if progress is not None:
        progress(done, total, message)
