"""The trigger that waits for a job on a pool, in the triggerer's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from treadle.errors import Transient, TreadleError

PATIENCE_S = 3600.0
_LONGEST_PAUSE_S = 60.0


async def wait_for_job(
    ref: str,
    poll_interval: float,
    deadline: float | None,
    say: Callable[..., Any],
    patience: float = PATIENCE_S,
) -> dict[str, Any]:
    """Looks at a job until it ended: `ref`, `state`, `timed_out` where the deadline came first, `away` or `problem`.

    The job's output goes to `say` as it comes. A look that fails says nothing about the job: the next comes after a
    pause that doubles, up to a minute. `away` says in words that none has succeeded for `patience` seconds; `problem`,
    what makes looking impossible here, such as a package that is not installed.
    """
    from treadle import jobs

    job, since, pause = jobs.JobRef.from_json(ref), 0, poll_interval
    seen = time.monotonic()
    while True:
        try:
            status = await asyncio.to_thread(jobs.poll, job)
            lines, since = await asyncio.to_thread(jobs.logs, job, since)
            seen, pause = time.monotonic(), poll_interval
        except Transient as error:
            if time.monotonic() - seen >= patience:
                words = f"{job} has been out of sight for {patience:g} s: {error}"
                return {"ref": ref, "state": "unknown", "timed_out": False, "away": words}
            pause = min(2 * pause, max(_LONGEST_PAUSE_S, poll_interval))
            say("%s can't be seen (%s); looking again in %g s", job, error, pause)
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
        await asyncio.sleep(pause)


class TreadleJobTrigger(BaseTrigger):
    """Waits until a job ended, and cancels it when a person fails, clears or marks the task.

    :param ref: The job, as JSON; it holds no secrets.
    :param poll_interval: Seconds between two looks.
    :param deadline: In seconds since 1970; None waits as long as the job takes.
    :param patience: How many seconds the job's place may be out of reach before the wait ends.
    """

    def __init__(
        self,
        ref: str,
        poll_interval: float = 5.0,
        deadline: float | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ref = ref
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, as Airflow stores them."""
        times = {"poll_interval": self.poll_interval, "deadline": self.deadline, "patience": self.patience}
        return "treadle_airflow.triggers.job.TreadleJobTrigger", {"ref": self.ref, **times}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, when the job ended, the deadline came or patience was at its end."""
        told = await wait_for_job(self.ref, self.poll_interval, self.deadline, self.log.info, self.patience)
        yield TriggerEvent(told)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancels the job."""
        from treadle import jobs

        await asyncio.to_thread(jobs.cancel, jobs.JobRef.from_json(self.ref))
