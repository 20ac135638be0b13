"""Which machine of SageMaker a job gets, where its pool names an accelerator and not an instance type.

A job gets whole machines, so `count` must be what a machine of the kind has. The table is short on purpose: what it
does not hold is named by `instance_type`. Specifications: EC2's API, as of 2026-11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from treadle.errors import UserError
from treadle.hardware.backend import Resources
from treadle.hardware.pools import Pool
from treadle.words import counted

Api = Literal["training", "processing"]
Kind = Literal["training", "processing", "transform"]
_ALL: tuple[Kind, ...] = ("training", "processing", "transform")


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance type. `accelerator` names its model, and is empty without one; `kinds`: of jobs that it can have."""

    name: str
    cpu: int
    memory_gib: int
    accelerator: str = ""
    count: int = 0
    kinds: tuple[Kind, ...] = _ALL


# Within an accelerator by size; among GPUs the first model is what plain `gpu` gets.
MACHINES = (
    Machine("ml.m5.large", 2, 8),
    Machine("ml.m5.xlarge", 4, 16),
    Machine("ml.m5.2xlarge", 8, 32),
    Machine("ml.m5.4xlarge", 16, 64),
    Machine("ml.m5.12xlarge", 48, 192),
    Machine("ml.m5.24xlarge", 96, 384),
    Machine("ml.g6.xlarge", 4, 16, "nvidia-l4", 1),
    Machine("ml.g6.2xlarge", 8, 32, "nvidia-l4", 1),
    Machine("ml.g6.12xlarge", 48, 192, "nvidia-l4", 4),
    Machine("ml.g6.48xlarge", 192, 768, "nvidia-l4", 8),
    Machine("ml.g4dn.xlarge", 4, 16, "nvidia-t4", 1),
    Machine("ml.g4dn.12xlarge", 48, 192, "nvidia-t4", 4),
    Machine("ml.g5.xlarge", 4, 16, "nvidia-a10g", 1),
    Machine("ml.g5.2xlarge", 8, 32, "nvidia-a10g", 1),
    Machine("ml.g5.12xlarge", 48, 192, "nvidia-a10g", 4),
    Machine("ml.g5.48xlarge", 192, 768, "nvidia-a10g", 8),
    Machine("ml.g6e.xlarge", 4, 32, "nvidia-l40s", 1),
    Machine("ml.g6e.12xlarge", 48, 384, "nvidia-l40s", 4),
    Machine("ml.g6e.48xlarge", 192, 1536, "nvidia-l40s", 8),
    Machine("ml.p4d.24xlarge", 96, 1152, "nvidia-a100", 8, ("training",)),
    Machine("ml.p5.4xlarge", 16, 256, "nvidia-h100", 1, ("training", "processing")),
    Machine("ml.p5.48xlarge", 192, 2048, "nvidia-h100", 8, ("training",)),
    Machine("ml.trn1.2xlarge", 8, 32, "trainium", 1, ("training", "transform")),
    Machine("ml.trn1.32xlarge", 128, 512, "trainium", 16, ("training", "transform")),
    Machine("ml.trn2.48xlarge", 192, 2048, "trainium2", 16, ("training",)),
    Machine("ml.inf2.xlarge", 4, 16, "inferentia2", 1, ("transform",)),
    Machine("ml.inf2.24xlarge", 96, 384, "inferentia2", 6, ("transform",)),
    Machine("ml.inf2.48xlarge", 192, 768, "inferentia2", 12, ("transform",)),
)
_BY_NAME = {machine.name: machine for machine in MACHINES}
_FAMILIES = {"trn": "trainium", "inf": "inferentia", "g": "gpu", "p": "gpu"}


def instance_type(pool: Pool, wanted: Resources, kind: Kind) -> str:
    """The instance type of a job: what the pool names, else the smallest of the table that has what is wanted.

    Raises:
        UserError: SageMaker has no such machine for this kind of job, or what the pool says contradicts itself.
    """
    if pool.kind == "inferentia" and kind != "transform":
        raise UserError(
            f"the pool {pool.name}: SageMaker runs no jobs on Inferentia, only endpoints and batch transforms."
            " Name another accelerator."
        )
    if pool.kind == "trainium" and kind == "processing":
        raise UserError(
            f"the pool {pool.name}: processing jobs have no Trainium. Take a pool of cpu or gpu for this stage,"
            " or say options: {job: training}."
        )
    return _named(pool, wanted, kind) if pool.instance_type else _chosen(pool, wanted, kind)


def _named(pool: Pool, wanted: Resources, kind: Kind) -> str:
    name = pool.instance_type or ""
    if not name.startswith("ml."):
        raise UserError(
            f"the pool {pool.name}: SageMaker's instance types begin with ml., as ml.m5.xlarge: {name!r} does not."
        )
    family = kind_of(name)
    if family != pool.kind:
        raise UserError(
            f"the pool {pool.name} says accelerator: {pool.accelerator}, and {name} is a machine of {family}."
            " Correct one of them."
        )
    machine = _BY_NAME.get(name)
    if machine is not None:
        _compare(pool, wanted, kind, machine)
    return name


def _compare(pool: Pool, wanted: Resources, kind: Kind, machine: Machine) -> None:
    if kind not in machine.kinds:
        where = ", ".join(machine.kinds)
        raise UserError(f"the pool {pool.name}: {kind} jobs have no {machine.name}; it is for: {where}.")
    if wanted.count != machine.count:
        raise UserError(
            f"the pool {pool.name} says count: {wanted.count}; {machine.name} has"
            f" {counted(machine.count, 'accelerator')}, and a job gets all of its machine. Correct one of them."
        )
    for what, asked, there in (
        ("cpu", wanted.cpu or 0, machine.cpu),
        ("memory_gib", wanted.memory_gib or 0, machine.memory_gib),
    ):
        if asked > there:
            raise UserError(
                f"the pool {pool.name} says {what}: {asked:g}; {machine.name} has {there}. Correct one of them."
            )


def _chosen(pool: Pool, wanted: Resources, kind: Kind) -> str:
    fits = [machine for machine in MACHINES if _is_of(machine, pool) and kind in machine.kinds]
    right = [machine for machine in fits if machine.count == wanted.count]
    for machine in right:
        if machine.cpu >= (wanted.cpu or 0) and machine.memory_gib >= (wanted.memory_gib or 0):
            return machine.name
    if fits and not right:
        counts = ", ".join(str(count) for count in sorted({machine.count for machine in fits}))
        raise UserError(
            f"the pool {pool.name}: a job on SageMaker gets a whole machine, and those of {pool.accelerator} have"
            f" {counts}, not {wanted.count}. Correct count, or name instance_type."
        )
    raise UserError(
        f"the pool {pool.name}: no {kind} machine that is known here has what it asks for ({pool.accelerator}, cpu:"
        f" {wanted.cpu or 'any'}, memory_gib: {wanted.memory_gib or 'any'}). Name instance_type."
    )


def _is_of(machine: Machine, pool: Pool) -> bool:
    if pool.accelerator in ("cpu", "gpu", "inferentia"):
        return kind_of(machine.name) == pool.accelerator
    return machine.accelerator == pool.accelerator


def kind_of(name: str) -> str:
    """The family of an instance type's accelerator, by its name; `cpu` without one."""
    family = name.split(".")[1] if name.count(".") > 1 else ""
    return next((kind for start, kind in _FAMILIES.items() if family.startswith(start)), "cpu")
