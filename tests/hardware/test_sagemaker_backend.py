"""The SageMaker backend on a small SageMaker of our own: the conformance suite, and what only SageMaker shows."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sagemaker_api.server import FakeSageMaker
from sagemaker_cases import IMAGE, over, pool_for, runs, said, shell, spot_pool, until
from treadle.hardware.backend import Handle
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.backend import SageMakerBackend
from treadle.testing.backend import BackendSuite


class OnTheFake(BackendSuite):
    """What both kinds of job share."""

    @pytest.fixture
    def opener(self, fake: FakeSageMaker) -> str:
        return "from treadle.hardware.sagemaker.backend import SageMakerBackend\nbackend = SageMakerBackend()"

    @pytest.fixture
    def lose(self, fake: FakeSageMaker) -> Callable[[Handle], None]:
        return lambda handle: fake.lose(handle.name)

    @pytest.fixture
    def left_behind(self) -> Callable[[str], bool]:
        return runs


class TestTrainingJobs(OnTheFake):
    @pytest.fixture
    def pool(self) -> Pool:
        return pool_for("training")


@pytest.mark.slow
class TestProcessingJobs(OnTheFake):
    @pytest.fixture
    def pool(self) -> Pool:
        return pool_for("processing")


# What only SageMaker shows.


@pytest.fixture
def backend(fake: FakeSageMaker) -> SageMakerBackend:
    return SageMakerBackend()


def test_a_spot_job_that_is_interrupted_starts_again_under_its_name(
    backend: SageMakerBackend, fake: FakeSageMaker, tmp_path: Path
) -> None:
    fake.has_capacity = False
    once = f"if mkdir {tmp_path}/been; then trap 'echo asked; exit 75' TERM; echo up; sleep 60 & wait; fi; echo again"
    handle = backend.submit(shell(f"exec 2>/dev/null; {once}"), spot_pool())
    assert backend.status(handle).state == "queued"
    fake.has_capacity = True
    said(backend, handle, "up")
    lines, since = backend.logs(handle, 0)
    fake.has_capacity = False
    fake.interrupt(handle.name)
    waiting = until(backend, handle, lambda status: status.state == "queued")
    assert "taken away once" in waiting.reason
    assert "starts it again" in waiting.reason
    fake.has_capacity = True
    status = over(backend, handle)
    assert (status.state, status.exit_code) == ("succeeded", 0)
    assert "taken away once, after" in status.reason
    assert status.billed_seconds == math.ceil(fake.jobs[("Training", handle.name)].worked)
    assert lines == ["up"]
    assert backend.logs(handle, since)[0] == ["asked", "again"]
    assert fake.jobs[("Training", handle.name)].starts == 2


def test_no_spot_machine_in_time_is_out_of_time_and_no_machine_at_all_is_worth_another_attempt(
    backend: SageMakerBackend, fake: FakeSageMaker
) -> None:
    fake.has_capacity = False
    options = {"job": "training", "bucket": "s3://artifacts", "max_wait_seconds": 1}
    waits = backend.submit(shell("exit 0"), spot_pool(max_seconds=1, options=options))
    refused = backend.submit(shell("exit 0"), pool_for("training"))
    status = over(backend, refused)
    assert (status.state, status.started) == ("lost", None)
    assert "CapacityError" in status.reason
    assert "Pending" in until(backend, waits, lambda status: "Pending" in status.reason).reason
    status = over(backend, waits)
    assert (status.state, status.started) == ("timed_out", None)
    assert "max_wait_seconds" in status.reason


def test_an_image_that_is_not_there_fails_with_its_name(
    backend: SageMakerBackend, fake: FakeSageMaker
) -> None:
    fake.images = {"another:1"}
    for job in ("training", "processing"):
        status = over(backend, backend.submit(shell("exit 0"), pool_for(job)))
        assert status.state == "failed"
        assert IMAGE in status.reason


def test_a_job_is_cancelled_before_it_starts(backend: SageMakerBackend, fake: FakeSageMaker) -> None:
    fake.tick_s = 5
    handle = backend.submit(shell("echo ran"), pool_for("training"))
    backend.cancel(handle, 30)
    status = over(backend, handle)
    assert (status.state, status.started) == ("stopped", None)
    assert backend.logs(handle, 0) == ([], 0)


@pytest.mark.parametrize("job", ["training", "processing"])
def test_a_job_is_found_without_knowing_its_kind(backend: SageMakerBackend, job: str) -> None:
    spec = shell("exit 0")
    handle = backend.submit(spec, pool_for(job))
    anywhere = pool_for(job, options={"bucket": "s3://artifacts"})
    assert backend.find(spec.name, anywhere) == handle
    assert handle.data == {"job": job, "region": "eu-central-1"}
    over(backend, handle)


def test_a_job_that_sagemaker_does_not_know_is_lost(backend: SageMakerBackend) -> None:
    data = {"job": "training", "region": "eu-central-1"}
    status = backend.status(Handle(backend="sagemaker", name="never-was", pool="aws", data=data))
    assert status.state == "lost"
    assert "knows no job" in status.reason


def test_each_line_comes_once_through_pages_and_interruptions(
    backend: SageMakerBackend, fake: FakeSageMaker
) -> None:
    fake.page = 7
    script = "for n in 1 2 3; do for m in $(seq 20); do echo $n-$m; done; sleep 0.2; done"
    handle = backend.submit(shell(script), pool_for("training"))
    lines: list[str] = []
    since = 0
    while True:
        ended = backend.status(handle).is_over
        new, since = backend.logs(handle, since)
        lines += new
        if ended and not new:
            break
    assert lines == [f"{n}-{m}" for n in (1, 2, 3) for m in range(1, 21)]
    assert backend.logs(handle, 0) == (lines, since)


RAY = """#!/bin/sh
echo "ray $*"
case "$*" in *--address*) [ -e {place}/failed ] || {{ touch {place}/failed; exit 1; }}; touch {place}/joined-$$ ;; esac
"""


def cluster_pool(tmp_path: Path, fake: FakeSageMaker) -> Pool:
    """A pool whose image has a `ray` that only says what it was asked for, and fails once to join."""
    program = tmp_path / "ray"
    program.write_text(RAY.format(place=tmp_path))
    program.chmod(0o755)
    fake.env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return pool_for("training", python=sys.executable)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "succeeded"),
        pytest.param(75, "preempted", marks=pytest.mark.slow),
        pytest.param(3, "failed", marks=pytest.mark.slow),
    ],
)
def test_several_machines_are_one_cluster_and_the_command_runs_once(
    backend: SageMakerBackend, fake: FakeSageMaker, tmp_path: Path, code: int, state: str
) -> None:
    pool = cluster_pool(tmp_path, fake)
    script = f"echo at $RAY_ADDRESS with $(ls {tmp_path} | grep -c joined); exit {code}"
    handle = backend.submit(shell(script, workers=3), pool)
    status = over(backend, handle)
    lines = backend.logs(handle, 0)[0]
    assert (status.state, status.exit_code) == (state, code), lines
    assert status.node == "3 x ml.m5.large"
    assert [line for line in lines if line.startswith("at ")] == ["at 127.0.0.1:6379 with 2"]
    assert "ray start --head --node-ip-address=127.0.0.1 --port=6379 --include-dashboard=false" in lines
    for number in (2, 3):
        assert f"ray start --address=127.0.0.1:6379 --node-ip-address=127.0.0.{number}" in lines


def test_a_cluster_that_is_cancelled_asks_its_command_first(
    backend: SageMakerBackend, fake: FakeSageMaker, tmp_path: Path
) -> None:
    fake.grace_s = 20
    script = f"trap 'sleep 1; [ -e {tmp_path}/left ] || echo asked; exit 75' TERM; echo up; sleep 60 & wait"
    handle = backend.submit(shell(script, workers=2), cluster_pool(tmp_path, fake))
    said(backend, handle, "up")
    backend.cancel(handle, 30)
    while not backend.status(handle).is_over:
        if fake.jobs[("Training", handle.name)].processes[1].poll() is not None:
            (tmp_path / "left").touch()
    assert backend.status(handle).state == "stopped"
    assert "asked" in backend.logs(handle, 0)[0], (
        "the other machine left before the first had come to its end"
    )


def test_a_progress_bar_is_one_line(backend: SageMakerBackend) -> None:
    handle = backend.submit(shell(r"printf '10%%\r50%%\r100%%\r\nend\n'"), pool_for("training"))
    over(backend, handle)
    assert backend.logs(handle, 0)[0] == ["100%", "end"]


@pytest.mark.slow
def test_a_real_ray_has_all_machines_when_the_command_runs(
    backend: SageMakerBackend, fake: FakeSageMaker, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    fake.machine_gib = 8
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # its sockets' paths must be short
        place = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_TMPDIR": folder}
        fake.env = {**place, "RAY_USAGE_STATS_ENABLED": "0"}
        count = "import ray; ray.init(); print(sum(node['Alive'] for node in ray.nodes()), 'machines')"
        spec = shell(f'{sys.executable} -c "{count}"', workers=2)
        handle = backend.submit(spec, pool_for("training", python=sys.executable))
        end = time.monotonic() + 240
        while not backend.status(handle).is_over and time.monotonic() < end:
            time.sleep(0.5)
        assert "2 machines" in backend.logs(handle, 0)[0], backend.logs(handle, 0)[0]
        assert over(backend, handle).state == "succeeded"
    assert not runs(folder)
