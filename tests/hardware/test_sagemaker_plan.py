"""The requests for SageMaker: exact, as AWS's own model wants them, and refused in words where SageMaker can't."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.stub import Stubber
from sagemaker_api.shapes import check_shape
from treadle.errors import UserError
from treadle.hardware.backend import JobSpec, Resources
from treadle.hardware.look import stage_labels
from treadle.hardware.pools import Pool, read_pools
from treadle.hardware.sagemaker.machines import MACHINES
from treadle.hardware.sagemaker.options import SageMakerOptions
from treadle.hardware.sagemaker.plan import plan_job, tags_of

ROLE = "arn:aws:iam::123456789012:role/treadle"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/treadle:1"
COMMAND = ("python", "-P", "-m", "treadle", "job", "s3://lake/store/jobs/orders/ab/1.job.json")


@pytest.fixture(scope="module")
def sagemaker() -> Any:
    return botocore.session.get_session().create_client(
        "sagemaker", region_name="eu-central-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


def pool_of(options: dict[str, Any] | None = None, **changes: Any) -> Pool:
    about = {
        "name": "aws",
        "backend": "sagemaker",
        "image": IMAGE,
        "region": "eu-central-1",
        "roles": {"default": ROLE},
        "options": {"bucket": "s3://artifacts/treadle/", **(options or {})},
    }
    return Pool.model_validate({**about, **changes})


def job_of(pool: Pool, stage: str = "train", **changes: Any) -> JobSpec:
    given = {
        "image": pool.image,
        "resources": pool.resources(),
        "max_seconds": pool.max_seconds,
        "spot": pool.spot,
        "role": ROLE,
        "labels": {"loop": "orders", "stage": stage},
    }
    return JobSpec("treadle-ab-1", COMMAND, **{**given, **changes})


def planned(sagemaker: Any, pool: Pool, stage: str = "train", **changes: Any) -> tuple[str, dict[str, Any]]:
    """The call and its parameters, as botocore takes them and within all limits of its model."""
    plan = plan_job(job_of(pool, stage, **changes), pool)
    call, request = plan["call"], plan["request"]
    assert json.loads(json.dumps(plan)) == plan
    answers = {
        "create_training_job": {
            "TrainingJobArn": "arn:aws:sagemaker:eu-central-1:123456789012:training-job/x"
        },
        "create_processing_job": {
            "ProcessingJobArn": "arn:aws:sagemaker:eu-central-1:123456789012:processing-job/x"
        },
    }
    with Stubber(sagemaker) as stubber:
        stubber.add_response(call, answers[call], request)
        getattr(sagemaker, call)(**request)
        stubber.assert_no_pending_responses()
    operation = sagemaker.meta.method_to_api_mapping[call]
    check_shape(sagemaker.meta.service_model.operation_model(operation).input_shape, request, operation)
    return call, request


def test_a_plain_training_job_to_the_letter(sagemaker: Any) -> None:
    pool = pool_of(cpu=4, memory_gib=16, max_seconds=3600, env={"OMP_NUM_THREADS": "4"})
    assert planned(sagemaker, pool) == (
        "create_training_job",
        {
            "TrainingJobName": "treadle-ab-1",
            "AlgorithmSpecification": {
                "TrainingImage": IMAGE,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": list(COMMAND),
            },
            "RoleArn": ROLE,
            "OutputDataConfig": {"S3OutputPath": "s3://artifacts/treadle/output"},
            "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
            "Environment": {"OMP_NUM_THREADS": "4", "TREADLE_MEMORY_GIB": "16"},
            "EnableNetworkIsolation": False,
            "EnableInterContainerTrafficEncryption": False,
            "EnableManagedSpotTraining": False,
            "Tags": [{"Key": "loop", "Value": "orders"}, {"Key": "stage", "Value": "train"}],
        },
    )


def test_a_training_job_with_everything(sagemaker: Any) -> None:
    options = {
        "max_wait_seconds": 9000,
        "max_pending_seconds": 7200,
        "volume_gb": 200,
        "subnets": ["subnet-1", "subnet-2"],
        "security_groups": ["sg-1"],
        "kms_key": "arn:aws:kms:eu-central-1:123456789012:key/ab",
        "encrypt_traffic": True,
    }
    pool = pool_of(options, accelerator="trainium", count=16, spot=True, max_seconds=7200)
    _, request = planned(sagemaker, pool, workers=2)
    kms = options["kms_key"]
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.trn1.32xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 200,
        "VolumeKmsKeyId": kms,
    }
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://artifacts/treadle/output", "KmsKeyId": kms}
    assert request["EnableManagedSpotTraining"] is request["EnableInterContainerTrafficEncryption"] is True
    assert request["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 7200,
        "MaxWaitTimeInSeconds": 9000,
        "MaxPendingTimeInSeconds": 7200,
    }
    assert request["CheckpointConfig"] == {"S3Uri": "s3://artifacts/treadle/checkpoints/treadle-ab-1"}
    assert request["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}


def test_a_warm_pool_and_a_day_as_the_limit(sagemaker: Any) -> None:
    _, request = planned(sagemaker, pool_of({"keep_alive_seconds": 900}))
    assert request["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 900
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 86_400}
    assert "CheckpointConfig" not in request


def test_other_stages_are_processing_jobs(sagemaker: Any) -> None:
    options = {"subnets": ["subnet-1"], "security_groups": ["sg-1"], "kms_key": "key"}
    pool = pool_of(options, accelerator="nvidia-l4", count=1, max_seconds=600)
    call, request = planned(sagemaker, pool, "evaluate")
    assert call == "create_processing_job"
    assert request == {
        "ProcessingJobName": "treadle-ab-1",
        "AppSpecification": {"ImageUri": IMAGE, "ContainerEntrypoint": list(COMMAND)},
        "RoleArn": ROLE,
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceType": "ml.g6.xlarge",
                "InstanceCount": 1,
                "VolumeSizeInGB": 30,
                "VolumeKmsKeyId": "key",
            }
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "Environment": {},
        "NetworkConfig": {
            "EnableNetworkIsolation": False,
            "EnableInterContainerTrafficEncryption": False,
            "VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        },
        "Tags": [{"Key": "loop", "Value": "orders"}, {"Key": "stage", "Value": "evaluate"}],
    }
    call, _ = planned(sagemaker, pool_of({"job": "training"}), "evaluate")
    assert call == "create_training_job"


def test_every_machine_of_the_table_is_one_that_sagemaker_has(sagemaker: Any) -> None:
    model = sagemaker.meta.service_model
    for kind in ("Training", "Processing", "Transform"):
        known = set(model.shape_for(f"{kind}InstanceType").enum)
        for machine in MACHINES:
            assert (machine.name in known) is (kind.lower() in machine.kinds), (kind, machine)


@pytest.mark.parametrize(
    ("changes", "stage", "machine"),
    [
        ({}, "train", "ml.m5.large"),
        ({"cpu": 9}, "train", "ml.m5.4xlarge"),
        ({"memory_gib": 100}, "prepare", "ml.m5.12xlarge"),
        ({"accelerator": "gpu", "count": 1}, "train", "ml.g6.xlarge"),
        ({"accelerator": "gpu", "count": 8, "memory_gib": 1000}, "train", "ml.g6e.48xlarge"),
        ({"accelerator": "nvidia-l4", "count": 1, "cpu": 8}, "train", "ml.g6.2xlarge"),
        ({"accelerator": "nvidia-h100", "count": 8}, "train", "ml.p5.48xlarge"),
        ({"accelerator": "trainium2", "count": 16}, "train", "ml.trn2.48xlarge"),
        ({"accelerator": "gpu", "count": 2, "instance_type": "ml.g7e.24xlarge"}, "train", "ml.g7e.24xlarge"),
    ],
)
def test_the_smallest_machine_that_has_what_is_wanted(
    changes: dict[str, Any], stage: str, machine: str
) -> None:
    pool = pool_of(**changes)
    request = plan_job(job_of(pool, stage), pool)["request"]
    where = request.get("ResourceConfig") or request["ProcessingResources"]["ClusterConfig"]
    assert where["InstanceType"] == machine


@pytest.mark.parametrize(
    ("options", "changes", "stage", "words"),
    [
        ({}, {"image": None}, "train", "needs an image"),
        ({}, {"roles": {}}, "train", "needs a role"),
        ({}, {"max_jobs": 2}, "train", "keeps no queue"),
        ({"bucket": None}, {}, "train", "bucket"),
        ({"bucket": "artifacts"}, {}, "train", "options.bucket"),
        ({"buckets": "s3://a-b"}, {}, "train", "Did you mean 'bucket'"),
        ({"keep_alive_seconds": 99_999}, {}, "train", "keep_alive_seconds"),
        ({"keep_alive_seconds": 60}, {"spot": True, "max_seconds": 60}, "train", "can't be kept warm"),
        ({"keep_alive_seconds": 60}, {}, "evaluate", "for training jobs only"),
        ({"max_pending_seconds": 3600}, {}, "evaluate", "for training jobs only"),
        ({}, {"spot": True, "max_seconds": 60}, "evaluate", r"options: \{job: training\}"),
        ({}, {"spot": True}, "train", "a spot job needs max_seconds"),
        ({"max_wait_seconds": 60}, {"max_seconds": 60}, "train", "for spot only"),
        ({"max_wait_seconds": 60}, {"spot": True, "max_seconds": 90}, "train", "can't be below max_seconds"),
        ({}, {"max_seconds": 800_000}, "evaluate", "777600 at most"),
        ({"network_isolation": True}, {}, "train", "can't reach S3"),
        ({"subnets": ["subnet-1"]}, {}, "train", "go together"),
        ({"encrypt_traffic": True}, {}, "train", "several machines"),
        ({}, {"accelerator": "trainium", "count": 1}, "evaluate", "processing jobs have no Trainium"),
        ({}, {"accelerator": "inferentia2", "count": 1}, "train", "no jobs on Inferentia"),
        ({}, {"accelerator": "nvidia-l4", "count": 2}, "train", "have 1, 4, 8, not 2"),
        ({}, {"accelerator": "nvidia-a100", "count": 8}, "evaluate", "Name instance_type"),
        ({}, {"memory_gib": 9000}, "train", "Name instance_type"),
        ({}, {"instance_type": "m5.large"}, "train", "begin with ml."),
        ({}, {"instance_type": "ml.g5.xlarge"}, "train", "a machine of gpu"),
        ({}, {"instance_type": "ml.m5.large", "accelerator": "gpu", "count": 1}, "train", "a machine of cpu"),
        (
            {},
            {"instance_type": "ml.g5.xlarge", "accelerator": "gpu", "count": 4},
            "train",
            "ml.g5.xlarge has 1 accelerator,",
        ),
        ({}, {"instance_type": "ml.m5.large", "memory_gib": 32}, "train", "ml.m5.large has 8"),
        (
            {},
            {"instance_type": "ml.p4d.24xlarge", "accelerator": "gpu", "count": 8},
            "evaluate",
            "processing jobs have no ml.p4d",
        ),
        ({}, {"env": {"LONG": "x" * 300}}, "evaluate", "env.LONG has 300 characters"),
        ({}, {"env": {"LONG": "${HOME}" + "x" * 300}}, "train", "256 characters in a word"),
        ({}, {"env": {f"V{n}": "${HOME}" for n in range(30)}}, "train", "four for each variable"),
    ],
)
def test_what_sagemaker_has_not_is_refused_in_words(
    options: dict[str, Any], changes: dict[str, Any], stage: str, words: str
) -> None:
    pool = pool_of(options, **changes)
    with pytest.raises(UserError, match=words) as told:
        plan_job(job_of(pool, stage, role=None), pool)
    assert "aws" in str(told.value)


def test_a_role_that_is_no_arn_and_a_name_that_is_too_long_are_refused() -> None:
    pool = pool_of(roles={"train": "treadle"})
    with pytest.raises(UserError, match="'treadle' is none"):
        plan_job(job_of(pool, role=None), pool)
    with pytest.raises(UserError, match="63 letters"):
        plan_job(JobSpec("x" * 64, COMMAND), pool_of())


def test_the_role_of_a_stage_goes_before_the_default_one() -> None:
    pool = pool_of(roles={"default": ROLE, "train": f"{ROLE}-train"})
    assert plan_job(job_of(pool, role=None), pool)["request"]["RoleArn"] == f"{ROLE}-train"
    assert plan_job(job_of(pool, "evaluate", role=None), pool)["request"]["RoleArn"] == ROLE


def test_variables_with_names_in_them_are_filled_in_by_a_shell_and_nothing_else_is() -> None:
    odd = """a 'b' "c" `echo no` $(echo no) $HOME \\ ${PLACE} d"""
    env = {"PLAIN": odd.replace("${PLACE}", ""), "ODD": odd, "MORE": "${PLACE}/${PLACE}"}
    command = ("sh", "-c", 'printf "%s|%s" "$ODD" "$MORE"')
    request = plan_job(JobSpec("x", command, env=env), pool_of({"job": "training"}))["request"]
    assert request["Environment"] == {"PLAIN": env["PLAIN"]}
    words = request["AlgorithmSpecification"]["ContainerEntrypoint"]
    place = {"PATH": "/usr/bin:/bin", "PLACE": "here; rm x"}
    done = subprocess.run(words, env=place, capture_output=True, text=True, check=True)
    assert done.stdout == f"{odd.replace('${PLACE}', place['PLACE'])}|{place['PLACE']}/{place['PLACE']}"
    missing = subprocess.run(words, env={"PATH": place["PATH"]}, capture_output=True, text=True, check=False)
    assert missing.returncode == 64
    assert missing.stderr == "env.ODD needs PLACE, which is not set here\n"


def test_labels_become_tags_that_aws_takes(sagemaker: Any) -> None:
    labels = {"team": "ops & más", "aws:mine": "x" * 400, "stage": "train", "empty": ""}
    tags = {tag["Key"]: tag["Value"] for tag in tags_of(labels)}
    assert tags == {"team": "ops _ más", "_aws:mine": "x" * 256, "stage": "train", "empty": ""}
    planned(sagemaker, pool_of(), labels=labels)
    with pytest.raises(UserError, match="50 tags"):
        tags_of({f"tag{number}": "x" for number in range(51)})


def test_a_plan_needs_neither_boto3_nor_credentials_nor_a_network() -> None:
    program = (
        "import sys\n"
        "sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "from treadle.hardware.backend import JobSpec\n"
        "from treadle.hardware.backends import get_backend\n"
        "from treadle.hardware.pools import Pool\n"
        "pool = Pool.model_validate_json(sys.argv[1])\n"
        "print(get_backend('sagemaker').plan(JobSpec('x', ('true',)), pool)['call'])"
    )
    pool = pool_of({"job": "training"})
    done = subprocess.run(
        [sys.executable, "-c", program, pool.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    assert done.stdout == "create_training_job\n"


def test_resources_of_the_job_count_and_not_only_the_pools() -> None:
    pool = pool_of()
    request = plan_job(job_of(pool, resources=Resources(cpu=8)), pool)["request"]
    assert request["ResourceConfig"]["InstanceType"] == "ml.m5.2xlarge"


def test_every_option_is_documented_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sagemaker.md").read_text()
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*?) \|", page, re.MULTILINE))
    documented = {name: default for names, default in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert set(documented) == set(SageMakerOptions.model_fields)
    assert documented["volume_gb"] == str(SageMakerOptions().volume_gb)


def test_the_pools_of_the_page_can_be_planned(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sagemaker.md").read_text()
    (tmp_path / "pools.yaml").write_text(page.partition("```yml\n")[2].partition("```")[0])
    machines = {}
    for name, pool in read_pools(tmp_path / "pools.yaml").items():
        plan = plan_job(JobSpec("x", COMMAND, labels={"stage": "train"}, resources=pool.resources()), pool)
        machines[name] = plan["request"]["ResourceConfig"]["InstanceType"]
    assert machines == {"aws": "ml.m5.xlarge", "aws-trainium-spot": "ml.trn1.2xlarge"}


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        ({"spot": True, "max_seconds": 3600}, "create_training_job"),
        ({"accelerator": "trainium", "count": 1}, "create_training_job"),
        ({}, "create_processing_job"),
    ],
)
def test_a_look_at_a_pool_is_a_job_that_the_pool_can_have(
    sagemaker: Any, changes: dict[str, Any], call: str
) -> None:
    pool = pool_of(**changes)
    assert planned(sagemaker, pool, labels=stage_labels(pool))[0] == call
