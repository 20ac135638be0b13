"""A stage on a pool: deferred while a real job runs, found again after a worker's death, cancelled when killed."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow_cases import Notes, context
from treadle import jobs
from treadle.hardware.backends import BACKENDS
from treadle_airflow.operators.jobs import NOTE
from treadle_airflow.operators.stages import TreadlePrepareOperator, TreadleStageOperator
from treadle_airflow.triggers.job import TreadleJobTrigger
from wheel import FIRST, Wheel

EARLY = {"as_of": "2024-02-05", "pools": ["prepare=local"]}


@pytest.fixture(autouse=True)
def here(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("AIRFLOW_CONN_TREADLE_DEFAULT", '{"conn_type": "treadle"}')


def prepare(wheel: Wheel, **options: Any) -> TreadlePrepareOperator:
    return TreadlePrepareOperator(task_id="x", loop=wheel.path, poll_interval=0.1, **options)


def deferred(wheel: Wheel, notes: Notes, **options: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as told:
        prepare(wheel, **options).execute(context(conf=EARLY, notes=notes))
    return told.value


def waited(trigger: Any) -> dict[str, Any]:
    async def first() -> Any:
        return (await anext(trigger.run())).payload

    return asyncio.run(first())  # type: ignore[no-any-return]


def test_a_stage_on_a_pool_waits_without_a_worker_and_is_found_again_after_a_worker_s_death(
    wheel: Wheel,
) -> None:
    notes = Notes()
    first, second = deferred(wheel, notes), deferred(wheel, notes)
    assert first.method_name == "execute_complete"
    assert notes[NOTE]["ref"] == first.trigger.ref == second.trigger.ref  # type: ignore[attr-defined]
    path, stored = first.trigger.serialize()
    assert path == "treadle_airflow.triggers.job.TreadleJobTrigger"
    waited(TreadleJobTrigger(**json.loads(json.dumps(stored))))
    third = deferred(wheel, notes)  # the job ended while nobody looked
    told = prepare(wheel).execute_complete(context(conf=EARLY, notes=notes), waited(third.trigger))
    assert told["id"] == wheel.run(EARLY["as_of"], to="prepare")["prepare"].id  # type: ignore[arg-type]
    assert not told["reused"]


def test_killing_the_task_cancels_the_job_and_a_later_try_begins_anew(wheel: Wheel) -> None:
    notes = Notes()
    put_off = deferred(wheel, notes)
    asyncio.run(put_off.trigger.on_kill())
    ref = jobs.JobRef.from_json(put_off.trigger.ref)  # type: ignore[attr-defined]
    ended = time.monotonic() + 60
    while not jobs.poll(ref).is_over and time.monotonic() < ended:
        time.sleep(0.1)
    assert jobs.poll(ref).state in ("stopped", "preempted")
    later = deferred(wheel, notes)
    assert later.trigger.ref != put_off.trigger.ref  # type: ignore[attr-defined]
    asyncio.run(later.trigger.on_kill())


def test_a_worker_that_is_killed_while_it_waits_cancels_the_job(wheel: Wheel) -> None:
    operator = prepare(wheel)
    with pytest.raises(TaskDeferred) as told:
        operator.execute(context(conf=EARLY, notes=Notes()))
    operator.on_kill()
    ref = jobs.JobRef.from_json(told.value.trigger.ref)  # type: ignore[attr-defined]
    ended = time.monotonic() + 60
    while not jobs.poll(ref).is_over and time.monotonic() < ended:
        time.sleep(0.1)
    assert jobs.poll(ref).state in ("stopped", "preempted")


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_job_that_takes_too_long_is_cancelled(wheel: Wheel, deferrable: bool) -> None:
    notes, options = Notes(), {"deferrable": deferrable, "job_timeout": timedelta(seconds=0.01)}
    given = context(conf=EARLY, notes=notes)
    event = waited(deferred(wheel, notes, **options).trigger) if deferrable else None
    late = prepare(wheel, **options)
    with pytest.raises(AirflowFailException, match="took longer than job_timeout"):
        late.execute_complete(given, event) if deferrable else late.execute(given)


def test_the_stage_s_own_refusal_comes_back_from_the_job_in_its_words(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "column: amount, min_value: 0}", "column: amount, min_value: 1000}")
    notes = Notes()
    event = waited(deferred(wheel, notes).trigger)
    with pytest.raises(AirflowFailException, match=r"(?s)DataRefused.*amount"):
        prepare(wheel).execute_complete(context(conf=EARLY, notes=notes), event)


def test_an_event_that_is_not_of_the_job_is_no_success(wheel: Wheel) -> None:
    notes = Notes()
    put_off = deferred(wheel, notes)
    for event in (None, {}, {"ref": "another", "state": "succeeded"}):
        with pytest.raises(AirflowFailException, match="not of its job"):
            prepare(wheel).execute_complete(context(conf=EARLY, notes=notes), event)
    asyncio.run(put_off.trigger.on_kill())


def test_a_triggerer_that_can_t_look_at_the_job_says_why_and_leaves_none_running(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    put_off = deferred(wheel, notes)
    with monkeypatch.context() as elsewhere:
        elsewhere.setitem(BACKENDS, "local", ("no_such_package:Backend", "kubernetes"))
        event = waited(put_off.trigger)
    with pytest.raises(AirflowFailException, match=r"the triggerer can't look at .*treadle\[kubernetes\]"):
        prepare(wheel).execute_complete(context(conf=EARLY, notes=notes), event)
    ref = jobs.JobRef.from_json(put_off.trigger.ref)  # type: ignore[attr-defined]
    over = time.monotonic() + 60
    while not jobs.poll(ref).is_over and time.monotonic() < over:
        time.sleep(0.1)
    assert jobs.poll(ref).state in ("stopped", "preempted")


@pytest.mark.slow
def test_without_deferral_the_worker_waits(wheel: Wheel) -> None:
    told = prepare(wheel, deferrable=False).execute(context(conf=EARLY))
    assert told["as_of"] == "2024-02-05T00:00:00Z"


def test_a_pool_that_nobody_described_is_said(wheel: Wheel) -> None:
    given = context(conf={"as_of": FIRST, "pools": ["prepare=locl"]})
    with pytest.raises(AirflowFailException, match="no pool 'locl'"):
        prepare(wheel).execute(given)


def test_none_brings_a_stage_back_into_the_task(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "gate:\n", "pools: {prepare: local}\ngate:\n")
    operator = TreadleStageOperator(task_id="x", stage="prepare", loop=wheel.path, treadle_pool="none")
    assert operator.execute(context(conf={"as_of": FIRST}))["reused"]
