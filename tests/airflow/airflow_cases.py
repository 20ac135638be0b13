"""A task's context without a database: what operators read of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.execution_time.context import OutletEventAccessors


class Notes(dict[str, Any]):
    """The state of a task, which outlives its tries.

    Attributes:
        forgets: Whether what is said is lost, as with a worker that dies before.
    """

    forgets = False

    def set(self, key: str, value: Any) -> None:
        if not self.forgets:
            self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


@dataclass
class Ti:
    """A task instance: what was pushed, and the runs before it by their state."""

    pushed: dict[str, Any] = field(default_factory=dict)
    earlier: dict[str, Any] = field(default_factory=dict)
    first_reschedule: datetime | None = None
    dag_id: str = "orders"
    run_id: str = "manual__1"
    task_id: str = "x"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 2

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        return self.first_reschedule

    def get_previous_dagrun(self, state: str) -> Any:
        return self.earlier.get(state)


def context(
    *,
    conf: dict[str, Any] | None = None,
    run_type: str = "manual",
    logical_date: datetime | None = None,
    run_after: datetime | None = None,
    user: str | None = None,
    ti: Ti | None = None,
    notes: Notes | None = None,
    told: dict[Any, list[Any]] | None = None,
    task: Any = None,
) -> Any:
    """What `execute` takes."""
    run = SimpleNamespace(
        conf=conf,
        run_type=DagRunType(run_type),
        logical_date=logical_date,
        run_after=run_after or datetime(2024, 3, 4, tzinfo=UTC),
        triggering_user_name=user,
    )
    return {
        "dag_run": run,
        "params": conf or {},
        "ti": ti or Ti(),
        "task": task,
        "task_state_store": Notes() if notes is None else notes,
        "outlet_events": OutletEventAccessors(),
        "inlet_events": told or {},
        "triggering_asset_events": {},
    }


def sent(context: Any, alias: Any) -> list[dict[str, Any]]:
    """The extras of the events that a task added to an alias."""
    return [event.extra for event in context["outlet_events"][alias].asset_alias_events]
