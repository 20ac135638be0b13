"""What Ray tells of a job, in treadle's words: pure functions of Ray's answer and the job's log."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from treadle.hardware.backend import PREEMPTED_EXIT, Json, State, Status
from treadle.hardware.ray.node import MARK

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# What Ray calls it when whoever watched the command is gone, and the command with it.
_LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
_KILLED = (137, 143)


@dataclass(frozen=True, slots=True)
class Told:
    """What Ray tells of a job.

    Attributes:
        info: The answer to `GET /api/jobs/NAME`.
        log: The job's log, whole; empty where Ray can't give it.
        withdrawn: Why the job was taken back while it waited: `state` and `reason`; None when it was not.
    """

    info: Json
    log: str
    withdrawn: dict[str, str] | None = None


def is_over(info: Json) -> bool:
    """Whether Ray is done with a job."""
    return info["status"] in _ENDED


def status_of(name: str, told: Told) -> Status:
    """How a job stands. Once it is over, its own last word counts more than Ray's, who knows no limits."""
    marks = marks_in(name, told.log)
    ended = next((mark for mark in reversed(marks) if "state" in mark), None)
    if ended is not None and is_over(told.info):
        return _last_word(ended, told.info)
    began = next((mark for mark in marks if "began" in mark), {})
    node = began.get("node") or (told.info.get("driver_node_id") or "")[:12]
    started = began.get("began")
    ray = told.info["status"]
    if ray == "PENDING":
        return Status(state="queued", reason=told.info.get("message") or "it waits for its turn")
    if ray not in _ENDED:
        return Status(state="running", started=started, node=node)
    state, code, reason = _ending(told)
    end = told.info.get("end_time")
    return Status(
        state=state,
        exit_code=code,
        reason=reason,
        started=started,
        ended=end / 1000 if end else None,
        node=node,
    )


def _last_word(ended: Json, info: Json) -> Status:
    status = Status.model_validate({key: ended[key] for key in ended if key in Status.model_fields})
    if info["status"] == "STOPPED" and status.state in ("stopped", "preempted", "succeeded"):
        # A signal asked it to end, and Ray alone knows that somebody cancelled it.
        return status.model_copy(update={"state": "stopped", "reason": "cancelled"})
    if status.state == "stopped":
        return status.model_copy(update={"state": "preempted", "reason": "its machine asked it to end"})
    return status


def _ending(told: Told) -> tuple[State, int | None, str]:
    """State, exit code and reason of a job that left no last word."""
    info = told.info
    if told.withdrawn:
        return told.withdrawn["state"], None, told.withdrawn["reason"]  # type: ignore[return-value]
    message = " ".join(str(info.get("message") or "").split())
    code = info.get("driver_exit_code")
    if info["status"] == "STOPPED":
        return "stopped", None, "cancelled"
    if info["status"] == "SUCCEEDED":
        return "succeeded", 0, ""
    if info.get("error_type") in _LOST:
        return "lost", None, f"its machine or Ray's process for it is gone: {message[:300]}"
    if code is None:
        return "failed", None, f"Ray could not start it: {message[:500]}"
    if code < 0 or code in _KILLED:
        return (
            "lost",
            None,
            f"what watched the command was killed (exit code {code}), as when memory runs out",
        )
    state: State = "preempted" if code == PREEMPTED_EXIT else "failed"
    last = next((line for line in reversed(told.log.splitlines()) if line.strip()), "")
    return state, code, f"exit code {code}: {last.strip()[:300]}"


def marks_in(name: str, log: str) -> list[Json]:
    """What the job's process on the node said of it, in order."""
    found: list[Json] = []
    for match in _marks(name).finditer(log):
        try:
            content: Any = json.loads(match[1])
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def lines_of(name: str, told: Told) -> list[str]:
    """The lines that the command printed: without Ray's, without the marks, without a last one that is unfinished."""
    over = is_over(told.info)
    log, begins = told.log, f"{MARK} {name} "
    if begins in log:
        log = log[log.index(begins) :]
    elif not over:
        return []
    log = re.sub(rf"Running entrypoint for job {re.escape(name)}: .*\n", "", log)
    log = _marks(name).sub("", log)
    if not over:
        log = log[: log.rfind("\n") + 1]
    # A progress bar overwrites its line; the last state is the line.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in log.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(f'{MARK} {name} ')}(\{{.*\}})\n")
