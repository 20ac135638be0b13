"""A person's answer: a candidate's event becomes a question, and the answer an entry in the release log.

TreadleProposeOperator    the proposal that waits in the log, as the event names it; skipped where none does
TreadleAskOperator        shows the verdict, and waits without a slot until someone answers
TreadleAnswerOperator     writes the answer to the log, under the name of who gave it

The log decides, not the question: a proposal that was answered at a shell, or that a later one overtook, is refused
here as it is there, and a question that nobody answers leaves it pending.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.bases.skipmixin import SkipMixin
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput
from airflow.sdk.execution_time.hitl import upsert_hitl_detail
from treadle.clock import format_duration, format_instant
from treadle.errors import NeedsPerson, TreadleError
from treadle_airflow import assets
from treadle_airflow.asking import asked_of
from treadle_airflow.hooks.treadle import read_loop
from treadle_airflow.links import EndpointLink
from treadle_airflow.operators.base import TreadleOperator, quiet_libraries
from treadle_airflow.operators.stages import outcome_of, run_one

if TYPE_CHECKING:
    from airflow.sdk import Context
    from treadle.records import Json
    from treadle.registry.log import Entry
    from treadle.session import Session

APPROVE, REJECT = "Approve", "Reject"
_NOTE = "treadle_ask"


class _OnProposal(TreadleOperator):
    """Works at the time and on the track of a proposal, whatever the run's own time is."""

    @contextmanager
    def at(
        self,
        proposal: Mapping[str, Any],
        context: Context,
        *,
        who: str | None = None,
        overrides: Sequence[str] | None = None,
    ) -> Iterator[Session]:
        """A session at the proposal's `as_of` and track; see TreadleOperator for the errors."""
        try:
            quiet_libraries()
            with self.hook.environment():
                loop = read_loop(self.loop, self.overrides if overrides is None else overrides)
                with self.hook.session(
                    loop,
                    as_of=proposal.get("as_of"),
                    track=proposal["track"],
                    who=who,
                    say=self.said,
                ) as session:
                    yield session
        except TreadleError as error:
            raise self._told(error, context) from None


class TreadleProposeOperator(_OnProposal):
    """The proposal to ask about: that of the candidate's event, else what waits on the track.

    Writes propose and hold to the log where they are not there yet. Skipped where nothing waits any more.

    :param loop: The path of a loop file, or a Loop.

    The other parameters are those of TreadleOperator.
    """

    def execute(self, context: Context) -> Json:
        """`verdict`, `candidate`, `candidate_id`, `as_of`, `track`, `waits_for`, `trained_by`."""
        asked = asked_of(context)
        if not asked.events:
            return self._waiting(context, {"track": asked.track or self.track})
        event, others = asked.events[0], asked.events[1:]
        self._tell_again(context, event, others)
        overrides = list(event.get("set") or self.overrides)
        with self.at(event, context, who=asked.who, overrides=overrides) as session:
            inputs = {"evaluate": str(event["verdict"]), "train": str(event["candidate_id"])}
            outcome, why = outcome_of(session, run_one(session, "release", inputs))
        if outcome != "waits":
            raise AirflowSkipException(
                f"there is nothing to ask about verdict {str(event['verdict'])[:12]}: {outcome}, {why}"
            )
        return self._waiting(context, event)

    def _waiting(self, context: Context, where: Mapping[str, Any]) -> Json:
        from treadle.registry.log import pending_in

        with self.at(where, context) as session:
            entry = pending_in(session.log.entries())
        if entry is None or not entry.details.get("waits_for"):
            raise AirflowSkipException(f"nothing waits for a person on track {where['track']}")
        self.log.info("model %s waits: %s", str(entry.candidate)[:12], entry.details["waits_for"])
        return {
            "verdict": entry.subject,
            "candidate": entry.candidate,
            "candidate_id": entry.details["candidate_id"],
            "as_of": format_instant(entry.as_of),
            "track": where["track"],
            "waits_for": entry.details["waits_for"],
            "trained_by": entry.details.get("trained_by"),
        }

    def _tell_again(
        self, context: Context, event: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
    ) -> None:
        """Events of several tracks may start one run, which asks about one of them: the rest get runs of their own."""
        name = read_loop(self.loop).name
        newest = {other["track"]: other for other in reversed(others) if other["track"] != event["track"]}
        for other in newest.values():
            self.tell(context, assets.candidate(name), dict(other))

    def waits(self, error: TreadleError) -> bool:
        """MLflow may come back."""
        return error.retryable


class TreadleAskOperator(_OnProposal, HITLOperator, SkipMixin):
    """Asks a person about a proposal, showing the verdict, and follows `approved` or `rejected` by the answer.

    The trainer of the model can't approve it where the loop's approval is manual: the question stays open, and the
    task's log and its XCom `refused` say so. Nobody's answer in time skips the task; the proposal stays in the log.

    :param loop: The path of a loop file, or a Loop.
    :param proposal: What TreadleProposeOperator returned. (templated)
    :param approved: The task that follows an approval, just after this one.
    :param rejected: The task that follows a rejection, just after this one.
    :param response_timeout: How long to wait for an answer.

    The other parameters are those of TreadleOperator, and `notifiers` and `assigned_users` of HITLOperator.
    """

    template_fields: Sequence[str] = (*TreadleOperator.template_fields, "proposal")
    inherits_from_skipmixin = True
    ui_color = "#f4ead5"

    def __init__(
        self,
        *,
        proposal: Mapping[str, Any] | str,
        approved: str,
        rejected: str,
        response_timeout: timedelta | None = timedelta(days=7),
        **kwargs: Any,
    ) -> None:
        reason = Param(
            "",
            type=["null", "string"],
            title="Reason",
            description="What was looked at, and what it showed.",
        )
        super().__init__(
            subject="A model waits",
            options=[APPROVE, REJECT],
            params={"reason": reason},
            response_timeout=response_timeout,
            **kwargs,
        )
        self.proposal = proposal
        self.approved = approved
        self.rejected = rejected

    def execute(self, context: Context) -> NoReturn:
        """Puts the question, then waits."""
        from treadle.commit import get_record
        from treadle.records import Verdict
        from treadle.review import review
        from treadle_airflow.verdict_words import markdown_of, subject_of

        proposal = self._proposal()
        with self.at(proposal, context) as session:
            verdict = get_record(session.store, Verdict, session.loop.name, proposal["verdict"])
            needs_two = session.loop.approval == "manual"
            self.body = markdown_of(review(session, verdict), proposal, needs_two=needs_two)
            self.subject = subject_of(verdict, session.track)
        if self.response_timeout:
            context["task_state_store"].set(_NOTE, time.time() + self.response_timeout.total_seconds())
        super().execute(context)
        raise AssertionError("a question waits")

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Json:
        """The answer: `answer`, `who`, `reason`, `at`. Asks again where who gave it may not."""
        if event.get("error_type") == "timeout":
            self._left_pending(context)
        if "error" in event:
            raise AirflowFailException(f"the question could not be put: {event['error']}; clear the task")
        answer, who = event["chosen_options"][0], (event.get("responded_by_user") or {}).get("name")
        self._check(context, answer, who)
        given = str((event.get("params_input") or {}).get("reason") or "").strip()
        told = {
            **self._proposal(),
            "answer": answer,
            "who": who,
            "reason": given or f"{answer} in Airflow, without a reason",
            "at": event["responded_at"].isoformat(),
        }
        self.log.info("%s by %s: %s", answer, who, told["reason"])
        context["ti"].xcom_push(key="return_value", value=told)
        follow = self.approved if answer == APPROVE else self.rejected
        self.skip_all_except(context["ti"], follow)
        return told

    def _check(self, context: Context, answer: str, who: str | None) -> None:
        """Puts the question again where this person may not give this answer."""
        from treadle.acts import check_approver

        proposal = self._proposal()
        if not who:
            self._ask_again(context, "the answer came without a name; the log needs one")
        with self.at(proposal, context, who=who) as session:
            try:
                if answer == APPROVE:
                    check_approver(session, proposal["trained_by"])
                return
            except NeedsPerson as error:
                words = str(error)
        self._ask_again(context, words.partition(" Say who")[0])

    def _ask_again(self, context: Context, words: str) -> NoReturn:
        self.log.warning("Not accepted: %s It is asked again.", words)
        context["ti"].xcom_push(key="refused", value=words)
        upsert_hitl_detail(
            ti_id=context["ti"].id,
            options=self.options,
            subject=self.subject,
            body=self.body,
            params=self.serialized_params,
            assigned_users=self.assigned_users,
        )
        deadline = context["task_state_store"].get(_NOTE)
        left = max(float(deadline) - time.time(), 1.0) if isinstance(deadline, int | float) else None
        raise TaskAwaitingInput(
            method_name="execute_complete", timeout=timedelta(seconds=left) if left else None
        )

    def _left_pending(self, context: Context) -> NoReturn:
        """Says that the proposal waits on, and how to answer it now."""
        from treadle.acts import became_of
        from treadle.status import status

        proposal = self._proposal()
        with self.at(proposal, context) as session:
            pending = status(session)["pending"]
            became = became_of(session.log.entries(), proposal["verdict"])
        waited = format_duration(self.response_timeout) if self.response_timeout else ""
        words = f"nobody answered within {waited}. "
        outcome = (
            "pending" if pending and pending["evidence"] == proposal["verdict"] else "answered elsewhere"
        )
        if outcome == "pending":
            answers = " or ".join(pending["commands"])
            words += (
                f"The model still waits in the release log: {answers}; or trigger this DAG to be asked again."
            )
        else:
            words += f"There is nothing to answer any more: {became}."
        context["ti"].xcom_push(key="return_value", value={**proposal, "outcome": outcome, "words": words})
        raise AirflowSkipException(words)

    def _proposal(self) -> dict[str, Any]:
        if not isinstance(self.proposal, Mapping):
            raise AirflowFailException("there is no proposal to ask about: clear the task that proposes")
        return dict(self.proposal)


class TreadleAnswerOperator(_OnProposal):
    """Writes a person's answer to the release log, if the proposal still waits; tried again, it finds its entry.

    :param loop: The path of a loop file, or a Loop.
    :param answer: What TreadleAskOperator returned. (templated)
    :param kind: `approve`, which promotes the model, or `reject`.

    The other parameters are those of TreadleOperator.
    """

    template_fields: Sequence[str] = (*TreadleOperator.template_fields, "answer")
    operator_extra_links = (EndpointLink(),)

    def __init__(
        self, *, answer: Mapping[str, Any] | str, kind: Literal["approve", "reject"], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.answer = answer
        self.kind = kind

    def execute(self, context: Context) -> Json:
        """`outcome` (promoted or rejected), `sequence`, `who`, `why`, `candidate`, `verdict`.

        Raises:
            AirflowFailException: Someone else answered, a later proposal took its place, another champion serves, or
                the trainer approves. Nothing was changed.
        """
        from treadle.acts import act_time

        if not isinstance(self.answer, Mapping):
            raise AirflowFailException("there is no answer to write: clear the task that asks")
        told = dict(self.answer)
        with self.at(told, context, who=told["who"]) as session:
            entry = self._answered(session, told)
            if entry is None:
                session.as_of = act_time(session.loop, session.log, lambda line: None)
                entry = self._answer(session, told)
            outcome = "rejected" if entry.kind == "reject" else "promoted"
            self.log.info("%s by %s: %s", outcome, told["who"], told["reason"])
            words = f"{outcome} by {told['who']}: {told['reason']}"
            about = {"candidate": entry.candidate, "verdict": told["verdict"], "track": session.track}
            return {
                "outcome": outcome,
                "sequence": entry.sequence,
                "who": told["who"],
                "why": told["reason"],
                **about,
                "words": words,
            }

    def _answer(self, session: Session, told: Mapping[str, Any]) -> Entry:
        from treadle import acts

        if self.kind == "reject":
            return acts.reject(session, told["reason"], verdict=told["verdict"])
        return acts.approve(session, told["reason"], verdict=told["verdict"])[1]

    def _answered(self, session: Session, told: Mapping[str, Any]) -> Entry | None:
        """The entry of this very answer, made by an earlier try."""
        kind = "promote" if self.kind == "approve" else "reject"
        for entry in session.log.entries():
            by = entry.details.get("approved_by") if kind == "promote" else entry.who
            if (entry.kind, entry.subject, by) == (kind, told["verdict"], told["who"]):
                return entry
        return None
