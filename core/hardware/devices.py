"""Which accelerators this machine shows to a process, found without any library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from treadle.errors import SpecError
from treadle.hardware.pools import Pool


def missing_devices(pool: Pool, *, dev: Path = Path("/dev")) -> str | None:
    """Why a job can't have the accelerators that its pool promises; None when it can.

    A job that would fall back to the CPU in silence is paid for and gains nothing, so it must fail.
    """
    problem = _shortage(pool, devices_seen(pool.kind, dev=dev))
    return f"{problem} {remedy_of(pool)}." if problem else None


def refuse_missing_devices(pool: Pool, *, dev: Path = Path("/dev")) -> None:
    """Nothing, where this machine has the accelerators that a pool on it promises; pools elsewhere pass.

    To be asked where the job would be submitted, since a pool on this machine is on that one then.

    Args:
        pool: The pool.
        dev: Where devices are. What variables hide from this process counts: a job gets variables of its own.

    Raises:
        SpecError: At the pool's line.
    """
    problem = _shortage(pool, _devices_of(pool.kind, dev)) if pool.backend == "local" else None
    if problem:
        fix = (
            "Correct accelerator and count of the pool, look at the device's driver on this machine, or name another"
            " pool."
        )
        raise SpecError([pool.fault("accelerator", problem, fix)])


def _shortage(pool: Pool, found: Sequence[str]) -> str | None:
    if pool.kind == "cpu" or len(found) >= pool.count:
        return None
    shown = ", ".join(found) or "none"
    return f"the pool {pool.name} promises {pool.count} x {pool.accelerator}; this machine shows {shown}."


def remedy_of(pool: Pool) -> str:
    """What can be done where a machine of a pool lacks a device, without the full stop."""
    if pool.image:
        return "Correct the pool, its image, or the device plugin of the cluster"
    where = "this machine" if pool.backend == "local" else "the machines that run its jobs"
    hides = ", and at CUDA_VISIBLE_DEVICES, which may hide it" if pool.kind == "gpu" else ""
    return f"Correct accelerator and count of the pool, or look at the device's driver on {where}{hides}"


def devices_seen(kind: str, *, dev: Path = Path("/dev")) -> list[str]:
    """The accelerators that a process may use here: those that exist, less those that its variables hide."""
    found, bound = _devices_of(kind, dev), os.environ.get("CUDA_VISIBLE_DEVICES")
    hides = kind == "gpu" and bound is not None
    return found[: len([i for i in (bound or "").split(",") if i])] if hides else found


def _devices_of(kind: str, dev: Path) -> list[str]:
    """The accelerators that exist on this machine."""
    if kind != "gpu":
        return sorted(path.name for path in dev.glob("neuron[0-9]*"))
    nvidia = sorted(path.name for path in dev.glob("nvidia[0-9]*"))
    return nvidia or sorted(path.name for path in dev.glob("dri/renderD*") if (dev / "kfd").exists())
