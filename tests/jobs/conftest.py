"""A folder for the jobs of a test, and a long training to disturb."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from job_cases import long_training
from treadle.records import Record
from wheel import Wheel


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
    return long_training(turned[0], tmp_path_factory.mktemp("undisturbed"))
