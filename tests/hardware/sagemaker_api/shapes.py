"""What a request may say, by AWS's own model: fields, types, lengths, patterns and enumerations."""

from __future__ import annotations

import re
from typing import Any

import botocore.session

Json = dict[str, Any]


class AwsError(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.code, self.message, self.status = code, message, status


_MODELS: dict[str, Any] = {}


def check_request(service: str, operation: str, asked: Json) -> None:
    """Refuses what AWS's own model refuses: unknown and missing fields, types, lengths, patterns and enumerations."""
    if service not in _MODELS:
        _MODELS[service] = botocore.session.get_session().get_service_model(service)
    check_shape(_MODELS[service].operation_model(operation).input_shape, asked, operation)


def check_shape(shape: Any, value: Any, where: str) -> None:
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        if unknown := set(value) - set(shape.members):
            raise AwsError("ValidationException", f"{where} has no {sorted(unknown)}")
        if missing := set(shape.required_members) - set(value):
            raise AwsError("ValidationException", f"{where} needs {sorted(missing)}")
        for name, inner in value.items():
            check_shape(shape.members[name], inner, f"{where}.{name}")
        return
    size: float = 0
    if kind == "list":
        for number, inner in enumerate(value):
            check_shape(shape.member, inner, f"{where}[{number}]")
        size = len(value)
    elif kind == "map":
        for name, inner in value.items():
            check_shape(shape.key, name, f"{where} key")
            check_shape(shape.value, inner, f"{where}[{name}]")
        size = len(value)
    elif kind == "string":
        _check_text(shape, value, where)
        size = len(value)
    elif kind in ("integer", "long"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise AwsError("ValidationException", f"{where} is no whole number: {value!r}")
        size = value
    elif kind == "boolean" and not isinstance(value, bool):
        raise AwsError("ValidationException", f"{where} is neither true nor false: {value!r}")
    if not limits.get("min", size) <= size <= limits.get("max", size):
        raise AwsError("ValidationException", f"{where} is out of bounds: {value!r}")


def _check_text(shape: Any, value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise AwsError("ValidationException", f"{where} is no text: {value!r}")
    if shape.enum and value not in shape.enum:
        raise AwsError("ValidationException", f"{where}: {value!r} is none of the enumeration")
    # Java's classes of characters, as Python says them.
    pattern = (
        shape.metadata.get("pattern", "")
        .replace(r"\p{L}\p{Z}\p{N}", r"\w\s")
        .replace(r"\p{Alnum}", "a-zA-Z0-9")
    )
    if pattern and not re.fullmatch(pattern, value):
        raise AwsError("ValidationException", f"{where}: {value!r} does not match {pattern}")
