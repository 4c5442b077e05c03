"""``riskml build``: features and targets of a lake as a dataset folder.

The work is cut into chunks of time, which workers stream with what is carried from one to the
next (:mod:`riskml.tables.build_span`). Values are the same bit for bit however it is cut, so
neither the number of jobs nor the range asked for nor an interruption changes one. No bar at or
after the end of the range is read: a target whose window leaves the range is missing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import riskml
from riskml.errors import ConfigError, DataError
from riskml.features.catalog import fingerprint, missing_tables, select
from riskml.features.evaluate import input_names
from riskml.features.inputs import input_spec, input_tables
from riskml.features.spec import Feature
from riskml.markets import Market, choose, symbols
from riskml.tables.align import grid_bounds, no_bars
from riskml.tables.build_span import STRESS_INPUTS, BuildSpec, SpanTask, build_span, warm_up_bars
from riskml.tables.chunks import Chunk, cut_chunks, cut_spans, workers_for
from riskml.tables.dataset import (
    DATASET,
    Dataset,
    DatasetInfo,
    iter_dataset,
    read_dataset,
    read_info,
    write_info,
)
from riskml.tables.lake import Lake
from riskml.tables.onsets import ONSETS, SCHEMA, sort_onsets
from riskml.tables.partitions import row_groups
from riskml.tables.staging import ChunkRecord, Staging
from riskml.tables.stress import StressSpec
from riskml.units import TimeLike, duration_bars, duration_us, format_us

__all__ = ["DATASET", "Dataset", "DatasetInfo", "build_dataset", "iter_dataset", "read_dataset", "read_info"]

_LAYOUT = 3
"""Raised when the files of a dataset change without an option changing."""
_POLL_S = 0.5
"""How often the journal is looked at for progress."""
_DEFAULT_STRESS = StressSpec()
_Say = Callable[[str], None]


def build_dataset(
    lake: Lake,
    out: str | Path,
    *,
    interval: str = "1h",
    markets: str | Sequence[str] = "all",
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    jobs: int = 1,
    horizons: Sequence[str] = ("1h", "8h", "24h"),
    features: str | Sequence[str] = "all",
    stress: StressSpec = _DEFAULT_STRESS,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
) -> DatasetInfo:
    """Build features and targets of a lake.

    Parameters
    ----------
    lake : contract tables.
    out : folder to write; an earlier dataset there is replaced, anything else is refused.
    interval : bar length.
    markets : names, or ``"all"`` markets with bars at the interval. They define the
        cross-section; the first one leads it.
    start, end : range of bar closes, end exclusive; default everything there is. Features look
        back before ``start``; targets do not look beyond ``end``.
    jobs : cores to use, as processes over time or threads over markets; the result does not
        depend on it.
    horizons : of the targets.
    features : names or families; ``"all"`` takes the catalogue, and features whose tables the lake
        lacks are NaN.
    stress : what counts as stress.
    resume : keep the chunks that an interrupted build of the same thing finished; without it they
        are discarded.
    progress : called with one line per finished chunk.

    Raises
    ------
    DataError : unknown market or feature, no bars, empty range; a feature was asked for whose
        table the lake lacks; ``resume`` and the unfinished build is of something else.
    ConfigError : ``out`` holds something else; a horizon, or the window or cool-down of stress, is not a
        whole number of bars.
    """
    for duration in (*horizons, stress.window, stress.cool_down):
        duration_bars(duration, interval)
    if jobs < 1:
        raise ConfigError(f"jobs is at least 1, not {jobs}")
    target, say = Path(out), progress or _silent
    _check_target(target)
    asked = select(features)
    lacking = _lacking(lake, asked, explicit=features != "all")
    if lacking:
        say(f"features of {', '.join(lacking)} stay empty: the lake has no such table")
    chosen = tuple(choose(markets, lake.markets(interval)))
    if not chosen:
        raise DataError(
            f"the lake has no {interval} bars", table="bars", fix="ingest bars, or ask for another interval"
        )
    first, last = _bounds(lake, chosen, interval, start, end)
    spec = BuildSpec(
        str(lake.path),
        chosen,
        interval,
        tuple(feature.name for feature in asked),
        tuple(horizons),
        stress,
        _stress_inputs(lake),
        last,
    )
    plan = _plan(lake, spec, asked, (first, last))
    target.parent.mkdir(parents=True, exist_ok=True)
    with Staging(target, plan, resume=resume) as staging:
        records = _run(staging, spec, (first, last), jobs, say)
        if not any(record.rows for record in records):
            raise no_bars(chosen, interval, first, last)
        _join_onsets(staging, records)
        info = _info(target, spec, plan, lacking, records)
        write_info(staging.rows, info)
        staging.publish()
    return info


def _info(
    target: Path,
    spec: BuildSpec,
    plan: Mapping[str, Any],
    lacking: tuple[str, ...],
    records: Sequence[ChunkRecord],
) -> DatasetInfo:
    first, last = plan["range"]
    return DatasetInfo(
        path=str(target),
        interval=spec.interval,
        horizons=spec.horizons,
        markets=tuple(symbols(spec.markets)),
        venues=tuple(market.venue for market in spec.markets),
        features=spec.features,
        fingerprint=plan["fingerprint"],
        start=format_us(first),
        end=format_us(last),
        rows=sum(record.rows for record in records),
        data_hashes=plan["data_hashes"],
        riskml_version=riskml.__version__,
        missing_tables=lacking,
        stress=asdict(spec.stress),
        chunk_rows={record.name: record.rows for record in records},
        off_grid_bars=sum(record.off_grid_bars for record in records),
    )


def _silent(line: str) -> None:
    """Progress that nobody asked for."""


def _lacking(lake: Lake, features: Sequence[Feature], *, explicit: bool) -> tuple[str, ...]:
    """Tables that the features read and the lake lacks.

    Raises
    ------
    DataError : the features were asked for by name.
    """
    by_family = missing_tables(features, lake.tables())
    if by_family and explicit:
        family, tables = next(iter(by_family.items()))
        others = ",".join(dict.fromkeys(f.family for f in features if f.family not in by_family))
        raise DataError(
            "; ".join(
                f"family '{name}' needs {' and '.join(lacks)}, which the lake lacks"
                for name, lacks in by_family.items()
            ),
            table=tables[0],
            fix=f"ingest {tables[0]}, or switch '{family}' off: --features "
            + (others or "with the other families or single features"),
        )
    return tuple(sorted({table for tables in by_family.values() for table in tables}))


def _stress_inputs(lake: Lake) -> tuple[str, ...]:
    """Inputs of the kinds of stress whose tables the lake has."""
    there = set(lake.tables())
    return tuple(name for name in STRESS_INPUTS if input_spec(name).table in there)


def _bounds(
    lake: Lake, markets: Sequence[Market], interval: str, start: TimeLike | None, end: TimeLike | None
) -> tuple[int, int]:
    """The range asked for, completed from the bars that there are (us, end exclusive)."""
    if start is None or end is None:
        wanted = {(market.venue, market.symbol) for market in markets}
        groups = [
            group
            for part in lake.partitions("bars")
            if (part.keys["venue"], part.keys["symbol"]) in wanted
            for group in row_groups(part, {interval})
        ]
        start = min(group.first for group in groups) if start is None else start
        end = max(group.last for group in groups) + duration_us(interval) if end is None else end
    return grid_bounds(interval, start, end)


def _plan(
    lake: Lake, spec: BuildSpec, features: Sequence[Feature], bounds: tuple[int, int]
) -> dict[str, Any]:
    """Everything that decides a value of the dataset; what a resumed build has to share."""
    names = {*input_names(features), *spec.stress_inputs, "close", "high", "low"}
    return {
        "layout": _LAYOUT,
        "riskml_version": riskml.__version__,
        "fingerprint": fingerprint(features, spec.interval),
        "markets": [str(market) for market in spec.markets],
        "interval": spec.interval,
        "horizons": list(spec.horizons),
        "features": list(spec.features),
        "stress": asdict(spec.stress),
        "range": list(bounds),
        "data_hashes": lake.data_hashes(input_tables(names)),
    }


def _run(
    staging: Staging, spec: BuildSpec, bounds: tuple[int, int], jobs: int, say: _Say
) -> list[ChunkRecord]:
    """Build the chunks that are not finished; the records of all, in order of time."""
    chunks = cut_chunks(*bounds, spec.interval)
    done = staging.finished()
    open_chunks = [chunk for chunk in chunks if chunk.name not in done]
    if done:
        say(f"kept {len(done)} of {len(chunks)} chunks of the interrupted build")
    if not open_chunks:
        return [done[chunk.name] for chunk in chunks]
    spans = cut_spans(open_chunks, _workers(spec, open_chunks, jobs))
    threads = max(1, jobs // len(spans))
    tasks = [SpanTask(spec, str(staging.folder), tuple(span), threads) for span in spans]
    if jobs == 1 or len(tasks) == 1:
        for task in tasks:
            build_span(task, lambda record: say(_line(record)))
    else:
        _run_parallel(staging, tasks, jobs, say)
    records = staging.finished()
    return [records[chunk.name] for chunk in chunks]


def _workers(spec: BuildSpec, chunks: Sequence[Chunk], jobs: int) -> int:
    bar = duration_us(spec.interval)
    warm_up = warm_up_bars(select(spec.features), spec.stress, spec.interval) * bar
    return workers_for(jobs, sum(chunk.end - chunk.start for chunk in chunks), warm_up)


def _run_parallel(staging: Staging, tasks: Sequence[SpanTask], jobs: int, say: _Say) -> None:
    # Spawned, not forked: numba and Arrow threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    said = set(staging.finished())
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        waiting: set[Future[list[ChunkRecord]]] = {pool.submit(build_span, task) for task in tasks}
        try:
            while waiting:
                ready, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                for name, record in staging.finished().items():
                    if name not in said:
                        said.add(name)
                        say(_line(record))
                for future in ready:
                    future.result()
        except BaseException as error:
            staging.stop_workers()
            if isinstance(error, BrokenProcessPool):
                raise DataError(
                    "a worker ended before its work was done; the system may have run out of memory",
                    fix="build again with --resume, and with fewer --jobs",
                ) from error
            raise


def _line(record: ChunkRecord) -> str:
    return f"built {record.name}: {record.rows} rows"


def _join_onsets(staging: Staging, records: Sequence[ChunkRecord]) -> None:
    """One table of onsets out of those of the chunks."""
    parts = [
        pq.read_table(staging.rows / name, schema=SCHEMA, partitioning=None)
        for record in records
        for name in record.files
        if name.startswith(".onsets-")
    ]
    pq.write_table(sort_onsets(pa.concat_tables(parts)), staging.rows / ONSETS)


def _check_target(target: Path) -> None:
    if target.is_dir() and (not any(target.iterdir()) or (target / DATASET).is_file()):
        return
    if target.exists():
        raise ConfigError(f"{target} exists and is not a dataset", fix="choose another --out folder")
