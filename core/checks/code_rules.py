"""Rules on the loop's own files: they are there, they can be parsed, and the hooks in them imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from treadle.checks.probe import Problem
from treadle.checks.rule import UNCHECKED, CheckContext, Hit, rule
from treadle.errors import HookError, SpecError


@rule(
    "TR021",
    severity="error",
    title="A file that the loop needs is missing, outside of its folder, or no Python",
    fix="Write the file, or correct its name in the loop.",
)
def missing_file(context: CheckContext) -> Iterator[Hit]:
    """SQL, Feast and hook files, with all files of the folder that they import."""
    from treadle.loop_code import code_of, hooks_of

    seen = set()
    for name in sorted({name for names in hooks_of(context.loop).values() for name in names}):
        try:
            code_of(context.loop, [name])
        except SpecError as error:
            for fault in error.faults:
                if fault not in seen:
                    seen.add(fault)
                    yield Hit(fault.field, fault.problem, fault.fix, fault.file, fault.line)


@rule(
    "TR022",
    severity="error",
    title="A hook can't be imported",
    fix="Correct what its traceback names; a hook is `module:function` in the loop's folder.",
)
def broken_hook(context: CheckContext) -> Iterator[Hit]:
    """Imports each hook as a run would."""
    from treadle.loop_code import load_hook

    for field, hook in context.hooks:
        if ":" not in hook or not all(hook.partition(":")[::2]):
            yield context.hit(field, f"{hook!r} names no function.", "Write it as module:function.")
            continue
        try:
            load_hook(context.loop, hook, field)
        except SpecError as error:
            faults = [fault for fault in error.faults if not fault.problem.startswith("the file ")]
            yield from (Hit(field, f.problem, f.fix, f.file, f.line) for f in faults if f.field == field)
        except HookError as error:
            yield from hook_failed(context, field, error)


def hook_failed(context: CheckContext, field: str, error: HookError) -> Iterator[Hit]:
    """A hit at the last line of the loop's own code in a hook's traceback, with the traceback's end."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', error.details)
    own = [(name, int(line)) for name, line in frames if Path(name).is_relative_to(context.loop.folder)]
    tail = "\n".join(error.details.rstrip().splitlines()[-6:])
    file, line = own[-1] if own else ("", 0)
    yield context.hit(field, f"{error.what} failed:\n{tail}", file=file, line=line)


@rule(
    "TR031",
    severity="error",
    title="A SQL file can't be parsed",
    fix="Correct the SQL at this line; it is read as DuckDB reads it, one query a file.",
)
def bad_sql(context: CheckContext) -> Iterator[Hit]:
    """Names line and token."""
    if context.data.missing:
        yield context.unchecked(
            "data.tables", f"SQL and sources need {context.data.missing}.", 'pip install "treadle[stages]"'
        )
        return
    for name, query in context.data.queries.items():
        if isinstance(query, Problem):
            words = f"{query.words}{f' (column {query.column})' if query.column else ''}."
            if query.sure:
                yield context.sql_hit(name, words, query.line)
            else:
                fix = "Run `treadle run --to prepare`: what depends on this query is not checked here."
                yield replace(context.sql_hit(name, words, query.line, fix), code=UNCHECKED)


@rule(
    "TR032",
    severity="error",
    title="A SQL file reads something that is no source of the loop",
    fix="Name it under data.sources: only sources enter the snapshot's identity.",
)
def unknown_source(context: CheckContext) -> Iterator[Hit]:
    """Files read by the query itself count too: a change in them would go unseen."""
    known = sorted(context.loop.data.sources)
    for name, query in context.data.parsed.items():
        for read, line in query.reads:
            if read.lower() not in {source.lower() for source in known} and not context.broken(
                f"data.sources.{read}"
            ):
                fix = f"Name it under data.sources; known are: {', '.join(known)}."
                yield context.sql_hit(name, f"it reads {read!r}, which is no source.", line, fix)
        for called, line in query.files:
            yield context.sql_hit(name, f"it reads a file by itself ({called}).", line)
