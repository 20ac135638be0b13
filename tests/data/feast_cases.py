"""A loop on visits and the weather, its snapshot built by hand so that a test can plant any row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from treadle.data.digests import column_digests, rows_digest
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.records import Column, FeatureSet, Partition, Snapshot, SnapshotTable
from treadle.stages import Context, Outcome
from treadle.stages.featurize import featurize, key
from treadle.store import LocalStore, put_blob

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TIME = pa.timestamp("us", tz="UTC")
TYPES = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_(), "VARCHAR": pa.string()}
VISITS = {"visit": "VARCHAR", "asked_at": "TIME", "town": "VARCHAR", "size": "BIGINT"} | {
    "went": "BOOLEAN",
    "seen_at": "TIME",
}
WEATHER = {"town": "VARCHAR", "known_at": "TIME", "temp": "DOUBLE", "wind_y": "BIGINT", "rain": "BOOLEAN"} | {
    "sky": "VARCHAR"
}

FEATURES = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Bool, Float64, Int64, String
from treadle.features import snapshot_source

town = Entity(name="town", value_type=ValueType.STRING)
weather = FeatureView(
    name="weather",
    entities=[town],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temp", dtype=Float64),
        Field(name="wind_y", dtype=Int64),
        Field(name="rain", dtype=Bool),
        Field(name="sky", dtype=String),
    ],
    source=snapshot_source("weather"),
)
"""


def visit(name: str, at: datetime, town: str | None = "Ayr", size: int = 1) -> dict[str, Any]:
    return {"visit": name, "asked_at": at, "town": town, "size": size, "went": True, "seen_at": at + HOUR}


def report(at: datetime, temp: float | None, town: str = "Ayr", wind: int | None = 3) -> dict[str, Any]:
    return {"town": town, "known_at": at, "temp": temp, "wind_y": wind, "rain": False, "sky": "grey"}


def many(days: int = 60) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Visits every 2 hours and reports every hour in two towns, over whole days."""
    visits, reports = [], []
    for hour in range(24 * days):
        for number, town in enumerate(("Ayr", "Bath")):
            reports.append(report(START + hour * HOUR, hour / 8 + number, town, hour))
            if hour % 2 == 0:
                visits.append(
                    visit(f"{town}-{hour}", START + hour * HOUR + timedelta(minutes=30), town, hour % 7)
                )
    return visits, reports


def make_loop(folder: Path, *, features: str = FEATURES, task: str = "binary", **section: Any) -> Loop:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seen.py").write_text(features)
    visits = {"sql": "v.sql", "entity": "visit", "event_time": "asked_at", "known_at": "asked_at"}
    loop = Loop(
        name="outings",
        data={
            "sources": {"visits": "visits.csv"},
            "tables": {
                "visits": {**visits, "label": "went", "label_known_at": "seen_at"},
                "weather": {"sql": "w.sql", "entity": "town", "known_at": "known_at"},
            },
        },
        features={"file": "seen.py", "use": ["weather"], **section},
        train={"task": task},
    )
    loop._folder = folder
    return loop


def make_table(
    store: LocalStore,
    rows: Sequence[dict[str, Any]],
    types: dict[str, str],
    entity: str,
    time: str,
    **roles: Any,
) -> SnapshotTable:
    """A table of a snapshot, its months in the store."""
    months: dict[datetime, list[dict[str, Any]]] = {}
    for row in rows:
        text = f"{row[entity]}|{int(row[time].timestamp() * 1_000_000)}"
        months.setdefault(row[time].replace(day=1, hour=0, minute=0, second=0, microsecond=0), []).append(
            {"row_id": hashlib.sha256(text.encode()).hexdigest()[:32], **row}
        )
    schema = pa.schema(
        [("row_id", pa.string())] + [(name, TYPES.get(kind, TIME)) for name, kind in types.items()]
    )
    partitions = []
    for start, members in sorted(months.items()):
        table = pa.Table.from_pylist(sorted(members, key=lambda row: row["row_id"]), schema)
        path = Path(store.root.parent) / "part.parquet"
        pq.write_table(table, path)
        partitions.append(
            Partition(
                name=f"{start:%Y-%m}",
                start=start,
                end=(start + timedelta(days=32)).replace(day=1),
                rows=table.num_rows,
                digest=rows_digest(column_digests(table)),
                blob=put_blob(store, path),
            )
        )
    columns = [
        Column(name=name, type="TIMESTAMP WITH TIME ZONE" if kind == "TIME" else kind)
        for name, kind in types.items()
    ]
    return SnapshotTable(
        columns=tuple(columns),
        entity=entity,
        event_time=time,
        rows=len(rows),
        digest=digest_of([part.digest for part in partitions]),
        definition=digest_of([entity, time]),
        partitions=tuple(partitions),
        **roles,
    )


def make_snapshot(
    store: LocalStore, visits: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]], **types: str
) -> Snapshot:
    label = {"known_at": "asked_at", "label": "went", "label_known_at": "seen_at"}
    tables = {
        "visits": make_table(store, visits, VISITS, "visit", "asked_at", **label),
        "weather": make_table(store, reports, WEATHER | types, "town", "known_at", known_at="known_at"),
    }
    return Snapshot(
        id="s",
        digest=digest_of([table.digest for table in tables.values()]),
        loop="outings",
        as_of=START + timedelta(days=400),
        key={},
        window_start=None,
        tables=tables,
        checks=(),
        labelled_rows=len(visits),
        rows=len(visits),
    )


class Case:
    """A loop with a store, ready to featurize."""

    def __init__(self, folder: Path, **loop: Any) -> None:
        self.folder = folder
        self.loop = make_loop(folder / "loop", **loop)
        self.store = LocalStore(folder / "store")
        self.said: list[str] = []

    def snapshot(
        self, visits: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]], **types: str
    ) -> Snapshot:
        return make_snapshot(self.store, visits, reports, **types)

    def context(self, snapshot: Snapshot) -> Context:
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        return Context(self.loop, snapshot.as_of, self.store, None, scratch, self.said.append)  # type: ignore[arg-type]

    def featurize(self, snapshot: Snapshot) -> Outcome:
        return featurize(self.context(snapshot), snapshot)

    def record(self, snapshot: Snapshot) -> FeatureSet:
        """The feature set as the runner would commit it."""
        outcome = self.featurize(snapshot)
        files = {name: put_blob(self.store, data) for name, data in outcome.files.items()}
        header = {"id": "f", "digest": outcome.digest, "loop": "outings", "as_of": snapshot.as_of}
        made = {"key": key(self.context(snapshot), snapshot), "blobs": files | dict(outcome.kept)}
        return FeatureSet.model_validate({**header, **made, **outcome.results, "notes": dict(outcome.notes)})

    def rows(
        self, visits: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """The joined rows by entity."""
        from treadle.data.tables import read_partitions

        made = self.record(self.snapshot(visits, reports))
        return {row["entity"]: row for row in read_partitions(self.store, made.partitions).to_pylist()}
