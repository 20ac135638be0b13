"""A loop's schedules: when to train, and when to look. Both are off until someone switches them on.

No `from __future__ import annotations` here: Dagster reads the annotations of decorated functions.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import dagster as dg
from treadle.clock import format_duration, format_instant
from treadle.loop import Loop
from treadle_dagster.clock import AS_OF_TAG, cron_of, cron_of_every, is_tick, partition_of
from treadle_dagster.drawn import CHAIN, WATCH
from treadle_dagster.jobs import LOOP_TAG, TRIGGER_TAG, Job, Windows


def train_schedule(
    loop: Loop, job: Job, keys: Mapping[str, dg.AssetKey], windows: Windows
) -> dg.ScheduleDefinition | None:
    """Runs the loop at each tick of `retrain.schedule`; None where it has none."""
    schedule = loop.retrain.schedule if loop.retrain else None
    if schedule is None:
        return None

    @dg.schedule(
        name=f"{loop.name}_loop_schedule",
        cron_schedule=cron_of(schedule),
        job=job,
        execution_timezone="UTC",
        description=f"Trains and judges a challenger of {loop.name}: {schedule}.",
    )
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        moment = context.scheduled_execution_time
        if _has_ended(loop, moment):
            return _ended(loop)
        partition = partition_of(windows, moment) if windows else None
        return dg.RunRequest(
            asset_selection=keys_of(keys, CHAIN),
            partition_key=partition,
            tags=run_tags(loop, moment, "schedule"),
        )

    return tick


def watch_schedule(loop: Loop, job: Job, keys: Mapping[str, dg.AssetKey]) -> dg.ScheduleDefinition | None:
    """Looks at the newest window every `monitor.every`; None where nothing is watched."""
    if loop.monitor is None:
        return None
    every = loop.monitor.every

    @dg.schedule(
        name=f"{loop.name}_watch_schedule",
        cron_schedule=cron_of_every(every),
        job=job,
        execution_timezone="UTC",
        description=f"Looks at the newest window of {loop.name}, and asks whether to train again.",
    )
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        moment = context.scheduled_execution_time
        if _has_ended(loop, moment):
            return _ended(loop)
        if not is_tick(moment, every):
            return dg.SkipReason(f"{loop.name} is watched every {format_duration(every)}; this is in between")
        return dg.RunRequest(asset_selection=keys_of(keys, WATCH), tags=run_tags(loop, moment, "monitor"))

    return tick


def keys_of(keys: Mapping[str, dg.AssetKey], stages: Sequence[str]) -> list[dg.AssetKey]:
    """The assets of those of some stages that the loop has."""
    return [keys[stage] for stage in stages if stage in keys]


def run_tags(loop: Loop, as_of: datetime, trigger: str) -> dict[str, str]:
    """What a run that nobody started by hand says of itself: its clock, and why it is."""
    return {AS_OF_TAG: format_instant(as_of), TRIGGER_TAG: trigger, LOOP_TAG: loop.name}


def _has_ended(loop: Loop, moment: datetime) -> bool:
    return loop.history.to is not None and moment > loop.history.to


def _ended(loop: Loop) -> dg.SkipReason:
    return dg.SkipReason(f"the history of {loop.name} ended {loop.history.to:%Y-%m-%d}: nothing new can come")
