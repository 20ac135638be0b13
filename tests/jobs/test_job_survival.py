"""Jobs on pools, whoever is killed: client, job, machine; and work that is asked to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from job_cases import LOCAL, features_at, over, said, settled
from processes import TREADLE
from treadle import jobs
from treadle.jobs import JobRef
from treadle.jobs.file import newest_attempt, read_job, read_result
from treadle.preemption import Preempted, ends_when_asked, stop_if_asked
from treadle.records import Record
from wheel import FIRST, SECOND, Wheel, copy_of


def command_of(ref: JobRef) -> int:
    pid: int = json.loads((Path(ref.handle.data["folder"]) / "running.json").read_text())["pid"]
    return pid


def supervisor_of(ref: JobRef) -> int:
    pid: int = json.loads((Path(ref.handle.data["folder"]) / "began").read_text())["pid"]
    return pid


@pytest.mark.parametrize(
    ("whom", "number", "state", "code"),
    [
        (supervisor_of, signal.SIGTERM, "preempted", 75),
        pytest.param(command_of, signal.SIGKILL, "lost", None, marks=pytest.mark.slow),
        (supervisor_of, signal.SIGKILL, "lost", None),
    ],
    ids=["machine taken back", "job killed", "machine lost"],
)
def test_a_training_that_is_taken_away_goes_on_to_the_same_bytes(
    undisturbed: tuple[Wheel, Record],
    tmp_path: Path,
    whom: Callable[[JobRef], int],
    number: signal.Signals,
    state: str,
    code: int | None,
) -> None:
    wheel, whole = copy_of(undisturbed[0], tmp_path / "copy"), undisturbed[1]
    session = wheel.session(SECOND)
    inputs = features_at(wheel, SECOND)
    ref = jobs.submit(session, "train", LOCAL, inputs)
    said(ref, "train: round 120,")
    os.kill(whom(ref), number)
    status = over(ref)
    assert (status.state, status.exit_code) == (state, code)
    assert read_result(session.store, "orders", ref.job, ref.attempt) is None
    following = jobs.settle(session, ref)
    assert isinstance(following, JobRef)
    assert (following.job, following.attempt) == (ref.job, ref.attempt + 1)
    assert jobs.settle(session, ref) == following, "who settles once more comes to the same attempt"
    record = settled(session, following)
    assert (record.id, record.digest, record.blobs) == (whole.id, whole.digest, whole.blobs)
    assert record.notes["resumed_from"] >= 100
    assert record.notes["rounds_trained"] == 1200 - record.notes["resumed_from"]
    (lost,) = record.notes["attempts"]
    assert (lost["number"], lost["state"]) == (1, state)
    assert lost["reason"]
    assert lost["seconds"] > 0


def test_a_client_that_is_killed_and_started_again_goes_on_with_the_same_job(
    undisturbed: tuple[Wheel, Record], tmp_path: Path, state: Path
) -> None:
    wheel, whole = copy_of(undisturbed[0], tmp_path / "copy"), undisturbed[1]
    args = [str(TREADLE), "run", str(wheel.path), "--as-of", SECOND, "--to", "train", "--pool", "train=local",
            "--store", str(wheel.store), "--by", "ann", "--json"]  # fmt: skip
    with subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as client:
        assert client.stderr is not None
        next(line for line in client.stderr if line.startswith("train: round"))
        client.kill()
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "goes on with train on the pool local" in done.stderr
    record = json.loads(done.stdout)["train"]
    assert (record["id"], record["blobs"]) == (whole.id, whole.blobs)
    assert record["notes"]["resumed_from"] == 0
    assert len(list(state.glob("local/treadle-*"))) == 1


def test_ctrl_c_cancels_the_job(undisturbed: tuple[Wheel, Record], tmp_path: Path, state: Path) -> None:
    wheel = copy_of(undisturbed[0], tmp_path / "copy")
    args = [str(TREADLE), "run", str(wheel.path), "--as-of", SECOND, "--to", "train", "--pool", "train=local",
            "--store", str(wheel.store), "--by", "ann"]  # fmt: skip
    # A shell's background jobs, these tests perhaps among them, ignore the signal, and so would their children.
    asked = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=asked
    ) as client:
        assert client.stderr is not None
        next(line for line in client.stderr if line.startswith("train: round"))
        client.send_signal(signal.SIGINT)
        rest = client.stderr.read()
    assert client.returncode == 3, rest
    assert "train: cancelling treadle-" in rest
    (folder,) = state.glob("local/treadle-*")
    assert json.loads((folder / "exit.json").read_text())["state"] == "stopped"


@pytest.mark.slow
def test_two_clients_at_once_share_one_job(
    undisturbed: tuple[Wheel, Record], tmp_path: Path, state: Path
) -> None:
    wheel, whole = copy_of(undisturbed[0], tmp_path / "copy"), undisturbed[1]
    inputs = features_at(wheel, SECOND)
    first, second = wheel.session(SECOND), wheel.session(SECOND)
    ref = jobs.submit(first, "train", LOCAL, inputs)
    assert jobs.submit(second, "train", LOCAL, inputs) == ref
    assert settled(first, ref) == settled(second, ref)
    assert first.reused == second.reused == {"train": False}
    assert settled(first, ref).digest == whole.digest
    assert len(list(state.glob("local/treadle-*"))) == 1


@pytest.mark.slow
def test_an_attempt_that_was_claimed_and_never_submitted_is_submitted_by_the_next(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, inputs = wheel.session(FIRST), features_at(wheel, FIRST)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("treadle.hardware.local.LocalBackend.submit", killed)
        with pytest.raises(KeyboardInterrupt):
            jobs.submit(session, "train", LOCAL, inputs)
    ref = jobs.submit(session, "train", LOCAL, inputs)
    assert ref.attempt == 1
    assert settled(session, ref).kind == "candidate"
    assert newest_attempt(session.store, "orders", ref.job) == 1


def test_a_reference_is_json_without_secrets_and_enough_for_another_process(wheel: Wheel) -> None:
    session = wheel.session(FIRST)
    ref = jobs.submit(session, "train", LOCAL, features_at(wheel, FIRST))
    assert JobRef.from_json(ref.to_json()) == ref
    program = (
        "import sys; from treadle import jobs; print(jobs.poll(jobs.JobRef.from_json(sys.argv[1])).state)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, ref.to_json()], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() in ("running", "succeeded")
    settled(session, ref)
    job = read_job(session.store, "orders", ref.job, 1)
    assert job is not None
    assert job.pool.env == {}


# Ending when asked.


def test_work_that_is_asked_to_end_goes_on_to_its_next_checkpoint() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), ends_when_asked(30):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        reached = sum(range(1000))
        assert reached
        stop_if_asked()
        raise AssertionError("it went on")
    stop_if_asked()
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_without_checkpoints_ends_when_patience_does() -> None:
    started = time.monotonic()
    with pytest.raises(Preempted), ends_when_asked(0.2):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert 0.1 < time.monotonic() - started < 10
