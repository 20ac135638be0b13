"""What /invocations answers and refuses, through a real server."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_models import ROW, SCHEMA, Logistic, ThreeClasses, expected, variant_of
from treadle.errors import Transient, TreadleError, UserError
from treadle.serving.app import build_app
from treadle.serving.encode import RequestEncoder, RequestRefused
from treadle.serving.protocol import parse_request
from treadle.serving.router import Router
from treadle.serving.server import run_in_thread

StartServer = Callable[..., httpx.Client]
NAMES = list(ROW)
OTHER = {"temperature": -3.0, "night": False, "carrier": "UA", "distance": None}


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with (
        run_in_thread(build_app(Router("flights", variant_of(Logistic())))) as url,
        httpx.Client(base_url=url) as client,
    ):
        yield client


def split(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"columns": NAMES, "data": [[row[name] for name in NAMES] for row in rows]}


def columns(*rows: dict[str, Any]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in NAMES}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("form", ["split", "records", "inputs", "instances", "reversed"])
def test_every_json_form_gets_the_models_predictions(shared: httpx.Client, form: str, count: int) -> None:
    rows = [ROW, OTHER][:count]
    body = {
        "split": {"dataframe_split": {**split(*rows), "index": [0, 1][:count]}},
        "records": {"dataframe_records": rows},
        "inputs": {"inputs": columns(*rows)},
        "instances": {"instances": rows},
        "reversed": {"dataframe_records": [dict(reversed(row.items())) for row in rows]},
    }[form]
    answer = shared.post("/invocations", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "predictions": expected(Logistic(), rows),
        "model": {"name": "flights", "version": 7, "digest": f"{7:064x}"},
    }
    assert answer.headers["x-treadle-model"] == "flights"
    assert answer.headers["x-treadle-version"] == "7"


def test_csv_with_a_header_gets_the_same_predictions(client: httpx.Client) -> None:
    text = "carrier,night,distance,temperature\nDL,True,1400,21.5\nUA,false,,-3.0\n"
    answer = client.post("/invocations", content=text, headers={"content-type": "text/csv; charset=utf-8"})
    assert answer.json()["predictions"] == expected(Logistic(), [ROW, OTHER])


def test_null_is_a_missing_value_and_unseen_category_too_but_counted(client: httpx.Client) -> None:
    rows = [dict.fromkeys(NAMES), {**ROW, "carrier": "ZZ"}]
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert answer.json()["predictions"] == expected(Logistic(), rows)
    assert 'treadle_unseen_categories_total{feature="carrier"} 1.0' in client.get("/metrics").text


def test_several_classes_are_named(serve_app: StartServer) -> None:
    client = serve_app(variant_of(ThreeClasses(classes=("a", "b", "c"), task="multiclass")))
    answer = client.post("/invocations", json={"dataframe_records": [ROW]}).json()
    assert answer["model"]["classes"] == ["a", "b", "c"]
    assert [len(row) for row in answer["predictions"]] == [3]
    assert math.isclose(sum(answer["predictions"][0]), 1)


def record(**changes: Any) -> bytes:
    return json.dumps({"dataframe_records": [ROW, {**ROW, **changes}]}).encode()


WITHOUT = {name: value for name, value in ROW.items() if name != "carrier"}
REFUSED: list[tuple[str, bytes, str, str | None, int | None]] = [
    ("empty", b"", "empty_body", None, None),
    ("blank", b"  \n", "empty_body", None, None),
    ("not json", b"temperature=21", "not_json", None, None),
    ("cut", record()[:-3], "not_json", None, None),
    ("nan", record(temperature=math.nan), "not_json", None, None),
    ("infinity", record(temperature=math.inf), "not_json", None, None),
    ("huge exponent", record(temperature=1).replace(b" 1,", b" 1e999,"), "not_json", None, None),
    ("deep", b"[" * 100_000, "not_json", None, None),
    ("a list", b"[1]", "unknown_format", None, None),
    ("no format", b"{}", "unknown_format", None, None),
    ("two formats", b'{"inputs": {}, "instances": []}', "unknown_format", None, None),
    ("stray field", b'{"instances": [], "more": 1}', "unknown_field", "more", None),
    ("params", b'{"instances": [], "params": {"a": 1}}', "unknown_field", "params", None),
    ("at", b'{"instances": [], "at": "2013-01-01"}', "unknown_field", "at", None),
    ("no rows", b'{"dataframe_records": []}', "no_rows", None, None),
    ("no columns' rows", json.dumps({"inputs": columns()}).encode(), "no_rows", None, None),
    ("missing", json.dumps({"instances": [ROW, WITHOUT]}).encode(), "missing_column", "carrier", 1),
    ("missing in split", b'{"dataframe_split": {"columns": [], "data": [[]]}}', "missing_column", "temperature", None),
    ("extra", record(humidity=3), "extra_column", "humidity", 1),
    ("text for a number", record(temperature="21"), "wrong_type", "temperature", 1),
    ("boolean for a number", record(temperature=True), "wrong_type", "temperature", 1),
    ("list for a number", record(temperature=[1]), "wrong_type", "temperature", 1),
    ("number for a boolean", record(night=1), "wrong_type", "night", 1),
    ("number for a category", record(carrier=5), "wrong_type", "carrier", 1),
    ("too large", record(temperature=1e300), "number_too_large", "temperature", 1),
    ("huge integer", record(temperature=10**50), "number_too_large", "temperature", 1),
    ("ragged", json.dumps({"dataframe_split": {"columns": NAMES, "data": [[1]]}}).encode(), "wrong_shape", "data", 0),
    ("twice", json.dumps({"dataframe_split": {"columns": [*NAMES, "night"], "data": [[1] * 5]}}).encode(),
     "duplicate_column", "night", None),
    ("number as a name", b'{"dataframe_split": {"columns": [1], "data": [[1]]}}', "wrong_type", None, None),
    ("uneven columns", json.dumps({"inputs": {**columns(ROW), "night": []}}).encode(), "wrong_shape", "night", None),
    ("scalar beside lists", json.dumps({"inputs": {**columns(ROW), "night": True}}).encode(), "wrong_shape", "night",
     None),
    ("ids too few", json.dumps({"instances": [ROW], "ids": []}).encode(), "wrong_length", "ids", None),
    ("id of wrong type", json.dumps({"instances": [ROW], "ids": [None]}).encode(), "wrong_type", "ids", 0),
    ("no time", json.dumps({"instances": [ROW], "event_time": "noon"}).encode(), "wrong_type", "event_time", None),
    ("time of wrong type", json.dumps({"instances": [ROW], "event_time": [5]}).encode(), "wrong_type", "event_time", 0),
    ("entities of wrong type", b'{"entities": [1]}', "wrong_shape", "entities", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "field", "row"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused_by_name_of_field_and_row(
    shared: httpx.Client, body: bytes, code: str, field: str | None, row: int | None
) -> None:
    answer = shared.post("/invocations", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"], error["row"]) == (400, code, field, row)
    assert field is None or field in error["message"]
    assert row is None or f"row {row}" in error["message"] or error["code"].endswith("_column")


@pytest.mark.parametrize(
    ("text", "code", "row"),
    [
        ("temperature\n1\n", "missing_column", None),
        ("temperature,night,carrier,distance\n", "no_rows", None),
        ("temperature,night,carrier,distance\n1,true\n", "wrong_shape", 0),
        ("temperature,night,carrier,distance\nx,true,AA,1\n", "wrong_type", 0),
        ("temperature,night,carrier,distance\nNaN,true,AA,1\n", "wrong_type", 0),
        ("temperature,night,carrier,distance\n1_0,true,AA,1\n", "wrong_type", 0),
        ("temperature,night,carrier,distance\n1,yes,AA,1\n", "wrong_type", 0),
        ('temperature,night,carrier,distance\n1,true,"AA,1\n', "not_csv", None),
        ("\udcff", "not_csv", None),
    ],
)
def test_bad_csv_is_refused(shared: httpx.Client, text: str, code: str, row: int | None) -> None:
    content = text.encode("utf-8", "surrogateescape")
    answer = shared.post("/invocations", content=content, headers={"content-type": "text/csv"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["row"]) == (400, code, row)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "text/csv; charset=latin-1"]
)
def test_other_content_types_are_refused(shared: httpx.Client, kind: str) -> None:
    answer = shared.post("/invocations", content=record(), headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_content_type")


def test_compressed_bodies_are_refused(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert client.post("/invocations", content=b"x", headers=headers).status_code == 415


def test_too_long_bodies_and_too_many_rows_are_refused_and_the_connection_goes_on(
    client: httpx.Client,
) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 70_000

    json_type = {"content-type": "application/json"}
    for content in (b" " * 7_000_000, pieces()):
        answer = client.post("/invocations", content=content, headers=json_type)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    answer = client.post("/invocations", json={"inputs": columns(*[ROW] * 10_001)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_rows")
    assert client.post("/invocations", json={"instances": [ROW]}).status_code == 200


def test_many_rows_are_predicted_as_one_by_one(client: httpx.Client) -> None:
    rows = [{**ROW, "temperature": float(number)} for number in range(3000)]
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert answer.json()["predictions"] == expected(Logistic(), rows)


def test_a_model_that_takes_no_gaps_refuses_them_without_failing_others(serve_app: StartServer) -> None:
    client = serve_app(variant_of(Logistic(missing=None)))
    answer = client.post("/invocations", json={"instances": [ROW, {**ROW, "distance": None}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["row"]) == (422, "missing_value", 1)
    assert client.post("/invocations", json={"instances": [ROW]}).status_code == 200


def test_other_paths_and_methods_are_answered_in_json(client: httpx.Client) -> None:
    assert client.get("/invocations").status_code == 405
    assert client.get("/nothing").json()["error"]["code"] == "http_error"
    assert client.get("/version").status_code == 200


def test_ping_waits_for_a_model(serve_app: StartServer) -> None:
    router = Router("flights")
    client = serve_app(router=router)
    assert client.get("/ping").status_code == client.get("/health").status_code == 503
    assert client.post("/invocations", json={"instances": [ROW]}).json()["error"]["code"] == "no_model"
    router.swap(variant_of(Logistic()))
    assert client.get("/ping").status_code == 200
    assert client.get("/").json()["serving"][0]["features"]["carrier"] == "category"


def test_metrics_count_requests_rows_and_name_the_model(client: httpx.Client) -> None:
    client.post("/invocations", json={"instances": [ROW, ROW]})
    client.post("/invocations", json={"instances": []})
    text = client.get("/metrics").text
    assert 'treadle_requests_total{status="200"} 1.0' in text
    assert 'treadle_requests_total{status="400"} 1.0' in text
    assert 'treadle_request_errors_total{code="no_rows"} 1.0' in text
    assert "treadle_rows_total 2.0" in text
    assert f'treadle_model_info{{digest="{7:064x}",loop="flights",version="7"}} 1.0' in text
    assert "treadle_request_seconds_count 2.0" in text


cells = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, width=32)
    | st.sampled_from(["AA", "ZZ"])
)
right = st.fixed_dictionaries(
    {
        "temperature": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(),
        "night": st.none() | st.booleans(),
        "carrier": st.none() | st.sampled_from(["AA", "DL", "UA", "ZZ", ""]),
        "distance": st.none() | st.integers(-(2**70), 2**70),
    }
)


@given(rows=st.lists(right, min_size=1, max_size=8))
def test_requests_are_encoded_exactly_as_the_schema_encodes_tables(rows: list[dict[str, Any]]) -> None:
    encoder = RequestEncoder(SCHEMA.features)
    parsed = parse_request(json.dumps({"instances": rows}).encode(), "application/json", encoder)
    matrix, unseen = encoder.encode(parsed.columns)
    columns = {name: list(column) for name, column in zip(encoder.names, parsed.columns, strict=True)}
    columns["distance"] = [None if value is None else float(value) for value in columns["distance"]]
    columns["temperature"] = [None if value is None else float(value) for value in columns["temperature"]]
    assert np.array_equal(matrix, SCHEMA.encode(columns), equal_nan=True)
    assert unseen.get("carrier", 0) == sum(row["carrier"] in ("ZZ", "") for row in rows)


values = st.recursive(
    cells, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)
keys = st.sampled_from(
    [
        "dataframe_split",
        "dataframe_records",
        "inputs",
        "instances",
        "entities",
        "ids",
        "event_time",
        "at",
        "columns",
    ]
)
shapes = (
    st.dictionaries(keys, values | st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, cells)), max_size=3))
    | st.fixed_dictionaries({"inputs": st.fixed_dictionaries(dict.fromkeys(NAMES, cells | st.lists(cells)))})
    | st.fixed_dictionaries(
        {
            "dataframe_split": st.fixed_dictionaries(
                {
                    "columns": st.lists(st.sampled_from(NAMES) | cells),
                    "data": st.lists(st.lists(cells) | cells),
                }
            )
        }
    )
    | values
)


@given(
    body=shapes.map(lambda content: json.dumps(content).encode()) | st.binary(),
    kind=st.sampled_from(["json", "csv"]),
)
def test_whatever_is_sent_is_parsed_or_refused_in_words(body: bytes, kind: str) -> None:
    encoder = RequestEncoder(SCHEMA.features)
    mime = {"json": "application/json", "csv": "text/csv"}[kind]
    try:
        rows = parse_request(body, mime, encoder)
        if rows.entities is None:
            encoder.encode(rows.columns)
    except RequestRefused as refused:
        status, words = refused.status, str(refused)
    else:
        status, words = 200, "fine"
    assert status in (200, 400, 413, 415)
    assert words


@settings(max_examples=150, deadline=None)
@given(body=shapes.map(lambda content: json.dumps(content).encode()) | st.binary())
def test_the_server_never_fails_for_bad_input(shared: httpx.Client, body: bytes) -> None:
    answer = shared.post("/invocations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422)
    assert ("predictions" if answer.status_code == 200 else "error") in answer.json()


class Lookup:
    """Features of two flights; says so where it knows none."""

    def __init__(self, error: TreadleError | None = None) -> None:
        self.error = error
        self.at: datetime | None = None

    def columns_for(self, rows: Sequence[Mapping[str, Any]], at: datetime | None) -> dict[str, list[Any]]:
        self.at = at
        if self.error:
            raise self.error
        known = {"one": ROW, "two": OTHER}
        return {name: [known[row["flight"]][name] for row in rows] for name in reversed(NAMES)}


def test_entities_get_the_prediction_of_their_looked_up_features(serve_app: StartServer) -> None:
    lookup = Lookup()
    client = serve_app(variant_of(Logistic(), online=lookup))
    body = {"entities": [{"flight": "two"}, {"flight": "one"}], "at": "2013-04-01T06:00Z"}
    answer = client.post("/invocations", json=body)
    assert answer.json()["predictions"] == expected(Logistic(), [OTHER, ROW])
    assert lookup.at == datetime(2013, 4, 1, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("lookup", "status", "words"),
    [
        (None, 422, "no online features"),
        (Lookup(UserError("no value for flight = 'one'")), 422, "no value for flight"),
        (Lookup(Transient("the online store does not answer")), 503, "does not answer"),
    ],
)
def test_entities_without_features_are_refused_in_words(
    serve_app: StartServer, lookup: Lookup | None, status: int, words: str
) -> None:
    client = serve_app(variant_of(Logistic()), online=lookup)
    answer = client.post("/invocations", json={"entities": [{"flight": "one"}]})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
