"""What the tests of the commands about pools and jobs share."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from click.testing import Result
from treadle.cli import app
from treadle.hardware.backend import Handle, JobSpec
from treadle.hardware.local import LocalBackend
from treadle.hardware.pools import Pool
from typer.testing import CliRunner


def treadle_(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object) -> Any:
    done = treadle_(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def sleeping(pool: Pool) -> Handle:
    return LocalBackend().submit(JobSpec(f"sleep-{uuid4().hex[:8]}", ("sleep", "60")), pool)
