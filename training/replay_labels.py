"""Replay labels measured: against recorded and simulated liquidations, by bar length, and at scale.

    python training/replay_labels.py --lake runs/real/lake --work runs/replay-labels

- *recorded*: the Hyperliquid accounts of 2023 against their recorded liquidations, without and with
  the venue's fills for markets that have no bars.
- *simulated*: generated accounts (3 markets, 14 days) against the liquidations that the simulation,
  which looks at every minute, made of them.
- *bars*: random books of two to four markets on real bars, labelled from bars of 1 h and from 15 m; the
  finer ones say how far the three answers of the coarser ones (possible, together, confirmed) are off.
- *scale*: one snapshot of many generated accounts on real bars.

Appends one line to ``training/results/replay_labels.jsonl`` and prints it last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from riskml.replay.labels import HORIZONS, replay_labels
from riskml.replay.labels_check import compare_with_recorded
from riskml.tables.lake import Lake
from riskml.tables.synthetic import SampleRecipe, generate_tables
from riskml.units import DAY, HOUR, to_us

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results" / "replay_labels.jsonl"
MARKETS = ("BTC", "ETH", "SOL", "AVAX")
"""Markets with bars of 15 m on one venue over the whole of the period below."""
ACCOUNTS = ("2023-02-01", "2023-06-01")
BARS_START, BARS_END = "2023-01-01", "2023-12-01"
VENUE = "binance"


def recorded(lake: Lake) -> dict[str, Any]:
    """The 2023 accounts."""
    started = time.perf_counter()
    labels = replay_labels(lake, *ACCOUNTS)
    seconds = time.perf_counter() - started
    with_fills = replay_labels(lake, *ACCOUNTS, fills=True)
    return {
        "seconds": round(seconds, 2),
        **compare_with_recorded(labels, lake),
        "with_fills": compare_with_recorded(with_fills, lake),
    }


def simulated(work: Path, accounts: int) -> dict[str, Any]:
    """Generated accounts; the simulation has no haircuts, so neither have the labels."""
    recipe = SampleRecipe(seed=11, days=30, markets=3, accounts=accounts, interval="1h", account_days=14)
    lake = Lake(fresh(work / "simulated"))
    for name, table in generate_tables(recipe).items():
        lake.write(name, table)
    started = time.perf_counter()
    labels = replay_labels(lake, haircuts="none")
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), **compare_with_recorded(labels, lake)}


def bars(source: Lake, work: Path, rows: int) -> dict[str, Any]:
    """The share of random books that each answer calls liquidated, from coarse and from fine bars."""
    lake = market_lake(source, fresh(work / "bars"), ("15m", "1h"), BARS_START, BARS_END)
    add_books(lake, np.random.default_rng(5), times=rows // 200, accounts=200)
    found: dict[str, Any] = {"books": rows}
    for interval in ("15m", "1h"):
        labels = replay_labels(lake, interval=interval).to_pandas()
        labels = labels[~labels["below_at_start"] & (labels["reason"] == "")]
        found["usable"] = len(labels)
        for horizon in HORIZONS:
            end = labels["ts"] + pd.Timedelta(horizon)
            found.setdefault(horizon, {})[interval] = {
                answer: round(float((labels[column] <= end).mean()), 5)
                for answer, column in (
                    ("possible", "possible_ts"),
                    ("together", "first_breach_ts"),
                    ("confirmed", "confirmed_ts"),
                )
            }
    return found


def scale(source: Lake, work: Path, accounts: int) -> dict[str, Any]:
    """One snapshot of many accounts, 24 h ahead, on bars of 1 h and of 15 m."""
    lake = market_lake(source, fresh(work / "scale"), ("15m", "1h"), "2023-03-01", "2023-04-01")
    add_books(lake, np.random.default_rng(6), times=1, accounts=accounts, start="2023-03-10T12:00")
    found: dict[str, Any] = {"accounts": accounts}
    for interval in ("1h", "15m"):
        started = time.perf_counter()
        labels = replay_labels(lake, interval=interval)
        found[interval] = {
            "seconds": round(time.perf_counter() - started, 2),
            "liquidated_24h": float(np.nanmean(labels.column("liquidated_24h").to_numpy())),
        }
    return found


def fresh(folder: Path) -> Path:
    """An empty place: the measures are made from nothing each time."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def market_lake(source: Lake, folder: Path, intervals: tuple[str, ...], start: str, end: str) -> Lake:
    """Bars and funding of a few markets, copied."""
    lake = Lake(folder)
    window: dict[str, Any] = {"venues": VENUE, "symbols": MARKETS, "start": start, "end": end}
    for interval in intervals:
        lake.write("bars", source.read("bars", interval=interval, **window))
    lake.write("funding", source.read("funding", **window))
    return lake


def add_books(
    lake: Lake, rng: np.random.Generator, *, times: int, accounts: int, start: str = BARS_START
) -> None:
    """Random long and short books of two to four markets, at 2 to 40 times leverage, 0.5 % maintenance."""
    first = -(-to_us(start) // HOUR) * HOUR
    span = max((to_us(BARS_END) - first - 3 * DAY) // HOUR, 1)
    moments = first + HOUR * np.sort(
        rng.choice(span, times, replace=False) if times > 1 else np.zeros(1, int)
    )
    price = last_closes(lake, moments)
    for at, ts in enumerate(moments.tolist()):
        gross = 10_000.0 * np.exp(rng.standard_normal(accounts))
        weight = rng.standard_normal((accounts, len(MARKETS)))
        weight[rng.random(weight.shape) < 0.3] = 0.0
        weight[(weight != 0.0).sum(axis=1) < 2] = (1.0, -1.0, 0.0, 0.0)
        size = weight / np.abs(weight).sum(axis=1)[:, None] * gross[:, None] / price[at]
        names = np.asarray([f"g{number:06d}" for number in range(accounts)])
        stamp = pa.array(np.full(accounts, ts)).cast(pa.timestamp("us", tz="UTC"))
        leverage = np.exp(rng.uniform(np.log(2.0), np.log(40.0), accounts))
        states = {"ts": stamp, "known_at": stamp, "account_id": names, "margin_mode": ["cross"] * accounts}
        need = {"maintenance_margin_usd": 0.005 * gross}
        lake.write("accounts", pa.table({**states, "cash_usd": gross / leverage, **need}))
        row, leg = np.nonzero(size)
        held = {
            "ts": stamp.take(pa.array(row)),
            "known_at": stamp.take(pa.array(row)),
            "account_id": names[row],
            "venue": [VENUE] * len(row),
            "symbol": np.asarray(MARKETS)[leg],
            "size": size[row, leg],
            "entry_price": price[at][leg],
            "mark_price": price[at][leg],
            "margin_mode": ["cross"] * len(row),
        }
        lake.write("positions", pa.table(held))


def last_closes(lake: Lake, moments: np.ndarray) -> np.ndarray:
    """Last hourly close of each market at each time [n_times, n_markets]."""
    columns = []
    for symbol in MARKETS:
        rows = lake.read("bars", symbols=symbol, interval="1h", columns=["ts", "close"])
        place = np.searchsorted(rows.column("ts").cast(pa.int64()).to_numpy(), moments, side="right") - 1
        columns.append(rows.column("close").to_numpy()[place])
    return np.stack(columns, axis=1)


def measured(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A part's result, with its seconds and the process's peak memory so far."""
    started = time.perf_counter()
    result = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**result, "all_seconds": round(time.perf_counter() - started, 1), "peak_mb": peak}


def main(arguments: list[str]) -> int:
    """Run the four parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lake", default="runs/real/lake", help="lake of the real data")
    parser.add_argument("--work", default="runs/replay-labels", help="folder for lakes made on the way")
    parser.add_argument("--accounts", type=int, default=100_000, help="size of the large snapshot")
    parser.add_argument("--out", default=str(RESULTS))
    options = parser.parse_args(arguments)
    lake, work = Lake(options.lake), Path(options.work)
    line = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "command": " ".join(["python training/replay_labels.py", *arguments]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "recorded": measured(recorded, lake),
        "simulated": measured(simulated, work, 200),
        "bars": measured(bars, lake, work, 20_000),
        "scale": measured(scale, lake, work, options.accounts),
    }
    text = json.dumps(line, allow_nan=False)
    with Path(options.out).open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
