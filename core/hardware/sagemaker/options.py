"""What only the SageMaker backend knows: the `options` of a pool, and which kind of job a stage becomes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator
from treadle.errors import UserError
from treadle.hardware.backend import JobSpec
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.machines import Api
from treadle.loop_file import faults_of
from treadle.spec import Section

_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"


class SageMakerOptions(Section):
    """The `options` of a pool with `backend: sagemaker`.

    Attributes:
        job: `training` or `processing`; left out: training for the stage train, processing for the others.
        bucket: `s3://bucket/prefix` for what training jobs put out, and for the checkpoints of spot ones.
        volume_gb: The size of the disk of each machine.
        keep_alive_seconds: How long the machines stay for the next job of the same shape: a warm pool, which is billed.
        max_wait_seconds: For spot: how long waiting and running may take together; by default an hour more than
            `max_seconds`.
        max_pending_seconds: How long a training job may wait for a machine with accelerators.
        subnets: With `security_groups`: the VPC within which the job runs.
        kms_key: Encrypts disks and outputs.
        encrypt_traffic: Encrypts what the machines of one job send each other.
        network_isolation: Refused, see `plan`.
    """

    job: Api | None = None
    bucket: str | None = Field(default=None, pattern=_URI)
    volume_gb: int = Field(default=30, ge=1, le=16_384)
    keep_alive_seconds: int | None = Field(default=None, ge=1, le=21_600)
    max_wait_seconds: int | None = Field(default=None, ge=1)
    max_pending_seconds: int | None = Field(default=None, ge=1_800, le=2_419_200)
    subnets: tuple[str, ...] = Field(default=(), max_length=16)
    security_groups: tuple[str, ...] = Field(default=(), max_length=5)
    kms_key: str | None = None
    encrypt_traffic: bool = False
    network_isolation: bool = False

    @model_validator(mode="after")
    def _whole_network(self) -> SageMakerOptions:
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("subnets and security_groups go together")
        return self


def options_of(pool: Pool) -> SageMakerOptions:
    """The options of a pool.

    Raises:
        UserError: One that SageMaker does not have, or that can't be; names every one.
    """
    try:
        return SageMakerOptions.model_validate(pool.options)
    except ValidationError as error:
        found = "; ".join(
            f"options{'.' if fault.field else ''}{fault.field}: {fault.problem} {fault.fix}".rstrip()
            for fault in faults_of(error, SageMakerOptions, None)
        )
        raise UserError(f"the pool {pool.name}, on SageMaker: {found}") from None


def api_of(job: JobSpec, options: SageMakerOptions) -> Api:
    """Which kind of job runs the command."""
    return api_of_stage(job.labels.get("stage", ""), options)


def api_of_stage(stage: str, options: SageMakerOptions) -> Api:
    """Which kind of job a stage becomes."""
    default: Literal["training", "processing"] = "training" if stage == "train" else "processing"
    return options.job or default
