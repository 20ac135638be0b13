"""Batch transform: the champion predicts files on S3, on machines that SageMaker starts for that and takes away again.

    plan_transform ─► create_model (once for each champion) ─► create_transform_job ─► Handle of the SageMaker backend

SageMaker starts the pool's image with the one word `serve` and posts each file to /invocations on port 8080: the image
must turn that word into `treadle serve`. Each file is one request: CSV with a header, of at most 10,000 rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from treadle.errors import UserError
from treadle.hardware.backend import Handle, Json
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.client import client_for, code_of, explained
from treadle.hardware.sagemaker.machines import instance_type
from treadle.hardware.sagemaker.options import options_of
from treadle.hardware.sagemaker.plan import ROLE, tags_of
from treadle.records import Candidate

_S3 = re.compile(r"s3://[^/]+(/.*)?")


@dataclass(frozen=True, slots=True)
class Transform:
    """Files to predict.

    Attributes:
        name: Unique for ever in the account and region, as a job's.
        loop_file: The loop's file, as the image has it.
        store: The store's address, on S3.
        input: `s3://bucket/prefix`: every file below it.
        output: Where the answers go: for each file `<its name>.out`, JSON as the endpoint answers.
        payload_mib: The largest file, up to 100.
        env: Variables of the containers.
    """

    name: str
    loop_file: str
    store: str
    input: str
    output: str
    track: str = "production"
    workers: int = 1
    payload_mib: int = 6
    labels: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


def plan_transform(asked: Transform, champion: Candidate, pool: Pool) -> Json:
    """The exact requests: `model` for create_model, `job` for create_transform_job. Pure, without network.

    The model is named by the champion's digest, so that there is one for each champion and never another one under its
    name. Its containers serve what the log names when they start: check `model` in the answers where that may change.

    Raises:
        UserError: The pool or the request asks for something that SageMaker does not have.
    """
    options = options_of(pool)
    role = pool.roles.get("predict", pool.roles.get("default"))
    _refuse(asked, pool, role)
    model = f"treadle-{re.sub(r'[^a-zA-Z0-9-]', '-', champion.loop)[:41].strip('-')}-{champion.digest[:12]}"
    labels = {**asked.labels, "loop": champion.loop, "track": asked.track, "candidate": champion.digest[:12]}
    resources: Json = {
        "InstanceType": instance_type(pool, pool.resources(), "transform"),
        "InstanceCount": asked.workers,
    }
    output: Json = {"S3OutputPath": asked.output, "Accept": "application/json"}
    if options.kms_key:
        resources["VolumeKmsKeyId"] = output["KmsKeyId"] = options.kms_key
    environment = {
        **pool.env,
        **asked.env,
        "TREADLE_STORE": asked.store,
        "TREADLE_LOOP": asked.loop_file,
        "TREADLE_TRACK": asked.track,
    }
    create: Json = {
        "ModelName": model,
        "PrimaryContainer": {"Image": pool.image, "Environment": environment},
        "ExecutionRoleArn": role,
        "EnableNetworkIsolation": False,
        "Tags": tags_of(labels),
    }
    if options.subnets:
        create["VpcConfig"] = {
            "Subnets": list(options.subnets),
            "SecurityGroupIds": list(options.security_groups),
        }
    return {
        "region": pool.region,
        "model": create,
        "job": {
            "TransformJobName": asked.name,
            "ModelName": model,
            "MaxPayloadInMB": asked.payload_mib,
            "BatchStrategy": "SingleRecord",
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": asked.input}},
                "ContentType": "text/csv",
                "SplitType": "None",
                "CompressionType": "None",
            },
            "TransformOutput": output,
            "TransformResources": resources,
            "Tags": tags_of(labels),
        },
    }


def start_transform(asked: Transform, champion: Candidate, pool: Pool) -> Handle:
    """The transform, under way; the SageMaker backend's status, logs and cancel take its handle.

    A second start of the name is the first one. A model that exists already is used.

    Raises:
        UserError: See `plan_transform`; or SageMaker refuses it. Transient: SageMaker can't be reached.
    """
    plan = plan_transform(asked, champion, pool)
    sagemaker = client_for("sagemaker", pool.region)
    for call, request in (("create_model", plan["model"]), ("create_transform_job", plan["job"])):
        try:
            getattr(sagemaker, call)(**request)
        except Exception as error:
            if not _is_there_already(error):
                raise explained(error, f"can't start the transform {asked.name}") from error
    data = {"job": "transform", "region": sagemaker.meta.region_name}
    return Handle(backend="sagemaker", name=asked.name, pool=pool.name, data=data)


def _is_there_already(error: Exception) -> bool:
    """Models say it as a ValidationException, jobs as ResourceInUse."""
    code = code_of(error)
    return code == "ResourceInUse" or (code == "ValidationException" and "already exist" in str(error))


def _refuse(asked: Transform, pool: Pool, role: str | None) -> None:
    """What SageMaker has not, or what can't come true."""
    faults = (
        (not pool.image, "a transform needs an image that serves: say image."),
        (
            not role or not ROLE.fullmatch(role),
            "a transform needs the ARN of a role: roles: {predict: ...} or default.",
        ),
        (pool.spot, "transforms have no spot machines: name a pool without spot."),
        (
            pool.max_seconds,
            "transforms have no time limit: take max_seconds out, and cancel one that lasts too long.",
        ),
        (
            any("${" in value for value in {**pool.env, **asked.env}.values()),
            "a transform fills in no ${NAME} in env.",
        ),
        (asked.workers < 1, "a transform needs at least one machine."),
        (not 1 <= asked.payload_mib <= 100, "payload_mib is between 1 and 100."),
        *(
            (not _S3.fullmatch(address), f"{what} is no address on S3: {address!r}.")
            for what, address in (("store", asked.store), ("input", asked.input), ("output", asked.output))
        ),
    )
    for is_wrong, words in faults:
        if is_wrong:
            raise UserError(f"the pool {pool.name}, on SageMaker: {words}")
