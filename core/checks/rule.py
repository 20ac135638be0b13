"""What a rule is, the registry of rules, and what a rule sees while it runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from treadle.checks.secrets import redact, secret_values
from treadle.errors import Fault, SpecError, UserError
from treadle.loop import Loop
from treadle.loop_file import LoopFile

if TYPE_CHECKING:
    from treadle.checks.probe import Probe
    from treadle.registry.log import Entry

Severity = Literal["error", "warning", "info"]
SPEC_FAULT, BAD_IGNORE, UNCHECKED, RULE_FAILED, IDLE_IGNORE = "TR001", "TR002", "TR003", "TR004", "TR005"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found. `line` counts from 1; 0 where the place has no line.

    Attributes:
        evidence: What was seen, in words; never a secret's value.
        fix: What to do, in one sentence.
        ignored_because: The loop's reason to ignore this code; None where the finding stands.
    """

    code: str
    severity: Severity
    field: str
    file: str
    line: int
    evidence: str
    fix: str
    ignored_because: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule yields; left empty: the rule's own code, severity and fix, and the field's line."""

    field: str
    evidence: str
    fix: str = ""
    file: str = ""
    line: int = 0
    code: str = ""
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, as `rule` registers it.

    Attributes:
        fix: The sentence shown where a hit brings none of its own.
        sections: The sections whose defaults the rule could mistake for the user's words: while one of them
            holds a fault, the rule waits. Empty: it runs as soon as any loop could be read.
        on: `file` for a rule that reads only `context.file`, and so runs even where no loop could be read.
        ignorable: Whether `ignore: {CODE: reason}` may silence it.
    """

    code: str
    severity: Severity
    title: str
    fix: str
    run: Callable[[CheckContext], Iterable[Hit]]
    sections: tuple[str, ...] = ()
    on: Literal["loop", "file"] = "loop"
    ignorable: bool = True


registry: dict[str, Rule] = {}


def register(new: Rule) -> None:
    """Adds a rule.

    Raises:
        UserError: The code is taken, or is not capital letters with three digits.
    """
    if not re.fullmatch(r"[A-Z]{2,12}\d{3}", new.code):
        raise UserError(
            f"{new.code!r} is no code of a rule: write capital letters and three digits, such as ACME001"
        )
    if not new.fix.strip() or not new.title.strip():
        raise UserError(f"the rule {new.code} needs a title and a fix, each one sentence")
    taken = registry.get(new.code)
    if taken is not None and (taken.title, taken.severity) != (new.title, new.severity):
        raise UserError(f"the code {new.code} belongs to the rule {taken.title!r} already: choose another")
    registry[new.code] = new


def rule(
    code: str,
    *,
    severity: Severity,
    title: str,
    fix: str,
    sections: Sequence[str] = (),
    on: Literal["loop", "file"] = "loop",
    ignorable: bool | None = None,
) -> Callable[[Callable[[CheckContext], Iterable[Hit]]], Callable[[CheckContext], Iterable[Hit]]]:
    """Registers the decorated function; see `Rule`. Errors can't be ignored unless `ignorable` says so."""

    def decorate(run: Callable[[CheckContext], Iterable[Hit]]) -> Callable[[CheckContext], Iterable[Hit]]:
        allowed = severity != "error" if ignorable is None else ignorable
        register(Rule(code, severity, title, fix, run, tuple(sections), on, allowed))
        return run

    return decorate


def rules() -> list[Rule]:
    """Every registered rule, treadle's own included, by code."""
    from treadle.checks import MODULES

    for module in MODULES:
        import_module(module)
    return [registry[code] for code in sorted(registry)]


def _by_engine(context: CheckContext) -> Iterable[Hit]:
    return ()


_own: tuple[tuple[str, Severity, str, str], ...] = (
    (
        SPEC_FAULT,
        "error",
        "The loop file says something that no loop can mean",
        "See docs/loop.md for this field.",
    ),
    (
        BAD_IGNORE,
        "error",
        "`ignore` names no rule, an error, or gives no reason",
        "Write `CODE: the reason`.",
    ),
    (UNCHECKED, "info", "Something could not be checked here", "Check again where it can be."),
    (RULE_FAILED, "error", "A rule itself failed", "Tell the author of the rule, with these lines."),
    (IDLE_IGNORE, "info", "An `ignore` that hides nothing", "Take the line out."),
)
for _code, _severity, _title, _fix in _own:
    register(Rule(_code, _severity, _title, _fix, _by_engine, on="file", ignorable=_severity != "error"))


class CheckContext:
    """What a rule sees: the loop, its file, other loops, the log. What is costly is made once, on first use.

    Attributes:
        loop: The loop. Where parts of the file are wrong, the loop of the parts that are right.
        file: The YAML file with its line numbers; None for a loop written in Python, or where it is no YAML.
        faults: What is wrong with the spec itself.
        others: Other loops of the same team, which must agree with this one.
        log: The release log's entries, oldest first; None where no store was given.
        store: The address of the loop's store; None where it was not said.
    """

    def __init__(
        self,
        loop: Loop | None,
        file: LoopFile | None,
        *,
        place: str,
        faults: Sequence[Fault] = (),
        others: Sequence[Loop] = (),
        log: Sequence[Entry] | None = None,
        store: str | None = None,
    ) -> None:
        self._loop, self.file, self.place, self.store = loop, file, place, store
        self.faults, self.others, self.log = tuple(faults), tuple(others), log

    @property
    def loop(self) -> Loop:
        """The loop; rules that are not `on="file"` run only where there is one."""
        assert self._loop is not None
        return self._loop

    @property
    def has_loop(self) -> bool:
        """Whether any loop could be read."""
        return self._loop is not None

    @property
    def content(self) -> dict[str, Any]:
        """The loop's plain content; where no loop could be read, the file's; else nothing."""
        if self._loop is not None:
            return self._loop.model_dump(mode="json", by_alias=True)
        return self.file.content if self.file else {}

    @property
    def hooks(self) -> list[tuple[str, str]]:
        """Each hook `module:function` with the field that names it."""
        tables = self.loop.data.tables.items()
        named = [(f"data.tables.{name}.python", table.python) for name, table in tables if table.python]
        named += [("train.hook", self.loop.train.hook)] if self.loop.train.hook else []
        return named + (
            [("train.flavour", self.loop.train.flavour)] if ":" in self.loop.train.flavour else []
        )

    @cached_property
    def code_files(self) -> list[str]:
        """The loop's SQL, Feast and hook files that exist, with what they import, relative to its folder."""
        from treadle.loop_code import code_of, hooks_of

        found: set[str] = set()
        for name in {name for names in hooks_of(self.loop).values() for name in names}:
            try:
                found.update(code_of(self.loop, [name]))
            except SpecError:
                continue  # TR021 says so
        return sorted(found)

    @cached_property
    def data(self) -> Probe:
        """The sources' schemas and the tables' columns, read from the head of each file."""
        from treadle.checks.probe import Probe

        return Probe(self.loop)

    def broken(self, field: str) -> bool:
        """Whether the spec is faulty at a field, above it or below it."""
        return any(
            f"{fault.field}.".startswith(f"{field}.") or f"{field}.".startswith(f"{fault.field}.")
            for fault in self.faults
        )

    def hit(self, field: str, evidence: str, fix: str = "", *, file: str | Path = "", line: int = 0) -> Hit:
        """A finding of the rule at a field of the loop, or at a line of another file."""
        return Hit(field, evidence, fix, str(file), line)

    def sql_hit(self, table: str, evidence: str, line: int, fix: str = "") -> Hit:
        """A finding of the rule at a line of a table's SQL file."""
        return self.hit(f"data.tables.{table}.sql", evidence, fix, file=self.data.path(table), line=line)

    def unchecked(self, field: str, why: str, fix: str = "") -> Hit:
        """Says that something could not be checked here: never pass over it in silence."""
        return Hit(field, why, fix, code=UNCHECKED)

    def finding(self, hit: Hit, by: Rule) -> Finding:
        """A hit with all that it left out."""
        file, line = self.file.place_of(hit.field) if self.file else (self.place, 0)
        if hit.file:
            file, line = hit.file, hit.line
        by = registry[hit.code] if hit.code else by
        words = [redact(text, self._secrets) for text in (hit.evidence, hit.fix or by.fix)]
        return Finding(by.code, hit.severity or by.severity, hit.field, file, line, *words)

    @cached_property
    def _secrets(self) -> set[str]:
        """What stands as a secret in the loop's file, or in a variable that it names: shown to nobody."""
        texts = [self.text, json.dumps(self.content, default=str)]
        texts += [os.environ.get(name, "") for name in re.findall(r"\$\{(\w+)", self.text)]
        return {value for text in texts for value in secret_values(text)}

    @cached_property
    def text(self) -> str:
        """The loop file's text; empty where there is none."""
        path = Path(self.place)
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
