"""What a cluster's objects say about a job. Pure: objects in, a Status out.

    RayJob ─► its own word                    Job ─► what treadle wrote on it, the pod, the Job's own word

A job is over when its Job is: only then do all its processes lie still. Why it is over stands in the pod first; the Job
keeps the short form when the pod is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime

from treadle.hardware.backend import PREEMPTED_EXIT, Json, State, Status
from treadle.hardware.kubernetes.manifest import CONTAINER, ENDED, PENDING_S

# The cluster tries again for ever, at growing intervals, what mostly never helps.
_STUCK = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "RunContainerError",
}
_NEVER_RAN = {"StartError", "ContainerCannotRun"}
_VANISHED = {"ContainerStatusUnknown", "Unknown"}
_SILENT_S, _SLACK_S = 120.0, 30.0


def seconds_of(text: str | None) -> float | None:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(text).timestamp() if text else None


def condition_of(conditions: Sequence[Json] | None, kind: str) -> Json | None:
    """The condition of a kind, if it holds."""
    return next((c for c in conditions or () if c["type"] == kind and c["status"] == "True"), None)


def job_end(job: Json) -> Json | None:
    """The condition that says that a Job is over; None while it is not."""
    conditions = job.get("status", {}).get("conditions")
    return condition_of(conditions, "Complete") or condition_of(conditions, "Failed")


def written_end(job: Json) -> Status | None:
    """How treadle itself ended it, as it wrote on the Job: `cancel`, or a wait that led nowhere."""
    text = job["metadata"].get("annotations", {}).get(ENDED)
    return Status.model_validate(json.loads(text)) if text else None


def container_of(pod: Json | None) -> Json:
    """The state of the job's own container: `waiting`, `running` or `terminated`; empty before there is one."""
    for found in (pod or {}).get("status", {}).get("containerStatuses", ()):
        if found["name"] == CONTAINER:
            state: Json = found.get("state") or {}
            return state
    return {}


def status_of_job(job: Json, pod: Json | None, now: float) -> Status:
    """How a Job stands, with its newest pod."""
    end, written = job_end(job), written_end(job)
    if end is not None and _still_ends(pod, end, now):
        end = None
    terminated = container_of(pod).get("terminated") or {}
    running = container_of(pod).get("running") or {}
    started = seconds_of(terminated.get("startedAt") or running.get("startedAt"))
    node = (pod or {}).get("spec", {}).get("nodeName", "")
    if written is not None and (end is not None or written.state != "stopped"):
        ended = seconds_of(terminated.get("finishedAt")) or (end and seconds_of(end["lastTransitionTime"]))
        return written.model_copy(update={"started": started, "ended": ended or written.ended, "node": node})
    if end is None:
        if running or terminated:
            return Status(state="running", started=started, node=node)
        return Status(state="queued", reason=_why_it_waits(job, pod), node=node)
    state, reason, code = (
        ("succeeded", "", 0) if end["type"] == "Complete" else _why_it_failed(job, pod, end, terminated)
    )
    times = job["status"]
    return Status(
        state=state,
        reason=reason,
        exit_code=code,
        started=started if terminated else seconds_of(times.get("startTime")),
        ended=seconds_of(
            terminated.get("finishedAt") or times.get("completionTime") or end["lastTransitionTime"]
        ),
        node=node,
    )


def _still_ends(pod: Json | None, end: Json, now: float) -> bool:
    """Whether the container has its grace yet: some nodes call a pod failed before they ended it."""
    if pod is None or "running" not in container_of(pod):
        return False
    grace_s = float(pod["spec"].get("terminationGracePeriodSeconds", 30))
    return now < (seconds_of(end["lastTransitionTime"]) or 0) + grace_s + _SLACK_S


def _why_it_waits(job: Json, pod: Json | None) -> str:
    if job["spec"].get("suspend"):
        queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        return f"the queue {queue} has not let it in" if queue else "it is suspended"
    if pod is None:
        return "it has no pod yet"
    waiting = container_of(pod).get("waiting") or {}
    if waiting:
        return _joined(waiting.get("reason"), waiting.get("message"))
    for found in pod.get("status", {}).get("conditions", ()):
        if found["type"] == "PodScheduled" and found["status"] == "False":
            return _joined(found.get("reason"), found.get("message"))
    return "its pod starts"


def _joined(reason: str | None, message: str | None) -> str:
    return ": ".join(words for words in (reason, message) if words)


def hopeless(job: Json, pod: Json | None, now: float) -> Status | None:
    """The end that a job has to be given: it can't start, or its node went silent; None where one may go on waiting."""
    if pod is None or job_end(job) is not None or written_end(job) is not None:
        return None
    node = pod.get("spec", {}).get("nodeName", "")
    # Its time to go was due long ago, and the node has not said that it went.
    leaving = seconds_of(pod["metadata"].get("deletionTimestamp"))
    if leaving is not None and node and now - leaving > _SILENT_S:
        return Status(state="lost", reason=f"its node {node} does not answer", ended=now, node=node)
    waiting = container_of(pod).get("waiting") or {}
    limit_s = float(job["metadata"].get("annotations", {}).get(PENDING_S, 600))
    since = seconds_of(pod["status"].get("startTime") or pod["metadata"].get("creationTimestamp")) or now
    if waiting.get("reason") in _STUCK and now - since > limit_s:
        why = _joined(waiting["reason"], waiting.get("message"))
        reason = f"it could not start within pending_s, {limit_s:g} s: {why}"
        return Status(state="failed", reason=reason, ended=now, node=node)
    return None


def _why_it_failed(job: Json, pod: Json | None, end: Json, terminated: Json) -> tuple[State, str, int | None]:
    """The state, the words, and the exit code where the command ended by itself."""
    place = (pod or {}).get("status", {})
    said = str(end.get("message", ""))
    code = terminated.get("exitCode")
    if place.get("reason") == "DeadlineExceeded":
        limit = ((pod or {}).get("spec") or {}).get("activeDeadlineSeconds")
        return "timed_out", f"it ran longer than max_seconds, {limit} s", None
    if end.get("reason") == "DeadlineExceeded":
        limit = job["spec"].get("activeDeadlineSeconds")
        return (
            "timed_out",
            f"from its start, waiting included, it took longer than deadline_s, {limit} s",
            None,
        )
    if terminated.get("reason") == "OOMKilled":
        return "failed", f"out of memory: it used more than memory_gib, {_memory_gib(pod)} GiB", None
    disrupted = condition_of(place.get("conditions"), "DisruptionTarget")
    if disrupted is not None:
        told = _joined(disrupted.get("reason"), disrupted.get("message"))
        return "preempted", told, code if code == PREEMPTED_EXIT else None
    if "condition DisruptionTarget" in said:
        return "preempted", said, None
    if terminated.get("reason") in _VANISHED:
        return (
            "lost",
            _joined(terminated["reason"], terminated.get("message") or "its node was restarted"),
            None,
        )
    if terminated.get("reason") in _NEVER_RAN:
        return "failed", _joined(terminated["reason"], terminated.get("message")), None
    if place.get("reason"):
        return "failed", _joined(place["reason"], place.get("message")), code
    if code is None:
        found = re.search(r"failed with exit code (\d+)", said)
        code = int(found[1]) if found else None
    if code is None:
        return (
            "lost",
            f"its pod is gone, and nobody says how it ended: {_joined(end.get('reason'), said)}",
            None,
        )
    return by_exit_code(code)


def by_exit_code(code: int) -> tuple[State, str, int | None]:
    """What a code other than 0 means. 137 and 143: someone else sent SIGKILL or SIGTERM."""
    if code in (137, 143):
        name = "SIGKILL" if code == 137 else "SIGTERM"
        return "lost", f"killed by {name} from outside", None
    return "preempted" if code == PREEMPTED_EXIT else "failed", f"exit code {code}", code


def _memory_gib(pod: Json | None) -> str:
    for container in (pod or {}).get("spec", {}).get("containers", ()):
        limit = str(container.get("resources", {}).get("limits", {}).get("memory", ""))
        if container["name"] == CONTAINER and limit.endswith("Mi"):
            return f"{int(limit[:-2]) / 1024:g}"
    return "the limit of its namespace, in"


_RAY_ENDS = ("Complete", "Failed", "ValidationFailed")
_NO_ANSWER = {"JobStatusCheckTimeoutExceeded", "JobDeploymentStatusTransitionGracePeriodExceeded"}


def status_of_ray_job(job: Json) -> Status:
    """How a RayJob stands, in KubeRay's words."""
    told = job.get("status") or {}
    stage, state = told.get("jobDeploymentStatus", ""), told.get("jobStatus", "")
    started = seconds_of((told.get("rayJobInfo") or {}).get("startTime"))
    if stage not in _RAY_ENDS:
        if state == "RUNNING":
            return Status(state="running", started=started or seconds_of(told.get("startTime")))
        if job["spec"].get("suspend"):
            return Status(state="queued", reason=_why_it_waits(job, None))
        return Status(state="queued", reason=_joined(stage or "New", told.get("message")))
    ended = seconds_of((told.get("rayJobInfo") or {}).get("endTime") or told.get("endTime"))
    times = {"started": started or seconds_of(told.get("startTime")), "ended": ended}
    message, reason = str(told.get("message", "")), str(told.get("reason", ""))
    if state == "SUCCEEDED":
        return Status(state="succeeded", exit_code=0, **times)
    if state == "STOPPED":
        return Status(state="stopped", reason=message or "stopped in Ray", **times)
    if reason == "DeadlineExceeded":
        return Status(state="timed_out", reason=f"it ran longer than max_seconds: {message}", **times)
    if reason in _NO_ANSWER:
        return Status(state="lost", reason=_joined(reason, message), **times)
    found = re.search(r"exit code (-?\d+)", message)
    if found and int(found[1]) > 0:
        end, words, code = by_exit_code(int(found[1]))
        return Status(state=end, reason=words, exit_code=code, **times)
    if found or "actor died" in message or "node" in message.lower():
        return Status(state="lost", reason=_joined(reason, message[:500]), **times)
    return Status(state="failed", reason=_joined(reason, message[:500]) or "KubeRay gives no reason", **times)
