"""What a backend gets for an attempt at a stage: one command, with the resources of its pool."""

from __future__ import annotations

import sys

from treadle.hardware.backend import Backend, JobSpec
from treadle.hardware.backends import get_backend
from treadle.hardware.options import seconds_of
from treadle.hardware.policy import labels_of, refuse_by_policy, workers_of
from treadle.hardware.pools import Pool
from treadle.hardware.reach import refuse_store_out_of_reach
from treadle.jobs.file import Plan
from treadle.loop import Loop
from treadle.models.devices import refuse_device
from treadle.records import Json

# What stands in a rendered request for what only a submitted job has.
RENDERED_NAME, RENDERED_KEY = "treadle-000000000000-00000000-1", "KEY"


def program_of(pool: Pool) -> str:
    """The interpreter of a pool's jobs: the one that it names, an image's own, else the one that asks."""
    return pool.python or ("python" if pool.image else sys.executable)


def treadle_job(pool: Pool, *arguments: str) -> tuple[str, ...]:
    """`treadle job` with arguments, as a pool's machines call it."""
    # -P: a file of the working folder must not be taken for a library.
    return (program_of(pool), "-P", "-m", "treadle", "job", *arguments)


def grace_s(backend: Backend, pool: Pool) -> float:
    """Seconds between being asked to end and the end, on a pool.

    Raises:
        UserError: The pool's option is no such number.
    """
    return seconds_of(pool, "grace_s", backend.capabilities().grace_s)


def role_of(pool: Pool, stage: str) -> str | None:
    """Whom a stage's job acts as."""
    return pool.roles.get(stage, pool.roles.get("default"))


def job_spec(backend: Backend, pool: Pool, stage: str, plan: Plan, *, name: str, uri: str) -> JobSpec:
    """An attempt at a stage, as `submit` hands it to the backend.

    Args:
        backend: The pool's.
        pool: Where it runs.
        stage: The stage.
        plan: Its workers and labels.
        name: The attempt's name, never used before.
        uri: The address of the attempt's file in its store.
    """
    return JobSpec(
        name=name,
        command=treadle_job(pool, uri),
        image=pool.image,
        resources=pool.resources(),
        max_seconds=pool.max_seconds,
        grace_s=grace_s(backend, pool),
        workers=plan.workers,
        spot=pool.spot,
        role=role_of(pool, stage),
        labels=plan.labels,
    )


def render(loop: Loop, stage: str, pool: Pool, *, track: str, store: str) -> Json:
    """The exact request by which a stage would be submitted, but for its name and its key: nothing is submitted.

    Args:
        loop: The loop.
        stage: The stage.
        pool: Where it would run.
        track: The track.
        store: The store's address.

    Raises:
        UserError: The backend can't do what the pool asks for, or its machines can't reach the store.
        SpecError: A policy.yaml forbids it, or the flavour can't learn on such a device.
    """
    refuse_device(loop, pool.kind, stage, pool=pool.name)
    refuse_by_policy(loop, stage, track, pool)
    plan = Plan(labels=labels_of(loop, stage, track, pool), workers=workers_of(loop, stage))
    backend = get_backend(pool.backend)
    refuse_store_out_of_reach(backend, pool, store)
    uri = f"{store}/jobs/{loop.name}/{RENDERED_KEY}/1.job.json"
    return backend.plan(job_spec(backend, pool, stage, plan, name=RENDERED_NAME, uri=uri), pool)
