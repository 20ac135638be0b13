"""One operator for each stage; all the work is the core's.

TreadleStageOperator          any stage: in the task's process, or on the pool that the loop names for it
├── TreadlePrepareOperator    also keeps a backfill in order, and refuses one that would wait for people
├── TreadleFeaturizeOperator
├── TreadleTrainOperator
├── TreadleEvaluateOperator   says champion kept where the challenger lost
├── TreadleReleaseOperator    waits for MLflow; tells of a challenger that waits for a person
├── TreadleDeployOperator     waits for MLflow; tells of a new champion; skipped where nothing was promoted
├── TreadleMonitorOperator    skipped where no model serves yet
└── TreadleRetrainOperator    asks for a run by an asset event, once for each entry in the log
TreadleGateOperator           champion kept: writes the verdict to the log, and skips release and deploy
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.skipmixin import SkipMixin
from airflow.sdk.exceptions import AirflowSkipException
from treadle.clock import format_instant
from treadle.errors import TreadleError
from treadle.stages import STAGES
from treadle_airflow import assets
from treadle_airflow.backfill import check_backfill, wait_for_earlier_runs
from treadle_airflow.links import EndpointLink, MlflowLink, ReportLink, links_of
from treadle_airflow.openlineage import TellsLineage, lineage_of
from treadle_airflow.operators.jobs import OnPools

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context
    from treadle.records import Json, Record
    from treadle.session import Session
    from treadle_airflow.asking import Asked

LOST = ("keep", "no_change")
CIRCLE = STAGES[: STAGES.index("deploy") + 1]


class TreadleStageOperator(TellsLineage, OnPools):
    """Runs one stage of a loop, and returns what its record says of itself in a small dict.

    A stage that the loop gives to a pool is submitted there; the task then defers, and holds no slot while it runs.

    :param loop: The path of a loop file, or a Loop.
    :param stage: prepare, featurize, train, evaluate, release, deploy, monitor or retrain. (templated)
    :param inputs: Earlier stage to the id of its record; what is left out is looked for in the store. (templated)
    :param treadle_pool: The hardware pool to run on, instead of the loop's; `none` is the task's own process.
    :param deferrable: Whether to wait for a job without holding a worker's slot.
    :param poll_interval: Seconds between two looks at a job.
    :param job_timeout: The longest that a job may take from its submission on, over all of its attempts.
    :param job_patience: How long the place of a job may be out of reach before the task fails, to be tried again; the
        job goes on.

    The other parameters are those of TreadleOperator.
    """

    template_fields: Sequence[str] = (*OnPools.template_fields, "stage", "inputs")
    operator_extra_links: Collection[BaseOperatorLink] = (MlflowLink(), EndpointLink(), ReportLink())

    of_stage: ClassVar[str] = ""

    def __init__(
        self,
        *,
        stage: str = "",
        inputs: Mapping[str, str] | None = None,
        treadle_pool: str | None = None,
        deferrable: bool = True,
        poll_interval: float = 5.0,
        job_timeout: timedelta | None = None,
        job_patience: timedelta = timedelta(hours=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage or self.of_stage
        if self.stage not in STAGES:
            raise ValueError(f"{stage!r} is no stage; the stages are: {', '.join(STAGES)}")
        self.inputs = dict(inputs or {})
        self.treadle_pool = treadle_pool
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.job_timeout = job_timeout
        self.job_patience = job_patience

    def check(self, context: Context, session: Session, asked: Asked) -> None:
        """Refuses a backfill that would wait for people."""
        check_backfill(context, session, asked)

    def execute(self, context: Context) -> Json:
        """Runs the stage here, or submits it to its pool and waits for it."""
        with self.opened(context) as session:
            pool = self.pool_of(session, context)
            record = self.run_stage(session) if pool is None else self.on_pool(context, session, pool)
            return self.finished(context, session, record)

    def run_stage(self, session: Session) -> Record:
        """The stage's record, made or found in this process."""
        try:
            return run_one(session, self.stage, self.inputs)
        except TreadleError as error:
            self.tried = error
            raise

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """What the task returns; override it to add a step after the stage.

        :param session: Still open: `session.log`, `session.store` and `session.as_of` can be read.
        :param record: The stage's record.
        :return: A small dict, kept as the task's XCom.
        """
        summary = {
            **record.summary(),
            "track": session.track,
            "reused": session.reused.get(self.stage, False),
            "warnings": list(session.warnings),
        }
        self.links = links_of(session, record, self.hook.settings)
        self.lineage = lineage_of(session, record, self.inputs)
        return summary


def run_one(session: Session, stage: str, inputs: Mapping[str, str]) -> Record:
    """One stage by the core's runner, in this process."""
    from treadle.runner import run_session

    # A task waits for its own pool only; and a stage of the circle that is given nothing works on what is there.
    here = dict.fromkeys(STAGES, "none")
    given = None if not inputs and stage in CIRCLE[1:] else dict(inputs)
    return run_session(session, start=stage, to=stage, inputs=given, pools=here)[stage]


class TreadlePrepareOperator(TreadleStageOperator):
    """`prepare`: the data as they were known at the run's time. In a backfill it waits for the runs before it."""

    of_stage = "prepare"
    operator_extra_links = ()

    def check(self, context: Context, session: Session, asked: Asked) -> None:
        """Also keeps the order of a backfill, as champions chain."""
        super().check(context, session, asked)
        wait_for_earlier_runs(context, asked, self.log)
        for extra in asked.events[:1]:
            self.log.info("asked for by %s", {name: value for name, value in extra.items() if value})

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """Also what asked for the run, such as the drift report."""
        from treadle_airflow.asking import asked_of

        summary = super().finished(context, session, record)
        events = asked_of(context).events
        return {**summary, "asked_by": dict(events[0])} if events else summary


class TreadleFeaturizeOperator(TreadleStageOperator):
    """`featurize`: point-in-time features of the data."""

    of_stage = "featurize"
    operator_extra_links = ()


class TreadleTrainOperator(TreadleStageOperator):
    """`train`: a challenger; a killed training goes on from its last checkpoint."""

    of_stage = "train"
    operator_extra_links = (MlflowLink(),)


class TreadleEvaluateOperator(TreadleStageOperator):
    """`evaluate`: the verdict on challenger and champion, judged on the same rows."""

    of_stage = "evaluate"
    operator_extra_links = (MlflowLink(),)

    def said(self, line: str) -> None:
        """All lines but the one that cuts the verdict short: `finished` tells it whole."""
        if "Verdict(" not in line:
            super().said(line)

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """Also says the decision."""
        summary = super().finished(context, session, record)
        decision = "champion kept" if summary["decision"] in LOST else summary["decision"]
        self.log.info("verdict %s, %s: %s", record.id[:12], decision, summary["why"])
        return summary


class _WaitsForMlflow(TreadleStageOperator):
    """A task that asks again later while MLflow or the online store can't be reached."""

    operator_extra_links = (MlflowLink(), EndpointLink())

    def waits(self, error: TreadleError) -> bool:
        """Whether the error may pass."""
        return error.retryable


class TreadleReleaseOperator(_WaitsForMlflow):
    """`release`: the verdict enters the log, and the challenger is promoted where nobody has to be asked.

    Its XCom's `outcome` is promoted, waits, kept, rejected or overtaken.
    """

    of_stage = "release"

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """Also the outcome by the log; a challenger that waits for a person becomes an event."""
        outcome, why = outcome_of(session, record)
        summary = {**super().finished(context, session, record), "outcome": outcome, "why": why}
        if outcome == "promoted":  # the core has said why; and for `waits` it has said all
            self.log.info("promoted")
        elif outcome != "waits":
            self.log.info("%s: %s", outcome, why)
        if outcome == "waits":
            told = {name: getattr(record, name) for name in ("verdict", "candidate", "candidate_id")}
            extra = {
                "as_of": format_instant(session.as_of),
                "track": session.track,
                "set": list(session.loop.overrides),
                "why": why,
                **told,
            }
            self.tell(context, assets.candidate(session.loop.name), extra)
        return summary


def outcome_of(session: Session, release: Record) -> tuple[str, str]:
    """What became of a release's verdict by the log, as it is now, and why."""
    from treadle.registry.log import pending_in

    entries = session.log.entries()
    mine = [entry for entry in entries if entry.subject == release.verdict]  # type: ignore[attr-defined]
    waiting = pending_in(entries)
    if waiting is not None and waiting in mine:
        return "waits", str(waiting.details.get("waits_for") or "it was never finished")
    for entry in reversed(mine):
        if entry.kind == "promote":
            return "promoted", entry.why
        if entry.kind == "reject":
            return "kept" if entry.details.get("by") == "gate" else "rejected", entry.why
    return "overtaken", "a later proposal took this one's place"


class TreadleDeployOperator(_WaitsForMlflow):
    """`deploy`: production is as the log says. Tells other DAGs of the champion, on the production track.

    :param released: The outcome of the release; the task is skipped unless it is `promoted`. Left out, the task
        always runs. (templated)
    """

    of_stage = "deploy"
    template_fields: Sequence[str] = (*_WaitsForMlflow.template_fields, "released")

    def __init__(self, *, released: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.released = released

    def execute(self, context: Context) -> Json:
        """Skips, or deploys."""
        if self.released not in (None, "promoted"):
            raise AirflowSkipException(f"the champion stays: the release's outcome is {self.released}")
        return super().execute(context)

    def run_stage(self, session: Session) -> Record:
        """The deployment after a release; where none is named, of who serves by the log now."""
        if self.inputs:
            return super().run_stage(session)
        from treadle.runner import deploy_champion

        return deploy_champion(session)

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """Also an event of the champion, unless production was so before."""
        summary = super().finished(context, session, record)
        ti = context["ti"]
        # A task that is tried again finds its own deployment, and may not have told of it.
        again = ti.try_number > 1 or ti.get_first_reschedule_date(context) is not None
        if again or not summary["reused"]:
            self.tell_champion(context, session)
        return summary


class TreadleGateOperator(TreadleStageOperator, SkipMixin):
    """Lets a challenger go on to its release; one that lost enters the log, and what follows is skipped.

    The task succeeds either way: a champion that is kept is no failure.

    :param decision: The decision of evaluate. (templated)
    """

    template_fields: Sequence[str] = (*TreadleStageOperator.template_fields, "decision")
    of_stage = "release"
    ui_color = "#f4ead5"

    def __init__(self, *, decision: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decision = decision

    def execute(self, context: Context) -> Json:
        """The verdict's decision; for one that lost, after it was written to the log."""
        if self.decision not in LOST:
            return {"words": f"goes on to its release: {self.decision}", "decision": self.decision}
        with self.opened(context) as session:
            told = self.finished(context, session, self.run_stage(session))
        told["words"] = f"champion kept: {told['why']}"
        self.log.info(told["words"])
        context["ti"].xcom_push(key="return_value", value=told)
        self.skip(context["ti"], context["task"].get_direct_relatives(upstream=False))
        return told


class TreadleMonitorOperator(TreadleStageOperator):
    """`monitor`: the newest window beside the champion's training data; skipped where no model serves yet."""

    of_stage = "monitor"
    operator_extra_links = (ReportLink(),)

    def check(self, context: Context, session: Session, asked: Asked) -> None:
        """Skips before the first champion."""
        if session.log.champion(session.as_of) is None:
            raise AirflowSkipException(
                f"no model serves on track {session.track} as of {format_instant(session.as_of)[:10]}:"
                f" trigger {session.loop.name} first"
            )


class TreadleRetrainOperator(TreadleStageOperator):
    """`retrain`: the policy's decision. A run that is due becomes an event of the loop's retrain asset.

    One event for each entry in the log, however often it is looked at. A tick of the loop's own schedule becomes
    none: the DAG's cron runs it.
    """

    of_stage = "retrain"
    operator_extra_links = ()

    def finished(self, context: Context, session: Session, record: Record) -> Json:
        """Also the event, if there is one to send."""
        summary = super().finished(context, session, record)
        summary["event"] = self._event(context, session, record)
        self.log.info("%s; %s", summary["words"], summary["event"])
        return summary

    def _event(self, context: Context, session: Session, record: Record) -> str:
        told: dict[str, Any] = dict(record)
        if not told["due"]:
            return "no event: nothing is due"
        if told["trigger"] == "schedule":
            return "no event: the schedule of the loop's own DAG runs it"
        if session.track != "production":
            return f"no event: it is due on track {session.track}; trigger the loop's DAG with that track"
        asset = assets.retrain(session.loop.name)
        subject = {"subject": told["subject"], "as_of": format_instant(told["run_as_of"])}
        if asset not in (self.inlets or []):
            return "no event: the task has not got the loop's retrain asset as its inlet"
        for event in context["inlet_events"][asset]:
            if subject.items() <= (event.extra or {}).items():
                return f"no event: {subject['subject']} was asked for at {event.timestamp.isoformat()}"
        extra = {
            **subject,
            "track": session.track,
            "trigger": told["trigger"],
            "why": told["why"],
            "report": next(iter(told["reports"]), None),
            "decision": record.id,
        }
        self.tell(context, asset, extra)
        return f"event of {asset.uri}"


OPERATORS: dict[str, type[TreadleStageOperator]] = {
    "prepare": TreadlePrepareOperator,
    "featurize": TreadleFeaturizeOperator,
    "train": TreadleTrainOperator,
    "evaluate": TreadleEvaluateOperator,
    "release": TreadleReleaseOperator,
    "deploy": TreadleDeployOperator,
    "monitor": TreadleMonitorOperator,
    "retrain": TreadleRetrainOperator,
}
