"""Ingest of tables that are in contract form already: one's own data as Parquet or CSV.

``PATH/<table>.parquet``, ``PATH/<table>.csv`` or any such file below ``PATH/<table>/``.
Every file is checked before the first row is written.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from riskml.contracts import CONTRACTS
from riskml.errors import ContractError, DataError, Problem, nearest
from riskml.tables.contracts import enforce
from riskml.tables.ingest.csv_file import read_csv
from riskml.tables.ingest.report import IngestReport, Progress
from riskml.tables.ingest.vendor_file import Skip
from riskml.tables.lake import Lake

_SUFFIXES = (".parquet", ".csv")


def ingest_tables(path: Path, lake: Lake, progress: Progress | None = None) -> IngestReport:
    """Ingest contract-form tables.

    Raises
    ------
    DataError : the path holds no table or no row, or a file is truncated.
    ContractError : a file breaks its contract. Nothing is written; every file's problems
        are in the error.
    """
    files, skipped = _find(path)
    by_table: dict[str, list[pa.Table]] = {}
    problems: list[Problem] = []
    damaged: list[DataError] = []
    for table, file in files:
        where = file.relative_to(path if path.is_dir() else path.parent).as_posix()
        try:
            by_table.setdefault(table, []).append(enforce(table, _read(table, file, where), where=where))
        except ContractError as error:
            problems += error.problems
        except DataError as error:
            damaged.append(error)
            problems += error.problems
    if damaged and len(damaged) == len(problems):
        raise damaged[0]
    if problems:
        raise ContractError.from_problems(problems, f"{path} does not follow the contracts")
    counts = {"files": len(files), "files_skipped": len(skipped), "rows_added": 0, "rows_unchanged": 0}
    if not any(data.num_rows for parts in by_table.values() for data in parts):
        fix = "write rows into the files"
        raise DataError(f"{path} holds no row", table=files[0][0], fix=fix)
    whole = {table: enforce(table, pa.concat_tables(parts)) for table, parts in by_table.items()}
    for done, (table, data) in enumerate(whole.items(), 1):
        result = lake.write(table, data)
        counts[table] = result.rows_added
        counts["rows_added"] += result.rows_added
        counts["rows_unchanged"] += result.rows_unchanged
        if progress is not None:
            progress(done, len(whole), table)
    return IngestReport(counts, tuple(skipped), ())


def _find(path: Path) -> tuple[list[tuple[str, Path]], list[Skip]]:
    if not path.exists():
        raise DataError(
            f"{path} does not exist", fix="pass a folder with <table>.parquet or <table>/*.parquet"
        )
    root = path if path.is_dir() else path.parent
    candidates = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    files: list[tuple[str, Path]] = []
    skipped: list[Skip] = []
    for item in candidates:
        relative = item.relative_to(root)
        table = relative.parts[0] if len(relative.parts) > 1 else item.stem
        if any(part.startswith(".") for part in relative.parts):
            continue
        if item.suffix not in _SUFFIXES:
            skipped.append(Skip(relative.as_posix(), "neither Parquet nor CSV"))
        elif table not in CONTRACTS:
            skipped.append(
                Skip(relative.as_posix(), f"there is no table '{table}'.{nearest(table, CONTRACTS)}")
            )
        else:
            files.append((table, item))
    if not files:
        hint = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise DataError(
            f"{path} holds no table in contract form{hint}",
            fix=f"name files or folders after a table: {', '.join(CONTRACTS)}",
        )
    return files, skipped


def _read(table: str, file: Path, where: str) -> pa.Table:
    try:
        if file.suffix == ".csv":
            return read_csv(table, file, where)
        with pq.ParquetFile(file) as handle:
            return handle.read(use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        message = f"{file} cannot be read as {file.suffix[1:]}: {str(error).splitlines()[0]}"
        fix = "write the file again"
        problem = Problem("damaged-file", message, fix, table, partition=where)
        raise DataError(message, table=table, fix=fix, problems=(problem,)) from error
