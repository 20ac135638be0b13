"""Stages on SageMaker, end to end on the fake one: the records of a run in process, whatever is taken away.

The store is on S3, which moto plays: SageMaker's machines have disks of their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import treadle
from job_cases import over, pool_from, said, settled
from sagemaker_api.server import FakeSageMaker
from treadle import jobs
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.tune_pool import Sample, compare
from treadle.records import Record
from treadle.session import Session, open_session
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
pytestmark = pytest.mark.slow


@pytest.fixture
def fake(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSageMaker]:
    made = FakeSageMaker()
    made.machine_gib, made.grace_s, made.notice_s = 8, 60, 60
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    # A role gives a job its credentials. Without the limit the threads of several jobs wait for each other.
    role = {
        "AWS_ENDPOINT_URL_S3": s3_environment,
        "AWS_ACCESS_KEY_ID": "role",
        "AWS_SECRET_ACCESS_KEY": "role",
    }
    made.env = {"OMP_NUM_THREADS": "1", "AWS_DEFAULT_REGION": "us-east-1", **role}
    yield made
    made.close()


@dataclass(frozen=True, slots=True)
class OnS3:
    """A loop whose store is in a bucket, its tracking and online store in files that the emulation reaches."""

    wheel: Wheel
    store: str

    def session(self, as_of: str) -> Session:
        return open_session(treadle.Loop.load(self.wheel.path), as_of=as_of, store=self.store, who="ann")

    def run(self, as_of: str, **options: Any) -> treadle.Run:
        loop = treadle.Loop.load(self.wheel.path)
        return treadle.run(loop, as_of=as_of, store=self.store, who="ann", **options)


def moved(wheel: Wheel, folder: Path, name: str, *, empty: bool = False) -> OnS3:
    """A copy of a wheel with all that its store holds, or nothing, in a bucket."""
    import s3fs

    copied = copy_of(wheel, folder)
    copied.edit("orders.yaml", "monitor:", f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\nmonitor:")
    online = f"online: {{type: sqlite, path: {folder}/online.db}}"
    copied.edit("orders.yaml", "use: [load]}", f"use: [load], {online}}}")
    if not empty:
        files = s3fs.S3FileSystem()
        for part in ("blobs", "records", "memo", "checkpoints"):
            if (copied.store / part).exists():
                files.put(f"{copied.store / part}/", f"treadle/{name}/{part}/", recursive=True)
    return OnS3(copied, f"s3://treadle/{name}")


def on_sagemaker(place: OnS3, *, spot: bool) -> Pool:
    return pool_from(place.wheel, POOLS.format(python=sys.executable, spot=str(spot).lower()), "aws")


def begun(place: OnS3, pool: Pool) -> tuple[Session, JobRef]:
    """A training on SageMaker that has checkpoints already."""
    session = place.session(SECOND)
    inputs = {"featurize": place.run(SECOND, to="featurize")["featurize"].id}
    ref = jobs.submit(session, "train", pool, inputs)
    said(ref, "train: round 120,")
    return session, ref


def test_a_training_whose_spot_machine_is_taken_away_ends_in_the_same_bytes(
    undisturbed: tuple[Wheel, Record], fake: FakeSageMaker, tmp_path: Path
) -> None:
    place, whole = moved(undisturbed[0], tmp_path, "spot"), undisturbed[1]
    session, ref = begun(place, on_sagemaker(place, spot=True))
    fake.interrupt(ref.handle.name)
    status = over(ref)
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
    place, whole = moved(undisturbed[0], tmp_path, "lost"), undisturbed[1]
    session, ref = begun(place, on_sagemaker(place, spot=False))
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
    fresh = moved(turned[0], tmp_path, "fresh", empty=True)
    on_sagemaker(fresh, spot=False)
    lines: list[str] = []
    run = fresh.run(FIRST, pools=dict.fromkeys(turned[1], "aws"), say=lines.append)
    assert ids(run) == ids(turned[1])
    kinds = {job.request["Tags"][-2]["Value"]: api for (api, _), job in fake.jobs.items()}
    assert kinds["train"] == "Training"
    assert {api for stage, api in kinds.items() if stage != "train"} == {"Processing"}
    assert any(line.startswith("train: xgboost on") for line in lines)


def test_pools_elsewhere_are_compared_by_samples_on_s3(
    wheel: Wheel, fake: FakeSageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    place = moved(wheel, tmp_path / "moved", "own", empty=True)
    on_sagemaker(place, spot=False)
    pools = place.wheel.path.parent / "pools.yaml"
    pools.write_text(f"{pools.read_text()}  price: 0.5\nhere: {{price: 0.5}}\n")
    found = compare(
        place.wheel.path,
        ["here", "aws"],
        Sample(rounds=5),
        as_of=FIRST,
        scratch="s3://treadle/scratch",
        store=place.store,
    )
    here, there = found.trials
    assert (here.error, there.error) == (None, None)
    assert here.gain == there.gain
    assert there.usd is not None
    assert [api for api, _ in fake.jobs] == ["Training"]


def test_no_secret_is_in_a_handle_or_a_request(
    wheel: Wheel, fake: FakeSageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    place = moved(wheel, tmp_path / "moved", "secret")
    pool, session = on_sagemaker(place, spot=False), place.session(FIRST)
    ref = jobs.submit(session, "train", pool, {"featurize": place.run(FIRST, to="featurize")["featurize"].id})
    assert JobRef.from_json(ref.to_json()) == ref
    told = ref.to_json() + json.dumps(fake.calls)
    assert "hunter2" not in told
    settled(session, ref)
