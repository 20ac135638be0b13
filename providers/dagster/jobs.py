"""A loop's jobs: turn the wheel, watch, and decide about a challenger that waits for a person.

No `from __future__ import annotations` here: Dagster reads the annotations of decorated functions.
"""

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field
from treadle.loop import Loop
from treadle_dagster.resources import TreadleResource

if TYPE_CHECKING:  # what only runs need is not loaded with the location
    from treadle.registry.log import Entry
    from treadle.session import Session

LOOP_TAG = "treadle/loop"
TRIGGER_TAG = "treadle/trigger"
Windows = dg.TimeWindowPartitionsDefinition | None
Job = Any  # Dagster has no public name for the type of an asset job that is not resolved yet


def loop_job(
    loop: Loop, keys: Mapping[str, dg.AssetKey], executor: dg.ExecutorDefinition | None = None
) -> Job:
    """All of a loop's assets, by an executor of the job's own or by the location's.

    Its backfill runs the partitions one after another, by the tag `treadle/loop`.
    """
    return dg.define_asset_job(
        f"{loop.name}_loop",
        selection=dg.AssetSelection.assets(*keys.values()),
        tags={LOOP_TAG: loop.name},
        executor_def=executor,
        description=f"Turns the wheel of {loop.name} once and looks at its newest window: what has not changed is not"
        " done again.",
    )


class Answer(Enum):
    """What a person says to a challenger that waits, or to the champion that serves."""

    approve = "approve"
    reject = "reject"
    rollback = "rollback"


class Decision(dg.Config):
    """What the job `<loop>_decide` is asked in the Launchpad."""

    answer: Answer = Field(
        description="approve or reject the challenger that waits; or roll the champion back"
    )
    by: str = Field(description="who decides; a claim, as Dagster has no login of its own", min_length=1)
    reason: str = Field(description="what was looked at, and what it showed", min_length=1)
    model: str = Field(
        default="",
        description="how the model's name begins that is approved, rejected or rolled back; left out: whichever it is",
    )


_ASKED = Decision.to_config_schema().as_field()  # made once: it costs more than the job


def decide_job(
    loop: Loop,
    keys: Mapping[str, dg.AssetKey],
    windows: Windows,
    executor: dg.ExecutorDefinition | None = None,
) -> dg.JobDefinition:
    """A person's answer, in one action: it enters the release log, and the champion follows at once."""

    @dg.op(name=f"{loop.name}__decide", required_resource_keys={"treadle"}, config_schema=_ASKED)
    def decide(context):  # type: ignore[no-untyped-def]  # see assets.py
        from treadle_dagster.step import champion_event, explained, track_of

        treadle: TreadleResource = context.resources.treadle
        with explained(), treadle.environment():
            asked = Decision(**context.op_config)
            track = track_of(context.run)
            session = treadle.session(loop, track=track, say=context.log.info, act=True, user=asked.by)
            entry = answer(session, asked)
            context.log.info(in_words(entry))
            if asked.answer is not Answer.reject:
                context.log_event(champion_event(session, treadle, keys["deploy"], windows, entry))

    graph = dg.GraphDefinition(name=f"{loop.name}_decide", node_defs=[decide])
    return graph.to_job(
        tags={LOOP_TAG: loop.name},
        executor_def=executor,
        description=f"Approve or reject the challenger of {loop.name} that waits, with a name and a reason.",
    )


def answer(session: "Session", decision: Decision) -> "Entry":
    """The entry that an answer makes in the release log.

    Raises:
        UserError: Nothing waits. StaleChampion: What waits or serves is another model than was named. NeedsPerson:
            Who trained may not approve.
    """
    from treadle import acts
    from treadle.errors import StaleChampion
    from treadle.registry.log import pending_in

    if decision.answer is Answer.rollback:
        return acts.rollback(session, decision.reason, undo=decision.model or None)
    waiting = pending_in(session.log.entries())
    named = decision.model.strip()
    if waiting is not None and named and not (waiting.candidate or "").startswith(named):
        raise StaleChampion(
            f"model {named} does not wait: {(waiting.candidate or '')[:12]} does. Nothing was changed."
        )
    if decision.answer is Answer.reject:
        return acts.reject(session, decision.reason)
    return acts.approve(session, decision.reason)[1]


def in_words(entry: "Entry") -> str:
    """One line about an entry of the log."""
    return f"{entry.kind} of {(entry.candidate or 'none')[:12]} as of {entry.as_of.date()} by {entry.who}: {entry.why}"
