"""What a cluster's objects say about a job, for what no process on this machine can bring about."""

from __future__ import annotations

from typing import Any

import pytest
from treadle.hardware.kubernetes.backend import _new_lines
from treadle.hardware.kubernetes.status import status_of_job, status_of_ray_job

NOW = 1_767_225_600.0
THEN = "2026-01-01T00:00:00Z"


def job_of(reason: str, message: str = "", **spec: Any) -> dict[str, Any]:
    ended = {
        "type": "Failed",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": THEN,
    }
    return {"metadata": {"name": "a"}, "spec": spec, "status": {"conditions": [ended], "startTime": THEN}}


def pod_of(terminated: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    memory = {"limits": {"memory": "2048Mi"}}
    spec = {
        "nodeName": "n1",
        "containers": [{"name": "main", "resources": memory}],
        "activeDeadlineSeconds": 60,
    }
    if terminated:
        state = {"terminated": {"startedAt": THEN, "finishedAt": THEN, **terminated}}
        # A service mesh puts a container of its own beside.
        status["containerStatuses"] = [
            {"name": "proxy", "state": {"terminated": {"exitCode": 0}}},
            {"name": "main", "state": state},
        ]
    return {"metadata": {"name": "a-1"}, "spec": spec, "status": {"phase": "Failed", **status}}


def disrupted(reason: str) -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "going"}]


POLICY = "PodFailurePolicy"


@pytest.mark.parametrize(
    ("job", "pod", "state", "code", "words"),
    [
        (job_of(POLICY), pod_of({"exitCode": 64, "reason": "Error"}), "failed", 64, "exit code 64"),
        (job_of(POLICY), pod_of({"exitCode": 75, "reason": "Error"}), "preempted", 75, "exit code 75"),
        (job_of(POLICY), pod_of({"exitCode": 137, "reason": "OOMKilled"}), "failed", None, "memory_gib, 2 GiB"),
        (job_of(POLICY), pod_of({"exitCode": 137, "reason": "Error"}), "lost", None, "SIGKILL"),
        (job_of(POLICY), pod_of({"exitCode": 139, "reason": "Error"}), "failed", 139, "exit code 139"),
        (
            job_of(POLICY),
            pod_of({"exitCode": 137, "reason": "ContainerStatusUnknown"}),
            "lost",
            None,
            "node was restarted",
        ),
        (
            job_of(POLICY),
            pod_of({"exitCode": 143, "reason": "Error"}, conditions=disrupted("PreemptionByScheduler")),
            "preempted",
            None,
            "PreemptionByScheduler",
        ),
        (
            job_of(POLICY),
            pod_of({"exitCode": 1}, conditions=disrupted("TerminationByKubelet"), reason="Terminated"),
            "preempted",
            None,
            "TerminationByKubelet",
        ),
        (
            job_of(POLICY),
            pod_of({"exitCode": 143, "reason": "Error"}, reason="DeadlineExceeded"),
            "timed_out",
            None,
            "max_seconds, 60 s",
        ),
        (
            job_of(POLICY),
            pod_of(None, reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit"),
            "failed",
            None,
            "ephemeral local storage",
        ),
        (
            job_of(POLICY, "Pod ns/a-1 has condition DisruptionTarget matching FailJob rule at index 0"),
            None,
            "preempted",
            None,
            "DisruptionTarget",
        ),
        (
            job_of(POLICY, "Container main for pod ns/a-1 failed with exit code 65 matching FailJob rule at index 1"),
            None,
            "failed",
            65,
            "exit code 65",
        ),
        (job_of("DeadlineExceeded", activeDeadlineSeconds=9), None, "timed_out", None, "deadline_s, 9 s"),
        (job_of("BackoffLimitExceeded"), None, "lost", None, "pod is gone"),
    ],
    ids=[
        "user error", "asked to end", "out of memory", "killed", "crashed", "node restarted", "preempted",
        "node shut down", "out of time", "disk full", "preempted, pod gone", "refused, pod gone",
        "deadline, pod gone", "nobody knows",
    ],
)  # fmt: skip
def test_why_a_job_failed(
    job: dict[str, Any], pod: dict[str, Any] | None, state: str, code: int | None, words: str
) -> None:
    status = status_of_job(job, pod, NOW + 3600)
    assert (status.state, status.exit_code) == (state, code)
    assert words in status.reason
    assert status.ended == NOW


def test_a_pod_that_is_called_failed_while_it_has_its_grace_is_not_over() -> None:
    job, pod = job_of(POLICY), pod_of(None, reason="DeadlineExceeded")
    pod["spec"]["terminationGracePeriodSeconds"] = 90
    pod["status"]["containerStatuses"] = [{"name": "main", "state": {"running": {"startedAt": THEN}}}]
    assert status_of_job(job, pod, NOW + 60).state == "running"
    assert status_of_job(job, pod, NOW + 600).state == "timed_out"


@pytest.mark.parametrize(
    ("told", "state", "code"),
    [
        ({}, "queued", None),
        ({"jobDeploymentStatus": "Initializing"}, "queued", None),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, "queued", None),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", None),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "succeeded", 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped", None),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
             "message": "Job entrypoint command failed with exit code 75, last available logs"},
            "preempted", 75,
        ),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
             "message": "Job entrypoint command failed with exit code 65, last available logs"},
            "failed", 65,
        ),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
             "message": "Unexpected error occurred: The actor died unexpectedly before finishing this task."},
            "lost", None,
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long"}, "timed_out", None),
        ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "no image"}, "failed", None),
        ({"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}, "lost", None),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "name too long"}, "failed", None),
    ],
    ids=lambda value: value.get("reason", value.get("jobStatus", "new")) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_kuberay_says_of_a_ray_job(told: dict[str, Any], state: str, code: int | None) -> None:
    job = {"metadata": {"name": "a"}, "spec": {}, "status": {"startTime": THEN, "endTime": THEN, **told}}
    status = status_of_ray_job(job)
    assert (status.state, status.exit_code) == (state, code)
    if status.is_over:
        assert (status.started, status.ended) == (NOW, NOW)
        assert status.reason or state == "succeeded"


def test_a_log_is_read_on_within_one_second_and_where_times_cross() -> None:
    lines = [
        "2026-01-01T00:00:01.9Z one",
        "2026-01-01T00:00:02.000000002Z two",
        "2026-01-01T00:00:01.999Z three",
        "2026-01-01T00:00:02.000000002Z four",
        "2026-01-01T00:00:05Z five",
        "2026-01-01T00:00:05+00:00 six",
    ]
    seconds = [1, 2, 1, 2, 5, 5]
    found: list[str] = []
    since = 0
    for there in range(len(lines) + 1):
        first = since >> 32
        window = [line for line, at in zip(lines[:there], seconds, strict=False) if int(NOW) + at >= first]
        new, since = _new_lines("".join(f"{line}\n" for line in window), since, over=False)
        found += new
    assert found == ["one", "two", "three", "four", "five", "six"]


def test_a_line_that_is_not_finished_comes_when_it_is() -> None:
    text = "2026-01-01T00:00:01Z one\n2026-01-01T00:00:01Z tw"
    lines, since = _new_lines(text, 0, over=False)
    assert lines == ["one"]
    assert _new_lines(text + "o", since, over=True)[0] == ["two"]
