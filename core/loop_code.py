"""The loop's own code: which files a hook needs, their hashes, and importing hooks without leaving traces.

A champion trained last month and today's edited loop may both hold a `hooks.py`; each is imported from its own folder,
and neither stays in `sys.modules`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from treadle.errors import HookError, SpecError
from treadle.identity import digest_of, sha256_of_file
from treadle.loop import Loop

_lock = threading.RLock()
_modules: dict[tuple[Path, str], dict[str, ModuleType]] = {}


def code_of(loop: Loop, names: Iterable[str]) -> dict[str, str]:
    """sha256 of each of the loop's files that some hooks need, by path within the loop's folder.

    Args:
        loop: The loop whose folder holds the files.
        names: Hooks as `module:function`, SQL files, Python files such as the Feast file; Python is followed through
            its imports of other files of the folder, found by parsing.

    Raises:
        SpecError: A file is missing, or is no Python.
    """
    found: dict[str, str] = {}
    waiting = [_file_of(loop, name) for name in names]
    while waiting:
        path = waiting.pop()
        relative = path.relative_to(loop.folder).as_posix()
        if relative not in found:
            found[relative] = sha256_of_file(path)
            if path.suffix == ".py":
                waiting.extend(_imported(loop.folder, path))
    return dict(sorted(found.items()))


def hooks_of(loop: Loop) -> dict[str, list[str]]:
    """The hooks and files that each making stage needs: prepare, featurize, train."""
    tables = [table.sql or table.python or "" for table in loop.data.tables.values()]
    train = [loop.train.hook] if loop.train.hook else []
    if ":" in loop.train.flavour:
        train.append(loop.train.flavour)
    return {
        "prepare": tables,
        "featurize": [loop.features.file] if loop.features.file else [],
        "train": train,
    }


def _file_of(loop: Loop, name: str) -> Path:
    """The file of `module:function`, of a `.sql` or of a `.py` path."""
    if ":" in name:
        module = name.partition(":")[0]
        path = _module_file(loop.folder, module.split("."))
        missing = f"{module.replace('.', '/')}.py"
    else:
        path, missing = loop.folder / name, name
        path = path.resolve() if path.is_file() else None
        if path is not None and not path.is_relative_to(loop.folder.resolve()):
            raise SpecError(
                [loop.fault("", f"{name} lies outside of the loop's folder {loop.folder}.", "Move it in.")]
            )
        path = loop.folder / path.relative_to(loop.folder.resolve()) if path else None
    if path is None:
        problem = f"the file {missing} is not in the loop's folder {loop.folder}."
        raise SpecError([loop.fault(_field_of(loop, name), problem, "Write it, or correct the name.")])
    return path


def _field_of(loop: Loop, name: str) -> str:
    """The field of the loop that names a file or hook."""
    for table, spec in loop.data.tables.items():
        if name in (spec.sql, spec.python):
            return f"data.tables.{table}.{'sql' if spec.sql else 'python'}"
    if name == loop.features.file:
        return "features.file"
    return "train.hook" if name == loop.train.hook else "train.flavour"


def _module_file(folder: Path, parts: list[str]) -> Path | None:
    base = folder.joinpath(*parts)
    for path in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imported(folder: Path, path: Path) -> Iterator[Path]:
    """The folder's files that a Python file imports, at any depth of its code, with their packages."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        from treadle.errors import Fault

        raise SpecError([Fault(str(path), error.lineno or 0, "", f"not Python: {error.msg}.")]) from None
    package = list(path.parent.relative_to(folder).parts)
    for node in ast.walk(tree):
        names: list[list[str]] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = above + (node.module.split(".") if node.module else [])
            names = [base, *([*base, alias.name] for alias in node.names)]
        for parts in names:
            for length in range(1, len(parts) + 1):
                file = _module_file(folder, parts[:length])
                if file is not None:
                    yield file


@contextmanager
def loop_imports(loop: Loop) -> Iterator[None]:
    """Within it, imports find the loop's folder first, and its modules are the loop's own, whatever else is loaded."""
    folder = loop.folder
    files = sorted(folder.glob("**/*.py"))
    names = {file.relative_to(folder).parts[0].removesuffix(".py") for file in files}
    with _lock:
        # An edited file is another module, also within one process.
        state = digest_of({file.relative_to(folder).as_posix(): sha256_of_file(file) for file in files})
        own = _modules.setdefault((folder, state), {})
        hidden = _take_modules(names)
        sys.modules.update(own)
        sys.path.insert(0, str(folder))
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.dont_write_bytecode = writes
            sys.path.remove(str(folder))
            own.update(_take_modules(names))
            sys.modules.update(hidden)


def _take_modules(names: set[str]) -> dict[str, ModuleType]:
    taken = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in taken}


def load_hook(loop: Loop, name: str, field: str) -> Callable[..., Any]:
    """The function, class or object that `module:attribute` names in the loop's folder.

    What it returns runs with the loop's folder importable; an error inside it becomes a HookError.

    Raises:
        SpecError: No such file or attribute. HookError: importing it raised; the text holds its own traceback.
    """
    module_name, _, attribute = name.partition(":")
    _file_of(loop, name)
    with loop_imports(loop):
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # a hook's exit must not look like a run that ended well
            raise HookError(
                f"importing {module_name} for {field}", str(loop.folder), own_traceback(error, loop)
            ) from error
    hook = getattr(module, attribute, None)
    if not callable(hook):
        problem = f"{module_name}.py has no function {attribute!r}."
        raise SpecError([loop.fault(field, problem, f"Define it there, or correct {name!r}.")])

    @functools.wraps(hook, updated=())
    def call(*args: Any, **options: Any) -> Any:
        with loop_imports(loop):
            try:
                return hook(*args, **options)
            except (Exception, SystemExit) as error:
                raise HookError(
                    f"the hook {name} for {field}", str(loop.folder), own_traceback(error, loop)
                ) from error

    return call


def own_traceback(error: BaseException, loop: Loop) -> str:
    """An error's traceback from the first frame that lies in the loop's folder; all of it when none does."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if Path(frame.filename).is_relative_to(loop.folder)), 0)
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])]
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
