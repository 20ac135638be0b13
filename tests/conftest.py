"""Fixtures that all tests share: one small loop that has turned once, and copies of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from wheel import FIRST, Wheel, copy_of, new_wheel


@pytest.fixture(scope="session")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wheel, treadle.Run]:
    wheel = new_wheel(tmp_path_factory.mktemp("wheel"))
    return wheel, wheel.run(FIRST)


@pytest.fixture
def wheel(turned: tuple[Wheel, treadle.Run], tmp_path: Path) -> Wheel:
    return copy_of(turned[0], tmp_path)
