"""Rules on the pools of a loop: that they are there, that a policy allows them, that they can do what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.errors import SpecError, UserError
from treadle.stages import STAGES

if TYPE_CHECKING:
    from treadle.hardware.pools import Pool
    from treadle.loop import Loop


@rule(
    "TR054",
    severity="error",
    title="A pool for no stage, a pool that is not configured, or a mistake in pools.yaml",
    fix="Name a stage, and a pool of pools.yaml; a stage without a pool runs in the calling process.",
)
def unknown_pool(context: CheckContext) -> Iterator[Hit]:
    """Pools stand in the loop, in pools.yaml beside it, or in a folder above it; a pool's mistakes have its lines."""
    from treadle.hardware.pools import IN_PROCESS, known_pools

    loop = context.loop
    try:
        known_pools(loop)
    except SpecError as error:
        yield from (Hit(f.field, f.problem, f.fix, f.file, f.line) for f in error.faults)
    except UserError as error:
        yield context.hit("pools", str(error))
    names = _names(loop)
    for stage, name in loop.pool_names.items():
        if stage not in STAGES:
            near = get_close_matches(stage, STAGES, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else f"The stages are: {', '.join(STAGES)}."
            yield context.hit(f"pools.{stage}", f"there is no stage {stage!r}.", fix)
        elif names is not None and name not in (*names, IN_PROCESS):
            yield context.hit(f"pools.{stage}", *_unknown(name, names, loop))


def _names(loop: Loop) -> list[str] | None:
    """What a loop may name, also where something is wrong with a pool of that name; None where nobody can tell."""
    from treadle.hardware.pools import find_pools_file
    from treadle.loop_file import read_loop_file

    try:
        path = find_pools_file(loop.folder)
        own = [loop.pool_names[stage] for stage, pool in loop.pools.items() if not isinstance(pool, str)]
        return ["local", *(map(str, read_loop_file(path).content) if path else ()), *own]
    except UserError:
        return None


def _unknown(name: str, names: list[str], loop: Loop) -> tuple[str, str]:
    from treadle.hardware import pools

    try:
        return pools.unknown_pool(name, loop)
    except UserError:  # what else is wrong with the file is told at its own lines
        near = get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Describe it in {pools.FILE}, or name another."
        return f"there is no pool {name!r}; known are: {', '.join(sorted(names))}.", hint


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
        known = known_pools(loop)
    except UserError:
        return
    try:
        policies = find_policies(loop.folder)
        named = {
            stage: known[name] for stage, name in loop.pool_names.items() if stage in STAGES and name in known
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
    """A pool on this machine is asked when a run begins: what it has depends on which machine that is."""
    from treadle.hardware.backends import BACKENDS
    from treadle.hardware.pools import known_pools
    from treadle.models.devices import stage_fix, stage_problem

    loop = context.loop
    try:
        known = known_pools(loop)
    except UserError:
        return
    for stage, name in loop.pool_names.items():
        pool = known.get(name)
        if pool is None or stage not in STAGES:
            continue
        problem = stage_problem(stage, loop.train.flavour, pool.kind)
        if problem:
            kinds = {each.name: each.kind for each in known.values()}
            fix = stage_fix(stage, loop.train.flavour, pool.kind, kinds)
            yield context.hit(f"pools.{stage}", problem, fix)
        elif pool.backend == "local":
            yield from _by_this_machine(context, stage, pool)
        elif pool.backend in BACKENDS:
            yield from _by_backend(context, stage, pool)


def _by_this_machine(context: CheckContext, stage: str, pool: Pool) -> Iterator[Hit]:
    """What no machine could do, and what a run from here would be refused for: who checks may sit elsewhere."""
    from treadle.hardware.backends import get_backend
    from treadle.hardware.devices import refuse_missing_devices
    from treadle.hardware.local import refuse_missing_program
    from treadle.hardware.look import refuse_what_it_can_not

    field, backend = f"pools.{stage}", get_backend(pool.backend)
    anywhere = pool.model_copy(update={"cpu": None, "memory_gib": None})
    try:
        refuse_what_it_can_not(backend, anywhere, {"stage": stage})
    except UserError as error:
        yield context.hit(field, str(error))
        return
    elsewhere = (
        "A run that begins on this machine is refused; one that begins on a machine which has it is not."
    )
    try:
        refuse_what_it_can_not(backend, pool, {"stage": stage})
        refuse_missing_devices(pool)
        refuse_missing_program(pool)
    except SpecError as error:
        (fault,) = error.faults
        yield context.unchecked(field, f"{fault.problem} {elsewhere}", fault.fix)
    except UserError as error:
        yield context.unchecked(field, f"{error} {elsewhere}", "Correct the pool, or name another.")


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
