"""The objects that jobs become: held against the published schemas, and what must stand in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from treadle.errors import UserError
from treadle.hardware.backend import JobSpec
from treadle.hardware.kubernetes.backend import KubernetesBackend
from treadle.hardware.kubernetes.options import KubernetesOptions
from treadle.hardware.pools import Pool

OLDEST, NEWEST = "1.31", "1.37"
COMMAND = ("python", "-P", "-m", "treadle", "job", "s3://bucket/store/jobs/flights/KEY/1.job.json")

# KubeRay's schema is in no package. These are the fields of a RayJob that are used, with their types, as the definition
# of `rayjobs.ray.io` in KubeRay v1.7.0 has them; against that definition itself the manifests were held once, by hand.
Pods = object()
RAY_JOB: dict[str, Any] = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "submitterConfig": {"backoffLimit": int},
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "suspend": bool,
    "submitterPodTemplate": Pods,
    "rayClusterSpec": {
        "rayVersion": str,
        "headGroupSpec": {"rayStartParams": dict, "template": Pods},
        "workerGroupSpecs": [
            {
                "groupName": str,
                "replicas": int,
                "minReplicas": int,
                "maxReplicas": int,
                "rayStartParams": dict,
                "template": Pods,
            }
        ],
    },
}


def pool_of(**fields: Any) -> Pool:
    return Pool.model_validate({"name": "far", "backend": "kubernetes", "image": "treadle:1"} | fields)


def planned(pool: Pool, **fields: Any) -> dict[str, Any]:
    spec = JobSpec("treadle-abc-1", COMMAND, resources=pool.resources(), spot=pool.spot, **fields)
    return KubernetesBackend().plan(spec, pool)


def hold_against_schema(manifest: dict[str, Any]) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def hold_against_ray(found: Any, known: Any, where: str = "spec") -> None:
    if known is Pods:
        hold_against_schema({"apiVersion": "v1", "kind": "Pod", **found})
    elif isinstance(known, dict):
        assert set(found) <= set(known), where
        for name, value in found.items():
            hold_against_ray(value, known[name], f"{where}.{name}")
    elif isinstance(known, list):
        for item in found:
            hold_against_ray(item, known[0], where)
    else:
        assert type(found) is known, where


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


EVERYTHING: dict[str, Any] = {
    "accelerator": "nvidia-l4",
    "count": 2,
    "cpu": 3.5,
    "memory_gib": 15.5,
    "spot": True,
    "region": "eu-west-1",
    "env": {"A": "b", "B": "${S}/x"},
    "options": {
        "namespace": "ml",
        "nodes": "karpenter",
        "node_selector": {"disk": "fast"},
        "tolerations": [{"key": "team", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}],
        "priority": "low",
        "queue": "team-a",
        "secrets": {"S": "mlflow/token"},
        "pull_secrets": ["registry"],
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
        "shm_gib": 2,
        "volumes": {"/mnt/team": "team-files", "/mnt/models": "models"},
        "user": 1000,
        "deadline_s": 7200,
        "ray_version": "2.60.0",
    },
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cpu": 0.5, "memory_gib": 2},
        {"accelerator": "gpu", "count": 1},
        {"accelerator": "trainium", "count": 1, "instance_type": "trn1.2xlarge"},
        {"spot": True, "options": {"nodes": "gke"}},
        {"spot": True, "options": {"nodes": "aks"}},
        EVERYTHING,
    ],
    ids=["bare", "amounts", "gpu", "trainium", "gke", "aks", "everything"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_planned_holds_against_the_published_schemas(fields: dict[str, Any], workers: int) -> None:
    limits: dict[str, Any] = {"max_seconds": 3600.5, "grace_s": 90, "role": "trainer"}
    manifest = planned(pool_of(**fields), workers=workers, labels={"loop": "flights"}, **limits)
    assert json.loads(json.dumps(manifest)) == manifest
    assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
    assert "&id" not in yaml.safe_dump(manifest)
    if workers == 1:
        hold_against_schema(manifest)
    else:
        assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
        hold_against_ray(manifest["spec"], RAY_JOB)


def test_a_misspelt_field_would_be_found() -> None:
    manifest = planned(pool_of())
    manifest["spec"]["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        hold_against_schema(manifest)
    manifest = planned(pool_of(), workers=2)
    manifest["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    with pytest.raises(AssertionError, match=r"spec\.rayClusterSpec"):
        hold_against_ray(manifest["spec"], RAY_JOB)


def test_nobody_but_treadle_starts_a_job_again() -> None:
    spec = planned(pool_of())["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert {rule["action"] for rule in spec["podFailurePolicy"]["rules"]} == {"FailJob"}
    ray = planned(pool_of(), workers=2)["spec"]
    assert ray["backoffLimit"] == ray["submitterConfig"]["backoffLimit"] == 0
    assert ray["shutdownAfterJobFinishes"] is True


def test_a_jobs_times_are_the_clusters() -> None:
    manifest = planned(pool_of(options={"ttl_s": 3600, "deadline_s": 900}), max_seconds=99.5, grace_s=90)
    assert pod_of(manifest)["activeDeadlineSeconds"] == 100
    assert pod_of(manifest)["terminationGracePeriodSeconds"] == 90
    assert manifest["spec"]["ttlSecondsAfterFinished"] == 3600
    assert manifest["spec"]["activeDeadlineSeconds"] == 900


@pytest.mark.parametrize(
    ("fields", "device", "taint"),
    [
        ({"accelerator": "gpu", "count": 2}, "nvidia.com/gpu", "nvidia.com/gpu"),
        (
            {"accelerator": "gpu", "count": 2, "options": {"resource": "nvidia.com/mig-1g.5gb"}},
            "nvidia.com/mig-1g.5gb",
            "nvidia.com/gpu",
        ),
        ({"accelerator": "amd", "count": 2}, "amd.com/gpu", "amd.com/gpu"),
        (
            {"accelerator": "trainium", "count": 2, "instance_type": "trn1.32xlarge"},
            "aws.amazon.com/neuron",
            "aws.amazon.com/neuron",
        ),
        (
            {
                "accelerator": "inferentia",
                "count": 2,
                "options": {"nodes": "karpenter", "resource": "aws.amazon.com/neuroncore"},
            },
            "aws.amazon.com/neuroncore",
            "aws.amazon.com/neuron",
        ),
    ],
    ids=["gpu", "mig", "amd", "trainium", "inferentia"],
)
def test_an_accelerator_is_asked_for_by_its_resource(fields: dict[str, Any], device: str, taint: str) -> None:
    pod = pod_of(planned(pool_of(**fields)))
    amounts = pod["containers"][0]["resources"]
    assert amounts["requests"][device] == amounts["limits"][device] == "2"
    assert {"key": taint, "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


@pytest.mark.parametrize(
    ("fields", "selector"),
    [
        ({"options": {"nodes": "karpenter"}, "spot": True}, {"karpenter.sh/capacity-type": "spot"}),
        ({"options": {"nodes": "eks"}, "spot": True}, {"eks.amazonaws.com/capacityType": "SPOT"}),
        ({"options": {"nodes": "gke"}, "spot": True}, {"cloud.google.com/gke-spot": "true"}),
        ({"options": {"nodes": "aks"}, "spot": True}, {"kubernetes.azure.com/scalesetpriority": "spot"}),
        ({"instance_type": "g6.xlarge"}, {"node.kubernetes.io/instance-type": "g6.xlarge"}),
        ({"region": "eu-west-1"}, {"topology.kubernetes.io/region": "eu-west-1"}),
        (
            {"accelerator": "nvidia-l4", "count": 1, "options": {"nodes": "karpenter"}},
            {"karpenter.k8s.aws/instance-gpu-name": "l4"},
        ),
        (
            {"accelerator": "nvidia-l4", "count": 1, "options": {"nodes": "gke"}},
            {"cloud.google.com/gke-accelerator": "nvidia-l4"},
        ),
        (
            {"accelerator": "trainium", "count": 1, "options": {"nodes": "karpenter"}},
            {"karpenter.k8s.aws/instance-accelerator-name": "trainium"},
        ),
        (
            {"accelerator": "nvidia-l4", "count": 1, "options": {"node_selector": {"gpu": "L4"}}},
            {"gpu": "L4"},
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_nodes_are_chosen_by_the_labels_of_whoever_makes_them(
    fields: dict[str, Any], selector: dict[str, str]
) -> None:
    assert pod_of(planned(pool_of(**fields)))["nodeSelector"] == selector


def test_a_pool_without_accelerators_asks_for_no_special_node() -> None:
    pod = pod_of(planned(pool_of()))
    assert "nodeSelector" not in pod
    assert "tolerations" not in pod


def test_who_the_job_is_and_what_it_may_do() -> None:
    manifest = planned(pool_of(**EVERYTHING), role="trainer")
    pod = pod_of(manifest)
    assert pod["serviceAccountName"] == "trainer"
    assert pod["automountServiceAccountToken"] is False
    assert pod["priorityClassName"] == "low"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert manifest["spec"]["suspend"] is True
    variables = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert variables["S"]["valueFrom"]["secretKeyRef"] == {
        "name": "mlflow",
        "key": "token",
        "optional": False,
    }
    assert "value" not in variables["S"]


def test_labels_are_what_a_cluster_takes_and_different_texts_stay_different() -> None:
    odd = {"loop": "flights", "a b": "Größe & Co.", "a-b": "x" * 80, "team": "", "owner": "ann@example.com"}
    manifest = planned(pool_of(), labels=odd)
    hold_against_schema(manifest)
    labels = manifest["metadata"]["labels"]
    assert labels["treadle/loop"] == "flights"
    assert len([name for name in labels if name.startswith("treadle/a-b")]) == 2
    for value in labels.values():
        assert len(value) <= 63
        assert not value or (value[0].isalnum() and value[-1].isalnum() and value.isascii())
    assert manifest["metadata"]["annotations"]["treadle/owner"] == "ann@example.com"


def test_workers_hold_the_devices_and_the_head_runs_the_command() -> None:
    spec = planned(pool_of(**EVERYTHING), workers=3)["spec"]
    assert spec["entrypoint"] == " ".join(COMMAND)
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    worker = group["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert worker["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
    assert "karpenter.sh/capacity-type" not in head["nodeSelector"]
    assert {"name": "B", "value": "$(S)/x"} in head["containers"][0]["env"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_volume_is_mounted_under_its_own_path_in_every_pod_that_runs_the_job(workers: int) -> None:
    pool = pool_of(options={"volumes": {"/mnt/team": "team-files"}})
    spec = planned(pool, workers=workers)["spec"]
    cluster = spec.get("rayClusterSpec")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] if cluster else [spec]
    for pod in (group["template"]["spec"] for group in groups):
        (mount,) = pod["containers"][0]["volumeMounts"]
        (volume,) = pod["volumes"]
        assert mount == {"name": volume["name"], "mountPath": "/mnt/team"}
        assert volume["persistentVolumeClaim"] == {"claimName": "team-files"}


@pytest.mark.parametrize(
    ("fields", "workers", "words"),
    [
        ({"options": {"volumes": {"team": "files"}}}, 1, r"options\.volumes"),
        ({"options": {"volumes": {"/mnt/team": "Team Files"}}}, 1, r"options\.volumes"),
        ({"image": None}, 1, "names no image.*docker/"),
        ({"max_jobs": 2}, 1, "max_jobs.*queue"),
        ({"spot": True}, 1, "whose nodes.*aks, eks, gke, karpenter|karpenter.*aks"),
        ({"options": {"namspace": "a"}}, 1, "no option 'namspace'.*Did you mean 'namespace'"),
        ({"options": {"ttl_s": "soon"}}, 1, r"options\.ttl_s"),
        ({"options": {"nodes": "kops"}}, 1, r"options\.nodes.*karpenter"),
        ({"options": {"secrets": {"TOKEN": "hunter2"}}}, 1, "TOKEN reads SECRET/KEY"),
        ({"accelerator": "trainium", "count": 1}, 1, "Trainium and with Inferentia both.*instance_type"),
        ({"accelerator": "nvidia-l4", "count": 1}, 1, "nvidia-l4.*labelled.*node_selector"),
        ({"env": {"A": "https://ann:hunter2@host"}}, 1, r"env\.A holds credentials.*Secret"),
        ({"env": {"A": "${HOME}"}}, 2, r"env\.A.*HOME.*secrets"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_cluster_could_not_be_told_is_refused(
    fields: dict[str, Any], workers: int, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        planned(pool_of(**fields), workers=workers)
    assert "hunter2" not in str(caught.value)


def test_a_command_that_two_shells_would_spoil_is_refused_for_several_workers() -> None:
    with pytest.raises(UserError, match="can't carry 's3://a b'"):
        KubernetesBackend().plan(JobSpec("a", ("treadle", "s3://a b"), workers=2), pool_of())
    with pytest.raises(UserError, match="too long for a RayJob"):
        KubernetesBackend().plan(JobSpec("a" * 48, COMMAND, workers=2), pool_of())


PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()


def test_the_page_names_every_option_with_its_default() -> None:
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+?) \|", PAGE, re.MULTILINE):
        told |= dict(zip(re.findall(r"`(\w+)`", names), default.split(", "), strict=False))
    fields = KubernetesOptions.model_fields
    assert set(told) == set(fields)
    for name, info in fields.items():
        if isinstance(info.default, int | float | str):
            assert told[name].strip("`") == str(info.default), name


def test_the_pages_examples_are_what_they_say() -> None:
    pool, role = (yaml.safe_load(block) for block in re.findall(r"```yml\n(.*?)```", PAGE, re.DOTALL))
    described = Pool.model_validate({"name": "cluster-gpu", **pool["cluster-gpu"]})
    hold_against_schema(planned(described, max_seconds=described.max_seconds))
    hold_against_schema(role)
