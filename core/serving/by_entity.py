"""Features of a file's rows that name entity and time: typed, looked up, joined as the training rows were.

A row that the endpoint would refuse is refused here too: one whose key is empty or of another type, that the
labelled table has no row for where own columns are missing, or for which a view has no fresh value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from treadle.clock import format_instant, parse_instant
from treadle.data.built import EPOCH
from treadle.data.feast_store import Plan, View
from treadle.data.online import RowRefused, absence
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.records import Snapshot
from treadle.serving.cells import check_column, describe_cell
from treadle.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


class EntityJoin:
    """Gives batches of entities and times the features of a candidate, by its own files.

    Attributes:
        gaps: Where `allow_gaps`: by view, how many rows had no fresh value of it, which count as missing.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        plan: Plan,
        snapshot: Callable[[], Snapshot],
        *,
        allow_gaps: bool = False,
    ) -> None:
        """Looks nothing up yet.

        Args:
            loop: The candidate's own.
            store: Where the snapshot is.
            plan: The candidate's features.
            snapshot: Makes or finds the tables as of the time from which answers may know.
            allow_gaps: Let views' values that are absent or too old count as missing.
        """
        self._loop, self._store, self._plan = loop, store, plan
        self._make_snapshot, self._allow_gaps = snapshot, allow_gaps
        self._snapshot: Snapshot | None = None
        self._entity = loop.data.tables[loop.data.labelled].entity or "entity"
        self._time = loop.data.tables[loop.data.labelled].event_time or "event_time"
        self.gaps: Counter[str] = Counter()

    @property
    def plan(self) -> Plan:
        """The candidate's features."""
        return self._plan

    def snapshot(self) -> Snapshot:
        """The tables, made or found on first use."""
        if self._snapshot is None:
            self._snapshot = self._make_snapshot()
        return self._snapshot

    @property
    def columns(self) -> Mapping[str, str]:
        """Own columns and join keys, with their kinds."""
        kinds = {
            key.labelled: "category" if key.dtype == "String" else "integer"
            for view in self._plan.views
            for key in view.keys
        }
        return {column.name: column.type for column in self._plan.own} | kinds

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The features of a batch's rows, in their order.

        Raises:
            RowRefused: A row can't be joined. UserError: The rows name no entity or no time.
        """
        import pyarrow as pa
        from treadle.data.feast_rows import join_for_prediction

        snapshot = self.snapshot()
        entities, times = self._named(batch)
        columns = {"entity": entities, "event_time": times}
        for name, kind in self.columns.items():
            if name in batch.column_names:
                columns[name] = self._checked(batch[name], name, kind)
        absent = [name for name in self.columns if name not in columns]
        if absent:
            columns |= self._looked_up(snapshot, entities, times, absent)
        rows = pa.table(columns)
        joined = join_for_prediction(self._loop, self._store, snapshot, rows)
        for view in self._plan.views:
            self._check_gaps(view, snapshot, rows, joined)
        return joined

    def _named(self, batch: pa.Table) -> tuple[Any, Any]:
        """Entities as text and times as microseconds in UTC."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from treadle.data.feast_join import utc

        names = batch.column_names
        entity = next((name for name in (self._entity, "entity") if name in names), None)
        time = next((name for name in (self._time, "event_time") if name in names), None)
        if entity is None or time is None:
            raise UserError(
                f"rows to predict name their entity by {self._entity!r} (or 'entity') and their time by"
                f" {self._time!r} (or 'event_time'); these have: {', '.join(names) or 'none'}."
            )
        values = batch[time]
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = pa.chunked_array([_instants(values.to_pylist(), time)])
        elif not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
            cell = describe_cell(values[0].as_py())
            raise RowRefused(0, time, f"{time!r} is {cell}, but must be a time such as 2013-04-01T06:00Z.")
        for name, column in ((entity, batch[entity]), (time, values)):
            if column.null_count:
                row = pc.index(pc.is_null(column), True).as_py()
                raise RowRefused(row, name, f"{name!r} is empty: each row names its entity and its time.")
        return pc.cast(batch[entity], pa.string()), utc(values)

    def _checked(self, column: Any, name: str, kind: str) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        keys = {key.labelled for view in self._plan.views for key in view.keys}
        try:
            values = check_column(name, column, kind)
        except RowRefused as refused:
            raise RowRefused(refused.row, name, f"{name!r} {refused.problem}", refused.code) from None
        if name in keys and values.null_count:
            row = pc.index(pc.is_null(values), True).as_py()
            views = [view.name for view in self._plan.views if name in {key.labelled for key in view.keys}]
            raise RowRefused(row, name, f"{name!r} is empty, and the view {views[0]!r} is read by it.")
        return pc.cast(values, pa.string()) if kind == "category" else values

    def _looked_up(self, snapshot: Snapshot, entities: Any, times: Any, absent: list[str]) -> dict[str, Any]:
        """Columns of the labelled table for entities at times, in their order."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from treadle.data.feast_join import INSTANT, utc
        from treadle.data.tables import read_partitions

        table = snapshot.tables[self._loop.data.labelled]
        extent: Any = pc.min_max(times).as_py()
        known = read_partitions(
            self._store,
            table.partitions,
            columns=list(dict.fromkeys([table.entity, table.event_time, *absent])),
            start=extent["min"],
            end=extent["max"] + INSTANT,
            time_column=table.event_time,
        )
        ids = pc.cast(known[table.entity], pa.string()).to_pylist()
        place = {
            key: at for at, key in enumerate(zip(ids, _micros(utc(known[table.event_time])), strict=True))
        }
        positions = []
        for row, key in enumerate(zip(entities.to_pylist(), _micros(times), strict=True)):
            if key not in place:
                raise RowRefused(
                    row,
                    self._entity,
                    f"the table {self._loop.data.labelled!r} has no row of {self._entity} = {key[0]!r} at"
                    f" {_instant(key[1])} as of {format_instant(snapshot.as_of)}, and the file lacks"
                    f" {', '.join(absent)}. Add the columns, or predict as of a time at which the source has it.",
                )
            positions.append(place[key])
        found = known.select(absent).take(pa.array(positions, pa.int64()))
        return {name: self._checked(found[name], name, self.columns[name]) for name in absent}

    def _check_gaps(self, view: View, snapshot: Snapshot, rows: pa.Table, joined: pa.Table) -> None:
        """Refuses, or counts, the rows for which a view had no value.

        A value may be null in each of its fields, so the rows whose features are all null are looked at again.
        """
        import pyarrow.compute as pc

        empty = pc.is_null(joined[view.feature(view.fields[0])])
        for made in view.fields[1:]:
            empty = pc.and_(empty, pc.is_null(joined[view.feature(made)]))
        suspects = pc.indices_nonzero(empty)
        if not len(suspects):
            return
        asked = rows.take(suspects)
        entities, newest = self._newest(view, snapshot, asked)
        numbers: list[int] = suspects.to_numpy().tolist()
        for row, entity, known, time in zip(
            numbers, entities, newest, _micros(asked["event_time"]), strict=True
        ):
            problem = absence(view, entity, known, EPOCH + timedelta(microseconds=time))
            if not problem:
                continue
            if not self._allow_gaps:
                raise RowRefused(
                    row,
                    view.keys[0].labelled,
                    f"{problem} Known as of {format_instant(snapshot.as_of)}, at the row's time {_instant(time)}."
                    " Correct the row, leave it out, or allow gaps, which count as missing.",
                )
            self.gaps[view.name] += 1

    def _newest(
        self, view: View, snapshot: Snapshot, rows: pa.Table
    ) -> tuple[list[dict[str, Any]], list[int | None]]:
        """For each row its keys, and when the view's newest value became known by its time, however old."""
        import pyarrow.compute as pc
        from treadle.data.asof import asof_positions
        from treadle.data.feast_join import INSTANT, KNOWN, overlapping, read_view

        extent: Any = pc.min_max(rows["event_time"]).as_py()
        ageless = view.model_copy(update={"ttl_us": 0})
        parts = overlapping(snapshot, ageless, extent["min"], extent["max"] + INSTANT)
        values = read_view(self._store, snapshot, view, parts)
        names = [key.labelled for key in view.keys]
        known = _micros(values[KNOWN])
        entities = rows.select(names).to_pylist()
        found = asof_positions(
            [rows[name].to_pylist() for name in names],
            _micros(rows["event_time"]),
            [values[name].to_pylist() for name in names],
            known,
            0,
        )
        return entities, [None if at is None else known[at] for at in found]


def _instants(texts: list[str | None], name: str) -> pa.Array[Any]:
    import pyarrow as pa

    instants = []
    for row, text in enumerate(texts):
        try:
            instants.append(None if text is None else parse_instant(text))
        except (ValueError, OverflowError):
            problem = f"{name!r} is {text!r}, no time: write it as 2013-04-01T06:00Z."
            raise RowRefused(row, name, problem, "wrong_type") from None
    return pa.array(instants, pa.timestamp("us", tz="UTC"))


def _micros(column: Any) -> list[int]:
    import pyarrow as pa

    moments: list[int] = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()
    return moments


def _instant(micros: int) -> str:
    return format_instant(EPOCH + timedelta(microseconds=micros))
