"""A loop and a trained candidate of it, and no MLflow but the tests' own."""

from __future__ import annotations

import pytest
from mlflow_cases import make_candidate, make_loop
from treadle.loop import Loop
from treadle.records import Candidate
from treadle.store import LocalStore, Store


@pytest.fixture(scope="module")
def loop() -> Loop:
    return make_loop()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Store:
    """A store whose MLflow database exists: making one takes seconds."""
    return LocalStore(tmp_path_factory.mktemp("tracking") / "store")


@pytest.fixture(scope="module")
def candidate(store: Store, loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return make_candidate(store, loop, tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def no_server_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
