"""Errors as JSON: what a stage raised in one process is raised in another, with the same class and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from treadle import errors
from treadle.errors import Fault, TreadleError
from treadle.redaction import redacted

Json = dict[str, Any]


def error_to_json(error: TreadleError, replaced: Mapping[str, str] | None = None) -> Json:
    """An error's class, arguments and words, without credentials.

    Args:
        error: The error.
        replaced: Text to put in place of other text, such as the folder that a loop's files were laid out in.
    """
    known = [each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__]
    return {
        "type": type(error).__name__,
        "known_as": known,
        "arguments": [_plain(argument, replaced or {}) for argument in error.args],
        "message": _text(str(error), replaced or {}),
        "retryable": error.retryable,
        "exit_code": error.exit_code,
    }


def error_from_json(content: Mapping[str, Any]) -> TreadleError:
    """The error that `error_to_json` wrote; of a class that only the other side knows, its nearest known one."""
    words = str(content["message"])
    for name in content["known_as"]:
        found = getattr(errors, name, None)
        if not (isinstance(found, type) and issubclass(found, TreadleError)):
            continue
        if name == content["type"]:
            try:
                error = found(*(_restored(argument) for argument in content["arguments"]))
            except TypeError:
                continue
            if str(error) == words:
                return error
        try:
            return found(words)
        except TypeError:
            continue
    return TreadleError(words)


def _text(text: str, replaced: Mapping[str, str]) -> str:
    for before, after in replaced.items():
        text = text.replace(before, after)
    return redacted(text)


def _plain(value: Any, replaced: Mapping[str, str]) -> Any:
    if isinstance(value, Fault):
        return {"fault": _plain(asdict(value), replaced)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, replaced) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _text(str(value), replaced)


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if isinstance(value, dict):
        return Fault(**value["fault"]) if set(value) == {"fault"} else value
    return value
