"""A real scheduler and the small loop: a backfill, a deleted loop, and jobs on a cluster that outlive their workers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import treadle
from cluster import ADDRESS, Server, serving_cluster
from processes import command
from small import write_small_loop
from treadle.session import open_session
from whole import Airflow, running_airflow, until

MONTHS = ("2024-02-01", "2024-03-01", "2024-04-01")
OF_ITS_OWN = "monitor: {every: 7d}\nretrain: {schedule: weekly, on: [drift]}\n"
DAGS = """
from datetime import datetime, timedelta
from pathlib import Path
from airflow.sdk import DAG
from treadle_airflow import LoopDag, TreadlePrepareOperator

loops = Path({loops!r})
ended = datetime(2024, 5, 1)  # no tick of today's
for name in ("chained", "asked"):
    globals()[name] = LoopDag(loops / f"{{name}}.yaml", schedule="monthly", end_date=ended)
far = LoopDag(loops / "far.yaml")
with DAG("waiting", schedule=None) as waiting:
    retry = {{"retries": 1, "retry_delay": timedelta(seconds=1)}}
    TreadlePrepareOperator(task_id="run", loop=loops / "far.yaml", deferrable=False, poll_interval=0.5, **retry)
"""
SOON = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
    "AIRFLOW__WORKERS__MISSING_DAG_RETRY_DELAY": "2",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds workers in /proc"),
]


@dataclass
class Place:
    """Loops of several kinds, a store, a cluster, and what an Airflow for them is started with."""

    folder: Path
    loops: Path
    store: Path
    cluster: Server
    settings: dict[str, str]

    def kinds(self, name: str, *, track: str = "production", store: Path | None = None) -> list[str]:
        """The kinds of entries in a loop's release log."""
        loop = treadle.Loop.load(self.loops / f"{name}.yaml")
        session = open_session(loop, as_of=MONTHS[-1], store=store or self.store, track=track)
        return [entry.kind for entry in session.log.entries()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("live")
    loops, dropped, dags = folder / "loops", folder / "dropped", folder / "dags"
    text = write_small_loop(loops, days=100).read_text().replace(OF_ITS_OWN, "")
    (loops / "orders.yaml").unlink()
    shutil.copytree(loops, dropped)
    for where, name, more in (
        (loops, "chained", ""),
        (loops, "asked", "approval: manual\n"),
        (loops, "far", "pools: {prepare: far}\n"),
        (dropped, "gone", ""),
    ):
        (where / f"{name}.yaml").write_text(text.replace("name: orders", f"name: {name}") + more)
    (loops / "pools.yaml").write_text('far: {backend: "cluster:Cluster"}\n')
    dags.mkdir()
    (dags / "own.py").write_text(DAGS.format(loops=str(loops)))
    shutil.copy(Path(__file__).parents[2] / "dags" / "treadle_loops.py", dags)
    with serving_cluster(folder / "cluster") as cluster:
        settings = {
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "TREADLE_LOOPS": str(dropped),
            "TREADLE_STORE": str(folder / "store"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
            ),
            ADDRESS: cluster.address,
            **SOON,
        }
        yield Place(folder, loops, folder / "store", cluster, settings)


@pytest.fixture(scope="module")
def airflow(place: Place) -> Iterator[Airflow]:
    with running_airflow(place.folder / "airflow", **place.settings) as made:
        yield made
        assert made.stop() == 0
        assert made.left() == []


def backfill(airflow: Airflow, dag: str, until_date: str, *more: str) -> None:
    dates = ("--from-date", MONTHS[0], "--to-date", until_date)
    until(lambda: dag in airflow.dags(), f"{dag} is parsed")
    with airflow.halted():
        done = airflow.command("backfill", "create", "--dag-id", dag, *dates, *more)
    assert done.returncode == 0, done.stderr


def test_a_backfill_over_three_months_makes_the_records_of_the_command_line_in_order(
    airflow: Airflow, place: Place, tmp_path: Path
) -> None:
    backfill(airflow, "chained", MONTHS[-1], "--dag-run-conf", '{"track": "replay"}')
    runs = until(lambda: airflow.runs("chained", "backfill"), "the runs are there")
    assert len(runs) == len(MONTHS)
    assert [airflow.ended(run) for run in runs] == ["success"] * len(MONTHS)
    for as_of in MONTHS:
        options = ("--as-of", as_of, "--track", "replay", "--by", "ann", "--store", tmp_path)
        assert command("run", place.loops / "chained.yaml", *options).returncode == 0
    made, told = (
        {
            f"{kind.name}/{record.name}"
            for kind in (store / "records" / "chained").iterdir()
            for record in kind.iterdir()
        }
        for store in (place.store, tmp_path)
    )
    assert made == told
    assert len([name for name in made if name.startswith("verdict/")]) == len(MONTHS)
    kinds = place.kinds("chained", track="replay")
    assert "promote" in kinds
    assert kinds == place.kinds("chained", track="replay", store=tmp_path)


def test_a_backfill_that_would_wait_for_people_fails_with_the_advice(airflow: Airflow, place: Place) -> None:
    backfill(airflow, "asked", MONTHS[0])
    (run,) = until(lambda: airflow.runs("asked", "backfill"), "the run is there")
    assert airflow.ended(run) == "failed"
    assert airflow.task(run, "prepare.run")["try_number"] == 1
    assert '"track": "replay", "set": ["approval=auto"]' in airflow.log(run, "prepare.run")
    assert place.kinds("asked") == []


def test_a_loop_that_is_deleted_while_its_dag_runs_fails_with_its_name(
    airflow: Airflow, place: Place
) -> None:
    file = place.folder / "dropped" / "gone.yaml"
    text = file.read_text()
    run = airflow.trigger("gone", as_of=MONTHS[1])
    until(lambda: airflow.task(run, "prepare.run")["state"] == "success", "the data are prepared", pause=0.1)
    file.unlink()
    assert airflow.ended(run) == "failed"
    tasks = ["featurize.run", "train.run", "evaluate.run"]
    failed = next(task for task in tasks if airflow.task(run, task)["state"] == "failed")
    assert "is named 'gone': its file was deleted" in airflow.log(
        run, failed, attempt=airflow.task(run, failed)["try_number"]
    )
    (place.loops / "gone.yaml").write_text(text)
    assert place.kinds("gone") == []


def test_a_job_on_a_cluster_is_found_again_by_the_worker_after_the_one_that_died(
    airflow: Airflow, place: Place
) -> None:
    place.cluster.held, before = True, place.cluster.submits
    run = airflow.trigger("waiting", as_of=MONTHS[1])
    until(lambda: place.cluster.submits > before, "the job is submitted", pause=0.1)
    until(lambda: "prepare on the pool far" in airflow.log(run, "run"), "the task waits for it")
    kill_worker(airflow.task(run, "run")["pid"])
    until(lambda: airflow.task(run, "run")["try_number"] == 2, "another worker takes it up")
    place.cluster.release()
    assert airflow.ended(run) == "success"
    assert place.cluster.submits == before + 1
    assert not airflow.told(run, "run")["reused"]


def test_a_deferred_job_outlives_a_restart_of_all_of_airflow(airflow: Airflow, place: Place) -> None:
    place.cluster.held, before = True, place.cluster.submits
    run = airflow.trigger("far", as_of=MONTHS[0])
    until(lambda: airflow.task(run, "prepare.run")["state"] == "deferred", "the task is deferred", pause=0.1)
    pool = airflow.ask("/pools/default_pool")
    assert (pool["running_slots"], pool["deferred_slots"]) == (0, 1)
    assert airflow.stop() == 0
    assert airflow.left() == []
    with running_airflow(airflow.home, **place.settings) as later:
        place.cluster.release()
        assert later.ended(run) == "success"
        assert later.stop() == 0
    assert place.cluster.submits == before + 1
    assert place.kinds("far")[-1:] == ["promote"]


def kill_worker(task: int) -> None:
    """SIGKILL of a task's process and of the worker that runs it, as when a machine dies."""
    worker = int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    os.kill(task, signal.SIGKILL)
