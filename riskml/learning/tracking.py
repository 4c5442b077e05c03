"""Experiment tracking with MLflow: parameters, metrics in batches, plots, the bundle.

The default store is one SQLite file beside the run folders. Tracking is a record, not a
part of the result: nothing in the RUN folder depends on what the store holds.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from riskml.errors import ConfigError, missing_extra
from riskml.learning.runs import PLOTS, TRACKING_FILE, write_json

EXPERIMENT = "riskml"
_METRICS_PER_CALL = 1000
"""MLflow's limit; one call per metric would take 10 ms each."""


def default_tracking_uri(run: str | Path) -> str:
    """The SQLite store beside a run folder."""
    return f"sqlite:///{Path(run).resolve().parent / 'mlflow.db'}"


def check_tracking_uri(uri: str | None) -> None:
    """Refuse an address that MLflow does not take; without connecting, so it is cheap before a fit.

    Raises
    ------
    ConfigError : a file store.
    """
    if uri is not None and (uri.startswith("file:") or "://" not in uri):
        raise ConfigError(
            f"'{uri}' is a file store, which MLflow no longer takes",
            fix="use sqlite:///path/mlflow.db or the address of a tracking server",
        )


def track_run(
    run: Path,
    name: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    tracking_uri: str | None = None,
) -> str:
    """Record a finished run and remember its id in ``tracking.json``.

    Parameters
    ----------
    run : RUN folder; its plots are logged.
    name : of the run in the store.
    parameters : nested; logged flat with dots.
    metrics : final values.
    history : one mapping per epoch, with the key ``epoch``.
    tracking_uri : any MLflow address; None = :func:`default_tracking_uri`.

    Returns
    -------
    str : the id of the run in the store.

    Raises
    ------
    ConfigError : the store cannot be reached or is not supported.
    """
    uri = tracking_uri or default_tracking_uri(run)
    # MLflow wants a time per metric; the step orders them, and a fixed time keeps reruns comparable.
    points = [
        (key, float(value), int(row["epoch"]))
        for row in history
        for key, value in row.items()
        if key != "epoch"
    ]
    points += [(key, float(value), len(history)) for key, value in metrics.items()]
    with tracking_store(uri) as client:
        from mlflow.entities import Metric, Param

        run_id = str(client.create_run(_experiment(client, uri, run), run_name=name).info.run_id)
        flat = {key: str(value)[:500] for key, value in _flatten(parameters).items()}
        client.log_batch(run_id, params=[Param(key, value) for key, value in flat.items()])
        for begin in range(0, len(points), _METRICS_PER_CALL):
            chunk = points[begin : begin + _METRICS_PER_CALL]
            client.log_batch(run_id, metrics=[Metric(key, value, 0, step) for key, value, step in chunk])
        if (run / PLOTS).is_dir():
            client.log_artifacts(run_id, str(run / PLOTS), "plots")
        client.set_terminated(run_id)
    write_json(run / TRACKING_FILE, {"tracking_uri": uri, "run_id": run_id})
    return run_id


def track_bundle(run: Path, bundle: Path) -> bool:
    """Attach a bundle to the tracked run; False when the run is not tracked.

    Raises
    ------
    ConfigError : the store of the run cannot be reached.
    """
    file = run / TRACKING_FILE
    if not file.is_file():
        return False
    place = json.loads(file.read_text(encoding="utf-8"))
    with tracking_store(place["tracking_uri"]) as client:
        client.log_artifacts(place["run_id"], str(bundle), "bundle")
    return True


def open_group(folder: Path, name: str, parameters: Mapping[str, Any], tracking_uri: str) -> str:
    """Open the run that the trials of a search are children of; the same one when the search goes on.

    Parameters
    ----------
    folder : of the search; remembers the run in ``tracking.json``.
    parameters : nested; logged flat with dots.

    Raises
    ------
    ConfigError : the store cannot be reached.
    """
    file = folder / TRACKING_FILE
    if file.is_file():
        place = json.loads(file.read_text(encoding="utf-8"))
        if place["tracking_uri"] == tracking_uri:
            return str(place["run_id"])
    with tracking_store(tracking_uri) as client:
        from mlflow.entities import Param

        experiment = _experiment(client, tracking_uri, folder / name)
        run_id = str(client.create_run(experiment, run_name=name).info.run_id)
        flat = {key: str(value)[:500] for key, value in _flatten(parameters).items()}
        client.log_batch(run_id, params=[Param(key, value) for key, value in flat.items()])
    write_json(file, {"tracking_uri": tracking_uri, "run_id": run_id})
    return run_id


def record_child(
    tracking_uri: str,
    group: str,
    run: Path,
    searched: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    *,
    failed: str = "",
) -> str:
    """Put a tracked run, or a trial that left none, below the run of its search; one batch either way.

    Parameters
    ----------
    group : what :func:`open_group` returned.
    run : RUN folder of the trial.
    searched : values that were drawn, by key of the recipe; they become tags.
    failed : why the trial came to nothing; it is recorded as a failed run.

    Raises
    ------
    ConfigError : the store cannot be reached.
    """
    file = run / TRACKING_FILE
    with tracking_store(tracking_uri) as client:
        from mlflow.entities import Metric, RunTag

        if file.is_file() and not failed:
            run_id = str(json.loads(file.read_text(encoding="utf-8"))["run_id"])
        else:
            experiment = client.get_run(group).info.experiment_id
            run_id = str(client.create_run(experiment, run_name=run.name).info.run_id)
        tags = {"mlflow.parentRunId": group, **{f"searched.{key}": value for key, value in searched.items()}}
        if failed:
            tags["failed"] = failed
        client.log_batch(
            run_id,
            metrics=[Metric(key, float(value), 0, 0) for key, value in (metrics or {}).items()],
            tags=[RunTag(key, str(value)[:500]) for key, value in tags.items()],
        )
        if failed:
            client.set_terminated(run_id, status="FAILED")
    return run_id


def close_group(group: str, tracking_uri: str, metrics: Mapping[str, float]) -> None:
    """End the run of a search with what it found; a search that goes on ends it again.

    Raises
    ------
    ConfigError : the store cannot be reached.
    """
    with tracking_store(tracking_uri) as client:
        from mlflow.entities import Metric

        client.log_batch(group, metrics=[Metric(key, float(value), 0, 0) for key, value in metrics.items()])
        client.set_terminated(group)


def _experiment(client: Any, uri: str, run: Path) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    # With SQLite, MLflow's default would put artifacts into the current folder.
    local = uri.startswith("sqlite:")
    artifacts = (run.resolve().parent / "mlartifacts").as_uri() if local else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))


@contextmanager
def tracking_store(uri: str) -> Iterator[Any]:
    """A client of the store; whatever fails inside becomes a ConfigError that names the store."""
    check_tracking_uri(uri)
    with warnings.catch_warnings():
        # MLflow and its drivers use interfaces that their own next releases drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise missing_extra("mlflow", "train") from error
        # After the import, which sets levels of its own: making a database is no news to the user.
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            yield MlflowClient(tracking_uri=uri)
        except Exception as error:  # mlflow and the drivers below it raise unrelated types
            raise ConfigError(
                f"the tracking store {uri} cannot be used: {error}", fix="check --tracking-uri"
            ) from error


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
