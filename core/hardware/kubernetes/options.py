"""What a pool with `backend: kubernetes` may say, and what it must."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError
from treadle.errors import UserError
from treadle.hardware.backend import JobSpec
from treadle.hardware.pools import Pool
from treadle.spec import Section

Nodes = Literal["karpenter", "eks", "gke", "aks"]
_Folder = Annotated[str, Field(pattern=r"^/[^:]*[^:/]$")]
_Claim = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]


class KubernetesOptions(Section):
    """`options` of a pool with `backend: kubernetes`. See docs/kubernetes.md for every field."""

    context: str | None = None
    namespace: str = "default"
    nodes: Nodes | None = None
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    resource: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    priority: str | None = None
    queue: str | None = None
    secrets: dict[str, str] = {}
    pull_secrets: list[str] = []
    annotations: dict[str, str] = {}
    volumes: dict[_Folder, _Claim] = {}
    shm_gib: float | None = Field(default=None, gt=0)
    user: int | None = Field(default=None, ge=1)
    ray_version: str | None = None
    head_cpu: float = Field(default=2, gt=0)
    head_memory_gib: float = Field(default=8, gt=0)
    grace_s: float = Field(default=90, ge=1)
    pending_s: float = Field(default=600, ge=1)
    deadline_s: int | None = Field(default=None, ge=1)
    ttl_s: int = Field(default=86_400, ge=60)


def options_of(pool: Pool) -> KubernetesOptions:
    """A pool's options.

    Raises:
        UserError: One that is not known, or has no value that it can have.
    """
    for option in sorted(set(pool.options) - set(KubernetesOptions.model_fields)):
        near = get_close_matches(option, KubernetesOptions.model_fields, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(sorted(KubernetesOptions.model_fields))
        raise UserError(
            f"the pool {pool.name}: the kubernetes backend has no option {option!r}; known: {known}.{hint}"
        )
    try:
        return KubernetesOptions.model_validate(pool.options)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"the pool {pool.name}: options.{field}: {first['msg']}") from None


def refuse_what_is_not_said(job: JobSpec, pool: Pool, options: KubernetesOptions) -> None:
    """Nothing is guessed where a wrong guess would cost money or place a job on the wrong machine.

    Raises:
        UserError: What is missing, or is not for this backend.
    """
    if not (job.image or pool.image):
        raise UserError(
            f"the pool {pool.name} names no image; on Kubernetes a job needs one that holds treadle."
            " Build one from docker/, push it, and name it: image: REGISTRY/treadle-cpu@sha256:..."
        )
    if pool.max_jobs:
        raise UserError(
            f"the pool {pool.name}: max_jobs is not for the kubernetes backend, where nobody could hold to it while"
            " no client runs. Let the cluster do it: options: {queue: NAME} with Kueue, or a ResourceQuota."
        )
    if (job.spot or pool.spot) and not options.nodes:
        known = ", ".join(get_args(Nodes))
        raise UserError(
            f"the pool {pool.name} asks for spot machines; say whose nodes these are, which decides their labels:"
            f" options: {{nodes: ...}} with one of {known}."
        )
    if pool.kind == "cpu" or options.node_selector or pool.instance_type:
        return
    if pool.kind in ("trainium", "inferentia") and options.nodes != "karpenter":
        raise UserError(
            f"the pool {pool.name}: machines with Trainium and with Inferentia both offer aws.amazon.com/neuron, so the"
            f" cluster could place a {pool.kind} job on either. Name instance_type, or options.node_selector."
        )
    if "-" in pool.accelerator and options.nodes not in ("karpenter", "gke"):
        raise UserError(
            f"the pool {pool.name} asks for {pool.accelerator}; say how nodes with it are labelled in your cluster:"
            " options: {node_selector: {nvidia.com/gpu.product: ...}}, or name instance_type."
        )
