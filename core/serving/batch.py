"""Scoring a file: Parquet or CSV in and out, batch by batch, in memory that does not grow with the file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from treadle.errors import StoreError, UserError
from treadle.models.predictor import Predictor
from treadle.models.schema import InputSchema

if TYPE_CHECKING:
    import pyarrow as pa

Join = Callable[["pa.Table"], "pa.Table"]
ID_COLUMNS = ("row_id", "entity", "event_time")
_LARGEST = float(np.finfo(np.float32).max)
_BUFFER = 1 << 20


def predict_file(
    predictor: Predictor,
    input: Path,
    output: Path,
    *,
    model: str,
    join: Join | None = None,
    keep: Sequence[str] = (),
    batch_rows: int = 50_000,
) -> int:
    """Writes a file with a prediction for each row of another, in its order; the value is the number of rows.

    The output holds those of `row_id`, `entity`, `event_time` and `keep` that the input has; `prediction` (the
    probability of class 1, the value, for several classes the name of the most probable one, and for each its
    probability as `prediction_<class>`), and `model`. It appears under its name only when it is whole.

    Args:
        predictor: The model.
        input: `.parquet`, `.csv` or `.csv.gz`; an empty cell of a CSV is a missing value.
        output: `.parquet` or `.csv`; replaced when it exists.
        model: The candidate's digest, for the column `model`.
        join: Gives a batch its features, where the input lacks some: one row for each, in their order. The batch
            has all of the input's columns; of a CSV, those carried over are text.
        keep: More columns of the input to carry over.
        batch_rows: Rows in memory at a time.

    Raises:
        UserError: A file can't be read or written as its name says, a feature is missing, or a value is of the
            wrong type or too large; names file, column and, where there is one, the row, counted from 1.
    """
    _check_paths(input, output)
    rows = 0
    carried = tuple(dict.fromkeys((*ID_COLUMNS, *keep)))
    names = _column_names(input)
    if set(predictor.schema.names) <= set(names):
        join = None
    columns = names if join else _chosen(input, names, carried, predictor.schema)
    with _whole_or_nothing(output) as part, ExitStack() as stack:
        writer: Any = None
        for batch in _batches(input, columns, carried, predictor.schema, batch_rows):
            joined = _joined(join, batch, input) if join and batch.num_rows else batch
            scored = _score(predictor, batch, joined, input, rows, model, carried)
            if writer is None:
                writer = stack.enter_context(_writer(part, output, scored.schema))
            writer.write_table(scored)
            rows += batch.num_rows
    return rows


def _check_paths(input: Path, output: Path) -> None:
    if _format(input) is None or _format(output) is None or output.suffix == ".gz":
        wrong = input if _format(input) is None else output
        raise UserError(f"{wrong}: the name must end in .parquet or .csv, to say what the file is")
    if not input.is_file():
        raise UserError(f"{input}: there is no such file")
    if output.exists() and output.samefile(input):
        raise UserError(f"{output} is the input as well: name another output")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: there is no such folder for the output")


def _format(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    return "csv" if name.endswith((".csv", ".csv.gz")) else None


@contextmanager
def _whole_or_nothing(output: Path) -> Iterator[Path]:
    """A path to write to, which gets the output's name in the end, or disappears."""
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, output)
    except OSError as error:
        if error.errno is None:
            raise
        raise StoreError(f"{output} can't be written: {error.strerror}. Nothing was changed.") from error
    finally:
        part.unlink(missing_ok=True)


def _writer(part: Path, output: Path, schema: pa.Schema) -> Any:
    """What writes tables as Parquet or CSV, by the output's name."""
    from pyarrow import csv, parquet

    if _format(output) == "parquet":
        return parquet.ParquetWriter(part, schema, compression="zstd")
    return csv.CSVWriter(part, schema)


def _column_names(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        UserError: It is not what its name says, or a column is there twice.
    """
    import csv
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    try:
        if _format(path) == "parquet":
            names = list(parquet.read_schema(path).names)
        else:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
                names = next(csv.reader(file), [])
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{path}: the column {twice[0]} is there twice")
    return names


def _chosen(path: Path, names: Sequence[str], carried: Sequence[str], schema: InputSchema) -> list[str]:
    """The features and, of the columns to carry over, those that a file has.

    Raises:
        UserError: A feature is missing.
    """
    if missing := [name for name in schema.names if name not in names]:
        more = " and more" if len(missing) > 5 else ""
        raise UserError(
            f"{path} lacks {', '.join(missing[:5])}{more}: scoring needs all {len(schema.names)} features, "
            "or entity and event time for features that are looked up"
        )
    return [name for name in dict.fromkeys((*carried, *schema.names)) if name in names]


def _batches(
    path: Path, columns: list[str], carried: Sequence[str], schema: InputSchema, batch_rows: int
) -> Iterator[pa.Table]:
    """At least one table, be it without rows."""
    import pyarrow as pa

    try:
        if _format(path) == "parquet":
            yield from _parquet_batches(path, columns, batch_rows)
        else:
            yield from _csv_batches(path, columns, carried, schema, batch_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read: {str(error).splitlines()[0]}") from error


def _parquet_batches(path: Path, columns: list[str], batch_rows: int) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        if file.metadata.num_rows == 0:
            yield file.schema_arrow.empty_table().select(columns)
        for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def _csv_batches(
    path: Path, columns: list[str], carried: Sequence[str], schema: InputSchema, batch_rows: int
) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import csv

    # One thread: with more, errors don't say in which row they are.
    reading = csv.ReadOptions(block_size=_BUFFER, use_threads=False)
    kinds = {"number": pa.float64(), "boolean": pa.bool_(), "category": pa.string()}
    types: dict[str, Any] = dict.fromkeys(carried, pa.string())
    types |= {feature.name: kinds[feature.kind] for feature in schema.features}
    converting = csv.ConvertOptions(
        column_types={name: kind for name, kind in types.items() if name in columns},
        null_values=[""],
        strings_can_be_null=True,
        include_columns=columns,
    )
    waiting: list[pa.RecordBatch] = []
    any_rows = False
    try:
        with csv.open_csv(path, reading, csv.ParseOptions(newlines_in_values=True), converting) as blocks:
            for block in blocks:
                waiting.append(block)
                if sum(part.num_rows for part in waiting) >= batch_rows:
                    yield pa.Table.from_batches(waiting)
                    waiting, any_rows = [], True
            if waiting or not any_rows:
                yield pa.Table.from_batches(waiting, blocks.schema)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {_with_place(str(error), _column_names(path))}") from error


def _with_place(text: str, names: Sequence[str]) -> str:
    """Arrow's words about a CSV, with the column's name and the row as we count it, without the header."""
    found = re.match(r"In CSV column #(\d+): Row #(\d+): (.*)", text, re.DOTALL)
    if found:
        return f"column {names[int(found[1])]} in row {int(found[2]) - 1}: {found[3]}"
    return text.splitlines()[0]


def _joined(join: Join, batch: pa.Table, path: Path) -> pa.Table:
    joined = join(batch)
    if joined.num_rows != batch.num_rows:
        raise UserError(f"{path}: looking up features made {joined.num_rows} rows of {batch.num_rows}")
    return joined


def _score(
    predictor: Predictor,
    batch: pa.Table,
    joined: pa.Table,
    path: Path,
    before: int,
    model: str,
    carried: Sequence[str],
) -> pa.Table:
    """The output's rows for a batch and its features; `before` rows of the file came before it."""
    import pyarrow as pa

    if batch.num_rows:
        matrix = _matrix(predictor.schema, joined, path, before)
    else:
        matrix = np.empty((0, len(predictor.schema.features)))
    try:
        predictions = np.asarray(predictor.predict(matrix), dtype=np.float64)
    except ValueError as error:
        rows = f"rows {before + 1} to {before + len(matrix)}"
        raise UserError(f"{path}: the model can't predict {rows}: {error}") from error
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


def _matrix(schema: InputSchema, table: pa.Table, path: Path, before: int) -> NDArray[np.float64]:
    try:
        matrix = schema.encode(table)
    except UserError as error:
        raise UserError(f"{path}, rows {before + 1} to {before + table.num_rows}: {error}") from None
    too_large = np.argwhere(np.abs(matrix) > _LARGEST)
    if len(too_large):
        row, j = too_large[0]
        value = matrix[row, j]
        raise UserError(
            f"{path}: column {schema.names[j]} in row {before + row + 1} is {value!r}, but models compute with "
            "numbers up to 3.4e38; leave it empty where it is unknown"
        )
    return matrix
