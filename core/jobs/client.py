"""Stages on pools, from the side of whoever asks: submit, follow, settle, cancel.

    submit ─► JobRef (JSON) ─► poll ... ─► settle ─► the record
                 ▲                           │  the stage's own error, raised here
                 └── the next attempt ◄──────┘  preempted, or the place was lost

No call waits for the job, and none needs what the stages import. A reference is enough for any process to go on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from treadle.commit import get_record
from treadle.errors import JobFailed, NotSent, SpecError, Transient, TreadleError, UserError
from treadle.hardware.backend import Backend, Handle, JobSpec, Status
from treadle.hardware.backends import get_backend, refuse_missing_package
from treadle.hardware.pools import IN_PROCESS, Pool, known_pools, unknown_pool
from treadle.jobs.command import grace_s, job_spec
from treadle.jobs.cost import close_page, free_page, is_closed, is_freed, open_page
from treadle.jobs.file import (
    Attempt,
    JobFile,
    Result,
    claim,
    job_uri,
    newest_attempt,
    numbered,
    pack,
    read_job,
    read_result,
    short_id,
)
from treadle.jobs.planning import one_at_a_time, plan_job
from treadle.loop import Loop
from treadle.records import RECORD_OF, Part, Record
from treadle.redaction import redacted
from treadle.session import Session
from treadle.wire import error_from_json

_SHORTEST_PAUSE_S = 0.05
_TAIL = 20


class JobRef(Part):
    """A job that was submitted: JSON without secrets, for an orchestrator's database.

    Attributes:
        job: The job's key.
        store: The store's address.
    """

    loop: str
    stage: str
    job: str
    attempt: int
    backend: str
    pool: str
    handle: Handle
    store: str

    def to_json(self) -> str:
        """One line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The reference that `to_json` wrote."""
        return cls.model_validate_json(text)

    def __str__(self) -> str:
        return f"{self.stage} on the pool {self.pool} ({self.handle.name})"


def pool_of(loop: Loop, stage: str, override: str | None = None) -> Pool | None:
    """The pool that a stage runs on; None for the calling process.

    Args:
        loop: Its `pools`, by stage.
        stage: A stage's name.
        override: A pool's name instead of the loop's, or `none`.

    Raises:
        SpecError: No such pool, or a file of pools that can't be read.
    """
    name = override or loop.pool_names.get(stage)
    if name is None or name == IN_PROCESS:
        return None
    pools = known_pools(loop)
    if name not in pools:
        raise SpecError([loop.pool_fault(stage, name, *unknown_pool(name, loop))])
    return pools[name]


def submit(
    session: Session, stage: str, pool: Pool, inputs: Mapping[str, str], *, asked_by: str = ""
) -> JobRef:
    """A stage's job on a pool, now queued or running: the one under way for the same request if there is one.

    Args:
        session: Which loop, as of when, in which store.
        stage: The stage.
        pool: See `pool_of`.
        inputs: The ids of the records that the stage takes, by stage.
        asked_by: What is the same whenever one task asks again, because it lost what it was told: it is given the job
            that it had submitted also when that has succeeded by now.

    Raises:
        UserError: The backend can't do what the pool asks for; credentials would travel with the job.
        SpecError: A file of the loop is missing; a policy.yaml forbids it. PoolClosed, BudgetSpent: Not now, see
            `planning`. Transient: The backend or the store can't be reached.
    """
    backend = get_backend(pool.backend)
    packed = pack(session, stage, pool, inputs, patience_s=grace_s(backend, pool) * 2 / 3, asked_by=asked_by)
    number = newest_attempt(session.store, packed.loop, packed.key)
    under_way = _reconnect(session, backend, pool, packed, number) if number else None
    if under_way is not None:
        session.say(f"{stage}: goes on with {under_way}")
        return under_way
    return _start(session, backend, pool, numbered(packed, number + 1))


def _reconnect(session: Session, backend: Backend, pool: Pool, packed: JobFile, number: int) -> JobRef | None:
    """The job's last attempt if it is not over, or has succeeded for the same task.

    One that was claimed by a client that died is submitted now.
    """
    file = read_job(session.store, packed.loop, packed.key, number)
    if file is None:
        return None
    result = read_result(session.store, file.loop, file.key, number)
    mine = packed.asked_by != "" and packed.asked_by == file.asked_by
    if result is not None and (result.error is not None or not mine):
        return None
    handle = backend.find(file.name, pool)
    if result is not None:
        return _ref(session, file, handle) if handle is not None else None
    if handle is None:
        same = (file.who, file.source_folder) == (packed.who, packed.source_folder)
        if not same or is_freed(session.store, file):
            return None
        open_page(session.store, file)
        return _submitted(session, backend, pool, file)
    return None if backend.status(handle).is_over else _ref(session, file, handle)


def _start(session: Session, backend: Backend, pool: Pool, file: JobFile) -> JobRef:
    """An attempt that is planned, claimed and submitted.

    Raises:
        PoolClosed, SpecError, BudgetSpent: See `plan_job`; nothing was claimed. UserError: The backend can't plan it.
    """
    with one_at_a_time(session):
        plan = plan_job(session, file.stage, pool)
        # What the backend can't make a request of must not be claimed, nor its money set aside.
        backend.plan(_spec(session, backend, pool, file.model_copy(update={"plan": plan})), pool)
        # Last: installing it would not help with anything that was refused above.
        refuse_missing_package(pool.backend)
        claimed = claim(session.store, file.model_copy(update={"plan": plan}))
        open_page(session.store, claimed)
    try:
        return _submitted(session, backend, pool, claimed)
    except (UserError, NotSent) as error:
        # Nothing was started. After any other error, and of another's submit, nobody knows whether it arrived: what is
        # set aside for it stays so.
        if claimed.name == file.name:
            free_page(session.store, claimed, str(error))
        raise


def _submitted(session: Session, backend: Backend, pool: Pool, file: JobFile) -> JobRef:
    """An attempt that is claimed, at its backend: by this process or by another that claimed the same."""
    return _ref(session, file, backend.submit(_spec(session, backend, pool, file), pool))


def _spec(session: Session, backend: Backend, pool: Pool, file: JobFile) -> JobSpec:
    uri = job_uri(session.store, file)
    return job_spec(backend, pool, file.stage, file.plan, name=file.name, uri=uri)


def _ref(session: Session, file: JobFile, handle: Handle) -> JobRef:
    return JobRef(
        loop=file.loop,
        stage=file.stage,
        job=file.key,
        attempt=file.attempt,
        backend=file.pool.backend,
        pool=file.pool.name,
        handle=handle,
        store=redacted(session.store.uri),
    )


def poll(ref: JobRef) -> Status:
    """How the job stands at its backend: quick, and without the store.

    Raises:
        Transient: The backend can't be reached: that says nothing about the job.
    """
    return get_backend(ref.backend).status(ref.handle)


def logs(ref: JobRef, since: int = 0) -> tuple[list[str], int]:
    """The job's lines from `since` on, without credentials, and what to give as `since` next time."""
    lines, following = get_backend(ref.backend).logs(ref.handle, since)
    return [redacted(line) for line in lines], following


def cancel(ref: JobRef, grace: float = 30) -> None:
    """Asks the job to end: SIGTERM, and SIGKILL after `grace` seconds. Does not wait for it."""
    get_backend(ref.backend).cancel(ref.handle, grace)


def settle(session: Session, ref: JobRef, *, pool: Pool | None = None) -> Record | JobRef:
    """What became of a job: its record; or a reference to go on with.

    Args:
        session: As for `submit`.
        ref: The job.
        pool: Where a next attempt runs; left out: the pool of that name as it is described now.

    Returns:
        The record; `ref` itself while the job goes on; the next attempt's reference after one that was preempted or
        lost, as often as the loop's `retry.attempts`.

    Raises:
        TreadleError: What the stage raised, of the same class and with the same words.
        JobFailed: The job ended without a result: cancelled, out of time or memory, or preempted too often.
    """
    result = read_result(session.store, ref.loop, ref.job, ref.attempt)
    if result is None:
        status = poll(ref)
        if not status.is_over:
            return ref
        result = read_result(session.store, ref.loop, ref.job, ref.attempt)
        _note_cost(session, ref, status, result)
        if result is None:
            return _after(session, ref, status, pool)
    else:
        _note_cost(session, ref, None, result)
    return _record_of(session, ref, result)


def _note_cost(session: Session, ref: JobRef, status: Status | None, result: Result | None) -> None:
    """Closes the job's page in the ledger; where that can't be done, the next who looks at the ledger does it."""
    try:
        file = read_job(session.store, ref.loop, ref.job, ref.attempt)
        if file is not None and not is_closed(session.store, file):
            close_page(session.store, file, status or poll(ref), result)
    except TreadleError as error:
        session.say(f"{ref.stage}: what the job cost is not noted yet: {error}")


def _record_of(session: Session, ref: JobRef, result: Result) -> Record:
    if result.error is not None:
        raise error_from_json(result.error)
    told = result.record or {}
    record = get_record(session.store, RECORD_OF[ref.stage], ref.loop, told["id"])
    session.reused[ref.stage] = result.reused
    session.warnings += [words for words in result.warnings if words not in session.warnings]
    return record


def _after(session: Session, ref: JobRef, status: Status, pool: Pool | None) -> JobRef:
    """The attempt after one that left no result.

    Raises:
        JobFailed: There is none.
    """
    file = read_job(session.store, ref.loop, ref.job, ref.attempt)
    if file is None or not status.is_worth_another_attempt:
        raise _failure(ref, status, 1)
    seconds = (status.ended or time.time()) - (status.started or status.ended or time.time())
    lost = Attempt(
        number=ref.attempt,
        state=status.state,
        reason=status.reason,
        seconds=round(max(seconds, 0), 1),
        node=status.node,
    )
    earlier = (*file.earlier, lost)
    if len(earlier) >= session.loop.retry.attempts:
        raise _failure(ref, status, len(earlier))
    pool = pool or _as_described_now(session.loop, file.pool)
    session.say(
        f"{ref.stage}: attempt {len(earlier)} of {session.loop.retry.attempts} was {status.state}"
        f" ({status.reason or 'no reason given'}); the next goes on from what was stored"
    )
    return _start(session, get_backend(pool.backend), pool, numbered(file, ref.attempt + 1, earlier))


def _as_described_now(loop: Loop, pool: Pool) -> Pool:
    """The pool with its variables, which no job's file holds; without them where it was never in the file of pools."""
    now = known_pools(loop).get(pool.name, pool)
    same = all(getattr(now, name) == getattr(pool, name) for name in ("backend", "image", "python"))
    return now if same else pool


def _failure(ref: JobRef, status: Status, attempts: int) -> JobFailed:
    try:
        lines, _ = logs(ref)
    except Transient as error:
        lines = [f"its log can't be had: {error}"]
    return JobFailed(
        str(ref),
        status.state,
        redacted(status.reason),
        attempts,
        tuple(line for line in lines if line)[-_TAIL:],
        short_id(ref.job),
    )


def run_on_pool(session: Session, stage: str, pool: Pool, inputs: Mapping[str, str]) -> Record:
    """The record of a stage that runs on a pool: submitted or reconnected, followed to its end, its lines said here.

    Ctrl-C cancels the job and waits for its end. A client that is killed leaves it running; the next goes on with it.

    Raises:
        As `submit` and `settle`.
    """
    ref = submit(session, stage, pool, inputs)
    session.say(f"{stage}: on the pool {pool.name} ...")
    while True:
        settled = _follow(session, ref, pool)
        if not isinstance(settled, JobRef):
            return settled
        ref = settled


def _follow(session: Session, ref: JobRef, pool: Pool) -> Record | JobRef:
    """Says a job's lines until it is over, then settles it."""
    since, pause = 0, _SHORTEST_PAUSE_S
    longest = get_backend(ref.backend).capabilities().poll_s
    try:
        while True:
            try:
                over = poll(ref).is_over
                lines, since = logs(ref, since)
            except Transient as error:
                session.say(f"{ref.stage}: {error} The job goes on; asking again.")
                over, lines = False, []
            for line in lines:
                session.say(line)
            if over and not lines:
                return settle(session, ref, pool=pool)
            if not over:
                time.sleep(pause)
                pause = min(pause * 1.3, longest)
    except KeyboardInterrupt:
        session.say(f"{ref.stage}: cancelling {ref.handle.name} ...")
        cancel(ref)
        while not (status := poll(ref)).is_over:
            time.sleep(0.2)
        _note_cost(session, ref, status, None)
        raise
