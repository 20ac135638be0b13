"""The jobs of a store, as any process can see them: what asks for them may be long dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from treadle.clock import format_instant
from treadle.errors import TreadleError, UserError
from treadle.hardware.backend import REFUSED_EXIT
from treadle.hardware.backends import get_backend
from treadle.hardware.pools import Pool, find_pools_file
from treadle.jobs.client import JobRef
from treadle.jobs.cost import why_freed
from treadle.jobs.file import JobFile, newest_attempt, read_job, read_result, short_id
from treadle.records import Json
from treadle.redaction import redacted
from treadle.store import Store


@dataclass(frozen=True, slots=True)
class JobView:
    """The newest attempt at a job.

    Attributes:
        state: `succeeded`, `failed` or `refused` where there is a result; else what its backend says; `unknown` where
            that can't be asked, and `unsubmitted` where the backend never got it.
        since: Since when it is in this state, as far as is known.
        reason: In words, where the state does not say it all.
        words: What the job itself says of its use of the place.
        ref: To follow or cancel it; None where the backend does not know it.
    """

    file: JobFile
    state: str
    since: datetime
    node: str
    reason: str
    words: tuple[str, ...]
    ref: JobRef | None

    @property
    def id(self) -> str:
        """The first characters of the job's key."""
        return short_id(self.file.key)

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of this attempt, as far as is known."""
        return self.state not in ("queued", "running", "unknown")

    def to_json(self) -> Json:
        """Plain JSON."""
        file = self.file
        return {
            "id": self.id,
            "key": file.key,
            "loop": file.loop,
            "stage": file.stage,
            "track": file.track,
            "as_of": format_instant(file.as_of),
            "pool": file.pool.name,
            "backend": file.pool.backend,
            "state": self.state,
            "since": format_instant(self.since),
            "attempt": file.attempt,
            "node": self.node,
            "name": file.name,
            "who": file.who,
            "reason": self.reason,
            "words": list(self.words),
        }


def jobs_in(
    store: Store, loop: str | None = None, *, pools: Mapping[str, Pool] | None = None, last: int | None = None
) -> list[JobView]:
    """The jobs of a loop, or of all loops that had any, the newest first.

    Args:
        store: The store.
        loop: The loop's name; None: all.
        pools: The pools as they are described now: they hold the variables that no job's file does.
        last: At most so many.

    Raises:
        StoreError, Transient: The store can't be read.
    """
    files = [file for name in ([loop] if loop else _loops(store)) for file in _files(store, name)]
    files.sort(key=lambda file: file.submitted_at, reverse=True)
    return [_view(store, file, pools or {}) for file in files[:last]]


def stores_at(place: Path) -> list[Path]:
    """The folders with a store of those who share a folder's pools: beside its loops, and where its pools.yaml lies.

    Whether a folder or one of its loops is asked for, they are the same.
    """
    pools = find_pools_file(place)
    tops = dict.fromkeys([place, *([pools.absolute().parent] if pools else [])])
    found = [top / inner / ".treadle" for top in tops for inner in ("", "loops")]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def loads_in(store: Store, pools: Mapping[str, Pool]) -> dict[str, tuple[int, int]]:
    """How many jobs of a store run on each pool, and how many wait.

    Raises:
        StoreError, Transient: The store can't be read.
    """
    found = {name: [0, 0] for name in pools}
    for job in jobs_in(store, pools=pools, last=200):
        if job.state in ("running", "queued") and job.file.pool.name in found:
            found[job.file.pool.name][job.state == "queued"] += 1
    return {name: (running, waiting) for name, (running, waiting) in found.items()}


def find_job(
    store: Store, which: str, loop: str | None = None, *, pools: Mapping[str, Pool] | None = None
) -> JobView:
    """The one job whose id begins so, or whose attempt has this name.

    Raises:
        UserError: None, or several.
    """
    wanted = which.strip().lower()
    files = [file for name in ([loop] if loop else _loops(store)) for file in _files(store, name)]
    found = [file for file in files if wanted and (file.key.startswith(wanted) or file.name == wanted)]
    if len(found) == 1:
        return _view(store, found[0], pools or {}, refer=True)
    if found:
        shown = ", ".join(f"{short_id(file.key)} ({file.stage})" for file in found[:5])
        raise UserError(f"{len(found)} jobs begin with {which!r}: {shown}. Give more characters.")
    raise UserError(
        f"there is no job {which!r} in the store {redacted(store.uri)}; `treadle jobs` lists those there are"
    )


def _loops(store: Store) -> list[str]:
    """Every loop that had a job has a ledger, and that is named in one place."""
    return [name.removesuffix(".json") for name in store.list("costs")]


def _files(store: Store, loop: str) -> Iterator[JobFile]:
    """The newest attempt of each job of a loop; those of another version of treadle are passed over."""
    for name in store.list(f"jobs/{loop}"):
        key = name.removesuffix(".json")
        number = newest_attempt(store, loop, key)
        try:
            file = read_job(store, loop, key, number) if number else None
        except TreadleError:
            continue
        if file is not None:
            yield file


def _view(store: Store, file: JobFile, pools: Mapping[str, Pool], *, refer: bool = False) -> JobView:
    """The job; `refer`: with its reference also where its result tells everything else."""
    result = read_result(store, file.loop, file.key, file.attempt)
    if result is None:
        return _by_backend(store, file, pools)
    state, reason = "succeeded", ""
    if result.error is not None:
        state = "refused" if result.error.get("job_exit_code") == REFUSED_EXIT else "failed"
        reason = redacted(str(result.error["message"]).strip().partition("\n")[0])
    ref = _by_backend(store, file, pools).ref if refer else None
    since = result.ended_at or file.submitted_at
    return JobView(file, state, since, result.node, reason, result.words, ref)


def _by_backend(store: Store, file: JobFile, pools: Mapping[str, Pool]) -> JobView:
    """What the backend says of a job that left no result."""
    now = pools.get(file.pool.name)
    pool = now if now is not None and now.backend == file.pool.backend else file.pool
    try:
        backend = get_backend(pool.backend)
        handle = backend.find(file.name, pool)
        status = backend.status(handle) if handle is not None else None
    except TreadleError as error:
        if (why := why_freed(store, file)) is not None:
            return JobView(file, "unsubmitted", file.submitted_at, "", _never_began(why), (), None)
        return JobView(file, "unknown", file.submitted_at, "", redacted(str(error)), (), None)
    if handle is None or status is None:
        why = why_freed(store, file)
        reason = (
            _never_began(why)
            if why is not None
            else f"the backend {pool.backend} has no {file.name}: whoever asked for it died before, or it is long gone"
        )
        return JobView(file, "unsubmitted", file.submitted_at, "", reason, (), None)
    at = status.ended or status.started
    since = datetime.fromtimestamp(at, UTC) if at else file.submitted_at
    ref = JobRef(
        loop=file.loop,
        stage=file.stage,
        job=file.key,
        attempt=file.attempt,
        backend=pool.backend,
        pool=pool.name,
        handle=handle,
        store=redacted(store.uri),
    )
    state = "failed" if status.state == "succeeded" else status.state
    reason = "it ended without a result" if status.state == "succeeded" else redacted(status.reason)
    return JobView(file, state, since, status.node, reason, (), ref)


def _never_began(why: str) -> str:
    """Why a job was asked for and nothing was started, on one line."""
    return f"it was not taken, and nothing was started: {' '.join(why.split())}"
