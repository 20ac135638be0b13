"""The Ray backend on a real cluster of this machine: the conformance suite, and what is Ray's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ray_cases import end, processes, supervisor_of, watcher_of
from treadle.errors import UserError
from treadle.hardware.backend import Backend, Handle, JobSpec, Resources, Status
from treadle.hardware.pools import Pool
from treadle.hardware.ray.backend import RayBackend
from treadle.testing.backend import BackendSuite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def kill_watcher(handle: Handle) -> None:
    os.kill(watcher_of(handle)[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder
    end(folder)
    assert not processes(str(folder))


class TestRayBackend(BackendSuite):
    patience_s = 300.0

    @pytest.fixture
    def opener(self, root: Path) -> str:
        return (
            "from pathlib import Path\n"
            "from treadle.hardware.ray.backend import RayBackend\n"
            f"backend = RayBackend(Path({str(root)!r}))"
        )

    @pytest.fixture
    def pool(self, backend: Backend) -> Pool:
        return Pool(name="suite", backend="ray", options={"idle_s": 900})

    @pytest.fixture
    def job(self) -> Callable[..., JobSpec]:
        def made(script: str, **options: Any) -> JobSpec:
            return JobSpec(f"suite-{uuid4().hex[:12]}", ("sh", "-c", script), **{"grace_s": 3, **options})

        return made

    @pytest.fixture
    def lose(self) -> Callable[[Handle], None]:
        return kill_watcher

    @pytest.fixture
    def left_behind(self) -> Callable[[str], bool]:
        return lambda word: bool(processes(word))

    def test_a_killed_process_of_ray_itself_is_a_lost_machine_and_leaves_nothing(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        word = f"9{uuid4().int % 10**8:08d}"
        handle = backend.submit(job(f"echo up; (setsid sleep 8{word} &); sleep 7{word}"), pool)
        self.said(backend, handle, "up")
        os.kill(watcher_of(handle)[1], signal.SIGKILL)
        status = over(handle)
        assert (status.state, status.exit_code) == ("lost", None)
        for _ in self.moments("something still runs"):
            if not processes(f"7{word}") and not processes(f"8{word}"):
                break

    def test_a_killed_supervisor_is_a_lost_machine_and_leaves_nothing(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        word = f"9{uuid4().int % 10**8:08d}"
        handle = backend.submit(job(f"echo up; (setsid sleep 8{word} &); sleep 7{word}"), pool)
        self.said(backend, handle, "up")
        os.kill(supervisor_of(handle), signal.SIGKILL)
        status = over(handle)
        assert (status.state, status.reason) == ("lost", "its supervisor was killed")
        for _ in self.moments("something still runs"):
            if not processes(f"7{word}") and not processes(f"8{word}"):
                break

    def test_what_the_cluster_can_never_give_fails_after_the_pools_patience(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        spec = job("echo ran", resources=Resources(cpu=4096))
        short = pool.model_copy(update={"options": {**pool.options, "pending_s": 2}})
        handle = backend.submit(spec, short)
        status = over(handle)
        assert (status.state, status.started) == ("failed", None)
        assert "pending_s, 2 s" in status.reason
        assert "num_cpus 4096" in status.reason
        assert backend.logs(handle, 0)[0] == []
        assert backend.status(handle) == status

    def test_a_job_that_waits_is_cancelled(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        handle = backend.submit(job("echo ran", resources=Resources(cpu=4096)), pool)
        assert backend.status(handle).state == "queued"
        backend.cancel(handle, 1)
        status = over(handle)
        assert (status.state, status.started) == ("stopped", None)
        assert backend.logs(handle, 0)[0] == []

    def test_a_variable_that_is_not_set_there_fails_by_its_name(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        for workers in (1, 2):
            status = over(backend.submit(job("exit 0", env={"A": "${NOT_SET_THERE}"}, workers=workers), pool))
            assert status.state == "failed"
            assert "NOT_SET_THERE" in status.reason

    def test_a_pool_of_an_address_is_that_cluster(
        self, backend: RayBackend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The same cluster, asked as any other is: by its address and its token."""
        with backend.local.taking_jobs(60) as (jobs, _):
            far = Pool(name="far", backend="ray", python=sys.executable, options={"address": jobs.address})
            monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
            spec = job("echo there")
            with pytest.raises(UserError, match="token"):
                backend.submit(spec, far)
            monkeypatch.setenv("RAY_AUTH_TOKEN", jobs.token or "")
            assert backend.find(spec.name, far) is None
            handle = backend.submit(spec, far)
            assert over(handle).state == "succeeded"
            assert backend.submit(spec, far) == handle == backend.find(spec.name, far)
            assert backend.logs(handle, 0) == (["there"], 1)
            assert jobs.token is not None
            assert jobs.token not in handle.to_json()

    def test_a_cluster_that_is_killed_loses_its_jobs_and_the_next_takes_on(
        self, job: Callable[..., JobSpec], over: Callable[[Handle], Status], tmp_path: Path
    ) -> None:
        own = RayBackend(tmp_path)
        pool = Pool(name="suite", backend="ray", options={"idle_s": 3})
        try:
            word = f"5{uuid4().int % 10**8:08d}"
            done = own.submit(job("echo done"), pool)
            self.until(own, done, lambda status: status.is_over)
            running = own.submit(job(f"echo up; sleep 7{word}"), pool)
            self.said(own, running, "up")
            for pid in processes("treadle.hardware.ray.local"):
                if str(tmp_path) in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
            assert self.until(own, running, lambda status: status.is_over).state == "lost"
            for _ in self.moments("something still runs"):
                if not processes(f"7{word}"):
                    break
            assert own.status(done).state == "succeeded"
            assert own.logs(done, 0)[0] == ["done"]
            after = own.submit(job("echo after"), pool)
            assert self.until(own, after, lambda status: status.is_over).state == "succeeded"
            for _ in self.moments("the idle cluster stays"):
                if not processes(str(tmp_path)):
                    break
            assert own.logs(after, 0)[0] == ["after"]
        finally:
            end(tmp_path)

    def test_the_cluster_outlives_a_client_that_is_killed(
        self, backend: RayBackend, pool: Pool, opener: str, over: Callable[[Handle], Status]
    ) -> None:
        name = f"suite-{uuid4().hex[:12]}"
        program = (
            f"{opener}\nimport os, signal\n"
            "from treadle.hardware.backend import JobSpec\nfrom treadle.hardware.pools import Pool\n"
            f"pool = Pool.model_validate_json({pool.model_dump_json()!r})\n"
            f"backend.submit(JobSpec({name!r}, ('sh', '-c', 'sleep 1; echo done')), pool)\n"
            "os.killpg(0, signal.SIGKILL)"
        )
        killed = subprocess.run([sys.executable, "-c", program], check=False, start_new_session=True)
        assert killed.returncode == -signal.SIGKILL
        handle = backend.find(name, pool)
        assert handle is not None
        assert over(handle).state == "succeeded"
        assert backend.logs(handle, 0)[0] == ["done"]
