"""A person decides in Airflow: what is shown, whose name enters the log, and what happens when the log moved on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from airflow_cases import context, sent
from desk import Desk, time_runs_out
from home import Home
from treadle import acts
from treadle.registry.log import Entry
from treadle_airflow import assets
from treadle_airflow.operators.approval import TreadleProposeOperator
from wheel import SECOND, THIRD, Wheel, copy_of


@pytest.fixture
def asking(home: Home, unanswered: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A loop whose challenger, trained by ann, waits for a person."""
    wheel = copy_of(unanswered, tmp_path)
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    home.drop_in(wheel.path.parent)
    return wheel


def entries(wheel: Wheel) -> list[Entry]:
    return wheel.session(THIRD).log.entries()


def test_an_approval_shows_the_verdict_and_enters_the_log_by_name(home: Home, asking: Wheel) -> None:
    before = len(entries(asking))
    desk = Desk(home, [])
    desk.answers += [desk.says("ann", "Approve"), desk.says("bea", "Approve", "slices are fine")]
    ran = desk.run(home.dag("orders__release"))
    assert (ran.state, desk.codes) == ("success", [200, 200])

    # The trainer's approval is not taken, and the question stays.
    assert [question["options"] for question in desk.asked] == [["Approve", "Reject"]] * 2
    body, verdict = desk.asked[0]["body"], entries(asking)[before - 2].evidence
    for shown in (
        "**promote**",
        "**ann** trained it",
        "#### Criteria",
        "roc_auc (guard)",
        "#### Slices",
        verdict,
    ):
        assert str(shown) in body
    assert "the loop's approval is manual" in body

    approval, promotion = entries(asking)[before:]
    assert (approval.kind, approval.who, approval.why) == ("approve", "bea", "slices are fine")
    assert (promotion.kind, promotion.who, promotion.details["approved_by"]) == ("promote", "bea", "bea")
    assert ran.states["release.rejected"] == "skipped"
    assert ran.told["release.approved"]["outcome"] == "promoted"
    assert ran.told["deploy.run"]["candidate"] == promotion.candidate
    (event,) = home.events("treadle://orders/champion")
    assert event["candidate"] == promotion.candidate


def test_a_rejection_ends_the_run_as_rejected(home: Home, asking: Wheel) -> None:
    desk = Desk(home, [])
    desk.answers.append(desk.says("bea", "Reject", ""))
    ran = desk.run(home.dag("orders__release"))
    assert ran.state == "success"
    assert ran.states["release.rejected"] == "success"
    assert ran.states["release.approved"] == ran.states["deploy.run"] == "skipped"
    last = entries(asking)[-1]
    assert (last.kind, last.who, last.details["by"]) == ("reject", "bea", "person")
    assert last.why == "Reject in Airflow, without a reason"
    assert home.events("treadle://orders/champion") == []


def test_nobody_s_answer_leaves_the_challenger_pending_and_says_so(home: Home, asking: Wheel) -> None:
    before = entries(asking)
    ran = Desk(home, [time_runs_out]).run(home.dag("orders__release"))
    assert ran.state == "success"
    assert {ran.states[name] for name in ("approve.ask", "release.approved", "deploy.run")} == {"skipped"}
    told = ran.told["approve.ask"]
    assert told["outcome"] == "pending"
    assert "treadle approve" in told["words"]
    assert entries(asking) == before


def test_an_answer_to_what_was_answered_at_a_shell_changes_nothing(home: Home, asking: Wheel) -> None:
    desk = Desk(home, [])

    def too_late(question: Any) -> None:
        acts.reject(asking.session(SECOND, who="eva"), "a holiday week")
        desk.says("bea", "Approve")(question)

    desk.answers.append(too_late)
    ran = desk.run(home.dag("orders__release"))
    assert {ran.state, ran.states["release.approved"]} == {"failed"}
    assert ran.states["deploy.run"] == "upstream_failed"
    assert (entries(asking)[-1].who, entries(asking)[-1].kind) == ("eva", "reject")


def test_an_answer_is_never_given_to_a_later_challenger(home: Home, asking: Wheel) -> None:
    desk = Desk(home, [])

    def overtaken(question: Any) -> None:
        asking.run(THIRD)
        desk.says("bea", "Approve")(question)

    desk.answers.append(overtaken)
    ran = desk.run(home.dag("orders__release"))
    assert ran.states["release.approved"] == "failed"
    assert asking.kinds()[-2:] == ["propose", "hold"]


def told_by_event(wheel: Wheel, at: datetime, track: str = "production", **other: Any) -> Any:
    entry = next(e for e in reversed(wheel.session(THIRD, track=track).log.entries()) if e.kind == "propose")
    extra = {
        "as_of": entry.as_of.isoformat(),
        "track": track,
        "set": [],
        "verdict": entry.subject,
        "candidate": entry.candidate,
        "candidate_id": entry.details["candidate_id"],
    }
    return SimpleNamespace(asset=SimpleNamespace(uri=f"x{track}"), timestamp=at, extra={**extra, **other})


def test_events_of_two_tracks_in_one_run_are_each_asked_about(
    asking: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking.run(SECOND, track="trial")
    monkeypatch.setenv("TREADLE_STORE", str(asking.store))
    alias = assets.alias_of(assets.candidate("orders"))
    task = TreadleProposeOperator(task_id="propose", loop=asking.path, outlets=[alias])
    early, late = datetime(2024, 3, 5, tzinfo=UTC), datetime(2024, 3, 6, tzinfo=UTC)
    one, other = told_by_event(asking, late), told_by_event(asking, early, "trial")
    here = context() | {"triggering_asset_events": {"a": [other, one]}}
    proposal = task.execute(here)
    assert (proposal["track"], proposal["verdict"]) == ("production", one.extra["verdict"])
    assert proposal["trained_by"] == "ann"
    assert [extra["track"] for extra in sent(here, alias)] == ["trial"]


def test_an_event_whose_challenger_was_answered_asks_nobody(asking: Wheel) -> None:
    event = told_by_event(asking, datetime(2024, 3, 5, tzinfo=UTC))
    acts.reject(asking.session(SECOND, who="eva"), "a holiday week")
    task = TreadleProposeOperator(task_id="propose", loop=asking.path)
    with pytest.raises(AirflowSkipException, match="rejected, a holiday week"):
        task.execute(context() | {"triggering_asset_events": {"a": [event]}})
