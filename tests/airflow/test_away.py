"""A cluster that is away for a while: tasks are tried again, waits go on, and no job is submitted twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow_cases import Notes, Ti, context
from cluster import ADDRESS, Server, serving_cluster
from treadle_airflow.operators.jobs import NOTE
from treadle_airflow.operators.stages import TreadlePrepareOperator
from treadle_airflow.sensors.treadle import TreadleJobSensor
from treadle_airflow.triggers.job import wait_for_job
from wheel import Wheel

AS_OF = "2024-02-05"
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Far:
    """A cluster that holds its jobs back, and the tries of one task that runs there."""

    wheel: Wheel
    server: Server
    monkeypatch: pytest.MonkeyPatch
    notes: Notes

    def away(self) -> None:
        self.monkeypatch.setenv(ADDRESS, NOWHERE)

    def back(self) -> None:
        self.monkeypatch.setenv(ADDRESS, self.server.address)

    def context(self, **ti: Any) -> Any:
        return context(conf={"as_of": AS_OF, "pools": ["prepare=far"]}, notes=self.notes, ti=Ti(**ti))

    def task(self, **options: Any) -> TreadlePrepareOperator:
        return TreadlePrepareOperator(task_id="x", loop=self.wheel.path, poll_interval=0.05, **options)

    def deferred(self, **ti: Any) -> Any:
        """The trigger that a try defers to."""
        with pytest.raises(TaskDeferred) as told:
            self.task().execute(self.context(**ti))
        return told.value.trigger

    def ended(self) -> None:
        """Returns when the job has ended, which nobody looked at."""
        self.server.release()
        (handle,) = self.server.started.values()
        until(lambda: self.server.backend.status(handle).is_over)

    def tried_again(self, attempt: Callable[[], Any]) -> str:
        """The words of a failure that Airflow answers with another try."""
        with pytest.raises(AirflowException) as told:
            attempt()
        assert not isinstance(told.value, AirflowFailException)
        return str(told.value)


@pytest.fixture
def far(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    monkeypatch.setenv("AIRFLOW_CONN_TREADLE_DEFAULT", '{"conn_type": "treadle"}')
    here = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))
    (wheel.path.parent / "pools.yaml").write_text('far: {backend: "cluster:Cluster"}\n')
    with serving_cluster(tmp_path / "cluster") as server:
        server.held = True
        made = Far(wheel, server, monkeypatch, Notes())
        made.back()
        yield made


def until(look: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not look():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_task_that_can_t_submit_is_tried_again_and_submits_once(far: Far) -> None:
    far.away()
    assert "can't be reached" in far.tried_again(lambda: far.task().execute(far.context()))
    far.back()
    far.deferred(try_number=2)
    assert len(far.server.jobs) == 1


def test_a_task_that_can_t_see_how_its_job_ended_is_tried_again_and_finds_it(far: Far) -> None:
    trigger = far.deferred()
    event = {"ref": trigger.ref, "state": "succeeded", "timed_out": False}
    far.away()
    far.tried_again(lambda: far.task().execute_complete(far.context(), event))
    far.tried_again(lambda: far.task().execute(far.context(try_number=2)))
    far.ended()
    far.back()
    assert far.deferred(try_number=3).ref == trigger.ref
    assert not far.task().execute_complete(far.context(try_number=3), event)["reused"]
    assert far.server.submits == 1


def test_a_job_that_ends_while_nobody_can_look_is_not_submitted_again(far: Far) -> None:
    trigger = far.deferred()
    far.server.meanwhile = far.ended
    far.tried_again(lambda: far.task().execute(far.context(try_number=2)))
    assert far.deferred(try_number=3).ref == trigger.ref
    assert far.server.submits == 1


def test_a_try_whose_success_airflow_never_heard_of_is_followed_by_one_that_finds_its_job(far: Far) -> None:
    trigger = far.deferred()
    far.ended()
    event = {"ref": trigger.ref, "state": "succeeded", "timed_out": False}
    first = far.task().execute_complete(far.context(), event)
    assert far.deferred(try_number=2).ref == trigger.ref
    assert far.task().execute_complete(far.context(try_number=2), event) == first
    assert far.server.submits == 1
    assert far.deferred(try_number=3, max_tries=4).ref != trigger.ref, "who clears a task asks anew"


def test_a_job_that_was_never_noted_and_ended_meanwhile_is_found(far: Far) -> None:
    far.notes.forgets = True  # the worker dies with its job submitted
    lost = far.deferred().ref
    far.ended()
    far.notes.forgets = False
    assert far.deferred(try_number=2).ref == lost
    event = {"ref": lost, "state": "succeeded", "timed_out": False}
    assert not far.task().execute_complete(far.context(try_number=2), event)["reused"]
    assert far.server.submits == 1


def test_another_task_and_another_life_ask_for_themselves(far: Far) -> None:
    far.notes.forgets = True
    lost = far.deferred().ref
    far.ended()
    assert far.deferred(map_index=1).ref != lost
    assert far.deferred(max_tries=4).ref != lost, "who clears a task asks anew"


def test_a_wait_outlives_a_cluster_that_is_away_and_asks_less_and_less_often(far: Far) -> None:
    trigger, said = far.deferred(), []

    def say(words: str, *about: Any) -> None:
        said.append(words % about)
        if len(said) == 3:
            far.back()
            far.server.release()

    far.away()
    event = asyncio.run(wait_for_job(trigger.ref, 0.05, None, say, 60))
    assert event["state"] == "succeeded"
    pauses = [words.rpartition("looking again in ")[2] for words in said[:3]]
    assert pauses == ["0.1 s", "0.2 s", "0.4 s"]


def test_a_wait_that_saw_nothing_for_as_long_as_was_said_ends_in_another_try(far: Far) -> None:
    far.deferred()
    waiting = far.task(deferrable=False, job_patience=timedelta(seconds=0.2))
    sensor = TreadleJobSensor(
        task_id="y", job=far.notes[NOTE]["ref"], deferrable=False, poke_interval=0.05, patience=0.2
    )
    far.away()
    assert "out of sight for 0.2 s" in far.tried_again(lambda: sensor.execute(far.context()))
    far.back()
    event = asyncio.run(_out_of_sight(far, waiting))
    words = far.tried_again(lambda: waiting.execute_complete(far.context(), event))
    assert "the next try finds it" in words
    far.ended()
    assert waiting.execute_complete(far.context(), event)["stage"] == "prepare", "the worker saw its end"
    assert far.server.submits == 1


async def _out_of_sight(far: Far, task: TreadlePrepareOperator) -> dict[str, Any]:
    far.away()
    told = await wait_for_job(
        far.notes[NOTE]["ref"], 0.05, None, task.log.info, task.job_patience.total_seconds()
    )
    far.back()
    return told


@pytest.mark.parametrize("pool", ["none", "far"])
def test_what_the_core_has_tried_again_itself_fails_at_once(far: Far, pool: str) -> None:
    far.server.held = False
    far.wheel.edit("orders.yaml", "orders: orders.csv", f"orders: {NOWHERE}/orders.csv")
    far.wheel.edit("orders.yaml", "gate:\n", "retry: {attempts: 1}\ngate:\n")
    given = context(conf={"as_of": AS_OF, "pools": [f"prepare={pool}"]}, notes=far.notes)
    with pytest.raises(AirflowFailException, match=r"Transient.*orders"):
        far.task(deferrable=False).execute(given)
