"""One CSV file in contract form as an Arrow table, or an error that names the bad cells.

Arrow reads the file in one pass. Only when that fails is it read again as text, to say
which row of which column is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv

from riskml.contracts import Column, TableContract, contract
from riskml.errors import ContractError, DataError, Problem
from riskml.tables.contracts import TIME, arrow_type
from riskml.units import to_us

# One thread: the row number in Arrow's message is lost otherwise.
_READ = pcsv.ReadOptions(use_threads=False)
_SHOWN = 5


def read_csv(table: str, file: Path, where: str) -> pa.Table:
    """Read a CSV file with a header, ISO times (UTC without an offset) or whole microseconds.

    Raises
    ------
    ContractError : cells that are no number or no time, with their rows (counted from 0,
        the header left out).
    pyarrow.ArrowInvalid : the file is no CSV.

    Notes
    -----
    NaN handling: an empty cell of a number is null, one of a text is the empty string.
    """
    spec = contract(table)
    types = {column.name: arrow_type(column.kind) for column in spec.columns if column.kind != "time"}
    header = _header(file)
    if len(set(header)) < len(header):  # enforce() says which, and no column of that name can be asked for
        return pa.table([pa.array([], pa.null())] * len(header), names=header)
    options = pcsv.ConvertOptions(column_types=types, strings_can_be_null=False)
    try:
        data = pcsv.read_csv(file, read_options=_READ, convert_options=options)
        return _with_times(spec, data)
    except pa.ArrowInvalid:
        text = {column.name: pa.string() for column in spec.columns}
        options = pcsv.ConvertOptions(column_types=text, strings_can_be_null=False)
        data = pcsv.read_csv(file, read_options=_READ, convert_options=options)
    problems = list(_bad_cells(spec, data, where))
    if problems:
        raise ContractError.from_problems(problems, f"{where} has cells of the wrong type") from None
    # Times in several forms, each of them good: read one by one.
    for column in spec.columns:
        if column.kind == "time" and column.name in data.column_names:
            data = _replace(data, column.name, pa.chunked_array([_times(data.column(column.name))], TIME))
        elif column.name in types and column.kind != "text" and column.name in data.column_names:
            cells = pa.array([cell or None for cell in data.column(column.name).to_pylist()], pa.string())
            data = _replace(data, column.name, pa.chunked_array([cells.cast(types[column.name])]))
    return data


def _header(file: Path) -> list[str]:
    with pcsv.open_csv(file, read_options=_READ) as reader:
        return list(reader.schema.names)


def _with_times(spec: TableContract, data: pa.Table) -> pa.Table:
    for column in spec.columns:
        if column.kind == "time" and column.name in data.column_names:
            times = data.column(column.name)
            if pa.types.is_string(times.type):
                data = _replace(data, column.name, times.cast(TIME))
    return data


def _replace(data: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return data.set_column(data.column_names.index(name), name, values)


def _times(cells: pa.ChunkedArray) -> pa.Array:
    return pa.array([_time(cell) if cell else None for cell in cells.to_pylist()], pa.int64()).cast(TIME)


def _time(cell: str) -> int:
    return int(cell) if cell.isdecimal() else to_us(cell)


def _bad_cells(spec: TableContract, data: pa.Table, where: str) -> Iterator[Problem]:
    for column in spec.columns:
        if column.name not in data.column_names or column.kind == "text":
            continue
        cells = data.column(column.name).to_pylist()
        rows = [row for row, cell in enumerate(cells) if cell and not _reads(column, cell)]
        if not rows:
            continue
        shown = ", ".join(str(row) for row in rows[:_SHOWN])
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        message = (
            f"column '{column.name}' holds '{cells[rows[0]]}', which is no {column.kind} "
            f"({len(rows)} row{'s' * (len(rows) > 1)}: {shown}{more})"
        )
        fix = "write times as 2024-05-01T12:00:00Z" if column.kind == "time" else "correct these cells"
        yield Problem("wrong-type", message, fix, spec.name, _market(data, rows[0]), rows[0], where)


def _reads(column: Column, cell: str) -> bool:
    try:
        if column.kind == "time":
            _time(cell)
        else:
            pa.scalar(cell).cast(arrow_type(column.kind))
    except (pa.ArrowInvalid, DataError):
        return False
    return True


def _market(data: pa.Table, row: int) -> str | None:
    names = [name for name in ("venue", "symbol") if name in data.column_names]
    return ":".join(data.column(name)[row].as_py() for name in names) or None
