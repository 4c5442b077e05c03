"""``riskml build``: features and targets of a lake as a dataset folder.

The work is cut by calendar year. Features are the same bit for bit however it is cut, so
neither the number of jobs nor the range asked for changes a value. No bar at or after the end
of the range is read: a target whose window leaves the range is missing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import riskml
from riskml.arrays import AnyArray, Float2D, Float32ND, FloatND, TimeUs
from riskml.errors import ConfigError, DataError
from riskml.features.catalog import CATALOG, fingerprint, select
from riskml.features.evaluate import evaluate_features, input_names, lookback_bars
from riskml.features.expr import MAX_GAP_BARS
from riskml.features.inputs import input_tables
from riskml.features.rolling import segment_starts
from riskml.markets import Market, choose, symbols
from riskml.tables.align import BAR_INPUTS, Grid, grid_bounds, load_grid, no_bars
from riskml.tables.compiled import CompiledOps
from riskml.tables.lake import Lake
from riskml.tables.targets import Targets, targets
from riskml.units import TimeLike, duration_bars, duration_us, format_us, to_us

DATASET = "dataset.json"
_SIDES = ("down", "up")


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset holds and what it was made from (``dataset.json``)."""

    path: str
    interval: str
    horizons: tuple[str, ...]
    markets: tuple[str, ...]
    """Symbols in column order; they are also the reference of the cross-section."""
    venues: tuple[str, ...]
    features: tuple[str, ...]
    fingerprint: str
    start: str
    """First bar close, ISO."""
    end: str
    """Exclusive, ISO."""
    rows: int
    """Stored rows: one per bar and market that is listed."""
    data_hashes: dict[str, str]
    """sha256 of every lake file that was read."""
    riskml_version: str

    @property
    def reference(self) -> tuple[Market, ...]:
        """The markets with their venues."""
        return tuple(Market(symbol, venue) for symbol, venue in zip(self.markets, self.venues, strict=True))


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory, aligned to one grid; NaN = missing or not defined."""

    info: DatasetInfo
    ts: TimeUs
    """[n_bars] int64 us, closes of consecutive bars."""
    markets: tuple[Market, ...]
    feature_names: tuple[str, ...]
    features: Float32ND
    """[n_bars, n_markets, n_features] float32."""
    close: Float2D
    """[n_bars, n_markets]."""
    mae: FloatND
    """[n_bars, n_markets, n_horizons, 2], see :class:`riskml.tables.targets.Targets`."""
    variance: FloatND
    """[n_bars, n_markets, n_horizons]."""
    stress: FloatND
    """[n_bars, n_markets, n_horizons]."""


@dataclass(frozen=True)
class _Task:
    """One year of work; plain values, so that it can go to another process."""

    lake: str
    out: str
    markets: tuple[Market, ...]
    interval: str
    horizons: tuple[str, ...]
    start: int
    end: int
    year: int
    limit: int
    """End of the whole range: nothing at or after it is read."""


def build_dataset(
    lake: Lake,
    out: str | Path,
    *,
    interval: str = "1h",
    markets: str | Sequence[str] = "all",
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    jobs: int = 1,
    horizons: Sequence[str] = ("1h", "8h", "24h"),
    progress: Callable[[str], None] | None = None,
) -> DatasetInfo:
    """Build features and targets of a lake.

    Parameters
    ----------
    lake : contract tables.
    out : folder to write; an earlier dataset there is replaced, anything else is refused.
    interval : bar length.
    markets : names, or ``"all"`` markets with bars at the interval. They define the
        cross-section; the first one leads it.
    start, end : range of bar closes, end exclusive; default everything there is. Features look
        back before ``start``; targets do not look beyond ``end``.
    jobs : processes; the result does not depend on it.
    horizons : of the targets.
    progress : called with one line per year.

    Raises
    ------
    DataError : unknown market, no bars, empty range.
    ConfigError : ``out`` holds something else; a horizon is not a whole number of bars.
    """
    for horizon in horizons:
        duration_bars(horizon, interval)
    if jobs < 1:
        raise ConfigError(f"jobs is at least 1, not {jobs}")
    target = Path(out)
    _check_target(target)
    chosen = tuple(choose(markets, lake.markets(interval)))
    if not chosen:
        raise DataError(
            f"the lake has no {interval} bars", table="bars", fix="ingest bars, or ask for another interval"
        )
    first, last = _bounds(lake, chosen, interval, start, end)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        tasks = [
            _Task(str(lake.path), str(staging), chosen, interval, tuple(horizons), begin, stop, year, last)
            for year, begin, stop in _years(first, last, interval)
        ]
        rows = sum(_run(tasks, jobs, progress or (lambda line: None)))
        if rows == 0:
            raise no_bars(chosen, interval, first, last)
        info = _info(lake, target, chosen, interval, horizons, (first, last), rows)
        _write_info(staging, info)
        staging.chmod(0o755)
        _replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return info


def read_info(path: str | Path) -> DatasetInfo:
    """Read ``dataset.json``.

    Raises
    ------
    DataError : the folder is not a dataset, or its description is damaged.
    """
    file = Path(path) / DATASET
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        values = {item.name: raw[item.name] for item in fields(DatasetInfo) if item.name != "path"}
    except FileNotFoundError:
        raise DataError(f"{file} does not exist", fix="pass the folder that 'riskml build' wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error!r}", fix="build the dataset again") from error
    for name in ("horizons", "markets", "venues", "features"):
        values[name] = tuple(values[name])
    return DatasetInfo(path=str(path), **values)


def read_dataset(path: str | Path) -> Dataset:
    """Read a dataset and lay it out on its grid.

    Raises
    ------
    DataError : not a dataset, a file is missing or damaged.
    """
    info = read_info(path)
    bar = duration_us(info.interval)
    first, last = grid_bounds(info.interval, info.start, info.end)
    ts = np.arange(first, last, bar, dtype=np.int64)
    shape = (len(ts), len(info.markets))
    horizons = len(info.horizons)
    data = Dataset(
        info=info,
        ts=ts,
        markets=info.reference,
        feature_names=info.features,
        features=np.full((*shape, len(info.features)), np.nan, dtype=np.float32),
        close=np.full(shape, np.nan),
        mae=np.full((*shape, horizons, 2), np.nan),
        variance=np.full((*shape, horizons), np.nan),
        stress=np.full((*shape, horizons), np.nan),
    )
    found = 0
    for place, market in enumerate(data.markets):
        for file in sorted(_folder(Path(path), market).glob("year=*.parquet")):
            found += _place_rows(file, data, place, first, bar)
    if found != info.rows:
        raise DataError(
            f"{path} holds {found} rows, but {DATASET} says {info.rows}", fix="build the dataset again"
        )
    return data


def _place_rows(file: Path, data: Dataset, market: int, first: int, bar: int) -> int:
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}", fix="build the dataset again") from error
    ts = table["ts"].cast(pa.int64()).to_numpy()
    row = (ts - first) // bar
    data.close[row, market] = table["close"].to_numpy()
    for place, name in enumerate(data.feature_names):
        data.features[row, market, place] = table[name].to_numpy()
    for place, horizon in enumerate(data.info.horizons):
        for side, word in enumerate(_SIDES):
            data.mae[row, market, place, side] = table[f"mae_{word}_{horizon}"].to_numpy()
        data.variance[row, market, place] = table[f"variance_{horizon}"].to_numpy()
        data.stress[row, market, place] = table[f"stress_{horizon}"].to_numpy()
    return len(row)


def _bounds(
    lake: Lake, markets: Sequence[Market], interval: str, start: TimeLike | None, end: TimeLike | None
) -> tuple[int, int]:
    """The range asked for, completed from the bars that there are (us, end exclusive)."""
    if start is None or end is None:
        rows = lake.read(
            "bars",
            venues=sorted({market.venue for market in markets}),
            symbols=symbols(markets),
            interval=interval,
            columns=["ts"],
        )
        there = rows["ts"].cast(pa.int64()).to_numpy()
        start = int(there.min()) if start is None else start
        end = int(there.max()) + duration_us(interval) if end is None else end
    return grid_bounds(interval, start, end)


def _years(first: int, last: int, interval: str) -> Iterator[tuple[int, int, int]]:
    """(year, start, end) of each calendar year's bar closes in [first, last)."""
    year = _year(first)
    while first < last:
        stop = min(grid_bounds(interval, first, to_us(datetime(year + 1, 1, 1, tzinfo=UTC)))[1], last)
        yield year, first, stop
        first, year = stop, year + 1


def _year(time_us: int) -> int:
    return int(format_us(time_us)[:4])


def _run(tasks: Sequence[_Task], jobs: int, say: Callable[[str], None]) -> Iterator[int]:
    if jobs == 1 or len(tasks) == 1:
        for task in tasks:
            rows = _build_year(task)
            say(f"built {task.year}: {rows} rows")
            yield rows
        return
    # Spawned, not forked: numba and Arrow threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        for task, rows in zip(tasks, pool.map(_build_year, tasks), strict=True):
            say(f"built {task.year}: {rows} rows")
            yield rows


def _build_year(task: _Task) -> int:
    """Write the files of one year and return their rows."""
    bar = duration_us(task.interval)
    n_bars = (task.end - task.start) // bar
    warm_up = max(
        lookback_bars(CATALOG, task.interval),
        # The hour of an onset begins one hour before its bar.
        lookback_bars(select(["log_ewm_variance_60d"]), task.interval) + duration_bars("1h", task.interval),
    )
    ahead = max(duration_bars(horizon, task.interval) for horizon in task.horizons) + MAX_GAP_BARS + 1
    ahead = min(ahead, (task.limit - task.end) // bar)
    names = {*input_names(CATALOG), *BAR_INPUTS}
    grid = load_grid(
        Lake(task.lake),
        task.markets,
        task.interval,
        task.start - warm_up * bar,
        task.end + ahead * bar,
        names,
    )
    until_end = len(grid.ts) - ahead
    features = evaluate_features(
        CATALOG,
        {name: values[:until_end] for name, values in grid.inputs.items()},
        grid.ts[:until_end],
        interval=task.interval,
        ops=CompiledOps(),
        tail=n_bars,
    )
    result = targets(grid.close, grid.high, grid.low, grid.ts, task.interval, task.horizons)
    rows = slice(until_end - n_bars, until_end)
    return sum(
        _write_market(task, grid, rows, features[:, place].astype(np.float32), result, place)
        for place in range(len(task.markets))
    )


def _write_market(
    task: _Task, grid: Grid, rows: slice, features: Float32ND, result: Targets, place: int
) -> int:
    """One market's year. Rows of the market's segments only: not before listing, not in outages."""
    alive = segment_starts(grid.present[:, place : place + 1])[rows, 0] <= np.arange(rows.start, rows.stop)
    if not alive.any():
        return 0
    columns: dict[str, AnyArray | pa.Array] = {
        "ts": pa.array(grid.ts[rows][alive], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "close": grid.close[rows, place][alive],
    }
    for index, feature in enumerate(CATALOG):
        columns[feature.name] = features[alive, index]
    for index, horizon in enumerate(task.horizons):
        for side, word in enumerate(_SIDES):
            columns[f"mae_{word}_{horizon}"] = result.mae[rows, place, index, side][alive]
        columns[f"variance_{horizon}"] = result.variance[rows, place, index][alive]
        columns[f"stress_{horizon}"] = result.stress[rows, place, index][alive].astype(np.float32)
    folder = _folder(Path(task.out), task.markets[place])
    folder.mkdir(parents=True, exist_ok=True)
    # Dictionaries and statistics cost time and save nothing on floats.
    pq.write_table(
        pa.table(columns),
        folder / f"year={task.year}.parquet",
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
    )
    return int(alive.sum())


def _folder(root: Path, market: Market) -> Path:
    return root / f"venue={market.venue}" / f"symbol={market.symbol}"


def _info(
    lake: Lake,
    target: Path,
    markets: Sequence[Market],
    interval: str,
    horizons: Sequence[str],
    bounds: tuple[int, int],
    rows: int,
) -> DatasetInfo:
    return DatasetInfo(
        path=str(target),
        interval=interval,
        horizons=tuple(horizons),
        markets=tuple(symbols(markets)),
        venues=tuple(market.venue for market in markets),
        features=tuple(feature.name for feature in CATALOG),
        fingerprint=fingerprint(CATALOG, interval),
        start=format_us(bounds[0]),
        end=format_us(bounds[1]),
        rows=rows,
        data_hashes=lake.data_hashes(input_tables(input_names(CATALOG))),
        riskml_version=riskml.__version__,
    )


def _write_info(folder: Path, info: DatasetInfo) -> None:
    content = {name: value for name, value in asdict(info).items() if name != "path"}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    (folder / DATASET).write_text(text, encoding="utf-8")


def _check_target(target: Path) -> None:
    if target.is_dir() and (not any(target.iterdir()) or (target / DATASET).is_file()):
        return
    if target.exists():
        raise ConfigError(f"{target} exists and is not a dataset", fix="choose another --out folder")


def _replace(staging: Path, target: Path) -> None:
    if target.exists():
        retired = staging.with_name(staging.name + "-old")
        os.replace(target, retired)
        os.replace(staging, target)
        shutil.rmtree(retired)
    else:
        os.replace(staging, target)
