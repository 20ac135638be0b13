"""Loops in a running Dagster: webserver, daemon, code location, by GraphQL. Each test has a loop of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import treadle
from dagster_desk import Desk
from small import write_small_loop
from treadle.registry.log import Entry
from treadle.session import open_session
from wheel import Wheel, lenient

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
MONTHS = ["2024-02-01", "2024-03-01", "2024-04-01"]
FEBRUARY, MARCH, _ = MONTHS
CHAIN = ["snapshot", "features", "candidate", "verdict", "release", "champion"]
DEFINITIONS = '''
import os

import dagster as dg
from treadle_dagster import folder_definitions

UPDATED = dg.AutomationCondition.any_deps_updated() & ~dg.AutomationCondition.in_progress()


@dg.asset(deps=[dg.AssetKey(["asked", "champion"])], automation_condition=UPDATED)
def scores() -> None:
    """What a team builds on the champion."""


@dg.definitions
def defs() -> dg.Definitions:
    loops = folder_definitions(*os.environ["TREADLE_LOOPS"].split(os.pathsep))
    return dg.Definitions.merge(loops, dg.Definitions(assets=[scores]))
'''


def write(
    folder: Path, name: str, *edits: tuple[str, str], days: int = 125, shift_from: int = 10**6
) -> Wheel:
    """A small loop of a name, by the month from January to May."""
    path = write_small_loop(folder / "loops" / name, days=days, shift_from=shift_from)
    wheel = Wheel(path, folder / "store")
    wheel.edit(
        "orders.yaml", "name: orders\n", f"name: {name}\nhistory: {{from: 2024-01-01, to: 2024-05-01}}\n"
    )
    wheel.edit("orders.yaml", "schedule: weekly", "schedule: monthly")
    for before, after in edits:
        wheel.edit("orders.yaml", before, after)
    return wheel


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "assets").mkdir()
    (folder / "assets" / "__init__.py").touch()
    (folder / "assets" / "definitions.py").write_text(DEFINITIONS)
    drift = ("{every: 7d}", "{every: 7d, drift: {share: 0.1}}")
    once = ("schedule: monthly, on: [drift]", "on: [drift], strikes: 1, cooldown: 14d")
    wheels = [
        write(folder, "turned"),
        write(folder, "broken"),
        write(folder, "drifting", drift, once, shift_from=95),
        write(folder, "asked", ("retrain:", "approval: manual\nretrain:")),
        write(folder, "chained"),
        write(
            folder,
            "ended",
            ("rounds: 30, checkpoint_every: 10", "rounds: 1000, checkpoint_every: 10"),
            ("learning_rate: 0.3", "learning_rate: 0.01"),
        ),
    ]
    lenient(wheels[4])
    made = Desk(folder, loops=[wheel.path for wheel in wheels])
    try:
        made.start(ROOT / "assets" / "dagster.yaml")
        yield made
    finally:
        made.stop()
        assert made.alive() == []


@pytest.fixture(scope="module", autouse=True)
def replay(desk: Desk) -> str:
    """A backfill of three months, begun before all else: it mostly waits for the daemon's ticks."""
    return desk.backfill("chained_loop", MONTHS, track="replay")


def entries(desk: Desk, name: str, track: str = "production") -> list[Entry]:
    loop = treadle.Loop.load(desk.folder / "loops" / name / "orders.yaml")
    return open_session(loop, store=desk.store, track=track).log.entries()


def test_materialize_all_makes_a_champion(desk: Desk) -> None:
    run = desk.launch("turned_loop", partition=MARCH)
    assert desk.ended(run) == "SUCCESS", desk.words(run)
    made = desk.made(run)
    assert list(made) == [*CHAIN, "drift_report", "retrain_decision"]
    assert {data["treadle/as_of"] for data in made.values()} == {"2024-04-01T00:00:00Z"}
    assert made["release"]["status"] == "promoted"
    assert made["champion"]["champion"] == made["candidate"]["model"]
    assert [entry.kind for entry in entries(desk, "turned")] == ["propose", "promote"]


def test_a_failing_data_check_stops_what_is_downstream(desk: Desk) -> None:
    orders = desk.folder / "loops" / "broken" / "orders.csv"
    lines = orders.read_text().splitlines()
    cells = lines[200].split(",")
    cells[3] = "-5"
    orders.write_text("\n".join([*lines[:200], ",".join(cells), *lines[201:]]) + "\n")
    run = desk.launch("broken_loop", partition=FEBRUARY)
    assert desk.ended(run) == "FAILURE"
    assert desk.made(run) == {}
    assert desk.failed_checks(run) == {"column_values_to_be_between_amount": "ERROR"}
    assert entries(desk, "broken") == []


def test_drift_starts_exactly_one_run(desk: Desk) -> None:
    loop = treadle.Loop.load(desk.folder / "loops" / "drifting" / "orders.yaml")
    treadle.run(loop, as_of="2024-03-15", store=desk.store, who="ann")
    watch = ("drifting/drift_report", "drifting/retrain_decision")
    run = desk.launch("drifting_loop", *watch, as_of="2024-04-15")
    assert desk.ended(run) == "SUCCESS", desk.words(run)
    assert desk.failed_checks(run)["drift"] == "WARN"
    desk.switch_on("drifting_retrain_sensor")
    wanted = {"treadle__loop": "drifting", "treadle__trigger": "drift"}
    desk.wait(lambda: desk.runs(**wanted), "the sensor's run", 90)
    (retrain,) = desk.runs(**wanted)
    assert desk.ended(retrain["runId"]) == "SUCCESS", desk.words(retrain["runId"])
    assert list(desk.made(retrain["runId"])) == CHAIN
    assert desk.made(retrain["runId"])["verdict"]["treadle/as_of"] == "2024-04-15T00:00:00Z"
    desk.wait(lambda: "SKIPPED" in desk.ticks("drifting_retrain_sensor"), "a tick that asks for nothing", 60)
    assert desk.ticks("drifting_retrain_sensor").count("SUCCESS") == 1
    assert len(desk.runs(**wanted)) == 1
    assert [entry.kind for entry in entries(desk, "drifting")].count("retrain") == 1


def test_a_person_approves_what_waits_and_what_is_downstream_carries_on(desk: Desk) -> None:
    desk.switch_on("default_automation_condition_sensor")
    run = desk.launch("asked_loop", partition=MARCH)
    assert desk.ended(run) == "SUCCESS", desk.words(run)
    made = desk.made(run)
    assert made["release"]["status"] == "pending"
    assert desk.failed_checks(run)["answered"] == "WARN"
    assert made["champion"]["champion"] == "none"
    before = {run["runId"] for run in desk.runs() if _makes_scores(desk, run["runId"])}
    answer = {
        "answer": "approve",
        "by": "bo",
        "reason": "looked at the slices",
        "model": made["candidate"]["model"],
    }
    decided = desk.launch("asked_decide", config={"ops": {"asked__decide": {"config": answer}}})
    assert desk.ended(decided) == "SUCCESS", desk.words(decided)
    assert desk.made(decided)["champion"]["champion"] == made["candidate"]["model"]
    assert [(entry.kind, entry.who) for entry in entries(desk, "asked")][-2:] == [
        ("approve", "bo"),
        ("promote", "bo"),
    ]
    desk.wait(
        lambda: [r for r in desk.runs() if r["runId"] not in before and _makes_scores(desk, r["runId"])],
        "the asset that builds on the champion",
        90,
    )


def _makes_scores(desk: Desk, run: str) -> bool:
    return "scores" in desk.made(run)


def test_three_months_on_a_track_are_judged_in_order(desk: Desk, replay: str) -> None:
    wanted = {"dagster__backfill": replay}
    desk.wait(lambda: len(desk.runs(**wanted)) == 3, "three runs", 90)
    runs = [run["runId"] for run in desk.runs(**wanted)]
    assert [desk.ended(run) for run in runs] == ["SUCCESS"] * 3
    found = sorted(desk.runs(**wanted), key=lambda run: run["startTime"])
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in found]
    assert [tag["dagster/partition"] for tag in tags] == MONTHS
    assert all(first["endTime"] <= second["startTime"] for first, second in pairwise(found))
    promoted = [entry for entry in entries(desk, "chained", "replay") if entry.kind == "promote"]
    assert len(promoted) == 3
    assert [entry.champion for entry in promoted] == [None, *(entry.candidate for entry in promoted[:-1])]
    assert entries(desk, "chained") == []


def test_a_run_that_is_terminated_while_it_trains_leaves_nothing_half_done_and_the_next_goes_on(
    desk: Desk,
) -> None:
    run = desk.launch("ended_loop", partition=FEBRUARY)
    desk.wait(lambda: [*desk.store.glob("checkpoints/*/*.json")], "a checkpoint")
    desk.terminate(run)
    assert desk.ended(run) == "CANCELED"
    assert list(desk.made(run)) == ["snapshot", "features"]
    assert entries(desk, "ended") == []
    assert not [*desk.store.glob("records/ended/candidate/*")]
    again = desk.launch("ended_loop", partition=FEBRUARY)
    assert desk.ended(again) == "SUCCESS", desk.words(again)
    assert "goes on from the checkpoint of round" in desk.words(again)
    made = desk.made(again)
    assert made["features"]["treadle/reused"] is True
    assert made["champion"]["champion"] == made["candidate"]["model"]
