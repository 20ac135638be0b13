"""Sensors: a new champion, labels that arrived, a job on a pool."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred
from airflow_cases import Notes, context
from home import Home
from treadle import acts
from treadle.clock import parse_instant
from treadle.data.labels import label_coverage
from treadle.hardware.backend import Handle
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef, submit
from treadle.loop import Loop
from treadle_airflow.sensors.treadle import ChampionChangedSensor, LabelsAvailableSensor, TreadleJobSensor
from treadle_airflow.triggers.watch import TreadleWatchTrigger
from wheel import SECOND, THIRD, Wheel, lenient


@pytest.fixture(autouse=True)
def place(wheel: Wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))


def at(as_of: str, notes: Notes) -> Any:
    return context(conf={"as_of": as_of}, notes=notes)


def test_a_champion_that_changed_since_the_first_look_is_told(wheel: Wheel) -> None:
    lenient(wheel)
    sensor, notes = ChampionChangedSensor(task_id="wait", loop=wheel.path), Notes()
    assert sensor.reschedule
    first = wheel.session(SECOND).log.champion()
    assert first is not None
    assert not sensor.poke(at(SECOND, notes))
    wheel.run(SECOND)
    found = sensor.poke(at(SECOND, notes))
    second = wheel.session(SECOND).log.champion()
    assert second is not None
    assert found.is_done
    assert found.xcom_value["candidate"] == second.candidate
    assert (found.xcom_value["by"], found.xcom_value["version"]) == ("ann", second.sequence)

    # By name, whoever looks first; and a rollback is a change, too.
    named = ChampionChangedSensor(task_id="named", loop=wheel.path, than=str(first.candidate)[:12])
    assert named.poke(at(SECOND, Notes())).is_done
    acts.rollback(wheel.session(THIRD), "complaints")
    assert not named.poke(at(THIRD, Notes()))


def test_labels_are_waited_for_until_the_source_has_them(wheel: Wheel) -> None:
    orders = wheel.path.parent / "orders.csv"
    whole = orders.read_text().splitlines()
    placed = whole[0].split(",").index("placed_at")
    early = [line for line in whole[1:] if line.split(",")[placed] < "2024-02-20"]
    orders.write_text("\n".join([whole[0], *early]) + "\n")
    sensor, notes = LabelsAvailableSensor(task_id="labels", loop=wheel.path), Notes()
    assert not sensor.poke(at(SECOND, notes))
    assert not sensor.poke(at(SECOND, notes))

    # The whole stretch to as_of less the label's delay, and its last day.
    orders.write_text("\n".join(whole) + "\n")
    found = sensor.poke(at(SECOND, notes))
    assert found.is_done
    assert (found.xcom_value["start"], found.xcom_value["end"]) == (
        "2024-02-16T00:00:00Z",
        "2024-03-01T00:00:00Z",
    )
    assert found.xcom_value["labelled"] == found.xcom_value["rows"] == 14 * 40


def test_a_label_that_became_known_after_the_run_s_time_is_not_there(wheel: Wheel) -> None:
    end = parse_instant(SECOND)
    found = label_coverage(Loop.load(wheel.path), end, parse_instant("2024-02-19"), end)
    # Orders take up to 60 hours: those of the last day have almost no label yet.
    assert found.rows == 14 * 40
    assert 0.8 < found.labelled / found.rows < 1
    assert found.share < 0.3
    nothing = label_coverage(Loop.load(wheel.path), end, end, parse_instant(THIRD))
    assert (nothing.rows, nothing.share) == (0, 0.0)
    strict = LabelsAvailableSensor(task_id="labels", loop=wheel.path, until=SECOND, over="7d", at_least=0.5)
    assert not strict.poke(at(SECOND, Notes()))


def test_a_wrong_stretch_or_share_is_refused(wheel: Wheel) -> None:
    with pytest.raises(ValueError, match="at_least is a share"):
        LabelsAvailableSensor(task_id="labels", loop=wheel.path, at_least=95)
    with pytest.raises(AirflowFailException, match="until: 'soon' is not a date"):
        LabelsAvailableSensor(task_id="labels", loop=wheel.path, until="soon").poke(at(SECOND, Notes()))


def test_a_sensor_in_a_dag_holds_no_slot_and_goes_on(home: Home, wheel: Wheel) -> None:
    (home.dags / "mine.py").write_text(
        "from airflow.sdk import DAG\n"
        "from treadle_airflow import ChampionChangedSensor\n"
        f"with DAG('mine', schedule=None, params={{'as_of': '{SECOND}'}}):\n"
        f"    ChampionChangedSensor(task_id='wait', loop={str(wheel.path)!r}, than='0000', poke_interval=1)\n"
    )
    ran = home.run(home.dag("mine"))
    assert ran.states == {"wait": "success"}
    assert ran.told["wait"]["loop"] == "orders"


def reference() -> JobRef:
    handle = Handle(backend="local", name="treadle-0-1", pool="small", data={"folder": "/nowhere"})
    return JobRef(
        loop="orders",
        stage="prepare",
        job="0",
        attempt=1,
        backend="local",
        pool="small",
        handle=handle,
        store="x",
    )


def test_a_job_is_watched_without_a_slot_and_never_cancelled() -> None:
    job = reference().to_json()
    sensor = TreadleJobSensor(task_id="job", job=job, poke_interval=0.1, timeout=60)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context())
    trigger = deferred.value.trigger
    assert isinstance(trigger, TreadleWatchTrigger)
    path, kwargs = trigger.serialize()
    assert path == "treadle_airflow.triggers.watch.TreadleWatchTrigger"
    assert kwargs.keys() == {"ref", "poll_interval", "deadline", "patience"}
    asyncio.run(trigger.on_kill())

    event = {"ref": job, "state": "succeeded", "timed_out": False}
    assert sensor.execute_complete(context(), event)["state"] == "succeeded"
    with pytest.raises(AirflowFailException, match="ended as preempted"):
        sensor.execute_complete(context(), event | {"state": "preempted"})
    with pytest.raises(AirflowSensorTimeout, match="still runs after 60 s"):
        sensor.execute_complete(context(), event | {"state": "running", "timed_out": True})
    with pytest.raises(AirflowFailException, match="not of its job"):
        sensor.execute_complete(context(), event | {"ref": "other"})


@pytest.mark.slow
def test_a_job_of_this_machine_is_waited_for_to_its_end(wheel: Wheel) -> None:
    ref = submit(wheel.session(SECOND), "prepare", Pool(name="small"), {})
    sensor = TreadleJobSensor(
        task_id="job", job=ref.to_json(), deferrable=False, poke_interval=0.1, timeout=90
    )
    began = time.time()
    assert sensor.execute(context(run_after=datetime(2024, 3, 4, tzinfo=UTC)))["state"] == "succeeded"
    assert time.time() - began < 90
