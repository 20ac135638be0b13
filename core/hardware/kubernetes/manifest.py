"""The exact object that a job becomes in a cluster: a Job, or a RayJob for KubeRay when it has several workers.

Pure: no network, no credentials, no secret's value. What can't be said to a cluster is refused here, before anything is
sent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from hashlib import sha256

from treadle.errors import UserError
from treadle.hardware.backend import JobSpec, Json
from treadle.hardware.kubernetes.options import KubernetesOptions, options_of, refuse_what_is_not_said
from treadle.hardware.pools import Pool
from treadle.redaction import redacted

CONTAINER = "main"
MANAGED_BY = ("app.kubernetes.io/managed-by", "treadle")
ENDED, PENDING_S = "treadle/ended", "treadle/pending-s"

_SPOT: dict[str, tuple[dict[str, str], list[Json]]] = {
    "karpenter": ({"karpenter.sh/capacity-type": "spot"}, []),
    "eks": ({"eks.amazonaws.com/capacityType": "SPOT"}, []),
    "gke": (
        {"cloud.google.com/gke-spot": "true"},
        [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
    ),
    "aks": (
        {"kubernetes.azure.com/scalesetpriority": "spot"},
        [
            {
                "key": "kubernetes.azure.com/scalesetpriority",
                "operator": "Equal",
                "value": "spot",
                "effect": "NoSchedule",
            }
        ],
    ),
}
_RAY_NAME_LENGTH = 47  # KubeRay derives the names of services and pods from it
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def manifest_of(job: JobSpec, pool: Pool) -> Json:
    """What to create: JSON, ready for `kubectl create -f` too.

    Raises:
        UserError: The pool or the job asks for something that can't be said to a cluster, or leaves out what it needs.
    """
    options = options_of(pool)
    refuse_what_is_not_said(job, pool, options)
    made = _ray_job(job, pool, options) if job.workers > 1 else _job(job, pool, options)
    # A copy in which no part stands twice: YAML would write anchors.
    found: Json = json.loads(json.dumps(made))
    return found


def _job(job: JobSpec, pool: Pool, options: KubernetesOptions) -> Json:
    pod = _pod_spec(job, pool, options, _container(job, pool, options))
    # The pod's own deadline: the node then ends it with its grace, and the log stays. The Job's deadline would delete
    # the pod and the log with it.
    if job.max_seconds:
        pod["activeDeadlineSeconds"] = math.ceil(job.max_seconds)
    spec: Json = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "ttlSecondsAfterFinished": options.ttl_s,
        # Every rule fails the Job, as treadle itself decides on another attempt. What they add is the Job's own word on
        # why, which outlives the pod: a disruption, or the exit code.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                },
            ]
        },
        "template": {"metadata": _metadata(job, options, name=False), "spec": pod},
    }
    if options.deadline_s:
        spec["activeDeadlineSeconds"] = options.deadline_s
    if options.queue:
        spec["suspend"] = True
    metadata = _metadata(job, options)
    metadata["annotations"][PENDING_S] = f"{options.pending_s:g}"
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _ray_job(job: JobSpec, pool: Pool, options: KubernetesOptions) -> Json:
    """A cluster for this job alone: the command runs on its head, the workers do the work and hold the devices."""
    if len(job.name) > _RAY_NAME_LENGTH:
        raise UserError(f"{job.name} is too long for a RayJob: at most {_RAY_NAME_LENGTH} characters")
    odd = [word for word in job.command if not _PLAIN_WORD.fullmatch(word)]
    if odd:
        # Two shells and Ray's own command line stand between this text and the program; they quote differently.
        raise UserError(
            f"the pool {pool.name}: a RayJob can't carry {odd[0]!r} safely in its command. Use letters, digits and"
            " _@%+=:,./- only; in the store's address, too."
        )
    workers = _container(job, pool, options, by_cluster=True)
    head = {**workers, "resources": _amounts(options.head_cpu, options.head_memory_gib)}
    head_job = pool.model_copy(
        update={"accelerator": "cpu", "count": 0, "spot": False, "instance_type": None}
    )
    plain = options.model_copy(update={"node_selector": {}, "nodes": None})
    submitter = {
        "name": "ray-job-submitter",
        "image": workers["image"],
        "resources": _amounts(0.5, 1),
        "securityContext": workers["securityContext"],
    }
    on_head = _pod_spec(job, head_job, plain, head, spot=False)
    spec: Json = {
        "entrypoint": escaped(" ".join(job.command)),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": 0},
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        "submitterPodTemplate": {
            "metadata": _metadata(job, options, name=False),
            "spec": {**on_head, "containers": [submitter], "volumes": []},
        },
        "rayClusterSpec": {
            **({"rayVersion": options.ray_version} if options.ray_version else {}),
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                "template": {"metadata": _metadata(job, options, name=False), "spec": on_head},
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": job.workers,
                    "minReplicas": job.workers,
                    "maxReplicas": job.workers,
                    "rayStartParams": {},
                    "template": {
                        "metadata": _metadata(job, options, name=False),
                        "spec": _pod_spec(job, pool, options, workers),
                    },
                }
            ],
        },
    }
    limit = options.deadline_s or (math.ceil(job.max_seconds) if job.max_seconds else None)
    if limit:
        spec["activeDeadlineSeconds"] = limit
    if options.queue:
        spec["suspend"] = True
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(job, options), "spec": spec}


def _metadata(job: JobSpec, options: KubernetesOptions, *, name: bool = True) -> Json:
    labels = {
        MANAGED_BY[0]: MANAGED_BY[1],
        "treadle/job": job.name,
        **{f"treadle/{as_label(key)}": as_label(value) for key, value in job.labels.items()},
    }
    annotations = dict(options.annotations)
    if not name:
        return {"labels": labels, "annotations": annotations}
    if options.queue:
        labels["kueue.x-k8s.io/queue-name"] = options.queue
    # What a label can't hold stands here in full.
    annotations |= {f"treadle/{as_label(key)}": value for key, value in job.labels.items()}
    return {"name": job.name, "namespace": options.namespace, "labels": labels, "annotations": annotations}


def _pod_spec(
    job: JobSpec, pool: Pool, options: KubernetesOptions, container: Json, *, spot: bool | None = None
) -> Json:
    selector, tolerations = _places(pool, options, job.spot or pool.spot if spot is None else spot)
    spec: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(job.grace_s),
        # The job talks to the store, never to the cluster.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **({"runAsUser": options.user} if options.user else {}),
        },
        "containers": [container],
    }
    if job.role:
        spec["serviceAccountName"] = job.role
    if options.priority:
        spec["priorityClassName"] = options.priority
    if options.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    if selector:
        spec["nodeSelector"] = selector
    if tolerations:
        spec["tolerations"] = tolerations
    volumes: list[Json] = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}}
        for name, claim in _volumes(options).values()
    ]
    if options.shm_gib:
        memory = {"medium": "Memory", "sizeLimit": _mebibytes(options.shm_gib)}
        volumes.append({"name": "shm", "emptyDir": memory})
    if volumes:
        spec["volumes"] = volumes
    return spec


def _volumes(options: KubernetesOptions) -> dict[str, tuple[str, str]]:
    """By folder, the volume's name in the pod and the claim that is mounted there."""
    return {
        folder: (f"volume-{number}", claim)
        for number, (folder, claim) in enumerate(sorted(options.volumes.items()))
    }


def _places(pool: Pool, options: KubernetesOptions, spot: bool) -> tuple[dict[str, str], list[Json]]:
    """The labels that a node must have, and the taints that it may have."""
    selector: dict[str, str] = {}
    tolerations: list[Json] = []
    if pool.kind != "cpu":
        key = "aws.amazon.com/neuron" if pool.kind != "gpu" else _device(pool, options)
        key = "nvidia.com/gpu" if key.startswith("nvidia.com/") else key
        tolerations.append({"key": key, "operator": "Exists", "effect": "NoSchedule"})
        selector |= _model_labels(pool, options)
    if pool.instance_type:
        selector["node.kubernetes.io/instance-type"] = pool.instance_type
    if pool.region:
        selector["topology.kubernetes.io/region"] = pool.region
    if spot and options.nodes:
        labels, taints = _SPOT[options.nodes]
        selector |= labels
        tolerations += taints
    return selector | options.node_selector, tolerations + options.tolerations


def _model_labels(pool: Pool, options: KubernetesOptions) -> dict[str, str]:
    """How the maker of the nodes labels those with a certain accelerator."""
    if pool.instance_type:
        return {}
    if options.nodes == "karpenter":
        if pool.kind != "gpu":
            return {"karpenter.k8s.aws/instance-accelerator-name": pool.accelerator}
        model = pool.accelerator.partition("-")[2]
        return {"karpenter.k8s.aws/instance-gpu-name": model} if model else {}
    if options.nodes == "gke" and "-" in pool.accelerator:
        return {"cloud.google.com/gke-accelerator": pool.accelerator}
    return {}


def _device(pool: Pool, options: KubernetesOptions) -> str:
    if options.resource:
        return options.resource
    if pool.kind == "gpu":
        return "amd.com/gpu" if pool.accelerator.startswith("amd") else "nvidia.com/gpu"
    return "aws.amazon.com/neuron"


def _container(job: JobSpec, pool: Pool, options: KubernetesOptions, *, by_cluster: bool = False) -> Json:
    """The container. `by_cluster`: its command is KubeRay's, so the cluster must fill in the variables."""
    image = job.image or pool.image
    env = {**pool.env, **job.env}
    for variable, value in env.items():
        if redacted(value) != value:
            raise UserError(
                f"the pool {pool.name}: env.{variable} holds credentials, which everyone who may look at the job would"
                " read. Put them into a Secret and name it: options: {secrets: {NAME: SECRET/KEY}}, and ${NAME} here."
            )
    referring = {name: value for name, value in env.items() if _VARIABLE.search(value)}
    plain = {name: value for name, value in env.items() if name not in referring}
    resources = _amounts(job.resources.cpu, job.resources.memory_gib)
    if job.resources.count:
        device = _device(pool, options)
        # A device's request and limit must be equal, whole, and text.
        resources["limits"][device] = resources["requests"][device] = str(job.resources.count)
    container: Json = {
        "name": CONTAINER,
        "image": image,
        "resources": {key: value for key, value in resources.items() if value},
        "env": [
            *_secret_references(pool, options),
            *({"name": name, "value": escaped(value)} for name, value in plain.items()),
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        # The end of the log is the reason of a failure, where the program left none.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if by_cluster:
        container["env"] += _filled_in_by_cluster(pool, options, plain, referring)
    else:
        container["command"] = [escaped(word) for word in _filled_in_by_shell(job.command, referring)]
    mounts = [{"name": name, "mountPath": folder} for folder, (name, _) in _volumes(options).items()]
    mounts += [{"name": "shm", "mountPath": "/dev/shm"}] if options.shm_gib else []
    if mounts:
        container["volumeMounts"] = mounts
    return container


def _secret_references(pool: Pool, options: KubernetesOptions) -> list[Json]:
    found = []
    for variable, reference in options.secrets.items():
        name, slash, key = reference.partition("/")
        if not (name and slash and key):
            raise UserError(
                f"the pool {pool.name}: options.secrets.{variable} reads SECRET/KEY, the names of a Secret and of its"
                " key; its value is never written down here."
            )
        found.append(
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key, "optional": False}}}
        )
    return found


def _filled_in_by_shell(command: tuple[str, ...], env: Mapping[str, str]) -> list[str]:
    """The command, behind a shell that fills `${NAME}` in from what the container has, where anything asks for it."""
    if not env:
        return list(command)
    needed = sorted({name for value in env.values() for name in _VARIABLE.findall(value)})
    checks = [
        f'[ -n "${{{name}+set}}" ] || {{ echo "treadle: the variable {name}, which the pool\'s env names,'
        ' is not set in the container" >&2; exit 64; }'
        for name in needed
    ]
    values = " ".join(f'{name}="{_in_quotes(value)}"' for name, value in env.items())
    return ["/bin/sh", "-c", "\n".join([*checks, f'exec env {values} "$@"']), "sh", *command]


def _in_quotes(value: str) -> str:
    """A value between a shell's double quotes, of which only `${NAME}` means anything."""
    parts = re.split(r"(\$\{[A-Za-z_][A-Za-z0-9_]*\})", value)
    return "".join(
        part if number % 2 else re.sub(r'([\\"`$])', r"\\\1", part) for number, part in enumerate(parts)
    )


def _filled_in_by_cluster(
    pool: Pool, options: KubernetesOptions, plain: Mapping[str, str], env: Mapping[str, str]
) -> list[Json]:
    known = {*options.secrets, *plain}
    for variable, value in env.items():
        missing = [name for name in _VARIABLE.findall(value) if name not in known]
        if missing:
            raise UserError(
                f"the pool {pool.name}: env.{variable} needs ${{{missing[0]}}}; with several workers it can be filled"
                " in only from options.secrets or another variable of env. Add it there."
            )
    return [
        {
            "name": variable,
            "value": "".join(
                f"$({part[2:-1]})" if number % 2 else escaped(part)
                for number, part in enumerate(re.split(r"(\$\{[A-Za-z_][A-Za-z0-9_]*\})", value))
            ),
        }
        for variable, value in env.items()
    ]


def escaped(text: str) -> str:
    """A text in which the cluster replaces nothing: it reads `$(NAME)` as a variable and `$$` as one dollar."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def _amounts(cpu: float | None, memory_gib: float | None) -> Json:
    """Requests and limits. A core that nobody else wants may be used beyond the request; memory may not."""
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if cpu:
        requests["cpu"] = f"{math.ceil(cpu * 1000)}m"
    if memory_gib:
        requests["memory"] = limits["memory"] = _mebibytes(memory_gib)
    return {"requests": requests, "limits": limits}


def _mebibytes(gib: float) -> str:
    return f"{math.ceil(gib * 1024)}Mi"


def as_label(text: str) -> str:
    """A text as a label's value, or the last part of its key: at most 63 of letters, digits and `-_.`.

    What had to be changed ends in a short hash, so that different texts stay different.
    """
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")
    if clean == text and len(clean) <= 63:
        return clean
    return f"{clean[:54].rstrip('-_.') or 'x'}-{sha256(text.encode()).hexdigest()[:8]}"
