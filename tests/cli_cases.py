"""What tests of the command line share: a command within this process, and the JSON that it prints."""

from __future__ import annotations

from typing import Any

from processes import one_json
from treadle.cli import app
from typer.testing import CliRunner, Result
from wheel import Wheel


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def told(wheel: Wheel, name: str, *args: object, code: int = 0) -> Any:
    """The JSON that a command prints for a wheel."""
    result = invoke(name, wheel.path, *(["--store", wheel.store] if name != "check" else []), *args, "--json")
    assert result.exit_code == code, result.output
    return one_json(result.stdout)
