"""What an organisation allows of pools, as its policy.yaml says; asked whenever a job is planned.

    TREADLE_POLICY                      the organisation's own, wherever it lies
    policy.yaml beside the loop, beside pools.yaml, and in every folder above them

All that are found hold: a file nearer to the loop can only narrow what one further up allows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field, ValidationError
from treadle.errors import Fault, SpecError, UserError
from treadle.hardware.catalogue import price_of, why_unpriced
from treadle.hardware.chosen import with_machine
from treadle.hardware.pools import Pool, find_pools_file
from treadle.loop import Loop
from treadle.loop_file import LoopFile, faults_of, read_loop_file
from treadle.spec import Section
from treadle.words import money, rate

FILE = "policy.yaml"
# Places that are there already: they rent nothing by region and type, and one without a price is nobody's bill.
_STANDING = ("local", "ray", "kubernetes")


class Policy(Section):
    """What is allowed; a list that is left out allows everything.

    `regions`, `instance_types`, `accelerators` and `backends` hold patterns such as `eu-*`. `required_tags` are the
    names of tags that every job must carry. `dearest_job` is the most that one attempt at a job may cost, in US
    dollars: the pool's price for `max_seconds` on all workers.
    """

    backends: tuple[str, ...] | None = None
    accelerators: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    instance_types: tuple[str, ...] | None = None
    required_tags: tuple[str, ...] = ()
    dearest_job: float | None = Field(default=None, gt=0)


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy with the file that it stands in."""

    policy: Policy
    file: LoopFile

    def place_of(self, field: str) -> str:
        """File and line of a field."""
        return f"{self.file.path}:{self.file.line_of(field)}"


def find_policies(folder: Path) -> list[PolicyFile]:
    """Every policy that holds for the loops of a folder.

    Raises:
        UserError: `TREADLE_POLICY` names no file. SpecError: A file says what no policy can mean.
    """
    named = os.environ.get("TREADLE_POLICY")
    if named and not Path(named).expanduser().is_file():
        raise UserError(f"TREADLE_POLICY names {named}, which is no file. Correct it, or unset it.")
    pools = find_pools_file(folder)
    starts = [folder.absolute(), *([pools.absolute().parent] if pools else [])]
    paths = [Path(named).expanduser().absolute()] if named else []
    paths += [place / FILE for start in starts for place in (start, *start.parents)]
    return [read_policy(path) for path in dict.fromkeys(paths) if path.is_file()]


def read_policy(path: Path) -> PolicyFile:
    """The policy of a file.

    Raises:
        SpecError: Not YAML, or something that no policy can mean; names every fault with its line.
    """
    file = read_loop_file(path, what="policy", begin="a field such as `regions:`")
    try:
        return PolicyFile(Policy.model_validate(file.content), file)
    except ValidationError as error:
        raise SpecError(faults_of(error, Policy, file)) from None


def labels_of(loop: Loop, stage: str, track: str, pool: Pool) -> dict[str, str]:
    """The tags that a job carries at its place: the loop's, the pool's, then environment, loop, stage and track.

    Backends bring names and values into the form that their place allows.
    """
    return {**loop.tags, **tags_of_pool(pool), "loop": loop.name, "stage": stage, "track": track}


def tags_of_pool(pool: Pool) -> dict[str, str]:
    """The tags of every job on a pool: its own, and as `environment` what `TREADLE_ENVIRONMENT` says, if it is set."""
    environment = os.environ.get("TREADLE_ENVIRONMENT")
    return {**pool.tags, "environment": environment} if environment else dict(pool.tags)


def workers_of(loop: Loop, stage: str) -> int:
    """On how many machines a stage runs."""
    return loop.train.workers if stage == "train" else 1


def refuse_by_policy(loop: Loop, stage: str, track: str, pool: Pool) -> None:
    """Nothing, where every policy.yaml that holds for the loop allows this job.

    Raises:
        SpecError: With the pool's file and line, and those of the policy.
    """
    if faults := violations(loop, stage, track, pool):
        raise SpecError(faults)


def violations(loop: Loop, stage: str, track: str, pool: Pool) -> list[Fault]:
    """What the policies have against a stage on a pool, each with the line of the pool where it stands.

    Raises:
        UserError, SpecError: See `find_policies`.
    """
    labels = labels_of(loop, stage, track, pool)
    return job_violations(loop.folder, pool, labels, workers_of(loop, stage))


def job_violations(folder: Path, pool: Pool, labels: Mapping[str, str], workers: int = 1) -> list[Fault]:
    """As `violations`, of any job on a pool that is described for a folder: `labels` are its tags, its stage too."""
    policies = find_policies(folder)
    found = [each for policy in policies for each in _against(policy, pool, labels, workers)]
    if not found:
        return []
    return [pool.fault(*told) for told in found]


def _against(
    told: PolicyFile, pool: Pool, labels: Mapping[str, str], workers: int
) -> Iterator[tuple[str, str, str]]:
    """Field of the pool, what is wrong with it, and what to do."""
    policy = told.policy
    yield from _unlike(told, "backends", "backend", pool.backend, policy.backends)
    yield from _unlike(told, "accelerators", "accelerator", pool.accelerator, policy.accelerators)
    rents = pool.backend not in _STANDING
    for listed, field, value, allowed in (
        ("regions", "region", pool.region, policy.regions),
        ("instance_types", "instance_type", pool.instance_type, policy.instance_types),
    ):
        if value is not None:
            yield from _unlike(told, listed, field, value, allowed)
        elif allowed is not None and rents:
            problem = f"it is not said, and {told.place_of(listed)} allows only {', '.join(allowed)}."
            yield field, problem, f"Write {field} in the pool."
    for name in policy.required_tags:
        if not labels.get(name):
            where = told.place_of("required_tags")
            place = "in the loop or in the pool" if "loop" in labels else "in the pool: this job has no loop"
            fix = f"Write tags: {{{name}: ...}} {place}{_ENVIRONMENT.get(name, '')}."
            yield "tags", f"the tag {name!r} is missing, which {where} requires.", fix
    yield from _too_dear(told, with_machine(pool, labels.get("stage", "")), workers)


_ENVIRONMENT = {"environment": ", or set TREADLE_ENVIRONMENT"}


def _unlike(
    told: PolicyFile, listed: str, field: str, value: str, allowed: Sequence[str] | None
) -> Iterator[tuple[str, str, str]]:
    if allowed is None or any(fnmatchcase(value, pattern) for pattern in allowed):
        return
    words = ", ".join(allowed) or "none"
    yield (
        field,
        f"{value!r} is not among the {listed} that {told.place_of(listed)} allows: {words}.",
        "Take one of these, or ask whoever owns the policy.",
    )


def _too_dear(told: PolicyFile, pool: Pool, workers: int) -> Iterator[tuple[str, str, str]]:
    limit = told.policy.dearest_job
    if limit is None:
        return
    where, price = f"dearest_job, {rate(limit)} USD by {told.place_of('dearest_job')}", price_of(pool)
    if price is None or price.holds == "at_least":
        if pool.backend not in _STANDING or price is not None:
            known = price.words if price else why_unpriced(pool)
            yield (
                "price",
                f"no job here can be held to {where}: {known}.",
                "Write price, in USD an hour of a machine.",
            )
        return
    if not price.usd_per_hour:
        return
    if pool.max_seconds is None:
        problem = f"a job without a time limit can't be held to {where}."
        yield "max_seconds", problem, "Write max_seconds in the pool."
        return
    dearest = price.usd_per_hour * pool.max_seconds * workers / 3600
    if dearest > limit:
        machines = f" on {workers} machines" if workers > 1 else ""
        problem = (
            f"{pool.max_seconds:,} s{machines} may cost {money(dearest)} USD, above {where} ({price.words})."
        )
        yield "max_seconds", problem, "Lower max_seconds, or take a cheaper pool."
