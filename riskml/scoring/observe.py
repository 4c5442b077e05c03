"""Validation of observed rows: the table contracts, enforced without a table library.

A missing column or an unknown table is a mistake in the caller's code and raises. A bad
*row* is a fact of life on a live feed: it is left out, counted and kept with its reason,
and the guards see that the value is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import AnyArray, Bool1D
from riskml.contracts import Column, TableContract, contract
from riskml.errors import ContractError, DataError, Problem, nearest
from riskml.units import to_us_array

_KIND_NAMES = {
    "float": "numbers",
    "int": "whole numbers",
    "bool": "booleans",
    "text": "text",
    "time": "times",
}


@dataclass(frozen=True)
class Observed:
    """What became of observed rows; the three counts add up to the rows passed in."""

    accepted: int
    """Rows in time."""
    late: int
    """Rows that should have been there before the last closed bar: kept for later bars, never
    used to change a closed one."""
    rejected: int
    """Rows that break the contract; left out."""


@dataclass(frozen=True)
class CheckedRows:
    """Rows of one table that follow its contract."""

    columns: dict[str, AnyArray]
    """Every column of the contract; an optional one that was not passed is NaN or ''."""
    n_rows: int
    """Rows that are left."""
    problems: tuple[Problem, ...]
    """One per rejected row, with the row's number in the caller's arrays."""


def check_rows(table: str, rows: Mapping[str, AnyArray]) -> CheckedRows:
    """Validate rows against the contract of their table.

    Parameters
    ----------
    table : name of the contract.
    rows : one array [n_rows] per column; optional columns may be absent.

    Raises
    ------
    ContractError : unknown table; missing, unknown or differently long columns; a column of
        another type. Every finding is in ``problems``.

    Notes
    -----
    NaN handling: NaN in a column that may be null stays; in another it rejects the row.
    """
    spec = contract(table)
    _check_columns(spec, rows)
    n_rows = len(np.atleast_1d(np.asarray(next(iter(rows.values())))))
    columns = _convert(spec, rows, n_rows)
    reasons: dict[int, Problem] = {}
    for column in spec.columns:
        _find_bad_cells(spec, column, columns[column.name], reasons, given=column.name in rows)
    _find_bad_rows(spec, columns, reasons)
    if not reasons:
        return CheckedRows(columns, n_rows, ())
    keep = np.ones(n_rows, dtype=np.bool_)
    keep[list(reasons)] = False
    kept = {name: values[keep] for name, values in columns.items()}
    problems = (replace(reasons[row], market=_market(columns, row)) for row in sorted(reasons))
    return CheckedRows(kept, int(keep.sum()), tuple(problems))


def _market(columns: Mapping[str, AnyArray], row: int) -> str | None:
    """The market of a row, where the table has one."""
    return str(columns["symbol"][row]) if "symbol" in columns else None


def _check_columns(spec: TableContract, rows: Mapping[str, AnyArray]) -> None:
    problems = [
        Problem(
            "missing-column",
            f"column '{column.name}' is required; found {', '.join(rows) or 'none'}",
            f"pass '{column.name}' ({column.unit or 'text'}: {column.meaning})",
            table=spec.name,
        )
        for column in spec.columns
        if column.required and column.name not in rows
    ]
    problems += [
        Problem(
            "unknown-column",
            f"there is no column '{name}'.{nearest(name, spec.column_names)}",
            "leave it out, or rename it",
            table=spec.name,
        )
        for name in rows
        if name not in spec.column_names
    ]
    lengths = {name: len(np.atleast_1d(np.asarray(values))) for name, values in rows.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(
            Problem(
                "unequal-length",
                f"columns differ in length: {found}",
                "pass equally long columns",
                table=spec.name,
            )
        )
    if problems:
        raise ContractError.from_problems(problems, f"rows of '{spec.name}' break the contract")


def _convert(spec: TableContract, rows: Mapping[str, AnyArray], n_rows: int) -> dict[str, AnyArray]:
    columns: dict[str, AnyArray] = {}
    problems = []
    for column in spec.columns:
        if column.name not in rows:
            columns[column.name] = _absent(column, n_rows)
            continue
        try:
            columns[column.name] = _as_kind(column, np.atleast_1d(np.asarray(rows[column.name])))
        except (TypeError, ValueError) as error:
            problems.append(
                Problem(
                    "wrong-type",
                    f"column '{column.name}' has to hold {_KIND_NAMES[column.kind]}: {error}",
                    f"convert '{column.name}' before passing it",
                    table=spec.name,
                )
            )
    if problems:
        raise ContractError.from_problems(problems, f"rows of '{spec.name}' break the contract")
    return columns


def _absent(column: Column, n_rows: int) -> AnyArray:
    if column.kind == "text":
        return np.full(n_rows, "", dtype=np.str_)
    if column.kind == "bool":
        return np.zeros(n_rows, dtype=np.bool_)
    if column.kind == "time":
        return np.zeros(n_rows, dtype=np.int64)
    return np.full(n_rows, np.nan)


def _as_kind(column: Column, values: AnyArray) -> AnyArray:
    kind = values.dtype.kind
    if column.kind == "time":
        if kind == "O" and column.nullable:
            values = np.array([0 if value is None else value for value in values])
        return to_us_array(values)
    if column.kind == "text":
        if kind not in "UOT":
            raise DataError(f"found {values.dtype}")
        if kind != "O":
            return values.astype(np.str_, copy=False)
        return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)
    if column.kind == "bool":
        if kind not in "bO":
            raise DataError(f"found {values.dtype}")
        return values.astype(np.bool_)
    if kind not in "iufO" or kind == "b":
        raise DataError(f"found {values.dtype}")
    floats = values.astype(np.float64)  # None -> NaN
    if column.kind == "int" and not (np.isfinite(floats) & (floats == np.floor(floats))).all():
        raise DataError("found fractions or NaN")
    return values.astype(np.int64) if column.kind == "int" else floats


def _find_bad_cells(
    spec: TableContract, column: Column, values: AnyArray, reasons: dict[int, Problem], *, given: bool
) -> None:
    if not given:
        return
    if column.kind == "text" and column.required and not column.nullable and column.name != "account_id":
        _reject(spec, reasons, values == "", "empty", f"'{column.name}' is empty", values)
    if column.kind != "float":
        return
    if not column.nullable:
        _reject(
            spec, reasons, ~np.isfinite(values), "not-finite", f"'{column.name}' has to be finite", values
        )
    else:
        _reject(spec, reasons, np.isinf(values), "not-finite", f"'{column.name}' is infinite", values)
    if column.sign == "positive":
        _reject(spec, reasons, values <= 0, "not-positive", f"'{column.name}' has to be positive", values)
    elif column.sign != "any":
        _reject(spec, reasons, values < 0, "negative", f"'{column.name}' may not be negative", values)
    if column.sign == "fraction":
        _reject(spec, reasons, values > 1, "above-one", f"'{column.name}' may not exceed 1", values)


def _find_bad_rows(spec: TableContract, columns: dict[str, AnyArray], reasons: dict[int, Problem]) -> None:
    early = columns["known_at"] < columns["ts"]
    _reject(
        spec, reasons, early, "known-before-it-happened", "'known_at' lies before 'ts'", columns["known_at"]
    )
    if spec.name == "bars":
        body_high = np.maximum(columns["open"], columns["close"])
        body_low = np.minimum(columns["open"], columns["close"])
        _reject(
            spec,
            reasons,
            columns["high"] < body_high,
            "high-too-low",
            "'high' is below open or close",
            columns["high"],
        )
        _reject(
            spec,
            reasons,
            columns["low"] > body_low,
            "low-too-high",
            "'low' is above open or close",
            columns["low"],
        )


def _reject(
    spec: TableContract, reasons: dict[int, Problem], bad: Bool1D, code: str, message: str, values: AnyArray
) -> None:
    if not bad.any():
        return
    for row in np.flatnonzero(bad).tolist():
        reasons.setdefault(
            row,
            Problem(
                code, f"{message}; found {values[row]!s}", "the row was left out", table=spec.name, row=row
            ),
        )
