"""What jobs cost: a ledger in the store, one page for each attempt, written before it starts and after it ended.

    costs/<loop>/<time>.<stage>.<pool>.<job's name>.planned.json   before it is submitted: what it may cost
                 <time>.<stage>.<pool>.<job's name>.refused.json   that its place took no such job, and why
                 <time>.<stage>.<pool>.<job's name>.json           once it is over: what it did cost
    costs/<loop>.json                                              that the loop has such pages

Every page is create-only. A page that nobody closed, because whoever waited is gone, is closed by the next who looks:
from the job's result and from what its backend says. Pages are in no id, and no stage reads them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from treadle.clock import format_instant
from treadle.errors import StoreError, TreadleError
from treadle.hardware.backend import REFUSED_EXIT, Status
from treadle.hardware.backends import get_backend
from treadle.identity import canonical
from treadle.jobs.file import JobFile, Plan, Result, read_job, read_result
from treadle.records import Json, Part
from treadle.redaction import redacted
from treadle.spec import Instant
from treadle.store import Store

log = logging.getLogger(__name__)
P = TypeVar("P", bound=Part)

_PLANNED, _REFUSED = ".planned.json", ".refused.json"
_MOMENT = "%Y%m%dT%H%M%S"
# A job that was claimed and never submitted is taken for given up after this long.
_SUBMITTED_WITHIN_S = 900


class Page(Part):
    """An attempt as it was planned.

    Attributes:
        job: The job's key.
        name: The job's name at its backend.
        who: Who asked for it.
        plan: Price, machines, tags and the most that was expected.
    """

    loop: str
    stage: str
    track: str
    job: str
    attempt: int
    name: str
    pool: str
    backend: str
    instance_type: str | None = None
    spot: bool = False
    who: str
    plan: Plan
    submitted_at: Instant

    @property
    def month(self) -> str:
        """The calendar month of UTC that it counts in, as `2026-11`."""
        return self.submitted_at.strftime("%Y-%m")


class Cost(Page):
    """An attempt that is over.

    Attributes:
        state: `succeeded`; `refused` or `failed` for a job that raised; else how its backend says that it ended.
        reused: Whether it found its record made already.
        seconds: From the command's start to its end.
        billed_seconds: What its place says it bills, where it does.
        usd: The estimate, of all machines; None where the pool has no price.
    """

    state: str
    reused: bool = False
    seconds: float
    billed_seconds: float | None = None
    usd: float | None

    @property
    def is_lost(self) -> bool:
        """Whether the time was lost with the place, so that another attempt had to go on from what was stored."""
        return self.state in ("preempted", "lost")


@dataclass(frozen=True, slots=True)
class Ledger:
    """A loop's pages: what is over, and what is not, with what that has cost so far or may cost in all."""

    over: tuple[Cost, ...]
    under_way: tuple[tuple[Page, float | None], ...]

    def usd_in(self, month: str) -> tuple[float, float]:
        """What a month has cost, and what its jobs that are under way may come to."""
        spent = sum(cost.usd or 0 for cost in self.over if cost.month == month)
        return spent, sum(usd or 0 for page, usd in self.under_way if page.month == month)


def open_page(store: Store, file: JobFile) -> None:
    """Notes an attempt that is claimed and about to be submitted; nothing happens when it is noted already."""
    page = Page(
        loop=file.loop,
        stage=file.stage,
        track=file.track,
        job=file.key,
        attempt=file.attempt,
        name=file.name,
        pool=file.pool.name,
        backend=file.pool.backend,
        instance_type=file.plan.instance_type or file.pool.instance_type,
        spot=file.pool.spot,
        who=file.who,
        plan=file.plan,
        submitted_at=file.submitted_at,
    )
    store.create(f"costs/{file.loop}.json", canonical({"loop": file.loop}).encode())
    store.create(f"{_stem(page)}{_PLANNED}", page.model_dump_json().encode())


def free_page(store: Store, file: JobFile, why: str) -> None:
    """Notes that an attempt's place took no such job: what was set aside for it is free again.

    Such an attempt is not submitted again; whoever goes on takes the next number. Another client that claimed the same
    may have come through all the same, so a backend that knows the job has the last word on what it cost.
    """
    told = {"job": file.key, "attempt": file.attempt, "why": redacted(why)}
    store.create(f"{_stem(file)}{_REFUSED}", canonical(told).encode())


def why_freed(store: Store, file: JobFile) -> str | None:
    """Why an attempt's place took no such job, in words; None where none said so.

    Raises:
        StoreError, Transient: The store can't be used.
    """
    try:
        told = json.loads(store.read(f"{_stem(file)}{_REFUSED}"))
        return str(told["why"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "its place took no such job"


def is_freed(store: Store, file: JobFile) -> bool:
    """Whether an attempt's place took no such job."""
    return store.exists(f"{_stem(file)}{_REFUSED}")


def is_closed(store: Store, file: JobFile) -> bool:
    """Whether what an attempt came to is noted."""
    return store.exists(f"{_stem(file)}.json")


def close_page(store: Store, file: JobFile, status: Status, result: Result | None) -> None:
    """Notes what an attempt came to; nothing happens while it goes on. What is noted already stays.

    Raises:
        StoreError, Transient: The store can't be used.
    """
    page = _read(store, f"{_stem(file)}{_PLANNED}", Page) if status.is_over else None
    if page is not None:
        store.create(f"{_stem(file)}.json", _closed(page, status, result).model_dump_json().encode())


def read_ledger(store: Store, loop: str, month: str | None = None) -> Ledger:
    """The pages of a loop, of one month or of all; those that nobody closed are closed now where that can be done.

    Raises:
        StoreError: A page can't be read. Transient: The store can't be reached.
    """
    names = store.list(f"costs/{loop}")
    if month is not None:
        names = [name for name in names if name.startswith(month.replace("-", ""))]
    closed = {name for name in names if _is_closing(name)}
    freed = {name.removesuffix(_REFUSED) for name in names if name.endswith(_REFUSED)}
    over = [page for name in sorted(closed) if (page := _read(store, f"costs/{loop}/{name}", Cost))]
    under_way = []
    for name in names:
        if name.endswith(_PLANNED) and f"{name.removesuffix(_PLANNED)}.json" not in closed:
            planned = _read(store, f"costs/{loop}/{name}", Page)
            found = (
                _looked_up(store, planned, freed=name.removesuffix(_PLANNED) in freed) if planned else None
            )
            if isinstance(found, Cost):
                over.append(found)
            elif planned is not None and found is not None:
                under_way.append((planned, found.usd))
    over.sort(key=lambda cost: cost.submitted_at)
    return Ledger(tuple(over), tuple(under_way))


def earlier_costs(store: Store, loop: str, stage: str, pool: str, last: int = 20) -> list[Cost]:
    """The newest closed pages of a stage on a pool, newest first."""
    names = [name for name in store.list(f"costs/{loop}") if name.split(".")[1:3] == [stage, pool]]
    names = sorted((name for name in names if _is_closing(name)), reverse=True)[:last]
    return [page for name in names if (page := _read(store, f"costs/{loop}/{name}", Cost))]


def last_uses(store: Store) -> dict[str, datetime]:
    """When a job was last submitted to each pool, by any loop of the store."""
    found: dict[str, datetime] = {}
    for loop in (name.removesuffix(".json") for name in store.list("costs")):
        for name in store.list(f"costs/{loop}"):
            moment, _, pool = name.split(".")[:3]
            submitted = datetime.strptime(moment, _MOMENT).replace(tzinfo=UTC)
            found[pool] = max(submitted, found.get(pool, submitted))
    return found


def cost_of(usd_per_hour: float | None, workers: int, seconds: float) -> float | None:
    """US dollars for some seconds on all machines; None where the price is not known."""
    return None if usd_per_hour is None else round(usd_per_hour * workers * seconds / 3600, 9)


def cost_notes(file: JobFile) -> Json:
    """What the notes of a job's record say of its price, at its start; `costed` adds what it came to."""
    told: Json = {
        "started_at": format_instant(datetime.now(UTC)),
        "workers": file.plan.workers,
        "usd_per_hour": file.plan.usd_per_hour,
    }
    return {**told, "over_budget_by": file.who} if file.plan.over_budget else told


def costed(notes: Mapping[str, object], now: datetime | None = None) -> Json:
    """A record's notes with what its job has cost by now, its lost attempts included, where its place has a price."""
    job, earlier = notes.get("job"), notes.get("attempts") or ()
    if not isinstance(job, dict) or job.get("usd_per_hour") is None or not isinstance(earlier, list | tuple):
        return dict(notes)
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(job["started_at"])).total_seconds()
    seconds += sum(attempt["seconds"] for attempt in earlier)
    return {**notes, "job": {**job, "usd": cost_of(job["usd_per_hour"], job["workers"], max(seconds, 0))}}


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """An attempt that is not known to be over, and what it has cost so far or may cost in all."""

    usd: float | None


def _looked_up(store: Store, page: Page, *, freed: bool) -> Cost | _UnderWay | None:
    """What became of an attempt that nobody closed: closed now where it is over; None for one that never began.

    Args:
        store: Where the page lies.
        page: The page.
        freed: Whether its place took no such job: then only a backend that knows it has it count.
    """
    result = read_result(store, page.loop, page.job, page.attempt)
    file = read_job(store, page.loop, page.job, page.attempt)
    status: Status | None = None
    known = file is not None
    if file is not None:
        try:
            backend = get_backend(page.backend)
            handle = backend.find(page.name, file.pool)
            status = backend.status(handle) if handle is not None else None
        except TreadleError as error:
            log.info("what %s cost is not known yet: %s", page.name, error)
            known = False
    if (status is not None and status.is_over) or (known and status is None and result is not None):
        cost = _closed(page, status, result)
        store.create(f"{_stem(page)}.json", cost.model_dump_json().encode())
        return cost
    if result is not None:
        return _closed(page, None, result)
    if freed and status is None:
        return None
    now = datetime.now(UTC)
    if known and status is None and (now - page.submitted_at).total_seconds() > _SUBMITTED_WITHIN_S:
        return None
    ran = max(now.timestamp() - status.started, 0) if status is not None and status.started else 0
    so_far = cost_of(page.plan.usd_per_hour, page.plan.workers, ran)
    return _UnderWay(so_far if page.plan.usd is None else max(page.plan.usd, so_far or 0))


def _closed(page: Page, status: Status | None, result: Result | None) -> Cost:
    """An attempt's cost from what its backend says, and from its own result where the backend says nothing."""
    seconds = result.seconds if result is not None else 0.0
    billed = None
    if status is not None:
        billed = status.billed_seconds
        if status.started is not None and status.ended is not None:
            seconds = max(status.ended - status.started, 0)
    counted = seconds if billed is None else billed
    return Cost(
        **page.model_dump(),
        state=_state_of(status, result),
        reused=result is not None and result.reused,
        seconds=round(seconds, 3),
        billed_seconds=billed,
        usd=cost_of(page.plan.usd_per_hour, page.plan.workers, counted),
    )


def _state_of(status: Status | None, result: Result | None) -> str:
    if result is None:
        return status.state if status is not None else "lost"
    if result.error is None:
        return "succeeded"
    return "refused" if result.error.get("job_exit_code") == REFUSED_EXIT else "failed"


def _is_closing(name: str) -> bool:
    """Whether a page's name is that of one which tells what an attempt did cost."""
    return not name.endswith((_PLANNED, _REFUSED))


def _stem(page: Page | JobFile) -> str:
    """The path of an attempt's pages without its ending: in the order of time, and telling stage and pool."""
    pool = page.pool if isinstance(page.pool, str) else page.pool.name
    moment = page.submitted_at.strftime(_MOMENT)
    return f"costs/{page.loop}/{moment}.{page.stage}.{pool}.{page.name}"


def _read(store: Store, path: str, kind: type[P]) -> P | None:
    try:
        return kind.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(
            f"{redacted(store.uri)}/{path} is no page of the ledger that this version can read: {error}."
            " Remove it to go on without it."
        ) from None
