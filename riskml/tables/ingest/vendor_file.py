"""What a vendor file is: its source, its name's parts, and the rows that come out of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Bool1D, TimeUs
from riskml.errors import ContractError, DataError, Problem, nearest
from riskml.facts import load_facts
from riskml.tables.contracts import TIME, schema
from riskml.tables.ingest.symbols import Instrument
from riskml.units import HOUR, duration_us

_KINDS = {
    "timestamp": ("ts", "time", "date", "snapshot_time"),
    "text": (
        *("user", "account", "coin", "coins", "symbol", "asset", "chain", "bridge", "venue", "pair"),
        *("window", "collateral", "collateral_symbol", "debt_symbol"),
    ),
    "flag": ("active", "frozen", "paused"),
    "name": ("account_id",),
}
"""Columns of vendor files that hold no numbers, by what they hold; a name is text or a number."""
_STEPS_TELL = 3
"""From so many steps on the most frequent one says how far apart rows are."""


@dataclass(frozen=True)
class Source:
    """One entry of ``facts/sources.toml``."""

    name: str
    """Name of the source."""
    table: str
    """Table that its rows go into."""
    adapter: str
    """Name of the function that makes them."""
    pattern: re.Pattern[str]
    """Path below the vendor folder, without ``.parquet``."""
    lag_us: int
    """``known_at - ts`` in microseconds."""
    staleness_us: int
    """Age at which a value counts as missing, in microseconds."""
    options: Mapping[str, Any]
    """The whole entry."""


@dataclass(frozen=True)
class VendorFile:
    """A file that a source takes."""

    path: Path
    """The file."""
    relative: str
    """Path below the vendor folder, with forward slashes."""
    source: Source
    """The source whose pattern it matches."""
    parts: Mapping[str, str]
    """Named groups of the pattern: venue, symbol, interval, asset."""


@dataclass(frozen=True)
class Skip:
    """Something that was left out on purpose."""

    path: str
    """File, relative to the vendor folder."""
    reason: str
    """Why."""
    rows: int | None = None
    """Rows left out; None = the whole file, unread."""


@dataclass(frozen=True)
class Adapted:
    """Rows of one vendor file, by table."""

    rows: dict[str, pa.Table]
    """Rows in the contract's columns, not yet checked."""
    instruments: tuple[Instrument, ...] = ()
    """Contracts that the file describes."""
    skipped: tuple[Skip, ...] = field(default=())
    """Parts of the file that were left out on purpose."""
    problems: tuple[Problem, ...] = field(default=())
    """Parts that could not be used."""


@dataclass(frozen=True)
class Refusal:
    """Files that are left out on purpose: a ``[[refused]]`` entry of ``facts/sources.toml``."""

    pattern: re.Pattern[str]
    """Path below the vendor folder, without ``.parquet``."""
    reason: str
    """Why none of their rows may be used."""


@cache
def refusals() -> tuple[Refusal, ...]:
    """Every refusal of ``facts/sources.toml``; it comes before any source."""
    return tuple(
        Refusal(re.compile(entry["pattern"]), " ".join(entry["reason"].split()))
        for entry in load_facts("sources").get("refused", ())
    )


def refused(relative: str) -> str | None:
    """Why a file is left out; None when it is not."""
    stem = relative.removesuffix(".parquet")
    return next((entry.reason for entry in refusals() if entry.pattern.match(stem)), None)


@cache
def sources() -> tuple[Source, ...]:
    """Every source of ``facts/sources.toml``, in order of precedence."""
    return tuple(
        Source(
            entry["name"],
            entry["table"],
            entry["adapter"],
            re.compile(entry["pattern"]),
            _lag(entry["lag"]),
            duration_us(entry["staleness"]),
            entry,
        )
        for entry in load_facts("sources")["source"]
    )


def match_source(path: Path, relative: str) -> VendorFile | None:
    """The file with the first source whose pattern takes it; None when there is none."""
    stem = relative.removesuffix(".parquet")
    for source in sources():
        found = source.pattern.match(stem)
        if found:
            return VendorFile(path, relative, source, found.groupdict())
    return None


def read_vendor(file: VendorFile, required: tuple[str, ...]) -> pa.Table:
    """Read a vendor file that has to have some columns.

    Raises
    ------
    DataError : the file is truncated or no Parquet.
    ContractError : a required column is missing, or is not of the kind that its name says.
    """
    try:
        with pq.ParquetFile(file.path) as handle:
            data = handle.read(use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        message = f"{file.relative} is truncated or no Parquet file: {str(error).splitlines()[0]}"
        fix = "fetch the file again"
        problem = Problem("damaged-file", message, fix, file.source.table, file.parts.get("symbol"))
        raise DataError(message, table=file.source.table, fix=fix, problems=(problem,)) from error
    problems = [
        Problem(
            "missing-column",
            f"{file.relative} lacks column '{name}', which source '{file.source.name}' needs."
            + nearest(name, data.column_names),
            "fetch the file again, or add a source for its form to facts/sources.toml",
            file.source.table,
            file.parts.get("symbol"),
        )
        for name in required
        if name not in data.column_names
    ]
    problems += [
        _wrong_type(file, name, f"{kind}s", str(data.schema.field(name).type))
        for name in required
        if name in data.column_names and not _is_kind(data.schema.field(name).type, kind := _kind(name))
    ]
    if problems:
        raise ContractError.from_problems(problems, f"{file.relative} is not of its source's form")
    return data


def _kind(column: str) -> str:
    return next((kind for kind, names in _KINDS.items() if column in names), "number")


def _is_kind(found: pa.DataType, kind: str) -> bool:
    types = pa.types
    if kind == "timestamp":
        return bool(types.is_timestamp(found))
    if kind == "flag":
        return bool(types.is_boolean(found))
    if types.is_null(found):  # a column without a single value
        return True
    is_number = bool(types.is_floating(found) or types.is_integer(found))
    if types.is_dictionary(found):
        found = found.value_type
    is_text = bool(types.is_string(found) or types.is_large_string(found))
    return {"number": is_number, "text": is_text, "name": is_text or is_number}[kind]


def _wrong_type(file: VendorFile, column: str, wanted: str, found: str) -> Problem:
    message = f"{file.relative}: column '{column}' has to hold {wanted}, found {found}"
    market = file.parts.get("symbol")
    fix = "fetch the file again"
    return Problem("wrong-type", message, fix, file.source.table, market, partition=file.relative)


def times_us(file: VendorFile, data: pa.Table, column: str) -> pa.Array:
    """A time column as int64 microseconds UTC.

    Raises
    ------
    ContractError : the column holds no timestamps, or null.
    """
    times = data.column(column).combine_chunks()
    if not pa.types.is_timestamp(times.type) or times.null_count:
        found = "null" if pa.types.is_timestamp(times.type) else str(times.type)
        raise ContractError.from_problems([_wrong_type(file, column, "timestamps", found)], file.relative)
    # Parts of a microsecond carry nothing; times that leave the range of int64 are an error.
    is_safe = times.type.unit != "ns"
    return times.cast(pa.timestamp("us", tz=times.type.tz), safe=is_safe).cast(pa.int64())


def bar_ends(file: VendorFile, data: pa.Table) -> pa.Array:
    """When the bars of a file end, which stamps them with their open: int64 microseconds.

    Raises
    ------
    ContractError : as :func:`times_us`, and code ``wrong-interval`` where the rows are
        not as far apart as the file's name says.
    """
    opens, interval = times_us(file, data, "ts"), duration_us(file.parts["interval"])
    step = usual_step(opens.to_numpy())
    if step is not None and step != interval:
        message = (
            f"{file.relative}: rows every {file.parts['interval']} are expected,"
            f" most are {step / HOUR:g} h apart"
        )
        fix = "name the file after the interval of its rows, one interval per file"
        table, market = file.source.table, file.parts.get("symbol")
        problem = Problem("wrong-interval", message, fix, table, market, partition=file.relative)
        raise ContractError.from_problems([problem], file.relative)
    return pc.add(opens, interval)


def usual_step(times: TimeUs) -> int | None:
    """The most frequent distance between times, in microseconds; None for fewer than four times.

    >>> usual_step(np.array([0, 5, 10, 30, 35]))
    5
    """
    steps = np.diff(np.unique(times))
    if steps.size < _STEPS_TELL:
        return None
    values, counts = np.unique(steps, return_counts=True)
    return int(values[np.argmax(counts)])


def make_rows(table: str, ts_us: pa.Array, lag_us: int, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of a table: times, constants repeated, columns as they are.

    Parameters
    ----------
    table : name of the contract, which gives the order.
    ts_us : int64 [n_rows], microseconds of the event.
    lag_us : ``known_at - ts``.
    columns : per column a constant ``str`` or number, or an array of n_rows.
    """
    known = ts_us if lag_us == 0 else pc.add(ts_us, lag_us)
    arrays: dict[str, Any] = {"ts": ts_us.cast(TIME), "known_at": known.cast(TIME)}
    for name, value in columns.items():
        constant = isinstance(value, (str, float, int))
        arrays[name] = pa.repeat(pa.scalar(value), len(ts_us)) if constant else value
    order = [name for name in schema(table).names if name in arrays]
    return pa.table({name: arrays[name] for name in order})


def numbers(data: pa.Table, column: str) -> AnyArray:
    """A column as float64 [n_rows]; null is NaN."""
    return np.asarray(data.column(column).cast(pa.float64()).to_numpy(), np.float64)


def words(data: pa.Table, column: str) -> AnyArray:
    """A text column as an object array of ``str`` [n_rows]; null is the empty string."""
    encoded = data.column(column).cast(pa.string()).combine_chunks().fill_null("").dictionary_encode()
    values = np.asarray(encoded.dictionary.to_pylist(), object)
    return np.asarray(values[encoded.indices.to_numpy(zero_copy_only=False)])


class Sieve:
    """Decides row by row what a vendor file gives, and remembers what was left out and why.

    Parameters
    ----------
    file : the file that the rows are of.
    rows : how many it has.
    """

    def __init__(self, file: VendorFile, rows: int) -> None:
        self._file = file
        self._counts: dict[str, int] = {}
        self.keep: Bool1D = np.ones(rows, bool)
        """[n_rows] what no rule has left out so far."""

    def drop(self, bad: Bool1D, reason: str) -> None:
        """Leave out the rows [n_rows] that are still in and ``bad``."""
        hit = self.keep & np.asarray(bad, bool)
        if hit.any():
            self._counts[reason] = self._counts.get(reason, 0) + int(hit.sum())
            self.keep = self.keep & ~hit

    @property
    def mask(self) -> pa.Array:
        """:attr:`keep` for ``pa.Table.filter``."""
        return pa.array(self.keep)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """One entry per reason with its number of rows."""
        return tuple(Skip(self._file.relative, reason, rows) for reason, rows in self._counts.items())


def _lag(text: str) -> int:
    return 0 if text == "0s" else duration_us(text)
