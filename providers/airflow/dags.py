"""The DAGs of a loop.

<loop>              prepare ► featurize ► train ► evaluate ► release ► deploy
                    on the cron of `retrain.schedule`, on the loop's retrain asset, or on the user's assets
<loop>__monitor     monitor ► retrain          every `monitor.every`; asks for a run by the retrain asset
<loop>__release     propose ► ask ► approved or rejected ► deploy, where approval is manual; see release.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    AssetAny,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    DeltaTriggerTimetable,
    Param,
)
from airflow.sdk.definitions.asset import BaseAsset
from treadle.clock import format_duration
from treadle.errors import TreadleError, UserError
from treadle.loop import Loop
from treadle_airflow import assets
from treadle_airflow.clock import cron_every, cron_of
from treadle_airflow.docs import doc_of
from treadle_airflow.files import spec_digest_of
from treadle_airflow.groups import add_circle, told_by
from treadle_airflow.hooks.treadle import DEFAULT_CONN_ID
from treadle_airflow.operators.base import PRODUCTION
from treadle_airflow.operators.stages import OPERATORS, TreadleStageOperator

START = datetime(2000, 1, 1, tzinfo=UTC)
FROM_LOOP = "from the loop"


class DagOfLoop(DAG):
    """What the DAGs of a loop share: owner, retries, tags, page and form; the user's own arguments win."""

    def __init__(self, loop: Loop, role: str, dag_id: str, **settings: Any) -> None:
        own_args = settings.pop("default_args", None) or {}
        common = {
            **common_settings(loop, role),
            "doc_md": doc_of(loop),
            "max_active_runs": 1,
            "default_args": {**default_args_of(loop), **own_args},
        }
        super().__init__(dag_id, **{**common, **settings})
        self.fileloc = sys._getframe(2).f_code.co_filename

    @contextmanager
    def building(self) -> Iterator[None]:
        """Within it, tasks become this DAG's; one that can't be built whole is not there at all."""
        registers, self.auto_register = self.auto_register, False
        with self:
            yield
        self.auto_register = registers


class LoopDag(DagOfLoop):
    """The DAG that turns a loop's wheel: prepare, featurize, train, evaluate, release, deploy.

    Args:
        loop: The loop, or the path of its file.
        schedule: A cron text, a timetable or None, instead of the loop's `retrain.schedule`.
        assets: Assets of yours; an event of any of them starts a run, too.
        dag_id: The loop's name by default.
        track: Whose release log runs read and write, unless their conf says otherwise.
        overrides: `section.field=value` each, as `--set`.
        treadle_conn_id: The connection with store, MLflow address and credentials.
        operators: Stage to the class that runs it, where it isn't treadle's own.
        kwargs: What else a DAG takes, such as `default_args`; owner and retries come from the loop.

    Raises:
        SpecError: The loop's file can't be used.
    """

    def __init__(
        self,
        loop: Loop | str | os.PathLike[str],
        *,
        schedule: Any = FROM_LOOP,
        assets: Sequence[Asset] = (),
        dag_id: str | None = None,
        track: str = PRODUCTION,
        overrides: Sequence[str] = (),
        treadle_conn_id: str = DEFAULT_CONN_ID,
        operators: Mapping[str, type[TreadleStageOperator]] | None = None,
        **kwargs: Any,
    ) -> None:
        read = loop if isinstance(loop, Loop) else Loop.load(loop)
        kwargs = {"description": read.description or f"Keeps {read.name} alive", **kwargs}
        schedule = _schedule_of(read, schedule, assets)
        super().__init__(read, "retrain", dag_id or read.name, schedule=schedule, **kwargs)
        with self.building():
            add_circle(
                read,
                operators=operators or {},
                track=track,
                overrides=overrides,
                treadle_conn_id=treadle_conn_id,
            )
        add_form(self, track)


class MonitorDag(DagOfLoop):
    """The DAG that watches a loop: monitor, then retrain, which asks for a run where the policy says so.

    Args are those of LoopDag. A loop without a `monitor` section has none; without `retrain` it is only watched.

    Raises:
        SpecError: The loop's file can't be used. UserError: The loop has no `monitor` section.
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
        **kwargs: Any,
    ) -> None:
        read = loop if isinstance(loop, Loop) else Loop.load(loop)
        if read.monitor is None:
            raise UserError(f"the loop {read.name!r} has no `monitor` section: add `monitor: {{every: 7d}}`")
        kwargs = {"description": f"Watches {read.name} every {format_duration(read.monitor.every)}", **kwargs}
        schedule = _monitor_schedule(read) if schedule == FROM_LOOP else schedule
        super().__init__(read, "monitor", dag_id or f"{read.name}__monitor", schedule=schedule, **kwargs)
        known = OPERATORS | dict(operators or {})
        common: dict[str, Any] = {
            "loop": read,
            "spec_digest": spec_digest_of(read),
            "track": track,
            "overrides": overrides,
            "treadle_conn_id": treadle_conn_id,
        }
        with self.building():
            monitor = known["monitor"](task_id="monitor", **common)
            if read.retrain is not None:
                asked = assets.retrain(read.name)
                listening = bool(read.retrain.on)
                retrain = known["retrain"](
                    task_id="retrain",
                    inputs={"monitor": told_by(monitor, "id")},
                    inlets=[asked] if listening else [],
                    outlets=[assets.alias_of(asked)] if listening else [],
                    **common,
                )
                monitor >> retrain
        add_form(self, track)


def dags_of(loop: Loop, **kwargs: Any) -> Iterator[DAG]:
    """The DAGs of a loop: two, or three where its approval is manual; one where it isn't monitored."""
    yield LoopDag(loop, **kwargs)
    if loop.monitor is not None:
        yield MonitorDag(loop, **kwargs)
    if loop.approval == "manual":
        from treadle_airflow.release import ReleaseDag

        yield ReleaseDag(loop, **kwargs)


def default_args_of(loop: Loop) -> dict[str, Any]:
    """What every task of a loop has. A retry is for a worker that died: the core has tried all else again already."""
    return {
        "owner": loop.owner or "treadle",
        "retries": loop.retry.attempts - 1,
        "retry_delay": loop.retry.wait,
    }


def common_settings(loop: Loop, role: str) -> dict[str, Any]:
    """What every DAG of a loop has: its tags, and a first date from which backfills may begin."""
    return {
        "start_date": loop.history.from_ or START,
        "catchup": False,
        "tags": {"treadle", role, *(f"{name}:{value}" for name, value in loop.tags.items())},
    }


def add_form(dag: DAG, track: str) -> None:
    """The form that Trigger shows, and what a run's conf may say.

    Added after the tasks: Airflow would copy and check the fields for each of them, which takes most of a parse.
    """
    for name, field in form_of(track).items():
        if name not in dag.params:
            dag.params[name] = field


def form_of(track: str) -> dict[str, Param]:
    """The fields of the form."""
    return {
        "as_of": Param(
            None,
            type=["null", "string"],
            title="As of",
            description="The clock, such as 2013-04-01: only what was known before it exists. Empty: the run's date.",
        ),
        "track": Param(
            track,
            type="string",
            pattern="^[a-z0-9][a-z0-9_-]{0,40}$",
            title="Track",
            description="production, or a name of your own for a replay or a trial, with a log and models of its own.",
        ),
        "set": Param(
            [],
            type="array",
            items={"type": "string", "pattern": "^[a-z_]+([.][A-Za-z0-9_]+)*=.*$"},
            title="Set",
            description="Changes for this run, one a line: train.rounds=50. In production a person is asked.",
        ),
        "pools": Param(
            [],
            type="array",
            items={"type": "string", "pattern": "^[a-z]+=.+$"},
            title="Pools",
            description="Where stages run, one a line: train=gpu; none is the task's own process.",
        ),
    }


def _schedule_of(loop: Loop, schedule: Any, own: Sequence[Asset]) -> Any:
    """Cron or assets: any one event, or a tick."""
    listening: list[BaseAsset] = list(own)
    if loop.monitor is not None and loop.retrain is not None and loop.retrain.on:
        listening.append(assets.retrain(loop.name))
    timetable = schedule
    if schedule == FROM_LOOP:
        timetable = loop.retrain.schedule if loop.retrain else None
    if isinstance(timetable, str):
        timetable = CronTriggerTimetable(cron_of(timetable), timezone="UTC")
    if not listening:
        return timetable
    if timetable is None:
        return AssetAny(*listening)
    return AssetOrTimeSchedule(timetable=timetable, assets=AssetAny(*listening))


def _monitor_schedule(loop: Loop) -> Any:
    assert loop.monitor is not None
    cron = cron_every(loop.monitor.every)
    return CronTriggerTimetable(cron, timezone="UTC") if cron else DeltaTriggerTimetable(loop.monitor.every)


class _BrokenLoop(DAG):
    """Stands for a loop file that can't be used.

    Airflow keeps one import error a path, and holds back every DAG of a path that has one: so the error has to come up
    under the loop's own path, which is that of a DAG that can't be stored.
    """

    error: TreadleError
    place: str

    @property
    def relative_fileloc(self) -> str:
        return self.place

    @relative_fileloc.setter
    def relative_fileloc(self, path: str | None) -> None:
        """The place stays the loop's, whatever file made it."""

    @property
    def edge_info(self) -> Any:
        raise self.error

    @edge_info.setter
    def edge_info(self, value: object) -> None:
        """There are no edges."""


def broken_dag(path: Path, error: TreadleError) -> DAG:
    """A DAG that becomes an import error under a loop's path, in the error's words, when Airflow stores it."""
    dag = _BrokenLoop(f"{path.stem}__import_error", schedule=None)
    dag.error, dag.place = error, str(path)
    return dag
