r"""What a request to /invocations may say, as MLflow's and SageMaker's clients send it, and what is answered.

{"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"]]}}      pandas' orient="split"
{"dataframe_records": [{"a": 1, "b": "x"}]}                           pandas' orient="records"
{"inputs": {"a": [1], "b": ["x"]}}, {"instances": [{...}]}            columns, or records
{"entities": [{"flight_id": "..."}], "at": "2013-04-01T06:00Z"}       features are looked up online
a,b\n1,x\n                                                              text/csv with a header

Beside the rows, `ids` names each row's entity and `event_time` its time: they are captured, for monitoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from treadle.clock import parse_instant
from treadle.serving.csv_body import parse_csv
from treadle.serving.encode import RequestEncoder, RequestRefused, Rows, describe

MAX_ROWS = 10_000
TABLES = ("dataframe_split", "dataframe_records", "inputs", "instances")
FORMATS = (*TABLES, "entities")
_BESIDE = frozenset({"ids", "event_time", "at", "params"})


def parse_request(body: bytes, content_type: str, encoder: RequestEncoder) -> Rows:
    """The rows that a request asks to predict.

    Raises:
        RequestRefused: The request says something else; field and row are named where there is one.
    """
    mime, _, parameters = content_type.partition(";")
    mime = mime.strip().lower()
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if mime not in ("application/json", "text/csv") or (parameters and charset not in ("utf-8", "utf8")):
        message = f"unknown content type {content_type[:80]!r}: send application/json or text/csv, in UTF-8"
        raise RequestRefused("unsupported_content_type", message, status=415)
    if not body or body.isspace():
        raise RequestRefused("empty_body", "the request has no body: send the rows to predict")
    if mime == "text/csv":
        return _checked(parse_csv(body, encoder))
    return _checked(_parse_json(body, encoder))


def _checked(rows: Rows) -> Rows:
    if rows.count == 0:
        raise RequestRefused("no_rows", "the request holds no rows: send at least one")
    if rows.count > MAX_ROWS:
        message = (
            f"{rows.count} rows in one request; at most {MAX_ROWS}: send several, or use `treadle predict`"
        )
        raise RequestRefused("too_many_rows", message, status=413)
    return rows


def _parse_json(body: bytes, encoder: RequestEncoder) -> Rows:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = "; NaN and Infinity are not JSON: write null" if b"NaN" in body or b"Infinity" in body else ""
        raise RequestRefused(
            "not_json", f"the body is not JSON: {error.msg} at byte {error.pos}{hint}"
        ) from None
    if type(content) is not dict:
        message = f"the body is {describe(content)}: send an object with one of {', '.join(FORMATS)}"
        raise RequestRefused("unknown_format", message)
    found = [name for name in FORMATS if name in content]
    if len(found) != 1:
        said = f"both {found[0]} and {found[1]}" if found else f"none of {', '.join(FORMATS)}"
        raise RequestRefused("unknown_format", f"the body holds {said}: send exactly one of them")
    name = found[0]
    if len(content) > 1:
        _check_beside(content, name)
    if name == "entities":
        rows = _entities(content["entities"])
        rows.at = _instant(content["at"], "at") if content.get("at") is not None else None
    elif name == "dataframe_split":
        rows = _split(content[name], encoder)
    else:
        rows = _table(name, content[name], encoder)
    if len(content) > 1:
        _read_beside(content, rows)
    return rows


def _check_beside(content: Mapping[str, Any], name: str) -> None:
    for key in content:
        if key != name and key not in _BESIDE:
            message = f"{key[:60]!r} is not known: beside {name} there may be ids and event_time"
            raise RequestRefused("unknown_field", message, field=key[:60])
    if content.get("params"):
        raise RequestRefused("unknown_field", "this model takes no params: leave them out", field="params")
    if "at" in content and name != "entities":
        message = "`at` belongs to requests by entities; a row's own time goes into `event_time`"
        raise RequestRefused("unknown_field", message, field="at")


def _read_beside(content: Mapping[str, Any], rows: Rows) -> None:
    ids, times = content.get("ids"), content.get("event_time")
    if ids is not None:
        rows.ids = [_id(value, row) for row, value in enumerate(_one_each(ids, "ids", rows.count))]
    if isinstance(times, str):
        rows.event_time = [_instant(times, "event_time")] * rows.count
    elif times is not None:
        listed = _one_each(times, "event_time", rows.count)
        rows.event_time = [_instant(value, "event_time", row) for row, value in enumerate(listed)]


def _one_each(values: Any, field: str, count: int) -> list[Any]:
    if type(values) is list and len(values) == count:
        return values
    seen = f"a list of {len(values)}" if type(values) is list else describe(values)
    raise RequestRefused(
        "wrong_length", f"{field} is {seen}: give a list of {count}, one for each row", field=field
    )


def _id(value: Any, row: int) -> str:
    if type(value) is str or type(value) is int:
        return str(value)
    raise RequestRefused(
        "wrong_type", f"ids in row {row} is {describe(value)}, but must be a text", field="ids", row=row
    )


def _instant(value: Any, field: str, row: int | None = None) -> datetime:
    place = field if row is None else f"{field} in row {row}"
    if type(value) is not str:
        message = f"{place} is {describe(value)}, but must be a time such as 2013-04-01T06:00Z"
        raise RequestRefused("wrong_type", message, field=field, row=row)
    try:
        return parse_instant(value)
    except (ValueError, OverflowError):
        message = f"{place} is {value[:40]!r}, no time: write it as 2013-04-01T06:00Z"
        raise RequestRefused("wrong_type", message, field=field, row=row) from None


def _split(value: Any, encoder: RequestEncoder) -> Rows:
    if (
        type(value) is not dict
        or type(value.get("columns")) is not list
        or type(value.get("data")) is not list
    ):
        message = "dataframe_split must hold `columns`, a list of names, and `data`, a list of rows"
        raise RequestRefused("wrong_shape", message, field="dataframe_split")
    names, data = value["columns"], value["data"]
    if unknown := value.keys() - {"columns", "data", "index"}:
        name = sorted(unknown)[0][:60]
        raise RequestRefused("unknown_field", f"{name!r} is not known within dataframe_split", field=name)
    position = encoder.positions(names)
    for row, cells in enumerate(data):
        if type(cells) is not list or len(cells) != len(names):
            seen = f"a list of {len(cells)}" if type(cells) is list else describe(cells)
            message = f"row {row} of data is {seen}, but `columns` has {len(names)}"
            raise RequestRefused("wrong_shape", message, field="data", row=row)
    if len(data) == 1:
        cells = data[0]
        return Rows([(cells[at],) for at in position], 1)
    columns = list(zip(*data, strict=True)) or [()] * len(names)
    return Rows([columns[at] for at in position], len(data))


def _table(name: str, value: Any, encoder: RequestEncoder) -> Rows:
    if type(value) is list:
        return _records(name, value, encoder)
    if type(value) is not dict or name == "dataframe_records":
        wanted = "a list of objects" + ("" if name == "dataframe_records" else ", or an object of columns")
        raise RequestRefused("wrong_shape", f"{name} is {describe(value)}, but must be {wanted}", field=name)
    encoder.check_names(value)
    lists = [type(column) is list for column in value.values()]
    if not any(lists):
        return Rows([(value[feature],) for feature in encoder.names], 1)
    columns = [value[feature] for feature in encoder.names]
    lengths = [len(column) if type(column) is list else None for column in columns]
    for feature, length in zip(encoder.names, lengths, strict=True):
        if length is None or length != lengths[0]:
            message = f"{feature!r} in {name} must be a list as long as that of {encoder.names[0]!r}"
            raise RequestRefused("wrong_shape", message, field=feature)
    return Rows(columns, len(columns[0]))


def _records(name: str, records: list[Any], encoder: RequestEncoder) -> Rows:
    for row, record in enumerate(records):
        if type(record) is not dict:
            message = f"row {row} of {name} is {describe(record)}, but must be an object of feature: value"
            raise RequestRefused("wrong_shape", message, field=name, row=row)
        if record.keys() != encoder.expected:
            encoder.check_names(record, row)
    return Rows([[record[feature] for record in records] for feature in encoder.names], len(records))


def _entities(value: Any) -> Rows:
    if type(value) is not list or not all(type(entity) is dict for entity in value):
        message = "entities must be a list of objects: each row's join keys and its own columns"
        raise RequestRefused("wrong_shape", message, field="entities")
    return Rows((), len(value), entities=value)


def error_body(code: str, message: str, field: str | None = None, row: int | None = None) -> bytes:
    """The JSON that every refusal and failure is answered with."""
    return orjson.dumps({"error": {"code": code, "message": message, "field": field, "row": row}})
