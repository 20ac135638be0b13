"""Digests of columns and tables over logical values, never over Parquet bytes.

Whole and broken numbers are one kind: a column that a CSV reader took for integers last month and for floats
today has the same digest while its values are the same. A missing value is missing, whether null or NaN; 0.0
and -0.0 are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from treadle.identity import digest_of

if TYPE_CHECKING:
    import pyarrow as pa

_EXACT = 1 << 53


def column_digest(values: Any) -> str:
    """sha256, in hex, of a column's kind and values in their order.

    Args:
        values: Shape (n_rows,): boolean, integer, float, string, dictionary of strings, or timestamp.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    hasher = hashlib.sha256(f"{len(values)}\n".encode())
    if not valid.any():
        # An empty column has no kind: readers guess one from values that it hasn't got.
        return hasher.hexdigest()
    hasher.update(np.packbits(valid).tobytes())
    for buffer in _buffers(values, valid):
        hasher.update(buffer)
    return hasher.hexdigest()


def _buffers(values: Any, valid: Any) -> tuple[bytes, ...]:
    """The kind's name and the values' canonical bytes, zero where missing."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_boolean(kind):
        return b"boolean", np.packbits(values.fill_null(False).to_numpy(zero_copy_only=False)).tobytes()
    if pa.types.is_integer(kind):
        whole = values.cast(pa.int64()).fill_null(0).to_numpy()
        if np.abs(whole).max() <= _EXACT and whole.min() != np.iinfo(np.int64).min:
            return b"number", whole.astype(np.float64).tobytes()
        return b"integer", whole.tobytes()
    if pa.types.is_floating(kind):
        # Adding zero turns -0.0 into 0.0.
        return b"number", (values.cast(pa.float64()).fill_null(0.0).to_numpy() + 0.0).tobytes()
    if pa.types.is_timestamp(kind):
        utc = values.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        return b"time", utc.fill_null(0).to_numpy().tobytes()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = values.cast(pa.large_string()).fill_null("")
        lengths = pc.binary_length(text).to_numpy().astype(np.int64)
        start = np.frombuffer(text.buffers()[1], np.int64, len(text) + 1, text.offset * 8)
        data = text.buffers()[2]
        return b"string", lengths.tobytes(), bytes(data[int(start[0]) : int(start[-1])]) if data else b""
    raise TypeError(f"a column of {kind} has no digest")


def column_digests(table: pa.Table) -> dict[str, str]:
    """The digest of each column, by name, in the table's order."""
    return {name: column_digest(table.column(name)) for name in table.column_names}


def rows_digest(columns: Mapping[str, str]) -> str:
    """The digest of a table from its columns' names and digests, in their order."""
    return digest_of([[name, digest] for name, digest in columns.items()])
