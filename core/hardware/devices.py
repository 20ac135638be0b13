"""Which accelerators this machine shows to a process, found without any library."""

from __future__ import annotations

import os
from pathlib import Path

from treadle.hardware.pools import Pool


def missing_devices(pool: Pool, *, dev: Path = Path("/dev")) -> str | None:
    """Why a job can't have the accelerators that its pool promises; None when it can.

    A job that would fall back to the CPU in silence is paid for and gains nothing, so it must fail.
    """
    if pool.kind == "cpu":
        return None
    seen = devices_seen(pool.kind, dev=dev)
    if len(seen) >= pool.count:
        return None
    shown = ", ".join(seen) or "none"
    return (
        f"the pool {pool.name} promises {pool.count} x {pool.accelerator}; this machine shows {shown}."
        f" {remedy_of(pool)}."
    )


def remedy_of(pool: Pool) -> str:
    """What can be done where a machine of a pool lacks a device, without the full stop."""
    if pool.image:
        return "Correct the pool, its image, or the device plugin of the cluster"
    where = "this machine" if pool.backend == "local" else "the machines that run its jobs"
    hides = ", and at CUDA_VISIBLE_DEVICES, which may hide it" if pool.kind == "gpu" else ""
    return f"Correct accelerator and count of the pool, or look at the device's driver on {where}{hides}"


def devices_seen(kind: str, *, dev: Path = Path("/dev")) -> list[str]:
    """The accelerators that a process may use here: those that exist, less those that its variables hide."""
    if kind == "gpu":
        found = [path.name for path in dev.glob("nvidia[0-9]*")] or [
            path.name for path in dev.glob("dri/renderD*") if (dev / "kfd").exists()
        ]
        bound = os.environ.get("CUDA_VISIBLE_DEVICES")
        return sorted(found) if bound is None else sorted(found)[: len([i for i in bound.split(",") if i])]
    return sorted(path.name for path in dev.glob("neuron[0-9]*"))
