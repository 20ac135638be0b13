"""Jobs that fail or are refused, and what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from job_cases import LOCAL, features_at, interpreter, over, settled
from processes import command
from treadle import jobs
from treadle.errors import (
    JobFailed,
    SpecError,
    UserError,
)
from treadle.hardware.pools import Pool
from treadle.jobs.file import read_result
from treadle.jobs.listing import jobs_in
from treadle.records import Record
from wheel import FIRST, SECOND, Wheel, copy_of

# A job without its result never succeeded, and a result counts whatever the backend says.


def test_a_job_that_ends_well_without_a_result_has_failed(wheel: Wheel, tmp_path: Path) -> None:
    pool = Pool(name="odd", python=interpreter(tmp_path, "echo did nothing; exit 0"))
    with pytest.raises(JobFailed, match="ended without a result") as told:
        jobs.run_on_pool(wheel.session(FIRST), "train", pool, features_at(wheel, FIRST))
    assert told.value.tail == ("did nothing",)
    assert f"treadle jobs follow {told.value.id}" in str(told.value)
    (job,) = jobs_in(wheel.session(FIRST).store)
    assert job.id == told.value.id
    assert not told.value.retryable


def test_a_job_that_printed_nothing_names_no_log(wheel: Wheel) -> None:
    pool = Pool(name="bare", env={"TOKEN": "${NOT_SET_ANYWHERE}"})
    with pytest.raises(JobFailed, match="NOT_SET_ANYWHERE, which is not set here") as told:
        jobs.run_on_pool(wheel.session(FIRST), "train", pool, features_at(wheel, FIRST))
    assert "follow" not in str(told.value)
    assert "log" not in str(told.value)


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


# The command line.


def test_pool_option_is_checked_before_anything_runs(wheel: Wheel) -> None:
    for given, words in (
        ("train", "write STAGE=NAME"),
        ("trian=local", "there is no such stage"),
        ("train=huge", "there is no pool 'huge'; no pools.yaml was found"),
        ("train=local,evaluate=local", "repeat --pool: --pool STAGE=local --pool evaluate=local"),
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
