"""Scoring a file: Parquet or CSV in and out, batch by batch, in memory that does not grow with the file.

What a request to the endpoint would be refused for, a file is refused for, by column, row (from 1) and value.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from treadle.data.online import RowRefused
from treadle.errors import StoreError, UserError
from treadle.models.predictor import Predictor
from treadle.models.schema import InputSchema
from treadle.serving.cells import check_column
from treadle.serving.encode import LARGEST, NO_VALUE, WANTED, listed
from treadle.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("row_id", "entity", "event_time")
_BUFFER = 1 << 20
# Arrow reads up to 32 blocks of a CSV ahead, whatever is asked: small ones keep that to 8 MiB.
_CSV_BLOCK = 1 << 18


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


@dataclass(slots=True)
class _File:
    """The input, and how far it is read."""

    path: Path
    before: int = 0
    unseen: Counter[str] = field(default_factory=Counter)

    @property
    def is_csv(self) -> bool:
        return _format(self.path) == "csv"


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

    Raises:
        UserError: A file can't be read or written as its name says, a feature is missing, a column is not known,
            or a value is of the wrong type or too large; names file, column and, where there is one, the row,
            counted from 1.
    """
    _check_paths(input, output)
    file = _File(input)
    carried = tuple(dict.fromkeys((*ID_COLUMNS, *keep)))
    names = _column_names(input)
    schema = predictor.schema
    joining = join() if join and not set(schema.names) <= set(names) else None
    reads = {f.name: f.kind for f in schema.features} if joining is None else joining.columns
    _check_names(input, names, reads, (*carried, *ignore), schema, joining is not None)
    kinds = {name: reads.get(name, "category") for name in (*carried, *reads) if name in names}
    with _whole_or_nothing(output) as part, ExitStack() as stack:
        writer: Any = None
        for batch in _batches(file, kinds, batch_rows):
            joined = _joined(joining, batch, file) if joining and batch.num_rows else batch
            scored = _score(predictor, batch, joined, file, model, carried)
            if writer is None:
                writer = stack.enter_context(_writer(part, output, scored.schema))
            writer.write_table(scored)
            file.before += batch.num_rows
    return Scored(file.before, dict(file.unseen))


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


def _batches(file: _File, kinds: Mapping[str, str], batch_rows: int) -> Iterator[pa.Table]:
    """Tables of the columns that `kinds` names; at least one, be it without rows."""
    import pyarrow as pa

    try:
        if file.is_csv:
            yield from _csv_batches(file.path, kinds, batch_rows)
        else:
            yield from _parquet_batches(file.path, list(kinds), batch_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.path} can't be read: {str(error).splitlines()[0]}") from error


def _parquet_batches(path: Path, columns: list[str], batch_rows: int) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        if file.metadata.num_rows == 0:
            yield file.schema_arrow.empty_table().select(columns)
        for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def _csv_batches(path: Path, kinds: Mapping[str, str], batch_rows: int) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import csv

    # One thread: with more, errors don't say in which row they are.
    reading = csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False)
    types = {"number": pa.float64(), "boolean": pa.bool_(), "category": pa.string(), "integer": pa.int64()}
    converting = csv.ConvertOptions(
        column_types={name: types[kind] for name, kind in kinds.items()},
        null_values=[""],
        strings_can_be_null=True,
        include_columns=list(kinds),
    )
    waiting: list[pa.RecordBatch] = []
    rows, any_rows = 0, False
    try:
        with csv.open_csv(path, reading, csv.ParseOptions(newlines_in_values=True), converting) as blocks:
            for block in blocks:
                waiting.append(block)
                rows += block.num_rows
                if rows >= batch_rows:
                    yield pa.Table.from_batches(waiting)
                    waiting, rows, any_rows = [], 0, True
            if waiting or not any_rows:
                yield pa.Table.from_batches(waiting, blocks.schema)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {_with_place(str(error), _column_names(path), kinds)}") from error


def _with_place(text: str, names: Sequence[str], kinds: Mapping[str, str]) -> str:
    """Arrow's words about a CSV, with the column's name and the row as we count it, without the header."""
    if "straddling" in text:
        return f"a row is longer than {_CSV_BLOCK // 1024} KiB, or a quote is not closed; give Parquet for such rows"
    if shape := re.match(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)", text):
        return f"row {int(shape[1]) - 1} has {counted(int(shape[3]), 'value')}, but the header has {shape[2]}"
    if not (found := re.match(r"In CSV column #(\d+): Row #(\d+): (.*)", text, re.DOTALL)):
        return text.splitlines()[0]
    name, row = names[int(found[1])], int(found[2]) - 1
    if value := re.search(r"invalid value '(.*)'", found[3], re.DOTALL):
        wanted = WANTED[kinds[name]]
        return f"column {name} in row {row} is the text {value[1][:40]!r}, but must be {wanted} (or empty: unknown)"
    return f"column {name} in row {row}: {found[3]}"


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
