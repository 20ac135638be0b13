"""Predictions are captured to Parquet, off the request path, and nothing is lost without being counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_models import ROW, SCHEMA, Logistic, ThreeClasses, expected, variant_of
from treadle.errors import StoreError
from treadle.models.schema import Feature, InputSchema
from treadle.serving.capture import Answer, Capture
from treadle.serving.router import Variant
from treadle.store import LocalStore

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def files(store: LocalStore) -> list[Path]:
    return sorted(store.root.glob("captures/flights/production/*/*.parquet"))


def rows_of(store: LocalStore) -> list[dict[str, Any]]:
    return [row for path in files(store) for row in pq.read_table(path).to_pylist()]


def answer(variant: Variant, count: int = 1, **more: Any) -> Answer:
    columns = [[ROW[name]] * count for name in variant.encoder.names]
    return Answer(variant, columns, np.full(count, 0.5), NOON, "r-1", **more)


def test_a_request_is_captured_as_it_was_sent(
    store: LocalStore, serve_app: Callable[..., httpx.Client]
) -> None:
    capture = Capture(store, "flights", "production", every_s=0.1)
    client = serve_app(variant_of(Logistic()), capture=capture)
    rows = [{**ROW, "carrier": "ZZ"}, dict.fromkeys(ROW)]
    before = datetime.now(UTC)
    client.post(
        "/invocations", json={"instances": rows, "ids": ["a", 5], "event_time": "2013-04-01T06:00+02:00"}
    )
    client.post("/invocations", json={"instances": [ROW]}, headers={"x-request-id": "mine"})
    client.post("/invocations", json={"instances": [{"bad": 1}]})
    capture.close()
    table = pa.concat_tables([pq.read_table(path) for path in files(store)])
    assert table.schema == pa.schema(
        {
            "entity": pa.string(),
            "event_time": pa.timestamp("us", "UTC"),
            "request_id": pa.string(),
            "model": pa.string(),
            "prediction": pa.float64(),
            "temperature": pa.float64(),
            "night": pa.bool_(),
            "carrier": pa.string(),
            "distance": pa.float64(),
        }
    )
    first, second, third = table.to_pylist()
    assert (first["entity"], second["entity"], third["entity"]) == ("a", "5", None)
    assert first["event_time"] == datetime(2013, 4, 1, 4, tzinfo=UTC)
    assert before <= third["event_time"] <= datetime.now(UTC)
    assert {name: first[name] for name in ROW} == rows[0]
    assert {name: second[name] for name in ROW} == rows[1]
    assert [first["prediction"], second["prediction"]] == expected(Logistic(), rows)
    assert (first["model"], third["request_id"]) == (f"{7:064x}", "mine")
    assert {path.name[:10] for path in files(store)} == {"2013-04-01", before.date().isoformat()}


def test_the_server_writes_what_is_left_when_it_stops(
    store: LocalStore, serve_app: Callable[..., httpx.Client]
) -> None:
    from treadle.serving.app import build_app
    from treadle.serving.router import Router
    from treadle.serving.server import run_in_thread

    capture = Capture(store, "flights", "production", every_s=60)
    with (
        run_in_thread(build_app(Router("flights", variant_of(Logistic())), capture)) as url,
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(5):
            client.post("/invocations", json={"instances": [ROW, ROW]})
        assert not files(store)
    assert len(rows_of(store)) == 10
    assert (capture.written, capture.dropped) == (10, 0)


def test_days_and_models_get_files_of_their_own(store: LocalStore) -> None:
    capture = Capture(store, "flights", "production")
    one, two = variant_of(Logistic(), 1, "1" * 64), variant_of(Logistic(), 2, "2" * 64)
    capture.start()
    capture.add(answer(one, 2, event_time=[NOON, NOON + timedelta(days=1)]))
    capture.add(answer(one, 1))
    capture.add(answer(two, 1))
    capture.close()
    found = [(path.parent.name, path.name[:10], pq.read_metadata(path).num_rows) for path in files(store)]
    assert found == [
        ("1" * 16, "2013-04-01", 2),
        ("1" * 16, "2013-04-02", 1),
        ("2" * 16, "2013-04-01", 1),
    ]


def test_several_classes_are_captured_with_each_ones_probability(store: LocalStore) -> None:
    variant = variant_of(ThreeClasses(classes=("a", "b", "c")))
    capture = Capture(store, "flights", "production")
    capture.start()
    capture.add(Answer(variant, [[ROW[name]] for name in ROW], np.array([[0.2, 0.7, 0.1]]), NOON, "r"))
    capture.close()
    (row,) = rows_of(store)
    assert [row[name] for name in ("prediction", "prediction_a", "prediction_b", "prediction_c")] == [
        1,
        0.2,
        0.7,
        0.1,
    ]


def test_a_feature_with_a_taken_name_is_kept_beside(store: LocalStore) -> None:
    schema = InputSchema((Feature("model", "category", ("x",)),))
    variant = variant_of(Logistic(schema=schema))
    capture = Capture(store, "flights", "production")
    capture.start()
    capture.add(Answer(variant, [["x"]], np.array([0.5]), NOON, "r"))
    capture.close()
    assert rows_of(store)[0]["feature_model"] == "x"
    assert rows_of(store)[0]["model"] == variant.candidate


class Gate(LocalStore):
    """A store that can be shut, or made to fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.open = threading.Event()
        self.fails = 0

    def create(self, path: str, data: bytes) -> bool:
        self.open.wait(10)
        if self.fails:
            self.fails -= 1
            raise StoreError("the disk is full")
        return super().create(path, data)


def test_a_full_queue_drops_and_counts_without_waiting(tmp_path: Path) -> None:
    store = Gate(tmp_path)
    capture = Capture(store, "flights", "production", limit=10, rows=5)
    capture.start()
    variant = variant_of(Logistic())
    for _ in range(6):
        capture.add(answer(variant, 3))
    assert capture.dropped == 9
    store.open.set()
    capture.close()
    assert len(rows_of(store)) == capture.written == 9


def test_a_failing_store_is_tried_again_and_nothing_is_written_twice(tmp_path: Path) -> None:
    store = Gate(tmp_path)
    lines: list[str] = []
    store.open.set()
    capture = Capture(store, "flights", "production", rows=2, every_s=0.01, say=lines.append)
    variant = variant_of(Logistic())
    capture.add(answer(variant, 4, event_time=[NOON + timedelta(days=day) for day in range(4)]))
    store.fails = 2
    capture.start()
    while not capture.written:
        time.sleep(0.01)
    capture.close()
    assert (len(rows_of(store)), capture.failures, capture.dropped) == (4, 2, 0)
    assert len(lines) == 1
    assert "the disk is full" in lines[0]


def test_what_can_not_be_written_at_the_end_is_counted_as_dropped(tmp_path: Path) -> None:
    store = Gate(tmp_path)
    store.open.set()
    store.fails = 10**6
    capture = Capture(store, "flights", "production", every_s=0.01)
    capture.start()
    capture.add(answer(variant_of(Logistic()), 3))
    capture.close()
    assert capture.dropped == 3


def test_captures_are_what_monitoring_reads(store: LocalStore) -> None:
    from treadle.monitoring.captures import capture_files, read_captures

    variant = variant_of(Logistic())
    capture = Capture(store, "flights", "production")
    capture.start()
    capture.add(answer(variant, 2, ids=["a", "b"], event_time=[NOON, NOON + timedelta(days=9)]))
    capture.close()
    start, end = NOON, NOON + timedelta(days=1)
    paths = capture_files(store, "flights", "production", [variant.candidate], start, end)
    (table,) = read_captures(store, paths, start, end)
    assert table["entity"].to_pylist() == ["a"]
    assert set(SCHEMA.names) <= set(table.column_names)
