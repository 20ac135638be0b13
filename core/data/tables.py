"""Cutting built tables at `as_of`, keeping their partitions in the store, and reading them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.data.built import ROW_ID, BuiltTable, Stretch, as_microseconds, microseconds
from treadle.data.digests import column_digests, rows_digest
from treadle.errors import StoreError
from treadle.identity import digest_of, sha256_of_file
from treadle.records import Partition, SnapshotTable
from treadle.store import Store, blob_is_intact, fetch_blob, read_memo, write_memo

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class CutPartition:
    """The rows of one stretch that existed at an `as_of`, in row-id order, values not yet known being null.

    `columns` maps each column to the digest of its values, `digest` covers them all. `content` is as in
    `BuiltTable`.
    """

    name: str
    start: datetime
    end: datetime
    rows: pa.Table
    columns: dict[str, str]
    digest: str
    content: Any


def cut_table(built: BuiltTable, as_of: datetime, start: datetime | None) -> list[CutPartition]:
    """A table as it was known at `as_of`, from `start` (None: its beginning) on, without empty stretches."""
    as_of_us = as_microseconds(as_of)
    start_us = as_microseconds(start) if start else None
    found = []
    for stretch in built.stretches:
        if stretch.start >= as_of or (start is not None and stretch.end <= start):
            continue
        settled = stretch.settled_us < as_of_us and (start is None or stretch.start >= start)
        part = built.settled.get(stretch.name) if settled else None
        if part is None:
            part = _cut(built, stretch, as_of_us, start_us)
            if settled:
                built.settled[stretch.name] = part
        if part.rows.num_rows:
            found.append(part)
    return found


def _cut(built: BuiltTable, stretch: Stretch, as_of_us: int, start_us: int | None) -> CutPartition:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = built.rows.slice(stretch.offset, stretch.rows)
    keep = np.ones(stretch.rows, bool)
    for name in built.row_times:
        keep &= microseconds(rows, name) < as_of_us
    if start_us is not None:
        keep &= microseconds(rows, built.event_time) >= start_us
    content = None if built.content is None else built.content[stretch.offset : stretch.offset + stretch.rows]
    if not keep.all():
        rows = rows.filter(pa.array(keep))
        content = None if content is None else content[keep]
    unknown = {time: microseconds(rows, time) for time in set(built.value_times.values())}
    for column, time in built.value_times.items():
        known = (unknown[time] < as_of_us) & (unknown[time] != np.iinfo(np.int64).min)
        if not known.all():
            values = pc.if_else(pa.array(known), rows.column(column), None)
            rows = rows.set_column(rows.column_names.index(column), column, values)
    columns = column_digests(rows)
    return CutPartition(
        stretch.name, stretch.start, stretch.end, rows, columns, rows_digest(columns), content
    )


def duplicates(built: BuiltTable, parts: Sequence[CutPartition]) -> tuple[int, list[str]]:
    """How many rows share entity and time with another, and examples in words, at most five.

    The time is the event time of a labelled table; of any other it is when a row became known, as that
    decides which row a join takes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    time = built.event_time if built.label else built.known_at or built.event_time
    extra = 0
    examples: list[str] = []
    for part in parts:
        if time == built.event_time:
            # The id holds entity and event time, and equal ids are neighbours.
            ids = part.rows.column(ROW_ID).combine_chunks()
            again = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
            if not pc.any(again).as_py():
                continue
        counts = part.rows.group_by([built.entity, time]).aggregate([([], "count_all")])
        counts = counts.filter(pc.greater(counts.column("count_all"), pa.scalar(1))).sort_by(
            [(time, "ascending"), (built.entity, "ascending")]
        )
        extra += int(pc.sum(counts.column("count_all")).as_py() or 0)
        for row in counts.slice(0, 5 - len(examples)).to_pylist():
            examples.append(f"{row[built.entity]!r} at {row[time].isoformat()}: {row['count_all']} rows")
    return extra, examples


def keep_partitions(
    store: Store, built: BuiltTable, parts: Iterable[CutPartition], folder: Path
) -> tuple[tuple[Partition, ...], dict[str, Path], dict[str, str]]:
    """The partitions' entries for the record, new files to store, and blobs that the store has already.

    Both mappings go by blob name, `<table>/<partition>.parquet`. A partition whose digest is known is not
    written again.
    """
    import pyarrow.parquet as pq

    entries, files, kept = [], {}, {}
    for part in parts:
        name = f"{built.name}/{part.name}.parquet"
        memo = read_memo(store, "partition", part.digest)
        blob = str(memo["blob"]) if memo else ""
        if blob and _is_usable(store, blob):
            kept[name] = blob
        else:
            path = folder / f"{built.name}-{part.name}.parquet"
            pq.write_table(part.rows, path, compression="zstd")
            blob, files[name] = sha256_of_file(path), path
            write_memo(store, "partition", part.digest, {"blob": blob})
        entries.append(
            Partition(
                name=part.name,
                start=part.start,
                end=part.end,
                rows=part.rows.num_rows,
                digest=part.digest,
                blob=blob,
            )
        )
    return tuple(entries), files, kept


def _is_usable(store: Store, blob: str) -> bool:
    """Whether a blob is there as it was written, or was deleted for good and so must stay away."""
    return store.exists(f"tombstones/{blob}.json") or blob_is_intact(store, blob)


def snapshot_table(built: BuiltTable, partitions: tuple[Partition, ...]) -> SnapshotTable:
    """A table's entry in the record; its digest covers column names and the partitions' digests."""
    names = [column.name for column in built.columns]
    return SnapshotTable(
        columns=built.columns,
        entity=built.entity,
        event_time=built.event_time,
        known_at=built.known_at,
        label=built.label,
        label_known_at=built.label_known_at,
        rows=sum(part.rows for part in partitions),
        digest=digest_of({"columns": names, "partitions": [[part.name, part.digest] for part in partitions]}),
        definition=built.definition,
        partitions=partitions,
    )


def read_partitions(
    store: Store,
    partitions: Iterable[Partition],
    *,
    columns: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    time_column: str = "event_time",
) -> pa.Table:
    """The rows of partitions with `start` <= time < `end`: in the partitions' order, then by row id.

    Args:
        store: Where the partitions' files are.
        partitions: Those of a snapshot's table or a feature set.
        columns: Which columns, in this order; None means all.
        start: None means from the first row.
        end: None means to the last row.
        time_column: The column that `start` and `end` are about.

    Returns:
        A table whose columns have one type each; without any partition it has no columns.

    Raises:
        BlobLost: A partition's file is missing or altered. StoreError: it is no table with these columns.
    """
    import pyarrow as pa

    partitions = tuple(partitions)
    parts = [
        _read(store, part, columns, start, end, time_column)
        for part in partitions
        if not (end is not None and part.start >= end) and not (start is not None and part.end <= start)
    ]
    if not parts and partitions:
        parts = [_read(store, partitions[0], columns, None, None, time_column).slice(0, 0)]
    return _concatenated(parts) if parts else pa.table({})


def read_heads(
    store: Store, partitions: Iterable[Partition], columns: Sequence[str], share: float
) -> pa.Table:
    """The first rows of each partition, by row id: a sample that stays the same, as ids are hashes.

    Only the pages that hold them are decoded.

    Args:
        store: Where the partitions' files are.
        partitions: At least one; those of a snapshot's table or a feature set.
        columns: Which columns, in this order.
        share: How much of each partition, above 0 and at most 1.

    Raises:
        BlobLost: A partition's file is missing or altered. StoreError: it is no table with these columns.
    """
    import math

    import pyarrow as pa
    import pyarrow.parquet as pq

    heads = []
    for part in partitions:
        wanted = math.ceil(part.rows * share)
        try:
            with pq.ParquetFile(fetch_blob(store, part.blob), memory_map=True) as file:
                batches = file.iter_batches(max(wanted, 1), columns=list(columns))
                head = pa.Table.from_batches(
                    list(_first(batches, wanted)),
                    pa.schema([file.schema_arrow.field(name) for name in columns]),
                )
        except (pa.ArrowInvalid, KeyError) as error:
            raise StoreError(
                f"the partition {part.name} (blob {part.blob}) can't be read: {error}"
            ) from error
        heads.append(head)
    return _concatenated(heads)


def _first(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of `rows` rows in all, or of all that there are."""
    for batch in batches:
        yield batch.slice(0, rows)
        rows -= batch.num_rows
        if rows <= 0:
            return


def _read(
    store: Store,
    part: Partition,
    columns: Sequence[str] | None,
    start: datetime | None,
    end: datetime | None,
    time_column: str,
) -> pa.Table:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    lower = start if start is not None and part.start < start else None
    upper = end if end is not None and part.end > end else None
    wanted = None if columns is None else list(columns)
    bounded = lower is not None or upper is not None
    read = [*wanted, time_column] if wanted is not None and bounded and time_column not in wanted else wanted
    path = fetch_blob(store, part.blob)
    try:
        rows = pq.ParquetFile(path, memory_map=True).read(columns=read)
        if bounded:
            moments = microseconds(rows, time_column)
            keep = np.ones(len(moments), bool)
            if lower is not None:
                keep &= moments >= as_microseconds(lower)
            if upper is not None:
                keep &= moments < as_microseconds(upper)
            rows = rows.filter(pa.array(keep))
        return rows if wanted is None else rows.select(wanted)
    except (pa.ArrowInvalid, KeyError) as error:
        raise StoreError(f"the partition {part.name} (blob {part.blob}) can't be read: {error}") from error


def _concatenated(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables one below the other; whole numbers become broken where any is, an empty column fits any."""
    import pyarrow as pa

    schemas = [part.schema for part in parts]
    if all(schema.equals(schemas[0]) for schema in schemas):
        return pa.concat_tables(parts)
    types: dict[str, pa.DataType] = {}
    for name in parts[0].column_names:
        kinds = {p.schema.field(name).type for p in parts if p.column(name).null_count < p.num_rows}
        kinds = kinds or {parts[0].schema.field(name).type}
        types[name] = kinds.pop() if len(kinds) == 1 else pa.float64()
    schema = pa.schema(types.items())
    return pa.concat_tables([_retyped(part, schema) for part in parts])


def _retyped(part: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = [
        part.column(field.name).cast(field.type)
        if part.column(field.name).null_count < part.num_rows
        else pa.nulls(part.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
