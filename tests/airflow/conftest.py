"""A home for Airflow in a temporary folder, made before anything imports it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(tempfile.mkdtemp(prefix="treadle-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    "AIRFLOW__CORE__FERNET_KEY": "",
    "TREADLE_USER": "ann",
}

import treadle  # noqa: E402  # Airflow reads its settings when it is imported
from home import Home  # noqa: E402
from wheel import SECOND, Wheel, copy_of, lenient  # noqa: E402


@pytest.fixture(scope="session")
def migrated() -> Path:
    """A metadata database with all tables and nothing in them."""
    from home import migrate

    return migrate(HOME)


@pytest.fixture
def home(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A DAGs folder and a database of the test's own."""
    made = Home(tmp_path / "dags", HOME / "airflow.db")
    made.begin(migrated, monkeypatch)
    yield made
    made.end()


@pytest.fixture(scope="session")
def unanswered(turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """The small loop with a champion, and with a challenger that ann trained and a person has to approve."""
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("unanswered"))
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(SECOND)
    assert wheel.kinds()[-2:] == ["propose", "hold"]
    return wheel
