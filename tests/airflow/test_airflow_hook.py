"""The connection: what it carries, for how long, and what it never shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from treadle.errors import UserError
from treadle_airflow.hooks.treadle import TreadleHook
from wheel import FIRST, Wheel

SECRET = "wJalrXUtnFEMI"


def connect(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> TreadleHook:
    told = {"conn_type": "treadle", "login": "ann", "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps(told))
    return TreadleHook("mine")


def test_a_session_has_the_connection_s_store_and_environment_and_gives_it_back(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://before")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    hook = connect(
        monkeypatch,
        store=str(wheel.store),
        mlflow="http://mlflow:5000",
        environment={"AWS_SECRET_ACCESS_KEY": SECRET},
    )
    with hook.session(wheel.path, as_of=FIRST, track="trial", who="bea") as session:
        assert (session.store.uri, session.track, session.who) == (
            wheel.session(FIRST).store.uri,
            "trial",
            "bea",
        )
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://before"
    assert not {"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} & os.environ.keys()
    assert SECRET not in repr(hook.settings)


def test_an_environment_may_be_text_as_the_form_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = connect(monkeypatch, environment='{"AWS_REGION": "eu-west-1"}')
    assert hook.settings.environment["AWS_REGION"] == "eu-west-1"


@pytest.mark.parametrize("environment", ["AWS_REGION=eu", ["AWS_REGION"], {"AWS_REGION": 7}])
def test_an_environment_that_is_no_object_of_texts_is_said(
    monkeypatch: pytest.MonkeyPatch, environment: Any
) -> None:
    with pytest.raises(UserError, match="`environment` is a JSON object of texts"):
        _ = connect(monkeypatch, environment=environment).settings


def test_the_form_s_test_button_opens_the_store(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect(monkeypatch, store=str(wheel.store)).test_connection()[0]
    assert "No store" in connect(monkeypatch).test_connection()[1]
    (wheel.store / "file").write_text("")
    worked, words = connect(monkeypatch, store=f"{wheel.store}/file/under").test_connection()
    assert not worked
    assert "under" in words


def test_links_hold_no_credentials(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle_airflow.links import links_of

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:{SECRET}@mlflow.example.com/base/")
    hook = connect(monkeypatch, endpoint="https://serve.example.com")
    run = wheel.run(FIRST, to="release")
    session = wheel.session(FIRST)
    for stage in ("train", "evaluate", "release"):
        links = links_of(session, run[stage], hook.settings)
        assert links["MLflow run"].startswith("https://mlflow.example.com/base/#/runs/")
    assert links["Endpoint"] == "https://serve.example.com"
    assert links_of(session, run["prepare"], hook.settings) == {}


def test_a_default_connection_that_is_not_there_means_the_worker_s_environment(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    def gone(conn_id: str) -> Any:
        raise AirflowNotFoundException(conn_id)

    monkeypatch.setattr(Connection, "get", gone)
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    with TreadleHook().session(wheel.path, as_of=FIRST) as session:
        assert Path(session.store.uri.removeprefix("file://")) == wheel.store
