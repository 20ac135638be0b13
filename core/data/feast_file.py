"""Reading a loop's Feast file: its views, checked against the snapshot's tables, every fault at once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from treadle.data.feast_store import DTYPES, KINDS, VERSION, Key, View, ViewField, known_at_of
from treadle.errors import Fault, HookError, MissingPackage, SpecError
from treadle.features import BoundTable, bound_sources
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.loop_code import loop_imports, own_traceback
from treadle.records import Snapshot

if TYPE_CHECKING:
    from feast import FeatureView


def views_of(loop: Loop, snapshot: Snapshot, files: Mapping[str, str]) -> tuple[View, ...]:
    """The views that the loop uses, checked against the snapshot's tables."""
    if loop.features.file is None:
        fault = loop.fault(
            "features.use", "views are named, but there is no Feast file.", "Set features.file."
        )
        raise SpecError([fault])
    found, join_keys = load_feast_file(loop, snapshot)
    faults: list[Fault] = []
    views: list[View] = []
    for position, name in enumerate(loop.features.use):
        if name not in found:
            problem = f"{loop.features.file} defines no FeatureView {name!r}."
            fix = f"It defines: {', '.join(sorted(found)) or 'none'}."
            faults.append(loop.fault(f"features.use.{position}", problem, fix))
            continue
        problems = _Problems(loop, name)
        view = _view(loop, snapshot, files, name, found[name], join_keys, problems)
        faults.extend(problems.faults)
        if view is not None:
            views.append(view)
    if faults:
        raise SpecError(faults)
    return tuple(views)


class _Problems:
    """Collects what is wrong with one view, each with the Feast file's name."""

    def __init__(self, loop: Loop, view: str) -> None:
        self.file, self.view = str(loop.folder / (loop.features.file or "")), view
        self.faults: list[Fault] = []

    def add(self, problem: str, fix: str) -> None:
        self.faults.append(Fault(self.file, 0, f"view {self.view!r}", problem, fix))


def load_feast_file(loop: Loop, snapshot: Snapshot) -> tuple[dict[str, FeatureView], dict[str, str]]:
    """The feature views of the loop's Feast file by name, and each entity's join key by its name.

    Raises:
        HookError: The file raised; the text holds its own traceback.
    """
    try:
        from feast import Entity, FeatureView
    except ImportError as error:
        raise MissingPackage("feast", "join features", "stages") from error

    name = loop.features.file or ""
    path = loop.folder / name
    tables = {
        table: BoundTable(path.parent / f"{table}.parquet", known_at_of(made))
        for table, made in snapshot.tables.items()
        if table != loop.data.labelled
    }
    module_name = f"treadle_feast_{digest_of([str(path), snapshot.id])[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise SpecError([loop.fault("features.file", f"{name} is no Python file.")])
    module = importlib.util.module_from_spec(spec)
    with loop_imports(loop), bound_sources(tables):
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise HookError(f"the Feast file {name}", str(loop.folder), own_traceback(error, loop)) from error
        finally:
            del sys.modules[module_name]
    views = [value for value in vars(module).values() if isinstance(value, FeatureView)]
    entities = [value for value in vars(module).values() if isinstance(value, Entity)]
    join_keys = {entity.name: entity.join_key for entity in entities}
    return {view.projection.name_to_use(): view for view in views}, join_keys


def _view(
    loop: Loop,
    snapshot: Snapshot,
    files: Mapping[str, str],
    name: str,
    made: Any,
    join_keys: Mapping[str, str],
    problems: _Problems,
) -> View | None:
    """The plan of one view; None with `problems` filled when it can't be joined."""
    source = made.batch_source
    table_name = getattr(source, "name", "")
    table = snapshot.tables.get(table_name)
    if table is None or source.timestamp_field != known_at_of(table):
        problems.add(
            f"its source {table_name!r} is no snapshot_source.", "Use treadle.features.snapshot_source."
        )
        return None
    types = {column.name: column.type for column in table.columns}
    keys = _keys(loop, snapshot, made, join_keys, types, problems)
    times = {table.event_time, table.known_at, source.timestamp_field, "row_id"}
    if made.features:
        fields = [(field.name, str(field.dtype)) for field in made.features]
    else:
        taken = times | {key.column for key in keys}
        # Whole numbers may turn out broken in a later snapshot; that shall be the same view.
        fields = [
            (column, "Float64" if KINDS[DTYPES[kind]] == "number" else DTYPES[kind])
            for column, kind in types.items()
            if column not in taken and kind in DTYPES
        ]
    mapping = dict(source.field_mapping or {})
    if mapping:
        problems.add("its source maps fields to other names.", "Name the columns in the table's SQL instead.")
    if getattr(made, "feature_transformation", None) is not None:
        problems.add("it transforms features.", "Do so in the table's SQL; treadle joins plain FeatureViews.")
    taken_by_keys = {name for key in keys for name in (key.column, key.labelled)}
    for field, dtype in fields:
        _check_field(table_name, field, dtype, types, taken_by_keys, problems)
    if not fields:
        problems.add(f"it has no features, nor has the table {table_name!r}.", "Give it a schema.")
    if problems.faults:
        return None
    view = View(
        name=name,
        online=name,
        table=table_name,
        known_at=source.timestamp_field,
        keys=tuple(keys),
        fields=tuple(ViewField(name=field, dtype=dtype) for field, dtype in fields),
        ttl_us=round(made.ttl.total_seconds() * 1_000_000) if made.ttl else 0,
    )
    digest = digest_of(
        {"files": files, "table": table.definition, "view": view.model_dump(mode="json"), "version": VERSION}
    )
    return view.model_copy(update={"online": f"{name}_{digest[:10]}"})


def _keys(
    loop: Loop,
    snapshot: Snapshot,
    made: Any,
    join_keys: Mapping[str, str],
    types: Mapping[str, str],
    problems: _Problems,
) -> list[Key]:
    """The join keys of a view, each a column of its table and of the labelled table, of one type."""
    labelled_name = loop.data.labelled
    labelled = {column.name: column.type for column in snapshot.tables[labelled_name].columns}
    renamed = dict(made.projection.join_key_map or {})
    entities = [name for name in made.entities if name != "__dummy"]
    columns = [column.name for column in made.entity_columns]
    if len(columns) < len(entities):
        # The view keeps only its entities' names; their join keys stand on the Entity objects beside it.
        columns = [join_keys.get(name, name) for name in entities]
    keys = []
    for column in columns:
        target = renamed.get(column, column)
        if column not in types:
            fix = f"Its columns are: {', '.join(types)}."
            problems.add(f"its join key {column!r} is no column of the table it reads.", fix)
        elif target not in labelled:
            fix = f"Add it to the SQL of {labelled_name!r}; its columns are: {', '.join(labelled)}."
            problems.add(f"its join key {target!r} is no column of the table {labelled_name!r}.", fix)
        elif types[column] not in {"VARCHAR", "BIGINT"} or labelled[target] != types[column]:
            there = f"{target!r} of {labelled_name!r} is {labelled[target]}"
            problems.add(
                f"its join key {column!r} is {types[column]}, and {there}.",
                "Make both text or both whole numbers.",
            )
        else:
            keys.append(Key(column=column, labelled=target, dtype=DTYPES[types[column]]))
    if not columns:
        problems.add("it has no entity to join by.", "Give it entities=[...].")
    return keys


def _check_field(
    table: str, field: str, dtype: str, types: Mapping[str, str], keys: set[str], problems: _Problems
) -> None:
    """A field must be a column of the table, other than a key, of the declared type."""
    column = types.get(field, "")
    if field not in types:
        fix = f"Its columns are: {', '.join(types)}."
        problems.add(f"its field {field!r} is no column of the table {table!r}.", fix)
    elif field in keys:
        fix = "Feast can't join that: rename the column."
        problems.add(f"its field {field!r} is also a join key.", fix)
    elif dtype not in KINDS:
        problems.add(f"its field {field!r} has the type {dtype}.", f"Known are: {', '.join(KINDS)}.")
    elif KINDS.get(DTYPES.get(column, "")) != KINDS[dtype] or (
        dtype.startswith("Int") and column != "BIGINT"
    ):
        fix = f"Declare {DTYPES.get(column, 'another column')}, or cast the column in the table's SQL."
        problems.add(f"its field {field!r} is declared {dtype}, but the column is {column}.", fix)
