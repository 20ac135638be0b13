"""A stage on a pool: submit, note the job, defer; settle when it ended; cancel when the task is killed.

    execute ─► submit ─► note the job in the task's state ─► defer ═► trigger polls ═► execute_complete ─► settle
       ▲                                                                                    │
       └─ after a worker's death: the noted job is still there ◄── the next attempt of a preempted job

The job's own name makes a second submission harmless while it runs, and the task's name does so after that; the note
spares even the attempt, says what to cancel, and stays when the job has ended: a try whose success Airflow never heard
of is followed by one that finds it.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException
from treadle.errors import Transient, TreadleError
from treadle_airflow.asking import asked_of
from treadle_airflow.operators.base import TreadleOperator
from treadle_airflow.triggers.job import TreadleJobTrigger, wait_for_job

if TYPE_CHECKING:
    from airflow.sdk import Context
    from treadle.hardware.pools import Pool
    from treadle.jobs import JobRef
    from treadle.records import Json, Record
    from treadle.session import Session

NOTE = "treadle_job"


class OnPools(TreadleOperator):
    """What a stage's operator does about pools. See TreadleStageOperator for its parameters."""

    stage: str
    inputs: dict[str, str]
    treadle_pool: str | None
    deferrable: bool
    poll_interval: float
    job_timeout: timedelta | None
    job_patience: timedelta
    _running: JobRef | None = None

    def pool_of(self, session: Session, context: Context) -> Pool | None:
        """The pool that this run's stage goes to, or None for the task's own process."""
        asked = asked_of(context).pools.get(self.stage) or self.treadle_pool
        if not asked and self.stage not in session.loop.pools:
            return None
        from treadle import jobs

        return jobs.pool_of(session.loop, self.stage, override=asked)

    def on_pool(self, context: Context, session: Session, pool: Pool) -> Record:
        """The record that a job on a pool makes. Submits it, or finds that of an earlier try, and waits.

        Raises:
            TaskDeferred: The wait goes on in the triggerer; `execute_complete` comes after.
        """
        from treadle import jobs

        found = self._earlier(context, session)
        if found is None:
            ref = jobs.submit(session, self.stage, pool, self.inputs, asked_by=_asker(context))
            longest = self.job_timeout.total_seconds() if self.job_timeout else None
            found = ref, time.time() + longest if longest else None
            self.log.info("%s", ref)
        return self._wait(context, session, *found)

    def _earlier(self, context: Context, session: Session) -> tuple[JobRef, float | None] | None:
        """The job that an earlier try of this task left, with its deadline, unless it was cancelled or failed.

        One that was settled counts for this life of the task only: whoever clears the task asks anew.
        """
        from treadle import jobs

        noted = context["task_state_store"].get(NOTE)
        if not isinstance(noted, dict) or noted.get("settled") not in (None, _life(context)):
            return None
        ref = jobs.JobRef.from_json(str(noted["ref"]))
        try:
            settled = self._look(session, ref)
        except TreadleError as error:
            if isinstance(error, Transient) and error is not self.tried:
                raise  # how it ended is not known: another must not be submitted
            self.tried = None
            self.log.info("%s ended in an earlier try (%s); it is submitted again", ref, type(error).__name__)
            return None
        self.log.info("goes on with %s of an earlier try", ref)
        return settled if isinstance(settled, jobs.JobRef) else ref, _seconds(noted["deadline"])

    def _wait(self, context: Context, session: Session, ref: JobRef, deadline: float | None) -> Record:
        from treadle import jobs

        patience = self.job_patience.total_seconds()
        while True:
            # Noted before anything can fail: whoever comes next finds the job, whatever becomes of this process.
            context["task_state_store"].set(NOTE, {"ref": ref.to_json(), "deadline": deadline})
            self._running = ref
            if self.deferrable:
                self.defer(
                    trigger=TreadleJobTrigger(ref.to_json(), self.poll_interval, deadline, patience),
                    method_name="execute_complete",
                )
            event = asyncio.run(
                wait_for_job(ref.to_json(), self.poll_interval, deadline, self.log.info, patience)
            )
            settled = self._settled(session, ref, event)
            if not isinstance(settled, jobs.JobRef):
                self._note_settled(context, ref, deadline)
                self._running = None
                return settled
            ref = settled

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Json:
        """Takes up the task when its job ended: the record, the job's next attempt, or the job's own error."""
        from treadle import jobs

        noted = context["task_state_store"].get(NOTE)
        if not isinstance(noted, dict) or not event or event.get("ref") != noted["ref"]:
            raise AirflowFailException(
                f"{self.stage}: the event that resumed this task is not of its job; clear the task to look again"
            )
        ref = jobs.JobRef.from_json(str(noted["ref"]))
        with self.opened(context) as session:
            settled = self._settled(session, ref, event)
            if isinstance(settled, jobs.JobRef):
                settled = self._wait(context, session, settled, _seconds(noted["deadline"]))
            else:
                self._note_settled(context, ref, _seconds(noted["deadline"]))
            return self.finished(context, session, settled)

    def _settled(self, session: Session, ref: JobRef, event: dict[str, Any]) -> Record | JobRef:
        from treadle import jobs

        if event.get("timed_out"):
            jobs.cancel(ref)
            raise AirflowFailException(f"{self.stage}: {ref} took longer than job_timeout; it was cancelled")
        if event.get("problem"):
            where = "the triggerer" if self.deferrable else "this worker"
            jobs.cancel(ref)
            raise AirflowFailException(
                f"{self.stage}: {where} can't look at {ref}, which was cancelled: {event['problem']}"
            )
        settled = self._look(session, ref)
        if settled == ref and event.get("away"):
            raise AirflowException(f"{self.stage}: {event['away']} The job goes on; the next try finds it.")
        if isinstance(settled, jobs.JobRef) and settled != ref:
            self.log.info("attempt %s: %s", settled.attempt, settled)
        return settled

    def _look(self, session: Session, ref: JobRef) -> Record | JobRef:
        """As `jobs.settle`; what the stage itself raised has been tried again where it ran."""
        from treadle import jobs
        from treadle.jobs.file import read_result

        try:
            return jobs.settle(session, ref)
        except Transient as error:
            result = read_result(session.store, ref.loop, ref.job, ref.attempt)
            if result is not None and result.error is not None:
                self.tried = error
            raise

    def _note_settled(self, context: Context, ref: JobRef, deadline: float | None) -> None:
        context["task_state_store"].set(
            NOTE, {"ref": ref.to_json(), "deadline": deadline, "settled": _life(context)}
        )

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """What the task returns."""
        raise NotImplementedError

    def on_kill(self) -> None:
        """Cancels the job when the task is killed while a worker waits for it."""
        if self._running is not None:
            from treadle import jobs

            jobs.cancel(self._running)


def _seconds(noted: object) -> float | None:
    return float(noted) if isinstance(noted, (int, float)) else None


def _asker(context: Context) -> str:
    """The same in all tries of a task's life: one that died before it noted its job is given that job again."""
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}/{_life(context)}"


def _life(context: Context) -> int:
    """The same in all tries of a task until someone clears it: Airflow then grants it more."""
    return context["ti"].max_tries
