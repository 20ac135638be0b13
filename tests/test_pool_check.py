"""`treadle pools check`: a small job tells whether a pool gives what it promises."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from job_cases import interpreter, moments
from pool_cases import told, treadle_
from treadle.errors import Transient, TreadleError, UserError
from treadle.hardware.backend import Handle, JobSpec
from treadle.hardware.local import LocalBackend
from treadle.hardware.look import look_at
from treadle.hardware.pools import Pool
from treadle.jobs.file import treadle_version
from treadle.jobs.probe import check_pool


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.delenv("TREADLE_STORE", raising=False)
    return tmp_path / "jobs"


class Unreachable(LocalBackend):
    """A place whose network goes down at the submit."""

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        raise Transient("no route.")


class Refused(LocalBackend):
    """A place that takes no job from here."""

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        raise UserError("the role may not make jobs.")


def test_a_pool_that_gives_what_it_promises_passes_its_check(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("one: {cpu: 1, memory_gib: 1, max_seconds: 300}\n")
    found = told("pools", "check", "one", "--folder", tmp_path)
    assert found["ok"]
    assert found["problems"] == []
    assert found["here"]["cores"] == 1, "the job has the one core that the pool gives it"
    assert found["here"]["treadle"] == treadle_version()
    assert found["level"] == "run on hardware"


@pytest.mark.slow
def test_a_pool_proves_itself_by_a_training(tmp_path: Path) -> None:
    checked = check_pool(Pool(name="one"), selftest=True)
    assert checked.problems == ()
    assert checked.selftest is not None
    assert checked.selftest["ok"]


@pytest.mark.parametrize(
    ("pool", "policy", "words"),
    [
        (
            "{instance_type: g6.xlarge}",
            "instance_types: [g5.*]",
            "'g6.xlarge' is not among the instance_types",
        ),
        ("{price: 9, max_seconds: 7200}", "dearest_job: 2", "above dearest_job, 2 USD by"),
        ("{}", "required_tags: [team]", "Write tags: {team: ...} in the pool: this job has no loop."),
        ("{hours: '00:00-00:01'}", "", "takes jobs at 00:00-00:01 UTC"),
    ],
    ids=["instance type", "dearest job", "tags", "hours"],
)
def test_a_check_is_refused_where_any_other_job_would_be(
    tmp_path: Path, state: Path, pool: str, policy: str, words: str
) -> None:
    if datetime.now(UTC).strftime("%H:%M") == "00:00":
        pool = pool.replace("00:00-00:01", "12:00-12:01")
        words = words.replace("00:00-00:01", "12:00-12:01")
    (tmp_path / "pools.yaml").write_text(f"one: {pool}\n")
    (tmp_path / "policy.yaml").write_text(f"{policy}\n")
    done = treadle_("pools", "check", "one", "--folder", tmp_path)
    assert done.exit_code in (1, 2)
    assert words in done.output
    assert not policy or f"{tmp_path / 'policy.yaml'}:1" in done.output
    assert not state.exists(), "nothing is submitted"


def test_a_pool_that_promises_a_device_that_its_job_does_not_see_fails_its_check(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(
        "chips: {accelerator: trainium, count: 1, options: {cores_per_device: 2}}\n"
    )
    done = treadle_("pools", "check", "chips", "--folder", tmp_path)
    assert done.exit_code == 1
    assert "the pool promises 1 x trainium" in " ".join(done.stdout.split())
    assert "sees none" in " ".join(done.stdout.split())
    assert "the device's driver on this machine" in " ".join(done.stdout.split())
    assert "image" not in done.stdout, "a pool of this machine runs none"
    assert "rendered and schema-checked" in done.stdout


SAYS_ANOTHER = (
    "from treadle.jobs import probe; probe.treadle_version = lambda: '99.1'; print(probe.told(probe.here()))"
)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('exec {python} -S -I "$@"', "has no treadle; here is {version}: install that version there"),
        ('exec {python} -P -c "{another}"', "treadle 99.1 is there and {version} here: records would differ"),
        ('echo \'treadle-devices {{"treadle": "0.0.1"}}\'', "treadle 0.0.1 is there and {version} here"),
        ("echo 'No such option: --devices' >&2; exit 2", "older than {version}, which is here"),
        ("echo hello", "ended well and told nothing"),
        ("echo killed; kill -9 $$", "the job lost: killed by SIGKILL"),
        ("sleep 60", "did not end within 2 s and was cancelled"),
    ],
    ids=["none", "newer", "other words", "older", "no treadle at all", "killed", "never ends"],
)
def test_what_is_wrong_at_the_place_is_told_with_both_versions(
    tmp_path: Path, script: str, words: str
) -> None:
    places = {"python": sys.executable, "another": SAYS_ANOTHER, "version": treadle_version()}
    pool = Pool(name="odd", python=interpreter(tmp_path, script.format(**places)))
    checked = check_pool(pool, patience_s=2 if script == "sleep 60" else 60)
    assert len(checked.problems) == 1, checked.problems
    assert words.format(**places) in checked.problems[0]
    for _ in moments("the job still runs"):
        (view,) = look_at([pool])
        if (view.running, view.waiting) == (0, 0):
            break


@pytest.mark.parametrize(("kind", "retryable"), [("Unreachable", True), ("Refused", False)])
def test_a_check_of_a_place_that_takes_no_job_says_whether_a_retry_helps(kind: str, retryable: bool) -> None:
    with pytest.raises(TreadleError) as error:
        check_pool(Pool(name="far", backend=f"{__name__}:{kind}"))
    assert error.value.retryable == retryable


def test_an_unknown_pool_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("trainium-spot:\n")
    done = treadle_("pools", "check", "traniumspot", "--folder", tmp_path)
    assert done.exit_code == 2
    assert "Did you mean 'trainium-spot'?" in done.output


@pytest.mark.parametrize("memory_gib", [0.02, 0.1], ids=["not the interpreter", "not the libraries"])
def test_a_pool_where_treadle_itself_does_not_fit_fails_its_check(tmp_path: Path, memory_gib: float) -> None:
    (tmp_path / "pools.yaml").write_text(f"tiny: {{memory_gib: {memory_gib}}}\n")
    done = treadle_("pools", "check", "tiny", "--folder", tmp_path)
    assert done.exit_code == 1, done.output
    words = " ".join(done.stdout.split())
    assert "aise memory_gib" in words
    assert f"{memory_gib} GiB" in words
    assert "treadle-devices" not in words, "what the job tells by machine is not for people"


def test_a_pool_that_promises_more_memory_than_there_is_fails_its_check(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("huge: {memory_gib: 90000}\n")
    done = treadle_("pools", "check", "huge", "--folder", tmp_path)
    assert done.exit_code == 1
    assert "promises 90000 GiB of memory" in " ".join(done.stdout.split())
