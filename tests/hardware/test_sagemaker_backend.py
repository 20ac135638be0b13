"""The SageMaker backend on a small SageMaker of our own: the conformance suite, and what only SageMaker shows."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fake_sagemaker import FakeSageMaker
from treadle.errors import Transient, UserError
from treadle.hardware.backend import Backend, Handle, JobSpec, Status
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.backend import SageMakerBackend
from treadle.testing.backend import BackendSuite

ROLE = "arn:aws:iam::123456789012:role/treadle"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/treadle:1"


def runs(word: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="module")
def server() -> Iterator[FakeSageMaker]:
    made = FakeSageMaker()
    yield made
    made.close()


@pytest.fixture
def fake(server: FakeSageMaker, monkeypatch: pytest.MonkeyPatch) -> FakeSageMaker:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    server.reset()
    return server


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


def pool_for(job: str, **changes: object) -> Pool:
    about = {
        "name": "suite",
        "backend": "sagemaker",
        "image": IMAGE,
        "roles": {"default": ROLE},
        "options": {"job": job, "bucket": "s3://artifacts/treadle"},
    }
    return Pool.model_validate({**about, **changes})


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


def spot_pool(**changes: object) -> Pool:
    return pool_for("training", **{"spot": True, "max_seconds": 60, **changes})


def shell(script: str, **options: Any) -> JobSpec:
    return JobSpec(f"own-{uuid4().hex[:12]}", ("sh", "-c", script), **options)


def until(backend: Backend, handle: Handle, there: Callable[[Status], bool]) -> Status:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if there(status := backend.status(handle)):
            return status
        time.sleep(0.02)
    raise AssertionError(backend.status(handle))


def over(backend: Backend, handle: Handle) -> Status:
    return until(backend, handle, lambda status: status.is_over)


def said(backend: Backend, handle: Handle, line: str) -> None:
    until(backend, handle, lambda status: line in backend.logs(handle, 0)[0])


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


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((400, "ThrottlingException"), Transient, "Throttling"),
        ((503, "ServiceUnavailable"), Transient, "ServiceUnavailable"),
        ((500, "InternalFailure"), Transient, "InternalFailure"),
        ((400, "AccessDeniedException"), UserError, "may they do this"),
        ((400, "ExpiredTokenException"), UserError, "the right ones"),
        ((400, "ValidationException"), UserError, "was asked for"),
    ],
)
def test_what_aws_answers_says_whether_a_retry_helps(
    backend: SageMakerBackend, fake: FakeSageMaker, answer: tuple[int, str], kind: type[Exception], words: str
) -> None:
    handle = Handle(
        backend="sagemaker", name="x", pool="aws", data={"job": "training", "region": "eu-central-1"}
    )
    for call in (lambda: backend.submit(shell("true"), pool_for("training")), lambda: backend.status(handle)):
        fake.faults = [answer] * 2
        with pytest.raises(kind, match=words) as told:
            call()
        assert told.value.retryable is (kind is Transient)  # type: ignore[attr-defined]
        fake.faults = []


def test_one_fault_is_passed_over_and_a_second_request_of_the_same_is_the_same_job(
    backend: SageMakerBackend, fake: FakeSageMaker
) -> None:
    fake.faults = [(503, "ServiceUnavailable")]
    handle = backend.submit(shell("exit 0"), pool_for("training"))
    assert over(backend, handle).state == "succeeded"


def test_a_quota_in_use_may_be_free_later_and_one_that_is_too_small_never_is(
    backend: SageMakerBackend, fake: FakeSageMaker
) -> None:
    first = backend.submit(shell("sleep 60"), pool_for("training"))
    until(backend, first, lambda status: status.state == "running")
    fake.quota = 1
    with pytest.raises(Transient, match="quota"):
        backend.submit(shell("exit 0"), pool_for("training"))
    fake.quota = 0
    with pytest.raises(UserError, match="larger quota"):
        backend.submit(shell("exit 0"), pool_for("training"))
    backend.cancel(first, 1)
    over(backend, first)


def test_an_endpoint_that_is_not_there_says_nothing_about_the_job(
    backend: SageMakerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:1")
    with pytest.raises(Transient, match="nothing about the job"):
        backend.find("x", pool_for("training"))


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "No credentials"),
        (("AWS_SECRET_ACCESS_KEY",), "No credentials"),
        (("AWS_DEFAULT_REGION",), "Say region"),
    ],
)
def test_who_is_not_logged_in_is_told_so(
    backend: SageMakerBackend, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], words: str
) -> None:
    for name in without:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=words):
        backend.submit(shell("exit 0"), pool_for("training"))


def test_the_region_of_the_pool_goes_before_that_of_the_environment(backend: SageMakerBackend) -> None:
    pool = pool_for("training", region="us-west-2")
    handle = backend.submit(shell("exit 0"), pool)
    assert handle.data["region"] == "us-west-2"
    over(backend, handle)


def test_a_request_that_aws_would_refuse_is_refused_here_too(fake: FakeSageMaker) -> None:
    """The fake is worth something only if it is as strict as AWS."""
    import boto3

    client = boto3.client("sagemaker")
    with pytest.raises(client.exceptions.ClientError, match="does not match"):
        client.create_training_job(
            TrainingJobName="x" * 64, RoleArn=ROLE, OutputDataConfig={"S3OutputPath": "s3://artifacts"}
        )
    with pytest.raises(client.exceptions.ClientError, match="out of bounds"):
        client.create_training_job(
            TrainingJobName="x",
            RoleArn=ROLE,
            OutputDataConfig={"S3OutputPath": "s3://artifacts"},
            Environment={"LONG": "x" * 513},
        )
    with pytest.raises(client.exceptions.ClientError, match="enumeration"):
        client.create_training_job(
            TrainingJobName="x",
            RoleArn=ROLE,
            OutputDataConfig={"S3OutputPath": "s3://artifacts"},
            ResourceConfig={"InstanceType": "ml.inf2.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        )


@pytest.mark.parametrize("job", ["training", pytest.param("processing", marks=pytest.mark.slow)])
def test_motos_aws_takes_the_job_and_shows_its_lines(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """moto ends every job at once and runs nothing; its CloudWatch is another one than ours."""
    import boto3

    for service in ("SAGEMAKER", "CLOUDWATCH_LOGS"):
        monkeypatch.delenv(f"AWS_ENDPOINT_URL_{service}", raising=False)
    backend, spec = SageMakerBackend(), shell("exit 0")
    handle = backend.submit(spec, pool_for(job, tags={"team": "ops"}))
    assert backend.find(spec.name, pool_for(job)) == handle
    assert backend.find("never-was", pool_for(job)) is None
    status = backend.status(handle)
    assert (status.state, status.exit_code) == ("succeeded", 0)
    assert backend.logs(handle, 0) == ([], 0)
    logs, group = boto3.client("logs"), f"/aws/sagemaker/{job.title()}Jobs"
    logs.create_log_group(logGroupName=group)
    now = int(time.time() * 1000)
    for name, lines in ((spec.name, ["one", "two"]), (f"{spec.name}0", ["another job's"])):
        stream = {"logGroupName": group, "logStreamName": f"{name}/algo-1-{now}"}
        logs.create_log_stream(**stream)
        logs.put_log_events(**stream, logEvents=[{"timestamp": now, "message": line} for line in lines])
    lines, since = backend.logs(handle, 0)
    assert lines == ["one", "two"]
    stream = {"logGroupName": group, "logStreamName": f"{spec.name}/algo-1-{now}"}
    logs.put_log_events(**stream, logEvents=[{"timestamp": now, "message": "three"}])
    assert backend.logs(handle, since)[0] == ["three"]


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
