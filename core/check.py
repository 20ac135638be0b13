"""`treadle check`: every fault and every usual mistake of a loop at once, by file and line.

    check(loop) ── spec faults (TR001), then every rule on all that could be read ──► findings ──► ignores

A rule is a function that takes a `CheckContext` and yields hits; a decorator registers it:

    @rule("ACME001", severity="warning", title="The owner is no team", fix="Name a team.")
    def owner_is_a_team(context):
        if not context.loop.owner.startswith("team-"):
            yield context.hit("owner", f"the owner is {context.loop.owner!r}.")
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.checks.rule import (
    BAD_IGNORE,
    IDLE_IGNORE,
    RULE_FAILED,
    SPEC_FAULT,
    UNCHECKED,
    CheckContext,
    Finding,
    Hit,
    Rule,
    Severity,
    register,
    registry,
    rule,
    rules,
)
from treadle.errors import Fault, HookError, SpecError
from treadle.loop import Loop
from treadle.loop_file import LoopFile, apply_overrides, read_loop_file, replaced_by
from treadle.words import counted

if TYPE_CHECKING:
    from treadle.registry.log import Entry

__all__ = [
    "CheckContext",
    "Finding",
    "Hit",
    "Rule",
    "Severity",
    "check",
    "has_errors",
    "register",
    "render",
    "rule",
    "rules",
    "rules_table",
    "to_json",
]

# How many codes a finding names; a file that is no loop has nearly all of them wait.
_NAMED = 5


def check(
    loop: Loop | str | os.PathLike[str],
    *,
    others: Sequence[Loop | str | os.PathLike[str]] | None = None,
    log: Sequence[Entry] | None = None,
    only: Sequence[str] | None = None,
    store: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Finding]:
    """Everything wrong or doubtful about a loop, by file and line; ignored findings carry the loop's reason.

    Args:
        loop: A loop, or the path of its file.
        others: Loops that share features with this one; left out, the other loop files of the same folder.
        log: `ReleaseLog.entries()` of the track, for the rules that look at what was released.
        only: The codes of the rules to run; left out, all. Faults of the spec itself are always found.
        store: The address of the loop's store, for rules that ask who can reach it; left out, that of `TREADLE_STORE`.
        overrides: `section.field=value` each, as `--set` takes them, for a loop given by its path.

    Raises:
        SpecError: An override that is none.
    """
    known = [each for each in rules() if only is None or each.code in only]
    store = store or os.environ.get("TREADLE_STORE")
    context, unread = _context(loop, others, log, store, overrides)
    findings = [context.finding(hit, registry[UNCHECKED]) for hit in unread]
    for fault in context.faults:
        hit = Hit(fault.field, fault.problem, fault.fix, fault.file, fault.line)
        findings.append(context.finding(hit, registry[SPEC_FAULT]))
    waiting = []
    for each in known:
        if each.on == "loop" and (not context.has_loop or any(context.broken(s) for s in each.sections)):
            waiting.append(each.code)
            continue
        found = [context.finding(hit, each) for hit in _run(each, context)]
        findings += [f for f in found if not (f.field and _echo(context, f))]
    if waiting:
        named = ", ".join(waiting[:_NAMED])
        more = f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
        waits = "rule waits" if len(waiting) == 1 else "rules wait"
        why = f"{len(waiting)} {waits} until the faults of the spec are corrected: {named}{more}."
        hit = context.unchecked(
            "", why, "Correct the faults and check again; docs/rules.md lists every rule."
        )
        findings.append(context.finding(hit, registry[UNCHECKED]))
    ran = {each.code for each in known} - set(waiting)
    done = _with_ignores(findings, context, ran)
    return sorted(done, key=lambda f: (f.file, f.line, f.code, f.field, f.evidence))


def _echo(context: CheckContext, finding: Finding) -> bool:
    """Whether a finding only repeats, or follows from, a fault of the spec at the same place."""
    return finding.file in (context.place, "--set") and context.broken(finding.field)


def _run(each: Rule, context: CheckContext) -> Iterator[Hit]:
    """A rule's hits. What it raises is a finding too: one broken rule or hook hides no other finding."""
    try:
        yield from each.run(context)
    except SpecError as error:
        for fault in error.faults:
            yield Hit(fault.field, fault.problem, fault.fix, fault.file, fault.line)
    except HookError as error:
        yield Hit("", f"{error.what} failed: {_last_lines(error.details)}")
    except Exception as error:
        import traceback

        details = "".join(traceback.format_exception(error))
        yield Hit("", f"the rule {each.code} failed itself: {_last_lines(details)}", code=RULE_FAILED)


def _last_lines(text: str, count: int = 6) -> str:
    return "\n".join(text.rstrip().splitlines()[-count:])


def _context(
    loop: Loop | str | os.PathLike[str],
    others: Sequence[Any] | None,
    log: Sequence[Entry] | None,
    store: str | None,
    overrides: Sequence[str],
) -> tuple[CheckContext, list[Hit]]:
    """The context for a loop or a path, and what could not be read of the other loops."""
    faults: tuple[Fault, ...] = ()
    found: Loop | None = None
    if isinstance(loop, Loop):
        found, file = loop, loop.file
        place = str(file.path) if file else f"loop {loop.name!r}"
    else:
        place, file = str(Path(loop).absolute()), None
        try:
            file = read_loop_file(Path(loop))
        except SpecError as error:
            faults = error.faults
    if file is not None and found is None:
        read = file
        # What can't be put in at all is no fault of the loop: it is raised.
        file = replace(read, content=apply_overrides(read, overrides), replaced=replaced_by(overrides))
        try:
            found = Loop.of_file(read, overrides=overrides)
        except SpecError as error:
            faults = error.faults
            found = _salvage(file, faults)
    neighbours, unread = _neighbours(others, file)
    context = CheckContext(found, file, place=place, faults=faults, others=neighbours, log=log, store=store)
    return context, unread


def _salvage(file: LoopFile, faults: Sequence[Fault]) -> Loop | None:
    """The loop of the parts that are right: faulty fields are left out until the rest is one, if ever."""
    from copy import deepcopy

    content = deepcopy(file.content)
    for _ in range(20):
        if not all([_drop(content, fault.field) for fault in faults]):
            return None
        try:
            return Loop.of_file(replace(file, content=content))
        except SpecError as error:
            faults = error.faults
    return None


def _drop(content: Any, dotted: str) -> bool:
    """Takes a field out, or, where it is missing, the section that lacks it; False where nothing is left."""
    head, _, rest = dotted.partition(".")
    if isinstance(content, list):
        if head.isdigit() and int(head) < len(content) and isinstance(content[int(head)], dict) and rest:
            return _drop(content[int(head)], rest)
        content.clear()
        return True
    if not isinstance(content, dict) or not head:
        return False
    key = next((k for k in content if str(k) in (head, dotted)), None)
    if key is None:
        return False
    if str(key) == head and rest and _drop(content[key], rest):
        return True
    del content[key]
    return True


def _neighbours(others: Sequence[Any] | None, file: LoopFile | None) -> tuple[list[Loop], list[Hit]]:
    given = others is not None
    if others is None:
        others = sorted([*file.path.parent.glob("*.yaml"), *file.path.parent.glob("*.yml")]) if file else []
    loops, unread = [], []
    for other in others:
        if not isinstance(other, Loop):
            if file is not None and Path(other).absolute() == file.path:
                continue
            try:
                other = Loop.load(other)
            except SpecError as error:
                if given:
                    unread.append(
                        Hit("", f"{other} could not be compared: {error.faults[0]}", code=UNCHECKED)
                    )
                continue
        loops.append(other)
    return loops, unread


def _with_ignores(findings: Sequence[Finding], context: CheckContext, ran: set[str]) -> Iterator[Finding]:
    ignore = dict(context.loop.ignore) if context.has_loop else {}
    idle = ran - {f.code for f in findings}
    for code in sorted(ignore):
        problem, by, fix = _wrong_ignore(code, ignore[code], idle)
        if problem:
            yield context.finding(Hit(f"ignore.{code}", problem, fix, code=by), registry[by])
    for found in findings:
        reason = ignore.get(found.code, "").strip()
        ignored = bool(reason) and registry[found.code].ignorable
        yield replace(found, ignored_because=reason) if ignored else found


def _wrong_ignore(code: str, reason: str, idle: set[str]) -> tuple[str, str, str]:
    from difflib import get_close_matches

    if code not in registry:
        near = get_close_matches(code, registry, n=1)
        hint = f"Did you mean {near[0]}?" if near else "See docs/rules.md for the codes."
        return f"there is no rule {code}.", BAD_IGNORE, hint
    if not registry[code].ignorable:
        return (
            f"{code} is an error and can't be ignored.",
            BAD_IGNORE,
            "Take this line out and correct the error.",
        )
    if not reason.strip():
        return f"{code} is ignored without a reason.", BAD_IGNORE, f"Write why: `{code}: the reason`."
    if code in idle:
        return f"{code} is ignored, but it finds nothing here.", IDLE_IGNORE, "Take this line out."
    return "", "", ""


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding is an error that stands."""
    return any(f.severity == "error" and f.ignored_because is None for f in findings)


def render(findings: Sequence[Finding]) -> str:
    """Plain text: a paragraph a file, `file:line CODE severity field: evidence` and its fix, then the sum."""
    here = Path.cwd()
    lines: list[str] = []
    last = None
    for found in findings:
        if last is not None and found.file != last:
            lines.append("")
        last = found.file
        path = Path(found.file)
        shown = (
            str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else found.file
        )
        place = f"{shown}:{found.line}" if found.line else shown
        field = f"{found.field}: " if found.field else ""
        state = found.severity if found.ignored_because is None else f"ignored {found.severity}"
        lines.append(f"{place} {found.code} {state} {field}{found.evidence}".replace("\n", "\n    | "))
        because = found.ignored_because
        lines.append(f"    ignored because: {because}" if because is not None else f"    fix: {found.fix}")
    standing = [f.severity for f in findings if f.ignored_because is None]
    words: tuple[tuple[Severity, str], ...] = (("error", "errors"), ("warning", "warnings"), ("info", "info"))
    sums = [counted(standing.count(severity), severity, plural) for severity, plural in words]
    return "\n".join(
        [*lines, *([""] if lines else []), f"{', '.join(sums)}, {len(findings) - len(standing)} ignored"]
    )


def to_json(findings: Sequence[Finding]) -> list[Mapping[str, Any]]:
    """The findings as plain JSON."""
    return [asdict(found) for found in findings]


def rules_table() -> str:
    """The table of docs/rules.md: one row a rule."""
    rows = [
        f"| {r.code} | {r.severity} | {'yes' if r.ignorable else 'no'} | {r.title} | {r.fix} |"
        for r in rules()
    ]
    return "\n".join(
        [
            "| code | severity | can be ignored | what it finds | fix |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )
