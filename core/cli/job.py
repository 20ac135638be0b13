"""Commands about jobs: `treadle job` is what a backend runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from treadle.cli.base import command, say


@command("job")
def job(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The job in its store.", show_default=False)],
) -> int:
    """Run one attempt at a stage that was submitted to a pool.

    A backend calls it at the place where the stage runs. Its exit codes are its own: 0 done,
    75 ended early, 64 the user's error, 65 the data or a rule said no, 70 a failure.

    Example: treadle job s3://bucket/store/jobs/flights/KEY/1.job.json
    """
    from treadle.errors import TreadleError, UserError
    from treadle.hardware.backend import FAILED_EXIT, USER_ERROR_EXIT
    from treadle.jobs.execute import execute
    from treadle.reporting import telling

    try:
        with telling(say) as teller:
            return execute(uri, teller.say, teller.result)
    except TreadleError as error:
        print(f"treadle: {type(error).__name__}: {error}", file=sys.stderr)
        return USER_ERROR_EXIT if isinstance(error, UserError) else FAILED_EXIT
