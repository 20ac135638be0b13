"""The time of a run: what a person asked for, else what the event says, else the tick. Never the clock of a task.

| | taken from | rounded down to | after the end of `history` |
| --- | --- | --- | --- |
| 1 | `conf.as_of`: the field of the trigger form | nothing | refused, as at a shell |
| 2 | `as_of` of the newest asset event that started the run | nothing | its end |
| 3 | the logical date of a scheduled or backfill run | nothing: it is a tick | its end |
| 4 | the logical date of any other run | the day, or the hour where the loop's cron is finer | its end |
| 5 | `run_after`, where a run has no logical date | as 4 | its end |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from treadle.clock import format_instant, parse_instant
from treadle.errors import AsOfError
from treadle.loop import Loop


@dataclass(frozen=True, slots=True)
class RunTime:
    """The `as_of` of a run, with `words` that say where it comes from."""

    as_of: datetime
    words: str


def run_as_of(
    loop: Loop,
    *,
    asked: str | datetime | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    logical_date: datetime | None = None,
    run_after: datetime | None = None,
    is_tick: bool = False,
) -> RunTime:
    """The time that a run's tasks share, whenever each of them runs.

    Args:
        loop: Its `history` ends what a person did not ask for.
        asked: `conf.as_of`.
        events: The extras of the asset events that started the run, newest first.
        logical_date: None for a run that assets started, or that was triggered without one.
        run_after: When the run was due.
        is_tick: Whether a schedule chose the logical date.

    Raises:
        AsOfError: `asked`, or an event's `as_of`, is no time; or nothing at all was given.
    """
    from treadle.session import clip_as_of  # a parse does not need what it imports

    if asked:
        return RunTime(_instant(asked, "conf.as_of"), "as asked")
    told = next((extra["as_of"] for extra in events if extra.get("as_of")), None)
    if told is not None:
        moment = _instant(told, "the event's as_of")
        return _within(loop, moment, moment, "of the asset event")
    if logical_date is not None:
        moment = parse_instant(logical_date)
        return _within(loop, moment, moment if is_tick else clip_as_of(loop, moment), "of the logical date")
    if run_after is not None:
        moment = parse_instant(run_after)
        return _within(loop, moment, clip_as_of(loop, moment), "of when the run was due")
    raise AsOfError('the run has no time: give one as --conf \'{"as_of": "2013-04-01"}\'')


def _instant(value: object, what: str) -> datetime:
    try:
        return parse_instant(value)  # type: ignore[arg-type]  # it says what is wrong with other types
    except ValueError as error:
        raise AsOfError(f"{what}: {error}") from None


def _within(loop: Loop, told: datetime, moment: datetime, words: str) -> RunTime:
    end = loop.history.to
    if end is None or told <= end:
        return RunTime(moment, words)
    return RunTime(end, f"the end of the loop's history; {format_instant(told)[:10]} lies after it")


def cron_of(schedule: str) -> str:
    """The five cron fields of a loop's `retrain.schedule`, in UTC."""
    return {"daily": "0 0 * * *", "weekly": "0 0 * * 1", "monthly": "0 0 1 * *"}.get(schedule, schedule)


def cron_every(every: timedelta) -> str | None:
    """The cron fields that tick at a rhythm, at midnight, on Mondays or on the hour; None where cron has none."""
    seconds = int(every.total_seconds())
    if every == timedelta(days=7):
        return "0 0 * * 1"
    if every == timedelta(days=1):
        return "0 0 * * *"
    if seconds % 3600 == 0 and seconds < 86400 and 86400 % seconds == 0:
        return f"0 */{seconds // 3600} * * *"
    if seconds % 60 == 0 and seconds < 3600 and 3600 % seconds == 0:
        return f"*/{seconds // 60} * * * *"
    return None
