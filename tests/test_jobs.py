"""Stages on pools: the same records and errors as in this process, whatever is killed, and without libraries here."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import treadle
from processes import TREADLE, command
from treadle import jobs
from treadle.errors import (
    BlobLost,
    DataRefused,
    Fault,
    HookError,
    JobFailed,
    MissingPackage,
    SpecError,
    StaleChampion,
    Transient,
    TreadleError,
    UserError,
)
from treadle.hardware.backend import Status
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.file import newest_attempt, read_job, read_result
from treadle.preemption import Preempted, ends_when_asked, stop_if_asked
from treadle.records import Record
from treadle.runner import run_session
from treadle.session import Session
from treadle.wire import error_from_json, error_to_json
from wheel import FIRST, SECOND, THIRD, Wheel, copy_of, ids

LOCAL = Pool(name="local")
CIRCLE = ("prepare", "featurize", "train", "evaluate", "release", "deploy")
LONG = (
    ("rounds: 30", "rounds: 1200"),
    ("max_depth: 3, learning_rate: 0.3", "max_depth: 2, learning_rate: 0.01"),
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the local jobs of a test lie."""
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    return tmp_path / "jobs"


def moments(complaint: str, seconds: float = 120) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    raise AssertionError(complaint)


def said(ref: JobRef, words: str) -> None:
    for _ in moments(f"{ref} never said {words!r}"):
        if any(words in line for line in jobs.logs(ref)[0]):
            return
        assert not jobs.poll(ref).is_over, jobs.logs(ref)[0]


def over(ref: JobRef) -> Status:
    for _ in moments(f"{ref} never ended"):
        if (status := jobs.poll(ref)).is_over:
            return status
    raise AssertionError


def settled(session: Session, ref: JobRef) -> Record:
    """The record in the end, through as many attempts as it takes."""
    for _ in moments(f"{ref} came to nothing"):
        found = jobs.settle(session, ref)
        if isinstance(found, Record):
            return found
        ref = found
    raise AssertionError


def features_at(wheel: Wheel, as_of: str) -> dict[str, str]:
    return {"featurize": wheel.run(as_of, to="featurize")["featurize"].id}


def interpreter(folder: Path, script: str) -> str:
    """The path of a program that a pool takes for a Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


WITHOUT_LIBRARIES = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Blocked())
import treadle

loop = treadle.Loop.load(sys.argv[1])
pools = dict.fromkeys({stages!r}, "local")
options = dict(store=sys.argv[2], who="ann", pools=pools, say=lambda line: print(line, file=sys.stderr))
found = dict(treadle.run(loop, as_of={first!r}, **options))
found |= treadle.watch(loop, as_of={second!r}, **options)
print(json.dumps({{stage: record.model_dump(mode="json") for stage, record in found.items()}}))
"""
NAMES = "numpy scipy pandas pyarrow duckdb ibis feast mlflow xgboost sklearn great_expectations sqlglot"


@pytest.mark.slow
def test_a_caller_without_any_library_gets_the_records_and_bytes_of_a_run_in_process(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, tmp_path: Path
) -> None:
    stages = (*CIRCLE, "monitor", "retrain")
    program = WITHOUT_LIBRARIES.format(
        names=set(NAMES.split()), stages=stages, first=FIRST, second="2024-02-19"
    )
    place = [str(wheel.path), str(tmp_path / "fresh")]
    done = subprocess.run(
        [sys.executable, "-c", program, *place], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    loop = treadle.Loop.load(wheel.path)
    here = dict(turned[1]) | dict(treadle.watch(loop, as_of="2024-02-19", store=wheel.store, who="ann"))
    for stage, record in here.items():
        plain = record.model_dump(mode="json", exclude={"notes"})
        assert {name: value for name, value in there[stage].items() if name != "notes"} == plain, stage
        assert there[stage]["notes"]["job"]["pool"] == "local"
        assert record.blobs == there[stage]["blobs"]


def test_a_run_with_nothing_to_do_finds_everything_by_pools_too(wheel: Wheel, state: Path) -> None:
    run = wheel.run(FIRST, start="train", to="evaluate", pools={"train": "local"})
    assert run.reused == {"prepare": True, "featurize": True, "train": True, "evaluate": True}
    assert len(list(state.glob("local/treadle-*"))) == 1


@pytest.mark.slow
def test_what_comes_before_the_first_stage_is_only_found_also_on_a_pool(wheel: Wheel) -> None:
    wheel.run(SECOND, to="featurize")
    with pytest.raises(UserError, match="--from evaluate needs what train makes"):
        wheel.run(SECOND, start="evaluate", to="evaluate", pools={"train": "local"})


# What a stage raises is the same here and there: class, words, and what it carries.


def refuse(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "column: amount, min_value: 0", "column: amount, min_value: 20")


def break_hook(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "load: {sql: load.sql,", "load: {python: 'hooks:load',")
    (wheel.path.parent / "hooks.py").write_text("def load(sources):\n    raise ValueError('no such desk')\n")


def break_sql(wheel: Wheel) -> None:
    wheel.edit("orders.sql", "from orders", "from ordres")


def break_params(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "max_depth: 3", "max_depth: 3, objective: 'no:such'")


def take_source_away(wheel: Wheel) -> None:
    (wheel.path.parent / "load.csv").unlink()


@pytest.mark.parametrize(
    ("spoil", "stage", "kind"),
    [
        (refuse, "prepare", DataRefused),
        pytest.param(break_hook, "prepare", HookError, marks=pytest.mark.slow),
        pytest.param(break_sql, "prepare", HookError, marks=pytest.mark.slow),
        pytest.param(take_source_away, "prepare", UserError, marks=pytest.mark.slow),
        (break_params, "train", UserError),
    ],
)
def test_an_error_of_a_stage_comes_back_as_it_is(
    wheel: Wheel, spoil: Callable[[Wheel], None], stage: str, kind: type[TreadleError]
) -> None:
    if stage == "train":
        wheel.run(SECOND, to="featurize")
    spoil(wheel)
    with pytest.raises(kind) as here:
        wheel.run(SECOND, to=stage)
    with pytest.raises(kind) as there:
        wheel.run(SECOND, to=stage, pools={stage: "local"})
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)
    assert there.value.retryable == here.value.retryable
    if isinstance(here.value, DataRefused) and isinstance(there.value, DataRefused):
        assert there.value.findings == here.value.findings
        assert len(there.value.results) == len(here.value.results)


@pytest.mark.parametrize(
    "error",
    [
        UserError("no"),
        StaleChampion("another serves"),
        Transient("busy"),
        MissingPackage("xgboost", "train", "stages"),
        BlobLost("ab" * 32, "missing"),
        HookError("the hook", "here", "Traceback\n  line"),
        SpecError([Fault("loop.yaml", 3, "train.rounds", "wrong.", "Put it right.")]),
        DataRefused("2 checks failed", ["one", "two"], [{"name": "a", "status": "failed"}]),
        JobFailed("train on the pool x", "lost", "gone", 3, ["last words"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_json(error: TreadleError) -> None:
    again = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert (again.retryable, again.exit_code) == (error.retryable, error.exit_code)


def test_an_error_on_its_way_loses_its_credentials_and_keeps_its_nearest_class() -> None:
    class OfSomeonesHook(UserError):
        pass

    told = error_to_json(
        OfSomeonesHook("s3://key:hunter2@host/x of /tmp/laid-out"), {"/tmp/laid-out": "loops"}
    )
    assert "hunter2" not in json.dumps(told)
    again = error_from_json(told)
    assert type(again) is UserError
    assert str(again) == "s3://***@host/x of loops"


# What is killed goes on from what was stored.


@pytest.fixture(scope="module")
def undisturbed(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Wheel, Record]:
    """A long training that nobody interrupts, and its features in the store."""
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("undisturbed"))
    for before, after in LONG:
        wheel.edit("orders.yaml", before, after)
    features_at(wheel, SECOND)
    apart = copy_of(wheel, tmp_path_factory.mktemp("apart"))
    return wheel, apart.run(SECOND, to="train")["train"]


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


# A job without its result never succeeded, and a result counts whatever the backend says.


def test_a_job_that_ends_well_without_a_result_has_failed(wheel: Wheel, tmp_path: Path) -> None:
    pool = Pool(name="odd", python=interpreter(tmp_path, "echo did nothing; exit 0"))
    with pytest.raises(JobFailed, match="ended without a result") as told:
        jobs.run_on_pool(wheel.session(FIRST), "train", pool, features_at(wheel, FIRST))
    assert told.value.tail == ("did nothing",)
    assert not told.value.retryable


def test_a_result_counts_also_when_the_machine_was_lost_after_it(wheel: Wheel) -> None:
    session = wheel.session(FIRST)
    ref = jobs.submit(session, "train", LOCAL, features_at(wheel, FIRST))
    over(ref)
    ended = Path(ref.handle.data["folder"]) / "exit.json"
    ended.write_text(json.dumps({"state": "lost", "exit_code": None, "reason": "gone"}))
    assert settled(session, ref).kind == "candidate"
    result = read_result(session.store, "orders", ref.job, 1)
    assert result is not None
    assert result.versions["python"]
    assert result.peak_rss_mib > 20
    assert result.reused


def test_a_place_that_always_fails_is_given_up_after_the_loops_attempts(wheel: Wheel, tmp_path: Path) -> None:
    lines: list[str] = []
    session = wheel.session(FIRST)
    session.say = lines.append
    pool = Pool(name="odd", python=interpreter(tmp_path, "echo up; kill -9 $$"))
    with pytest.raises(JobFailed, match=r"was lost, 3 times: killed by SIGKILL") as told:
        jobs.run_on_pool(session, "train", pool, features_at(wheel, FIRST))
    assert told.value.retryable
    assert told.value.attempts == 3
    assert lines.count("up") == 3
    assert any("attempt 2 of 3 was lost" in line for line in lines)


def test_an_interpreter_without_treadle_is_told(wheel: Wheel, tmp_path: Path) -> None:
    pool = Pool(name="bare", python=interpreter(tmp_path, f'exec {sys.executable} -S -I "$@"'))
    with pytest.raises(JobFailed, match=r"no treadle for that interpreter: pip install"):
        jobs.run_on_pool(wheel.session(FIRST), "train", pool, features_at(wheel, FIRST))


def test_another_interpreter_runs_the_stage(wheel: Wheel, tmp_path: Path) -> None:
    marker = tmp_path / "used"
    pool = Pool(name="own", python=interpreter(tmp_path, f'touch {marker}; exec {sys.executable} "$@"'))
    record = jobs.run_on_pool(wheel.session(FIRST), "train", pool, features_at(wheel, FIRST))
    assert record.kind == "candidate"
    assert marker.exists()


@pytest.mark.slow
def test_another_version_of_treadle_is_refused_by_both_names(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.jobs.file.treadle_version", lambda: "99.1")
    with pytest.raises(UserError, match=r"submitted by treadle 99\.1, and .* has \d"):
        jobs.run_on_pool(wheel.session(FIRST), "train", LOCAL, features_at(wheel, FIRST))


def test_a_pool_that_promises_a_device_that_is_not_there_fails(wheel: Wheel) -> None:
    chips = Pool(name="chips", accelerator="gpu", count=1)
    with pytest.raises(UserError, match="promises 1 x gpu; this machine shows none"):
        jobs.run_on_pool(wheel.session(FIRST), "train", chips, features_at(wheel, FIRST))


def test_a_device_that_the_flavour_cannot_learn_on_is_refused_before_anything_starts(wheel: Wheel) -> None:
    chips = Pool(name="chips", accelerator="inferentia", count=1, options={"cores_per_device": 2})
    with pytest.raises(SpecError, match=r"xgboost can't train on inferentia: .* It trains on cpu or gpu"):
        jobs.submit(wheel.session(FIRST), "train", chips, features_at(wheel, FIRST))
    assert wheel.session(FIRST).store.list("jobs/orders") == []


@pytest.mark.slow
def test_a_job_beyond_its_time_says_so(undisturbed: tuple[Wheel, Record], tmp_path: Path) -> None:
    wheel = copy_of(undisturbed[0], tmp_path / "copy")
    with pytest.raises(JobFailed, match=r"ran out of time.*max_seconds"):
        jobs.run_on_pool(
            wheel.session(SECOND), "train", Pool(name="brief", max_seconds=1), features_at(wheel, SECOND)
        )


def test_a_loop_that_holds_credentials_does_not_travel(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "load: load.csv", "load: 'https://ann:hunter2@host/load.csv'")
    with pytest.raises(UserError, match="holds credentials") as told:
        wheel.run(SECOND, to="prepare", pools={"prepare": "local"})
    assert "hunter2" not in str(told.value)


@pytest.mark.slow
def test_a_loop_written_in_python_runs_on_a_pool(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = treadle.Loop.load(wheel.path).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    monkeypatch.chdir(wheel.path.parent)
    loop = treadle.Loop.model_validate(content)
    run = treadle.run(loop, as_of=FIRST, store=wheel.store, to="prepare", pools={"prepare": "local"})
    assert run.reused == {"prepare": True}
    assert run["prepare"].id == turned[1]["prepare"].id


@pytest.mark.slow
def test_a_job_finds_its_files_in_an_object_storage(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, s3_environment: str, tmp_path: Path
) -> None:
    loop = treadle.Loop.load(wheel.path)
    store = f"s3://treadle/{tmp_path.name}"
    run = treadle.run(loop, as_of=FIRST, store=store, to="prepare", pools={"prepare": "local"})
    assert run.reused == {"prepare": False}
    assert ids(run) == {"prepare": ids(turned[1])["prepare"]}


# Records by id.


def test_a_stage_by_itself_with_given_records_makes_what_a_whole_run_makes(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel
) -> None:
    for path in (wheel.store / "records" / "orders" / "verdict").glob("*.json"):
        path.unlink()
    given = {stage: turned[1][stage].id for stage in ("featurize", "train")}
    (wheel.path.parent / "orders.csv").unlink()
    found = run_session(
        wheel.session(FIRST), start="train", to="train", inputs={"featurize": given["featurize"]}
    )
    assert ids(found) == {"train": ids(turned[1])["train"]}
    deployed = run_session(
        wheel.session(FIRST), start="deploy", to="deploy", inputs={"release": turned[1]["release"].id}
    )
    assert ids(deployed) == {"deploy": ids(turned[1])["deploy"]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"featurize": "prepare"}, "featurize of orders made no record"),
        ({"prepare": "nothing"}, "prepare of orders made no record"),
        ({"prepare": "../../x"}, "prepare of orders made no record"),
        ({"perpare": "prepare"}, "'perpare' is no stage"),
    ],
    ids=["another kind", "no such id", "a path", "no stage"],
)
def test_an_input_of_something_else_is_refused(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, inputs: dict[str, str], words: str
) -> None:
    given = {
        stage: turned[1][which].id if which in turned[1].records else which for stage, which in inputs.items()
    }
    with pytest.raises(UserError, match=words):
        run_session(wheel.session(FIRST), start="train", to="train", inputs=given)


def test_an_input_of_another_as_of_is_refused(turned: tuple[Wheel, treadle.Run], wheel: Wheel) -> None:
    for stage in ("prepare", "featurize", "train", "evaluate"):
        with pytest.raises(
            UserError, match=f"of {stage} was made as of 2024-02-12; this run is as of 2024-03-25"
        ):
            run_session(
                wheel.session(THIRD), start="deploy", to="deploy", inputs={stage: turned[1][stage].id}
            )


def test_an_input_of_another_loop_is_refused(turned: tuple[Wheel, treadle.Run], wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "name: orders", "name: parcels")
    with pytest.raises(UserError, match="featurize of parcels made no record"):
        run_session(
            wheel.session(FIRST), start="train", to="train", inputs={"featurize": turned[1]["featurize"].id}
        )


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


# The command line.


def test_pool_option_is_checked_before_anything_runs(wheel: Wheel) -> None:
    for given, words in (
        ("train", "write STAGE=NAME"),
        ("trian=local", "there is no such stage"),
        ("train=huge", "there is no pool 'huge'; no pools.yaml was found"),
    ):
        done = command("run", wheel.path, "--as-of", SECOND, "--store", wheel.store, "--pool", given)
        assert done.returncode == 2
        assert words in done.stderr
        assert "prepare" not in done.stderr.partition("treadle: ")[0]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nonsense", "is no job"),
        ("{store}/jobs/orders/abc/1.job.json", "has no job"),
        ("{store}/gone/jobs/o/a/1.job.json", "is not on this machine"),
    ],
    ids=["no address", "no job", "no store"],
)
def test_job_command_ends_with_64_where_there_is_no_job(wheel: Wheel, uri: str, words: str) -> None:
    done = command("job", uri.format(store=wheel.store))
    assert done.returncode == 64
    assert words in done.stderr
