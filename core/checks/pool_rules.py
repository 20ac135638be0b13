"""Rules on the pools of a loop that look beyond its own files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.errors import SpecError, UserError
from treadle.stages import STAGES

if TYPE_CHECKING:
    from treadle.hardware.pools import Pool


@rule(
    "TR057",
    severity="error",
    title="A policy.yaml forbids a stage on its pool",
    fix="Change the pool in pools.yaml, name another, or ask whoever owns the policy; see docs/cost.md.",
)
def forbidden_pool(context: CheckContext) -> Iterator[Hit]:
    """A pool that does not exist, or a file of pools with mistakes, is TR054's."""
    from treadle.hardware.policy import find_policies, violations
    from treadle.hardware.pools import known_pools
    from treadle.registry.log import PRODUCTION

    loop = context.loop
    try:
        known = known_pools(loop.folder)
    except UserError:
        return
    try:
        policies = find_policies(loop.folder)
        named = {
            stage: known[name] for stage, name in loop.pools.items() if stage in STAGES and name in known
        }
        faults = {
            stage: violations(loop, stage, PRODUCTION, pool) for stage, pool in named.items() if policies
        }
    except SpecError as error:
        for fault in error.faults:
            yield context.hit(
                "pools", f"{fault.field}: {fault.problem}", fault.fix, file=fault.file, line=fault.line
            )
        return
    except UserError as error:
        yield context.hit("pools", str(error))
        return
    for stage, found in faults.items():
        for fault in found:
            words = f"{fault.field}: {fault.problem}"
            # A pool that stands in no file is told at the loop's own line.
            file = fault.file if fault.line else ""
            yield context.hit(f"pools.{stage}", words, fault.fix, file=file, line=fault.line)


@rule(
    "TR058",
    severity="error",
    title="A pool can't do what its stage asks",
    fix="Correct the pool in pools.yaml, or name another for the stage.",
)
def unfit_pool(context: CheckContext) -> Iterator[Hit]:
    """A pool on this machine is asked when a job is submitted: what it can do depends on where that is."""
    from treadle.hardware.backends import BACKENDS
    from treadle.hardware.pools import known_pools
    from treadle.models.devices import stage_problem

    loop = context.loop
    try:
        known = known_pools(loop.folder)
    except UserError:
        return
    for stage, name in loop.pools.items():
        pool = known.get(name)
        if pool is None or stage not in STAGES:
            continue
        problem = stage_problem(stage, loop.train.flavour, pool.kind)
        if problem:
            yield context.hit(f"pools.{stage}", problem)
        elif pool.backend in BACKENDS and pool.backend != "local":
            yield from _by_backend(context, stage, pool)


def _by_backend(context: CheckContext, stage: str, pool: Pool) -> Iterator[Hit]:
    """What the backend of a pool elsewhere has against a stage there, and whether its machines reach the store."""
    from treadle.hardware.backends import get_backend
    from treadle.hardware.look import refuse_what_it_can_not
    from treadle.hardware.reach import refuse_store_out_of_reach

    field = f"pools.{stage}"
    try:
        backend = get_backend(pool.backend)
        refuse_what_it_can_not(backend, pool, {"stage": stage})
    except UserError as error:
        yield context.hit(field, str(error))
        return
    try:
        refuse_store_out_of_reach(backend, pool, context.store or str(context.loop.folder / ".treadle"))
    except UserError as error:
        if context.store:
            yield context.hit(field, str(error))
        else:
            # Whoever runs the loop may name another.
            why = f"which store the loop will have was not said. Without one, {error}"
            yield context.unchecked(field, why, "Check with --store URI, or set TREADLE_STORE.")
