"""A file and a request are answered and refused alike: one table of rows, given to both."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import treadle
from serving_models import ROW, Logistic, trained, variant_of
from treadle.errors import UserError
from treadle.scoring import online_for, score_file
from treadle.serving.app import build_app
from treadle.serving.batch import predict_file
from treadle.serving.router import Router
from treadle.serving.server import Running, run_in_thread, serve_in_thread
from treadle.session import open_session
from wheel import FIRST, Wheel, copy_of

Row = dict[str, Any]
JSON = {"content-type": "application/json"}


def write(path: Path, rows: list[Row]) -> Path:
    """Rows as a file, each column of the type that its values have."""
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    return path


def without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


# What differs from a good row; the column that both refusals name, None where both answer.
FULL: dict[str, tuple[Row, str | None]] = {
    "as it should be": (ROW, None),
    "in another order": (dict(reversed(ROW.items())), None),
    "a missing column": (without(ROW, "night"), "night"),
    "an extra column": ({**ROW, "humidity": 3}, "humidity"),
    "a misspelt column": ({**without(ROW, "night"), "nigth": True}, "night"),
    "a missing number": ({**ROW, "distance": None}, None),
    "a missing category": ({**ROW, "carrier": None}, None),
    "a missing boolean": ({**ROW, "night": None}, None),
    "a category never seen": ({**ROW, "carrier": "ZZ"}, None),
    "a whole number": ({**ROW, "temperature": 21}, None),
    "a text for a number": ({**ROW, "temperature": "warm"}, "temperature"),
    "a boolean for a number": ({**ROW, "temperature": True}, "temperature"),
    "a number for a boolean": ({**ROW, "night": 1.5}, "night"),
    "a text for a boolean": ({**ROW, "night": "yes"}, "night"),
    "a number for a category": ({**ROW, "carrier": 5}, "carrier"),
    "a list for a number": ({**ROW, "temperature": [1.0]}, "temperature"),
    "too large a number": ({**ROW, "temperature": 1e39}, "temperature"),
    "as large as can be": ({**ROW, "temperature": 3.4e38}, None),
}
# Cells of a CSV; only text can say these.
CELLS: dict[str, tuple[Row, str | None]] = {
    "nan": ({**ROW, "temperature": "NaN"}, "temperature"),
    "infinity": ({**ROW, "temperature": "-inf"}, "temperature"),
    "an exponent too large": ({**ROW, "temperature": "1e999"}, "temperature"),
    "digits of another script": ({**ROW, "temperature": "\uff11\uff12"}, "temperature"),
    "an underscore": ({**ROW, "temperature": "1_0"}, "temperature"),
    "a plus and blanks": ({**ROW, "temperature": " +5 "}, None),
    "a quoted line break": ({**ROW, "carrier": "D\nL"}, None),
    **{f"boolean {cell!r}": ({**ROW, "night": cell}, None) for cell in ("true", "FALSE", "1", "0")},
    **{f"boolean {cell!r}": ({**ROW, "night": cell}, "night") for cell in ("tRUE", "t", "2", " true")},
}


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with (
        run_in_thread(build_app(Router("flights", variant_of(Logistic())))) as url,
        httpx.Client(base_url=url) as client,
    ):
        yield client


def both(client: httpx.Client, content: bytes, kind: str, source: Path) -> tuple[Any, Any]:
    """What the endpoint and the file come to: a prediction, or the refusal's words."""
    answer = client.post("/invocations", content=content, headers={"content-type": kind}).json()
    output = source.with_name("out.parquet")
    try:
        predict_file(Logistic(), source, output, model="m")
    except UserError as refused:
        assert not output.exists()
        return answer.get("predictions", answer.get("error")), str(refused)
    return answer.get("predictions", answer.get("error")), pq.read_table(output)["prediction"].to_pylist()


def agree(told: tuple[Any, Any], source: Path, column: str | None, row: int) -> None:
    requested, filed = told
    if column is None:
        assert requested == filed
        return
    assert requested["field"] == column, requested
    assert column in requested["message"]
    assert f"{source}: " in filed
    assert column in filed
    by_name = requested["code"] in {"missing_column", "extra_column"}
    assert by_name or f"row {row}" in filed
    assert by_name or requested["row"] == row - 1


@pytest.mark.parametrize(("row", "column"), FULL.values(), ids=FULL)
def test_full_rows_in_json_and_parquet(
    shared: httpx.Client, tmp_path: Path, row: Row, column: str | None
) -> None:
    nothing: Row = dict.fromkeys(row)
    for rows, at in (([row], 1), ([nothing, row], 2)):
        source = write(tmp_path / "in.parquet", rows)
        content = json.dumps({"dataframe_records": rows}).encode()
        agree(both(shared, content, "application/json", source), source, column, at)
        (tmp_path / "out.parquet").unlink(missing_ok=True)


# In a CSV 5 is a text, and 1 is true.
TEXT = {name: case for name, case in FULL.items() if name != "a number for a category"}
TEXT["a boolean for a number"] = ({**ROW, "temperature": "true"}, "temperature")


@pytest.mark.parametrize(("row", "column"), (TEXT | CELLS).values(), ids=TEXT | CELLS)
def test_full_rows_in_csv(shared: httpx.Client, tmp_path: Path, row: Row, column: str | None) -> None:
    source = write(tmp_path / "in.csv", [dict.fromkeys(row), row])
    agree(both(shared, source.read_bytes(), "text/csv", source), source, column, 2)


def test_a_row_of_another_length_is_named(client: httpx.Client, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("temperature,night,carrier,distance\n1,true,DL,2\n\n1,true,DL\n")
    requested, filed = both(client, source.read_bytes(), "text/csv", source)
    assert requested["message"] == "row 1 has 3 values, but the header has 4"
    assert filed.endswith("row 2 has 3 values, but the header has 4")


def test_what_a_model_can_not_do_without_is_named(
    serve_app: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    rows = [ROW, {**ROW, "distance": None}]
    client = serve_app(variant_of(Logistic(missing=None)))
    error = client.post("/invocations", json={"instances": rows}).json()["error"]
    assert (error["field"], error["row"]) == ("distance", 1)
    with pytest.raises(UserError, match="column distance in row 2 is missing"):
        predict_file(Logistic(missing=None), write(tmp_path / "in.csv", rows), tmp_path / "o.csv", model="m")


def test_pandas_categories_and_all_missing_texts_are_what_they_stand_for(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({**{name: [value] * 2 for name, value in ROW.items()}, "carrier": ["DL", "DL"]})
    outputs = []
    for carrier in (frame["carrier"], frame["carrier"].astype("category"), pd.Series([math.nan] * 2)):
        frame.assign(carrier=carrier).to_parquet(tmp_path / "in.parquet")
        predict_file(trained(1), tmp_path / "in.parquet", tmp_path / "out.parquet", model="m")
        outputs.append(pq.read_table(tmp_path / "out.parquet")["prediction"].to_pylist())
    assert outputs[0] == outputs[1]
    missing = trained(1).predict(
        trained(1).schema.encode({**{k: [v] for k, v in ROW.items()}, "carrier": [None]})
    )
    assert outputs[2] == [missing[0]] * 2


def test_rows_with_a_category_never_seen_are_counted(tmp_path: Path) -> None:
    rows = [{**ROW, "carrier": carrier} for carrier in ("AA", "ZZ", None, "YY")]
    done = predict_file(Logistic(), write(tmp_path / "in.csv", rows), tmp_path / "o.csv", model="m")
    assert done.unseen == {"carrier": 2}


NOON, EVENING = "2024-02-11T12:00:00Z", "2024-02-11T20:00:00Z"
ORDER = {"region": "north", "amount": 31.5, "items": 2, "hour": 20}
# What differs from a good row, the question's time; a word of both refusals, None where both answer.
NAMED: dict[str, tuple[Row, str, str | None]] = {
    "as it should be": ({}, EVENING, None),
    "a missing own value": ({"amount": None}, EVENING, None),
    "an unknown entity": ({"region": "nowhere"}, EVENING, "no value for region = 'nowhere'"),
    "an empty key": ({"region": None}, EVENING, "'region'"),
    "a key of another type": ({"region": 5}, EVENING, "'region'"),
    "a text for a number": ({"amount": "much"}, EVENING, "amount"),
    "a boolean for a number": ({"items": True}, EVENING, "items"),
    "too large a number": ({"amount": 1e39}, EVENING, "amount"),
    "an extra column": ({"colour": "red"}, EVENING, "'colour'"),
    "a question in advance": ({}, "2024-02-12T05:00:00Z", None),
    "a value as old as its TTL": ({}, "2024-02-12T06:00:00Z", None),
    "too old a value": ({}, "2024-02-12T06:00:01Z", "too old: known since 2024-02-11T18:00:00Z"),
    "long after the data": ({}, "2034-01-01T00:00:00Z", "too old"),
    "before the data": ({}, "2023-12-01T00:00:00Z", "'load'"),
    "no time": ({}, "noon", "'noon'"),
}


@contextmanager
def serving(wheel: Wheel, **options: Any) -> Iterator[Running]:
    loop = treadle.Loop.load(wheel.path)
    store = wheel.session(FIRST).store

    def lookup(candidate: Any) -> Any:
        return online_for(loop, store, "production", candidate)

    with serve_in_thread(loop, store, online_for=lookup, **{"say": lambda line: None, **options}) as server:
        yield server


@pytest.fixture(scope="module")
def endpoint(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Wheel, str]]:
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("both"))
    with serving(wheel) as server:
        yield wheel, server.url


def scored(wheel: Wheel, source: Path, **options: Any) -> Any:
    """Predictions of a file, or the refusal's words."""
    output = source.with_name("out.parquet")
    try:
        score_file(wheel.session(FIRST), source, output, **options)
    except UserError as refused:
        assert not output.exists()
        return str(refused)
    return pq.read_table(output)["prediction"].to_pylist()


def named(rows: list[Row], at: str) -> list[Row]:
    return [{"order_id": f"new-{number}", "placed_at": at, **row} for number, row in enumerate(rows)]


@pytest.mark.parametrize(("changes", "at", "word"), NAMED.values(), ids=NAMED)
def test_rows_that_name_entities(
    endpoint: tuple[Wheel, str], tmp_path: Path, changes: Row, at: str, word: str | None
) -> None:
    wheel, url = endpoint
    good = {**dict.fromkeys(changes), **ORDER} if word is None else ORDER
    row = {**ORDER, **changes}
    answer = httpx.post(f"{url}/invocations", json={"entities": [good, row], "at": at}, timeout=60).json()
    # A column of Parquet has one type, so what is of another is in both rows.
    source = write(tmp_path / "in.parquet", named([row if word else good, row], at))
    filed = scored(wheel, source)
    if word is None:
        assert answer["predictions"] == filed
        return
    assert word in answer["error"]["message"]
    assert word in filed
    whole = "column" in answer["error"]["code"]
    assert whole or "row 1" in filed
    assert whole or at in ("noon", "2034-01-01T00:00:00Z") or answer["error"]["row"] in (0, 1)


def test_a_refused_row_of_many_is_named_and_nothing_is_written(wheel: Wheel, tmp_path: Path) -> None:
    rows = [{**ORDER, "items": number % 5} for number in range(60_000)]
    rows[54_321] = {**ORDER, "region": "nowhere"}
    words = scored(wheel, write(tmp_path / "in.csv", named(rows, EVENING)))
    assert "in.csv: row 54322: the view 'load' has no value for region = 'nowhere'" in words
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_gaps_count_as_missing_where_they_are_allowed(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    from treadle.models import load_candidate

    rows = [ORDER, {**ORDER, "region": "nowhere"}, {**ORDER, "region": None}]
    source = write(tmp_path / "in.parquet", named(rows[:2], EVENING))
    said: list[str] = []
    session = open_session(
        treadle.Loop.load(wheel.path), as_of=FIRST, store=wheel.store, who="ann", say=said.append
    )
    done = score_file(session, source, tmp_path / "out.parquet", allow_gaps=True)
    assert (done["gaps"], done["unseen"]) == ({"load": 1}, {"region": 1})
    assert "1 row: the view load has no value, or one that is too old; it counts as missing" in said
    predictor = load_candidate(session.store, turned[1].candidate)  # type: ignore[arg-type]
    columns = {name: [rows[1].get(name)] for name in predictor.schema.names}
    expected = predictor.predict(predictor.schema.encode(columns))[0]
    assert pq.read_table(tmp_path / "out.parquet")["prediction"][1].as_py() == expected
    (tmp_path / "out.parquet").unlink()
    assert "'region' is empty" in scored(
        wheel, write(tmp_path / "null.parquet", named(rows[:1] + rows[2:], EVENING)), allow_gaps=True
    )


def test_the_same_entity_twice_is_answered_twice(endpoint: tuple[Wheel, str], tmp_path: Path) -> None:
    wheel, url = endpoint
    body = {"entities": [ORDER, {**ORDER, "amount": 5}, ORDER], "at": EVENING}
    answer = httpx.post(f"{url}/invocations", json=body).json()["predictions"]
    rows = [{"order_id": "twice", "placed_at": EVENING, **row} for row in body["entities"]]
    assert answer == scored(wheel, write(tmp_path / "in.csv", rows))
    assert answer[0] == answer[2] != answer[1]


def test_what_only_a_file_can_do(endpoint: tuple[Wheel, str], tmp_path: Path) -> None:
    """Times in the past, as it joins by time; own columns left out, as it has the labelled table."""
    wheel, url = endpoint
    error = httpx.post(f"{url}/invocations", json={"entities": [ORDER], "at": NOON}).json()["error"]
    assert (error["code"], error["row"]) == ("features_unavailable", 0)
    assert "treadle predict" in error["message"]
    assert len(scored(wheel, write(tmp_path / "past.csv", named([ORDER], NOON)))) == 1
    (tmp_path / "out.parquet").unlink()

    lacking = without(ORDER, "amount")
    error = httpx.post(f"{url}/invocations", json={"entities": [ORDER, lacking], "at": EVENING}).json()[
        "error"
    ]
    assert (error["code"], error["field"], error["row"]) == ("missing_column", "amount", 1)
    known = {"order_id": "o0030-7", "placed_at": "2024-01-31T04:13:00Z"}
    assert len(scored(wheel, write(tmp_path / "known.csv", [known]))) == 1
    (tmp_path / "out.parquet").unlink()
    words = scored(wheel, write(tmp_path / "unknown.csv", [known, {**known, "order_id": "nobody"}]))
    assert "unknown.csv: row 2: the table 'orders' has no row of order_id = 'nobody'" in words
    empty = scored(wheel, write(tmp_path / "empty.parquet", [known, {**known, "placed_at": None}]))
    assert "empty.parquet: row 2: 'placed_at' is empty" in empty


def test_a_files_label_and_its_times_may_be_there(endpoint: tuple[Wheel, str], tmp_path: Path) -> None:
    wheel, _ = endpoint
    rows = [{**row, "late": 1, "delivered_at": EVENING} for row in named([ORDER], EVENING)]
    assert len(scored(wheel, write(tmp_path / "in.csv", rows))) == 1


def test_feast_is_loaded_before_the_endpoint_is_ready(wheel: Wheel) -> None:
    lines: list[str] = []
    with serving(wheel, say=lines.append) as server:
        reader = server.router.serving[0].online._reader  # type: ignore[union-attr]
        assert reader._feast is not None
        answer = httpx.post(f"{server.url}/invocations", json={"entities": [ORDER], "at": EVENING})
        assert answer.status_code == 200
    assert not any("can't be answered" in line for line in lines)
