"""Pools: named places with resources, as pools.yaml describes them once for all loops of a project.

    TREADLE_POOLS, else pools.yaml beside the loop, else in the nearest folder above it

The pool `local` is there without any file: a process of its own on this machine, without limits.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from treadle.errors import Fault, SpecError, UserError
from treadle.hardware.backend import Resources
from treadle.loop_file import LoopFile, faults_of, read_loop_file
from treadle.spec import Count, Section

FILE = "pools.yaml"
IN_PROCESS = "none"
Kind = Literal["cpu", "gpu", "trainium", "inferentia"]
_KINDS: dict[str, Kind] = {
    "cpu": "cpu",
    "gpu": "gpu",
    "nvidia": "gpu",
    "amd": "gpu",
    "trainium": "trainium",
    "trainium2": "trainium",
    "trainium3": "trainium",
    "inferentia": "inferentia",
    "inferentia2": "inferentia",
}


class AirflowSlots(Section):
    """What a stage on this pool takes of Airflow itself: its pool with slots, and the workers' queue."""

    pool: str | None = None
    queue: str | None = None
    pool_slots: Count = 1


class Pool(Section):
    """A place where stages run. See docs/pools.md for every field."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    backend: str = "local"
    accelerator: str = "cpu"
    count: int = Field(default=0, ge=0)
    cpu: float | None = Field(default=None, gt=0)
    memory_gib: float | None = Field(default=None, gt=0)
    image: str | None = None
    python: str | None = None
    instance_type: str | None = None
    region: str | None = None
    price: float | None = Field(default=None, ge=0)
    spot: bool = False
    roles: dict[str, str] = {}
    hours: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")
    max_seconds: Count | None = None
    max_jobs: Count | None = None
    env: dict[str, str] = {}
    tags: dict[str, str] = {}
    options: dict[str, Any] = {}
    airflow: AirflowSlots | None = None

    @property
    def kind(self) -> Kind:
        """The family of its accelerator."""
        return _KINDS[self.accelerator.partition("-")[0]]

    def resources(self) -> Resources:
        """What one job gets."""
        return Resources(self.cpu, self.memory_gib, self.accelerator, self.count)

    @model_validator(mode="after")
    def _consistent(self) -> Pool:
        if self.accelerator.partition("-")[0] not in _KINDS:
            raise ValueError(
                f"{self.accelerator!r} is no accelerator: write cpu, gpu, trainium, inferentia, or a model such as"
                " nvidia-l4"
            )
        if self.kind == "cpu" and self.count:
            raise ValueError("count says how many accelerators a job gets; for cores write cpu")
        if self.kind != "cpu" and not self.count:
            raise ValueError(f"say how many of {self.accelerator} a job gets: count: 1")
        if self.name == IN_PROCESS:
            raise ValueError(f"{IN_PROCESS!r} means the calling process: give the pool another name")
        return self


def find_pools_file(folder: Path) -> Path | None:
    """The file of pools that counts for a loop in a folder; None where there is none.

    Raises:
        UserError: `TREADLE_POOLS` names a file that does not exist.
    """
    named = os.environ.get("TREADLE_POOLS")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"TREADLE_POOLS names {named}, which is no file. Correct it, or unset it.")
        return path
    places = (folder, *folder.parents)
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_pools(path: Path) -> dict[str, Pool]:
    """The pools of a file, by name.

    Raises:
        SpecError: Not YAML, or something that no pool can mean; names every fault with its line.
    """
    file = read_loop_file(path, what="file of pools", begin="a pool's name")
    faults: list[Fault] = []
    pools: dict[str, Pool] = {}
    for name, content in file.content.items():
        try:
            pools[str(name)] = Pool.model_validate(_with_name(str(name), content))
        except ValidationError as error:
            faults += [_placed(file, str(name), fault) for fault in faults_of(error, Pool, None)]
    if faults:
        raise SpecError(faults)
    return pools


def _with_name(name: str, content: Any) -> Any:
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key != "name"} | {"name": name}
    return {"name": name} if content is None else content


def _placed(file: LoopFile, name: str, fault: Fault) -> Fault:
    dotted = name if fault.field in ("", "name") else f"{name}.{fault.field}"
    problem = fault.problem
    if fault.field == "name":
        problem = f"{name!r} can't name a pool: use up to 40 lower-case letters, digits and -."
        return Fault(str(file.path), file.line_of(dotted), dotted, problem)
    return Fault(str(file.path), file.line_of(dotted), dotted, problem, fault.fix)


def known_pools(folder: Path) -> dict[str, Pool]:
    """The pools that a loop in a folder may name, `local` among them.

    Raises:
        SpecError, UserError: See `read_pools` and `find_pools_file`.
    """
    path = find_pools_file(folder)
    return {"local": Pool(name="local")} | (read_pools(path) if path else {})


def unknown_pool(name: str, folder: Path) -> tuple[str, str]:
    """What is wrong with a name that no pool has, and what to do."""
    known, path = sorted(known_pools(folder)), find_pools_file(folder)
    near = get_close_matches(name, known, n=1)
    where = f"known are: {', '.join(known)}" if path else f"no {FILE} was found, so there is only: local"
    hint = f"Did you mean {near[0]!r}?" if near else f"Describe it in {path or FILE}, or name another."
    return f"there is no pool {name!r}; {where}.", hint
