"""Rules on the pools of a loop that look beyond its own files."""

from __future__ import annotations

from collections.abc import Iterator

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.errors import SpecError, UserError
from treadle.stages import STAGES


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
    from treadle.hardware.backends import BACKENDS, get_backend
    from treadle.hardware.look import refuse_what_it_can_not
    from treadle.hardware.pools import known_pools
    from treadle.models.devices import device_problem

    loop = context.loop
    try:
        known = known_pools(loop.folder)
    except UserError:
        return
    for stage, name in loop.pools.items():
        pool = known.get(name)
        if pool is None or stage not in STAGES:
            continue
        problem = device_problem(loop.train.flavour, pool.kind) if stage == "train" else None
        if problem:
            yield context.hit(f"pools.{stage}", problem)
        elif pool.backend in BACKENDS and pool.backend != "local":
            try:
                refuse_what_it_can_not(get_backend(pool.backend), pool, {"stage": stage})
            except UserError as error:
                yield context.hit(f"pools.{stage}", str(error))
