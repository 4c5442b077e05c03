"""Checks of one file's series: steps in time, values that stand still, wrong units.

A series is a run of rows that share every key but the times, e.g. the 1 h bars of a
market. Rows come in storage order, so that a series is one slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray, Bool1D, Int1D, TimeUs
from riskml.contracts import contract
from riskml.errors import Problem
from riskml.tables.keys import key_codes, storage_key
from riskml.tables.partitions import LakePartition
from riskml.units import DAY, HOUR, duration_us, format_us

_REGULAR = (
    "bars",
    "marks",
    "funding",
    "open_interest",
    "depth",
    "taker_flow",
    "long_short",
    "flows",
    "chains",
    "pegs",
)
"""Tables whose series have a regular step; events and accounts do not."""
_LIVE = {
    "bars": ("close",),
    "marks": ("mark_close", "index_close"),
    "open_interest": ("open_interest", "open_interest_usd"),
    "depth": ("bid_usd", "ask_usd"),
    "taker_flow": ("buy_volume", "sell_volume", "buy_usd", "sell_usd"),
    "long_short": ("long_fraction",),
    "chains": ("tvl_usd", "gas_gwei", "tx_count"),
}
"""Columns that move from row to row while their source is alive."""
_STILL_ROWS = 24
"""Equal values in a row, over at least a day, from which a column counts as stale."""
_LOOSE = 3
"""Without a stated step, a gap is longer than this many median steps."""
_PRICE_JUMP = np.log(300.0)
"""Log price change between rows that only a change of unit explains."""
_PERCENT_LENDING = 0.5
"""Median lending rate per year from which a whole series is taken for percent (usual: 0.01 to 0.1)."""
_PERCENT_FUNDING = 3e-3
"""Median |rate| per 8 h from which a whole file is taken for percent (usual: 1e-4)."""


@dataclass
class SeriesEnds:
    """The last time of each series, carried from one year's file to the next."""

    last: dict[tuple[str, ...], int] = field(default_factory=dict)


def check_steps(partition: LakePartition, data: pa.Table, ends: SeriesEnds) -> list[Problem]:
    """Gaps, and bars off their interval's grid."""
    if partition.table not in _REGULAR:
        return []
    problems = []
    for name, start, stop in _series(partition, data):
        ts = _times(data, start, stop)
        before = ends.last.get(name)
        ends.last[name] = int(ts[-1])
        joined = ts if before is None else np.append(before, ts)
        steps = np.diff(joined)
        expected = _expected_step(partition.table, data, start, stop, steps)
        if expected is None:
            continue
        gaps = np.flatnonzero(steps > expected)
        if gaps.size:
            problems.append(_gap(partition, name, joined, gaps, start - (before is not None)))
        problems += _off_grid(partition, data, start, ts)
    return problems


def check_still(partition: LakePartition, data: pa.Table) -> list[Problem]:
    """Columns that stand still: constant over the file, or for a day and 24 rows on end."""
    problems = []
    for column in _LIVE.get(partition.table, ()):
        values = data.column(column).to_numpy()
        for name, start, stop in _series(partition, data):
            part, ts = values[start:stop], _times(data, start, stop)
            if stop - start < _STILL_ROWS or np.isnan(part).all():
                continue
            first, last = _longest_run(part)
            if ts[last] - ts[first] < DAY or last - first + 1 < _STILL_ROWS:
                continue
            whole = last - first + 1 == stop - start
            code = "constant-column" if whole else "stale-column"
            message = (
                f"'{column}'{_label(name)} stands still for {last - first + 1} rows,"
                f" {format_us(int(ts[first]))} to {format_us(int(ts[last]))}"
            )
            problems.append(_problem(partition, code, message, "the source may be dead there", start + first))
    return problems


def check_units(partition: LakePartition, data: pa.Table) -> list[Problem]:
    """Values that only make sense in another unit than the contract's."""
    checks = {
        "funding": _funding_units,
        "bars": _price_units,
        "marks": _price_units,
        "flows": _rate_units,
        "pegs": _peg_units,
        "open_interest": _open_interest_units,
        "taker_flow": _taker_units,
    }
    check = checks.get(partition.table)
    return [] if check is None else list(check(partition, data))


def _funding_units(partition: LakePartition, data: pa.Table) -> Iterator[Problem]:
    rate = np.abs(data.column("rate").to_numpy())
    large = np.flatnonzero(rate > 0.1)
    if large.size:
        message = f"{large.size} rates are above 0.1 per interval, the first {rate[large[0]]:g}"
        yield _units(partition, message, "rates are fractions: divide percent by 100", large)
        return
    per_8h = np.median(rate * 8.0 / data.column("interval_h").to_numpy())
    if per_8h > _PERCENT_FUNDING:
        message = f"the median rate is {per_8h:g} per 8 h, as if in percent"
        yield _units(partition, message, "rates are fractions: divide percent by 100", np.zeros(1, np.int64))


def _price_units(partition: LakePartition, data: pa.Table) -> Iterator[Problem]:
    names = ("close",) if partition.table == "bars" else ("mark_close", "index_close")
    for column in names:
        values = data.column(column).to_numpy()
        for name, start, stop in _series(partition, data):
            step = np.abs(np.diff(np.log(values[start:stop])))
            jumps = np.flatnonzero(step > _PRICE_JUMP)
            if jumps.size:
                row = start + int(jumps[0])
                message = f"'{column}'{_label(name)} jumps from {values[row]:g} to {values[row + 1]:g}"
                fix = "one symbol, one contract size: 1000PEPE is kPEPE, not PEPE"
                yield _units(partition, message, fix, jumps + start + 1)
    if partition.table == "bars":
        rows = _outside(data)
        if rows.size:
            message = f"open or close lies outside [low, high] in {rows.size} bars"
            yield _problem(
                partition, "price-outside-bar", message, "correct or drop these bars", int(rows[0])
            )


def _outside(data: pa.Table) -> Int1D:
    low, high = (data.column(name).to_numpy() for name in ("low", "high"))
    outside: Bool1D = np.zeros(data.num_rows, bool)
    for name in ("open", "close"):
        price = data.column(name).to_numpy()
        # Sources print prices to 8 digits or so: allow for rounding, not for errors.
        outside |= (price < low * (1 - 1e-9)) | (price > high * (1 + 1e-9))
    return np.flatnonzero(outside)


def _rate_units(partition: LakePartition, data: pa.Table) -> Iterator[Problem]:
    rate = data.column("lending_rate").to_numpy()
    large = np.flatnonzero(np.abs(rate) > 2.0)
    if large.size:
        message = f"{large.size} lending rates are above 2 per year, the first {rate[large[0]]:g}"
        yield _units(partition, message, "rates are fractions: divide percent by 100", large)
        return
    for name, start, stop in _series(partition, data):
        part = rate[start:stop][~np.isnan(rate[start:stop])]
        if part.size and np.median(part) > _PERCENT_LENDING:
            message = (
                f"the median lending rate{_label(name)} is {np.median(part):g} per year, as if in percent"
            )
            rows = np.array([start], np.int64)
            yield _units(partition, message, "rates are fractions: divide percent by 100", rows)


def _taker_units(partition: LakePartition, data: pa.Table) -> Iterator[Problem]:
    for side in ("buy", "sell"):
        base, usd = (data.column(f"{side}_{unit}").to_numpy() for unit in ("volume", "usd"))
        both = np.flatnonzero((base > 0) & (usd > 0))
        if both.size >= _STILL_ROWS and np.all(base[both] == usd[both]):
            message = f"'{side}_volume' and '{side}_usd' are equal in all {both.size} rows"
            yield _units(partition, message, f"{side}_volume is in base units", both)


def _peg_units(partition: LakePartition, data: pa.Table) -> Iterator[Problem]:
    price = data.column("price_usd").to_numpy()
    far = np.flatnonzero(price > 10.0)
    if far.size:
        message = f"{far.size} prices of a pegged asset are above 10 USD, the first {price[far[0]]:g}"
        yield _units(partition, message, "prices are USD per unit of the asset", far)


def _open_interest_units(partition: LakePartition, data: pa.Table) -> Iterator[Problem]:
    base, usd = (data.column(name).to_numpy() for name in ("open_interest", "open_interest_usd"))
    both = np.flatnonzero((base > 0) & (usd > 0))
    if both.size >= _STILL_ROWS and np.all(base[both] == usd[both]):
        message = f"'open_interest' and 'open_interest_usd' are equal in all {both.size} rows"
        yield _units(partition, message, "open_interest is in base units", both)


def _series(partition: LakePartition, data: pa.Table) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Name and row range of each series of a file in storage order."""
    spec = contract(partition.table)
    names = [name for name in storage_key(spec) if name not in ("ts", "known_at", *partition.keys)]
    if not names:
        yield (), 0, data.num_rows
        return
    change = np.zeros(max(data.num_rows - 1, 0), bool)
    for codes in key_codes(spec, data, names):
        change |= codes[1:] != codes[:-1]
    edges = [0, *(np.flatnonzero(change) + 1).tolist(), data.num_rows]
    for start, stop in itertools.pairwise(edges):
        yield tuple(str(data.column(name)[start].as_py()) for name in names), start, stop


def _expected_step(table: str, data: pa.Table, start: int, stop: int, steps: AnyArray) -> AnyArray | None:
    """Longest step, in microseconds, that is no gap: one number, or one per step."""
    if not steps.size:
        return None
    if table in ("bars", "marks"):
        return np.array(duration_us(data.column("interval")[start].as_py()))
    if table == "funding":
        hours = data.column("interval_h").to_numpy()[start:stop][-len(steps) :]
        return np.asarray(1.5 * HOUR * hours)
    positive = steps[steps > 0]
    return np.array(_LOOSE * np.median(positive)) if positive.size else None


def _gap(
    partition: LakePartition, name: tuple[str, ...], joined: TimeUs, gaps: Int1D, offset: int
) -> Problem:
    steps = np.diff(joined)
    longest = int(gaps[np.argmax(steps[gaps])])
    message = (
        f"{gaps.size} gap{'s' * (gaps.size > 1)}{_label(name)}, the longest {steps[longest] / HOUR:g} h"
        f" from {format_us(int(joined[longest]))} to {format_us(int(joined[longest + 1]))}"
    )
    fix = "ingest a source that covers it; features and targets never span more than 3 missing bars"
    return _problem(partition, "gap", message, fix, max(offset + int(gaps[0]) + 1, 0))


def _off_grid(partition: LakePartition, data: pa.Table, start: int, ts: TimeUs) -> list[Problem]:
    if partition.table != "bars":
        return []
    interval = data.column("interval")[start].as_py()
    rows = np.flatnonzero(ts % duration_us(interval))
    if not rows.size:
        return []
    first = format_us(int(ts[rows[0]]))
    message = f"{rows.size} bars of {interval} do not close on a multiple of it, the first at {first}"
    return [_problem(partition, "off-grid", message, "ts is the bar's close in UTC", start + int(rows[0]))]


def _longest_run(values: AnyArray) -> tuple[int, int]:
    """First and last position of the longest run of equal values (NaN never equals)."""
    edges = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]))
    longest = int(np.argmax(np.diff(edges)))
    return int(edges[longest]), int(edges[longest + 1]) - 1


def _times(data: pa.Table, start: int, stop: int) -> TimeUs:
    return np.asarray(data.column("ts").slice(start, stop - start).cast(pa.int64()).to_numpy())


def _label(name: tuple[str, ...]) -> str:
    return f" of {', '.join(name)}" if name else ""


def _units(partition: LakePartition, message: str, fix: str, rows: Int1D) -> Problem:
    return _problem(partition, "wrong-units", message, fix, int(rows[0]))


def _problem(partition: LakePartition, code: str, message: str, fix: str, row: int) -> Problem:
    market = ":".join(partition.keys.values()) or None
    return Problem(code, message, fix, partition.table, market, row, partition.relative)
