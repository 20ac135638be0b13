"""What the tests of the SageMaker backend share: pools, commands, waiting for what is said of a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from treadle.hardware.backend import Backend, Handle, JobSpec, Status
from treadle.hardware.pools import Pool

ROLE = "arn:aws:iam::123456789012:role/treadle"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/treadle:1"


def runs(word: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def pool_for(job: str, **changes: object) -> Pool:
    about = {
        "name": "suite",
        "backend": "sagemaker",
        "image": IMAGE,
        "roles": {"default": ROLE},
        "options": {"job": job, "bucket": "s3://artifacts/treadle"},
    }
    return Pool.model_validate({**about, **changes})


def spot_pool(**changes: object) -> Pool:
    return pool_for("training", **{"spot": True, "max_seconds": 60, **changes})


def shell(script: str, **options: Any) -> JobSpec:
    return JobSpec(f"own-{uuid4().hex[:12]}", ("sh", "-c", script), **options)


def until(backend: Backend, handle: Handle, there: Callable[[Status], bool]) -> Status:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if there(status := backend.status(handle)):
            return status
        time.sleep(0.02)
    raise AssertionError(backend.status(handle))


def over(backend: Backend, handle: Handle) -> Status:
    return until(backend, handle, lambda status: status.is_over)


def said(backend: Backend, handle: Handle, line: str) -> None:
    until(backend, handle, lambda status: line in backend.logs(handle, 0)[0])
