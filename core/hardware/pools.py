"""Pools: named places with resources, which pools.yaml describes once for all loops of a project, or a loop for itself.

    TREADLE_POOLS, else pools.yaml beside the loop, else in the nearest folder above it

The pool `local` is there without any file: a process of its own on this machine, without limits.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from treadle.errors import Fault, SpecError, UserError
from treadle.hardware.backend import Resources
from treadle.hardware.backends import unknown_backend
from treadle.loop import Loop
from treadle.loop_file import LoopFile, Unfit, faults_of, read_loop_file
from treadle.spec import Count, Section

FILE = "pools.yaml"
IN_PROCESS = "none"
BUILT_IN = "local"
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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
    hours: str | None = None
    max_seconds: Count | None = None
    max_jobs: Count | None = None
    env: dict[str, str] = {}
    tags: dict[str, str] = {}
    options: dict[str, Any] = {}
    airflow: AirflowSlots | None = None

    _file: LoopFile | None = PrivateAttr(default=None)
    _at: str = PrivateAttr(default="")

    def placed(self, file: LoopFile | None, at: str) -> Self:
        """The same pool, described at a field of a file."""
        self._file, self._at = file, at
        return self

    def fault(self, field: str, problem: str, fix: str = "") -> Fault:
        """A fault at one of the pool's fields, with the file and the line where it is described."""
        if self._file is None:
            return Fault(f"the pool {self.name}", 0, field, problem, fix)
        dotted = f"{self._at}.{field}" if field else self._at
        return Fault(*self._file.place_of(dotted), dotted, problem, fix)

    @property
    def kind(self) -> Kind:
        """The family of its accelerator."""
        return _KINDS[self.accelerator.partition("-")[0]]

    def resources(self) -> Resources:
        """What one job gets."""
        return Resources(self.cpu, self.memory_gib, self.accelerator, self.count)

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str) -> str:
        if told := unknown_backend(value):
            problem, _, fix = told.partition(". ")
            raise Unfit(problem, fix)
        return value

    @field_validator("accelerator")
    @classmethod
    def _of_a_kind(cls, value: str) -> str:
        if (kind := value.partition("-")[0]) not in _KINDS:
            near = get_close_matches(kind, _KINDS, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            known = "cpu, gpu, trainium, inferentia, or a model such as nvidia-l4"
            raise Unfit(f"{value!r} is no accelerator", f"{hint}Write {known}.")
        return value

    @field_validator("hours", mode="before")
    @classmethod
    def _of_a_day(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, str) and _HOURS.fullmatch(value)):
            raise Unfit(f"{value!r} is no stretch of a day", 'Write hours in UTC, such as "20:00-06:00".')
        return value

    @field_validator("env")
    @classmethod
    def _of_variables(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in value if not _VARIABLE.fullmatch(name)]:
            raise Unfit(
                f"{', '.join(map(repr, wrong))} can't name a variable",
                "Write letters, digits and _, and no digit first.",
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Pool:
        if self.kind == "cpu" and self.count:
            problem = f"count: {self.count} asks for accelerators, and the accelerator is {self.accelerator}"
            raise Unfit(
                problem, "Write which, such as accelerator: gpu; for cores write cpu in place of count."
            )
        if self.kind != "cpu" and not self.count:
            problem = f"it is not said how many of {self.accelerator} a job gets"
            raise Unfit(problem, "Write count: 1, or more.")
        if self.name == IN_PROCESS:
            raise Unfit(f"{IN_PROCESS!r} means the calling process", "Give the pool another name.")
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
    file = read_loop_file(path, what="file of pools", begin="a pool's name, such as `gpu:`")
    faults: list[Fault] = []
    pools: dict[str, Pool] = {}
    for key, content in file.content.items():
        name = str(key)
        if name == BUILT_IN:
            problem = f"{BUILT_IN} is there already, on this machine and without limits."
            faults.append(_at(file, name, problem, "Give yours another name."))
            continue
        if isinstance(content, dict) and "name" in content:
            problem = "a pool of this file is named by its key."
            faults.append(
                _at(file, f"{name}.name", problem, f"Leave it out, or write another key than {name}.")
            )
        try:
            pools[name] = _pool(name, {} if content is None else content).placed(file, name)
        except ValidationError as error:
            faults += [_placed(fault, file, name, f"{name!r}") for fault in faults_of(error, Pool, None)]
    if faults:
        raise SpecError(_by_line(faults))
    return pools


def described_pools(loop: Loop) -> dict[str, Pool]:
    """The pools that a loop describes itself, by name.

    Raises:
        SpecError: Something that no pool can mean, or two of one name; names every fault with its line.
    """
    faults: list[Fault] = []
    pools: dict[str, Pool] = {}
    for stage, content in loop.pools.items():
        if isinstance(content, str):
            continue
        at, name = f"pools.{stage}", loop.pool_names[stage]
        if not content:
            fix = f"Name a pool of {FILE}, or describe one by its fields, such as {{memory_gib: 8}}."
            faults.append(loop.fault(at, "nothing is said of this pool.", fix))
            continue
        try:
            pool = _pool(name, content).placed(loop.file, at)
        except ValidationError as error:
            faults += [_placed(fault, loop, at, f"{name!r}") for fault in faults_of(error, Pool, None)]
            continue
        if name in pools:
            problem = f"the loop describes two pools of the name {name!r}."
            faults.append(
                loop.fault(at, problem, "Give one of them another `name:`, or describe it in pools.yaml.")
            )
        pools[name] = pool
    if faults:
        raise SpecError(_by_line(faults))
    return pools


def _by_line(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.line)


def _pool(name: str, content: Any) -> Pool:
    return Pool.model_validate(content | {"name": name} if isinstance(content, dict) else content)


def _placed(fault: Fault, of: LoopFile | Loop, at: str, name: str) -> Fault:
    if fault.field == "name":
        fix = "Use up to 40 lower-case letters, digits and -, and no - at either end."
        return _at(of, at, f"{name} can't name a pool.", fix)
    return _at(of, f"{at}.{fault.field}" if fault.field else at, fault.problem, fault.fix)


def _at(of: LoopFile | Loop, dotted: str, problem: str, fix: str) -> Fault:
    return (
        of.fault(dotted, problem, fix)
        if isinstance(of, Loop)
        else Fault(*of.place_of(dotted), dotted, problem, fix)
    )


def known_pools(of: Loop | Path) -> dict[str, Pool]:
    """The pools that a loop may name, or that the loops of a folder share; `local` is among them.

    Raises:
        SpecError: See `read_pools` and `described_pools`; or both describe a pool of one name. UserError: See
            `find_pools_file`.
    """
    path = find_pools_file(_folder(of))
    shared = {BUILT_IN: Pool(name=BUILT_IN)} | (read_pools(path) if path else {})
    own = described_pools(of) if isinstance(of, Loop) else {}
    if twice := [pool for name, pool in own.items() if name in shared]:
        fix = "Give it another `name:`, or name that pool in place of a description."
        raise SpecError(
            [pool.fault("name", f"{pool.name!r}: {_also(pool.name, path)}.", fix) for pool in twice]
        )
    return shared | own


def _also(name: str, path: Path | None) -> str:
    if name == BUILT_IN:
        return "a pool of that name is there already, on this machine and without limits"
    return f"{path} describes a pool of that name, too"


def _folder(of: Loop | Path) -> Path:
    return of.folder if isinstance(of, Loop) else of


def unknown_pool(name: str, of: Loop | Path) -> tuple[str, str]:
    """What is wrong with a name that no pool has, and what to do."""
    known, path = sorted(known_pools(of)), find_pools_file(_folder(of))
    near = get_close_matches(name, known, n=1)
    alone = not path and known == [BUILT_IN]
    where = f"no {FILE} was found, so there is only: local" if alone else f"known are: {', '.join(known)}"
    if "=" in name:
        stages = " ".join(f"--pool {part}" for part in f"STAGE={name}".split(","))
        return f"there is no pool {name!r}; {where}.", f"For several stages repeat --pool: {stages}"
    hint = f"Did you mean {near[0]!r}?" if near else f"Describe it in {path or FILE}, or name another."
    return f"there is no pool {name!r}; {where}.", hint
