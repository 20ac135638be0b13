"""Stages on a pool of Ray, end to end on a real cluster of this machine: the records of a run in process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import treadle
from job_cases import features_at, said, settled
from ray_cases import end, on_ray, processes, watcher_of
from treadle import jobs
from wheel import FIRST, SECOND, Wheel, copy_of, ids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# Long enough for something to happen meanwhile.
LONG = ("rounds: 30, checkpoint_every: 10", "rounds: 1500, workers: 2, threads: 1, checkpoint_every: 100")


@pytest.fixture(scope="module", autouse=True)
def jobs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cluster for all of them."""
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREADLE_JOBS", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
        end(folder)
    assert not processes(str(folder))


def test_every_stage_makes_the_records_of_a_run_in_process(
    turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    wheel = copy_of(turned[0], tmp_path)
    on_ray(wheel)
    fresh = Wheel(wheel.path, tmp_path / "fresh")
    lines: list[str] = []
    run = fresh.run(FIRST, pools=dict.fromkeys(turned[1], "cluster"), say=lines.append)
    assert ids(run) == ids(turned[1])
    assert run["train"].notes["job"]["backend"] == "ray"
    assert any("train: xgboost on" in line for line in lines)


def test_a_spread_training_whose_machine_is_lost_goes_on_to_the_same_bytes(
    turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    wheel = copy_of(turned[0], tmp_path / "one")
    wheel.edit("orders.yaml", *LONG)
    pool = on_ray(wheel)
    inputs = features_at(wheel, SECOND)
    apart = copy_of(wheel, tmp_path / "two")

    session = wheel.session(SECOND)
    ref = jobs.submit(session, "train", pool, inputs)
    said(ref, "train: round 300,", 600)
    os.kill(watcher_of(ref.handle)[0], signal.SIGKILL)
    record = settled(session, ref, 600)
    assert record.notes["resumed_from"] >= 100
    (lost,) = record.notes["attempts"]
    assert (lost["number"], lost["state"]) == (1, "lost")

    session = apart.session(SECOND)
    whole = settled(session, jobs.submit(session, "train", pool, inputs), 600)
    assert whole.notes["resumed_from"] == 0
    assert (record.id, record.digest, record.blobs) == (whole.id, whole.digest, whole.blobs)
