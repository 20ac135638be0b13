"""Batch transforms: their requests, their one model a champion, and how they are watched and stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from botocore.stub import Stubber
from sagemaker_api.server import FakeSageMaker
from sagemaker_api.shapes import check_shape
from treadle.errors import UserError
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.backend import SageMakerBackend
from treadle.hardware.sagemaker.transform import Transform, plan_transform, start_transform
from treadle.records import Candidate

ROLE = "arn:aws:iam::123456789012:role/treadle"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/treadle:1"
LAKE = {"store": "s3://lake/store", "input": "s3://lake/rows/", "output": "s3://lake/scores"}
SHARED = {"loop_file": "/opt/treadle/loops/orders.yaml", **LAKE}
CHAMPION = Candidate(
    id="ab" * 32,
    digest="cd" * 32,
    loop="orders_v2",
    key={},
    as_of=datetime(2024, 3, 1, tzinfo=UTC),
    blobs={},
    flavour="xgboost",
    task="binary",
    recipe="ef" * 32,
    trained_from=None,
    trained_through=datetime(2024, 2, 1, tzinfo=UTC),
    rows=100,
    metrics={},
    label_definition="",
    features="01" * 32,
)


def pool_of(**changes: Any) -> Pool:
    about = {"name": "aws", "backend": "sagemaker", "image": IMAGE, "roles": {"predict": ROLE}}
    return Pool.model_validate({**about, **changes})


def test_the_requests_to_the_letter() -> None:
    options = {"kms_key": "key", "subnets": ["subnet-1"], "security_groups": ["sg-1"]}
    pool = pool_of(accelerator="inferentia2", count=1, options=options, env={"OMP_NUM_THREADS": "4"})
    asked = Transform("scores-1", workers=2, payload_mib=50, labels={"team": "ops"}, **SHARED)
    plan = plan_transform(asked, CHAMPION, pool)
    tags = [
        {"Key": "candidate", "Value": "cdcdcdcdcdcd"},
        {"Key": "loop", "Value": "orders_v2"},
        {"Key": "team", "Value": "ops"},
        {"Key": "track", "Value": "production"},
    ]
    assert plan["model"] == {
        "ModelName": "treadle-orders-v2-cdcdcdcdcdcd",
        "PrimaryContainer": {
            "Image": IMAGE,
            "Environment": {
                "OMP_NUM_THREADS": "4",
                "TREADLE_STORE": "s3://lake/store",
                "TREADLE_LOOP": "/opt/treadle/loops/orders.yaml",
                "TREADLE_TRACK": "production",
            },
        },
        "ExecutionRoleArn": ROLE,
        "EnableNetworkIsolation": False,
        "Tags": tags,
        "VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
    }
    assert plan["job"] == {
        "TransformJobName": "scores-1",
        "ModelName": "treadle-orders-v2-cdcdcdcdcdcd",
        "MaxPayloadInMB": 50,
        "BatchStrategy": "SingleRecord",
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://lake/rows/"}},
            "ContentType": "text/csv",
            "SplitType": "None",
            "CompressionType": "None",
        },
        "TransformOutput": {
            "S3OutputPath": "s3://lake/scores",
            "Accept": "application/json",
            "KmsKeyId": "key",
        },
        "TransformResources": {"InstanceType": "ml.inf2.xlarge", "InstanceCount": 2, "VolumeKmsKeyId": "key"},
        "Tags": tags,
    }
    assert json.loads(json.dumps(plan)) == plan
    client = botocore.session.get_session().create_client(
        "sagemaker", region_name="eu-central-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    arns = {
        "create_model": {"ModelArn": "arn:aws:sagemaker:eu-central-1:123456789012:model/x"},
        "create_transform_job": {
            "TransformJobArn": "arn:aws:sagemaker:eu-central-1:123456789012:transform-job/x"
        },
    }
    with Stubber(client) as stubber:
        for call, request in (("create_model", plan["model"]), ("create_transform_job", plan["job"])):
            stubber.add_response(call, arns[call], request)
            getattr(client, call)(**request)
            operation = client.meta.method_to_api_mapping[call]
            check_shape(client.meta.service_model.operation_model(operation).input_shape, request, operation)


@pytest.mark.parametrize(
    ("pool", "asked", "words"),
    [
        ({"image": None}, {}, "needs an image"),
        ({"roles": {}}, {}, "needs the ARN of a role"),
        ({"spot": True}, {}, "no spot machines"),
        ({"max_seconds": 60}, {}, "no time limit"),
        ({"env": {"X": "${HOME}"}}, {}, "fills in no"),
        ({}, {"store": "/srv/store"}, "store is no address on S3"),
        ({}, {"payload_mib": 101}, "between 1 and 100"),
        ({"accelerator": "nvidia-h100", "count": 1}, {}, "Name instance_type"),
        ({"options": {"bucketz": "x"}}, {}, "bucketz"),
    ],
)
def test_what_a_transform_has_not_is_refused(pool: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_transform(Transform("scores-1", **{**SHARED, **asked}), CHAMPION, pool_of(**pool))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSageMaker]:
    made = FakeSageMaker()
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def test_two_transforms_share_their_champions_model_and_a_second_start_is_the_first(
    fake: FakeSageMaker,
) -> None:
    backend = SageMakerBackend()
    first, second = (Transform(f"scores-{number}", **SHARED) for number in (1, 2))
    handle = start_transform(first, CHAMPION, pool_of())
    assert start_transform(first, CHAMPION, pool_of()) == handle
    start_transform(second, CHAMPION, pool_of())
    assert list(fake.models) == ["treadle-orders-v2-cdcdcdcdcdcd"]
    assert [name for _, name in fake.jobs] == ["scores-1", "scores-2"]
    running = backend.status(handle)
    assert (running.state, running.node) == ("running", "ml.m5.large")
    backend.cancel(handle, 30)
    assert backend.status(handle).state == "stopped"
    assert backend.logs(handle, 0) == ([], 0)
    fake.faults = [(400, "AccessDeniedException")]
    with pytest.raises(UserError, match="may they do this"):
        start_transform(Transform("scores-3", **SHARED), CHAMPION, pool_of())


def test_motos_sagemaker_takes_model_and_transform_too(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_SAGEMAKER", raising=False)
    handle = start_transform(Transform("scores-moto", **SHARED), CHAMPION, pool_of())
    status = SageMakerBackend().status(handle)
    assert status.state == "succeeded"
    assert (status.started or 0) <= (status.ended or 0)
