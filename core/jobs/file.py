"""What a job is: a stage with all that it takes to run it elsewhere, as files in the store.

    jobs/<loop>/<key>/1.job.json       the first attempt: claimed by whoever creates it
                      1.start-1.json   that it began, once for each time its place started it
                      1.result.json    what it came to, written last by the job itself
                      2.job.json       the second attempt, after the first was preempted or lost
    jobs/<loop>/<key>.json             that there is such a job, for lists

The key hashes what is asked and where. A job without a result never succeeded, whatever its backend says.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TypeVar

from treadle.clock import format_instant
from treadle.errors import StoreError, UserError
from treadle.hardware.pools import Pool
from treadle.identity import canonical, digest_of
from treadle.jobs.measure import Use
from treadle.loop import Loop
from treadle.loop_code import code_of, hooks_of
from treadle.loop_file import read_loop_file
from treadle.records import Json, Part
from treadle.redaction import redacted
from treadle.session import Session
from treadle.spec import Instant
from treadle.store import Store, fetch_blob, open_store, put_blob

P = TypeVar("P", bound=Part)


class Attempt(Part):
    """An attempt that came to nothing because its place failed. `seconds` is the time that was lost with it."""

    number: int
    state: str
    reason: str
    seconds: float
    node: str = ""


class Plan(Part):
    """What an attempt takes beyond its command, and what that may cost, as seen before it was submitted.

    Attributes:
        labels: The tags that it carries at its place.
        workers: On how many machines it runs.
        usd_per_hour: Of one machine; None where the pool has no price.
        instance_type: That machine: what the pool names, else what its backend chooses; None where neither is known.
        price: The price in words, or why there is none.
        seconds: How long it may last: as long as earlier ones, else to its time limit; None where neither is known.
        usd: What that costs on all machines.
        over_budget: Whether it was submitted although the loop's budget is spent.
    """

    labels: dict[str, str] = {}
    workers: int = 1
    usd_per_hour: float | None = None
    instance_type: str | None = None
    price: str = ""
    seconds: float | None = None
    usd: float | None = None
    over_budget: bool = False


class JobFile(Part):
    """One attempt at a job.

    Attributes:
        treadle: The version that asked: another may make other records.
        name: The job's name at the backend; it holds a random part, so that no other store's job is taken for it.
        key: See `pack`.
        asked_by: What `submit` was given: who asks once only, though perhaps more than one time.
        earlier: The attempts of the same request before this one.
        spec: The blob of the loop: its YAML, or its content as JSON for a loop written in Python.
        files: Blob by path in the loop's folder.
        folder: Where the loop's own files are for whoever asked: errors name them there.
        source_folder: What relative sources start from.
        yaml: The name of the loop's file; None for a loop written in Python.
        inputs: Record id by stage.
        first_stage: The first stage that may make anything.
        pool: The pool, without its variables.
        patience_s: How long a training that must end may go on to its next checkpoint.
        plan: What it may cost.
    """

    treadle: str
    name: str
    key: str
    attempt: int
    asked_by: str = ""
    earlier: tuple[Attempt, ...] = ()
    loop: str
    stage: str
    spec: str
    files: dict[str, str]
    folder: str
    source_folder: str
    yaml: str | None
    overrides: tuple[str, ...]
    as_of: Instant
    track: str
    who: str
    inputs: dict[str, str]
    first_stage: str
    pool: Pool
    patience_s: float
    submitted_at: Instant
    plan: Plan = Plan()


class Result(Part):
    """What an attempt came to: either a record or an error.

    Attributes:
        record: `kind`, `id` and `digest`.
        error: See `treadle.wire`; for a bug also its `traceback`.
        reused: Whether the record was there before.
        warnings: What the run has to say at its end.
        seconds: From the job's start to its result.
        device: What it ran on.
        versions: Python's and the main libraries'.
        peak_rss_mib: The most memory that the process held.
        ended_at: When it was written.
        use: What it used of its place.
        words: What that says: data-bound, oversized, loss not falling, more workers that do not pay.
    """

    record: dict[str, str] | None = None
    error: Json | None = None
    reused: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float
    device: str
    versions: dict[str, str]
    peak_rss_mib: float
    node: str
    ended_at: Instant | None = None
    use: Use | None = None
    words: tuple[str, ...] = ()


class Start(Part):
    """That an attempt began somewhere."""

    at: Instant
    node: str


def job_uri(store: Store, file: JobFile) -> str:
    """The address that `treadle job` takes."""
    return f"{store.uri}/{_path(file.loop, file.key, file.attempt, 'job')}"


def open_job(uri: str) -> tuple[Store, JobFile]:
    """The store and the job of an address.

    Raises:
        UserError: No such job there. StoreError, Transient: The store can't be used.
    """
    root, jobs, rest = uri.rpartition("/jobs/")
    parts = PurePosixPath(rest).parts
    if not jobs or not root or len(parts) != 3 or not rest.endswith(".job.json"):
        raise UserError(f"{redacted(uri)} is no job: it reads STORE/jobs/LOOP/KEY/ATTEMPT.job.json")
    if "://" not in root and not Path(root).is_dir():
        raise UserError(
            f"the store {root} is not on this machine: a job here needs a store that it can reach"
        )
    store = open_store(root)
    number = parts[2].partition(".")[0]
    file = read_job(store, parts[0], parts[1], int(number)) if number.isdigit() else None
    if file is None:
        raise UserError(f"the store {redacted(root)} has no job {rest}")
    return store, file


def short_id(key: str) -> str:
    """What people are shown of a job's key, and find the job by."""
    return key[:12]


def newest_attempt(store: Store, loop: str, key: str) -> int:
    """The number of a job's last attempt; 0 when there is none."""
    names = store.list(f"jobs/{loop}/{key}")
    return max((int(name.partition(".")[0]) for name in names if name.endswith(".job.json")), default=0)


def read_job(store: Store, loop: str, key: str, attempt: int) -> JobFile | None:
    """An attempt, or None."""
    return _read(store, _path(loop, key, attempt, "job"), JobFile)


def read_result(store: Store, loop: str, key: str, attempt: int) -> Result | None:
    """What an attempt came to; None while it has no result."""
    return _read(store, _path(loop, key, attempt, "result"), Result)


def write_result(store: Store, file: JobFile, result: Result) -> bool:
    """Whether this is now what the attempt came to: the first result stays."""
    path = _path(file.loop, file.key, file.attempt, "result")
    return store.create(path, result.model_dump_json().encode())


def begin(store: Store, file: JobFile, node: str) -> tuple[Attempt, ...]:
    """Takes down that an attempt starts here, and tells what was begun of it before.

    Some places start a job again by themselves, under the name it had: only the job can count that. The seconds are
    those from one start to the next, the wait for a machine among them.
    """
    now, begun = datetime.now(UTC), list[Start]()
    while True:
        path = _path(file.loop, file.key, file.attempt, f"start-{len(begun) + 1}")
        earlier = _read(store, path, Start)
        if earlier is not None:
            begun.append(earlier)
        elif store.create(path, Start(at=now, node=node).model_dump_json().encode()):
            break
    ends = [*(start.at for start in begun[1:]), now]
    return tuple(
        Attempt(
            number=file.attempt,
            state="preempted",
            reason="its place took the machine and started the job again",
            seconds=round((end - start.at).total_seconds(), 1),
            node=start.node,
        )
        for start, end in zip(begun, ends, strict=False)
    )


def claim(store: Store, file: JobFile) -> JobFile:
    """The attempt as it stands in the store: this one, or that of whoever was first to claim its number."""
    about = {"stage": file.stage, "as_of": format_instant(file.as_of), "track": file.track}
    store.create(f"jobs/{file.loop}/{file.key}.json", canonical(about).encode())
    if store.create(_path(file.loop, file.key, file.attempt, "job"), file.model_dump_json().encode()):
        return file
    found = read_job(store, file.loop, file.key, file.attempt)
    assert found is not None
    return found


def _path(loop: str, key: str, attempt: int, what: str) -> str:
    return f"jobs/{loop}/{key}/{attempt}.{what}.json"


def _read(store: Store, path: str, kind: type[P]) -> P | None:
    try:
        return kind.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(
            f"{redacted(store.uri)}/{path} is no {kind.__name__} that this version can read: {error}."
            " Was it written by another version of treadle?"
        ) from None


def pack(
    session: Session,
    stage: str,
    pool: Pool,
    inputs: Mapping[str, str],
    *,
    patience_s: float,
    asked_by: str = "",
) -> JobFile:
    """The first attempt at a stage on a pool: its files are in the store; nothing is claimed yet.

    The key hashes the stage, the loop's content and files, as_of, track, inputs, overrides, and the pool's name, image
    and interpreter: two who ask for the same share one job.

    Raises:
        UserError: The loop's file or the store's address holds credentials, which would travel with the job.
        SpecError: A file of the loop is missing.
    """
    loop, store = session.loop, session.store
    text = _text_of(loop)
    for what, found in ((f"the loop {loop.name}", text), ("the address of the store", store.uri)):
        if redacted(found) != found:
            raise UserError(
                f"{what} holds credentials, which a job on the pool {pool.name} would carry along."
                " Read them from the environment: ${NAME} in the loop, the usual variables for the store."
            )
    names = sorted({name for stage_names in hooks_of(loop).values() for name in stage_names})
    files = {path: put_blob(store, loop.folder / path) for path in code_of(loop, names)}
    asked = {
        "stage": stage,
        "loop": loop.name,
        # Without the budget: whoever raises it while a job runs goes on with that job.
        "spec": loop.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"budget"}),
        "files": files,
        "as_of": format_instant(session.as_of),
        "track": session.track,
        "inputs": dict(inputs),
        "overrides": list(loop.overrides),
        "first_stage": session.first_stage,
        "pool": [pool.name, pool.image, pool.python],
    }
    return JobFile(
        treadle=treadle_version(),
        name="",
        key=digest_of(asked),
        attempt=0,
        asked_by=asked_by,
        loop=loop.name,
        stage=stage,
        spec=put_blob(store, text.encode()),
        files=files,
        folder=str(loop.folder),
        source_folder=str(loop.source_folder),
        yaml=loop.file.path.name if loop.file else None,
        overrides=loop.overrides,
        as_of=session.as_of,
        track=session.track,
        who=session.who,
        inputs=dict(inputs),
        first_stage=session.first_stage,
        pool=pool.model_copy(update={"env": {}}),
        patience_s=patience_s,
        submitted_at=datetime.now(UTC),
    )


def numbered(file: JobFile, attempt: int, earlier: Sequence[Attempt] = ()) -> JobFile:
    """The file of another attempt, with a name of its own."""
    name = f"treadle-{file.key[:12]}-{uuid.uuid4().hex[:8]}-{attempt}"
    changes = {"name": name, "attempt": attempt, "earlier": tuple(earlier), "submitted_at": datetime.now(UTC)}
    return file.model_copy(update=changes)


def _text_of(loop: Loop) -> str:
    if loop.file is not None:
        return loop.file.text
    content = loop.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    again = type(loop).model_validate(content)
    if again.model_dump() != loop.model_dump():
        raise UserError(
            f"the loop {loop.name} holds values that JSON can't: write dates as text to run its stages on a pool"
        )
    return canonical(content)


@contextmanager
def laid_out(store: Store, file: JobFile) -> Iterator[tuple[Loop, dict[str, str]]]:
    """The loop of a job, its files in a folder of their own; and what to put in the place of that folder's name.

    Raises:
        BlobLost: A file is gone. SpecError: This version can't read the loop.
    """
    with tempfile.TemporaryDirectory(prefix="treadle-job-") as temporary:
        folder = Path(os.path.realpath(temporary))
        for path, sha256 in file.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(fetch_blob(store, sha256).read_bytes())
        text = fetch_blob(store, file.spec).read_bytes()
        if file.yaml is None:
            loop = Loop.model_validate_json(text)
        else:
            (folder / file.yaml).write_bytes(text)
            read = read_loop_file(folder / file.yaml)
            loop = Loop.of_file(replace(read, path=Path(file.folder) / file.yaml), overrides=file.overrides)
        yield loop.placed(folder, source_folder=Path(file.source_folder)), {str(folder): file.folder}


def treadle_version() -> str:
    """The version of treadle here."""
    try:
        return version("treadle")
    except PackageNotFoundError:
        return "unknown"
