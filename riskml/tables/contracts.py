"""The contracts of ``riskml.contracts`` on pyarrow: schemas, and the check on every read.

:func:`enforce` is the one gate between outside data and the rest of the package. It
widens types where nothing can be lost, puts the columns in order, turns NaN into null,
and collects every violation before it raises once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import AnyArray, Bool1D, Int1D
from riskml.contracts import Column, Kind, TableContract, contract
from riskml.errors import ContractError, Problem, nearest
from riskml.tables.keys import key_codes, sort_codes
from riskml.tables.names import bad_names
from riskml.units import format_us, to_us

TIME = pa.timestamp("us", tz="UTC")
_TYPES: dict[Kind, pa.DataType] = {
    "time": TIME,
    "text": pa.string(),
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
}
_EARLIEST, _LATEST = to_us("2009-01-01"), to_us("2200-01-01")
"""Times lie between them. Before 2009 there was no market; seconds or milliseconds read as
microseconds lie in 1970, nanoseconds in the far future."""
_SHOWN = 5
"""How many rows a message lists; the rest is a count."""


def arrow_type(kind: Kind) -> pa.DataType:
    """The pyarrow type in which a kind of column is stored."""
    return _TYPES[kind]


@cache
def schema(table: str) -> pa.Schema:
    """The pyarrow schema of a table: every column in order, nullability included.

    Raises
    ------
    ContractError : there is no such table (the nearest name is suggested).
    """
    return pa.schema(
        pa.field(column.name, _TYPES[column.kind], nullable=column.nullable)
        for column in contract(table).columns
    )


def empty(table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A table of no rows that follows the contract, or the named columns of it."""
    nothing = schema(table).empty_table()
    return nothing if columns is None else nothing.select(list(columns))


def enforce(table: str, data: pa.Table, *, where: str = "", columns: Sequence[str] | None = None) -> pa.Table:
    """Check a table against its contract and return it in contract form.

    Parameters
    ----------
    table : name of the contract.
    data : the rows. Integers widen to float, any timestamp to microseconds UTC (one
        without a zone is UTC, an int64 is microseconds), any string type to string.
    where : partition or file that the rows came from, named in every problem.
    columns : check and return these columns only, in contract order (default: all). Key
        columns and ``ts`` are always among them.

    Returns
    -------
    pa.Table : same rows in the same order; absent optional columns are null, or an empty name where
        the column is part of the key.

    Raises
    ------
    ContractError : with one :class:`~riskml.errors.Problem` per finding - missing or
        unknown column, wrong type, null, value that is not finite or of the wrong sign,
        time in another unit, name of an inverse contract, high below low, ``known_at``
        before ``ts``, duplicate full key. Rows count from 0.

    Notes
    -----
    NaN handling: NaN means missing and becomes null; in a column that may not be null it
    is a problem like null.
    """
    report, arrays, wanted = _examine(table, data, where, columns)
    if report.problems:
        place = f" of {where}" if where else ""
        raise ContractError.from_problems(
            report.problems, f"the rows{place} do not follow the contract of '{table}'"
        )
    return _assemble(table, arrays, wanted)


def drop_invalid(table: str, data: pa.Table, *, where: str = "") -> tuple[pa.Table, tuple[Problem, ...]]:
    """The rows that follow the contract, and what was wrong with the others.

    For raw sources, where single bad rows are a fact of life: each finding is reported,
    its rows are left out. Of rows with an equal full key the first one stays.

    Raises
    ------
    ContractError : the table itself is wrong (a missing or unknown column, a wrong type).
    """
    found: list[Problem] = []
    while True:
        report, arrays, wanted = _examine(table, data, where, None)
        if not report.problems:
            return _assemble(table, arrays, wanted), tuple(found)
        if report.structural:
            return enforce(table, data, where=where), ()
        found += report.problems
        # Duplicates show only once the keys of all other rows are whole: look again.
        data = data.filter(pa.array(~report.bad))


def as_arrays(data: pa.Table) -> dict[str, AnyArray]:
    """Contract rows as numpy columns, all of shape [n_rows].

    Times become int64 microseconds, floats float64 with NaN for null, integers int64,
    text an object array of ``str`` (null becomes an empty string), booleans ``bool``
    (null becomes False).

    Raises
    ------
    ContractError : a time is null, which int64 cannot say.
    """
    return {name: _as_array(name, data.column(name)) for name in data.column_names}


def from_arrays(table: str, columns: dict[str, AnyArray]) -> pa.Table:
    """Build contract rows from numpy columns (int64 microseconds for times) and enforce them."""
    arrays = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind == "U":
            array = array.astype(object)
        arrays[name] = pa.array(array, from_pandas=array.dtype.kind == "f")
    return enforce(table, pa.table(arrays))


def _as_array(name: str, column: pa.ChunkedArray) -> AnyArray:
    if pa.types.is_timestamp(column.type):
        if column.null_count:
            raise ContractError(f"column '{name}' holds {column.null_count} null times")
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if pa.types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        words = np.append(encoded.dictionary.to_numpy(zero_copy_only=False).astype(object), "")
        return np.asarray(words[encoded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)])
    if pa.types.is_boolean(column.type):
        return np.asarray(column.fill_null(False).to_numpy())
    return np.array(column.to_numpy())


class _Report:
    """Collects problems of one table and knows how to name a row's market."""

    def __init__(self, spec: TableContract, data: pa.Table, where: str) -> None:
        self.spec = spec
        self.data = data
        self.where = where
        self.problems: list[Problem] = []
        self.structural = False
        self.bad: Bool1D = np.zeros(data.num_rows, bool)

    def add(
        self, code: str, message: str, fix: str, rows: Int1D | None = None, *, first: int | None = None
    ) -> None:
        """Add a finding; ``rows`` are the offending row numbers (the first gives the place).

        Without ``rows`` the table itself is wrong; ``first`` then is the row that shows it.
        """
        if rows is None:
            self.structural = True
        else:
            self.bad[rows] = True
            first = int(rows[0])
            shown = ", ".join(str(row) for row in rows[:_SHOWN])
            more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
            message = f"{message} ({len(rows)} row{'s' * (len(rows) > 1)}: {shown}{more})"
        self.problems.append(
            Problem(code, message, fix, self.spec.name, self._market(first), first, self.where or None)
        )

    def _market(self, row: int | None) -> str | None:
        names = [name for name in ("venue", "symbol") if self.data.column_names.count(name) == 1]
        if not names or not self.data.num_rows:
            return None
        if row is None:  # the table as a whole: named when it holds one market only
            if any(pc.count_distinct(self.data.column(name)).as_py() != 1 for name in names):
                return None
            row = 0
        return ":".join(str(self.data.column(name)[row].as_py()) for name in names)


def _assemble(table: str, arrays: dict[str, pa.Array], wanted: Sequence[Column]) -> pa.Table:
    fields = [schema(table).field(column.name) for column in wanted]
    return pa.Table.from_arrays([arrays[column.name] for column in wanted], schema=pa.schema(fields))


def _examine(
    table: str, data: pa.Table, where: str, columns: Sequence[str] | None
) -> tuple[_Report, dict[str, pa.Array], list[Column]]:
    """Every check of a contract; the arrays of columns that passed the cast come back."""
    spec = contract(table)
    wanted = _wanted(spec, columns)
    report = _Report(spec, data, where)
    _check_names(report, data.column_names, wanted)
    arrays: dict[str, pa.Array] = {}
    for column in wanted:
        if data.column_names.count(column.name) == 1:
            array = _cast(report, column, data.column(column.name))
            if array is not None:
                arrays[column.name] = _check_values(report, column, array)
        elif not column.required:
            arrays[column.name] = _absent(column, data.num_rows)
    _check_rows(report, arrays)
    return report, arrays, wanted


def _absent(column: Column, rows: int) -> pa.Array:
    """An optional column that the input lacks: null, or the empty name in a part of the key."""
    if column.nullable:
        return pa.nulls(rows, _TYPES[column.kind])
    return pa.repeat(pa.scalar("", _TYPES[column.kind]), rows)


def _wanted(spec: TableContract, columns: Sequence[str] | None) -> list[Column]:
    if columns is None:
        return list(spec.columns)
    names = {spec.column(name).name for name in columns} | {*spec.full_key, "ts"}
    return [column for column in spec.columns if column.name in names]


def _check_names(report: _Report, found: Sequence[str], wanted: Sequence[Column]) -> None:
    spec = report.spec
    unknown = [name for name in found if name not in spec.column_names]
    for column in wanted:
        if column.required and column.name not in found:
            hint = nearest(column.name, unknown)
            report.add(
                "missing-column",
                f"column '{column.name}' ({column.unit or column.kind}) is required and missing.{hint}",
                f"add '{column.name}': {column.meaning}",
            )
    for name in sorted(set(unknown)):
        hint = nearest(name, spec.column_names)
        report.add(
            "unknown-column", f"column '{name}' is not part of the contract.{hint}", "rename or drop it"
        )
    for name in sorted({name for name in found if list(found).count(name) > 1}):
        report.add("duplicate-column", f"column '{name}' appears twice", "drop one of them")


def _cast(report: _Report, column: Column, data: pa.ChunkedArray) -> pa.Array | None:
    array = data.combine_chunks()
    target = _TYPES[column.kind]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type.equals(target):
        return array
    if _widens(array.type, column.kind):
        try:
            if pa.types.is_timestamp(array.type) and array.type.tz is None:
                array = array.cast(pa.timestamp(array.type.unit, tz="UTC"))
            return array.cast(target)
        except pa.ArrowInvalid as error:
            reason = f": {error}"
    else:
        reason = ""
    report.add(
        "wrong-type",
        f"column '{column.name}' has type {array.type}; {target} is required{reason}",
        f"store it as {target} ({column.unit or column.kind}) before writing",
        first=_first_present(array),
    )
    return None


def _first_present(array: pa.Array) -> int | None:
    rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
    return int(rows[0]) if rows.size else None


def _widens(found: pa.DataType, kind: Kind) -> bool:
    """Whether a stored type may be cast to the kind without a change of meaning."""
    types = pa.types
    if types.is_null(found):
        return True
    allowed: dict[Kind, bool] = {
        "time": types.is_timestamp(found) or types.is_date(found) or types.is_int64(found),
        "text": types.is_string(found) or types.is_large_string(found) or types.is_string_view(found),
        "float": types.is_integer(found) or types.is_floating(found),
        "int": types.is_integer(found),
        "bool": types.is_boolean(found),
    }
    return allowed[kind]


def _check_values(report: _Report, column: Column, array: pa.Array) -> pa.Array:
    """Null, finite and sign checks of one column; NaN comes back as null."""
    if column.kind == "float":
        values = array.to_numpy(zero_copy_only=False)
        missing = np.isnan(values)
        _check_numbers(report, column, values, missing)
        if missing.any():
            array = pa.array(values, pa.float64(), mask=missing)
    if array.null_count and not column.nullable:
        rows = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
        report.add("null-value", f"column '{column.name}' may not be null", "fill or drop these rows", rows)
    if column.kind == "time":
        _check_times(report, column, array)
    elif column.kind == "text":
        _check_names_in(report, column, array)
    return array


def _check_times(report: _Report, column: Column, array: pa.Array) -> None:
    if array.null_count == len(array):
        return
    times = array.cast(pa.int64())
    extremes = pc.min_max(times).as_py()
    if extremes["min"] >= _EARLIEST and extremes["max"] < _LATEST:
        return
    rows = _true_rows(pc.or_(pc.less(times, _EARLIEST), pc.greater_equal(times, _LATEST)))
    found = times[int(rows[0])].as_py()
    shown = format_us(found) if 0 <= found < _LATEST else f"{found} microseconds"
    message = f"column '{column.name}' has to lie between 2009 and 2200, found {shown}"
    report.add("wrong-units", message, "times are microseconds UTC, not seconds, ms or ns", rows)


def _check_names_in(report: _Report, column: Column, array: pa.Array) -> None:
    encoded = array.dictionary_encode()
    for bad in bad_names(report.spec, column.name, encoded.dictionary.to_pylist()):
        chosen = pc.is_in(array, pa.array(sorted(bad.names), pa.string()))
        rows = _true_rows(chosen)
        message = f"column '{column.name}' {bad.rule}, found '{array[int(rows[0])].as_py()}'"
        report.add(bad.code, message, bad.fix, rows)


def _check_numbers(report: _Report, column: Column, values: AnyArray, missing: Bool1D) -> None:
    present = values[~missing] if missing.any() else values
    if not present.size:
        return
    low, high = float(present.min()), float(present.max())
    if np.isinf(low) or np.isinf(high):
        rows = np.flatnonzero(np.isinf(values))
        report.add("not-finite", f"column '{column.name}' is infinite", "correct or drop these rows", rows)
    bad: Bool1D | None = None
    if column.sign == "positive" and low <= 0:
        bad, rule = values <= 0, "above 0"
    elif column.sign == "non-negative" and low < 0:
        bad, rule = values < 0, "0 or above"
    elif column.sign == "fraction" and (low < 0 or high > 1):
        bad, rule = (values < 0) | (values > 1), "between 0 and 1"
    if bad is not None:
        rows = np.flatnonzero(bad)
        message = f"column '{column.name}' ({column.unit}) has to be {rule}, found {values[rows[0]]:g}"
        report.add("wrong-sign", message, "correct or drop these rows", rows)


def _check_rows(report: _Report, arrays: dict[str, pa.Array]) -> None:
    """Checks between columns; each runs only when its columns passed the cast."""
    for high in [name for name in arrays if name == "high" or name.endswith("_high")]:
        low = high.removesuffix("high") + "low"
        if low in arrays:
            rows = _true_rows(pc.less(arrays[high], arrays[low]))
            if rows.size:
                report.add("high-below-low", f"'{high}' is below '{low}'", "correct or drop these bars", rows)
    if "ts" in arrays and "known_at" in arrays:
        rows = _true_rows(pc.less(arrays["known_at"], arrays["ts"]))
        if rows.size:
            report.add(
                "known-before-event",
                "'known_at' is before 'ts'",
                "known_at is when a live engine would have had the row",
                rows,
            )
    _check_duplicates(report, arrays)


def _check_duplicates(report: _Report, arrays: dict[str, pa.Array]) -> None:
    key = report.spec.full_key
    if any(name not in arrays or arrays[name].null_count for name in key):
        return
    codes = key_codes(report.spec, arrays)
    order, equal = sort_codes(codes)
    if not equal.any():
        return
    later = np.flatnonzero(equal) + 1
    rows = np.sort(order[later] if order is not None else later)
    shown = {name: _plain(arrays[name][int(rows[0])]) for name in key}
    text = ", ".join(f"{name}={value}" for name, value in shown.items())
    report.add("duplicate-key", f"the key {text} appears more than once", "keep one row per key", rows)


def _true_rows(flags: pa.Array) -> Int1D:
    return np.flatnonzero(flags.fill_null(False).to_numpy(zero_copy_only=False))


def _plain(scalar: Any) -> str:
    value = scalar.as_py()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
