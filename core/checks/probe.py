"""What a loop's data look like, without reading them: schemas by the head of files, columns by DESCRIBE.

sources ── head of each ──► empty DuckDB tables ── DESCRIBE (the table's SQL) ──► its columns and their types
"""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from treadle.errors import SpecError, TreadleError
from treadle.loop import Loop

if TYPE_CHECKING:
    from treadle.checks.lineage import Reading
    from treadle.records import SnapshotTable

HEAD_BYTES = 4 << 20
Columns = dict[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a schema is not known. `line` is in the SQL file; `sure` is false where only a head was seen."""

    words: str
    line: int = 0
    column: int = 0
    sure: bool = True


class NotFollowed(Exception):
    """A query is written in a way in which nobody can say what its columns are made of."""


@dataclass(frozen=True, slots=True)
class Query:
    """A table's SQL file as parsed: what it reads, each with its line."""

    text: str
    reads: tuple[tuple[str, int], ...]
    files: tuple[tuple[str, int], ...]


class Probe:
    """A loop's sources and tables. What could not be found out is a `Problem` in its place."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._features: dict[str, str] | TreadleError | None = None
        self._cut = False

    @property
    def missing(self) -> str:
        """The packages without which nothing can be known here; empty when all are there."""
        return ", ".join(name for name in ("duckdb", "pyarrow", "sqlglot") if find_spec(name) is None)

    @cached_property
    def connection(self) -> Any:
        """A DuckDB in memory that holds an empty table for each source that could be read."""
        import duckdb

        connection = duckdb.connect(config={"threads": 1, "python_enable_replacements": False})
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    @cached_property
    def sources(self) -> dict[str, Columns | Problem]:
        """Each source's columns with their DuckDB types; nothing where packages are missing."""
        if self.missing:
            return {}
        found = {name: self._source(name) for name in self.loop.data.sources}
        # From here on a query sees the sources, and no file.
        self.connection.execute("SET enable_external_access = false")
        return found

    def _source(self, name: str) -> Columns | Problem:
        source = self.loop.data.sources[name]
        try:
            uri = self.loop.source_uri(name)
            with _opened(uri) as file, _unpacked(file) as content:
                start = content.read(4)
                content.seek(0)
                if (source.format or _format_of(uri, start)) == "parquet":
                    self._parquet(name, content)
                else:
                    self._csv(name, self._head(content), source.nulls)
        except SpecError as error:
            return Problem(error.faults[0].problem)
        except (
            Exception
        ) as error:  # whatever a storage's or a format's library raises is why it can't be read
            return Problem(_first_line(error))
        rows = self.connection.execute(f"DESCRIBE {_quoted(name)}").fetchall()
        return {row[0]: row[1] for row in rows}

    def _parquet(self, name: str, file: IO[bytes]) -> None:
        import pyarrow.parquet as pq

        empty = pq.ParquetFile(file).schema_arrow.empty_table()
        self.connection.register("head", empty)
        self.connection.execute(f"CREATE TABLE {_quoted(name)} AS SELECT * FROM head")
        self.connection.unregister("head")

    def _head(self, file: IO[bytes]) -> bytes:
        """The first whole lines of a CSV."""
        head = file.read(HEAD_BYTES)
        if len(head) == HEAD_BYTES:
            self._cut = True
            return head[: head.rfind(b"\n") + 1]
        return head

    def _csv(self, name: str, head: bytes, nulls: tuple[str, ...]) -> None:
        import tempfile

        if not head.strip():
            raise ValueError("the file is empty")
        with tempfile.TemporaryDirectory(prefix="treadle-") as folder:
            path = Path(folder) / "head.csv"
            path.write_bytes(head)
            read = "SELECT * FROM read_csv(?, nullstr = ?, sample_size = -1) LIMIT 0"
            self.connection.execute(f"CREATE TABLE {_quoted(name)} AS {read}", [str(path), list(nulls)])

    @cached_property
    def queries(self) -> dict[str, Query | Problem]:
        """Each SQL table's query, for the files that exist; nothing where packages are missing."""
        found: dict[str, Query | Problem] = {}
        if self.missing:
            return found
        for name, table in self.loop.data.tables.items():
            path = self.loop.folder / table.sql if table.sql else None
            if path is not None and path.is_file():
                found[name] = parse_query(path.read_text(encoding="utf-8", errors="replace"))
        return found

    @cached_property
    def columns(self) -> dict[str, Columns | Problem]:
        """Each SQL table's columns and DuckDB types, where the query parses and its sources could be read."""
        sources = self.sources
        found: dict[str, Columns | Problem] = {}
        for name, query in self.queries.items():
            readable = isinstance(query, Query) and all(
                isinstance(sources.get(read), dict) for read, _ in query.reads
            )
            if isinstance(query, Query) and readable and not query.files:
                found[name] = self._describe(query)
        return found

    def reading(self, query: Query) -> Reading:
        """A query with its names resolved; only for one whose columns are known.

        Raises:
            NotFollowed: sqlglot can't resolve it.
        """
        from treadle.checks.lineage import Reading

        sources = {name: found for name, found in self.sources.items() if isinstance(found, dict)}
        return Reading(query.text, sources, self._aggregates)

    @cached_property
    def _aggregates(self) -> list[str]:
        asked = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
        return [row[0] for row in self.connection.execute(asked).fetchall()]

    def path(self, table: str) -> Path:
        """Where a table's SQL file is."""
        return self.loop.folder / (self.loop.data.tables[table].sql or "")

    @property
    def parsed(self) -> dict[str, Query]:
        """The queries that parse."""
        return {name: query for name, query in self.queries.items() if isinstance(query, Query)}

    @property
    def unplanned(self) -> list[str]:
        """The tables whose columns are not known."""
        return [name for name in self.loop.data.tables if not isinstance(self.columns.get(name), dict)]

    def features(self) -> dict[str, str]:
        """The kind of each feature that featurize would make; only where no table is `unplanned`.

        Raises:
            What planning raises: SpecError, HookError, MissingPackage.
        """
        if self._features is None:
            self._features = self._plan()
        if isinstance(self._features, TreadleError):
            raise self._features
        return self._features

    def _plan(self) -> dict[str, str] | TreadleError:
        from treadle.clock import today
        from treadle.data.feast_store import feature_plan
        from treadle.records import Snapshot
        from treadle.store import LocalStore, scratch_folder

        tables = {name: self._empty_table(name) for name in self.loop.data.tables}
        nothing: dict[str, Any] = {
            "key": {},
            "window_start": None,
            "checks": (),
            "labelled_rows": 0,
            "rows": 0,
        }
        snapshot = Snapshot(
            id="check", digest="", loop=self.loop.name, as_of=today(), tables=tables, **nothing
        )
        with scratch_folder() as folder:
            try:
                plan = feature_plan(self.loop, LocalStore(folder), snapshot)
            except TreadleError as error:
                return error
        return {column.name: column.type for column in plan.columns}

    def _empty_table(self, name: str) -> SnapshotTable:
        from treadle.records import Column, SnapshotTable

        spec, columns = self.loop.data.tables[name], self.columns[name]
        assert isinstance(columns, dict)
        return SnapshotTable(
            columns=tuple(Column(name=column, type=type_) for column, type_ in columns.items()),
            entity=spec.entity,
            event_time=spec.event_time or spec.known_at or "",
            known_at=spec.known_at,
            label=spec.label,
            label_known_at=spec.label_known_at,
            rows=0,
            digest="",
            definition="",
            partitions=(),
        )

    def _describe(self, query: Query) -> Columns | Problem:
        import duckdb
        from treadle.data.built import plain_type

        try:
            rows = self.connection.execute(f"DESCRIBE {query.text.rstrip().rstrip(';')}").fetchall()
        except duckdb.Error as error:
            line = re.search(r"LINE (\d+):", str(error))
            # The rest of a file can still turn a column of numbers into text, and so make the query fit.
            sure = not self._cut or (isinstance(error, duckdb.BinderException) and "not found" in str(error))
            return Problem(_first_line(error), int(line[1]) if line else 1, sure=sure)
        columns: Columns = {}
        for name, type_, *_ in rows:
            if name.lower() in {known.lower() for known in columns}:
                return Problem(f"the query gives two columns called {name!r}", 1)
            columns[name] = plain_type(type_)
        return columns


def parse_query(text: str) -> Query | Problem:
    """The one query of a SQL file, in DuckDB's dialect; DuckDB itself says whether and where it is wrong."""
    import duckdb
    import sqlglot
    from sqlglot import exp

    try:
        duckdb.extract_statements(text)
    except duckdb.Error as error:
        return _syntax_problem(text, str(error))
    try:
        statements = [found for found in sqlglot.parse(text, dialect="duckdb") if found is not None]
    except sqlglot.errors.SqlglotError as error:
        details = (getattr(error, "errors", None) or [{}])[0]
        words = f"DuckDB can read this query, the parser of this check can't, from {details.get('highlight')!r} on"
        return Problem(words, int(details.get("line") or 1), int(details.get("col") or 0), sure=False)
    if len(statements) != 1:
        return Problem(f"the file holds {len(statements)} statements; a table is one query", 1)
    query = statements[0]
    if not isinstance(query, exp.Query):
        return Problem(f"this is a {query.key.upper()}, not a query; write a SELECT", 1)
    named = {cte.alias_or_name.lower() for cte in query.find_all(exp.CTE)}
    reads, files = [], []
    for table in query.find_all(exp.Table):
        identifier = table.this
        line = next((int(n.meta["line"]) for n in table.walk() if n.meta.get("line")), 1)
        if isinstance(identifier, exp.Identifier):
            full = ".".join(part.name for part in table.parts)
            if full.lower() not in named:
                reads.append((full, line))
        elif (called := table.name or identifier.sql(dialect="duckdb")).lower().startswith(_READERS):
            files.append((called, line))
    files += [("read_csv", 1) for _ in query.find_all(exp.ReadCSV)]
    return Query(text, tuple(dict.fromkeys(reads)), tuple(files))


def _syntax_problem(text: str, message: str) -> Problem:
    """DuckDB's message on a query that can't be parsed, with the line and the token that it stumbled over."""
    words = _first_line(ValueError(message)).removeprefix("Parser Error: ")
    what, near, rest = words.partition(" at or near ")
    at = re.search(r"^LINE (\d+): ", message, re.MULTILINE)
    lines = text.splitlines()
    number = int(at[1]) if at else len(text.rstrip().splitlines())
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    token = rest.removeprefix('"').removesuffix('"') if near else ""
    # The caret is some places off where letters take several bytes, or the line is shortened.
    caret = message[at.end() :].partition("\n")[2].find("^") - len(at[0]) if at else 0
    places = [found.start() for found in re.finditer(re.escape(token), line)] if token else []
    column = min(places, key=lambda place: abs(place - caret)) + 1 if places else 0
    shown = " ".join(line[max(column - 60, 0) : max(column - 60, 0) + 120].split())
    where = f" at `{token}`" if token else ""
    return Problem(f"{what}{where} in line {number}: {shown}".rstrip(": "), number, column)


_READERS = tuple(
    ["read_", "parquet_", "sniff_", "glob", "sqlite_", "postgres_", "mysql_", "iceberg_", "delta_", "query"]
)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _format_of(uri: str, start: bytes) -> str:
    return "parquet" if start == b"PAR1" or uri.lower().endswith((".parquet", ".pq")) else "csv"


@contextmanager
def _opened(uri: str) -> Iterator[IO[bytes]]:
    if "://" in uri:
        import fsspec

        with fsspec.open(uri, "rb") as file:
            yield file
    else:
        with open(uri, "rb") as file:
            yield file


@contextmanager
def _unpacked(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The content of a zip with one member, unpacked as it is read; else the file as it is."""
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise ValueError(f"a zip of {len(names)} files; a source is a zip of one CSV")
            with archive.open(names[0]) as member:
                yield member
    elif start[:2] == b"\x1f\x8b":
        with gzip.open(file) as unpacked:
            yield cast("IO[bytes]", unpacked)
    else:
        yield file
