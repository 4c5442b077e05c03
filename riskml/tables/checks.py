"""``riskml check``: everything that is wrong with a lake, in one report.

Reads every file once, applies its contract, and looks for what a contract cannot see:
gaps, columns that stand still, values in the wrong unit, venues that disagree, files
that do not belong. Findings are grouped per file, so that one bad year is one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.contracts import CONTRACTS, contract
from riskml.errors import ContractError, DataError, Problem, nearest
from riskml.facts import load_facts
from riskml.tables.check_flows import TradedLevels
from riskml.tables.check_series import SeriesEnds, check_steps, check_still, check_units
from riskml.tables.check_venues import PriceLevels
from riskml.tables.contracts import drop_invalid, schema
from riskml.tables.keys import key_codes, sort_codes
from riskml.tables.lake import Lake, as_lake
from riskml.tables.partitions import LakePartition, check_place, damaged, foreign_files, list_partitions
from riskml.units import TimeLike, duration_us, format_us, to_us

WARNINGS = frozenset(
    {"gap", "constant-column", "stale-column", "foreign-type", "unsorted-rows", "foreign-file", "stale-table"}
)
"""Codes of findings that a lake can live with; all others are errors."""


@dataclass(frozen=True)
class CheckReport:
    """The findings of a check."""

    problems: tuple[Problem, ...]
    """Every finding, by table and partition."""
    counts: dict[str, int]
    """``tables``, ``partitions``, ``rows``, ``errors``, ``warnings`` and rows per table."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Findings that make results wrong."""
        return tuple(problem for problem in self.problems if problem.code not in WARNINGS)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Findings that the pipeline copes with, such as gaps of a venue."""
        return tuple(problem for problem in self.problems if problem.code in WARNINGS)

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are allowed."""
        return not self.errors


def check_lake(lake: Lake | str | Path, now: TimeLike | None = None) -> CheckReport:
    """Check every file of a lake and report all findings at once.

    Parameters
    ----------
    lake : the lake or its folder.
    now : judge staleness and rows from the future against this time; None = do not.

    Raises
    ------
    DataError : there is no lake. Findings never raise.
    """
    lake = as_lake(lake)
    tables = lake.tables()
    moment = None if now is None else to_us(now)
    problems = list(_check_folders(lake))
    if not tables:
        message = f"{lake.path} holds no table"
        problems.append(Problem("no-table", message, "pass a lake, or fill it with 'riskml ingest'"))
    counts = {"tables": len(tables), "partitions": 0, "rows": 0}
    levels = (PriceLevels(), TradedLevels())
    for table in tables:
        found, partitions, rows = _check_table(lake, table, moment, levels)
        problems += found
        counts["partitions"] += partitions
        counts["rows"] += rows
        counts[table] = rows
    problems += [problem for kind in levels for problem in kind.problems()]
    report = CheckReport(tuple(problems), counts)
    counts["errors"], counts["warnings"] = len(report.errors), len(report.warnings)
    return report


def _check_folders(lake: Lake) -> Iterator[Problem]:
    for path in sorted(lake.path.iterdir()):
        if path.name in CONTRACTS and path.is_dir():
            for file in foreign_files(lake.path, path.name):
                place = file.relative_to(lake.path).as_posix()
                message = f"{place} is no partition of '{path.name}' and is never read"
                yield Problem("foreign-file", message, "move it out of the lake", path.name, partition=place)
            for file in sorted(path.rglob(".*.tmp")):
                place = file.relative_to(lake.path).as_posix()
                message = f"{place} is left over from an interrupted write"
                yield Problem("foreign-file", message, "delete it", path.name, partition=place)
        elif not path.name.startswith("."):
            message = f"'{path.name}' is no table.{nearest(path.name, CONTRACTS)}"
            yield Problem(
                "foreign-file", message, "rename it or move it out of the lake", partition=path.name
            )


def _check_table(
    lake: Lake, table: str, now: int | None, levels: tuple[PriceLevels, TradedLevels]
) -> tuple[list[Problem], int, int]:
    """Findings of one table, its number of files and of usable rows."""
    problems: list[Problem] = []
    rows, latest = 0, None
    partitions = list_partitions(lake.path, table)
    for _, group in groupby(partitions, key=lambda part: part.keys):
        ends = SeriesEnds()
        for partition in group:
            data, found = _read(partition)
            problems += found
            if data is None or not data.num_rows:
                continue
            rows += data.num_rows
            times = data.column("ts").cast(pa.int64()).to_numpy()
            latest = max(int(times.max()), latest or int(times.max()))
            problems += check_steps(partition, data, ends)
            problems += check_still(partition, data)
            problems += check_units(partition, data)
            problems += _check_future(partition, data, now)
            for kind in levels:
                kind.add(partition, data)
    problems += _check_stale(table, latest, now)
    return problems, len(partitions), rows


def _read(partition: LakePartition) -> tuple[pa.Table | None, list[Problem]]:
    """The rows of a file that follow the contract, in storage order, and its findings."""
    try:
        with pq.ParquetFile(partition.path) as file:
            data = file.read(use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        return None, [_as_problem(partition, "damaged-file", damaged(partition, error))]
    problems = _check_types(partition, data.schema)
    try:
        data, found = drop_invalid(partition.table, data, where=partition.relative)
    except ContractError as error:
        return None, [*problems, *error.problems]
    problems += found
    fix = "write rows with Lake.write"
    for reason in check_place(partition, data):
        problems.append(_finding(partition, "wrong-partition", f"{partition.relative}: {reason}", fix))
    order, _ = sort_codes(key_codes(contract(partition.table), data))
    if order is not None:
        row = int(np.flatnonzero(np.diff(order) < 0)[0]) + 1
        message = f"time and key are not in order in {partition.relative}"
        problems.append(_finding(partition, "unsorted-rows", message, f"{fix}, which sorts them", row))
        data = data.take(order)
    return data, problems


def _check_types(partition: LakePartition, found: pa.Schema) -> list[Problem]:
    wanted = schema(partition.table)
    foreign = [
        f"'{field.name}' {field.type} for {wanted.field(field.name).type}"
        for field in found
        if field.name in wanted.names and not field.type.equals(wanted.field(field.name).type)
    ]
    if not foreign:
        return []
    message = f"{partition.relative} stores other types than the contract: {', '.join(foreign)}"
    return [_finding(partition, "foreign-type", message, "write rows with Lake.write")]


def _check_future(partition: LakePartition, data: pa.Table, now: int | None) -> list[Problem]:
    if now is None:
        return []
    late = np.flatnonzero(data.column("ts").cast(pa.int64()).to_numpy() > now)
    if not late.size:
        return []
    message = f"{late.size} rows happen after {format_us(now)}"
    return [
        _finding(partition, "from-the-future", message, "check the source's clock and unit", int(late[0]))
    ]


def _check_stale(table: str, latest: int | None, now: int | None) -> list[Problem]:
    limit = load_facts("sources")["staleness"].get(table)
    if now is None or latest is None or limit is None or now - latest <= duration_us(limit):
        return []
    message = f"the newest row is of {format_us(latest)}, older than {limit} at {format_us(now)}"
    return [Problem("stale-table", message, "ingest newer data", table)]


def _finding(partition: LakePartition, code: str, message: str, fix: str, row: int | None = None) -> Problem:
    market = ":".join(partition.keys.values()) or None
    return Problem(code, message, fix, partition.table, market, row, partition.relative)


def _as_problem(partition: LakePartition, code: str, error: DataError) -> Problem:
    return _finding(partition, code, error.message, error.fix or "")
