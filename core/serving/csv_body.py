"""A request's body in CSV: a header, then rows. An empty cell is an unknown value."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from treadle.serving.encode import RequestEncoder, RequestRefused, Rows
from treadle.words import counted

# As Arrow reads them, so that a file for `treadle predict` says the same.
_BOOLEANS = dict.fromkeys(("true", "True", "TRUE", "1"), True) | dict.fromkeys(
    ("false", "False", "FALSE", "0"), False
)


def parse_csv(body: bytes, encoder: RequestEncoder) -> Rows:
    """The rows of a CSV body.

    Raises:
        RequestRefused: It is no CSV in UTF-8, a row is not as long as the header, a cell has the wrong type.
    """
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header, *rows = [line for line in lines if line]
    except UnicodeDecodeError as error:
        raise RequestRefused("not_csv", f"the body is not UTF-8 at byte {error.start}") from None
    except (csv.Error, ValueError) as error:
        raise RequestRefused("not_csv", f"the body is not CSV with a header: {error}") from None
    positions = encoder.positions(header)
    for number, cells in enumerate(rows):
        if len(cells) != len(header):
            message = f"row {number} has {counted(len(cells), 'value')}, but the header has {len(header)}"
            raise RequestRefused("wrong_shape", message, row=number)
    columns = [
        [_value(cells[at], kind, name, number) for number, cells in enumerate(rows)]
        for at, kind, name in zip(positions, encoder.kinds, encoder.names, strict=True)
    ]
    return Rows(columns, len(rows))


def _value(cell: str, kind: str, name: str, row: int) -> Any:
    """A cell as the JSON value that it stands for."""
    if not cell:
        return None
    if kind == "category":
        return cell
    if kind == "boolean":
        value = _BOOLEANS.get(cell)
        if value is None:
            raise _mistyped(cell, name, row, "true or false")
        return value
    try:
        number = float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        raise _mistyped(cell, name, row, "a number") from None
    if not math.isfinite(number):
        raise _mistyped(cell, name, row, "a finite number")
    return number


def _mistyped(cell: str, name: str, row: int, wanted: str) -> RequestRefused:
    message = f"{name!r} in row {row} is the text {cell[:40]!r}, but must be {wanted} (or empty: unknown)"
    return RequestRefused("wrong_type", message, field=name, row=row)
