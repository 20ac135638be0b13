"""The types of a file's columns: those that a request's values must have, refused by the first row that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.data.online import RowRefused
from treadle.serving.encode import WANTED, describe

if TYPE_CHECKING:
    import pyarrow as pa


def check_column(name: str, column: Any, kind: str) -> pa.ChunkedArray[Any]:
    """A column whose values are of a feature's kind, dictionaries decoded.

    Args:
        name: The column's.
        column: An Arrow array or chunked array of n values.
        kind: `number`, `boolean`, `category` or `integer`. A column without any value, be it all NaN as pandas
            writes a missing text, is of every kind.

    Raises:
        RowRefused: It holds values of another type; names the first row that has one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values: Any = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    if pa.types.is_dictionary(values.type):
        values = pc.cast(values, values.type.value_type)
    if _is(kind, values.type):
        return values
    valid = pc.is_valid(values)
    if pa.types.is_floating(values.type):
        valid = pc.and_(valid, pc.invert(pc.is_nan(values)))
    row = pc.index(valid, True).as_py()
    if row < 0:
        return pa.chunked_array([pa.nulls(len(values))])
    problem = f"is {describe_cell(values[row].as_py())}, but must be {WANTED[kind]} (or empty: unknown)"
    raise RowRefused(row, name, problem, "wrong_type")


def describe_cell(value: Any) -> str:
    """A cell in a few words, as `describe` has those of requests."""
    if value is None or isinstance(value, (bool, str, int, float, list, dict)):
        return describe(value)
    return f"the {type(value).__name__} {str(value)[:40]}"


def _is(kind: str, found: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_null(found):
        return True
    if kind == "category":
        return bool(types.is_string(found) or types.is_large_string(found) or types.is_string_view(found))
    if kind == "boolean":
        return bool(types.is_boolean(found))
    if kind == "integer":
        return bool(types.is_integer(found))
    return bool(types.is_integer(found) or types.is_floating(found) or types.is_decimal(found))
