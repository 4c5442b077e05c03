"""Do liquidation probabilities rank accounts by what happened to them?

Every account-hour outside the bundle's sample is one row; its outcome is a recorded
liquidation of the account within the horizon. The yardstick is the static engine's
maintenance over equity on the same rows: it ranks, but it gives no probability, so the
log-loss stands beside that of the constant base rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml import metrics
from riskml.arrays import Float1D, Int1D
from riskml.errors import DataError
from riskml.learning.metric_rows import ALL, BOTH, MetricRow
from riskml.learning.protocol import MODEL
from riskml.units import duration_us

YARDSTICK = "hyperliquid"
BASE_RATE = "base_rate"


def read_margins(folder: Path) -> pa.Table:
    """The margins table that a backfill wrote below ``folder``.

    Raises
    ------
    DataError : nothing was written, as where the lake holds no account in the range.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DataError(
            "there is no account to score in the range",
            table="accounts",
            fix="leave --accounts out, or choose a range with account history",
        )
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return pa.concat_tables(tables, promote_options="permissive")


def history_end(margins: pa.Table, end_us: int) -> int:
    """Where outcomes stop being known (us, exclusive): the end asked for, or of the account history."""
    last = _times(margins).max(initial=0)
    return min(end_us, int(last) + 1)


def account_rows(
    margins: pa.Table, liquidations: pa.Table, horizons: Sequence[str], *, end_us: int | None = None
) -> list[MetricRow]:
    """Metric rows over account-hours: log-loss, AUC and average precision per horizon.

    Parameters
    ----------
    margins : output of a backfill with the engines ``riskml`` and ``hyperliquid``.
    liquidations : contract rows; those without ``account_id`` are no account's.
    horizons : the bundle's.
    end_us : end of the range that liquidations are known for (us, exclusive); an account-hour
        whose horizon reaches it has no outcome yet and is left out, see :func:`history_end`.
        None = known for all rows.

    Notes
    -----
    Rows with ``in_sample`` are left out. NaN handling: a row without a probability, or
    without a positive equity under the yardstick, is left out for both.
    """
    ours = margins.filter(pc.and_(pc.equal(margins["engine"], MODEL), pc.invert(margins["in_sample"])))
    theirs = margins.filter(pc.equal(margins["engine"], YARDSTICK))
    keys = [f"{ts}|{name}" for ts, name in zip(_times(theirs), theirs["account_id"].to_pylist(), strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _floats(theirs, "maintenance_margin_usd") / _floats(theirs, "equity_usd")
    by_key = dict(zip(keys, ratio.tolist(), strict=True))
    names, ts = ours["account_id"].to_pylist(), _times(ours)
    yardstick = np.array([by_key.get(f"{t}|{name}", math.nan) for t, name in zip(ts, names, strict=True)])
    yardstick[yardstick < 0.0] = math.nan
    events = _events(liquidations)
    rows: list[MetricRow] = []
    for horizon in horizons:
        probability = _floats(ours, f"p_liq_{horizon}")
        outcome = _outcomes(names, ts, events, duration_us(horizon))
        usable = np.isfinite(probability) & np.isfinite(yardstick)
        if end_us is not None:
            usable &= ts + duration_us(horizon) < end_us
        if usable.any():
            rows.extend(_rows(outcome[usable], probability[usable], yardstick[usable], horizon))
    return rows


def _rows(outcome: Float1D, probability: Float1D, yardstick: Float1D, horizon: str) -> Iterator[MetricRow]:
    constant = np.full(outcome.size, outcome.mean())
    measured = (
        ("account_log_loss", BASE_RATE, metrics.log_loss, probability, constant),
        ("account_auc", YARDSTICK, metrics.roc_auc, probability, yardstick),
        ("account_average_precision", YARDSTICK, metrics.average_precision, probability, yardstick),
    )
    for metric, baseline, function, ours, theirs in measured:
        value, against = function(outcome, ours), function(outcome, theirs)
        for model, found in ((MODEL, value), (baseline, against)):
            yield MetricRow(
                metric, model, horizon, ALL, BOTH, found, against, outcome.size, baseline_model=baseline
            )


def _events(liquidations: pa.Table) -> dict[str, Int1D]:
    found: dict[str, list[int]] = {}
    for name, ts in zip(liquidations["account_id"].to_pylist(), _times(liquidations), strict=True):
        if name:
            found.setdefault(name, []).append(int(ts))
    return {name: np.array(sorted(times)) for name, times in found.items()}


def _outcomes(names: Sequence[str], ts: Int1D, events: dict[str, Int1D], horizon_us: int) -> Float1D:
    """1 where an event of the account falls within (t, t + h]."""
    outcome = np.zeros(len(names))
    accounts = np.array(names, dtype=object)
    for name, times in events.items():
        own = np.flatnonzero(accounts == name)
        after = np.searchsorted(times, ts[own], side="right")
        until = np.searchsorted(times, ts[own] + horizon_us, side="right")
        outcome[own] = until > after
    return outcome


def _times(table: pa.Table) -> Int1D:
    return np.asarray(table["ts"].cast(pa.int64()).to_numpy(), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> Float1D:
    return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
