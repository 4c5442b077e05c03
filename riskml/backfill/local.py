"""Backfill on one machine: an account history into the ``margins`` table, day by day.

The output folder is a lake: ``<out>/margins/date=YYYY-MM-DD.parquet``, beside a
``manifest.jsonl`` with one row per finished day. A day is written to a temporary name and
moved into place, then recorded; so a day is there exactly once, whole, or not at all.
``resume`` skips a day whose file and record agree with the inputs as they are now.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from riskml import __version__
from riskml.arrays import TimeUs
from riskml.backfill.bundles import BundleChoice, choose_bundle, find_bundles
from riskml.backfill.context import CONTEXT_TABLES, first_closes, last_closes, read_context
from riskml.backfill.forecasts import history_markets, raw_history
from riskml.backfill.partition import OWN_ENGINE, DayInputs, bar_closes, day_of, score_day
from riskml.backfill.venue_state import FHS_ENGINES, FHS_YEARS, FhsHistory
from riskml.bundle import Manifest, sha256_file
from riskml.errors import ConfigError, DataError, Problem, RiskmlError, nearest
from riskml.features.inputs import INPUTS, input_tables
from riskml.markets import Market
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.engines import engine_names
from riskml.risk.policy import MarginPolicy
from riskml.scoring.conditions import ChainStress
from riskml.scoring.market_states import breaker_policy
from riskml.scoring.session import load_bundle
from riskml.scoring.stream import WARM_UP, RawBar
from riskml.tables.lake import Lake, as_lake
from riskml.tables.partitions import write_file
from riskml.units import DAY, TimeLike, duration_us, format_us, to_us

Progress = Callable[[int, int, str], None]

RECORDS = "manifest.jsonl"
ACCOUNT_TABLES = ("accounts", "positions", "collateral", "orders")
HELD_TABLES = (*CONTEXT_TABLES, "bars")
"""Tables whose last row counts however old it is."""
DAYS_PER_TASK = 60
"""Days that share one pass of the features: their warm-up is half a year of bars."""


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill did, or with ``dry_run`` would do."""

    out: Path
    days: tuple[str, ...]
    """Days with account snapshots in the range."""
    written: tuple[str, ...]
    """Days written now (with ``dry_run``: that would be)."""
    skipped: tuple[str, ...]
    """Days that an earlier run had finished on the same inputs."""
    rows: int
    """Rows written now."""
    in_sample_rows: int
    """Of these, rows that their bundle had seen."""
    problems: tuple[Problem, ...] = field(default=())
    """Days that failed; nothing of them was written."""

    @property
    def counts(self) -> dict[str, int]:
        """The figures by name."""
        return {
            "days": len(self.days),
            "written": len(self.written),
            "skipped": len(self.skipped),
            "failed": len(self.problems),
            "rows": self.rows,
            "in_sample_rows": self.in_sample_rows,
        }


@dataclass(frozen=True)
class _Day:
    """One day to do."""

    name: str
    start: int
    end: int
    """Part of the day that is asked for, microseconds."""
    inputs: str
    """Identity of everything that the rows depend on."""
    bundle: Path


@dataclass(frozen=True)
class _Task:
    """Neighbouring days that one bundle scores."""

    lake: Path
    out: Path
    bundle: Path
    days: tuple[_Day, ...]
    engines: tuple[str, ...]
    policy: MarginPolicy
    breaker: BreakerPolicy | None


def backfill(
    bundle_or_folds: str | Path,
    lake: Lake | str | Path,
    out: str | Path,
    *,
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    engines: Sequence[str] = (OWN_ENGINE,),
    jobs: int = 1,
    resume: bool = False,
    dry_run: bool = False,
    policy: MarginPolicy | str | Path | None = None,
    breaker: BreakerPolicy | str | Path | None = None,
    progress: Progress | None = None,
) -> BackfillReport:
    """Score the account history of a lake.

    Parameters
    ----------
    bundle_or_folds : a bundle, or a folder of bundles, of which each day takes the newest that
        had not seen it; rows of a day that every bundle had seen carry ``in_sample = true``.
    start, end : part of the history (default: all of it), end exclusive. A file holds the part
        of its day that lies in the range.
    engines : ``riskml`` and yardsticks.
    jobs : processes.
    resume : skip days that are finished on the same inputs, bundle, policies and engines.
    dry_run : say what would be done, write nothing.
    breaker : circuit breaker policy or its TOML file, for the reasons ``entries-paused`` and
        ``market-halted``; None = the defaults, as in :meth:`riskml.scoring.Scorer.load`.
    progress : called with (days done, days in all, a word).

    Raises
    ------
    DataError : the range is empty or has no account snapshot.
    BundleError : a bundle is damaged.
    ConfigError : an unknown engine, ``jobs`` below 1, a policy that is not usable.
    """
    source = as_lake(lake)
    target = Path(out)
    names = _check_options(engines, jobs)
    rules = MarginPolicy.load(policy)
    choices = find_bundles(bundle_or_folds)
    days = _days(source, start, end)
    windows = {day: _window(day, start, end) for day in days}
    states = None if breaker is None else BreakerPolicy.load(breaker)
    hashes = _InputHashes(source, rules, states, names)
    chosen = {day: choose_bundle(choices, to_us(day)) for day in days}
    keys = {day: hashes.key(day, windows[day], chosen[day]) for day in days}
    done = _finished(target, keys) if resume else {}
    todo = [day for day in days if day not in done]
    if dry_run:
        return BackfillReport(target, tuple(days), tuple(todo), tuple(done), 0, 0)
    part = max(1, min(DAYS_PER_TASK, -(-len(todo) // jobs)))
    plans = [_Day(day, *windows[day], keys[day], chosen[day].path) for day in todo]
    tasks = [
        _Task(source.path, target, path, days_of, names, rules, states)
        for path, days_of in _parts(plans, part)
    ]
    written: list[str] = []
    problems: list[Problem] = []
    rows = seen = 0
    for result in _run(tasks, jobs):
        if "problem" in result:
            problems.append(result["problem"])
        else:
            written.append(result["day"])
            rows, seen = rows + result["rows"], seen + result["in_sample_rows"]
            _record(target, result)
        if progress is not None:
            progress(len(written) + len(problems), len(todo), "backfilling days")
    return BackfillReport(
        target, tuple(days), tuple(sorted(written)), tuple(done), rows, seen, tuple(problems)
    )


def _check_options(engines: Sequence[str], jobs: int) -> tuple[str, ...]:
    known = [OWN_ENGINE, *engine_names()]
    for name in engines:
        if name not in known:
            raise ConfigError(
                f"there is no margin engine '{name}'.{nearest(name, known)}",
                fix=f"use one of {', '.join(known)}",
            )
    if not engines:
        raise ConfigError("at least one engine is required", fix=f"use one of {', '.join(known)}")
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; at least 1 is required")
    return tuple(dict.fromkeys(engines))


def _days(lake: Lake, start: TimeLike | None, end: TimeLike | None) -> list[str]:
    """Days with account snapshots that touch the range."""
    first = day_of(to_us(start)) if start is not None else None
    last = to_us(end) if end is not None else None
    if first is not None and last is not None and first >= last:
        raise DataError(
            f"the range from {format_us(first)} to {format_us(last)} is empty",
            table="accounts",
            fix="end is exclusive and has to be later than start",
        )
    days = [
        str(part.date)
        for part in lake.partitions("accounts")
        if (first is None or part.span[0] >= first) and (last is None or part.span[0] < last)
    ]
    if not days:
        raise DataError(
            f"the lake at {lake.path} has no account snapshot in the range",
            table="accounts",
            fix="ingest an account history, or ask for another range",
        )
    return sorted(days)


def _window(day: str, start: TimeLike | None, end: TimeLike | None) -> tuple[int, int]:
    first, last = to_us(day), to_us(day) + DAY
    return (
        first if start is None else max(first, to_us(start)),
        last if end is None else min(last, to_us(end)),
    )


class _InputHashes:
    """Identity of everything that a day's rows depend on."""

    def __init__(
        self, lake: Lake, policy: MarginPolicy, breaker: BreakerPolicy | None, engines: tuple[str, ...]
    ) -> None:
        self._lake, self._breaker = lake, breaker
        self._fixed = [__version__, policy.policy_hash, *engines]
        self._accounts = {
            (table, part.date): part.path for table in ACCOUNT_TABLES for part in lake.partitions(table)
        }
        self._market: dict[str, str] = {}
        self._files: dict[Path, str] = {}
        self._years = FHS_YEARS if set(FHS_ENGINES) & set(engines) else 1

    def key(self, day: str, window: tuple[int, int], choice: BundleChoice) -> str:
        """sha256 over bundle, policies, engines, the day's account files and the market files before it."""
        breaker = breaker_policy(self._breaker, choice.manifest.horizons)
        texts = [*self._fixed, choice.manifest.bundle_id, breaker.policy_hash, str(window)]
        texts.append(self._market_hash(day[:4]))
        for table in ACCOUNT_TABLES:
            path = self._accounts.get((table, day))
            texts.append(sha256_file(path) if path is not None else "")
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()

    def _market_hash(self, year: str) -> str:
        """Market files of the day's year, of the years that lookbacks reach, and of what is held for ever."""
        if year not in self._market:
            first = int(year) - self._years
            hashes = [
                f"{part.relative} {self._file_hash(part.path)}"
                for table in sorted({*CONTEXT_TABLES, *input_tables(INPUTS)})
                for part in self._lake.partitions(table)
                if part.year is not None
                and part.year <= int(year)
                and (part.year >= first or table in HELD_TABLES)
            ]
            self._market[year] = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
        return self._market[year]

    def _file_hash(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = sha256_file(path)
        return self._files[path]


def _finished(out: Path, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Days whose newest record has the wanted inputs and whose file is as recorded."""
    records: dict[str, dict[str, Any]] = {}
    file = out / RECORDS
    if not file.is_file():
        return {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
            records[record["day"]] = record
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} is damaged: {error!r}", row=number, fix="delete that line; its day is done again"
            ) from error
    done = {}
    for day, record in records.items():
        path = _day_file(out, day)
        if (
            keys.get(day) == record.get("inputs")
            and path.is_file()
            and sha256_file(path) == record.get("sha256")
        ):
            done[day] = record
    return dict(sorted(done.items()))


def _parts(days: Sequence[_Day], size: int) -> Iterator[tuple[Path, tuple[_Day, ...]]]:
    for path, group in groupby(days, key=lambda day: day.bundle):
        of_bundle = tuple(group)
        for begin in range(0, len(of_bundle), size):
            yield path, of_bundle[begin : begin + size]


def _run(tasks: Sequence[_Task], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            yield from run_task(task)
        return
    # spawn: a forked child would inherit threads of the table libraries in an unknown state
    with ProcessPoolExecutor(max_workers=min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        for results in pool.map(_run_whole, tasks):
            yield from results


def _run_whole(task: _Task) -> list[dict[str, Any]]:
    return list(run_task(task))


def run_task(task: _Task) -> Iterator[dict[str, Any]]:
    """Score and write the days of a task, one at a time; yields a record per day."""
    lake = Lake(task.lake)
    bundle = load_bundle(task.bundle)
    choice = find_bundles(task.bundle)[0]
    first, last = to_us(task.days[0].name), to_us(task.days[-1].name) + DAY
    traded = [market.symbol for market in lake.markets(bundle.manifest.interval)]
    held = {
        symbol
        for table in ("positions", "orders")
        for symbol in lake.read(table, start=first, end=last, columns=["symbol"])["symbol"].to_pylist()
    }
    wanted = history_markets(bundle, lake, [name for name in traded if name in held])
    markets, listed = _by_listing(lake, wanted, bundle.manifest)
    warm = first - duration_us(WARM_UP)  # the breaker steps on chain stress from there on
    context = read_context(lake, warm, last)
    stress = ChainStress(context)
    history = FhsHistory(lake, markets, bundle.manifest.interval, task.engines)
    bars = raw_history(bundle, lake, markets, first, last)
    window: deque[RawBar] = deque()
    older = last_closes(lake, markets, bundle.manifest.interval, warm + 1)
    closes = {symbol: close for symbol, (_, close) in older.items()}
    for day in task.days:
        midnight = to_us(day.name)
        # Guards start from the same bar whichever task the day is in, so a day comes out the same.
        while window and window[0].ts <= midnight - duration_us(WARM_UP):
            closes |= bar_closes(window.popleft(), markets)
        while not window or window[-1].ts + duration_us(bundle.manifest.interval) < midnight + DAY:
            bar = next(bars, None)
            if bar is None:
                break
            if bar.ts > midnight - duration_us(WARM_UP):
                window.append(bar)
            else:
                closes |= bar_closes(bar, markets)
        inputs = DayInputs(
            bundle,
            choice,
            markets,
            tuple(window),
            context,
            task.policy,
            task.engines,
            history,
            dict(closes),
            task.breaker,
            stress,
            listed,
        )
        yield _write_day(lake, task, day, inputs)


def _by_listing(
    lake: Lake, markets: Sequence[Market], manifest: Manifest
) -> tuple[tuple[Market, ...], TimeUs]:
    """The bundle's markets, always known, then the others by their first bar, and when that was."""
    n_own = len(manifest.markets)
    first = first_closes(lake, markets[n_own:], manifest.interval)
    others = sorted(
        (market for market in markets[n_own:] if market.symbol in first),
        key=lambda market: (first[market.symbol], market.symbol),
    )
    begun = [*[0] * n_own, *(first[market.symbol] for market in others)]
    return (*markets[:n_own], *others), np.array(begun, dtype=np.int64)


def _write_day(lake: Lake, task: _Task, day: _Day, inputs: DayInputs) -> dict[str, Any]:
    try:
        rows = score_day(lake, day.start, day.end, inputs)
    except RiskmlError as error:
        problem = Problem(
            "day-failed",
            f"{day.name}: {error.message}",
            error.fix or "correct the day's rows and run again with --resume",
            table=error.table or "accounts",
            market=error.market,
            row=error.row,
            partition=f"accounts/date={day.name}.parquet",
        )
        return {"day": day.name, "problem": problem}
    path = _day_file(task.out, day.name)
    _write_atomically(path, rows)
    return {
        "day": day.name,
        "inputs": day.inputs,
        "bundle_id": inputs.bundle.manifest.bundle_id,
        "engines": list(task.engines),
        "rows": rows.num_rows,
        "in_sample_rows": sum(rows["in_sample"].to_pylist()),
        "sha256": sha256_file(path),
    }


def _write_atomically(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_file(staging, "margins", rows)
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def _record(out: Path, record: dict[str, Any]) -> None:
    """Replace the day's row in the manifest, atomically."""
    file = out / RECORDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = {json.loads(line)["day"]: line for line in lines}
    rows[record["day"]] = json.dumps(record, sort_keys=True)
    staging = file.with_name(f".{file.name}.tmp")
    staging.write_text("".join(f"{rows[day]}\n" for day in sorted(rows)), encoding="utf-8")
    os.replace(staging, file)


def _day_file(out: Path, day: str) -> Path:
    return out / "margins" / f"date={day}.parquet"
