"""The exact requests that make a job on SageMaker: pure, without network, without boto3.

SageMaker hands variables on as they stand. Those with `${NAME}` in them are therefore filled in by a shell in the
container, before it becomes the command; the others travel as the job's Environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from treadle.errors import UserError
from treadle.hardware.backend import JobSpec, Json
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.machines import Api, instance_type
from treadle.hardware.sagemaker.options import SageMakerOptions, api_of, options_of

CREATE = {"training": "create_training_job", "processing": "create_processing_job"}
# Tells what the pool asked for when a machine's memory was not enough: the place itself knows no such limit.
MEMORY_VARIABLE = "TREADLE_MEMORY_GIB"
_ARGUMENT, _ARGUMENTS, _VARIABLES = 256, 100, 100
_VALUE = {"training": 512, "processing": 256}
_LONGEST_S = {"training": 28 * 86_400, "processing": 777_600}
_DAY_S = 86_400
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


def plan_job(job: JobSpec, pool: Pool) -> Json:
    """The request for a job: `call`, boto3's name of it, `region`, and `request`, its parameters.

    Raises:
        UserError: The pool or the job asks for something that SageMaker does not have.
    """
    options = options_of(pool)
    job = _completed(job, pool)
    api = api_of(job, options)
    _refuse(job, pool, options, api)
    machine = instance_type(pool, job.resources, api)
    request = (
        _training(job, pool, options, machine)
        if api == "training"
        else _processing(job, pool, options, machine)
    )
    return {"call": CREATE[api], "region": pool.region, "request": request}


def _completed(job: JobSpec, pool: Pool) -> JobSpec:
    """The job with what its pool says where it says nothing itself."""
    role = pool.roles.get(job.labels.get("stage", "default"), pool.roles.get("default"))
    return replace(
        job,
        image=job.image or pool.image,
        role=job.role or role,
        spot=job.spot or pool.spot,
        max_seconds=job.max_seconds or pool.max_seconds,
    )


def _training(job: JobSpec, pool: Pool, options: SageMakerOptions, machine: str) -> Json:
    bucket = (options.bucket or "").rstrip("/")
    disk: Json = {"InstanceType": machine, "InstanceCount": job.workers, "VolumeSizeInGB": options.volume_gb}
    output: Json = {"S3OutputPath": f"{bucket}/output"}
    if options.kms_key:
        disk["VolumeKmsKeyId"] = output["KmsKeyId"] = options.kms_key
    if options.keep_alive_seconds:
        disk["KeepAlivePeriodInSeconds"] = options.keep_alive_seconds
    request: Json = {
        "TrainingJobName": job.name,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": _entrypoint(job, pool),
        },
        "RoleArn": job.role,
        "OutputDataConfig": output,
        "ResourceConfig": disk,
        "StoppingCondition": _stopping(job, options, "training"),
        "Environment": _environment(job, pool, "training"),
        "EnableNetworkIsolation": False,
        "EnableInterContainerTrafficEncryption": options.encrypt_traffic,
        "EnableManagedSpotTraining": job.spot,
        "Tags": tags_of(job.labels),
    }
    if job.spot:
        request["CheckpointConfig"] = {"S3Uri": f"{bucket}/checkpoints/{job.name}"}
    if options.subnets:
        request["VpcConfig"] = _vpc(options)
    return request


def _processing(job: JobSpec, pool: Pool, options: SageMakerOptions, machine: str) -> Json:
    cluster: Json = {
        "InstanceType": machine,
        "InstanceCount": job.workers,
        "VolumeSizeInGB": options.volume_gb,
    }
    if options.kms_key:
        cluster["VolumeKmsKeyId"] = options.kms_key
    network: Json = {
        "EnableNetworkIsolation": False,
        "EnableInterContainerTrafficEncryption": options.encrypt_traffic,
    }
    if options.subnets:
        network["VpcConfig"] = _vpc(options)
    return {
        "ProcessingJobName": job.name,
        "AppSpecification": {"ImageUri": job.image, "ContainerEntrypoint": _entrypoint(job, pool)},
        "RoleArn": job.role,
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": _stopping(job, options, "processing"),
        "Environment": _environment(job, pool, "processing"),
        "NetworkConfig": network,
        "Tags": tags_of(job.labels),
    }


def _stopping(job: JobSpec, options: SageMakerOptions, api: Api) -> Json:
    """SageMaker's own limit, a day, is written down, so that nobody has to know it."""
    limit = math.ceil(job.max_seconds or _DAY_S)
    stopping = {"MaxRuntimeInSeconds": limit}
    if api == "training" and job.spot:
        stopping["MaxWaitTimeInSeconds"] = options.max_wait_seconds or limit + 3_600
    if options.max_pending_seconds:
        stopping["MaxPendingTimeInSeconds"] = options.max_pending_seconds
    return stopping


def _vpc(options: SageMakerOptions) -> Json:
    return {"Subnets": list(options.subnets), "SecurityGroupIds": list(options.security_groups)}


def _variables(job: JobSpec, pool: Pool) -> dict[str, str]:
    found = {**pool.env, **job.env}
    if wrong := [name for name in found if not _VARIABLE.fullmatch(name)]:
        raise UserError(f"the pool {pool.name}: env: {wrong[0]!r} can't name a variable.")
    return found


def _environment(job: JobSpec, pool: Pool, api: Api) -> dict[str, str]:
    found = {name: value for name, value in _variables(job, pool).items() if not _REFERENCE.search(value)}
    if job.resources.memory_gib:
        found[MEMORY_VARIABLE] = f"{job.resources.memory_gib:g}"
    for name, value in found.items():
        if len(value) > _VALUE[api]:
            raise UserError(
                f"the pool {pool.name}: env.{name} has {len(value)} characters; {api} jobs take {_VALUE[api]}."
                " Put it into the image, or into a file in the store."
            )
    if len(found) > _VARIABLES:
        raise UserError(f"the pool {pool.name} sets {len(found)} variables; SageMaker takes {_VARIABLES}.")
    return found


def _entrypoint(job: JobSpec, pool: Pool) -> list[str]:
    """The command, behind one shell for each variable that is filled in at the place.

    One shell each, because SageMaker limits an argument's length, and the next is this one's command. Several machines
    all get the same command: there, `sagemaker_cluster` makes them one Ray cluster, and runs it on the first.
    """
    words = list(job.command)
    if job.workers > 1:
        words = [pool.python or "python", "-P", "-m", "treadle.hardware.sagemaker.cluster", *words]
    for name, value in reversed(_variables(job, pool).items()):
        if _REFERENCE.search(value):
            words = ["sh", "-c", _fill_in(name, value), "sh", *words]
    for word in words:
        if len(word) > _ARGUMENT:
            raise UserError(
                f"the pool {pool.name}: SageMaker takes {_ARGUMENT} characters in a word of the command, and"
                f" {word[:60]}... has {len(word)}. Shorten the store's address, or the variable."
            )
    if len(words) > _ARGUMENTS:
        raise UserError(
            f"the pool {pool.name}: the command has {len(words)} words, four for each variable with ${{NAME}};"
            f" SageMaker takes {_ARGUMENTS}. Set some of them in the image."
        )
    return words


def _fill_in(name: str, value: str) -> str:
    """A shell's script that sets a variable and becomes the command; only `${NAME}` has a meaning in a value."""
    checks = "".join(
        f'[ -n "${{{one}+x}}" ] || {{ echo "env.{name} needs {one}, which is not set here" >&2; exit 64; }}; '
        for one in dict.fromkeys(_REFERENCE.findall(value))
    )
    # Odd parts are names; what means something between a shell's double quotes is escaped in the others.
    text = "".join(
        f"${{{part}}}" if number % 2 else re.sub(r'([\\"`$])', r"\\\1", part)
        for number, part in enumerate(_REFERENCE.split(value))
    )
    return f'{checks}export {name}="{text}"; exec "$@"'


def tags_of(labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Labels as SageMaker's tags, sorted; characters that it has not become `_`, and long ones are cut."""
    found = {_tag(key, 128): _tag(value, 256) for key, value in labels.items()}
    tags = [
        {"Key": f"_{key}" if key.lower().startswith("aws:") else key, "Value": found[key]}
        for key in sorted(found)
    ]
    if len(tags) > 50:
        raise UserError(f"a job on SageMaker takes 50 tags; the loop and the pool have {len(tags)} of them.")
    return tags


def _tag(text: str, longest: int) -> str:
    return re.sub(r"[^\w\s.:/=+@-]", "_", text)[:longest]


def _refuse(job: JobSpec, pool: Pool, options: SageMakerOptions, api: Api) -> None:
    """Nothing that a pool asks for is passed over in silence."""
    for is_wrong, words in (*_faults(job, pool, options), *_faults_of_api(job, options, api)):
        if is_wrong:
            raise UserError(f"the pool {pool.name}, on SageMaker: {words}")


def _faults(job: JobSpec, pool: Pool, options: SageMakerOptions) -> Sequence[tuple[object, str]]:
    return (
        (
            not _NAME.fullmatch(job.name),
            f"a job's name has up to 63 letters, digits and -: {job.name!r} does not fit.",
        ),
        (not job.image, "a job needs an image with treadle in it, in ECR: say image."),
        (
            not job.role,
            "a job needs a role: roles: {default: 'arn:aws:iam::123456789012:role/NAME'}, or one for each stage.",
        ),
        (
            job.role and not ROLE.fullmatch(job.role),
            f"a role is written as its whole ARN; {job.role!r} is none.",
        ),
        (
            pool.max_jobs,
            "it keeps no queue, so max_jobs can't be held. The account's quota for the instance type is the limit:"
            " take max_jobs out.",
        ),
        (
            options.network_isolation,
            "a job under network isolation can't reach S3, and so neither the store. Name subnets and security_groups"
            " of a VPC without internet and with endpoints for S3, CloudWatch Logs and ECR instead.",
        ),
        (
            options.encrypt_traffic and job.workers < 2,
            "encrypt_traffic is for jobs of several machines (train.workers).",
        ),
    )


def _faults_of_api(job: JobSpec, options: SageMakerOptions, api: Api) -> Sequence[tuple[object, str]]:
    longest, limit = _LONGEST_S[api], math.ceil(job.max_seconds or _DAY_S)
    too_long = (limit > longest, f"max_seconds of {api} jobs is {longest} at most.")
    if api == "processing":
        needs_training = (
            "is for training jobs only, and this stage is a processing job. Say options: {job: training}."
        )
        return (
            too_long,
            (job.spot, f"spot {needs_training}"),
            (options.keep_alive_seconds, f"a warm pool (keep_alive_seconds) {needs_training}"),
            (options.max_pending_seconds, f"max_pending_seconds {needs_training}"),
        )
    wait = options.max_wait_seconds
    return (
        too_long,
        (
            not options.bucket,
            "training jobs need a place for what they put out: options: {bucket: 's3://BUCKET/PREFIX'}.",
        ),
        (
            job.spot and options.keep_alive_seconds,
            "spot machines can't be kept warm: take out spot, or keep_alive_seconds.",
        ),
        (
            job.spot and not job.max_seconds,
            "a spot job needs max_seconds, from which the longest wait is counted.",
        ),
        (wait and not job.spot, "max_wait_seconds is for spot only."),
        (
            wait and wait < limit,
            f"max_wait_seconds ({wait}) holds the run too: it can't be below max_seconds ({limit}).",
        ),
    )
