"""How the lake lays rows out in files, and how one file is written and read.

``<lake>/<table>/venue=V/symbol=S/year=Y.parquet`` for markets, ``chain=C/year=Y`` for
chains, ``venue=V/asset=A/year=Y`` for pegs, ``date=YYYY-MM-DD`` for accounts and
``all.parquet`` for instruments. Key columns are stored in the file as well: a path is
only an index.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, date
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Int1D
from riskml.contracts import TableContract, contract
from riskml.errors import DataError
from riskml.tables.contracts import enforce
from riskml.units import DAY, to_us

_FOLDERS: dict[str, tuple[str, ...]] = {
    "market": ("venue", "symbol"),
    "chain": ("chain",),
    "asset": ("venue", "asset"),
    "date": (),
    "none": (),
}
_ROW_GROUP = 65_536
"""Rows per group at most: small enough to skip, large enough to compress."""
_FOREVER = (-(2**62), 2**62)


@dataclass(frozen=True)
class LakePartition:
    """One file of the lake."""

    path: Path
    """The file."""
    table: str
    """Table that it belongs to."""
    keys: dict[str, str]
    """Values that the path gives, e.g. ``{"venue": "binance", "symbol": "BTC"}``."""
    year: int | None = None
    """Calendar year (UTC) of ``ts``, for tables partitioned by year."""
    date: str | None = None
    """Calendar day (UTC) of ``ts``, for tables partitioned by date."""

    @property
    def span(self) -> tuple[int, int]:
        """First and one-past-last microsecond that rows of this file may have."""
        if self.date is not None:
            start = to_us(self.date)
            return start, start + DAY
        if self.year is not None:
            return to_us(date(self.year, 1, 1)), to_us(date(self.year + 1, 1, 1))
        return _FOREVER

    @property
    def relative(self) -> str:
        """The path from the lake's root, with forward slashes."""
        depth = len(_FOLDERS[contract(self.table).partition]) + 2
        return "/".join(self.path.parts[-depth:])


def list_partitions(lake: Path, table: str) -> list[LakePartition]:
    """Every file of a table in path order; names that the layout does not know are left out."""
    folder = lake / table
    if not folder.is_dir():
        return []
    spec = contract(table)
    found = (_parse(spec, path) for path in sorted(_walk(folder, len(_FOLDERS[spec.partition]))))
    return [partition for partition in found if partition is not None]


def foreign_files(lake: Path, table: str) -> list[Path]:
    """Files in a table's folder that are no partition of it (hidden files excepted)."""
    known = {partition.path for partition in list_partitions(lake, table)}
    files = (path for path in (lake / table).rglob("*") if path.is_file())
    return sorted(path for path in files if path not in known and not path.name.startswith("."))


def split_rows(lake: Path, table: str, data: pa.Table) -> Iterator[tuple[LakePartition, Int1D]]:
    """Assign the rows of contract-form ``data`` to files: pairs of partition and row numbers."""
    spec = contract(table)
    folders = _FOLDERS[spec.partition]
    labels = [_words(data.column(name)) for name in folders] + [_time_labels(spec, data)]
    group = np.zeros(data.num_rows, np.int64)
    for codes, words in labels:
        group = group * len(words) + codes
    order = np.argsort(group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order])) + 1
    for rows in np.split(order, edges):
        if rows.size:
            values = [words[codes[rows[0]]] for codes, words in labels]
            yield _partition(lake, spec, dict(zip(folders, values[:-1], strict=True)), values[-1]), rows


def read_partition(
    partition: LakePartition,
    columns: Sequence[str] | None = None,
    *,
    interval: Collection[str] | None = None,
    groups: Sequence[int] | None = None,
) -> pa.Table:
    """Read one file and enforce its contract.

    Parameters
    ----------
    partition : the file.
    columns : these and the key columns only (default: all).
    interval : skip row groups whose statistics exclude these bar lengths; rows of other
        lengths may still come back.
    groups : read these row groups only, see :func:`row_groups`.

    Raises
    ------
    DataError : the file is truncated or no Parquet.
    ContractError : the rows break the contract.
    """
    spec = contract(partition.table)
    try:
        with pq.ParquetFile(partition.path) as file:
            stored = file.schema_arrow.names
            _check_stored(partition, stored)
            keep = stored if columns is None else [n for n in stored if n in {*columns, *spec.full_key, "ts"}]
            chosen = _groups(file, interval) if groups is None else list(groups)
            data = file.read_row_groups(chosen, columns=keep, use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise damaged(partition, error) from error
    return enforce(partition.table, data, where=partition.relative, columns=columns)


@dataclass(frozen=True)
class RowGroup:
    """A piece of a file that can be read alone."""

    number: int
    first: int
    """Earliest ``ts`` in it, us; the start of the file's period where the file does not say."""
    last: int
    """Latest ``ts``, likewise."""


def row_groups(partition: LakePartition, interval: Collection[str] | None = None) -> list[RowGroup]:
    """The row groups of a file that may hold bars of the given lengths, from its footer.

    Raises
    ------
    DataError : the file is truncated or no Parquet.
    """
    try:
        with pq.ParquetFile(partition.path) as file:
            column = file.schema_arrow.get_field_index("ts")
            readable = column >= 0 and file.schema_arrow.field(column).type == pa.timestamp("us", tz="UTC")
            start, stop = partition.span
            found = []
            for number in _groups(file, interval):
                ts = file.metadata.row_group(number).column(column).statistics if readable else None
                if ts is None or not ts.has_min_max:
                    found.append(RowGroup(number, start, stop - 1))
                else:
                    found.append(RowGroup(number, int(ts.min_raw), int(ts.max_raw)))
            return found
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(partition, error) from error


def _check_stored(partition: LakePartition, stored: Sequence[str]) -> None:
    """Names of a file's columns, before a projection hides that one is missing."""
    spec = contract(partition.table)
    if any(column.required and column.name not in stored for column in spec.columns):
        nothing = pa.table({name: pa.nulls(0) for name in stored})
        enforce(partition.table, nothing, where=partition.relative)


def _groups(file: pq.ParquetFile, interval: Collection[str] | None) -> list[int]:
    groups = list(range(file.metadata.num_row_groups))
    index = file.schema_arrow.get_field_index("interval")
    if interval is None or index < 0:
        return groups
    kept = []
    for group in groups:
        statistics = file.metadata.row_group(group).column(index).statistics
        known = statistics is not None and statistics.has_min_max
        if not known or any(statistics.min <= name <= statistics.max for name in interval):
            kept.append(group)
    return kept


def damaged(partition: LakePartition, error: Exception) -> DataError:
    """The error for a file that cannot be read as Parquet."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"{partition.relative} is truncated or no Parquet file: {reason}",
        table=partition.table,
        market=":".join(partition.keys.values()) or None,
        fix=f"delete {partition.path} and ingest its source again",
    )


def write_file(path: Path, table: str, data: pa.Table) -> None:
    """Write rows (in storage order) as zstd Parquet with the same bytes for the same rows."""
    text = [column.name for column in contract(table).columns if column.kind == "text"]
    with pq.ParquetWriter(
        path, data.schema, compression="zstd", compression_level=1, use_dictionary=text
    ) as writer:
        for start, stop in _runs(data):
            writer.write_table(data.slice(start, stop - start), row_group_size=_ROW_GROUP)


def _runs(data: pa.Table) -> Iterator[tuple[int, int]]:
    """Row ranges of equal ``interval``: a row group never mixes two, so that one can be skipped."""
    if "interval" not in data.column_names or not data.num_rows:
        yield 0, data.num_rows
        return
    codes, _ = _words(data.column("interval"))
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), data.num_rows]
    yield from itertools.pairwise(edges)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if depth:
        for child in folder.iterdir():
            if child.is_dir():
                yield from _walk(child, depth - 1)
        return
    yield from folder.glob("*.parquet")


def _parse(spec: TableContract, path: Path) -> LakePartition | None:
    folders = _FOLDERS[spec.partition]
    parents = path.parts[len(path.parts) - 1 - len(folders) : -1]
    keys = {}
    for name, part in zip(folders, parents, strict=True):
        if not part.startswith(f"{name}="):
            return None
        keys[name] = unquote(part.removeprefix(f"{name}="))
    stem = path.name.removesuffix(".parquet")
    if spec.partition == "none":
        return LakePartition(path, spec.name, keys) if stem == "all" else None
    if spec.partition == "date":
        return LakePartition(path, spec.name, keys, date=stem[5:]) if _is_date(stem) else None
    year = stem.removeprefix("year=")
    if not stem.startswith("year=") or not _is_year(year):
        return None
    return LakePartition(path, spec.name, keys, year=int(year))


def _is_year(text: str) -> bool:
    return len(text) == 4 and text.isascii() and text.isdecimal() and 1 <= int(text) < MAXYEAR


def _is_date(stem: str) -> bool:
    try:
        return stem == f"date={date.fromisoformat(stem.removeprefix('date=')).isoformat()}"
    except ValueError:
        return False


def _partition(lake: Path, spec: TableContract, keys: dict[str, str], when: str) -> LakePartition:
    folder = lake / spec.name
    for name, value in keys.items():
        folder = folder / f"{name}={quote(value, safe='')}"
    if spec.partition == "none":
        return LakePartition(folder / "all.parquet", spec.name, keys)
    if spec.partition == "date":
        return LakePartition(folder / f"date={when}.parquet", spec.name, keys, date=when)
    return LakePartition(folder / f"year={when}.parquet", spec.name, keys, year=int(when))


def _time_labels(spec: TableContract, data: pa.Table) -> tuple[Int1D, list[str]]:
    if spec.partition == "none":
        return np.zeros(data.num_rows, np.int64), [""]
    unit = "D" if spec.partition == "date" else "Y"
    times = data.column("ts").cast(pa.int64()).to_numpy().astype("datetime64[us]")
    values, codes = np.unique(times.astype(f"datetime64[{unit}]"), return_inverse=True)
    return codes.astype(np.int64), [str(value) for value in values]


def _words(column: pa.ChunkedArray) -> tuple[Int1D, list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def check_place(partition: LakePartition, data: pa.Table) -> list[str]:
    """Why rows do not belong into this file: wrong key values or times; empty when they do."""
    reasons = []
    for name, value in partition.keys.items():
        found = [item for item in pc.unique(data.column(name)).to_pylist() if item != value]
        if found:
            reasons.append(f"column '{name}' holds '{found[0]}', the path says '{value}'")
    start, stop = partition.span
    if data.num_rows:
        times: AnyArray = data.column("ts").cast(pa.int64()).to_numpy()
        if times.min() < start or times.max() >= stop:
            reasons.append("'ts' lies outside the period that the path gives")
    return reasons
