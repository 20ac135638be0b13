"""What AWS answers to the SageMaker backend: faults, quotas, who is not logged in, and the same from moto's AWS."""

from __future__ import annotations

import time

import pytest
from sagemaker_api.server import FakeSageMaker
from sagemaker_cases import ROLE, over, pool_for, shell, until
from treadle.errors import Transient, UserError
from treadle.hardware.backend import Handle
from treadle.hardware.sagemaker.backend import SageMakerBackend


@pytest.fixture
def backend(fake: FakeSageMaker) -> SageMakerBackend:
    return SageMakerBackend()


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
