"""Captures as the endpoint writes them, read back; and whose answer counts for a row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from treadle.errors import StoreError
from treadle.models.predictor import Predictor
from treadle.models.schema import Feature, InputSchema
from treadle.monitoring.answers import Span, spans_of, window_predictions
from treadle.monitoring.captures import capture_column, capture_files, captures_digest, read_captures
from treadle.serving.capture import RESERVED, Answer, Capture, column_of
from treadle.serving.encode import RequestEncoder
from treadle.serving.router import Variant
from treadle.store import open_store

START = datetime(2013, 4, 1, tzinfo=UTC)
SCHEMA = InputSchema((Feature("distance", "number"), Feature("carrier", "category", ("AA", "UA"))))
MODEL, OTHER = "a" * 64, "b" * 64


class Fixed:
    """A predictor that always says the same."""

    flavour, task, rounds = "fixed", "binary", None
    schema, classes, trained_through = SCHEMA, ("0", "1"), START

    def __init__(self, value: float, classes: tuple[str, ...] = ("0", "1")) -> None:
        self.value, self.classes = value, classes
        self.task = "binary" if len(classes) == 2 else "multiclass"

    def predict(self, x: Any) -> Any:
        return np.full(len(x), self.value)


def fixed(value: float, classes: tuple[str, ...] = ("0", "1")) -> Predictor:
    return cast("Predictor", Fixed(value, classes))


def write(
    place: Path, hours: list[int], *, model: str = MODEL, value: float = 0.5, request: str = "r"
) -> None:
    """Answers to requests about flight `f<hour>` at an hour, written by the endpoint's own code."""
    store = open_store(place)
    variant = Variant(fixed(value), model, 1, RequestEncoder(SCHEMA.features))
    capture = Capture(store, "flights", "production", every_s=0.01)
    capture.add(
        Answer(
            variant=variant,
            columns=[[float(hour) for hour in hours], ["AA"] * len(hours)],
            predictions=np.full(len(hours), value),
            arrived=START,
            request_id=request,
            ids=[f"f{hour}" for hour in hours],
            event_time=[START + timedelta(hours=hour) for hour in hours],
        )
    )
    capture.start()
    capture.close()
    assert capture.written == len(hours)


def read(
    place: Path, start: datetime, end: datetime, models: tuple[str, ...] = (MODEL, OTHER)
) -> list[pa.Table]:
    store = open_store(place)
    paths = capture_files(store, "flights", "production", models, start, end)
    return read_captures(store, paths, start, end)


def test_what_the_endpoint_wrote_is_read_back_by_event_time(tmp_path: Path) -> None:
    write(tmp_path, [1, 23, 25, 80])
    found = pa.concat_tables(read(tmp_path, START, START + timedelta(days=1)))
    assert found["entity"].to_pylist() == ["f1", "f23"]
    assert "request_id" not in found.column_names
    assert read(tmp_path, START + timedelta(days=10), START + timedelta(days=11)) == []


@pytest.mark.parametrize("name", ["distance", "prediction_x", *sorted(RESERVED)])
def test_features_are_under_the_names_that_the_endpoint_gives_them(name: str) -> None:
    assert capture_column(name) == column_of(name)


def test_digest_is_of_distinct_rows_whatever_the_files_and_requests(tmp_path: Path) -> None:
    end = START + timedelta(days=9)
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, [1, 2, 30])
    write(other, [30], request="x")
    write(other, [2, 1], request="y")
    write(other, [1], request="z")
    assert captures_digest(read(one, START, end)) == captures_digest(read(other, START, end)) is not None
    write(other, [1], value=0.6)
    assert captures_digest(read(one, START, end)) != captures_digest(read(other, START, end))
    assert captures_digest([]) is None


def test_a_damaged_capture_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    path = f"captures/flights/production/{MODEL[:16]}/2013-04-01-x.parquet"
    store.create(path, b"no parquet")
    with pytest.raises(StoreError, match="2013-04-01-x"):
        read(tmp_path, START, START + timedelta(days=1))


def table(hours: list[int]) -> pa.Table:
    return pa.table(
        {
            "entity": [f"f{hour}" for hour in hours],
            "event_time": pa.array([START + timedelta(hours=h) for h in hours], pa.timestamp("us", tz="UTC")),
            "distance": [float(hour) for hour in hours],
            "carrier": ["UA"] * len(hours),
        }
    )


def micros(hours: float) -> int:
    return int((START + timedelta(hours=hours)).timestamp() * 1_000_000)


def test_the_champions_answer_counts_before_another_models(tmp_path: Path) -> None:
    write(tmp_path, [1], model=OTHER, value=0.2)
    write(tmp_path, [1], model=MODEL, value=0.4)
    write(tmp_path, [2], model=OTHER, value=0.3)
    captures = read(tmp_path, START, START + timedelta(days=1))
    spans = [Span(micros(0), micros(24), MODEL)]
    found = window_predictions(table([1, 2, 3]), captures, MODEL, spans, lambda digest: fixed(0.9))
    assert list(found.predictions) == [0.4, 0.3, 0.9]
    assert list(found.captured) == [True, True, False]
    assert list(found.replayed) == [False, False, True]
    assert list(found.by_champion) == [True, False, True]


def test_each_row_is_scored_by_the_champion_of_its_time() -> None:
    spans = spans_of({micros(2): OTHER, micros(4): MODEL}, micros(-48), micros(24))
    assert [span.candidate for span in spans] == [None, OTHER, MODEL]
    models = {MODEL: fixed(0.9), OTHER: fixed(0.1)}
    found = window_predictions(table([-24, 1, 3, 5]), [], MODEL, spans, models.get)
    # Before anybody served, the champion scores what lies after its training, not what it learned from.
    assert np.isnan(found.predictions[0])
    assert list(found.predictions[1:]) == [0.9, 0.1, 0.9]
    assert list(found.by_champion) == [False, True, False, True]


def test_a_model_that_is_gone_or_knows_other_classes_scores_nothing() -> None:
    spans = [Span(micros(0), micros(24), OTHER)]
    for other in (None, fixed(0.1, ("0", "1", "2"))):
        found = window_predictions(table([1]), [], MODEL, spans, {MODEL: fixed(0.9), OTHER: other}.get)
        assert not found.replayed.any()
