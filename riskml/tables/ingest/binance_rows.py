"""Rows of the contracts from files of Binance's public archive.

Each dataset hides a trap, which is dealt with here:

- Candles are stamped with their open time; riskml stamps the close, which is when they
  are known. ``close_time`` is one unit short of it and only checks the interval.
- Funding stamps are some milliseconds late.
- ``metrics`` labelled five minutes with their end and, in files since 2026-06-25, with
  their start (binance/binance-public-data issue 491). An open interest of 0 is a hole.
- ``bookDepth`` is cumulative per side and stamped in whole seconds.
- ``liquidationSnapshot`` repeats whole rows and shows at most one order per second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import Bool1D, Int1D
from riskml.errors import Problem
from riskml.tables.ingest.binance_csv import OHLC, RATIOS, ArchiveData, read_archive, refuse
from riskml.tables.ingest.binance_file import ArchiveFile
from riskml.tables.ingest.vendor_file import make_rows
from riskml.units import DAY, MINUTE, SECOND, duration_us, to_us

METRICS_LAG_US = 5 * MINUTE
"""``known_at - ts`` of metrics: a snapshot is published before the next one is taken."""
METRICS_LABEL_START_US = to_us("2026-06-25")
"""Files of this day and later label metrics with the start of their five minutes."""
DEPTH_LAG_US = SECOND
"""``known_at - ts`` of book depth: its stamps are cut to whole seconds."""
DEPTH_EVERY_US = MINUTE
"""One snapshot of the book is kept per minute, the last one; the archive has two or more."""

_METRICS_STEP_US = 5 * MINUTE
_FUNDING_JITTER_US = SECOND
_HUGE = 1e100
"""Products of two numbers below it are finite."""
_POPULATIONS = dict(zip(RATIOS, ("global_account", "top_account", "top_position"), strict=True))
_OFF_GRID = "bars that do not start on their interval's grid (restarts after a halt)"


@dataclass(frozen=True)
class ArchiveRows:
    """What one file gives."""

    rows: Mapping[str, pa.Table]
    """Rows by table, not yet checked."""
    notes: tuple[tuple[str, int], ...] = ()
    """Reason and number of rows that were left out on purpose."""
    problems: tuple[Problem, ...] = ()
    """Rows that could not be used."""


def read_rows(file: ArchiveFile) -> ArchiveRows:
    """Read a file of the archive into rows of the contracts.

    Raises
    ------
    DataError : see :func:`riskml.tables.ingest.binance_csv.read_archive`; also codes
        ``wrong-interval``, ``wrong-market`` and ``ambiguous-file`` when the rows are not
        what the name says.
    """
    source = read_archive(file)
    made = _ADAPTERS[file.dataset](file, source)
    return ArchiveRows(made.rows, made.notes, source.problems)


def _klines(file: ArchiveFile, source: ArchiveData) -> ArchiveRows:
    data, closes, off_grid = _closed(file, source)
    moved = data.num_rows > 1 and pc.any(pc.greater(data.column("high"), data.column("low"))).as_py()
    if moved and pc.max(data.column("volume")).as_py() == 0:
        refuse(file, "ambiguous-file", "prices move without any volume: these are mark or index prices")
    columns = {name: data.column(name) for name in (*OHLC, "volume", "quote_volume", "taker_buy_volume")}
    columns |= {"trades": data.column("count")}
    rows = make_rows("bars", closes, 0, _names(file) | {"interval": file.interval} | columns)
    return ArchiveRows({"bars": rows}, ((_OFF_GRID, off_grid),))


def _mark_or_index(file: ArchiveFile, source: ArchiveData) -> ArchiveRows:
    data, closes, off_grid = _closed(file, source)
    kind = "mark" if file.dataset == "markPriceKlines" else "index"
    columns = {f"{kind}_{name}": data.column(name) for name in OHLC}
    rows = make_rows("marks", closes, 0, _names(file) | {"interval": file.interval} | columns)
    return ArchiveRows({"marks": rows}, ((_OFF_GRID, off_grid),))


def _closed(file: ArchiveFile, source: ArchiveData) -> tuple[pa.Table, pa.Array, int]:
    """Candles on the interval's grid, their closes, and how many were off the grid."""
    interval = duration_us(file.interval)
    ends = source.data.column("close_time")
    if ends.null_count:
        refuse(file, "wrong-type", f"{ends.null_count} rows have no close_time")
    spans = pc.subtract(ends, source.data.column("open_time")).to_numpy()
    usual = (int(np.median(spans)) + 1) * source.unit_us if len(spans) else interval
    if usual != interval:
        found = f"{usual / SECOND:g} seconds"
        refuse(file, "wrong-interval", f"bars of {file.interval} are expected, most of them last {found}")
    on_grid = source.times % min(interval, DAY) == 0
    closes = pa.array(source.times[on_grid] + interval)
    return source.data.filter(pa.array(on_grid)), closes, _false(on_grid)


def _funding(file: ArchiveFile, source: ArchiveData) -> ArchiveRows:
    # 00:00:00.007 is the settlement of 00:00, known at once like the bar that ends there.
    late = source.times % MINUTE
    stamps = np.where(late < _FUNDING_JITTER_US, source.times - late, source.times)
    columns = {
        "rate": source.data.column("last_funding_rate"),
        "interval_h": source.data.column("funding_interval_hours"),
    }
    return ArchiveRows({"funding": make_rows("funding", pa.array(stamps), 0, _names(file) | columns)})


def _metrics(file: ArchiveFile, source: ArchiveData) -> ArchiveRows:
    symbols = pc.unique(source.data.column("symbol")).to_pylist()
    if symbols not in ([], [file.instrument.vendor_symbol]):
        refuse(file, "wrong-market", f"its rows are of {', '.join(map(str, symbols))}")
    labels_start = file.start_us >= METRICS_LABEL_START_US
    ts = source.times + (_METRICS_STEP_US if labels_start else 0)
    interest = source.data.column("sum_open_interest").to_numpy()
    value = source.data.column("sum_open_interest_value").to_numpy()
    is_open = (interest > 0) & (value > 0)
    columns = {"open_interest": interest[is_open], "open_interest_usd": value[is_open]}
    interests = make_rows("open_interest", pa.array(ts[is_open]), METRICS_LAG_US, _names(file) | columns)
    shares, untold = [], 0
    for name in RATIOS:
        ratio = source.data.column(name).to_numpy()
        is_told = (ratio > 0) & np.isfinite(ratio)
        untold += _false(is_told)
        fraction = ratio[is_told] / (1.0 + ratio[is_told])
        columns = {"population": _POPULATIONS[name], "long_fraction": fraction}
        shares.append(make_rows("long_short", pa.array(ts[is_told]), METRICS_LAG_US, _names(file) | columns))
    notes = (
        ("open interest of 0 or none: it was not recorded", _false(is_open)),
        ("no long/short ratio", untold),
        ("the taker ratio, which has no volume; klines have taker_buy_volume", len(ts)),
    )
    return ArchiveRows({"open_interest": interests, "long_short": pa.concat_tables(shares)}, notes)


def _depth(file: ArchiveFile, source: ArchiveData) -> ArchiveRows:
    """Value within each published band of a side: one row per minute and band."""
    percent = source.data.column("percentage").to_numpy()
    notional = source.data.column("notional").to_numpy()
    if not ((percent != 0) & (np.abs(percent) <= 100)).all():
        refuse(file, "wrong-units", "column 'percentage' has to lie between -100 and 100, and not be 0")
    minutes, minute = np.unique(source.times // DEPTH_EVERY_US, return_inverse=True)
    last = np.zeros(len(minutes), np.int64)
    np.maximum.at(last, minute, source.times)
    is_last = source.times == last[minute]
    bands, band = np.unique(np.round(np.abs(percent) * 100.0, 6), return_inverse=True)
    code = minute * len(bands) + band
    bid, ask = _first_of_code(code, is_last & (percent < 0)), _first_of_code(code, is_last & (percent > 0))
    _, in_bid, in_ask = np.intersect1d(code[bid], code[ask], assume_unique=True, return_indices=True)
    bid, ask = bid[in_bid], ask[in_ask]
    columns = {"band_bps": bands[band[bid]], "bid_usd": notional[bid], "ask_usd": notional[ask]}
    rows = make_rows("depth", pa.array(source.times[bid]), DEPTH_LAG_US, _names(file) | columns)
    notes = (
        ("earlier snapshots of a minute: its last one is taken", _false(is_last)),
        ("a side of a band that is given without the other one, or twice", int(is_last.sum()) - 2 * len(bid)),
    )
    return ArchiveRows({"depth": rows}, notes)


def _first_of_code(code: Int1D, chosen: Bool1D) -> Int1D:
    """Numbers of the chosen rows, the first one of each code."""
    rows = np.flatnonzero(chosen)
    return rows[np.unique(code[rows], return_index=True)[1]]


def _liquidations(file: ArchiveFile, source: ArchiveData) -> ArchiveRows:
    """Forced orders, summed per time and side; a forced sale closes a long."""
    side = source.data.column("side")
    unknown = [str(name) for name in pc.unique(side).to_pylist() if name not in ("BUY", "SELL")]
    if unknown:
        refuse(file, "wrong-type", f"column 'side' has to be BUY or SELL, found {unknown[0]}")
    is_long = pc.equal(side, "SELL").to_numpy()
    size = source.data.column("accumulated_fill_quantity").to_numpy()
    price = source.data.column("average_price").to_numpy()
    if not ((size >= 0) & (price >= 0) & (size < _HUGE) & (price < _HUGE)).all():
        refuse(file, "wrong-type", "sizes and prices have to be numbers of 0 or above")
    whole = np.column_stack([source.times.astype(float), is_long, size, price])
    rows = np.sort(np.unique(whole, axis=0, return_index=True)[1])
    key, group = np.unique(source.times[rows] * 2 + is_long[rows], return_inverse=True)
    sizes = np.bincount(group, size[rows], len(key))
    notional = np.bincount(group, size[rows] * price[rows], len(key))
    filled = notional > 0
    key, sizes, notional = key[filled], sizes[filled], notional[filled]
    columns = {
        "account_id": "",
        "side": pa.array(np.where(key % 2 == 1, "long", "short").astype(object), pa.string()),
        "size": sizes,
        "price": notional / sizes,
        "notional_usd": notional,
    }
    made = make_rows("liquidations", pa.array(key // 2), 0, _names(file) | columns)
    notes = (
        ("rows that repeat another one", len(whole) - len(rows)),
        ("orders of which nothing was filled", _false(filled)),
    )
    return ArchiveRows({"liquidations": made}, notes)


_ADAPTERS: dict[str, Callable[[ArchiveFile, ArchiveData], ArchiveRows]] = {
    "klines": _klines,
    "markPriceKlines": _mark_or_index,
    "indexPriceKlines": _mark_or_index,
    "fundingRate": _funding,
    "metrics": _metrics,
    "bookDepth": _depth,
    "liquidationSnapshot": _liquidations,
}


def _names(file: ArchiveFile) -> dict[str, Any]:
    return {"venue": file.instrument.venue, "symbol": file.instrument.symbol}


def _false(flags: Bool1D) -> int:
    return int(flags.size - np.count_nonzero(flags))
