"""A table as its code made it: whole, typed, with row ids, in stretches of time, before any cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from treadle.errors import DataRefused, UserError
from treadle.loop import Loop
from treadle.records import Column

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.data.tables import CutPartition

TIME = "TIMESTAMP WITH TIME ZONE"
ROW_ID = "row_id"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHOLE = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", '"NULL"'),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
}


def plain_type(duckdb_type: str) -> str:
    """The type that a column is kept as: BOOLEAN, BIGINT, DOUBLE, VARCHAR or a time; any other as it is.

    Dates become their midnight in UTC, as do timestamps without a zone their instant.
    """
    if duckdb_type in _WHOLE:
        return "BIGINT"
    if duckdb_type in {"FLOAT", "DOUBLE"} or duckdb_type.startswith("DECIMAL"):
        return "DOUBLE"
    if duckdb_type in {"VARCHAR", "UUID"} or duckdb_type.startswith("ENUM"):
        return "VARCHAR"
    if duckdb_type == "DATE" or (duckdb_type.startswith("TIMESTAMP") and "[" not in duckdb_type):
        return TIME
    return duckdb_type


@dataclass(frozen=True, slots=True)
class Stretch:
    """The rows [offset, offset + rows) of a built table: those with `start` <= event time < `end`.

    `settled_us` is the newest time in them, in microseconds since 1970: at any later `as_of` they look the
    same.
    """

    name: str
    start: datetime
    end: datetime
    offset: int
    rows: int
    settled_us: int


@dataclass(frozen=True, slots=True)
class BuiltTable:
    """A whole table in memory.

    Attributes:
        rows: `row_id`, then `columns`; ordered by stretch, then row id, then the time at which a row became
        known. content: Labelled table only, shape (n_rows,) uint64: a hash of all that is neither time nor
        label. row_times: Columns that must lie before `as_of` for a row to exist.
        value_times: Column to the time at which its values became known.
        settled: Stretches that no later `as_of` can change, by name, once cut.
    """

    name: str
    place: str
    columns: tuple[Column, ...]
    entity: str
    event_time: str
    known_at: str | None
    label: str | None
    label_known_at: str | None
    definition: str
    row_times: tuple[str, ...]
    value_times: dict[str, str]
    rows: pa.Table
    content: Any
    stretches: tuple[Stretch, ...]
    settled: dict[str, CutPartition] = field(default_factory=dict, compare=False)


def check_columns(loop: Loop, table: str, place: str, columns: Sequence[Column]) -> None:
    """Raises UserError where a table lacks a named column, or has one of a type that can't be kept."""
    spec = loop.data.tables[table]
    types = {column.name: column.type for column in columns}
    found = f"It has: {', '.join(types)}."
    named = {"entity": spec.entity, "event_time": spec.event_time, "known_at": spec.known_at}
    named |= {"label": spec.label, "label_known_at": spec.label_known_at}
    needed = {f"data.tables.{table}.{what}": name for what, name in named.items() if name}
    for column, time in spec.known_at_of.items():
        needed |= {
            f"data.tables.{table}.known_at_of": column,
            f"data.tables.{table}.known_at_of.{column}": time,
        }
        if column not in types or time not in types:
            break
    for where, name in needed.items():
        if name not in types:
            fault = loop.fault(where, f"the table {table!r} ({place}) has no column {name!r}.", found)
            raise UserError(str(fault))
    times = {where for where in needed if where.endswith(("_at", "_time")) or ".known_at_of." in where}
    for where in sorted(times):
        if types[needed[where]] != TIME:
            problem = (
                f"{needed[where]!r} of the table {table!r} ({place}) is {types[needed[where]]}, not a time."
            )
            raise UserError(str(loop.fault(where, problem, "Cast it to TIMESTAMP or DATE there.")))
    for name, kind in types.items():
        if name == ROW_ID:
            raise UserError(
                f"{place}: the table {table!r} has a column `row_id`, a name that treadle gives. Rename it."
            )
        if kind not in {"BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR", TIME}:
            raise UserError(
                f"{place}: the column {name!r} of the table {table!r} is {kind}; columns are numbers,"
                " booleans, text"
                " or times. Cast it, or take it apart into several columns."
            )
    if types[spec.entity] not in {"VARCHAR", "BIGINT"}:
        raise UserError(
            f"{place}: the entity {spec.entity!r} of the table {table!r} is {types[spec.entity]}; an entity"
            " is text or"
            " a whole number. Cast it to VARCHAR there."
        )


def arrange(
    loop: Loop,
    table: str,
    place: str,
    connection: Any,
    relation: str,
    columns: Sequence[Column],
    definition: str,
) -> BuiltTable:
    """A table's rows from a relation of the connection, typed, with ids, in order.

    Raises:
        DataRefused: Rows without entity or time.
    """
    spec = loop.data.tables[table]
    event_time = spec.event_time or spec.known_at or ""
    typed = ", ".join(f"CAST({quoted(c.name)} AS {c.type}) AS {quoted(c.name)}" for c in columns)
    name = quoted(f"treadle typed {table}")
    connection.raw_sql(f"CREATE TEMP TABLE {name} AS SELECT {typed} FROM {quoted(relation)}")
    must_have = [spec.entity, event_time, *([] if spec.label else [spec.known_at or event_time])]
    _refuse_nameless_rows(connection, name, table, place, dict.fromkeys(must_have))
    entity, time = quoted(spec.entity), quoted(event_time)
    shown = ", ".join(quoted(column.name) for column in columns)
    order = f"date_trunc('{loop.data.partition}', CAST({time} AS TIMESTAMP)), {ROW_ID}"
    if spec.known_at:
        order += f", {quoted(spec.known_at)}"
    plain = [c.name for c in columns if c.type != TIME and c.name not in {spec.label, spec.label_known_at}]
    content = f"hash({', '.join(map(quoted, plain))})" if spec.label else "0::UBIGINT"
    result = connection.raw_sql(
        f"SELECT left(sha256(CAST({entity} AS VARCHAR) || '|' || CAST(epoch_us({time}) AS VARCHAR)), 32) AS"
        f" {ROW_ID},"
        f' {shown}, {content} AS "treadle content" FROM {name} ORDER BY {order}'
    )
    rows = result.to_arrow_table()
    connection.raw_sql(f"DROP TABLE {name}")
    value_times = dict(spec.known_at_of)
    if spec.label and spec.label_known_at:
        value_times[spec.label] = spec.label_known_at
    # The moment at which something became known is itself not known before it.
    for known in [name for name in value_times.values() if name not in {event_time, spec.known_at}]:
        value_times[known] = known
    row_times = tuple(dict.fromkeys([event_time, *([spec.known_at] if spec.known_at else [])]))
    hashes = rows.column("treadle content").to_numpy() if spec.label else None
    rows = rows.drop_columns(["treadle content"])
    return BuiltTable(
        name=table,
        place=place,
        columns=tuple(columns),
        entity=spec.entity,
        event_time=event_time,
        known_at=spec.known_at,
        label=spec.label,
        label_known_at=spec.label_known_at,
        definition=definition,
        row_times=row_times,
        value_times=value_times,
        rows=rows,
        content=hashes,
        stretches=tuple(
            _stretches(rows, event_time, {*row_times, *value_times.values()}, loop.data.partition)
        ),
    )


def quoted(name: str) -> str:
    """A name as SQL writes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _refuse_nameless_rows(connection: Any, relation: str, table: str, place: str, names: Any) -> None:
    for name in names:
        column = quoted(name)
        query = f"SELECT count(*), count({column}) FROM {relation}"
        total, present = connection.raw_sql(query).fetchone()
        if present < total:
            raise DataRefused(
                f"{place}: {total - present:,} of {total:,} rows of the table {table!r} have no {name!r},"
                " so nobody can say"
                " whose or of when they are. Fill it there, or leave these rows out with WHERE.",
                [],
            )


def _stretches(
    rows: pa.Table, event_time: str, times: set[str], partition: Literal["day", "week", "month"]
) -> Iterator[Stretch]:
    import numpy as np

    moments = microseconds(rows, event_time)
    if not len(moments):
        return
    if moments.min() < -62_135_596_800_000_000 or moments.max() >= 253_370_764_800_000_000:
        raise UserError(
            f"the column {event_time!r} holds times outside of the years 1 to 9998. Leave these rows out."
        )
    bucket = _bucket(moments, partition)
    firsts = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]])
    newest = np.full(len(moments), np.iinfo(np.int64).min)
    for name in sorted(times):
        # A missing time is the least one, so it never holds a stretch back.
        np.maximum(newest, microseconds(rows, name), out=newest)
    for first, after in zip(firsts, [*firsts[1:], len(moments)], strict=True):
        start, end = bounds(EPOCH + timedelta(microseconds=int(moments[first])), partition)
        name = f"{start:%Y-%m}" if partition == "month" else f"{start:%Y-%m-%d}"
        yield Stretch(name, start, end, int(first), int(after - first), int(newest[first:after].max()))


def _bucket(moments: Any, partition: Literal["day", "week", "month"]) -> Any:
    """A number for each moment, the same within a day, a week from Monday, or a month, in UTC."""
    import numpy as np

    days = moments // 86_400_000_000
    if partition == "day":
        return days
    if partition == "week":
        return (days + 3) // 7  # 1970-01-01 was a Thursday
    return days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def bounds(instant: datetime, partition: Literal["day", "week", "month"]) -> tuple[datetime, datetime]:
    """The start and the end of the day, the week from Monday, or the month in UTC that an instant lies in."""
    start = instant.replace(hour=0, minute=0, second=0, microsecond=0)
    if partition == "day":
        return start, start + timedelta(days=1)
    if partition == "week":
        start -= timedelta(days=start.weekday())
        return start, start + timedelta(days=7)
    start = start.replace(day=1)
    return start, (start + timedelta(days=32)).replace(day=1)


def microseconds(rows: pa.Table, name: str) -> Any:
    """A time column as int64 microseconds since 1970, shape (n_rows,); the least int64 where missing."""
    import numpy as np
    import pyarrow as pa

    column = rows.column(name).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return column.fill_null(pa.scalar(int(np.iinfo(np.int64).min), pa.int64())).to_numpy()


def as_microseconds(instant: datetime) -> int:
    """Microseconds since 1970 in UTC."""
    return (instant - EPOCH) // timedelta(microseconds=1)
