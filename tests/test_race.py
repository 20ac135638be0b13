"""Several processes at once: one proposal, one promotion, one retrain; who comes second is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from processes import call_together, turn_together
from treadle import acts
from treadle.errors import StaleChampion
from treadle.registry.log import Entry, ReleaseLog, pending_in
from treadle.registry.mlflow import _mlflow
from treadle.stages.release import promote
from treadle.store import LocalStore
from wheel import FIRST, SECOND, THIRD, Wheel, copy_of, ids, lenient, new_wheel


@pytest.mark.slow
def test_four_runs_at_once_in_a_fresh_store_make_one_champion(
    turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    wheel = new_wheel(tmp_path)
    runs = turn_together(wheel, FIRST, times=4)
    assert [run and run["error"] for run in runs] == [None] * 4, runs
    assert [run and run["ids"] for run in runs] == [ids(turned[1])] * 4
    assert wheel.kinds() == ["propose", "promote"]
    session = wheel.session(FIRST)
    with _mlflow(session.loop, session.store) as client:
        assert len(client.search_model_versions("name = 'orders'")) == 1
        assert len(client.search_runs([client.get_experiment_by_name("orders").experiment_id])) == 1


def propose(log: ReleaseLog, candidate: str, champion: str | None, day: str) -> Entry:
    from treadle.clock import parse_instant

    return log.append(
        "propose",
        subject=f"verdict of {candidate}",
        candidate=candidate,
        champion=champion,
        why="better",
        who="ann",
        as_of=parse_instant(day),
        details={"candidate_id": candidate},
    )[0]


def promote_in(folder: Path, proposal: Entry) -> str:
    log = ReleaseLog(LocalStore(folder), "orders")
    return str(promote(log, proposal, who="ann", as_of=proposal.as_of).candidate)


@pytest.mark.parametrize("trial", range(5))
def test_of_two_promotions_at_once_one_is_told_that_it_is_stale(tmp_path: Path, trial: int) -> None:
    log = ReleaseLog(LocalStore(tmp_path), "orders")
    one, two = (propose(log, name, None, "2024-02-12") for name in ("one", "two"))
    results = call_together((promote_in, tmp_path, one), (promote_in, tmp_path, two))
    assert sorted(kind for kind, _ in results) == ["StaleChampion", "done"], results
    assert [entry.kind for entry in ReleaseLog(LocalStore(tmp_path), "orders").entries()].count(
        "promote"
    ) == 1


@pytest.mark.slow
def test_two_loops_that_release_at_once_leave_a_chain_of_champions(wheel: Wheel, tmp_path: Path) -> None:
    lenient(wheel)
    other = Wheel(copy_of(wheel, tmp_path / "other").path, wheel.store)
    other.edit("orders.yaml", "rounds: 30", "rounds: 20")
    for each in (wheel, other):
        each.run(SECOND, to="evaluate")
    results = call_together((release, wheel), (release, other))
    assert {kind for kind, _ in results} <= {"done", "StaleChampion", "HoldoutTooSmall"}, results
    assert "done" in {kind for kind, _ in results}
    serving = None
    for entry in wheel.session(SECOND).log.entries():
        if entry.kind == "promote":
            assert entry.champion == serving
            serving = entry.candidate


def release(wheel: Wheel) -> str:
    return wheel.run(SECOND).release.id


def rollback(wheel: Wheel, who: str) -> int:
    return acts.rollback(wheel.session(SECOND, who=who), "complaints").sequence


def test_rollback_by_two_people_at_once_goes_back_once(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    results = call_together(*((rollback, wheel, who) for who in ("ann", "bea", "cem")))
    assert ("done", 5) in results
    assert {kind for kind, _ in results} <= {"done", "UserError", "StaleChampion"}, results
    assert wheel.kinds()[2:] == ["propose", "promote", "rollback"]


def answer(wheel: Wheel, word: str, who: str) -> str:
    session = wheel.session(SECOND, who=who)
    if word == "reject":
        return acts.reject(session, "no").kind
    return acts.approve(session, "yes")[1].kind


def test_approval_and_rejection_at_once_leave_one_answer(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(SECOND)
    calls = [("approve", "bea"), ("reject", "cem"), ("approve", "dan"), ("reject", "eva")]
    results = call_together(*((answer, wheel, word, who) for word, who in calls))
    ends = [kind for kind in wheel.kinds()[4:] if kind != "approve"]
    assert ends in (["promote"], ["reject"])
    assert {value for kind, value in results if kind == "done"} == set(ends)
    assert {kind for kind, _ in results} <= {"done", "StaleChampion", "UserError"}, results
    assert pending_in(wheel.session(SECOND).log.entries()) is None


def watch(wheel: Wheel, as_of: str) -> bool:
    loop = treadle.Loop.load(wheel.path)
    return bool(treadle.watch(loop, as_of=as_of, store=wheel.store, who="ann").retrain_decision.due)  # type: ignore[attr-defined]


def test_monitors_at_once_ask_for_one_retrain(wheel: Wheel) -> None:
    results = call_together(*[(watch, wheel, "2024-02-19")] * 3)
    assert results == [("done", True)] * 3
    assert wheel.kinds() == ["propose", "promote", "retrain"]


@pytest.mark.slow
def test_run_and_rollback_at_once_never_put_back_what_was_rolled_back(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    bad = wheel.session(SECOND).log.champion()
    assert bad is not None
    results = call_together((rollback, wheel, "bea"), (release, wheel), (turn_third, wheel))
    assert results[0][0] in ("done", "StaleChampion"), results
    head = wheel.session(THIRD).log.champion()
    assert head is not None
    if results[0][0] == "done":
        assert head.candidate != bad.candidate


def turn_third(wheel: Wheel) -> str:
    return wheel.run(THIRD).release.id


def test_stale_proposal_can_be_told_from_a_store_error(tmp_path: Path) -> None:
    log = ReleaseLog(LocalStore(tmp_path), "orders")
    first = propose(log, "one", None, "2024-02-12")
    promote(log, first, who="ann", as_of=first.as_of)
    late = propose(log, "two", None, "2024-02-12")
    with pytest.raises(StaleChampion, match="one serves"):
        promote(log, late, who="ann", as_of=late.as_of)
