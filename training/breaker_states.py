"""How often the circuit breaker's market states hold, and whether they come before onsets.

    python training/breaker_states.py --folds runs/real/folds --lake runs/real/lake \\
        --dataset runs/real/dataset

Every fold bundle is run over its calibrate part and its test part as a scorer runs it: guards, slow scale
and breaker bar by bar, inputs that are lost for a week retired by a person (``Scorer.retire_inputs``). Onsets
of the data set are looked up in the states: before = at the start of the onset's bar, after = at its close.
Appends a line to ``training/results/breaker.jsonl``. ``--policy`` takes a breaker policy's TOML.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, BoolND, Int1D
from riskml.backfill.forecasts import history_markets, raw_history, watched_inputs
from riskml.learning.protocol import FOLDS, LONG_MARKETS, RETIRE_AFTER, Fold
from riskml.learning.runs import append_record
from riskml.learning.walk_forward import fold_path
from riskml.risk.breaker import BreakerState, market_signals, step
from riskml.risk.breaker_policy import MARKET_STATES, BreakerPolicy
from riskml.risk.policy import MarginPolicy
from riskml.scoring.requirements import Requirements
from riskml.scoring.session import load_bundle
from riskml.scoring.stream import GuardStream
from riskml.tables.lake import Lake
from riskml.tables.onsets import read_onsets
from riskml.units import HOUR, duration_bars, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "breaker.jsonl"
WEEK_H = 7 * 24


@dataclass(frozen=True)
class Course:
    """States of one fold's markets, bar by bar."""

    ts: Int1D
    level: AnyArray
    """[n, n_markets] 0 normal to 3 halt."""
    degraded: BoolND
    """Same shape: an input is lost, late or out of bounds."""
    calibrate_end: int
    test_start: int


def run(fold: Fold, folds: Path, lake: Lake, policy: BreakerPolicy) -> Course:
    """Guards, requirements and breaker over a fold's calibrate and test part."""
    bundle = load_bundle(fold_path(folds, fold, "1h"))
    manifest, names = bundle.manifest, list(LONG_MARKETS)
    markets = history_markets(bundle, lake, names)
    first, last = to_us(manifest.calibrate_start), to_us(fold.test_end)
    guard = GuardStream(bundle, markets, watched_inputs(bundle))
    requirements = Requirements(bundle, MarginPolicy())
    state: BreakerState | None = None
    silent = np.zeros(guard.watch.seen.shape, dtype=np.int64)
    patience = duration_bars(RETIRE_AFTER, manifest.interval)
    ts, level, degraded = [], [], []
    for bar in raw_history(bundle, lake, markets, first, last):
        guarded = guard.step(bar)
        silent = np.where(guard.watch.lost, silent + 1, 0)
        guard.watch.seen &= silent < patience
        forecast = requirements.take(guarded, markets)
        if requirements.scales is None:
            raise AssertionError("a bar was taken")
        slow = requirements.scales.maintenance
        signals = market_signals(forecast, slow, policy, bar.ts, told_sigma=guarded.told_sigma)
        state = step(state, signals, policy)
        if bar.ts < first:
            continue
        rows = [state.markets.index(name) for name in names]
        ts.append(bar.ts)
        level.append(state.level[rows])
        degraded.append(forecast.degraded[[forecast.markets.index(name) for name in names]])
    end = to_us(manifest.data_end)
    return Course(np.asarray(ts), np.stack(level), np.stack(degraded), end, end + 24 * HOUR)


def summary(course: Course, rows: BoolND, onsets: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Shares of hours, entries into each state per market-week, and states around onsets.

    Parameters
    ----------
    rows : [n] bars that count.
    onsets : (symbol, start of its bar, close of its bar), microseconds.
    """
    level, place = course.level, {int(at): row for row, at in enumerate(course.ts)}
    weeks = rows.sum() * level.shape[1] / WEEK_H
    seen = [
        (int(level[place[start], row]), int(level[place[close], row]))
        for symbol, start, close in onsets
        for row in [LONG_MARKETS.index(symbol)]
        if close in place and start in place and rows[place[start]]
    ]
    found: dict[str, Any] = {
        "market_hours": int(rows.sum() * level.shape[1]),
        "degraded": float(course.degraded[rows].mean()),
        "onsets": len(seen),
    }
    for number, name in enumerate(MARKET_STATES[1:], start=1):
        entered = (level[1:] >= number) & (level[:-1] < number) & rows[1:, None]
        found[name] = {
            "hours": float((level[rows] >= number).mean()),
            "entered_per_market_week": float(entered.sum() / weeks),
            "before_onset": float(np.mean([before >= number for before, _ in seen])) if seen else None,
            "at_close_of_onset": float(np.mean([after >= number for _, after in seen])) if seen else None,
        }
    return found


def drops(dataset: Path) -> list[tuple[str, int, int]]:
    """Onsets of the long markets: falls that the early warning is judged by."""
    return [
        (str(row["symbol"]), to_us(row["start"]), to_us(row["close"]))
        for row in read_onsets(dataset).to_pylist()
        if row["kind"] == "drop" and row["symbol"] in LONG_MARKETS and row["venue"] == "binance"
    ]


def main(arguments: list[str]) -> int:
    """Run every fold, count, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=Path, required=True, help="folder of fold bundles")
    parser.add_argument("--lake", required=True)
    parser.add_argument("--dataset", type=Path, required=True, help="what riskml build wrote, for its onsets")
    parser.add_argument("--policy", type=Path, help="breaker policy; default: the defaults")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    lake, policy, onsets = Lake(options.lake), BreakerPolicy.load(options.policy), drops(options.dataset)
    parts: dict[str, Any] = {}
    for fold in FOLDS:
        print(f"{fold.data_end}: states to {fold.test_end}", file=sys.stderr, flush=True)
        course = run(fold, options.folds, lake, policy)
        parts[fold.data_end[:4]] = {
            "calibrate": summary(course, course.ts < course.calibrate_end, onsets),
            "test": summary(course, course.ts >= course.test_start, onsets),
        }
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python training/breaker_states.py --folds {options.folds} --lake {options.lake} "
        f"--dataset {options.dataset}" + (f" --policy {options.policy}" if options.policy else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "policy_hash": policy.policy_hash,
        "parts": parts,
    }
    print(append_record(RESULTS, line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
