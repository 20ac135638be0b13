"""What the endpoint answered, kept as Parquet for monitoring, off the request path.

captures/<loop>/<track>/<first 16 of the candidate's digest>/<day of event_time>-<uuid>.parquet

    entity             string, null where the request gave no `ids`
    event_time         as the request gave it, else when it arrived
    request_id, model  strings; the model is the candidate's digest
    prediction         double; for several classes the position of the most probable one
    prediction_<class> double, for several classes only
    <feature>          double, bool or string, as it was sent; so are categories that the model never saw

A feature named as one of the other columns is under `feature_<name>`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from treadle.errors import TreadleError
from treadle.serving.router import Variant
from treadle.store import Store
from treadle.words import counted

RESERVED = frozenset({"entity", "event_time", "request_id", "model", "prediction"})


def column_of(feature: str) -> str:
    """The capture's column for a feature: its own name, unless that is taken."""
    return f"feature_{feature}" if feature in RESERVED or feature.startswith("prediction_") else feature


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's rows and what was predicted. `columns` are in the features' order, as they were sent."""

    variant: Variant
    columns: Sequence[Sequence[Any]]
    predictions: NDArray[np.float64]
    arrived: datetime
    request_id: str
    ids: Sequence[str] | None = None
    event_time: Sequence[datetime] | None = None


class Capture:
    """A bounded queue of answers and the thread that writes them to the store.

    What does not fit is dropped and counted: capturing never holds a request up. `close` writes what is left.

    Args:
        limit: Rows that may wait.
        rows: A file is written as soon as so many rows wait ...
        every_s: ... or after so many seconds. Small files: writing holds the interpreter for milliseconds.
    """

    def __init__(
        self,
        store: Store,
        loop: str,
        track: str,
        *,
        limit: int = 100_000,
        rows: int = 1000,
        every_s: float = 5.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._store, self._folder = store, f"captures/{loop}/{track}"
        self._limit, self._rows, self._every_s, self._say = limit, rows, every_s, say
        self._queue: deque[Answer] = deque()
        self._waiting = 0
        self.written = 0
        self.dropped = 0
        self.failures = 0
        self._trouble = ""
        # Files of the oldest answers, under names that outlast failures, so that none is written twice.
        self._files: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write_on, name="treadle-capture", daemon=True)

    def start(self) -> None:
        """Begins to write; returns at once."""
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Queues an answer, or drops it when the queue is full."""
        count = len(answer.predictions)
        with self._lock:
            if self._waiting + count > self._limit:
                self.dropped += count
                return
            self._queue.append(answer)
            self._waiting += count
            full = self._waiting >= self._rows
        if full:
            self._wake.set()

    def close(self, timeout_s: float = 30.0) -> None:
        """Writes what waits, then stops. Rows that could not be written count as dropped."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._waiting:
            self.dropped += self._waiting
            lost = counted(self._waiting, "prediction")
            self._say(f"capture: {lost} could not be written to {self._store.uri}")

    def _write_on(self) -> None:
        while True:
            self._wake.wait(self._every_s)
            self._wake.clear()
            closing = self._closing
            while self._waiting >= (1 if closing else self._rows) or self._overdue():
                if not self._write_some():
                    break
            if closing:
                return

    def _overdue(self) -> bool:
        oldest = self._queue[0].arrived if self._queue else None
        return oldest is not None and (datetime.now(UTC) - oldest).total_seconds() >= self._every_s

    def _write_some(self) -> bool:
        """Whether the oldest answers, about a file full, have left the queue: written, or unwritable."""
        batch = self._oldest()
        count = sum(len(answer.predictions) for answer in batch)
        try:
            if not self._files:
                self._files = [
                    (f"{self._folder}/{name}", _parquet(table)) for name, table in tables_of(batch)
                ]
            while self._files:
                self._store.create(*self._files[0])
                self._files.pop(0)
            self.written += count
        except TreadleError as error:
            self._note(f"{error} (predictions wait and are tried again)")
            if not self._closing:
                time.sleep(min(self._every_s, 1.0))
            return False
        except Exception as error:
            lost = counted(count, "prediction")
            self._note(f"{lost} can't be written as Parquet: {type(error).__name__}: {error}")
            self._files.clear()
            self.dropped += count
        with self._lock:
            for _ in batch:
                self._queue.popleft()
            self._waiting -= count
        return True

    def _note(self, trouble: str) -> None:
        self.failures += 1
        if trouble != self._trouble:
            self._trouble = trouble
            self._say(f"capture: {trouble}")

    def _oldest(self) -> list[Answer]:
        batch: list[Answer] = []
        count = 0
        with self._lock:
            for answer in self._queue:
                batch.append(answer)
                count += len(answer.predictions)
                if count >= self._rows:
                    break
        return batch


def tables_of(answers: Sequence[Answer]) -> Iterator[tuple[str, Any]]:
    """File names and Arrow tables of answers, one for each candidate and day of event time."""
    groups: dict[tuple[str, date], list[tuple[Answer, list[int]]]] = {}
    variants: dict[str, Variant] = {}
    for answer in answers:
        variants[answer.variant.candidate] = answer.variant
        days: dict[date, list[int]] = {}
        for row in range(len(answer.predictions)):
            moment = answer.event_time[row] if answer.event_time else answer.arrived
            days.setdefault(moment.date(), []).append(row)
        for day, rows in days.items():
            groups.setdefault((answer.variant.candidate, day), []).append((answer, rows))
    for (candidate, day), parts in groups.items():
        name = f"{candidate[:16]}/{day.isoformat()}-{uuid.uuid4().hex}.parquet"
        yield name, _table(variants[candidate], parts)


def _table(variant: Variant, parts: Sequence[tuple[Answer, Sequence[int]]]) -> Any:
    import pyarrow as pa

    picked = [(answer, row) for answer, rows in parts for row in rows]
    columns: dict[str, Any] = {
        "entity": pa.array([a.ids[row] if a.ids else None for a, row in picked], pa.string()),
        "event_time": pa.array(
            [a.event_time[row] if a.event_time else a.arrived for a, row in picked],
            pa.timestamp("us", tz="UTC"),
        ),
        "request_id": pa.array([a.request_id for a, _ in picked], pa.string()),
        "model": pa.array([variant.candidate] * len(picked), pa.string()),
    }
    predictions = np.array([a.predictions[row] for a, row in picked])
    classes = variant.predictor.classes if predictions.ndim == 2 else ()
    columns["prediction"] = predictions.argmax(axis=1).astype(float) if classes else predictions
    for j, name in enumerate(classes):
        columns[f"prediction_{name}"] = predictions[:, j]
    types = {"number": pa.float64(), "boolean": pa.bool_(), "category": pa.string()}
    for j, (name, kind) in enumerate(zip(variant.encoder.names, variant.encoder.kinds, strict=True)):
        columns[column_of(name)] = pa.array([a.columns[j][row] for a, row in picked], types[kind])
    return pa.table(columns)


def _parquet(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
