"""Loops and feature sets for the tests of training: made-up flights, and scikit-learn's own tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic_ns

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from treadle.commit import make_record
from treadle.identity import sha256_of
from treadle.loop import Loop
from treadle.records import Candidate, Column, FeatureSet, Partition
from treadle.registry.log import ReleaseLog
from treadle.stages import Context
from treadle.stages.train import key, train
from treadle.store import Store, put_blob

START = datetime(2013, 1, 1, tzinfo=UTC)
AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
COLUMNS = (
    Column(name="wind", type="number"),
    Column(name="weekend", type="boolean"),
    Column(name="origin", type="category"),
)


SAMPLED = {
    "params": {"max_depth": 3, "subsample": 0.8, "colsample_bytree": 0.7},
    "rounds": 24,
    "checkpoint_every": 6,
}


def make_loop(folder: Path, *, hooks: str = "", data: dict | None = None, **train) -> Loop:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flights.sql").write_text("select * from flights\n")
    if hooks:
        (folder / "hooks.py").write_text(hooks)
    loop = Loop(
        name="flights",
        data={
            "sources": {"flights": "flights.csv"},
            "tables": {
                "flights": {
                    "sql": "flights.sql",
                    "entity": "flight",
                    "event_time": "at",
                    "label": "late",
                    "label_known_at": "landed",
                }
            },
            **(data or {}),
        },
        train=train,
    )
    loop._folder = folder
    return loop


def make_context(loop: Loop, store: Store, scratch: Path, *, as_of: datetime = AS_OF, say=None) -> Context:
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(loop, as_of, store, ReleaseLog(store, loop.name), scratch, say or (lambda line: None))


def flight_rows(rows: int = 3000, seed: int = 3) -> pa.Table:
    """Flights every 43 minutes from 1 January to 31 March; the last day has no labels yet."""
    generator = np.random.default_rng(seed)
    times = [START + timedelta(minutes=43 * i) for i in range(rows)]
    wind, weekend = generator.normal(10, 4, rows), generator.random(rows) < 0.3
    origin = generator.choice(["EWR", "JFK", "LGA"], rows)
    score = (wind - 10) / 4 + (origin == "EWR") + generator.normal(0, 1, rows)
    label = [float(value > 0.5) for value in score]
    for i, time in enumerate(times):
        if time >= AS_OF - timedelta(days=1):
            label[i] = None
    missing = generator.random(rows) < 0.05
    return pa.table(
        {
            "row_id": [sha256_of(str(i).encode())[:32] for i in range(rows)],
            "entity": [f"f{i}" for i in range(rows)],
            "event_time": pa.array(times, type=pa.timestamp("us", tz="UTC")),
            "label": pa.array(label),
            "label_known_at": pa.array(
                [time + timedelta(hours=5) for time in times], type=pa.timestamp("us", tz="UTC")
            ),
            "wind": pa.array(wind, mask=missing),
            "weekend": pa.array(weekend),
            "origin": pa.array(origin.tolist()),
        }
    )


def dataset_rows(name: str) -> tuple[pa.Table, tuple[Column, ...], list[str]]:
    """One of scikit-learn's tables as if a row had come each half hour, in shuffled order."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    names = [
        str(each).replace(" ", "_").replace("/", "_").replace("(", "").replace(")", "")
        for each in found.feature_names
    ]
    order = np.random.default_rng(0).permutation(len(found.target))
    times = [START + timedelta(minutes=30 * i) for i in range(len(order))]
    classes = [str(each) for each in getattr(found, "target_names", [])] if name != "diabetes" else []
    target = found.target[order]
    label = [classes[int(each)] for each in target] if classes else [float(each) for each in target]
    table = pa.table(
        {
            "row_id": [sha256_of(str(i).encode())[:32] for i in range(len(order))],
            "entity": [str(i) for i in order],
            "event_time": pa.array(times, type=pa.timestamp("us", tz="UTC")),
            "label": pa.array(label),
            "label_known_at": pa.array(times, type=pa.timestamp("us", tz="UTC")),
            **{each: pa.array(found.data[order, i]) for i, each in enumerate(names)},
        }
    )
    return table, tuple(Column(name=each, type="number") for each in names), sorted(classes)


def put_features(store: Store, table: pa.Table, columns=COLUMNS, parts: int = 3) -> FeatureSet:
    """A feature set of the rows, in a few partitions by time."""
    partitions = []
    size = -(-table.num_rows // parts) or 1
    for number, begin in enumerate(range(0, table.num_rows, size)):
        piece = table.slice(begin, size)
        sink = pa.BufferOutputStream()
        pq.write_table(piece, sink)
        sha256 = put_blob(store, sink.getvalue().to_pybytes())
        times = piece["event_time"].to_pylist()
        partitions.append(
            Partition(
                name=f"part-{number}",
                start=times[0],
                end=times[-1] + timedelta(microseconds=1),
                rows=len(piece),
                digest=sha256,
                blob=sha256,
            )
        )
    return FeatureSet(
        id="0" * 64,
        digest=sha256_of("".join(part.digest for part in partitions).encode()),
        loop="flights",
        as_of=AS_OF,
        key={},
        columns=columns,
        rows=table.num_rows,
        definition="0" * 64,
        views={},
        partitions=tuple(partitions),
    )


def trained(loop, store, tmp_path, table=None, columns=None, as_of=AS_OF, say=None):
    """The outcome and the candidate's record."""
    table = flight_rows() if table is None else table
    features = put_features(store, table, columns) if columns else put_features(store, table)
    context = make_context(loop, store, tmp_path / "scratch" / str(monotonic_ns()), as_of=as_of, say=say)
    outcome = train(context, features)
    return outcome, candidate_of(outcome, loop, store, key(context, features), as_of)


def candidate_of(outcome, loop, store, made_by, as_of=AS_OF):
    blobs = {name: put_blob(store, content) for name, content in outcome.files.items()}
    return make_record(
        Candidate,
        loop=loop.name,
        as_of=as_of,
        key=made_by,
        digest=outcome.digest,
        results=dict(outcome.results),
        blobs=blobs,
        notes=dict(outcome.notes),
    )
