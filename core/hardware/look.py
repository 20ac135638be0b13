"""What can be seen of a pool from here: whether it can be reached, what is free on it, what it costs."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from treadle.errors import TreadleError
from treadle.hardware.backend import Backend, JobSpec
from treadle.hardware.backends import get_backend
from treadle.hardware.catalogue import price_of, why_unpriced
from treadle.hardware.chosen import with_machine
from treadle.hardware.devices import missing_devices
from treadle.hardware.levels import level_of
from treadle.hardware.local import missing_program
from treadle.hardware.memory import is_short, memory_gib
from treadle.hardware.pools import Pool

# Jobs that run and jobs that wait.
Load = tuple[int, int]
PATIENCE_S = 20.0


@runtime_checkable
class TellsLoad(Protocol):
    """A backend that knows how many jobs of a pool run and wait, whoever submitted them."""

    def load(self, pool: Pool) -> Load:
        """How many run, and how many wait.

        Raises:
            Transient: The place can't be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as `treadle pools` shows it.

    Attributes:
        running: Jobs that run on it now; None where nothing here can tell.
        waiting: Jobs that wait for their turn.
        free: How many more could begin at once; None without a limit, or where `running` is not known.
        devices_free: How many accelerators these would take.
        usd_per_hour: Of one machine; None where no price is known.
        price: The price in words, or why there is none.
        reachable: Whether its backend answered; of a pool of this machine, whether its interpreter is there.
        why_not: What keeps it from being used, in words; empty where nothing does.
        level: See `treadle.hardware.levels`.
    """

    name: str
    backend: str
    accelerator: str
    count: int
    cpu: float | None
    memory_gib: float | None
    instance_type: str | None
    region: str | None
    spot: bool
    hours: str | None
    max_jobs: int | None
    running: int | None
    waiting: int | None
    free: int | None
    devices_free: int | None
    usd_per_hour: float | None
    price: str
    reachable: bool
    why_not: str
    level: str
    tags: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def look_at(
    pools: Sequence[Pool], *, loads: Mapping[str, Load] | None = None, patience_s: float = PATIENCE_S
) -> list[PoolView]:
    """A view of each pool, all asked at once.

    Args:
        pools: The pools.
        loads: What a store knows of a pool's jobs, for backends that can't tell it themselves.
        patience_s: How long an answer may take.

    Raises:
        UserError, SpecError: `TREADLE_CATALOGUE` names no file, or one with a mistake.
    """
    prices = [_price(pool) for pool in pools]
    answers: list[_Answer] = [_Answer() for _ in pools]
    threads = [
        threading.Thread(target=_ask, args=(pool, answer), daemon=True)
        for pool, answer in zip(pools, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience_s
    for thread, answer in zip(threads, answers, strict=True):
        thread.join(max(end - time.monotonic(), 0))
        if thread.is_alive():
            answer.why_not = f"no answer within {patience_s:g} s"
    known = loads or {}
    return [
        _view(pool, answer, known.get(pool.name), price)
        for pool, answer, price in zip(pools, answers, prices, strict=True)
    ]


@dataclass(slots=True)
class _Answer:
    """What a backend said of a pool; its thread may still be asking."""

    reachable: bool = False
    why_not: str = ""
    load: Load | None = None


def _ask(pool: Pool, answer: _Answer) -> None:
    try:
        backend = get_backend(pool.backend)
        refuse_what_it_can_not(backend, pool, stage_labels(pool))
        # A job that never was: the place must look for it, so that its address and credentials are tried.
        backend.find(f"treadle-look-{uuid.uuid4().hex[:12]}", pool)
        if isinstance(backend, TellsLoad):
            answer.load = backend.load(pool)
        if missing := missing_program(pool):
            answer.why_not = missing
            return
        answer.reachable = True
    except TreadleError as error:
        answer.why_not = answer.why_not or str(error)
    except Exception as error:  # a backend of one's own; one pool must not hide the others
        answer.why_not = answer.why_not or f"{type(error).__name__}: {error}"


def stage_labels(pool: Pool) -> dict[str, str]:
    """The stage that a look at a pool stands for: some places have spot and Trainium for trainings alone."""
    return {"stage": "train"} if pool.spot or pool.kind == "trainium" else {}


def refuse_what_it_can_not(backend: Backend, pool: Pool, labels: Mapping[str, str]) -> None:
    """Nothing, where the backend can plan a job on a pool; asks no place and no network.

    Raises:
        UserError: What the backend says against the pool, before any job.
    """
    role = next(iter(pool.roles.values()), None)
    spec = JobSpec(
        "treadle-look",
        ("true",),
        image=pool.image,
        resources=pool.resources(),
        max_seconds=pool.max_seconds,
        spot=pool.spot,
        role=role,
        labels=labels,
    )
    backend.plan(spec, pool)


def _missing_memory(pool: Pool) -> str:
    """What a pool of this machine promises of memory beyond what there is."""
    has = memory_gib()
    if pool.memory_gib is None or not is_short(has, pool.memory_gib):
        return ""
    return f"memory_gib is {pool.memory_gib:g}, and this machine has {has:.1f}. Lower it."


def _view(pool: Pool, answer: _Answer, load: Load | None, priced: tuple[float | None, str]) -> PoolView:
    running, waiting = answer.load or load or (None, None)
    slots = pool.max_jobs or (1 if pool.backend == "local" and pool.kind != "cpu" else None)
    free = None if slots is None or running is None else max(slots - running - (waiting or 0), 0)
    why_not = answer.why_not
    if not why_not and pool.backend == "local":
        every = pool.model_copy(update={"count": pool.count * (slots or 1)})
        why_not = " ".join(words for words in (missing_devices(every), _missing_memory(pool)) if words)
    price, words = priced
    return PoolView(
        name=pool.name,
        backend=pool.backend,
        accelerator=pool.accelerator,
        count=pool.count,
        cpu=pool.cpu,
        memory_gib=pool.memory_gib,
        instance_type=pool.instance_type,
        region=pool.region,
        spot=pool.spot,
        hours=pool.hours,
        max_jobs=slots,
        running=running,
        waiting=waiting,
        free=free,
        devices_free=None if free is None or not pool.count else free * pool.count,
        usd_per_hour=price,
        price=words,
        reachable=answer.reachable,
        why_not=why_not,
        level=level_of(pool),
        tags=dict(pool.tags),
    )


def _price(pool: Pool) -> tuple[float | None, str]:
    machine = with_machine(pool, stage_labels(pool).get("stage", ""))
    price = price_of(machine)
    return (price.usd_per_hour, price.words) if price else (None, why_unpriced(machine))
