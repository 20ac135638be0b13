"""Made-up orders with a real champion in a real store, for the tests of monitor and retrain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from treadle import spec
from treadle.clock import format_instant
from treadle.commit import commit_record, make_record
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.models import get_flavour
from treadle.models.predictor import FitTask, MemoryCheckpoints, Predictor
from treadle.models.schema import InputSchema
from treadle.monitoring.profile import build_reference
from treadle.records import Candidate, Column, DriftReport, FeatureSet, Partition
from treadle.registry.log import ReleaseLog
from treadle.stages import Context, Outcome
from treadle.store import Store, open_store, put_blob

START = datetime(2024, 1, 1, tzinfo=UTC)
TRAINED_THROUGH = START + timedelta(days=56)
COLUMNS = (
    Column(name="amount", type="number"),
    Column(name="region", type="category"),
    Column(name="express", type="boolean"),
)
Change = Callable[[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]], None]


def at(days: float) -> datetime:
    return START + timedelta(days=days)


def orders(days: int, a_day: int = 60, seed: int = 0, change: Change | None = None) -> pa.Table:
    """Rows of the labelled table; `change` edits columns, given each row's day, before labels are drawn."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), a_day)
    n = len(day)
    columns: dict[str, np.ndarray[Any, Any]] = {
        "amount": rng.normal(size=n) + 0.3 * rng.normal(size=days)[day],
        "region": rng.choice(np.array(["east", "north", "west"], dtype=object), n, p=[0.5, 0.3, 0.2]),
        "express": rng.integers(2, size=n).astype(bool),
        "flip": np.zeros(n, dtype=bool),
    }
    if change:
        change(columns, day)
    score = 1.5 * np.nan_to_num(columns["amount"]) + 1.0 * (columns["region"] == "west") - 0.5
    late = (rng.random(n) < 1 / (1 + np.exp(-score))) ^ columns.pop("flip")
    minute = np.tile(np.arange(a_day), days) * (1440 // a_day)
    times = (
        np.datetime64(START.replace(tzinfo=None), "us") + day * np.timedelta64(1, "D")
    ) + minute * np.timedelta64(1, "m")
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "row_id": pa.array([f"{i:032x}" for i in range(n)]),
            "entity": pa.array([f"o{i}" for i in range(n)]),
            "event_time": pa.array(times, stamp),
            "label": pa.array(late.astype(float)),
            "label_known_at": pa.array(times + np.timedelta64(6, "h"), stamp),
            "amount": pa.array(columns["amount"], from_pandas=True),
            "region": pa.array(columns["region"], pa.string()),
            "express": pa.array(columns["express"]),
        }
    )


@dataclass
class World:
    """A store with features, a log and champions."""

    folder: Path
    loop: Loop
    store: Store
    log: ReleaseLog
    said: list[str] = field(default_factory=list)

    def context(self, as_of: datetime, **sections: Any) -> Context:
        loop = self.loop
        if sections:
            plain = {**loop.model_dump(mode="json", by_alias=True, exclude_defaults=True), **sections}
            loop = Loop(**plain)
        return Context(loop, as_of, self.store, self.log, self.folder, self.said.append)

    def features(self, table: pa.Table, as_of: datetime, days_each: int = 14) -> FeatureSet:
        """The features as they were known at `as_of`, in partitions of so many days."""
        moments = table["event_time"].to_pylist()
        known = table["label_known_at"].to_pylist()
        label = [
            value if k < as_of else None for value, k in zip(table["label"].to_pylist(), known, strict=True)
        ]
        table = table.set_column(table.column_names.index("label"), "label", pa.array(label, pa.float64()))
        partitions = []
        start = START
        while start < as_of:
            end = start + timedelta(days=days_each)
            inside = [start <= moment < min(end, as_of) for moment in moments]
            part = table.filter(pa.array(inside))
            path = self.folder / "part.parquet"
            pq.write_table(part, path)
            blob = put_blob(self.store, path)
            digest = digest_of([str(row) for row in part.to_pylist()])
            name = start.date().isoformat()
            partitions.append(
                Partition(name=name, start=start, end=end, rows=part.num_rows, digest=digest, blob=blob)
            )
            start = end
        results = {
            "columns": COLUMNS,
            "rows": table.num_rows,
            "definition": "d",
            "views": {},
            "partitions": partitions,
        }
        return make_record(
            FeatureSet,
            loop="orders",
            as_of=as_of,
            key={},
            digest=digest_of([p.digest for p in partitions]),
            results=results,
            blobs={},
            notes={},
        )

    def champion(
        self, table: pa.Table, *, promoted: datetime | None, seed: int = 0, depth: int = 3
    ) -> Candidate:
        """A model of the rows before `TRAINED_THROUGH`, promoted at a time."""
        rows = table.filter(
            pa.array([moment < TRAINED_THROUGH for moment in table["event_time"].to_pylist()])
        )
        predictor = fit(rows, seed, depth)
        folder = self.folder / f"model-{seed}-{depth}"
        folder.mkdir()
        predictor.save(folder)
        x = predictor.schema.encode(rows)
        times = rows["event_time"].cast(pa.int64()).to_numpy()
        sample = np.arange(0, len(x), 2)
        reference = build_reference(
            predictor.schema,
            x,
            times,
            predictor.predict(x),
            predictor.contributions(x[sample]),
            contribution_times_us=times[sample],
        )
        blobs = {f"model/{path.name}": put_blob(self.store, path) for path in sorted(folder.iterdir())}
        blobs["reference.npz"] = put_blob(self.store, reference)
        results = {
            "flavour": "xgboost",
            "task": "binary",
            "recipe": "r",
            "trained_from": None,
            "trained_through": TRAINED_THROUGH,
            "rows": len(x),
            "metrics": {},
            "classes": ("0", "1"),
            "label_definition": "l",
            "features": "f",
        }
        record = commit_record(
            self.store,
            make_record(
                Candidate,
                loop="orders",
                as_of=TRAINED_THROUGH,
                key=blobs,
                digest=digest_of(blobs),
                results=results,
                blobs=blobs,
                notes={},
            ),
        )
        if promoted is not None:
            self.promote(record, promoted)
        return record

    def promote(self, candidate: Candidate, as_of: datetime) -> None:
        self.log.append(
            "promote",
            subject=candidate.digest,
            candidate=candidate.digest,
            why="better",
            who="test",
            as_of=as_of,
            details={"candidate_id": candidate.id},
        )

    def verdict(self, as_of: datetime, kind: str = "propose", **details: Any) -> None:
        self.log.append(
            kind,
            subject=f"v{format_instant(as_of)}",
            candidate="c" * 64,
            why="judged",
            who="test",
            as_of=as_of,  # type: ignore[arg-type]
            details={"by": "gate", **details},
        )


def fit(rows: pa.Table, seed: int, depth: int) -> Predictor:
    schema = InputSchema.learn(rows, COLUMNS)
    x = schema.encode(rows)
    return get_flavour("xgboost").fit(
        FitTask(
            train=spec.Train(
                rounds=20, params={"max_depth": depth, "learning_rate": 0.2}, threads=1, seed=seed
            ),
            schema=schema,
            x=x,
            y=rows["label"].to_numpy(),
            times_us=rows["event_time"].cast(pa.int64()).to_numpy(),
            x_valid=None,
            y_valid=None,
            classes=("0", "1"),
            trained_through=TRAINED_THROUGH,
            checkpoints=MemoryCheckpoints(),
            report=lambda number, metrics: None,
        )
    )


def world(folder: Path, **sections: Any) -> World:
    table = {
        "sql": "t.sql",
        "entity": "id",
        "event_time": "at",
        "known_at": "at",
        "label": "late",
        "label_known_at": "known",
    }
    data = {"sources": {"t": "t.csv"}, "tables": {"t": table}, "holdout": "7d", **sections.pop("data", {})}
    loop = Loop(**{"name": "orders", "data": data, "monitor": {"every": "7d"}, **sections})
    store = open_store(folder / "store")
    return World(folder, loop, store, ReleaseLog(store, "orders"))


def report_of(outcome: Outcome, key: dict[str, Any], as_of: datetime) -> DriftReport:
    """The record that the runner would commit."""
    blobs = {name: "f" * 64 for name in outcome.files}
    return make_record(
        DriftReport,
        loop="orders",
        as_of=as_of,
        key=key,
        digest=outcome.digest or "",
        results=dict(outcome.results),
        blobs=blobs,
        notes=dict(outcome.notes),
    )


__all__ = ["START", "TRAINED_THROUGH", "World", "at", "fit", "orders", "replace", "report_of", "world"]
