"""When to train again: a pure decision from what the log and the reports say.

    first       the gate has judged nothing yet
    schedule    a tick lies between the last verdict and now
    drift       `strikes` windows in a row drifted; stays due until a run trains on data after the drift began
    decay       `strikes` windows in a row lost quality; only if the loop names it
    new_labels  as many labels have become known since the last verdict

The cooldown counts from the last verdict and holds back drift, decay and new labels; schedules keep their
time. A retrain that was asked for and has no verdict yet is asked for again, at its own `as_of`, and nothing
beside it but a newer tick: so there is one at a time, however many monitors look. Labels count from the last
verdict, not from `trained_through`: the holdout's own labels would else ask for the next run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from treadle.clock import format_instant
from treadle.errors import UserError
from treadle.spec import Retrain
from treadle.words import counted

Trigger = Literal["none", "first", "schedule", "drift", "decay", "new_labels"]

_CRON = {"daily": "0 0 * * *", "weekly": "0 0 * * 1", "monthly": "0 0 1 * *"}


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict in the log; its challenger was trained on rows before `trained_through`."""

    as_of: datetime
    trained_through: datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """A retrain entry in the log; `began` is when the drift or decay behind it began."""

    trigger: Trigger
    subject: str
    as_of: datetime
    began: datetime | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a monitor reported of a window; `candidate` is the champion that it compared with."""

    start: datetime
    end: datetime
    candidate: str | None
    drifted: bool
    decayed: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision rests on; nothing in it lies after `as_of`.

    Attributes:
        verdicts: Of the log, in any order.
        asked: The log's retrain entries before `as_of`, in order.
        reports: Of the windows that end at `as_of`, `as_of - every`, and so on; in any order.
        every: The monitor's window; None without a monitor.
        new_labels: Labels that became known since the last verdict; None where nobody counted.
    """

    as_of: datetime
    verdicts: Sequence[Judged] = ()
    asked: Sequence[Asked] = ()
    reports: Sequence[Seen] = ()
    every: timedelta | None = None
    new_labels: int | None = None

    @property
    def last_verdict(self) -> datetime | None:
        """When the gate last judged."""
        return max((verdict.as_of for verdict in self.verdicts), default=None)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the policy wants; see RetrainDecision."""

    due: bool
    trigger: Trigger
    why: str
    subject: str = ""
    run_as_of: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)
    alerts: tuple[str, ...] = ()


def decide(policy: Retrain, facts: Facts) -> Wish:
    """Whether to train again now, and for what reason.

    Args:
        policy: The loop's section.
        facts: What is known at `facts.as_of`.

    Raises:
        UserError: The schedule is no cron expression.
    """
    alerts = _alerts(policy, facts)
    last = facts.last_verdict
    if last is None:
        return _wish(facts, "first", "first", "the gate has judged no model yet", {}, alerts)
    if last >= facts.as_of:
        return Wish(False, "none", "the gate has judged at this as_of already", alerts=alerts)
    pending = _pending(facts)
    tick = newest_tick(policy.schedule, facts.as_of) if policy.schedule else None
    if tick is not None and tick > last and (pending is None or tick > pending.as_of):
        why = f"the {policy.schedule} tick of {_day(tick)} came after the last verdict ({_day(last)})"
        return _wish(facts, "schedule", f"schedule:{format_instant(tick)}", why, {}, alerts)
    if pending is not None:
        why = f"asked for as of {_day(pending.as_of)} ({pending.subject}) and not judged yet"
        began = {"began": format_instant(pending.began)} if pending.began else {}
        return Wish(True, pending.trigger, why, pending.subject, pending.as_of, began, alerts)
    wishes = [wish for ask in (_drift, _decay, _labels) if (wish := ask(policy, facts, last, alerts))]
    if not wishes:
        return Wish(False, "none", _nothing(policy, facts), alerts=alerts)
    until = last + policy.cooldown
    if facts.as_of < until:
        waits = f"in cooldown until {_day(until)}: {wishes[0].why}"
        return Wish(False, "none", waits, alerts=(*alerts, waits))
    return wishes[0]


def newest_tick(schedule: str, as_of: datetime) -> datetime:
    """The last tick of a schedule at or before an instant, in UTC.

    Args:
        schedule: `daily`, `weekly` (Mondays), `monthly` (the first), or five cron fields.
        as_of: In UTC.

    Raises:
        UserError: It is none of these.
    """
    from cronsim import CronSim, CronSimError

    minute = as_of.replace(second=0, microsecond=0)
    try:
        # Backwards, CronSim begins before its start: a minute later, for `as_of` itself to count.
        ticks = CronSim(_CRON.get(schedule, schedule), minute + timedelta(minutes=1), reverse=True)
        tick: datetime = next(ticks)
    except (CronSimError, StopIteration) as error:
        raise UserError(
            f"retrain.schedule: {schedule!r} is no schedule ({error}): write daily, weekly, monthly or five"
            " cron fields such as '0 6 * * 1'"
        ) from None
    return tick


def streak(facts: Facts, holds: Callable[[Seen], bool]) -> list[Seen]:
    """The newest windows in a row, against one champion, of which `holds` says yes; newest first.

    They do not overlap; less than one window lies between two of them, and between the newest and `as_of`.
    """
    row: list[Seen] = []
    edge = facts.as_of
    for report in sorted(facts.reports, key=lambda seen: seen.end, reverse=True):
        if report.end > edge:
            continue
        gap = edge - report.end
        other = row and report.candidate != row[0].candidate
        if gap >= (facts.every or timedelta.max) or other or not holds(report):
            break
        row.append(report)
        edge = report.start
    return row


def unlearned(facts: Facts) -> Asked | None:
    """The oldest drift that led to a verdict, but to none on a model with data from after it began."""
    for asked in facts.asked:
        if asked.trigger != "drift" or asked.began is None:
            continue
        after = [verdict for verdict in facts.verdicts if verdict.as_of >= asked.as_of]
        began = asked.began
        if after and not any(verdict.trained_through > began for verdict in after):
            return asked
    return None


def _pending(facts: Facts) -> Asked | None:
    """The newest retrain that was asked for before now, if nothing was judged at its `as_of` or later."""
    before = [asked for asked in facts.asked if asked.as_of < facts.as_of]
    newest = max(before, key=lambda asked: asked.as_of, default=None)
    last = facts.last_verdict
    return newest if newest is not None and (last is None or last < newest.as_of) else None


def _drift(policy: Retrain, facts: Facts, last: datetime, alerts: tuple[str, ...]) -> Wish | None:
    if "drift" not in policy.on:
        return None
    owed = unlearned(facts)
    if owed is not None and owed.began is not None:
        why = f"no model has learned from data after the drift of {_day(owed.began)} began"
        return _wish(facts, "drift", owed.subject, why, {"began": format_instant(owed.began)}, alerts)
    row = streak(facts, lambda seen: seen.drifted)
    return _for_streak("drift", "drifted", row, policy, facts, alerts)


def _decay(policy: Retrain, facts: Facts, last: datetime, alerts: tuple[str, ...]) -> Wish | None:
    if "decay" not in policy.on:
        return None
    row = streak(facts, lambda seen: seen.decayed)
    return _for_streak("decay", "lost quality", row, policy, facts, alerts)


def _for_streak(
    trigger: Trigger, verb: str, row: list[Seen], policy: Retrain, facts: Facts, alerts: tuple[str, ...]
) -> Wish | None:
    if len(row) < policy.strikes:
        return None
    began = row[-1].start
    why = f"{counted(len(row), 'window')} in a row {verb}, since {_day(began)}"
    subject = f"{trigger}:{format_instant(began)}"
    return _wish(facts, trigger, subject, why, {"began": format_instant(began)}, alerts)


def _labels(policy: Retrain, facts: Facts, last: datetime, alerts: tuple[str, ...]) -> Wish | None:
    if "new_labels" not in policy.on or facts.new_labels is None or facts.new_labels < policy.new_labels:
        return None
    known = f"{counted(facts.new_labels, 'label')} became known since the last verdict"
    why = f"{known}; {policy.new_labels:,} {'is' if policy.new_labels == 1 else 'are'} enough"
    return _wish(facts, "new_labels", f"new_labels:{format_instant(last)}", why, {}, alerts)


def _wish(
    facts: Facts, trigger: Trigger, subject: str, why: str, details: dict[str, Any], alerts: tuple[str, ...]
) -> Wish:
    return Wish(True, trigger, why, subject, facts.as_of, details, alerts)


def _alerts(policy: Retrain, facts: Facts) -> tuple[str, ...]:
    """What a person should know although the loop lets it trigger nothing."""
    found = []
    for trigger, verb, row in (
        ("drift", "inputs drifted", streak(facts, lambda seen: seen.drifted)),
        ("decay", "quality decayed", streak(facts, lambda seen: seen.decayed)),
    ):
        if row and trigger not in policy.on:
            found.append(
                f"{verb} since {_day(row[-1].start)}; {trigger} is not in retrain.on, so nothing is trained"
            )
    return tuple(found)


def _nothing(policy: Retrain, facts: Facts) -> str:
    parts = []
    for trigger, row in (
        ("drift", streak(facts, lambda seen: seen.drifted)),
        ("decay", streak(facts, lambda seen: seen.decayed)),
    ):
        if trigger in policy.on:
            parts.append(f"{trigger} in {len(row)} of {counted(policy.strikes, 'window')}")
    if "new_labels" in policy.on and facts.new_labels is not None:
        parts.append(f"{facts.new_labels:,} of {counted(policy.new_labels, 'new label')}")
    if policy.schedule:
        parts.append(f"no tick of the {policy.schedule} schedule")
    return (
        f"nothing asks for it: {', '.join(parts)}"
        if parts
        else "the policy has neither schedule nor triggers"
    )


def _day(moment: datetime) -> str:
    """The date, with the time where it is not midnight."""
    text = format_instant(moment)
    return text.removesuffix("T00:00:00Z")
