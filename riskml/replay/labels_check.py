"""How replay labels compare with what was recorded: a measure, not a test of either.

A label holds the account still after t; the account did not. It added margin, closed, was closed by
an order. So agreement is partial by nature, and rows in which nothing was done are counted apart.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import AnyArray, Bool1D, Float1D, Int1D
from riskml.errors import DataError
from riskml.replay.labels import METADATA
from riskml.tables.lake import Lake
from riskml.units import MINUTE, duration_us

EVENT_SLACK_US = MINUTE
"""Fills within this of a recorded liquidation are the liquidation's own."""
FAR = int(np.iinfo(np.int64).max)


def compare_with_recorded(labels: pa.Table, lake: Lake) -> dict[str, Any]:
    """Hold labels against the recorded liquidations of the same accounts.

    Parameters
    ----------
    labels : from :func:`riskml.replay.labels.replay_labels`.
    lake : tables ``liquidations``; ``trades`` and ``ledger`` tell which accounts were left alone.

    Returns
    -------
    ``rows``, ``unknown_by_reason``, ``median_remark_change``, ``liquidations`` (one per account and time)
    and, per horizon:

    - ``followed`` : recorded liquidations with a snapshot within the horizon before them; of these
      ``labelled`` have a label at the last such snapshot, which says ``foreseen`` or ``missed``;
      ``missed_untouched`` : the account did nothing in between.
    - ``positive`` : rows labelled 1 that were not below maintenance already, whose horizon lies within
      the account history; ``happened`` of them have a recorded liquidation within the horizon.
      ``positive_untouched``, ``happened_untouched`` : those without any fill, deposit or withdrawal of the
      account between t and the breach (or the liquidation). ``positive_sound``, ``happened_sound`` : those
      of accounts whose equity is never below zero at a snapshot, which a venue that liquidates does not
      leave open: there the recorded account is wrong, and so is its label.
    - ``below_at_start``, ``below_happened`` : the same for rows that were below already.
    - ``negative``, ``negative_happened`` : rows labelled 0, and how many were liquidated all the same.

    Raises
    ------
    DataError : the table has no rows.
    """
    if not labels.num_rows:
        raise DataError("there are no labels to compare", fix="label a range with account snapshots")
    horizons = json.loads((labels.schema.metadata or {})[METADATA])["horizons"]
    names = labels.column("account_id").to_pylist()
    code = {name: place for place, name in enumerate(dict.fromkeys(names))}
    account = np.fromiter((code[name] for name in names), np.int64, len(names))
    ts = _times(labels, "ts")
    begin, end = int(ts.min()), int(ts.max()) + max(duration_us(horizon) for horizon in horizons) + 1
    events = _events(lake, "liquidations", code, begin, end)
    done = np.concatenate([_events(lake, name, code, begin, end) for name in ("trades", "ledger")])
    event = _next(events, account, ts)
    touch = _next(done, account, ts)
    sound = np.bincount(account[_floats(labels, "equity_usd") < 0.0], minlength=len(code))[account] == 0
    reason = pc.value_counts(labels.column("reason")).to_pylist()
    return {
        "rows": labels.num_rows,
        "accounts": len(code),
        "accounts_below_zero": len(np.unique(account[~sound])),
        "unknown_by_reason": {item["values"]: item["counts"] for item in reason if item["values"]},
        "median_remark_change": float(np.median(_floats(labels, "remark_change"))),
        "funding_known": float(np.mean(labels.column("funding_known").to_numpy())),
        "liquidations": len(events),
        "horizons": {
            horizon: _horizon(labels, horizon, account, ts, events, event, touch, sound)
            for horizon in horizons
        },
    }


def _horizon(
    labels: pa.Table,
    horizon: str,
    account: Int1D,
    ts: Int1D,
    events: Int1D,
    event: Int1D,
    touch: Int1D,
    sound: Bool1D,
) -> dict[str, int]:
    span = duration_us(horizon)
    label = _floats(labels, f"liquidated_{horizon}")
    below = labels.column("below_at_start").to_numpy()
    happened = event <= ts + span
    last = _last_rows(events, account, ts)
    near = (last >= 0) & (events[:, 1] - ts[np.maximum(last, 0)] <= span)
    followed = label[last[near]]
    alone = touch[last[near]] > events[near, 1] - EVENT_SLACK_US
    whole = ts + span <= int(ts.max())
    breach = np.where(happened, event - EVENT_SLACK_US, _breach(labels))
    untouched = touch > breach
    fresh = whole & (label == 1.0) & ~below
    negative = whole & (label == 0.0)
    return {
        "followed": int(near.sum()),
        "labelled": int(np.isfinite(followed).sum()),
        "foreseen": int((followed == 1.0).sum()),
        "foreseen_below_already": int(below[last[near]][followed == 1.0].sum()),
        "missed": int((followed == 0.0).sum()),
        "missed_untouched": int(((followed == 0.0) & alone).sum()),
        "positive": _count(fresh),
        "happened": _count(fresh & happened),
        "positive_untouched": _count(fresh & untouched),
        "happened_untouched": _count(fresh & untouched & happened),
        "positive_sound": _count(fresh & sound),
        "happened_sound": _count(fresh & sound & happened),
        "below_at_start": _count(whole & below),
        "below_happened": _count(whole & below & happened),
        "negative": _count(negative),
        "negative_happened": _count(negative & happened),
    }


def _count(flag: Bool1D) -> int:
    return int(flag.sum())


def _events(lake: Lake, table: str, code: dict[str, int], begin: int, end: int) -> Int1D:
    """Distinct (account, time) of rows of the known accounts [n, 2], sorted."""
    rows = lake.read(table, start=begin, end=end, columns=["ts", "account_id"])
    names = rows.column("account_id").to_pylist()
    found = {
        (code[name], moment)
        for name, moment in zip(names, _times(rows, "ts").tolist(), strict=True)
        if name in code
    }
    return np.asarray(sorted(found), dtype=np.int64).reshape(-1, 2)


def _next(events: Int1D, account: Int1D, ts: Int1D) -> Int1D:
    """Time of the account's first event after each row [n]; FAR = none."""
    out = np.full(len(ts), FAR, dtype=np.int64)
    for owner in np.unique(events[:, 0]).tolist():
        times = np.sort(events[events[:, 0] == owner, 1])
        mine = np.flatnonzero(account == owner)
        out[mine] = np.append(times, FAR)[np.searchsorted(times, ts[mine], side="right")]
    return out


def _last_rows(events: Int1D, account: Int1D, ts: Int1D) -> Int1D:
    """Last row of the account before each event [n_events]; -1 = none."""
    out = np.full(len(events), -1, dtype=np.int64)
    for owner in np.unique(events[:, 0]).tolist():
        mine = np.flatnonzero(account == owner)
        mine = mine[np.argsort(ts[mine], kind="stable")]
        theirs = np.flatnonzero(events[:, 0] == owner)
        place = np.searchsorted(ts[mine], events[theirs, 1], side="left") - 1
        out[theirs] = np.where(place >= 0, mine[np.maximum(place, 0)], -1)
    return out


def _breach(labels: pa.Table) -> Int1D:
    column = labels.column("first_breach_ts").cast(pa.int64())
    return np.asarray(pc.fill_null(column, FAR).to_numpy(), dtype=np.int64)


def _times(rows: pa.Table, name: str) -> Int1D:
    return np.asarray(rows.column(name).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _floats(rows: pa.Table, name: str) -> Float1D:
    column: AnyArray = rows.column(name).to_numpy()
    return np.asarray(column, dtype=np.float64)
