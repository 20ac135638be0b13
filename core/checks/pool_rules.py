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
