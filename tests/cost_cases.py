"""What the tests of costs and budgets share: a place where jobs end as a test says, and jobs there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle import jobs
from treadle.errors import Transient, TreadleError
from treadle.hardware.backend import Capabilities, Handle, JobSpec, State, Status
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.cost import read_ledger
from treadle.jobs.file import Result, read_job, write_result
from treadle.session import Session, open_session
from wheel import FIRST

BACKEND = "cost_cases:Place"
# A dollar an hour, and never longer than an hour: a job may cost a dollar at most.
DOLLAR = Pool(name="dollar", backend=BACKEND, price=1.0, max_seconds=3600)


class Place:
    """A backend where jobs end as a test says; it keeps its state in the class, as a place does between clients."""

    name = BACKEND
    jobs: dict[str, tuple[JobSpec, Status]] = {}
    unreachable = False
    # What a submit raises, and whether the job arrives all the same; without credentials nothing can be asked either.
    raises: TreadleError | None = None
    arrives = False

    def capabilities(self) -> Capabilities:
        return Capabilities()

    def plan(self, job: JobSpec, pool: Pool) -> dict[str, Any]:
        return {"name": job.name}

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        if self.raises is None or self.arrives:
            self.jobs.setdefault(job.name, (job, Status(state="running", started=time.time())))
        if self.raises is not None:
            raise self.raises
        return Handle(backend=BACKEND, name=job.name, pool=pool.name)

    def status(self, handle: Handle) -> Status:
        if self.unreachable:
            raise Transient("the place can't be reached.")
        return self.jobs[handle.name][1]

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        return [], since

    def cancel(self, handle: Handle, grace: float) -> None:
        end(handle.name, "stopped", 0)

    def find(self, name: str, pool: Pool) -> Handle | None:
        if self.raises is not None:
            raise self.raises
        return Handle(backend=BACKEND, name=name, pool=pool.name) if name in self.jobs else None


def end(name: str, state: State, seconds: float, **told: Any) -> None:
    """Has a job come to its end after some seconds."""
    job, _ = Place.jobs[name]
    ended = Status(state=state, started=1000.0, ended=1000.0 + seconds, **told)
    Place.jobs[name] = (job, ended)


def session_of(loop: treadle.Loop, folder: Path, *, as_of: str = FIRST, **changes: Any) -> Session:
    loop = loop.model_copy(update=changes)
    return open_session(loop, as_of=as_of, store=folder / "store", who="ann")


def budget(monthly: float, *, enforce: bool = True) -> dict[str, Any]:
    from treadle.spec import Budget

    return {"budget": Budget(monthly=monthly, enforce=enforce)}


def submitted(session: Session, pool: Pool = DOLLAR, stage: str = "prepare") -> JobRef:
    return jobs.submit(session, stage, pool, {})


def finished(session: Session, ref: JobRef, seconds: float) -> None:
    """A job that wrote a result and ended; its record does not matter here."""
    file = read_job(session.store, ref.loop, ref.job, ref.attempt)
    assert file is not None
    error = {
        "type": "Refusal",
        "known_as": ["Refusal"],
        "arguments": ["no"],
        "message": "no",
        "retryable": False,
        "exit_code": 1,
        "job_exit_code": 65,
    }
    result = Result(error=error, seconds=seconds - 1, device="cpu", versions={}, peak_rss_mib=1, node="n")
    write_result(session.store, file, result)
    end(ref.handle.name, "failed", seconds, exit_code=65)
    with pytest.raises(treadle.errors.Refusal):
        jobs.settle(session, ref)


def spent(session: Session) -> float:
    return sum(cost.usd or 0 for cost in read_ledger(session.store, session.loop.name).over)
