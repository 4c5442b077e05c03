"""Account replay labels: would this account, held still, have been liquidated, and when?

**This is a target.** It looks forward along the recorded path and must never be imported by a
feature; inputs end at t, the path begins after it. For every account snapshot at t the positions and
the collateral are held still (no order, fill, transfer or change of haircut), valued bar by bar over
(t, t + h], funding paid, until the equity of a pool falls below its maintenance margin. A pool is what is
liquidated together: the cross positions with the account's collateral, or one isolated position.

How the highs and lows of several markets are combined is in :mod:`riskml.replay.labels_kernel`; where
the path comes from is in :mod:`riskml.replay.labels_path`. Columns of the result:

- ``liquidated_<h>`` : 1, 0 or NaN = the path over (t, t + h] is not known whole. An account that is
  below maintenance at t has 1 whatever the path. Missing values do not depend on the outcome: a breach
  before a gap leaves NaN here, and is in ``first_breach_ts``.
- ``first_breach_ts`` : close of the first bar with a breach within the longest horizon; t for an account
  that is below already; null = none seen. ``minutes_to_breach`` likewise, NaN = none seen.
- ``possible_ts``, ``confirmed_ts`` : earliest and latest that the bars allow for it.
- ``known_until_ts`` : to where the path is known, at most t + the longest horizon; null = not at all.
- ``equity_usd``, ``maintenance_usd`` : at t. ``equity_min_usd``, ``min_margin_ratio`` : least equity
  of the account, and least equity / maintenance of a pool, over the longest horizon, as if nothing
  was closed; NaN where that horizon is not known.
- ``below_at_start``, ``funding_known`` (False = some leg pays nothing for want of a series).
- ``remark_change`` : sum of |change in value by re-marking| over gross exposure.
- ``barrier``, ``interval`` : whose maintenance, and the bars that were walked ("" = none).
- ``reason``, ``reason_market`` : why the longest horizon is unknown (``no-bars``, ``no-price``, ``gap``,
  ``data-end``, ``delisted``, ``no-fills``, ``no-barrier``), or ``no-positions`` (label 0).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.arrays import Int1D
from riskml.errors import ConfigError, DataError
from riskml.replay.labels_books import States, read_states
from riskml.replay.labels_fills import FILL_INTERVAL
from riskml.replay.labels_kernel import CONFIRMED, POSSIBLE, TOGETHER
from riskml.replay.labels_legs import AccountRows, Haircuts, LegReader
from riskml.replay.labels_path import NEVER, PathBook
from riskml.replay.labels_rows import ChunkLabels, label_rows
from riskml.risk.policy import MarginPolicy
from riskml.tables.lake import Lake, as_lake
from riskml.units import DAY, MINUTE, TimeLike, duration_us, to_us

HORIZONS = ("1h", "8h", "24h")
CHUNK_ROWS = 50_000
"""Accounts at a time that are walked together; bounds memory, changes no value."""
CHUNK_US = 28 * DAY
METADATA = b"riskml_labels"
"""Key of the schema metadata: how the labels were made, as JSON."""

ProgressFn = Callable[[str], None]


def replay_labels(
    lake: Lake | str | Path,
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    *,
    horizons: Sequence[str] = HORIZONS,
    interval: str = "auto",
    barrier: str = "venue",
    haircuts: Haircuts = "policy",
    policy: MarginPolicy | str | Path | None = None,
    remark: bool = True,
    fills: bool = False,
    progress: ProgressFn | None = None,
) -> pa.Table:
    """Label every account snapshot with ``start <= ts < end``.

    Parameters
    ----------
    lake : tables ``accounts``, ``positions``, ``collateral``, ``bars`` and, where there is one, ``funding``.
    start, end : part of the account history (default: all of it), end exclusive.
    horizons : durations, none shorter than the bars.
    interval : bars of the path. ``auto`` = for each account the finest that covers the longest horizon for
        all its markets, of those that are no longer than the shortest horizon.
    barrier : whose maintenance. ``venue`` = the venue's own: its published formula where there is an
        engine of that venue (Hyperliquid's tiers, by notional along the path), else the account's
        ``maintenance_margin_usd``, in proportion to gross exposure. An engine's name = that engine.
    haircuts : ``policy``, ``none``, or a fraction per asset; fixed at t.
    policy : haircut rules (default: riskml's own).
    remark : value positions and collateral at the last close that was known at t; False = start from the
        marks of the snapshot and apply the path's returns to them.
    fills : where no venue has bars of a market, follow bars made of the fills in the ``trades`` table
        (:mod:`riskml.replay.labels_fills`).

    Returns
    -------
    One row per (ts, account_id), in that order, with the columns of this module's text.
    The schema's metadata hold the options (:data:`METADATA`).

    Raises
    ------
    DataError : an empty range, no account snapshot in it.
    ConfigError : an unknown barrier, haircut or duration; bars longer than the shortest horizon.
    """
    store = as_lake(lake)
    spans = _check_range(horizons, start, end)
    rules = MarginPolicy.load(policy)
    reader = LegReader(barrier, haircuts, rules)
    path = PathBook(store, _fill_interval(interval, horizons) if fills else None)
    parts = []
    for chunk in _chunks(store, start, end):
        rows = reader.read(chunk)
        intervals = _intervals(path, rows, interval, horizons, fills)
        parts.append(_table(rows, label_rows(rows, path, intervals, spans, remark=remark), horizons))
        if progress is not None:
            progress(f"labelled {sum(part.num_rows for part in parts):,} account snapshots")
    if not parts:
        raise DataError(
            f"the lake at {store.path} has no account snapshot in the range",
            table="accounts",
            fix="ingest an account history, or ask for another range",
        )
    options = {"horizons": list(horizons), "interval": interval, "barrier": barrier, "fills": fills}
    options |= {"remark": remark, "policy_hash": rules.policy_hash}
    options["haircuts"] = haircuts if isinstance(haircuts, str) else dict(haircuts)
    table = pa.concat_tables(parts)
    return table.replace_schema_metadata({METADATA: json.dumps(options, sort_keys=True)})


def _check_range(horizons: Sequence[str], start: TimeLike | None, end: TimeLike | None) -> Int1D:
    """The horizons in microseconds [n_horizons]."""
    if start is not None and end is not None and to_us(start) >= to_us(end):
        raise DataError("the range is empty", table="accounts", fix="end is exclusive and has to be later")
    if not horizons or len(set(horizons)) != len(horizons):
        raise ConfigError("horizons have to be different durations, at least one", fix="write 1h,8h,24h")
    return np.asarray([duration_us(horizon) for horizon in horizons], dtype=np.int64)


def write_labels(table: pa.Table, path: str | Path) -> Path:
    """Write labels as one Parquet file, complete or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, staging, compression="zstd")
        os.replace(staging, target)
    finally:
        staging.unlink(missing_ok=True)
    return target


def _chunks(lake: Lake, start: TimeLike | None, end: TimeLike | None) -> Iterator[list[States]]:
    """Groups of snapshots that are walked together."""
    chunk: list[States] = []
    n_rows = 0
    for states in read_states(lake, start, end):
        too_long = chunk and int(states.ts[-1] - chunk[0].ts[0]) > CHUNK_US
        if chunk and (too_long or n_rows + len(states.ts) > CHUNK_ROWS):
            yield chunk
            chunk, n_rows = [], 0
        chunk.append(states)
        n_rows += len(states.ts)
    if chunk:
        yield chunk


def _fill_interval(interval: str, horizons: Sequence[str]) -> str:
    return min(FILL_INTERVAL, *horizons, key=duration_us) if interval == "auto" else interval


def _intervals(
    path: PathBook, rows: AccountRows, interval: str, horizons: Sequence[str], fills: bool
) -> list[str]:
    """Bar lengths to try, finest first; the shortest horizon where the lake has none."""
    shortest = min(horizons, key=duration_us)
    if interval != "auto":
        if duration_us(interval) > duration_us(shortest):
            raise ConfigError(
                f"bars of {interval} are longer than the shortest horizon",
                fix="choose finer bars, or drop that horizon",
            )
        return [interval]
    found = path.intervals(symbol for _, symbol in rows.pairs)
    if fills and (of_fills := _fill_interval(interval, horizons)) not in found:
        found = sorted([*found, of_fills], key=duration_us)
    return [name for name in found if duration_us(name) <= duration_us(shortest)] or [shortest]


def _table(rows: AccountRows, labels: ChunkLabels, horizons: Sequence[str]) -> pa.Table:
    """The columns of :func:`replay_labels`, sorted by time and account."""
    first, possible, confirmed = (labels.breach_ts[:, kind] for kind in (TOGETHER, POSSIBLE, CONFIRMED))
    columns = {"ts": _times(rows.ts), "account_id": pa.array(rows.account_id, pa.string())}
    for place, horizon in enumerate(horizons):
        columns[f"liquidated_{horizon}"] = pa.array(labels.liquidated[:, place])
    columns |= {
        "first_breach_ts": _times(first),
        "minutes_to_breach": pa.array(np.where(first == NEVER, np.nan, (first - rows.ts) / MINUTE)),
        "possible_ts": _times(possible),
        "confirmed_ts": _times(confirmed),
        "known_until_ts": _times(labels.known_until),
        "equity_usd": pa.array(labels.equity_usd),
        "maintenance_usd": pa.array(labels.maintenance_usd),
        "equity_min_usd": pa.array(np.where(labels.whole, labels.equity_min_usd, np.nan)),
        "min_margin_ratio": pa.array(np.where(labels.whole, labels.ratio_min, np.nan)),
        "below_at_start": pa.array(labels.below_at_start),
        "funding_known": pa.array(labels.funding_known),
        "remark_change": pa.array(labels.remark_change),
        "barrier": pa.array(rows.barrier, pa.string()),
        "interval": pa.array(labels.interval, pa.string()),
        "reason": pa.array(labels.reason, pa.string()),
        "reason_market": pa.array(labels.reason_market, pa.string()),
    }
    return pa.table(columns).take(np.lexsort((rows.account_id.astype(str), rows.ts)))


def _times(values: Int1D) -> pa.Array:
    """Microseconds as timestamps; NEVER is null."""
    return pa.array(values, pa.int64(), mask=values == NEVER).cast(pa.timestamp("us", tz="UTC"))
