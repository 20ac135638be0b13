"""Sensors: a new champion, labels that have arrived, a job on a pool that ended.

ChampionChangedSensor    reads the release log
LabelsAvailableSensor    reads the loop's sources, when they changed since the last look
TreadleJobSensor         deferrable

The first two need the store's or the sources' credentials, which a connection carries: these stay in a task's process,
so they look, give their slot back, and look again (`mode="reschedule"`), and nothing goes to the triggerer. A DAG that
only has to *start* on a new champion needs no sensor: schedule it on `champion("flights")`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)
from treadle.clock import format_instant, parse_duration, parse_instant
from treadle.errors import TreadleError, UserError
from treadle_airflow.operators.base import TreadleOperator
from treadle_airflow.triggers.job import PATIENCE_S, wait_for_job
from treadle_airflow.triggers.watch import TreadleWatchTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from treadle.records import Json
    from treadle.session import Session

_SEEN, _SOURCES = "treadle_champion_seen", "treadle_sources_seen"


class _LoopSensor(TreadleOperator, BaseSensorOperator):
    """Looks with a session of a loop; between two looks it holds no slot."""

    def __init__(self, *, poke_interval: float = 60.0, mode: str = "reschedule", **kwargs: Any) -> None:
        super().__init__(poke_interval=poke_interval, mode=mode, **kwargs)

    def waits(self, error: TreadleError) -> bool:
        """A store that can't be reached may come back."""
        return error.retryable


class ChampionChangedSensor(_LoopSensor):
    """Waits until another model serves; its XCom says which: `candidate`, `version`, `since`, `by`, `why`.

    :param loop: The path of a loop file, or a Loop.
    :param than: How the name of the model begins that must no longer serve. Left out, it is the one that serves when
        the sensor first looks: a promotion before that is not waited for. (templated)

    The other parameters are those of TreadleOperator and of any sensor.
    """

    template_fields: Sequence[str] = (*TreadleOperator.template_fields, "than")

    def __init__(self, *, than: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.than = than

    def poke(self, context: Context) -> PokeReturnValue:
        """Whether another serves."""
        with self.opened(context) as session:
            entry = session.log.champion()
            serving = entry.candidate if entry else None
            than = self.than or self._first_seen(context, serving)
            if entry is None or serving is None or (than and serving.startswith(than)):
                self.log.info("serves: %s", (serving or "no model yet")[:12])
                return PokeReturnValue(is_done=False)
            told = {
                "candidate": serving,
                "version": entry.sequence,
                "since": format_instant(entry.effective_at),
            }
            about = {"loop": session.loop.name, "track": session.track, "by": entry.who, "why": entry.why}
            self.log.info("serves: %s, by %s: %s", serving[:12], entry.who, entry.why)
            return PokeReturnValue(is_done=True, xcom_value={**told, **about})

    def _first_seen(self, context: Context, serving: str | None) -> str:
        """Who served when this task first looked; nobody is an empty text."""
        notes = context["task_state_store"]
        noted = notes.get(_SEEN)
        if not isinstance(noted, str):
            noted = serving or ""
            notes.set(_SEEN, noted)
        return noted


class LabelsAvailableSensor(_LoopSensor):
    """Waits until the labels of a stretch of events have arrived in the loop's sources, as known at the run's time.

    It reads what the next `prepare` would read, and counts: rows and labels that became known at the run's `as_of` or
    later do not exist. Sources that did not change since the last look are hashed, not read into tables. No record
    is written. Its XCom says `rows`, `labelled`, `start`, `end`.

    :param loop: The path of a loop file, or a Loop.
    :param until: The end of the stretch of event times. By default the run's `as_of`, less the loop's `label_delay`:
        all labels that a run of that time counts on. (templated)
    :param over: The length of the stretch, such as `7d`. By default the loop's holdout.
    :param at_least: The least share of rows with a label, over the stretch and within its last block of time
        (`gate.block`), where labels arrive last. Labels that never come, as of cancelled orders, ask for less than 1.

    The other parameters are those of TreadleOperator and of any sensor.
    """

    template_fields: Sequence[str] = (*TreadleOperator.template_fields, "until")

    def __init__(
        self,
        *,
        until: str | datetime | None = None,
        over: timedelta | str | None = None,
        at_least: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < at_least <= 1:
            raise ValueError(f"at_least is a share above 0, up to 1; it is {at_least}")
        self.until = until
        self.over = parse_duration(over) if isinstance(over, str) else over
        self.at_least = at_least

    def poke(self, context: Context) -> PokeReturnValue:
        """Whether enough labels are there."""
        from treadle.data.labels import label_coverage
        from treadle.data.sources import source_digests
        from treadle.identity import digest_of

        with self.opened(context) as session:
            start, end = self._stretch(session)
            sources = digest_of(source_digests(session.loop))
            if context["task_state_store"].get(_SOURCES) == sources:
                self.log.info("the sources are as they were")
                return PokeReturnValue(is_done=False)
            found = label_coverage(session.loop, session.as_of, start, end)
            self.log.info("%s; asked is %.3g %%", found, 100 * self.at_least)
            if found.share < self.at_least:
                context["task_state_store"].set(_SOURCES, sources)
                return PokeReturnValue(is_done=False)
            stretch = {"start": format_instant(found.start), "end": format_instant(found.end)}
            return PokeReturnValue(
                is_done=True, xcom_value={"rows": found.rows, "labelled": found.labelled, **stretch}
            )

    def _stretch(self, session: Session) -> tuple[datetime, datetime]:
        data = session.loop.data
        try:
            end = parse_instant(self.until) if self.until else session.as_of - data.label_delay
        except ValueError as error:
            raise UserError(f"until: {error}") from None
        return end - (self.over or data.holdout), end


class TreadleJobSensor(BaseSensorOperator):
    """Waits until a job on a pool ended that another task or process submitted; fails where it did not succeed.

    It watches: ending the wait leaves the job alone. To run a stage on a pool, TreadleStageOperator does it all.

    :param job: The job's reference, as JSON: what `treadle.jobs.submit(...).to_json()` gave. (templated)
    :param deferrable: Whether to wait without a worker's slot.
    :param poke_interval: Seconds between two looks.
    :param patience: How many seconds the job's place may be out of reach before the task fails, to be tried again.
    :param timeout: The longest wait, in seconds.
    """

    template_fields: Sequence[str] = ("job",)
    ui_color = TreadleOperator.ui_color

    def __init__(
        self,
        *,
        job: str,
        deferrable: bool = True,
        poke_interval: float = 5.0,
        patience: float = PATIENCE_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.job = job
        self.deferrable = deferrable
        self.patience = patience

    def execute(self, context: Context) -> Json:
        """Waits; `job` and `state` at its end."""
        deadline = time.time() + self.timeout
        if self.deferrable:
            trigger = TreadleWatchTrigger(self.job, self.poke_interval, deadline, self.patience)
            self.defer(trigger=trigger, method_name="execute_complete")
        told = asyncio.run(wait_for_job(self.job, self.poke_interval, deadline, self.log.info, self.patience))
        return self.execute_complete(context, told)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Json:
        """What the job came to."""
        from treadle.jobs import JobRef

        if not event or event.get("ref") != self.job:
            raise AirflowFailException("the event that resumed this task is not of its job; clear the task")
        job = JobRef.from_json(self.job)
        if event["timed_out"]:
            words = f"{job} still runs after {self.timeout:g} s"
            raise AirflowSkipException(words) if self.soft_fail else AirflowSensorTimeout(words)
        if event.get("away"):
            raise AirflowException(f"{event['away']} The job goes on.")
        if event.get("problem"):
            raise AirflowFailException(f"{job} can't be looked at: {event['problem']}")
        if event["state"] != "succeeded":
            raise AirflowFailException(f"{job} ended as {event['state']}; its log says more")
        return {"job": job.job, "stage": job.stage, "state": event["state"]}
