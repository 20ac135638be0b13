"""What a model takes in: its columns in order, their kinds, and the levels of its categories.

Every flavour gets rows as one float64 matrix: numbers as they are, booleans as 0 and 1, categories as the
position of their level, NaN for what is missing and for levels that training never saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

from treadle.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from treadle.records import Column

Kind = Literal["number", "boolean", "category"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A column that a model takes in; `categories` holds a category's levels in the order of their codes."""

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputSchema:
    """The features of a model in the order of its matrix's columns."""

    features: tuple[Feature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return tuple(feature.name for feature in self.features)

    @classmethod
    def learn(cls, table: pa.Table, columns: Sequence[Column]) -> Self:
        """The schema of a table's features, with the levels that its rows hold, sorted.

        Args:
            table: The rows to learn from.
            columns: The features and their kinds, in the order that the model shall have.
        """
        features = []
        for column in columns:
            kind = cast("Kind", column.type)
            if kind not in get_args(Kind):
                known = ", ".join(get_args(Kind))
                raise UserError(f"the feature {column.name} has the kind {kind!r}; known are: {known}")
            levels = _levels(table.column(column.name)) if kind == "category" else ()
            features.append(Feature(column.name, kind, levels))
        return cls(tuple(features))

    def encode(self, columns: Mapping[str, Any] | pa.Table) -> NDArray[np.float64]:
        """Rows as a model takes them: (n_rows, n_features) float64, C-contiguous.

        Args:
            columns: An Arrow table, or sequences, arrays or Arrow arrays of equal length by name; what the
                schema does not name is ignored.

        Raises:
            UserError: A feature is absent, or holds values that are not of its kind.
        """
        import numpy as np

        held = set(columns.keys()) if isinstance(columns, Mapping) else set(columns.column_names)
        absent = [name for name in self.names if name not in held]
        if absent:
            raise UserError(
                f"the model needs the columns {', '.join(absent)}, which the rows lack; they have: "
                f"{', '.join(sorted(held)) or 'none'}"
            )
        encoded = [_encode(feature, columns[feature.name]) for feature in self.features]
        if len({len(values) for values in encoded}) > 1:
            sizes = ", ".join(f"{f.name} {len(v)}" for f, v in zip(self.features, encoded, strict=True))
            raise UserError(f"the columns have different lengths: {sizes}")
        rows = np.empty((len(encoded[0]) if encoded else 0, len(encoded)), dtype=np.float64)
        for position, values in enumerate(encoded):
            rows[:, position] = values
        return rows

    def to_json(self) -> list[dict[str, Any]]:
        """A list of `{name, kind, categories}`, plain JSON."""
        return [
            {"name": feature.name, "kind": feature.kind, "categories": list(feature.categories)}
            for feature in self.features
        ]

    @classmethod
    def from_json(cls, features: Iterable[Mapping[str, Any]]) -> Self:
        """The schema that `to_json` wrote."""
        return cls(tuple(Feature(f["name"], f["kind"], tuple(f["categories"])) for f in features))


def _levels(column: pa.ChunkedArray[Any]) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.unique(column.cast(pa.string())).to_pylist()
    return tuple(sorted(value for value in values if value is not None))


def _encode(feature: Feature, values: Any) -> NDArray[np.float64]:
    """(n,) float64 codes or numbers of one column."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if feature.kind != "category" and isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return values.astype(np.float64)
    try:
        if not isinstance(values, (pa.Array, pa.ChunkedArray)):
            values = pa.array(values, from_pandas=True)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if feature.kind == "category":
            levels = pa.array(feature.categories, type=pa.string())
            values = pc.index_in(values.cast(pa.string()), value_set=levels, skip_nulls=True)
        elif not (pa.types.is_boolean(values.type) or _is_number(values.type)):
            raise pa.ArrowInvalid(f"they are {values.type}")
        floats: NDArray[np.float64] = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, TypeError) as error:
        raise UserError(f"the column {feature.name} must hold a {feature.kind} each: {error}") from None
    return floats


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in tests)
