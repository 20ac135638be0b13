"""What a job tells the orchestrator that started it, while it runs.

A Dagster run leaves two variables in the job's environment (Dagster Pipes). Then each line of progress is a message
among the lines that the job prints, which the run takes from the backend's log: so it works wherever there are logs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from treadle.records import Json

PIPES_VARIABLE = "DAGSTER_PIPES_CONTEXT"


@dataclass(frozen=True, slots=True)
class Teller:
    """Where a job's words go: `say` takes a line of progress, `result` what the job came to, as plain JSON."""

    say: Callable[[str], None]
    result: Callable[[Json], None]


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[Teller]:
    """A teller for this process: that of the Dagster run that started it, else `say` alone."""
    if PIPES_VARIABLE not in os.environ:
        yield Teller(say, lambda result: None)
        return
    try:
        from dagster_pipes import open_dagster_pipes
    except ImportError:
        say("dagster-pipes is not installed here, so the Dagster run sees plain lines only")
        yield Teller(say, lambda result: None)
        return
    with open_dagster_pipes() as pipes:
        yield Teller(pipes.log.info, pipes.report_custom_message)
