"""New rows beside the stored ones of a file: what is new, what is equal, what contradicts.

A row whose full key is stored with other values is a conflict. One restated year is a
hundred thousand of them, so that the first ones are described and all of them counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from riskml.arrays import Bool1D, Int1D
from riskml.contracts import TableContract, contract
from riskml.errors import ConflictError, Problem
from riskml.tables.keys import key_codes, sort_codes, storage_key
from riskml.tables.partitions import LakePartition, read_partition

LISTED = 100
"""Conflicting rows that an error describes."""


@dataclass(frozen=True)
class Conflicts:
    """New rows of a partition that contradict stored ones."""

    both: pa.Table
    """Stored rows, then new ones."""
    stored: Int1D
    """The stored row of each conflict, by its number in ``both``."""
    new: Int1D
    """The new row, counted from the first new one."""

    def describe(self, partition: LakePartition, rows: Int1D, limit: int) -> list[Problem]:
        """The first conflicts in words; ``rows`` are the numbers by which the caller knows the new rows."""
        first_new = self.both.num_rows - len(rows)
        return [
            _conflict(partition, self.both, int(old), first_new + int(new), int(rows[new]))
            for old, new in zip(self.stored[:limit], self.new[:limit], strict=True)
        ]


def merge(partition: LakePartition, fresh: pa.Table) -> tuple[tuple[pa.Table, int] | None, Conflicts]:
    """Merge new rows into a file of the lake.

    Returns
    -------
    merged : all rows in storage order and how many are new; None when nothing is new.
    conflicts : new rows that contradict a stored one.
    """
    spec = contract(partition.table)
    stored = read_partition(partition) if partition.path.exists() else None
    if stored is None:
        both, known = fresh, 0
    elif stored.num_rows == fresh.num_rows and stored.equals(_in_storage_order(spec, fresh)):
        nothing = np.zeros(0, np.int64)
        return None, Conflicts(fresh, nothing, nothing)
    else:
        both, known = pa.concat_tables([stored, fresh]).combine_chunks(), stored.num_rows
    order, equal = sort_codes(key_codes(spec, both))
    if order is None:
        order = np.arange(both.num_rows)
    # The sort is stable and a key appears at most once on each side: equal neighbours are
    # (stored, new) pairs.
    pairs = np.flatnonzero(equal)
    before, after = order[pairs], order[pairs + 1]
    differs = _rows_differ(both, before, after)
    conflicts = Conflicts(both, before[differs], after[differs] - known)
    if len(pairs) == fresh.num_rows or differs.any():
        return None, conflicts
    kept = np.delete(order, pairs + 1)
    return (both.take(kept), fresh.num_rows - len(pairs)), conflicts


def _in_storage_order(spec: TableContract, data: pa.Table) -> pa.Table:
    order, _ = sort_codes(key_codes(spec, data))
    return data if order is None else data.take(order)


def _rows_differ(data: pa.Table, before: Int1D, after: Int1D) -> Bool1D:
    differs = np.zeros(len(before), bool)
    if not len(before):
        return differs
    for column in data.columns:
        old, new = column.take(pa.array(before)), column.take(pa.array(after))
        unequal = pc.fill_null(pc.not_equal(old, new), False).to_numpy()
        differs |= unequal | (old.is_null().to_numpy() != new.is_null().to_numpy())
    return differs


def _conflict(partition: LakePartition, both: pa.Table, old: int, new: int, row: int) -> Problem:
    spec = contract(partition.table)
    before, after = both.slice(old, 1).to_pylist()[0], both.slice(new, 1).to_pylist()[0]
    changed = [f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    key = ", ".join(f"{name}={after[name]}" for name in storage_key(spec))
    return Problem(
        "conflicting-row",
        f"the key {key} is stored with other values ({', '.join(changed)})",
        "give a revision its own, later known_at",
        partition.table,
        ":".join(partition.keys.values()) or None,
        row,
        partition.relative,
    )


def conflict_error(table: str, problems: Sequence[Problem], rows: Int1D) -> ConflictError:
    """One error for all conflicts; where more are known than listed, the last problem says so."""
    first, unlisted = problems[0], len(rows) - len(problems)
    if unlisted:
        more = replace(problems[-1], message=f"{problems[-1].message}; and {unlisted:,} more rows like it")
        problems = [*problems[:-1], more]
    message = first.message
    if len(rows) > 1:
        message = f"{len(rows):,} rows of '{table}' differ from the stored ones"
    error = ConflictError(
        message, table=table, market=first.market, row=first.row, fix=first.fix, problems=problems
    )
    error.rows = rows.tolist()
    return error
