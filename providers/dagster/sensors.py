"""The sensors of a loop: one trains when the policy asked for it, one follows what people decided.

They read the release log and not Dagster's history: so they keep the cooldown of the loop's policy, see what
`treadle monitor` and `treadle approve` did, and ask for each run once. Both are off until someone switches them on.

No `from __future__ import annotations` here: Dagster reads the annotations of decorated functions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from treadle.clock import format_instant, today
from treadle.errors import TreadleError
from treadle.loop import Loop
from treadle_dagster.clock import partition_of
from treadle_dagster.drawn import CHAIN, ENTRY
from treadle_dagster.jobs import Job, Windows
from treadle_dagster.resources import TreadleResource
from treadle_dagster.schedules import keys_of, run_tags

if TYPE_CHECKING:  # what only ticks need is not loaded with the location
    from treadle.registry.log import Entry

_SECONDS = 30


def retrain_sensor(
    loop: Loop, job: Job, keys: Mapping[str, dg.AssetKey], windows: Windows
) -> dg.SensorDefinition | None:
    """Runs the loop when the log holds a retrain that nobody has judged yet; None without a policy."""
    if loop.retrain is None:
        return None

    @dg.sensor(
        name=f"{loop.name}_retrain_sensor",
        job=job,
        minimum_interval_seconds=_SECONDS,
        required_resource_keys={"treadle"},
        description=f"Trains {loop.name} again when its policy asked for it: drift, decay, new labels, a schedule.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        entries = _entries(context, loop)
        if isinstance(entries, dg.SkipReason):
            return entries
        asked = asked_for(entries)
        if asked is None:
            return dg.SkipReason("the policy asks for nothing that was not judged already")
        trigger = str(asked.details.get("trigger", "retrain"))
        return dg.RunRequest(
            run_key=f"{asked.subject}:{format_instant(asked.as_of)}",
            asset_selection=keys_of(keys, CHAIN),
            partition_key=partition_of(windows, asked.as_of) if windows else None,
            tags=run_tags(loop, asked.as_of, trigger),
        )

    return look


def asked_for(entries: "Sequence[Entry]") -> "Entry | None":
    """The newest retrain in the log, if nothing was judged at its `as_of` or later."""
    from treadle.registry.log import is_verdict

    asked = [entry for entry in entries if entry.kind == "retrain"]
    newest = max(asked, key=lambda entry: entry.as_of, default=None)
    if newest is None or any(is_verdict(entry) and entry.as_of >= newest.as_of for entry in entries):
        return None
    return newest


def release_sensor(
    loop: Loop, job: Job, keys: Mapping[str, dg.AssetKey], windows: Windows
) -> dg.SensorDefinition:
    """Brings the champion's asset into agreement with the log: after `treadle approve`, a rollback, another run."""
    champion = keys["deploy"]

    @dg.sensor(
        name=f"{loop.name}_release_sensor",
        job=job,
        minimum_interval_seconds=_SECONDS,
        required_resource_keys={"treadle"},
        description=f"Follows the release log of {loop.name}: what people approved or rolled back outside of Dagster.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        entries = _entries(context, loop)
        if isinstance(entries, dg.SkipReason):
            return entries
        from treadle.registry.log import champion_in

        head = champion_in(entries)
        if head is None:
            return dg.SkipReason(f"{loop.name} has no champion yet")
        event = context.instance.get_latest_materialization_event(champion)
        shown = (
            event.asset_materialization.metadata.get(ENTRY) if event and event.asset_materialization else None
        )
        if shown is not None and shown.value == head.sequence:
            return dg.SkipReason(f"the champion is that of entry {head.sequence} of the log")
        as_of = max(head.effective_at, loop.history.from_ or head.effective_at)
        return dg.RunRequest(
            run_key=f"entry:{head.sequence}:{head.hash[:12]}",
            asset_selection=[champion],
            partition_key=partition_of(windows, as_of) if windows else None,
            tags=run_tags(loop, min(as_of, max(today(), head.effective_at)), head.kind),
        )

    return look


def _entries(context: dg.SensorEvaluationContext, loop: Loop) -> "list[Entry] | dg.SkipReason":
    """The log as it stands; what keeps it from being read is a reason to skip, said in the UI."""
    treadle: TreadleResource = context.resources.treadle
    try:
        with treadle.environment():
            return treadle.session(loop, act=True).log.entries()
    except TreadleError as error:
        if not error.retryable:
            raise
        return dg.SkipReason(f"the log can't be read now: {error}")
