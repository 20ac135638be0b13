"""The clock of a Dagster run, the same for all its steps: the loop's `as_of`.

1. the run's tag `treadle/as_of`      set by schedules and sensors, or typed in the Launchpad
2. the end of the run's partition, if that has come
3. when the run was created, cut to the day; of a re-executed run, when the first of them was
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import dagster as dg
from treadle.clock import parse_instant
from treadle.loop import Loop

AS_OF_TAG = "treadle/as_of"
PARTITION_TAG = "dagster/partition"
_DAYS = {"daily": 1, "weekly": 7, "monthly": 31}
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


def as_of_of(
    instance: dg.DagsterInstance, run: dg.DagsterRun, loop: Loop, partitions: dg.PartitionsDefinition | None
) -> datetime:
    """The clock of a run.

    Raises:
        AsOfError: It lies after now, or outside of the loop's history.
    """
    from treadle.session import clip_as_of, resolve_as_of

    told = run.tags.get(AS_OF_TAG)
    if told is not None:
        return resolve_as_of(loop, told)
    record = instance.get_run_record_by_id(run.root_run_id or run.run_id)
    created = record.create_timestamp if record else datetime.now(UTC)
    partition = run.tags.get(PARTITION_TAG)
    if partition is not None and isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        end = partition_as_of(partitions, partition)
        if end <= created:
            return resolve_as_of(loop, end)
    return resolve_as_of(loop, clip_as_of(loop, created))


def partition_as_of(partitions: dg.TimeWindowPartitionsDefinition, key: str) -> datetime:
    """The clock that a partition stands for: its end."""
    return partitions.time_window_for_partition_key(key).end.astimezone(UTC)


def partition_of(partitions: dg.TimeWindowPartitionsDefinition, as_of: datetime) -> str:
    """The partition whose end is `as_of`, or in which it lies."""
    return partitions.get_partition_key_for_timestamp((as_of - timedelta(microseconds=1)).timestamp())


def partitions_of(loop: Loop, cadence: str | None = None) -> dg.TimeWindowPartitionsDefinition | None:
    """Partitions by the loop's cadence over its history; None where it has no cadence or no beginning.

    The newest is the one that today lies in, unless the history has ended: it stands for what is known today.

    Args:
        loop: `history.from` is the beginning, `history.to` the end.
        cadence: `daily`, `weekly` (Mondays), `monthly` or a cron; defaults to `retrain.schedule`.
    """
    cadence = cadence or (loop.retrain.schedule if loop.retrain else None)
    start, end = loop.history.from_, loop.history.to
    if cadence is None or start is None:
        return None
    if cadence == "daily":
        return dg.DailyPartitionsDefinition(start_date=start, end_date=end, end_offset=1)
    if cadence == "weekly":
        return dg.WeeklyPartitionsDefinition(start_date=start, end_date=end, day_offset=1, end_offset=1)
    if cadence == "monthly":
        return dg.MonthlyPartitionsDefinition(start_date=start, end_date=end, end_offset=1)
    form = "%Y-%m-%d" if " ".join(cadence.split()[:2]).replace(" ", "").isdigit() else "%Y-%m-%d-%H:%M"
    return dg.TimeWindowPartitionsDefinition(
        cron_schedule=cadence, start=start, end=end, fmt=form, end_offset=1
    )


def cadence_of(loop: Loop) -> timedelta | None:
    """About how much time lies between two trainings by the loop's schedule; None where it has none."""
    schedule = loop.retrain.schedule if loop.retrain else None
    if schedule is None:
        return None
    if schedule in _DAYS:
        return timedelta(days=_DAYS[schedule])
    from cronsim import CronSim

    ticks = CronSim(schedule, parse_instant("2024-01-01"))
    first: list[datetime] = [next(ticks) for _ in range(13)]
    return max(later - earlier for earlier, later in pairwise(first))


def cron_of(schedule: str) -> str:
    """Five cron fields for a loop's schedule."""
    return {"daily": "0 0 * * *", "weekly": "0 0 * * 1", "monthly": "0 0 1 * *"}.get(schedule, schedule)


def cron_of_every(every: timedelta) -> str:
    """Cron ticks of which those that are `is_tick` lie `every` apart."""
    week, day, hour, minute = (timedelta(**{unit: 1}) for unit in ("weeks", "days", "hours", "minutes"))
    if every % week == timedelta(0):
        return "0 0 * * 1"
    if every % day == timedelta(0):
        return "0 0 * * *"
    if every % hour == timedelta(0):
        return "0 * * * *"
    return f"*/{max(every // minute, 1)} * * * *" if every < hour else "*/5 * * * *"


def is_tick(moment: datetime, every: timedelta) -> bool:
    """Whether whole lengths of `every` lie between a Monday in 1970 and a moment."""
    return (moment - _MONDAY) % every < timedelta(minutes=1)
