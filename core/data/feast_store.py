"""The plan of a loop's features: what its Feast file says, read once. Feast is imported only for a new plan.

Feast file + tables ─► plan (a memo, and a blob of the feature set) ─► join, online store, prediction

The plan holds names, keys, types and time to live, so that a later run and the endpoint need not import the
Feast file again.
"""

from __future__ import annotations

from collections.abc import Iterable

from treadle.errors import SpecError
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.loop_code import code_of
from treadle.records import Column, Part, Snapshot, SnapshotTable
from treadle.store import Store, read_memo, write_memo

VERSION = 1
PLAN_BLOB = "views.json"  # a feature set carries its plan under this name
KINDS = {"Float64": "number", "Float32": "number", "Int64": "number", "Int32": "number"} | {
    "Bool": "boolean",
    "String": "category",
}
# A snapshot's columns have these types, and times, which are no features.
DTYPES = {"BIGINT": "Int64", "DOUBLE": "Float64", "BOOLEAN": "Bool", "VARCHAR": "String"}


class Key(Part):
    """A join key: the view's column, the labelled table's column that it equals, and its Feast type."""

    column: str
    labelled: str
    dtype: str


class ViewField(Part):
    """A feature of a view: the table's column and its Feast type."""

    name: str
    dtype: str


class View(Part):
    """A feature view as treadle joins it.

    `known_at` is the column of `table` that a row's time is compared with; `ttl_us` is in microseconds, 0 for
    ever.
    """

    name: str
    online: str
    table: str
    known_at: str
    keys: tuple[Key, ...]
    fields: tuple[ViewField, ...]
    ttl_us: int

    def feature(self, field: ViewField) -> str:
        """The feature's name in a feature set."""
        return f"{self.name}__{field.name}"


class Plan(Part):
    """All of a loop's features: views, and the labelled table's own columns; `definition` is a digest."""

    views: tuple[View, ...]
    own: tuple[Column, ...]
    definition: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every feature with its kind: own columns first, then view by view."""
        joined = [
            Column(name=view.feature(field), type=KINDS[field.dtype])
            for view in self.views
            for field in view.fields
        ]
        return (*self.own, *joined)


def feature_plan(loop: Loop, store: Store, snapshot: Snapshot) -> Plan:
    """The plan of a loop's features over a snapshot's tables; a known one comes from the store.

    Raises:
        SpecError: An unknown view, key or column. HookError: the Feast file raised.
    """
    files = code_of(loop, [loop.features.file] if loop.features.file else [])
    tables = {
        name: {
            "definition": table.definition,
            "columns": [(column.name, column.type) for column in table.columns],
            "roles": [table.entity, table.event_time, table.known_at, table.label, table.label_known_at],
        }
        for name, table in snapshot.tables.items()
    }
    sections = loop.features.model_dump(mode="json", exclude={"online"})
    known = {
        name: sorted(set(table.known_at_of.values())) for name, table in sorted(loop.data.tables.items())
    }
    key = digest_of(
        {"version": VERSION, "files": files, "features": sections, "tables": tables, "known_at": known}
    )
    memo = read_memo(store, "features", key)
    if memo is not None:
        return Plan.model_validate(memo)
    views: tuple[View, ...] = ()
    if loop.features.use:
        from treadle.data.feast_file import views_of

        views = views_of(loop, snapshot, files)
    own = _own_columns(loop, snapshot)
    _refuse_twice(loop, [column.name for column in own], views)
    labelled = snapshot.tables[loop.data.labelled]
    definition = digest_of(
        {
            "views": [view.model_dump(mode="json") for view in views],
            "own": [(column.name, column.type) for column in own],
            "labelled": labelled.definition,
        }
    )
    plan = Plan(views=views, own=own, definition=definition)
    write_memo(store, "features", key, plan.model_dump(mode="json"))
    return plan


def known_at_of(table: SnapshotTable) -> str:
    """The column that says when a view table's rows became known."""
    return table.known_at or table.event_time


def _own_columns(loop: Loop, snapshot: Snapshot) -> tuple[Column, ...]:
    """The labelled table's columns that are features, by kind."""
    name = loop.data.labelled
    table = snapshot.tables[name]
    types = {column.name: column.type for column in table.columns}
    times = {table.event_time, table.known_at, table.label_known_at} | set(
        loop.data.tables[name].known_at_of.values()
    )
    reserved = {"row_id", table.entity, table.label} | times
    if loop.features.columns is None:
        chosen = [column for column in types if column not in reserved and types[column] in DTYPES]
    else:
        chosen = list(loop.features.columns)
    faults, own = [], []
    for position, column in enumerate(chosen):
        field = f"features.columns.{position}" if loop.features.columns else "features.columns"
        if column not in types:
            fix = f"Its columns are: {', '.join(types)}."
            faults.append(loop.fault(field, f"the table {name!r} has no column {column!r}.", fix))
        elif column in {table.label, table.label_known_at}:
            problem = f"{column!r} is the label or its time: it can't be a feature."
            faults.append(loop.fault(field, problem, "Remove it."))
        elif types[column] not in DTYPES:
            problem = f"{column!r} is of type {types[column]}, which no model can learn from."
            fix = "Make it a number, a boolean or text in the table's SQL, or leave it out."
            faults.append(loop.fault(field, problem, fix))
        else:
            own.append(Column(name=column, type=KINDS[DTYPES[types[column]]]))
    if faults:
        raise SpecError(faults)
    return tuple(own)


def _refuse_twice(loop: Loop, own: Iterable[str], views: Iterable[View]) -> None:
    """DuckDB and Feast fold the case of names, so names that differ only in case count as one."""
    seen: dict[str, str] = {"row_id": "row_id"} | {
        name: name for name in ("entity", "event_time", "label", "label_known_at")
    }
    faults = []
    for name in [*own, *(view.feature(field) for view in views for field in view.fields)]:
        if name.lower() in seen:
            problem = f"two columns of the feature set would be called {name!r} and {seen[name.lower()]!r}."
            faults.append(loop.fault("features", problem, "Rename one in its SQL or view."))
        seen[name.lower()] = name
    if faults:
        raise SpecError(faults)


def legal_name(text: str) -> str:
    """A name that Feast and SQL take, distinct for distinct texts."""
    legal = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in text)
    return legal if legal == text else f"{legal}_{digest_of(text)[:8]}"
