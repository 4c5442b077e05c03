"""Ingest of a freqtrade data folder: feather or Parquet candles of spot and futures.

freqtrade stamps candles with their open time; riskml stamps the close, which is when
they are known. A funding file has the rate in ``open`` and zeros elsewhere; how many
hours a rate covers is not in the file and follows from the distance of the settlements.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.arrays import Bool1D, Float1D, Int1D
from riskml.errors import DataError, Problem, RiskmlError, nearest
from riskml.tables.ingest.freqtrade_file import FreqtradeFile, classify
from riskml.tables.ingest.gather import FileRows, Gathering, find_files, nothing_taken
from riskml.tables.ingest.report import IngestReport, Progress
from riskml.tables.ingest.vendor_file import Skip, make_rows, usual_step
from riskml.tables.lake import Lake
from riskml.units import DAY, HOUR, MINUTE, SECOND, duration_us

SETTLEMENT_HOURS = (1.0, 2.0, 4.0, 6.0, 8.0)
"""Times between two settlements that venues use."""

_OHLC = ("open", "high", "low", "close")
_LAYOUT = "pass freqtrade's user_data/data, an exchange's folder in it, or one of its files"
_FUNDING_JITTER_US = SECOND


def ingest_freqtrade(path: Path, lake: Lake, progress: Progress | None = None) -> IngestReport:
    """Ingest a freqtrade data folder, a folder inside it, or one of its files.

    Raises
    ------
    DataError : the path does not exist, or none of its files can be taken.
    """
    root, files = find_files(path, _LAYOUT)
    run = Gathering(lake)
    taken: list[FreqtradeFile] = []
    for item in files:
        found = classify(item, item.relative_to(root).as_posix())
        if isinstance(found, FreqtradeFile):
            taken.append(found)
        elif isinstance(found, Problem):
            run.problems.append(found)
        else:
            run.skipped.append(found)
    if not taken:
        raise nothing_taken(path, run, _LAYOUT)
    done = 0
    for group in _groups(taken):
        _ingest_group(run, group)
        done += len(group)
        if progress is not None:
            progress(done, len(taken), group[-1].relative)
    return run.finish(len(taken))


def settlement_intervals(times_us: Int1D) -> Float1D:
    """Hours that each funding rate covers, from the distance of the settlements.

    The distance to the settlement before; to the one after it where there is none
    before, where that distance is no venue's (:data:`SETTLEMENT_HOURS`), or where it is
    longer than both of its neighbours, which agree: there a row is missing.

    Parameters
    ----------
    times_us : int64 [n_rows], ascending.

    Returns
    -------
    float64 [n_rows] : hours; NaN where neither distance tells.
    """
    gaps = np.full(len(times_us) + 2, np.nan)
    gaps[2:-1] = np.diff(times_us) / HOUR
    earlier, before, after = gaps[:-2], gaps[1:-1], gaps[2:]
    has_hole = (before > after) & ((earlier == after) | np.isnan(earlier)) & _is_usual(after)
    hours = np.where(_is_usual(before) & ~has_hole, before, after)
    hours = np.where(_is_usual(hours), hours, earlier)
    return np.where(_is_usual(hours), hours, np.nan)


def _is_usual(hours: Float1D) -> Bool1D:
    return np.isin(hours, SETTLEMENT_HOURS)


def _groups(files: list[FreqtradeFile]) -> Iterator[list[FreqtradeFile]]:
    """Files of one table and market together."""
    groups: dict[tuple[str, str, str], list[FreqtradeFile]] = {}
    for file in files:
        groups.setdefault((file.table, file.instrument.venue, file.instrument.symbol), []).append(file)
    for key in sorted(groups):
        yield groups[key]


def _ingest_group(run: Gathering, files: list[FreqtradeFile]) -> None:
    """Read and write the files of a group; a bad file leaves the others unharmed."""
    parts: list[FileRows] = []
    for file in files:
        try:
            data = _read(file)
            rows = _funding(run, file, data) if file.table == "funding" else _candles(run, file, data)
        except RiskmlError as error:
            run.fail(error, file.relative, file.table, file.market)
            continue
        if not rows.num_rows:
            run.skipped.append(Skip(file.relative, "holds no row", 0))
        parts.append(FileRows(file.relative, rows))
    if parts:
        run.write(files[0].table, parts, files[0].instrument)


def _read(file: FreqtradeFile) -> pa.Table:
    """The needed columns, with ``date`` as int64 microseconds."""
    try:
        if file.path.suffix == ".parquet":
            with pq.ParquetFile(file.path) as handle:
                data = handle.read(use_threads=False)
        else:
            with pa.OSFile(str(file.path)) as source, pa.ipc.open_file(source) as reader:
                data = reader.read_all()
        data.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        _refuse(file, "damaged-file", f"it cannot be read: {str(error).splitlines()[0]}")
    needed = ("date", "open") if file.table == "funding" else ("date", *_OHLC, "volume")
    missing = [name for name in needed if data.column_names.count(name) != 1]
    if missing:
        hint = nearest(missing[0], data.column_names)
        _refuse(file, "missing-column", f"column '{missing[0]}' is required once.{hint}")
    data = data.select(list(needed))
    dates = data.column("date").combine_chunks()
    if not pa.types.is_timestamp(dates.type) or dates.null_count:
        found = "null" if pa.types.is_timestamp(dates.type) else str(dates.type)
        _refuse(file, "wrong-type", f"column 'date' has to hold timestamps, found {found}")
    numbers = [data.column(name).type for name in needed[1:]]
    if not all(pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in numbers):
        _refuse(file, "wrong-type", f"{', '.join(needed[1:])} have to be numbers")
    times = dates.cast(pa.timestamp("us", tz=dates.type.tz), safe=False).cast(pa.int64())
    return data.set_column(0, "date", times)


def _candles(run: Gathering, file: FreqtradeFile, data: pa.Table) -> pa.Table:
    """Bars, or mark or index prices; candles off the grid and an unfinished last one stay out."""
    interval = duration_us(file.timeframe)
    opens = data.column("date").to_numpy()
    step = usual_step(opens)
    if step is not None and step != interval:
        found = f"most are {step / HOUR:g} h apart"
        _refuse(file, "wrong-interval", f"candles of {file.timeframe} are expected, {found}")
    on_grid = opens % min(interval, DAY) == 0
    run.note(file.candle or "spot", "candles that do not start on their interval's grid", _false(on_grid))
    written = int(file.path.stat().st_mtime * SECOND)
    finished = ~((opens == opens.max(initial=0)) & (opens <= written) & (written < opens + interval))
    run.note(
        file.candle or "spot", "last candles that had not ended when the file was written", _false(finished)
    )
    chosen = on_grid & finished
    data = data.filter(pa.array(chosen))
    prefix = {"mark": "mark_", "index": "index_"}.get(file.candle, "")
    columns = {f"{prefix}{name}": data.column(name) for name in _OHLC}
    if not prefix:
        columns["volume"] = data.column("volume")
    names = _names(file) | {"interval": file.timeframe}
    return make_rows(file.table, pa.array(opens[chosen] + interval), 0, names | columns)


def _funding(run: Gathering, file: FreqtradeFile, data: pa.Table) -> pa.Table:
    data = data.sort_by("date")
    times = data.column("date").to_numpy()
    # 00:00:00.007 is the settlement of 00:00, known at once like the bar that ends there.
    late = times % MINUTE
    times = np.where(late < _FUNDING_JITTER_US, times - late, times)
    hours = settlement_intervals(times)
    told = ~np.isnan(hours)
    if not told.all():
        message = (
            f"{file.relative}: of {_false(told)} settlements the distance to the next ones does not say"
            f" how many hours the rate covers ({', '.join(f'{value:g}' for value in SETTLEMENT_HOURS)})"
        )
        fix = "download the funding rates again, without holes"
        row = int(told.argmin())
        run.problems.append(
            Problem("unknown-interval", message, fix, "funding", file.market, row, file.relative)
        )
        run.count("rows_dropped", _false(told))
    columns = {"rate": data.column("open").filter(pa.array(told)), "interval_h": hours[told]}
    return make_rows("funding", pa.array(times[told]), 0, _names(file) | columns)


def _names(file: FreqtradeFile) -> dict[str, Any]:
    return {"venue": file.instrument.venue, "symbol": file.instrument.symbol}


def _false(flags: Bool1D) -> int:
    return int(flags.size - np.count_nonzero(flags))


def _refuse(file: FreqtradeFile, code: str, reason: str) -> NoReturn:
    message, fix = f"{file.relative}: {reason}", "download it again with 'freqtrade download-data'"
    problem = Problem(code, message, fix, file.table, file.market, partition=file.relative)
    raise DataError(message, table=file.table, market=file.market, fix=fix, problems=(problem,))
