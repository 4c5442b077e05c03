"""Columns of generated numbers as contract tables, and the hash of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from riskml.arrays import AnyArray, FloatND, Int1D
from riskml.tables.contracts import schema


def round_significant(values: AnyArray, digits: int) -> FloatND:
    """Round to significant digits, any shape; 0, NaN and infinities stay as they are.

    Stored figures are rounded so that a last bit that differs between processors does
    not change a file.
    """
    array = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(array) & (array != 0.0)
    exponent = np.floor(np.log10(np.where(usable, np.abs(array), 1.0)))
    # Scaling by a whole power of ten up to 1e22 is exact; dividing rounds once.
    power = digits - 1 - exponent
    up, down = 10.0 ** np.maximum(power, 0), 10.0 ** np.maximum(-power, 0)
    rounded = np.where(power >= 0, np.round(array * up) / up, np.round(array / down) * down)
    return np.where(usable, rounded, array)


def text(names: Sequence[str], codes: Int1D) -> pa.Array:
    """The names picked by ``codes`` [n] as a string array."""
    indices = pa.array(np.ascontiguousarray(codes, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(names), pa.string())).cast(pa.string())


def contract_table(table: str, columns: Mapping[str, object], rows: int) -> pa.Table:
    """Build a table of ``rows`` rows in contract form.

    ``columns`` maps names to arrays [rows] or to one str for all rows. ``known_at`` is
    ``ts`` when it is not given; any other column that is not given is null. NaN becomes
    null.
    """
    given = dict(columns)
    given.setdefault("known_at", given["ts"])
    arrays = []
    for column in schema(table):
        value = given.pop(column.name, None)
        if value is None:
            arrays.append(pa.nulls(rows, column.type))
        elif isinstance(value, str):
            arrays.append(pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [value]).cast(pa.string()))
        elif isinstance(value, pa.Array):
            arrays.append(value)
        elif pa.types.is_timestamp(column.type):
            arrays.append(pa.array(np.asarray(value, np.int64)).cast(column.type))
        else:
            arrays.append(pa.array(np.asarray(value), type=column.type, from_pandas=True))
    if given:
        raise KeyError(f"table {table!r} has no columns {sorted(given)}")
    return pa.Table.from_arrays(arrays, schema=schema(table))


def content_hash(data: pa.Table) -> str:
    """The sha256 of a table's names, types and values, whatever wrote or chunked it."""
    digest = hashlib.sha256(str(data.schema.remove_metadata()).encode())
    for column in data.combine_chunks().columns:
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        valid = np.asarray(whole.is_valid().to_numpy(zero_copy_only=False))
        digest.update(np.packbits(valid).tobytes())
        if pa.types.is_string(whole.type):
            digest.update("\x1f".join(whole.fill_null("").to_pylist()).encode())
        elif pa.types.is_boolean(whole.type):
            digest.update(np.packbits(whole.fill_null(False).to_numpy(zero_copy_only=False)).tobytes())
        else:
            plain = whole.cast(pa.int64()) if pa.types.is_timestamp(whole.type) else whole
            digest.update(np.ascontiguousarray(plain.fill_null(0).to_numpy(zero_copy_only=False)).tobytes())
    return digest.hexdigest()
