"""Scoring a file: Parquet or CSV in and out, batch by batch, in memory that does not grow with the file.

What a request to the endpoint would be refused for, a file is refused for, by column, row (from 1) and value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from treadle.data.online import RowRefused
from treadle.errors import UserError
from treadle.models.predictor import Predictor
from treadle.models.schema import InputSchema
from treadle.serving.batch_files import (
    check_paths,
    column_names,
    format_of,
    open_writer,
    read_batches,
    whole_or_nothing,
)
from treadle.serving.cells import check_column
from treadle.serving.encode import LARGEST, NO_VALUE, WANTED, listed
from treadle.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("row_id", "entity", "event_time")


class Join(Protocol):
    """Features of rows that lack some."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that it reads beside the rows' ids, and their kinds; a file may lack some."""
        ...

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of features for each of a batch's rows, in their order.

        Raises:
            RowRefused: A row can't be joined. UserError: none can.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """What was done: rows, and by feature how many held a category that the model never saw."""

    rows: int
    unseen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is done with each batch of a file, in whatever process."""

    path: Path
    model: str
    carried: tuple[str, ...]

    def score(
        self, predictor: Predictor, joining: Join | None, batch: pa.Table, before: int
    ) -> tuple[pa.Table, Mapping[str, int]]:
        """The output's rows for a batch, and what `Scored.unseen` counts.

        Args:
            predictor: The model.
            joining: Gives the batch its features, where the file lacks some.
            batch: Rows of the file.
            before: How many rows of the file come before them.

        Raises:
            UserError: A row can't be scored.
        """
        file = _File(self.path, before)
        joined = _joined(joining, batch, file) if joining and batch.num_rows else batch
        return _score(predictor, batch, joined, file, self.model, self.carried), file.unseen


class Spread(Protocol):
    """Scores the batches of a file in several processes."""

    def __call__(
        self, scoring: Scoring, read: Callable[[], Iterator[pa.Table]], *, joins: bool
    ) -> Generator[tuple[pa.Table, Mapping[str, int]]]:
        """What `Scoring.score` gives for each batch, in their order; `joins` where the file lacks features."""
        ...


@dataclass(slots=True)
class _File:
    """The input, how many of its rows lie before a batch, and the batch's unseen categories."""

    path: Path
    before: int
    unseen: Counter[str] = field(default_factory=Counter)

    @property
    def is_csv(self) -> bool:
        return format_of(self.path) == "csv"


def predict_file(
    predictor: Predictor,
    input: Path,
    output: Path,
    *,
    model: str,
    join: Callable[[], Join] | None = None,
    keep: Sequence[str] = (),
    ignore: Sequence[str] = (),
    batch_rows: int = 50_000,
    spread: Spread | None = None,
) -> Scored:
    """Writes a file with a prediction for each row of another, in its order.

    The output holds those of `row_id`, `entity`, `event_time` and `keep` that the input has; `prediction` (the
    probability of class 1, the value, for several classes the name of the most probable one, and for each its
    probability as `prediction_<class>`), and `model`. It appears under its name only when it is whole.

    Args:
        predictor: The model.
        input: `.parquet`, `.csv` or `.csv.gz`; an empty cell of a CSV is a missing value.
        output: `.parquet` or `.csv`; replaced when it exists.
        model: The candidate's digest, for the column `model`.
        join: Makes what gives a batch its features, where the input lacks some.
        keep: More columns of the input to carry over; of a CSV, they are text.
        ignore: Columns that the input may have and that nobody reads. Any other column is refused: it would be
            a misspelt one, or one that is thought to matter.
        batch_rows: Rows in memory at a time.
        spread: Scores the batches elsewhere; left out, they are scored here, one by one.

    Raises:
        UserError: A file can't be read or written as its name says, a feature is missing, a column is not known,
            or a value is of the wrong type or too large; names file, column and, where there is one, the row,
            counted from 1.
    """
    check_paths(input, output)
    carried = tuple(dict.fromkeys((*ID_COLUMNS, *keep)))
    names = column_names(input)
    schema = predictor.schema
    joining = join() if join and not set(schema.names) <= set(names) else None
    reads = {f.name: f.kind for f in schema.features} if joining is None else joining.columns
    _check_names(input, names, reads, (*carried, *ignore), schema, joining is not None)
    kinds = {name: reads.get(name, "category") for name in (*carried, *reads) if name in names}
    scoring, read = Scoring(input, model, carried), partial(read_batches, input, kinds, batch_rows)
    if spread is None:
        answers = _one_by_one(scoring, predictor, joining, read())
    else:
        answers = spread(scoring, read, joins=joining is not None)
    rows, unseen = 0, Counter[str]()
    with whole_or_nothing(output) as part, ExitStack() as stack:
        writer: Any = None
        for scored, counts in stack.enter_context(closing(answers)):
            if writer is None:
                writer = stack.enter_context(open_writer(part, output, scored.schema))
            writer.write_table(scored)
            rows += scored.num_rows
            unseen.update(counts)
    return Scored(rows, dict(unseen))


def _one_by_one(
    scoring: Scoring, predictor: Predictor, joining: Join | None, batches: Iterator[pa.Table]
) -> Generator[tuple[pa.Table, Mapping[str, int]]]:
    before = 0
    for batch in batches:
        yield scoring.score(predictor, joining, batch, before)
        before += batch.num_rows


def _check_names(
    path: Path,
    names: Sequence[str],
    reads: Mapping[str, str],
    beside: Sequence[str],
    schema: InputSchema,
    joins: bool,
) -> None:
    """Refuses a file that lacks a feature, or has a column that nobody would read."""
    if not joins and (missing := [name for name in schema.names if name not in names]):
        raise UserError(
            f"{path}: {listed(missing)} missing: scoring needs all of {counted(len(schema.names), 'feature')}, or"
            " entity and event time for features that are looked up"
        )
    extra = [name for name in names if name not in reads and name not in beside]
    if views := [name for name in extra if name in schema.names]:
        raise UserError(
            f"{path}: {listed(views)} looked up, as the file does not have all of"
            f" {counted(len(schema.names), 'feature')}: leave it out, or give all of them"
        )
    if extra:
        raise UserError(
            f"{path}: {listed(extra)} not among the columns that scoring reads; leave it out, or name it as one"
            " to carry over (`keep`)"
        )


def _joined(join: Join, batch: pa.Table, file: _File) -> pa.Table:
    try:
        joined = join(batch)
    except RowRefused as refused:
        raise UserError(f"{file.path}: row {file.before + refused.row + 1}: {refused.problem}") from refused
    except UserError as error:
        raise UserError(f"{file.path}: {error.words()}") from error
    if joined.num_rows != batch.num_rows:
        raise UserError(f"{file.path}: looking up features made {joined.num_rows} rows of {batch.num_rows}")
    return joined


def _score(
    predictor: Predictor, batch: pa.Table, joined: pa.Table, file: _File, model: str, carried: Sequence[str]
) -> pa.Table:
    """The output's rows for a batch and its features."""
    import pyarrow as pa

    if batch.num_rows:
        matrix = _matrix(predictor.schema, joined, file, batch.column_names)
    else:
        matrix = np.empty((0, len(predictor.schema.features)))
    try:
        predictions = np.asarray(predictor.predict(matrix), dtype=np.float64)
    except ValueError as error:
        raise _explained(error, matrix, file, predictor.schema) from error
    columns: dict[str, Any] = {name: batch[name] for name in carried if name in batch.column_names}
    if predictions.ndim == 2:
        names = np.array(predictor.classes)
        columns["prediction"] = pa.array(names[predictions.argmax(axis=1)].tolist(), pa.string())
        for j, name in enumerate(predictor.classes):
            columns[f"prediction_{name}"] = pa.array(predictions[:, j])
    else:
        columns["prediction"] = pa.array(predictions)
    columns["model"] = pa.array([model] * batch.num_rows, pa.string())
    return pa.table(columns)


def _explained(error: ValueError, matrix: NDArray[np.float64], file: _File, schema: InputSchema) -> UserError:
    gaps = np.argwhere(np.isnan(matrix))
    if len(gaps):
        row, j = gaps[0]
        place = f"column {schema.names[j]} in row {file.before + row + 1}"
        return UserError(f"{file.path}: {place} is {NO_VALUE}: {error}")
    rows = f"rows {file.before + 1} to {file.before + len(matrix)}"
    return UserError(f"{file.path}: the model can't predict {rows}: {error}")


def _matrix(schema: InputSchema, table: pa.Table, file: _File, given: Sequence[str]) -> NDArray[np.float64]:
    """(n_rows, n_features) of a batch; `given` are the columns that the file itself holds."""
    columns = {}
    for feature in schema.features:
        try:
            columns[feature.name] = check_column(feature.name, table[feature.name], feature.kind)
        except RowRefused as refused:
            place = f"column {feature.name} in row {file.before + refused.row + 1}"
            raise UserError(f"{file.path}: {place} {refused.problem}") from None
    matrix = schema.encode(columns)
    too_large = np.argwhere(np.abs(matrix) > LARGEST)
    if len(too_large):
        row, j = too_large[0]
        raise UserError(
            f"{file.path}: column {schema.names[j]} in row {file.before + row + 1} is {float(matrix[row, j])!r}, but"
            " models compute with numbers up to 3.4e38; leave it empty where it is unknown"
        )
    for j, feature in enumerate(schema.features):
        missing = np.isnan(matrix[:, j])
        gaps = columns[feature.name].null_count
        if feature.kind == "category":
            file.unseen[feature.name] += int(missing.sum()) - gaps
        elif file.is_csv and feature.name in given and int(missing.sum()) != gaps:
            row = next(
                int(row) for row in np.flatnonzero(missing) if columns[feature.name][int(row)].is_valid
            )
            raise UserError(
                f"{file.path}: column {feature.name} in row {file.before + row + 1} is nan, but must be"
                f" {WANTED[feature.kind]} (or empty: unknown)"
            )
    return matrix
