"""Reading a loop file: YAML that remembers its lines, overrides, and errors that name both."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from treadle.errors import Fault, SpecError


@dataclass(frozen=True, slots=True)
class LoopFile:
    """A parsed loop file: its content, the line (from 1) of each dotted field, and the fields that `--set` replaced."""

    path: Path
    content: dict[str, Any]
    lines: dict[str, int] = field(repr=False)
    replaced: tuple[str, ...] = ()
    text: str = field(default="", repr=False)

    def place_of(self, dotted: str) -> tuple[str, int]:
        """Where a field was written: the file and its line, or `--set` and 0."""
        if any(f"{dotted}.".startswith(f"{name}.") for name in self.replaced):
            return "--set", 0
        return str(self.path), self.line_of(dotted)

    def line_of(self, dotted: str) -> int:
        """The line of a field, or of its nearest enclosing section; 1 where none is known."""
        while dotted and dotted not in self.lines:
            dotted = dotted.rpartition(".")[0]
        return self.lines.get(dotted, 1)


def read_loop_file(path: Path, *, what: str = "loop file", begin: str = "`name:`") -> LoopFile:
    """The content of a loop file, or of another YAML mapping, with its line numbers.

    Args:
        path: The file.
        what: What it is called in an error's words.
        begin: What such a file begins with, for the same.

    Raises:
        SpecError: No such file, not YAML, not a mapping, or a key that stands twice.
    """
    import yaml

    path = path.absolute()
    if path.is_dir() or not path.exists():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise SpecError([Fault(str(path), 0, "", f"the {what} {state}.", "Give the path of a YAML file.")])
    loader_class = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_text(encoding="utf-8")
        loader = loader_class(text)
        try:
            node = loader.get_single_node()
            content = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
        lines: dict[str, int] = {}
        twice = list(_walk(node, "", lines)) if node else []
    except UnicodeDecodeError as error:
        raise SpecError(
            [Fault(str(path), 0, "", f"not UTF-8 text: {error.reason}.", "Save it as UTF-8.")]
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "can't be read"
        line = min(mark.line, len(text.splitlines()) - 1) + 1 if mark else 0
        raise SpecError([Fault(str(path), line, "", f"not YAML: {problem}.", _YAML_FIX)]) from None
    except (ValueError, TypeError, LookupError) as error:  # 2013-02-31, !!int of a word or of nothing
        raise SpecError(
            [Fault(str(path), 0, "", f"a value can't be read: {error}.", "Put it in quotes.")]
        ) from None
    except RecursionError:
        raise SpecError(
            [Fault(str(path), 0, "", "nested too deep, or within itself by an alias.", _YAML_FIX)]
        ) from None
    except OSError as error:
        raise SpecError(
            [Fault(str(path), 0, "", f"can't be read: {error.strerror}.", "Check its rights.")]
        ) from None
    if not isinstance(content, dict):
        raise SpecError([Fault(str(path), 1, "", f"a {what} is a mapping.", f"Begin with {begin}.")])
    if twice:
        problem, fix = "this key stands twice in its section.", "Keep one of the two."
        faults = [Fault(str(path), line, key, problem, fix) for key, line in twice]
        raise SpecError(faults)
    # YAML 1.1 reads the key `on:` as true; in a loop it is a word.
    return LoopFile(path, _word_keys(content), lines, text=text)


_YAML_FIX = "Check the indentation, brackets and quotes there."


def _word_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            "on" if key is True else "off" if key is False else key: _word_keys(item)
            for key, item in value.items()
        }
    return [_word_keys(item) for item in value] if isinstance(value, list) else value


def _walk(node: Any, prefix: str, lines: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Fills `lines` and yields keys that stand twice."""
    if node.id == "mapping":
        seen = set()
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
            if key.value in seen:
                yield dotted, key.start_mark.line + 1
            seen.add(key.value)
            lines[dotted] = key.start_mark.line + 1
            yield from _walk(value, dotted, lines)
    elif node.id == "sequence":
        for position, value in enumerate(node.value):
            lines[f"{prefix}.{position}"] = value.start_mark.line + 1
            yield from _walk(value, f"{prefix}.{position}", lines)


def apply_overrides(file: LoopFile, overrides: Sequence[str]) -> dict[str, Any]:
    """The file's content with `section.field=value` overrides put in; the value is read as YAML.

    Raises:
        SpecError: An override without `=`, or one that goes through something that is no section.
    """
    import copy

    import yaml

    content = copy.deepcopy(file.content)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise SpecError(
                [
                    Fault(
                        "--set", 0, override, "an override is section.field=value,", "such as train.rounds=50"
                    )
                ]
            )
        *path, last = dotted.strip().split(".")
        place: Any = content
        for step in path:
            place = place.setdefault(step, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise SpecError([Fault("--set", 0, dotted, f"{'.'.join(path)} is no section of the loop.")])
        try:
            place[last] = _word_keys(yaml.safe_load(text))
        except yaml.YAMLError:
            raise SpecError([Fault("--set", 0, dotted, f"{text!r} is no YAML value.")]) from None
    return content


def faults_of(error: ValidationError, model: type[BaseModel], file: LoopFile | None) -> list[Fault]:
    """Pydantic's complaints as faults with file, line, field and what would be right."""
    faults = []
    for item in error.errors(include_url=False):
        location = [part for part in item["loc"] if not (isinstance(part, str) and _is_union_branch(part))]
        dotted = ".".join(str(part) for part in location)
        known = _fields_at(model, location[:-1]) if item["type"] == "extra_forbidden" else []
        problem, fix = _words(item, known)
        where, line = file.place_of(dotted) if file else ("the loop", 0)
        fault = Fault(where, line, dotted, problem, fix)
        if fault not in faults:
            faults.append(fault)
    return faults


def _is_union_branch(part: str) -> bool:
    return part in {"timedelta", "datetime", "str"} or part.startswith(
        ("literal[", "function-", "tagged-union", "lax-or")
    )


def _words(item: Any, known: Sequence[str]) -> tuple[str, str]:
    if item["type"] == "extra_forbidden":
        wrong = str(item["loc"][-1])
        near = get_close_matches(wrong, known, n=1)
        return (
            "there is no such key here.",
            f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}.",
        )
    if item["type"] == "missing":
        return "this key is required.", "Write it."
    if item["type"] in {"model_type", "dict_type"}:
        return "this is a section.", "Write its keys below it, indented, or leave it out."
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ").rstrip(".") + ".", ""
    return "this value does not fit.", item["msg"].rstrip(".") + "."


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys that a section at `location` may have."""
    for step in location:
        found = model.model_fields.get(str(step))
        inner = _model_in(found.annotation) if found else None
        if inner is not None:
            model = inner
    return sorted(info.alias or name for name, info in model.model_fields.items())


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
