"""An account history through every margin engine that a backfill has scored.

For each account and hour, the account's equity is marked again at the worst prices of
the *next* bar and held against the requirement that the engine set before it. Two
questions follow: how often is an account worth less than nothing before anybody looks
again, and how long before a recorded liquidation had the engine asked for more margin?
Rows that are in sample for their bundle are counted and left out of every measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riskml.arrays import Bool1D, Float1D, Int1D
from riskml.errors import DataError
from riskml.replay.episodes import Episode, SeenEpisode, liquidation_episodes, seen_before
from riskml.replay.write import write_replay
from riskml.tables.lake import Lake
from riskml.units import HOUR, TimeLike, duration_us, format_us, to_us

LOOKBACK = "24h"
"""A call counts as a warning of a liquidation that follows within this time."""

ProgressFn = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EngineReplay:
    """What one engine did over the history."""

    engine: str
    account_hours: int
    """Rows scored out of sample."""
    calls: int
    """Rows with equity below the engine's maintenance."""
    warnings: int
    """Rows with any action above ``normal``."""
    needless_calls: int
    """Calls that no recorded liquidation of the account follows within the lookback."""
    jumped: int
    """Rows without a call whose equity is below maintenance at the next bar's worst prices."""
    bad_debt: int
    """Rows without a call whose equity is below zero at the next bar's worst prices."""
    bad_debt_usd: float
    """Sum of what is missing in those rows, USD."""
    maintenance_share: float
    """Sum of maintenance over sum of gross exposure, of rows with positions; NaN without any."""
    liquidations: int
    """Recorded liquidation episodes while the account was being scored."""
    foreseen: int
    """Of those, how many had a call within the lookback before."""
    median_lead_h: float
    """Median time from the first such call to the liquidation, hours; NaN without any."""
    warned: int
    """Of the episodes, how many had a call or any action above ``normal`` within the lookback before."""
    median_warning_lead_h: float
    """Median time from the first of these to the liquidation, hours; NaN without any."""


@dataclass(frozen=True)
class ReplayReport:
    """A replay's result and where it was written."""

    start: str
    end: str
    engines: tuple[EngineReplay, ...]
    in_sample_rows: int
    """Rows left out because their bundle had seen their time."""
    unpriced_positions: int
    """Positions without a following bar; they keep their mark."""
    path: Path


def replay_margins(
    margins: str | Path,
    lake: Lake,
    out: str | Path,
    *,
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    interval: str = "1h",
    progress: ProgressFn | None = None,
) -> ReplayReport:
    """Replay the output of a backfill.

    Parameters
    ----------
    margins : folder that ``riskml backfill`` wrote.
    lake : the lake it was made from: positions, bars and recorded liquidations.
    out : folder for ``replay.json``, ``engines.csv`` and ``episodes.csv``.
    start, end : part of the history, end exclusive (default: all of it).
    interval : bar length of the re-marking.

    Raises
    ------
    DataError : there are no margin rows in the range.
    """
    store = Lake(margins)
    days = [part for part in store.partitions("margins") if _overlaps(part.span, start, end)]
    prices = NextBar.load(lake, interval)
    frames, unpriced = [], 0
    for number, part in enumerate(days):
        window = _clip(part.span, start, end)
        rows = store.read("margins", start=window[0], end=window[1]).to_pandas()
        worst, missing = _worst_loss(lake, prices, window)
        unpriced += missing
        frames.append(_marked(rows, worst))
        if progress is not None:
            progress(number + 1, len(days), "replaying days")
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if rows.empty:
        raise DataError(
            f"there are no margin rows in the range at {margins}",
            table="margins",
            fix="run 'riskml backfill' first",
        )
    first, last = int(rows["time"].min()), int(rows["time"].max()) + 1
    lookback = duration_us(LOOKBACK)
    episodes = liquidation_episodes(lake, first, last + lookback, lookback)
    counted = rows[~rows["in_sample"].astype(bool)]
    results, listed = [], []
    for engine, group in counted.groupby("engine", sort=True):
        result, seen = _engine_replay(str(engine), group, episodes, lookback)
        results.append(result)
        listed += seen
    report = ReplayReport(
        format_us(first), format_us(last), tuple(results), len(rows) - len(counted), unpriced, Path(out)
    )
    write_replay(report, listed)
    return report


@dataclass(frozen=True)
class NextBar:
    """Per symbol: how far price moved against a long and a short within the following bar."""

    bars: Mapping[str, tuple[Int1D, Float1D, Float1D]]
    """Symbol to (ts, low ratio, high ratio), each [n_bars]; a ratio is next extreme / close - 1."""

    @classmethod
    def load(cls, lake: Lake, interval: str) -> NextBar:
        """Read the bars of every market's reference venue."""
        step = duration_us(interval)
        found = {}
        for market in lake.markets(interval):
            table = lake.read(
                "bars",
                venues=market.venue,
                symbols=market.symbol,
                interval=interval,
                columns=["ts", "low", "high", "close"],
            )
            ts = table.column("ts").cast("int64").to_numpy()
            low, high, close = (table.column(name).to_numpy() for name in ("low", "high", "close"))
            follows = np.diff(ts) == step
            found[market.symbol] = (
                ts[:-1][follows],
                (low[1:] / close[:-1] - 1.0)[follows],
                (high[1:] / close[:-1] - 1.0)[follows],
            )
        return cls(found)

    def moves(self, symbol: str, ts: Int1D) -> tuple[Float1D, Float1D]:
        """Low and high ratio after each time [n]; NaN where no bar follows."""
        low, high = np.full(len(ts), np.nan), np.full(len(ts), np.nan)
        if symbol not in self.bars or not len(self.bars[symbol][0]):
            return low, high
        known, lows, highs = self.bars[symbol]
        place = np.minimum(np.searchsorted(known, ts), len(known) - 1)
        hit = known[place] == ts
        low[hit], high[hit] = lows[place[hit]], highs[place[hit]]
        return low, high


def _worst_loss(lake: Lake, prices: NextBar, window: tuple[int, int]) -> tuple[pd.DataFrame, int]:
    """Loss at the next bar's worst prices and gross exposure, per account and time.

    Every position meets its own worst price, as if all came at once: the sum is a bound,
    not a forecast. The loss of an isolated position ends at its margin.
    """
    table = lake.read("positions", start=window[0], end=window[1]).to_pandas()
    value = table["size"] * table["mark_price"]
    ts = table["ts"].astype("int64").to_numpy() if len(table) else np.zeros(0, np.int64)
    move = np.zeros(len(table))
    for symbol in table["symbol"].unique():
        rows = (table["symbol"] == symbol).to_numpy()
        low, high = prices.moves(symbol, ts[rows])
        move[rows] = np.where(value[rows] > 0, low, high)
    missing = np.isnan(move)
    loss = np.maximum(-value * np.where(missing, 0.0, move), 0.0)
    margin = table["isolated_margin_usd"].astype(float).fillna(np.inf)
    loss = np.where(table["margin_mode"] == "isolated", np.minimum(loss, margin), loss)
    frame = pd.DataFrame({"time": ts, "account_id": table["account_id"], "loss": loss, "gross": value.abs()})
    return frame.groupby(["time", "account_id"], as_index=False).sum(), int(missing.sum())


def _marked(rows: pd.DataFrame, worst: pd.DataFrame) -> pd.DataFrame:
    """Margin rows with ``loss`` and ``gross`` of their account; zero without positions."""
    rows = rows.assign(time=rows["ts"].astype("int64"))
    merged = rows.merge(worst, on=["time", "account_id"], how="left")
    return merged.fillna({"loss": 0.0, "gross": 0.0})


def _engine_replay(
    engine: str, rows: pd.DataFrame, episodes: list[Episode], lookback: int
) -> tuple[EngineReplay, list[dict[str, Any]]]:
    equity = rows["equity_usd"].to_numpy()
    maintenance = rows["maintenance_margin_usd"].to_numpy()
    worst = equity - rows["loss"].to_numpy()
    gross = rows["gross"].to_numpy()
    called = equity < maintenance
    debt = ~called & (worst < 0.0)
    acted = (rows["action"] != "normal").to_numpy()
    accounts, times = rows["account_id"].to_numpy(), rows["time"].to_numpy()
    seen = seen_before(accounts, times, called, episodes, lookback)
    leads = _lead_hours(seen)
    warnings = _lead_hours(seen_before(accounts, times, called | acted, episodes, lookback))
    has_open = gross > 0.0
    result = EngineReplay(
        engine=engine,
        account_hours=len(rows),
        calls=int(called.sum()),
        warnings=int(acted.sum()),
        needless_calls=_needless(rows, called, episodes, lookback),
        jumped=int((~called & (worst < maintenance)).sum()),
        bad_debt=int(debt.sum()),
        bad_debt_usd=float(np.abs(worst[debt]).sum()),
        maintenance_share=float(maintenance[has_open].sum() / gross[has_open].sum())
        if has_open.any()
        else np.nan,
        liquidations=len(seen),
        foreseen=len(leads),
        median_lead_h=_median(leads),
        warned=len(warnings),
        median_warning_lead_h=_median(warnings),
    )
    return result, [item.to_row(engine) for item in seen]


def _lead_hours(seen: list[SeenEpisode]) -> list[float]:
    return [item.lead_us / HOUR for item in seen if item.lead_us is not None]


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _needless(rows: pd.DataFrame, called: Bool1D, episodes: list[Episode], lookback: int) -> int:
    by_account: dict[str, list[int]] = {}
    for episode in episodes:
        by_account.setdefault(episode.account_id, []).append(episode.ts)
    needless = 0
    for account, group in rows[called].groupby("account_id"):
        times = group["time"].to_numpy()
        events = np.asarray(by_account.get(str(account), []), dtype=np.int64)
        place = np.searchsorted(events, times, side="right")
        following = np.append(events, np.iinfo(np.int64).max)[place]
        needless += int((following - times > lookback).sum())
    return needless


def _overlaps(span: tuple[int, int], start: TimeLike | None, end: TimeLike | None) -> bool:
    first, last = _clip(span, start, end)
    return first < last


def _clip(span: tuple[int, int], start: TimeLike | None, end: TimeLike | None) -> tuple[int, int]:
    first = span[0] if start is None else max(span[0], to_us(start))
    last = span[1] if end is None else min(span[1], to_us(end))
    return first, last
