"""retrain: a decision from the track's log and the monitors' reports."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from treadle.commit import make_record
from treadle.errors import UserError
from treadle.records import DriftReport, RetrainDecision
from treadle.stages import retrain
from watched_orders import World, at, orders, world


def report(end: int, drifted: bool = True) -> DriftReport:
    results = {
        "candidate": "c" * 64,
        "start": at(end - 7),
        "end": at(end),
        "rows": 1,
        "captured": 0,
        "replayed": 1,
        "drifted": drifted,
    }
    digest = f"{end}-{drifted}"
    return make_record(
        DriftReport,
        loop="orders",
        as_of=at(end),
        key={"end": end},
        digest=digest,
        results=results,
        blobs={},
        notes={},
    )


def decide(place: World, day: int, **given: Any) -> RetrainDecision:
    context = place.context(at(day))
    outcome = retrain.retrain(context, **given)
    return make_record(
        RetrainDecision,
        loop="orders",
        as_of=at(day),
        key=retrain.key(context, **given),
        digest=outcome.digest or "",
        results=dict(outcome.results),
        blobs={},
        notes={},
    )


def append(place: World, decision: RetrainDecision) -> bool:
    """What the runner does with a decision that is due."""
    assert decision.run_as_of is not None
    return place.log.append(
        "retrain",
        subject=decision.subject,
        why=decision.why,
        who="test",
        as_of=decision.run_as_of,
        evidence=decision.id,
        details=decision.details,
    )[1]


@pytest.fixture
def place(tmp_path: Path) -> World:
    return world(tmp_path, retrain={"schedule": "monthly", "on": ["drift"], "strikes": 2, "cooldown": "14d"})


def test_a_loop_without_the_section_is_told_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"retrain: \{schedule: monthly\}"):
        retrain.key(world(tmp_path).context(at(7)))


def test_first_then_schedule_then_nothing(place: World) -> None:
    assert decide(place, 7).trigger == "first"
    place.verdict(at(7))
    assert not decide(place, 14).due
    scheduled = decide(place, 35)
    assert (scheduled.trigger, scheduled.run_as_of) == ("schedule", at(35))
    place.verdict(at(35), "reject")
    assert not decide(place, 42).due


def test_a_rejection_by_a_person_is_no_verdict(place: World) -> None:
    place.log.append("reject", subject="v", why="no", who="ann", as_of=at(7), details={"by": "person"})
    assert decide(place, 14).trigger == "first"


def test_exactly_one_entry_a_trigger_however_many_monitors_fire(place: World) -> None:
    place.verdict(at(0))
    reports = [report(21), report(14)]
    decisions = [decide(place, 21, reports=order) for order in (reports, reports[::-1], reports)]
    assert len({(decision.id, decision.digest) for decision in decisions}) == 1
    assert [append(place, decision) for decision in decisions] == [True, False, False]
    # Made again after its entry is in the log, it is the same record still.
    assert decide(place, 21, reports=reports).id == decisions[0].id
    # A later monitor, before the run came to a verdict, asks for the same run.
    later = decide(place, 28, reports=[report(28), report(21)])
    assert (later.subject, later.run_as_of) == (decisions[0].subject, at(21))
    assert not append(place, later)
    place.verdict(at(21))
    assert not decide(place, 21, reports=reports).due


def test_a_drift_that_began_after_the_training_data_ended_stays_due(place: World) -> None:
    place.verdict(at(0))
    first = decide(place, 14, reports=[report(14), report(7)])
    assert first.details == {"trigger": "drift", "began": "2024-01-01T00:00:00Z"}
    append(place, first)
    # The release stage says where training ended: before the drift began.
    place.verdict(at(14), trained_through="2024-01-01T00:00:00Z")
    calm = [report(21, False), report(14, False)]
    assert "cooldown" in decide(place, 21, reports=calm).why
    calm = [report(28, False), report(21, False)]
    again = decide(place, 28, reports=calm)
    assert (again.due, again.subject, again.run_as_of) == (True, first.subject, at(28))
    append(place, again)
    place.verdict(at(28))
    assert not decide(place, 30, reports=[]).due


def test_without_a_word_on_training_the_loops_lengths_tell_where_it_ended(tmp_path: Path) -> None:
    rules = {"on": ["drift"], "strikes": 1, "cooldown": "7d"}
    place = world(tmp_path, data={"holdout": "7d", "label_delay": "2d"}, retrain=rules)
    place.verdict(at(0))
    append(place, decide(place, 14, reports=[report(14)]))  # began on day 7
    place.verdict(at(14))  # trained through day 5
    assert decide(place, 21, reports=[report(21, False)]).due
    place.verdict(at(17))  # through day 8
    assert not decide(place, 24, reports=[report(24, False)]).due


def test_the_past_is_decided_as_it_was(place: World) -> None:
    place.verdict(at(7))
    then = decide(place, 28, reports=[report(28), report(21)])
    place.verdict(at(60))
    assert decide(place, 28, reports=[report(28), report(21)]).id == then.id


def test_new_labels_are_counted_by_when_they_became_known(tmp_path: Path) -> None:
    place = world(tmp_path, retrain={"on": ["new_labels"], "new_labels": 300, "cooldown": "1d"})
    table = orders(30)
    place.verdict(at(14))
    # 60 orders a day, each label known 6 hours later: 5 days after the verdict 300 have become known.
    short = decide(place, 18, features=place.features(table, at(18), days_each=7))
    assert (short.due, short.why) == (False, "nothing asks for it: 240 of 300 new labels")
    full = decide(place, 19, features=place.features(table, at(19), days_each=7))
    assert (full.due, full.trigger) == (True, "new_labels")
    with pytest.raises(UserError, match="features are needed"):
        decide(place, 19)


def test_reports_wanted_are_the_strikes(place: World, tmp_path: Path) -> None:
    assert retrain.reports_wanted(place.context(at(7))) == 2
    unwatched = world(tmp_path / "other", monitor=None, retrain={"schedule": "weekly"})
    assert retrain.reports_wanted(unwatched.context(at(7))) == 0


def test_a_storm_over_a_real_log_is_one_retrain_a_cooldown(place: World) -> None:
    place = World(
        place.folder,
        place.loop.model_copy(update={"retrain": place.loop.retrain.model_copy(update={"schedule": None})}),  # type: ignore[union-attr]
        place.store,
        place.log,
    )
    place.verdict(at(0))
    for day in range(7, 120, 7):
        for _ in range(3):
            decision = decide(place, day, reports=[report(day), report(day - 7)])
            if decision.due:
                append(place, decision)
        if decision.due and decision.run_as_of:
            place.verdict(decision.run_as_of, "reject")
    asked = [entry.as_of for entry in place.log.entries() if entry.kind == "retrain"]
    assert asked == [at(day) for day in range(14, 120, 14)]
    assert all(later - earlier >= timedelta(days=14) for earlier, later in pairwise(asked))
