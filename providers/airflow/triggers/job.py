"""The trigger that waits for a job on a pool, in the triggerer's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from treadle.errors import Transient, TreadleError

_MOST_FAILURES = 60


async def wait_for_job(
    ref: str, poll_interval: float, deadline: float | None, say: Callable[..., Any]
) -> dict[str, Any]:
    """Looks at a job until it ended: `ref`, `state`, `timed_out` where the deadline came first, or `problem`.

    The job's output goes to `say` as it comes. A look that fails says nothing about the job; sixty in a row are raised.
    `problem` is in words what makes looking impossible here, such as a package that is not installed.
    """
    from treadle import jobs

    job, since, failures = jobs.JobRef.from_json(ref), 0, 0
    while True:
        try:
            status = await asyncio.to_thread(jobs.poll, job)
            lines, since = await asyncio.to_thread(jobs.logs, job, since)
            failures = 0
        except Transient as error:
            failures += 1
            if failures >= _MOST_FAILURES:
                raise
            say("%s can't be seen (%s); looking again", job, error)
        except TreadleError as error:
            return {"ref": ref, "state": "unknown", "timed_out": False, "problem": str(error)}
        else:
            for line in lines:
                say("%s", line)
            if status.is_over and lines:
                continue  # there may be more
            if status.is_over:
                return {"ref": ref, "state": status.state, "timed_out": False}
        if deadline is not None and time.time() > deadline:
            return {"ref": ref, "state": "running", "timed_out": True}
        await asyncio.sleep(poll_interval)


class TreadleJobTrigger(BaseTrigger):
    """Waits until a job ended, and cancels it when a person fails, clears or marks the task.

    :param ref: The job, as JSON; it holds no secrets.
    :param poll_interval: Seconds between two looks.
    :param deadline: In seconds since 1970; None waits as long as the job takes.
    """

    def __init__(self, ref: str, poll_interval: float = 5.0, deadline: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ref = ref
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, as Airflow stores them."""
        kwargs = {"ref": self.ref, "poll_interval": self.poll_interval, "deadline": self.deadline}
        return "treadle_airflow.triggers.job.TreadleJobTrigger", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when the job ended or the deadline came."""
        told = await wait_for_job(self.ref, self.poll_interval, self.deadline, self.log.info)
        yield TriggerEvent(told)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancels the job."""
        from treadle import jobs

        await asyncio.to_thread(jobs.cancel, jobs.JobRef.from_json(self.ref))
