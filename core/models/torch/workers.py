"""A training spread over several processes of this machine, each with its part of every batch.

The first is the calling process: it alone reports and keeps checkpoints. The others are started with the task in a
folder, and end with it, also when it is killed: their standard input closes. Within a group that someone else made
(torch.distributed is initialized: Ray Train, torchrun) the fit joins that one and starts nobody.
"""

# ruff: noqa: TID253  only a fit imports this module
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor
from treadle import spec
from treadle.clock import format_instant, parse_instant
from treadle.errors import TreadleError
from treadle.models.loop_parcel import parcel_of
from treadle.models.predictor import FitTask, MemoryCheckpoints
from treadle.models.schema import InputSchema

_START_S, _STEP = 300, timedelta(minutes=30)
_ARRAYS = ("x", "y", "times_us", "x_valid", "y_valid")


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a training; `rank` counts from 0."""

    rank: int = 0
    size: int = 1

    def add(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all processes, the same bits in each."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def share(self, tensor: Tensor) -> None:
        """Replaces a tensor by that of the first process."""
        if self.size > 1:
            dist.broadcast(tensor, 0)


@contextmanager
def group_of(task: FitTask, collective: str | None) -> Iterator[Group]:
    """The group that fits a task: a given one, this process alone, or new ones beside it for its time.

    Raises:
        TreadleError: A process of the group failed; the text ends in what it said last.
    """
    workers = task.train.workers
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size())
        return
    if workers == 1:
        yield Group()
        return
    if collective is None:
        raise TreadleError(
            f"train.workers: on {task.device} the flavour torch trains in one process. Leave workers out."
        )
    with tempfile.TemporaryDirectory(prefix="treadle-torch-") as name:
        folder = Path(name)
        write_task(folder, task)
        started = [_start(folder, rank) for rank in range(1, workers)]
        try:
            _await_ready(folder, started)
            _join(folder, 0, workers, collective)
            yield Group(0, workers)
        except RuntimeError as error:
            # The others' end is what broke the connection; what they said tells why.
            raise TreadleError(_last_words(folder, started) or f"a worker was lost: {error}") from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            _end(started)


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    with open(folder / f"{rank}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "treadle.models.torch.workers", str(folder), str(rank)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _await_ready(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """Returns when each has read the task: waiting for one that died before would take minutes."""
    until = time.monotonic() + _START_S
    while not all((folder / f"{rank}.ready").exists() for rank in range(1, len(started) + 1)):
        if words := _last_words(folder, started):
            raise TreadleError(words)
        if time.monotonic() > until:
            raise TreadleError(f"the workers of the training did not start within {_START_S} seconds")
        time.sleep(0.05)


def _join(folder: Path, rank: int, size: int, collective: str) -> None:
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if collective == "gloo" and loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    meeting = (folder / "meeting").resolve().as_uri()
    dist.init_process_group(collective, init_method=meeting, rank=rank, world_size=size, timeout=_STEP)


def _last_words(folder: Path, started: list[subprocess.Popen[bytes]]) -> str:
    """What the first worker that failed printed last; empty while none did."""
    for rank, process in enumerate(started, 1):
        # One that lost its connection ends in a moment, where it is not the one that is at fault.
        if process.poll() not in (None, 0):
            lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
            tail = "\n  | ".join(lines[-12:])
            return f"worker {rank + 1} of the training ended with exit code {process.returncode}:\n  | {tail}"
    return ""


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.stdin:
            process.stdin.close()
    until = time.monotonic() + 10
    for process in started:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_task(folder: Path, task: FitTask) -> None:
    """Writes a task into a folder so that another process of this machine can read it.

    Raises:
        UserError: It has a hook, and not the loop of it.
    """
    code = parcel_of(task)
    for name in _ARRAYS:
        if getattr(task, name) is not None:
            np.save(folder / f"{name}.npy", getattr(task, name))
    latest = task.checkpoints.latest()
    if latest is not None:
        (folder / "checkpoint").write_bytes(latest[1])
    content = {
        "train": task.train.model_dump(mode="json"),
        "schema": task.schema.to_json(),
        "classes": list(task.classes),
        "trained_through": format_instant(task.trained_through),
        "device": task.device,
        "init": str(task.init.resolve()) if task.init else None,
        "hook_folder": str(code.loop.folder) if code else None,
        "rounds_done": latest[0] if latest else None,
    }
    (folder / "task.json").write_text(json.dumps(content), encoding="utf-8")


def read_task(folder: Path) -> FitTask:
    """The task that `write_task` wrote, with checkpoints and reports that go nowhere."""
    content = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {
        name: np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").exists() else None
        for name in _ARRAYS
    }
    checkpoints = MemoryCheckpoints()
    if content["rounds_done"] is not None:
        checkpoints.save(content["rounds_done"], (folder / "checkpoint").read_bytes())
    task = FitTask(
        train=spec.Train.model_validate(content["train"]),
        schema=InputSchema.from_json(content["schema"]),
        classes=tuple(content["classes"]),
        trained_through=parse_instant(content["trained_through"]),
        checkpoints=checkpoints,
        report=lambda number, metrics: None,
        device=content["device"],
        init=Path(content["init"]) if content["init"] else None,
        **arrays,
    )
    return task if content["hook_folder"] is None else replace(task, hook=_hook(task, content["hook_folder"]))


def _hook(task: FitTask, folder: str) -> Any:
    import importlib

    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    module, _, attribute = (task.train.hook or "").partition(":")
    return getattr(importlib.import_module(module), attribute)


def _end_with_caller() -> None:
    """Ends this process as soon as its standard input closes: whoever started it is gone, or done."""
    # Not by sys.stdin: its lock, held here, makes an interpreter that ends by itself abort.
    while os.read(0, 1):
        pass
    os._exit(1)


def main(arguments: list[str]) -> None:
    """One worker: takes part in the fit, and makes nothing of its own."""
    from treadle.models.torch.device import open_device
    from treadle.models.torch.fit import fit_net

    folder, rank = Path(arguments[0]), int(arguments[1])
    threading.Thread(target=_end_with_caller, daemon=True).start()
    task = read_task(folder)
    device = open_device(task.device, rank=rank)
    (folder / f"{rank}.ready").touch()
    _join(folder, rank, task.train.workers, device.collective or "gloo")
    fit_net(task)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
