"""Rules on the data: sources can be read, queries fit them, and the columns that the loop names are there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from treadle.checks.probe import Columns, Problem
from treadle.checks.rule import CheckContext, Hit, rule
from treadle.clock import format_duration
from treadle.errors import MissingPackage
from treadle.spec import Table
from treadle.words import lasting

RESERVED = ("row_id",)
TIME = "TIMESTAMP WITH TIME ZONE"
KEPT = {"BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR", TIME}


@rule(
    "TR033",
    severity="error",
    title="A source is missing or can't be read",
    fix="Correct the address; paths start from the loop's folder.",
)
def unreadable_source(context: CheckContext) -> Iterator[Hit]:
    """Reads the head of each file: its schema, not its rows."""
    for name, found in context.data.sources.items():
        if isinstance(found, Problem) and not found.words.startswith("the variable "):  # TR011
            yield context.hit(f"data.sources.{name}", f"can't be read: {found.words.rstrip('.')}.")


@rule(
    "TR034",
    severity="error",
    title="A query does not fit its sources",
    fix="Correct the SQL, or the source that it reads.",
)
def misfit_query(context: CheckContext) -> Iterator[Hit]:
    """DuckDB binds the query to empty tables with the sources' columns."""
    for name, found in context.data.columns.items():
        if isinstance(found, Problem) and not found.sure:
            why = f"by the first 4 MB of the sources the query does not fit them: {found.words}"
            yield context.unchecked(f"data.tables.{name}.sql", why, "Run `treadle run --to prepare`.")
        elif isinstance(found, Problem):
            yield context.sql_hit(name, f"{found.words.rstrip('.')}.", found.line)


def _tables(context: CheckContext) -> Iterator[tuple[str, Table, Columns]]:
    for name, columns in context.data.columns.items():
        if isinstance(columns, dict):
            yield name, context.loop.data.tables[name], columns


def _named(table: Table) -> Iterator[tuple[str, str, bool]]:
    """The columns that a table's section names: the field, the column, whether it holds times."""
    for field in ("entity", "label"):
        if getattr(table, field):
            yield field, getattr(table, field), False
    for field in ("event_time", "known_at", "label_known_at"):
        if getattr(table, field):
            yield field, getattr(table, field), True
    for column, known_at in table.known_at_of.items():
        yield f"known_at_of.{column}", column, False
        yield f"known_at_of.{column}", known_at, True


@rule(
    "TR035",
    severity="error",
    title="A column that the loop names is not in the table",
    fix="Select it in the table's query, or correct the name.",
)
def missing_column(context: CheckContext) -> Iterator[Hit]:
    """Entity, times, label and each column with a `known_at` of its own."""
    for name, table, columns in _tables(context):
        for field, column, _ in _named(table):
            if column not in columns:
                fix = f"Select it in the query, or name one of: {', '.join(columns)}."
                yield context.hit(f"data.tables.{name}.{field}", f"the table has no column {column!r}.", fix)
    for name, table in context.loop.data.tables.items():
        if table.python:
            why = "the columns of a Python table are known only when it runs."
            yield context.unchecked(f"data.tables.{name}.python", why, "Run `treadle run --to prepare`.")


@rule(
    "TR036",
    severity="error",
    title="A column's type does not suit its use",
    fix="Cast it in the query: times to TIMESTAMP (in UTC) or DATE, entities to VARCHAR or BIGINT.",
)
def mistyped_column(context: CheckContext) -> Iterator[Hit]:
    """Times are times, entities text or whole numbers, and nothing is a list or a struct."""
    for name, table, columns in _tables(context):
        for field, column, is_time in _named(table):
            type_ = columns.get(column)
            if is_time and type_ not in (None, TIME):
                yield context.hit(f"data.tables.{name}.{field}", f"{column!r} is {type_}, not a time.")
            elif field == "entity" and type_ not in (None, "VARCHAR", "BIGINT"):
                yield context.hit(
                    f"data.tables.{name}.entity", f"{column!r} is {type_}, no text or whole number."
                )
        for column, type_ in columns.items():
            if type_ not in KEPT:
                words = f"{column!r} is {type_}; columns are numbers, booleans, text or times."
                yield context.sql_hit(name, words, 1)


@rule(
    "TR037",
    severity="error",
    title="It is not said when a column became known",
    fix="Give the table a known_at, or the column an entry under known_at_of; treadle never assumes one.",
)
def undeclared_known_at(context: CheckContext) -> Iterator[Hit]:
    """An undeclared column blocks prepare, unless `data.leakage.allow` lets it pass."""
    for name, table, columns in _tables(context):
        if table.known_at is None:
            exempt = {table.entity, table.event_time, table.label, table.label_known_at, *table.known_at_of}
            exempt |= {*table.known_at_of.values(), *context.loop.data.leakage.allow}
            unknown = [column for column in columns if column not in exempt]
            if unknown:
                yield context.hit(f"data.tables.{name}", f"no known_at for: {', '.join(unknown)}.")


@rule(
    "TR038",
    severity="error",
    title="A column has a name that treadle needs itself",
    fix="Give the column another name in the query.",
)
def reserved_name(context: CheckContext) -> Iterator[Hit]:
    """`row_id` is the first column of every table of a snapshot."""
    for name, _, columns in _tables(context):
        for column in columns:
            if column.lower() in RESERVED:
                yield context.hit(f"data.tables.{name}.sql", f"the query gives a column {column!r}.")


@rule(
    "TR039",
    severity="error",
    title="A stretch of time contradicts another",
    fix="Correct one of the two.",
    sections=("history", "data", "train"),
)
def impossible_times(context: CheckContext) -> Iterator[Hit]:
    """History that ends before it begins, or is too short for holdout and window."""
    history, data = context.loop.history, context.loop.data
    if history.from_ is None or history.to is None:
        return
    span = history.to - history.from_
    if span.total_seconds() <= 0:
        yield context.hit(
            "history.to", "history ends before it begins.", "Put history.to after history.from."
        )
    elif data.holdout + data.label_delay >= span:
        yield context.hit(
            "data.holdout",
            f"holdout and label_delay take all {span.days} days of history.",
            "Shorten the holdout.",
        )
    else:
        yield from _long_tails(context, span - data.holdout - data.label_delay)


def _long_tails(context: CheckContext, left: timedelta) -> Iterator[Hit]:
    """Where early stopping or a search takes all that the holdout leaves of history."""
    train = context.loop.train
    for name, section in (("early_stopping", train.early_stopping), ("tune", train.tune)):
        newest = section.newest if section else None
        if newest is not None and newest >= left:
            words = f"it takes the newest {format_duration(newest)}, and holdout and label_delay leave"
            fix = f"Make it much shorter than {lasting(left)}, such as {format_duration(_fifth(left))}."
            yield context.hit(f"train.{name}.newest", f"{words} {lasting(left)} of history.", fix)


def _fifth(length: timedelta) -> timedelta:
    unit = timedelta(days=1) if length >= timedelta(days=5) else timedelta(hours=1)
    return max(length / 5 // unit, 1) * unit


@rule(
    "TR044",
    severity="error",
    title="A length of time that must not be zero",
    fix="Write a length such as 14d, 1d or 12h.",
)
def no_time(context: CheckContext) -> Iterator[Hit]:
    """The holdout, the window, a block, and the time between two monitors."""
    loop = context.loop
    lengths = {
        "data.window": loop.data.window,
        "data.holdout": loop.data.holdout,
        "gate.block": loop.gate.block,
    }
    if loop.monitor:
        lengths["monitor.every"] = loop.monitor.every
    for field, length in lengths.items():
        if length == timedelta(0):
            yield context.hit(field, "this is no time at all.")


@rule(
    "TR040",
    severity="error",
    title="A data check is unknown or can't run",
    fix="Use a Great Expectations type with its own arguments, and columns of its table.",
)
def bad_data_check(context: CheckContext) -> Iterator[Hit]:
    """Types and arguments as Great Expectations knows them, columns as the query gives them."""
    from treadle.data.quality import check_rules, rules_of

    rules = rules_of(context.loop)
    for asked in rules:
        columns = context.data.columns.get(asked.table)
        for column in asked.columns or ():
            if isinstance(columns, dict) and column not in (*columns, "row_id"):
                words = f"{asked.type}: the table {asked.table!r} has no column {column!r}."
                yield context.hit(f"data.checks.{asked.position}", words)
    try:
        check_rules(context.loop)
    except MissingPackage as error:
        yield context.unchecked("data.checks", str(error), "Check again where it is installed.")
