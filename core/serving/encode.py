"""From a request's columns to the model's matrix, refusing what the model can't mean, by field and row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from treadle.errors import UserError
from treadle.models.schema import Feature
from treadle.words import counted

MISSING = float("nan")
LARGEST = float(np.finfo(np.float32).max)  # models compute in float32: beyond it a number turns infinite
WANTED = {"number": "a number", "boolean": "true or false", "category": "a text", "integer": "a whole number"}
NO_VALUE = "missing, or a category that the model never saw, and this model can't predict without"
_SHOWN = 5


class RequestRefused(UserError):
    """A request can't be answered as it is: `status` is HTTP's, `code` is for programs, rows count from 0."""

    def __init__(
        self, code: str, message: str, *, field: str | None = None, row: int | None = None, status: int = 400
    ) -> None:
        super().__init__(code, message, field, row, status)
        self.code, self.message, self.field, self.row, self.status = code, message, field, row, status

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True)
class Rows:
    """A request's rows: columns in the features' order, or `entities` in their place."""

    columns: Sequence[Sequence[Any]]
    count: int
    ids: Sequence[str] | None = None
    event_time: Sequence[datetime] | None = None
    entities: Sequence[Mapping[str, Any]] | None = None
    at: datetime | None = None


class RequestEncoder:
    """Turns columns of plain JSON values into a model's matrix, exactly as the model's schema encodes tables.

    A category becomes its code, a boolean 0 or 1, null and unseen categories become NaN.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.names = tuple(feature.name for feature in features)
        self.expected = frozenset(self.names)
        self.kinds = tuple(feature.kind for feature in features)
        # For each feature the only type allowed beside null, and the code of each value; None for numbers.
        self._plans: list[tuple[type, dict[Any, float]] | None] = [_plan(feature) for feature in features]

    def check_names(self, names: Sequence[str] | Mapping[str, Any], row: int | None = None) -> None:
        """Nothing, when these are the model's features in any order.

        Raises:
            RequestRefused: A feature is missing, or there is a column that the model does not know.
        """
        given = set(names)
        if given == self.expected:
            return
        if missing := [name for name in self.names if name not in given]:
            message = (
                f"{listed(missing)} missing: the model reads {counted(len(self.names), 'feature')}, "
                "null where unknown"
            )
            raise RequestRefused("missing_column", message, field=missing[0], row=row)
        extra = sorted(given - self.expected)
        message = (
            f"{listed(extra)} not among the model's features; leave it out "
            "(identifiers go into `ids`, times into `event_time`)"
        )
        raise RequestRefused("extra_column", message, field=extra[0], row=row)

    def positions(self, names: Sequence[Any]) -> Sequence[int]:
        """Where each feature stands among a header's names.

        Raises:
            RequestRefused: A feature is missing, a column is unknown or there twice, or a name is no text.
        """
        if tuple(names) == self.names:
            return range(len(names))
        for name in names:
            if type(name) is not str:
                raise RequestRefused("wrong_type", f"a column's name is {describe(name)}, but must be a text")
        where = {name: at for at, name in enumerate(names)}
        self.check_names(where)
        if len(where) != len(names):
            twice = next(name for at, name in enumerate(names) if where[name] != at)
            raise RequestRefused("duplicate_column", f"the column {twice!r} is there twice", field=twice)
        return [where[name] for name in self.names]

    def encode(self, columns: Sequence[Sequence[Any]]) -> tuple[NDArray[np.float64], Mapping[str, int]]:
        """The matrix (n_rows, n_features) of columns in the features' order, and counts of unseen categories.

        Raises:
            RequestRefused: A value has another type than its feature, or is too large.
        """
        unseen: Counter[str] = Counter()
        if len(columns[0]) == 1:
            cells = [self._cell(j, column[0], 0, unseen) for j, column in enumerate(columns)]
            return np.array([cells], dtype=np.float64), unseen
        matrix = np.empty((len(columns[0]), len(self.names)), dtype=np.float64)
        for j, column in enumerate(columns):
            matrix[:, j] = self._column(j, column, unseen)
        return matrix, unseen

    def _column(self, j: int, column: Sequence[Any], unseen: Counter[str]) -> Any:
        """A column at once where all of it is right; otherwise by cell, to name the row."""
        types = set(map(type, column)) - {type(None)}
        plan = self._plans[j]
        if plan is None:
            if types <= {int, float}:
                values = np.array(column, dtype=np.float64)
                if not (np.abs(values) > LARGEST).any():
                    return values
        elif types <= {plan[0]}:
            values = np.fromiter((plan[1].get(cell, MISSING) for cell in column), np.float64, len(column))
            if new := int(np.isnan(values).sum()) - column.count(None):
                unseen[self.names[j]] += new
            return values
        return [self._cell(j, cell, row, unseen) for row, cell in enumerate(column)]

    def _cell(self, j: int, cell: Any, row: int, unseen: Counter[str]) -> float:
        if cell is None:
            return MISSING
        plan, kind = self._plans[j], type(cell)
        if plan is None:
            if kind is float or kind is int:
                if -LARGEST <= cell <= LARGEST:
                    return float(cell)
                if cell != cell:  # NaN, from features that were looked up: JSON has none
                    return MISSING
                message = (
                    f"{self.names[j]!r} in row {row} is {cell!r}: models compute with numbers up to 3.4e38"
                )
                raise RequestRefused("number_too_large", message, field=self.names[j], row=row)
        elif kind is plan[0]:
            code = plan[1].get(cell)
            if code is None:
                unseen[self.names[j]] += 1
                return MISSING
            return code
        raise self._mistyped(j, cell, row)

    def _mistyped(self, j: int, cell: Any, row: int) -> RequestRefused:
        wanted = WANTED[self.kinds[j]]
        message = (
            f"{self.names[j]!r} in row {row} is {describe(cell)}, but must be {wanted} (or null: unknown)"
        )
        return RequestRefused("wrong_type", message, field=self.names[j], row=row)


def _plan(feature: Feature) -> tuple[type, dict[Any, float]] | None:
    if feature.kind == "number":
        return None
    if feature.kind == "boolean":
        return bool, {True: 1.0, False: 0.0}
    return str, {category: float(code) for code, category in enumerate(feature.categories)}


def describe(value: Any) -> str:
    """A JSON value in a few words, cut to a line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, (int, float)):
        return f"the number {value!r}"
    return "an object" if isinstance(value, Mapping) else "a list"


def listed(names: Sequence[str]) -> str:
    """Names in quotes, the first few, with the verb that fits."""
    shown = ", ".join(repr(name[:60]) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
