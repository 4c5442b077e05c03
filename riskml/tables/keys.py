"""Sorting and comparing rows by key, vectorised: what duplicates, merges and reads share.

A key column becomes an array of sortable codes (time as int64, text as its rank), so
that one numpy sort orders millions of rows and equal keys are neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray, Bool1D, Int1D
from riskml.contracts import TableContract


def storage_key(spec: TableContract) -> tuple[str, ...]:
    """The full key with the times last: the order of the rows inside a file."""
    times = [name for name in ("ts", "known_at") if name in spec.full_key]
    return (*(name for name in spec.full_key if name not in times), *times)


def key_codes(
    spec: TableContract, columns: Mapping[str, pa.Array] | pa.Table, names: Sequence[str] | None = None
) -> list[AnyArray]:
    """Sortable codes of the key columns, most significant first.

    Parameters
    ----------
    spec : the table's contract.
    columns : the rows in contract form; key columns without null.
    names : key columns in the wanted order (default :func:`storage_key`).

    Returns
    -------
    list of arrays [n_rows] : one per key column that is not constant; at least one
        unless every column is constant over fewer than two rows.
    """
    codes = [_codes(columns[name]) for name in (names or storage_key(spec))]
    varying = [code for code in codes if code.size and (code != code[0]).any()]
    return varying or codes[:1]


def sort_codes(codes: Sequence[AnyArray]) -> tuple[Int1D | None, Bool1D]:
    """Order rows by their codes and find equal neighbours.

    Returns
    -------
    order : int64 [n_rows], or None when the rows are in order already.
    equal : bool [n_rows - 1], True where sorted row i and i + 1 have equal codes.
    """
    falls, equal = _compare(codes)
    if not falls.any():
        return None, equal
    order = np.lexsort(tuple(codes[::-1]))
    _, equal = _compare([code[order] for code in codes])
    return order, equal


def _compare(codes: Sequence[AnyArray]) -> tuple[Bool1D, Bool1D]:
    rows = max(len(codes[0]) - 1, 0)
    falls, equal = np.zeros(rows, bool), np.ones(rows, bool)
    for code in codes:
        falls |= equal & (code[:-1] > code[1:])
        equal &= code[:-1] == code[1:]
    return falls, equal


def _codes(column: pa.Array | pa.ChunkedArray) -> AnyArray:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        words = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
        rank = np.empty(len(words), np.int64)
        rank[np.argsort(words)] = np.arange(len(words))
        return np.asarray(rank[encoded.indices.to_numpy(zero_copy_only=False)])
    return np.asarray(column.to_numpy(zero_copy_only=False))
