"""What the tests of jobs on pools share."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import treadle
from treadle import jobs
from treadle.hardware.backend import Status
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.records import Record
from treadle.session import Session
from wheel import SECOND, Wheel, copy_of

LOCAL = Pool(name="local")


CIRCLE = ("prepare", "featurize", "train", "evaluate", "release", "deploy")


def long_training(wheel: Wheel, folder: Path, *, rounds: int = 1200) -> tuple[Wheel, Record]:
    """A copy whose training is long enough to be disturbed, its features in the store, and what it comes to if not."""
    long = copy_of(wheel, folder / "long")
    long.edit("orders.yaml", "rounds: 30", f"rounds: {rounds}")
    long.edit("orders.yaml", "max_depth: 3, learning_rate: 0.3", "max_depth: 2, learning_rate: 0.01")
    features_at(long, SECOND)
    return long, copy_of(long, folder / "apart").run(SECOND, to="train")["train"]


def pool_from(wheel: Wheel, text: str, name: str) -> Pool:
    """A pool of the loop's pools.yaml, which now holds the text."""
    (wheel.path.parent / "pools.yaml").write_text(text)
    pool = jobs.pool_of(treadle.Loop.load(wheel.path), "train", name)
    assert pool is not None
    return pool


def moments(complaint: str, seconds: float = 120) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    raise AssertionError(complaint)


def said(ref: JobRef, words: str, seconds: float = 120) -> None:
    for _ in moments(f"{ref} never said {words!r}", seconds):
        if any(words in line for line in jobs.logs(ref)[0]):
            return
        assert not jobs.poll(ref).is_over, jobs.logs(ref)[0]


def over(ref: JobRef, seconds: float = 120) -> Status:
    for _ in moments(f"{ref} never ended", seconds):
        if (status := jobs.poll(ref)).is_over:
            return status
    raise AssertionError


def settled(session: Session, ref: JobRef, seconds: float = 120) -> Record:
    """The record in the end, through as many attempts as it takes."""
    for _ in moments(f"{ref} came to nothing", seconds):
        over(ref, seconds)
        found = jobs.settle(session, ref)
        if isinstance(found, Record):
            return found
        ref = found
    raise AssertionError


def features_at(wheel: Wheel, as_of: str) -> dict[str, str]:
    return {"featurize": wheel.run(as_of, to="featurize")["featurize"].id}


def interpreter(folder: Path, script: str) -> str:
    """The path of a program that a pool takes for a Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
