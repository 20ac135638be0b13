"""What the endpoint answered in a stretch of time, read back from the store.

captures/<loop>/<track>/<first 16 of the candidate's digest>/<day of event_time>-<uuid>.parquet

`treadle.serving.capture` writes these files and says what is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from treadle.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

SHORT_DIGEST = 16
_OWN = ("entity", "event_time", "request_id", "model", "prediction")


def capture_column(feature: str) -> str:
    """The captured column of a feature: its own name, unless that is taken."""
    return f"feature_{feature}" if feature in _OWN or feature.startswith("prediction_") else feature


def capture_files(
    store: Store, loop: str, track: str, candidates: Iterable[str], start: datetime, end: datetime
) -> list[str]:
    """The paths of the files that may hold rows with start <= event time < end, sorted.

    Args:
        store: Where the captures are.
        loop: The loop's name.
        track: The track's name.
        candidates: Digests of the models that may have answered.
        start: In UTC.
        end: In UTC.
    """
    first, last = start.date().isoformat(), (end - timedelta(microseconds=1)).date().isoformat()
    found = []
    for short in sorted({digest[:SHORT_DIGEST] for digest in candidates}):
        folder = f"captures/{loop}/{track}/{short}"
        found += [f"{folder}/{name}" for name in store.list(folder) if _is_between(name, first, last)]
    return found


def _is_between(name: str, first: str, last: str) -> bool:
    return name.endswith(".parquet") and first <= name[:10] <= last


def read_captures(store: Store, paths: Iterable[str], start: datetime, end: datetime) -> list[pa.Table]:
    """The rows of capture files with start <= event time < end, without request ids; one table for each file.

    Raises:
        StoreError: A file is no Parquet, or lacks the columns of a capture.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from treadle.errors import StoreError

    low, high = (pa.scalar(moment, pa.timestamp("us", tz="UTC")) for moment in (start, end))
    tables = []
    for path in paths:
        try:
            table = pq.read_table(pa.BufferReader(store.read(path)))
            times = table["event_time"]
            inside = pc.and_(pc.greater_equal(times, low), pc.less(times, high))
            table = table.filter(inside).drop_columns(["request_id"])
            table.select(["entity", "model", "prediction"])
        except (pa.ArrowException, KeyError) as error:
            raise StoreError(
                f"{store.uri}/{path} is no capture that can be read: {error}. Move it away and run again;"
                " its predictions will then count as never captured."
            ) from error
        if table.num_rows:
            tables.append(table)
    return tables


def captures_digest(tables: Iterable[pa.Table]) -> str | None:
    """sha256 over the distinct rows, whatever the files and their order; None when there are no rows."""
    rows: set[str] = set()
    for table in tables:
        rows.update(row_texts(table))
    if not rows:
        return None
    summed = hashlib.sha256()
    for row in sorted(rows):
        summed.update(row.encode())
        summed.update(b"\n")
    return summed.hexdigest()


def row_texts(table: pa.Table) -> list[str]:
    """Each row as `name=value` of its columns, sorted by name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts: list[Any] = []
    for name in sorted(table.column_names):
        column: Any = table[name].combine_chunks()
        column = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        text = pc.fill_null(column.cast(pa.string()), "\x00")
        parts.append(pc.binary_join_element_wise(pa.scalar(name), text, "="))
    joined: Any = pc.binary_join_element_wise(*parts, "\x1f")
    return list(joined.to_pylist())
