"""A dataset folder: features and targets as Parquet, per market and chunk of time.

``dataset.json`` says what it holds and what it was made from; the rows lie in
``venue=V/symbol=S/year=Y.parquet`` (``month=Y-M.parquet`` for short bars) and the beginnings of
stress in ``onsets.parquet``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Bool1D, Float2D, Float32ND, FloatND, TimeUs
from riskml.errors import DataError
from riskml.markets import Market, choose
from riskml.tables.align import grid_bounds
from riskml.tables.chunks import Chunk, chunk_of, cut_chunks
from riskml.tables.onsets import read_onsets
from riskml.tables.targets import Targets
from riskml.units import TimeLike, duration_us, format_us

DATASET = "dataset.json"
SIDES = ("down", "up")
"""Words of the side index in column names."""
STRESS_COLUMNS = {"drop": "stress", "liquidation": "stress_liquidation", "depth": "stress_depth"}
"""Kinds of stress and the beginning of their columns' names."""


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
    """sha256 of every lake file that could be read."""
    riskml_version: str
    missing_tables: tuple[str, ...] = ()
    """Tables that features read and the lake lacks; those features are NaN."""
    stress: dict[str, float | str] = field(default_factory=dict)
    """The definition of stress, see :class:`riskml.tables.stress.StressSpec`."""
    chunk_rows: dict[str, int] = field(default_factory=dict)
    """Stored rows by chunk of time."""
    off_grid_bars: int = 0
    """Bars of the lake that were left out because they close between two bars of the grid."""

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
    stress_liquidation: FloatND
    """[n_bars, n_markets, n_horizons]; NaN where the lake has no liquidations."""
    stress_depth: FloatND
    """[n_bars, n_markets, n_horizons]; NaN where the lake has no depth."""

    @property
    def onsets(self) -> pa.Table:
        """When stress began, see :mod:`riskml.tables.onsets`; read from the folder."""
        return read_onsets(self.info.path)


def read_info(path: str | Path) -> DatasetInfo:
    """Read ``dataset.json``.

    Raises
    ------
    DataError : the folder is not a dataset, or its description is damaged.
    """
    file = Path(path) / DATASET
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = [item for item in fields(DatasetInfo) if item.name != "path"]
        # A dataset of an earlier release lacks the newer fields.
        values = {item.name: raw[item.name] for item in known if item.name in raw or not _has_default(item)}
    except FileNotFoundError:
        raise DataError(f"{file} does not exist", fix="pass the folder that 'riskml build' wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error!r}", fix="build the dataset again") from error
    for name in ("horizons", "markets", "venues", "features", "missing_tables"):
        values[name] = tuple(values.get(name, ()))
    return DatasetInfo(path=str(path), **values)


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write ``dataset.json``."""
    content = {name: value for name, value in asdict(info).items() if name != "path"}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    (folder / DATASET).write_text(text, encoding="utf-8")


def read_dataset(
    path: str | Path,
    *,
    markets: str | Sequence[str] = "all",
    start: TimeLike | None = None,
    end: TimeLike | None = None,
) -> Dataset:
    """Read a dataset, or a part of it, and lay it out on its grid.

    Parameters
    ----------
    path : the folder.
    markets : names, in the order of the result's columns.
    start, end : range of bar closes, end exclusive; default everything.

    Raises
    ------
    DataError : not a dataset, an unknown market, an empty range, a file is missing or damaged.
    """
    whole = read_info(path)
    chosen = choose(markets, whole.reference)
    first, last = grid_bounds(
        whole.interval, whole.start if start is None else start, whole.end if end is None else end
    )
    info = replace(
        whole,
        markets=tuple(market.symbol for market in chosen),
        venues=tuple(market.venue for market in chosen),
        start=format_us(first),
        end=format_us(last),
    )
    data = _empty(info, np.arange(first, last, duration_us(info.interval), dtype=np.int64))
    found = 0
    for place, market in enumerate(data.markets):
        for file in sorted(market_folder(Path(path), market).glob("*=*.parquet")):
            period = chunk_of(file.name)
            if period.start < last and period.end > first:
                found += _place_rows(file, data, place)
    if info == whole and found != info.rows:
        raise DataError(
            f"{path} holds {found} rows, but {DATASET} says {info.rows}", fix="build the dataset again"
        )
    return replace(data, info=replace(info, rows=found))


def iter_dataset(path: str | Path, *, markets: str | Sequence[str] = "all") -> Iterator[Dataset]:
    """A dataset chunk by chunk, for one that is larger than memory.

    Yields
    ------
    Dataset of one calendar year (month for bars below 15 minutes), in order of time. Joined, they
    are what :func:`read_dataset` returns.
    """
    info = read_info(path)
    for chunk in dataset_chunks(info):
        yield read_dataset(path, markets=markets, start=chunk.start, end=chunk.end)


def dataset_chunks(info: DatasetInfo) -> list[Chunk]:
    """The chunks that a dataset is cut into."""
    first, last = grid_bounds(info.interval, info.start, info.end)
    if not info.chunk_rows:  # of an earlier release
        return cut_chunks(first, last, info.interval)
    bar = duration_us(info.interval)
    whole = [chunk_of(name) for name in sorted(info.chunk_rows)]
    starts, ends = ([-(-getattr(chunk, side) // bar) * bar for chunk in whole] for side in ("start", "end"))
    return [
        Chunk(chunk.name, max(start, first), min(end, last))
        for chunk, start, end in zip(whole, starts, ends, strict=True)
    ]


def market_folder(root: Path, market: Market) -> Path:
    """Where the files of a market lie."""
    return root / f"venue={market.venue}" / f"symbol={market.symbol}"


def target_columns(
    result: Targets, horizons: Sequence[str], rows: slice, place: int
) -> Mapping[str, AnyArray]:
    """The targets of one market as stored columns, each [n_rows]."""
    columns: dict[str, AnyArray] = {}
    for index, horizon in enumerate(horizons):
        for side, word in enumerate(SIDES):
            columns[f"mae_{word}_{horizon}"] = result.mae[rows, place, index, side]
        columns[f"variance_{horizon}"] = result.variance[rows, place, index]
        for stem in STRESS_COLUMNS.values():
            columns[f"{stem}_{horizon}"] = getattr(result, stem)[rows, place, index].astype(np.float32)
    return columns


def _has_default(item: Any) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


def _empty(info: DatasetInfo, ts: TimeUs) -> Dataset:
    shape = (len(ts), len(info.markets))
    horizons = len(info.horizons)
    return Dataset(
        info=info,
        ts=ts,
        markets=info.reference,
        feature_names=info.features,
        features=np.full((*shape, len(info.features)), np.nan, dtype=np.float32),
        close=np.full(shape, np.nan),
        mae=np.full((*shape, horizons, 2), np.nan),
        variance=np.full((*shape, horizons), np.nan),
        stress=np.full((*shape, horizons), np.nan),
        stress_liquidation=np.full((*shape, horizons), np.nan),
        stress_depth=np.full((*shape, horizons), np.nan),
    )


def _place_rows(file: Path, data: Dataset, market: int) -> int:
    """Lay one file's rows out in a dataset; how many lie on its grid."""
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}", fix="build the dataset again") from error
    row = (table["ts"].cast(pa.int64()).to_numpy() - data.ts[0]) // duration_us(data.info.interval)
    inside = (row >= 0) & (row < len(data.ts))
    row = row[inside]
    data.close[row, market] = _column(table, "close", inside)
    if data.feature_names:
        values = np.stack([_column(table, name, inside) for name in data.feature_names], axis=1)
        data.features[row, market] = values
    for place, horizon in enumerate(data.info.horizons):
        for side, word in enumerate(SIDES):
            data.mae[row, market, place, side] = _column(table, f"mae_{word}_{horizon}", inside)
        data.variance[row, market, place] = _column(table, f"variance_{horizon}", inside)
        for stem in STRESS_COLUMNS.values():
            name = f"{stem}_{horizon}"
            if name in table.column_names or stem == "stress":
                getattr(data, stem)[row, market, place] = _column(table, name, inside)
    return len(row)


def _column(table: pa.Table, name: str, inside: Bool1D) -> AnyArray:
    return table[name].to_numpy()[inside]
