"""What was predicted for the rows of a window: as captured, else as the champion of the row's time would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from treadle.models.predictor import Predictor
from treadle.monitoring.captures import capture_column, row_texts
from treadle.monitoring.profile import Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time [start_us, end_us) in which one model was champion; None before the first."""

    start_us: int
    end_us: int
    candidate: str | None


@dataclass(frozen=True, slots=True)
class Answers:
    """Predictions for rows.

    Attributes:
        predictions: (n,) or (n, classes); NaN where there is none.
        captured: (n,) whether the endpoint answered.
        replayed: (n,) whether a model scored the row now, as nothing was captured.
        by_champion: (n,) whether it is the present champion's prediction.
    """

    predictions: Floats
    captured: NDArray[np.bool_]
    replayed: NDArray[np.bool_]
    by_champion: NDArray[np.bool_]


def window_predictions(
    table: pa.Table,
    captures: Sequence[pa.Table],
    champion: str,
    spans: Sequence[Span],
    predictors: Callable[[str], Predictor | None],
) -> Answers:
    """A prediction for each row of a table.

    A capture belongs to a row of the same entity and event time; where a request gave no event time, to the
    only row of its entity. If several models answered for a row, the champion's answer counts.

    Args:
        table: `entity`, `event_time` and the champion's features.
        captures: As `read_captures` gives them.
        champion: The digest of the present champion.
        spans: Who was champion when, covering all rows. A span of nobody is scored by the champion where its
            training has ended before.
        predictors: The model of a digest; None where it can't be had any more.
    """
    own = predictors(champion)
    if own is None:
        raise ValueError(f"the champion {champion[:12]} can't be loaded")
    times = micros(table["event_time"])
    wide = (len(own.classes),) if own.task == "multiclass" else ()
    predictions = np.full((table.num_rows, *wide), np.nan)
    model_of: list[str | None] = [None] * table.num_rows
    for row, (model, value) in _matched(table["entity"].to_pylist(), times, captures, champion, own).items():
        predictions[row], model_of[row] = value, model
    captured = np.array([model is not None for model in model_of], dtype=np.bool_)
    through = micros_of(own.trained_through)
    for span in spans:
        inside = ~captured & (times >= span.start_us) & (times < span.end_us)
        digest = span.candidate
        if digest is None:
            inside &= times >= through
            digest = champion
        if not inside.any():
            continue
        predictor = predictors(digest)
        if predictor is None or predictor.classes != own.classes or not _has_inputs(predictor, table):
            continue
        rows = np.flatnonzero(inside)
        predictions[rows] = predictor.predict(predictor.schema.encode(table.take(rows)))
        for row in rows.tolist():
            model_of[row] = digest
    answered = np.array([model is not None for model in model_of], dtype=np.bool_)
    by_champion = np.array([model == champion for model in model_of], dtype=np.bool_)
    return Answers(predictions, captured, answered & ~captured, by_champion)


def live_only(
    table: pa.Table, captures: Sequence[pa.Table], champion: str, predictor: Predictor
) -> tuple[pa.Table | None, Floats]:
    """What the champion answered for entities that the table does not have: the rows, and its predictions.

    Args:
        table: The window's rows.
        captures: As `read_captures` gives them.
        champion: Its digest.
        predictor: The champion.
    """
    import pyarrow as pa

    entities = set(table["entity"].to_pylist())
    wide = (len(predictor.classes),) if predictor.task == "multiclass" else ()
    parts, values, seen = [], [np.empty((0, *wide))], set[str]()
    for capture in captures:
        keep = []
        texts = row_texts(capture)
        for row, (entity, model) in enumerate(
            zip(capture["entity"].to_pylist(), capture["model"].to_pylist(), strict=True)
        ):
            if model == champion and (entity is None or entity not in entities) and texts[row] not in seen:
                seen.add(texts[row])
                keep.append(row)
        if keep:
            picked = capture.take(keep)
            features = [picked[capture_column(name)] for name in predictor.schema.names]
            names = ["event_time", *predictor.schema.names]
            parts.append(pa.table([picked["event_time"], *features], names=names))
            values.append(_values(picked, predictor))
    rows = pa.concat_tables(parts) if parts else None
    return rows, np.concatenate(values)


def _matched(
    entities: Sequence[Any], times: Ints, captures: Sequence[pa.Table], champion: str, own: Predictor
) -> dict[int, tuple[str, Any]]:
    """Row of the table -> the model that answered and what it said."""
    exact: dict[tuple[str, int], tuple[str, Any]] = {}
    loose: dict[str, tuple[str, Any]] = {}
    for entity, time, model, value in _answers_in_order(captures, champion, own):
        exact.setdefault((entity, time), (model, value))
        loose.setdefault(entity, (model, value))
    if not exact:
        return {}
    rows_of: dict[str, int] = {}
    for entity in entities:
        rows_of[entity] = rows_of.get(entity, 0) + 1
    found = {}
    for row, (entity, time) in enumerate(zip(entities, times, strict=True)):
        answer = exact.get((entity, int(time)))
        if answer is None and rows_of[entity] == 1:
            answer = loose.get(entity)
        if answer is not None:
            found[row] = answer
    return found


def _answers_in_order(
    captures: Sequence[pa.Table], champion: str, own: Predictor
) -> list[tuple[str, int, str, Any]]:
    """Captured (entity, time, model, prediction): the champion's first, then by time, whatever the files."""
    answers: list[tuple[str, int, str, Any]] = []
    for capture in captures:
        try:
            values = _values(capture, own)
        except KeyError:
            continue  # another model's classes: nothing to compare
        times = micros(capture["event_time"]).tolist()
        models = capture["model"].to_pylist()
        for entity, time, model, value in zip(
            capture["entity"].to_pylist(), times, models, values, strict=True
        ):
            if entity is not None:
                answers.append((str(entity), time, str(model), value))
    return sorted(answers, key=lambda a: (a[2] != champion, a[1], a[2], np.asarray(a[3]).tolist()))


def _values(capture: pa.Table, predictor: Predictor) -> Floats:
    if predictor.task != "multiclass":
        return np.asarray(capture["prediction"].to_numpy(), dtype=np.float64)
    return np.column_stack([capture[f"prediction_{name}"].to_numpy() for name in predictor.classes])


def micros(times: pa.ChunkedArray[Any]) -> Ints:
    """(n,) int64 microseconds since 1970 of a column of times in UTC."""
    import pyarrow as pa

    return np.asarray(times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(), dtype=np.int64)


def micros_of(moment: datetime) -> int:
    """Microseconds since 1970 of an instant in UTC."""
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def _has_inputs(predictor: Predictor, table: pa.Table) -> bool:
    return set(predictor.schema.names) <= set(table.column_names)


def once(load: Callable[[str], Predictor | None]) -> Callable[[str], Predictor | None]:
    """The same function, each model loaded once."""
    held: dict[str, Predictor | None] = {}

    def get(digest: str) -> Predictor | None:
        if digest not in held:
            held[digest] = load(digest)
        return held[digest]

    return get


def spans_of(changes: Mapping[int, str | None], start_us: int, end_us: int) -> list[Span]:
    """Who was champion when within [start_us, end_us).

    Args:
        changes: Time of a change to the champion from then on.
        start_us: Microseconds since 1970.
        end_us: Exclusive.
    """
    spans: list[Span] = []
    current: str | None = None
    since = start_us
    for moment in sorted(changes):
        if moment >= end_us:
            break
        if moment > since:
            spans.append(Span(since, moment, current))
            since = moment
        current = changes[moment]
    return [*spans, Span(since, end_us, current)]
