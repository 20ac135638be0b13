"""Making tables from sources: Ibis on DuckDB, by SQL files or Python hooks.

A table's code never sees `as_of`: it makes all rows there are, and treadle cuts afterwards. So one run of the
code serves every `as_of` of a process, and a table can't be made to look different by choosing the moment.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.data.built import BuiltTable, arrange, check_columns, plain_type
from treadle.data.sources import LocalSource, fetch_source, refuse_repeated_names, separator_of
from treadle.errors import HookError, TreadleError, UserError
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.loop_code import code_of, load_hook
from treadle.records import Column

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT_BYTES = 2 << 30
_AT_LINE = re.compile(r"^(LINE (\d+): )(.*)\n( *)\^", re.MULTILINE)
_kept: OrderedDict[str, BuiltTable] = OrderedDict()
_lock = threading.Lock()


def definition_of(loop: Loop, table: str) -> str:
    """Hash of the files that make a table."""
    spec = loop.data.tables[table]
    return digest_of(code_of(loop, [spec.sql or spec.python or ""]))


def build_tables(
    loop: Loop, sources: Mapping[str, str], folder: Path, say: Callable[[str], None] = lambda line: None
) -> dict[str, BuiltTable]:
    """Every table of the loop, whole, from its sources; a process makes each one once.

    Args:
        loop: The loop.
        sources: sha256 of each source's bytes, by name.
        folder: For temporary files.
        say: Takes one line of progress.

    Raises:
        UserError: A source can't be read, or a table lacks a column that the loop names. HookError: A table's
            SQL or Python failed. Transient: a source changed meanwhile.
    """
    keys = {name: _key(loop, name, sources) for name in loop.data.tables}
    with _lock:
        missing = [name for name, key in keys.items() if key not in _kept]
        if missing:
            local = [fetch_source(loop, name, digest, folder) for name, digest in sorted(sources.items())]
            with connected(loop, local, folder) as (connection, views):
                for name in missing:
                    built = _build(loop, name, connection, views)
                    say(f"prepare: made the table {name}, {built.rows.num_rows:,} rows before any cut")
                    _kept[keys[name]] = built
        found = {}
        for name, key in keys.items():
            _kept.move_to_end(key)
            found[name] = _kept[key]
        while len(_kept) > len(keys) and sum(built.rows.nbytes for built in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
    return found


def _key(loop: Loop, table: str, sources: Mapping[str, str]) -> str:
    readers = {
        name: source.model_dump(mode="json", exclude={"uri"}) for name, source in loop.data.sources.items()
    }
    spec = loop.data.tables[table].model_dump(mode="json")
    made_by = {"definition": definition_of(loop, table), "spec": spec, "folder": str(loop.folder)}
    how = {"threads": loop.data.threads, "partition": loop.data.partition, "table": table}
    return digest_of({"sources": dict(sources), "readers": readers, **made_by, **how})


@contextmanager
def connected(loop: Loop, sources: list[LocalSource], folder: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A DuckDB connection through Ibis, with each source as a table of its name."""
    import ibis

    # Ibis 12 calls what DuckDB 1.5 has renamed, and Feast, once imported, has every deprecation shown.
    warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning, "ibis")
    connection = ibis.duckdb.connect(threads=loop.data.threads)
    try:
        connection.raw_sql("SET TimeZone = 'UTC'")
        connection.raw_sql(f"SET temp_directory = '{str(folder).replace(chr(39), chr(39) * 2)}'")
        connection.raw_sql("SET autoinstall_known_extensions = false")
        views = {source.name: _read(connection, source) for source in sources}
        # A file that a query opens by itself would be in no source digest.
        connection.raw_sql("SET enable_external_access = false")
        yield connection, views
    finally:
        connection.disconnect()


def _read(connection: Any, source: LocalSource) -> Any:
    """A source, parsed once into a table of the connection."""
    refuse_repeated_names(source)
    try:
        if source.format == "parquet":
            read = connection.read_parquet(str(source.path), table_name=f"treadle file {source.name}")
        else:
            # The whole file decides the types: a sample would make them depend on the order of rows.
            read = connection.read_csv(
                str(source.path),
                table_name=f"treadle file {source.name}",
                # Left to itself DuckDB skips lines or changes the separator until a broken file looks whole.
                header=True,
                skip=0,
                delim=separator_of(source.path),
                quote='"',
                escape='"',
                nullstr=list(source.nulls),
                sample_size=-1,
            )
        return connection.create_table(source.name, read, temp=False)
    except TreadleError:
        raise
    except Exception as error:
        what = "Parquet" if source.format == "parquet" else "CSV"
        problem = _first_lines(_first_bad_line(connection, source) or error, 5)
        raise UserError(
            f"the source {source.name!r} ({source.uri}) can't be read as {what}: {problem}. "
            f"Mend the file, or set `format` and `nulls` of `data.sources.{source.name}`."
        ) from None


def _first_bad_line(connection: Any, source: LocalSource) -> Exception | None:
    """What is wrong with the first bad line of a CSV file: DuckDB's search for a dialect doesn't say."""
    import csv

    if source.format != "csv":
        return None
    delimiter = separator_of(source.path)
    try:
        with open(source.path, encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
        columns = {f"column {number}": "VARCHAR" for number in range(len(names))}
        dialect = {"header": True, "delimiter": delimiter, "quotechar": '"', "escapechar": '"'}
        reader = connection.con.read_csv(str(source.path), auto_detect=False, columns=columns, **dialect)
        while reader.fetchmany(100_000):
            pass
    except Exception as error:
        return error
    return None


def _first_lines(error: Exception, count: int = 3) -> str:
    text = str(error).partition("Possible fixes:")[0]  # DuckDB's advice is for who calls its reader
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:count]).rstrip(".") or type(error).__name__


def _build(loop: Loop, table: str, connection: Any, views: dict[str, Any]) -> BuiltTable:
    place = _place(loop, table)
    try:
        expression = _expression(loop, table, connection, views)
        columns = [
            Column(name=name, type=plain_type(str(kind))) for name, kind in _described(connection, expression)
        ]
        check_columns(loop, table, place, columns)
        return arrange(loop, table, place, connection, expression, columns, definition_of(loop, table))
    except TreadleError:
        raise
    except Exception as error:
        raise HookError(f"the table {table!r}", place, _first_lines(error, 12)) from None


def _place(loop: Loop, table: str) -> str:
    """The file that makes a table, for messages."""
    spec = loop.data.tables[table]
    return str(loop.folder / spec.sql) if spec.sql else f"{spec.python} in {loop.folder}"


def _expression(loop: Loop, table: str, connection: Any, views: dict[str, Any]) -> str:
    """The name of a relation of the connection that holds a table's rows as its code made them."""
    spec = loop.data.tables[table]
    name = f"treadle table {table}"
    if spec.sql:
        lines_before, text = 0, ""
        try:
            text = (loop.folder / spec.sql).read_text(encoding="utf-8").rstrip().rstrip(";")
            if len(connection.con.extract_statements(text)) > 1:
                raise ValueError("it holds several statements; write one SELECT, with WITH for its parts.")
            lines_before = 1
            connection.raw_sql(f'CREATE TEMP VIEW "{name}" AS\n{text}')
        except Exception as error:
            line, problem = _pointed(error, text)
            place = _place(loop, table) + (f":{line - lines_before}" if line else "")
            problem += _empty_sources(connection, views)
            raise HookError(f"the SQL of the table {table!r}", place, problem) from None
        return name
    import ibis
    import pandas as pd
    import pyarrow as pa

    made = load_hook(loop, spec.python or "", f"data.tables.{table}.python")(views)
    if isinstance(made, pd.DataFrame):
        made = pa.Table.from_pandas(made, preserve_index=False)
    if not isinstance(made, (ibis.Table, pa.Table)):
        problem = f"it returned {type(made).__name__}; return an Ibis table, a pyarrow.Table or a DataFrame."
        raise HookError(f"the hook of the table {table!r}", _place(loop, table), problem)
    if isinstance(made, pa.Table):
        connection.con.register(name, made)
    else:
        connection.create_table(name, made, temp=True)
    return name


def _pointed(error: Exception, query: str) -> tuple[int, str]:
    """The line that DuckDB complains of, or 0, and its words: with the line's text and a mark under the token."""
    found = _AT_LINE.search(str(error))
    words = _first_lines(Exception(str(error)[: found.start()]) if found else error, 12)
    if found:
        label, number, text, margin = found.groups()
        line, margin = int(number), margin[len(label) :]
    elif query and "end of input" in words:
        line, text = query.count("\n") + 1, query.rpartition("\n")[2]
        margin = " " * len(text)
    else:
        return 0, words
    return line, f"{words}{'' if words.endswith('?') else ':'}\n  {text.rstrip()}\n  {margin}^"


def _empty_sources(connection: Any, views: Mapping[str, Any]) -> str:
    """A word on sources without rows, whose columns have no types to go by."""
    counts = {name: connection.raw_sql(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in views}
    empty = [name for name, rows in counts.items() if not rows]
    return f"\nNo rows at all are in the source {', '.join(empty)}: is the file whole?" if empty else ""


def _described(connection: Any, relation: str) -> list[tuple[str, str]]:
    rows = connection.raw_sql(f'DESCRIBE "{relation}"').fetchall()
    return [(row[0], row[1]) for row in rows]


def describe(loop: Loop, sources: Mapping[str, str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of each source and of each table, as lists of `Column` by name, for `treadle check`.

    Raises:
        UserError, HookError: As `build_tables`.
    """
    local = [fetch_source(loop, name, digest, folder) for name, digest in sorted(sources.items())]
    with connected(loop, local, folder) as (connection, views):
        read = {name: [Column(name=n, type=t) for n, t in _described(connection, name)] for name in views}
        made = {}
        for table in loop.data.tables:
            relation = _expression(loop, table, connection, views)
            made[table] = [Column(name=n, type=plain_type(t)) for n, t in _described(connection, relation)]
            check_columns(loop, table, _place(loop, table), made[table])
    return read, made
