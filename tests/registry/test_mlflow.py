"""MLflow as a projection: made once, found again, rebuilt, and loud when it can't be reached."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treadle.errors import Transient, TreadleError, UserError
from treadle.loop import Loop
from treadle.models.predictor import FitTask, MemoryCheckpoints
from treadle.models.schema import Feature, InputSchema
from treadle.models.xgboost.flavour import XGBoostFlavour
from treadle.records import Candidate, record_id
from treadle.registry import mlflow as projection
from treadle.store import LocalStore, Store, put_blob

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
SCHEMA = InputSchema(
    (
        Feature("amount", "number"),
        Feature("express", "boolean"),
        Feature("region", "category", ("east", "west")),
    )
)


def make_loop(**sections: Any) -> Loop:
    table = {
        "sql": "t.sql",
        "entity": "id",
        "event_time": "at",
        "known_at": "at",
        "label": "late",
        "label_known_at": "known",
    }
    data = {"sources": {"orders": "orders.csv"}, "tables": {"orders": table}}
    train = {"rounds": 5, "params": {"max_depth": 2}}
    return Loop(name="orders", tags={"team": "ops"}, data=data, **{"train": train, **sections})


def make_candidate(store: Store, loop: Loop, folder: Path, seed: int = 0) -> Candidate:
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=200), rng.integers(0, 2, 200), rng.integers(0, 2, 200)]).astype(
        float
    )
    series: list[float] = []
    task = FitTask(
        train=loop.train,
        schema=SCHEMA,
        x=x,
        y=(x[:, 0] + rng.normal(size=200) > 0).astype(float),
        times_us=np.arange(200),
        x_valid=None,
        y_valid=None,
        classes=("0", "1"),
        trained_through=NOON,
        checkpoints=MemoryCheckpoints(),
        report=lambda number, metrics: series.append(next(iter(metrics.values()))),
    )
    model = folder / f"model-{seed}"
    model.mkdir()
    XGBoostFlavour().fit(task).save(model)
    blobs = {f"model/{file.name}": put_blob(store, file) for file in model.iterdir()}
    spec = loop.part("data", "features", "train")
    blobs["loop/spec.json"] = put_blob(store, json.dumps(spec).encode())
    blobs["rounds.json"] = put_blob(store, json.dumps({"train_log_loss": [0.6, 0.5, 0.4]}).encode())
    key = {"seed": seed}
    return Candidate(
        id=record_id("candidate", loop.name, key),
        digest=f"digest-{seed}",
        loop=loop.name,
        as_of=NOON,
        key=key,
        blobs=blobs,
        flavour="xgboost",
        task="binary",
        recipe="recipe",
        trained_from=None,
        trained_through=NOON,
        rows=200,
        rounds=5,
        metrics={"log_loss": 0.39},
        classes=("0", "1"),
        label_definition="label",
        features="features",
    )


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


def client_of(loop: Loop, store: Store) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=projection.tracking_uri(loop, store))


def test_a_candidate_is_projected_once_and_found_again(
    loop: Loop, store: Store, candidate: Candidate, capfd: pytest.CaptureFixture[str]
) -> None:
    first = projection.project_candidate(loop, store, "once", candidate)
    assert projection.project_candidate(loop, store, "once", candidate) == first
    assert capfd.readouterr().out == ""
    client = client_of(loop, store)
    experiment = client.get_experiment_by_name("orders--once")
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [first.run_id]
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["params.max_depth"] == "2"
    assert run.data.params["rounds"] == "5"
    assert run.data.metrics["log_loss"] == 0.39
    assert run.data.tags["treadle.record_id"] == candidate.id
    assert run.data.tags["team"] == "ops"
    history = client.get_metric_history(first.run_id, "train_log_loss")
    assert [(point.step, point.value) for point in history] == [(0, 0.6), (1, 0.5), (2, 0.4)]
    (version,) = client.search_model_versions("name = 'orders--once'")
    assert (str(version.version), version.run_id) == (first.version, first.run_id)


def test_what_a_search_found_stands_beside_what_the_loop_says(
    loop: Loop, store: Store, candidate: Candidate
) -> None:
    found = {"search": {"params": {"max_depth": 7, "booster": "dart"}}}
    tuned = candidate.model_copy(update={"notes": found})
    run_id = projection.project_candidate(loop, store, "searched", tuned).run_id
    params = client_of(loop, store).get_run(run_id).data.params
    assert (params["params.max_depth"], params["params.booster"]) == ("7", "dart")
    assert params["rounds"] == "5"


def test_the_production_track_has_the_loops_plain_name() -> None:
    assert projection.model_name(make_loop(), "production") == "orders"
    assert projection.model_name(make_loop(), "replay") == "orders--replay"


def test_pyfunc_predicts_what_the_predictor_does(loop: Loop, store: Store, candidate: Candidate) -> None:
    mlflow = projection.import_mlflow()
    import pandas as pd
    from treadle.models import load_candidate

    found = projection.project_candidate(loop, store, "pyfunc", candidate)
    version = client_of(loop, store).get_model_version("orders--pyfunc", found.version)
    loaded = mlflow.pyfunc.load_model(version.source)
    predictor = load_candidate(store, candidate)
    columns = {
        "amount": [0.5, None, -2.0],
        "express": [True, False, None],
        "region": ["west", "unseen", None],
        "more": [1, 2, 3],
    }
    expected = predictor.predict(SCHEMA.encode(columns))
    frame = pd.DataFrame(columns)
    np.testing.assert_array_equal(loaded.predict(frame), expected)
    np.testing.assert_array_equal(loaded.predict(frame.astype({"region": "category"})), expected)
    whole = pd.DataFrame({"amount": [1, 2], "express": [True, False], "region": ["east", "west"]})
    assert whole["amount"].dtype == "int64"
    np.testing.assert_array_equal(
        loaded.predict(whole), predictor.predict(SCHEMA.encode(whole.to_dict("list")))
    )
    requirements = Path(version.source.removeprefix("file://"), "requirements.txt").read_text()
    assert "xgboost==" in requirements
    assert not list(Path(version.source.removeprefix("file://")).rglob("*.pkl"))
    with pytest.raises(UserError, match="the model needs the columns region"):
        loaded.predict(whole.drop(columns="region"))


def test_a_killed_projection_is_completed(loop: Loop, store: Store, candidate: Candidate) -> None:
    client = client_of(loop, store)
    experiment = client.create_experiment("orders--killed", (Path(store.uri) / "mlartifacts/killed").as_uri())
    half = client.create_run(experiment, tags={"treadle.record_id": candidate.id})
    client.log_param(half.info.run_id, "rounds", "5")
    found = projection.project_candidate(loop, store, "killed", candidate)
    assert found.run_id == half.info.run_id
    assert client.get_run(found.run_id).info.status == "FINISHED"


def test_of_two_runs_and_versions_with_one_tag_the_older_count(
    loop: Loop, store: Store, candidate: Candidate
) -> None:
    client = client_of(loop, store)
    found = projection.project_candidate(loop, store, "two", candidate)
    run = client.get_run(found.run_id)
    client.create_run(run.info.experiment_id, tags={"treadle.record_id": candidate.id})
    tags = {"treadle.record_id": candidate.id}
    client.create_model_version("orders--two", f"{run.info.artifact_uri}/model", found.run_id, tags=tags)
    assert projection.project_candidate(loop, store, "two", candidate) == found


def test_a_version_that_was_deleted_is_made_again(loop: Loop, store: Store, candidate: Candidate) -> None:
    client = client_of(loop, store)
    found = projection.project_candidate(loop, store, "again", candidate)
    client.delete_registered_model("orders--again")
    client.delete_run(found.run_id)
    again = projection.project_candidate(loop, store, "again", candidate)
    assert again.run_id != found.run_id
    assert client.get_model_version("orders--again", again.version).run_id == again.run_id


def test_a_deleted_experiment_is_taken_up_again(loop: Loop, store: Store, candidate: Candidate) -> None:
    client = client_of(loop, store)
    found = projection.project_candidate(loop, store, "restored", candidate)
    client.delete_experiment(client.get_run(found.run_id).info.experiment_id)
    projection.project_candidate(loop, store, "restored", candidate)
    assert client.get_experiment_by_name("orders--restored").lifecycle_stage == "active"


def test_the_alias_follows_and_is_read_back(
    loop: Loop, store: Store, candidate: Candidate, tmp_path: Path
) -> None:
    track = "alias"
    assert projection.champion_alias(loop, store, track) is None
    versions = [
        projection.project_candidate(loop, store, track, each).version
        for each in (candidate, make_candidate(store, loop, tmp_path, seed=1))
    ]
    assert versions == ["1", "2"]
    assert projection.champion_alias(loop, store, track) is None
    for version in ("1", "2", "2", "1"):
        projection.set_champion_alias(loop, store, track, version)
        assert projection.champion_alias(loop, store, track) == version
    with pytest.raises(Transient, match=r"MLflow at sqlite:.*run again"):
        projection.set_champion_alias(loop, store, track, "77")


def test_an_alias_that_another_writer_moved_is_noticed(
    loop: Loop, store: Store, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    for each in (candidate, make_candidate(store, loop, tmp_path, seed=2)):
        projection.project_candidate(loop, store, "contested", each)
    set_alias = MlflowClient.set_registered_model_alias

    def set_and_lose(self: Any, name: str, alias: str, version: str) -> None:
        set_alias(self, name, alias, version)
        set_alias(self, name, alias, "1")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_and_lose)
    with pytest.raises(Transient, match="was set to version 2 and reads 1: something else moves it"):
        projection.set_champion_alias(loop, store, "contested", "2")


def test_a_warm_projection_is_quick(loop: Loop, store: Store, tmp_path: Path) -> None:
    projection.project_candidate(loop, store, "warm", make_candidate(store, loop, tmp_path, seed=3))
    other = make_candidate(store, loop, tmp_path, seed=4)
    began = time.perf_counter()
    projection.project_candidate(loop, store, "warm", other)
    assert time.perf_counter() - began < 9  # 0.3 s on an idle machine; inferring requirements takes 12


@pytest.mark.slow
def test_four_processes_at_once_in_a_fresh_store_all_succeed(loop: Loop, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "fresh")
    candidate = make_candidate(store, loop, tmp_path)
    script = """
import sys
from pathlib import Path
from treadle.loop import Loop
from treadle.records import Candidate
from treadle.registry.mlflow import project_candidate
from treadle.store import LocalStore
loop = Loop.model_validate_json(sys.argv[1])
print(project_candidate(loop, LocalStore(Path(sys.argv[3])), "production", Candidate.from_json(sys.argv[2])))
"""
    arguments = [loop.model_dump_json(by_alias=True), candidate.to_json(), store.uri]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for _ in range(4)
    ]
    answers = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert len({answer[0] for answer in answers}) == 1, answers
    assert answers[0][0].startswith("Projection(")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "model-0"], (
        "nothing in the working folder"
    )
    assert not list(Path(store.uri).glob(".new-*"))


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
