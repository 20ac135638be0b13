"""Loops in Dagster, materialized for real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import treadle
from dagster_cases import Deployed
from wheel import FIRST, Wheel, copy_of, new_wheel


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def fresh(tmp_path: Path, instance: dg.DagsterInstance) -> Deployed:
    """A loop that has not turned yet."""
    return Deployed(new_wheel(tmp_path), instance)


@pytest.fixture
def deployed(turned: tuple[Wheel, treadle.Run], tmp_path: Path, instance: dg.DagsterInstance) -> Deployed:
    """A loop that `treadle run` turned once, as of FIRST."""
    return Deployed(copy_of(turned[0], tmp_path), instance)


@pytest.fixture(scope="session")
def first_run(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dg.ExecuteInProcessResult]:
    """The same loop, turned by Dagster alone as of FIRST in a store of its own; to be looked at only."""
    folder = tmp_path_factory.mktemp("dagster")
    copy = copy_of(turned[0], folder)
    with dg.DagsterInstance.ephemeral() as found:
        yield Deployed(Wheel(copy.path, folder / "of-dagster"), found).materialize(FIRST)
