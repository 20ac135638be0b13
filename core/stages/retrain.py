"""retrain: whether the policy asks for a new challenger now. The runner writes what is due to the log.

The decision rests on the track's log as it stands: verdicts up to `as_of`, retrain entries before it. One
made at this very `as_of` is this decision's own: asking again gives the same record until the gate judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from treadle.clock import format_duration, format_instant, parse_instant
from treadle.errors import UserError
from treadle.identity import digest_of
from treadle.monitoring.policy import Asked, Facts, Judged, Seen, Trigger, decide, unlearned
from treadle.records import DriftReport, FeatureSet, Json
from treadle.registry.log import is_verdict
from treadle.spec import Retrain
from treadle.stages import Context, Outcome

VERSION = 2


def reports_wanted(context: Context) -> int:
    """How many reports a decision needs: of the windows that end at `as_of`, `as_of - every`, and so on.

    As many as strikes; 0 where nothing is monitored.
    """
    policy = context.loop.retrain
    return policy.strikes if policy is not None and context.loop.monitor is not None else 0


def key(context: Context, *, reports: Sequence[DriftReport] = (), features: FeatureSet | None = None) -> Json:
    """What makes a decision.

    Args:
        context: Where and when.
        reports: See `reports_wanted`.
        features: Today's, to count new labels in; needed if the loop names `new_labels`.

    Raises:
        UserError: The loop has no `retrain` section, or `features` are needed and absent.
    """
    policy = _policy(context)
    facts = _facts(context, reports, None)
    owed = unlearned(facts)
    last = facts.last_verdict
    return {
        "stage": "retrain",
        "version": VERSION,
        "spec": {
            **context.loop.part("retrain"),
            "label_delay": format_duration(context.loop.data.label_delay),
            "holdout": format_duration(context.loop.data.holdout),
            "every": format_duration(facts.every) if facts.every else None,
        },
        "as_of": format_instant(context.as_of),
        "last_verdict": format_instant(last) if last else None,
        "asked": [
            [a.subject, format_instant(a.as_of)] for a in facts.asked if last is None or a.as_of > last
        ],
        "unlearned": owed.subject if owed else None,
        "reports": [report.digest for report in _sorted(reports)],
        "features": _needed(features).digest if "new_labels" in policy.on else None,
    }


def retrain(
    context: Context, *, reports: Sequence[DriftReport] = (), features: FeatureSet | None = None
) -> Outcome:
    """The decision whether to train again.

    Args:
        context: Where and when.
        reports: See `reports_wanted`.
        features: See `key`.

    Raises:
        UserError: The loop has no `retrain` section, its schedule is none, or needed `features` are absent.
    """
    policy = _policy(context)
    facts = _facts(context, reports, None)
    if "new_labels" in policy.on and facts.last_verdict is not None:
        count = _labels_since(context, _needed(features), facts.last_verdict)
        facts = _facts(context, reports, count)
    wish = decide(policy, facts)
    results = {
        "due": wish.due,
        "trigger": wish.trigger,
        "why": wish.why,
        "subject": wish.subject,
        "run_as_of": format_instant(wish.run_as_of) if wish.run_as_of else None,
        "details": {"trigger": wish.trigger, **wish.details} if wish.due else {},
        "reports": [report.id for report in _sorted(reports)],
        "alerts": list(wish.alerts),
    }
    return Outcome(results=results, digest=digest_of({**results, "reports": len(reports)}))


def _policy(context: Context) -> Retrain:
    if context.loop.retrain is None:
        raise UserError(
            f"the loop {context.loop.name!r} has no `retrain` section: add `retrain: {{schedule: monthly}}`"
        )
    return context.loop.retrain


def _needed(features: FeatureSet | None) -> FeatureSet:
    if features is None:
        raise UserError(
            "retrain.on has new_labels: the features are needed to count labels in, and were not given"
        )
    return features


def _sorted(reports: Sequence[DriftReport]) -> list[DriftReport]:
    return sorted(reports, key=lambda report: (report.end, report.id), reverse=True)


def _facts(context: Context, reports: Sequence[DriftReport], new_labels: int | None) -> Facts:
    monitoring = context.loop.monitor
    entries = [entry for entry in context.log.entries() if entry.as_of <= context.as_of]
    lag = context.loop.data.label_delay + context.loop.data.holdout
    return Facts(
        as_of=context.as_of,
        verdicts=[Judged(e.as_of, _through(e.details, e.as_of - lag)) for e in entries if is_verdict(e)],
        asked=[
            Asked(_trigger(e.details, e.subject), e.subject, e.as_of, _began(e.details))
            for e in entries
            if e.kind == "retrain" and e.as_of < context.as_of
        ],
        reports=[
            Seen(r.start, r.end, r.candidate, r.drifted, r.quality is not None and r.quality.decayed)
            for r in reports
            if r.end <= context.as_of
        ],
        every=monitoring.every if monitoring else None,
        new_labels=new_labels,
    )


def _through(details: dict[str, Any], nominal: datetime) -> datetime:
    """Where the challenger's training data ended: as the entry says, else by the loop's own lengths."""
    told = details.get("trained_through")
    return parse_instant(told) if told else nominal


def _trigger(details: dict[str, Any], subject: str) -> Trigger:
    return cast("Trigger", details.get("trigger") or subject.partition(":")[0])


def _began(details: dict[str, Any]) -> datetime | None:
    told = details.get("began")
    return parse_instant(told) if told else None


def _labels_since(context: Context, features: FeatureSet, since: datetime) -> int:
    """Labels with since <= known < as_of, counted a partition at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from treadle.data.tables import read_partitions

    low, high = (pa.scalar(moment, pa.timestamp("us", tz="UTC")) for moment in (since, context.as_of))
    count = 0
    for part in features.partitions:
        table = read_partitions(context.store, [part], columns=["label", "label_known_at"])
        known: Any = pc.and_(
            pc.greater_equal(table["label_known_at"], low), pc.less(table["label_known_at"], high)
        )
        count += pc.sum(pc.and_(known, pc.is_valid(table["label"]))).as_py() or 0
    return count
