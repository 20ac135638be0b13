"""From a folder of loop files to DAGs, one import error for each file that can't be used."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import SpecError, TreadleError, UserError
from treadle.identity import digest_of, sha256_of
from treadle.loop import Loop
from treadle.loop_code import code_of, hooks_of

if TYPE_CHECKING:
    from airflow.sdk import DAG

_IMPORTS = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)|import[ \t]+([^\n]+))",
    re.MULTILINE,
)
_WORD = re.compile(r"[\w.]+")
_log = logging.getLogger(__name__)
_newest: tuple[Loop, str] | None = None  # the DAGs of one loop are built one after the other
NO_LOOPS = ("pools.yaml", "pools.yml")


def spec_digest_of(loop: Loop) -> str:
    """The hash of what a loop says and of every file that its stages read from its folder, in twelve digits.

    Raises:
        SpecError: The loop names a file that is not there.
    """
    global _newest
    if _newest is None or _newest[0] is not loop:
        spec = loop.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        names = [name for stage in hooks_of(loop).values() for name in stage]
        _newest = loop, digest_of({"spec": spec, "files": _hashes(loop, names)})[:12]
    return _newest[1]


def _hashes(loop: Loop, names: Sequence[str]) -> dict[str, str]:
    """sha256 of the files that the core's `code_of` follows, found by the words of their imports.

    Reading Python as Python would take a tenth of a parse; and no record's id rests on this.
    """
    roots = {f"{name.partition(':')[0].replace('.', '/')}.py" if ":" in name else name for name in names}
    there, found, waiting = set(os.listdir(loop.folder)), dict[str, str](), list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name.partition("/")[0] not in there:
            continue
        try:
            text = (loop.folder / name).read_bytes()
        except OSError:
            continue
        found[name] = sha256_of(text)
        if name.endswith(".py"):
            waiting += _imported(name, text.decode(errors="replace"))
    if not roots <= found.keys():
        return code_of(loop, names)  # says what is missing, or finds a package's __init__.py
    return dict(sorted(found.items()))


def _imported(name: str, text: str) -> Iterator[str]:
    """The files that a Python file's imports may mean, were they in the folder."""
    for dots, base, members, plain in _IMPORTS.findall(text):
        above = name.split("/")[: -len(dots)] if dots else []
        parts = [*above, *base.split(".")] if base else above
        told = [".".join(parts), *(".".join([*parts, word]) for word in _WORD.findall(members))]
        for module in [*told, *_WORD.findall(plain)]:
            steps = [step for step in module.split(".") if step]
            for length in range(1, len(steps) + 1):
                path = "/".join(steps[:length])
                yield from (f"{path}.py", f"{path}/__init__.py")


def loop_files(folder: Path) -> list[Path]:
    """The YAML files of a folder, by name; not those of its folders, and no pools."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and path.name not in NO_LOOPS
    )


def load_loops(*folders: str | os.PathLike[str], **kwargs: Any) -> dict[str, DAG]:
    """The DAGs of every loop in some folders, by variable name: for a DAG file's `globals().update(...)`.

    A loop that can't be used becomes an import error of its own, under its own path, and the others stay; Airflow's
    commands say it in their output. In a task's process only the DAGs of the task's loop are built.

    Args:
        folders: Where the loop files are.
        kwargs: What every LoopDag takes, such as `treadle_conn_id`.

    Raises:
        UserError: There is no such folder; or, in a task's process, no loop of the task's DAG any more.
    """
    from airflow.sdk import get_parsing_context
    from treadle_airflow.dags import broken_dag, dags_of

    wanted = (get_parsing_context().dag_id or "").partition("__")[0]
    found: dict[str, DAG] = {}
    taken: dict[str, Path] = {}
    errors: list[tuple[Path, TreadleError]] = []
    for path in [path for folder in folders for path in loop_files(_folder(folder))]:
        try:
            loop = Loop.load(path)
            if loop.name in taken:
                problem = f"the name {loop.name!r} is taken by {taken[loop.name]}."
                raise SpecError([loop.fault("name", problem, "Every loop has a name of its own.")])
            taken[loop.name] = path
            if wanted in ("", loop.name):
                found |= {dag.dag_id: dag for dag in dags_of(loop, **kwargs)}
        except TreadleError as error:
            errors.append((path, error))
    if wanted and wanted not in taken:
        _gone(wanted, folders, errors)
    if not wanted and _errors_are_noted():
        found |= {dag.dag_id: dag for dag in (broken_dag(path, error) for path, error in errors)}
    elif not wanted:
        for _, unusable in errors:
            _log.error("left out: %s", unusable)
    return found


def _errors_are_noted() -> bool:
    """Whether this is a DAG processor: it notes an error of each DAG; `airflow dags reserialize` stops at the first."""
    return "airflow.dag_processing.processor" in sys.modules


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder).absolute()
    if not path.is_dir():
        raise UserError(
            f"the folder of loops {path} does not exist: make it, or set TREADLE_LOOPS to where it is"
        )
    return path


def _gone(wanted: str, folders: Iterable[object], errors: Sequence[tuple[Path, TreadleError]]) -> None:
    """Says in a task's log why its DAG is there no more."""
    places = ", ".join(str(folder) for folder in folders)
    reasons = "".join(f"\n{error}" for _, error in errors)
    raise UserError(
        f"no loop in {places} is named {wanted!r}: its file was deleted, renamed or broken while its DAG was running."
        f" Nothing was done; put it back, then clear the task.{reasons}"
    )
