"""What an ingest of published files gathers: rows by table, counts, skips and problems.

A bad file or row never stops the others, a table of a market is written whole or not at
all, and files that overlap (a month and its days) give each row once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import Bool1D, Int1D
from riskml.contracts import contract
from riskml.errors import ConflictError, DataError, Problem, RiskmlError
from riskml.tables.contracts import as_arrays, drop_invalid, empty, from_arrays
from riskml.tables.ingest.report import IngestReport
from riskml.tables.ingest.symbols import Instrument
from riskml.tables.ingest.vendor_file import Skip
from riskml.tables.keys import key_codes, sort_codes
from riskml.tables.lake import Lake

_COUNTS = ("files", "files_skipped", "rows_added", "rows_unchanged", "rows_dropped")
_MARK_COLUMNS = tuple(f"mark_{name}" for name in ("open", "high", "low", "close"))
_INDEX_COLUMNS = tuple(f"index_{name}" for name in ("open", "high", "low", "close"))


@dataclass(frozen=True)
class FileRows:
    """Rows that one file gives to one table."""

    where: str
    """The file, as problems call it."""
    data: pa.Table
    """Rows in the contract's columns, not yet checked."""


@dataclass
class Gathering:
    """The state of one ingest of published files."""

    lake: Lake
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    skipped: list[Skip] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _notes: dict[tuple[str, str], int] = field(default_factory=dict)
    _seen: dict[tuple[str, str], tuple[Instrument, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lake.path.exists():
            self.lake.tables()  # a lake that is a file is refused before anything is read

    def count(self, name: str, number: int) -> None:
        """Add to a counter of the report."""
        self.counts[name] = self.counts.get(name, 0) + number

    def note(self, what: str, reason: str, rows: int) -> None:
        """Count rows that were left out on purpose, all files of a kind together."""
        if rows:
            self._notes[what, reason] = self._notes.get((what, reason), 0) + rows

    def fail(self, error: RiskmlError, where: str, table: str | None, market: str | None) -> None:
        """Keep an error as problems that name the file's table and market."""
        found = error.problems or (Problem("bad-file", f"{where}: {error.message}", error.fix or ""),)
        self.problems += [
            Problem(
                problem.code,
                problem.message,
                problem.fix,
                problem.table or table,
                problem.market or market,
                problem.row,
                problem.partition or where,
            )
            for problem in found
        ]

    def write(self, table: str, parts: Sequence[FileRows], instrument: Instrument) -> None:
        """Check, unite and write the rows that several files give to a market's table.

        Invalid rows are left out and reported. Of two rows with an equal full key the
        first file's stays, and a row that the lake has already stays as it is there; both
        are a problem only when they differ, one for all such rows. Marks come as rows of
        mark prices and rows of index prices, which are joined.
        """
        checked = [self._valid(table, part) for part in parts]
        data = self._unite(table, checked, instrument)
        if not data.num_rows:
            return
        market = f"{instrument.venue}:{instrument.symbol}"
        try:
            data = self._store(table, data, market)
        except RiskmlError as error:
            self.fail(error, parts[0].where, table, market)
            return
        if not data.num_rows:
            return
        first = pc.min(data.column("ts").cast(pa.int64())).as_py()
        key = (instrument.venue, instrument.symbol)
        known, ts = self._seen.get(key, (instrument, first))
        self._seen[key] = (known, min(ts, first))

    def finish(self, files: int) -> IngestReport:
        """Write the new markets and return the report; ``files`` is how many were taken."""
        self._write_instruments()
        self.counts["files"] = files
        self.counts["files_skipped"] = sum(skip.rows is None for skip in self.skipped)
        notes = [Skip(what, reason, rows) for (what, reason), rows in sorted(self._notes.items())]
        return IngestReport(self.counts, (*self.skipped, *notes), tuple(self.problems))

    def _store(self, table: str, data: pa.Table, market: str) -> pa.Table:
        """Write rows; the ones that the lake has with other values are told. Returns the others."""
        try:
            result = self.lake.write(table, data)
        except ConflictError as error:
            self.problems.append(_conflict(error, table, market))
            self.count("rows_dropped", len(error.rows))
            conflicting = np.asarray(error.rows, np.int64)
            data = data.take(pa.array(np.delete(np.arange(data.num_rows), conflicting)))
            result = self.lake.write(table, data)
        self.count(table, result.rows_added)
        self.count("rows_added", result.rows_added)
        self.count("rows_unchanged", result.rows_unchanged)
        return data

    def _valid(self, table: str, part: FileRows) -> pa.Table:
        first, later = _repeated_keys(table, part.data)
        same = later[~_differ(part.data, first, later)]  # metrics and liquidations repeat whole rows
        self.count("rows_unchanged", len(same))
        raw = part.data.take(pa.array(np.delete(np.arange(part.data.num_rows), same)))
        try:
            data, problems = drop_invalid(table, raw, where=part.where)
        except RiskmlError as error:
            self.fail(error, part.where, table, None)
            return empty(table)
        self.problems += problems
        self.count("rows_dropped", raw.num_rows - data.num_rows)
        return data

    def _unite(self, table: str, parts: Sequence[pa.Table], instrument: Instrument) -> pa.Table:
        if table != "marks":
            return self._distinct(table, pa.concat_tables(parts), instrument)
        marks = [part for part in parts if part.column("mark_close").null_count < part.num_rows]
        indices = [part for part in parts if part.column("index_close").null_count < part.num_rows]
        if not marks or not indices:
            return self._distinct(table, pa.concat_tables(parts), instrument)
        left = self._distinct(table, pa.concat_tables(marks), instrument).drop_columns(list(_INDEX_COLUMNS))
        right = self._distinct(table, pa.concat_tables(indices), instrument).drop_columns(list(_MARK_COLUMNS))
        keys = list(contract(table).full_key)
        return left.join(right, keys, join_type="full outer", use_threads=False)

    def _distinct(self, table: str, data: pa.Table, instrument: Instrument) -> pa.Table:
        """Each key once; a key with several values is a problem and keeps the first."""
        data = data.combine_chunks()
        first, later = _repeated_keys(table, data)
        if not len(later):
            return data
        wrong = later[_differ(data, first, later)]
        self.count("rows_unchanged", len(later) - len(wrong))
        self.count("rows_dropped", len(wrong))
        if len(wrong):
            row = data.slice(int(wrong.min()), 1).to_pylist()[0]
            key = ", ".join(f"{name}={row[name]}" for name in contract(table).key)
            message = f"{len(wrong)} rows are given twice with different values, the first at {key}"
            fix = "keep one of the files that overlap; taken were the first one's rows, months before days"
            market = f"{instrument.venue}:{instrument.symbol}"
            self.problems.append(Problem("conflicting-files", message, fix, table, market))
        return data.take(pa.array(np.delete(np.arange(data.num_rows), later)))

    def _write_instruments(self) -> None:
        """Add the markets that the lake's instruments do not have yet."""
        if not self._seen:
            return
        stored = self.lake.read("instruments", columns=["venue", "symbol"]).to_pylist()
        known = {(row["venue"], row["symbol"]) for row in stored}
        fresh = [entry for key, entry in sorted(self._seen.items()) if key not in known]
        if not fresh:
            return
        names = ("venue", "symbol", "base", "quote", "settle_asset", "kind", "vendor_symbol")
        columns = {name: np.array([getattr(one, name) for one, _ in fresh], object) for name in names}
        columns["contract_multiplier"] = np.array([one.contract_multiplier for one, _ in fresh])
        columns["ts"] = columns["known_at"] = columns["listing"] = np.array([ts for _, ts in fresh], np.int64)
        self.count(
            "instruments", self.lake.write("instruments", from_arrays("instruments", columns)).rows_added
        )


def find_files(path: Path, fix: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and every file at or below a path, in order.

    Hidden files are left out. Links to folders are not followed.

    Raises
    ------
    DataError : the path does not exist.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist", fix=fix)
    path = path.resolve()
    if path.is_file():
        return path.parent, [path]
    found = sorted(item for item in path.rglob("*") if item.is_file())
    return path, [item for item in found if not item.name.startswith(".")]


def nothing_taken(path: Path, run: Gathering, fix: str) -> DataError:
    """The error for a path of which no file can be taken, with the reasons."""
    reasons = Counter(skip.reason for skip in run.skipped)
    problems = [
        *run.problems,
        *(Problem("left-out", f"{n} x {reason}") for reason, n in reasons.most_common(9)),
    ]
    first = f": {problems[0].message}" if problems else ""
    return DataError(f"{path} holds no file that can be taken{first}", fix=fix, problems=problems)


def _repeated_keys(table: str, data: pa.Table) -> tuple[Int1D, Int1D]:
    """Rows with a key that an earlier row has: the earlier row's number, and their own.

    Keys with a null are left to the contract's check.
    """
    spec = contract(table)
    nothing = np.zeros(0, np.int64)
    if data.num_rows < 2 or any(data.column(name).null_count for name in spec.full_key):
        return nothing, nothing
    order, equal = sort_codes(key_codes(spec, data))
    if order is None:
        order = np.arange(data.num_rows)
    starts = np.concatenate(([True], ~equal))
    firsts = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return firsts[~starts], order[~starts]


def _differ(data: pa.Table, first: Int1D, later: Int1D) -> Bool1D:
    """Whether rows differ in any column; bool [len(first)]. Null equals null."""
    differs = np.zeros(len(first), bool)
    for values in as_arrays(data).values():
        one, other = values[first], values[later]
        unequal = one != other
        if values.dtype.kind == "f":
            unequal &= ~(np.isnan(one) & np.isnan(other))
        differs |= unequal
    return differs


def _conflict(error: ConflictError, table: str, market: str) -> Problem:
    """One problem for all rows that are stored with other values: a year of them is one finding."""
    first = error.problems[0]
    message = f"{first.message} ({len(error.rows)} such rows; the stored ones stay)"
    fix = "use one source per market and lake, and give mark and index files to one ingest"
    return Problem(first.code, message, fix, table, market, None, first.partition)
