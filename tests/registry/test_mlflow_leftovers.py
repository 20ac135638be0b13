"""Half-made databases of processes that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import write_small_loop
from treadle.loop import Loop
from treadle.registry.mlflow import champion_alias
from treadle.store import LocalStore


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_making_the_database_clears_what_dead_processes_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    loop = Loop.load(write_small_loop(tmp_path / "loop", days=1))
    store = LocalStore(tmp_path / "store")
    store.root.mkdir()
    dead = [store.root / f".new-{dead_pid()}-mlflow.db{end}" for end in ("", "-journal")]
    alive, other = store.root / f".new-{os.getppid()}-mlflow.db", store.root / ".new-1x-mlflow.db"
    for left in (*dead, alive, other):
        left.write_bytes(b"half")
    assert champion_alias(loop, store, "production") is None
    assert (store.root / "mlflow.db").stat().st_size > 10_000
    assert sorted(path.name for path in store.root.glob(".new-*")) == sorted([alive.name, other.name])
