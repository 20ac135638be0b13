"""Features of rows that someone asks about: entities and times, joined as the training rows were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.data.feast_store import DTYPES, Plan, feature_plan
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.records import Snapshot
from treadle.store import Store, scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa


def join_for_prediction(loop: Loop, store: Store, snapshot: Snapshot, rows: pa.Table) -> pa.Table:
    """The features of entities at times, in the rows' order.

    Columns that the rows lack (own features, join keys) are looked up in the snapshot's labelled table, by
    entity and time; what the rows bring counts before that.

    Args:
        loop: Whose features.
        store: Where the snapshot is.
        snapshot: The tables, as of the time from which the answers may know.
        rows: The labelled table's entity (under its own name, or `entity`), its time (likewise, or
            `event_time`; naive counts as UTC), and any of its columns; n rows in any order, repeats allowed.

    Returns:
        One column a feature, in a feature set's order and types; n rows.

    Raises:
        UserError: No entity or time; a column that is neither among the rows nor known for an entity at its
            time.
    """
    import pyarrow as pa
    from treadle.data.feast_join import join_snapshot

    plan = feature_plan(loop, store, snapshot)
    rows = _with_own_columns(loop, store, snapshot, plan, rows)
    with scratch_folder() as folder:
        joined = join_snapshot(store, snapshot, plan, rows, "event_time", folder)
    columns: dict[str, Any] = {column.name: own_values(rows[column.name], column.type) for column in plan.own}
    columns |= {name: joined[name] for name in joined.column_names}
    return pa.table(columns)


def own_values(values: Any, kind: str) -> Any:
    """An own column's values as a feature set holds them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.cast(values, pa.string()) if kind == "category" else values


def _with_own_columns(loop: Loop, store: Store, snapshot: Snapshot, plan: Plan, rows: pa.Table) -> pa.Table:
    """The rows' `event_time` and the columns that features need, absent ones from the labelled table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from treadle.data.feast_join import arrow_type, utc

    table = snapshot.tables[loop.data.labelled]
    entity = next((name for name in (table.entity, "entity") if name in rows.column_names), None)
    time = next((name for name in (table.event_time, "event_time") if name in rows.column_names), None)
    if entity is None or time is None:
        raise UserError(
            f"rows to predict name their entity by {table.entity!r} (or 'entity') and their time by"
            f" {table.event_time!r} (or 'event_time'); these have: {', '.join(rows.column_names) or 'none'}."
        )
    entities, times = rows[entity], utc(_as_time(rows[time], time))
    if entities.null_count or times.null_count:
        raise UserError(
            f"{entities.null_count + times.null_count} rows to predict lack {entity!r} or {time!r}."
        )
    types = {column.name: column.type for column in table.columns}
    given = {name: rows[name] for name in rows.column_names} | {
        table.entity: entities,
        table.event_time: times,
    }
    needed = [column.name for column in plan.own]
    needed += [key.labelled for view in plan.views for key in view.keys]
    needed = list(dict.fromkeys(needed))
    absent = [name for name in needed if name not in given]
    columns = {"event_time": times}
    if absent:
        found = _looked_up(loop, store, snapshot, entities, times, absent)
        columns |= {name: found[name] for name in absent}
    for name in needed:
        if name in given:
            try:
                columns[name] = pc.cast(given[name], arrow_type(DTYPES[types[name]]))
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"the column {name!r} of the rows to predict is not {types[name]}: {error}."
                ) from None
    return pa.table({name: columns[name] for name in ["event_time", *needed]})


def _as_time(values: Any, name: str) -> Any:
    """A column of times, read from text where it is text."""
    import pyarrow as pa

    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
            return values
        raise UserError(f"the column {name!r} of the rows to predict is {values.type}, not a time.")
    from treadle.clock import parse_instant

    try:
        instants = [None if text is None else parse_instant(text) for text in values.to_pylist()]
    except ValueError as error:
        raise UserError(f"the column {name!r} of the rows to predict: {error}") from None
    return pa.chunked_array([pa.array(instants, pa.timestamp("us", tz="UTC"))])


def _looked_up(
    loop: Loop,
    store: Store,
    snapshot: Snapshot,
    entities: Any,
    times: Any,
    absent: list[str],
) -> pa.Table:
    """Columns of the labelled table for entities at times, in their order."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from treadle.data.feast_join import INSTANT, utc
    from treadle.data.tables import read_partitions

    table = snapshot.tables[loop.data.labelled]
    moments = times.cast(pa.int64()).to_pylist()
    names = pc.cast(entities, pa.string()).to_pylist()
    extent: Any = pc.min_max(times).as_py()
    known = read_partitions(
        store,
        table.partitions,
        columns=list(dict.fromkeys([table.entity, table.event_time, *absent])),
        start=extent["min"],
        end=extent["max"] + INSTANT if extent["max"] else None,
        time_column=table.event_time,
    )
    ids = pc.cast(known[table.entity], pa.string()).to_pylist()
    at = utc(known[table.event_time]).cast(pa.int64()).to_pylist()
    place = {key: position for position, key in enumerate(zip(ids, at, strict=True))}
    positions = [place.get(key) for key in zip(names, moments, strict=True)]
    if None in positions:
        lacking = [position for position, found in enumerate(positions) if found is None]
        first = lacking[0]
        raise UserError(
            f"{len(lacking)} of {len(positions)} rows to predict lack {', '.join(absent)}, and the table"
            f" {loop.data.labelled!r} has no row for them as of {snapshot.as_of.isoformat()}: the first is"
            f" {names[first]!r} at {times[first].as_py().isoformat()}. Add the columns to the rows,"
            " or predict as of a time at which the source has these rows."
        )
    return known.select(absent).take(pa.array(positions, pa.int64()))
