"""What a monitor looks at, gathered: the window's rows, what was predicted for them, and who served when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from treadle.models.predictor import Predictor
from treadle.monitoring.answers import (
    Answers,
    live_only,
    micros,
    micros_of,
    once,
    spans_of,
    window_predictions,
)
from treadle.monitoring.profile import Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa

_SEED = 7


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a monitor looks at.

    Attributes:
        table: The rows of the window, and before it those whose labels are due, n in all.
        times_us: (n,) their event times.
        inside: (n,) which of them lie in the window.
        answers: What was predicted for them.
        inputs: The window's rows: `event_time` and features of the table, then what only the endpoint saw.
        predictions: (m,) or (m, classes) what the champion predicted in the window.
        prediction_times_us: (m,) for when.
        captured: How many rows of the window the endpoint answered.
        replayed: How many of the others a model scored afterwards.
    """

    table: pa.Table
    times_us: Ints
    inside: NDArray[np.bool_]
    answers: Answers
    inputs: pa.Table
    predictions: Floats
    prediction_times_us: Ints
    captured: int
    replayed: int


def gather(
    table: pa.Table,
    captures: Sequence[pa.Table],
    champion: str,
    predictor: Predictor,
    *,
    start: datetime,
    end: datetime,
    changes: Sequence[tuple[datetime, str | None]],
    load: Callable[[str], Predictor | None],
) -> Gathered:
    """The window's rows with predictions: as captured, else scored by the champion of each row's time.

    Args:
        table: The champion's features before `end`; those before `start` count for quality only.
        captures: As `read_captures` gives them, for the same time.
        champion: The digest of the model that serves at `end`.
        predictor: The same, loaded.
        start: Where the window begins.
        end: Where it ends.
        changes: When who became champion, ascending.
        load: An earlier champion by its digest; None where it is gone.
    """
    import pyarrow as pa

    times = micros(table["event_time"])
    since = micros_of(start)
    first = min(int(times.min()), since) if len(times) else since
    spans = spans_of({micros_of(moment): digest for moment, digest in changes}, first, micros_of(end))
    predictors = once(lambda digest: predictor if digest == champion else load(digest))
    answers = window_predictions(table, captures, champion, spans, predictors)
    inside = times >= since
    rows = table.filter(pa.array(inside))
    recent = [part.filter(pa.array(micros(part["event_time"]) >= since)) for part in captures]
    live, live_predictions = live_only(rows, recent, champion, predictor)
    parts = [rows.select(["event_time", *predictor.schema.names]), *([] if live is None else [live])]
    own = inside & answers.by_champion
    live_times = micros(live["event_time"]) if live is not None else np.empty(0, dtype=np.int64)
    return Gathered(
        table=table,
        times_us=times,
        inside=inside,
        answers=answers,
        inputs=pa.concat_tables(parts, promote_options="permissive"),
        predictions=np.concatenate([answers.predictions[own], live_predictions]),
        prediction_times_us=np.concatenate([times[own], live_times]),
        captured=int((answers.captured & inside).sum()) + len(live_predictions),
        replayed=int((answers.replayed & inside).sum()),
    )


def sample_of(table: pa.Table, rows: int) -> pa.Table:
    """At most so many rows of a table, drawn by a fixed seed, in the table's order."""
    if table.num_rows <= rows:
        return table
    chosen = np.random.default_rng(_SEED).choice(table.num_rows, rows, replace=False)
    return table.take(np.sort(chosen))


def labels_of(gathered: Gathered, task: str) -> tuple[Any, NDArray[np.bool_]]:
    """(n,) labels, 0.0 or "" where unknown, and (n,) whether they are known."""
    import pyarrow.compute as pc

    column = gathered.table["label"]
    known = np.asarray(column.is_valid().to_numpy(), dtype=np.bool_)
    if task == "multiclass":
        return np.array([str(label) for label in column.to_pylist()], dtype=object), known
    return np.asarray(pc.fill_null(column.cast("float64"), 0.0).to_numpy(), dtype=np.float64), known
