"""When to train again: schedules, strikes, cooldowns, and drifts that a run could not have learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle.errors import UserError
from treadle.monitoring.policy import Asked, Facts, Judged, Seen, Wish, decide, newest_tick
from treadle.spec import Retrain

START = datetime(2013, 4, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
HOLDOUT = timedelta(days=14)


def at(days: int) -> datetime:
    return START + timedelta(days=days)


def judged(days: int, lag: timedelta = HOLDOUT) -> Judged:
    return Judged(at(days), at(days) - lag)


def weeks(end: int, marks: str, candidate: str = "a", *, decayed: bool = False) -> list[Seen]:
    """Reports of weeks that end at `end`, the last mark the newest: `x` drifted (or decayed), `.` not."""
    found = []
    for back, mark in enumerate(reversed(marks)):
        hit = mark == "x"
        found.append(
            Seen(at(end - 7 * back - 7), at(end - 7 * back), candidate, hit and not decayed, hit and decayed)
        )
    return found


def policy(**changes: Any) -> Retrain:
    return Retrain(**{"on": ("drift",), **changes})


def facts(days: int, **changes: Any) -> Facts:
    return Facts(**{"as_of": at(days), "verdicts": [judged(0)], "every": WEEK, **changes})


@pytest.mark.parametrize(
    ("schedule", "as_of", "tick"),
    [
        ("daily", "2013-04-10T06:00", "2013-04-10T00:00"),
        ("daily", "2013-04-10T00:00", "2013-04-10T00:00"),
        ("daily", "2013-04-10T00:00:30", "2013-04-10T00:00"),
        ("weekly", "2013-04-10T00:00", "2013-04-08T00:00"),
        ("weekly", "2013-04-08T00:00", "2013-04-08T00:00"),
        ("monthly", "2013-04-30T23:59:59", "2013-04-01T00:00"),
        ("monthly", "2013-05-01T00:00", "2013-05-01T00:00"),
        ("0 6 * * 1", "2013-04-08T05:59", "2013-04-01T06:00"),
        ("30 2 29 2 *", "2013-04-08T00:00", "2012-02-29T02:30"),
    ],
)
def test_newest_tick_is_the_last_at_or_before(schedule: str, as_of: str, tick: str) -> None:
    moment = datetime.fromisoformat(as_of).replace(tzinfo=UTC)
    assert newest_tick(schedule, moment) == datetime.fromisoformat(tick).replace(tzinfo=UTC)


@pytest.mark.parametrize("schedule", ["hourly-ish", "99 * * * *", "", "* *", "0 0 31 2 *"])
def test_a_schedule_that_is_none_is_refused_with_what_to_write(schedule: str) -> None:
    with pytest.raises(UserError, match="write daily, weekly, monthly"):
        newest_tick(schedule, START)


def test_first_when_nothing_was_judged() -> None:
    wish = decide(policy(), facts(0, verdicts=[]))
    assert (wish.due, wish.trigger, wish.subject, wish.run_as_of) == (True, "first", "first", at(0))


def test_schedule_is_due_once_for_each_tick() -> None:
    monthly = policy(schedule="monthly")
    assert not decide(monthly, facts(29)).due
    wish = decide(monthly, facts(32))
    assert (wish.trigger, wish.subject, wish.run_as_of) == (
        "schedule",
        "schedule:2013-05-01T00:00:00Z",
        at(32),
    )
    assert not decide(monthly, facts(39, verdicts=[judged(0), judged(32)])).due


def test_schedule_does_not_wait_for_the_cooldown_and_triggers_do() -> None:
    both = policy(schedule="weekly", cooldown=timedelta(days=60))
    assert decide(both, facts(7)).trigger == "schedule"
    drift = policy(cooldown=timedelta(days=60))
    held = decide(drift, facts(21, reports=weeks(21, "xx")))
    assert not held.due
    assert "cooldown until 2013-05-31" in held.why
    assert held.alerts == (held.why,)
    assert decide(drift, facts(63, reports=weeks(63, "xx"))).due


@pytest.mark.parametrize(
    ("marks", "due"),
    [("xx", True), (".xx", True), ("xxx", True), ("x.", False), ("x.x", False), (".x", False), ("", False)],
)
def test_drift_needs_its_strikes_in_a_row(marks: str, due: bool) -> None:
    assert decide(policy(), facts(28, reports=weeks(28, marks))).due is due


def test_strikes_are_windows_that_do_not_overlap_and_follow_each_other() -> None:
    daily = [Seen(at(28 - back - 7), at(28 - back), "a", True, False) for back in range(5)]
    assert not decide(policy(), facts(28, reports=daily)).due
    gap = [weeks(28, "x")[0], weeks(14, "x")[0]]
    assert not decide(policy(), facts(28, reports=gap)).due
    stale = weeks(14, "xx")
    assert not decide(policy(), facts(28, reports=stale)).due
    future = weeks(35, "x.x")
    assert not decide(policy(), facts(28, reports=future)).due


def test_strikes_against_an_earlier_champion_do_not_count() -> None:
    mixed = [*weeks(21, "x", "old"), *weeks(28, "x", "new")]
    assert not decide(policy(), facts(28, reports=mixed)).due


def test_drift_names_when_it_began() -> None:
    wish = decide(policy(), facts(28, reports=weeks(28, "xx")))
    assert wish.subject == "drift:2013-04-15T00:00:00Z"
    assert wish.details == {"began": "2013-04-15T00:00:00Z"}


def test_decay_triggers_only_if_named_and_alerts_if_not() -> None:
    reports = weeks(28, "xx", decayed=True)
    quiet = decide(policy(), facts(28, reports=reports))
    assert not quiet.due
    assert "quality decayed since 2013-04-15" in quiet.alerts[0]
    named = decide(policy(on=("decay",)), facts(28, reports=reports))
    assert (named.due, named.trigger) == (True, "decay")


def test_new_labels_count_from_the_last_verdict() -> None:
    asks = policy(on=("new_labels",), new_labels=1000)
    assert not decide(asks, facts(28, new_labels=999)).due
    wish = decide(asks, facts(28, new_labels=1000))
    assert (wish.trigger, wish.subject) == ("new_labels", "new_labels:2013-04-01T00:00:00Z")


def test_nothing_is_due_where_the_gate_has_judged_at_this_as_of() -> None:
    assert not decide(
        policy(cooldown=timedelta(0)), facts(28, verdicts=[judged(28)], reports=weeks(28, "xx"))
    ).due


def test_a_retrain_without_a_verdict_stays_due_at_its_own_as_of() -> None:
    asked = Asked("drift", "drift:x", at(21), at(7))
    wish = decide(policy(), facts(28, asked=[asked], reports=weeks(28, "..")))
    assert (wish.due, wish.trigger, wish.subject, wish.run_as_of) == (True, "drift", "drift:x", at(21))
    assert not decide(policy(), facts(28, asked=[asked], verdicts=[judged(0), judged(21, timedelta(0))])).due


def test_a_newer_tick_overtakes_a_retrain_that_never_came_to_a_verdict() -> None:
    asked = Asked("drift", "drift:x", at(21), at(7))
    wish = decide(policy(schedule="monthly"), facts(35, asked=[asked]))
    assert (wish.trigger, wish.run_as_of) == ("schedule", at(35))


def test_a_drift_that_its_run_could_not_have_learned_stays_due_until_one_reaches_it() -> None:
    asked = [Asked("drift", "drift:x", at(28), at(14))]
    ended = weeks(42, "..")
    # Trained through day 14, where the drift began: nothing of it was seen.
    verdicts = [judged(0), judged(28)]
    cooling = decide(policy(), facts(35, asked=asked, verdicts=verdicts, reports=weeks(35, "..")))
    assert not cooling.due
    assert "drift of 2013-04-15" in cooling.why
    again = decide(policy(), facts(42, asked=asked, verdicts=verdicts, reports=ended))
    assert (again.due, again.subject, again.run_as_of) == (True, "drift:x", at(42))
    # A run that ended one day into the drift has learned from it.
    for late in (29, 42):
        reached = [*verdicts, judged(late)]
        assert not decide(
            policy(), facts(late + 21, asked=asked, verdicts=reached, reports=weeks(late + 21, ".."))
        ).due


def test_any_verdict_that_reaches_the_drift_settles_it_a_scheduled_one_too() -> None:
    asked = [Asked("drift", "drift:x", at(28), at(14))]
    late = [judged(0), judged(28), judged(30)]
    assert decide(policy(), facts(46, asked=asked, verdicts=late)).trigger == "none"


@dataclass
class World:
    """A loop's log in memory: monitors fire, the policy decides, runs that are due are judged."""

    rules: Retrain
    drifted: Callable[[int], bool]
    lag: timedelta = HOLDOUT
    fails: Callable[[int], bool] = lambda day: False
    verdicts: list[Judged] = field(default_factory=lambda: [judged(0)])
    asked: list[Asked] = field(default_factory=list)

    def monitor(self, day: int, times: int = 1) -> Sequence[Wish]:
        """Several monitors fire at one `as_of`, then the run that is due is made, if it can be."""
        reports = [
            Seen(at(day - 7 * back - 7), at(day - 7 * back), "a", self.drifted(day - 7 * back), False)
            for back in range(self.rules.strikes)
        ]
        wishes = []
        for _ in range(times):
            before = [asked for asked in self.asked if asked.as_of < at(day)]
            wish = decide(self.rules, facts(day, verdicts=self.verdicts, asked=before, reports=reports))
            wishes.append(wish)
            same = [a for a in self.asked if (a.subject, a.as_of) == (wish.subject, wish.run_as_of)]
            if wish.due and wish.run_as_of and not same:
                began = wish.details.get("began")
                self.asked.append(
                    Asked(
                        wish.trigger,
                        wish.subject,
                        wish.run_as_of,
                        datetime.fromisoformat(began) if began else None,
                    )
                )
        if wishes[0].due and wishes[0].run_as_of and not self.fails(day):
            self.verdicts.append(Judged(wishes[0].run_as_of, wishes[0].run_as_of - self.lag))
        return wishes


def test_a_drift_storm_is_one_retrain_a_cooldown_however_many_monitors_fire() -> None:
    world = World(policy(cooldown=timedelta(days=28)), lambda day: True)
    for day in range(7, 7 * 30, 7):
        wishes = world.monitor(day, times=5)
        assert len({(wish.due, wish.subject, wish.run_as_of) for wish in wishes}) == 1
    gaps = {later.as_of - earlier.as_of for earlier, later in pairwise(world.verdicts)}
    assert gaps == {timedelta(days=28)}
    assert len(world.asked) == len(world.verdicts) - 1
    assert len({asked.as_of for asked in world.asked}) == len(world.asked)


@settings(max_examples=150, deadline=None)
@given(
    storm=st.lists(st.booleans(), min_size=30, max_size=30),
    broken=st.lists(st.booleans(), min_size=30, max_size=30),
    cooldown=st.integers(0, 6),
    strikes=st.integers(1, 3),
    lag=st.integers(0, 5),
)
def test_whatever_drifts_and_fails_retrains_keep_their_distance_and_none_is_lost(
    storm: list[bool], broken: list[bool], cooldown: int, strikes: int, lag: int
) -> None:
    rules = policy(cooldown=cooldown * WEEK, strikes=strikes)
    world = World(
        rules,
        lambda day: storm[day // 7 % 30] if day > 0 else False,
        lag=lag * WEEK,
        fails=lambda day: broken[day // 7 % 30],
    )
    for day in range(7, 7 * 30, 7):
        world.monitor(day, times=2)
    for earlier, later in pairwise(sorted(verdict.as_of for verdict in world.verdicts)):
        assert later - earlier >= max(rules.cooldown, WEEK)
    # Once it is calm and nothing fails, every drift that was asked to be learned gets a run that reaches it.
    world.drifted, world.fails = (lambda day: False), (lambda day: False)
    for day in range(7 * 30, 7 * 60, 7):
        world.monitor(day)
    for asked in world.asked:
        assert asked.began is not None
        assert any(v.as_of >= asked.as_of and v.trained_through > asked.began for v in world.verdicts)
    last = world.verdicts[-1].as_of
    world.monitor(7 * 70)
    assert world.verdicts[-1].as_of == last
