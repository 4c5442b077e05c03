"""When stress began, and how long before that an alarm was raised.

An onset is a stressed bar with no other within the cool-down before it, so that a crash of
many hours counts once. The lead of an alarm is the time from the alarm to the **start** of
the onset's bar: what happens inside the bar is no warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import Bool2D, Float1D, Float2D, Int1D, TimeUs
from riskml.errors import DataError, nearest
from riskml.markets import Market
from riskml.tables.stress import KINDS, Stress, StressSpec
from riskml.units import HOUR, duration_bars, duration_us

ONSETS = "onsets.parquet"
_TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("venue", pa.string()),
        ("symbol", pa.string()),
        ("kind", pa.string()),
        ("start", _TIME),
        ("close", _TIME),
        ("size", pa.float64()),
        ("limit", pa.float64()),
        ("sigma", pa.float64()),
    ]
)
"""Columns of the table of onsets. ``size`` was beyond ``limit``: log-return of a drop (``sigma`` is
the slow one of its window), liquidated USD of the window, USD of depth."""


@dataclass(frozen=True)
class MarketOnsets:
    """Onsets of one market, in order."""

    start: TimeUs
    """[n_onsets] int64 us: when the onset's bar opened."""
    close: TimeUs
    """[n_onsets] int64 us: when it closed."""


def onset_times(
    stress: Stress,
    ts: TimeUs,
    markets: Sequence[Market],
    interval: str,
    *,
    spec: StressSpec,
    first_row: int = 0,
    last_row: int | None = None,
) -> pa.Table:
    """Every onset of the given rows, of every kind.

    Parameters
    ----------
    stress : of the bars ``ts`` [n_bars, n_markets].
    spec : whose cool-down counts.
    first_row, last_row : onsets of these rows only, the last excluded; the rows before
        ``first_row`` serve the cool-down.

    Returns
    -------
    pa.Table in :data:`SCHEMA`, by market, kind and time.
    """
    bar = duration_us(interval)
    cool = max(1, duration_bars(spec.cool_down, interval))
    rows = np.arange(len(ts))
    wanted = (rows >= first_row) & (rows < (len(ts) if last_row is None else last_row))
    parts = []
    for kind in KINDS:
        signal = stress.signal(kind)
        begins = episode_starts(signal.flag, cool) & wanted[:, np.newaxis]
        column, row = np.nonzero(begins.T)
        if not len(row):
            continue
        sigma = stress.sigma[row, column] if kind == "drop" else np.full(len(row), np.nan)
        columns = {
            "venue": [markets[place].venue for place in column.tolist()],
            "symbol": [markets[place].symbol for place in column.tolist()],
            "kind": [kind] * len(row),
            "start": _times(ts[row] - bar),
            "close": _times(ts[row]),
            "size": signal.size[row, column],
            "limit": signal.limit[row, column],
            "sigma": pa.array(sigma, from_pandas=True),
        }
        parts.append(pa.table(columns, schema=SCHEMA))
    return sort_onsets(pa.concat_tables(parts) if parts else SCHEMA.empty_table())


def episode_starts(flag: Float2D, cool_bars: int) -> Bool2D:
    """Flagged rows without another flagged one among the ``cool_bars`` rows before [n_bars, n_markets]."""
    flagged = flag == 1.0
    seen = np.zeros((len(flag) + 1, flag.shape[1]), dtype=np.int64)
    np.cumsum(flagged, axis=0, out=seen[1:])
    oldest = np.maximum(np.arange(len(flag)) - cool_bars, 0)
    return np.asarray(flagged & (seen[:-1] == seen[oldest]))


def sort_onsets(table: pa.Table) -> pa.Table:
    """By venue, symbol, kind and time."""
    return table.sort_by([(name, "ascending") for name in ("venue", "symbol", "kind", "start")])


def read_onsets(dataset: str | Path) -> pa.Table:
    """The onsets of a dataset folder in :data:`SCHEMA`.

    Raises
    ------
    DataError : the folder has none, or the file is damaged.
    """
    file = Path(dataset) / ONSETS
    try:
        return pq.read_table(file, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}", fix="build the dataset again") from error


def market_onsets(table: pa.Table, market: Market, kind: str = "drop") -> MarketOnsets:
    """The onsets of one market and kind.

    Raises
    ------
    DataError : there is no such kind (the nearest is suggested).
    """
    if kind not in KINDS:
        raise DataError(
            f"there is no kind of stress '{kind}'.{nearest(kind, KINDS)}", fix=f"use {', '.join(KINDS)}"
        )
    of_market = (pc.field("venue") == market.venue) & (pc.field("symbol") == market.symbol)
    chosen = table.filter(of_market & (pc.field("kind") == kind))
    start, close = (chosen[name].cast(pa.int64()).to_numpy() for name in ("start", "close"))
    order = np.argsort(close, kind="stable")
    return MarketOnsets(start[order], close[order])


def leads(alarm_ts: TimeUs, onsets: MarketOnsets, within: str = "24h") -> Float1D:
    """Hours from each alarm to the next onset [n_alarms]; NaN for a false alarm.

    An alarm at t is a hit when the close of an onset's bar lies in (t, t + within]. Its lead is
    the onset bar's start less t: 0 when the bar opened as the alarm was raised.

    Parameters
    ----------
    alarm_ts : [n_alarms] int64 us, any order; rows of a dataset give the hours to the next onset.
    """
    alarms = np.asarray(alarm_ts, dtype=np.int64)
    place = _next(onsets.close, alarms)
    out = np.full(len(alarms), np.nan)
    known = np.flatnonzero(place < len(onsets.close))
    hit = known[onsets.close[place[known]] - alarms[known] <= duration_us(within)]
    out[hit] = (onsets.start[place[hit]] - alarms[hit]) / HOUR
    return out


def warnings_before(alarm_ts: TimeUs, onsets: MarketOnsets, within: str = "24h") -> Float1D:
    """Hours from the earliest alarm that counts to each onset [n_onsets]; NaN for a missed one."""
    alarms = np.sort(np.asarray(alarm_ts, dtype=np.int64))
    earliest = np.searchsorted(alarms, onsets.close - duration_us(within), side="left")
    out = np.full(len(onsets.close), np.nan)
    found = np.flatnonzero(earliest < np.searchsorted(alarms, onsets.close, side="left"))
    out[found] = (onsets.start[found] - alarms[earliest[found]]) / HOUR
    return out


def _next(closes: TimeUs, alarms: TimeUs) -> Int1D:
    return np.searchsorted(closes, alarms, side="right")


def _times(values: TimeUs) -> pa.Array:
    return pa.array(values, pa.int64()).cast(_TIME)
