"""CSV files of Binance's public archive as Arrow tables: columns by name, times in microseconds.

Futures files have a header since 2022 or 2023, depending on the dataset, spot files have
none. Times are milliseconds, in spot files since 2025 microseconds, in metrics and
bookDepth text; the unit follows from the magnitude, and every time has to lie in the
period that the file's name gives, which would show a wrong guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa
import pyarrow.csv as pcsv

from riskml.arrays import Bool1D, Int1D
from riskml.errors import DataError, Problem, nearest
from riskml.tables.ingest.archive import read_published
from riskml.tables.ingest.binance_file import ArchiveFile
from riskml.units import MINUTE, format_us, to_us

OHLC = ("open", "high", "low", "close")
RATIOS = ("count_long_short_ratio", "count_toptrader_long_short_ratio", "sum_toptrader_long_short_ratio")
_CANDLE = (
    *("open_time", *OHLC, "volume", "close_time", "quote_volume", "count", "taker_buy_volume"),
    *("taker_buy_quote_volume", "ignore"),
)


@dataclass(frozen=True)
class _Layout:
    """The columns of a dataset."""

    columns: tuple[str, ...]
    """All of them in order, for files without a header."""
    needed: tuple[str, ...]
    """Those that are read; the first one is the time."""
    text: tuple[str, ...] = ()
    """Those of them that are no number."""
    text_times: bool = False
    """Whether times may be dates in text; they are the file's first column."""
    needs_header: bool = False
    """Whether the columns have varied, so that a file without a header cannot be read."""


_LAYOUTS = {
    "klines": _Layout(
        _CANDLE,
        ("open_time", *OHLC, "volume", "close_time", "quote_volume", "count", "taker_buy_volume"),
    ),
    "markPriceKlines": _Layout(_CANDLE, ("open_time", *OHLC, "close_time")),
    "indexPriceKlines": _Layout(_CANDLE, ("open_time", *OHLC, "close_time")),
    "fundingRate": _Layout(
        ("calc_time", "funding_interval_hours", "last_funding_rate"),
        ("calc_time", "funding_interval_hours", "last_funding_rate"),
    ),
    "metrics": _Layout(
        (
            *("create_time", "symbol", "sum_open_interest", "sum_open_interest_value"),
            *("count_toptrader_long_short_ratio", "sum_toptrader_long_short_ratio"),
            *("count_long_short_ratio", "sum_taker_long_short_vol_ratio"),
        ),
        ("create_time", "symbol", "sum_open_interest", "sum_open_interest_value", *RATIOS),
        ("symbol",),
        text_times=True,
    ),
    "bookDepth": _Layout(
        ("timestamp", "percentage", "depth", "notional"),
        ("timestamp", "percentage", "notional"),
        text_times=True,
    ),
    "liquidationSnapshot": _Layout(
        (), ("time", "side", "average_price", "accumulated_fill_quantity"), ("side",), needs_header=True
    ),
}


_EARLIEST_US, _LATEST_US = to_us("2009-01-01"), to_us("2200-01-01")
"""No time in milliseconds is one in microseconds between these years, nor the other way round."""
_SLACK_US = 5 * MINUTE
"""Metrics label the last five minutes of a day with the next day's first instant."""


@dataclass(frozen=True)
class ArchiveData:
    """The rows of one file as they stand in it."""

    data: pa.Table
    """The needed columns; the first one is the time as the file has it."""
    times: Int1D
    """It as microseconds UTC; int64 [n_rows]."""
    unit_us: int
    """Microseconds per unit of the file's own times."""
    problems: tuple[Problem, ...]
    """Rows that were left out because their time is not of the file's period."""


def read_archive(file: ArchiveFile) -> ArchiveData:
    """Read a file of the archive.

    Raises
    ------
    DataError : the file is damaged or unsafe (see
        :func:`riskml.tables.ingest.archive.read_published`), or of another form: codes
        ``missing-column``, ``wrong-type``, ``wrong-units``, ``outside-period``.

    Notes
    -----
    NaN handling: an empty cell of a number is null; a row without a time is an error.
    """
    data = _parse(file, read_published(file.path, file.relative))
    times, unit_us = _times(file, data.column(0).combine_chunks())
    inside = (times >= file.start_us) & (times <= file.end_us + _SLACK_US)
    if inside.all():
        return ArchiveData(data, times, unit_us, ())
    problem = _outside(file, inside)
    if not inside.any():
        raise DataError(problem.message, fix=problem.fix, problems=(problem,))
    return ArchiveData(data.filter(pa.array(inside)), times[inside], unit_us, (problem,))


def refuse(file: ArchiveFile, code: str, reason: str) -> NoReturn:
    """Raise the error that keeps one file out."""
    message, fix = f"{file.relative}: {reason}", "download the file again, and keep its name and folders"
    problem = Problem(code, message, fix, file.table, file.market, partition=file.relative)
    raise DataError(message, table=file.table, market=file.market, fix=fix, problems=(problem,))


def _outside(file: ArchiveFile, inside: Bool1D) -> Problem:
    count = int((~inside).sum())
    message = (
        f"{file.relative}: {count} row{'s' * (count > 1)} of {len(inside)} lie outside"
        f" {format_us(file.start_us)} to {format_us(file.end_us)}, which its name gives"
    )
    fix = "the file holds another period or time unit than its name says; download it again"
    row = int(inside.argmin())
    return Problem("outside-period", message, fix, file.table, file.market, row, file.relative)


def _parse(file: ArchiveFile, raw: bytes) -> pa.Table:
    """The needed columns by name, the time first: int64, or a timestamp where it is text."""
    layout = _LAYOUTS[file.dataset]
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        return pa.table({name: pa.array([], pa.int64()) for name in layout.needed})
    lines = raw[: 1 << 16].decode("utf-8", "replace").splitlines()[:2]
    cells = [cell.strip().strip('"').lower() for cell in lines[0].split(",")]
    has_header = not cells[0][:1].isdigit()
    names = cells if has_header else list(layout.columns)
    if not has_header and (layout.needs_header or len(cells) != len(names)):
        found = "none" if layout.needs_header else f"{len(cells)} columns"
        refuse(
            file, "missing-column", f"a header or {len(names) or 'more'} columns are required, found {found}"
        )
    missing = [name for name in layout.needed if names.count(name) != 1]
    if missing:
        hint = nearest(missing[0], names)
        refuse(
            file, "missing-column", f"column '{missing[0]}' is required once, found {', '.join(cells)}.{hint}"
        )
    types = {name: pa.string() if name in layout.text else pa.float64() for name in layout.needed}
    types |= {name: pa.int64() for name in ("close_time",) if name in types}
    types[layout.needed[0]] = pa.int64()
    if layout.text_times and "-" in lines[-1].split(",")[0]:
        types[layout.needed[0]] = pa.timestamp("us")
    # Columns that are not read may share a name.
    unique = [name if name in types else f"{name} {at}" for at, name in enumerate(names)]
    try:
        return pcsv.read_csv(
            pa.BufferReader(raw),
            pcsv.ReadOptions(use_threads=False, column_names=unique, skip_rows=int(has_header)),
            convert_options=pcsv.ConvertOptions(column_types=types, include_columns=list(layout.needed)),
        )
    except pa.ArrowException as error:
        refuse(file, "wrong-type", str(error).splitlines()[0])


def _times(file: ArchiveFile, column: pa.Array) -> tuple[Int1D, int]:
    """Times as int64 microseconds [n_rows], and how many microseconds the file's unit has."""
    if column.null_count:
        refuse(file, "wrong-type", f"{column.null_count} rows have no time")
    times = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(column.type) or not len(times):
        return times, 1
    first, last = int(times.min()), int(times.max())
    for unit_us in (1000, 1):
        if first * unit_us >= _EARLIEST_US and last * unit_us <= _LATEST_US:
            return times * unit_us, unit_us
    shown = str(first) if first == last else f"{first} and {last}"
    refuse(file, "wrong-units", f"times have to be milliseconds or microseconds throughout, found {shown}")
