"""Rules on the text of the loop file: they run even where no loop could be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.checks.secrets import secrets_in

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}")


def walk(content: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field of nested content: its dotted name, its key and its value."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        dotted = f"{prefix}.{key}" if prefix else str(key)
        yield dotted, key, value
        if isinstance(value, (dict, list, tuple)):
            yield from walk(value, dotted)


@rule(
    "TR011",
    severity="error",
    title="A variable that the loop reads is not set",
    fix="Export it, or give it a default: ${NAME:-default}.",
    on="file",
)
def unset_variable(context: CheckContext) -> Iterator[Hit]:
    """Only where variables are expanded: sources, the tracker's address, the online store."""
    for field, _, value in walk(context.content):
        if isinstance(value, str) and field.startswith(("data.sources.", "tracking.uri", "features.online.")):
            for name, default in _VARIABLE.findall(value):
                if not default and not os.environ.get(name):
                    fix = f"Set it: export {name}=..., or write ${{{name}:-default}}."
                    field = field.removesuffix(".uri") if field.startswith("data.") else field
                    yield context.hit(field, f"the variable {name} is not set.", fix)


@rule(
    "TR012",
    severity="error",
    title="A secret stands in a file",
    fix="Take it out, change it where it is used, and read it from the environment: ${NAME}.",
    on="file",
)
def secret_in_file(context: CheckContext) -> Iterator[Hit]:
    """In the loop file, and in the SQL and Python files of the loop. The value is never shown."""
    files = [Path(context.place)]
    if context.has_loop:
        files += [context.loop.folder / name for name in context.code_files]
    for path in files:
        if path.is_file():
            for line, kind in secrets_in(path.read_text(encoding="utf-8", errors="replace")):
                yield context.hit("", f"{kind} seems to stand here.", file=path, line=line)


@rule(
    "TR013",
    severity="error",
    title="A key is written as for --set",
    fix="Write it as nested sections: `train:` and below it `rounds: 50`.",
    on="file",
)
def dotted_key(context: CheckContext) -> Iterator[Hit]:
    """`train.rounds: 50` or `train.rounds=50` at the top of a file, left over from the command line."""
    for key in context.file.content if context.file else ():
        if re.match(r"^[a-z_]+\.[\w.]+|^[\w.]+=", str(key)):
            line = context.file.lines.get(str(key), 1) if context.file else 0
            words = f"the key {str(key).partition('=')[0]!r}."
            yield context.hit("", words, file=context.place, line=line)
