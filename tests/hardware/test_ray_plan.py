"""What the Ray backend asks of a cluster, and how it reads what Ray tells: without any cluster."""

from __future__ import annotations

import http.server
import json
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from treadle.errors import NotSent, Transient, UserError
from treadle.hardware.backend import JobSpec
from treadle.hardware.backends import get_backend
from treadle.hardware.pools import Pool
from treadle.hardware.ray.backend import RayBackend
from treadle.hardware.ray.http import remote
from treadle.hardware.ray.words import Told, lines_of, marks_in, status_of

FAR = {"address": "http://head:8265"}
ENDED = {
    "state": "timed_out",
    "exit_code": 75,
    "reason": "too long",
    "started": 2.0,
    "ended": 3.0,
    "node": "n",
}


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayBackend:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return RayBackend(tmp_path)


def planned(backend: RayBackend, pool: dict[str, Any], **spec: Any) -> dict[str, Any]:
    made = Pool(name="p", backend="ray", **pool)
    job = JobSpec(
        "j", (sys.executable, "-P", "-m", "treadle", "job", "u"), resources=made.resources(), **spec
    )
    return backend.plan(job, made)


def request_in(plan: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(shlex.split(plan["submission"]["entrypoint"])[-1])
    return request


def test_the_backend_is_known_by_its_name() -> None:
    assert get_backend("ray").name == "ray"


@pytest.mark.parametrize(
    ("pool", "asked"),
    [
        ({}, {}),
        ({"cpu": 2, "memory_gib": 1.5}, {"num_cpus": 2, "memory": 1610612736}),
        ({"accelerator": "gpu", "count": 2}, {"num_gpus": 2}),
        (
            {"accelerator": "nvidia-l4", "count": 1},
            {"num_gpus": 1, "resources": {"accelerator_type:L4": 0.001}},
        ),
        (
            {"accelerator": "trainium", "count": 2, "options": {"cores_per_device": 2}},
            {"resources": {"neuron_cores": 4}},
        ),
        (
            {"options": {"resources": {"slot": 1}, "labels": {"zone": "a"}}},
            {"resources": {"slot": 1.0}, "label_selector": {"zone": "a"}},
        ),
    ],
    ids=["nothing", "cores and memory", "gpus", "a model of gpu", "neuron", "resources of one's own"],
)
def test_ray_sets_aside_what_the_pool_gives(
    backend: RayBackend, pool: dict[str, Any], asked: dict[str, Any]
) -> None:
    submission = planned(backend, pool)["submission"]
    found = {key: value for key, value in submission.items() if key.startswith("entrypoint_")}
    assert found == {f"entrypoint_{key}": value for key, value in asked.items()}


def test_another_machine_runs_its_own_python(backend: RayBackend) -> None:
    for pool, python in (
        ({}, sys.executable),
        ({"options": FAR}, "python"),
        ({"options": FAR, "python": "/opt/venv/bin/python"}, "/opt/venv/bin/python"),
    ):
        plan = planned(backend, pool)
        assert request_in(plan)["command"][0] == python
        assert shlex.split(plan["submission"]["entrypoint"])[:2] == ["exec", python]


def test_variables_go_where_the_work_is(backend: RayBackend) -> None:
    pool = {"env": {"A": "<${HOME}>"}, "cpu": 2, "memory_gib": 2, "options": FAR}
    alone = planned(backend, pool)
    assert request_in(alone)["env"] == {"A": "<${HOME}>"}
    assert "A" not in alone["submission"]["runtime_env"]["env_vars"]
    spread = planned(backend, pool, workers=3)
    told = spread["submission"]["runtime_env"]["env_vars"]
    assert told["A"] == "<${HOME}>"
    assert json.loads(told["TREADLE_RAY_WORKER"]) == {"CPU": 2, "memory": 2 * 2**30}
    assert not [key for key in spread["submission"] if key.startswith("entrypoint_")]


def test_rays_own_kill_comes_after_the_grace(backend: RayBackend) -> None:
    told = planned(backend, {}, grace_s=60)["submission"]["runtime_env"]["env_vars"]
    assert int(told["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "treadle:1"}, "image"),
        ({"spot": True}, "spot"),
        ({"roles": {"default": "r"}}, "roles"),
        ({"max_jobs": 2}, "max_jobs.*slot: 1"),
        ({"options": {"adress": "x"}}, "adress.*address"),
        ({"options": {"pending_s": "long"}}, "options.pending_s is 'long'; write a number of seconds"),
        ({"options": {"resources": {"slot": "one"}}}, "options.resources.*slot: 1"),
        ({"options": {"labels": ["west"]}}, "options.labels.*zone: west"),
        ({"accelerator": "inferentia", "count": 1}, "cores_per_device"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_does_not_have_is_refused(backend: RayBackend, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(backend, changes)


def test_an_address_that_is_no_dashboards_is_refused() -> None:
    for address in ("ray://head:10001", "head:6379", "auto"):
        with pytest.raises(UserError, match="http://HEAD:8265"):
            remote(address)


def test_a_cluster_that_can_not_be_reached_can_be_asked_again() -> None:
    with pytest.raises(Transient, match=r"127\.0\.0\.1:9.*options\.address"):
        remote("http://127.0.0.1:9").get("a")


class OnceThere(http.server.BaseHTTPRequestHandler):
    """Knows no job; takes a request, fails at it, and is gone."""

    def do_GET(self) -> None:
        self.send_error(404, "x does not exist")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.server_close()
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


def test_a_request_counts_as_not_sent_only_where_no_connection_came_about() -> None:
    with pytest.raises(NotSent):
        remote("http://127.0.0.1:9").submit({"submission_id": "a"})
    with pytest.raises(NotSent):
        remote("http://head.invalid:8265").submit({"submission_id": "a"})
    server = http.server.HTTPServer(("127.0.0.1", 0), OnceThere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(Transient) as told:
            remote(f"http://127.0.0.1:{server.server_port}").submit({"submission_id": "a"})
    finally:
        server.shutdown()
    assert "refused" in str(told.value), "the question after it was"
    assert not isinstance(told.value, NotSent), "the request itself may have arrived"


def info(status: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "end_time": 4000, **more}


@pytest.mark.parametrize(
    ("ray", "state", "words"),
    [
        (info("PENDING", message="waiting"), "queued", "waiting"),
        (info("RUNNING"), "running", ""),
        (info("SUCCEEDED"), "succeeded", ""),
        (info("STOPPED"), "stopped", "cancelled"),
        (info("FAILED", driver_exit_code=75), "preempted", "75"),
        (info("FAILED", driver_exit_code=127), "failed", "python: not found"),
        (info("FAILED", driver_exit_code=-9), "lost", "-9"),
        (info("FAILED", driver_exit_code=137), "lost", "137"),
        (info("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message="node died"), "lost", "node died"),
        (info("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message="no pip"), "failed", "no pip"),
        (info("FAILED", error_type="JOB_SUPERVISOR_ACTOR_START_TIMEOUT", message="900"), "failed", "900"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ray_says_of_a_job_without_a_last_word(ray: dict[str, Any], state: str, words: str) -> None:
    status = status_of("j", Told(ray, "sh: python: not found\n"))
    assert status.state == state
    assert words in status.reason


def test_a_jobs_last_word_counts_more_than_rays() -> None:
    log = f"::treadle j {json.dumps(ENDED)}\n"
    status = status_of("j", Told(info("FAILED", driver_exit_code=75), log))
    assert status.model_dump(exclude={"billed_seconds"}) == ENDED
    assert status_of("j", Told(info("RUNNING"), log)).state == "running"


def test_a_job_that_its_machine_ends_may_go_on_elsewhere_and_one_that_was_cancelled_not() -> None:
    for state in ("stopped", "preempted"):
        log = f"::treadle j {json.dumps({**ENDED, 'state': state})}\n"
        states = {ray: status_of("j", Told(info(ray), log)).state for ray in ("RUNNING", "STOPPED", "FAILED")}
        assert states == {"RUNNING": "running", "STOPPED": "stopped", "FAILED": "preempted"}


def test_a_job_that_was_taken_back_says_why() -> None:
    ray = info("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED")
    status = status_of("j", Told(ray, "", {"state": "stopped", "reason": "cancelled while it waited"}))
    assert (status.state, status.reason, status.started) == ("stopped", "cancelled while it waited", None)


def test_only_what_the_command_printed_is_its_log() -> None:
    log = (
        "2026 INFO Runtime env is setting up.\n"
        '::treadle j {"here": 1}\n'
        "Running entrypoint for job j: exec python\n"
        'one\n10%::treadle j {"began": 2.0, "node": "n"}\n\r50%\r100%\r\n'
        "::treadle other {}\nthree"
    )
    assert [next(iter(mark)) for mark in marks_in("j", log)] == ["here", "began"]
    lines = ["one", "100%", "::treadle other {}"]
    assert lines_of("j", Told(info("RUNNING"), log)) == lines
    assert lines_of("j", Told(info("FAILED"), f"{log}::treadle j {json.dumps(ENDED)}\n")) == [*lines, "three"]
    assert status_of("j", Told(info("RUNNING"), log)).started == 2.0
