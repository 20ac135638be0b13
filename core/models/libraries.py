"""Versions of the libraries that a loop's training uses, found without importing them."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING

from treadle.loop_code import code_of, hooks_of

if TYPE_CHECKING:
    from treadle.loop import Loop


def libraries_of(loop: Loop) -> dict[str, str]:
    """Version by library: the flavour's own, and those of what the loop's training files import.

    Raises:
        MissingPackage: The flavour's library is not installed. SpecError: A file is missing or no Python.
    """
    from treadle.models import get_flavour

    found = {}
    if ":" not in loop.train.flavour:
        found[loop.train.flavour] = get_flavour(loop.train.flavour, loop).version()
    modules: set[str] = set()
    for file in code_of(loop, hooks_of(loop)["train"]):
        if file.endswith(".py"):
            modules |= _imported((loop.folder / file).read_bytes())
    own = {path.name.removesuffix(".py") for path in loop.folder.iterdir()}
    for module in sorted(modules - own - sys.stdlib_module_names - {"treadle"}):
        found |= _versions(module)
    return found


def _imported(source: bytes) -> set[str]:
    """The first parts of the names of the modules that a file imports, relative ones left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _versions(module: str) -> dict[str, str]:
    """Version by distribution; a module that is not installed is left out: importing it will tell."""
    try:
        return {module: version(module)}
    except PackageNotFoundError:
        return {name: version(name) for name in sorted(set(packages_distributions().get(module, ())))}
