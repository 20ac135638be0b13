"""Work for the torch flavour's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from treadle import spec
from treadle.models.predictor import FitTask, MemoryCheckpoints, Predictor
from treadle.testing.flavour import SCHEMA, TRAINED_THROUGH, make_sample

SMALL = {"batch_size": 100, "hidden": [8], "bins": 3}


def net_task(
    task: spec.Task = "binary",
    *,
    params: dict | None = None,
    rounds: int = 2,
    valid: bool = False,
    hook: Any = None,
    checkpoints: Any = None,
    report: Any = None,
    device: str = "cpu",
    init: Path | None = None,
    **train: Any,
) -> FitTask:
    sample = make_sample(task)
    cut = 300 if valid else len(sample.x)
    settings = {**({} if hook else SMALL), **(params or {})}
    named = {"hook": "hooks:net"} if hook and "hook" not in train else {}
    return FitTask(
        train=spec.Train(task=task, flavour="torch", rounds=rounds, params=settings, **{**named, **train}),
        schema=SCHEMA,
        x=sample.x[:cut],
        y=sample.y[:cut],
        times_us=np.zeros(cut, dtype=np.int64),
        x_valid=sample.x[cut:] if valid else None,
        y_valid=sample.y[cut:] if valid else None,
        classes=sample.classes,
        trained_through=TRAINED_THROUGH,
        checkpoints=checkpoints or MemoryCheckpoints(),
        report=report or (lambda number, metrics: None),
        hook=hook,
        device=device,
        init=init,
    )


def own_task(loop_folder: Path, **options: Any) -> FitTask:
    """The same, with the network that `hooks:net` of a loop makes; its hooks.py is in the folder."""
    from small import write_small_loop
    from treadle.loop import Loop
    from treadle.loop_code import load_hook
    from treadle.models.loop_parcel import pack_loop

    own = ("train.flavour=torch", "train.hook=hooks:net", "train.params={}")
    loop = Loop.load(write_small_loop(loop_folder, days=1), overrides=own)
    task = net_task(hook=load_hook(loop, "hooks:net", "train.hook"), **options)
    return replace(task, code=pack_loop(loop, "train"))


class Interrupted(BaseException):
    """What a killed training does not come back from."""


class StopAfter:
    """Checkpoints that end the training right after one is kept."""

    def __init__(self, kept: MemoryCheckpoints, rounds: int) -> None:
        self.kept, self.rounds = kept, rounds

    def latest(self) -> tuple[int, bytes] | None:
        return self.kept.latest()

    def save(self, rounds: int, data: bytes) -> None:
        self.kept.save(rounds, data)
        if rounds >= self.rounds:
            raise Interrupted


def saved(predictor: Predictor, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    predictor.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}
