"""A folder for the jobs of a test, and a long training to disturb."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from job_cases import LONG, features_at
from treadle.records import Record
from wheel import SECOND, Wheel, copy_of


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the local jobs of a test lie."""
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    return tmp_path / "jobs"


@pytest.fixture(scope="session")
def undisturbed(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Wheel, Record]:
    """A long training that nobody interrupts, and its features in the store."""
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("undisturbed"))
    for before, after in LONG:
        wheel.edit("orders.yaml", before, after)
    features_at(wheel, SECOND)
    apart = copy_of(wheel, tmp_path_factory.mktemp("apart"))
    return wheel, apart.run(SECOND, to="train")["train"]
