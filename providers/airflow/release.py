"""The DAG in which a person decides: started by a candidate's event, so that waiting never holds up a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Param, TaskGroup
from treadle.errors import UserError
from treadle.loop import Loop
from treadle_airflow import assets
from treadle_airflow.dags import FROM_LOOP, DagOfLoop
from treadle_airflow.files import spec_digest_of
from treadle_airflow.groups import told_by
from treadle_airflow.hooks.treadle import DEFAULT_CONN_ID
from treadle_airflow.operators.approval import (
    TreadleAnswerOperator,
    TreadleAskOperator,
    TreadleProposeOperator,
)
from treadle_airflow.operators.base import PRODUCTION
from treadle_airflow.operators.stages import OPERATORS, TreadleStageOperator

_RUNS = 100  # questions that may be open at once


class ReleaseDag(DagOfLoop):
    """The DAG that asks a person about a loop's challengers: approve (propose, ask), release, deploy.

    Started by the loop's candidate asset. Triggered by hand, it asks about what waits on a track. Args are those of
    LoopDag, and:

    Args:
        response_timeout: How long a question waits; after it the challenger stays pending in the release log.

    Raises:
        SpecError: The loop's file can't be used. UserError: Its approval isn't manual.
    """

    def __init__(
        self,
        loop: Loop | str | os.PathLike[str],
        *,
        schedule: Any = FROM_LOOP,
        dag_id: str | None = None,
        track: str = PRODUCTION,
        overrides: Sequence[str] = (),
        treadle_conn_id: str = DEFAULT_CONN_ID,
        operators: Mapping[str, type[TreadleStageOperator]] | None = None,
        response_timeout: timedelta | None = timedelta(days=7),
        **kwargs: Any,
    ) -> None:
        read = loop if isinstance(loop, Loop) else Loop.load(loop)
        if read.approval != "manual":
            raise UserError(f"the loop {read.name!r} asks nobody: its approval is {read.approval}")
        schedule = [assets.candidate(read.name)] if schedule == FROM_LOOP else schedule
        own = {
            "description": f"Asks a person about the challengers of {read.name}",
            "max_active_runs": _RUNS,
            **kwargs,
        }
        super().__init__(read, "release", dag_id or f"{read.name}__release", schedule=schedule, **own)
        common: dict[str, Any] = {
            "loop": read,
            "spec_digest": spec_digest_of(read),
            "overrides": overrides,
            "treadle_conn_id": treadle_conn_id,
        }
        deploy = (OPERATORS | dict(operators or {}))["deploy"]
        with self.building():
            _add_tasks(read, deploy, track, response_timeout, common)
        self.params["track"] = Param(
            None,
            type=["null", "string"],
            title="Track",
            description=f"Ask about what waits on this track; empty: that of the event, else {track}.",
        )


def _add_tasks(
    loop: Loop,
    deploy: type[TreadleStageOperator],
    track: str,
    response_timeout: timedelta | None,
    common: Mapping[str, Any],
) -> None:
    """Approve (propose, ask), release (approved or rejected), deploy, into the DAG at hand."""
    with TaskGroup("approve") as approve:
        propose = TreadleProposeOperator(
            task_id="propose", track=track, outlets=[assets.alias_of(assets.candidate(loop.name))], **common
        )
        ask = TreadleAskOperator(
            task_id="ask",
            proposal=returned(propose),
            approved="release.approved",
            rejected="release.rejected",
            response_timeout=response_timeout,
            **common,
        )
        propose >> ask
    with TaskGroup("release") as release:
        approved = TreadleAnswerOperator(task_id="approved", kind="approve", answer=returned(ask), **common)
        TreadleAnswerOperator(task_id="rejected", kind="reject", answer=returned(ask), **common)
    with TaskGroup("deploy"):
        run = deploy(
            task_id="run",
            track=told_by(propose, "track"),
            outlets=[assets.alias_of(assets.champion(loop.name))],
            treadle_pool="none",
            **common,
        )
    approve >> release
    approved >> run


def returned(task: BaseOperator) -> Any:
    """What a task returned, when the one that takes it runs."""
    return task.output
