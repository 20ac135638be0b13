"""Nothing heavy until needed: what importing treadle loads, and what the files of core/ import first."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import treadle

CORE = Path(treadle.__file__).parent
HEAVY = {
    *(
        "pandas",
        "numpy",
        "mlflow",
        "feast",
        "great_expectations",
        "evidently",
        "torch",
        "xgboost",
        "pyarrow",
        "duckdb",
        "ray",
        "optuna",
        "kubernetes",
        "boto3",
        "onnx",
        "onnxruntime",
    ),
    *("sklearn", "scipy", "ibis", "sqlglot", "ray", "boto3", "airflow", "dagster"),
}
NUMPY_AT_HOME = {"models", "gate", "monitoring", "serving", "testing"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that are loaded after a statement in a fresh process."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import treadle",
        "import treadle.loop",
        "import treadle.check",
        "import treadle.testing",
        "from treadle.check import rules; rules()",
        "from treadle.loop import Loop; Loop.__name__",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_the_check_of_a_loop_that_is_no_loop_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert loaded_by(f"from treadle.check import check; check({str(tmp_path / 'x.yaml')!r})") & HEAVY == set()


def imports_at_the_top(tree: ast.Module) -> Iterator[str]:
    """The top-level names that a module imports when it is imported, whatever `if` or `try` they stand in."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize(
    "path", sorted(CORE.rglob("*.py")), ids=lambda path: path.relative_to(CORE).as_posix()
)
def test_no_file_of_core_imports_anything_heavy_at_its_top(path: Path) -> None:
    allowed = {"numpy"} if path.relative_to(CORE).parts[0] in NUMPY_AT_HOME else set()
    if path.parent.name == "torch" and path.name != "flavour.py":
        allowed = allowed | {"torch"}  # only the flavour's fit imports these
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    assert set(imports_at_the_top(tree)) & (HEAVY - allowed) == set()


def test_a_planted_import_is_seen() -> None:
    lines = ["import os", "try:", "    from pandas import DataFrame", "except ImportError:", "    pass"]
    text = "\n".join([*lines, "class A:", "    import torch.nn", "def f():", "    import duckdb"])
    assert set(imports_at_the_top(ast.parse(text))) & HEAVY == {"pandas", "torch"}
