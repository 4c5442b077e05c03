"""Liquidation probabilities of accounts, measured: recorded liquidations, and replayed accounts.

    python training/evaluate_accounts.py --folds runs/real/folds --lake runs/real/lake --out accounts.json

- *recorded*: the Hyperliquid accounts of 2023 (62 liquidations) at 1, 6 and 24 h, against leverage alone and
  distance in percent alone: log-loss, AUC, intervals over accounts, calibration table; accounts above their
  recorded maintenance and all of them, marked from klines (covered) or from the venue's own trades
  (uncovered). Beside it: the record's own marks, the engine's law of markets without bars, and the same
  probabilities against replay labels, which hold the account still.
- *replayed*: seeded accounts along the test part of every fold, at 1, 8 and 24 h: calibration.

Writes everything to ``--out``, appends a line to ``training/results/accounts.jsonl`` and prints it last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riskml.arrays import Bool1D, Float1D, Float2D, FloatND, TimeUs
from riskml.backfill.forecasts import forecast_history
from riskml.learning.account_evaluation import (
    account_cases,
    calibration_table,
    compare,
    liquidation_times,
)
from riskml.learning.account_scoring import ScoredAccounts, score_accounts
from riskml.learning.protocol import FOLDS, HORIZONS, LONG_MARKETS, RETIRE_AFTER, Fold
from riskml.learning.replayed_accounts import (
    DrawnAccounts,
    calibration_row,
    draw_accounts,
    groups_of,
    opening_times,
    score_drawn,
)
from riskml.learning.runs import append_record, write_text
from riskml.learning.walk_forward import fold_path
from riskml.replay.labels import replay_labels
from riskml.replay.labels_books import States
from riskml.replay.labels_kernel import CONFIRMED, POSSIBLE
from riskml.replay.labels_legs import LegReader
from riskml.replay.labels_path import NEVER, PathBook
from riskml.replay.labels_rows import label_rows
from riskml.risk.policy import MarginPolicy
from riskml.scoring.session import load_bundle
from riskml.tables.lake import Lake
from riskml.units import duration_us, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "accounts.jsonl"
RECORDED = ("2023-02-01", "2023-06-01")
RECORDED_HORIZONS = ("1h", "6h", "24h")
VENUE = "binance"
SEED = 20230227


def recorded(folds: Path, lake: Lake) -> dict[str, Any]:
    """The accounts of 2023 under the peer law, with what re-marking and that law change."""
    scored = score_accounts(folds, lake, *RECORDED, RECORDED_HORIZONS)
    events = lake.read("liquidations", venues="hyperliquid", start=RECORDED[0], end=RECORDED[1])
    times = liquidation_times(
        events.column("account_id").to_pylist(), events.column("ts").cast("int64").to_numpy()
    )
    end = int(scored.ts.max()) + 1
    found: dict[str, Any] = {
        "rows": len(scored),
        "accounts": len(np.unique(scored.account_id.astype(str))),
        "liquidations": sum(len(moments) for moments in times.values()),
        "marked_from": dict(zip(("klines", "open_interest", "trades"), _counts(scored), strict=True)),
        "leverage_p50_p90_p99": _quantiles(scored.leverage[scored.equity_usd > 0.0]),
        "groups": {},
        "tables": {},
    }
    for horizon in RECORDED_HORIZONS:
        for name, chosen in _groups(scored, scored.covered).items():
            cases = account_cases(scored.select(chosen), times, horizon, end_us=end)
            found["groups"][f"{name} {horizon}"] = [asdict(row) for row in compare(cases)]
            if name.startswith("above"):
                found["tables"][f"{name} {horizon}"] = calibration_table(
                    cases.outcome, cases.probability, cases.account
                )
    engine = score_accounts(folds, lake, *RECORDED, RECORDED_HORIZONS, unknown="policy", guarded=True)
    stale = score_accounts(folds, lake, *RECORDED, RECORDED_HORIZONS, remark=False)
    found["engine"] = _short(engine, scored.covered, times, end)
    found["stale_marks"] = _short(stale, scored.covered, times, end)
    found["held_still"] = held_still(scored, lake)
    return found


def _groups(scored: ScoredAccounts, covered: Bool1D) -> dict[str, Bool1D]:
    above, every = scored.distance > 0.0, np.ones(len(scored), dtype=np.bool_)
    return {
        f"{state} {name}": rows & group
        for state, rows in (("above", above), ("every", every))
        for name, group in (("covered", covered), ("uncovered", ~covered), ("all", every))
    }


def _short(scored: ScoredAccounts, covered: Bool1D, times: dict[str, TimeUs], end: int) -> dict[str, Any]:
    """AUC of probability, leverage and distance and log-loss of the raw probability, by group."""
    found = {}
    for name, chosen in _groups(scored, covered).items():
        for horizon in RECORDED_HORIZONS:
            rows = compare(account_cases(scored.select(chosen), times, horizon, end_us=end), draws=1)
            areas = [row for row in rows if row.metric == "auc"]
            found[f"{name} {horizon}"] = {
                "auc": [areas[0].value, *(row.against for row in areas)],
                "log_loss": rows[0].value,
            }
    return found


def held_still(scored: ScoredAccounts, lake: Lake) -> dict[str, Any]:
    """The probabilities of covered accounts above maintenance against replay labels.

    A label says what would have become of the account had its owner done nothing, so what is left of the
    difference to the recorded outcome is what owners did, and what the record has wrong.
    """
    labels = replay_labels(lake, *RECORDED, horizons=RECORDED_HORIZONS)
    names = zip(
        labels.column("ts").cast("int64").to_pylist(), labels.column("account_id").to_pylist(), strict=True
    )
    row_of = {key: row for row, key in enumerate(names)}
    keys = zip(scored.ts.tolist(), scored.account_id.astype(str).tolist(), strict=True)
    place = np.asarray([row_of.get(key, -1) for key in keys])
    usable = (place >= 0) & scored.covered & (scored.distance > 0.0)
    usable[usable] &= ~labels.column("below_at_start").to_numpy()[place[usable]]
    found = {}
    for number, horizon in enumerate(RECORDED_HORIZONS):
        outcome = labels.column(f"liquidated_{horizon}").to_numpy()[place[usable]]
        known = np.isfinite(outcome)
        probability = scored.probability[usable, number]
        found[horizon] = asdict(
            calibration_row(horizon, "covered, above", outcome[known], probability[known])
        )
    return found


def replayed(folds: Path, lake: Lake, times: int, per_time: int) -> dict[str, Any]:
    """Calibration over the test part of every fold, pooled and apart.

    What the graph says is measured, as everywhere in the protocol; beside it, what the live scorer says
    after its guards, which hold scales up while a source is stale.
    """
    rows: list[dict[str, Any]] = []
    parts = []
    for number, fold in enumerate(FOLDS):
        part = replay_fold(folds, fold, lake, times, per_time, SEED + number)
        print(f"{fold.data_end}: {len(part.drawn):,} accounts", file=sys.stderr, flush=True)
        rows += _calibration(part, fold.data_end[:4], groups=False)
        rows += _calibration(part, f"{fold.data_end[:4]}, guarded", guarded=True, groups=False)
        parts.append(part)
    whole = join_replays(parts)
    pooled = _calibration(whole, "pooled", groups=True)
    pooled += _calibration(whole, "pooled, guarded", guarded=True, groups=False)
    for answer, name in ((1, "possible"), (2, "confirmed")):
        pooled += _calibration(whole, f"pooled, {name}", answer=answer, groups=False)
    return {
        "accounts": len(whole.drawn),
        "opening_times": [len(np.unique(part.drawn.ts)) for part in parts],
        "seeds": [SEED + number for number in range(len(FOLDS))],
        "leverage_p50_p90_p99": _quantiles(whole.drawn.leverage),
        "degraded_share": [round(part.degraded, 4) for part in parts],
        "rows": pooled + rows,
    }


@dataclass(frozen=True)
class Replay:
    """Accounts of a fold with their probabilities and labels."""

    drawn: DrawnAccounts
    said: Float2D
    """[n_rows, n_horizons] by the graph."""
    guarded: Float2D
    """Same shape, after the guards."""
    labels: FloatND
    """[n_rows, n_horizons, 3]: together (the label), possible, confirmed; NaN = not known."""
    degraded: float
    """Share of market-bars that the guards hold up."""


def join_replays(parts: list[Replay]) -> Replay:
    """The accounts of several folds as those of one."""
    return Replay(
        _join([part.drawn for part in parts]),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("said", "guarded", "labels")),
        degraded=float(np.mean([part.degraded for part in parts])),
    )


def replay_fold(folds: Path, fold: Fold, lake: Lake, times: int, per_time: int, seed: int) -> Replay:
    """Draw, score and label the accounts of a fold's test part, a purge away from both its ends."""
    bundle = load_bundle(fold_path(folds, fold, "1h"))
    purge = max(duration_us(name) for name in bundle.manifest.horizons)
    first, last = to_us(fold.data_end) + purge, to_us(fold.test_end) - purge
    markets = list(LONG_MARKETS)
    history, guarded = (
        forecast_history(
            bundle,
            lake,
            fold.data_end,
            fold.test_end,
            markets=markets,
            guarded=flag,
            retire_after=RETIRE_AFTER,
        )
        for flag in (False, True)
    )
    bars = opening_times(history, first, last, times, seed=seed)
    ts = history.ts[bars]
    close = np.where(history.available[bars], closes_at(lake, ts), np.nan)
    drawn = draw_accounts(ts, close, LONG_MARKETS, VENUE, per_time=per_time, seed=seed)
    said, held = (score_drawn(drawn, found, bundle.manifest) for found in (history, guarded))
    return Replay(drawn, said, held, labels_of(drawn, lake), float((history.degraded > 0).mean()))


def closes_at(lake: Lake, ts: TimeUs) -> Float2D:
    """Close of the bar that ends at each time [n_times, n_markets]; NaN where there is none."""
    columns = []
    for symbol in LONG_MARKETS:
        rows = lake.read(
            "bars", venues=VENUE, symbols=symbol, interval="1h", start=int(ts[0]), end=int(ts[-1]) + 1
        )
        moments = rows.column("ts").cast("int64").to_numpy()
        place = np.minimum(np.searchsorted(moments, ts), len(moments) - 1)
        columns.append(np.where(moments[place] == ts, rows.column("close").to_numpy()[place], np.nan))
    return np.stack(columns, axis=1)


def labels_of(drawn: DrawnAccounts, lake: Lake) -> FloatND:
    """Replay labels on 1 h bars [n_rows, n_horizons, 3]: together (the label), possible, confirmed."""
    reader = LegReader("venue", "none", MarginPolicy())
    ids = np.asarray([str(row) for row in range(len(drawn))], dtype=object)
    rows = reader.read([States(drawn.ts, ids, drawn.book())])
    spans = np.asarray([duration_us(name) for name in HORIZONS], dtype=np.int64)
    labels = label_rows(rows, PathBook(lake), ["1h"], spans, remark=True)
    end = drawn.ts[:, None] + spans
    known = np.isfinite(labels.liquidated)
    answers = [labels.liquidated]
    for kind in (POSSIBLE, CONFIRMED):
        breach = labels.breach_ts[:, kind][:, None]
        hit = (breach != NEVER) & (breach <= end)
        answers.append(np.where(known, hit.astype(np.float64), np.nan))
    found = np.stack(answers, axis=2)
    found[labels.below_at_start] = np.nan
    return found


def _calibration(
    replay: Replay, part: str, *, groups: bool, guarded: bool = False, answer: int = 0
) -> list[dict[str, Any]]:
    drawn, probability = replay.drawn, replay.guarded if guarded else replay.said
    chosen = {"all": np.ones(len(drawn), dtype=np.bool_)} | (groups_of(drawn) if groups else {})
    rows = []
    for number, horizon in enumerate(HORIZONS):
        outcome = replay.labels[:, number, answer]
        for name, mine in chosen.items():
            use = np.isfinite(outcome) & mine
            row = calibration_row(horizon, name, outcome[use], probability[use, number])
            rows.append({"part": part, **asdict(row)})
    return rows


def _join(parts: list[DrawnAccounts]) -> DrawnAccounts:
    begin = np.cumsum([0, *(len(part) for part in parts[:-1])])
    names = [name for name in DrawnAccounts.__dataclass_fields__ if name not in ("leg_row", "venue")]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    rows = np.concatenate([part.leg_row + first for part, first in zip(parts, begin, strict=True)])
    return replace(parts[0], leg_row=rows, **joined)


def _counts(scored: ScoredAccounts) -> list[int]:
    return [int(count) for count in np.bincount(scored.mark_source, minlength=3)]


def _quantiles(values: Float1D) -> list[float]:
    return [round(float(value), 2) for value in np.quantile(values, [0.5, 0.9, 0.99])]


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """What the line keeps: every comparison and every calibration row, as short lists."""
    one, two = report["recorded"], report["replayed"]
    keys = ("rows", "accounts", "liquidations", "marked_from", "leverage_p50_p90_p99")
    kept: dict[str, Any] = {"recorded": {key: one[key] for key in keys}}
    kept["recorded"]["comparisons"] = {
        f"{row['metric']} {row['model']} {row['yardstick']} {name}": _rounded(
            row["value"], row["against"], row["low"], row["high"], row["n"], row["events"],
            row["accounts_with_event"],
        )
        for name, rows in one["groups"].items()
        for row in rows
        if row["yardstick"] != "base_rate" or row["model"] == "riskml"
    }  # fmt: skip
    for key in ("engine", "stale_marks"):
        kept["recorded"][key] = {
            name: _rounded(*row["auc"], row["log_loss"]) for name, row in one[key].items()
        }
    kept["recorded"]["held_still"] = {
        name: _rounded(*(row[key] for key in _ROW)) for name, row in one["held_still"].items()
    }
    kept["replayed"] = {
        key: two[key]
        for key in ("accounts", "opening_times", "seeds", "leverage_p50_p90_p99", "degraded_share")
    }
    kept["replayed"]["rows"] = {
        f"{row['part']} {row['group']} {row['horizon']}": _rounded(*(row[key] for key in _ROW))
        for row in two["rows"]
    }
    return kept


_ROW = ("ece", "slope", "auc", "log_loss", "base_log_loss", "probability", "frequency", "n", "events")


def _rounded(*values: float) -> list[float | None]:
    return [None if not np.isfinite(value) else round(value, 5) for value in values]


def main(arguments: list[str]) -> int:
    """Measure, write, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", required=True, help="folder of fold bundles")
    parser.add_argument("--lake", required=True)
    parser.add_argument("--out", required=True, help="JSON with every figure")
    parser.add_argument("--times", type=int, default=1000, help="opening times a fold (default: %(default)s)")
    parser.add_argument("--per-time", type=int, default=40, help="accounts at each (default: %(default)s)")
    parser.add_argument("--results", default=str(RESULTS))
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    folds, lake = Path(options.folds), Lake(options.lake)
    report = {
        "recorded": recorded(folds, lake),
        "replayed": replayed(folds, lake, options.times, options.per_time),
    }
    write_text(Path(options.out), json.dumps(report) + "\n")
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(
            [
                "python training/evaluate_accounts.py --folds runs/real/folds --lake runs/real/lake",
                f"--out accounts.json --times {options.times} --per-time {options.per_time}",
            ]
        ),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        **headline(report),
        "columns": {
            "comparisons": "value, yardstick, low and high of the difference, rows, events, accounts hit",
            "engine, stale_marks": "AUC of probability, leverage, distance; log-loss of the probability",
            "rows": ", ".join(_ROW),
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(append_record(Path(options.results), line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
