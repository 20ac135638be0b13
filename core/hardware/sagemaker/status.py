"""What SageMaker's descriptions of a job mean: pure functions of what `describe_training_job` and the like answer."""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise
from typing import Any

from treadle.hardware.backend import PREEMPTED_EXIT, Json, State, Status
from treadle.hardware.sagemaker.machines import Kind
from treadle.hardware.sagemaker.plan import MEMORY_VARIABLE

_CODE = re.compile(r"exit\s?code:?\s*(\d+)", re.IGNORECASE)
_KILLED_EXIT = 137
_AT_WORK = ("Training", "Uploading", "Updating")
_AGAIN = ("Interrupted", "Restarting")
# What the place, and not the work, did wrong.
_OF_THE_PLACE = ("InternalServerError", "CapacityError", "InsufficientCapacity", "InternalError")


def status_of(kind: Kind, told: Json) -> Status:
    """How a job stands, by its description.

    `billed_seconds` is what SageMaker bills for each machine; processing jobs do not say it. `node` is the instance
    type: a machine has no other name.
    """
    if kind == "training":
        return _training(told)
    title, machines = (
        ("Processing", told.get("ProcessingResources", {}).get("ClusterConfig", {}))
        if kind == "processing"
        else ("Transform", told.get("TransformResources", {}))
    )
    return _without_steps(told, title, _machines(machines))


def _training(told: Json) -> Status:
    state, detail = told["TrainingJobStatus"], told.get("SecondaryStatus", "")
    started, ended = _seconds(told.get("TrainingStartTime")), _seconds(told.get("TrainingEndTime"))
    known = {"node": _machines(told.get("ResourceConfig", {})), "started": started}
    interruptions = _interruptions(told)
    if state in ("InProgress", "Stopping"):
        if detail in _AGAIN or (interruptions and detail not in (*_AT_WORK, "Stopping")):
            return Status(
                state="queued", reason=f"{interruptions}; SageMaker starts it again when it can", **known
            )
        is_running = detail in (*_AT_WORK, "Stopping") and started is not None
        reason = interruptions if is_running else f"{detail}: {_message(told)}".rstrip(": ")
        return Status(state="running" if is_running else "queued", reason=reason, **known)
    ended = ended or _seconds(told.get("LastModifiedTime"))
    found, code, reason = _ended_training(told, state, detail)
    words = "; ".join(part for part in (reason, interruptions) if part)
    billed = told.get("BillableTimeInSeconds")
    return Status(state=found, exit_code=code, reason=words, ended=ended, billed_seconds=billed, **known)


def _ended_training(told: Json, state: str, detail: str) -> tuple[State, int | None, str]:
    limits = told.get("StoppingCondition", {})
    if state == "Completed":
        return "succeeded", 0, ""
    if detail == "MaxRuntimeExceeded":
        return (
            "timed_out",
            None,
            f"it ran longer than max_seconds, {limits.get('MaxRuntimeInSeconds')} s ({detail})",
        )
    if detail == "MaxWaitTimeExceeded":
        wait = limits.get("MaxWaitTimeInSeconds")
        return (
            "timed_out",
            None,
            f"waiting for spot machines and running took max_wait_seconds, {wait} s ({detail})",
        )
    if state == "Stopped":
        return "stopped", None, "cancelled"
    if state == "Deleting":
        return "lost", None, "someone deleted it"
    return _failed(told, _machines(told.get("ResourceConfig", {})))


def _without_steps(told: Json, title: str, node: str) -> Status:
    """Processing jobs and transforms: a status, and no steps on the way."""
    state = told[f"{title}JobStatus"]
    started, ended = _seconds(told.get(f"{title}StartTime")), _seconds(told.get(f"{title}EndTime"))
    if state in ("InProgress", "Stopping"):
        if started is None:
            return Status(state="queued", reason="SageMaker prepares its machine", node=node)
        return Status(state="running", started=started, node=node)
    ended = ended or _seconds(told.get("LastModifiedTime"))
    found, code, reason = _ended_without_steps(told, state, node, started, ended)
    return Status(state=found, exit_code=code, reason=reason, started=started, ended=ended, node=node)


def _ended_without_steps(
    told: Json, state: str, node: str, started: float | None, ended: float | None
) -> tuple[State, int | None, str]:
    limit = told.get("StoppingCondition", {}).get("MaxRuntimeInSeconds")
    if state == "Completed":
        return "succeeded", 0, ""
    if state == "Stopped":
        # They do not say why they were stopped: whoever cancels one at its very last second is told this.
        if limit and started is not None and (ended or 0) - started >= limit:
            return "timed_out", None, f"it ran longer than max_seconds, {limit} s"
        return "stopped", None, "cancelled"
    return _failed(told, node)


def _failed(told: Json, node: str) -> tuple[State, int | None, str]:
    reason = told.get("FailureReason") or told.get("ExitMessage") or "SageMaker gives no reason"
    codes = _CODE.findall(reason)
    code = int(codes[-1]) if codes else None
    if code == PREEMPTED_EXIT:
        return "preempted", code, reason
    if code == _KILLED_EXIT:
        asked = told.get("Environment", {}).get(MEMORY_VARIABLE)
        pool = f", and its pool asks for memory_gib: {asked}" if asked else ""
        return (
            "failed",
            None,
            f"out of memory, as it seems: killed on {node}{pool}. Take a machine with more ({reason})",
        )
    if code is None and any(word in reason for word in _OF_THE_PLACE):
        return "lost", None, reason
    return "failed", code, reason


def _interruptions(told: Json) -> str:
    """What spot interruptions cost so far, in words; empty without one."""
    steps = told.get("SecondaryStatusTransitions", [])
    times = sum(step["Status"] == "Interrupted" for step in steps)
    if not times:
        return ""
    lost = 0.0
    for step, following in pairwise(steps):
        if following["Status"] == "Interrupted" and step["Status"] in _AT_WORK:
            lost += (_seconds(following["StartTime"]) or 0) - (_seconds(step["StartTime"]) or 0)
    often = "once" if times == 1 else f"{times} times"
    return f"its spot machine was taken away {often}, after {lost:.0f} s of work"


def _message(told: Json) -> str:
    steps = told.get("SecondaryStatusTransitions") or [{}]
    return str(steps[-1].get("StatusMessage", ""))


def _machines(config: Json) -> str:
    name, count = config.get("InstanceType", ""), config.get("InstanceCount", 1)
    return f"{count} x {name}" if count > 1 else str(name)


def _seconds(moment: Any) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else None
