"""The Kubernetes backend against a cluster on loopback that runs the containers' commands as processes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes_api.server import Api, api_server
from treadle.errors import NotSent, Transient, UserError
from treadle.hardware.backend import Backend, Handle, JobSpec, Status
from treadle.hardware.kubernetes.backend import KubernetesBackend
from treadle.hardware.pools import Pool
from treadle.testing.backend import BackendSuite


def runs(word: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="module")
def served() -> Iterator[Api]:
    with api_server() as api:
        yield api


@pytest.fixture
def api(served: Api) -> Iterator[Api]:
    yield served
    assert not served.faults
    served.seen.clear()


class TestKubernetesBackend(BackendSuite):
    @pytest.fixture
    def opener(self, api: Api, tmp_path: Path) -> str:
        path = api.write_config(tmp_path / "kubeconfig")
        return (
            "from pathlib import Path\n"
            "from treadle.hardware.kubernetes.backend import KubernetesBackend\n"
            f"backend = KubernetesBackend(Path({str(path)!r}))"
        )

    @pytest.fixture
    def pool(self, backend: Backend) -> Pool:
        return Pool(name="suite", backend=backend.name, image="treadle:test")

    @pytest.fixture
    def lose(self, api: Api) -> Callable[[Handle], None]:
        return lambda handle: api.cluster.reboot(handle.name)

    @pytest.fixture
    def left_behind(self) -> Callable[[str], bool]:
        return runs

    @pytest.mark.parametrize("fault", ["cut", "cut after", 500, 429], ids=str)
    def test_a_submit_that_got_no_answer_is_safe_to_repeat(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], api: Api, fault: int | str,
        over: Callable[[Handle], Status],
    ) -> None:  # fmt: skip
        spec = job("echo ran")
        api.faults.append(("POST", fault))
        with pytest.raises(Transient):
            backend.submit(spec, pool)
        handle = backend.submit(spec, pool)
        assert over(handle).state == "succeeded"
        assert backend.logs(handle, 0)[0] == ["ran"]
        assert api.cluster.created.count(("Job", "default", spec.name)) == 1

    @pytest.mark.parametrize("fault", ["cut", 500, 503, 429, 410], ids=str)
    def test_a_question_without_an_answer_says_nothing_about_the_job(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], api: Api, fault: int | str,
        over: Callable[[Handle], Status],
    ) -> None:  # fmt: skip
        handle = backend.submit(job("sleep 0.5"), pool)
        for ask in (
            backend.status,
            lambda handle: backend.logs(handle, 0),
            lambda handle: backend.cancel(handle, 1),
        ):
            api.faults.append(("GET", fault))
            with pytest.raises(Transient, match=r"127\.0\.0\.1|answers"):
                ask(handle)
        assert over(handle).state == "succeeded"

    def test_an_image_that_is_missing_fails_with_the_clusters_words_after_pending_s(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        api: Api,
        over: Callable[[Handle], Status],
    ) -> None:
        asked = pool.model_copy(update={"image": "nowhere:1", "options": {"pending_s": 3}})
        handle = backend.submit(job("true"), asked)
        waiting = self.until(backend, handle, lambda status: "ImagePullBackOff" in status.reason)
        assert waiting.state in ("queued", "failed")  # on a slow machine the patience is over by now
        status = over(handle)
        assert (status.state, status.started) == ("failed", None)
        assert "pending_s, 3 s" in status.reason
        assert 'pulling image "nowhere:1"' in status.reason
        assert not status.is_worth_another_attempt
        for _ in self.moments("its pod stayed"):
            if not api.cluster.list("Pod", "default", {"treadle/job": handle.name}):
                break
        assert backend.status(handle).reason == status.reason

    def test_a_secret_is_named_and_never_written(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        api: Api,
        over: Callable[[Handle], Status],
    ) -> None:
        asked = pool.model_copy(update={"options": {"secrets": {"TOKEN": "mlflow/token"}, "pending_s": 1}})
        spec = job(
            'test "$TOKEN" = hunter2hunter2 && test "$BOTH" = "a hunter2hunter2"', env={"BOTH": "a ${TOKEN}"}
        )
        api.cluster.secrets["mlflow"] = {"token": "hunter2hunter2"}
        assert over(backend.submit(spec, asked)).state == "succeeded"
        del api.cluster.secrets["mlflow"]
        missing = over(backend.submit(job("true"), asked))
        assert missing.state == "failed"
        assert 'secret "mlflow" not found' in missing.reason

    def test_values_reach_the_command_as_they_were_written(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        odd = {"A": '$$ $(HOME) `id` "x" \\ \'', "B": '$(A) $$ ${PATH} $5 "`id`\\'}
        script = r"""printf '%s\n' "$A" "$B" '$(A)' "${#PATH}" "$(echo in)" '$$'"""
        handle = backend.submit(job(script, env=odd), pool)
        assert over(handle).state == "succeeded"
        lines, _ = backend.logs(handle, 0)
        assert lines[0] == odd["A"]
        assert lines[1].startswith("$(A) $$ /")
        assert lines[1].endswith(' $5 "`id`\\')
        assert lines[2] == "$(A)"
        assert int(lines[3]) > 1
        assert lines[4:] == ["in", "$$"]

    def test_a_variable_that_is_not_there_is_the_users_error_by_its_name(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        handle = backend.submit(job("echo ran", env={"A": "${NOT_SET_ANYWHERE}"}), pool)
        status = over(handle)
        assert (status.state, status.exit_code) == ("failed", 64)
        (line,) = backend.logs(handle, 0)[0]
        assert "NOT_SET_ANYWHERE" in line

    def test_a_drained_node_preempts(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        api: Api,
        over: Callable[[Handle], Status],
    ) -> None:
        handle = backend.submit(job("trap 'exit 1' TERM; echo up; sleep 60 & wait"), pool)
        self.said(backend, handle, "up")
        api.cluster.evict(handle.name)
        assert over(handle).state == "preempted"
        for _ in self.moments("the drained pod stayed"):
            if not api.cluster.list("Pod", "default", {"treadle/job": handle.name}):
                break
        # The pod is gone; the Job alone still tells a preemption from a bug.
        status = backend.status(handle)
        assert status.state == "preempted"
        assert "DisruptionTarget" in status.reason
        assert backend.logs(handle, 0) == ([], 0)

    def test_a_node_that_is_gone_takes_the_log_along_and_the_job_is_worth_another_attempt(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        api: Api,
        over: Callable[[Handle], Status],
    ) -> None:
        handle = backend.submit(job("echo up; sleep 60"), pool)
        self.said(backend, handle, "up")
        _, since = backend.logs(handle, 0)
        api.cluster.remove_node(handle.name)
        assert over(handle).is_worth_another_attempt
        assert backend.logs(handle, since) == ([], since)

    def test_a_node_that_went_silent_is_lost_after_a_while(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], api: Api
    ) -> None:
        handle = backend.submit(job("echo up; sleep 60"), pool)
        self.said(backend, handle, "up")
        api.cluster.cut_off(handle.name, ago_s=100)
        assert backend.status(handle).state == "running"
        api.cluster.cut_off(handle.name, ago_s=200)
        status = backend.status(handle)
        assert status.state == "lost"
        assert "node-1 does not answer" in status.reason
        assert backend.status(handle).state == "lost"
        api.cluster.without_log.add(api.cluster.pod_of(handle.name)["metadata"]["name"])
        assert backend.logs(handle, 0) == ([], 0)
        api.cluster.reboot(handle.name)

    def test_a_full_cluster_lets_a_job_wait_with_the_reason_and_cancel_ends_it(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        api: Api,
        over: Callable[[Handle], Status],
    ) -> None:
        api.cluster.is_full = True
        try:
            handle = backend.submit(job("echo ran"), pool)
            waiting = self.until(backend, handle, lambda status: "nvidia.com/gpu" in status.reason)
            assert waiting.state == "queued"
            backend.cancel(handle, 30)
            status = over(handle)
        finally:
            api.cluster.is_full = False
        assert (status.state, status.started) == ("stopped", None)
        assert backend.status(handle) == status
        assert backend.logs(handle, 0)[0] == []

    def test_a_job_in_a_queue_starts_when_it_is_let_in_and_can_be_cancelled_before(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        api: Api,
        over: Callable[[Handle], Status],
    ) -> None:
        asked = pool.model_copy(update={"options": {"queue": "team-a"}})
        first, second = (backend.submit(job("echo ran"), asked) for _ in range(2))
        assert "team-a" in backend.status(first).reason
        backend.cancel(second, 30)
        api.cluster.patch("Job", "default", first.name, {"spec": {"suspend": False}})
        assert over(first).state == "succeeded"
        status = backend.status(second)
        assert (status.state, status.started) == ("stopped", None)
        assert ("Pod", "default") not in {
            key[:2] for key in api.cluster.created if key[2].startswith(second.name)
        }

    def test_a_deadline_counts_the_waiting_too(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        asked = pool.model_copy(update={"options": {"deadline_s": 1}})
        status = over(backend.submit(job("sleep 60", grace_s=1), asked))
        assert status.state == "timed_out"
        assert "deadline_s, 1 s" in status.reason

    def test_a_job_that_someone_deleted_is_stopped(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], api: Api
    ) -> None:
        spec = job("sleep 60")
        handle = backend.submit(spec, pool)
        api.cluster.delete(
            "Job", "default", handle.name, {"propagationPolicy": "Foreground", "gracePeriodSeconds": 0}
        )
        for _ in self.moments("it stayed"):
            if backend.status(handle).state == "stopped":
                break
        assert backend.find(spec.name, pool) is None
        backend.cancel(handle, 1)

    def test_a_name_that_another_has_is_refused(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], api: Api
    ) -> None:
        spec = job("true")
        theirs = {"kind": "Job", "metadata": {"name": spec.name}, "spec": {"suspend": True}}
        api.cluster.create("Job", "default", theirs)
        with pytest.raises(UserError, match="treadle did not make"):
            backend.submit(spec, pool)

    def test_a_long_log_arrives_once_and_whole_however_often_it_is_asked_for(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        script = "for i in $(seq 300); do echo $i; [ $((i % 60)) = 0 ] && sleep 0.4; done; exit 0"
        handle = backend.submit(job(script), pool)
        lines: list[str] = []
        since = 0
        for _ in self.moments("the log never ended"):
            ended = backend.status(handle).is_over
            new, since = backend.logs(handle, since)
            lines += new
            assert since < 2**63
            if ended and not new:
                break
        assert lines == [str(number) for number in range(1, 301)]

    def test_a_progress_bar_is_one_line(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        handle = backend.submit(job(r"printf '10%%\r50%%\r100%%\r\nend\n'"), pool)
        over(handle)
        assert backend.logs(handle, 0)[0] == ["100%", "end"]

    def test_several_workers_are_a_ray_job(
        self, backend: Backend, pool: Pool, api: Api, over: Callable[[Handle], Status], tmp_path: Path
    ) -> None:
        for name, code, state in (
            ("well", 0, "succeeded"),
            ("badly", 70, "failed"),
            ("cut", 75, "preempted"),
        ):
            program = tmp_path / f"{name}.sh"
            program.write_text(f"echo up; exit {code}")
            spec = JobSpec(f"ray-{name}", ("sh", str(program)), workers=2, env={"A": "b"})
            handle = backend.submit(spec, pool)
            assert handle.data["kind"] == "RayJob"
            assert backend.submit(spec, pool) == handle == backend.find(spec.name, pool)
            status = over(handle)
            assert (status.state, status.exit_code) == (state, code)
            assert (status.started or 0) <= (status.ended or 0)
            assert backend.logs(handle, 0)[0] == ["up"]
            backend.cancel(handle, 1)
            assert backend.status(handle) == status

    def test_a_ray_job_is_cancelled_with_its_cluster(
        self, backend: Backend, pool: Pool, over: Callable[[Handle], Status], tmp_path: Path
    ) -> None:
        program = tmp_path / "long.sh"
        program.write_text("echo up; sleep 60")
        handle = backend.submit(JobSpec("ray-long", ("sh", str(program)), workers=2), pool)
        self.said(backend, handle, "up")
        backend.cancel(handle, 1)
        assert over(handle).state == "stopped"
        for _ in self.moments("it still runs"):
            if not runs(str(program)):
                break


@pytest.fixture
def job() -> JobSpec:
    return JobSpec("a-job", ("true",))


@pytest.fixture
def pool() -> Pool:
    return Pool(name="far", backend="kubernetes", image="treadle:test")


def test_wrong_credentials_are_the_users_and_name_no_token(
    api: Api, tmp_path: Path, job: JobSpec, pool: Pool
) -> None:
    path = api.write_config(tmp_path / "kubeconfig", token="an-old-token")
    with pytest.raises(UserError, match=r"401.*log in again") as caught:
        KubernetesBackend(path).submit(job, pool)
    assert "an-old-token" not in str(caught.value)


def test_missing_credentials_are_told_with_what_to_do(
    tmp_path: Path, job: JobSpec, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(UserError, match=r"no credentials for a cluster.*Set KUBECONFIG"):
        KubernetesBackend().submit(job, pool)


def test_an_unknown_context_is_told_by_its_name(api: Api, tmp_path: Path, job: JobSpec, pool: Pool) -> None:
    path = api.write_config(tmp_path / "kubeconfig")
    far = pool.model_copy(update={"options": {"context": "elsewhere"}})
    with pytest.raises(UserError, match="'elsewhere'"):
        KubernetesBackend(path).submit(job, far)


def test_an_unreachable_cluster_may_be_reached_later(
    api: Api, tmp_path: Path, job: JobSpec, pool: Pool
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = api.write_config(tmp_path / "kubeconfig", url=f"http://127.0.0.1:{port}")
    with pytest.raises(NotSent, match=f"127.0.0.1:{port} can't be reached.*refused"):
        KubernetesBackend(path).submit(job, pool)
    with pytest.raises(Transient) as told:
        KubernetesBackend(path).find(job.name, pool)
    assert not isinstance(told.value, NotSent), "the job itself may be there"


def test_a_namespace_that_is_not_there_and_a_cluster_without_kuberay_are_told(
    api: Api, tmp_path: Path, job: JobSpec, pool: Pool
) -> None:
    backend = KubernetesBackend(api.write_config(tmp_path / "kubeconfig"))
    with pytest.raises(UserError, match="namespace 'ml'"):
        backend.submit(job, pool.model_copy(update={"options": {"namespace": "ml"}}))
    api.cluster.has_kuberay = False
    try:
        with pytest.raises(UserError, match="KubeRay"):
            backend.submit(replace(job, workers=2), pool)
    finally:
        api.cluster.has_kuberay = True
