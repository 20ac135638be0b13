"""The release log: append-only, chained, one winner a race."""

from __future__ import annotations

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle.errors import LogBroken, StaleChampion
from treadle.registry.log import (
    ReleaseLog,
    anchor_in,
    champion_in,
    held_by_person,
    looks_in,
    pending_in,
    predecessor_in,
)
from treadle.store import open_store

DAY = datetime(2013, 4, 1, tzinfo=UTC)


def release(
    log: ReleaseLog, candidate: str, day: int, beats: str | None, mode: str = "non_inferiority"
) -> None:
    shared = {"candidate": candidate, "champion": beats, "as_of": DAY + timedelta(days=day), "who": "ci"}
    details = {"candidate_id": f"id-{candidate}", "mode": mode, "recipe": f"recipe-{candidate}"}
    log.append("propose", subject=f"verdict-{candidate}", why="better", details=details, **shared)
    log.append("promote", subject=f"verdict-{candidate}", why="better", details=details, **shared)


@pytest.fixture
def log(tmp_path: Path) -> ReleaseLog:
    return ReleaseLog(open_store(tmp_path), "flights")


def test_champion_of_a_day_is_that_of_the_last_entry_effective_then(log: ReleaseLog) -> None:
    release(log, "a", 0, None, "first")
    release(log, "b", 30, "a")
    assert log.champion(DAY - timedelta(days=1)) is None
    assert log.champion(DAY + timedelta(days=29)).candidate == "a"  # type: ignore[union-attr]
    assert log.champion(DAY + timedelta(days=30)).candidate == "b"  # type: ignore[union-attr]


def test_entry_made_at_an_earlier_as_of_takes_effect_after_the_head(log: ReleaseLog) -> None:
    release(log, "a", 30, None)
    entry, _ = log.append("retrain", subject="schedule:x", why="due", as_of=DAY, who="ci")
    assert entry.effective_at == DAY + timedelta(days=30)


def test_same_kind_subject_and_as_of_is_one_entry(log: ReleaseLog) -> None:
    first = log.append("retrain", subject="drift:2013-04", why="drift", as_of=DAY, who="one")
    again = log.append("retrain", subject="drift:2013-04", why="drift", as_of=DAY, who="two")
    assert first[1] is True
    assert again[1] is False
    assert again[0] == first[0]
    assert len(log.entries()) == 1


def _append_in_process(folder: str, number: int) -> None:
    other = ReleaseLog(open_store(folder), "flights")
    other.append("retrain", subject="drift:storm", why="drift", as_of=DAY, who=f"process {number}")
    other.append("retrain", subject=f"own:{number}", why="own", as_of=DAY, who=f"process {number}")


def test_racing_processes_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    open_store(tmp_path)
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_append_in_process, args=(str(tmp_path), number)) for number in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    entries = ReleaseLog(open_store(tmp_path), "flights").entries()
    assert [entry.sequence for entry in entries] == list(range(1, 8))
    assert sum(entry.subject == "drift:storm" for entry in entries) == 1


def test_due_is_asked_again_by_who_lost_the_race(tmp_path: Path) -> None:
    ours, theirs = (ReleaseLog(open_store(tmp_path), "flights") for _ in range(2))
    asked = []

    def due(entries: object) -> None:
        asked.append(entries)
        if len(asked) == 1:
            release(theirs, "b", 1, None)
        elif champion_in(entries):  # type: ignore[arg-type]
            raise StaleChampion("changed")

    with pytest.raises(StaleChampion):
        ours.append("promote", subject="verdict-a", why="", as_of=DAY, candidate="a", who="ci", due=due)
    assert len(asked) == 2
    assert ours.champion().candidate == "b"  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["alter", "remove", "swap", "garble"])
def test_damaged_log_is_refused_with_the_file_named(tmp_path: Path, damage: str) -> None:
    log = ReleaseLog(open_store(tmp_path), "flights")
    release(log, "a", 0, None)
    release(log, "b", 1, "a")
    folder = tmp_path / "logs/flights/production"
    second, third = folder / "00000002.json", folder / "00000003.json"
    if damage == "alter":
        content = json.loads(second.read_text())
        content["who"] = "someone else"
        second.write_text(json.dumps(content))
    elif damage == "remove":
        second.unlink()
    elif damage == "swap":
        texts = second.read_text(), third.read_text()
        third.write_text(texts[0])
        second.write_text(texts[1])
    else:
        second.write_text("{")
    with pytest.raises(LogBroken, match="00000002"):
        ReleaseLog(open_store(tmp_path), "flights").entries()


def test_rollback_goes_to_the_champion_that_was_beaten(log: ReleaseLog) -> None:
    release(log, "a", 0, None)
    release(log, "b", 10, "a")
    release(log, "c", 20, "b")
    assert predecessor_in(log.entries()).candidate == "b"  # type: ignore[union-attr]
    log.append(
        "rollback", subject="c#6", candidate="b", champion="c", why="bad", as_of=DAY + timedelta(days=21), who="p",
        details={"candidate_id": "id-b", "recipe": "recipe-b", "rolled_back_recipe": "recipe-c"},
    )  # fmt: skip
    assert log.champion().candidate == "b"  # type: ignore[union-attr]
    assert predecessor_in(log.entries()).candidate == "a"  # type: ignore[union-attr]
    assert held_by_person(log.entries(), "x", "recipe-c") is not None
    assert held_by_person(log.entries(), "c", "recipe-x") is not None
    assert held_by_person(log.entries(), "x", "recipe-x") is None


def test_anchor_is_the_last_champion_that_did_not_win_by_non_inferiority_alone(log: ReleaseLog) -> None:
    release(log, "a", 0, None, "first")
    release(log, "b", 10, "a")
    release(log, "c", 20, "b", "superiority")
    release(log, "d", 30, "c")
    assert anchor_in(log.entries()).candidate == "c"  # type: ignore[union-attr]
    assert anchor_in(log.entries(), DAY + timedelta(days=15)).candidate == "a"  # type: ignore[union-attr]


def test_later_proposal_ends_an_earlier_pending_one(log: ReleaseLog) -> None:
    for name in ("a", "b"):
        log.append("propose", subject=f"verdict-{name}", candidate=name, why="", as_of=DAY, who="ci")
    assert pending_in(log.entries()).candidate == "b"  # type: ignore[union-attr]
    log.append(
        "reject", subject="verdict-b", candidate="b", why="no", as_of=DAY, who="p", details={"by": "person"}
    )
    assert pending_in(log.entries()) is None


def test_looks_count_verdicts_that_shared_days_of_the_holdout(log: ReleaseLog) -> None:
    for start, name in ((0, "a"), (10, "b"), (14, "c")):
        held = {
            "start": (DAY + timedelta(days=start)).isoformat(),
            "end": (DAY + timedelta(days=start + 14)).isoformat(),
        }
        log.append(
            "reject", subject=name, candidate=name, why="", as_of=DAY, who="ci",
            details={"by": "gate", "holdout": held},
        )  # fmt: skip
    assert looks_in(log.entries(), DAY, DAY + timedelta(days=14)) == 2
    assert looks_in(log.entries(), DAY + timedelta(days=28), DAY + timedelta(days=42)) == 0


@settings(max_examples=25, deadline=None)
@given(days=st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_effective_times_never_go_back(tmp_path_factory: pytest.TempPathFactory, days: list[int]) -> None:
    log = ReleaseLog(open_store(tmp_path_factory.mktemp("store")), "flights")
    for number, day in enumerate(days):
        log.append("retrain", subject=str(number), why="", as_of=DAY + timedelta(days=day), who="ci")
    effective = [entry.effective_at for entry in log.entries()]
    assert effective == sorted(effective)
    assert all(entry.effective_at >= entry.as_of for entry in log.entries())
