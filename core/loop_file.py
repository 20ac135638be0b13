"""Reading a loop file: YAML that remembers its lines, overrides, and errors that name both."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from treadle.errors import Fault, SpecError


class Unfit(ValueError):
    """A value that its field can't have, for validators: what is wrong, and apart from it what to write instead."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem}. {self.fix}".rstrip()


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

    def left_over(self, dotted: str, section: str, *, by: str) -> str:
        """What else to give to `--set`, where it replaced the field `by` and a section that went with it stays; or "".

        Args:
            dotted: A field of the section that does not go with the new value.
            section: The section.
            by: The field on whose value the section depends.
        """
        left = self.place_of(by)[0] == "--set" != self.place_of(dotted)[0]
        return f'Give --set "{section}={{}}" too.' if left and dotted.startswith(f"{section}.") else ""


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
        problem = "this key stands twice in its section, also in line {}."
        faults = [
            Fault(str(path), line, key, problem.format(before), "Keep one of the two.")
            for key, line, before in twice
        ]
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


def _walk(node: Any, prefix: str, lines: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Fills `lines` and yields keys that stand twice, each with its line and that of the first."""
    if node.id == "mapping":
        seen: dict[Any, int] = {}
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
            if key.value in seen:
                yield dotted, key.start_mark.line + 1, seen[key.value]
            seen.setdefault(key.value, key.start_mark.line + 1)
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


def replaced_by(overrides: Sequence[str]) -> tuple[str, ...]:
    """The fields that overrides name."""
    return tuple(override.partition("=")[0].strip() for override in overrides)


def faults_of(error: ValidationError, model: type[BaseModel], file: LoopFile | None) -> list[Fault]:
    """Pydantic's complaints as faults with file, line, field and what would be right."""
    faults: list[Fault] = []
    for item in error.errors(include_url=False):
        if _is_passed_over(item):
            continue
        location = [part for part in item["loc"] if not (isinstance(part, str) and _is_no_key(part))]
        dotted = ".".join(str(part) for part in location)
        problem, fix = _words(item, model, location)
        where, line = file.place_of(dotted) if file else ("the loop", 0)
        fault = Fault(where, line, dotted, problem, fix)
        if faults and item["type"] == "literal_error" and faults[-1].field == dotted:
            # A length or a word: the value was tried as both.
            words = ", ".join(_expected(item))
            faults[-1] = replace(faults[-1], problem=f"{faults[-1].problem.rstrip('.')}, or {words}.")
        elif fault not in faults:
            faults.append(fault)
    return faults


def _is_passed_over(item: Any) -> bool:
    """Whether a complaint is of the branch of a union that was not meant: of the text, where a section stands."""
    return item["loc"][-1:] == ("str",) and isinstance(item["input"], dict)


def _is_no_key(part: str) -> bool:
    """Whether a part of pydantic's location names a branch of a union, or a key itself, and nothing in the file."""
    return part in {"timedelta", "datetime", "str", "[key]"} or part.startswith(
        ("literal[", "function-", "tagged-union", "lax-or", "dict[")
    )


def _words(item: Any, model: type[BaseModel], location: Sequence[Any]) -> tuple[str, str]:
    """What is wrong with a value, and what to write instead."""
    kind, value, limits = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        near = get_close_matches(str(item["loc"][-1]), known, n=1)
        return (
            "there is no such key here.",
            f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(known)}.",
        )
    if kind == "missing":
        return "this key is required.", "Write it."
    if kind == "value_error":
        error = limits.get("error")
        if isinstance(error, Unfit):
            return f"{error.problem.rstrip('.')}.", error.fix
        return item["msg"].removeprefix("Value error, ").rstrip(".") + ".", ""
    if kind == "too_short":
        return "nothing is in it.", "Write at least one."
    if (either := _EITHER.get(str(location[0]) if location else "")) and _of_a_union(item):
        noun, fix = either
        return "no value stands here." if value is None else f"{_shown(value)} is no {noun}.", fix
    if value is None:
        return "no value stands here.", "Write one, or take the key out: then its default counts."
    if kind in _SECTIONS:
        known = [] if kind == "dict_type" else _fields_at(model, location)
        which = f" ({', '.join(known)})" if 0 < len(known) <= _NAMED else ""
        fix = f"Write its keys{which} below it, indented, or leave it out."
        return f"this is a section, not {_shown(value)}.", fix
    if kind in _LIMITS:
        is_not, write = _LIMITS[kind]
        limit = f"{next(iter(limits.values())):g}"
        return f"{_shown(value)} {is_not} {limit}.", f"{write.format(limit)}."
    if kind == "literal_error":
        return _none_of(value, _expected(item))
    return _mistyped(kind, value) or ("this value does not fit.", item["msg"].rstrip(".") + ".")


# A longer list of keys hides what is wrong.
_NAMED = 8
# What to write where a text or a section can stand, by the first key above it.
_EITHER = {"pools": ("pool", "Name a pool of pools.yaml, or describe one by its fields.")}
_SECTIONS = ("model_type", "model_attributes_type", "dict_type")
_LIMITS = {
    "greater_than": ("is not above", "Write a number above {}"),
    "greater_than_equal": ("is below", "Write {} or more"),
    "less_than": ("is not below", "Write a number below {}"),
    "less_than_equal": ("is above", "Write {} or less"),
}


def _of_a_union(item: Any) -> bool:
    """Whether a complaint is of one branch of a text or a section, and not of a key below it."""
    return str(item["loc"][-1]).startswith(("str", "dict["))


def _expected(item: Any) -> list[str]:
    """The words that a field allows."""
    return [word.strip("'") for word in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _none_of(value: Any, words: Sequence[str]) -> tuple[str, str]:
    near = get_close_matches(str(value), words, n=1)
    fix = f"Did you mean {near[0]!r}?" if near else "Write one of them."
    return f"{_shown(value)} is not one of: {', '.join(words)}.", fix


def _mistyped(kind: str, value: Any) -> tuple[str, str] | None:
    """Words for a value of another type than its field's; None for what no loop file gives rise to."""
    wanted = kind.partition("_")[0]
    if wanted == "string" and kind != "string_pattern_mismatch":
        # Not shown: what was meant as a text may be a password of digits.
        fix = "Write one text." if isinstance(value, (list, dict)) else "Put it in quotes."
        return f"this is {_kind_of(value)}, where a text is asked for.", fix
    if wanted == "int":
        return f"{_shown(value)} is no whole number.", "Write one, such as 20."
    if wanted in ("float", "finite"):
        return f"{_shown(value)} is no number.", _number_in(value)
    if wanted == "bool":
        return f"{_shown(value)} is neither true nor false.", "Write true or false."
    if wanted in ("tuple", "list"):
        one = isinstance(value, str) and len(value) <= _SHOWN
        return (
            f"this is {_kind_of(value)}, not a list.",
            f"Write {f'[{value}]' if one else '[ONE, ANOTHER]'}.",
        )
    return None


def _number_in(value: Any) -> str:
    """What to write for a text that is no number: its digits, where what follows is the unit that is meant."""
    found = _WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return "Write one, such as 0.05."
    usual = found["unit"].lower() in _USUAL_UNITS
    return f"Write {found['digits']}, without a unit." if usual else "Write one without a unit, such as 0.05."


_WITH_UNIT = re.compile(r"\s*\$?\s*(?P<digits>\d+(\.\d+)?)\s*(?P<unit>[A-Za-z]*|\$)\s*")
# Another unit, such as MB, means another number.
_USUAL_UNITS = ("", "$", "g", "gb", "gi", "gib", "usd", "dollar", "dollars")
_SHOWN = 40


def _shown(value: Any) -> str:
    """A value as its author wrote it, where it is short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)) and len(str(value)) <= _SHOWN:
        return repr(value)
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "a yes or no"
    kinds = {
        str: "a text",
        int: "a number",
        float: "a number",
        list: "a list",
        tuple: "a list",
        dict: "a section",
    }
    return kinds.get(type(value), "a value of another kind")


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
