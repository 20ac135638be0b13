"""What the tests of the whole wheel share: a small loop that has turned once, copied for each test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import treadle
from small import write_small_loop
from treadle.session import Session, open_session

FIRST, SECOND, THIRD = "2024-02-12", "2024-03-04", "2024-03-25"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A loop file and a store, ready to turn."""

    path: Path
    store: Path

    def run(self, as_of: str, *, overrides: tuple[str, ...] = (), **options: Any) -> treadle.Run:
        loop = treadle.Loop.load(self.path, overrides=overrides)
        return treadle.run(loop, as_of=as_of, store=self.store, **{"who": "ann", **options})

    def session(self, as_of: str, *, who: str = "ann", track: str = "production") -> Session:
        return open_session(treadle.Loop.load(self.path), as_of=as_of, store=self.store, who=who, track=track)

    def kinds(self, track: str = "production") -> list[str]:
        return [entry.kind for entry in self.session(THIRD, track=track).log.entries()]

    def edit(self, file: str, before: str, after: str) -> None:
        path = self.path.parent / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))


def new_wheel(folder: Path) -> Wheel:
    return Wheel(write_small_loop(folder / "loop"), folder / "store")


def copy_of(wheel: Wheel, folder: Path) -> Wheel:
    shutil.copytree(wheel.path.parent, folder / "loop")
    if wheel.store.exists():
        shutil.copytree(wheel.store, folder / "store")
    return Wheel(folder / "loop" / wheel.path.name, folder / "store")


def ids(run: treadle.Run) -> dict[str, tuple[str, str]]:
    return {stage: (record.id, record.digest) for stage, record in run.items()}


def lenient(wheel: Wheel) -> None:
    """Has any better or equal challenger promoted."""
    wheel.edit(
        "orders.yaml", "  floor: {roc_auc: 0.55}", "  margin: 0.5\n  suspicious: 0.9\n  slice_limit: 9.0"
    )
    wheel.edit("orders.yaml", "guard: {roc_auc: -0.05}", "guard: {roc_auc: -0.5}")
