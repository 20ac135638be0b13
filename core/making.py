"""Making one record: reuse, lease, retries, commit."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from treadle.clock import format_instant
from treadle.commit import commit_record, find_record, lost_blobs, make_record
from treadle.errors import StoreError, Transient, TreadleError, UserError
from treadle.identity import digest_of
from treadle.jobs.cost import costed
from treadle.leases import lease
from treadle.loop import Loop
from treadle.records import Json, Record, record_id
from treadle.redaction import cause
from treadle.session import Session
from treadle.stages import STAGES, Context, Outcome
from treadle.store import put_blob, scratch_folder

R = TypeVar("R", bound=Record)


def make(
    session: Session,
    kind: type[R],
    stage: str,
    key: Json,
    work: Callable[[Context], Outcome],
    *,
    loop: Loop | None = None,
    as_of: datetime | None = None,
    trusted: Callable[[], bool] = lambda: True,
) -> R:
    """The record that a key makes: the one in the store if it is intact, else made now under a lease.

    Args:
        session: Where to look and to commit.
        kind: The class of the record.
        stage: The stage's name.
        key: What makes the record.
        work: The stage.
        loop: Another loop than the session's: that of an earlier candidate.
        as_of: Another clock than the session's: that of an earlier window.
        trusted: Whether a record that is there may be reused, beyond being intact.

    Raises:
        Whatever the stage raises; a transient failure only after the loop's `retry.attempts`.
    """
    own = loop is None and as_of is None
    loop, as_of = loop or session.loop, as_of or session.as_of
    id_ = record_id(kind.kind, loop.name, key)

    def intact() -> R | None:
        found = find_record(session.store, kind, loop.name, id_)
        if found is None or lost_blobs(session.store, found) or not trusted():
            return None
        return found

    found = intact()
    if own:
        session.reused[stage] = found is not None
    if found is not None:
        session.say(f"{stage}: nothing changed, {found}")
        return found
    if own and STAGES.index(stage) < STAGES.index(session.first_stage):
        raise UserError(
            f"--from {session.first_stage} needs what {stage} makes, and the store has none for these data,"
            f" this loop and this as_of. Run with --from {stage}."
        )
    with lease(session.store, f"{kind.kind}-{id_}", done=lambda: intact() is not None, say=session.say):
        found = intact()
        if found is not None:
            session.say(f"{stage}: made by another process, {found}")
            return found
        session.say(f"{stage} ...")
        started = time.monotonic()
        with scratch_folder() as scratch:
            context = Context(loop, as_of, session.store, session.log, scratch, session.say, session.device)
            outcome = with_retries(session, stage, lambda: work(context))
            record = _commit(session, kind, loop, as_of, key, outcome, time.monotonic() - started)
        session.say(f"{stage}: {record!r} in {time.monotonic() - started:.1f} s")
        return record


def _commit(
    session: Session, kind: type[R], loop: Loop, as_of: datetime, key: Json, outcome: Outcome, seconds: float
) -> R:

    blobs = dict(outcome.kept)
    for name, content in sorted(outcome.files.items()):
        blobs[name] = put_blob(session.store, content)
    results = dict(outcome.results)
    digest = outcome.digest or digest_of({"results": results, "blobs": blobs})
    made = {"made_at": format_instant(datetime.now(UTC)), "seconds": round(seconds, 3), "by": session.who}
    told = session.measured(outcome) if session.measured else session.notes
    record = make_record(
        kind,
        loop=loop.name,
        as_of=as_of,
        key=key,
        digest=digest,
        results=results,
        blobs=dict(sorted(blobs.items())),
        notes={**made, **costed(told), **outcome.notes},
    )
    return commit_record(session.store, record)


def with_retries(session: Session, what: str, work: Callable[[], Any]) -> Any:
    """What some work gives. Transient failures are tried again, with pauses that double; any other is raised at once.

    Args:
        session: Its loop's `retry` says how often, and how long the first pause is.
        what: The stage that it is for.
        work: Done anew each time.
    """
    retry = session.loop.retry
    for attempt in range(1, retry.attempts + 1):
        try:
            return work()
        except TreadleError as error:
            told = error
        except OSError as error:
            told = _explained(what, error)
            told.__cause__ = cause(error)
        if not told.retryable or attempt == retry.attempts:
            raise told
        pause = retry.wait.total_seconds() * 2 ** (attempt - 1)
        session.say(f"{what}: {told} Trying again in {pause:g} s ({attempt} of {retry.attempts}).")
        time.sleep(pause)
    raise AssertionError("attempts is at least 1")


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def _explained(what: str, error: OSError) -> TreadleError:
    """What a stage's library said of the network or the disk; any other error is raised as it is."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return Transient(f"{what}: {type(error).__name__}: {error}. Try again.")
    if error.errno in _DISK:
        return StoreError(
            f"{what}: a file can't be written: {error}. Nothing was recorded; make room in the temporary folder"
            f" {tempfile.gettempdir()} (TMPDIR names another) and in the store, then run again."
        )
    raise error
