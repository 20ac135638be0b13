"""Stages on SageMaker, end to end on the fake one: the records of a run in process, whatever is taken away."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import treadle
from fake_sagemaker import FakeSageMaker
from treadle import jobs
from treadle.hardware.backend import Status
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.records import Record
from treadle.session import Session
from wheel import FIRST, SECOND, Wheel, copy_of, ids

POOLS = """
aws:
  backend: sagemaker
  image: 123456789012.dkr.ecr.eu-central-1.amazonaws.com/treadle:1
  python: {python}
  roles: {{default: 'arn:aws:iam::123456789012:role/treadle'}}
  max_seconds: 600
  spot: {spot}
  options: {{bucket: 's3://artifacts/treadle'}}
"""
# Long enough for something to happen meanwhile.
LONG = (
    ("rounds: 30", "rounds: 600"),
    ("max_depth: 3, learning_rate: 0.3", "max_depth: 2, learning_rate: 0.01"),
)

pytestmark = pytest.mark.slow


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSageMaker]:
    made = FakeSageMaker()
    made.machine_gib, made.grace_s, made.notice_s = 8, 60, 60
    made.env = {"OMP_NUM_THREADS": "1"}  # else the threads of several jobs wait for each other
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def on_sagemaker(wheel: Wheel, *, spot: bool) -> Pool:
    (wheel.path.parent / "pools.yaml").write_text(POOLS.format(python=sys.executable, spot=str(spot).lower()))
    pool = jobs.pool_of(treadle.Loop.load(wheel.path), "train", "aws")
    assert pool is not None
    return pool


def until(ref: JobRef, there: Callable[[Status], bool]) -> Status:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if there(status := jobs.poll(ref)):
            return status
        time.sleep(0.02)
    raise AssertionError(jobs.poll(ref))


def settled(session: Session, ref: JobRef) -> Record:
    until(ref, lambda status: status.is_over)
    found = jobs.settle(session, ref)
    return found if isinstance(found, Record) else settled(session, found)


@pytest.fixture(scope="module")
def undisturbed(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Wheel, Record]:
    """A long training that nobody interrupts, and its features in the store."""
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("undisturbed"))
    for before, after in LONG:
        wheel.edit("orders.yaml", before, after)
    wheel.run(SECOND, to="featurize")
    apart = copy_of(wheel, tmp_path_factory.mktemp("apart"))
    return wheel, apart.run(SECOND, to="train")["train"]


def begun(wheel: Wheel, pool: Pool) -> tuple[Session, JobRef]:
    """A training on SageMaker that has checkpoints already."""
    session = wheel.session(SECOND)
    inputs = {"featurize": wheel.run(SECOND, to="featurize")["featurize"].id}
    ref = jobs.submit(session, "train", pool, inputs)
    until(ref, lambda status: any("train: round 120," in line for line in jobs.logs(ref)[0]))
    return session, ref


def test_a_training_whose_spot_machine_is_taken_away_ends_in_the_same_bytes(
    undisturbed: tuple[Wheel, Record], fake: FakeSageMaker, tmp_path: Path
) -> None:
    wheel, whole = copy_of(undisturbed[0], tmp_path / "copy"), undisturbed[1]
    session, ref = begun(wheel, on_sagemaker(wheel, spot=True))
    fake.interrupt(ref.handle.name)
    status = until(ref, lambda status: status.is_over)
    assert status.state == "succeeded"
    assert "taken away once" in status.reason
    assert fake.jobs[("Training", ref.handle.name)].starts == 2
    record = settled(session, ref)
    assert (record.id, record.digest, record.blobs) == (whole.id, whole.digest, whole.blobs)
    assert record.notes["resumed_from"] >= 100
    assert (record.notes["job"]["backend"], record.notes["job"]["name"]) == ("sagemaker", ref.handle.name)
    (again,) = record.notes["attempts"]
    assert (again["number"], again["state"]) == (1, "preempted")
    assert "started the job again" in again["reason"]
    assert again["seconds"] > 0


def test_a_training_whose_machine_broke_is_tried_again_and_says_what_was_lost(
    undisturbed: tuple[Wheel, Record], fake: FakeSageMaker, tmp_path: Path
) -> None:
    wheel, whole = copy_of(undisturbed[0], tmp_path / "copy"), undisturbed[1]
    session, ref = begun(wheel, on_sagemaker(wheel, spot=False))
    fake.lose(ref.handle.name)
    record = settled(session, ref)
    assert (record.id, record.digest, record.blobs) == (whole.id, whole.digest, whole.blobs)
    assert record.notes["resumed_from"] >= 100
    (lost,) = record.notes["attempts"]
    assert (lost["number"], lost["state"], lost["node"]) == (1, "lost", "ml.m5.large")
    assert "InternalServerError" in lost["reason"]
    assert lost["seconds"] > 0


def test_every_stage_makes_the_records_of_a_run_in_process(
    turned: tuple[Wheel, treadle.Run], fake: FakeSageMaker, tmp_path: Path
) -> None:
    wheel = copy_of(turned[0], tmp_path)
    on_sagemaker(wheel, spot=False)
    fresh = Wheel(wheel.path, tmp_path / "fresh")
    lines: list[str] = []
    run = fresh.run(FIRST, pools=dict.fromkeys(turned[1], "aws"), say=lines.append)
    assert ids(run) == ids(turned[1])
    kinds = {job.request["Tags"][-2]["Value"]: api for (api, _), job in fake.jobs.items()}
    assert kinds["train"] == "Training"
    assert {api for stage, api in kinds.items() if stage != "train"} == {"Processing"}
    assert any(line.startswith("train: xgboost on") for line in lines)


def test_no_secret_is_in_a_handle_or_a_request(
    wheel: Wheel, fake: FakeSageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    pool = on_sagemaker(wheel, spot=False)
    session = wheel.session(FIRST)
    ref = jobs.submit(session, "train", pool, {"featurize": wheel.run(FIRST, to="featurize")["featurize"].id})
    assert JobRef.from_json(ref.to_json()) == ref
    told = ref.to_json() + json.dumps(fake.calls)
    assert "hunter2" not in told
    settled(session, ref)
