"""What a cluster does with its objects: controllers for a Job, its pod and a RayJob, and what befalls a node.

Kubernetes since 1.31, KubeRay since 1.4.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

from kubernetes_api.node import Container
from kubernetes_api.objects import Objects, moment, owners

Json = dict[str, Any]
_TICK_S = 0.02


class Cluster(Objects):
    """Objects that a thread of its own attends to, tick by tick."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.is_full = {"treadle:test"}, False
        self.silent: set[str] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends every process."""
        self.over.set()
        self.thread.join()
        for container in self.containers.values():
            container.kill()
            container.process.wait()

    # What befalls a pod.

    def pod_of(self, job: str) -> Json:
        """The pod itself, of a job."""
        with self.lock:
            return next(
                item
                for (kind, _, _), item in self.objects.items()
                if kind == "Pod" and item["metadata"]["labels"].get("batch.kubernetes.io/job-name") == job
            )

    def reboot(self, job: str) -> None:
        """Its node restarts: afterwards the container is found dead, its log on the disk."""
        with self.lock:
            pod = self.pod_of(job)
            container = self.containers[pod["metadata"]["uid"]]
            container.kill()
            container.process.wait()
            self._terminated(pod, container, 255, "Unknown")

    def remove_node(self, job: str) -> None:
        """Its node is deleted: the garbage collector of pods says so and takes the pod away."""
        with self.lock:
            pod = self.pod_of(job)
            self.containers[pod["metadata"]["uid"]].kill()
            disrupt(pod, "DeletionByPodGC", "PodGC: node no longer exists")
            pod["status"]["phase"] = "Failed"
            pod["metadata"]["deletionTimestamp"] = moment()

    def evict(self, job: str, reason: str = "EvictionByEvictionAPI") -> None:
        """Its node is drained, or a more important pod wants its place."""
        with self.lock:
            pod = self.pod_of(job)
            disrupt(pod, reason, "Eviction API: evicting")
            self.leave(pod, None)

    def cut_off(self, job: str, ago_s: float) -> None:
        """Its node went silent: the pod is to leave since some time, and nobody confirms that it did."""
        with self.lock:
            pod = self.pod_of(job)
            disrupt(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
            pod["metadata"]["deletionTimestamp"] = moment(time.time() - ago_s)
            self.silent.add(pod["metadata"]["uid"])

    # What the cluster does by itself.

    def _run(self) -> None:
        while not self.over.wait(_TICK_S):
            with self.lock:
                for key, item in list(self.objects.items()):
                    if key in self.objects:
                        {"Job": self._job, "Pod": self._pod, "RayJob": self._ray_job}[key[0]](item)

    def _pod(self, pod: Json) -> None:
        status, metadata = pod["status"], pod["metadata"]
        phase = status.setdefault("phase", "Pending")
        leaves = "deletionTimestamp" in metadata
        if metadata["uid"] in self.silent:
            return
        if phase in ("Succeeded", "Failed"):
            owned = any(
                owner in {o["metadata"]["uid"] for o in self.objects.values()} for owner in owners(pod)
            )
            if leaves and (metadata.get("counted") or not owned):
                self.objects.pop(("Pod", metadata["namespace"], metadata["name"]))
            return
        container = self.containers.get(metadata["uid"])
        if container is not None:
            self._attend(pod, container)
        elif leaves:
            status["phase"] = "Failed"
        elif self.is_full:
            told = {
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            }
            status["conditions"] = [{"type": "PodScheduled", "status": "False", **told}]
        else:
            pod["spec"]["nodeName"] = "node-1"
            status["conditions"] = [{"type": "PodScheduled", "status": "True"}]
            status.setdefault("startTime", moment())
            self._start(pod)

    def _start(self, pod: Json) -> None:
        (spec,) = pod["spec"]["containers"]
        if spec["image"] not in self.images:
            text = f'Back-off pulling image "{spec["image"]}": ErrImagePull: not found'
            self._state(pod, {"waiting": {"reason": "ImagePullBackOff", "message": text}})
            return
        env: dict[str, str] = {}
        for each in spec.get("env", []):
            reference = each.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["key"] not in self.secrets.get(reference["name"], {}):
                told = {
                    "reason": "CreateContainerConfigError",
                    "message": f'secret "{reference["name"]}" not found',
                }
                self._state(pod, {"waiting": told})
                return
            env[each["name"]] = (
                self.secrets[reference["name"]][reference["key"]] if reference else each["value"]
            )
        uid = pod["metadata"]["uid"]
        try:
            self.containers[uid] = Container(spec["command"], env, f"/pods/{uid}")
        except OSError:
            text = f'exec: "{spec["command"][0]}": executable file not found in $PATH'
            self._state(pod, {"terminated": {"exitCode": 128, "reason": "StartError", "message": text}})
            pod["status"]["phase"] = "Failed"
            return
        pod["status"]["phase"] = "Running"
        self._state(pod, {"running": {"startedAt": moment(self.containers[uid].started)}})

    def _attend(self, pod: Json, container: Container) -> None:
        (spec,) = pod["spec"]["containers"]
        limit = spec.get("resources", {}).get("limits", {}).get("memory")
        code = container.look(int(limit[:-2]) << 20 if limit else None)
        if code is not None:
            reason = "OOMKilled" if container.out_of_memory else "Error" if code else "Completed"
            self._terminated(pod, container, code, reason)
            return
        deadline = pod["spec"].get("activeDeadlineSeconds")
        if deadline and time.time() - container.started >= deadline:
            text = "Pod was active on the node longer than the specified deadline"
            pod["status"] |= {"reason": "DeadlineExceeded", "message": text}
            container.ask_to_end(pod["spec"].get("terminationGracePeriodSeconds", 30))
        if "deletionTimestamp" in pod["metadata"]:
            container.ask_to_end(pod["metadata"]["deletionGracePeriodSeconds"])

    def _terminated(self, pod: Json, container: Container, code: int, reason: str) -> None:
        times = {"startedAt": moment(container.started), "finishedAt": moment(container.ended or time.time())}
        self._state(pod, {"terminated": {"exitCode": code, "reason": reason, **times}})
        well = code == 0 and "reason" not in pod["status"]
        pod["status"]["phase"] = "Succeeded" if well else "Failed"

    def _state(self, pod: Json, state: Json) -> None:
        name = pod["spec"]["containers"][0]["name"]
        pod["status"]["containerStatuses"] = [{"name": name, "state": state, "restartCount": 0}]

    def _job(self, job: Json) -> None:
        status, spec, metadata = job["status"], job["spec"], job["metadata"]
        if finished := [c for c in status.get("conditions", ()) if c["type"] in ("Complete", "Failed")]:
            ended = datetime.fromisoformat(finished[0]["lastTransitionTime"]).timestamp()
            if time.time() - ended > spec.get("ttlSecondsAfterFinished", float("inf")):
                self.delete(
                    "Job", metadata["namespace"], metadata["name"], {"propagationPolicy": "Foreground"}
                )
            return
        pods = [pod for pod in self.objects.values() if metadata["uid"] in owners(pod)]
        if spec.get("suspend"):
            status.pop("startTime", None)
            for pod in pods:
                self.leave(pod, None)
                pod["metadata"]["counted"] = True
            return
        pods = [pod for pod in pods if not pod["metadata"].get("counted")]
        status.setdefault("startTime", moment())
        began = datetime.fromisoformat(status["startTime"]).timestamp()
        if time.time() - began > spec.get("activeDeadlineSeconds", float("inf")):
            for pod in pods:
                self.leave(pod, None)
            if all(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods):
                text = "Job was active longer than specified deadline"
                self._finish(job, pods, "Failed", reason="DeadlineExceeded", message=text)
            return
        if not pods:
            self._make_pod(job)
        for pod in pods:
            if pod["status"].get("phase") == "Succeeded":
                status["completionTime"] = moment()
                self._finish(job, pods, "Complete")
            elif pod["status"].get("phase") == "Failed":
                self._finish(job, pods, "Failed", **judged(job, pod))

    def _make_pod(self, job: Json) -> None:
        metadata = job["metadata"]
        template = copy.deepcopy(job["spec"]["template"])
        labels = {"batch.kubernetes.io/job-name": metadata["name"], "job-name": metadata["name"]}
        owner = {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        name = f"{metadata['name']}-{random.randbytes(3).hex()[:5]}"
        pod = {
            "kind": "Pod",
            "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": template["spec"],
        }
        pod["metadata"]["labels"] = template.get("metadata", {}).get("labels", {}) | labels
        self.create("Pod", metadata["namespace"], pod)

    def _finish(self, job: Json, pods: list[Json], kind: str, **told: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": moment(), **told}
        job["status"].setdefault("conditions", []).append(condition)
        for pod in pods:
            pod["metadata"]["counted"] = True

    def _ray_job(self, job: Json) -> None:
        """The submitter's Job runs the command, in the environment of the head."""
        spec, status, metadata = job["spec"], job["status"], job["metadata"]
        if spec.get("suspend") or status.get("jobDeploymentStatus") in ("Complete", "Failed"):
            return
        key = ("Job", metadata["namespace"], metadata["name"])
        if key not in self.objects:
            template = copy.deepcopy(spec["submitterPodTemplate"])
            head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            template["spec"]["containers"][0] |= {
                "command": ["bash", "-c", spec["entrypoint"]],
                "env": head["env"],
            }
            owner = {"kind": "RayJob", "name": metadata["name"], "uid": metadata["uid"]}
            made = {"kind": "Job", "metadata": {"name": metadata["name"], "ownerReferences": [owner]}}
            self.create(
                "Job", metadata["namespace"], {**made, "spec": {"backoffLimit": 0, "template": template}}
            )
            status |= {"jobDeploymentStatus": "Initializing", "startTime": moment()}
            return
        with suppress(StopIteration):
            pod = self.pod_of(metadata["name"])
            container = self.containers.get(pod["metadata"]["uid"])
            if container is None:
                return
            status |= {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
            status["rayJobInfo"] = {"startTime": moment(container.started)}
            code = container.look(None)
            if code is not None:
                text = (
                    f"Job entrypoint command failed with exit code {code}, last available logs (truncated):"
                )
                status |= {
                    "jobStatus": "FAILED" if code else "SUCCEEDED",
                    "message": text if code else "Job finished",
                }
                status |= {"jobDeploymentStatus": "Failed" if code else "Complete", "endTime": moment()}
                if code:
                    status["reason"] = "AppFailed"
                status["rayJobInfo"]["endTime"] = moment()


def judged(job: Json, pod: Json) -> dict[str, str]:
    """Why a failed pod fails its Job, by the Job's rules."""
    place = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    states = [each["state"].get("terminated") for each in pod["status"].get("containerStatuses", ())]
    codes = [state["exitCode"] for state in states if state]
    for number, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", ())):
        asked = {each["type"] for each in rule.get("onPodConditions", ())}
        holds = {each["type"] for each in pod["status"].get("conditions", ()) if each["status"] == "True"}
        if asked & holds:
            text = f"Pod {place} has condition {min(asked & holds)} matching FailJob rule at index {number}"
            return {"reason": "PodFailurePolicy", "message": text}
        wanted = rule.get("onExitCodes")
        if wanted and any(
            (code in wanted["values"]) == (wanted["operator"] == "In") and code for code in codes
        ):
            text = f"Container main for pod {place} failed with exit code {codes[0]} matching FailJob rule"
            text += f" at index {number}"
            return {"reason": "PodFailurePolicy", "message": text}
    return {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}


def disrupt(pod: Json, reason: str, message: str) -> None:
    """Says on a pod that the cluster, and not the program, ends it."""
    told = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
    pod["status"].setdefault("conditions", []).append(told)
