"""The local backend: the conformance suite, and what only a process on this machine can show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from treadle.errors import UserError
from treadle.hardware.backend import Backend, Handle, JobSpec, Status
from treadle.hardware.local import LocalBackend
from treadle.hardware.pools import Pool
from treadle.testing.backend import BackendSuite


def supervisor_of(handle: Handle) -> int:
    pid: int = json.loads((Path(handle.data["folder"]) / "began").read_text())["pid"]
    return pid


def runs(word: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


class TestLocalBackend(BackendSuite):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> str:
        return (
            "from pathlib import Path\n"
            "from treadle.hardware.local import LocalBackend\n"
            f"backend = LocalBackend(Path({str(tmp_path / 'jobs')!r}))"
        )

    @pytest.fixture
    def lose(self) -> Callable[[Handle], None]:
        return lambda handle: os.kill(supervisor_of(handle), signal.SIGKILL)

    @pytest.fixture
    def left_behind(self) -> Callable[[str], bool]:
        return runs

    @pytest.mark.parametrize(
        ("number", "state"),
        [(signal.SIGKILL, "lost"), (signal.SIGTERM, "lost"), (signal.SIGSEGV, "failed")],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_a_command_killed_from_outside_is_worth_another_attempt_and_a_crash_is_not(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
        number: signal.Signals,
        state: str,
    ) -> None:
        handle = backend.submit(job(f"kill -{int(number)} $$"), pool)
        status = over(handle)
        assert (status.state, status.exit_code) == (state, None)
        assert number.name in status.reason
        assert status.is_worth_another_attempt == (state == "lost")

    def test_a_machine_that_shuts_down_preempts(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
    ) -> None:
        handle = backend.submit(job("trap 'echo asked; exit 1' TERM; echo up; sleep 60 & wait"), pool)
        self.said(backend, handle, "up")
        os.kill(supervisor_of(handle), signal.SIGTERM)
        status = over(handle)
        assert status.state == "preempted"
        assert "SIGTERM" in status.reason
        assert "asked" in backend.logs(handle, 0)[0]

    def test_jobs_run_in_the_order_in_which_they_came(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
    ) -> None:
        narrow = pool.model_copy(update={"max_jobs": 1})
        first = backend.submit(job("echo up; sleep 300"), narrow)
        self.said(backend, first, "up")
        handles = [backend.submit(job("exit 0"), narrow) for _ in range(6)]
        backend.cancel(first, 1)
        started = [over(handle).started or 0 for handle in handles]
        assert started == sorted(started)

    def test_a_waiting_job_that_was_killed_holds_up_nobody(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
    ) -> None:
        narrow = pool.model_copy(update={"max_jobs": 1})
        first = backend.submit(job("echo up; sleep 300"), narrow)
        self.said(backend, first, "up")
        second, third = (backend.submit(job("exit 0"), narrow) for _ in range(2))
        os.kill(supervisor_of(second), signal.SIGKILL)
        os.kill(supervisor_of(first), signal.SIGKILL)
        assert over(third).state == "succeeded"
        assert over(second).state == "lost"

    def test_the_job_outlives_a_submitter_that_is_killed(
        self, backend: Backend, pool: Pool, opener: str, over: Callable[[Handle], Status]
    ) -> None:
        program = (
            f"{opener}\nimport os, signal\n"
            "from treadle.hardware.backend import JobSpec\nfrom treadle.hardware.pools import Pool\n"
            "backend.submit(JobSpec('outlives', ('sh', '-c', 'sleep 1; echo done')), Pool(name='suite'))\n"
            "os.killpg(0, signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", program], check=False, start_new_session=True)
        assert done.returncode == -signal.SIGKILL
        handle = backend.find("outlives", pool)
        assert handle is not None
        assert over(handle).state == "succeeded"
        assert backend.logs(handle, 0)[0] == ["done"]

    def test_each_running_job_has_devices_of_its_own(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        gpus = pool.model_copy(
            update={"accelerator": "gpu", "count": 2, "max_jobs": 2, "options": {"devices": [0, 1, 4, 5]}}
        )
        script = "echo $CUDA_VISIBLE_DEVICES; sleep 1"
        handles = [backend.submit(job(script, resources=gpus.resources()), gpus) for _ in range(2)]
        for handle in handles:
            over(handle)
        assert sorted(backend.logs(handle, 0)[0][0] for handle in handles) == ["0,1", "4,5"]

    def test_a_neuron_job_has_the_cores_of_its_devices(self, backend: Backend, pool: Pool) -> None:
        chips = pool.model_copy(
            update={"accelerator": "trainium", "count": 2, "options": {"cores_per_device": 2}}
        )
        plan = backend.plan(JobSpec("a", ("true",), resources=chips.resources()), chips)
        assert plan["devices"] == {"NEURON_RT_VISIBLE_CORES": ["0,1,2,3"]}
        assert plan["slots"] == 1
        with pytest.raises(UserError, match="how many NeuronCores"):
            backend.plan(
                JobSpec("a", ("true",), resources=chips.resources()), chips.model_copy(update={"options": {}})
            )

    def test_a_job_without_accelerators_sees_no_gpu(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        handle = backend.submit(job('echo "<$CUDA_VISIBLE_DEVICES>"'), pool)
        over(handle)
        assert backend.logs(handle, 0)[0] == ["<>"]

    def test_a_job_gets_the_cores_that_its_pool_gives(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        one = pool.model_copy(update={"cpu": 1.0})
        handle = backend.submit(
            JobSpec("cores", (sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"),
                    resources=one.resources()), one)  # fmt: skip
        over(handle)
        assert backend.logs(handle, 0)[0] == ["1"]

    def test_a_secret_of_the_environment_lies_in_no_file(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
        handle = backend.submit(job("test ${#TOKEN} = 14", env={"TOKEN": "${SOME_TOKEN}"}), pool)
        assert over(handle).state == "succeeded"
        folder = Path(handle.data["folder"])
        assert all(b"hunter2" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert folder.stat().st_mode & 0o077 == 0

    def test_a_variable_that_is_not_set_fails_by_its_name(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        status = over(backend.submit(job("exit 0", env={"A": "${NOT_SET_ANYWHERE}"}), pool))
        assert status.state == "failed"
        assert "NOT_SET_ANYWHERE" in status.reason

    def test_another_interpreter_is_not_led_astray_by_the_callers_libraries(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
        for python, seen in ((None, "/somewhere/else"), (sys.executable, "")):
            handle = backend.submit(job("echo $PYTHONPATH"), pool.model_copy(update={"python": python}))
            over(handle)
            assert backend.logs(handle, 0)[0] == [seen]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"image": "treadle:1"}, "runs none"),
            ({"spot": True}, "spot"),
            ({"options": {"devcies": [0]}}, "devcies.*devices"),
            ({"options": {"grace_s": "soon"}}, "options.grace_s is 'soon'; write a number of seconds"),
            ({"options": {"grace_s": -1}}, "options.grace_s is -1"),
            ({"options": {"devices": 3}}, r"options.devices is 3; write a list.*\[0, 1\]"),
            ({"options": {"devices": [-1]}}, "options.devices"),
            ({"cpu": 4096.0}, "4096 cores"),
            ({"cpu": 0.5}, "whole ones"),
            (
                {"accelerator": "gpu", "count": 2, "options": {"devices": [0]}},
                "1 device; 1 job with 2 each needs 2",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_it_does_not_have_is_refused(
        self, backend: Backend, pool: Pool, changes: dict[str, object], words: str
    ) -> None:
        asked = pool.model_copy(update=changes)
        with pytest.raises(UserError, match=words):
            backend.submit(JobSpec("refused", ("true",), resources=asked.resources()), asked)
        assert backend.find("refused", pool) is None

    def test_folders_of_jobs_that_ended_long_ago_go(
        self, tmp_path: Path, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        backend = LocalBackend(tmp_path / "jobs")
        old, new = (backend.submit(job("exit 0"), pool) for _ in range(2))
        for handle in (old, new):
            over(handle)
        ago = time.time() - 15 * 86_400
        os.utime(Path(old.data["folder"]) / "exit.json", (ago, ago))
        over(backend.submit(job("exit 0"), pool))
        assert not Path(old.data["folder"]).exists()
        assert Path(new.data["folder"]).exists()

    def test_a_progress_bar_is_one_line(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        handle = backend.submit(job(r"printf '10%%\r50%%\r100%%\r\nend\n'"), pool)
        over(handle)
        assert backend.logs(handle, 0)[0] == ["100%", "end"]

    def test_a_folder_that_is_gone_is_a_lost_job_here_and_a_question_for_another_machine(
        self, backend: Backend, pool: Pool, tmp_path: Path
    ) -> None:
        gone = {"folder": str(tmp_path / "gone"), "node": os.uname().nodename}
        handle = Handle(backend="local", name="x", pool="suite", data=gone)
        assert backend.status(handle).state == "lost"
        elsewhere = handle.model_copy(update={"data": {**gone, "node": "another"}})
        with pytest.raises(UserError, match="runs on another"):
            backend.status(elsewhere)
