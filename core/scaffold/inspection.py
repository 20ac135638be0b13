"""What `treadle init NAME --from FILE` finds out about a file, before it writes a loop on it.

The whole file is read, as each run will: the head of a file that is in order of time tells neither its end nor the
type of every column.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from treadle.clock import parse_duration
from treadle.errors import MissingPackage, UserError

TIME = "TIMESTAMP WITH TIME ZONE"
KEPT = {"BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR", TIME}
UNKNOWN = ("NA", "N/A", "n/a", "NULL", "null", "None", "none", "NaN", "nan", "-", "?")
MOST_CLASSES = 50


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says about a file: where it is, and which part its columns play.

    `label_known_at` is a column, or how long after the question the answer is known; None where nobody said.
    """

    uri: str
    label: str
    time: str
    entity: str
    label_known_at: str | None = None
    known_at: str | None = None

    @property
    def answered_after(self) -> str | None:
        """The duration of `label_known_at`; None where it is a column or was not said."""
        try:
            parse_duration(self.label_known_at or "")
        except ValueError:
            return None
        return self.label_known_at

    @property
    def columns(self) -> dict[str, str]:
        """Each column that plays a part, by the option that names it."""
        named = {"label": self.label, "time": self.time, "entity": self.entity, "known-at": self.known_at}
        if not self.answered_after:
            named["label-known-at"] = self.label_known_at
        return {option: column for option, column in named.items() if column}


@dataclass(frozen=True, slots=True)
class FileColumn:
    """A column: its name, its type as a table keeps it, how many values it has, and about how many different ones."""

    name: str
    type: str
    known: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file holds. Times are in UTC, `delay_s` is the 99th percentile of how late answers come.

    Attributes:
        nulls: What stands for an unknown value besides nothing.
        nameless: Rows without entity or time.
        repeated: Rows that share entity and time with another.
        active: On how many days there is a row.
        positive: For two texts the rarer, which counts as 1; else None.
        share: Of the known labels, how many are 1; 0 but for binary labels.
        spread: The variance of a label that is a number.
        times: SQL that gives the time, for each column that is to be one.
    """

    columns: tuple[FileColumn, ...]
    nulls: tuple[str, ...]
    rows: int
    nameless: int
    repeated: int
    first: datetime
    last: datetime
    active: int
    task: Literal["binary", "multiclass", "regression"]
    positive: str | None
    share: float
    spread: float
    delay_s: float | None
    times: dict[str, str]

    def column(self, name: str) -> FileColumn:
        """The column of a name."""
        return next(column for column in self.columns if column.name == name)


def look_at(name: str, asked: Asked) -> Facts:
    """What a CSV, zipped CSV or Parquet file holds.

    Raises:
        UserError: The file can't be read, lacks a column, or a column can't play its part. MissingPackage: DuckDB or
            Ibis is not installed. Transient: Its storage did not answer.
    """
    try:
        import duckdb  # noqa: F401
        import ibis  # noqa: F401
    except ImportError as error:
        raise MissingPackage("duckdb", "look at a file", "stages") from error
    if "://" not in asked.uri and "${" not in asked.uri and not Path(asked.uri).is_file():
        raise UserError(f"{asked.uri}: there is no such file. Name one CSV or Parquet file by --from.")
    nulls: tuple[str, ...] = ()
    facts = _read(name, asked, nulls)
    if isinstance(facts, tuple):
        facts = _read(name, asked, facts)
    assert isinstance(facts, Facts)
    return facts


def _read(name: str, asked: Asked, nulls: tuple[str, ...]) -> Facts | tuple[str, ...]:
    """The facts; or, at the first reading, the words that seem to stand for unknown values."""
    from treadle.data.engine import connected
    from treadle.data.sources import fetch_source, source_digests
    from treadle.loop import Loop
    from treadle.store import scratch_folder

    source = {"uri": asked.uri, "nulls": ["", *nulls]}
    table = {"sql": "none", "entity": asked.entity, "known_at": asked.time}
    parts = {"event_time": asked.time, "label": asked.label, "label_known_at": asked.time}
    loop = Loop.model_validate(
        {"name": name, "data": {"sources": {name: source}, "tables": {name: table | parts}}}
    )
    with scratch_folder() as folder:
        local = fetch_source(loop, name, source_digests(loop)[name], folder)
        with connected(loop, [local], folder) as (connection, _):
            look = _Look(connection, name, asked)
            if local.format == "csv" and not nulls and (found := look.words_for_unknown()):
                return found
            return look.facts(nulls)


@functools.cache
def quoted(name: str) -> str:
    """A column as SQL writes it: plain where that can't be mistaken for anything else."""
    import duckdb
    from treadle.data.built import quoted as always_quoted

    plain = name.isidentifier() and name.isascii() and name == name.lower()
    keywords = "SELECT 1 FROM duckdb_keywords() WHERE keyword_name = ? AND keyword_category <> 'unreserved'"
    if plain and not duckdb.execute(keywords, [name]).fetchone():
        return name
    return always_quoted(name)


def _as_time(column: FileColumn, low: float) -> str | None:
    """SQL that gives a column's time; None where nobody can tell which it would be. `low` is its least number."""
    name = quoted(column.name)
    if column.type == TIME:
        return name
    if column.type == "BIGINT" and 1e8 <= low < 1e10:
        return f"to_timestamp({name})"
    if column.type == "BIGINT" and 1e11 <= low < 1e13:
        return f"epoch_ms({name})"
    if column.type == "BIGINT" and 19000101 <= low < 22000101:
        return f"strptime(CAST({name} AS VARCHAR), '%Y%m%d')"
    return None


class _Look:
    """Questions to one source that DuckDB holds."""

    def __init__(self, connection: Any, source: str, asked: Asked) -> None:
        self._connection, self._source, self._asked = connection, quoted(source), asked

    def _one(self, what: str, where: str = "TRUE") -> tuple[Any, ...]:
        row = self._connection.raw_sql(f"SELECT {what} FROM {self._source} WHERE {where}").fetchone()
        return tuple(row)

    def _described(self) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self._connection.raw_sql(f"DESCRIBE {self._source}").fetchall()]

    def words_for_unknown(self) -> tuple[str, ...]:
        """Words such as NA that alone keep a column of numbers or times from being one."""
        words = ", ".join(f"'{word}'" for word in UNKNOWN)
        found: set[str] = set()
        for name, kind in self._described():
            if kind != "VARCHAR":
                continue
            column = quoted(name)
            for better in ("DOUBLE", "TIMESTAMP"):
                other = f"{column} NOT IN ({words})"
                fits = f"count(*) FILTER ({other} AND TRY_CAST({column} AS {better}) IS NULL)"
                wrong, right = self._one(f"{fits}, count(*) FILTER ({other})", f"{column} IS NOT NULL")
                if not wrong and right:
                    here = f"SELECT DISTINCT {column} FROM {self._source} WHERE {column} IN ({words})"
                    found |= {row[0] for row in self._connection.raw_sql(here).fetchall()}
        return tuple(sorted(found))

    def facts(self, nulls: tuple[str, ...]) -> Facts:
        """All facts; refuses what can't play its part."""
        columns = self._columns()
        asked, by_name = self._asked, {column.name: column for column in columns}
        for option, name in asked.columns.items():
            if name not in by_name:
                raise UserError(
                    f"{asked.uri} has no column {name!r} for --{option}. Its columns are: {', '.join(by_name)}."
                )
        if not self._one("count(*)")[0]:
            raise UserError(f"{asked.uri} has no rows: is the file whole?")
        if asked.label in {asked.entity, asked.time, asked.known_at, asked.label_known_at}:
            raise UserError(f"{asked.uri}: {asked.label!r} can't be the label and play another part as well.")
        named = [asked.columns.get(option) for option in ("time", "known-at", "label-known-at")]
        times = {name: self._time(by_name[name]) for name in named if name}
        entity, time = quoted(asked.entity), times[asked.time]
        there = f"{entity} IS NOT NULL AND {time} IS NOT NULL"
        rows, nameless = self._one(f"count(*), count(*) FILTER (NOT ({there}))")
        if rows == nameless:
            raise UserError(
                f"{asked.uri} has no row with {asked.entity!r} and {asked.time!r}: is the file whole?"
            )
        what = f"min({_s(time)}), max({_s(time)}), count(DISTINCT floor({_s(time)} / 86400)), "
        first, last, active, repeated = self._one(
            f"{what} count(*) - count(DISTINCT ({entity}, {time}))", there
        )
        task, positive, share, spread = self._label(by_name[asked.label])
        delay, newest = self._delay(times)
        return Facts(
            columns=columns,
            nulls=nulls,
            rows=rows,
            nameless=nameless,
            repeated=repeated,
            first=_moment(first),
            last=_moment(max(last, newest or last)),
            active=active,
            task=task,
            positive=positive,
            share=share,
            spread=spread,
            delay_s=delay,
            times=times,
        )

    def _columns(self) -> tuple[FileColumn, ...]:
        from treadle.data.built import plain_type

        found = []
        for name, kind in self._described():
            known, distinct = self._one(f"count({quoted(name)}), approx_count_distinct({quoted(name)})")
            found.append(FileColumn(name, plain_type(kind), known, distinct))
        return tuple(found)

    def _time(self, column: FileColumn) -> str:
        """SQL for a column's time; raises UserError where it has none."""
        low = 0.0
        if column.type == "BIGINT":
            low = float(self._one(f"min({quoted(column.name)})")[0] or 0)
        expression = _as_time(column, low)
        if expression is None:
            kind = "text" if column.type == "VARCHAR" else column.type
            such = ""
            if column.type == "VARCHAR":
                wrong = f"TRY_CAST({quoted(column.name)} AS TIMESTAMP) IS NULL"
                such = f" such as {self._one(f'any_value({quoted(column.name)})', wrong)[0]!r}"
            raise UserError(
                f"{self._asked.uri}: the column {column.name!r} is {kind}{such}, not a time. Write times as 2024-05-31,"
                " 2024-05-31 18:30 or 2024-05-31T18:30Z, or as seconds since 1970."
            )
        return expression

    def _label(self, column: FileColumn) -> tuple[Any, str | None, float, float]:
        """Task, the text that counts as 1, the share of ones, the variance."""
        name, place = quoted(column.name), f"{self._asked.uri}: the label {column.name!r}"
        if column.type not in KEPT - {TIME}:
            raise UserError(f"{place} is {column.type}; a label is a boolean, a number or a text.")
        query = (
            f"SELECT {name}, count(*) FROM {self._source} WHERE {name} IS NOT NULL GROUP BY 1 ORDER BY 2, 1"
        )
        values = self._connection.raw_sql(f"{query} LIMIT {MOST_CLASSES + 1}").fetchall()
        if len(values) < 2:
            raise UserError(
                f"{place} has {'one value only' if values else 'no value'}: nothing can be learnt."
            )
        total = sum(count for _, count in values)
        if {value for value, _ in values} <= {0, 1}:
            return "binary", None, dict(values)[1] / total, 0.0
        if column.type == "VARCHAR" and len(values) == 2:
            return "binary", values[0][0], values[0][1] / total, 0.0
        if column.type == "VARCHAR" and len(values) > MOST_CLASSES:
            raise UserError(f"{place} has more than {MOST_CLASSES} different texts: is it the right column?")
        if column.type == "VARCHAR":
            return "multiclass", None, 0.0, 0.0
        return "regression", None, 0.0, float(self._one(f"var_pop({name})")[0])

    def _delay(self, times: dict[str, str]) -> tuple[float | None, float | None]:
        """Within how many seconds 99 of 100 answers are known, and when the newest became known."""
        asked = self._asked
        if asked.label_known_at is None:
            return None, None
        if asked.answered_after:
            return parse_duration(asked.answered_after).total_seconds(), None
        known, time = times[asked.label_known_at], times[asked.time]
        what = f"quantile_disc({_s(known)} - {_s(time)}, 0.99), max({_s(known)})"
        delay, newest = self._one(what, f"{quoted(asked.label)} IS NOT NULL")
        if delay is None:
            raise UserError(f"{asked.uri}: no row has both {asked.label!r} and {asked.label_known_at!r}.")
        return max(0.0, delay), newest


def _s(time: str) -> str:
    return f"epoch(CAST({time} AS {TIME}))"


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(seconds, 253_370_764_799), UTC)
