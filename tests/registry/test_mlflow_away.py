"""Where MLflow is, and what is said when it can't be reached: soon, without its password, and whether to try again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_cases import make_loop
from treadle.errors import Transient, TreadleError, UserError
from treadle.records import Candidate
from treadle.registry import mlflow as projection
from treadle.store import Store


def test_an_unreachable_server_is_a_transient_failure_soon_without_its_password(
    store: Store, candidate: Candidate
) -> None:
    loop = make_loop(tracking={"uri": "http://someone:s3cret@127.0.0.1:9/mlflow"})
    with pytest.raises(Transient):  # MLflow's first request imports its plugins: Feast takes seconds
        projection.champion_alias(loop, store, "production")
    began = time.monotonic()
    with pytest.raises(Transient, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:9/mlflow failed") as caught:
        projection.project_candidate(loop, store, "production", candidate)
    assert time.monotonic() - began < 30
    cause: BaseException | None = caught.value
    while cause is not None:
        assert "s3cret" not in str(cause)
        cause = cause.__cause__


def test_a_server_that_never_answers_is_a_transient_failure_soon(store: Store, candidate: Candidate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loop = make_loop(tracking={"uri": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        began = time.monotonic()
        with pytest.raises(Transient, match=r"timed out|Max retries"):
            projection.project_candidate(loop, store, "production", candidate)
        assert time.monotonic() - began < 40


def test_an_address_that_mlflow_does_not_know_is_the_users_error(store: Store, candidate: Candidate) -> None:
    loop = make_loop(tracking={"uri": "carrier-pigeon://roof"})
    with pytest.raises(UserError, match=r"Correct tracking\.uri"):
        projection.project_candidate(loop, store, "production", candidate)


def test_where_mlflow_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert projection.tracking_uri(make_loop(), store) == f"sqlite:///{store.uri}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert projection.tracking_uri(make_loop(), store) == "http://tracker"
    monkeypatch.setenv("TRACKER", "http://ours")
    named = make_loop(tracking={"uri": "${TRACKER}/mlflow"})
    assert projection.tracking_uri(named, store) == "http://ours/mlflow"


def test_an_object_store_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        uri = "s3://bucket/prefix"

    with pytest.raises(UserError, match=r"s3://bucket/prefix is no folder.*MLFLOW_TRACKING_URI"):
        projection.tracking_uri(make_loop(), Elsewhere())  # type: ignore[arg-type]


def test_settings_of_the_users_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    with projection._settings(projection._SETTINGS), projection._settings(projection._FIRST_CONTACT):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:p@ss@host:5432/db", "postgresql://***@host:5432/db"),
        ("no http://a:b@c/d?e=f@g here", "no http://***@c/d?e=f@g here"),
        ("http://host/path", "http://host/path"),
    ],
)
def test_credentials_are_left_out(text: str, shown: str) -> None:
    assert projection.redacted(text) == shown


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a real MLflow server on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", f"{tmp_path}/files"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **quiet)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while not answers(f"{address}/health"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_real_server_gets_run_files_version_and_alias(
    server: str, store: Store, candidate: Candidate, capfd: pytest.CaptureFixture[str]
) -> None:
    mlflow = projection.import_mlflow()
    import pandas as pd

    loop = make_loop(tracking={"uri": server})
    first = projection.project_candidate(loop, store, "production", candidate)
    assert projection.project_candidate(loop, store, "production", candidate) == first
    projection.set_champion_alias(loop, store, "production", first.version)
    assert projection.champion_alias(loop, store, "production") == "1"
    assert capfd.readouterr().out == ""
    mlflow.set_tracking_uri(server)
    try:
        loaded = mlflow.pyfunc.load_model("models:/orders@champion")
    finally:
        mlflow.set_tracking_uri(None)
    frame = pd.DataFrame({"amount": [1.0], "express": [True], "region": ["east"]})
    assert 0 < loaded.predict(frame)[0] < 1


def test_every_failure_of_tracking_is_one_of_treadles(
    store: Store, candidate: Candidate, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database")
    loop = make_loop(tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    with pytest.raises(TreadleError, match=r"MLflow at sqlite:.*failed"):
        projection.project_candidate(loop, store, "production", candidate)
