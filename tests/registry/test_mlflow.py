"""MLflow as a projection: made once, found again, rebuilt, its alias read back."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow_cases import SCHEMA, client_of, make_candidate, make_loop
from treadle.errors import Transient, UserError
from treadle.loop import Loop
from treadle.records import Candidate
from treadle.registry import mlflow as projection
from treadle.store import LocalStore, Store


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
