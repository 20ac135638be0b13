"""Files of rows to score: Parquet and CSV, read batch by batch and written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import StoreError, UserError
from treadle.serving.encode import WANTED
from treadle.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

_BUFFER = 1 << 20
# Arrow reads up to 32 blocks of a CSV ahead, whatever is asked: small ones keep that to 8 MiB.
_CSV_BLOCK = 1 << 18


def check_paths(input: Path, output: Path) -> None:
    """Raises UserError where one can't be read, or written, as its name says."""
    if format_of(input) is None or format_of(output) is None or output.suffix == ".gz":
        wrong = input if format_of(input) is None else output
        raise UserError(f"{wrong}: the name must end in .parquet or .csv, to say what the file is")
    if not input.is_file():
        raise UserError(f"{input}: there is no such file")
    if output.exists() and output.samefile(input):
        raise UserError(f"{output} is the input as well: name another output")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: there is no such folder for the output")


def format_of(path: Path) -> str | None:
    """`parquet` or `csv`, by the file's name; None where it says neither."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    return "csv" if name.endswith((".csv", ".csv.gz")) else None


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
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


def open_writer(part: Path, output: Path, schema: pa.Schema) -> Any:
    """What writes tables as Parquet or CSV, by the output's name."""
    from pyarrow import csv, parquet

    if format_of(output) == "parquet":
        return parquet.ParquetWriter(part, schema, compression="zstd")
    return csv.CSVWriter(part, schema)


def column_names(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        UserError: It is not what its name says, or a column is there twice.
    """
    import csv
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    try:
        if format_of(path) == "parquet":
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


def read_batches(path: Path, kinds: Mapping[str, str], batch_rows: int) -> Iterator[pa.Table]:
    """Tables of the columns that `kinds` names; at least one, be it without rows."""
    import pyarrow as pa

    try:
        if format_of(path) == "csv":
            yield from _csv_batches(path, kinds, batch_rows)
        else:
            yield from _parquet_batches(path, list(kinds), batch_rows)
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
        raise UserError(f"{path}: {_with_place(str(error), column_names(path), kinds)}") from error


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
