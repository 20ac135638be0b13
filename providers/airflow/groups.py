"""A loop as a task group, for the user's own DAG: between their own tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator, TaskGroup
from treadle.loop import Loop
from treadle_airflow import assets
from treadle_airflow.files import spec_digest_of
from treadle_airflow.hooks.treadle import DEFAULT_CONN_ID
from treadle_airflow.operators.base import PRODUCTION
from treadle_airflow.operators.stages import CIRCLE, OPERATORS, TreadleGateOperator, TreadleStageOperator

# As in treadle.walk, whose import would be paid at every parse; a test holds the two together.
NEEDS = {
    "featurize": ("prepare",),
    "train": ("featurize",),
    "evaluate": ("train", "featurize"),
    "release": ("evaluate", "train"),
    "deploy": ("release",),
}


def loop_task_group(
    loop: Loop | str | os.PathLike[str],
    *,
    group_id: str | None = None,
    track: str = PRODUCTION,
    overrides: Sequence[str] = (),
    treadle_conn_id: str = DEFAULT_CONN_ID,
    operators: Mapping[str, type[TreadleStageOperator]] | None = None,
    **kwargs: Any,
) -> TaskGroup:
    """The stages of a loop, prepare to deploy, as one group of tasks in the DAG at hand.

    A challenger that lost ends the group with `release` and `deploy` skipped; give what comes after it
    `trigger_rule="none_failed"` if it should run then, too.

    Args:
        loop: The loop, or the path of its file.
        group_id: The group's name; the loop's by default.
        track: Whose release log is read and written.
        overrides: `section.field=value` each, as `--set`.
        treadle_conn_id: The connection with store, MLflow address and credentials.
        operators: Stage to the class that runs it, where it isn't treadle's own.
        kwargs: What else every stage's operator takes.

    Raises:
        SpecError: The loop's file can't be used.
    """
    read = loop if isinstance(loop, Loop) else Loop.load(loop)
    with TaskGroup(group_id=group_id or read.name, tooltip=read.description) as group:
        add_circle(
            read,
            operators=operators or {},
            track=track,
            overrides=overrides,
            treadle_conn_id=treadle_conn_id,
            **kwargs,
        )
    return group


def add_circle(loop: Loop, *, operators: Mapping[str, type[TreadleStageOperator]], **common: Any) -> None:
    """The groups prepare to deploy, each with its tasks, into the DAG or group at hand."""
    common = {"loop": loop, "spec_digest": spec_digest_of(loop), **common}
    known = OPERATORS | dict(operators)
    tasks: dict[str, TreadleStageOperator] = {}
    outlets = {
        "release": [assets.alias_of(assets.candidate(loop.name))],
        "deploy": [assets.alias_of(assets.champion(loop.name))],
    }
    before: Any = None
    for stage in CIRCLE:
        more: dict[str, Any] = {**placement_of(loop, stage, common), "outlets": outlets.get(stage, [])}
        more["inputs"] = {name: told_by(tasks[name], "id") for name in NEEDS.get(stage, ())}
        if stage == "deploy":
            more["released"] = told_by(tasks["release"], "outcome")
        with TaskGroup(group_id=stage) as group:
            tasks[stage] = known[stage](task_id="run", **common, **more)
            if stage == "evaluate":
                tasks["gate"] = TreadleGateOperator(
                    task_id="gate",
                    decision=told_by(tasks["evaluate"], "decision"),
                    inputs={name: told_by(tasks[name], "id") for name in NEEDS["release"]},
                    **common,
                )
                tasks["evaluate"] >> tasks["gate"]
        if before is not None:
            before >> group
        before = group


def told_by(task: BaseOperator, name: str) -> str:
    """A template of one value of what a task returned; the tasks' order is set apart from it."""
    return f"{{{{ ti.xcom_pull(task_ids='{task.task_id}')['{name}'] }}}}"


def placement_of(loop: Loop, stage: str, common: Mapping[str, Any]) -> dict[str, Any]:
    """Airflow's own pool and queue for a stage, where the user's pool of hardware names them."""
    asked = common.get("treadle_pool")
    if asked == "none" or (stage not in loop.pools and not asked):
        return {}
    from treadle import jobs

    pool = jobs.pool_of(loop, stage, override=asked)
    return pool.airflow.model_dump(exclude_none=True) if pool is not None and pool.airflow else {}
