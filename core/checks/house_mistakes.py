"""The usual mistakes of housekeeping: no owner, code without a history, definitions that differ."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.identity import digest_of, sha256_of_file
from treadle.loop import Loop

MOST_ATTEMPTS = 10


@rule(
    "TR141", severity="warning", title="No owner", fix="Set owner to a team or a person.", sections=("owner",)
)
def no_owner(context: CheckContext) -> Iterator[Hit]:
    """An alert must reach somebody."""
    if not context.loop.owner.strip():
        yield context.hit("owner", "nobody is named whom an alert concerns.")


@rule(
    "TR142",
    severity="warning",
    title="No description",
    fix="Say in one sentence what is predicted, when, and for what.",
    sections=("description",),
)
def no_description(context: CheckContext) -> Iterator[Hit]:
    """It becomes the first line of model cards and reports."""
    if not context.loop.description.strip():
        yield context.hit("description", "it is not said what the model predicts, and when.")


@rule(
    "TR143",
    severity="warning",
    title="Uncommitted code",
    fix="Commit the loop's files, so that a model's code can be found again.",
)
def uncommitted(context: CheckContext) -> Iterator[Hit]:
    """Asks git about the loop file and every file that its hooks need; without git it is an info."""
    if context.file is None:
        return
    folder = context.loop.folder
    names = [context.file.path.name, *context.code_files]
    command = [
        "git",
        "-C",
        str(folder),
        "status",
        "--porcelain",
        "--ignored",
        "--untracked-files=all",
        "--",
        *names,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Hit("", f"git can't be asked: {error}.", severity="info")
        return
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no answer"])[0]
        yield Hit("", f"the loop is not under git: {said}.", "Keep loops in a repository.", severity="info")
        return
    if changed := [line[3:] for line in done.stdout.splitlines()]:
        yield context.hit("", f"not committed: {', '.join(sorted(changed))}.")


@rule(
    "TR144",
    severity="warning",
    title="Models that execute code when they are loaded",
    fix="Use a flavour with a format of its own, and take `trust: pickle` out.",
    sections=("train",),
)
def trusts_pickle(context: CheckContext) -> Iterator[Hit]:
    """Whoever can write to the store could run code where models are loaded."""
    if context.loop.train.trust == "pickle":
        yield context.hit("train.trust", "the model is a pickle: loading it executes code from the store.")


@rule(
    "TR145",
    severity="info",
    title="No predecessor to roll back to",
    fix="Until a second model is promoted, plan what serves when this one fails.",
)
def no_predecessor(context: CheckContext) -> Iterator[Hit]:
    """From the release log, where one is given."""
    from treadle.registry.log import champion_in

    serving = champion_in(context.log) if context.log else None
    if serving is not None and serving.champion is None:
        yield context.hit("", "the log holds one promotion only: a rollback has nothing before it.")


@rule(
    "TR146",
    severity="warning",
    title="The same feature is defined differently in two loops",
    fix="Share one file, or give the two different names.",
    sections=("data.tables", "features"),
)
def two_definitions(context: CheckContext) -> Iterator[Hit]:
    """View tables of one name from different SQL, and views of one name; each told once, with all such loops."""
    mine = _definitions(context.loop)
    differing: dict[tuple[str, str], list[str]] = {}
    for other in context.others:
        if other.name == context.loop.name:
            continue  # TR147 says so
        for shared, (_, path, digest) in _definitions(other).items():
            if shared in mine and mine[shared][2] != digest:
                differing.setdefault(shared, []).append(f"{other.name!r} ({path})")
    for (kind, name), loops in sorted(differing.items()):
        words = f"the {kind} {name!r} is defined otherwise in the loop {', '.join(loops)}."
        yield context.hit(mine[kind, name][0], words)


def _definitions(loop: Loop) -> dict[tuple[str, str], tuple[str, Path, str]]:
    """Field, file and digest of each definition that another loop may share."""
    found: dict[tuple[str, str], tuple[str, Path, str]] = {}
    for name, table in loop.data.tables.items():
        path = loop.folder / (table.sql or f"{(table.python or '').partition(':')[0].replace('.', '/')}.py")
        if not table.label and path.is_file():
            field = f"data.tables.{name}.{'sql' if table.sql else 'python'}"
            found["table", name] = (field, path, sha256_of_file(path) + (table.python or ""))
    feast = loop.folder / (loop.features.file or "")
    if loop.features.file and feast.is_file():
        for position, view in enumerate(loop.features.use):
            found["view", view] = (f"features.use.{position}", feast, _view_digest(feast, view))
    return found


def _view_digest(path: Path, view: str) -> str:
    """Hash of a view's statement in a Feast file and of those that it builds on; else of the whole file."""
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return sha256_of_file(path)
    needed = [each for each in statements if _makes_view(each, view)]
    for each in needed:  # grows on the way
        used = {node.id for node in ast.walk(each) if isinstance(node, ast.Name)}
        needed += [other for other in statements if other not in needed and used & set(_bound_by(other))]
    if not needed:
        return sha256_of_file(path)
    return digest_of(sorted(ast.dump(each) for each in needed))


def _makes_view(statement: ast.stmt, view: str) -> bool:
    """Whether a statement calls `...View(name="view")`, or defines a function of this name as a view."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name == view and bool(statement.decorator_list)
    for call in ast.walk(statement):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("View"):
            given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "name")]
            if any(isinstance(each, ast.Constant) and each.value == view for each in given):
                return True
    return False


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module gives a value."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@rule(
    "TR147",
    severity="error",
    title="Two loops of one name",
    fix="Give each loop a name of its own: records, log and registered model go by it.",
)
def same_name(context: CheckContext) -> Iterator[Hit]:
    """They would write into each other's release log."""
    for other in context.others:
        if other.name == context.loop.name and other is not context.loop:
            where = other.file.path if other.file else "another loop"
            yield context.hit("name", f"{where} is called {other.name!r} as well.")


@rule(
    "TR148",
    severity="warning",
    title="An absolute path",
    fix="Write the path from the loop's folder, or with a ${VARIABLE}.",
    sections=("data.sources",),
)
def absolute_path(context: CheckContext) -> Iterator[Hit]:
    """It holds on one machine only."""
    for name, source in context.loop.data.sources.items():
        if re.match(r"^(file://)?(/|~|[A-Za-z]:[\\/])", source.uri):
            yield context.hit(f"data.sources.{name}", "the path is absolute: it holds on this machine only.")


@rule(
    "TR149",
    severity="warning",
    title="A source that no table reads",
    fix="Take it out, or read it: it is hashed at each run.",
    sections=("data",),
)
def unused_source(context: CheckContext) -> Iterator[Hit]:
    """Only where all tables are SQL that parses: a Python table is given every source."""
    tables = context.loop.data.tables
    if set(context.data.parsed) == set(tables):
        read = {name.lower() for query in context.data.parsed.values() for name, _ in query.reads}
        for name in context.loop.data.sources:
            if name.lower() not in read:
                yield context.hit(f"data.sources.{name}", f"no table reads {name!r}.")


@rule(
    "TR150",
    severity="warning",
    title="A table that nothing uses",
    fix="Take it out, or use a view of it: it is made at each run.",
    sections=("data.tables", "features"),
)
def unused_table(context: CheckContext) -> Iterator[Hit]:
    """A table without a label serves only the views of the Feast file."""
    loop = context.loop
    feast = loop.folder / (loop.features.file or "")
    text = (
        feast.read_text(encoding="utf-8", errors="replace") if loop.features.file and feast.is_file() else ""
    )
    for name, table in loop.data.tables.items():
        named = re.search(rf"[\"']{re.escape(name)}[\"']", text)
        if not table.label and not (named and loop.features.use):
            yield context.hit(f"data.tables.{name}", f"no view is made of {name!r}.")


@rule(
    "TR151",
    severity="warning",
    title="More tries than can help",
    fix="Set retry.attempts to 3 or so: what fails ten times fails for a reason.",
    sections=("retry",),
)
def many_attempts(context: CheckContext) -> Iterator[Hit]:
    """The pause doubles each time."""
    retry = context.loop.retry
    if retry.attempts > MOST_ATTEMPTS:
        hours = retry.wait.total_seconds() * (2 ** (retry.attempts - 1) - 1) / 3600
        yield context.hit("retry.attempts", f"{retry.attempts} tries would wait {hours:,.1f} hours in all.")


@rule(
    "TR152",
    severity="info",
    title="Fields are overridden by --set",
    fix="Write them into the file once the trial is over.",
)
def overridden(context: CheckContext) -> Iterator[Hit]:
    """A run with overrides waits for a person on the production track."""
    for override in context.loop.overrides:
        yield context.hit(override.partition("=")[0].strip(), "set on the command line, not in the file.")


@rule(
    "TR153",
    severity="warning",
    title="A source over an unprotected connection",
    fix="Use https, or an object storage with credentials.",
    sections=("data.sources", "tracking"),
)
def plain_http(context: CheckContext) -> Iterator[Hit]:
    """Whoever sits between could change the data or read the tracker's."""
    named = [(f"data.sources.{name}", source.uri) for name, source in context.loop.data.sources.items()]
    named.append(("tracking.uri", context.loop.tracking.uri or ""))
    for field, uri in named:
        if re.match(r"^(http|ftp)://(?!localhost|127\.|\[::1\])", os.path.expandvars(uri)):
            yield context.hit(field, "the connection is neither encrypted nor authenticated.")
