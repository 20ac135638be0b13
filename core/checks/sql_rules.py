"""Rules on what a table's SQL does with time: rows of all times in one value, the clock, chance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from treadle.checks.probe import Columns, NotFollowed, Query
from treadle.checks.rule import CheckContext, Hit, rule

if TYPE_CHECKING:
    from treadle.checks.lookahead import Look

CLOCK = {
    "now", "today", "current_date", "current_time", "current_timestamp", "get_current_time",
    "get_current_timestamp", "current_localtime", "current_localtimestamp", "localtime", "localtimestamp",
    "transaction_timestamp", "statement_timestamp", "clock_timestamp", "txid_current",
}  # fmt: skip
CHANCE = {"random", "setseed", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "nextval", "reservoir_quantile"}
_BARE = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}


@rule(
    "TR118",
    severity="warning",
    title="A table's SQL makes a value of rows that came later",
    fix="Order it by time and end its frame at the current row, or bound it by time in ON or WHERE, or name"
    " the column that says when the value is known under known_at_of.",
    sections=("data.tables", "features"),
)
def sees_later_rows(context: CheckContext) -> Iterator[Hit]:
    """Tables are made whole and cut at `as_of` afterwards, so a value of all rows has seen the later ones."""
    for name, query in context.data.parsed.items():
        columns = context.data.columns.get(name)
        if not isinstance(columns, dict):
            continue  # TR033 and TR034 say so
        try:
            for look in _looks(context, name, query, columns):
                words = f"`{look.expression}` enters {', '.join(look.columns)}: {look.why}."
                yield context.sql_hit(name, words, look.line)
        except NotFollowed as error:
            why = f"whether the SQL looks ahead in time could not be found out: {error}."
            fix = "Look yourself: every value must be made of earlier rows only."
            yield context.unchecked(f"data.tables.{name}.sql", why, fix)


def _looks(context: CheckContext, name: str, query: Query, columns: Columns) -> list[Look]:
    from treadle.checks.lookahead import looks_ahead

    reading, table = context.data.reading(query), context.loop.data.tables[name]
    # DuckDB and sqlglot name a column without an alias differently; their order is the same.
    names = dict(zip(columns, reading.outputs, strict=False)) if len(columns) == len(reading.outputs) else {}
    values = {names.get(column, column.lower()): column for column in _values(context, name, columns)}
    known_at = [time for time in (table.known_at, table.event_time) if time in columns][:1]
    found = looks_ahead(reading, list(values), [names.get(time, time.lower()) for time in known_at])
    return [replace(look, columns=tuple(values[column] for column in look.columns)) for look in found]


def _values(context: CheckContext, name: str, columns: Columns) -> list[str]:
    """The columns of a table that a model may see at the row's own `known_at`."""
    data, chosen = context.loop.data, context.loop.features.columns
    table = data.tables[name]
    no_value = {table.entity, table.event_time, table.known_at, table.label, table.label_known_at}
    no_value |= set(table.known_at_of.values())
    views = [""] if table.label else ["", *(f"{view}__" for view in context.loop.features.use)]
    no_value |= {column for column in columns for view in views if f"{view}{column}" in data.leakage.allow}
    for column, time in table.known_at_of.items():
        if time not in (table.known_at, table.event_time):
            no_value.add(column)  # it is cut at a time of its own
    return [c for c in columns if c not in no_value and (not table.label or chosen is None or c in chosen)]


@rule(
    "TR119",
    severity="warning",
    title="A table's SQL asks the clock or chance",
    fix="Take it out: what a table holds must follow from its sources, so that a run can be repeated.",
    sections=("data.tables",),
)
def asks_clock_or_chance(context: CheckContext) -> Iterator[Hit]:
    """Two runs on the same sources at the same `as_of` would differ, and a replay would see today."""
    for name, query in context.data.parsed.items():
        for called, line in _volatile(query):
            kind = "what time it is" if called in CLOCK or called == "age" else "chance"
            words = f"`{called}` makes the table depend on {kind}, not on the sources alone."
            yield context.sql_hit(name, words, line)


def _volatile(query: Query) -> Iterator[tuple[str, int]]:
    """Each function that answers otherwise at the next call, and its line; each sample without a seed."""
    from sqlglot import tokenize

    tokens = list(tokenize(query.text, dialect="duckdb"))
    texts = [token.text for token in tokens]
    for position, token in enumerate(tokens):
        word, after = token.text.lower(), texts[position + 1] if position + 1 < len(texts) else ""
        before = texts[position - 1].upper() if position else ""
        if token.token_type.name in ("IDENTIFIER", "STRING") or before in (".", "AS", "WITH"):
            continue
        called = after == "("
        asks = word in CLOCK | CHANCE if called else word in _BARE and after != "."
        # With one argument it is the time since then; with two it is a plain difference.
        since = called and word == "age" and _arguments(texts[position + 1 :]) == 1
        if asks or since:
            yield word, token.line
        elif word == "tablesample" or (word == "sample" and before == "USING"):
            clause = " ".join(texts[position : position + 12])
            if not re.search(r"(?i)repeatable|\(\s*\w+\s*,\s*\d+", clause):
                yield word, token.line


def _arguments(tokens: list[str]) -> int:
    """How many arguments a call has whose opening bracket is the first token."""
    depth, count = 0, 1
    for token in tokens:
        depth += (token == "(") - (token == ")")
        count += token == "," and depth == 1
        if depth == 0:
            break
    return count
