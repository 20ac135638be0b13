"""The point-in-time join of feature views by Feast's DuckDB store, checked on a sample by an as-of merge.

A value joins to a row when it was known at or before the row's time and is at most its view's TTL old; both
limits count as inside. Feast's event timestamp is `known_at`, so a late correction joins only to later rows.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.data.asof import asof_positions, differing_rows
from treadle.data.built import quoted
from treadle.data.feast_store import Plan, View, ViewField
from treadle.errors import DataRefused, StoreError
from treadle.records import Partition, Snapshot
from treadle.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore
    from feast import FeatureView as FeastView

SAMPLE = 500
CHUNK_ROWS = 100_000
_STRETCHES = (86_400_000_000, 3_600_000_000, 60_000_000)  # a day, an hour, a minute, in microseconds
INSTANT = timedelta(microseconds=1)
_FEW = 48  # values of a key in a stretch
_ROW, _TIME, _STRETCH = "treadle_row", "event_timestamp", "treadle_stretch"
KNOWN, _EVENT = "treadle_known_at", "treadle_event_time"
_ibis_lock = threading.Lock()


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type that a feature of a Feast type has in a feature set."""
    import pyarrow as pa

    if dtype in {"Bool", "String"}:
        return pa.bool_() if dtype == "Bool" else pa.string()
    return pa.int64() if dtype.startswith("Int") else pa.float64()


def overlapping(snapshot: Snapshot, view: View, start: datetime, end: datetime) -> tuple[Partition, ...]:
    """The partitions of a view's table that can hold values for rows of [start, end)."""
    table = snapshot.tables[view.table]
    by_known_at = table.event_time == view.known_at
    oldest = start - timedelta(microseconds=view.ttl_us) if view.ttl_us and by_known_at else None
    return tuple(
        part for part in table.partitions if part.start < end and (oldest is None or part.end > oldest)
    )


def join_snapshot(
    store: Store, snapshot: Snapshot, plan: Plan, rows: pa.Table, time_column: str, folder: Path
) -> pa.Table:
    """The joined features of rows, in the rows' order, from a snapshot's view tables.

    Args:
        store: Where the snapshot's partitions are.
        snapshot: The view tables.
        plan: Which views.
        rows: The labelled table's columns that the views join by, and times.
        time_column: The rows' time.
        folder: For temporary files.

    Raises:
        DataRefused: A view's rows tie. StoreError: the join lost or altered rows.
    """
    import pyarrow.compute as pc

    if not plan.views:
        return join_views([], rows, time_column, folder)
    extent: Any = pc.min_max(utc(rows[time_column])).as_py()
    first, last = extent["min"], extent["max"]
    views = [
        (view, read_view(store, snapshot, view, overlapping(snapshot, view, first, last + INSTANT)))
        if first
        else (view, read_view(store, snapshot, view, ()))
        for view in plan.views
    ]
    return join_views(views, rows, time_column, folder)


def read_view(store: Store, snapshot: Snapshot, view: View, partitions: Sequence[Partition]) -> pa.Table:
    """A view's rows: its keys under the labelled table's names, when each was known, and its fields.

    Of rows with the same keys that became known at once the one with the latest event time counts.

    Raises:
        DataRefused: Rows tie in event time too, with different values.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from treadle.data.tables import read_partitions

    made = snapshot.tables[view.table]
    if not partitions:
        fields = [(plain_name(field), arrow_type(field.dtype)) for field in view.fields]
        keys = [(key.labelled, arrow_type(key.dtype)) for key in view.keys]
        return pa.schema([*keys, (KNOWN, pa.timestamp("us", tz="UTC")), *fields]).empty_table()
    wanted = [key.column for key in view.keys] + [field.name for field in view.fields]
    columns = list(dict.fromkeys([*wanted, view.known_at, made.event_time]))
    raw = read_partitions(store, partitions, columns=columns)
    arrays: dict[str, Any] = {}
    for key in view.keys:
        arrays[key.labelled] = pc.cast(raw[key.column], arrow_type(key.dtype))
    arrays[KNOWN] = utc(raw[view.known_at])
    for field in view.fields:
        column = raw[field.name]
        if field.dtype == "Float32":
            # Online stores hold this type in 32 bits; so both sides answer the same.
            column = pc.cast(column, pa.float32(), safe=False)
        arrays[plain_name(field)] = pc.cast(column, arrow_type(field.dtype))
    arrays[_EVENT] = utc(raw[made.event_time])
    table = pa.table(arrays)
    for name in [key.labelled for key in view.keys] + [KNOWN]:
        table = table.filter(pc.is_valid(table[name]))
    return _without_ties(view, table)


def plain_name(field: ViewField) -> str:
    """A field's name within Feast, whose DuckDB join drops every column with a name that ends in `_y`."""
    return field.name + "_" if field.name.endswith("_y") else field.name


def utc(column: Any) -> Any:
    """A time column as microseconds in UTC; naive times count as UTC."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        return pc.cast(column, pa.timestamp("us", tz="UTC"))
    naive = pc.cast(column, pa.timestamp("us"))
    return pc.assume_timezone(naive, "UTC")


def _without_ties(view: View, table: pa.Table) -> pa.Table:
    identity = [key.labelled for key in view.keys] + [KNOWN]
    if table.group_by(identity).aggregate([]).num_rows == table.num_rows:
        return table.drop_columns([_EVENT])
    import duckdb
    import pyarrow as pa

    names = ", ".join(quoted(name) for name in identity)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET threads = 1")
        connection.register("rows_", table)
        newest = connection.sql(
            f"SELECT DISTINCT * EXCLUDE ({_EVENT}) FROM (SELECT * FROM rows_"
            f" QUALIFY {_EVENT} = max({_EVENT}) OVER (PARTITION BY {names})) ORDER BY {names}"
        ).to_arrow_table()
    counts = newest.group_by(identity, use_threads=False).aggregate([([], "count_all")])
    twice = counts.filter(pa.array(counts["count_all"].to_numpy() > 1))
    if twice.num_rows:
        shown = [
            ", ".join(f"{name.replace(KNOWN, view.known_at)} = {row[name]}" for name in identity)
            for row in twice.slice(0, 5).to_pylist()
        ]
        raise DataRefused(
            f"the table {view.table!r} has {twice.num_rows} keys with rows of different values that became"
            f" known at the same time, so the view {view.name!r} can't tell which counts. Keep one of them:",
            shown,
        )
    kept: pa.Table = newest.cast(table.drop_columns([_EVENT]).schema)
    return kept


def join_views(
    views: Sequence[tuple[View, pa.Table]],
    rows: pa.Table,
    time_column: str,
    folder: Path,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> pa.Table:
    """The features of rows, in the rows' order: one column `view__field` for each field.

    Feast's join pairs each row with all values of its keys before it looks at their times. So both sides
    carry a stretch of time as one more key, and each stretch's values begin with the newest from before it:
    no other value can be the answer, and what Feast must pair does not grow with the length of the history.

    Args:
        views: Each view with its rows as `read_view` gives them.
        rows: The labelled table's columns that the views join by, and times; n rows in any order, and rows
            may repeat.
        time_column: The rows' time.
        folder: An empty folder for the join's registry and files.
        chunk_rows: How many rows, in order of time, Feast joins at once; this bounds memory.

    Raises:
        StoreError: Rows out are not rows in, or the sample differs from the as-of merge.
    """
    import numpy as np
    import pyarrow as pa

    fields = [(view, field) for view, _ in views for field in view.fields]
    schema = pa.schema([(view.feature(field), arrow_type(field.dtype)) for view, field in fields])
    if not fields or not rows.num_rows:
        return schema.empty_table()
    keys = list(dict.fromkeys(key.labelled for view, _ in views for key in view.keys))
    moments = utc(rows[time_column])
    times = moments.cast(pa.int64()).to_numpy()
    width = _stretch_us(views)
    rows = pa.table(
        {_ROW: pa.array(np.arange(len(times))), _TIME: moments, _STRETCH: pa.array(times // width)}
        | {key: rows[key] for key in keys}
    )
    order = np.argsort(times, kind="stable")
    store = _feast(views, folder)
    joined = pa.concat_tables(
        _join_chunk(store, views, rows.take(order[start : start + chunk_rows]), width, folder)
        for start in range(0, len(order), chunk_rows)
    )
    positions = joined[_ROW].to_numpy()
    if len(positions) != len(order) or not np.array_equal(np.sort(positions), np.arange(len(order))):
        raise StoreError(
            f"Feast's join returned {len(positions)} rows for {len(order)}: rows were lost or repeated."
            " Nothing was recorded; check the installed versions of feast, ibis-framework and duckdb."
        )
    joined = joined.select([f"{view.name}__{plain_name(field)}" for view, field in fields])
    result = joined.rename_columns(schema.names).cast(schema).take(np.argsort(positions))
    _agree_with_asof(views, rows, times, result)
    return result


def _stretch_us(views: Sequence[tuple[View, pa.Table]]) -> int:
    """The longest stretch, a day, an hour or a minute, in which a key has few values on the average."""
    import pyarrow as pa
    import pyarrow.compute as pc

    densest = 0.0
    for view, table in views:
        keys = table.group_by([key.labelled for key in view.keys]).aggregate([]).num_rows
        extent: Any = pc.min_max(table[KNOWN].cast(pa.int64())).as_py()
        if keys and extent["max"] > extent["min"]:
            densest = max(densest, table.num_rows / keys / (extent["max"] - extent["min"]))
    return next((width for width in _STRETCHES if densest * width <= _FEW), _STRETCHES[-1])


def _join_chunk(
    store: FeatureStore, views: Sequence[tuple[View, pa.Table]], piece: pa.Table, width: int, folder: Path
) -> pa.Table:
    """Feast's answer for some rows, each with its position."""
    import pandas as pd
    import pyarrow as pa

    for view, table in views:
        _write_stretches(view, table, piece, width, view_file(folder, view))
    references = [f"{view.name}:{plain_name(field)}" for view, _ in views for field in view.fields]
    # Nullable integers: a missing key would turn the others into floats.
    frame = piece.to_pandas(types_mapper=lambda kind: pd.Int64Dtype() if kind == pa.int64() else None)
    with _own_duckdb(folder):
        job = store.get_historical_features(entity_df=frame, features=references, full_feature_names=True)
        joined: pa.Table = job.to_arrow()
        return joined


def _write_stretches(view: View, table: pa.Table, piece: pa.Table, width: int, path: Path) -> None:
    """Writes the view's rows that a chunk can join to, each with its stretch, as Parquet for Feast."""
    import duckdb
    import pyarrow as pa

    stretch = pa.array(table[KNOWN].cast(pa.int64()).to_numpy() // width, pa.int64())
    keys = [quoted(key.labelled) for key in view.keys]
    same = " AND ".join(f"v.{key} = s.{key}" for key in keys)
    values = [f"v.{quoted(name)}" for name in table.column_names if quoted(name) not in keys]
    columns = ", ".join([*(f"s.{key}" for key in keys), f"s.{_STRETCH}", *values])
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("v", table.append_column(_STRETCH + "_v", stretch))
        connection.register("piece", piece)
        connection.execute(
            f"CREATE TEMP TABLE s AS SELECT DISTINCT {', '.join(keys)}, {_STRETCH},"
            f" make_timestamptz({_STRETCH} * {width}) AS begins FROM piece"
        )
        connection.execute(
            f"COPY (SELECT {columns} FROM s JOIN v ON {same} AND v.{_STRETCH}_v = s.{_STRETCH}"
            f" UNION ALL SELECT {columns} FROM s ASOF JOIN v ON {same} AND s.begins > v.{KNOWN})"
            f" TO '{path}' (FORMAT parquet)"
        )


def view_file(folder: Path, view: View) -> Path:
    """Where the join's copy of a view's rows is."""
    return folder / f"{view.online}.parquet"


def _feast(views: Sequence[tuple[View, Any]], folder: Path) -> FeatureStore:
    """A feature store of the join's own, its registry in `folder`."""
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(
        project="treadle",
        registry=str(folder / "registry.db"),
        provider="local",
        offline_store={"type": "duckdb"},
        online_store=None,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply(
        [
            made
            for view, _ in views
            for made in feast_objects(view, view.name, str(view_file(folder, view)), stretches=True)
        ]
    )
    return store


def feast_objects(
    view: View, name: str, path: str, *, stretches: bool = False, extra: Sequence[tuple[str, str]] = ()
) -> list[Any]:
    """The Feast entities and feature view that a view of the plan stands for, reading a Parquet file.

    `stretches` adds the stretch of time to the keys; `extra` gives further (name, type) fields.
    """
    from feast import Entity, FeatureView, Field, FileSource, types

    keys = [(key.labelled, key.dtype) for key in view.keys] + ([(_STRETCH, "Int64")] if stretches else [])
    entities = [Entity(name=key, value_type=getattr(types, dtype).to_value_type()) for key, dtype in keys]
    fields = [(plain_name(field), field.dtype) for field in view.fields]
    schema = [Field(name=field, dtype=getattr(types, dtype)) for field, dtype in [*keys, *fields, *extra]]
    made: FeastView = FeatureView(
        name=name,
        entities=entities,
        schema=schema,
        source=FileSource(name=name, path=path, timestamp_field=KNOWN),
        ttl=timedelta(microseconds=view.ttl_us),
    )
    return [*entities, made]


@contextmanager
def _own_duckdb(folder: Path) -> Iterator[None]:
    """Within it Ibis's default engine, which Feast takes, is a fresh one; its memory is freed afterwards."""
    import ibis

    with _ibis_lock, warnings.catch_warnings():
        # Ibis 12 calls what DuckDB 1.5 has renamed.
        warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)
        engine = ibis.duckdb.connect(
            threads=2,
            memory_limit="1500MB",
            temp_directory=str(folder / "spill"),
            preserve_insertion_order=False,
        )
        before = ibis.options.default_backend
        ibis.options.default_backend = engine
        try:
            yield
        finally:
            ibis.options.default_backend = before
            engine.disconnect()


def _agree_with_asof(
    views: Sequence[tuple[View, pa.Table]], rows: pa.Table, times_us: Any, result: pa.Table
) -> None:
    """Compares evenly spread rows with the as-of merge; they are the same ones in each run."""
    import numpy as np
    import pyarrow as pa

    sample = np.unique(np.linspace(0, rows.num_rows - 1, SAMPLE).astype(np.int64))
    chosen = rows.take(sample)
    for view, table in views:
        keys = [key.labelled for key in view.keys]
        found = asof_positions(
            [chosen[key].to_pylist() for key in keys],
            times_us[sample].tolist(),
            [table[key].to_pylist() for key in keys],
            table[KNOWN].cast(pa.int64()).to_numpy().tolist(),
            view.ttl_us,
        )
        expected = table.take(pa.array(found, pa.int64()))
        for field in view.fields:
            name = view.feature(field)
            differing = differing_rows(result[name].take(sample), expected[plain_name(field)])
            if differing:
                where = {key: chosen[key][differing[0]].as_py() for key in keys}
                raise StoreError(
                    f"Feast's join gives other values of {name} than an as-of merge for {len(differing)} of"
                    f" {len(sample)} rows, such as {where} at {chosen[_TIME][differing[0]].as_py()}."
                    " Nothing was recorded; check the installed versions of feast, ibis-framework and duckdb."
                )
