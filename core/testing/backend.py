"""The conformance suite of a Backend: subclass it with a `backend` fixture.

class TestMine(BackendSuite):
    @pytest.fixture
    def opener(self, tmp_path):
        return f"from pathlib import Path; from mine import Mine; backend = Mine(Path({str(tmp_path)!r}))"
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from treadle.errors import Transient, TreadleError
from treadle.hardware.backend import Backend, Handle, JobSpec, Resources, Status
from treadle.hardware.pools import Pool

_SUBMIT = """
import sys
{opener}
from treadle.hardware.backend import JobSpec
from treadle.hardware.pools import Pool
pool, specs = Pool.model_validate_json(sys.argv[1]), sys.argv[2:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(0, len(specs), 2):
    print(backend.submit(JobSpec(specs[number], ("sh", "-c", specs[number + 1])), pool).to_json(), flush=True)
"""


class BackendSuite:
    """What treadle relies on, of any backend, failures included.

    Override `opener`: Python lines that define `backend`, so that other processes can have the same one; and what the
    backend needs of a `pool`. `lose` takes a running job's machine away, `left_behind` tells what a job left running;
    a backend that can't do so here leaves them out, and their tests are skipped.
    """

    patience_s = 60.0

    @pytest.fixture
    def opener(self) -> str:
        """Lines of Python after which `backend` is the backend, in any process."""
        raise NotImplementedError("override the fixture `opener`")

    @pytest.fixture
    def backend(self, opener: str) -> Backend:
        """The backend, with nothing submitted."""
        names: dict[str, Any] = {}
        exec(opener, names)
        made: Backend = names["backend"]
        return made

    @pytest.fixture
    def pool(self, backend: Backend) -> Pool:
        """A pool of the backend."""
        return Pool(name="suite", backend=backend.name)

    @pytest.fixture
    def lose(self) -> Callable[[Handle], None]:
        """Takes the machine, or what watches the command there, away from a running job."""
        pytest.skip("no way to lose a machine here")

    @pytest.fixture
    def left_behind(self) -> Callable[[str], bool]:
        """Whether a process with this word among its arguments still runs where the jobs run."""
        pytest.skip("no way to look at the machine here")

    @pytest.fixture
    def job(self) -> Callable[..., JobSpec]:
        """Makes a job of a shell script, with a name of its own."""

        def made(script: str, **options: Any) -> JobSpec:
            return JobSpec(f"suite-{uuid4().hex[:12]}", ("sh", "-c", script), **options)

        return made

    @pytest.fixture
    def over(self, backend: Backend) -> Callable[[Handle], Status]:
        """Waits for a job's end."""
        return lambda handle: self.until(backend, handle, lambda status: status.is_over)

    def until(self, backend: Backend, handle: Handle, there: Callable[[Status], bool]) -> Status:
        """The job's status, once it is as wanted; a place that is out of sight for a moment is asked again."""
        status: Status | Transient | None = None
        try:
            for _ in self.moments(f"{handle.name} did not come to it"):
                try:
                    status = backend.status(handle)
                except Transient as error:
                    status = error
                else:
                    if there(status):
                        return status
        except AssertionError as error:
            raise AssertionError(f"{error}: {status}") from None
        raise AssertionError

    def said(self, backend: Backend, handle: Handle, line: str) -> None:
        """Waits until the job has printed a line."""
        for _ in self.moments(f"{handle.name} never said {line!r}"):
            if line in backend.logs(handle, 0)[0]:
                return

    def moments(self, complaint: str) -> Iterator[None]:
        """Moments to look at something that is expected soon."""
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            yield
            time.sleep(0.03)
        raise AssertionError(complaint)

    def test_a_command_that_ends_well_succeeded(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """Its times and its machine are told."""
        before = time.time()
        status = over(backend.submit(job("exit 0"), pool))
        assert (status.state, status.exit_code) == ("succeeded", 0)
        assert before - 5 <= (status.started or 0) <= (status.ended or 0) <= time.time() + 5
        assert status.node

    def test_lines_are_read_on_from_where_one_left_off(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """Both streams, each line once, also the last one without its end."""
        handle = backend.submit(job("echo one; echo two >&2; sleep 1; printf three"), pool)
        lines: list[str] = []
        since = 0
        for _ in self.moments("the log never ended"):
            ended = backend.status(handle).is_over
            new, since = backend.logs(handle, since)
            lines += new
            if ended and not new:
                break
        assert lines == ["one", "two", "three"]
        assert backend.logs(handle, 0)[0] == lines
        over(handle)

    @pytest.mark.parametrize(("code", "state"), [(1, "failed"), (64, "failed"), (75, "preempted")])
    def test_an_exit_code_says_how_a_command_ended(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
        code: int,
        state: str,
    ) -> None:
        """75: it was asked to end and can go on; any other but 0: it failed."""
        status = over(backend.submit(job(f"exit {code}"), pool))
        assert (status.state, status.exit_code) == (state, code)
        assert str(code) in status.reason

    def test_a_program_that_is_not_there_is_told_by_its_name(
        self, backend: Backend, pool: Pool, over: Callable[[Handle], Status]
    ) -> None:
        """When it is submitted, or as the reason of its failure."""
        spec = JobSpec(f"suite-{uuid4().hex[:12]}", ("no-such-program-anywhere",))
        try:
            handle = backend.submit(spec, pool)
        except TreadleError as error:
            words = str(error)
        else:
            status = over(handle)
            assert status.state == "failed"
            words = status.reason
        assert "no-such-program-anywhere" in words

    def test_variables_are_filled_in_at_the_place(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """The request holds the reference and not what it stands for."""
        spec = job('echo "$GREETING, $WHERE"', env={"GREETING": "hello there", "WHERE": "<${PATH}>"})
        handle = backend.submit(spec, pool)
        over(handle)
        (line,) = backend.logs(handle, 0)[0]
        assert line.startswith("hello there, <")
        assert "${PATH}" not in line
        assert len(line) > len("hello there, <>")
        assert "<${PATH}>" in json.dumps(backend.plan(spec, pool))

    def test_plan_is_the_same_twice_and_submits_nothing(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec]
    ) -> None:
        """And is plain JSON."""
        spec = job("exit 0", max_seconds=60, labels={"loop": "orders"})
        plan = backend.plan(spec, pool)
        assert json.loads(json.dumps(plan)) == backend.plan(spec, pool)
        assert backend.find(spec.name, pool) is None

    def test_a_job_is_found_by_its_name_while_it_runs_and_after(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """And its handle is the same after JSON."""
        spec = job("sleep 1")
        assert backend.find(spec.name, pool) is None
        handle = backend.submit(spec, pool)
        assert backend.find(spec.name, pool) == handle == Handle.from_json(handle.to_json())
        over(handle)
        assert backend.find(spec.name, pool) == handle

    def test_a_job_beyond_its_time_is_ended(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """It is asked first."""
        handle = backend.submit(job("trap 'echo asked; exit 75' TERM; sleep 60 & wait", max_seconds=1), pool)
        status = over(handle)
        assert status.state == "timed_out"
        assert "max_seconds" in status.reason
        assert "asked" in backend.logs(handle, 0)[0]

    def test_a_job_beyond_its_memory_is_ended_and_the_reason_told(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """Also when a child of the command takes it."""
        script = (
            f'{sys.executable} -c "import time; x = bytes(range(256)) * (2 << 20); time.sleep(60)"; exit 0'
        )
        status = over(backend.submit(job(script, resources=Resources(memory_gib=0.25)), pool))
        assert status.state == "failed"
        assert "memory" in status.reason
        assert "0.25" in status.reason

    def test_a_job_that_is_cancelled_is_asked_first(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """And counts as stopped whatever its exit code."""
        handle = backend.submit(job("trap 'echo asked; exit 0' TERM; echo up; sleep 60 & wait"), pool)
        self.said(backend, handle, "up")
        backend.cancel(handle, 30)
        assert over(handle).state == "stopped"
        assert "asked" in backend.logs(handle, 0)[0]

    def test_a_job_that_does_not_listen_is_killed_after_the_grace(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """So that cancel never waits for ever."""
        handle = backend.submit(job("trap '' TERM; echo up; while :; do sleep 1; done"), pool)
        self.said(backend, handle, "up")
        asked = time.monotonic()
        backend.cancel(handle, 1)
        assert over(handle).state == "stopped"
        assert time.monotonic() - asked >= 0.9

    def test_cancel_of_a_job_that_is_over_changes_nothing(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """Its state is for good."""
        handle = backend.submit(job("exit 3"), pool)
        ended = over(handle)
        backend.cancel(handle, 1)
        assert backend.status(handle) == ended

    def test_a_lost_machine_is_noticed(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
        lose: Callable[[Handle], None],
    ) -> None:
        """And what was lost stays lost: its name is never run again."""
        spec = job("echo up; sleep 300")
        handle = backend.submit(spec, pool)
        self.said(backend, handle, "up")
        lose(handle)
        status = over(handle)
        assert status.state == "lost"
        assert status.reason
        assert backend.submit(spec, pool) == handle
        assert backend.status(handle) == status
        assert backend.logs(handle, 0)[0] == ["up"]

    def test_nothing_is_left_running(
        self,
        backend: Backend,
        pool: Pool,
        job: Callable[..., JobSpec],
        over: Callable[[Handle], Status],
        lose: Callable[[Handle], None],
        left_behind: Callable[[str], bool],
    ) -> None:
        """Neither what a command started and forgot, nor anything of a lost machine."""
        for number, ends in enumerate((lambda handle: backend.cancel(handle, 1), lose, over)):
            word = f"{number}{uuid4().int % 10**8:08d}"
            rest = "exit 0" if ends is over else "wait"
            script = f"sleep 7{word} & (setsid sleep 8{word} &) ; echo up; {rest}"
            handle = backend.submit(job(script), pool)
            self.said(backend, handle, "up")
            ends(handle)
            over(handle)
            for _ in self.moments(f"something of {script} still runs"):
                if not (left_behind(f"7{word}") or left_behind(f"8{word}")):
                    break

    def test_submitted_twice_is_one_job(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """While it runs and after its end."""
        spec = job("echo ran; sleep 1")
        first = backend.submit(spec, pool)
        assert backend.submit(spec, pool) == first
        over(first)
        assert backend.submit(spec, pool) == first
        assert backend.status(first).state == "succeeded"
        assert backend.logs(first, 0)[0] == ["ran"]

    def test_submitted_at_once_by_two_processes_is_one_job(
        self, backend: Backend, pool: Pool, opener: str, over: Callable[[Handle], Status]
    ) -> None:
        """Both have the same handle, the command ran once, and it outlives both."""
        specs = [
            (f"suite-{uuid4().hex[:12]}", f"echo started {number}; sleep 0.{number}") for number in range(5)
        ]
        handles = self.submitted_by_two(opener, pool, specs, specs)
        assert handles[0] == handles[1]
        for number, handle in enumerate(handles[0]):
            assert over(handle).state == "succeeded"
            assert backend.logs(handle, 0)[0] == [f"started {number}"]

    def test_a_full_pool_lets_no_more_run_whoever_submits(
        self, backend: Backend, pool: Pool, opener: str, over: Callable[[Handle], Status]
    ) -> None:
        """Jobs of two processes take turns, and all of them end."""
        if not backend.capabilities().queues:
            pytest.skip("its pools have no queue")
        narrow = pool.model_copy(update={"max_jobs": 2})
        scripts = [[(f"suite-{uuid4().hex[:12]}", "sleep 0.7") for _ in range(3)] for _ in range(2)]
        handles = [handle for each in self.submitted_by_two(opener, narrow, *scripts) for handle in each]
        for _ in self.moments("they never ended"):
            states = [backend.status(handle) for handle in handles]
            if all(status.is_over for status in states):
                break
        assert {status.state for status in states} == {"succeeded"}
        spans = [(status.started or 0, status.ended or 0) for status in states]
        assert max(sum(start <= at < end for start, end in spans) for at, _ in spans) == 2

    def test_a_job_is_cancelled_while_it_waits(
        self, backend: Backend, pool: Pool, job: Callable[..., JobSpec], over: Callable[[Handle], Status]
    ) -> None:
        """It never starts, and the one after it takes its turn."""
        if not backend.capabilities().queues:
            pytest.skip("its pools have no queue")
        narrow = pool.model_copy(update={"max_jobs": 1})
        first = backend.submit(job("echo up; sleep 300"), narrow)
        self.said(backend, first, "up")
        second, third = (backend.submit(job("echo ran"), narrow) for _ in range(2))
        assert backend.status(second).state == "queued"
        backend.cancel(second, 30)
        ended = over(second)
        assert (ended.state, ended.started) == ("stopped", None)
        assert backend.status(third).state == "queued"
        backend.cancel(first, 1)
        assert over(third).state == "succeeded"
        assert backend.logs(second, 0)[0] == []

    def submitted_by_two(self, opener: str, pool: Pool, *specs: list[tuple[str, str]]) -> list[list[Handle]]:
        """The handles that two processes got for jobs, each a name and a script, that they submitted at once."""
        pipe = subprocess.PIPE
        program = _SUBMIT.format(opener=opener)
        started = []
        for each in specs:
            words = [word for spec in each for word in spec]
            command = [sys.executable, "-c", program, pool.model_dump_json(), *words]
            started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        handles = []
        for process in started:
            told, errors = process.communicate(timeout=self.patience_s)
            assert process.returncode == 0, errors
            handles.append([Handle.from_json(line) for line in told.splitlines()])
        return handles
