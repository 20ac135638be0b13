"""The trigger of who only watches a job: as the job's own, but ending the watch leaves the job alone."""

from __future__ import annotations

from typing import Any

from treadle_airflow.triggers.job import TreadleJobTrigger


class TreadleWatchTrigger(TreadleJobTrigger):
    """Waits until a job ended; the job belongs to someone else, and is never cancelled here.

    :param ref: The job, as JSON; it holds no secrets.
    :param poll_interval: Seconds between two looks.
    :param deadline: In seconds since 1970; None waits as long as the job takes.
    :param patience: How many seconds the job's place may be out of reach before the wait ends.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, as Airflow stores them."""
        return "treadle_airflow.triggers.watch.TreadleWatchTrigger", super().serialize()[1]

    async def on_kill(self) -> None:
        """Nothing: the watch ends, the job goes on."""
