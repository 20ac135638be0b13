"""A long training to disturb, and a SageMaker on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import treadle
from job_cases import long_training
from treadle.records import Record
from wheel import Wheel

if TYPE_CHECKING:
    from sagemaker_api.server import FakeSageMaker


@pytest.fixture(scope="session")
def undisturbed(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Wheel, Record]:
    """A long training that nobody interrupts, and its features in the store."""
    return long_training(turned[0], tmp_path_factory.mktemp("undisturbed"), rounds=700)


@pytest.fixture(scope="module")
def sagemaker_server() -> Iterator[FakeSageMaker]:
    from sagemaker_api.server import FakeSageMaker

    made = FakeSageMaker()
    yield made
    made.close()


@pytest.fixture
def fake(sagemaker_server: FakeSageMaker, monkeypatch: pytest.MonkeyPatch) -> FakeSageMaker:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in sagemaker_server.environment().items():
        monkeypatch.setenv(name, value)
    sagemaker_server.reset()
    return sagemaker_server
